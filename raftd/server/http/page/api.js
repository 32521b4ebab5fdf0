// Calls to this node, and the one stream that it sends.

// What a call was answered instead of what was wanted: `name` is one of /v1/problems.
export class Problem extends Error {
  constructor(status, body) {
    super([body?.title ?? `The node answered with ${status}`, body?.detail].filter((text, at, all) => text && all.indexOf(text) === at).join(". "));
    this.status = status;
    this.name = body?.type?.split("#")[1] ?? "";
  }
}

// What only pages of this node know, once somebody has signed in. (Other ports of the host get the cookie, and not this.)
// Another tab may have signed in since, so it is looked up each time.
const SECRET = "raftd-secret";
const secret = () => localStorage.getItem(SECRET) ?? "";

export const hasSecret = () => secret() !== "";
export const useSecret = (text) => localStorage.setItem(SECRET, text);

// The node answers within five seconds, or it hangs.
const ANSWER_MS = 15_000;

export async function call(method, path, body, headers = {}) {
  const options = { method, headers: { "Raftd-Page": secret(), ...headers }, credentials: "same-origin", cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    const isLook = method === "GET";
    throw new Problem(0, { title: "This node does not answer", detail: isLook ? "It is asked again." : "Whether it has done this is not known: look before you do it again." });
  }
  const text = await answer.text();
  let value = null;
  try {
    value = text ? JSON.parse(text) : null;
  } catch {
    throw new Problem(answer.status, null);
  }
  if (!answer.ok) throw new Problem(answer.status, value);
  return value;
}

export const get = (path, parameters = {}) => call("GET", withParameters(path, parameters));

export function withParameters(path, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

export const path = (...parts) => "/" + parts.map(encodeURIComponent).join("/");

// The stream of summaries. `told` gets each; `lost` is called when it breaks, `refused` with the Problem when the node does not begin it, `over` when whoever had signed in may look no more.
export class Live {
  constructor(handlers) {
    this.handlers = handlers;
    this.source = null;
    this.wanted = "";
  }

  // Shows another part of the queue from now on; null: nothing.
  watch(parameters) {
    const wanted = parameters === null ? "" : withParameters("/summary", parameters);
    if (wanted === this.wanted) return;
    this.wanted = wanted;
    this.open();
  }

  // Begins anew: the last one may hang.
  open() {
    this.source?.close();
    this.source = null;
    if (!this.wanted) return;
    const source = (this.source = new EventSource(this.wanted));
    source.addEventListener("summary", (event) => this.handlers.told(JSON.parse(event.data)));
    source.addEventListener("over", () => {
      this.watch(null);
      this.handlers.over();
    });
    source.onerror = () => {
      if (source !== this.source) return;
      if (source.readyState !== EventSource.CLOSED) {
        this.handlers.lost();
        return;
      }
      whyRefused(this.wanted).then(this.handlers.refused, this.handlers.lost);
      setTimeout(() => source === this.source && this.open(), AGAIN_MS);
    };
  }
}

const AGAIN_MS = 3000;

// A stream that is refused does not say why; a call does.
async function whyRefused(path) {
  const stop = new AbortController();
  const answer = await fetch(path, { signal: stop.signal, headers: { "Raftd-Page": secret() } });
  const body = answer.ok ? null : await answer.json();
  stop.abort();
  return body && new Problem(answer.status, body);
}

// Whether a server lives at this origin. It says nothing else to other pages.
export async function isAlive(origin) {
  try {
    await fetch(`${origin}/healthz`, { mode: "no-cors", cache: "no-store", signal: AbortSignal.timeout(2000) });
    return true;
  } catch {
    return false;
  }
}

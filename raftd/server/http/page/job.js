// One job: what it is, who has it, what became of it.

import { get, call, path } from "./api.js";
import { act, ask, may, update } from "./app.js";
import { moment, plural, size, span } from "./format.js";
import { h } from "./h.js";
import { button, facts, mark, quiet, table, tubeLink } from "./parts.js";

const FRESH_MS = 2000;
const SHOWN_CHARACTERS = 100_000;

export function jobView(id) {
  const view = { title: `Job ${id}`, job: null, history: null, problem: "", how: "", asked: 0 };
  view.heard = () => {
    if (Date.now() - view.asked > FRESH_MS) view.reload();
  };
  view.reload = async () => {
    view.asked = Date.now();
    const [job, history] = await Promise.allSettled([get(path("v1", "jobs", id)), get(path("v1", "jobs", id, "history"))]);
    view.job = job.value ?? null;
    view.history = history.value ?? null;
    view.problem = job.reason?.message ?? "";
    update();
  };
  view.render = () => {
    const { job, history } = view;
    if (!job && !history && !view.problem) return [h("h1", {}, `Job ${id}`), quiet("Asking the node …")];
    return [
      h("h1", {}, `Job ${id}`, job && [" ", mark(job.state), job.death && mark("dead", "problem")]),
      !job && h("p", { class: "problem" }, view.problem),
      job && [actions(job, view), about(job), h("h2", {}, "Body"), body(job, view)],
      h("h2", {}, "History"),
      history ? events(history) : quiet("This node remembers nothing of it."),
      h("p", {}, button("Look again", view.reload)),
    ];
  };
  return view;
}

function actions(job, view) {
  if (!may("manage", job.tube)) return null;
  const where = path("v1", "jobs", job.id);
  const isKickable = job.state === "buried" || job.state === "delayed";
  const remove = () =>
    ask({
      title: `Delete job ${job.id}?`,
      text: "It is gone for good, with its body.",
      verb: "Delete it",
      isDangerous: true,
      act: async () => {
        await call("DELETE", where);
        return `Job ${job.id} is deleted.`;
      },
    });
  const kick = async () => {
    await call("POST", `${where}/kick`);
    return `Job ${job.id} is ready.`;
  };
  // A step of a replay that looks at this job alone, as long as it is as it is shown.
  const back = async () => {
    const to = job.death.tube;
    const { done, skipped } = await call("POST", path("v1", "tubes", job.tube, "replay"), { action: "move", origin: to, after: job.id - 1, up_to: job.id });
    if (!done) throw new Error(skipped ? `${to} has no room for it.` : "It is not here any more, or a worker has it, or it has died elsewhere. Look again.");
    return `Job ${job.id} is ready in ${to}.`;
  };
  const isMovable = job.death && job.death.tube !== job.tube && job.state !== "reserved";
  return h(
    "p",
    { class: "buttons" },
    isMovable && button(`Move back to ${job.death.tube}`, () => act(`Moving job ${job.id}`, back()), { class: "main" }),
    isKickable && button("Kick: make it ready", () => act(`Kicking job ${job.id}`, kick()), { class: "main" }),
    job.state === "reserved" ? quiet("A worker has it: it alone can delete it, until its time to run is over.") : button("Delete", remove, { class: "dangerous" }),
  );
}

const WHY = { attempts: "its attempts were used up", expired: "its time to live was over", overflow: "its tube was full" };
const death = ({ at, tube, attempts, reason }) => `${moment(at)} in ${tube}, after ${plural(attempts, "failed attempt")}: ${WHY[reason]}`;
const held = ({ held_by: who }) => (who && (who.node ? `client ${who.client} of node ${who.node}` : `session ${who.client} of the client protocol`));

function about(job) {
  return facts([
    ["Tube", tubeLink(job.tube)],
    ["Priority", job.priority],
    ["Put", `${span(job.age_s)} ago`],
    ["Held by", held(job)],
    ["Buried", job.buried_at && moment(job.buried_at)],
    [job.state === "reserved" ? "Time to run left" : "Ready in", job.left_s === null ? null : span(job.left_s)],
    ["Time to run", span(job.ttr_s)],
    ["Failed attempts", job.attempts],
    ["Last error", job.error && h("code", {}, job.error)],
    ["Died", job.death && death(job.death)],
    ["So far", `reserved ${job.reserves}, released ${job.releases}, buried ${job.buries}, kicked ${job.kicks}, out of time ${job.timeouts}`],
  ]);
}

// -- the body -----------------------------------------------------------------------------------

const HOW = [["json", "JSON"], ["text", "Text"], ["hex", "Bytes"]];

function body(job, view) {
  const bytes = job.base64 === undefined ? new TextEncoder().encode(job.body) : Uint8Array.from(atob(job.base64), (letter) => letter.charCodeAt(0));
  const json = job.base64 === undefined ? pretty(job.body) : null;
  const possible = HOW.filter(([how]) => how === "hex" || (job.base64 === undefined && (how === "text" || json !== null)));
  const how = possible.some(([one]) => one === view.how) ? view.how : possible[0][0];
  const text = how === "json" ? json : how === "text" ? job.body : hex(bytes);
  return [
    h("p", { class: "choice", role: "group", "aria-label": "How the body is shown" }, possible.map(([one, name]) => button(name, () => { view.how = one; update(); }, { key: one, "aria-pressed": String(one === how) })), quiet(size(bytes.length))),
    text === "" ? quiet("It is empty.") : h("pre", { class: "body", tabindex: 0 }, text.slice(0, SHOWN_CHARACTERS)),
    text.length > SHOWN_CHARACTERS && quiet("Only its beginning is shown."),
  ];
}

// Only if nothing is lost by it: JavaScript reads large numbers, and names that stand twice, as something else.
let last = { text: null, value: null };
function pretty(text) {
  if (last.text !== text) last = { text, value: prettyOf(text) };
  return last.value;
}

function prettyOf(text) {
  try {
    const value = JSON.parse(text);
    const isSame = JSON.stringify(value) === text.replace(/("(?:[^"\\]|\\.)*")|\s+/g, "$1");
    return typeof value === "object" && value !== null && isSame ? JSON.stringify(value, null, 2) : null;
  } catch {
    return null;
  }
}

const LINE = 16;

function hex(bytes) {
  const lines = [];
  for (let at = 0; at < Math.min(bytes.length, SHOWN_CHARACTERS / 5); at += LINE) {
    const part = [...bytes.subarray(at, at + LINE)];
    const digits = part.map((byte) => byte.toString(16).padStart(2, "0")).join(" ").padEnd(LINE * 3);
    lines.push(`${at.toString(16).padStart(6, "0")}  ${digits} ${part.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : "·")).join("")}`);
  }
  return lines.join("\n");
}

// -- what became of it --------------------------------------------------------------------------

function events(history) {
  const by = (event) => (event.by ? (event.by.node ? `client ${event.by.client} of node ${event.by.node}` : `session ${event.by.client}`) : "time");
  return [
    table({
      caption: "History",
      columns: [
        { label: "When", cell: (event) => h("time", {}, moment(event.time)) },
        { label: "What", cell: (event) => event.what },
        { label: "Tube", cell: (event) => event.tube },
        { label: "By", cell: by },
        { label: "Until", cell: (event) => (event.until ? moment(event.until) : "") },
      ],
      rows: [...history.events].reverse(),
      key: (event) => `${event.entry}.${event.number}`,
      empty: "What happened to it is forgotten here.",
    }),
    quiet(`This node remembers what happened from entry ${history.known_from} of the log on.`),
  ];
}

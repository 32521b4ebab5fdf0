// The page: its frame, and which view is shown. The part of the address behind the # says which.

import { ask, close, learnSession, live, move, mustSignIn, say, signOut, start, state, stay, update } from "./app.js";
import { span } from "./format.js";
import { h, render } from "./h.js";
import { jobView } from "./job.js";
import { nodesView } from "./nodes.js";
import { overviewView } from "./overview.js";
import { button, dialog, link, mark } from "./parts.js";
import { schedulesView } from "./schedules.js";
import { signInView } from "./signin.js";
import { tubeView } from "./tube.js";
import { tubesView } from "./tubes.js";
import { usersView } from "./users.js";

const VIEWS = { "": overviewView, tubes: tubesView, tube: tubeView, job: jobView, schedules: schedulesView, nodes: nodesView, users: usersView };
// After so long (seconds) it is no ordinary election any more.
const LONG_ELECTION_S = 3;
const TABS = [["", "Overview", "o"], ["tubes", "Tubes", "t"], ["schedules", "Schedules", "s"], ["nodes", "Nodes", "n"], ["users", "Users", "u"]];

// -- which view ---------------------------------------------------------------------------------

const place = () => location.hash.replace(/^#\/?/, "").split("/").map(decode);

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function show() {
  const [name, ...rest] = place();
  state.view = Object.hasOwn(VIEWS, name) ? VIEWS[name](...rest) : unknownView();
  state.name = name;
  state.dialog = null;
  // What was told of other tubes is not of this view.
  if (state.summary) state.summary = { ...state.summary, tubes: undefined, tube: undefined };
  document.title = `${state.view.title} · raftd`;
  if (!mustSignIn()) state.view.reload?.();
  update();
  document.getElementById("main")?.focus({ preventScroll: true });
  scrollTo(0, 0);
}

const unknownView = () => ({ title: "Nothing", render: () => [h("h1", {}, "There is no such view"), h("p", {}, link("#/", "To the overview"))] });

// -- drawing ------------------------------------------------------------------------------------

function draw() {
  const session = state.session;
  if (!session) return;
  const isStranger = mustSignIn();
  live.watch(isStranger ? null : { limit: 0, ...state.view.watch?.() });
  render(document.getElementById("page"), [
    link("#main", "To the content", { key: "skip", class: "skip", onclick: (event) => { event.preventDefault(); document.getElementById("main").focus(); } }),
    top(session, isStranger),
    banner(),
    h("main", { key: "main", id: "main", tabindex: -1 }, isStranger ? signInView() : state.view.render()),
    h("div", { key: "toasts", class: "toasts", role: "status", "aria-live": "polite" }, state.toasts.map((toast) => h("p", { key: toast.key, class: toast.isProblem ? "toast problem" : "toast" }, h("span", {}, toast.text), button("×", () => close(toast), { "aria-label": "Close this message" })))),
    dialog(),
  ]);
}

function top(session, isStranger) {
  const own = state.summary;
  const says = own && !state.lost ? (own.leader ? `node ${own.leader} leads, term ${own.term}` : "no leader") : "";
  return h(
    "header",
    { key: "top", class: "top" },
    link("#/", "raftd", { class: "name" }),
    !isStranger && h("nav", { "aria-label": "Views" }, TABS.map(([name, text]) => link(`#/${name}`, text, { key: name, "aria-current": isTab(name) ? "page" : null }))),
    h(
      "div",
      { class: "who" },
      h("span", { class: "cluster" }, `${session.cluster}, node ${session.node}${says ? `: ${says}` : ""}`),
      session.is_read_only && mark("read only", "warn"),
      session.user && h("span", {}, session.user),
      session.is_browser && button("Sign out", () => signOut().catch(say)),
      button(isDark() ? "Light" : "Dark", changeTheme, { "aria-label": `Change to ${isDark() ? "light" : "dark"} colours` }),
      button("?", help, { "aria-label": "Help with the keyboard" }),
    ),
  );
}

function noLeader() {
  const seconds = Math.floor((Date.now() - state.leaderless) / 1000);
  if (seconds < LONG_ELECTION_S) return "No leader: the nodes hold an election, which takes less than a second while a majority of them hear each other. Commands wait.";
  const voters = state.summary.nodes.filter((node) => node.state === "voter");
  const heard = voters.filter((node) => node.is_heard);
  const who = voters.length ? ` This node hears ${heard.length} of ${voters.length} nodes, itself among them, and ${Math.floor(voters.length / 2) + 1} must hear each other.` : "";
  return `No leader for ${span(seconds)}.${who} Nothing is lost, and what was put waits; commands are refused after some seconds.`;
}

const isTab = (name) => name === state.name || (name === "tubes" && (state.name === "tube" || state.name === "job"));

function banner() {
  const parts = [];
  if (state.lost) {
    const text = `Node ${state.session.node} has not answered for ${span(Math.floor((Date.now() - state.lost) / 1000) || 1)}: what is shown is from before.`;
    const moving = state.moving && [` Node ${state.moving.node} lives: this page moves there. `, button("Move now", move), button("Stay", stay)];
    parts.push(h("div", { key: "lost", class: "banner problem", role: "alert" }, text, moving || ` It is asked again. ${state.others.length ? "Another node is looked for." : "No other node is known here."}`));
  } else if (state.leaderless) {
    parts.push(h("div", { key: "leader", class: "banner warn", role: "alert" }, noLeader()));
  }
  if (state.summary?.queue?.is_out_of_space) parts.push(h("div", { key: "space", class: "banner problem", role: "alert" }, "Too few nodes have free disk space: puts are refused."));
  return parts;
}

// -- colours, keys ------------------------------------------------------------------------------

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
prefersDark.addEventListener("change", update);
const isDark = () => (document.documentElement.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";

function changeTheme() {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("raftd-theme", theme);
  update();
}

const KEYS = [["/", "to the filter"], ["g, then o t s n u", "Overview, Tubes, Schedules, Nodes, Users"], ["n, p", "the next page, the page before"], ["Esc", "close what is asked"], ["?", "this help"]];

function help() {
  ask({ title: "Keyboard", text: () => h("dl", { class: "facts" }, KEYS.map(([key, text]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)))) });
}

let isGoing = false;

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || state.dialog || event.target.closest?.("input, textarea, select")) return;
  const wasGoing = isGoing;
  isGoing = event.key === "g";
  const tab = wasGoing && TABS.find(([, , key]) => key === event.key);
  if (tab) location.hash = `#/${tab[0]}`;
  else if (event.key === "?") help();
  else if (event.key === "n") document.getElementById("page-next")?.click();
  else if (event.key === "p") document.getElementById("page-before")?.click();
  else if (event.key === "/") {
    document.querySelector("input[type=search], .filters input")?.focus();
    event.preventDefault();
  }
}

// -- beginning ----------------------------------------------------------------------------------

const theme = localStorage.getItem("raftd-theme");
if (theme) document.documentElement.dataset.theme = theme;
addEventListener("hashchange", show);
addEventListener("keydown", pressed);
start(draw, show);

async function begin() {
  try {
    await learnSession();
    show();
    const instead = new URLSearchParams(location.search).get("instead-of");
    if (instead) say(`Node ${instead} did not answer: this is node ${state.session.node}.`);
    if (instead) history.replaceState(null, "", `/${location.hash}`);
  } catch (problem) {
    render(document.getElementById("main"), [h("p", { class: "problem", role: "alert" }, problem.message), button("Ask again", begin)]);
  }
}

begin();

// What all views share: the state of the page, and how it changes.

import { Live, Problem, call, get, hasSecret, isAlive, useSecret } from "./api.js";

// `summary`: what the node has said last; its `tube` and `tubes` are undefined until it has told of those that are shown now. `heard`: when
// it was; `lost`: since when the node has been silent, null if it has not; `leaderless`: since when it has known no leader.
export const state = {
  session: null,
  summary: null,
  points: new Map(),
  heard: 0,
  lost: null,
  leaderless: null,
  toasts: [],
  dialog: null,
  signedOut: "",
  view: null,
  others: [],
  moving: null,
};

let draw = () => {};
let show = () => {};
let isDue = false;

// `drawing` draws the page, `showing` begins its view anew.
export function start(drawing, showing) {
  draw = drawing;
  show = showing;
  setInterval(look, 1000);
}

// The node says something every two seconds, if it does not hang.
const HANGS_MS = 4000;

function look() {
  if (live.wanted && state.heard && Date.now() - state.heard > HANGS_MS) {
    state.heard = Date.now(); // when it is tried anew
    live.open();
    lost();
  }
  update(); // ages grow
}

// Draws the page anew, soon, once.
export function update() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    draw();
  });
}

// -- who looks ----------------------------------------------------------------------------------

export async function learnSession() {
  state.session = await get("/v1/session");
  update();
}

export async function signIn(authorization, isReadOnly) {
  state.session = await call("POST", "/v1/session", { is_read_only: isReadOnly }, { Authorization: authorization });
  useSecret(state.session.secret);
  state.signedOut = "";
  show(); // nothing of whoever looked before
}

export async function signOut() {
  await call("DELETE", "/v1/session");
  await nobody("");
}

async function nobody(why) {
  live.watch(null);
  Object.assign(state, { summary: null, signedOut: why, toasts: [] });
  await learnSession();
  show();
}

// With the cookie alone nothing can be changed.
export const mustSignIn = () => state.session?.has_users && (state.session.user === null || (state.session.is_browser && !hasSecret()));

// Whether the user has this right to the tube. The node decides anew with each call: this only hides what would be refused.
export function may(right, tube) {
  const session = state.session;
  if (!session || session.is_read_only) return right === "read" && Boolean(session);
  if (!session.has_users) return true;
  const fits = (grant) => grant.right === right && fitsPattern(grant.tubes, tube);
  return session.grants.some((grant) => fits(grant) && !grant.is_denied) && !session.grants.some((grant) => fits(grant) && grant.is_denied);
}

export const mayOperate = () => state.session?.operates && !state.session.is_read_only;

function fitsPattern(pattern, tube) {
  const star = pattern.indexOf("*");
  if (star < 0) return pattern === tube;
  const [head, tail] = [pattern.slice(0, star), pattern.slice(star + 1)];
  return tube.length >= head.length + tail.length && tube.startsWith(head) && tube.endsWith(tail);
}

// -- what happens -------------------------------------------------------------------------------

const SILENT_MS = 3000;

export const live = new Live({
  told(summary) {
    const rows = summary.tube ? [...summary.tubes, summary.tube] : summary.tubes;
    // Only what is shown is kept, so an open page does not grow.
    state.points = new Map(rows.map((row) => [row.tube.name, row.points ?? state.points.get(row.tube.name) ?? []]));
    Object.assign(state, { summary, heard: Date.now(), lost: null, moving: null, others: Object.entries(summary.pages) });
    // Rights may have changed since.
    if (state.session.sees_all !== (summary.queue !== null)) learnSession().catch(say);
    state.leaderless = summary.leader ? null : (state.leaderless ?? Date.now());
    state.view?.heard?.(summary);
    update();
  },
  lost,
  refused(problem) {
    if (problem) say(problem);
  },
  over: isOver,
});

function lost() {
  state.lost ??= Date.now();
  lookForAnother();
  update();
}

function isOver() {
  nobody("You were signed out: what you had shown was revoked or has expired, or twelve hours are over.").catch(say);
}

// When this node is gone, another shows the same: the page moves there.
let isLooking = false;
async function lookForAnother() {
  if (isLooking || !state.others.length) return;
  isLooking = true;
  await new Promise((resolve) => setTimeout(resolve, SILENT_MS));
  for (const [node, place] of state.others) {
    if (state.lost === null) break;
    const origin = `${location.protocol}//${place}`;
    if (await isAlive(origin)) {
      state.moving = { node, origin };
      update();
      setTimeout(() => state.moving?.origin === origin && !state.dialog && move(), SILENT_MS);
      break;
    }
  }
  isLooking = false;
}

export function move() {
  location.assign(`${state.moving.origin}/?instead-of=${state.session.node}${location.hash}`);
}

export function stay() {
  state.moving = null;
  state.others = [];
  update();
}

// -- what is said -------------------------------------------------------------------------------

const SHOWN_MS = 6000;
let toastNumber = 0;

// A short sentence at the edge of the page; a problem stays until it is closed.
export function say(what) {
  const isProblem = what instanceof Error;
  if (isProblem && !(what instanceof Problem)) console.error(what);
  if (isProblem && what.status === 401) {
    isOver();
    return;
  }
  if (isProblem && state.toasts.some((toast) => toast.isProblem && toast.text.includes(what.message))) return;
  const toast = { key: (toastNumber += 1), isProblem, text: isProblem ? what.message : what };
  state.toasts = [...state.toasts.slice(-3), toast];
  if (!isProblem) setTimeout(() => close(toast), SHOWN_MS);
  update();
}

export function close(toast) {
  state.toasts = state.toasts.filter((other) => other !== toast);
  update();
}

// -- asking -------------------------------------------------------------------------------------

// Opens a dialog. `fields`: [{ name, label, ... }], or nothing but the text; `act` gets their values and the dialog, which closes when it is
// done. One with many steps (`hasSteps`) tells its `progress`, and ends after a step if `isStopped`.
export function ask(dialog) {
  state.dialog = { values: Object.fromEntries((dialog.fields ?? []).map((field) => [field.name, field.value ?? ""])), problem: "", isBusy: false, ...dialog };
  update();
}

// While something is done it cannot be closed, as if it were not.
export function closeDialog() {
  if (!state.dialog?.isBusy) state.dialog = null;
  else if (state.dialog.hasSteps) state.dialog.isStopped = true;
  update();
}

export async function actDialog() {
  const dialog = state.dialog;
  if (dialog.isBusy) return;
  dialog.isBusy = true;
  dialog.problem = "";
  update();
  try {
    const said = await dialog.act(dialog.values, dialog);
    state.dialog = null;
    if (said) say(said);
  } catch (problem) {
    dialog.problem = problem.message;
    if (problem.status === 401) say(problem);
  }
  dialog.isBusy = false;
  state.view?.reload?.();
  update();
}

// Without a dialog. `what` is said if it cannot be done.
export async function act(what, promise) {
  try {
    const said = await promise;
    if (said) say(said);
  } catch (problem) {
    problem.message = `${what}: ${problem.message}`;
    say(problem);
  }
  state.view?.reload?.();
  update();
}

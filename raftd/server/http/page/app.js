// What all views share: the state of the page, and how it changes.

import { Live, Problem, call, get, isAlive, useSecret } from "./api.js";

// `summary`: what the node has said last; `heard`: when; `lost`: since when it has been silent, null if it has not.
export const state = {
  session: null,
  summary: null,
  points: new Map(),
  lost: null,
  toasts: [],
  dialog: null,
  view: null,
  others: [],
  moving: null,
};

let draw = () => {};
let isDue = false;

export function start(drawing) {
  draw = drawing;
  setInterval(update, 1000); // ages grow
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
  useSecret(state.session.secret);
  update();
}

export async function signIn(authorization, isReadOnly) {
  state.session = await call("POST", "/v1/session", { is_read_only: isReadOnly }, { Authorization: authorization });
  useSecret(state.session.secret);
  update();
}

export async function signOut() {
  await call("DELETE", "/v1/session");
  live.watch(null);
  state.summary = null;
  await learnSession();
}

export const mustSignIn = () => state.session?.has_users && state.session.user === null;

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
    state.summary = summary;
    state.lost = null;
    state.moving = null;
    state.others = summary.nodes.filter((node) => !node.is_self && node.http);
    state.view?.heard?.(summary);
    update();
  },
  lost() {
    state.lost ??= Date.now();
    lookForAnother();
    update();
  },
  refused(problem) {
    if (problem) say(problem);
  },
  over() {
    learnSession().catch(say);
  },
});

// When this node is gone, another shows the same: the page moves there.
let isLooking = false;
async function lookForAnother() {
  if (isLooking || !state.others.length) return;
  isLooking = true;
  await new Promise((resolve) => setTimeout(resolve, SILENT_MS));
  for (const node of state.others) {
    if (state.lost === null) break;
    const origin = `${location.protocol}//${node.http}`;
    if (await isAlive(origin)) {
      state.moving = { node: node.node, origin };
      update();
      setTimeout(() => state.moving?.origin === origin && move(), SILENT_MS);
      break;
    }
  }
  isLooking = false;
}

export function move() {
  location.assign(`${state.moving.origin}/${location.hash}`);
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
    learnSession().catch(() => {});
    return;
  }
  if (isProblem && state.toasts.some((toast) => toast.isProblem && toast.text.includes(what.message))) return;
  const toast = { key: (toastNumber += 1), isProblem, text: isProblem ? [what.title, what.message].filter((part, at, all) => part && all.indexOf(part) === at).join(". ") : what };
  state.toasts = [...state.toasts.slice(-3), toast];
  if (!isProblem) setTimeout(() => close(toast), SHOWN_MS);
  update();
}

export function close(toast) {
  state.toasts = state.toasts.filter((other) => other !== toast);
  update();
}

// -- asking -------------------------------------------------------------------------------------

// Opens a dialog. `fields`: [{ name, label, ... }], or nothing but the text; `act` gets their values, and the dialog closes when it is done.
export function ask(dialog) {
  state.dialog = { values: Object.fromEntries((dialog.fields ?? []).map((field) => [field.name, field.value ?? ""])), problem: "", isBusy: false, ...dialog };
  update();
}

export function closeDialog() {
  state.dialog = null;
  update();
}

export async function actDialog() {
  const dialog = state.dialog;
  if (dialog.isBusy) return;
  dialog.isBusy = true;
  dialog.problem = "";
  update();
  try {
    const said = await dialog.act(dialog.values);
    if (state.dialog === dialog) state.dialog = null;
    if (said) say(said);
  } catch (problem) {
    dialog.problem = problem.message;
    if (problem.status === 401) closeDialog();
  }
  dialog.isBusy = false;
  state.view?.reload?.();
  update();
}

// Calls without a dialog.
export async function act(promise) {
  try {
    const said = await promise;
    if (said) say(said);
  } catch (problem) {
    say(problem);
  }
  state.view?.reload?.();
  update();
}

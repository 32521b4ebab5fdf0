// One tube: why it does not drain, its jobs by state, its policy, and another chance for what is dead.

import { call, get, path, withParameters } from "./api.js";
import { act, ask, may, state, update } from "./app.js";
import { spark } from "./charts.js";
import { count, plural, rate, size, span } from "./format.js";
import { h } from "./h.js";
import { button, facts, field, jobLink, mark, pager, quiet, table, tile, tubeLink } from "./parts.js";

const STATES = ["ready", "reserved", "delayed", "buried"];
// As beanstalkd has it.
const TUBE_NAME = /^[A-Za-z0-9+/;.$_()][A-Za-z0-9+/;.$_()-]*$/;
const JOBS_SHOWN = 50;
const FRESH_MS = 2000;

export function tubeView(name) {
  const view = { title: name, name, policy: undefined, which: "ready", where: [""], jobs: null, problem: "", filter: { error: "", origin: "", from: "", before: "" }, dead: null, changes: "", asked: 0 };
  const isName = TUBE_NAME.test(name) && name.length <= 200;
  view.reload = () => state.summary?.tube && loadJobs(view);
  // What the stream tells says when the rest is to be asked for again.
  view.heard = ({ tube: row }) => {
    if ((row?.tube.policy_version ?? 0) !== (view.policy?.version ?? 0)) loadPolicy(view);
    else view.policy ??= null;
    const changes = row ? [row.tube.total_jobs, row.tube.deletes, ...STATES.map((which) => row.tube[which])].join(" ") : "";
    if (changes !== view.changes && view.where.length === 1 && Date.now() - view.asked > FRESH_MS) {
      view.changes = changes;
      loadJobs(view);
    }
  };
  view.watch = () => (isName ? { tube: name } : {});
  view.render = () => {
    const tube = state.summary?.tube?.tube;
    if (!isName) return [h("h1", {}, name), quiet("No tube can have this name.")];
    const heading = h("h1", {}, name, tube?.pause_left_s > 0 && mark(`paused for ${span(tube.pause_left_s)} more`, "warn"));
    if (!state.summary) return [heading, quiet("Asking the node …")];
    if (!tube) return [heading, quiet("There is no such tube now, or you may not look at it. A tube that was not declared goes when it is empty and unused."), putButton(view)];
    return [
      heading,
      h("section", { "aria-label": "Why it does not drain", class: "diagnosis" }, h("ul", {}, diagnosis(tube, view.policy?.policy).map((text) => h("li", { key: text }, text)))),
      tiles(tube),
      actions(tube, view),
      dead(tube, view),
      h("h2", {}, "Jobs"),
      jobs(tube, view),
      h("h2", {}, "Policy"),
      policy(view),
    ];
  };
  return view;
}

async function loadPolicy(view) {
  try {
    view.policy = await get(path("v1", "tubes", view.name, "policy"));
  } catch {
    view.policy = null;
  }
  update();
}

async function loadJobs(view) {
  view.asked = Date.now();
  const { which, where } = view;
  const isWanted = () => view.which === which && view.where === where; // something else may have been chosen meanwhile
  try {
    const jobs = await get(path("v1", "tubes", view.name, "jobs"), { state: which, after: where.at(-1), limit: JOBS_SHOWN });
    if (isWanted()) Object.assign(view, { jobs, problem: "" });
  } catch (problem) {
    if (!isWanted()) return;
    view.jobs = null;
    view.problem = problem.name === "no-such-tube" ? "" : problem.message;
  }
  update();
}

// -- why it does not drain ----------------------------------------------------------------------

function diagnosis(tube, its) {
  const said = [];
  const held = its?.concurrency && tube.reserved >= its.concurrency;
  if (tube.pause_left_s > 0) said.push(`It is paused: nothing is reserved from it for another ${span(tube.pause_left_s)}.`);
  if (tube.ready && tube.ready <= tube.dead && !tube.watching) said.push("No worker watches it: its dead letters wait for somebody who looks at them.");
  else if (tube.ready && !tube.watching && !tube.waiting) said.push(`No worker watches it: ${plural(tube.ready, "job is", "jobs are")} ready, and nobody takes them.`);
  else if (held && tube.ready) said.push(`Its policy lets ${plural(its.concurrency, "job")} be reserved at once, and so many are. The others wait.`);
  else if (tube.ready && tube.waiting && its?.rate) said.push(`Workers wait, and jobs are ready: its policy lets ${rate(its.rate)} a second through.`);
  else if (tube.ready && !tube.waiting) said.push(`${tube.watching ? `It is watched ${plural(tube.watching, "time")}, and n` : "N"}o worker waits: all are busy. ${plural(tube.reserved, "job is", "jobs are")} reserved.`);
  if (!tube.ready && tube.delayed) said.push(`None of its jobs is ready: ${plural(tube.delayed, "is", "are")} delayed.`);
  if (!tube.ready && tube.reserved) said.push(`Workers hold what is left: ${plural(tube.reserved, "job")}.`);
  if (tube.put_per_s > tube.deleted_per_s && tube.ready) said.push(`More comes in (${rate(tube.put_per_s)} a second) than goes out (${rate(tube.deleted_per_s)}).`);
  if (tube.dead) said.push(`${plural(tube.dead, "of its jobs is", "of its jobs are")} dead: a policy has given up on them. Below they can be moved back.`);
  if (tube.buried) said.push(`${plural(tube.buried, "job is", "jobs are")} buried: nobody takes them until they are kicked.`);
  if (!said.length) said.push(tube.ready ? "Jobs are ready and workers take them." : "It is empty: nothing waits.");
  return said;
}

function tiles(tube) {
  return h(
    "div",
    { class: "tiles" },
    tile("Ready", tube.ready, `${count(tube.urgent)} urgent`),
    tile("Reserved", tube.reserved),
    tile("Delayed", tube.delayed),
    tile("Buried", tube.buried),
    tile("Dead", tube.dead, "by its policy"),
    tile("Oldest ready", span(tube.oldest_s)),
    tile("In", rate(tube.put_per_s), ["per second ", spark(state.points.get(tube.name)?.map(([put]) => put), "jobs put in the last five minutes")]),
    tile("Out", rate(tube.deleted_per_s), ["per second ", spark(state.points.get(tube.name)?.map(([, deleted]) => deleted), "jobs deleted in the last five minutes")]),
    tile("Waiting", tube.waiting, `watched ${plural(tube.watching, "time")}`),
    tile("Bodies", size(tube.bytes)),
  );
}

// -- doing something ----------------------------------------------------------------------------

function actions(tube, view) {
  if (!may("put", tube.name) && !may("manage", tube.name)) return null;
  const manages = may("manage", tube.name);
  const isPaused = tube.pause_left_s > 0;
  return h(
    "p",
    { class: "buttons" },
    putButton(view),
    manages && (tube.buried > 0 || tube.delayed > 0) && button("Kick …", () => kick(tube)),
    manages && (isPaused ? button("Resume", () => act(pause(tube.name, 0)), { class: "main" }) : button("Pause …", () => askPause(tube.name))),
    manages && tube.is_topic && button("Delete the tube …", () => remove(tube.name), { class: "dangerous" }),
  );
}

function putButton({ name }) {
  if (!may("put", name)) return null;
  return button("Put a job …", () =>
    ask({
      title: `Put a job into ${name}`,
      verb: "Put it",
      fields: [
        { name: "body", label: "Body", kind: "area" },
        { name: "delay_s", label: "Delay (seconds)", kind: "number", min: 0, value: "0" },
        { name: "priority", label: "Priority (0 is the most urgent)", kind: "number", min: 0, max: 4294967295, value: "", hint: "Empty: as its policy says, or 65536." },
        { name: "ttr_s", label: "Time to run (seconds)", kind: "number", min: 1, value: "", hint: "Empty: as its policy says, or 60." },
      ],
      act: async ({ body, delay_s: delay, priority, ttr_s: ttr }) => {
        const job = { body, delay_s: Number(delay), ...(priority !== "" && { priority: Number(priority) }), ...(ttr !== "" && { ttr_s: Number(ttr) }) };
        const { ids } = await call("POST", path("v1", "tubes", name, "jobs"), job);
        return `Job ${ids[0]} is put.`;
      },
    }),
  );
}

function kick(tube) {
  const which = tube.buried ? "buried" : "delayed";
  ask({
    title: `Kick ${which} jobs of ${tube.name}?`,
    text: `So many of its ${plural(tube[which], `${which} job`)} become ready, in their order.${tube.buried ? "" : " (None is buried.)"}`,
    verb: "Kick them",
    fields: [{ name: "count", label: "How many", kind: "number", min: 1, value: String(tube[which]), required: true }],
    act: async ({ count: wanted }) => {
      let left = Number(wanted);
      let kicked = 0;
      while (left > 0) {
        const step = Math.min(left, 1000);
        const done = (await call("POST", path("v1", "tubes", tube.name, "kick"), { count: step })).kicked;
        kicked += done;
        left -= step;
        if (done < step) break;
      }
      return `${plural(kicked, "job is", "jobs are")} ready.`;
    },
  });
}

async function pause(name, seconds) {
  await call("POST", path("v1", "tubes", name, "pause"), { seconds });
  return seconds ? `${name} is paused for ${span(seconds)}.` : `${name} goes on.`;
}

function askPause(name) {
  ask({
    title: `Pause ${name}?`,
    text: "Nothing is reserved from it until then. Jobs can still be put, and workers keep what they hold.",
    verb: "Pause it",
    fields: [{ name: "seconds", label: "For how many seconds", kind: "number", min: 1, value: "3600", required: true }],
    act: ({ seconds }) => pause(name, Number(seconds)),
  });
}

function remove(name) {
  ask({
    title: `Delete the tube ${name}?`,
    text: "It was declared, and goes as soon as nobody uses it. It must be empty.",
    verb: "Delete it",
    isDangerous: true,
    act: async () => {
      await call("DELETE", path("v1", "tubes", name));
      return `${name} is deleted.`;
    },
  });
}

// -- jobs ---------------------------------------------------------------------------------------

function jobs(tube, view) {
  const choose = (which) => {
    Object.assign(view, { which, where: [""], jobs: null });
    loadJobs(view);
  };
  const columns = [
    { label: "Job", cell: (job) => [jobLink(job.id), job.death && mark("dead", "problem")] },
    { label: "Put", cell: (job) => `${span(job.age_s)} ago` },
    { label: "Priority", number: true, cell: (job) => job.priority },
    { label: "Failed", number: true, cell: (job) => job.attempts },
    { label: view.which === "reserved" ? "Time left" : "Ready in", number: true, cell: (job) => (job.left_s === null ? "" : span(job.left_s)) },
    { label: "Last error", cell: (job) => job.error ?? "" },
  ];
  return [
    h("p", { class: "choice", role: "group", "aria-label": "State" }, STATES.map((which) => button(`${which} ${count(tube[which])}`, () => choose(which), { key: which, "aria-pressed": String(which === view.which) })), button("Look again", () => loadJobs(view))),
    view.problem && h("p", { class: "problem", role: "alert" }, view.problem),
    view.jobs && table({ caption: `Jobs that are ${view.which}`, columns, rows: view.jobs.jobs, key: (job) => job.id, empty: view.jobs.more ? "None of these: go on to the next page." : `No job is ${view.which}.` }),
    view.jobs && pager({ where: view.where, next: view.jobs.more ? view.jobs.after : null, go: (where) => { view.where = where; loadJobs(view); } }),
  ];
}

// -- what is dead or buried ---------------------------------------------------------------------

const NAMES = { move: "Move them back to where they died", kick: "Kick them here", delete: "Delete them" };

function dead(tube, view) {
  const letters = view.policy?.policy.dead_letter;
  const change = (what) => (value) => {
    view.filter[what] = value;
    view.dead = null; // what was counted does not fit any more
    update();
  };
  if (!tube.dead && !tube.buried && !view.dead) return letters ? [h("h2", {}, "Dead letters"), h("p", {}, "Its dead jobs go to ", tubeLink(letters), ".")] : null;
  const inputs = [["error", "Error contains", "text"], ["origin", "Died in the tube", "text"], ["from", "Dead since", "datetime-local"], ["before", "Dead before", "datetime-local"]];
  return [
    h("h2", {}, "Dead letters and buried jobs"),
    letters && h("p", {}, "Its own dead jobs go to ", tubeLink(letters), "."),
    h("div", { class: "filters" }, inputs.map(([what, label, kind]) => field({ name: what, label, kind, value: view.filter[what], oninput: change(what) })), button("Yesterday", () => yesterday(view)), button("Count", () => act(countDead(view)), { class: "main" })),
    view.dead && counted(view),
  ];
}

function yesterday(view) {
  const day = (ago) => {
    const date = new Date();
    date.setDate(date.getDate() - ago);
    return `${date.getFullYear()}-${String(date.getMonth() + 1).padStart(2, "0")}-${String(date.getDate()).padStart(2, "0")}T00:00`;
  };
  Object.assign(view.filter, { from: day(1), before: day(0) });
  act(countDead(view));
}

// As the node takes it: a moment with a zone.
const exact = (local) => (local ? new Date(local).toISOString() : "");

async function countDead(view) {
  const { error, origin, from, before } = view.filter;
  const which = { error, origin, from: exact(from), before: exact(before), up_to: "", after: "" };
  let total = 0;
  for (;;) {
    const found = await get(path("v1", "tubes", view.name, "dead"), which);
    total += found.count;
    Object.assign(which, { before: found.before, up_to: found.up_to, after: found.after });
    if (!found.more) break;
  }
  view.dead = { total, which };
}

function counted(view) {
  const { total } = view.dead;
  const manages = may("manage", view.name);
  return h(
    "div",
    { class: "counted" },
    h("p", { role: "status" }, total ? `${plural(total, "job fits", "jobs fit")} the filter now. What dies or is buried later is not touched.` : "No job fits the filter."),
    total > 0 && manages && h("p", { class: "buttons" }, Object.entries(NAMES).map(([action, text]) => button(`${text} …`, () => replay(view, action), { key: action, class: action === "delete" ? "dangerous" : null }))),
    total > 0 && !manages && quiet("To move or delete them one needs the right to manage the tube."),
  );
}

const TEXTS = {
  move: (total) => `${plural(total, "dead letter goes", "dead letters go")} back to the tube where they died, with all their attempts. Buried jobs that were never dead letters stay.`,
  kick: (total) => `${plural(total, "job becomes", "jobs become")} ready in this tube.`,
  delete: (total) => `${plural(total, "job is", "jobs are")} gone for good, with their bodies.`,
};

function replay(view, action) {
  const { total, which } = view.dead;
  ask({
    title: `${NAMES[action]}?`,
    text: TEXTS[action](total),
    verb: action === "delete" ? `Delete ${count(total)}` : action === "kick" ? `Kick ${count(total)}` : `Move ${count(total)}`,
    isDangerous: action === "delete",
    act: async () => {
      const { error, origin, from, before, up_to: upTo } = which;
      const wanted = { action, error, up_to: upTo, after: 0, ...(origin && { origin }), ...(from && { from }), ...(before && { before }) };
      let [done, skipped] = [0, 0];
      for (;;) {
        const step = await call("POST", path("v1", "tubes", view.name, "replay"), wanted);
        done += step.done;
        skipped += step.skipped;
        wanted.after = step.after;
        if (state.dialog) state.dialog.progress = `${count(done)} of ${count(total)} done`;
        update();
        if (!step.more) break;
      }
      view.dead = null;
      return `${count(done)} done${skipped ? `, ${count(skipped)} left: there is nowhere to go, or it is full` : ""}.`;
    },
  });
}

// -- the policy ---------------------------------------------------------------------------------

function policy(view) {
  const known = view.policy;
  const set = may("manage", view.name) && button(known ? "Change …" : "Set a policy …", () => change(view));
  if (known === undefined) return quiet("Asking the node …");
  if (!known) return [quiet("It has none: it behaves as beanstalkd's tubes do."), set];
  const given = Object.entries(known.policy).filter(([, value]) => value !== null && value !== 0 && value !== "");
  return [facts([["Version", known.version], ...given.map(([name, value]) => [name, typeof value === "object" ? JSON.stringify(value) : String(value)])]), h("p", { class: "buttons" }, set, may("manage", view.name) && button("Take it away …", () => unset(view), { class: "dangerous" }))];
}

function change(view) {
  const known = view.policy;
  const where = withParameters(path("v1", "tubes", view.name, "policy"), { version: known?.version ?? 0 });
  ask({
    title: `The policy of ${view.name}`,
    text: h("span", {}, "One document, as in ", h("code", {}, "docs/queues.md"), ": ", h("code", {}, '{"max_attempts": 5, "dead_letter": "dead"}')),
    verb: "Set it",
    fields: [{ name: "text", label: "Policy (JSON)", kind: "area", rows: 12, value: JSON.stringify(known?.policy ?? { max_attempts: 5 }, null, 2) }],
    act: async ({ text }) => {
      await call("PUT", where, JSON.parse(text));
      return "The policy is set.";
    },
  });
}

function unset(view) {
  ask({
    title: `Take the policy of ${view.name} away?`,
    text: "The tube behaves as beanstalkd's tubes do from then on. Jobs that are dead stay so.",
    verb: "Take it away",
    isDangerous: true,
    act: async () => {
      await call("DELETE", withParameters(path("v1", "tubes", view.name, "policy"), { version: view.policy.version }));
      return "The tube has no policy any more.";
    },
  });
}

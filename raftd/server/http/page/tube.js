// One tube: why it does not drain, its jobs by state, its policy, and another chance for what is dead.

import { call, get, path, withParameters } from "./api.js";
import { act, ask, may, state, update } from "./app.js";
import { spark } from "./charts.js";
import { about, count, moment, plural, rate, size, span } from "./format.js";
import { h } from "./h.js";
import { button, facts, field, jobLink, mark, pager, quiet, table, tile, tubeLink } from "./parts.js";

const STATES = ["ready", "reserved", "delayed", "buried"];
// As beanstalkd has it.
const TUBE_NAME = /^[A-Za-z0-9+/;.$_()][A-Za-z0-9+/;.$_()-]*$/;
const JOBS_SHOWN = 50;
const FRESH_MS = 2000;

export function tubeView(name) {
  const view = { title: name, name, policy: undefined, which: "", where: [""], jobs: null, problem: "", filter: { error: "", origin: "", from: "", before: "" }, dead: null, result: "", changes: "", asked: 0, counting: 0 };
  const isName = TUBE_NAME.test(name) && name.length <= 200;
  view.reload = () => view.which && loadJobs(view);
  // What the stream tells says when the rest is to be asked for again.
  view.heard = ({ tube: row }) => {
    if ((row?.tube.policy_version ?? 0) !== (view.policy?.version ?? 0)) loadPolicy(view);
    else view.policy ??= null;
    if (!row) return;
    view.which ||= STATES.find((which) => row.tube[which]) ?? "ready";
    const changes = [row.tube.total_jobs, row.tube.deletes, ...STATES.map((which) => row.tube[which])].join(" ");
    if ((changes !== view.changes || view.problem) && view.where.length === 1 && Date.now() - view.asked > FRESH_MS) {
      view.changes = changes;
      loadJobs(view);
    }
  };
  view.watch = () => (isName ? { tube: name } : {});
  view.render = () => {
    if (!isName) return [h("h1", {}, name), quiet("No tube can have this name.")];
    const row = state.summary?.tube;
    const tube = row?.tube;
    const heading = h("h1", {}, name, tube?.pause_left_s > 0 && mark(`paused for ${span(tube.pause_left_s)} more`, "warn"));
    if (row === undefined) return [heading, quiet("Asking the node …")];
    if (!tube) return [heading, quiet("There is no such tube now, or you may not look at it. A tube that was not declared goes when it is empty and unused."), h("p", { class: "buttons" }, putButton(view))];
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

// Jobs that wait for less (seconds) do not wait.
const WAITS_S = 2;

function diagnosis(tube, its) {
  const said = [];
  const works = tube.reserved > 0 || tube.out_per_s > 0 || tube.watching > 0 || tube.waiting > 0;
  const waits = tube.ready > 0 && tube.oldest_s > WAITS_S;
  const isPaused = tube.pause_left_s > 0;
  const lettersOnly = tube.dead > 0 && tube.ready <= tube.dead;
  if (isPaused) said.push(`It is paused: nothing is reserved from it for another ${span(tube.pause_left_s)}.`);
  if (tube.ready && !works) {
    said.push(lettersOnly ? "No worker watches it: its dead letters wait for somebody who looks at them." : `No worker watches it: ${plural(tube.ready, "job is", "jobs are")} ready, and nobody takes ${tube.ready === 1 ? "it" : "them"}.`);
  } else if (waits && its?.concurrency && tube.reserved >= its.concurrency) {
    said.push(`Its policy lets ${plural(its.concurrency, "job")} be reserved at once, and so many are. The others wait.`);
  } else if (waits && tube.waiting && its?.rate) {
    said.push(`Workers wait, and jobs are ready: its policy lets ${rate(its.rate)} a second through.`);
  } else if (waits && !tube.waiting && !isPaused) {
    said.push(`All workers are busy: ${plural(tube.reserved, "job is", "jobs are")} reserved, ${rate(tube.out_per_s)} a second are done. ${plural(tube.ready, "job waits", "jobs wait")}.`);
  }
  if (!tube.ready && tube.delayed) said.push(`None of its jobs is ready: ${plural(tube.delayed, "is", "are")} delayed.`);
  if (!tube.ready && tube.reserved) said.push(`Workers hold what is left: ${plural(tube.reserved, "job")}.`);
  if (works && waits && grows(tube.name)) said.push(`More comes in than goes out: ${rate(tube.in_per_s)} and ${rate(tube.out_per_s)} a second.`);
  if (tube.dead) said.push(`${plural(tube.dead, "of its jobs is", "of its jobs are")} dead: a policy has given up on them. Below they can be moved back.`);
  if (tube.buried) said.push(`${plural(tube.buried, "job is", "jobs are")} buried: nobody takes ${tube.buried === 1 ? "it until it is" : "them until they are"} kicked.`);
  if (its?.dead_letter) said.push(`Its policy sends jobs that are dead to ${its.dead_letter}.`);
  if (!tube.ready && !tube.delayed && !tube.reserved && !tube.buried) said.unshift("It is empty: nothing waits.");
  return said.length ? said : ["Jobs are ready, and workers take them."];
}

// Whether more came than went, over the last minute at least.
const MINUTE = 12;
function grows(name) {
  const points = state.points.get(name) ?? [];
  return points.length >= MINUTE && points.slice(-MINUTE).reduce((sum, [came, went]) => sum + came - went, 0) > 0;
}

function tiles(tube) {
  const points = state.points.get(tube.name) ?? [];
  return h(
    "div",
    { class: "tiles" },
    tile("Ready", tube.ready, `${count(tube.urgent)} urgent`),
    tile("Reserved", tube.reserved),
    tile("Delayed", tube.delayed),
    tile("Buried", tube.buried),
    tile("Dead here", tube.dead),
    tile("Oldest ready", about(tube.oldest_s)),
    tile("In", rate(tube.in_per_s), ["per second ", spark(points.map(([came]) => came), "jobs that came in the last five minutes")]),
    tile("Out", rate(tube.out_per_s), ["per second ", spark(points.map(([, went]) => went), "jobs that went in the last five minutes")]),
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
    manages && (isPaused ? button("Resume", () => act(`Resuming ${tube.name}`, pause(tube.name, 0)), { class: "main" }) : button("Pause …", () => askPause(tube.name))),
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

// Few enough for one step of the node: else, when no buried ones are left, the next step would kick delayed ones.
const KICKED_AT_ONCE = 500;

function kick(tube) {
  const which = tube.buried ? "buried" : "delayed";
  ask({
    title: `Kick ${which} jobs of ${tube.name}?`,
    text: `So many of its ${plural(tube[which], `${which} job`)} become ready, in their order.${tube.buried ? "" : " (None is buried.)"}`,
    verb: "Kick them",
    fields: [{ name: "count", label: "How many", kind: "number", min: 1, value: String(tube[which]), required: true }],
    hasSteps: true,
    act: async ({ count: wanted }, dialog) => {
      let left = Number(wanted);
      let kicked = 0;
      while (left > 0 && !dialog.isStopped) {
        const step = Math.min(left, KICKED_AT_ONCE);
        const done = (await call("POST", path("v1", "tubes", tube.name, "kick"), { count: step })).kicked;
        kicked += done;
        left -= done;
        dialog.progress = `${count(kicked)} of ${count(Number(wanted))} kicked`;
        update();
        if (!done) break; // there are no more; the node may do fewer in one step
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
  const deaths = tube.dead
    ? [
        { label: "Died", cell: (job) => (job.death ? moment(job.death.at) : "") },
        { label: "In", cell: (job) => (job.death ? tubeLink(job.death.tube) : "") },
      ]
    : [{ label: "Priority", number: true, cell: (job) => job.priority }];
  const time = {
    ready: null,
    reserved: { label: "Time left", number: true, cell: (job) => span(job.left_s) },
    delayed: { label: "Ready in", number: true, cell: (job) => span(job.left_s) },
    buried: { label: "Buried", cell: (job) => (job.buried_at ? moment(job.buried_at) : "") },
  }[view.which];
  const columns = [
    { label: "Job", cell: (job) => [jobLink(job.id), job.death && mark("dead", "problem")] },
    { label: "Put", cell: (job) => `${span(job.age_s)} ago` },
    ...deaths,
    ...(time ? [time] : []),
    { label: "Failed", number: true, cell: (job) => job.death?.attempts ?? job.attempts },
    { label: "Last error", cell: (job) => job.error ?? (job.death ? REASONS[job.death.reason] : "") },
  ];
  return [
    h("p", { class: "choice", role: "group", "aria-label": "State" }, STATES.map((which) => button(`${which} ${count(tube[which])}`, () => choose(which), { key: which, "aria-pressed": String(which === view.which) })), button("Look again", () => loadJobs(view))),
    view.problem && h("p", { class: "problem", role: "alert" }, `The jobs could not be looked at. ${view.problem}`),
    view.jobs && table({ caption: `Jobs that are ${view.which}`, columns, rows: view.jobs.jobs, key: (job) => job.id, empty: view.jobs.more ? "None of these: go on to the next page." : `No job is ${view.which}.` }),
    view.jobs && pager({ where: view.where, next: view.jobs.more ? view.jobs.after : null, go: (where) => { view.where = where; view.jobs.more = false; loadJobs(view); } }),
  ];
}

// -- what is dead or buried ---------------------------------------------------------------------

const REASONS = { attempts: "its attempts were used up", expired: "its time to live was over", overflow: "its tube was full" };

function dead(tube, view) {
  const change = (what) => (value) => {
    view.filter[what] = value;
    view.counting += 1;
    Object.assign(view, { dead: null, result: "" }); // what was counted does not fit any more
    update();
  };
  if (!tube.dead && !tube.buried && !view.dead && !view.result) return null;
  const inputs = [["error", "Error contains", "text"], ["origin", "Died in the tube", "text"], ["from", "Dead since", "datetime-local"], ["before", "Dead before", "datetime-local"]];
  const origins = [...new Set((view.jobs?.jobs ?? []).map((job) => job.death?.tube).filter(Boolean))];
  const submit = (event) => {
    event.preventDefault();
    act("Counting", countDead(view));
  };
  return [
    h("h2", {}, "Dead letters and buried jobs"),
    h(
      "form",
      { class: "filters", onsubmit: submit },
      inputs.map(([what, label, kind]) => field({ name: what, label, kind, value: view.filter[what], oninput: change(what), list: what === "origin" ? "origins" : null })),
      h("datalist", { id: "origins" }, origins.map((origin) => h("option", { key: origin, value: origin }))),
      button("Yesterday", () => yesterday(view)),
      h("button", { type: "submit", class: "main" }, "Count"),
    ),
    view.result && h("p", { class: "result", role: "status" }, view.result),
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
  act("Counting", countDead(view));
}

// As the node takes it: a moment with a zone.
const exact = (local) => (local ? new Date(local).toISOString() : "");

// Jobs that fit are dead letters, or buried: those that can be moved, and those that can be kicked.
async function countDead(view) {
  const { error, origin, from, before } = view.filter;
  const counting = (view.counting += 1);
  Object.assign(view, { dead: null, result: "" });
  if (from && before && from > before) throw new Error("“Dead since” is after “Dead before”.");
  const which = { error, origin, from: exact(from), before: exact(before), up_to: "", after: "" };
  let [total, buried] = [0, 0];
  for (;;) {
    const found = await get(path("v1", "tubes", view.name, "dead"), which);
    total += found.count;
    buried += found.buried;
    Object.assign(which, { before: found.before, up_to: found.up_to, after: found.after });
    if (!found.more) break;
  }
  // The filter may be another by now.
  if (view.counting === counting) view.dead = { letters: total - buried, buried, which, filter: told({ error, origin, from, before }) };
}

// The filter in words.
function told({ error, origin, from, before }) {
  const parts = [error && `whose error contains “${error}”`, origin && `that died in ${origin}`, from && `dead since ${from.replace("T", " ")}`, before && `dead before ${before.replace("T", " ")}`];
  return parts.filter(Boolean).join(", ");
}

function counted(view) {
  const { letters, buried } = view.dead;
  const found = [letters && plural(letters, "dead letter"), buried && plural(buried, "buried job")].filter(Boolean).join(" and ");
  if (!found) return h("p", { role: "status" }, "No job fits the filter.");
  const manages = may("manage", view.name);
  const why = state.session.is_read_only ? "You only look: to move or delete them, sign in again without that." : "To move or delete them one needs the right to manage the tube.";
  return h(
    "div",
    { class: "counted" },
    h("p", { role: "status" }, `${found} ${letters + buried === 1 ? "fits" : "fit"} the filter now. What dies or is buried later is not touched.`),
    manages
      ? h(
          "p",
          { class: "buttons" },
          letters > 0 && button("Move back …", () => replay(view, "move"), { key: "move" }),
          buried > 0 && button("Kick …", () => replay(view, "kick"), { key: "kick" }),
          button("Delete …", () => replay(view, "delete"), { key: "delete", class: "dangerous" }),
        )
      : quiet(why),
  );
}

// What is done with how many of those that were counted.
const DEEDS = {
  move: {
    title: ({ letters }) => `Move ${plural(letters, "dead letter")} back?`,
    text: ({ letters, filter }, name) => `${plural(letters, "dead letter goes", "dead letters go")} from ${name} back to where they died${filter && ` (those ${filter})`}, with all their attempts. What has no room there stays here. Buried jobs that never died stay, too.`,
    count: ({ letters }) => letters,
    verb: "Move",
    done: (done, left) => `${plural(done, "job")} moved back.${left > 0 ? ` ${plural(left, "job stays", "jobs stay")} here: the tube where they died is full, or they never died.` : ""}`,
  },
  kick: {
    title: ({ buried }) => `Kick ${plural(buried, "buried job")}?`,
    text: ({ buried, filter }) => `${plural(buried, "buried job becomes", "buried jobs become")} ready in this tube${filter && ` (those ${filter})`}. Dead letters are ready already, and stay as they are.`,
    count: ({ buried }) => buried,
    verb: "Kick",
    done: (done) => `${plural(done, "job")} kicked.`,
  },
  delete: {
    title: ({ letters, buried }) => `Delete ${plural(letters + buried, "job")}?`,
    text: ({ letters, buried, filter }) => `${plural(letters + buried, "job is", "jobs are")} gone for good, with ${letters + buried === 1 ? "its body" : "their bodies"}${filter && ` (those ${filter})`}.`,
    count: ({ letters, buried }) => letters + buried,
    verb: "Delete",
    done: (done) => `${plural(done, "job")} deleted.`,
  },
};

function replay(view, action) {
  const [found, deed] = [view.dead, DEEDS[action]];
  const total = deed.count(found);
  ask({
    title: deed.title(found),
    text: deed.text(found, view.name),
    verb: `${deed.verb} ${count(total)}`,
    isDangerous: action === "delete",
    hasSteps: true,
    act: async (values, dialog) => {
      const { error, origin, from, before, up_to: upTo } = found.which;
      const wanted = { action, error, up_to: upTo, after: 0, ...(origin && { origin }), ...(from && { from }), ...(before && { before }) };
      let [done, left] = [0, 0];
      try {
        for (let more = true; more && !dialog.isStopped; update()) {
          const step = await call("POST", path("v1", "tubes", view.name, "replay"), wanted);
          done += step.done;
          left += step.skipped;
          wanted.after = step.after;
          more = step.more;
          dialog.progress = `${count(done)} of ${count(total)} done`;
        }
      } catch (problem) {
        problem.message = `${plural(done, "job")} of ${count(total)} certainly done. ${problem.message} Then count again, and go on.`;
        throw problem;
      } finally {
        view.dead = null; // it does not fit any more
      }
      view.result = deed.done(done, left) + (dialog.isStopped ? ` Stopped: of ${count(total)} the rest is as it was. Count again to go on.` : "");
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
  const { version } = view.policy;
  ask({
    title: `Take the policy of ${view.name} away?`,
    text: "The tube behaves as beanstalkd's tubes do from then on. Jobs that are dead stay so.",
    verb: "Take it away",
    isDangerous: true,
    act: async () => {
      await call("DELETE", withParameters(path("v1", "tubes", view.name, "policy"), { version }));
      return "The tube has no policy any more.";
    },
  });
}

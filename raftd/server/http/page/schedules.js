// Schedules: when they put their jobs, now and paused.

import { call, get, path } from "./api.js";
import { act, ask, may, update } from "./app.js";
import { count, moment } from "./format.js";
import { h } from "./h.js";
import { button, jobLink, mark, pager, quiet, table, tubeLink } from "./parts.js";

const SHOWN = 100;
const FRESH_MS = 5000;

export function schedulesView() {
  const view = { title: "Schedules", found: null, where: [""], problem: "", asked: 0 };
  view.heard = () => {
    if (Date.now() - view.asked > FRESH_MS) view.reload();
  };
  view.reload = async () => {
    view.asked = Date.now();
    try {
      view.found = await get("/v1/schedules", { after: view.where.at(-1), limit: SHOWN });
      view.problem = "";
    } catch (problem) {
      view.problem = problem.message;
    }
    update();
  };
  view.render = () => [
    h("h1", {}, "Schedules"),
    view.problem && h("p", { class: "problem", role: "alert" }, view.problem),
    view.found
      ? table({ caption: "Schedules", columns, rows: view.found.schedules, key: (one) => one.name, empty: "No schedules. “raftd schedule add” makes one." })
      : quiet("Asking the node …"),
    view.found && pager({ where: view.where, next: view.found.more ? view.found.schedules.at(-1).name : null, go: (where) => { view.where = where; view.found.more = false; view.reload(); } }),
    h("p", {}, button("Look again", view.reload)),
  ];
  return view;
}

function rule({ cron, zone, every_s: every, at }) {
  if (cron) return [h("code", {}, cron), zone ? ` in ${zone}` : ""];
  return every ? `every ${count(every)} s` : `once, ${moment(at)}`;
}

const columns = [
  { label: "Schedule", cell: (one) => [one.name, one.is_paused && mark("paused", "warn")] },
  { label: "Do", cell: actions },
  { label: "When", cell: (one) => rule(one.schedule) },
  { label: "Tube", cell: (one) => tubeLink(one.schedule.tube) },
  { label: "Next, in your time", cell: (one) => (one.is_paused ? "paused" : moment(one.next)) },
  { label: "Last", cell: (one) => (one.last ? [moment(one.last), " ", one.last_job ? jobLink(one.last_job) : ""] : "never") },
  { label: "Put", number: true, cell: (one) => count(one.put) },
  { label: "Skipped", number: true, cell: (one) => count(one.skipped) },
];

function actions(one) {
  const tube = one.schedule.tube;
  if (!may("put", tube) || !may("manage", tube)) return "";
  const where = (...more) => path("v1", "schedules", one.name, ...more);
  const run = async () => `Job ${(await call("POST", where("run"))).ids[0]} is put.`;
  const pause = async () => {
    await call("POST", where("pause"), { paused: !one.is_paused });
    return one.is_paused ? `${one.name} goes on.` : `${one.name} is paused.`;
  };
  const remove = () =>
    ask({
      title: `Remove the schedule ${one.name}?`,
      text: "It puts no more jobs. Those that it has put stay.",
      verb: "Remove it",
      isDangerous: true,
      act: async () => {
        await call("DELETE", where());
        return `${one.name} is removed.`;
      },
    });
  return h("span", { class: "buttons" }, button("Run now", () => act(`Running ${one.name}`, run())), button(one.is_paused ? "Resume" : "Pause", () => act(`${one.is_paused ? "Resuming" : "Pausing"} ${one.name}`, pause())), button("Remove …", remove, { class: "dangerous" }));
}

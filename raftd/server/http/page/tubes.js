// All tubes: sorted, filtered and paged by the node, however many there are.

import { live, state, update } from "./app.js";
import { spark } from "./charts.js";
import { count, plural, rate, span } from "./format.js";
import { h } from "./h.js";
import { field, mark, pager, quiet, table, tubeLink } from "./parts.js";

const HAVING = [["", "all tubes"], ["ready", "with ready jobs"], ["reserved", "with reserved jobs"], ["delayed", "with delayed jobs"], ["buried", "with buried jobs"], ["dead", "with dead jobs"], ["waiting", "with waiting workers"], ["paused", "paused"]];

// What was chosen stays while other views are shown.
const chosen = { sort: "ready", contains: "", having: "", where: [""] };

const number = (label, sort, cell) => ({ label, sort, cell, number: true });
const jobs = (value) => (value ? count(value) : h("span", { class: "none" }, "0"));

const COLUMNS = [
  { label: "Tube", sort: "name", cell: ({ tube }) => [tubeLink(tube.name), tube.pause_left_s > 0 && mark("paused", "warn")] },
  number("Ready", "ready", ({ tube }) => jobs(tube.ready)),
  number("Reserved", "reserved", ({ tube }) => jobs(tube.reserved)),
  number("Delayed", "delayed", ({ tube }) => jobs(tube.delayed)),
  number("Buried", "buried", ({ tube }) => jobs(tube.buried)),
  number("Dead", "dead", ({ tube }) => jobs(tube.dead)),
  number("In /s", "in", ({ tube }) => rate(tube.in_per_s)),
  number("Out /s", "out", ({ tube }) => rate(tube.out_per_s)),
  { label: "5 minutes", title: "jobs that come in", cell: ({ tube }) => spark(state.points.get(tube.name)?.map(([came]) => came), `jobs that come into ${tube.name}, now ${rate(tube.in_per_s)} per second`) },
  number("Oldest", "oldest", ({ tube }) => span(tube.oldest_s)),
  number("Waiting", "waiting", ({ tube }) => jobs(tube.waiting)),
];

export function tubesView(wanted = "") {
  if (HAVING.some(([key]) => key === wanted)) Object.assign(chosen, { having: wanted, where: [""] });
  const change = (what) => {
    live.watch(null); // what it still tells is of the page before
    if (state.summary) state.summary.more = false;
    Object.assign(chosen, { where: [""], ...what });
    update();
  };
  return {
    title: "Tubes",
    watch: () => ({ limit: 50, sort: chosen.sort, contains: chosen.contains, having: chosen.having, after: chosen.where.at(-1) }),
    render: () => {
      const summary = state.summary;
      const isFiltered = chosen.contains || chosen.having;
      return [
        h("h1", {}, "Tubes"),
        h(
          "div",
          { class: "filters" },
          field({ name: "contains", label: "Name contains", kind: "search", value: chosen.contains, maxlength: 200, oninput: (contains) => change({ contains }) }),
          field({ name: "having", label: "Show", kind: "select", options: HAVING, value: chosen.having, oninput: (having) => change({ having }) }),
          summary?.queue && quiet(`${plural(summary.queue.tubes, "tube")} in all`),
        ),
        !summary?.tubes
          ? quiet("Asking the node …")
          : table({
              caption: "Tubes",
              columns: COLUMNS,
              rows: summary.tubes,
              key: (row) => row.tube.name,
              empty: isFiltered ? "No tube fits the filter." : "No tubes yet. A tube is there as soon as somebody puts a job into it.",
              order: { by: chosen.sort, choose: (sort) => change({ sort }) },
            }),
        pager({ where: chosen.where, next: summary?.more ? summary.after : null, go: (where) => change({ where }) }),
      ];
    },
  };
}

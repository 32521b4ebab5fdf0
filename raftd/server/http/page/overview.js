// How the cluster and its queue are, at a glance.

import { get } from "./api.js";
import { say, state, update } from "./app.js";
import { chart } from "./charts.js";
import { count, latency, moment, plural, rate } from "./format.js";
import { h } from "./h.js";
import { button, quiet, tile } from "./parts.js";

const SPANS = [["15m", "15 minutes"], ["3h", "3 hours"], ["1d", "a day"]];

export function overviewView() {
  const view = { title: "Overview", span: "15m", series: null, asked: 0 };
  const load = async () => {
    view.asked = Date.now();
    if (!state.session.sees_all) return;
    try {
      view.series = await get("/v1/series", { span: view.span });
    } catch (problem) {
      if (!state.lost) say(problem);
    }
    update();
  };
  view.reload = load;
  view.render = () => {
    const summary = state.summary;
    if (state.summary ? !state.summary.queue : !state.session.sees_all) return [h("h1", {}, "Overview"), quiet("You may look at some tubes alone: they are under Tubes. The whole of the queue is for those who may look at every tube.")];
    if (!summary) return [h("h1", {}, "Overview"), quiet("Asking the node …")];
    if (!state.lost && Date.now() - view.asked > 1000 * Math.min(60, view.series?.step_s ?? 5)) load();
    return [
      h("h1", {}, "Overview"),
      h("p", { class: "lead" }, sentence(summary)),
      h("div", { class: "split" }, picture(summary), h("section", { "aria-label": "The queue" }, tiles(summary))),
      h("h2", {}, "Over time, as this node has seen it"),
      h("p", { class: "choice", role: "group", "aria-label": "How long" }, SPANS.map(([key, text]) => button(text, () => { view.span = key; load(); }, { key, "aria-pressed": String(view.span === key) }))),
      view.series && charts(view.series),
      h("h2", {}, "Last elections, as this node has seen them"),
      elections(summary.roles),
    ];
  };
  return view;
}

function sentence({ leader, term, nodes, node }) {
  const silent = nodes.filter((one) => !one.is_heard);
  const led = leader ? `Node ${leader} leads in term ${term}.` : "No leader is known.";
  if (!leader && state.leaderless) return led;
  const heard = silent.length ? `Node ${node} does not hear ${silent.map((one) => `node ${one.node}`).join(", ")}.` : nodes.length === 1 ? "The node answers." : `All of the ${plural(nodes.length, "node")} answer.`;
  const voters = nodes.filter((one) => one.state === "voter");
  const left = Math.ceil(voters.length / 2) - 1 - silent.filter((one) => one.state === "voter").length;
  const spare = left > 0 ? `${plural(left, "more node")} may fail, and the queue goes on.` : left === 0 ? "If one more fails, the queue waits." : "Fewer than a majority are heard here.";
  return `${led} ${heard} ${spare}`;
}

// -- the picture --------------------------------------------------------------------------------

const WIDTH = 520;
const HEIGHT = 270;

function picture({ nodes, leader }) {
  const at = new Map();
  const leading = nodes.find((node) => node.node === leader && node.is_heard);
  const others = nodes.filter((node) => node !== leading);
  if (leading) at.set(leading.node, [WIDTH / 2, 62]);
  others.forEach((node, place) => at.set(node.node, [((place + 0.5) * WIDTH) / others.length, leading ? 200 : 130]));
  const lag = (node) => (leading && node.match_index !== null ? Math.max(0, leading.status.last_index - node.match_index) : null);
  const said = nodes.map((node) => `node ${node.node}: ${describe(node, leader, lag(node))}`).join("; ");
  return h(
    "figure",
    { class: "cluster-picture" },
    h(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `The cluster. ${said}` },
      leading &&
        others.map((node) => {
          const [x, y] = at.get(node.node);
          const behind = lag(node);
          const side = x < WIDTH / 2 ? -1 : 1;
          return h(
            "g",
            { key: `line ${node.node}` },
            h("line", { class: node.is_heard ? "link" : "link broken", x1: WIDTH / 2, y1: 62, x2: x, y2: y }),
            node.is_heard && h("text", { class: "lag", x: (WIDTH / 2 + x) / 2 + side * 12, y: (62 + y) / 2, "text-anchor": side < 0 ? "end" : "start" }, behind === null ? "" : behind ? `${count(behind)} behind` : "in step"),
          );
        }),
      nodes.map((node) => {
        const [x, y] = at.get(node.node);
        const kind = !node.is_heard ? "silent" : node.node === leader ? "leader" : node.status.role;
        return h(
          "g",
          { key: node.node, class: `node ${kind}` },
          h("circle", { cx: x, cy: y, r: node.node === leader ? 34 : 28 }),
          h("text", { class: "number", x, y: y + 6, "text-anchor": "middle" }, node.node),
          h("text", { x, y: y + (node.node === leader ? -42 : 46), "text-anchor": "middle" }, `${describe(node, leader, null)}${node.is_self ? ", this one" : ""}`),
        );
      }),
    ),
  );
}

function describe(node, leader, behind) {
  const role = !node.is_heard ? "not heard" : node.state === "learner" ? "learner" : node.node === leader ? "★ leads" : node.status.role;
  return behind ? `${role}, ${count(behind)} entries behind` : role;
}

// -- numbers ------------------------------------------------------------------------------------

function tiles({ queue, rates }) {
  return h(
    "div",
    { class: "tiles" },
    tile("Ready", queue.ready, `${count(queue.urgent)} urgent`),
    tile("Reserved", queue.reserved, "held by workers"),
    tile("Delayed", queue.delayed),
    tile("Buried", queue.buried, "", "#/tubes/buried"),
    tile("Dead", queue.dead, "by policies", "#/tubes/dead"),
    tile("Tubes", queue.tubes, "", "#/tubes"),
    tile("Schedules", queue.schedules, "", "#/schedules"),
    tile("Put", rate(rates.put), "per second"),
    tile("Gone", rate(rates.gone), "per second"),
    tile("Commit", latency(rates.commit_p99_s), "99 of 100 within"),
  );
}

function charts(series) {
  const step = series.step_s;
  const perSecond = (value) => (value === null ? "–" : `${rate(value)}/s`);
  return h(
    "div",
    { class: "charts" },
    chart("Jobs per second", [{ name: "put", values: series.put, mark: "one" }, { name: "taken", values: series.taken, mark: "two" }, { name: "gone", values: series.gone, mark: "three" }], perSecond, step),
    chart("Jobs there", [{ name: "ready", values: series.ready, mark: "one" }, { name: "reserved", values: series.reserved, mark: "two" }, { name: "buried", values: series.buried, mark: "three" }], (value) => (value === null ? "–" : count(value)), step),
    chart("From a put to its commit", [{ name: "half within", values: series.commit_p50_s, mark: "one" }, { name: "99 of 100 within", values: series.commit_p99_s, mark: "two" }], latency, step),
    chart("A write to the disk", [{ name: "99 of 100 within", values: series.fsync_p99_s, mark: "one" }], latency, step),
  );
}

function elections(roles) {
  if (!roles.length) return quiet("None since this node started.");
  const what = ({ role, leader, term, reason }) => {
    if (role === "leader") return `this node led from term ${term} on: ${reason}`;
    if (leader) return `node ${leader} led from term ${term} on`;
    return `${role}, term ${term}: ${reason}`;
  };
  return h("ol", { class: "log" }, [...roles].reverse().map((one) => h("li", { key: `${one.time} ${one.term} ${one.role} ${one.leader}` }, h("time", {}, moment(one.time)), what(one))));
}

// The members of the cluster, what they hold, and changing who is one.

import { call, path } from "./api.js";
import { ask, mayOperate, state } from "./app.js";
import { count, plural, size, span } from "./format.js";
import { h } from "./h.js";
import { button, link, mark, quiet, table } from "./parts.js";

export function nodesView() {
  return {
    title: "Nodes",
    render: () => {
      const { summary, session } = state;
      if (summary ? !summary.cluster : !session.sees_all) return [h("h1", {}, "Nodes"), quiet("Only who may look at every tube, or operate the cluster, sees its nodes.")];
      if (!summary) return [h("h1", {}, "Nodes"), quiet("Asking the node …")];
      const silent = summary.nodes.filter((node) => !node.is_heard).length;
      return [
        h("h1", {}, "Nodes"),
        h("p", { class: "lead" }, `${plural(summary.nodes.length, "node")}${silent ? `, ${silent} not heard from here` : ", all heard"}.`, !summary.cluster.is_settled && " A change of the members is under way."),
        table({ caption: "Nodes", columns: columns(summary), rows: summary.nodes, key: (node) => node.node, empty: "No nodes." }),
        summary.cluster.removed.length > 0 && quiet(`Removed for good: ${summary.cluster.removed.join(", ")}.`),
        mayOperate() && h("p", { class: "buttons" }, button("Add a node …", add), h("a", { class: "button", href: "/v1/backup", download: true }, "Download a backup")),
        mayOperate() && quiet("A backup is everything that the cluster has acknowledged, as one file for “raftd restore”. It is not encrypted: “raftd backup --passphrase-file” writes one that is."),
      ];
    },
  };
}

const columns = (summary) => [
  { label: "Node", cell: (node) => [own(node), node.is_self && mark("this one"), !node.is_heard && mark("not heard", "problem"), node.status?.is_draining && mark("draining", "warn")] },
  { label: "Role", cell: (node) => role(node, summary.leader) },
  { label: "Do", cell: (node) => actions(node, summary) },
  { label: "Behind", number: true, cell: (node) => behind(node, summary) },
  { label: "Applied", number: true, cell: ({ status }) => (status ? count(status.applied_index) : "–") },
  { label: "Log", number: true, cell: ({ status }) => (status ? size(status.log_bytes) : "–") },
  { label: "Snapshot", cell: ({ status }) => (!status ? "–" : status.snapshot_index ? `${size(status.snapshot_bytes)}, entry ${count(status.snapshot_index)}` : "none yet") },
  { label: "Disk free", cell: ({ status }) => (status ? [size(status.free_bytes), status.is_low_on_disk && mark("too little", "problem")] : "–") },
  { label: "Clients", number: true, cell: ({ status }) => (status ? count(status.clients) : "–") },
  { label: "Up", number: true, cell: ({ status }) => (status ? span(status.uptime_s) : "–") },
  { label: "Version", cell: ({ status }) => status?.version ?? "–" },
];

const own = (node) => (node.http && !node.is_self && node.is_heard ? link(`${location.protocol}//${node.http}/#/nodes`, `node ${node.node}`) : `node ${node.node}`);

function role(node, leader) {
  if (node.node === leader) return "★ leads";
  return node.state === "voter" ? (node.status?.role ?? "voter") : node.state;
}

function behind(node, { nodes, leader }) {
  const leading = nodes.find((one) => one.node === leader)?.status;
  if (node.node === leader || !leading || node.match_index === null) return "–";
  return count(Math.max(0, leading.last_index - node.match_index));
}

// -- changing who is one ------------------------------------------------------------------------

function actions(node, summary) {
  if (!mayOperate()) return "";
  return h(
    "span",
    { class: "buttons" },
    node.node !== summary.leader && node.state === "voter" && node.is_heard && button("Give it the lead …", () => transfer(node.node)),
    node.state === "learner" && button("Let it vote …", () => promote(node.node)),
    summary.nodes.length > 1 && button("Remove …", () => remove(node, summary), { class: "dangerous" }),
  );
}

function transfer(node) {
  ask({
    title: `Give node ${node} the lead?`,
    text: "Clients notice nothing but some milliseconds.",
    verb: "Give it the lead",
    act: async () => {
      await call("POST", "/v1/cluster/transfer", { node });
      return `Node ${node} leads.`;
    },
  });
}

function promote(node) {
  ask({
    title: `Let node ${node} vote?`,
    text: "It has caught up, and counts for majorities from then on. Learners that catch up are promoted by themselves, too.",
    verb: "Let it vote",
    act: async () => {
      await call("POST", path("v1", "cluster", "members", node, "promote"));
      return `Node ${node} votes.`;
    },
  });
}

function remove({ node }, { nodes, node: here }) {
  const left = nodes.filter((one) => one.state === "voter" && one.node !== node).length;
  ask({
    title: `Remove node ${node} for good?`,
    text: `Its id is never used again, and its data is of no use any more. ${plural(left, "voter")} are left, so ${Math.ceil(left / 2) - 1} of them may fail.${node === here ? " It is the node that this page comes from." : ""}`,
    verb: `Remove node ${node}`,
    isDangerous: true,
    fields: [{ name: "id", label: `To be sure, type the number of the node: ${node}`, kind: "text", required: true, pattern: String(node) }],
    act: async () => {
      await call("DELETE", path("v1", "cluster", "members", node));
      return `Node ${node} is removed.`;
    },
  });
}

function add() {
  ask({
    title: "Add a node",
    text: h("span", {}, "Most often the node adds itself: ", h("code", {}, "twistd raftd --join HOST:PORT --node ID"), ". This is for one that was started otherwise. It is a learner until it has caught up."),
    verb: "Add it",
    fields: [
      { name: "node", label: "Its id, which no node ever had", kind: "number", min: 1, required: true },
      { name: "host", label: "Host, as the others reach it", required: true },
      { name: "peer", label: "Port of its peer listener", kind: "number", min: 1, max: 65535, value: "11302", required: true },
      { name: "client", label: "Port of its client listener", kind: "number", min: 0, max: 65535, value: "11301", hint: "0: it has none." },
    ],
    act: async ({ node, host, peer, client }) => {
      await call("POST", "/v1/cluster/members", { node: Number(node), host, peer: Number(peer), client: Number(client) });
      return `Node ${node} is a learner.`;
    },
  });
}

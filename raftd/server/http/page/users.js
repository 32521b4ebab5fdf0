// Who may do what, and who did what. It is changed at the command line alone, where a token is shown once.

import { get } from "./api.js";
import { state, update } from "./app.js";
import { count, moment, span } from "./format.js";
import { h } from "./h.js";
import { button, facts, pager, quiet, table } from "./parts.js";

export function usersView() {
  const view = { title: "Users", users: null, records: null, where: [""], problem: "" };
  view.reload = async () => {
    if (!state.session.operates) return;
    try {
      [view.users, view.records] = await Promise.all([get("/v1/users"), get("/v1/audit", { before: view.where.at(-1) })]);
      view.problem = "";
    } catch (problem) {
      view.problem = problem.message;
    }
    update();
  };
  view.render = () => [h("h1", {}, "Users"), state.session.has_users ? own() : h("p", {}, "This cluster has no users: whoever reaches it may do everything. ", h("code", {}, "raftd init"), " makes the first."), view.problem && h("p", { class: "problem", role: "alert" }, view.problem), state.session.operates && all(view)];
  return view;
}

const right = (grant) => `${grant.is_denied ? "not " : ""}${grant.right} ${grant.tubes}`;

function own() {
  const { user, grants, is_read_only: isReadOnly } = state.session;
  return facts([["You are", user], ["You may", grants.map(right).join(", ") || (user ? "nothing yet" : null)], ["This page", isReadOnly ? "only looks" : null]]);
}

const limits = ({ quota }) => [[quota.jobs_per_s, "jobs/s"], [quota.bytes_per_s, "bytes/s"], [quota.connections, "connections"], [quota.tubes, "tubes"]].filter(([most]) => most).map(([most, what]) => `${count(most)} ${what}`).join(", ");
const shown = (user) => [...user.tokens.map((token) => `${token.name}${token.left_s === null ? "" : ` (for ${span(token.left_s)} more)`}`), ...(user.has_password ? ["a password"] : [])].join(", ");

function all(view) {
  return [
    state.session.has_users && view.users &&
      table({
        caption: "Users",
        columns: [
          { label: "User", cell: (user) => user.name },
          { label: "May", cell: (user) => user.grants.map(right).join(", ") || "nothing" },
          { label: "Shows", cell: (user) => shown(user) || "nothing: it cannot sign in" },
          { label: "Quota", cell: (user) => limits(user) || "none" },
        ],
        rows: view.users.users,
        key: (user) => user.name,
        empty: "No users.",
      }),
    h("h2", {}, "What was done"),
    view.records &&
      table({
        caption: "Audit log",
        columns: [
          { label: "When", cell: (record) => h("time", {}, moment(record.time)) },
          { label: "Who", cell: (record) => record.user || "–" },
          { label: "What", cell: (record) => record.what },
          { label: "To", cell: (record) => record.to },
          { label: "Over node", number: true, cell: (record) => record.node },
        ],
        rows: view.records.records,
        key: (record) => record.number,
        empty: "Nothing yet.",
      }),
    view.records && pager({ where: view.where, next: view.records.more ? view.records.records.at(-1).number : null, go: (where) => { view.where = where; view.records.more = false; view.reload(); } }),
    h("p", {}, button("Look again", view.reload)),
    !view.records && !view.problem && quiet("Asking the node …"),
  ];
}

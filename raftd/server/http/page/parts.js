// Parts of views.

import { actDialog, closeDialog, move, state, update } from "./app.js";
import { count } from "./format.js";
import { h } from "./h.js";

export const link = (to, text, props = {}) => h("a", { href: to, ...props }, text);
export const tubeLink = (name) => link(`#/tube/${encodeURIComponent(name)}`, name, { class: "tube-name" });
export const jobLink = (id) => link(`#/job/${id}`, `#${id}`);
export const button = (text, onclick, props = {}) => h("button", { type: "button", onclick, ...props }, text);
export const quiet = (text) => h("p", { class: "quiet" }, text);

// A state is a word, with a mark beside it for those who look for colours.
export const mark = (word, kind = word) => h("span", { class: `mark ${kind}` }, word);

export function facts(pairs) {
  const given = pairs.filter((pair) => pair && pair[1] !== null && pair[1] !== undefined && pair[1] !== "");
  return h("dl", { class: "facts" }, given.map(([name, value]) => h("div", { key: name }, h("dt", {}, name), h("dd", {}, value))));
}

export function tile(name, value, note = "", to = null) {
  const inside = [h("span", { class: "tile-name" }, name), h("b", {}, typeof value === "number" ? count(value) : value), note && h("small", {}, note)];
  return to ? h("a", { class: "tile", key: name, href: to }, inside) : h("div", { class: "tile", key: name }, inside);
}

// `columns`: [{ name, label, cell(row), number, sort }]. `order`: { by, choose(name) } if it can be sorted.
export function table({ caption, columns, rows, key, empty, order }) {
  const header = (column) => {
    const props = { key: column.label, scope: "col", class: column.number ? "number" : null, title: column.title };
    if (!order || !column.sort) return h("th", props, column.label);
    const isChosen = order.by === column.sort;
    const direction = column.sort === "name" ? "ascending" : "descending";
    return h("th", { ...props, "aria-sort": isChosen ? direction : null }, button([column.label, isChosen ? (column.sort === "name" ? " ▲" : " ▼") : ""], () => order.choose(column.sort), { class: "sort" }));
  };
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h(
      "table",
      {},
      h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, columns.map(header))),
      h(
        "tbody",
        {},
        rows.map((row) => h("tr", { key: key(row) }, columns.map((column, at) => h(at ? "td" : "th", { key: column.label, class: column.number ? "number" : null, scope: at ? null : "row" }, column.cell(row))))),
        !rows.length && h("tr", { key: "empty" }, h("td", { colspan: columns.length, class: "empty" }, empty)),
      ),
    ),
  );
}

export function field({ name, label, kind = "text", options, value, oninput, hint, ...more }) {
  const id = `field-${name}`;
  const props = { id, name, oninput: (event) => oninput(kind === "checkbox" ? event.target.checked : event.target.value), ...more };
  if (kind === "checkbox") return h("p", { class: "field check", key: name }, h("input", { ...props, type: "checkbox", checked: Boolean(value) }), h("label", { for: id }, label));
  const input =
    kind === "select"
      ? h("select", { ...props, value }, options.map(([option, text]) => h("option", { key: option, value: option, selected: option === value }, text)))
      : kind === "area"
        ? h("textarea", { ...props, rows: 5, value })
        : h("input", { ...props, type: kind, value });
  return h("p", { class: "field", key: name }, h("label", { for: id }, label), input, hint && h("small", { id: `${id}-hint` }, hint));
}

// What is asked before something is done.
export function dialog() {
  const asked = state.dialog;
  if (!asked) return null;
  const submit = (event) => {
    event.preventDefault();
    actDialog();
  };
  const change = (item) => (value) => {
    asked.values[item.name] = value;
    asked.changed?.(asked.values);
    update();
  };
  return h(
    "dialog",
    { key: "dialog", class: asked.isDangerous ? "danger" : null, "aria-labelledby": "dialog-title", created: (node) => queueMicrotask(() => node.showModal()), oncancel: (event) => { event.preventDefault(); closeDialog(); } },
    h(
      "form",
      { onsubmit: submit },
      h("h2", { id: "dialog-title" }, asked.title),
      asked.text && h("p", {}, typeof asked.text === "function" ? asked.text(asked.values) : asked.text),
      (asked.fields ?? []).map((item) => field({ ...item, value: asked.values[item.name], oninput: change(item) })),
      asked.progress && h("p", { role: "status" }, asked.progress, asked.isStopped && ": it stops after this step"),
      asked.problem && h("p", { class: "problem", role: "alert" }, asked.problem),
      h(
        "p",
        { class: "buttons" },
        state.moving && button(`Move to node ${state.moving.node}`, move),
        button(!asked.act ? "Close" : asked.isBusy && asked.hasSteps ? "Stop" : "Cancel", closeDialog, { disabled: asked.isBusy && (!asked.hasSteps || asked.isStopped) }),
        asked.act && h("button", { type: "submit", class: asked.isDangerous ? "dangerous" : "main", disabled: asked.isBusy }, asked.verb),
      ),
    ),
  );
}

// Pages of something: `where` is a list of the places where they begin.
export function pager({ where, next, go }) {
  if (where.length === 1 && !next) return null;
  return h(
    "nav",
    { class: "pager", "aria-label": "Pages" },
    button("← Before", () => go(where.slice(0, -1)), { disabled: where.length === 1, id: "page-before" }),
    h("span", {}, `page ${where.length}`),
    button("Next →", () => go([...where, next]), { disabled: !next, id: "page-next" }),
  );
}

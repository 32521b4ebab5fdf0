// Elements described as plain values, and the least change that makes the document as described.
//
// h("li", { key: 7, class: "late" }, "text", h("b", {}, "more")) describes an element. Children are descriptions, texts, numbers, nothing
// (null, false), or lists of these. Text is always text: nothing here makes markup of a string.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "g", "path", "circle", "line", "polyline", "text"]);
// What an input holds is a property: its attribute is only how it began.
const PROPERTIES = new Set(["value", "checked"]);

export function h(tag, props, ...children) {
  return { tag, props: props ?? {}, key: props?.key, children: children.flat(Infinity).filter(isThere).map(asDescription) };
}

const isThere = (child) => child !== null && child !== undefined && child !== false && child !== "";
const asDescription = (child) => (typeof child === "object" ? child : { text: String(child) });

// Makes the children of `place` those of `descriptions`. What a place shows is remembered with it.
const shown = new WeakMap();

export function render(place, descriptions) {
  const next = [descriptions].flat(Infinity).filter(isThere).map(asDescription);
  patchChildren(place, shown.get(place) ?? adopt(place), next);
  shown.set(place, next);
}

// What stood in the document before is replaced.
function adopt(place) {
  place.replaceChildren();
  return [];
}

function patchChildren(place, before, next) {
  const old = new Map(before.map((description, index) => [name(description, index), description]));
  let at = place.firstChild;
  next.forEach((description, index) => {
    const known = old.get(name(description, index));
    if (known) {
      old.delete(name(description, index));
      patch(known, description);
    } else {
      create(description);
    }
    if (description.node === at) at = at.nextSibling;
    else place.insertBefore(description.node, at);
  });
  for (const description of old.values()) description.node.remove();
}

// Two descriptions of the same name are of the same element, at another time.
function name(description, index) {
  return description.key === undefined ? `${index} ${description.tag ?? ""}` : `key ${description.tag} ${description.key}`;
}

function create(description) {
  if (description.tag === undefined) {
    description.node = document.createTextNode(description.text);
    return;
  }
  const { tag } = description;
  description.node = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  patchProps(description.node, {}, description.props);
  patchChildren(description.node, [], description.children);
  description.props.created?.(description.node);
}

function patch(before, next) {
  next.node = before.node;
  if (next.tag === undefined) {
    if (before.text !== next.text) next.node.data = next.text;
    return;
  }
  patchProps(next.node, before.props, next.props);
  patchChildren(next.node, before.children, next.children);
}

function patchProps(node, before, next) {
  for (const key of Object.keys(before)) if (!(key in next)) set(node, key, null);
  for (const [key, value] of Object.entries(next)) if (before[key] !== value) set(node, key, value);
}

function set(node, key, value) {
  if (key === "key" || key === "created") return;
  if (key.startsWith("on") || PROPERTIES.has(key)) node[key] = value;
  else if (value === null || value === undefined || value === false) node.removeAttribute(key);
  else node.setAttribute(key, value === true ? "" : String(value));
}

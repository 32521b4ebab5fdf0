// Lines over time, as SVG. What a line shows stands beside it as a number, so that nobody needs to see it.

import { h } from "./h.js";

// A small line without axes. `values`: oldest first.
export function spark(values, label, width = 96, height = 22) {
  const known = values ?? [];
  const top = Math.max(1, ...known);
  const step = known.length > 1 ? width / (known.length - 1) : width;
  const points = known.map((value, index) => `${(index * step).toFixed(1)},${(height - 1 - (value / top) * (height - 3)).toFixed(1)}`);
  return h(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label },
    points.length > 1 && h("polyline", { points: points.join(" ") }),
  );
}

const WIDTH = 560;
const HEIGHT = 150;
const LEFT = 68;
const BOTTOM = 20;

// Lines with axes. `lines`: [{ name, values, mark }], null where nothing is known; `say` says a value; `step`: seconds between two points.
export function chart(title, lines, say, step) {
  const length = Math.max(0, ...lines.map((line) => line.values.length));
  const known = lines.flatMap((line) => line.values).filter((value) => value !== null);
  const newest = lines.map((line) => `${line.name} ${say(line.values.at(-1) ?? null)}`).join(", ");
  if (length < 2 || !known.length) {
    return h("figure", { class: "chart", key: title }, h("figcaption", {}, title), h("p", { class: "quiet" }, "Nothing to show yet: it begins when this node starts."));
  }
  const top = nice(Math.max(...known));
  const x = (index) => LEFT + (index / (length - 1)) * (WIDTH - LEFT - 6);
  const y = (value) => 8 + (1 - value / top) * (HEIGHT - BOTTOM - 8);
  return h(
    "figure",
    { class: "chart", key: title },
    h("figcaption", {}, title, h("span", { class: "legend" }, lines.map((line) => h("span", { key: line.name, class: line.mark }, h("b", { class: "dash" }), `${line.name} ${say(line.values.at(-1) ?? null)}`)))),
    h(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}, now: ${newest}` },
      [0, 0.5, 1].map((share) => [
        h("line", { class: "grid", x1: LEFT, x2: WIDTH - 6, y1: y(top * share), y2: y(top * share) }),
        h("text", { x: LEFT - 6, y: y(top * share) + 4, "text-anchor": "end" }, say(top * share)),
      ]),
      h("text", { x: LEFT, y: HEIGHT - 4 }, ago((length - 1) * step)),
      h("text", { x: WIDTH - 6, y: HEIGHT - 4, "text-anchor": "end" }, "now"),
      lines.map((line) => h("path", { key: line.name, class: line.mark, d: drawn(line.values, x, y) })),
    ),
  );
}

// Where nothing is known the line has a gap.
function drawn(values, x, y) {
  let isDown = false;
  return values
    .map((value, index) => {
      if (value === null) {
        isDown = false;
        return "";
      }
      const move = isDown ? "L" : "M";
      isDown = true;
      return `${move}${x(index).toFixed(1)} ${y(value).toFixed(1)}${move === "M" ? "h.1" : ""}`; // one alone is a dot
    })
    .join("");
}

// The next number of the kind that axes have.
function nice(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

function ago(seconds) {
  if (seconds >= 7200) return `${Math.round(seconds / 3600)} h ago`;
  return seconds >= 120 ? `${Math.round(seconds / 60)} min ago` : `${Math.round(seconds)} s ago`;
}

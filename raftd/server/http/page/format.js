// Numbers, times and sizes as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const count = (value) => whole.format(value);

export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return "–";
  return perSecond >= 10 || perSecond === 0 ? whole.format(perSecond) : tenths.format(perSecond);
}

const SIZES = ["B", "KiB", "MiB", "GiB", "TiB"];

export function size(bytes) {
  let step = 0;
  for (; bytes >= 1024 && step < SIZES.length - 1; step += 1) bytes /= 1024;
  return `${step ? tenths.format(bytes) : bytes} ${SIZES[step]}`;
}

const UNITS = [[86_400, "d"], [3_600, "h"], [60, "min"], [1, "s"]];

// The same by the largest alone, where there is little place.
export const about = (seconds) => (seconds === null || seconds === undefined || seconds < 60 ? span(seconds) : span(seconds).replace(/ \d+ \w+$/, ""));

// A length of time, by its two largest units.
export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  const at = UNITS.findIndex(([unit]) => seconds >= unit);
  const [unit, name] = UNITS[at];
  if (name === "s") return `${tenths.format(seconds)} s`;
  const [less, lessName] = UNITS[at + 1];
  const rest = Math.floor((seconds % unit) / less);
  return `${Math.floor(seconds / unit)} ${name}${rest ? ` ${rest} ${lessName}` : ""}`;
}

export const latency = (seconds) => (seconds === null || seconds === undefined ? "–" : `${tenths.format(seconds * 1000)} ms`);

// A moment in the reader's own time.
export function moment(text) {
  if (!text) return "–";
  const date = new Date(text);
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday ? date.toLocaleTimeString() : date.toLocaleString();
}

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

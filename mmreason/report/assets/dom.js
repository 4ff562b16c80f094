"use strict";
// Elements, numbers and the tooltip. Everything on the page is built here from text; no string is ever read as markup.

// An object without inherited names: data may be called "constructor".
function bare(object) {
  return Object.assign(Object.create(null), object);
}

const SVG = "http://www.w3.org/2000/svg";
// Only these become class names, so that data can't choose how it looks.
const VERDICTS = bare({ correct: "✓", wrong: "✗", unparseable: "?", timeout: "◷", bad_gold: "!" });
const RUN_COLOURS = 6;

function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

function s(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else if (name === "style") for (const [key, v] of Object.entries(value)) node.style.setProperty(key, v);
    else node.setAttribute(name, value === true ? "" : value);
  }
  append(node, children);
  return node;
}

function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child); // strings become text nodes
  }
}

function replace(node, ...children) {
  node.replaceChildren();
  append(node, children);
}

// ---- numbers and texts

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

function count(n, noun) {
  if (noun === undefined) return whole.format(n);
  return `${whole.format(n)} ${n === 1 ? noun : noun + "s"}`;
}

function show(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (value < 0) return `−${show(size)}`;
  if (Number.isInteger(value) && size < 1e7) return whole.format(value);
  if (size >= 1e7) return compact.format(value);
  if (size >= 1000) return whole.format(value);
  if (size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(4)));
}

function percent(value, digits = 1) {
  return isNumber(value) ? `${(100 * value).toFixed(digits)} %` : "–";
}

function signed(value, digits = 2) {
  return isNumber(value) ? (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits) : "–";
}

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 90) return `${show(Number(seconds.toPrecision(2)))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

// Control characters are drawn as the symbols Unicode has for them; line breaks and tabs stay. Characters that would
// turn the direction of the text around them are named, so that the order on the screen is the order that was written.
function visible(text) {
  return text
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\u202a-\u202e\u2066-\u2069]/g, (c) => `[U+${c.charCodeAt(0).toString(16).toUpperCase()}]`);
}

function median(values) {
  const sorted = values.filter(isNumber).sort((a, b) => a - b);
  return sorted.length ? sorted[sorted.length >> 1] : null;
}

// ---- small parts

function colour(i) {
  return `c${i % RUN_COLOURS}`;
}

function verdictClass(name) {
  return (name ?? "") in VERDICTS ? `v-${name}` : "c5";
}

// The known ones in their order, then the others.
function orderedVerdicts(names) {
  const all = new Set(names);
  return [...Object.keys(VERDICTS).filter((name) => all.delete(name)), ...[...all].sort()];
}

function verdictBadge(name) {
  if (name === null || name === undefined) return null;
  const mark = name in VERDICTS ? VERDICTS[name] : "•";
  return h(
    "span",
    { class: `verdict ${verdictClass(name)}` },
    h("span", { "aria-hidden": "true" }, mark),
    name.replaceAll("_", " "),
  );
}

function said(text, extra = "") {
  return h("div", { class: `said ${extra}`, dir: "auto" }, visible(text));
}

// head: cells of the first line; rows: cells of the others. A wide table scrolls by itself.
function table(head, rows) {
  const lines = rows.map((cells) => h("tr", {}, cells));
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, lines)));
}

function field(label, control, extra = "") {
  control.setAttribute("aria-label", label); // of a select, the label's own text would include its options
  return h("label", { class: `field ${extra}` }, label, control);
}

function select(options, value, onChange) {
  const node = h("select", { on: { change: () => onChange(node.value) } });
  for (const [key, label] of options)
    node.append(h("option", { value: key, selected: String(key) === String(value) }, label));
  return node;
}

function check(label, on, onChange) {
  const box = h("input", { type: "checkbox", on: { change: () => onChange(box.checked) } });
  box.checked = on;
  return h("label", { class: "check" }, box, label);
}

// options: [value, label, number, class]; `kind` is "radio" or "checkbox".
function chips(legend, kind, options, isOn, onChange) {
  const name = `chips-${(chips.next = (chips.next ?? 0) + 1)}`;
  return h(
    "fieldset",
    { class: "chips" },
    h("legend", {}, legend),
    options.map(([value, label, n, style]) => {
      const input = h("input", { type: kind, name, value, on: { change: () => onChange(value, input.checked) } });
      input.checked = isOn(value);
      return h(
        "label",
        { class: "chip" },
        input,
        style ? h("span", { class: `key ${style}` }) : null,
        label,
        n === undefined ? null : h("span", { class: "n" }, count(n)),
      );
    }),
  );
}

// A line with "previous" and "next" that shows page `page` of `pages`, or nothing for a single page.
function pager(page, pages, go) {
  if (pages < 2) return null;
  const button = (label, to) =>
    h("button", { type: "button", disabled: to < 0 || to >= pages, on: { click: () => go(to) } }, label);
  return h(
    "div",
    { class: "pager" },
    button("← previous", page - 1),
    `page ${count(page + 1)} of ${count(pages)}`,
    button("next →", page + 1),
  );
}

function later(action, wait = 150) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...args), wait);
  };
}

// ---- tooltip

const tip = document.getElementById("tip");

// `at`: a point of the window; `rows`: [class, label, value].
function showTip(at, title, rows) {
  replace(
    tip,
    h("div", {}, title),
    rows.map(([key, label, value]) =>
      h(
        "div",
        { class: "row" },
        h("span", { class: key ? `key ${key}` : "" }),
        h("span", {}, label),
        h("b", {}, value),
      ),
    ),
  );
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const right = at.x + 14 + box.width > innerWidth;
  tip.style.left = `${Math.max(4, Math.min(innerWidth - box.width - 4, right ? at.x - box.width - 14 : at.x + 14))}px`;
  tip.style.top = `${Math.max(4, at.y + 18 + box.height > innerHeight ? at.y - box.height - 12 : at.y + 18)}px`;
}

function hideTip() {
  tip.hidden = true;
}

// ---- packed data

// Base64 of gzipped JSON in a script element that the browser doesn't run. Null where the page has none.
async function unpack(id) {
  const node = document.getElementById(id);
  if (!node) return null;
  const raw = atob(node.textContent);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const value = JSON.parse(await new Response(stream).text());
  node.remove(); // the text isn't needed twice
  return value;
}

// Line charts: points and gaps as recorded, a light smoothing on top, the value under the pointer or the arrow keys.

const SMOOTH_FROM = 20; // points below which a curve is drawn as it is
const MANY = 200; // points from which the dots are smaller
const charts = [];
let smoothing = recall("smooth", "1") === "1";

// Round tick positions within [low, high]: steps of 1, 2 or 5 times a power of ten.
function ticks(low, high, about, integers = false) {
  const rough = (high - low) / Math.max(1, about);
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= rough * 0.999) ?? 10 * power;
  if (integers) step = Math.max(1, Math.round(step));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step || 0); // no -0
  return { values: found, step };
}

function tickText(value, step) {
  if (Math.abs(value) < step * 1e-6) return "0";
  if (Math.abs(value) >= 1e4) return compact.format(value);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return digits > 4
    ? value.toExponential(Math.max(0, Math.min(2, Math.floor(Math.log10(Math.abs(value) / step) + 1e-9))))
    : value.toFixed(digits);
}

function scale(low, high, from, to) {
  const factor = high === low ? 0 : (to - from) / (high - low);
  return (value) => (high === low ? (from + to) / 2 : from + (value - low) * factor);
}

// Mean of the neighbours, weighted by a bell of `width` points; gaps stay gaps and count for nothing.
function smooth(values, width) {
  const reach = Math.ceil(2.5 * width);
  const weights = Array.from({ length: reach + 1 }, (_, d) => Math.exp(-0.5 * (d / width) ** 2));
  return values.map((value, i) => {
    if (!isNumber(value)) return null;
    let sum = 0,
      total = 0;
    for (let j = Math.max(0, i - reach); j <= Math.min(values.length - 1, i + reach); j++) {
      if (!isNumber(values[j])) continue;
      const weight = weights[Math.abs(i - j)];
      sum += weight * values[j];
      total += weight;
    }
    return sum / total;
  });
}

function smoothingWidth(ys) {
  const points = ys.filter(isNumber).length;
  return points < SMOOTH_FROM ? 0 : Math.max(1, points / 50);
}

function linePath(xs, ys, x, y) {
  let out = "",
    open = false;
  for (let i = 0; i < xs.length; i++) {
    if (!isNumber(ys[i])) {
      open = false;
      continue;
    }
    // A point between two gaps is a line to itself, which round caps draw as a dot.
    const alone = !open && !isNumber(ys[i + 1]);
    out += `${open ? "L" : "M"}${x(xs[i]).toFixed(1)} ${y(ys[i]).toFixed(1)}${alone ? "h0" : ""}`;
    open = true;
  }
  return out;
}

function dotPath(xs, ys, x, y) {
  let out = "";
  for (let i = 0; i < xs.length; i++) if (isNumber(ys[i])) out += `M${x(xs[i]).toFixed(1)} ${y(ys[i]).toFixed(1)}h0`;
  return out;
}

// Index of the recorded point nearest to `target`, -1 where there is none.
function nearest(xs, ys, target) {
  let best = -1;
  for (let i = 0; i < xs.length; i++) {
    if (isNumber(ys[i]) && (best < 0 || Math.abs(xs[i] - target) < Math.abs(xs[best] - target))) best = i;
  }
  return best;
}

class LineChart {
  // spec: title, key (name in metrics.jsonl, optional), kind ("number" | "share" | "positive"), missing (texts), wide,
  // guard: { name, xs, alarm, low, high } or null
  // series: { label, run (index), colour, xs, ys, low?, high?, marks? } with null for gaps
  constructor(spec) {
    this.spec = spec;
    this.format = spec.kind === "share" ? (v) => percent(v) : show;
    this.plot = h("div", { class: "plot", tabindex: 0, role: "group" });
    this.last = h("span", { class: "last" });
    this.legend = h("div", { class: "legend" });
    this.node = h(
      "figure",
      { class: spec.wide ? "wide" : null, "data-chart": spec.key ?? spec.title },
      h("figcaption", {}, h("b", { title: spec.key ?? null }, spec.title), this.last),
      this.legend,
      this.plot,
    );
    this.plot.addEventListener("pointermove", (event) => this.follow(event));
    this.plot.addEventListener("pointerdown", (event) => this.follow(event));
    this.plot.addEventListener("pointerleave", clearCursors);
    this.plot.addEventListener("blur", clearCursors);
    this.plot.addEventListener("keydown", (event) => this.key(event));
    charts.push(this);
  }

  get series() {
    return this.spec.series.filter((one) => !hiddenRuns.has(one.run));
  }

  draw() {
    const width = this.plot.clientWidth;
    if (!width) return;
    this.explain();
    const height = this.spec.wide ? 240 : 176;
    const shown = this.series;
    const xs = shown.flatMap((one) => one.xs.filter((_, i) => isNumber(one.ys[i])));
    if (!xs.length) {
      replace(this.plot, h("p", { class: "hint" }, "no values"));
      return;
    }
    const [low, high] = this.range(shown);
    const yTicks = ticks(low, high, 5);
    const labels = yTicks.values.map((v) =>
      this.spec.kind === "share" ? `${tickText(100 * v, 100 * yTicks.step)} %` : tickText(v, yTicks.step),
    );
    const left = Math.max(...labels.map((text) => text.length), 2) * 6.3 + 8;
    const first = Math.min(...xs),
      final = Math.max(...xs);
    this.x = scale(first, final, left + 4, width - 6);
    this.unX = (px) => (final === first ? first : first + ((px - left - 4) / (width - 10 - left)) * (final - first));
    this.y = scale(low, high, height - 22, 8);
    const root = s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
    yTicks.values.forEach((value, i) =>
      root.append(
        s("line", { class: "grid", x1: left, x2: width, y1: this.y(value), y2: this.y(value) }),
        s("text", { x: left - 6, y: this.y(value) + 4, "text-anchor": "end" }, labels[i]),
      ),
    );
    root.append(...stepAxis(first, final, this.x, left, width, height));
    if (this.spec.guard) root.append(...this.guarded([low, high], [first, final], height));
    for (const one of shown) root.append(this.curve(one));
    this.overlay = s("g", {});
    root.append(this.overlay);
    replace(this.plot, root);
  }

  // Steps in alarm as bands, and the bounds as far as they lie within the chart.
  guarded([low, high], [first, final], height) {
    const { xs, alarm, ...bounds } = this.spec.guard;
    const nodes = [];
    for (let i = 0; i < xs.length; i++) {
      if (!(alarm[i] > 0)) continue;
      const begin = i;
      while (alarm[i + 1] > 0) i++;
      const from = this.x(Math.max(first, xs[begin] - 0.5)),
        to = this.x(Math.min(final, xs[i] + 0.5));
      nodes.push(s("rect", { class: "alarm", x: from, y: 8, width: Math.max(2, to - from), height: height - 30 }));
    }
    for (const side of ["low", "high"]) {
      const inside = bounds[side].map((v) => (isNumber(v) && v >= low && v <= high ? v : null));
      if (inside.some(isNumber)) nodes.push(s("path", { class: "bound", d: linePath(xs, inside, this.x, this.y) }));
    }
    return nodes;
  }

  range(shown) {
    const values = shown.flatMap((one) => [...one.ys, ...(one.low ?? []), ...(one.high ?? [])]).filter(isNumber);
    let low = values.reduce((a, b) => Math.min(a, b)),
      high = values.reduce((a, b) => Math.max(a, b));
    if (this.spec.kind !== "number" && low >= 0) low = 0;
    if (low === 0 && high === 0) return [0, this.spec.kind === "share" ? 0.1 : 1];
    const span = Math.max(high - low, 1e-3 * Math.max(Math.abs(low), Math.abs(high)), 1e-12);
    if (high - low < span)
      [low, high] = [this.spec.kind !== "number" && low === 0 ? 0 : low - span / 2, high + span / 2];
    return [low === 0 && this.spec.kind !== "number" ? 0 : low - 0.06 * span, high + 0.06 * span];
  }

  curve(one) {
    const group = s("g", { class: one.colour });
    const width = smoothing && !one.marks ? smoothingWidth(one.ys) : 0;
    if (width) {
      const dots = one.xs.length > MANY ? "raw many" : "raw";
      group.append(s("path", { class: dots, d: dotPath(one.xs, one.ys, this.x, this.y) }));
      group.append(s("path", { class: "curve", d: linePath(one.xs, smooth(one.ys, width), this.x, this.y) }));
      return group;
    }
    // Values of rare moments are joined over the steps between them, which have none.
    const rare = one.xs.map((_, i) => i).filter((i) => !one.marks || isNumber(one.ys[i]));
    group.append(
      s("path", {
        class: "curve",
        d: linePath(
          rare.map((i) => one.xs[i]),
          rare.map((i) => one.ys[i]),
          this.x,
          this.y,
        ),
      }),
    );
    if (one.marks)
      one.xs.forEach((x, i) => {
        if (!isNumber(one.ys[i])) return;
        if (isNumber(one.low?.[i]))
          group.append(
            s("line", {
              class: "whisker",
              x1: this.x(x),
              x2: this.x(x),
              y1: this.y(one.low[i]),
              y2: this.y(one.high[i]),
            }),
          );
        group.append(s("circle", { class: "dot", cx: this.x(x), cy: this.y(one.ys[i]), r: 4 }));
      });
    return group;
  }

  // Caption, legend and a sentence for those who don't see the curve.
  explain() {
    const shown = this.series;
    const ends = shown.map((one) => {
      const i = one.ys.findLastIndex(isNumber);
      return i < 0 ? null : one.ys[i];
    });
    this.last.textContent = shown.length === 1 && ends[0] !== null ? this.format(ends[0]) : "";
    const many = this.spec.series.length > 1;
    replace(
      this.legend,
      many
        ? this.spec.series
            .filter((one) => !hiddenRuns.has(one.run))
            .map((one) => h("span", {}, h("span", { class: `key line ${one.colour}` }), one.label))
        : null,
      (this.spec.missing ?? []).map((name) => h("span", {}, `${name}: not recorded`)),
      this.spec.guard?.alarm.some((value) => value > 0)
        ? h("span", {}, h("span", { class: "key alarmed" }), `guard ${this.spec.guard.name} in alarm`)
        : null,
    );
    const told = shown.map((one) => {
      const known = one.ys.filter(isNumber);
      return known.length
        ? `${one.label}: ${this.format(known[0])} first, ${this.format(known.at(-1))} last`
        : `${one.label}: no values`;
    });
    this.plot.setAttribute("aria-label", `${this.spec.title}. ${told.join("; ")}. Arrow keys read single steps.`);
  }

  follow(event) {
    if (!this.unX) return;
    const box = this.plot.getBoundingClientRect();
    this.point(this.unX(event.clientX - box.left), { x: event.clientX, y: event.clientY });
  }

  key(event) {
    if (event.key === "Escape") return clearCursors();
    if (!["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key) || !this.unX) return;
    event.preventDefault();
    const all = [...new Set(this.series.flatMap((one) => one.xs.filter((_, i) => isNumber(one.ys[i]))))].sort(
      (a, b) => a - b,
    );
    const here = this.at === undefined ? -1 : all.indexOf(this.at);
    const to = {
      ArrowLeft: Math.max(0, here - 1),
      ArrowRight: Math.min(all.length - 1, here + 1),
      Home: 0,
      End: all.length - 1,
    }[event.key];
    const box = this.plot.getBoundingClientRect();
    this.point(all[to], { x: box.left + this.x(all[to]), y: box.top + 20 });
  }

  point(target, where) {
    const found = this.series.map((one) => [one, nearest(one.xs, one.ys, target)]).filter(([, i]) => i >= 0);
    if (!found.length) return;
    const x = found
      .map(([one, i]) => one.xs[i])
      .reduce((a, b) => (Math.abs(a - target) <= Math.abs(b - target) ? a : b));
    this.at = x;
    const rows = found
      .filter(([one, i]) => one.xs[i] === x)
      .map(([one, i]) => {
        const interval = isNumber(one.low?.[i]) ? `  [${this.format(one.low[i])}, ${this.format(one.high[i])}]` : "";
        return [one.colour, one.label, this.format(one.ys[i]) + interval];
      });
    showTip(where, `step ${count(x)}`, rows);
    for (const chart of charts) chart.cursor(x);
  }

  cursor(x) {
    if (!this.overlay) return;
    const px = this.x(x);
    const height = this.spec.wide ? 240 : 176;
    replace(
      this.overlay,
      s("line", { class: "cursor", x1: px, x2: px, y1: 8, y2: height - 22 }),
      this.series.map((one) => {
        const i = one.xs.indexOf(x);
        return i >= 0 && isNumber(one.ys[i])
          ? s("g", { class: one.colour }, s("circle", { class: "dot", cx: px, cy: this.y(one.ys[i]), r: 3.5 }))
          : null;
      }),
    );
  }
}

function stepAxis(first, final, x, left, width, height) {
  const nodes = [s("line", { class: "axis", x1: left, x2: width, y1: height - 22, y2: height - 22 })];
  const marks = final === first ? [first] : ticks(first, final, Math.max(3, width / 60), true).values;
  for (const value of marks) {
    const px = x(value);
    nodes.push(s("text", { x: px, y: height - 6, "text-anchor": px > width - 14 ? "end" : "middle" }, count(value)));
  }
  return nodes;
}

function clearCursors() {
  hideTip();
  for (const chart of charts) {
    chart.at = undefined;
    if (chart.overlay) chart.overlay.replaceChildren();
  }
}

function redraw() {
  for (const chart of charts) chart.draw();
}

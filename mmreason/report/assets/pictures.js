// Pictures other than curves: stacked shares over time, histograms, intervals, a bar of shares.

// Registered with the line charts so that they are drawn again when the window changes: { node, draw(), cursor() }.
class Picture {
  constructor(title, className, paint) {
    this.plot = h("div", { class: "plot" });
    this.node = h("figure", { class: className }, title ? h("figcaption", {}, h("b", {}, title)) : null, this.plot);
    this.paint = paint;
    this.series = [];
    charts.push(this);
  }

  draw() {
    const width = this.plot.clientWidth;
    if (width) replace(this.plot, this.paint(width, this.plot));
  }

  cursor() {}
}

function verdictArea(title, mix) {
  const height = 200;
  const picture = new Picture(title, "wide", (width, plot) => {
    const left = 40,
      last = mix.steps.length - 1;
    const x = scale(mix.steps[0], mix.steps[last], left, width - 6);
    const y = scale(0, 1, height - 22, 8);
    const root = s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
    for (const value of [0, 0.5, 1])
      root.append(
        s("line", { class: "grid", x1: left, x2: width, y1: y(value), y2: y(value) }),
        s("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, `${100 * value} %`),
      );
    const base = mix.steps.map(() => 0);
    mix.names.forEach((name, k) => {
      const top = base.map((value, i) => Math.min(1, value + (mix.shares[k][i] ?? 0)));
      const at = (i, value) => `${x(mix.steps[i]).toFixed(1)} ${y(value).toFixed(1)}`;
      // One step is a bar of full width.
      const d =
        last === 0
          ? `M${left} ${y(base[0])}V${y(top[0])}H${width - 6}V${y(base[0])}Z`
          : `M${top.map((v, i) => at(i, v)).join("L")}L${base.map((v, i) => at(last - i, base[last - i])).join("L")}Z`;
      root.append(s("g", { class: verdictColour(name, k) }, s("path", { class: "area", d })));
      top.forEach((value, i) => {
        base[i] = value;
      });
    });
    root.append(...stepAxis(mix.steps[0], mix.steps[last], x, left, width, height));
    const line = s("line", { class: "cursor", y1: 8, y2: height - 22, visibility: "hidden" });
    root.append(line);
    plot.onpointermove = (event) => {
      const px = event.clientX - plot.getBoundingClientRect().left;
      const i = mix.steps.reduce(
        (best, step, j) => (Math.abs(x(step) - px) < Math.abs(x(mix.steps[best]) - px) ? j : best),
        0,
      );
      fill(line, { x1: x(mix.steps[i]), x2: x(mix.steps[i]), visibility: "visible" }, []);
      showTip(
        { x: event.clientX, y: event.clientY },
        `step ${count(mix.steps[i])}`,
        mix.names
          .map((name, k) => [verdictColour(name, k), name.replaceAll("_", " "), percent(mix.shares[k][i])])
          .reverse(),
      );
    };
    plot.onpointerleave = () => {
      line.setAttribute("visibility", "hidden");
      hideTip();
    };
    return root;
  });
  const ends = mix.names.map((name, k) => `${name} ${percent(mix.shares[k][0])} to ${percent(mix.shares[k].at(-1))}`);
  picture.plot.setAttribute("role", "img");
  picture.plot.setAttribute("aria-label", `Share of each verdict over the steps: ${ends.join(", ")}`);
  return picture.node;
}

function verdictColour(name, i) {
  return name in VERDICTS ? `v-${name}` : colour(i);
}

function verdictLegend(names) {
  return h(
    "div",
    { class: "legend" },
    names.map((name, i) =>
      h("span", {}, h("span", { class: `key ${verdictColour(name, i)}` }), name.replaceAll("_", " ")),
    ),
  );
}

// part: { name, first, last, counts }; `highest` is the largest share of all parts, so that they can be compared.
function histogram(part, shape, highest, style) {
  const total = part.counts.reduce((a, b) => a + b, 0);
  const steps =
    part.first === part.last ? `step ${count(part.first)}` : `steps ${count(part.first)}–${count(part.last)}`;
  const title = `${part.name[0].toUpperCase()}${part.name.slice(1)}, ${steps}`;
  const label = (i) => (shape.discrete ? show(shape.bins[i]) : `${show(shape.bins[i])} to ${show(shape.bins[i + 1])}`);
  const picture = new Picture(title, null, (width, plot) => {
    const height = 150,
      left = 38,
      n = part.counts.length;
    const slot = (width - left) / n;
    const y = scale(0, highest * 1.04, height - 22, 8);
    const root = s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
    const marks = ticks(0, highest * 1.04, 4);
    for (const value of marks.values)
      root.append(
        s("line", { class: "grid", x1: left, x2: width, y1: y(value), y2: y(value) }),
        s(
          "text",
          { x: left - 6, y: y(value) + 4, "text-anchor": "end" },
          `${tickText(100 * value, 100 * marks.step)} %`,
        ),
      );
    part.counts.forEach((found, i) => {
      const share = found / total,
        gap = Math.min(6, slot * (shape.discrete ? 0.25 : 0.06));
      root.append(
        s(
          "g",
          { class: style },
          s("rect", {
            class: "fill",
            x: left + i * slot + gap / 2,
            width: Math.max(1, slot - gap),
            y: y(share),
            height: Math.max(0, y(0) - y(share)),
            rx: 1,
          }),
        ),
      );
    });
    const texts = shape.discrete
      ? shape.bins.map((b, i) => [left + (i + 0.5) * slot, show(b)])
      : [0, n / 2, n].map((i) => [left + i * slot, show(shape.bins[i])]);
    const room = Math.max(...texts.map(([, text]) => text.length)) * 6.6 + 6;
    const every = Math.max(1, Math.ceil(room / (shape.discrete ? slot : width / 3)));
    texts
      .filter((_, i) => i % every === 0)
      .forEach(([px, text]) =>
        root.append(
          s(
            "text",
            { x: px, y: height - 6, "text-anchor": px > width - 12 ? "end" : px < left + 2 ? "start" : "middle" },
            text,
          ),
        ),
      );
    plot.onpointermove = (event) => {
      const i = Math.floor((event.clientX - plot.getBoundingClientRect().left - left) / slot);
      if (i < 0 || i >= n) {
        hideTip();
        return;
      }
      showTip({ x: event.clientX, y: event.clientY }, `reward ${label(i)}`, [
        [style, count(part.counts[i], "completion"), percent(part.counts[i] / total)],
      ]);
    };
    plot.onpointerleave = hideTip;
    return root;
  });
  const top = part.counts.indexOf(Math.max(...part.counts));
  picture.plot.setAttribute("role", "img");
  picture.plot.setAttribute(
    "aria-label",
    `Rewards of ${count(total, "completion")}, ${title}: most often ${label(top)}`,
  );
  return picture.node;
}

// rows: { label, colour, points: [{ value, low, high, hollow, name }] } on an axis from 0 to 100 %.
function intervals(rows) {
  const picture = new Picture(null, null, (width, plot) => {
    const line = 30,
      height = rows.length * line + 26;
    const left = Math.min(width * 0.34, Math.max(...rows.map((row) => row.label.length)) * 6.6 + 12);
    const x = scale(0, 1, left, width - 12);
    const root = s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
    for (const value of width < 420 ? [0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1])
      root.append(
        s("line", { class: "grid", x1: x(value), x2: x(value), y1: 4, y2: height - 22 }),
        s("text", { x: x(value), y: height - 6, "text-anchor": value === 1 ? "end" : "middle" }, `${100 * value} %`),
      );
    rows.forEach((row, i) => {
      const middle = 4 + i * line + line / 2;
      const room = Math.floor((left - 12) / 6.4);
      const label = row.label.length > room ? `${row.label.slice(0, Math.max(1, room - 1))}…` : row.label;
      const group = s(
        "g",
        { class: row.colour },
        s("text", { x: left - 12, y: middle + 4, "text-anchor": "end" }, label),
      );
      row.points.forEach((point, k) => {
        const y = middle + (row.points.length > 1 ? (k - (row.points.length - 1) / 2) * 8 : 0);
        if (isNumber(point.low))
          group.append(s("line", { class: "whisker", x1: x(point.low), x2: x(point.high), y1: y, y2: y }));
        group.append(s("circle", { class: point.hollow ? "hollow" : "dot", cx: x(point.value), cy: y, r: 4 }));
      });
      root.append(group);
    });
    plot.onpointermove = (event) => {
      const i = Math.floor((event.clientY - plot.getBoundingClientRect().top - 4) / line);
      if (!rows[i]) {
        hideTip();
        return;
      }
      showTip(
        { x: event.clientX, y: event.clientY },
        rows[i].label,
        rows[i].points.map((point) => [
          rows[i].colour,
          point.name,
          `${percent(point.value)}  [${percent(point.low)}, ${percent(point.high)}]`,
        ]),
      );
    };
    plot.onpointerleave = hideTip;
    return root;
  });
  picture.plot.setAttribute("role", "img");
  picture.plot.setAttribute(
    "aria-label",
    `Accuracy with 95 % intervals. ${rows
      .map((row) => `${row.label}: ${row.points.map((point) => `${point.name} ${percent(point.value)}`).join(", ")}`)
      .join("; ")}`,
  );
  return picture.node;
}

// rows: [label, { correct: 12, wrong: 3 }] each; one bar of shares per row and one legend.
function verdictBars(rows) {
  const known = rows.filter(([, counts]) => counts && Object.values(counts).some((n) => n > 0));
  if (!known.length) return null;
  const names = orderedVerdicts(known.flatMap(([, counts]) => Object.keys(counts).filter((name) => counts[name] > 0)));
  const bar = (counts) => {
    const total = names.reduce((sum, name) => sum + (counts[name] ?? 0), 0);
    const told = names.map((name) => `${setTitle(name)} ${count(counts[name] ?? 0)}`).join(", ");
    const part = (name, i) => {
      const width = `${(100 * (counts[name] ?? 0)) / total}%`;
      return h("span", { class: verdictColour(name, i), style: { width } });
    };
    return h("div", { class: "bar", role: "img", "aria-label": told, title: told }, names.map(part));
  };
  const mix = h(
    "div",
    { class: "mix" },
    known.map(([label, counts]) => [h("span", {}, label), bar(counts)]),
  );
  return [mix, verdictLegend(names)];
}

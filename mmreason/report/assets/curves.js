// Which metric is drawn where. What a run has and no line here names is drawn under "More".

// keys: [name, label] pairs, or `match` with the label in its first group. kind: "number" fits the values, "positive"
// and "share" begin at 0. heldOut: a measure of the held-out sets. split: of several runs each curve has a chart of its
// own, not only the first. unless: not drawn where the only curve is that metric.
const CATALOGUE = [
  [
    "Learning",
    [
      { title: "Reward", keys: [["reward", "mean"]] },
      { title: "Accuracy", heldOut: "greedy", sampled: "verdict/correct", kind: "share", split: true },
      {
        title: "Completion length (tokens)",
        keys: [
          ["completions/mean_length", "mean"],
          ["completions/min_length", "shortest"],
          ["completions/max_length", "longest"],
        ],
        kind: "positive",
      },
      { title: "Reward functions", match: /^rewards\/(.+)\/mean$/, unless: "reward", split: true },
      { title: "Spread of the rewards", keys: [["reward_std", "standard deviation"]], kind: "positive" },
      { title: "Groups of equal rewards", keys: [["frac_reward_zero_std", "share"]], kind: "share" },
      { title: "Cut off at the length limit", keys: [["completions/clipped_ratio", "share"]], kind: "share" },
      { title: "Held-out length (tokens)", heldOut: "mean_length", kind: "positive", split: true },
      { title: "Token accuracy", keys: [["mean_token_accuracy", "mean"]], kind: "share" },
      {
        title: "Preferred over rejected",
        keys: [
          ["rewards/accuracies", "share"],
          ["accuracy", "share"],
        ],
        kind: "share",
      },
      {
        title: "Reward margin",
        keys: [
          ["rewards/margins", "mean"],
          ["margin", "mean"],
        ],
      },
    ],
  ],
  [
    "Policy",
    [
      { title: "Entropy (nats per token)", keys: [["entropy", "mean"]], kind: "positive" },
      {
        title: "KL to the reference (nats)",
        keys: [
          ["kl", "mean"],
          ["objective/kl", "mean"],
        ],
        kind: "positive",
      },
      {
        title: "Clip share",
        keys: [
          ["clip_ratio/low_mean", "low side"],
          ["clip_ratio/high_mean", "high side"],
          ["clip_ratio/region_mean", "both"],
          ["clip_ratio", "both"],
        ],
        kind: "share",
        split: true,
      },
      {
        title: "Importance ratio to the sampler",
        keys: [
          ["sampling/importance_sampling_ratio/mean", "mean"],
          ["sampling/importance_sampling_ratio/min", "smallest"],
          ["sampling/importance_sampling_ratio/max", "largest"],
        ],
      },
      {
        title: "Log-prob gap to the sampler (nats)",
        keys: [
          ["sampling/sampling_logp_difference/mean", "mean"],
          ["sampling/sampling_logp_difference/max", "largest"],
        ],
        kind: "positive",
      },
    ],
  ],
  [
    "Optimisation",
    [
      {
        title: "Loss",
        keys: [
          ["loss", "training"],
          ["eval_loss", "held out"],
        ],
      },
      { title: "Learning rate", keys: [["learning_rate", "rate"]], kind: "positive" },
      { title: "Gradient norm", keys: [["grad_norm", "norm"]], kind: "positive" },
    ],
  ],
  [
    "Speed",
    [
      {
        title: "Seconds per step",
        keys: ["step", "rollout", "update", "score", "reward", "sync"].map((part) => [`time/${part}`, part]),
        kind: "positive",
      },
      { title: "Tokens sampled per second", keys: [["tokens_per_second", "rate"]], kind: "positive" },
      { title: "Tokens sampled in all", keys: [["num_tokens", "total"]], kind: "positive" },
    ],
  ],
];
// Pictures of their own, drawn into other charts, or no news.
const ELSEWHERE = [/^verdict\//, /^eval\/.+\/(greedy|mean_length)$/, /^guards\//, /^epoch$/];
// What a guard watches → its name. Its bounds and alarms are drawn into that metric's chart.
const GUARDED = {
  grad_norm: "non_finite",
  kl: "kl",
  entropy: "entropy",
  reward: "reward",
  "completions/mean_length": "length",
  "completions/clipped_ratio": "clipped",
  frac_reward_zero_std: "signal",
  "sampling/importance_sampling_ratio/mean": "sampling",
};

function curvesSection() {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.series)))];
  const used = new Set(names.filter((name) => ELSEWHERE.some((pattern) => pattern.test(name))));
  const parts = [];
  for (const [title, specs] of CATALOGUE) {
    const drawn = specs.flatMap((spec) => chartsOf(spec, names, used));
    if (drawn.length)
      parts.push(
        h("h3", {}, title),
        h(
          "div",
          { class: "charts" },
          drawn.map((chart) => chart.node),
        ),
      );
  }
  const rest = names.filter((name) => !used.has(name)).sort();
  if (rest.length) {
    const more = rest.flatMap((name) => chartsOf({ title: name, keys: [[name, "value"]] }, names, used));
    const details = h(
      "details",
      {
        id: "more",
        open: recall("more") === "1" || !parts.length,
        on: {
          toggle: () => {
            remember("more", details.open ? "1" : null);
            redraw();
          },
        },
      },
      h("summary", {}, h("span", { class: "small" }, `${count(more.length, "metric")} without a place above`)),
      h(
        "div",
        { class: "charts" },
        more.map((chart) => chart.node),
      ),
    );
    parts.push(h("h3", {}, "More"), details);
  }
  if (!parts.length)
    return section("curves", "Curves", "No metrics are recorded yet: metrics.jsonl is missing or empty.");
  const averaged = runs
    .filter((run) => run.every > 1)
    .map((run) => `${compare ? `${run.name}: ` : ""}each point is the mean of ${run.every} steps. `)
    .join("");
  const reading = "Point at a curve, or move along it with the arrow keys, to read its values.";
  const hint = `Against the optimizer step. ${averaged}${reading}`;
  const toggle = check("smooth the curves (recorded values as dots)", smoothing, (on) => {
    smoothing = on;
    remember("smooth", on ? null : "0");
    redraw();
  });
  return section("curves", "Curves", hint, toggle, parts);
}

// The charts of one line of the catalogue, and the metrics they use up. Of one run a chart holds all of its curves; of
// several runs it holds one curve each, so the first metric is drawn, or with `split` every one in a chart of its own.
function chartsOf(spec, names, used) {
  const keys =
    spec.keys ??
    (spec.match
      ? names.filter((name) => spec.match.test(name)).map((name) => [name, setTitle(spec.match.exec(name)[1])])
      : []);
  const found = spec.heldOut
    ? runs.map((run) => heldOutCurves(run, spec.heldOut, spec.sampled))
    : runs.map((run) =>
        keys
          .filter(([name]) => run.series[name])
          .map(([name, label]) => ({ name, label, xs: run.steps, ys: run.series[name] })),
      );
  const labels = [
    ...new Set(
      found
        .flat()
        .filter((one) => one.ys.some(isNumber))
        .map((one) => one.label),
    ),
  ];
  if (!labels.length) return [];
  if (
    spec.unless &&
    found.every((curves, r) => curves.length <= 1 && curves.every((one) => same(one.ys, runs[r].series[spec.unless])))
  ) {
    found.flat().forEach((one) => used.add(one.name));
    return [];
  }
  const drawn = !compare ? [labels] : spec.split ? labels.map((label) => [label]) : [[labels[0]]];
  return drawn.map((group) => {
    const series = found.flatMap((curves, r) =>
      curves
        .filter((one) => group.includes(one.label))
        .map((one, i) => ({
          ...one,
          run: r,
          colour: compare ? colour(r) : colour(i),
          label: compare ? runs[r].name : one.label,
        })),
    );
    series.forEach((one) => used.add(one.name));
    const title = drawn.length > 1 ? `${spec.title}, ${group[0]}` : spec.title;
    const key = series.every((one) => one.name === series[0].name) ? series[0].name : undefined;
    const missing = compare ? runs.filter((_, r) => !series.some((one) => one.run === r)).map((run) => run.name) : [];
    const guard = compare ? null : guardOf(runs[0], series);
    return new LineChart({ title, key, kind: spec.kind ?? "number", series, missing, guard });
  });
}

function guardOf(run, series) {
  const name = series.map((one) => GUARDED[one.name]).find((found) => found && run.series[`guards/${found}`]);
  if (!name) return null;
  const part = (side) => run.series[`guards/${name}${side}`] ?? [];
  return { name, xs: run.steps, alarm: part(""), low: part("/low"), high: part("/high") };
}

// What guards said, in their own words.
function guardsSection() {
  const known = runs.filter((run) => run.events.length);
  if (!known.length) return null;
  return section(
    "guards",
    "Guards",
    "What the run's guards saw. Steps in alarm are shaded in the curves, bounds are dashed.",
    known.map((run) => [
      compare ? h("h3", {}, run.name) : null,
      h(
        "ul",
        { class: "events" },
        run.events.map((event) => h("li", {}, h("b", {}, `step ${count(event.step)} `), event.message)),
      ),
    ]),
  );
}

// Whether a reward function is the whole reward, so that one curve is enough.
function same(values, total) {
  return (
    total !== undefined &&
    values.every(
      (v, i) => v === total[i] || (isNumber(v) && isNumber(total[i]) && Math.abs(v - total[i]) <= 1e-4 * Math.abs(v)),
    )
  );
}

// A measure of the held-out sets: from evaluation.json, with its interval, and between from metrics.jsonl
// ("eval/<set>/<key>"). `sampled`: the metric that says the same of the sampled completions.
function heldOutCurves(run, key, sampled) {
  const points = new Map(); // set → step → { value, low, high }
  const put = (set, step, point) => {
    if (!isNumber(point?.value)) return;
    if (!points.has(set)) points.set(set, new Map());
    if (!points.get(set).has(step)) points.get(set).set(step, point);
  };
  for (const { step, sets } of run.measurements) {
    for (const [set, parts] of Object.entries(sets))
      put(set, step, isNumber(parts[key]) ? { value: parts[key] } : parts[key]);
  }
  for (const [name, values] of Object.entries(run.series)) {
    if (!name.startsWith("eval/") || !name.endsWith(`/${key}`)) continue;
    values.forEach((value, i) => put(name.slice(5, -key.length - 1), run.steps[i], { value }));
  }
  const found = [...points].map(([set, byStep]) => {
    const xs = [...byStep.keys()].sort((a, b) => a - b),
      at = xs.map((x) => byStep.get(x));
    return {
      label: setTitle(set),
      xs,
      ys: at.map((p) => p.value),
      low: at.map((p) => p.low ?? null),
      high: at.map((p) => p.high ?? null),
      marks: true,
    };
  });
  if (run.series[sampled]) found.push({ label: "sampled", xs: run.steps, ys: run.series[sampled] });
  return found;
}

function verdictSection() {
  const known = runs.filter((run) => run.verdicts);
  if (!known.length) return null;
  const names = [...new Set(known.flatMap((run) => run.verdicts.names))];
  const without = runs.filter((run) => !run.verdicts).map((run) => run.name);
  return section(
    "verdicts",
    "Verdicts",
    "What the verifier said of the sampled completions, as shares over the steps.",
    verdictLegend(names),
    known.map((run) => verdictArea(compare ? run.name : null, run.verdicts)),
    without.length ? h("p", { class: "hint" }, `No verdicts are recorded for ${without.join(", ")}.`) : null,
  );
}

function rewardSection() {
  const known = runs.map((run, i) => [run, i]).filter(([run]) => run.histogram);
  if (!known.length) return null;
  const highest = Math.max(
    ...known.flatMap(([run]) =>
      run.histogram.parts.flatMap((part) => {
        const total = part.counts.reduce((a, b) => a + b, 0);
        return part.counts.map((n) => n / total);
      }),
    ),
  );
  return section(
    "rewards",
    "Rewards",
    "The rewards of all completions at the start, in the middle and at the end: a tenth of the run each.",
    known.map(([run, i]) => [
      compare ? h("h3", {}, run.name) : null,
      h(
        "div",
        { class: "charts" },
        run.histogram.parts.map((part) => histogram(part, run.histogram, highest, colour(i))),
      ),
    ]),
  );
}

// The head of the page, and what the runs came to: accuracy before and after, or the first and last values of a run
// that measured none.

const hiddenRuns = new Set();

function pageHead() {
  const title = compare ? `${count(runs.length)} runs compared` : runs[0].name;
  const tools = h("div", { class: "tools" }, liveButton(), themeButton());
  const name = h("div", {}, h("p", { class: "brand" }, "mmreason report"), h("h1", {}, title));
  const facts = compare ? [] : runFacts(runs[0]);
  return [
    h("div", { class: "head" }, name, tools),
    compare
      ? runLegend()
      : h(
          "p",
          { class: "facts" },
          facts.map((fact) => h("span", {}, fact)),
        ),
  ];
}

function runFacts(run) {
  const model = run.settings.model_name_or_path;
  const made = "model_name_or_path" in run.settings ? "a model made by the code" : null;
  const dataset = run.settings.dataset_name ?? (run.settings.word_problems ? "word problems" : null);
  return [model ?? made, dataset, ...runCounts(run)].filter((fact) => fact !== null);
}

function runCounts(run) {
  const wanted = run.settings.max_steps;
  const steps =
    isNumber(wanted) && wanted > run.last_step
      ? `step ${count(run.last_step)} of ${count(wanted)}`
      : count(run.last_step, "step");
  return [
    steps,
    run.rollouts ? count(run.rollouts.completions, "completion") : null,
    isNumber(run.seconds) ? `${duration(run.seconds)} of training` : null,
    isNumber(run.settings.seed) ? `seed ${run.settings.seed}` : null,
  ].filter((fact) => fact !== null);
}

// One check box per run: hides its curves.
function runLegend() {
  return h(
    "div",
    { class: "controls", role: "group", "aria-label": "Runs" },
    runs.map((run, i) => {
      const box = h("input", {
        type: "checkbox",
        on: {
          change: () => {
            if (box.checked) hiddenRuns.delete(i);
            else hiddenRuns.add(i);
            redraw();
          },
        },
      });
      box.checked = true;
      return h(
        "label",
        { class: "chip", title: run.path },
        box,
        h("span", { class: `key ${colour(i)}` }),
        run.name,
        h("span", { class: "n" }, runCounts(run).join(" · ")),
      );
    }),
  );
}

function warnings() {
  const lines = runs.flatMap((run) =>
    [...run.problems, ...run.notes].map((line) => (compare ? `${run.name}: ${line}` : line)),
  );
  if (!lines.length) return null;
  const broken = runs.reduce((sum, run) => sum + run.problems.length, 0);
  const title = broken
    ? `${count(broken, "problem")} while reading ${compare ? "these runs" : "this run"}; everything else is shown`
    : "The run is not finished";
  return h(
    "details",
    { class: "note", id: "problems", open: lines.length < 5 },
    h("summary", {}, title),
    h(
      "ul",
      {},
      lines.map((line) => h("li", {}, line)),
    ),
  );
}

function summarySection() {
  const names = [...new Set(runs.flatMap((run) => run.measurements.flatMap((m) => Object.keys(m.sets))))];
  const blocks = names.map((name) => (compare ? compareBlock(name) : setBlock(runs[0], name))).filter(Boolean);
  if (blocks.length) {
    return section(
      "summary",
      "Accuracy",
      "Share of held-out problems answered right, greedily unless said otherwise, with 95 % intervals.",
      h("div", { class: "blocks" }, blocks),
      unmeasured(),
    );
  }
  const table = rewardModelSets().length ? null : firstAndLast();
  if (!table) return null;
  return section(
    "summary",
    "From first to last",
    "No held-out accuracy is recorded. Means over the first and the last tenth of the steps.",
    table,
  );
}

function unmeasured() {
  const without = runs.filter((run) => !run.measurements.length);
  return compare && without.length
    ? h("p", { class: "hint" }, `No held-out accuracy is recorded for ${without.map((run) => run.name).join(", ")}.`)
    : null;
}

// The first measurement of a set that has the part and the newest one after it (null while there is none).
function ends(run, set, part = "greedy") {
  const with_set = run.measurements.filter((m) => m.sets[set]?.[part]);
  return [with_set[0] ?? null, with_set.length > 1 ? with_set.at(-1) : null];
}

function stepName(m) {
  return ["before", "after"].includes(m.name) ? `${m.name} (step ${count(m.step)})` : `step ${count(m.step)}`;
}

function stepHead(m) {
  const named = ["before", "after"].includes(m.name);
  return h("th", { class: "n" }, named ? m.name : "then", h("span", { class: "ci" }, `step ${count(m.step)}`));
}

function setTitle(name) {
  return name.replaceAll("_", " ");
}

function change(before, after) {
  if (!before || !after) return "–";
  return signed(100 * (after.value - before.value), 1);
}

function apart(before, after) {
  if (!isNumber(before?.low) || !isNumber(after?.low)) return "";
  return before.high < after.low || after.high < before.low ? "The intervals don't overlap." : "The intervals overlap.";
}

function accuracyCell(value) {
  if (!value) return h("td", { class: "n" }, "–");
  const interval = isNumber(value.low) ? `${(100 * value.low).toFixed(1)} – ${(100 * value.high).toFixed(1)}` : "";
  const exact = isNumber(value.correct) && isNumber(value.n) ? `${count(value.correct)} of ${count(value.n)}` : null;
  return h("td", { class: "n", title: exact }, percent(value.value), h("span", { class: "ci" }, interval));
}

const MEASURES = [
  ["greedy", () => "greedy"],
  ["greedy_strict", () => "greedy, marked"],
  ["majority", (k) => `majority of ${isNumber(k) ? k : "k"}`],
];

function numberCell(text) {
  return h("td", { class: "n" }, text);
}

function pointOf(m, set, key, hollow) {
  return m?.sets[set][key] ? [{ ...m.sets[set][key], hollow, name: stepName(m) }] : [];
}

function setBlock(run, set) {
  const [before, after] = ends(run, set);
  if (!before) return null;
  const was = before.sets[set],
    is = after?.sets[set];
  const measures = MEASURES.filter(([key]) => was[key] || is?.[key]).map(([key, label]) => [key, label(was.k)]);
  const problems = isNumber(was.greedy.n) ? h("span", { class: "small" }, `  ${count(was.greedy.n, "problem")}`) : null;
  const big = is
    ? [
        h("span", { class: "was" }, percent(was.greedy.value)),
        h("span", { class: "arrow" }, "→"),
        percent(is.greedy.value),
      ]
    : percent(was.greedy.value);
  const verdict = is
    ? `${change(was.greedy, is.greedy)} points. ${apart(was.greedy, is.greedy)}`
    : `measured once, ${stepName(before)}`;
  const points = (key) => [...pointOf(before, set, key, true), ...pointOf(after, set, key, false)];
  const head = [h("th", {}, ""), stepHead(before), is ? [stepHead(after), h("th", { class: "n" }, "change")] : null];
  const rows = measures.map(([key, label]) => [
    h("th", {}, label),
    accuracyCell(was[key]),
    is ? [accuracyCell(is[key]), numberCell(change(was[key], is[key]))] : null,
  ]);
  if (isNumber(was.mean_length)) {
    const later = is
      ? [numberCell(show(is.mean_length)), numberCell(signed(is.mean_length - was.mean_length, 1))]
      : null;
    rows.push([h("th", {}, "tokens per answer"), numberCell(show(was.mean_length)), later]);
  }
  return h(
    "div",
    { class: "block" },
    h("div", { class: "title" }, setTitle(set), problems),
    h("p", { class: "big" }, big),
    h("p", { class: "small" }, verdict),
    intervals(measures.map(([key, label]) => ({ label, colour: "c0", points: points(key) }))),
    table(head, rows),
    verdictBars([before, after].filter(Boolean).map((m) => [stepName(m), m.sets[set].verdicts])),
  );
}

function compareBlock(set) {
  const all = runs.map((run, i) => [run, i, ...ends(run, set)]);
  const measured = all.filter(([, , before]) => before);
  const lines = measured.map(([run, i, before, after]) => ({
    label: run.name,
    colour: colour(i),
    points: [...pointOf(before, set, "greedy", true), ...pointOf(after, set, "greedy", false)],
  }));
  const head = [h("th", {}, "run"), ["first", "last", "change"].map((text) => h("th", { class: "n" }, text))];
  const rows = all.map(([run, i, before, after]) => {
    const was = before?.sets[set].greedy,
      is = after?.sets[set].greedy;
    const name = h("th", {}, h("span", { class: `key ${colour(i)}` }), " ", run.name);
    const missing = h("td", { class: "n small", colspan: 3 }, "not measured");
    return [name, before ? [accuracyCell(was), accuracyCell(is), numberCell(change(was, is))] : missing];
  });
  const verdicts = measured.map(([run, , before, after]) => [run.name, (after ?? before).sets[set].verdicts]);
  return h(
    "div",
    { class: "block" },
    h("div", { class: "title" }, setTitle(set)),
    intervals(lines),
    table(head, rows),
    verdictBars(verdicts),
  );
}

const HEADLINES = [
  ["reward", "reward"],
  ["mean_token_accuracy", "token accuracy"],
  ["accuracy", "accuracy"],
  ["rewards/margins", "reward margin"],
  ["completions/mean_length", "completion length"],
  ["entropy", "entropy"],
  ["loss", "loss"],
  ["eval_loss", "held-out loss"],
];

function firstAndLast() {
  const known = HEADLINES.filter(([key]) => runs.some((run) => run.series[key]));
  if (!known.length) return null;
  const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);
  const cells = (run, key) => {
    const values = (run.series[key] ?? []).filter(isNumber),
      part = Math.max(1, Math.round(values.length / 10));
    return [values.slice(0, part), values.slice(-part)].map((some) => numberCell(show(mean(some))));
  };
  const head = runs.map((run) =>
    ["first", "last"].map((end) => h("th", { class: "n" }, compare ? `${run.name}, ${end}` : end)),
  );
  const rows = known.map(([key, label]) => [h("th", {}, label), runs.map((run) => cells(run, key))]);
  return table([h("th", {}, ""), head], rows);
}

function section(id, title, hint, ...children) {
  return h(
    "section",
    { id, "aria-labelledby": `${id}-title` },
    h("h2", { id: `${id}-title`, tabindex: -1 }, title),
    h("p", { class: "hint" }, hint),
    children,
  );
}

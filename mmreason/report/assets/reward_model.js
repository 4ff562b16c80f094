// What a reward model's held-out rows came to (mmreason/trainers/reward_metrics.py): accuracies and other numbers, and
// how often it was right where it was so and so sure.

function rewardModelSets() {
  const measured = runs.flatMap((run) => run.measurements.flatMap((m) => Object.entries(m.sets)));
  return [...new Set(measured.filter(([, parts]) => parts.reliability).map(([name]) => name))];
}

function rewardModelSection() {
  const blocks = rewardModelSets().flatMap((set) =>
    runs.map((run) => rewardModelBlock(run, set)).filter((block) => block !== null),
  );
  if (!blocks.length) return null;
  return section(
    "reward-model",
    "Reward model",
    "On held-out rows; accuracies with 95 % intervals, their change in points.",
    h("div", { class: "blocks" }, blocks),
  );
}

function rewardModelBlock(run, set) {
  const [before, after] = ends(run, set, "reliability");
  if (!before) return null;
  const was = before.sets[set],
    is = after?.sets[set];
  const names = [...new Set([...Object.keys(was), ...Object.keys(is ?? {})])];
  const parts = names.filter((key) => isNumber(was[key]?.value) || isNumber(is?.[key]?.value));
  const head = [h("th", {}, ""), stepHead(before), is ? [stepHead(after), h("th", { class: "n" }, "change")] : null];
  const rows = parts.map((key) => [
    h("th", {}, setTitle(key)),
    partCell(was[key]),
    is ? [partCell(is[key]), numberCell(partChange(was[key], is[key]))] : null,
  ]);
  return h(
    "div",
    { class: "block" },
    h("div", { class: "title" }, compare ? `${setTitle(set)}, ${run.name}` : setTitle(set)),
    table(head, rows),
    reliabilityTable(after ?? before, set),
  );
}

function partCell(part) {
  return isNumber(part?.low) ? accuracyCell(part) : numberCell(show(part?.value));
}

function partChange(was, is) {
  if (isNumber(was?.low) && isNumber(is?.low)) return change(was, is);
  return isNumber(was?.value) && isNumber(is?.value) ? signed(is.value - was.value, 3) : "–";
}

// Bins of [mean probability, share that came true, cases].
function reliabilityTable(m, set) {
  const bins = m.sets[set].reliability;
  if (!bins.length) return null;
  const head = ["predicted", "came true", "cases"].map((text) => h("th", { class: "n" }, text));
  const rows = bins.map(([said, right, n]) => [percent(said), percent(right), count(n)].map(numberCell));
  return [h("p", { class: "small" }, `Calibration, ${stepName(m)}`), table(head, rows)];
}

// What a distilled student saves and costs (mmreason/trainers/distill_bill.py): each model's sizes, speed and accuracy, as
// numbers and as bars whose length is the share of the largest.

const BILL = [
  ["parameters", "parameters", count],
  ["disk_bytes", "on disk", mebibytes],
  ["peak_bytes", "GPU memory", mebibytes],
  ["latency_s", "one answer", (value) => `${show(value)} s`],
  ["tokens_per_s", "tokens/s", (value) => count(Math.round(value))],
  ["vllm_tokens_per_s", "tokens/s, vLLM", (value) => count(Math.round(value))],
];

function mebibytes(value) {
  return `${(value / 2 ** 20).toFixed(1)} MiB`;
}

function billSection() {
  const blocks = runs.filter((run) => run.bill.length).map(billBlock);
  if (!blocks.length) return null;
  return section(
    "bill",
    "The bill",
    "Teachers and student: sizes, speed on this machine, accuracy on held-out problems with 95 % intervals.",
    blocks,
  );
}

function billBlock(run) {
  const kinds = BILL.filter(([key]) => run.bill.some((line) => isNumber(line[key])));
  const sets = [...new Set(run.bill.flatMap((line) => Object.keys(line.accuracy)))];
  const head = [
    h("th", {}, ""),
    kinds.map(([, title]) => h("th", { class: "n" }, title)),
    sets.map((set) => h("th", { class: "n" }, setTitle(set))),
  ];
  const rows = run.bill.map((line) => [
    h("th", {}, line.name),
    kinds.map(([key, , tell]) => billCell(line[key], Math.max(...run.bill.map((one) => one[key] ?? 0)), tell)),
    sets.map((set) => accuracyCell(line.accuracy[set])),
  ]);
  const title = compare ? h("div", { class: "title" }, run.name) : null;
  return h("div", {}, title, table(head, rows));
}

function billCell(value, largest, tell) {
  if (!isNumber(value)) return numberCell("–");
  const bar = h("meter", { class: "bill", min: 0, max: largest || 1, value, "aria-hidden": "true" });
  return h("td", { class: "n" }, tell(value), bar);
}

// The rollout browser: the sampled groups, filtered by step, reward, verdict and text.

const GROUPS_PER_PAGE = 4;
const COMPLETIONS_AT_ONCE = 16;
const unpacked = []; // per run, the prepared data
const COLOURS = [
  ["plain", "none"],
  ["logp", "log-prob"],
  ["advantage", "advantage"],
];
const NO_TOKENS = "This run's rollouts have no completion_tokens, so single tokens can't be coloured.";
const ORDERS = bare({
  newest: ["newest step first", (a, b) => b.step - a.step],
  oldest: ["oldest step first", (a, b) => a.step - b.step],
  best: ["highest mean reward", (a, b) => (b.mean ?? -Infinity) - (a.mean ?? -Infinity)],
  worst: ["lowest mean reward", (a, b) => (a.mean ?? Infinity) - (b.mean ?? Infinity)],
  spread: ["most different rewards", (a, b) => b.spread - a.spread],
});

function rolloutsSection() {
  const without = runs.filter((run) => !run.rollouts?.shown).map((run) => run.name);
  if (without.length === runs.length) {
    return section(
      "rollouts",
      "Rollouts",
      compare
        ? "None of these runs has completions to browse (no rollouts/*.parquet)."
        : "This run has no completions to browse (no rollouts/*.parquet): it sampled none, or has not yet.",
    );
  }
  const body = h("div", { id: "rollouts-body" }, h("p", { class: "hint" }, "unpacking …"));
  return section(
    "rollouts",
    "Rollouts",
    "What the policy sampled, group by group. “Step” is the update that learned from the completions.",
    body,
    without.length ? h("p", { class: "hint" }, `No rollouts: ${without.join(", ")}.`) : null,
  );
}

async function fillRollouts() {
  const body = document.getElementById("rollouts-body");
  if (!body) return;
  const known = runs.map((run, i) => i).filter((i) => runs[i].rollouts?.shown);
  const r = known.includes(Number(recall("run", "-1"))) ? Number(recall("run")) : known[0];
  unpacked[r] ??= prepare(await unpack(`rollouts-${r}`));
  drawBrowser(body, r, known);
}

function prepare(packed) {
  const rows = packed.rows,
    groups = [];
  let at = 0;
  for (const [step, rollout, number, id, prompt, answer, n] of packed.groups) {
    const members = Array.from({ length: n }, (_, i) => at + i);
    at += n;
    const rewards = members.map((i) => rows.reward[i]).filter(isNumber);
    const mean = rewards.length ? rewards.reduce((a, b) => a + b, 0) / rewards.length : null;
    const spread = rewards.length ? Math.max(...rewards) - Math.min(...rewards) : 0;
    groups.push({ step, rollout, number, id, prompt, answer, members, mean, spread });
  }
  return { groups, rows, vocabulary: packed.vocabulary, texts: [], searchable: [] };
}

function textOf(all, i) {
  const text = all.rows.text[i];
  return typeof text === "string"
    ? text
    : (all.texts[i] ??= all.rows.tokens[i]
        .map((t) => all.vocabulary[t])
        .join("")
        .slice(0, text));
}

function rememberedView(verdicts, hasTokens) {
  return {
    from: recall("from"),
    to: recall("to"),
    low: recall("low"),
    high: recall("high"),
    query: recall("q"),
    verdicts: new Set(
      recall("verdict")
        .split(",")
        .filter((name) => verdicts.includes(name)),
    ),
    order: recall("order") in ORDERS ? recall("order") : "newest",
    only: recall("only") === "1",
    colour:
      hasTokens && COLOURS.some(([key]) => key === recall("colour")) ? recall("colour") : hasTokens ? "logp" : "plain",
    page: recallPage("page"),
  };
}

function rememberView(view, hasTokens) {
  for (const key of ["from", "to", "low", "high"]) remember(key, view[key]);
  remember("q", view.query);
  remember("verdict", [...view.verdicts].join(","));
  remember("order", view.order === "newest" ? null : view.order);
  remember("only", view.only ? "1" : null);
  remember("colour", !hasTokens || view.colour === "logp" ? null : view.colour);
  remember("page", view.page || null);
}

function drawBrowser(body, r, known) {
  const all = unpacked[r];
  const verdicts = orderedVerdicts(all.rows.verdict.filter((name) => name !== null));
  const hasTokens = all.rows.tokens.some((t) => t !== null);
  const view = rememberedView(verdicts, hasTokens);
  const results = h("div", { id: "rollouts-list" });
  const told = h("p", { class: "count", id: "rollouts-count", role: "status" });
  const again = () => {
    rememberView(view, hasTokens);
    drawGroups(all, r, view, told, results, again);
  };
  // A new filter begins at its first page.
  const set = (change) => {
    Object.assign(view, change, { page: 0 });
    again();
  };
  const toggle = (name, on) => {
    if (on) view.verdicts.add(name);
    else view.verdicts.delete(name);
    set({});
  };
  const verdictChips = verdicts.map((name, i) => [name, setTitle(name), undefined, verdictColour(name, i)]);
  replace(
    body,
    h("div", { class: "controls" }, numberFilters(all, r, known, view, set)),
    h(
      "div",
      { class: "controls" },
      verdicts.length
        ? chips("Verdict (none chosen: all)", "checkbox", verdictChips, (v) => view.verdicts.has(v), toggle)
        : null,
      hasTokens
        ? chips(
            "Colour of the tokens",
            "radio",
            COLOURS,
            (v) => v === view.colour,
            (colour) => {
              view.colour = colour;
              again();
            },
          )
        : null,
      check("matching completions only", view.only, (only) => set({ only })),
    ),
    hasTokens ? null : h("p", { class: "hint" }, NO_TOKENS),
    told,
    results,
  );
  again();
}

// Run, step, reward, text and order.
function numberFilters(all, r, known, view, set) {
  const steps = all.groups.map((group) => group.step);
  const rewards = all.rows.reward.filter(isNumber);
  const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
  const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
  const box = (key, type, placeholder, props) => {
    const input = h("input", { type, value: view[key], placeholder, ...props });
    input.addEventListener(
      "input",
      later(() => set({ [key]: input.value })),
    );
    return input;
  };
  const range = (label, [low, high], values) => {
    const number = (key, which, value) =>
      box(key, "number", show(value), { step: "any", "aria-label": `${which} ${label.toLowerCase()}` });
    const [first, last] = label === "Step" ? ["First", "Last"] : ["Lowest", "Highest"];
    const boxes = h(
      "div",
      { class: "range" },
      number(low, first, least(values)),
      "–",
      number(high, last, most(values)),
    );
    return h("div", { class: "field short" }, label, boxes);
  };
  const otherRun = (value) => {
    remember("run", value);
    remember("page", null);
    fillRollouts();
  };
  const orders = Object.entries(ORDERS).map(([key, [label]]) => [key, label]);
  return [
    known.length > 1
      ? field(
          "Run",
          select(
            known.map((i) => [i, runs[i].name]),
            r,
            otherRun,
          ),
        )
      : null,
    range("Step", ["from", "to"], steps),
    rewards.length ? range("Reward", ["low", "high"], rewards) : null,
    field("Search", box("query", "search", "text of prompt or completion", { id: "rollouts-search" })),
    field(
      "Order",
      select(orders, view.order, (order) => set({ order })),
    ),
  ];
}

function matches(all, view, group, i) {
  const rows = all.rows,
    reward = rows.reward[i];
  if (view.low !== "" && !(isNumber(reward) && reward >= Number(view.low) - 1e-9)) return false;
  if (view.high !== "" && !(isNumber(reward) && reward <= Number(view.high) + 1e-9)) return false;
  if (view.verdicts.size && !view.verdicts.has(rows.verdict[i])) return false;
  if (!view.query) return true;
  all.searchable[i] ??= `${group.id ?? ""}\n${group.prompt}\n${textOf(all, i)}`.toLowerCase();
  return all.searchable[i].includes(view.query.toLowerCase());
}

function drawGroups(all, r, view, told, results, again) {
  const found = [];
  let completions = 0;
  for (const group of all.groups) {
    if ((view.from !== "" && group.step < Number(view.from)) || (view.to !== "" && group.step > Number(view.to)))
      continue;
    const hits = group.members.filter((i) => matches(all, view, group, i));
    if (hits.length) {
      found.push({ ...group, hits });
      completions += hits.length;
    }
  }
  const order = ORDERS[view.order][1];
  found.sort((a, b) => order(a, b) || a.step - b.step || a.number - b.number);
  const total = runs[r].rollouts;
  const sample =
    total.shown < total.completions
      ? `This page holds ${count(total.shown)} of the run's ${count(total.completions, "completion")}, spread over ` +
        "its steps; curves and histograms use all."
      : `All ${count(total.completions, "completion")} of the run are here.`;
  replace(
    told,
    h("b", {}, `${count(completions, "completion")} in ${count(found.length, "group")}`),
    completions === 1 && found.length === 1 ? " matches. " : " match. ",
    h("span", { class: "small" }, sample),
  );
  told.dataset.completions = completions;
  told.dataset.groups = found.length;
  const pages = Math.max(1, Math.ceil(found.length / GROUPS_PER_PAGE));
  view.page = Math.min(view.page, pages - 1);
  replace(
    results,
    found.length ? colourScale(view.colour) : null,
    found
      .slice(view.page * GROUPS_PER_PAGE, (view.page + 1) * GROUPS_PER_PAGE)
      .map((group) => groupCard(all, group, view)),
    pager(view.page, pages, (to) => {
      view.page = to;
      again();
      told.scrollIntoView();
    }),
  );
}

function groupCard(all, group, view) {
  const hits = new Set(group.hits);
  const members = view.only ? group.hits : group.members;
  const list = h("div", { class: "group" });
  const draw = (n) => {
    replace(
      list,
      members.slice(0, n).map((i) => completionCard(all, i, hits.has(i), view)),
    );
    if (members.length > n)
      list.append(
        h(
          "button",
          { type: "button", class: "more", on: { click: () => draw(members.length) } },
          `show the other ${count(members.length - n)}`,
        ),
      );
  };
  draw(COMPLETIONS_AT_ONCE);
  return h(
    "div",
    { class: "card rollout", "data-step": group.step, "data-group": group.number },
    h(
      "div",
      { class: "top" },
      h("b", {}, `Step ${count(group.step)}`),
      h("span", { class: "small" }, `group ${count(group.number)}`),
      group.id ? h("span", { class: "small mono said" }, group.id) : null,
      isNumber(group.mean)
        ? h("span", { class: "small" }, `mean reward ${show(Number(group.mean.toPrecision(3)))}`)
        : null,
      group.answer !== null
        ? h("span", { class: "small" }, "answer ", h("b", { class: "said" }, visible(group.answer)))
        : null,
      hits.size < group.members.length
        ? h("span", { class: "small" }, `${count(hits.size)} of ${count(group.members.length)} match`)
        : null,
    ),
    said(group.prompt, "prompt cut"),
    list,
  );
}

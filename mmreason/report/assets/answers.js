// Held-out answers side by side: two evaluations of the same problems, those that changed first.

const PROBLEMS_PER_PAGE = 8;
const CHANGES = [
  ["all", "all"],
  ["fixed", "wrong → right"],
  ["broken", "right → wrong"],
  ["right", "both right"],
  ["wrong", "both wrong"],
];
let sheets = null; // { set name: [{ run, step, sheet, found }] }, once unpacked

function answersSection() {
  const known = runs.some((run) => run.answers.length);
  if (!known)
    return compare || !runs[0].measurements.length
      ? null
      : section(
          "answers",
          "Answers",
          "The held-out answers themselves are not recorded in this run (evaluations/ is missing or empty).",
        );
  const body = h("div", { id: "answers-body" }, h("p", { class: "hint" }, "unpacking …"));
  return section(
    "answers",
    "Answers before and after",
    "The same held-out problems, answered greedily at two moments. Those whose verdict changed come first.",
    body,
  );
}

async function fillAnswers() {
  const body = document.getElementById("answers-body");
  if (!body || sheets) return;
  sheets = bare({});
  for (const [r] of runs.entries()) {
    for (const found of (await unpack(`answers-${r}`)) ?? []) {
      for (const sheet of found.sheets) (sheets[found.name] ??= []).push({ run: r, step: sheet.step, sheet, found });
    }
  }
  drawAnswers(body);
}

function drawAnswers(body) {
  const names = Object.keys(sheets);
  const set = names.includes(recall("set")) ? recall("set") : names[0];
  const all = sheets[set];
  const pick = (key, fallback) => (all[Number(recall(key, "-1"))] ? Number(recall(key)) : fallback);
  const firstRun = all.filter((one) => one.run === all[0].run);
  // Of several runs the last answers are compared, of one the first with the last.
  const others = all.filter((one) => one.run !== all[0].run);
  const left = pick("left", others.length ? firstRun.length - 1 : 0);
  const right = pick(
    "right",
    others.length ? all.findLastIndex((one) => one.run === others[0].run) : firstRun.length - 1,
  );
  const options = all.map((one, i) => [i, (compare ? `${runs[one.run].name}, ` : "") + `step ${count(one.step)}`]);
  const again = (key) => (value) => {
    remember(key, value);
    remember("apage", null);
    drawAnswers(body);
  };
  const pairs = pairUp(all[left], all[right], left === right);
  const tally = Object.fromEntries(
    CHANGES.map(([key]) => [key, key === "all" ? pairs.length : pairs.filter((p) => p.change === key).length]),
  );
  const view = { change: recall("change", "all"), query: recall("aq"), page: recallPage("apage") };
  const list = h("div", { id: "answers-list", "aria-live": "off" });
  const search = h("input", {
    type: "search",
    value: view.query,
    placeholder: "text of problem or answer",
    on: {
      input: later(() => {
        view.query = search.value;
        view.page = 0;
        remember("aq", view.query);
        fillList();
      }),
    },
  });
  const fillList = () => {
    const query = view.query.toLowerCase();
    const shown = pairs.filter(
      (p) => (view.change === "all" || p.change === view.change) && (!query || p.searchable.includes(query)),
    );
    const readable = shown.filter((p) => p.prompt !== null);
    const pages = Math.max(1, Math.ceil(readable.length / PROBLEMS_PER_PAGE));
    view.page = Math.min(view.page, pages - 1);
    const without = shown.length - readable.length;
    replace(
      list,
      h(
        "p",
        { class: "count", id: "answers-count" },
        `${count(shown.length, "problem")}`,
        without ? `; the texts of ${count(without)} of them are not in this page, to keep it small` : "",
      ),
      readable
        .slice(view.page * PROBLEMS_PER_PAGE, (view.page + 1) * PROBLEMS_PER_PAGE)
        .map((p) => problemCard(p, all[left], all[right], left === right)),
      pager(view.page, pages, (to) => {
        view.page = to;
        remember("apage", to || null);
        fillList();
        list.scrollIntoView();
      }),
    );
  };
  const changes = CHANGES.filter(([key]) => left !== right || ["all", "right", "wrong"].includes(key)).map(
    ([key, label]) => [key, left === right ? label.replace("both ", "") : label, tally[key]],
  );
  replace(
    body,
    h(
      "div",
      { class: "controls" },
      names.length > 1
        ? field(
            "Set",
            select(
              names.map((name) => [name, setTitle(name)]),
              set,
              (value) => {
                remember("left", null);
                remember("right", null);
                again("set")(value);
              },
            ),
          )
        : null,
      all.length > 1 ? field("Left", select(options, left, again("left"))) : null,
      all.length > 1 ? field("Right", select(options, right, again("right"))) : null,
      field("Search", search),
    ),
    chips(
      "Verdicts, left → right",
      "radio",
      changes,
      (value) => value === view.change,
      (value) => {
        view.change = value;
        view.page = 0;
        remember("change", value === "all" ? null : value);
        fillList();
      },
    ),
    list,
  );
  fillList();
}

function pairUp(left, right, same) {
  const key = (p) => `${p[0] ?? ""}|${p[1] ?? ""}`;
  const places = left.found === right.found ? null : new Map(right.found.problems.map((p, i) => [key(p), i]));
  const pairs = [];
  left.found.problems.forEach((p, i) => {
    const j = places ? places.get(key(p)) : i;
    if (j === undefined || left.sheet.verdict[i] === null || right.sheet.verdict[j] === null) return;
    const was = left.sheet.verdict[i] === "correct",
      is = right.sheet.verdict[j] === "correct";
    const sides = [
      [left.sheet, i],
      [right.sheet, j],
    ].map(([sheet, k]) => ({
      verdict: sheet.verdict[k],
      completion: sheet.completion[k],
      extracted: sheet.extracted[k],
      length: sheet.length[k],
    }));
    pairs.push({
      row: p[0],
      id: p[1],
      prompt: sides.every((one) => one.completion !== null) ? p[2] : null,
      answer: p[3],
      sides: same ? sides.slice(0, 1) : sides,
      change: was === is ? (is ? "right" : "wrong") : is ? "fixed" : "broken",
      searchable: [p[1], p[2], p[3], ...sides.map((one) => one.completion)]
        .filter((t) => t !== null)
        .join("\n")
        .toLowerCase(),
    });
  });
  const order = ["fixed", "broken", "right", "wrong"];
  return pairs
    .map((p, i) => [p, i])
    .sort(([a, i], [b, j]) => Math.min(2, order.indexOf(a.change)) - Math.min(2, order.indexOf(b.change)) || i - j)
    .map(([p]) => p);
}

function problemCard(p, left, right, same) {
  const side = (answer, where) =>
    h(
      "div",
      { class: "side" },
      h(
        "div",
        { class: "top" },
        h("span", {}, (compare ? `${runs[where.run].name}, ` : "") + `step ${count(where.step)}`),
        verdictBadge(answer.verdict),
        answer.extracted !== null
          ? h("span", {}, "read as ", h("b", { class: "said" }, visible(answer.extracted)))
          : null,
        isNumber(answer.length) ? count(answer.length, "token") : null,
      ),
      said(answer.completion ?? "", "text cut"),
    );
  return h(
    "div",
    { class: "card problem" },
    h(
      "div",
      { class: "top small" },
      p.id ? h("span", { class: "mono said" }, p.id) : isNumber(p.row) ? `problem ${count(p.row)}` : null,
      h("span", {}, "answer ", h("b", { class: "said" }, visible(p.answer ?? "–"))),
    ),
    said(p.prompt ?? "", "prompt cut"),
    h(
      "div",
      { class: same ? null : "pair" },
      p.sides.map((answer, i) => side(answer, i ? right : left)),
    ),
  );
}

// One completion of the rollout browser, with each token's log-prob or advantage as colour.

const TOKENS_AT_ONCE = 400;
const PROBABILITIES = [
  [0.9, "", "≥ 90 %"],
  [0.5, "p1", "50–90"],
  [0.25, "p2", "25–50"],
  [0.1, "p3", "10–25"],
  [0.02, "p4", "2–10"],
  [0, "p5", "< 2 %"],
];
const ADVANTAGES = [
  [1.5, 3],
  [0.5, 2],
  [0.05, 1],
];
const ADVANTAGE_LABELS = [
  ["n3", "≤ −1.5"],
  ["n2", "−0.5"],
  ["n1", "below 0"],
  ["", "0"],
  ["u1", "above 0"],
  ["u2", "0.5"],
  ["u3", "≥ 1.5"],
];

function colourScale(kind) {
  if (kind === "plain") return null;
  const isLogp = kind === "logp";
  const cells = isLogp ? PROBABILITIES.map(([, key, label]) => [key, label]) : ADVANTAGE_LABELS;
  return h(
    "p",
    { class: "scale" },
    isLogp ? "probability of the token when it was sampled  " : "advantage of the token  ",
    cells.map(([key, label]) => h("span", { class: `t ${key}` }, label)),
  );
}

function completionCard(all, i, hit, view) {
  const rows = all.rows;
  const advantage = rows.advantage[i];
  const logps = rows.logps[i]?.filter(isNumber);
  const mean = logps?.length ? -logps.reduce((a, b) => a + b, 0) / logps.length / data.units.logp : null;
  const extra = Object.entries(rows.extra[i] ?? {}).map(
    ([name, value]) =>
      `${name.replace(/^rewards\//, "")} ${typeof value === "number" ? show(value) : visible(String(value))}`,
  );
  return h(
    "div",
    { class: `one ${verdictClass(rows.verdict[i])} ${hit ? "" : "other"}`, "data-row": i },
    h(
      "div",
      { class: "top" },
      h("span", { class: "reward" }, show(rows.reward[i])),
      verdictBadge(rows.verdict[i]),
      isNumber(advantage) ? h("span", { title: "advantage" }, `A ${signed(advantage / data.units.advantage)}`) : null,
      h("span", {}, count(rows.length[i], "token")),
      rows.truncated[i] ? h("span", {}, "cut off") : null,
      mean !== null
        ? h("span", { title: "mean log-prob of its tokens, nats" }, `log p ${mean.toFixed(2).replace("-", "−")}`)
        : null,
    ),
    tokensOf(all, i, view.colour),
    extra.length ? h("div", { class: "logged said" }, extra.join(" · ")) : null,
  );
}

function advantageOf(all, i, k) {
  const value = all.rows.advantage[i];
  const one = Array.isArray(value) ? value[k] : value;
  return isNumber(one) ? one / data.units.advantage : null;
}

function tokenClass(all, i, k, kind) {
  if (kind === "logp") {
    const logp = all.rows.logps[i]?.[k];
    return isNumber(logp) ? PROBABILITIES.find(([least]) => Math.exp(-logp / data.units.logp) >= least)[1] : "";
  }
  const advantage = advantageOf(all, i, k);
  const level = ADVANTAGES.find(([least]) => Math.abs(advantage ?? 0) >= least);
  return level ? (advantage > 0 ? "u" : "n") + level[1] : "";
}

function tokensOf(all, i, kind) {
  const tokens = all.rows.tokens[i];
  if (kind === "plain" || tokens === null) return said(textOf(all, i), "text cut");
  const box = h("div", {
    class: "said text cut",
    dir: "auto",
    tabindex: 0,
    role: "group",
    "aria-label": "Tokens; arrow keys read single ones",
  });
  const draw = (n) => {
    replace(
      box,
      tokens.slice(0, n).map((t, k) => {
        const text = all.vocabulary[t];
        return h(
          "span",
          { class: `t ${tokenClass(all, i, k, kind)} ${text === "" ? "empty" : ""}`, "data-k": k },
          visible(text),
        );
      }),
    );
    if (tokens.length > n)
      box.append(
        h(
          "button",
          { type: "button", class: "more", on: { click: () => draw(tokens.length) } },
          ` … show all ${count(tokens.length)}`,
        ),
      );
    else if (tokens.length < all.rows.length[i])
      box.append(
        h(
          "span",
          { class: "small" },
          ` … the other ${count(all.rows.length[i] - tokens.length)} tokens are not in this page`,
        ),
      );
  };
  draw(TOKENS_AT_ONCE);
  const tell = (span, at) => {
    box.querySelector(".on")?.classList.remove("on");
    span.classList.add("on");
    const k = Number(span.dataset.k),
      logp = all.rows.logps[i]?.[k],
      advantage = advantageOf(all, i, k);
    const p = isNumber(logp) ? Math.exp(-logp / data.units.logp) : null;
    showTip(
      at,
      JSON.stringify(all.vocabulary[tokens[k]]),
      [
        ["", "token", `${count(k + 1)} of ${count(tokens.length)}`],
        p !== null ? ["", "log-prob", `${(-logp / data.units.logp).toFixed(2).replace("-", "−")} nats`] : null,
        p !== null ? ["", "probability", percent(p, p < 0.01 ? 3 : 1)] : null,
        advantage !== null ? ["", "advantage", signed(advantage, 3)] : null,
      ].filter(Boolean),
    );
  };
  const quiet = () => {
    box.querySelector(".on")?.classList.remove("on");
    hideTip();
  };
  const over = (event) => {
    const span = event.target.closest?.(".t");
    if (span) tell(span, { x: event.clientX, y: event.clientY });
  };
  fill(
    box,
    {
      on: {
        pointerover: over,
        pointerdown: over,
        pointerleave: quiet,
        blur: quiet,
        keydown: (event) => {
          if (event.key === "Escape") return quiet();
          if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
          event.preventDefault();
          const here = Number(box.querySelector(".on")?.dataset.k ?? -1);
          const to = box.querySelector(`[data-k="${Math.max(0, here + (event.key === "ArrowRight" ? 1 : -1))}"]`);
          if (!to) return;
          to.scrollIntoView({ block: "nearest" });
          const at = to.getBoundingClientRect();
          tell(to, { x: at.left, y: at.bottom });
        },
      },
    },
    [],
  );
  return box;
}

// Options, versions and machine: of one run as a list, of several as a table with the differences first.

const ASKED = [
  ["record", "Identity, versions and machine", "run.json"],
  ["settings", "Options", "config.yaml"],
];

function settingsSection() {
  const parts = ASKED.flatMap(([part, title, file]) => {
    const known = runs.filter((run) => Object.keys(run[part]).length);
    if (!known.length)
      return [h("h3", {}, title), h("p", { class: "hint" }, `Not recorded (${file} is missing or empty).`)];
    return [
      h("h3", {}, title),
      compare ? differences(part) : listing(runs[0][part], part === "settings"),
      compare && known.length < runs.length
        ? h(
            "p",
            { class: "hint" },
            `No ${file}: ${runs
              .filter((run) => !known.includes(run))
              .map((run) => run.name)
              .join(", ")}.`,
          )
        : null,
    ];
  });
  return section(
    "settings",
    "Settings",
    "As recorded in the run's folder. Values whose name looks like a secret are masked.",
    parts,
  );
}

function setting(value) {
  return value === null || value === undefined
    ? "–"
    : value === true
      ? "yes"
      : value === false
        ? "no"
        : isNumber(value)
          ? String(value)
          : visible(value);
}

// Options that are not set are only counted until asked for.
function listing(values, hideUnset) {
  const all = Object.entries(values),
    set = all.filter(([, value]) => value !== null);
  const list = h("dl", { class: "settings" });
  const draw = (rows) =>
    replace(
      list,
      rows.map(([key, value]) =>
        h("div", {}, h("dt", { class: "mono" }, key), h("dd", { class: "mono said" }, setting(value))),
      ),
    );
  draw(hideUnset ? set : all);
  if (!hideUnset || set.length === all.length) return list;
  return [
    list,
    check(`also the ${count(all.length - set.length)} that are not set`, false, (on) => draw(on ? all : set)),
  ];
}

function differences(part) {
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run[part])))];
  const differ = keys.filter((key) => new Set(runs.map((run) => setting(run[part][key]))).size > 1);
  const same = keys.filter((key) => !differ.includes(key));
  const body = h("tbody", {});
  const draw = (rows) =>
    replace(
      body,
      rows.map((key) =>
        h(
          "tr",
          {},
          h("th", { class: `mono ${differ.includes(key) ? "changed" : ""}` }, key),
          runs.map((run) =>
            h(
              "td",
              { class: "mono value said" },
              key in run[part] ? setting(run[part][key]) : h("span", { class: "small" }, "not recorded"),
            ),
          ),
        ),
      ),
    );
  draw(differ);
  return [
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", {}, ""),
            runs.map((run, i) => h("th", {}, h("span", { class: `key ${colour(i)}` }), " ", run.name)),
          ),
        ),
        body,
      ),
    ),
    check(`also the ${count(same.length)} that are the same`, false, (on) => draw(on ? [...differ, ...same] : differ)),
  ];
}

// Puts the page together. The large texts follow in the document; they are unpacked once the reader comes near them.

const SECTIONS = [
  summarySection,
  rewardModelSection,
  billSection,
  curvesSection,
  guardsSection,
  verdictSection,
  rewardSection,
  answersSection,
  rolloutsSection,
  settingsSection,
];

function navigation(sections) {
  const go = (event, target) => {
    // the address after # is taken by the reader's choices
    event.preventDefault();
    target.scrollIntoView();
    target.querySelector("h2").focus({ preventScroll: true });
  };
  return h(
    "nav",
    { "aria-label": "Sections" },
    h(
      "ul",
      {},
      sections.map((one) =>
        h(
          "li",
          {},
          h("a", { href: `#${one.id}`, on: { click: (event) => go(event, one) } }, one.querySelector("h2").textContent),
        ),
      ),
    ),
  );
}

function whenNear(id, action) {
  const node = document.getElementById(id);
  if (!node) return Promise.resolve();
  return new Promise((done) => {
    const watcher = new IntersectionObserver(
      (entries) => {
        if (!entries.some((entry) => entry.isIntersecting)) return;
        watcher.disconnect();
        action()
          .catch((error) =>
            replace(
              node,
              h(
                "p",
                { class: "note" },
                `These texts can't be unpacked (${error.message}). It takes a browser of 2024, and the whole file.`,
              ),
            ),
          )
          .then(done);
      },
      { rootMargin: "1200px" },
    );
    watcher.observe(node);
  });
}

const sections = SECTIONS.map((make) => make()).filter(Boolean);
const notices = warnings();
replace(document.getElementById("top"), pageHead(), notices, navigation(sections));
document.getElementById("top").style.display = "contents"; // so that the line of sections can stick to the window's top
replace(document.getElementById("main"), sections);
replace(
  document.getElementById("end"),
  `Made ${data.made} by mmreason ${data.version} from ${runs.map((run) => run.path).join(", ")}.`,
);
redraw();
addEventListener("resize", later(redraw, 120));

document.addEventListener("DOMContentLoaded", () => {
  const answers = whenNear("answers-body", fillAnswers),
    rollouts = whenNear("rollouts-body", fillRollouts);
  restoreScroll();
  document.documentElement.dataset.ready = "1";
  Promise.all([answers, rollouts]).then(() => {
    document.documentElement.dataset.unpacked = "1";
  });
});

// What the reader has chosen lives in the address (after #), so a reload, a watched run and a shared link keep it.

const data = JSON.parse(document.getElementById("data").textContent, (key, value) =>
  value !== null && typeof value === "object" && !Array.isArray(value) ? bare(value) : value,
);
const runs = data.runs;
const compare = runs.length > 1;
const chosen = new URLSearchParams(location.hash.slice(1));

function recall(key, fallback = "") {
  return chosen.get(key) ?? fallback;
}

function recallPage(key) {
  return Math.max(0, Math.floor(Number(recall(key, "0"))) || 0);
}

function remember(key, value) {
  if (value === null || value === undefined || value === "") chosen.delete(key);
  else chosen.set(key, String(value));
  history.replaceState(null, "", `#${chosen}`);
}

// Storage can be switched off, or refused to files; then the choice lasts as long as the page.
function stored(store, key) {
  try {
    return window[store].getItem(key);
  } catch {
    return null;
  }
}

function store(store, key, value) {
  try {
    window[store].setItem(key, value);
  } catch {
    /* see above */
  }
}

// ---- theme

const THEMES = ["auto", "light", "dark"];
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
let theme = THEMES.includes(stored("localStorage", "mmreason-theme"))
  ? stored("localStorage", "mmreason-theme")
  : "auto";

function applyTheme() {
  document.documentElement.dataset.theme = theme === "auto" ? (prefersDark.matches ? "dark" : "light") : theme;
}

prefersDark.addEventListener("change", applyTheme);
applyTheme();

function themeButton() {
  const button = h("button", {
    type: "button",
    id: "theme",
    on: {
      click: () => {
        theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
        store("localStorage", "mmreason-theme", theme);
        applyTheme();
        label();
      },
    },
  });
  const label = () => {
    button.textContent = { auto: "◐ auto", light: "○ light", dark: "● dark" }[theme];
    button.setAttribute("aria-label", `Colours: ${theme}. Change`);
  };
  label();
  return button;
}

// ---- a page of a run that goes on

// Loads the next version, but not under the reader's hands: not while typing, selecting or reading another tab.
function liveButton() {
  if (!data.reload) return null;
  let on = recall("live", "1") === "1";
  let quiet = Date.now();
  for (const event of ["pointermove", "keydown", "scroll", "touchstart"]) {
    addEventListener(
      event,
      () => {
        quiet = Date.now();
      },
      { passive: true },
    );
  }
  const busy = () =>
    document.hidden ||
    !getSelection().isCollapsed ||
    Date.now() - quiet < 2000 ||
    ["INPUT", "SELECT"].includes(document.activeElement?.tagName);
  const started = Date.now();
  setInterval(
    () => {
      if (on && !busy() && Date.now() - started > data.reload * 1000) {
        store("sessionStorage", "mmreason-scroll", String(scrollY));
        location.reload();
      }
    },
    Math.min(1000, data.reload * 500),
  );
  const button = h("button", {
    type: "button",
    id: "live",
    "aria-pressed": String(on),
    on: {
      click: () => {
        on = !on;
        remember("live", on ? null : "0");
        button.setAttribute("aria-pressed", String(on));
        button.textContent = text();
      },
    },
  });
  const text = () => (on ? `live, every ${show(data.reload)} s` : "paused");
  button.textContent = text();
  return button;
}

function restoreScroll() {
  const at = Number(stored("sessionStorage", "mmreason-scroll"));
  if (at > 0) scrollTo(0, at);
  store("sessionStorage", "mmreason-scroll", "0");
}

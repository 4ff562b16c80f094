"""Run folders for the report's tests, and a browser to open reports in."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.synthetic_run import Shape, make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A small finished run: 12 steps, 3 groups of 4 completions each."""
    folder = tmp_path / "demo"
    make_run(folder)
    return folder


@pytest.fixture(scope="session")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 steps of 8 groups of 16 completions: 64,000 completions of up to 64 tokens. Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("runs") / "long"
    shape = make_run(folder, Shape(steps=500, groups=8, generations=16, tokens=64, problems=500))
    assert shape.completions == 64_000
    return folder


# ---- a real browser: $MMREASON_BROWSER, or the first of these (.ci/browser.sh looks for the same)

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


def find_browser() -> str | None:
    named = os.environ.get("MMREASON_BROWSER")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = find_browser()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)}, and no MMREASON_BROWSER")
    flags = FLAGS + (["--no-sandbox"] if os.geteuid() == 0 else [])
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=program, args=flags)
        yield launched
        launched.close()


class Tab:
    """A page of the browser that keeps count of what goes wrong and of what is asked for."""

    def __init__(self, browser: Any, path: Path, fragment: str = "", **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": options.pop("width", 1280), "height": 800}, **options)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.url = path.resolve().as_uri()
        start = time.perf_counter()
        self.page.goto(self.url + fragment)
        self.page.wait_for_selector("html[data-ready]")
        self.seconds = time.perf_counter() - start

    def all_unpacked(self) -> Tab:
        """Go down the page, so that every part of it is drawn."""
        for section in self.page.query_selector_all("section"):
            section.scroll_into_view_if_needed()
        self.page.wait_for_selector("html[data-unpacked]")
        return self

    def completions(self) -> int:
        return int(self.page.get_attribute("#rollouts-count", "data-completions"))

    def wait(self, condition: Callable[[], bool]) -> None:
        """Poll from here: the page's own policy forbids what playwright's wait_for_function does."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "the page did not get there in 20 s"
            self.page.wait_for_timeout(50)

    def fits(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    """Opens reports; afterwards none of them may have said, asked for or run anything it shouldn't."""
    tabs: list[Tab] = []

    def open_one(path: Path, fragment: str = "", **options: Any) -> Tab:
        tabs.append(Tab(browser, path, fragment, **options))
        return tabs[-1]

    yield open_one
    for tab in tabs:
        wrong, requests = tab.wrong, {url.split("#")[0] for url in tab.requests}
        tab.context.close()
        assert wrong == []
        assert requests == {tab.url}

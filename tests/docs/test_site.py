"""The site: built strictly and without a network, complete, and nothing in it is fetched from elsewhere."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.commands import ROOT, recipe_options

# mkdocs in a process that can't connect to anything.
OFFLINE = """
import socket, sys
def refuse(*args, **kwargs):
    raise OSError("the build asked for the network")
socket.socket.connect = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli(sys.argv[1:], prog_name="mkdocs")
"""
PAGES = sorted((ROOT / "docs").glob("*.md"))

pytestmark = pytest.mark.slow


def build(out: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", OFFLINE, "build", "--strict", "--config-file", str(config), "--site-dir", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(words, cwd=config.parent, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


# Element -> the attribute that a browser fetches by itself; links that a reader may follow are left out.
FETCHED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "use": "href"}


class References(HTMLParser):
    """The addresses that a page fetches."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        value = dict(attrs).get(FETCHED.get(tag, ""))
        if value:
            self.found.append(value)


def test_every_page_is_there(site: Path) -> None:
    assert {path.stem for path in site.glob("*.html")} - {"404"} == {page.stem for page in PAGES}
    assert not list(site.rglob("*.py")) and not list(site.rglob("*.md"))


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    looked = 0
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for target in References(text).found:
            looked += 1
            assert not re.match(r"(?:[a-z]+:)?//", target), f"{page.name}: {target}"
            assert page.name == "404.html" or (page.parent / target.split("?")[0].split("#")[0]).exists(), target
        # The theme's script would fetch a diagram library and a repository's stars.
        assert 'class="mermaid"' not in text and 'data-md-component="source"' not in text
    assert looked > 50
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


def test_a_browser_asks_for_nothing_else(site: Path) -> None:
    """At desktop and phone width, light and dark: no request leaves the folder, no error, nothing off the side."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine; `make browser` installs it")
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for width, scheme in ((1280, "light"), (390, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
            page.on("request", lambda request: asked.append(request.url))
            page.on("pageerror", lambda error: errors.append(str(error)))
            for path in sorted(site.glob("*.html")):
                if path.name != "404.html":
                    page.goto(path.as_uri())
                    page.wait_for_load_state("networkidle")
                    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                    assert wide <= 0, f"{path.name} is {wide} pixels wider than a screen of {width}"
            assert page.evaluate("document.body.dataset.mdColorScheme") == {"light": "default", "dark": "slate"}[scheme]
        browser.close()
    assert len(asked) > len(PAGES) and all(url.startswith(("file:", "data:")) for url in asked), asked
    assert not errors, errors


def test_markers_and_pictures(site: Path) -> None:
    """Every marker was filled and every picture copied; in the repository it lies in one place only."""
    pictures = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        built = (site / f"{page.stem}.html").read_text(encoding="utf-8")
        assert "<!-- options" not in built and "<!-- file" not in built and "<!-- from-trl" not in built, page.name
        for picture in re.findall(r"\]\(\.\./benchmarks/results/([\w.-]+)\)", text):
            pictures.add(picture)
            assert f'src="pictures/{picture}"' in built, page.name
            assert (site / "pictures" / picture).read_bytes() == (ROOT / "benchmarks/results" / picture).read_bytes()
    assert pictures and not list((ROOT / "docs").rglob("*.png"))


def test_every_option_is_in_the_reference(site: Path) -> None:
    """Against what each recipe's own parser knows."""
    text = (site / "options.html").read_text(encoding="utf-8")
    rows = set(re.findall(r"<td><code>(\w+)</code></td>\s*<td>", text))
    for recipe in sorted((ROOT / "recipes").glob("[!_]*.py")):
        options = set(recipe_options(f"recipes/{recipe.name}", []))
        assert options <= rows, options - rows
        assert f"recipes/{recipe.name}" in text
    assert "<td><code>1.0e-06</code></td>" in text, "the default of GRPO's learning_rate"


def test_files_are_shown_as_they_are(site: Path) -> None:
    text = html.unescape(re.sub(r"<[^>]+>", "", (site / "grpo.html").read_text(encoding="utf-8")))
    path = ROOT / "recipes" / "configs" / "grpo_math" / "qwen2.5-0.5b.yaml"
    assert path.read_text(encoding="utf-8").strip() in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("[gone](nowhere.md)", "nowhere.md"),
        ("[gone](index.md#nowhere)", "nowhere"),
        ("![gone](../benchmarks/results/nowhere.png)", "nowhere.png"),
        ("<!-- file: recipes/nowhere.yaml -->", "nowhere.yaml"),
        ("<!-- nowhere -->", "no marker of the name 'nowhere'"),
    ],
)
def test_a_broken_page_fails_the_build(change: str, said: str, tmp_path: Path) -> None:
    for entry in ROOT.iterdir():
        if entry.name not in ("docs", "mkdocs.yml", "build"):
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "docs").mkdir()
    for path in (ROOT / "docs").glob("_*.py"):
        (tmp_path / "docs" / path.name).write_bytes(path.read_bytes())
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8")) | {"nav": ["index.md"]}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (tmp_path / "docs" / "index.md").write_text("# Page\n", encoding="utf-8")
    assert build(tmp_path / "site", tmp_path / "mkdocs.yml").returncode == 0
    (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n{change}\n", encoding="utf-8")
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode != 0 and said in done.stdout + done.stderr, done.stdout + done.stderr

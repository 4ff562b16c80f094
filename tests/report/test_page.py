"""The file that comes out: self-contained, locked down, escaped, written whole or not at all."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from mmreason.report import write_report
from mmreason.report.page import SCRIPTS, Report, pack, script_json
from mmreason.report.run import name_runs
from mmreason.types import ConfigError, DataError, MMReasonError
from tests.report.synthetic_run import HOSTILE, make_hostile, make_run

ROOT = Path(__file__).resolve().parents[2]


def page_of(*runs: Path) -> str:
    return write_report(runs).read_text(encoding="utf-8")


def elements(page: str) -> dict[str, str]:
    """id → content of the data elements."""
    return dict(re.findall(r'<script type="[^"]*" id="([^"]*)">(.*?)</script>', page, re.S))


def core(page: str) -> dict[str, Any]:
    return dict(json.loads(elements(page)["data"]))


def unpacked(page: str, name: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(elements(page)[name])))


def test_the_report_lies_in_the_first_run_by_default(run: Path, tmp_path: Path) -> None:
    assert write_report([run]) == run / "report.html"
    assert write_report([str(run)], tmp_path / "new" / "x.html") == tmp_path / "new" / "x.html"
    assert not list(run.glob("*.tmp"))


def test_nothing_outside_the_file_is_asked_for(run: Path) -> None:
    page = page_of(run)
    shell = re.sub(r'<script type="[^"]*" id="[^"]*">.*?</script>', "", page, flags=re.S)
    addresses = set(re.findall(r"https?://[^\s\"'`]*", shell))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of SVG's namespace, not an address
    assert not re.search(r"<(?:link(?! rel=\"icon\" href=\"data:,\")|iframe|object|embed|img|base)\b", shell)
    assert "@import" not in shell and "url(" not in shell


def test_the_policy_allows_this_script_and_this_style_only(run: Path) -> None:
    page = page_of(run)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in html.unescape(policy[1]).split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for name, tag in (("script-src", "script"), ("style-src", "style")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert "unsafe" not in policy[1]
    assert page.index("Content-Security-Policy") < page.index("<style")


def test_the_scripts_never_read_text_as_markup() -> None:
    for name in SCRIPTS:
        source = (files("mmreason.report") / "assets" / name).read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|</script", source
        ), name
        assert source.count("\n") < 500, name


def test_assets_are_packaged_and_all_of_them_are_used() -> None:
    folder = files("mmreason.report") / "assets"
    used = {*SCRIPTS, "style.css", "page.html.j2"}
    used |= {f"{name}.{kind}" for name in ("build", "doctor", "tokens") for kind in ("css", "html.j2")}
    assert {entry.name for entry in folder.iterdir()} == used
    assert "Content-Security-Policy" in (folder / "page.html.j2").read_text(encoding="utf-8")


def test_what_a_model_wrote_cannot_end_its_element(run: Path) -> None:
    make_hostile(run)
    hostile = run.with_name("</title><script>1</script>".replace("/", "∕"))
    run.rename(hostile)
    page = page_of(hostile)
    data = elements(page)
    # One more script than data elements: the page's own.
    assert page.count("<script") == page.count("</script>") == len(data) + 1
    assert "pwned" not in page  # packed, or escaped
    assert "<" not in data["data"] and "&" not in data["data"]
    title = re.search(r"<title>(.*?)</title>", page)
    assert title is not None and title[1].startswith("&lt;∕title&gt;&lt;script&gt;")
    rows = unpacked(page, "rollouts-0")
    assert HOSTILE[0] in rows["rows"]["verdict"]
    assert any(HOSTILE[1] == group[3] for group in rows["groups"])


def test_script_json_keeps_every_character() -> None:
    value = {"a": "".join(HOSTILE) + "\ud800\x00", "b": [1.5, None, True]}
    encoded = script_json(value)
    assert json.loads(encoded) == value
    assert encoded.isascii() and not set("<>&") & set(encoded)
    assert json.loads(gzip.decompress(base64.b64decode(pack(value)))) == value


def test_the_same_run_gives_the_same_texts(run: Path) -> None:
    first, second = elements(page_of(run)), elements(page_of(run))
    assert first["rollouts-0"] == second["rollouts-0"] and first["answers-0"] == second["answers-0"]
    assert base64.b64decode(first["rollouts-0"])[4:8] == bytes(4)  # gzip's time of writing


def test_secrets_stay_out_of_the_file(run: Path) -> None:
    with (run / "config.yaml").open("a") as file:
        file.write("hub_token: topsecret1\njudge:\n  api_key: topsecret2\nserver: https://me:topsecret3@host/\n")
    page = page_of(run)
    assert "topsecret" not in page
    assert core(page)["runs"][0]["settings"]["hub_token"] == "•••••• (masked)"


# ---- runs with less


def test_a_run_without_rollouts_and_answers(run: Path) -> None:
    shutil.rmtree(run / "rollouts")
    shutil.rmtree(run / "evaluations")
    page = page_of(run)
    assert set(elements(page)) == {"data"}
    assert core(page)["runs"][0]["rollouts"] is None


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    data = core(page_of(tmp_path))["runs"][0]
    assert (data["steps"], data["series"], data["problems"]) == ([], {}, [])


def test_problems_are_in_the_page_and_said(run: Path) -> None:
    (run / "rollouts" / "rollout-000003.parquet").write_bytes(b"cut")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')
    said: list[str] = []
    path = write_report([run], say=said.append)
    data = core(path.read_text(encoding="utf-8"))["runs"][0]
    assert len(data["problems"]) == 1 and "rollout-000003.parquet" in data["problems"][0]
    assert data["notes"] == ["the last line of metrics.jsonl is cut off and was left out"]
    assert said[0] == f"{run}: 12 steps of metrics; 132 completions in 11 rollouts; 3 evaluations"
    assert said[1:3] == [f"  {line}" for line in data["problems"] + data["notes"]]
    assert said[3].startswith(f"wrote {run / 'report.html'} (")


# ---- several runs


def test_runs_with_other_schemas(run: Path, tmp_path: Path) -> None:
    sft = tmp_path / "sft"
    sft.mkdir()
    (sft / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "mean_token_accuracy": 0.5, "odd/metric": 1}\n')
    page = page_of(run, sft)
    one, two = core(page)["runs"]
    assert (one["name"], two["name"]) == ("demo", "sft")
    assert "mean_token_accuracy" not in one["series"] and set(two["series"]) == {
        "loss",
        "mean_token_accuracy",
        "odd/metric",
    }
    assert set(elements(page)) == {"data", "rollouts-0", "answers-0"}


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/x/run", "a/y/run", "b")]
    assert name_runs(paths) == ["x/run", "y/run", f"{tmp_path.name}/b"]
    assert name_runs(paths[2:]) == ["b"]
    with pytest.raises(ConfigError, match="b is named twice"):
        name_runs([paths[2], tmp_path / "a" / ".." / "b"])


def test_several_runs_share_the_page(tmp_path: Path) -> None:
    from mmreason.report.data import Limits

    for name in ("one", "two"):
        make_run(tmp_path / name)
    report = Report([tmp_path / "one", tmp_path / "two"], None, Limits(completions=80))
    report.write(lambda line: None)
    assert [run.rollouts.shown for run in report.runs if run.rollouts] == [40, 40]


# ---- errors


@pytest.mark.parametrize(
    ("name", "why"), [("nothing", "no such folder"), ("file", "a file"), ("empty", "has none of them")]
)
def test_what_is_no_run_is_refused(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError) as caught:
        write_report([tmp_path / name])
    assert str(caught.value) == (
        f"{tmp_path / name} is no run: a run's output_dir holds metrics.jsonl, run.json, evaluation.json, rollouts or "
        f"evaluations ({why}). Give the output_dir of a recipe"
    )


def test_no_run_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one run"):
        write_report([])


def test_output_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--out .* is a folder; name a file in it"):
        write_report([run], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(MMReasonError, match=r"report .*x\.html can't be written .*choose another file with --out"):
        write_report([run], tmp_path / "file" / "x.html")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_leaves_the_last_report(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.html"
    out.write_text("the last one")
    temporary = tmp_path / f".x.html.{os.getpid()}.tmp"
    temporary.symlink_to("/dev/full")
    with pytest.raises(MMReasonError, match="No space left on device"):
        write_report([run], out)
    assert out.read_text() == "the last one"
    assert not temporary.is_symlink()


# ---- look


def theme_block(theme: str) -> str:
    style = (files("mmreason.report") / "assets" / "style.css").read_text(encoding="utf-8")
    block = style.split(":root {")[1] if theme == "light" else style.split('[data-theme="dark"] {')[1]
    return block.split("}")[0]


def colours(theme: str) -> dict[str, tuple[int, ...]]:
    found = re.findall(r"--([\w-]+): #(\w{6});", theme_block(theme))
    return {name: tuple(bytes.fromhex(value)) for name, value in found}


def tints_of(theme: str) -> dict[str, tuple[int, ...]]:
    found = re.findall(r"--(\w+): (\d+) (\d+) (\d+);", theme_block(theme))
    return {name: tuple(map(int, parts)) for name, *parts in found}


def contrast(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """WCAG 2.2, contrast ratio."""

    def luminance(rgb: tuple[int, ...]) -> float:
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast(theme: str) -> None:
    c, tints = colours(theme), tints_of(theme)
    for paper in ("paper", "raised"):
        for ink in ("ink", "muted", "accent"):
            assert contrast(c[ink], c[paper]) >= 4.5, (ink, paper)
        for line in (name for name in c if re.fullmatch(r"c\d", name)):
            assert contrast(c[line], c[paper]) >= 3, (line, paper)
        for badge in (name for name in c if name.startswith("v-")):
            assert contrast(c[badge], c[paper]) >= 4.5, (badge, paper)
    assert contrast(c["warn"], c["warn-paper"]) >= 4.5
    # The colours behind tokens, at their strongest.
    for name, share in (("heat", 0.62), ("up", 0.42), ("down", 0.42)):
        behind = tuple(round(share * a + (1 - share) * b) for a, b in zip(tints[name], c["raised"], strict=True))
        assert contrast(c["ink"], behind) >= 4.5, name


def test_importing_the_report_is_light() -> None:
    code = "import sys, mmreason.report; print({'torch', 'numpy', 'pyarrow', 'jinja2', 'yaml'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stdout + done.stderr


@pytest.mark.slow
def test_a_500_step_run_is_read_in_bounded_time_and_memory(long_run: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from mmreason.report import write_report; start = time.perf_counter(); "
        "path = write_report([sys.argv[1]], sys.argv[2]); "
        "peak = next(int(line.split()[1]) / 1024 for line in open('/proc/self/status') if line.startswith('VmHWM')); "
        "print(time.perf_counter() - start, peak, path.stat().st_size)"
    )  # not ru_maxrss: that begins with the memory of the process which started this one
    command = [sys.executable, "-c", code, str(long_run), str(tmp_path / "report.html")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, mebibytes, size = map(float, done.stdout.split())
    assert seconds < 30
    assert mebibytes < 600
    assert size < 10e6

"""The report in a real browser: nothing goes wrong, nothing leaves the file, filters filter, text stays text.

The browser is $MMREASON_BROWSER, or the first of chromium, chromium-browser, google-chrome (`.ci/browser.sh`).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mmreason.report import write_report
from mmreason.report.data import Limits
from mmreason.report.page import Report
from mmreason.trainers.reward_metrics import of_rankings
from tests.report.conftest import Tab
from tests.report.synthetic_run import HOSTILE, edit_rollout, make_hostile, make_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "demo"
    make_run(folder, steps=24, groups=3, generations=4)
    return write_report([folder])


def rows_of(report: Path) -> list[dict[str, Any]]:
    paths = sorted((report.parent / "rollouts").glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def chip(tab: Tab, text: str) -> Any:
    return tab.page.locator("#rollouts label.chip", has_text=text)


# ---- content


def test_every_part_is_there(open_tab: Callable[..., Tab], demo: Path) -> None:
    page = open_tab(demo).all_unpacked().page
    titles = [node.inner_text() for node in page.query_selector_all("h2")]
    assert titles == ["Accuracy", "Curves", "Verdicts", "Rewards", "Answers before and after", "Rollouts", "Settings"]
    drawn = {node.get_attribute("data-chart"): node for node in page.query_selector_all("figure[data-chart]")}
    for key in (
        "reward",
        "Accuracy",
        "Completion length (tokens)",
        "entropy",
        "kl",
        "Clip share",
        "loss",
        "learning_rate",
    ):
        assert drawn[key].query_selector("path.curve").get_attribute("d").startswith("M"), key
    assert {"sampling/importance_sampling_ratio/mean", "grad_norm", "tokens_per_second", "Seconds per step"} <= set(
        drawn
    )
    assert "time/reward/accuracy_reward" in drawn  # a metric the page knows nothing of, under "More"
    assert page.locator("#rewards figure").count() == 3
    assert page.locator("#settings").inner_text().count("2.13.0") == 1


def test_a_reward_models_numbers_and_bins(open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    """Its evaluation.json has no greedy answers; what it measures has a table of its own."""
    make_run(tmp_path / "rm", steps=4)
    for name in ("rollouts", "evaluations"):
        shutil.rmtree(tmp_path / "rm" / name)
    entries = {
        name: {"step": step, "sets": {"held_out": of_rankings([[0, 1]] * 4, rewards)}}
        for name, step, rewards in (
            ("before", 0, [[0.1, 0.2], [0.2, 0.1], [0.0, 0.3], [0.0, 0.1]]),
            ("after", 4, [[1.0, 0.2], [2.0, 0.1], [0.0, 0.3], [3.0, 0.1]]),
        )
    }
    (tmp_path / "rm" / "evaluation.json").write_text(json.dumps(entries), encoding="utf-8")
    page = open_tab(write_report([tmp_path / "rm"])).page
    titles = [node.inner_text() for node in page.query_selector_all("h2")]
    assert titles[0] == "Reward model" and "From first to last" not in titles and "Accuracy" not in titles
    shown = page.locator("#reward-model").inner_text()
    for text in ("pair accuracy", "25.0 %", "75.0 %", "+50.0", "kendall tau", "calibration error", "came true"):
        assert text in shown, text
    assert page.locator("#reward-model table").count() == 2


def test_held_out_curves_join_both_records(open_tab: Callable[..., Tab], demo: Path) -> None:
    page = open_tab(demo).page
    # evaluation.json has steps 0, 12 and 24, metrics.jsonl 6, 12, 18 and 24; an interval where it is known.
    for title in ("Accuracy", "Held-out length (tokens)"):
        assert page.locator(f'[data-chart="{title}"] circle.dot').count() == 2 * 5, title
    assert page.locator('[data-chart="Accuracy"] line.whisker').count() == 2 * 3
    legend = page.text_content('[data-chart="Accuracy"] .legend')
    assert legend == "held outunseen templatessampled"


def test_a_gap_in_a_metric_is_a_gap_in_its_curve(open_tab: Callable[..., Tab], demo: Path) -> None:
    page = open_tab(demo, "#smooth=0").page
    loss = page.get_attribute('[data-chart="loss"] path.curve', "d")
    assert loss.count("M") == 2 and page.get_attribute('[data-chart="kl"] path.curve', "d").count("M") == 1


def test_smoothing_can_be_switched(open_tab: Callable[..., Tab], demo: Path) -> None:
    page = open_tab(demo).page
    assert page.locator('[data-chart="kl"] path.raw').count() == 1
    smooth = page.get_attribute('[data-chart="kl"] path.curve', "d")
    page.get_by_label("smooth the curves").uncheck()
    assert page.locator('[data-chart="kl"] path.raw').count() == 0
    assert page.get_attribute('[data-chart="kl"] path.curve', "d") != smooth


def test_values_under_the_pointer_and_the_arrow_keys(open_tab: Callable[..., Tab], demo: Path) -> None:
    page = open_tab(demo).page
    plot = page.locator('[data-chart="learning_rate"] .plot')
    plot.scroll_into_view_if_needed()
    plot.focus()
    page.keyboard.press("Home")
    assert page.inner_text("#tip").split("\n")[0] == "step 1" and "1.0e-5" in page.inner_text("#tip")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#tip").startswith("step 2")
    page.keyboard.press("Escape")
    assert not page.is_visible("#tip")
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 8, box["y"] + 40)
    assert page.inner_text("#tip").startswith("step 24") and "5.0e-5" in page.inner_text("#tip")


# ---- the browser of rollouts


def test_filters_of_the_rollout_browser(open_tab: Callable[..., Tab], demo: Path) -> None:
    tab, rows = open_tab(demo).all_unpacked(), rows_of(demo)
    page = tab.page
    assert tab.completions() == len(rows) == 288
    assert "All 288 completions of the run are here." in page.inner_text("#rollouts-count")

    chip(tab, "correct").click()
    wanted = [row for row in rows if row["verdict"] == "correct"]
    tab.wait(lambda: tab.completions() == len(wanted))
    page.get_by_label("First step").fill("10")
    page.get_by_label("Last step").fill("12")
    wanted = [row for row in wanted if 9 <= row["step"] <= 11]  # the column counts the updates before
    tab.wait(lambda: tab.completions() == len(wanted))
    assert {int(node.get_attribute("data-step")) for node in page.query_selector_all(".rollout")} <= {10, 11, 12}

    chip(tab, "correct").click()
    page.get_by_label("Lowest reward").fill("0.05")
    page.get_by_label("Highest reward").fill("0.5")
    wanted = [row for row in rows if 9 <= row["step"] <= 11 and 0.05 <= row["reward"] <= 0.5]
    tab.wait(lambda: tab.completions() == len(wanted))
    assert 0 < len(wanted) < 36

    for label in ("First step", "Last step", "Lowest reward", "Highest reward"):
        page.get_by_label(label).fill("")
    page.fill("#rollouts-search", "答案")
    wanted = [row for row in rows if "答案" in row["prompt"] + row["completion"]]
    tab.wait(lambda: tab.completions() == len(wanted))
    assert 0 < len(wanted) < 288
    page.fill("#rollouts-search", "no model said this")
    tab.wait(lambda: tab.completions() == 0)
    assert page.locator(".rollout").count() == 0


def test_a_group_stands_together_and_tells_what_matches(open_tab: Callable[..., Tab], demo: Path) -> None:
    tab = open_tab(demo, "#verdict=wrong&order=oldest").all_unpacked()
    page = tab.page
    group = page.locator(".rollout").first
    step, number = int(group.get_attribute("data-step")), int(group.get_attribute("data-group"))
    members = [row for row in rows_of(demo) if (row["step"] + 1, row["group"]) == (step, number)]
    assert group.locator(".one").count() == len(members) == 4
    wrong = sum(row["verdict"] == "wrong" for row in members)
    assert group.locator(".one:not(.other)").count() == wrong
    assert [node.inner_text() for node in group.locator(".reward").all()] == [f"{row['reward']:g}" for row in members]
    page.get_by_label("matching completions only").check()
    tab.wait(lambda: group.locator(".one").count() == wrong)
    tops = {round(node.bounding_box()["y"]) for node in page.locator(".rollout").first.locator(".one").all()}
    assert len(tops) == 1  # side by side


def test_tokens_tell_their_log_prob_and_carry_colour(open_tab: Callable[..., Tab], demo: Path) -> None:
    tab = open_tab(demo, "#order=oldest").all_unpacked()
    page, group = tab.page, rows_of(demo)[:4]
    place = max(range(4), key=lambda i: group[i]["completion_length"])
    row, box = group[place], page.locator(".one .text").nth(place)
    tokens = box.locator(".t")
    assert [t.inner_text() for t in tokens.all()] == row["completion_tokens"]
    tokens.first.hover()
    told = page.inner_text("#tip")
    p = 2.718281828 ** round(row["sampling_logps"][0], 2)
    assert f"{row['sampling_logps'][0]:.2f} nats".replace("-", "−") in told and f"{100 * p:.1f} %" in told
    assert f"1 of {row['completion_length']}" in told
    least = min(range(len(row["sampling_logps"])), key=lambda i: row["sampling_logps"][i])
    assert tokens.nth(least).get_attribute("class").split()[1].startswith("p")

    page.mouse.move(0, 0)
    box.focus()
    for i in range(1, 3):
        page.keyboard.press("ArrowRight")
        assert f"{i} of {row['completion_length']}" in page.inner_text("#tip")
        assert tokens.nth(i - 1).get_attribute("class").endswith(" on")

    chip(tab, "advantage").click()
    kind = "u" if row["advantage"] > 0 else "n"
    classes = {t.get_attribute("class").split()[1] for t in box.locator(".t").all()}
    assert len(classes) == 1 and classes.pop()[0] == kind
    chip(tab, "none").click()
    assert page.locator(".one .text .t").count() == 0
    assert box.text_content() == row["completion"]


def test_pages_and_the_address_keep_the_readers_choices(open_tab: Callable[..., Tab], demo: Path) -> None:
    tab = open_tab(demo, "#from=3&to=20&verdict=correct").all_unpacked()
    page = tab.page
    before = tab.completions()
    first = page.inner_text(".rollout")
    page.locator("#rollouts .pager button", has_text="next").click()
    tab.wait(lambda: page.inner_text(".rollout") != first)
    assert page.evaluate("location.hash") == "#from=3&to=20&verdict=correct&page=1"
    second = page.inner_text(".rollout")
    page.reload()
    tab.all_unpacked()
    assert (tab.completions(), page.inner_text(".rollout")) == (before, second)


def test_a_sample_is_called_one(open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    make_run(tmp_path / "demo")
    report = Report([tmp_path / "demo"], None, Limits(completions=40))
    tab = open_tab(report.write(lambda line: None)).all_unpacked()
    assert tab.completions() == 40
    assert "This page holds 40 of the run's 144 completions" in tab.page.inner_text("#rollouts-count")


# ---- answers


def test_answers_that_changed_come_first_and_can_be_filtered(open_tab: Callable[..., Tab], demo: Path) -> None:
    tab = open_tab(demo).all_unpacked()
    page = tab.page
    folder = demo.parent / "evaluations"
    before, after = (pq.read_table(folder / f"step-{s:06d}-held_out.parquet")["verdict"].to_pylist() for s in (0, 24))
    fixed = sum(a != "correct" == b for a, b in zip(before, after, strict=True))
    assert fixed > 0
    badges = page.locator(".problem").first.locator(".verdict")
    assert "correct" not in badges.first.inner_text() and "correct" in badges.last.inner_text()
    page.locator("#answers label.chip", has_text="wrong → right").click()
    assert page.inner_text("#answers-count") == f"{fixed} problems"
    page.get_by_label("Right", exact=True).select_option(label="step 12")
    middle = pq.read_table(folder / "step-000012-held_out.parquet")["verdict"].to_pylist()
    fixed = sum(a != "correct" == b for a, b in zip(before, middle, strict=True))
    assert page.inner_text("#answers-count").startswith(f"{fixed} problem")
    page.get_by_label("Set", exact=True).select_option(label="unseen templates")
    assert "unseen_templates/" in page.inner_text(".problem")


# ---- what models write


def test_markup_written_by_a_model_stays_text(open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    make_run(tmp_path / "demo", steps=2, groups=2)
    make_hostile(tmp_path / "demo")
    tab = open_tab(write_report([tmp_path / "demo"])).all_unpacked()
    page = tab.page
    for colour in ("log-prob", "none"):
        chip(tab, colour).click()
        assert page.locator(".one .text").first.text_content() == HOSTILE[0]
        assert page.locator(".one .text").nth(1).text_content() == HOSTILE[1]
    assert HOSTILE[0] in page.inner_text(".rollout .prompt")
    assert HOSTILE[1] in page.inner_text("#answers")
    assert "[U+202E]" in page.inner_text("#rollouts")  # and doesn't turn the line around
    chip(tab, "<script>").click()  # a verdict of that name
    tab.wait(lambda: tab.completions() == 1)
    page.fill("#rollouts-search", "onerror")
    page.wait_for_timeout(400)
    assert page.evaluate("window.pwned") is None
    assert page.locator("main script, main img, main b script").count() == 0


def test_the_policy_stops_what_would_slip_through(browser: Any, demo: Path) -> None:
    tab = Tab(browser, demo)
    tab.page.evaluate(
        """() => { for (const code of ["window.pwned = 1", "fetch('https://example.org')"]) {
          const script = document.createElement("script"); script.textContent = code; document.body.append(script); }
        const image = new Image(); image.src = "https://example.org/x.png"; document.body.append(image); }"""
    )
    tab.wait(lambda: len(tab.wrong) == 3)
    assert all("Content Security Policy" in line for line in tab.wrong)
    assert tab.page.evaluate("window.pwned") is None
    tab.context.close()


# ---- runs with less, several runs


def test_a_run_without_samples_says_so(open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    make_run(tmp_path / "sft")
    for name in ("rollouts", "evaluations"):
        shutil.rmtree(tmp_path / "sft" / name)
    page = open_tab(write_report([tmp_path / "sft"])).all_unpacked().page
    assert "This run has no completions to browse" in page.inner_text("#rollouts")
    assert "not recorded in this run" in page.inner_text("#answers")
    assert page.locator("#rewards").count() == 0 and page.locator("#curves figure").count() > 10


def test_a_run_that_has_only_begun(open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    page = open_tab(write_report([tmp_path])).page
    assert "No metrics are recorded yet" in page.inner_text("#curves")


def test_a_run_of_one_step_and_null_metrics(open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    make_run(tmp_path / "one", steps=1, groups=1, generations=1, tokens=1)
    with (tmp_path / "one" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "reward": null, "kl": NaN, "odd": Infinity}\n')
    tab = open_tab(write_report([tmp_path / "one"])).all_unpacked()
    assert tab.completions() == 1
    assert tab.page.locator('[data-chart="odd"]').count() == 0


def test_rollouts_without_tokens_are_plain_text(open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    make_run(tmp_path / "old", steps=3)
    for path in (tmp_path / "old" / "rollouts").glob("*.parquet"):
        edit_rollout(path, completion_tokens=None, verdict=None, advantage=None, id=None)
    tab = open_tab(write_report([tmp_path / "old"])).all_unpacked()
    assert "no completion_tokens" in tab.page.inner_text("#rollouts")
    assert tab.completions() == 36 and tab.page.locator(".one .t").count() == 0


def test_problems_are_named_at_the_top(open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    make_run(tmp_path / "demo")
    (tmp_path / "demo" / "rollouts" / "rollout-000003.parquet").write_bytes(b"cut")
    tab = open_tab(write_report([tmp_path / "demo"])).all_unpacked()
    told = tab.page.inner_text("#problems")
    assert (
        told.startswith("1 problem while reading this run") and "rollouts/rollout-000003.parquet can't be read" in told
    )
    assert tab.completions() == 132


def test_two_runs_overlay_their_curves(open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    make_run(tmp_path / "one", steps=20)
    make_run(tmp_path / "two", steps=30, seed=1)
    sft = tmp_path / "three"
    sft.mkdir()
    (sft / "metrics.jsonl").write_text(
        "".join(f'{{"step": {i}, "loss": {1 / i}, "strange": {i}}}\n' for i in range(1, 9))
    )
    report = write_report([tmp_path / "one", tmp_path / "two", sft], tmp_path / "compare.html")
    tab = open_tab(report).all_unpacked()
    page = tab.page
    assert page.inner_text("h1") == "3 runs compared"
    reward = page.locator('[data-chart="reward"]')
    assert reward.locator("path.curve").count() == 2
    assert "three: not recorded" in reward.inner_text()
    assert page.locator('[data-chart="loss"] path.curve').count() == 3
    assert page.locator('[data-chart="strange"] .legend').text_content().count("not recorded") == 2
    assert [reward.locator(f"g.c{i} path.curve").count() for i in range(3)] == [1, 1, 0]  # a colour for each run
    assert page.locator("#summary .mix").first.inner_text().split() == ["one", "two"]
    page.locator("header label.chip", has_text="two").click()
    assert reward.locator("path.curve").count() == 1
    assert page.locator("#summary tbody tr", has_text="three").first.inner_text().count("not measured") == 1
    page.get_by_label("Run", exact=True).select_option(label="two")
    tab.wait(lambda: tab.completions() == 360)
    assert "No rollouts: three." in page.inner_text("#rollouts")
    options = page.locator("#settings table").last
    assert "max_steps" in options.inner_text() and "loss_type" in options.inner_text()  # `three` has no settings
    assert page.locator("#answers select option").all_inner_texts().count("two, step 30") == 2
    assert tab.fits()


# ---- look


@pytest.mark.parametrize("width", [360, 768])
def test_narrow_screens_need_no_sideways_scrolling(open_tab: Callable[..., Tab], demo: Path, width: int) -> None:
    tab = open_tab(demo, width=width, has_touch=True)
    assert tab.fits()
    tab.all_unpacked()
    assert tab.fits()
    tab.page.set_viewport_size({"width": 320, "height": 640})
    tab.page.wait_for_timeout(400)
    assert tab.fits()


def test_hostile_texts_do_not_widen_a_phone(open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    make_run(tmp_path / "demo", steps=2)
    path = tmp_path / "demo" / "rollouts" / "rollout-000002.parquet"
    n = pq.read_table(path).num_rows
    long = "x" * 3000
    edit_rollout(
        path,
        completion=[long] * n,
        completion_tokens=[[long]] * n,
        prompt=[long] * n,
        id=[long] * n,
        extracted=[long] * n,
    )
    tab = open_tab(write_report([tmp_path / "demo"]), width=360).all_unpacked()
    assert tab.fits()


def test_dark_mode(open_tab: Callable[..., Tab], demo: Path) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = open_tab(demo, color_scheme="light").page, open_tab(demo, color_scheme="dark").page
    assert light.evaluate(background) == "rgb(255, 255, 255)"
    assert dark.evaluate(background) == "rgb(20, 23, 26)"
    for _ in range(2):  # auto → light → dark
        light.click("#theme")
    assert light.evaluate(background) == "rgb(20, 23, 26)"
    light.reload()
    assert light.evaluate(background) == "rgb(20, 23, 26)"
    dark.emulate_media(color_scheme="light")  # the page hears of it a moment later
    deadline = time.monotonic() + 10
    while dark.evaluate(background) != "rgb(255, 255, 255)" and time.monotonic() < deadline:
        dark.wait_for_timeout(50)
    assert dark.evaluate(background) == "rgb(255, 255, 255)"


# ---- size and time, and a run that goes on


def test_a_500_step_run_opens_in_two_seconds(open_tab: Callable[..., Tab], long_run: Path, tmp_path: Path) -> None:
    report = write_report([long_run], tmp_path / "report.html")
    assert report.stat().st_size < 10e6
    seconds: list[float] = []
    while min(seconds, default=9) >= 2 and len(seconds) < 6:  # other programs may have the machine for a while
        tab = open_tab(report)
        seconds.append(tab.seconds)
    assert min(seconds) < 2, seconds
    assert tab.page.locator('[data-chart="reward"] path.curve').count() == 1
    tab.all_unpacked()
    assert tab.completions() == 10_000
    assert tab.page.evaluate("document.getElementsByTagName('*').length") < 20_000
    page = tab.page
    page.get_by_label("First step").fill("500")
    tab.wait(lambda: tab.completions() == 128)  # the last step is there whole
    page.get_by_label("First step").fill("")
    page.get_by_label("Last step").fill("1")
    tab.wait(lambda: tab.completions() == 128)


def test_a_watched_page_takes_up_the_next_report_and_keeps_the_filters(
    open_tab: Callable[..., Tab], tmp_path: Path
) -> None:
    make_run(tmp_path / "demo", steps=4)
    report = Report([tmp_path / "demo"])
    report.write(lambda line: None, reload_seconds=6)
    tab = open_tab(report.out, "#verdict=correct").all_unpacked()
    before = tab.completions()
    assert tab.page.inner_text("#live") == "live, every 6 s"
    make_run(tmp_path / "demo", steps=8)
    report.write(lambda line: None)
    tab.wait(lambda: tab.page.locator(".facts").inner_text().find("8 steps") >= 0)
    tab.all_unpacked()
    assert tab.completions() > before
    assert tab.page.evaluate("location.hash") == "#verdict=correct"
    assert tab.page.locator("#live").count() == 0  # the last report of a run doesn't reload


def test_a_watched_page_can_be_paused(open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    make_run(tmp_path / "demo", steps=4)
    report = Report([tmp_path / "demo"])
    report.write(lambda line: None, reload_seconds=0.5)
    tab = open_tab(report.out)
    tab.page.click("#live")
    loads = len(tab.requests)
    tab.page.wait_for_timeout(4000)
    assert len(tab.requests) == loads
    tab.page.click("#live")
    tab.wait(lambda: len(tab.requests) > loads)

"""The doctor's page holds what was found, escaped, without a script."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from mmreason.report.doctor import render_doctor, sections, write_doctor_report
from mmreason.types import MMReasonError


def facts(**more: Any) -> dict[str, Any]:
    rows = [{"row": f"r{i}", "where": "a.jsonl:1", "detail": "<script>alert(1)</script>\ud800"} for i in range(205)]
    base: dict[str, Any] = {
        "source": "a.jsonl [train]", "format": "gsm8k", "stage": "sft", "rows": 300, "good": 95, "errors": 205,
        "warnings": 0, "words": {"edges": [1, 2, 4], "counts": [3, 1], "n": 4, "mean": 1.5, "min": 1, "median": 1.0,
        "p95": 3.0, "max": 3},
        "faults": [{"code": "bad_gold", "severity": "error", "meaning": "no gold", "rows": rows}],
    }  # fmt: skip
    return base | more


MODEL: dict[str, Any] = {
    "tokens": {"rows": 2, "tokens": 100, "supervised": 25, "several": 1, "longest": 60, "lengths": {"n": 0}},
    "limits": [{"limit": 512, "rows": 7}],
    "template": {"tools": "left out"},
    "truncation": {"limit": 50, "rows": 1, "tokens": 10, "answers": 1, "mended": 0, "turns": 0},
    "padding": {"rows": 4, "steps": 1, "capacity": 64, "real": 100, "tokens": {"padded": 200, "packed": 128},
                "share": {"padded": 0.5, "packed": 0.21875}},
    "memory": {"weights": 2**31, "total": 2**32},
    "judge": {"rows": 1, "means": {"clarity": 9.0}, "lowest": [], "unreadable": {"schema": 2}, "errors": {},
              "cost": 0.0},
}  # fmt: skip


def test_the_page_is_whole_escaped_and_still() -> None:
    page = render_doctor(facts())
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "\\ud800" in page
    assert page.count('<td class="mono">r') == 200 and "and 5 more" in page
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    style = re.search(r"<style>(.*?)</style>", page, re.S)
    assert policy is not None and style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy[1].replace("&#39;", "'") and "script-src" not in policy[1]
    assert page.count("<rect") == 2 and "median 1" in page
    assert "Chat template" not in page and "Memory" not in page


def test_what_a_model_adds_is_there() -> None:
    page = render_doctor(facts(**MODEL))
    for text in (
        "25 (25%)",
        "7 rows longer",
        "left out",
        "200 tokens an epoch, 50.0% of them empty",
        "4.00 GiB",
        "2 schema",
    ):
        assert text in page, text
    assert sections(facts())["memory"] == {}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    assert write_doctor_report(facts(), tmp_path / "new" / "d.html").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(MMReasonError, match="can't be written"):
        write_doctor_report(facts(), tmp_path / "file" / "d.html")

"""mmreason.types: light to import, errors that carry their place."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmreason.types import ConfigError, DataError, MMReasonError


def test_import_pulls_in_nothing_heavy() -> None:
    code = "import sys, mmreason.types; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("torch", "numpy", "datasets", "transformers", "yaml", "jinja2"):
        assert f"'{name}'" not in loaded


@pytest.mark.parametrize("kind", [ConfigError, DataError])
def test_errors_have_one_base_and_keep_their_text(kind: type[MMReasonError]) -> None:
    with pytest.raises(MMReasonError, match="what to do"):
        raise kind("what to do")


def test_data_error_carries_place_and_reason() -> None:
    error = DataError("text", path="a.jsonl", row="a.jsonl:3", reason="bad_gold")
    assert (str(error), error.path, error.row, error.reason) == ("text", "a.jsonl", "a.jsonl:3", "bad_gold")

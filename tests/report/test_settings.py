"""Settings are shown, secrets are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmreason.report.settings import MASK, looks_secret, masked, read_record, read_settings


@pytest.mark.parametrize(
    "key",
    [
        "token",
        "hub_token",
        "HF_TOKEN",
        "wandbApiKey",
        "api_key",
        "openai-api-key",
        "apikey",
        "secret",
        "client_secret",
        "password",
        "db.password",
        "aws_secret_access_key",
        "private_key",
        "credentials",
        "auth_token",
        "hub_tokens",
    ],
)
def test_keys_of_secrets(key: str) -> None:
    assert looks_secret(key)
    assert masked({key: "hunter2hunter2"}) == {key: MASK}
    assert masked({key: {"inner": "hunter2"}}) == {key: MASK}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token", "<|im_end|>"),
        ("image_token_id", 151655),
        ("tokenizer_name_or_path", "gpt2"),
        ("max_new_tokens", 512),
        ("num_tokens", 3.5),
        ("monkey", "banana"),
        ("key", "value"),
        ("keyboard", "qwerty"),
        ("hub_token", None),
        ("push_token_to_hub", False),
        ("learning_rate", 1e-5),
    ],
)
def test_what_is_no_secret_stays(key: str, value: Any) -> None:
    assert masked({key: value}) == {key: value}


@pytest.mark.parametrize(
    ("text", "kept", "gone"),
    [
        ("train.py --hub_token abcdefgh --seed 1", "--seed 1", "abcdefgh"),
        ("train.py --hub-token=abcdefgh", "train.py", "abcdefgh"),
        ("OPENAI_API_KEY=abc123456 python x.py", "python x.py", "abc123456"),
        ('{"api_key": "abc123456", "seed": 1}', '"seed": 1', "abc123456"),
        ("https://user:pass1234@host/x", "host/x", "pass1234"),
        ("use hf_AbCdEfGhIjKlMn now", "now", "AbCdEfGh"),
        ("sk-abcdefghijkl", MASK, "abcdefgh"),
        ("Authorization: Bearer abc.def-ghi", MASK, "abc.def"),
    ],
)
def test_secrets_inside_other_values(text: str, kept: str, gone: str) -> None:
    shown = masked({"command": text, "list": [text]})
    assert gone not in json.dumps(shown)
    assert kept in shown["command"] and MASK in shown["command"]


def test_prose_and_flags_without_secrets_stay() -> None:
    for text in ("token level loss", "The secret is {question}", "--eos_token <end> --max_tokens 5", "a: b = c"):
        assert masked(text) == text


def test_an_argument_list_hides_the_value_after_a_secret_flag() -> None:
    assert masked({"argv": ["--hub_token", "abc", "--seed", "1"]}) == {"argv": ["--hub_token", MASK, "--seed", "1"]}


def test_config_and_record_are_read_masked(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\nvllm_api_key: abc\nreward_funcs:\n- {name: x, judge_token: abc}\n")
    (tmp_path / "run.json").write_text('{"identity": {"seed": 1}, "environment": {"HF_TOKEN": "abc"}}')
    settings, problems = read_settings(tmp_path / "config.yaml")
    assert settings == {"seed": 1, "vllm_api_key": MASK, "reward_funcs": [{"name": "x", "judge_token": MASK}]}
    record, more = read_record(tmp_path / "run.json")
    assert record == {"identity": {"seed": 1}, "environment": {"HF_TOKEN": MASK}}
    assert problems == more == []


@pytest.mark.parametrize("content", ["a: [", "- 1", "\x00"])
def test_settings_that_cannot_be_read_are_a_problem(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    (tmp_path / "run.json").write_text(content)
    for values, problems in (read_settings(tmp_path / "config.yaml"), read_record(tmp_path / "run.json")):
        assert values == {} and len(problems) == 1


def test_missing_files_are_no_problem(tmp_path: Path) -> None:
    assert read_settings(tmp_path / "config.yaml") == ({}, [])
    assert read_record(tmp_path / "run.json") == ({}, [])

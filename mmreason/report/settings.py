"""config.yaml and run.json, with whatever looks like a secret masked before it reaches the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mmreason.report.values import why

MASK = "•••••• (masked)"
_SECRET = {"token", "secret", "password", "passwd", "passphrase", "pwd", "apikey", "credential", "authorization"}
_SECRET_KEYS = {"api", "access", "private", "secret", "auth", "signing", "encryption", "ssh"}  # before "key"
# Names of vocabulary entries, which also end in "token".
_VOCABULARY = {"pad", "eos", "bos", "unk", "sep", "cls", "mask", "image", "video", "audio", "stop", "special"}
# Secrets by their own look, wherever they stand: hub, provider and forge tokens, bearer headers, passwords in URLs,
# options of a command line.
_LOOKS_SECRET = re.compile(
    r"\b(?:hf|sk|pk|ghp|gho|ghs|glpat|xox[abp]|wandb_v1)[-_][A-Za-z0-9_-]{8,}"
    r"|\bgithub_pat_\w{8,}|\bAKIA[0-9A-Z]{12,}|(?i:\bbearer\s+)[\w.~+/-]{8,}=*"
)
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)")
_NAME = r"(?:[\w-]*[_-])?(?:token|secret|password|passwd|api[_-]?key|access[_-]?key)"
_ASSIGNED = re.compile(rf"(?i)(--{_NAME}[=\s]\s*[\"']?|\b{_NAME}[\"']?\s*[=:]\s*[\"']?)([^\s\"',;&]+)")


def looks_secret(key: str) -> bool:
    """Whether a setting of this name may hold a secret: hub_token, API_KEY, wandbApiKey … but not eos_token."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key).lower())
    for i, word in enumerate(words):
        before = words[i - 1] if i else ""
        bare = word.removesuffix("s")
        if bare in _SECRET and not (bare == "token" and before in _VOCABULARY):
            return True
        if bare == "key" and before in _SECRET_KEYS:
            return True
    return False


def masked(value: Any, key: str = "") -> Any:
    """A copy of settings without secrets. Switches and missing values stay, so do counts ("max_tokens": 5)."""
    if isinstance(value, bool) or value is None:
        return value
    if key and looks_secret(key):
        counts = isinstance(value, int | float) and key.lower().endswith("tokens")
        return value if counts else MASK
    if isinstance(value, dict):
        return {str(k): masked(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        flags = ["", *(item.lstrip("-") if isinstance(item, str) and item.startswith("-") else "" for item in value)]
        return [masked(item, flag) for item, flag in zip(value, flags, strict=False)]
    return _masked_text(value) if isinstance(value, str) else value


def _masked_text(value: str) -> str:
    value = _LOOKS_SECRET.sub(MASK, _URL_PASSWORD.sub(rf"\1{MASK}", value))
    return _ASSIGNED.sub(lambda m: m[1] + (MASK if looks_secret(_name(m[1])) else m[2]), value)


def _name(assignment: str) -> str:
    return assignment.strip(" \"'=:-")


def read_settings(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The options of config.yaml, masked; empty with a problem where it can't be read."""
    import yaml

    if not path.is_file():
        return {}, []
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        return {}, [f"{path.name} can't be read ({why(error)})"]
    if not isinstance(content, dict):
        return {}, [f"{path.name} holds no options"]
    return masked(content), []


def read_record(path: Path) -> tuple[dict[str, Any], list[str]]:
    """run.json (identity, versions, machine …), masked."""
    if not path.is_file():
        return {}, []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {}, [f"{path.name} can't be read ({why(error)})"]
    if not isinstance(content, dict):
        return {}, [f"{path.name} holds no record of a run"]
    return masked(content), []

"""How good a set is as a whole: variety, balance of task types, whether length pays."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmreason.data._words import BREAK, signed_words
from mmreason.data.quality import RowQuality, instruction_text, reply_text
from mmreason.data.supervised import message_texts

SCORES = ("clarity", "correctness", "completeness", "style", "diversity", "difficulty")

TASKS: dict[str, re.Pattern[str]] = {
    "translation": re.compile(r"\btranslat\w*\b|翻译", re.I),
    "summary": re.compile(r"\bsummar(?:y|i[sz]e\w*)\b|\btl;?dr\b|总结|概括", re.I),
    "code": re.compile(
        r"```|\bdef \w+\(|\b(?:python|javascript|java|c\+\+|sql|regex|function|algorithm|code|script)\b", re.I),
    "classification": re.compile(r"\bclassif\w*\b|\bcategori[sz]\w*\b|\bsentiment\b|\blabel\b", re.I),
    "rewriting": re.compile(r"\b(?:rewrite|rephrase|paraphrase|edit|correct the|simplify)\b", re.I),
    "writing": re.compile(r"\b(?:write|compose|create|generate|draft|design|story|poem|essay|email|slogan)\b", re.I),
    "mathematics": re.compile(
        r"\\frac|\\sqrt|\$[^$]+\$|\b(?:how (?:many|much|far|long|old)|calculate|compute|solve|equation|sum|probability|"
        r"percent|triangle|integer)\b|\d\s*[-+*/=×]\s*\d", re.I),
    "list": re.compile(
        r"\b(?:list|name|give|suggest|provide)\b.{0,30}\b(?:\d+|two|three|four|five|ten|some|examples?)\b", re.I),
    "explanation": re.compile(
        r"\b(?:explain|describe|why|compare|discuss|what is|what are|how (?:do|does|can|to))\b", re.I),
}  # fmt: skip
"""Type of task -> what its instruction has; the first that fits counts."""


def task_type(example: Mapping[str, Any]) -> str:
    """The type of a row's task: by its form (images, tools, choices, documents), else by what its instruction says."""
    if example.get("text"):
        return "document"
    if example.get("tools"):
        return "tools"
    prefix = "image: " if example.get("images") else ""
    meta = example.get("meta") or {}
    if meta.get("choices"):
        return prefix + "choice"
    if meta.get("kind") == "yesno":
        return prefix + "yes or no"
    text = instruction_text(example)
    found = next((name for name, pattern in TASKS.items() if pattern.search(text)), None)
    if found is None:
        found = "mathematics" if meta.get("kind") in ("number", "math") else "other"
    return prefix + found


def balance(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of each task type, and their evenness: the entropy over that of equal shares, from 0 (one type) to 1."""
    counts = Counter(task_type(example) for example in examples)
    total = sum(counts.values())
    entropy = -sum(n / total * math.log(n / total) for n in counts.values())
    evenness = entropy / math.log(len(counts)) if len(counts) > 1 else 0.0
    return {"types": dict(counts.most_common()), "evenness": evenness}


def variety(examples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """distinct-1 and distinct-2 (Li et al. 2016, arXiv 1510.03055) of instructions and replies: different n-grams over
    all of them. They fall as a set grows, so only sets of like size compare."""
    found = {}
    for name, texts in (
        ("instructions", [instruction_text(example) for example in examples]),
        ("replies", [reply_text(example) or str(example.get("text") or "") for example in examples]),
    ):
        words = [[word for word in signed_words(text) if word != BREAK] for text in texts]
        for n in (1, 2):
            grams = Counter(tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1))
            if grams:
                found[f"distinct-{n} of {name}"] = len(grams) / sum(grams.values())
    return found


def length_bias(examples: Sequence[Mapping[str, Any]], rows: Sequence[RowQuality]) -> dict[str, float]:
    """Does length pay? Lengths are in words.

    Of pairs: how often the chosen side is the longer one (ties count a half), and the mean of ln(chosen / rejected). Of
    labels: the mean length of wanted over that of unwanted completions. Of the rest: Spearman's rank correlation of
    length with completeness and correctness.
    """
    found: dict[str, float] = {}
    pairs = [(_words(example["chosen"]), _words(example["rejected"])) for example in examples if example.get("chosen")]
    if pairs:
        found["chosen is longer"] = sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)
        found["mean ln(chosen / rejected)"] = sum(math.log((a + 1) / (b + 1)) for a, b in pairs) / len(pairs)
    labelled = [(example["label"], _words(example.get("completion"))) for example in examples if "label" in example]
    sides = [[length for label, length in labelled if label is wanted] for wanted in (True, False)]
    if all(sides):
        found["wanted over unwanted"] = (sum(sides[0]) / len(sides[0])) / max(1e-9, sum(sides[1]) / len(sides[1]))
    lengths = [len(reply_text(example).split()) for example in examples]
    for name in ("completeness", "correctness"):
        known = [(n, v) for n, row in zip(lengths, rows, strict=True) if (v := getattr(row, name)) is not None and n]
        correlation = spearman([n for n, _ in known], [v for _, v in known])
        if correlation is not None:
            found[f"rank correlation with {name}"] = correlation
    return found


def _words(side: Any) -> int:
    return sum(len(text.split()) for text in message_texts(side or ()))


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; None where one side doesn't vary."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    import numpy as np

    ranks = []
    for values in (first, second):
        _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        ranks.append((ends - (counts - 1) / 2)[inverse])
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def summarise(examples: Sequence[Mapping[str, Any]], rows: Sequence[RowQuality], worst: int = 20) -> dict[str, Any]:
    """Everything about a set's quality, as plain values: means, the lowest rows with what is wrong with them."""
    means = {}
    for name in SCORES:
        values = [score for row in rows if (score := getattr(row, name)) is not None]
        if values and name != "difficulty":
            means[name] = {"mean": sum(values) / len(values), "rows": len(values)}
    noted = sorted((row for row in rows if row.notes), key=lambda row: (row.mean, row.row))
    return {
        "rows": len(rows),
        "means": means,
        "difficulty": _histogram([row.difficulty for row in rows if row.difficulty is not None]),
        "balance": balance(examples) if examples else {"types": {}, "evenness": 0.0},
        "variety": variety(examples),
        "length_bias": length_bias(examples, rows),
        "notes": dict(Counter(note.split(":")[0].split(" …")[0] for row in rows for note in row.notes).most_common()),
        "lowest": [row.to_json() | {"mean": row.mean} for row in noted[:worst]],
    }


def _histogram(values: Sequence[float], bins: int = 10) -> list[int]:
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int(value * bins))] += 1
    return counts

"""Real web pages and paragraphs of a novel with planted copies, near copies, personal data and bad documents."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.data_builders.test_corpus_pii import EMAILS, PHONES

COPIES = 10
QUESTION = (
    "Janet's ducks lay sixteen eggs per day and she eats three for breakfast every morning with her sister, then sells "
    "the rest at the market; how much does she make every day?"
)
FRENCH = (
    "Le lendemain matin, les voyageurs quittèrent la petite ville et suivirent la rivière pendant plusieurs heures. "
    "Ils parlaient de leurs familles, de leurs projets et des pays qu'ils avaient vus autrefois. "
) * 4
HARMFUL = (
    "He sold cocaine and heroin to the others, wrote ransomware at night, and nobody in the town asked him why. " * 3
    + "The others said that it was to be so, and that they would have been with him. "
)
SHORT = "Only a few of the words that are to be."


@dataclass
class Planted:
    """Documents by what is to become of them.

    Attributes: rows: all, in the order of the file. exact, near: id of a copy -> id of its original. dropped: id ->
        reason. told: planted addresses and numbers.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    exact: dict[str, str] = field(default_factory=dict)
    near: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def add(self, name: str, text: str) -> str:
        self.rows.append({"text": text, "id": name, "url": f"http://example.org/{name}"})
        return name


def plant(shared_data: Path, pages: int = 40) -> Planted:
    """The documents; the same at every call."""
    rng = random.Random(7)
    lines = (shared_data / "text" / "c4_demo.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [text for text in (json.loads(line)["text"][:2500] for line in lines) if len(text.split()) >= 260][:pages]
    planted = Planted()
    for number, text in enumerate(texts):
        planted.add(f"page{number}", text)
    for number, text in enumerate(texts[:COPIES]):
        blank = rng.choice([" ", "  ", "\n"])
        name = planted.add(f"exact{number}", text.replace(" ", blank, 3) if number % 2 else text)
        planted.exact[name] = f"page{number}"
    for number, text in enumerate(texts[COPIES : 2 * COPIES], start=COPIES):
        words = text.split(" ")
        if number % 2:
            words.append("Finis.")
        else:
            words[len(words) // 2] = "zeppelin"
        planted.near[planted.add(f"near{number}", " ".join(words))] = f"page{number}"
    plain = [row for row in planted.rows if row["id"].startswith("page")][2 * COPIES :]
    for number, form in enumerate([*EMAILS, *PHONES]):
        row = plain[number % len(plain)]
        row["text"] += f"\nYou may reach {form} today."
        planted.told.append(form)
    for name, text, reason in (
        ("french", FRENCH, "language"),
        ("harmful", HARMFUL, "harmful_other_crime"),
        ("short", SHORT, "gopher_short_doc"),
        ("question", f"{texts[-1][:600]}\n{QUESTION}\nThat is all there is to it.", "contaminated"),
    ):  # fmt: skip
        planted.dropped[planted.add(name, text)] = reason
    rng.shuffle(planted.rows)
    return planted

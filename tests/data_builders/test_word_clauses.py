"""The templates and their sentences in both languages: enough of them, all used, none with a hole or an odd plural."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from string import Formatter
from types import ModuleType

import pytest

from data_builders._words.templates import LARGEST, SMALLEST, TEMPLATES, distinct, one
from data_builders.word_problems import LANGUAGES, generate

TONGUES = list(LANGUAGES.items())


def vocabulary(language: str, split: str) -> set[str]:
    rows = generate(8000, 3, level="mix", split=split, language=language)
    text = " ".join(str(row["prompt"][0]["content"]) for row in rows)  # type: ignore[index]
    return set(re.findall(r"[A-Za-z]+|[^\x00-\x7f]|[.,?]", text))


def test_enough_templates_of_every_length() -> None:
    seen = [template for template in TEMPLATES.values() if not template.unseen]
    unseen = [template for template in TEMPLATES.values() if template.unseen]
    assert len(seen) >= 28 and len(unseen) >= 6
    assert {len(template.steps) for template in seen} == {1, 2, 3, 4, 5, 6}
    assert {len(template.steps) for template in unseen} == {2, 3, 4, 5, 6}


def test_unseen_templates_are_new_stories_of_known_parts() -> None:
    seen = [template for template in TEMPLATES.values() if not template.unseen]
    stories = {tuple(clause for clause, _ in template.story) for template in seen}
    for template in TEMPLATES.values():
        if template.unseen:
            assert tuple(clause for clause, _ in template.story) not in stories


@pytest.mark.parametrize("language", LANGUAGES)
def test_unseen_templates_use_known_words(language: str) -> None:
    known, new = vocabulary(language, "train"), vocabulary(language, "unseen_templates")
    assert new <= known
    assert 200 <= len(known) <= 400


@pytest.mark.parametrize(("language", "tongue"), TONGUES)
def test_clauses(language: str, tongue: ModuleType) -> None:
    used = {clause: len(letters) for template in TEMPLATES.values() for clause, letters in template.story}
    assert set(tongue.CLAUSES) == set(used)
    words = tongue.words(random.Random(0))
    for clause, variants in tongue.CLAUSES.items():
        assert len(set(variants)) >= 3, clause
        for text in variants:
            # the first number stands before the second, so that stories tell them in the order of their letters
            assert "".join(c for c in text if c in "@%") == "@%"[: used[clause]], text
            assert {name for _, name, _, _ in Formatter().parse(text) if name} <= set(words), text
            is_question = clause.startswith("q_")
            end = (".", "?") if language == "en" else ("。", "？")
            asks = text.startswith(("Find ", "求")) or text.endswith(end[1])
            assert text.endswith(end) and asks == is_question, text
            if language == "zh":
                assert not re.search(r"[A-Za-z.,?!:;]", re.sub(r"\{\w+\}", "", text)), text
            else:
                assert re.fullmatch(r"[A-Za-z .,?@%]*", re.sub(r"\{\w+\}", "x", text)), text
    for about, forms in tongue.DISTRACTORS.items():
        assert about in {template.about for template in TEMPLATES.values()}
        assert len(forms) >= 3
        for text in forms:
            assert text.count("@") == 1 and "%" not in text
            assert {name for _, name, _, _ in Formatter().parse(text) if name} <= set(words), text
    assert {template.about for template in TEMPLATES.values()} == set(tongue.DISTRACTORS)


@pytest.mark.parametrize(("language", "tongue"), TONGUES)
def test_every_phrasing_of_every_template_is_told(language: str, tongue: ModuleType) -> None:
    told: dict[str, list[str]] = defaultdict(list)
    for split in ("train", "unseen_templates"):
        for row in generate(6000, 8, level="mix", split=split, language=language):
            told[row["meta"]["template"]].append(str(row["prompt"][0]["content"]))  # type: ignore[index]
    assert set(told) == set(TEMPLATES)
    for name, template in TEMPLATES.items():
        for clause, _ in template.story:
            for text in tongue.CLAUSES[clause]:
                pattern = re.compile(re.sub(r"\\\{\w+\\\}|@|%", "[^ 。，]+", re.escape(text)))
                assert any(pattern.search(story) for story in told[name]), (name, text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_have_no_holes(language: str) -> None:
    for row in generate(5000, 9, level="mix", language=language):
        text = str(row["prompt"][0]["content"])  # type: ignore[index]
        assert not re.search(r"[{}@%_]|  | [.,?]|\b1 |None", text), text
        if language == "en":
            assert all(sentence[0].isupper() for sentence in re.split(r"(?<=[.?]) ", text)), text
            assert len(text.split()) <= 95
        else:
            assert " " not in text and len(text) <= 190, text


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_clause_that_comes_again_is_said_in_another_way(language: str) -> None:
    clauses = {name: [clause for clause, _ in template.story] for name, template in TEMPLATES.items()}
    again = {name for name, told in clauses.items() if len(set(told)) < len(told)}
    assert {"ride_5", "chain_6", "hall_long"} <= again
    for row in generate(5000, 9, level="mix", language=language):
        if row["meta"]["template"] in again:
            text = str(row["prompt"][0]["content"])  # type: ignore[index]
            sentences = re.split(r"(?<=[.?]) |(?<=[。？])", re.sub(r"\d+", "#", text))
            assert len(set(sentences)) == len(sentences), text


def test_english_pronouns_have_one_reading() -> None:
    """Beside the person of the story, who is "he" or "she", no one of that gender stands in a story with pronouns."""
    from data_builders._words import clauses_en as en

    for row in generate(5000, 10, level="mix"):
        text = str(row["prompt"][0]["content"])  # type: ignore[index]
        for pronoun, names in (("he|him|his", en._BOYS), ("she|her", en._GIRLS)):
            if re.search(rf"\b(?:{pronoun})\b", text, re.IGNORECASE):
                assert len({name for name in names if re.search(rf"\b{name}\b", text)}) == 1, text


def test_draws_stay_in_bounds_and_vary() -> None:
    rng = random.Random(0)
    for template in TEMPLATES.values():
        drawn = [values for values in (template.draw(rng) for _ in range(400)) if values is not None]
        assert len(drawn) > 20, template.name
        assert all(value >= SMALLEST for values in drawn for value in values[: template.size]), template.name
        assert all(1 <= value <= LARGEST for values in drawn for value in values), template.name
        for place in range(template.size):
            assert len({values[place] for values in drawn}) >= 3, (template.name, place)
        for place, (low, high) in template.ranges.items():
            assert all(low <= values[place] <= high for values in drawn), (template.name, place)


def test_one_and_distinct() -> None:
    rng = random.Random(0)
    assert {one(rng, "abc") for _ in range(100)} == set("abc")
    picks = [tuple(distinct(rng, "abc", 2)) for _ in range(200)]
    assert all(a != b for a, b in picks) and len(set(picks)) == 6

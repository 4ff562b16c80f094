"""Every strategy, in both languages, on a scripted model: what it asked, word for word, and what it came to."""

from __future__ import annotations

import asyncio

import pytest

from mmreason.prompting.registry import STRATEGIES, load_strategy
from mmreason.prompting.solve import solve
from mmreason.prompting.types import Problem
from tests.prompting.cases import CASES, FOLDER, SHOTS, Case, recording, written
from tests.prompting.scripted import Scripted, text_of


def test_every_strategy_is_recorded_in_both_languages() -> None:
    for language in ("en", "zh"):
        assert {case.spec["name"] for (spoken, _), case in CASES.items() if spoken == language} == set(STRATEGIES)
    assert {recording(*key) for key in CASES} == set(FOLDER.glob("*/*.txt"))


@pytest.mark.parametrize(("language", "name"), CASES)
def test_transcript(language: str, name: str) -> None:
    """The recordings were read by a person; `python -m tests.prompting.cases` writes them anew."""
    case = CASES[language, name]
    outcome, model = case.run()
    assert written(outcome) == recording(language, name).read_text(encoding="utf-8")
    assert (outcome.answer, dict(outcome.counts), outcome.error) == (case.answer, case.counts, None)
    assert outcome.calls == len(case.script) == len(outcome.transcript)
    assert [list(call.messages) for call in outcome.transcript] == [asked["messages"] for asked in model.asked]


@pytest.mark.parametrize(("language", "name"), CASES)
def test_counts_and_images(language: str, name: str) -> None:
    case = CASES[language, name]
    outcome, model = case.run()
    drawn = [reply for entry in case.script for reply in (entry if isinstance(entry, list) else [entry])]
    assert outcome.completions == len(drawn)
    # The scripted model counts words; a reply that was given as a Completion counts none.
    spoken = [reply for reply in drawn if isinstance(reply, str)]
    assert outcome.completion_tokens == sum(len(reply.split()) for reply in spoken)
    prompts = [
        len(text_of(asked["messages"]).split())
        for asked, entry in zip(model.asked, case.script, strict=True)
        for reply in (entry if isinstance(entry, list) else [entry])
        if isinstance(reply, str)
    ]
    assert outcome.prompt_tokens == sum(prompts)
    shown = [image for shot in case.problem.shots for image in shot.images] + list(case.problem.images)
    for asked in model.asked:
        contents = [message["content"] for message in asked["messages"]]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        assert list(asked["images"]) == (shown if parts else [])
        assert sum(part["type"] == "image" for part in parts) == len(asked["images"])
        if case.problem.images:
            last = max(i for i, message in enumerate(asked["messages"]) if message["role"] == "user")
            assert asked["messages"][last]["content"][0] == {"type": "image"}


def test_paper_prompts_stand_as_published() -> None:
    """Zero-shot chain of thought: the two prompts of arXiv:2205.11916, section 3, written out."""
    problem = Problem(question="What is 6 * 7?", kind="number")
    case = Case("", {"name": "zero_shot_cot"}, problem, ["It is 42.", "42."], "42.")
    first, second = (call.messages for call in case.run()[0].transcript)
    assert first == ({"role": "user", "content": "Q: What is 6 * 7?\nA: Let's think step by step."},)
    assert second[0]["content"] == (
        "Q: What is 6 * 7?\nA: Let's think step by step. It is 42.\nTherefore, the answer (arabic numerals) is"
    )


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_images_reach_every_call(name: str, language: str) -> None:
    """Interleaved image parts stay where they are, with the images untouched, in the first user turn of each call."""
    images = (object(), object())
    question = ({"type": "text", "text": "Is "}, {"type": "image"}, {"type": "text", "text": " = "}, {"type": "image"})
    problem = Problem(question=question, images=images, choices=("yes", "no"), gold="A", shots=SHOTS[:1])

    def reply(prompt: str, draw: int) -> str:
        return "1. one step\n2. two steps"

    model = Scripted(reply)
    outcome = asyncio.run(solve(load_strategy({"name": name, "language": language}), problem, model))
    assert outcome.calls >= 1
    for asked in model.asked:
        assert [id(image) for image in asked["images"]] == [id(image) for image in images]
        with_images = [message for message in asked["messages"] if isinstance(message["content"], list)]
        assert [message["role"] for message in with_images] == ["user"]
        parts = with_images[0]["content"]
        kinds = [part["type"] for part in parts]
        assert kinds == ["text", "image", "text", "image", "text"]
        assert parts[0]["text"].endswith("Is ") and parts[2]["text"] == " = "

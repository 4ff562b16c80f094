"""A drawn picture with a question and its proof, as a row."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from data_builders._visual.charts import ask_chart
from data_builders._visual.figures import ask_figure
from data_builders._visual.making import first_message, languages_of
from data_builders._visual.proofs import PROOF_LANGUAGES, Proved, checked
from data_builders.building.build import Drop, Made, Task
from data_builders.shapes import VERSION as SCENES
from data_builders.shapes import render, split_of
from mmreason.types import Example, Message

if TYPE_CHECKING:
    from data_builders.visual_instruct import VisualOptions

_TRIES = 400
_ASK = {"charts": ask_chart, "geometry": ask_figure}


def draw_row(options: VisualOptions, task: Task, source: str) -> Made:
    """One row, the same for the same seed and number, whatever came before it."""
    number: int = task.data
    rng = random.Random(f"visual {options.task} {options.seed} {options.image_size} {number}")
    proof = draw(options, rng)
    if proof is None:
        return Made(drops=[Drop("no_scene", f"no scene of the split {options.split} in {_TRIES} draws")])
    answer = checked(proof)
    if answer is None:
        return Made(drops=[Drop("not_proved", f"{proof.program()} / {proof.steps}")])
    languages = languages_of(options.language)
    language = languages[number % len(languages)]
    return Made(rows=[proved_row(proof, answer, language, rng, task.id, source, bare=options.style == "bare")])


def draw(options: VisualOptions, rng: random.Random) -> Proved | None:
    """A question over a scene that belongs to the split: "test" and all others share no scene."""
    side = "test" if options.split == "test" else "train"
    for _ in range(_TRIES):
        proof = _ASK[options.task](rng, options.image_size)
        if proof is not None and split_of(proof.scene.content()) == side:
            return proof
    return None


def proved_row(
    proof: Proved, answer: int, language: str, rng: random.Random, row_id: str, source: str, *, bare: bool
) -> Example:
    """The row: picture, question, steps, answer; the spec of the scene and the program in meta."""
    words = PROOF_LANGUAGES[language]
    said: Message = {"role": "assistant", "content": words.answer.format(answer)}
    if not bare:
        said["reasoning_content"] = words.reasoning(proof)
    return {
        "prompt": [first_message(words.question(proof, rng.choice))],
        "completion": [said],
        "images": [{"bytes": render(proof.scene), "path": None}],
        "answer": str(answer),
        "id": row_id,
        "source": source,
        "meta": {
            "kind": "number",
            "choices": None,
            "task": proof.ask.partition("_")[0],
            "ask": proof.ask,
            "language": language,
            "program": proof.program(),
            "expression": proof.expression,
            "values": dict(proof.values),
            "scene": proof.scene.spec(),
            "boxes": proof.scene.boxes(),
            "scenes_version": SCENES,
        },
    }

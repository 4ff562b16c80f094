"""A sentence that has nothing to do with the question, put in front of it (after GSM-IC, arXiv 2302.00093)."""

from __future__ import annotations

import random
import re

from data_builders._augment.numbers import NUMBER, value_of

_NAMES = ("Priya", "Tomas", "Ingrid", "Kofi", "Mei", "Oscar", "Leila", "Bruno", "Yara", "Anders", "Zofia", "Emeka")
_THINGS = (
    "stamps", "umbrellas", "teapots", "violins", "lanterns", "scarves", "candlesticks", "marbles", "postcards", "kites",
    "harmonicas", "sea shells", "model ships", "chess boards", "thimbles", "hammocks",
)  # fmt: skip
_SENTENCES = (
    "{name}, who lives in another town, collects {things} and has {n} of them.",
    "On the other side of the street, {name} has put {n} {things} into the window.",
    "Years ago, {name} gave {n} {things} to a museum.",
    "{name} once saw {n} {things} in a shop and bought none.",
    "The number on the door is {n}, and behind it {name} keeps {things}.",
    "In a different country, {name} turned {n} today and was given {things}.",
)
_LAST_QUESTION = re.compile(r"(?:^|(?<=[.!?\n])\s+)(?=[^.!?\n]*(?:[.]\d[^.!?\n]*)*\?[\s\"'”’)]*\Z)")


def distract(question: str, rng: random.Random) -> str | None:
    """The question with a sentence about someone and something else before its last sentence, the one that asks.

    Neither person, thing nor number occurs in the question. None where no last sentence asks, or all are taken.
    """
    place = _LAST_QUESTION.search(question)
    lowered = question.lower()
    names = [name for name in _NAMES if name.lower() not in lowered]
    # "sea shells" next to "shells" would matter: no word of the thing may stand in the question, in any number.
    things = [thing for thing in _THINGS if not any(word.rstrip("s") in lowered for word in thing.split())]
    if place is None or not names or not things:
        return None
    held = {value_of(match[0]) for match in NUMBER.finditer(question)}
    numbers = [number for number in range(3, 60) if number not in held]
    sentence = rng.choice(_SENTENCES).format(name=rng.choice(names), things=rng.choice(things), n=rng.choice(numbers))
    before, after = question[: place.start()], question[place.end() :]
    return f"{before} {sentence} {after}" if before else f"{sentence} {after}"

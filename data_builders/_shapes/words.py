"""How questions about rendered scenes and the steps to their answers are said, in English and Chinese."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from data_builders._shapes.scenes import COLORS, Bar, Combination, Scene
from data_builders._words.templates import one


class Group(NamedTuple):
    """The objects of a color, of a shape, or of both."""

    color: str | None
    shape: str | None

    def has(self, look: Combination) -> bool:
        """Whether an object that looks so belongs to the group."""
        return self.color in (None, look.color) and self.shape in (None, look.shape)


class Picture(NamedTuple):
    """One of several pictures, counted from 1."""

    number: int


Said = Group | Bar | Picture | str | int
"""What a question or a step may speak of; a str is a color or a letter."""


class Seen(NamedTuple):
    """A step: the objects of a picture in reading order."""

    looks: tuple[Combination, ...]


class Value(NamedTuple):
    """A step: how many there are, or how high a bar is."""

    of: Said
    number: int


class Equation(NamedTuple):
    """A step: a calculation, or without a result the order of two numbers."""

    left: int
    sign: str
    right: int
    result: int | None


Step = Seen | Value | Equation


@dataclass(frozen=True)
class Question:
    """A question about pictures, in no language yet.

    Attributes:
        task, ask: the family, and the key of `Words.questions`.
        slots: what its words speak of.
        steps: the way to the answer.
        answer: a number, a color or letter of `choices`, yes (True) and no, or what can be seen, in reading order.
    """

    task: str
    ask: str
    slots: Mapping[str, Said]
    scenes: tuple[Scene, ...]
    steps: tuple[Step, ...]
    answer: int | str | bool | tuple[Combination, ...]
    choices: tuple[str, ...] | None = None

    @property
    def kind(self) -> str:
        """The kind of the answer for the verifier."""
        if self.choices is not None:
            return "choice"
        if isinstance(self.answer, tuple):
            return "text"
        return "yesno" if isinstance(self.answer, bool) else "number"


@dataclass(frozen=True)
class Words:
    """The words of a language.

    Attributes:
        shapes: English name of a shape -> (one, several); "shape" is any of them.
        color_bar, letter_bar: a bar, as (in a question, in a step).
        questions: what is asked -> ways to say it.
    """

    colors: Mapping[str, str]
    shapes: Mapping[str, tuple[str, str]]
    joint: str
    color_bar: tuple[str, str]
    letter_bar: tuple[str, str]
    picture: str
    comma: str
    last_comma: str
    colon: str
    yes: str
    no: str
    answer: str
    questions: Mapping[str, tuple[str, ...]]

    def thing(self, color: str | None, shape: str | None, *, several: bool = False) -> str:
        """ "red circle", "red shapes", "circles" """
        noun = self.shapes[shape or "shape"][several]
        return noun if color is None else self.colors[color] + self.joint + noun

    def name(self, said: Said, *, step: bool = False) -> str:
        """A group, bar, picture, color, letter or number, in a question or in a step."""
        if isinstance(said, Group):
            return self.thing(*said, several=True)
        if isinstance(said, Bar):
            if said.letter:
                return self.letter_bar[step].format(said.letter)
            return self.color_bar[step].format(self.colors[said.color])
        if isinstance(said, Picture):
            return self.picture.format(said.number)
        return self.colors.get(said, said) if isinstance(said, str) else str(said)

    def options(self, choices: Sequence[str]) -> str:
        """ "red, green or blue" """
        *most, last = map(self.name, choices)
        return self.comma.join(most) + self.last_comma + last

    def question(self, rng: random.Random, question: Question) -> str:
        """One of the ways to ask."""
        told = {key: self.name(said) for key, said in question.slots.items()}
        options = self.options(question.choices) if question.choices else ""
        return one(rng, self.questions[question.ask]).format(**told, options=options)

    def step(self, step: Step) -> str:
        """A line of the way to the answer."""
        if isinstance(step, Seen):
            return self.seen(step.looks)
        if isinstance(step, Value):
            return f"{self.name(step.of, step=True)}{self.colon}{step.number}"
        left, sign, right, result = step
        return f"{left} {sign} {right}" if result is None else f"{left} {sign} {right} = {result}"

    def seen(self, looks: Sequence[Combination]) -> str:
        """ "red circle, blue square" """
        return self.comma.join(self.thing(*look) for look in looks)

    def said_answer(self, question: Question) -> str:
        """The answer by itself: a number, a color, a letter, yes or no, the objects."""
        if isinstance(question.answer, tuple):
            return self.seen(question.answer)
        if isinstance(question.answer, bool):
            return self.yes if question.answer else self.no
        return self.name(question.answer)


ENGLISH = Words(
    colors={name: name for name in COLORS},
    shapes={
        "shape": ("shape", "shapes"),
        "circle": ("circle", "circles"),
        "square": ("square", "squares"),
        "triangle": ("triangle", "triangles"),
        "diamond": ("diamond", "diamonds"),
        "star": ("star", "stars"),
        "cross": ("cross", "crosses"),
    },
    joint=" ",
    color_bar=("the {} bar", "{} bar"),
    letter_bar=("bar {}", "bar {}"),
    picture="picture {}",
    comma=", ",
    last_comma=" or ",
    colon=": ",
    yes="yes",
    no="no",
    answer="The answer is {}.",
    questions={
        "describe": ("What is in the picture?", "Describe the picture."),
        "count": ("How many {a} are there?", "How many {a} do you see?"),
        "more": ("Are there more {a} than {b}?",),
        "most": ("Which color has the most shapes: {options}?",),
        "sum": ("How many {a} and {b} are there together?",),
        "difference": ("How many more {a} than {b} are there?",),
        "multiple": ("What is {k} times the number of {a} plus the number of {b}?",),
        "multiple_minus": ("What is {k} times the number of {a} plus the number of {b} minus the number of {c}?",),
        "bar_value": ("What is the value of {a}?",),
        "bar_highest": ("Which bar is the highest: {options}?",),
        "bar_sum": ("What is the sum of {a} and {b}?",),
        "bar_difference": ("How much higher is {a} than {b}?",),
        "triangle": ("How many degrees is the missing angle of the triangle?",),
        "line": ("The angles lie on a straight line. How many degrees is the missing one?",),
        "perimeter": ("What is the perimeter of the rectangle?",),
        "area": ("What is the area of the rectangle?",),
        "side_of_area": ("The area of the rectangle is {k}. How long is the missing side?",),
        "side_of_perimeter": ("The perimeter of the rectangle is {k}. How long is the missing side?",),
        "two_sum": ("How many {a} are there in both pictures together?",),
        "two_difference": ("How many more {a} are in picture 1 than in picture 2?",),
    },
)

CHINESE = Words(
    colors={
        "red": "红色",
        "green": "绿色",
        "blue": "蓝色",
        "yellow": "黄色",
        "purple": "紫色",
        "orange": "橙色",
    },
    shapes={
        "shape": ("图形", "图形"),
        "circle": ("圆形", "圆形"),
        "square": ("正方形", "正方形"),
        "triangle": ("三角形", "三角形"),
        "diamond": ("菱形", "菱形"),
        "star": ("五角星", "五角星"),
        "cross": ("十字形", "十字形"),
    },
    joint="",
    color_bar=("{}柱子", "{}柱子"),
    letter_bar=("柱子{}", "柱子{}"),
    picture="图{}",
    comma="、",
    last_comma="还是",
    colon="：",
    yes="是",
    no="否",
    answer="答案是：{}。",
    questions={
        "describe": ("图中有什么？", "描述这张图。"),
        "count": ("图中有几个{a}？", "你看到几个{a}？"),
        "more": ("{a}比{b}多吗？",),
        "most": ("哪种颜色的图形最多：{options}？",),
        "sum": ("{a}和{b}一共有几个？",),
        "difference": ("{a}比{b}多几个？",),
        "multiple": ("{a}的个数乘以{k}再加上{b}的个数是多少？",),
        "multiple_minus": ("{a}的个数乘以{k}，加上{b}的个数，再减去{c}的个数，是多少？",),
        "bar_value": ("{a}的值是多少？",),
        "bar_highest": ("哪根柱子最高：{options}？",),
        "bar_sum": ("{a}和{b}的和是多少？",),
        "bar_difference": ("{a}比{b}高多少？",),
        "triangle": ("三角形中缺少的角是多少度？",),
        "line": ("这些角在一条直线上。缺少的角是多少度？",),
        "perimeter": ("长方形的周长是多少？",),
        "area": ("长方形的面积是多少？",),
        "side_of_area": ("长方形的面积是{k}。缺少的边长是多少？",),
        "side_of_perimeter": ("长方形的周长是{k}。缺少的边长是多少？",),
        "two_sum": ("两张图中一共有几个{a}？",),
        "two_difference": ("图1中的{a}比图2中的多几个？",),
    },
)

LANGUAGES: dict[str, Words] = {"en": ENGLISH, "zh": CHINESE}

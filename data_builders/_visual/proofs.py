"""Questions about drawn pictures whose answer a program proves: what is read, the expression, the steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from data_builders._shapes.scenes import Scene

_NAME = re.compile(r"[A-Za-z_]\w*")
_FUNCTIONS = ("max", "min", "sqrt")


class Step(NamedTuple):
    """A calculation on the way: "7 - 2", and what it gives."""

    left: str
    result: int


@dataclass(frozen=True)
class Proved:
    """A question with its proof.

    Attributes:
        ask: what is asked, the key of its words.
        values: what is read from the picture, in the order of the picture: name -> number.
        expression: over these names, in Python's signs; max, min and sqrt may occur.
        steps: the calculations, the last of which gives the answer.
        slots: what the words of the question speak of: names of `values` and numbers.
    """

    ask: str
    scene: Scene
    values: Mapping[str, int]
    expression: str
    steps: Sequence[Step]
    slots: Mapping[str, str | int]

    def program(self) -> str:
        """A Python program that prints the answer; its first lines are what is read from the picture."""
        head = ["from math import isqrt"] if "sqrt(" in self.expression else []
        read = [f"{name} = {value}" for name, value in self.values.items()]
        return "\n".join([*head, *read, f"print({self.expression.replace('sqrt(', 'isqrt(')})"])

    def value(self) -> int:
        """What the expression gives, by the calculator (exact, and nothing of Python's runs).

        Raises: ValueError where it is no whole number.
        """
        from mmreason.tools.calculator import evaluate

        found = evaluate(_NAME.sub(self._read, self.expression))
        if not found.exact or found.low.denominator != 1:
            raise ValueError(f"{self.expression} gives {found}, which is no whole number")
        return found.low.numerator

    def _read(self, match: re.Match[str]) -> str:
        return match[0] if match[0] in _FUNCTIONS else str(self.values[match[0]])


def checked(proof: Proved) -> int | None:
    """The answer, where program and steps agree on it; else None."""
    try:
        answer = proof.value()
    except (ValueError, KeyError):
        return None
    return answer if proof.steps and proof.steps[-1].result == answer else None


@dataclass(frozen=True)
class ProofWords:
    """The words of a language. Args: names: English name of a color or part -> what it is called."""

    questions: Mapping[str, Sequence[str]]
    names: Mapping[str, str]
    colon: str
    answer: str

    def name(self, said: str | int) -> str:
        return self.names.get(said, said) if isinstance(said, str) else str(said)

    def question(self, proof: Proved, choose: Callable[[Sequence[str]], str]) -> str:
        """One of the ways to ask."""
        return choose(self.questions[proof.ask]).format(**{key: self.name(said) for key, said in proof.slots.items()})

    def reasoning(self, proof: Proved) -> str:
        """What is read, then the calculations, one a line."""
        read = [f"{self.name(name)}{self.colon}{value}" for name, value in proof.values.items()]
        return "\n".join([*read, *(f"{step.left} = {step.result}" for step in proof.steps if step.left)])


_COLORS_ZH = {
    "red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "purple": "紫色", "orange": "橙色",
}  # fmt: skip

ENGLISH = ProofWords(
    names={
        "first_angle": "first angle", "second_angle": "second angle", "third_angle": "third angle",
    },
    colon=": ",
    answer="The answer is {}.",
    questions={
        "bars_value": ("What is the value of the {a} bar?", "How high is the {a} bar?"),
        "bars_sum": ("What do the {a} bar and the {b} bar add up to?",),
        "bars_difference": ("By how much is the {a} bar higher than the {b} bar?",),
        "bars_total": ("What is the total of all bars?",),
        "bars_range": ("What is the difference between the highest and the lowest bar?",),
        "bars_mean": ("What is the average value of the bars?",),
        "bars_scaled": ("If the {a} bar were {k} times as high, what would its value be?",),
        "lines_value": ("What value does the line have at {a}?",),
        "lines_sum": ("What is the sum of the values at {a} and {b}?",),
        "lines_difference": ("By how much is the value at {a} greater than the value at {b}?",),
        "lines_range": ("What is the difference between the highest and the lowest point of the line?",),
        "lines_total": ("What is the sum of all points of the line?",),
        "lines_mean": ("What is the average of the values of the line?",),
        "pie_value": ("The pie chart shows shares in percent. What percentage is {a}?",),
        "pie_sum": ("The pie chart shows shares in percent. What percentage do {a} and {b} make up together?",),
        "pie_difference": ("The pie chart shows shares in percent. How many percentage points is {a} ahead of {b}?",),
        "pie_of": ("The pie chart shows shares in percent of {k} people. How many people are {a}?",),
        "pie_rest": ("The pie chart shows shares in percent. What percentage isn't {a}?",),
        "triangle": ("How many degrees is the missing angle of the triangle?",),
        "line": ("The angles lie on a straight line. How many degrees is the missing one?",),
        "rectangle_area": ("What is the area of the rectangle?",),
        "rectangle_perimeter": ("What is the perimeter of the rectangle?",),
        "rectangle_side": ("The area of the rectangle is {k}. How long is the missing side?",),
        "rectangle_diagonal": ("How long is the diagonal of the rectangle?",),
        "right_area": ("What is the area of the right-angled triangle?",),
        "right_hypotenuse": ("How long is the longest side of the right-angled triangle?",),
        "circle_diameter": ("The radius of the circle is marked. How long is its diameter?",),
        "circle_area": ("The radius of the circle is marked. Its area is π times what number?",),
        "circle_circumference": ("The radius of the circle is marked. Its circumference is π times what number?",),
    },
)  # fmt: skip

CHINESE = ProofWords(
    names={
        **_COLORS_ZH, "first_angle": "第一个角", "second_angle": "第二个角", "third_angle": "第三个角", "width": "宽",
        "height": "高", "radius": "半径",
    },
    colon="：",
    answer="答案是：{}。",
    questions={
        "bars_value": ("{a}柱子的值是多少？", "{a}柱子有多高？"),
        "bars_sum": ("{a}柱子和{b}柱子的和是多少？",),
        "bars_difference": ("{a}柱子比{b}柱子高多少？",),
        "bars_total": ("所有柱子的总和是多少？",),
        "bars_range": ("最高的柱子和最低的柱子相差多少？",),
        "bars_mean": ("这些柱子的平均值是多少？",),
        "bars_scaled": ("如果{a}柱子变为原来的{k}倍高，它的值是多少？",),
        "lines_value": ("折线在{a}处的值是多少？",),
        "lines_sum": ("折线在{a}处和{b}处的值之和是多少？",),
        "lines_difference": ("折线在{a}处的值比在{b}处大多少？",),
        "lines_range": ("折线的最高点和最低点相差多少？",),
        "lines_total": ("折线各点的值之和是多少？",),
        "lines_mean": ("折线各点的平均值是多少？",),
        "pie_value": ("饼图中的数是百分比。{a}占百分之几？",),
        "pie_sum": ("饼图中的数是百分比。{a}和{b}一共占百分之几？",),
        "pie_difference": ("饼图中的数是百分比。{a}比{b}多几个百分点？",),
        "pie_of": ("饼图是{k}人的百分比。{a}有多少人？",),
        "pie_rest": ("饼图中的数是百分比。不是{a}的占百分之几？",),
        "triangle": ("三角形中缺少的角是多少度？",),
        "line": ("这些角在一条直线上。缺少的角是多少度？",),
        "rectangle_area": ("长方形的面积是多少？",),
        "rectangle_perimeter": ("长方形的周长是多少？",),
        "rectangle_side": ("长方形的面积是{k}。缺少的边长是多少？",),
        "rectangle_diagonal": ("长方形的对角线有多长？",),
        "right_area": ("这个直角三角形的面积是多少？",),
        "right_hypotenuse": ("这个直角三角形最长的边有多长？",),
        "circle_diameter": ("图中标出了圆的半径。它的直径是多少？",),
        "circle_area": ("图中标出了圆的半径。它的面积是 π 的多少倍？",),
        "circle_circumference": ("图中标出了圆的半径。它的周长是 π 的多少倍？",),
    },
)  # fmt: skip

PROOF_LANGUAGES: dict[str, ProofWords] = {"en": ENGLISH, "zh": CHINESE}

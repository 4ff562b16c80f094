"""The structure of the word problems: what is computed from which numbers, and which sentences tell it.

A template belongs to no language. Its story names clauses; `_words.clauses_en` and `_words.clauses_zh` phrase each of
them in several ways. Letters are the numbers of the story, in the order in which they are told.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

LARGEST = 99  # no operand and no result is above it
SMALLEST = 2  # of the numbers told, so that "2 apples" never becomes "1 apples"
_MOST_ADDED = 45
_FACTORS = (2, 6)

Range = tuple[int, int]
_T = TypeVar("_T")


class Step(NamedTuple):
    """One operation; left and right are places in a list that holds the operands and then the results."""

    sign: str
    left: int
    right: int


@dataclass(frozen=True)
class Template:
    """One kind of story.

    Attributes:
        name: its name, part of the key that decides between train and test.
        steps: the operations, in the order of the rationale; the last result is the answer.
        story: (clause, letters of its numbers), the question last.
        size: how many numbers the story tells.
        ranges: place of an operand -> smallest and largest value, where the defaults would be implausible.
        about: what the story is about, so that a distractor fits: person, people, hens, ride, hall.
        unseen: True for those that never occur in the training split.
    """

    name: str
    steps: tuple[Step, ...]
    story: tuple[tuple[str, str], ...]
    size: int
    ranges: dict[int, Range] = field(default_factory=dict)
    about: str = "person"
    unseen: bool = False

    def draw(self, rng: random.Random) -> list[int] | None:
        """Operands and then results of one story, or None where the numbers drawn so far leave no choice."""
        values = [0] * self.size
        for sign, left, right in self.steps:
            result = _DRAW[sign](rng, values, left, right, self.ranges)
            if not 1 <= result <= LARGEST:
                return None
            values.append(result)
        return values

    def lines(self, values: list[int]) -> list[str]:
        """The rationale: one line per step, such as "12 + 7 = 19"."""
        return [
            f"{values[left]} {sign} {values[right]} = {values[self.size + i]}"
            for i, (sign, left, right) in enumerate(self.steps)
        ]


def one(rng: random.Random, options: Sequence[_T]) -> _T:
    """One of the options, as `random.choice` but much quicker."""
    return options[int(rng.random() * len(options))]


def distinct(rng: random.Random, options: Sequence[_T], count: int) -> list[_T]:
    """So many different options, in any order."""
    left = list(options)
    return [left.pop(int(rng.random() * len(left))) for _ in range(count)]


def _pick(rng: random.Random, low: int, high: int) -> int:
    """Uniform over low..high, or 0 (never a value) for an empty range. Much quicker than randint."""
    return low + int(rng.random() * (high - low + 1)) if high >= low else 0


# Each `_draw_*` draws those of its two numbers that are still 0 and gives the result, or 0 where there is none. A
# template's range replaces the default.


def _draw_sum(rng: random.Random, values: list[int], left: int, right: int, ranges: dict[int, Range]) -> int:
    if not values[left]:
        values[left] = _pick(rng, *ranges.get(left, (4, 70)))
    if not values[right]:
        low, high = ranges.get(right, (SMALLEST, _MOST_ADDED))
        values[right] = _pick(rng, low, min(high, LARGEST - values[left]))
    return values[left] + values[right] if values[right] else 0


def _draw_difference(rng: random.Random, values: list[int], left: int, right: int, ranges: dict[int, Range]) -> int:
    if not values[left]:
        low, high = ranges.get(left, (10, LARGEST))
        values[left] = _pick(rng, max(low, values[right] + 2), high)
    if not values[right]:
        low, high = ranges.get(right, (SMALLEST, _MOST_ADDED))
        values[right] = _pick(rng, low, min(high, values[left] - 2))
    return values[left] - values[right] if values[left] and values[right] else 0


def _draw_product(rng: random.Random, values: list[int], left: int, right: int, ranges: dict[int, Range]) -> int:
    # A result times a small factor; or, where both are new, a small factor times whatever fits.
    low, high = ranges.get(right, _FACTORS if values[left] else (SMALLEST, LARGEST))
    if not values[left]:
        values[left] = _pick(rng, *ranges.get(left, _FACTORS))
    if not values[right]:
        values[right] = _pick(rng, low, min(high, LARGEST // values[left]))
    return values[left] * values[right]


def _draw_quotient(rng: random.Random, values: list[int], left: int, right: int, ranges: dict[int, Range]) -> int:
    low, high = ranges.get(right, _FACTORS)
    if not values[left]:
        values[right] = _pick(rng, low, high)
        quotient = _pick(rng, 3, LARGEST // values[right])
        values[left] = quotient * values[right]
        return quotient
    fitting = [d for d in range(low, high + 1) if values[left] % d == 0 and values[left] >= 2 * d]
    if not fitting:
        return 0
    values[right] = one(rng, fitting)
    return values[left] // values[right]


_DRAW: dict[str, Callable[[random.Random, list[int], int, int, dict[int, Range]], int]] = {
    "+": _draw_sum,
    "-": _draw_difference,
    "*": _draw_product,
    "/": _draw_quotient,
}


def _template(
    name: str, steps: str, story: str, *, about: str = "person", unseen: bool = False, **ranges: Range
) -> Template:
    """Read "b*c, a-1" (a digit is the result of that step) and "has a | gives_each b c | q_left"."""
    clauses = tuple((clause, "".join(letters)) for clause, *letters in (part.split() for part in story.split("|")))
    letters = "".join(numbers for _, numbers in clauses)
    size = len(letters)

    def place(token: str) -> int:
        return size + int(token) - 1 if token.isdigit() else letters.index(token)

    parsed = tuple(Step(text[1], place(text[0]), place(text[2])) for text in steps.split(", "))
    limits = {letters.index(letter): span for letter, span in ranges.items()}
    return Template(name, parsed, clauses, size, limits, about, unseen)


_AGE = (5, 60)
_PRICE = (2, 12)
_FEW: Range = (3, 14)  # in one box, where two kinds of boxes are added
_START = (10, 60)
_SOME = (2, 30)  # what comes and goes in long stories

_ALL = (
    # 1 step
    _template("gain", "a+b", "has a | gets b | q_now"),
    _template("loss", "a-b", "has a | gives b | q_left"),
    _template("packs", "a*b", "packs a b | q_all"),
    _template("share", "a/b", "has a | to_friends b | q_friend"),
    _template("more_than", "a+b", "has a | m_more b | q_m"),
    _template("fewer_than", "a-b", "has a | m_fewer b | q_m"),
    _template("times", "a*b", "has a | m_times b | q_m", a=(4, 40), b=(2, 6)),
    _template("cost", "a*b", "buys a b | q_cost", a=(2, 9), b=_PRICE),
    _template("age", "a+b", "age a | m_older b | q_m_age", about="people", a=_AGE),
    _template("fill_boxes", "a/b", "has a | boxes_of b | q_boxes", b=(2, 9)),
    _template("pages_left", "a-b", "book a | reads b | q_pages"),
    # 2 steps
    _template("gain_loss", "a+b, 1-c", "has a | gets b | gives c | q_now"),
    _template("loss_gain", "a-b, 1+c", "has a | gives b | gets c | q_now"),
    _template("packs_gain", "a*b, 1+c", "packs a b | gets c | q_now"),
    _template("packs_loss", "a*b, 1-c", "packs a b | gives c | q_left", b=(4, 24)),
    _template("gain_share", "a+b, 1/c", "has a | gets b | to_friends c | q_friend"),
    _template("loss_boxes", "a-b, 1/c", "has a | gives b | into c | q_box"),
    _template("both_more", "a+b, a+1", "has a | m_more b | q_both", about="people", a=(3, 45)),
    _template("both_fewer", "a-b, a+1", "has a | m_fewer b | q_both", about="people", a=(8, 60)),
    _template("both_times", "a*b, a+1", "has a | m_times b | q_both", about="people", a=(3, 32), b=(2, 6)),
    _template("shop_change", "b*c, a-1", "money a | buys b c | q_money", b=(2, 9), c=_PRICE),
    _template("unit_rate", "a/b, 1*c", "in_boxes a b | q_in_boxes c", b=(5, 9), c=(2, 4)),
    _template("age_later", "a+b, 1+c", "age a | m_older b | q_m_age_in c", about="people", a=_AGE, c=_SOME),
    _template("ride_1", "a-b, 1+c", "ride a | off b | on c | q_ride", about="ride"),
    _template("hall_more", "a*b, 1+c", "rows a b | chairs_in c | q_chairs", about="hall", a=(2, 9), b=(3, 12)),
    _template("pages_days", "b*c, a-1", "book a | reads_daily b c | q_pages", b=(3, 20), c=(2, 6)),
    # 3 steps
    _template("gain_loss_gain", "a+b, 1-c, 2+d", "has a | gets b | gives c | gets d | q_now"),
    _template("two_kinds", "a*b, c*d, 1+2", "packs a b | packs_too c d | q_all", b=_FEW, d=_FEW),
    _template("packs_loss_boxes", "a*b, 1-c, 2/d", "packs a b | gives c | into d | q_box", b=(4, 24)),
    _template("shop_spend", "b*c, a-1, 2-d", "money a | buys b c | spends d | q_money", b=(2, 9), c=_PRICE),
    _template("save_spend", "a*b, 1+c, 2-d", "saves a b | money_gift c | spends d | q_money", a=(3, 20), b=(2, 6)),
    _template("ride_2", "a-b, 1+c, 2-d", "ride a | off b | on c | off d | q_ride", about="ride"),
    _template("boxes_sold", "a-b, 1/c, 2*d", "has a | gives b | boxes_of c | sells_each d | q_earn", c=(2, 9)),
    _template(
        "hall_both",
        "a*b, 1+c, 2-d",
        "rows a b | chairs_in c | chairs_out d | q_chairs",
        about="hall",
        a=(2, 9),
        b=(3, 12),
    ),
    _template(
        "pages_rest", "b*c, a-1, 2/d", "book a | reads_daily b c | rest d | q_days", b=(3, 14), c=(2, 6), d=(2, 9)
    ),
    _template("both_more_boxes", "a+b, a+1, 2/c", "has a | m_more b | they_into c | q_box", about="people", a=(3, 45)),
    # 4 steps
    _template(
        "three_fewer",
        "a+b, 1-c, a+1, 3+2",
        "has a | m_more b | k_fewer c | q_three",
        about="people",
        a=(3, 35),
        b=(2, 25),
    ),
    _template(
        "three_times",
        "a*b, 1+c, a+1, 3+2",
        "has a | m_times b | k_more c | q_three",
        about="people",
        a=(3, 18),
        b=(2, 4),
        c=(2, 20),
    ),
    _template(
        "hens_sold",
        "a*b, 1-c, 2/d, 3*e",
        "hens a b | eggs_used c | eggs_of d | sells_each e | q_earn",
        about="hens",
        a=(3, 12),
        b=(2, 9),
        d=(2, 6),
    ),
    _template("two_kinds_loss", "a*b, c*d, 1+2, 3-e", "packs a b | packs_too c d | gives e | q_left", b=_FEW, d=_FEW),
    _template(
        "shop_two",
        "b*c, d*e, 1+2, a-3",
        "money a | buys b c | buys_too d e | q_money",
        b=(2, 6),
        c=_PRICE,
        d=(2, 6),
        e=_PRICE,
    ),
    _template(
        "chain_4",
        "a+b, 1-c, 2+d, 3-e",
        "has a | gets b | gives c | gets d | gives e | q_now",
        a=_START,
        b=_SOME,
        d=_SOME,
    ),
    _template(
        "ride_3", "a-b, 1+c, 2-d, 3+e", "ride a | off b | on c | off d | on e | q_ride", about="ride", c=_SOME, e=_SOME
    ),
    _template(
        "packs_friends", "a*b, 1+c, 2-d, 3/e", "packs a b | gets c | gives d | to_friends e | q_friend", b=(4, 20)
    ),
    # 5 steps
    _template(
        "chain_5",
        "a-b, 1+c, 2-d, 3+e, 4-f",
        "has a | gives b | gets c | gives d | gets e | gives f | q_left",
        a=(20, 90),
    ),
    _template(
        "two_kinds_friends",
        "a*b, c*d, 1+2, 3-e, 4/f",
        "packs a b | packs_too c d | gives e | to_friends f | q_friend",
        b=_FEW,
        d=_FEW,
    ),
    _template(
        "pages_two",
        "b*c, d*e, 1+2, a-3, 4/f",
        "book a | reads_daily b c | then_daily d e | rest f | q_days",
        b=(3, 12),
        c=(2, 5),
        d=(3, 12),
        e=(2, 5),
        f=(2, 9),
    ),
    _template(
        "three_loss",
        "a+b, 1-c, a+1, 3+2, 4-d",
        "has a | m_more b | k_fewer c | they_give d | q_they",
        about="people",
        a=(3, 35),
        b=(2, 25),
    ),
    _template(
        "save_shop",
        "a*b, 1+c, 2-d, e*f, 3-4",
        "saves a b | money_gift c | spends d | buys e f | q_money",
        a=(3, 20),
        b=(2, 6),
        d=(2, 25),
        e=(2, 6),
        f=_PRICE,
    ),
    _template(
        "ride_4",
        "a-b, 1+c, 2-d, 3+e, 4-f",
        "ride a | off b | on c | off d | on e | off f | q_ride",
        about="ride",
        c=_SOME,
        e=_SOME,
    ),
    # 6 steps
    _template(
        "chain_6",
        "a+b, 1-c, 2+d, 3-e, 4+f, 5-g",
        "has a | gets b | gives c | gets d | gives e | gets f | gives g | q_now",
        a=_START,
        b=_SOME,
        d=_SOME,
        f=_SOME,
    ),
    _template(
        "two_kinds_sold",
        "a*b, c*d, 1+2, 3-e, 4/f, 5*g",
        "packs a b | packs_too c d | gives e | boxes_of f | sells_each g | q_earn",
        b=_FEW,
        d=_FEW,
    ),
    _template(
        "three_boxes",
        "a+b, 1-c, a+1, 3+2, 4-d, 5/e",
        "has a | m_more b | k_fewer c | they_give d | they_into e | q_box",
        about="people",
        a=(3, 35),
        b=(2, 25),
    ),
    _template(
        "save_long",
        "a*b, 1+c, 2-d, e*f, 3-4, 5-g",
        "saves a b | money_gift c | spends d | buys e f | spends_too g | q_money",
        a=(3, 20),
        b=(2, 6),
        d=(2, 20),
        e=(2, 6),
        f=_PRICE,
        g=(2, 20),
    ),
    _template(
        "hall_long",
        "a*b, c*d, 1+2, 3-e, 4+f, 5-g",
        "rows a b | rows_too c d | chairs_out e | chairs_in f | chairs_out g | q_chairs",
        about="hall",
        a=(2, 6),
        b=_FEW,
        c=(2, 6),
        d=_FEW,
    ),
    _template(
        "ride_5",
        "a-b, 1+c, 2-d, 3+e, 4-f, 5+g",
        "ride a | off b | on c | off d | on e | off f | on g | q_ride",
        about="ride",
        c=_SOME,
        e=_SOME,
        g=_SOME,
    ),
    # never in the training split: known sentences and words in orders that are new
    _template("give_each", "b*c, a-1", "has a | gives_each b c | q_left", unseen=True, b=(2, 9), c=(2, 12)),
    _template("boxes_gain", "a/b, 1+c", "has a | into b | each_more c | q_box_now", unseen=True),
    _template("gain_unit", "a+b, 1/c, 2*d", "has a | gets b | into c | q_in_boxes d", unseen=True, c=(5, 9), d=(2, 4)),
    _template(
        "times_loss",
        "a*b, a+1, 2-c",
        "has a | m_times b | they_give c | q_they",
        about="people",
        unseen=True,
        a=(3, 32),
        b=(2, 6),
    ),
    _template(
        "packs_again",
        "a*b, 1-c, 2/d, 3+e",
        "packs a b | gives c | into d | each_more e | q_box_now",
        unseen=True,
        b=(4, 24),
    ),
    _template(
        "gift_shop",
        "a+b, c*d, 1-2, 3-e",
        "money a | money_gift b | buys c d | spends e | q_money",
        unseen=True,
        c=(2, 6),
        d=_PRICE,
        e=(2, 25),
    ),
    _template(
        "packs_sale",
        "a*b, 1+c, 2-d, 3/e, 4*f",
        "packs a b | gets c | gives d | boxes_of e | sells_each f | q_earn",
        unseen=True,
        b=(4, 20),
    ),
    _template(
        "long_boxes",
        "a*b, 1-c, 2+d, 3-e, 4+f, 5/g",
        "packs a b | gives c | gets d | gives e | gets f | into g | q_box",
        unseen=True,
        b=(4, 24),
    ),
)

TEMPLATES: dict[str, Template] = {template.name: template for template in _ALL}

"""A second reading of the English word problems, from the text alone: it knows sentences, and nothing of the builder.

Each rule is a pattern and what a person takes from it. A sentence that no rule knows is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Numbers = list[int]

# A sentence that only completes the one before it is read together with it.
_COMPLETES = re.compile(
    r"(?:He|She) does this for|There are \d+ \w+ in each|Each \w+ (?:has|gives|costs) (?:\w+ )?\d+"
    r"|Each \w+ (?:gets|has) the same number|\w+ was \d+ years old when"
)
_OPENING = re.compile(
    r"(?:Then|After that|At first|In the end|On the way home|On the way|First|Together|At the next stop"
    r"|At the \w+(?! stop)|Each day|Each week|From then on|Now) "
)


class Reader:
    """What is known after some sentences of a story."""

    def __init__(self, first: str) -> None:
        self.first = first  # the person whom "he" and "she" mean
        self.people: dict[str, int] = {}
        self.ages: dict[str, int] = {}
        self.pool = 0  # things, dollars, pages, people or chairs that are there now
        self.spent = 0
        self.boxes = 0
        self.each = 0  # in each box, for each friend
        self.rate = 0
        self.earned = 0

    def own(self, number: int) -> None:
        self.pool = self.people[self.first] = number

    def compare(self, subject: str, difference: int, other: str) -> None:
        if other in self.people:
            self.people[subject] = self.people[other] + difference
        else:
            self.people[other] = self.people[subject] - difference

    def change(self, number: int) -> None:
        self.pool += number

    def buy(self, number: int) -> None:
        self.pool -= number
        self.spent += number

    def join(self) -> None:
        if len(self.people) > 1:
            self.pool = sum(self.people.values())
            self.people = {}

    def divide(self, number: int) -> int:
        self.join()
        quotient, rest = divmod(self.pool, number)
        assert rest == 0, (self.pool, number)
        return quotient

    def fill(self, number: int) -> None:
        self.each = self.divide(number)

    def box(self, number: int) -> None:
        self.boxes = self.divide(number)

    def store(self, number: int, boxes: int) -> None:
        self.pool = number
        self.fill(boxes)

    def they_lose(self, number: int) -> None:
        self.join()
        self.pool -= number


Rule = Callable[[Reader, re.Match[str]], object]


def _n(match: re.Match[str]) -> Numbers:
    return [int(group) for group in match.groups() if group is not None and group.isdigit()]


def _product(match: re.Match[str]) -> int:
    a, b = _n(match)
    return a * b


def _compare(r: Reader, m: re.Match[str]) -> None:
    r.compare(m[1], int(m[2]) * (1 if m[3] == "more" else -1), m[4])


def _age(r: Reader, m: re.Match[str]) -> None:
    r.ages[m[1]] = int(m[2])


_RULES: list[tuple[str, Rule]] = [
    # numbers that play no part
    (r"also has \d+ \w+ at home|takes \d+ minutes|[Tt]here are \d+ people in the|^A ticket costs", lambda r, m: None),
    (r"^The \w+ (?:is \d+ years old|has \d+ books)\.$", lambda r, m: None),
    # ages
    (r"(\w+) was (\d+) years old when (\w+) was born", lambda r, m: r.ages.update({m[1]: r.ages[m[3]] + int(m[2])})),
    (r"(\w+) is (\d+) years older than (\w+)", lambda r, m: r.ages.update({m[1]: r.ages[m[3]] + int(m[2])})),
    (r"(\w+) is older than (\w+) by (\d+)", lambda r, m: r.ages.update({m[1]: r.ages[m[2]] + int(m[3])})),
    (r"^(\w+) is (\d+) years old\.$", _age),
    (r"^The age of (\w+) is (\d+)", _age),
    # what one has more or less than another
    (r"^(\w+) (?:has|owns) (\d+) (more|fewer) \w+ than (\w+)\.$", _compare),
    (r"^(\w+) has as many \w+ as (\w+) and (\d+) more\.$", lambda r, m: r.compare(m[1], int(m[3]), m[2])),
    (
        r"^(\w+) (?:has|owns) (\d+) times (?:as many \w+ as|the number of \w+ that) (\w+)",
        lambda r, m: r.people.update({m[1]: r.people[m[3]] * int(m[2])}),
    ),
    # so many times so many
    (r"(\d+) (?:more )?rows (?:of|with) (\d+) chairs", lambda r, m: r.change(_product(m))),
    (r"(\d+) rows of chairs in the hall\. Each row has (\d+)", lambda r, m: r.change(_product(m))),
    (r"gives (\d+) friends (\d+) \w+ each", lambda r, m: r.change(-_product(m))),
    (r"has (\d+) friends and gives (\d+) \w+ to each", lambda r, m: r.change(-_product(m))),
    (r"^(\d+) friends get (\d+) \w+ each", lambda r, m: r.change(-_product(m))),
    (r"(?:has|fills) (\d+) \w+ with (\d+) \w+ (?:in each|each)", lambda r, m: r.change(_product(m))),
    (r"buys (\d+) \w+ of \w+\. There are (\d+) \w+ in each", lambda r, m: r.change(_product(m))),
    (r"(\d+) hens(?: and each hen|\. Each hen) gives (?:him |her )?(\d+) eggs", lambda r, m: r.change(_product(m))),
    (r"(\d+) hens and \w+ gets (\d+) eggs from each", lambda r, m: r.change(_product(m))),
    (r"buys (\d+) \w+ for (\d+) dollars each", lambda r, m: r.buy(_product(m))),
    (r"buys (\d+) \w+(?: at the \w+)?\. Each \w+ costs (\d+) dollars", lambda r, m: r.buy(_product(m))),
    (r"gets (\d+) \w+ and pays (\d+) dollars for each", lambda r, m: r.buy(_product(m))),
    (r"saves (\d+) dollars a week for (\d+) weeks", lambda r, m: r.change(_product(m))),
    (r"gets (\d+) dollars a day for (\d+) days", lambda r, m: r.change(_product(m))),
    (r"saves (\d+) dollars\. \w+ does this for (\d+) weeks", lambda r, m: r.change(_product(m))),
    (r"reads (\d+) pages (?:a|each) day for (\d+) days", lambda r, m: r.change(-_product(m))),
    (r"reads (\d+) pages(?: each day)?\. \w+ does this for (\d+) days", lambda r, m: r.change(-_product(m))),
    (r"reads (?:at )?(\d+) pages (?:a|each) day\.$", lambda r, m: setattr(r, "rate", _n(m)[0])),
    # boxes and friends
    (r"has (\d+) \w+ in (\d+) \w+\. Each \w+ has the same", lambda r, m: r.store(*_n(m))),
    (r"(?:puts|There are) (\d+) \w+ in(?:to)? (\d+) \w+, the same number in", lambda r, m: r.store(*_n(m))),
    (r"into (\d+) \w+, the same number into each", lambda r, m: r.fill(*_n(m))),
    (r"fills? (\d+) \w+ with all .* Each \w+ gets the same number", lambda r, m: r.fill(*_n(m))),
    (r"to (\d+) friends, the same number", lambda r, m: r.fill(*_n(m))),
    (r"^(\d+) friends get all .* Each friend gets the same number", lambda r, m: r.fill(*_n(m))),
    (
        r"(?:puts|finds) (\d+) more \w+ (?:into|for) each|each \w+ gets (\d+) more",
        lambda r, m: setattr(r, "each", r.each + _n(m)[0]),
    ),
    (r"puts (?:all|the other) .* into \w+ of (\d+)", lambda r, m: r.box(*_n(m))),
    (r"fills \w+ with (?:all|the other) .*, (\d+) \w+ in each", lambda r, m: r.box(*_n(m))),
    (r"go into \w+, (\d+) \w+ into each", lambda r, m: r.box(*_n(m))),
    (
        r"sells each \w+ for (\d+) dollars|gets (\d+) dollars for each",
        lambda r, m: setattr(r, "earned", r.boxes * _n(m)[0]),
    ),
    # more and less
    (r"they (?:give away|sell|lose) (\d+)", lambda r, m: r.they_lose(*_n(m))),
    (r"(\d+) people get on the empty|[Tt]here are (\d+) people on", lambda r, m: r.change(*_n(m))),
    (r"(\d+) more people get on", lambda r, m: r.change(*_n(m))),
    (r"(\d+) people get off", lambda r, m: r.change(-_n(m)[0])),
    (r"book with (\d+) pages|book of \w+ has (\d+) pages|There are (\d+) pages", lambda r, m: r.change(*_n(m))),
    (r"reads (\d+) pages\.$", lambda r, m: r.change(-_n(m)[0])),
    (r"takes (\d+) chairs out|sells (\d+) chairs from|^(\d+) chairs go from", lambda r, m: r.change(-_n(m)[0])),
    (r"(?:gives (?:him|her)|gets|buys|finds|puts) (\d+) more", lambda r, m: r.change(*_n(m))),
    (
        r"(?:gives|gives away|loses|sells|uses|pays) (\d+) \w+(?: to \w+| to a friend| on the way| on the way home"
        r"| at the \w+| for cakes| for a ticket| for food)?\.$",
        lambda r, m: r.change(-_n(m)[0]),
    ),
    (r"(\d+) eggs break", lambda r, m: r.change(-_n(m)[0])),
    (r"^\w+ (?:has|owns) (\d+) \w+\.$|goes to the \w+ with (\d+) dollars", lambda r, m: r.own(*_n(m))),
]
_COMPILED = [(re.compile(pattern), rule) for pattern, rule in _RULES]
_NO_NAMES = {"At", "There", "Each", "The", "Now", "Then", "All", "After"}


def answer_of(story: str) -> int:
    """The answer to a story. Raises AssertionError for a sentence that has no rule."""
    *sentences, question = _sentences(story)
    names = [word for word in re.findall(r"\b[A-Z][a-z]+", story) if word not in _NO_NAMES]
    reader = Reader(names[0])
    for sentence in sentences:
        plain = re.sub(r"\b(?:He|She|he|she)\b", reader.first, _OPENING.sub("", sentence, count=1))
        plain = re.sub(r"^They\b", "they", plain)
        for pattern, rule in _COMPILED:
            match = pattern.search(plain)
            if match:
                rule(reader, match)
                break
        else:
            raise AssertionError(f"no rule for {plain!r} in {story!r}")
    return _ask(reader, question)


def _sentences(story: str) -> list[str]:
    found: list[str] = []
    for sentence in re.split(r"(?<=[.?]) ", story):
        if found and _COMPLETES.match(sentence):
            found[-1] += " " + sentence
        else:
            found.append(sentence)
    return found


def _ask(r: Reader, question: str) -> int:
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    if "How old" in question or "the age" in question:
        whom = next(name for name in r.ages if re.search(rf"\b{name}\b", question))
        return r.ages[whom] + sum(numbers)
    if "of the" in question and numbers:
        return r.each * numbers[0]
    if re.search(r"(?:each|one) (?:friend|box|bag|basket|packet)", question):
        return r.each
    if "days" in question:
        return r.pool // r.rate
    if "dollars" in question and r.boxes:
        return r.earned
    if "pay" in question or "cost" in question:
        return r.spent
    if re.search(r"(?:How many|number of) (?:boxes|bags|baskets|packets)", question):
        return r.boxes
    if re.search(r"together|do they", question):
        r.join()
        return r.pool
    if len(r.people) > 1:
        return next(r.people[name] for name in r.people if re.search(rf"\b{name}\b", question))
    return r.pool

"""Does a text name only what its picture's annotation has? The idea is CHAIR's (arXiv:1809.02156), with nouns at large.

English: names of the lexicon wherever they stand for a thing (not in "train station", "to train", "no train", "like a
train"), and after "a", "two" ... unknown nouns as well, unless all signs are that they name no object. Chinese: names
of the lexicon, the longest first. A name is grounded by a box of its category, by a caption that says it or another
name of the same thing, or, where it names a kind ("animal"), by any of its members.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from data_builders._visual import plain_words as plain
from data_builders._visual.lexicon import CATEGORIES, MORE, VERBS

_KINDS: dict[str, tuple[str, ...]] = {
    "fruit": ("banana", "apple", "orange", "pear", "grape", "strawberry", "lemon", "pineapple", "watermelon", "kiwi"),
    "plant": ("potted plant", "tree", "flower", "cactus", "bush"),
    "toy": ("teddy bear", "doll", "lego", "yo-yo", "robot", "kite", "frisbee"),
    "animal": ("insect", "butterfly", "bee", "spider", "ant"),
}
"""Members of a group besides those that stand under it."""
_PLURALS = {"child": "children", "person": "people", "mouse": "mice", "goose": "geese", "ox": "oxen", "foot": "feet"}
_SAME_PLURAL = ("fish", "sheep", "deer", "cattle", "people", "scissors", "skis", "moose", "buffalo", "salmon", "shrimp")
_ONE = plain.names("a an another one")
_BEGINNINGS = plain.DETERMINERS | plain.names("the some his her their")
_LONGEST = 3  # words of a name
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+|-|[^\w\s]", re.UNICODE)
_SENTENCE = re.compile(r"(?<=[.!?;:])\s+|(?<=[。！？；])|\n+")
_PLACE_ZH = re.compile(r"[场店馆库窝]|站(?![在着立起了])")
_HAN = re.compile(r"[一-鿿]")
_NEGATORS = plain.names("no without neither nor none lacks lack lacking absence never cannot")
_NOTS = plain.names("not n't")
_NOTHING = plain.names("a an any one")
_HAVING = plain.names("have has contain include show see feature hold carry wear ride own depict")
_LIKENESS = plain.names("like as resembling resembles resemble unlike")
_LOOKING = plain.names("look looks looking looked shaped seem seems feel feels sound sounds appear appears just much")
_SERVING = plain.names(
    "used serve serves serving act acts acting known seen dressed function functions functioning works"
)
_CLAUSE_ENDS = frozenset(".!?;:,()") | {"but", "and", "while", "however", "which", "there"}
_SIDES = plain.names("left right front back top bottom middle center side inside outside end stand sit walk ride rest")
_ADJECTIVES_TOO = ("orange", "remote")
_BEFORE_ADJECTIVES = plain.names("is are was were be bright dark light and or in of yellow red")


class Span(NamedTuple):
    """Words of a sentence that name something: what they may mean, and whether they are several."""

    first: int
    last: int  # just past
    concepts: frozenset[str]
    plural: bool


class Lexicon(NamedTuple):
    """The tables in the form in which they are looked up.

    Attributes:
        english: words of a name -> (concepts that it may mean, is it a plural).
        chinese: name -> concepts.
        members: group -> its concepts; a group's concept is its name with "@".
    """

    english: Mapping[tuple[str, ...], tuple[frozenset[str], bool]]
    chinese: Mapping[str, frozenset[str]]
    members: Mapping[str, frozenset[str]]
    categories: tuple[str, ...]


@functools.cache
def lexicon() -> Lexicon:
    """The lexicon, built once."""
    english: dict[tuple[str, ...], tuple[set[str], bool]] = {}
    chinese: dict[str, set[str]] = {}
    members: dict[str, set[str]] = {}
    categories = []
    for table in (CATEGORIES, MORE):
        group = ""
        for line in re.sub(r"\n\s+", " ", table).strip().splitlines():
            if line.startswith("["):
                group, concept, said, han = _group_line(line)
            else:
                head, _, rest = line.partition(":")
                said_rest, _, han = rest.partition("|")
                concept, said = head.strip(), [head.strip().replace(" ", "-"), *said_rest.split()]
                members.setdefault(group, set()).add(concept)
                if table is CATEGORIES:
                    categories.append(concept)
            for name in said:
                _add_english(english, tuple(name.split("-")), concept)
            for name in han.split():
                chinese.setdefault(name, set()).add(concept)
    for group, more in _KINDS.items():
        members.setdefault(group, set()).update(more)
    return Lexicon(
        {words: (frozenset(concepts), plural) for words, (concepts, plural) in english.items()},
        {name: frozenset(concepts) for name, concepts in chinese.items()},
        {f"@{group}": frozenset(concepts) for group, concepts in members.items()},
        tuple(categories),
    )


def _group_line(line: str) -> tuple[str, str, list[str], str]:
    """(group, its concept, its names, its Chinese names) of "[animal: animal creature | 动物]"."""
    head, _, rest = line.strip("[] ").partition(":")
    said, _, han = rest.partition("|")
    return head.strip(), f"@{head.strip()}", said.split(), han


def _add_english(english: dict[tuple[str, ...], tuple[set[str], bool]], words: tuple[str, ...], concept: str) -> None:
    several = words[-1] in _PLURALS.values() or words[-1] in _SAME_PLURAL or _singular(words[-1]) != words[-1]
    forms = [(words, several)]
    if not several:
        forms.append(((*words[:-1], _plural(words[-1])), True))
    for form, plural in forms:
        english.setdefault(form, (set(), plural))[0].add(concept)


def _plural(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith("man") and word not in ("human", "german"):
        return word[:-3] + "men"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    if word.endswith(("fe", "lf", "af")) and word not in ("giraffe", "safe"):
        return word.removesuffix("e").removesuffix("f") + "ves"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s")


def _singular(word: str) -> str:
    """A word without the ending of a plural, as far as its letters tell."""
    for one, many in _PLURALS.items():
        if word == many:
            return one
    if word.endswith("men"):
        return word[:-3] + "man"
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("ves"):
        return word[:-3] + "f"
    if word.endswith(("ches", "shes", "xes", "sses", "zes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 2:
        return word[:-1]
    return word


# ---- what an annotation has


@dataclass(frozen=True)
class Ground:
    """What a text may name.

    Attributes:
        concepts: of the boxes and the captions, groups of them too.
        words: of the captions and the names of the boxes, in the singular.
        text: all of it, for Chinese names that no lexicon knows.
    """

    concepts: frozenset[str]
    words: frozenset[str]
    text: str

    @classmethod
    def of(cls, captions: Iterable[str], categories: Iterable[str] = ()) -> Ground:
        """Of captions and of the names of boxes or objects, in English or Chinese."""
        texts = [*captions, *(category.replace("_", " ") for category in categories)]
        concepts: set[str] = set()
        words: set[str] = set()
        for text in texts:
            for sentence in _sentences(text):
                spans = list(_spans(sentence))
                taken = {at for span in spans if span.last - span.first > 1 for at in range(span.first, span.last)}
                concepts.update(*(span.concepts for span in spans))
                words.update(_singular(word) for at, word in enumerate(sentence) if at not in taken)
            concepts.update(*(found for _, found in _chinese_names(text)))
        groups = [group for group, members in lexicon().members.items() if members & concepts]
        return cls(frozenset(concepts.union(groups)), frozenset(words), "\n".join(texts))

    def has(self, concepts: frozenset[str], word: str) -> bool:
        """Whether a name with these meanings is grounded, or stands word for word in a caption."""
        return bool(concepts & self.concepts) or _singular(word) in self.words


# ---- what a text names


def ungrounded(text: str, ground: Ground, *, suppositions: bool = False) -> list[str]:
    """The names of objects in a text that its picture's annotation doesn't have, each once, in order.

    Args:
        text: what was written about a picture, English or Chinese.
        ground: what the annotation has.
        suppositions: sentences that suppose, advise or explain may speak of people and of kinds of things ("vehicles
            could pass"), and use nouns that no table knows, unless they speak of the picture ("in the background"):
            for answers that reason. Things of the tables have to be there even so.
    """
    found: list[str] = []
    for sentence in _SENTENCE.split(text):
        supposed = suppositions and is_supposed(sentence)
        if _HAN.search(sentence):
            named = [name for name in _chinese_objects(sentence) if not _chinese_grounded(name, ground)]
            found += [name for name in named if not (supposed and _is_general(lexicon().chinese[name]))]
        else:
            found += _ungrounded_english(_tokens(sentence), ground, supposed=supposed)
    return list(dict.fromkeys(found))


def is_supposed(sentence: str) -> bool:
    """Whether a sentence reasons about things rather than saying that they are seen."""
    low = sentence.lower()
    if any(mark in low for mark in plain.SEEN):
        return False
    return bool(plain.SUPPOSING & set(_tokens(sentence))) or any(mark in low for mark in plain.SUPPOSING_ZH)


def _ungrounded_english(words: Sequence[str], ground: Ground, *, supposed: bool) -> list[str]:
    spans = list(_spans(words))
    denied = _denied(words)
    found = []
    for span in spans:
        name = " ".join(words[span.first : span.last])
        if supposed and _is_general(span.concepts):
            continue
        if span.first in denied or not _is_thing(words, span) or ground.has(span.concepts, name):
            continue
        if span.last - span.first == 1 or not all(_singular(w) in ground.words for w in name.split()):
            found.append((span.first, name))
    taken = {at for span in spans for at in range(span.first, span.last)}
    for at in () if supposed else _unknown_nouns(words, taken):
        if at not in denied and _singular(words[at]) not in ground.words:
            found.append((at, words[at]))
    return [name for _, name in sorted(found)]


def _is_general(concepts: frozenset[str]) -> bool:
    """Whether a name may mean no thing of the picture but all there are: "people", "any vehicle"."""
    return any(concept == "person" or concept.startswith("@") for concept in concepts)


def _sentences(text: str) -> list[list[str]]:
    return [_tokens(sentence) for sentence in _SENTENCE.split(text)]


def _tokens(text: str) -> list[str]:
    """Words in lower case, hyphens and signs; a possessive's "'s" is a word."""
    text = text.lower().replace("’", "'").replace("'s", " 's").replace("n't", " n't")
    return _WORD.findall(text)


def _spans(words: Sequence[str]) -> Iterator[Span]:
    """The names of the lexicon, the longest first; a hyphen inside one is no word."""
    english = lexicon().english
    at = 0
    while at < len(words):
        for length in range(_LONGEST, 0, -1):
            picked, end = _take(words, at, length)
            known = english.get(picked) if len(picked) == length else None
            if known is not None:
                yield Span(at, end, known[0], known[1])
                at = end
                break
        else:
            at += 1


def _take(words: Sequence[str], at: int, length: int) -> tuple[tuple[str, ...], int]:
    """(the next `length` words, hyphens between them skipped; where they end)."""
    picked: list[str] = []
    while at < len(words) and len(picked) < length:
        if words[at] != "-":
            picked.append(words[at])
        elif not picked:
            break
        at += 1
    return tuple(picked), at


def _is_thing(words: Sequence[str], span: Span) -> bool:
    """Whether a name stands for a thing here: not as a verb, a color, or before the noun that is meant."""
    before = words[span.first - 1] if span.first else ""
    after = words[span.last] if span.last < len(words) else ""
    if after == "-" or (before == "-" and span.first > 1):
        return False
    name = words[span.first]
    if span.last - span.first == 1 and _singular(name) in VERBS | {"glass"} and not _noun_place(words, span):
        return False
    if name in _ADJECTIVES_TOO and span.last - span.first == 1:
        return before not in _BEFORE_ADJECTIVES and _may_end(after) and not _joins(words, span.last)
    if span.plural or after == "":
        return True
    return not _is_head(after)


def _is_head(word: str) -> bool:
    """Whether a word can be the noun that a name before it only describes."""
    if word in _SIDES or _singular(word) in VERBS or word in plain.SMALL:
        return False
    return word in plain.NOT_OBJECTS or (word,) in lexicon().english


def _joins(words: Sequence[str], at: int) -> bool:
    """Whether "and" or "or" stands here and no new phrase begins after it: "orange and white", "remote or quiet"."""
    return at < len(words) and words[at] in ("and", "or") and words[at + 1 : at + 2] != ["a"]


def _may_end(word: str) -> bool:
    return not word or word in plain.SMALL or not word.isalpha() or word.endswith(("ing", "ed", "s", "ly"))


def _noun_place(words: Sequence[str], span: Span) -> bool:
    before = words[span.first - 1] if span.first else ""
    after = words[span.last] if span.last < len(words) else ""
    if before in plain.DETERMINERS | plain.MORE_DETERMINERS or before.isdigit():
        return True
    if before in plain.MODALS | plain.PRONOUNS or before.endswith("ly"):
        return False
    if after in plain.DETERMINERS | plain.MORE_DETERMINERS | {"him", "her", "them", "it"}:
        return False
    known = lexicon().english.get((before,))
    if known is not None and span.plural and not known[1]:
        return False  # "the dog watches"
    return not (known is not None and known[1])  # "dogs bear"


def _denied(words: Sequence[str]) -> set[int]:
    """The places of words that are said not to be there, or only to be looked like."""
    denied: set[int] = set()
    scope, left = "", 0
    for at, word in enumerate(words):
        before, after = words[at - 1] if at else "", words[at + 1] if at + 1 < len(words) else ""
        if _opens_denial(before, word, after):
            scope, left = word, 4 if word in _LIKENESS else 7
        elif scope:
            left -= 1
            if left < 0 or _ends_denial(scope, before, word):
                scope = ""
            else:
                denied.add(at)
    return denied


def _opens_denial(before: str, word: str, after: str) -> bool:
    if word in _NOTS:  # "not a cat", "doesn't have a cat", but "not far from a cat"
        return after in _NOTHING or after in _HAVING
    if word in ("like", "as"):  # "looks like a cat", but "animals like cats"
        return before in (_LOOKING if word == "like" else _SERVING)
    return word in _NEGATORS or word in _LIKENESS


def _ends_denial(scope: str, before: str, word: str) -> bool:
    """ "no cats, cars and trains" goes on; "no cat, and a car" doesn't, nor does "no doubt the car"."""
    if word in _CLAUSE_ENDS - {"and", ","}:
        return True
    if scope in ("no", "without", "neither", "nor"):
        begins = word in plain.DETERMINERS or word in plain.MORE_DETERMINERS or word in plain.PRONOUNS
        return begins and (scope == "no" or before in ("and", ","))
    return word in _CLAUSE_ENDS


# ---- unknown nouns


def _unknown_nouns(words: Sequence[str], taken: set[int]) -> Iterator[int]:
    """The places of nouns that no table knows, at the end of a phrase that begins with a determiner."""
    for at, word in enumerate(words):
        if word not in _BEGINNINGS or words[at + 1 : at + 2] == ["of"]:
            continue
        run: list[int] = []
        for place in range(at + 1, min(at + 6, len(words))):
            token = words[place]
            if token in plain.SMALL or not token.isalpha() or (run and token.endswith(("ing", "ly"))):
                break
            run.append(place)
        noun = _head(words, run, word)
        if noun is not None and not taken.intersection(run):
            yield noun


def _head(words: Sequence[str], run: list[int], determiner: str) -> int | None:
    """The place of the unknown noun that a run of words after a determiner ends with; None where there is none."""
    several = determiner in plain.DETERMINERS - _ONE
    plurals = [index for index, place in enumerate(run) if words[place].endswith("s")]
    if several and plurals:
        run = run[: plurals[-1] + 1]  # "two theremins stand"
    while not several and len(run) > 1 and _is_verb_after(words[run[-2]], words[run[-1]]):
        run = run[:-1]  # "a theremin sits", "a theremin placed"
    if not run or any(_is_plain(words[place]) for place in run):
        return None
    noun = words[run[-1]]
    if len(noun) < 3 or noun.endswith(plain.OPEN_ENDINGS) or _singular(noun) in plain.ADJECTIVES:
        return None
    return run[-1]


def _is_verb_after(before: str, word: str) -> bool:
    return (_singular(word) != word and before not in plain.ADJECTIVES) or word.endswith("ed")


def _is_plain(word: str) -> bool:
    return word in plain.NOT_OBJECTS or _singular(word) in plain.NOT_OBJECTS


# ---- Chinese


@functools.cache
def _chinese_pattern() -> re.Pattern[str]:
    names = sorted({*lexicon().chinese, *plain.NOT_OBJECTS_ZH}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)))


def _chinese_names(text: str) -> Iterator[tuple[int, frozenset[str]]]:
    if not _HAN.search(text):
        return
    for match in _chinese_pattern().finditer(text):
        concepts = lexicon().chinese.get(match[0])
        if concepts:
            yield match.start(), concepts


def _chinese_objects(sentence: str) -> Iterator[str]:
    """Names that a Chinese sentence says are there."""
    for match in _chinese_pattern().finditer(sentence):
        if match[0] not in lexicon().chinese or _PLACE_ZH.match(sentence, match.end()):
            continue  # "公交车站" is a place, "狗站着" a dog
        clause = re.split(r"[，。！？；：,]", sentence[: match.start()])[-1]
        if not any(mark in clause[-8:] for mark in plain.NEGATORS_ZH):
            yield match[0]


def _chinese_grounded(name: str, ground: Ground) -> bool:
    return name in ground.text or bool(lexicon().chinese[name] & ground.concepts)


# ---- names for captions


def plural_of(name: str) -> str:
    """ "hot dog" -> "hot dogs"; a name that is one already stays."""
    *rest, last = name.split()
    return " ".join([*rest, last if last in _SAME_PLURAL else _plural(last)])


@functools.cache
def _first_chinese() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, concepts in lexicon().chinese.items():
        for concept in concepts:
            found.setdefault(concept, name)
    return found


def chinese_name(category: str) -> str:
    """The first Chinese name of a category; the category itself where the lexicon has none."""
    return _first_chinese().get(category, category)

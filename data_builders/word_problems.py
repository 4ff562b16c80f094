"""Word problems of one to six steps in English and Chinese, made from a seed.

    python -m data_builders.word_problems --out data/word_problems --n 10000 --level 2 --seed 0

Each single step is easy (two numbers up to 99, few words) so that a tiny decoder can learn it; the chain is what makes
a bare answer hard. Levels: 1 one or two steps; 2 two to four steps; 3 four to six steps, every third story with a
sentence that plays no part; "1-2" one to four steps, one and two more often; "mix" one to six.
Splits: train and test hold the same templates with other numbers (a hash of template and operands decides), the
templates of "unseen_templates" occur in neither.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import hashlib
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from data_builders._words import clauses_en, clauses_zh
from data_builders._words.templates import LARGEST, TEMPLATES, Template, one
from data_builders.building.cache import keep
from data_builders.building.writing import as_dataset, write_set
from mmreason.types import ConfigError, Example, Message, MMReasonError

__all__ = [
    "LANGUAGES",
    "LEVELS",
    "SPLITS",
    "STYLES",
    "VERSION",
    "SetOptions",
    "as_dataset",
    "build",
    "cached",
    "generate",
    "main",
    "split_of",
]

VERSION = 1  # raise it whenever the same seed would give other rows
_TEST_SHARE = 10  # one in ten sets of operands belongs to the test split
_TRIES_PER_ROW = 400
_ANSWER_SHARE = 0.03  # an answer that more rows have is not drawn again, beyond the first few
_FREE_ANSWERS = 3
_DISTRACTOR_SHARE = 1 / 3  # of the stories with at least _DISTRACTOR_STEPS steps, where the level has them
_DISTRACTOR_STEPS = 4
_DISTRACTOR_RANGE = (7, 60)

LEVELS: dict[str, tuple[int, ...]] = {
    "1": (1, 2),
    "2": (2, 3, 4),
    "1-2": (1, 1, 2, 2, 3, 4),
    "3": (4, 5, 6),
    "mix": (1, 2, 3, 4, 5, 6),
}
"""Level -> numbers of steps, each entry as frequent as the others (as far as the split has templates for it)."""
SPLITS = ("train", "test", "unseen_templates")
STYLES = ("rationale", "bare", "mixed")
LANGUAGES: dict[str, ModuleType] = {"en": clauses_en, "zh": clauses_zh}


class Story(NamedTuple):
    """A problem told in one language."""

    text: str
    operands: list[int]
    steps: list[str]
    answer: int
    template: str
    distractor: bool


def generate(
    n: int,
    seed: int,
    *,
    level: int | str = 2,
    split: str = "train",
    language: str = "en",
    style: str = "rationale",
    bare_share: float = 0.55,
    distinct: bool = True,
) -> list[Example]:
    """n problems; the same arguments always give the same list, and a smaller n gives its beginning.

    Args:
        n: number of problems.
        seed: the same seed gives the same problems; style and bare_share change only the completions.
        level: a key of LEVELS.
        split: a key of SPLITS.
        language: "en", "zh" or "both" (turn by turn).
        style: "rationale" (the steps as ``reasoning_content``, then the answer), "bare" (only the answer) or "mixed".
        bare_share: the share of bare completions in style "mixed".
        distinct: no question twice.

    Raises: ConfigError for arguments that are not known, or more distinct problems than there are.
    """
    _check(n, level, split, language, style, bare_share)
    languages = tuple(LANGUAGES) if language == "both" else (language,)
    rng = random.Random(f"word_problems {VERSION} {seed} {level} {split} {language}")
    style_rng = random.Random(f"word_problems style {VERSION} {seed} {level} {split} {language}")
    share = {"rationale": 0.0, "bare": 1.0, "mixed": bare_share}[style]
    stories = _Stories(rng, str(level), split, distinct)
    examples = []
    for i in range(n):
        told_in = languages[i % len(languages)]
        story = stories.draw(told_in)
        if story is None:
            raise ConfigError(
                f"level {level} gave only {i} different {split} problems in {language!r}, {n} were asked for; "
                "ask for fewer, another level, or distinct=False"
            )
        row_id = f"word_problems/{level}/{language}/{seed}/{split}/{i}"
        examples.append(_example(story, level, told_in, row_id, bare=style_rng.random() < share))
    return examples


def _check(n: int, level: int | str, split: str, language: str, style: str, bare_share: float) -> None:
    if n < 1:
        raise ConfigError(f"n must be at least 1, not {n}")
    for what, value, known in (
        ("level", str(level), tuple(LEVELS)),
        ("split", split, SPLITS),
        ("language", language, (*LANGUAGES, "both")),
        ("style", style, STYLES),
    ):
        if value not in known:
            raise ConfigError(f"unknown {what} {value!r}{_hint(value, known)}; known: {', '.join(known)}")
    if not isinstance(bare_share, float | int) or not 0 <= bare_share <= 1:
        raise ConfigError(f"bare_share must be a number from 0 to 1, not {bare_share!r}")


def _hint(value: object, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(value), known, n=1, cutoff=0.3)
    return f" (did you mean {close[0]!r}?)" if close else ""


@functools.cache
def _by_steps(level: str, unseen: bool) -> tuple[tuple[Template, ...], ...]:
    """The templates of a level, one group per number of steps."""
    groups = (
        tuple(t for t in TEMPLATES.values() if len(t.steps) == steps and t.unseen == unseen) for steps in LEVELS[level]
    )
    return tuple(group for group in groups if group)


class _Stories:
    """A stream of stories: no answer much more frequent than others and, if so wished, no text twice."""

    def __init__(self, rng: random.Random, level: str, split: str, distinct: bool) -> None:
        self.rng = rng
        self.level = level
        self.split = split
        self.texts: set[str] | None = set() if distinct else None
        self.answers = [0] * (LARGEST + 1)
        self.drawn = 0

    def draw(self, language: str) -> Story | None:
        """The next story, or None where many tries gave none that is new."""
        groups = _by_steps(self.level, self.split == "unseen_templates")
        for _ in range(_TRIES_PER_ROW):
            template = one(self.rng, one(self.rng, groups))
            values = self._values(template)
            if values is None:
                continue
            story = _tell(self.rng, template, values, language, with_distractors=self.level in ("3", "mix"))
            if self.texts is not None:
                if story.text in self.texts:
                    continue
                self.texts.add(story.text)
            self.answers[story.answer] += 1
            self.drawn += 1
            return story
        return None

    def _values(self, template: Template) -> list[int] | None:
        """Operands and results on the right side of the split. No answer is a number that the story tells."""
        most = _FREE_ANSWERS + _ANSWER_SHARE * self.drawn
        for _ in range(_TRIES_PER_ROW):
            values = template.draw(self.rng)
            if values is None or self.answers[values[-1]] > most or values[-1] in values[: template.size]:
                continue
            if self.split == "unseen_templates" or split_of(template.name, values[: template.size]) == self.split:
                return values
        return None


def split_of(template: str, operands: Sequence[int]) -> Literal["train", "test"]:
    """The side on which a template with these operands falls; the order of the operands plays no part."""
    key = f"{template} {','.join(map(str, sorted(operands)))}"
    return "test" if hashlib.sha256(key.encode()).digest()[0] % _TEST_SHARE == 0 else "train"


@functools.cache
def _phrasings(template: str, language: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(clause, its phrasings with the places of their numbers filled in) of each sentence of a story."""
    clauses: dict[str, tuple[str, ...]] = LANGUAGES[language].CLAUSES
    told = []
    for clause, letters in TEMPLATES[template].story:
        marks = [f"{{{letter}}}" for letter in letters] + ["", ""]
        told.append((clause, tuple(text.replace("@", marks[0]).replace("%", marks[1]) for text in clauses[clause])))
    return tuple(told)


def _tell(rng: random.Random, template: Template, values: list[int], language: str, *, with_distractors: bool) -> Story:
    tongue = LANGUAGES[language]
    words: dict[str, object] = tongue.words(rng)
    words.update(zip("abcdefg", values[: template.size], strict=False))
    sentences: list[str] = []
    used: dict[str, int] = {}
    for clause, variants in _phrasings(template.name, language):
        # A clause that comes again is said in another way.
        used[clause] = index = used[clause] + 1 if clause in used else int(rng.random() * len(variants))
        sentences.append(variants[index % len(variants)])
    distractor = with_distractors and len(template.steps) >= _DISTRACTOR_STEPS and rng.random() < _DISTRACTOR_SHARE
    if distractor:
        sentence: str = one(rng, tongue.DISTRACTORS[template.about])
        low, high = _DISTRACTOR_RANGE
        number = rng.choice([x for x in range(low, high + 1) if x not in values])
        sentences.insert(rng.randrange(1, len(sentences)), sentence.replace("@", str(number)))
    return Story(
        text=tongue.SEPARATOR.join(sentences).format_map(words),
        operands=values[: template.size],
        steps=template.lines(values),
        answer=values[-1],
        template=template.name,
        distractor=distractor,
    )


def _example(story: Story, level: int | str, language: str, row_id: str, *, bare: bool) -> Example:
    completion: Message = {"role": "assistant", "content": LANGUAGES[language].ANSWER.format(story.answer)}
    if not bare:
        completion = {
            "role": "assistant",
            "reasoning_content": "\n".join(story.steps),
            "content": completion["content"],
        }
    return {
        "prompt": [{"role": "user", "content": story.text}],
        "completion": [completion],
        "answer": str(story.answer),
        "id": row_id,
        "source": "word_problems",
        "meta": {
            "kind": "number",
            "choices": None,
            "level": int(level) if str(level).isdigit() else level,
            "template": story.template,
            "steps": len(story.steps),
            "language": language,
            "operands": story.operands,
            "distractor": story.distractor,
        },
    }


@dataclass(frozen=True, kw_only=True)
class SetOptions:
    """What a built set depends on. For all but the three sizes see `generate`; a split of 0 rows gets no file."""

    n: int = 10_000
    n_test: int = 500
    n_unseen: int = 500
    seed: int = 0
    level: int | str = 2
    language: str = "en"
    style: str = "rationale"
    bare_share: float = 0.55

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> SetOptions:
        """The options of a mapping, for example a user's YAML. Raises ConfigError for unknown names and bad values."""
        known = [field.name for field in fields(cls)]
        for name, value in options.items():
            if name not in known:
                raise ConfigError(
                    f"word_problems: unknown option {name!r}{_hint(name, known)}; known: {', '.join(known)}"
                )
            if name in ("n", "n_test", "n_unseen", "seed") and type(value) is not int:
                raise ConfigError(f"word_problems: {name} must be a whole number, not {value!r}")
        made = cls(**options)
        _check(made.n, made.level, "train", made.language, made.style, made.bare_share)
        for name in ("n_test", "n_unseen"):
            if getattr(made, name) < 0:
                raise ConfigError(f"{name} must be at least 0, not {getattr(made, name)}")
        return made

    def as_json(self) -> dict[str, object]:
        """For the manifest and the cache: equal for equal sets, so 2 and "2" are the same level."""
        return {**asdict(self), "level": str(self.level), "bare_share": float(self.bare_share)}


def build(out: Path, **options: Any) -> dict[str, object]:
    """Write train.parquet, test.parquet, unseen_templates.parquet and manifest.json into `out`; returns the manifest.

    Args:
        out: the folder, made where needed.
        **options: fields of SetOptions.

    Raises: ConfigError (unknown options, and see `generate`), OSError (no permission, disk full).
    """
    return _build(out, SetOptions.of(options))


def _build(out: Path, chosen: SetOptions) -> dict[str, object]:
    parts: dict[str, list[Example]] = {}
    for split, rows in zip(SPLITS, (chosen.n, chosen.n_test, chosen.n_unseen), strict=True):
        if rows:
            parts[split] = generate(
                rows,
                chosen.seed,
                level=chosen.level,
                split=split,
                language=chosen.language,
                style=chosen.style,
                bare_share=chosen.bare_share,
            )
    return write_set(out, parts, builder="data_builders.word_problems", version=VERSION, arguments=chosen.as_json())


def cached(*, say: Callable[[str], None] = print, **options: Any) -> Path:
    """The folder that `build` with these options fills, kept in the user's cache and built only where needed.

    It lies in ``$XDG_CACHE_HOME/mmreason/data`` (default ``~/.cache``). A kept set of another version, or whose files
    are not what its manifest says, is built again; `say` is told why.
    Raises: ConfigError (unknown options, and see `generate`), MMReasonError where the cache can't be written.
    """
    chosen = SetOptions.of(options)
    return keep("word_problems", chosen.as_json(), VERSION, lambda folder: _build(folder, chosen), say)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_builders.word_problems",
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = SetOptions()
    parser.add_argument("--out", type=Path, required=True, help="folder for the parquet files and manifest.json")
    parser.add_argument("--n", type=int, default=default.n, help="training problems")
    parser.add_argument("--n_test", type=int, default=default.n_test, help="problems with other numbers; 0: no file")
    parser.add_argument(
        "--n_unseen", type=int, default=default.n_unseen, help="problems of other templates; 0: no file"
    )
    parser.add_argument(
        "--level",
        default=default.level,
        help="1: one or two steps, 2: two to four, 1-2: one to four, 3: four to six, mix: all",
    )
    parser.add_argument("--language", default=default.language, help=f"{', '.join(LANGUAGES)} or both")
    parser.add_argument("--style", default=default.style, help=", ".join(STYLES))
    parser.add_argument(
        "--bare_share", type=float, default=default.bare_share, help="share without steps in style mixed"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="the same seed gives the same files")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0, or 2 after a named error."""
    options = vars(_parser().parse_args(argv))
    try:
        manifest = build(options.pop("out"), **options)
    except (MMReasonError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(manifest["files"], indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Questions about rendered pictures (counting, bar charts, angles, sides) in English and Chinese, made from a seed.

    python -m data_builders.shapes --out data/shapes --n 10000 --level 1 --image_size 64 --seed 0

Tasks: count (how many red circles), compare (more circles than squares, the color with the most shapes), arithmetic
over counts, bars (read a bar chart), angles (the missing one of a triangle or on a line), sides (perimeter and area of
a rectangle), and where it is named, describe (a caption, the objects in reading order: to align a vision tower with).
Levels: 1 one to four objects in three colors, answers of one digit unless angles or sides are asked for; 2 up to eight
objects, sums and differences of bars, figures; 3 up to twelve objects in six colors, two or three calculations.
Pictures are drawn with whole numbers and fonts of their own: the same arguments give the same bytes everywhere. Splits:
train and test share no scene (a hash of what a picture shows decides), and the combinations of color and shape of
"unseen_combinations" occur in neither.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from data_builders._shapes.questions import HELD_OUT, LEVELS, OBJECT_TASKS, TASKS, Draw, captioned
from data_builders._shapes.scenes import Objects, Scene
from data_builders._shapes.words import LANGUAGES, Question
from data_builders._words.templates import distinct
from data_builders.building.cache import keep
from data_builders.building.writing import as_dataset, write_set
from mmreason.types import ConfigError, ContentPart, Example, Message, MMReasonError

__all__ = [
    "IMAGE_SIZES",
    "LANGUAGES",
    "LEVELS",
    "SPLITS",
    "STYLES",
    "TASKS",
    "VERSION",
    "SetOptions",
    "as_dataset",
    "build",
    "cached",
    "generate",
    "main",
    "render",
    "split_of",
]

VERSION = 1  # raise it whenever the same seed would give other rows
SPLITS = ("train", "test", "unseen_combinations")
STYLES = ("rationale", "bare", "mixed")
IMAGE_SIZES = (32, 448)
"""The smallest and the largest picture in pixels: below, shapes and digits have no room."""
_TEST_SHARE = 10  # one in ten scenes belongs to the test split
_TRIES_PER_ROW = 40
_IDLE_ROUNDS = 10
_LONG = 2000  # rows from which on progress is shown


def generate(
    n: int,
    seed: int,
    *,
    level: int = 1,
    split: str = "train",
    tasks: Sequence[str] | None = None,
    image_size: int = 64,
    two_images: float = 0.0,
    language: str = "en",
    style: str = "rationale",
    bare_share: float = 0.55,
    caption_share: float = 0.0,
) -> list[Example]:
    """n questions with their pictures; the same arguments always give the same list, and a smaller n its beginning.

    Args:
        n: number of questions.
        seed: the same seed gives the same questions; language, style and bare_share change no picture.
        level: a key of LEVELS.
        split: a key of SPLITS. "unseen_combinations" takes the tasks that ask for objects.
        tasks: some of TASKS, each as frequent as the others; None takes those of the level.
        image_size: pixels of a picture along each side, see IMAGE_SIZES.
        two_images: the share of questions about two pictures.
        language: "en", "zh" or "both" (turn by turn).
        style: "rationale" (the steps as ``reasoning_content``, then the answer), "bare" (only the answer) or "mixed".
        bare_share: the share of bare completions in style "mixed".
        caption_share: of the questions about the objects of one picture, the share in place of which a caption of it is
            asked for.

    Returns: examples with a PNG of (image_size, image_size) RGB for each image part of the prompt. ``meta`` holds kind,
        choices, task, ask (what of the task), level, language, ``boxes`` (label, color, box [x0, y0, x1, y1] in pixels,
        the last two just past the object; image, its index) and ``scenes`` (all that the pictures were drawn from).

    Raises: ConfigError for arguments that are not known, or more distinct questions than there are.
    """
    chosen = SetOptions(
        n=n,
        n_test=0,
        n_unseen=0,
        seed=seed,
        level=level,
        tasks=tasks,
        image_size=image_size,
        two_images=two_images,
        language=language,
        style=style,
        bare_share=bare_share,
        caption_share=caption_share,
    )
    return _generate(chosen.checked(), n, split)


def _generate(chosen: SetOptions, n: int, split: str) -> list[Example]:
    from tqdm import tqdm

    languages = tuple(LANGUAGES) if chosen.language == "both" else (chosen.language,)
    name = f"{VERSION} {chosen.seed} {chosen.level} {split}"
    words_rng, style_rng = random.Random(f"shapes words {name}"), random.Random(f"shapes style {name}")
    captions_rng = random.Random(f"shapes captions {name}")
    share = {"rationale": 0.0, "bare": 1.0, "mixed": chosen.bare_share}[chosen.style]
    questions = _questions(random.Random(f"shapes {name}"), chosen, split)
    examples: list[Example] = []
    for question in tqdm(questions, total=n, desc=f"shapes {split}", disable=None if n >= _LONG else True):
        told_in = languages[len(examples) % len(languages)]
        bare = style_rng.random() < share
        if captions_rng.random() < chosen.caption_share:
            question = captioned(question) or question
        row_id = f"shapes/{chosen.level}/{told_in}/{chosen.image_size}/{chosen.seed}/{split}/{len(examples)}"
        examples.append(_example(question, chosen.level, told_in, words_rng, row_id, bare=bare))
        if len(examples) == n:
            return examples
    raise ConfigError(
        f"level {chosen.level} gave only {len(examples)} different {split} questions for the tasks "
        f"{', '.join(chosen.task_names(split))} at {chosen.image_size} pixels, {n} were asked for; "
        "ask for fewer, more tasks, or larger pictures"
    )


def _questions(rng: random.Random, chosen: SetOptions, split: str) -> Iterator[Question]:
    """Different questions, until many tries give none that is new."""
    unseen = split == "unseen_combinations"

    def accepts(scene: Scene) -> bool:
        if unseen:
            return isinstance(scene, Objects) and any(thing.look in HELD_OUT for thing in scene.things)
        return split_of(scene.content()) == split

    draw = Draw(rng, LEVELS[chosen.level], chosen.image_size, unseen=unseen, accepts=accepts)
    tasks = chosen.task_names(split)
    known = set()
    deck: list[str] = []  # each task once, in any order
    idle = 0
    while idle < _IDLE_ROUNDS:
        idle += 1
        if rng.random() < chosen.two_images:
            task = "two_images"
        else:
            deck = deck or distinct(rng, tasks, len(tasks))
            task = deck.pop()
        for _ in range(_TRIES_PER_ROW):  # of the same task, so that one whose scenes are rare is as frequent as others
            question = draw.ask(task)
            if question is None:
                continue
            key = (question.ask, tuple(question.slots.items()), question.scenes)
            if key not in known:
                known.add(key)
                idle = 0
                yield question
                break


def split_of(content: Mapping[str, object]) -> Literal["train", "test"]:
    """The side on which a scene falls. Its content tells what can be seen, and not where exactly, so that a picture and
    the same picture moved by some pixels are on one side."""
    key = json.dumps(content, sort_keys=True)
    return "test" if hashlib.sha256(key.encode()).digest()[0] % _TEST_SHARE == 0 else "train"


def render(scene: Scene) -> bytes:
    """The picture of a scene as a PNG file."""
    from data_builders._shapes.canvas import Canvas
    from data_builders._shapes.png import encode

    canvas = Canvas(scene.size, scene.background)
    scene.draw(canvas)
    return encode(canvas.pixels)


def _example(question: Question, level: int, language: str, rng: random.Random, row_id: str, *, bare: bool) -> Example:
    words = LANGUAGES[language]
    answer = words.said_answer(question)
    said = (
        answer if question.kind == "text" else words.answer.format(answer)
    )  # a caption is the picture's, not a result
    completion: Message = {"role": "assistant", "content": said}
    if question.steps and not bare:
        steps = "\n".join(words.step(step) for step in question.steps)
        completion = {"role": "assistant", "reasoning_content": steps, "content": completion["content"]}
    parts: list[ContentPart] = [{"type": "image"} for _ in question.scenes]
    parts.append({"type": "text", "text": words.question(rng, question)})
    boxes = [box | {"image": index} for index, scene in enumerate(question.scenes) for box in scene.boxes()]
    return {
        "prompt": [{"role": "user", "content": parts}],
        "completion": [completion],
        "images": [{"bytes": render(scene), "path": None} for scene in question.scenes],
        "answer": answer,
        "id": row_id,
        "source": "shapes",
        "meta": {
            "kind": question.kind,
            "choices": [words.name(choice) for choice in question.choices] if question.choices else None,
            "task": question.task,
            "ask": question.ask,
            "level": level,
            "language": language,
            "boxes": boxes,
            "scenes": [scene.spec() for scene in question.scenes],
        },
    }


# ---- a set on the disk


@dataclass(frozen=True, kw_only=True)
class SetOptions:
    """What a built set depends on. For all but the three sizes see `generate`; a split of 0 rows gets no file."""

    n: int = 10_000
    n_test: int = 500
    n_unseen: int = 500
    seed: int = 0
    level: int = 1
    tasks: Sequence[str] | str | None = None
    image_size: int = 64
    two_images: float = 0.0
    language: str = "en"
    style: str = "rationale"
    bare_share: float = 0.55
    caption_share: float = 0.0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> SetOptions:
        """The options of a mapping, for example a user's YAML. Raises ConfigError for unknown names and bad values."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigError(f"shapes: unknown option {name!r}{_hint(name, known)}; known: {', '.join(known)}")
        return cls(**options).checked()

    def checked(self) -> SetOptions:
        """Itself. Raises ConfigError for values that are not possible."""
        for name in ("n", "n_test", "n_unseen", "seed", "level", "image_size"):
            if type(getattr(self, name)) is not int:
                raise ConfigError(f"shapes: {name} must be a whole number, not {getattr(self, name)!r}")
        for name, least in (("n", 1), ("n_test", 0), ("n_unseen", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"shapes: {name} must be at least {least}, not {getattr(self, name)}")
        low, high = IMAGE_SIZES
        if not low <= self.image_size <= high:
            raise ConfigError(f"shapes: image_size must be from {low} to {high} pixels, not {self.image_size}")
        for name in ("two_images", "bare_share", "caption_share"):
            value = getattr(self, name)
            if not isinstance(value, float | int) or not 0 <= value <= 1:
                raise ConfigError(f"shapes: {name} must be a number from 0 to 1, not {value!r}")
        for what, value, known in (
            ("level", self.level, tuple(LEVELS)),
            ("language", self.language, (*LANGUAGES, "both")),
            ("style", self.style, STYLES),
        ):
            _one_of(what, value, known)
        for task in self._named_tasks():
            _one_of("task", task, TASKS)
        if not self._named_tasks():
            raise ConfigError(f"shapes: tasks is empty; known: {', '.join(TASKS)}")
        if self.n_unseen:
            self.task_names("unseen_combinations")
        return self

    def _named_tasks(self) -> list[str]:
        if self.tasks is None:
            return list(LEVELS[self.level].tasks)
        named = self.tasks.split(",") if isinstance(self.tasks, str) else self.tasks
        if not isinstance(named, list | tuple):
            raise ConfigError(f"shapes: tasks must be a list of names, not {self.tasks!r}; known: {', '.join(TASKS)}")
        return [task.strip() if isinstance(task, str) else task for task in named]

    def task_names(self, split: str) -> tuple[str, ...]:
        """The tasks of a split. Raises ConfigError where none of them has colors and shapes to hold out."""
        _one_of("split", split, SPLITS)
        named = [task for task in TASKS if task in self._named_tasks()]
        if split == "unseen_combinations":
            named = [task for task in named if task in OBJECT_TASKS]
            if not named and self.two_images < 1:
                raise ConfigError(
                    f"shapes: the tasks {', '.join(self._named_tasks())} have no combinations of color and shape to "
                    f"hold out: set n_unseen to 0, or add one of {', '.join(OBJECT_TASKS)}"
                )
        return tuple(named)

    def as_json(self) -> dict[str, object]:
        """For the manifest and the cache: equal for equal sets."""
        shares = {name: float(getattr(self, name)) for name in ("two_images", "bare_share", "caption_share")}
        return {**asdict(self), **shares, "tasks": list(self.task_names("train"))}


def _one_of(what: str, value: object, known: Sequence[object]) -> None:
    if value not in known:
        hint = _hint(value, [str(name) for name in known])
        raise ConfigError(f"shapes: unknown {what} {value!r}{hint}; known: {', '.join(map(str, known))}")


def _hint(value: object, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(value), known, n=1, cutoff=0.3)
    return f" (did you mean {close[0]!r}?)" if close else ""


def build(out: Path, **options: Any) -> dict[str, object]:
    """Write SPLIT.parquet for each split that has rows and manifest.json into `out`; returns the manifest.

    The manifest also tells the most frequent answer of each split, and of each sort of question in it, with its share:
    what a model that sees nothing can get.

    Args:
        out: the folder, made where needed.
        **options: fields of SetOptions.

    Raises: ConfigError (unknown options, and see `generate`), OSError (no permission, disk full).
    """
    return _build(out, SetOptions.of(options))


def _build(out: Path, chosen: SetOptions) -> dict[str, object]:
    sizes = dict(zip(SPLITS, (chosen.n, chosen.n_test, chosen.n_unseen), strict=True))
    parts = {split: _generate(chosen, rows, split) for split, rows in sizes.items() if rows}
    majority = {split: _majority(examples) for split, examples in parts.items()}
    return write_set(
        out,
        parts,
        builder="data_builders.shapes",
        version=VERSION,
        arguments=chosen.as_json(),
        told={"majority": majority},
    )


def _majority(examples: Sequence[Example]) -> dict[str, dict[str, object]]:
    """The most frequent answer, over all rows and over those that ask the same."""
    answers: dict[str, Counter[str]] = {"all": Counter()}
    for example in examples:
        for name in ("all", example["meta"]["ask"]):
            answers.setdefault(name, Counter())[str(example["answer"])] += 1
    told: dict[str, dict[str, object]] = {}
    for name, counts in answers.items():
        answer, rows = counts.most_common(1)[0]
        told[name] = {"answer": answer, "share": round(rows / counts.total(), 4)}
    return told


def cached(*, say: Callable[[str], None] = print, **options: Any) -> Path:
    """The folder that `build` with these options fills, kept in the user's cache and built only where needed.

    It lies in ``$XDG_CACHE_HOME/mmreason/data`` (default ``~/.cache``). A kept set of another version, or whose files
    are not what its manifest says, is built again; `say` is told why.
    Raises: ConfigError (unknown options, and see `generate`), MMReasonError where the cache can't be written.
    """
    chosen = SetOptions.of(options)
    return keep("shapes", chosen.as_json(), VERSION, lambda folder: _build(folder, chosen), say)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_builders.shapes",
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = SetOptions()
    parser.add_argument("--out", type=Path, required=True, help="folder for the parquet files and manifest.json")
    parser.add_argument("--n", type=int, default=default.n, help="training questions")
    parser.add_argument("--n_test", type=int, default=default.n_test, help="questions over other scenes; 0: no file")
    parser.add_argument(
        "--n_unseen", type=int, default=default.n_unseen, help="questions for unseen colored shapes; 0: no file"
    )
    parser.add_argument("--level", type=int, default=default.level, help="1: few objects, 2: more, 3: many, harder")
    parser.add_argument("--tasks", help=f"some of {','.join(TASKS)}; default: those of the level")
    parser.add_argument("--image_size", type=int, default=default.image_size, help="pixels along each side")
    parser.add_argument("--two_images", type=float, default=default.two_images, help="share over two pictures")
    parser.add_argument("--language", default=default.language, help=f"{', '.join(LANGUAGES)} or both")
    parser.add_argument("--style", default=default.style, help=", ".join(STYLES))
    parser.add_argument(
        "--bare_share", type=float, default=default.bare_share, help="share without steps in style mixed"
    )
    parser.add_argument(
        "--caption_share", type=float, default=default.caption_share, help="share of captions in place of questions"
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

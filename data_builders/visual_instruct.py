"""Instructions about pictures: LLaVA's three kinds, captions, ScienceQA, charts and geometry with proofs.

    python -m data_builders.visual_instruct --task instruct --source pictures.jsonl --image_root images \\
        --teacher '{base_url: http://localhost:8000/v1, model: teacher}' --out data/visual

Tasks:
- instruct: conversations, detailed descriptions and reasoning about pictures (LLaVA, arXiv:2304.08485), written by a
  teacher from captions and boxes, or by one that sees the picture. What a text names must be in the annotation.
- captions: short captions to align a projector with: of the source, of its boxes, or of a teacher.
- scienceqa: lecture and solution as the reasoning before a verified answer; images where there are some.
- charts, geometry: drawn pictures and questions whose answer a program proves (`meta.program`). No source, no teacher.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_builders.building.build import Builder, BuildOptions, Drop, Made, SourceNote, Task, Tools, option
from data_builders.building.runner import run_main
from mmreason.types import ConfigError, Example

TASKS = ("instruct", "captions", "scienceqa", "charts", "geometry")
_DRAWN = ("charts", "geometry")
_KINDS = ("conversation", "detail", "reasoning")
IMAGE_SIZES = (96, 448)
"""Of drawn pictures: below, the numbers in a pie have no room."""
_SOURCE, _WRITING, _DRAWING = "Pictures", "What is written", "Charts and geometry"


@dataclass(frozen=True, kw_only=True)
class VisualOptions(BuildOptions):
    """The options of this builder. See the `help` of each field."""

    task: str = field(default="instruct", metadata=option(f"{', '.join(TASKS)}.", _SOURCE))
    source: list[str] | None = field(
        default=None,
        metadata=option(
            "Rows with id, image, captions, instances ([{category, bbox}]), or ScienceQA's: files, folders, hub ids.",
            _SOURCE,
        ),
    )
    source_split: str = field(default="train", metadata=option("Split of the sources, perhaps with a slice.", _SOURCE))
    image_root: Path | None = field(
        default=None,
        metadata=option("Folder of the images; none may lie outside it (default: the source's folder).", _SOURCE),
    )
    missing_images: Literal["error", "drop"] = field(
        default="error", metadata=option("What to do about rows whose image isn't there.", _SOURCE)
    )
    kinds: list[str] = field(
        default_factory=lambda: list(_KINDS), metadata=option(f"Of instruct: some of {', '.join(_KINDS)}.", _WRITING)
    )
    language: Literal["en", "zh", "both"] = field(
        default="en", metadata=option("What is written: en, zh, or both (a row each).", _WRITING)
    )
    sees: Literal["annotation", "image", "both"] = field(
        default="annotation", metadata=option("What the teacher has: captions and boxes, the picture, both.", _WRITING)
    )
    on_hallucination: Literal["drop", "cut", "ask"] = field(
        default="drop",
        metadata=option(
            "Texts that name what the annotation hasn't: drop them, cut the turns or sentences, or ask once more.",
            _WRITING,
        ),
    )
    inventory: Literal["missing", "always", "never"] = field(
        default="missing",
        metadata=option(
            "Check with a seeing teacher's list of objects, too: where no annotation is (missing), always, never.",
            _WRITING,
        ),
    )
    turns: int = field(default=4, metadata=option("The most questions of a conversation.", _WRITING))
    captions_from: Literal["captions", "boxes", "teacher"] = field(
        default="captions", metadata=option("Of the task captions: where a caption comes from.", _WRITING)
    )
    lecture: bool = field(default=True, metadata=option("ScienceQA: the lecture before the solution.", _WRITING))
    max_tokens: int = field(default=1024, metadata=option("The most tokens of a reply.", _WRITING))
    temperature: float | None = field(default=None, metadata=option("Of the teacher; default: its own.", _WRITING))
    n: int = field(default=1000, metadata=option("Questions to draw pictures for.", _DRAWING))
    image_size: int = field(
        default=160, metadata=option(f"Pixels along each side, {IMAGE_SIZES[0]} to {IMAGE_SIZES[1]}.", _DRAWING)
    )
    style: Literal["reasoning", "bare"] = field(
        default="reasoning", metadata=option("The steps before the answer, or the answer alone.", _DRAWING)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        from mmreason._functions import did_you_mean

        if self.task not in TASKS:
            raise ConfigError(f"--task {self.task}: unknown.{did_you_mean(self.task, TASKS)} Known: {', '.join(TASKS)}")
        for kind in self.kinds:
            if kind not in _KINDS:
                raise ConfigError(f"--kinds {kind}: unknown.{did_you_mean(kind, _KINDS)} Known: {', '.join(_KINDS)}")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ConfigError(f"--kinds must name one or more of {', '.join(_KINDS)}, each once")
        if self.task in _DRAWN and self.source:
            raise ConfigError(f"--task {self.task} draws its pictures and takes no --source")
        if self.task not in _DRAWN and not self.source:
            raise ConfigError(f"--task {self.task} needs --source, a file of rows with images")
        if self.task == "scienceqa" and self.language != "en":
            raise ConfigError("--task scienceqa: the set is English; leave --language at en")
        if self.inventory == "always" and self.sees == "annotation":
            raise ConfigError("--inventory always asks a teacher that sees the picture: give --sees image or both")
        for name, least in (("turns", 1), ("max_tokens", 1), ("n", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} must be at least {least}, not {getattr(self, name)}")
        low, high = IMAGE_SIZES
        if not low <= self.image_size <= high:
            raise ConfigError(f"--image_size must be from {low} to {high} pixels, not {self.image_size}")


class VisualInstruct(Builder[VisualOptions]):
    """Rows about pictures. The parts of a task are made in `sources`, which reads and checks all input."""

    name, version = "visual_instruct", 1
    columns = ("prompt", "completion", "images", "answer", "id", "source", "meta")

    def __init__(self, options: VisualOptions) -> None:
        super().__init__(options)
        self._tasks: list[Task] = []
        self._lacking = 0
        self._writer: Any = None
        self._seen: set[str] = set()

    def needs_endpoint(self) -> bool:
        options = self.options
        return options.task == "instruct" or (options.task == "captions" and options.captions_from == "teacher")

    def sends_images(self) -> bool:
        return self.needs_endpoint() and self.options.sees != "annotation"

    # ---- reading

    def sources(self) -> Sequence[SourceNote]:
        options = self.options
        if options.task in _DRAWN:
            return ()
        notes: list[SourceNote] = []
        several = len(options.source or ()) > 1
        for number, source in enumerate(options.source or ()):
            before = f"{number}/" if several else ""
            read = self._read_lessons if options.task == "scienceqa" else self._read
            notes += read(source, before)
        return notes

    def _read_lessons(self, source: str, before: str) -> list[SourceNote]:
        from data_builders._visual.scienceqa import read_lessons

        options = self.options
        lessons, note, lacking = read_lessons(
            source, split=options.source_split, image_root=options.image_root, missing=options.missing_images
        )
        self._lacking += lacking
        self._tasks += [Task(f"scienceqa/{before}{lesson.example['id']}", lesson) for lesson in lessons]
        return self._notes(source, note, [lesson.image for lesson in lessons])

    def _read(self, source: str, before: str) -> list[SourceNote]:
        from data_builders._visual.making import Asked, Writer, Writing, languages_of
        from data_builders._visual.rows import read_pictures

        options = self.options
        pictures, note, lacking = read_pictures(
            source, split=options.source_split, image_root=options.image_root, missing=options.missing_images
        )
        self._lacking += lacking
        kinds = options.kinds if options.task == "instruct" else ["caption"]
        for picture in pictures:
            self._check_annotated(picture)
            for kind in kinds:
                for language in languages_of(options.language):
                    task_id = f"{kind}/{language}/{before}{picture.id}"
                    self._tasks.append(Task(task_id, Asked(picture, kind, language)))
        writing = Writing(
            sees=options.sees,
            cure=options.on_hallucination,
            inventory=options.inventory,
            turns=options.turns,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            seed=options.seed,
        )
        self._writer = Writer(writing, self.name)
        return self._notes(source, note, [picture.image for picture in pictures])

    def _notes(self, source: str, note: SourceNote, images: Sequence[Any]) -> list[SourceNote]:
        from data_builders._visual.rows import images_note

        found = images_note(images, str(self.options.image_root or source), note.license)
        return [note] if found is None else [note, found]

    def _check_annotated(self, picture: Any) -> None:
        """Raises: ConfigError where nothing could be written of a picture."""
        from data_builders._visual.captions import captions_in
        from data_builders._visual.making import languages_of

        options = self.options
        by_teacher = self.needs_endpoint()
        if by_teacher and options.sees != "image" and not picture.is_annotated:
            raise ConfigError(
                f"{picture.where} (id {picture.id}) has neither captions nor boxes: a teacher that sees "
                f"{options.sees} needs them; --sees image asks one that looks at the picture"
            )
        if by_teacher:
            return
        if options.captions_from == "boxes" and not picture.boxes:
            raise ConfigError(f"{picture.where} (id {picture.id}) has no boxes; see --captions_from")
        for language in languages_of(options.language) if options.captions_from == "captions" else ():
            if not captions_in(picture, language):
                raise ConfigError(
                    f"{picture.where} (id {picture.id}) has no caption in the language {language}: --captions_from "
                    "teacher has one written, --captions_from boxes counts the boxes"
                )

    # ---- making

    def plan(self) -> Iterator[Task]:
        if self.options.task in _DRAWN:
            for number in range(self.options.n):
                yield Task(f"{self.options.task}/{self.options.image_size}/{self.options.seed}/{number}", number)
        yield from self._tasks

    async def make(self, task: Task, tools: Tools) -> Made:
        options = self.options
        if options.task in _DRAWN:
            from data_builders._visual.drawing import draw_row

            return draw_row(options, task, self.name)
        if options.task == "scienceqa":
            from data_builders._visual.scienceqa import make_lesson

            return make_lesson(task.data, task.id, self.name, lecture=options.lecture)
        if not self.needs_endpoint():
            from data_builders._visual.captions import caption_row

            return caption_row(options, task, self.name)
        made: Made = await self._writer.write(task.data, task.id, tools.teacher)
        return made

    def keep(self, row: Example) -> Drop | None:
        """Drops a drawn question that is there already, and a text that another row of the same picture has."""
        from data_builders.building.pictures import image_bytes

        text = json.dumps([row["prompt"], row["completion"]], ensure_ascii=False, sort_keys=True)
        # Sources may give the same id to two pictures.
        pictures = [hashlib.sha256(image_bytes(cell)).hexdigest() for cell in row.get("images") or ()]
        key = json.dumps([text, row["meta"].get("parent"), row["meta"].get("scene"), pictures], sort_keys=True)
        if key in self._seen:
            return Drop("duplicate", text[:300])
        self._seen.add(key)
        return None

    def told(self) -> Mapping[str, object]:
        return {"rows_without_their_image": self._lacking} if self._lacking else {}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status, see `data_builders.building.runner`."""
    return run_main(VisualInstruct, VisualOptions, argv, description=__doc__)


if __name__ == "__main__":
    raise SystemExit(main())

"""Short captions without a teacher: one of the source's, or one that counts its boxes."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_builders._visual.grounding import chinese_name, plural_of
from data_builders._visual.making import Asked, first_message
from data_builders._visual.prompts import VERSION, user_question
from data_builders._visual.rows import Box, Picture, picture_bytes
from data_builders.building.build import Drop, Made, Task
from mmreason.data.images import ImageError

if TYPE_CHECKING:
    from data_builders.visual_instruct import VisualOptions

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS_ZH = ("零", "一", "两", "三", "四", "五", "六", "七", "八", "九", "十")
_MEASURES = {
    thing: measure
    for measure, things in (
        ("辆", "汽车 自行车 摩托车 公交车 卡车"), ("列", "火车"), ("架", "飞机"), ("艘", "船"), ("匹", "马 斑马"),
        ("只", "鸟 猫 狗 羊 长颈鹿"), ("头", "牛 大象 熊"), ("把", "椅子 雨伞"), ("本", "书"), ("张", "床 餐桌 沙发"),
    )
    for thing in things.split()
}  # fmt: skip
"""Chinese name -> its measure word, where it isn't 个."""


def caption_row(options: VisualOptions, task: Task, source: str) -> Made:
    """One row, or why there is none."""
    asked: Asked = task.data
    picture = asked.picture
    try:
        image = picture_bytes(picture.image)
    except ImageError as error:
        return Made(drops=[Drop(str(error.reason), f"{picture.where}: {error}")])
    if options.captions_from == "boxes":
        text = count_caption(picture.boxes, asked.language)
    else:
        text = random.Random(f"{options.seed} caption {task.id}").choice(captions_in(picture, asked.language))
    question = user_question("caption", asked.language, options.seed, task.id)
    meta = {"kind": "text", "choices": None, "task": "caption", "language": asked.language, "parent": picture.id}
    return Made(
        rows=[
            {
                "prompt": [first_message(question)],
                "completion": [{"role": "assistant", "content": text}],
                "images": [{"bytes": image, "path": None}],
                "answer": text,
                "id": task.id,
                "source": source,
                "meta": meta | {"captions_from": options.captions_from, "prompts": VERSION, **picture.told()},
            }
        ]
    )


def captions_in(picture: Picture, language: str) -> list[str]:
    """A picture's captions that are in a language, as far as their script tells."""
    return [text for text in picture.captions if bool(re.search(r"[一-鿿]", text)) == (language == "zh")]


def count_caption(boxes: Sequence[Box], language: str) -> str:
    """ "Two dogs and a frisbee.", the most numerous first, then as they come."""
    counts = Counter(box.category for box in boxes)
    if language == "zh":
        return "图中有" + "、".join(_counted_zh(name, count) for name, count in counts.most_common()) + "。"
    said = [_counted(name, count) for name, count in counts.most_common()]
    text = said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]
    return text[0].upper() + text[1:] + "."


def _counted(name: str, count: int) -> str:
    if count == 1:
        several = name in ("skis", "scissors")
        return f"some {name}" if several else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    return f"{_NUMBERS[count] if count < len(_NUMBERS) else 'many'} {plural_of(name)}"


def _counted_zh(name: str, count: int) -> str:
    said = chinese_name(name)
    number = _NUMBERS_ZH[count] if count < len(_NUMBERS_ZH) else "许多"
    return f"{number}{_MEASURES.get(said, '个') if count < len(_NUMBERS_ZH) else ''}{said}"

"""What a teacher is told for each kind of row, in English and Chinese, and the JSON that it has to answer with.

The kinds are LLaVA's (arXiv:2304.08485, section 3): conversation, detailed description, complex reasoning. The words
are our own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_builders._visual.rows import Box, Picture

KINDS = ("conversation", "detail", "reasoning")
VERSION = 1
"""Part of each row's meta; raise it with any change of words here."""

_TEXT = {"type": "string", "minLength": 1}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def schema(kind: str, turns: int) -> dict[str, Any]:
    """The JSON schema of a reply. Args: turns: the most turns of a conversation."""
    if kind == "conversation":
        turn = _object(question=_TEXT, answer=_TEXT)
        return _object(turns={"type": "array", "items": turn, "minItems": 1, "maxItems": turns})
    if kind == "reasoning":
        return _object(question=_TEXT, reasoning=_TEXT, answer=_TEXT)
    if kind == "inventory":
        return _object(objects={"type": "array", "items": _TEXT, "maxItems": 100})
    return _object(**{"caption" if kind == "caption" else "description": _TEXT})


@dataclass(frozen=True)
class Wording:
    """The words of a language.

    Attributes:
        sees: what the teacher has of the picture -> how it is told.
        kinds: kind -> what it is to write.
        rules: what holds for every kind.
        detail, caption: questions of a user, one of which is drawn.
        repair: names the words that the annotation doesn't have.
    """

    sees: Mapping[str, str]
    kinds: Mapping[str, str]
    rules: str
    captions: str
    boxes: str
    nothing: str
    detail: tuple[str, ...]
    caption: tuple[str, ...]
    repair: str
    comma: str


ENGLISH = Wording(
    sees={
        "annotation": (
            "You can't see the picture. What you have is an annotation: captions that people wrote, and objects with "
            "boxes [x0, y0, x1, y1] (x runs to the right, y downwards). Write as somebody would who looks at the "
            "picture: never mention captions, boxes, coordinates or an annotation."
        ),
        "image": "You see the picture.",
        "both": (
            "You see the picture, and you have an annotation of it: captions that people wrote, and objects with boxes "
            "[x0, y0, x1, y1] (x runs to the right, y downwards). Never mention captions, boxes or an annotation."
        ),
    },
    kinds={
        "conversation": (
            "Write a conversation between a person who asks about the picture and an assistant who sees it: up to "
            "{turns} questions with their answers. Ask about the sorts of things that are there, their number, their "
            "actions, their places, and how they lie to each other. Ask only what can be answered with certainty; a "
            "question must not presuppose anything that isn't in the picture. Answers are whole sentences.\n"
            'Reply with JSON: {{"turns": [{{"question": "…", "answer": "…"}}, …]}}'
        ),
        "detail": (
            "Describe the picture in detail, in one to three paragraphs: the scene, what is in it and how much of it, "
            "where things are, and what is going on.\n"
            'Reply with JSON: {{"description": "…"}}'
        ),
        "reasoning": (
            "Ask one question about the picture that takes thought: why something is so, what may have happened or may "
            "happen next, what one should look out for. It must not give away what is seen. Then think it through step "
            "by step from what the picture shows, and answer it.\n"
            'Reply with JSON: {{"question": "…", "reasoning": "…", "answer": "…"}}'
        ),
        "caption": (
            "Write one caption of the picture: a single plain sentence of at most 20 words that says what is seen.\n"
            'Reply with JSON: {{"caption": "…"}}'
        ),
        "inventory": (
            "List the objects, animals and people that are certainly to be seen in the picture: common nouns in the "
            "singular, each once, also what people wear and hold.\n"
            'Reply with JSON: {{"objects": ["…", …]}}'
        ),
    },
    rules="Name no object that you don't know to be in the picture. Write English.",
    captions="Captions:",
    boxes="Objects:",
    nothing="Here is the picture.",
    detail=(
        "Describe the picture in detail.",
        "What is going on in this picture? Please be thorough.",
        "Please tell me everything that can be seen here.",
        "Give a full description of the image.",
        "Walk me through this picture: what is in it, and where?",
        "Can you describe this photo as exactly as possible?",
        "What does this image show? Go into the details.",
        "I can't see the picture. What is in it?",
    ),
    caption=(
        "Describe the picture in one sentence.",
        "What does this picture show, in short?",
        "Write a short caption for this image.",
        "Say briefly what can be seen.",
        "Give a one-line summary of the picture.",
        "What is in this photo?",
    ),
    repair=(
        "Your reply names what isn't known to be in the picture: {words}. Write it anew without these, otherwise as it "
        "was, as the same JSON."
    ),
    comma=", ",
)

CHINESE = Wording(
    sees={
        "annotation": (
            "你看不到图片。你有的是它的标注：人们写的若干描述，以及带方框 [x0, y0, x1, y1] 的物体（x 向右，y 向下）。"
            "请像亲眼看着图片的人那样写，绝不要提到描述、方框、坐标或标注。"
        ),
        "image": "你可以看到图片。",
        "both": (
            "你可以看到图片，也有它的标注：人们写的若干描述，以及带方框 [x0, y0, x1, y1] 的物体（x 向右，y 向下）。"
            "绝不要提到描述、方框或标注。"
        ),
    },
    kinds={
        "conversation": (
            "写一段对话：一个人就图片提问，一位看着图片的助手回答，最多 {turns} 组问答。可以问有哪些东西、有多少、"
            "在做什么、在哪里、彼此位置如何。只问能够确定回答的问题，问题不得预设图中没有的东西。回答用完整的句子。\n"
            '用 JSON 回复：{{"turns": [{{"question": "…", "answer": "…"}}, …]}}'
        ),
        "detail": (
            "用一到三段详细描述图片：是什么场景，有哪些东西、各有多少，分别在哪里，正在发生什么。\n"
            '用 JSON 回复：{{"description": "…"}}'
        ),
        "reasoning": (
            "就图片提一个需要思考的问题：为什么会这样，之前或之后可能发生什么，应当注意什么。问题本身不要说出所看到的内容。"
            "然后从图片内容出发一步一步思考，再给出回答。\n"
            '用 JSON 回复：{{"question": "…", "reasoning": "…", "answer": "…"}}'
        ),
        "caption": (
            '为图片写一句说明：只用一个简单的句子，不超过 30 个字，说出看到的内容。\n用 JSON 回复：{{"caption": "…"}}'
        ),
        "inventory": (
            "列出图片中确定能看到的物体、动物和人：用普通名词，每种一次，也包括人们穿戴和拿着的东西。\n"
            '用 JSON 回复：{{"objects": ["…", …]}}'
        ),
    },
    rules="不要提到任何不能确定在图片中的物体。请用简体中文写。",
    captions="描述：",
    boxes="物体：",
    nothing="这是图片。",
    detail=(
        "请详细描述这张图片。",
        "这张图片里发生了什么？请说得全面一些。",
        "请告诉我图中能看到的一切。",
        "请完整地描述这幅图像。",
        "图里有什么，分别在哪里？",
        "请尽可能准确地描述这张照片。",
    ),
    caption=(
        "用一句话描述这张图片。",
        "这张图片大致是什么内容？",
        "请为这幅图写一句简短的说明。",
        "简单说说图中能看到什么。",
    ),
    repair="你的回复提到了不能确定在图片中的东西：{words}。请去掉它们重写，其余不变，仍用同样的 JSON。",
    comma="、",
)

LANGUAGES: dict[str, Wording] = {"en": ENGLISH, "zh": CHINESE}


def messages(picture: Picture, kind: str, language: str, sees: str, turns: int) -> list[dict[str, Any]]:
    """The conversation that a teacher is asked with; an image part stands first where it sees the picture."""
    words = LANGUAGES[language]
    system = "\n\n".join((words.sees[sees], words.kinds[kind].format(turns=turns), words.rules))
    told = annotation_text(picture, words) if sees != "image" else ""
    text = told or words.nothing
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if sees != "annotation":
        parts.insert(0, {"type": "image"})
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": parts if sees != "annotation" else text},
    ]


def annotation_text(picture: Picture, words: Wording) -> str:
    """Captions and boxes, one a line."""
    lines = []
    if picture.captions:
        lines += [words.captions, *picture.captions]
    if picture.boxes:
        lines += ["", words.boxes, *map(_box_line, picture.boxes)]
    return "\n".join(lines).strip()


def _box_line(box: Box) -> str:
    place = ", ".join(f"{value:g}" for value in box.place)
    return f"{box.category} [{place}]" if place else box.category


def user_question(kind: str, language: str, seed: int, row_id: str) -> str:
    """One of the ways in which a user asks for a description; the same for the same row."""
    words = LANGUAGES[language]
    options: Sequence[str] = words.caption if kind == "caption" else words.detail
    return random.Random(f"{seed} {kind} {language} {row_id}").choice(options)

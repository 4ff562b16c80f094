"""Why a new instruction is not kept, as far as rules can tell. Word lists of our own, English and Chinese."""

from __future__ import annotations

import re
from collections.abc import Sequence

_FEWEST, _MOST = 3, 150
_BEYOND_TEXT = re.compile(
    r"\b(?:images?|pictures?|photos?|photographs?|screenshots?|graphs?|charts?|plots?|diagrams?|flow ?charts?|"
    r"draw(?:ings?|s)?|sketch(?:es)?|paint(?:ings?)?|maps?|videos?|movie clips?|audios?|recordings?|sounds?|"
    r"listen|watch|files?|attach(?:ed|ments?)|upload|download|spreadsheets?|slides?|websites?|web ?pages?|links?|urls?|"
    r"click|browse|google|go to|look up online|search the web)\b"
    r"|图片|图像|照片|截图|图表|示意图|流程图|绘制|画出|画一|视频|音频|录音|文件|附件|上传|下载|表格文件|网站|网页|链接|点击|上网",
    re.I,
)
_ODD_START = re.compile(r"[^\w\"'“‘「『《(（<\[`$¿¡]")
_UNFINISHED = re.compile(r"[,:;，：；、]\s*$|…\s*$|\.\.\.\s*$")
_COPIED = re.compile(
    r"</?task>|\b(?:the )?(?:given|original|new|rewritten|harder|created) (?:task|instruction|prompt)\b|"
    r"\b(?:rewritten|given|created) prompt\b|改写后的|原任务|新任务[:：]",
    re.I,
)
_SORRY = re.compile(r"\bsorry\b|抱歉|对不起", re.I)
_STOPS = (
    "a an the and or but of to in on at for with by from as is are was were be been it its this that these those i you "
    "he she we they them his her our your so if then than not no yes do does did have has had"
)
_STOP_WORDS = frozenset(_STOPS.split())


def instruction_fault(text: str, blocked: Sequence[str] = ()) -> str | None:
    """The code of what is wrong with a new instruction: its length, its first sign, or that text can't answer it."""
    from mmreason.data._words import words

    count = len(words(text))
    if count < _FEWEST:
        return "instruction_short"
    if count > _MOST:
        return "instruction_long"
    if _ODD_START.match(text):
        return "instruction_odd"
    if _UNFINISHED.search(text):
        return "instruction_unfinished"
    if _BEYOND_TEXT.search(text):
        return "beyond_text"
    lowered = text.casefold()
    if any(_stands_in(word.casefold(), lowered) for word in blocked):
        return "blocked_word"
    return None


def _stands_in(word: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text) is not None if word.isascii() else word in text


def copied_prompt(text: str) -> bool:
    """Does a deepened instruction speak of what it was made from? (Evol-Instruct, arXiv 2304.12244, rule 4)"""
    return _COPIED.search(text) is not None


def says_nothing(answer: str) -> bool:
    """Is an answer made of punctuation and stop words alone? (rule 3)"""
    from mmreason.data._words import words

    return all(word in _STOP_WORDS for word in words(answer))


def gives_up(answer: str) -> bool:
    """Is an answer short and sorry, so that its question is too hard to learn from? (rule 2: below 80 words)"""
    from mmreason.data._words import words

    return _SORRY.search(answer) is not None and len(words(answer)) < 80

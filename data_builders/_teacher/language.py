"""Which language is a text in? By script, and by function words for languages in Latin script. Needs no model."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_WORDS = {
    "en": "the of and to in is that it for was with as on are this be by have from you not they which we there what",
    "de": "der die und das ist nicht ein eine mit für auf den von zu sich auch es wird dass wie oder einen sind wir",
    "fr": "le la les et des est une dans que pour pas qui sur au avec il ce sont nous vous du mais cette être aux",
    "es": "el los las y que es una por con para del se no lo como más pero sus al está son esta también hay muy",
    "it": "il che di è e la per una non sono con del della gli si anche come più nel alla ma questo dei delle",
    "pt": "o os as e que não é uma para com do da em por mais como mas dos ao são você também está isso das",
    "nl": "de het een en van is niet dat op te zijn met voor die aan er ook wordt als bij naar maar om deze",
}
_HINTS = {word: language for language, words in _WORDS.items() for word in words.split()}
_SHARED = {word for word, count in Counter(w for words in _WORDS.values() for w in words.split()).items() if count > 1}
_SCRIPTS = (
    ("HIRAGANA", "ja"), ("KATAKANA", "ja"), ("CJK UNIFIED", "zh"), ("HANGUL", "ko"), ("CYRILLIC", "cyrillic"),
    ("ARABIC", "arabic"), ("GREEK", "greek"), ("HEBREW", "hebrew"), ("DEVANAGARI", "devanagari"), ("THAI", "th"),
    ("LATIN", "latin"),
)  # fmt: skip
_NO_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\[a-zA-Z]+|https?://\S+", re.DOTALL)
_ABOUT_LANGUAGES = re.compile(
    r"\btranslat|\b(?:in|into|to|from)\s+(?:english|german|french|spanish|italian|portuguese|dutch|chinese|mandarin|"
    r"japanese|korean|russian|arabic|greek|hebrew|hindi|thai|latin)\b|翻译|翻譯|译成|译为|用(?:英|中|法|德|日|韩|俄)[语文]|"
    r"traduc|tradui|übersetz",
    re.I,
)
_LETTERS, _FEW, _CHARS = 8, 4, 4000


def language_of(text: str) -> str | None:
    """ "en", "de", ..., "zh", "ja", "ko", or a script ("latin", "cyrillic" ...); None for fewer than 8 letters.

    Code, formulas and links are left out. A language in Latin script is told by at least four function words, twice as
    many as any other's.
    """
    prose = _NO_PROSE.sub(" ", text)[:_CHARS]
    scripts = Counter(script for char in prose if char.isalpha() and (script := _script(char)) is not None)
    if scripts.total() < _LETTERS:
        return None
    # A Chinese character says as much as a word, and so does a syllable of kana or hangul.
    weight = {"zh": 4, "ja": 4, "ko": 3}
    script = max(scripts, key=lambda name: scripts[name] * weight.get(name, 1))
    if script == "zh" and scripts["ja"] * 10 > scripts["zh"]:
        return "ja"
    if script != "latin":
        return script
    words = re.findall(r"[^\W\d_]+", prose.lower())
    hits = Counter(_HINTS[word] for word in words if word in _HINTS and word not in _SHARED)
    ranked = hits.most_common(2)
    if not ranked or ranked[0][1] < _FEW or (len(ranked) > 1 and ranked[0][1] < 2 * ranked[1][1]):
        return "latin"
    return ranked[0][0]


def other_language(asked: str, answer: str) -> bool:
    """Is an answer surely in another language than what was asked? Not where the question is about languages."""
    if _ABOUT_LANGUAGES.search(asked):
        return False
    left, right = language_of(asked), language_of(answer)
    if left is None or right is None or left == right:
        return False
    return "latin" not in (left, right) or bool({left, right} - {"latin", *_WORDS})


def _script(char: str) -> str | None:
    if char.isascii():
        return "latin"
    name = unicodedata.name(char, "")
    return next((script for start, script in _SCRIPTS if name.startswith(start)), None)

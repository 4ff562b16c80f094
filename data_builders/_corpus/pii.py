"""Personal data in a text become placeholders: e-mail, phone, IP address, payment card, identity number.

Patterns and check digits, no model. What a number is must show: by its form (`+49 …`, `(555) 201-…`, a leading 0 with
separators), by its check digit (cards, IBAN, Chinese identity numbers) or by a word before it ("tel.", "call", 电话).
Bare digits without any of these stay, so that numbers in prose do.

Chinese, Japanese and Korean don't part words by spaces: their characters are a border wherever they stand beside an
address or a number, and no part of it. Only the few characters of a name like 张三@例子.中国 are.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Literal, get_args

Kind = Literal["email", "id", "card", "ip", "phone"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order in which they are looked for: what is a card is no phone."""

PLACEHOLDERS: Mapping[Kind, str] = {
    "email": "<EMAIL>",
    "id": "<ID_NUMBER>",
    "card": "<CARD>",
    "ip": "<IP_ADDRESS>",
    "phone": "<PHONE>",
}

Span = tuple[int, int]

_ALPHA = "A-Za-z0-9\u00c0-\u0dff\u1e00-\u1fff"  # of scripts that part words by spaces
_WORD = rf"{_ALPHA}_"
_HAN = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SIX_DIGITS = re.compile(r"(?:\d[^\d\n]{0,4}){6}")  # no number that is looked for has fewer, close together


def mask(text: str, kinds: Collection[Kind] = KINDS) -> tuple[str, Counter[str]]:
    """(the text with placeholders, kind -> how many there are)."""
    counts: Counter[str] = Counter()
    for kind in KINDS:
        if kind not in kinds:
            continue
        parts: list[str] = []
        last = 0
        for start, end in _spans(_FINDERS[kind](text)):
            parts += [text[last:start], PLACEHOLDERS[kind]]
            last = end
            counts[kind] += 1
        if last:
            text = "".join([*parts, text[last:]])
    return text, counts


def _spans(found: Iterator[Span]) -> Iterator[Span]:
    """Without those that begin inside an earlier one."""
    last = 0
    for start, end in sorted(found):
        if start >= last:
            yield start, end
            last = end


# --------------------------------------------------------------------------------------------------------------------
# E-mail

_LOCAL = rf"[{_WORD}!#$%&'*+/=?^`{{|}}~.-]{{1,64}}"
_LABEL = rf"[{_ALPHA}](?:[{_WORD}-]{{0,62}}[{_ALPHA}])?"
_AT = r"(?:[ \t]?[@＠][ \t]?|&#64;|%40)"
_TLD = (
    "com|org|net|edu|gov|info|biz|io|ai|co|me|dev|app|uk|us|de|fr|it|es|eu|nl|be|ch|at|se|no|dk|fi|pl|cz|ru|ua|cn|jp|"
    "kr|tw|hk|sg|in|au|nz|ca|br|mx|ar|za|ie|pt|gr|tr"
)
_DOT = r"(?:\.|[ \t]*[\[({<][ \t]*(?:dot|\.)[ \t]*[\])}>][ \t]*|[ \t]+dot[ \t]+)"
_EMAIL = re.compile(
    rf"(?<![{_WORD}.+-])(?:\"[^\"\n@]{{1,64}}\"|{_LOCAL}){_AT}(?:(?:{_LABEL}\.)+{_LABEL}|\[[\d.]{{7,15}}\]"
    rf"|{_LABEL}(?:{_DOT}{_LABEL})+)"
)
_HAN_DOMAIN = r"(?:[\w-]{1,63}\.)+(?:中国|中國|公司|网络|網絡|网址|集团|在线|商城|香港|台湾|台灣)"
_HAN_EMAIL = re.compile(
    rf"(?:(?<![{_WORD}.+-]){_LOCAL}{_AT}{_HAN_DOMAIN}"
    rf"|(?<![\w.+-])[{_HAN}]{{1,4}}{_AT}(?:{_HAN_DOMAIN}|(?:{_LABEL}\.)+{_LABEL}))"
)
_SPELLED_EMAIL = re.compile(
    rf"(?<![{_WORD}.+-]){_LOCAL}(?:[ \t]*[\[({{<][ \t]*(?:at|@)[ \t]*[\])}}>][ \t]*{_LABEL}(?:{_DOT}{_LABEL})+"
    rf"|[ \t]+at[ \t]+{_LABEL}(?:[ \t]+dot[ \t]+{_LABEL})*[ \t]+dot[ \t]+(?:{_TLD})(?![{_WORD}]))",
    re.IGNORECASE,
)
_HAS_AT = re.compile(r"[@＠]|&#64;|%40")
_HAS_SPELLED_AT = re.compile(r"[ \t](?:dot|DOT|Dot)[ \t]|[\[({<]\s*(?:at|AT|At)\s*[\])}>]")


def _emails(text: str) -> Iterator[Span]:
    if _HAS_AT.search(text):
        yield from (match.span() for match in _EMAIL.finditer(text))
        yield from (match.span() for match in _HAN_EMAIL.finditer(text))
    if _HAS_SPELLED_AT.search(text):
        yield from (match.span() for match in _SPELLED_EMAIL.finditer(text))


# --------------------------------------------------------------------------------------------------------------------
# Identity and account numbers

_SSN = re.compile(rf"(?<![{_WORD}.-])(?!000|666|9)\d{{3}}-(?!00)\d{{2}}-(?!0000)\d{{4}}(?![{_WORD}-])")
_NINO = re.compile(rf"(?<![{_WORD}])[A-CEGHJ-PR-TW-Z]{{2}}(?:[ ]?\d{{2}}){{3}}[ ]?[A-D](?![{_WORD}])")
_CN_ID = re.compile(
    r"(?<![\dA-Za-z])[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\dA-Za-z])"
)
_IBAN = re.compile(rf"(?<![{_WORD}])[A-Z]{{2}}\d{{2}}(?:[ ]?[A-Z0-9]{{4}}){{2,7}}(?:[ ]?[A-Z0-9]{{1,3}})?(?![{_WORD}])")
_NAMED_ID = re.compile(
    r"(?:(?<![A-Za-z])(?:SSN|social security(?: (?:number|no\.?|#))?|passport(?: (?:number|no\.?|#))?|"
    r"national id(?: number)?|driver'?s licen[cs]e(?: (?:number|no\.?|#))?|tax id(?: number)?)|身份证号?码?|护照号?码?)"
    r"(?:\s*(?:is|was|:|：|#|为|是))?\s*([A-Z]{0,3}\d(?:[ -]?\d){5,17}[Xx]?)(?![\dA-Za-z])",
    re.IGNORECASE,
)


def _ids(text: str) -> Iterator[Span]:
    if not _SIX_DIGITS.search(text):
        return
    yield from (match.span() for match in _SSN.finditer(text))
    yield from (match.span() for match in _NINO.finditer(text))
    yield from (match.span() for match in _CN_ID.finditer(text) if is_chinese_id(match.group()))
    yield from (match.span() for match in _IBAN.finditer(text) if is_iban(match.group()))
    yield from (match.span(1) for match in _NAMED_ID.finditer(text))


def is_chinese_id(number: str) -> bool:
    """Does the check character of an 18-character identity number fit (GB 11643-1999)?"""
    total = sum(int(digit) * (2 ** (17 - place) % 11) for place, digit in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17].upper()


def is_iban(text: str) -> bool:
    """Do the check digits of an IBAN fit (ISO 13616: the number modulo 97 is 1)?"""
    plain = text.replace(" ", "")
    return len(plain) >= 15 and int("".join(str(int(char, 36)) for char in plain[4:] + plain[:4])) % 97 == 1


# --------------------------------------------------------------------------------------------------------------------
# Payment cards

_CARD = re.compile(rf"(?<![{_WORD}.+-])\d(?:[ -]?\d){{12,23}}(?![{_WORD}-])")
_ISSUER = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}|62\d{14,17}"
)


def _cards(text: str) -> Iterator[Span]:
    if not _SIX_DIGITS.search(text):
        return
    for match in _CARD.finditer(text):
        pieces = [(piece.start(), piece.end()) for piece in re.finditer(r"\d+", match.group())]
        for first in range(len(pieces)):
            for last in range(len(pieces) - 1, first - 1, -1):
                start, end = match.start() + pieces[first][0], match.start() + pieces[last][1]
                if is_card(text[start:end]):
                    yield start, end
                    break


def is_card(text: str) -> bool:
    """Has the number an issuer's form, and the check digit of Luhn (ISO/IEC 7812-1)?"""
    digits = text.replace(" ", "").replace("-", "")
    if not _ISSUER.fullmatch(digits) or len(set(digits)) == 1:
        return False
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


# --------------------------------------------------------------------------------------------------------------------
# IP addresses

_IPV4 = re.compile(rf"(?<![{_WORD}.-])(?:\d{{1,3}}\.){{3}}\d{{1,3}}(?![{_WORD}-]|\.\d)")
_IPV6 = re.compile(
    rf"(?<![{_WORD}:.])[23][0-9A-Fa-f]{{3}}:(?:[0-9A-Fa-f]{{0,4}}:){{1,6}}[0-9A-Fa-f]{{0,4}}(?![{_WORD}:])"
)
_VERSION_BEFORE = re.compile(
    r"(?:\bv|\bver|\bversion|\brelease|\bsection|\bchapter|\bfirmware|§|版本号?|固件|章|节)\.?\s*$", re.IGNORECASE
)
_SECTION = re.compile(r"\d\.\d\.\d\.\d")


def _ips(text: str) -> Iterator[Span]:
    for match in _IPV4.finditer(text):
        before = text[max(0, match.start() - 12) : match.start()]
        if is_public(match.group()) and not _SECTION.fullmatch(match.group()) and not _VERSION_BEFORE.search(before):
            yield match.span()
    yield from (match.span() for match in _IPV6.finditer(text) if is_public(match.group()))


def is_public(address: str) -> bool:
    """An address of the internet. Private and documentation ranges belong to nobody."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


# --------------------------------------------------------------------------------------------------------------------
# Phones

_SEP = "[ \t\u00a0\u2009\u202f.\u2010-\u2013-]"
_EXTENSION = r"(?:[ ,]{0,2}(?:ext\.?|extension|x|转)[ ]?\d{1,5}(?!\d))?"
_END = rf"(?![{_WORD}]|[-.,:/]\d)"
_INTERNATIONAL = re.compile(
    rf"(?<![{_WORD}+])(?:\+(?:\(\d{{1,3}}\)|\d{{1,3}})|00[1-9]\d{{0,2}}(?={_SEP}))"
    rf"(?:(?:{_SEP}|/){{0,2}}\(?\d{{1,6}}\)?){{1,7}}{_EXTENSION}"
)
_AMERICAN = re.compile(
    rf"(?<![{_WORD}.+$€£#,/-])(?<!\d{_SEP})(?:1{_SEP})?(?:\([2-9]\d{{2}}\){_SEP}?[2-9]\d{{2}}{_SEP}?|[2-9]\d{{2}}(?:{_SEP}|/)[2-9]\d{{2}}{_SEP})"
    rf"\d{{4}}(?!\d){_EXTENSION}{_END}"
)
# "555-0123", but not "850-1066", which are years; beside Chinese it is rather pages than a phone
_LOCAL_AMERICAN = re.compile(
    rf"(?<![\w.+$€£#,/-])(?<!\d{_SEP})[2-9]\d{{2}}-(?!1\d{{3}}|20\d\d)\d{{4}}{_EXTENSION}(?!\w|[-.,:/]\d)"
)
_CHINESE_MOBILE = re.compile(
    rf"(?<![\dA-Za-z_.+$-])(?:86{_SEP}?)?1[3-9]\d{_SEP}?\d{{4}}{_SEP}?\d{{4}}(?![\dA-Za-z_]|[.,]\d|{_SEP}\d)"
)
_NATIONAL = re.compile(
    rf"(?<![\dA-Za-z_.,/:+$€£#-])(?<!\d{_SEP})(?:\(0\d{{1,5}}\){_SEP}?|0\d{{1,5}}(?:{_SEP}|/))\d{{2,8}}(?:{_SEP}\d{{2,8}}){{0,4}}"
    rf"(?![\dA-Za-z_]|[.,:/]\d|{_SEP}\d){_EXTENSION}"
)
_NAMED = re.compile(
    r"(?:(?<![A-Za-z])(?:tel|telephone|phone|mobile|mob|cell|cellphone|fax|call|dial|text|sms|whatsapp|hotline|helpline|"
    r"telefon|telefono|teléfono|téléphone|tél|móvil|handy)(?:s|ed|ing)?(?![A-Za-z])|电话|手机|传真|热线|致电|拨打|座机|联系方式|微信)"
    r"(?:[ ]?(?:(?:us|me|him|her|them|now|today|number|no|nr|line|at|on|is|to|toll|free|home|work|office)\b|"
    r"号码|号|是|为)){0,4}[ .:：#=]{0,4}(?:\([a-zA-Z]+\)[ ]?)?"
    rf"(\+?\(?\d(?:(?:{_SEP}|[()/]){{0,2}}\d){{6,14}}(?!\d))",
    re.IGNORECASE,
)
_DATE = re.compile(r"\d{1,2}[./-]\d{1,2}[./-](?:\d{4}(?!\d)|\d{2}$)|\d{4}[./-]\d{1,2}[./-]\d{1,2}(?!\d)")
_YEARS = re.compile(r"(?:1[5-9]|20)\d\d\D{1,3}(?:1[5-9]|20)\d\d")
_THOUSANDS = re.compile(r"\d{1,3}(?:\.\d{3})+")


def _phones(text: str) -> Iterator[Span]:
    if not _SIX_DIGITS.search(text):
        return
    yield from _checked(_INTERNATIONAL, text, lambda digits: 8 <= len(digits.removeprefix("00")) <= 15)
    yield from (match.span() for match in _AMERICAN.finditer(text))
    yield from (match.span() for match in _CHINESE_MOBILE.finditer(text))
    yield from (match.span() for match in _LOCAL_AMERICAN.finditer(text))
    yield from _checked(_NATIONAL, text, lambda digits: 9 <= len(digits) <= 12)
    for match in _NAMED.finditer(text):
        number = match.group(1)
        if not (_DATE.match(number) or _YEARS.fullmatch(number) or _THOUSANDS.fullmatch(number)):
            yield match.span(1)


def _checked(pattern: re.Pattern[str], text: str, fits: Callable[[str], bool]) -> Iterator[Span]:
    """Matches whose digits (without an extension's) fit, and that are no dates."""
    for match in pattern.finditer(text):
        number = re.split(r"[x转,]|ext", match.group())[0]
        if fits(re.sub(r"\D", "", number)) and not _DATE.match(number):
            yield match.span()


_FINDERS: Mapping[Kind, Callable[[str], Iterator[Span]]] = {
    "email": _emails,
    "id": _ids,
    "card": _cards,
    "ip": _ips,
    "phone": _phones,
}

"""What teachers are asked to make and deepen instructions, and how their replies are read. Texts of our own."""

from __future__ import annotations

import re
from collections.abc import Sequence

NEW_INSTRUCTIONS = """\
The list below shows tasks that people gave to an assistant. Continue it with {n} new ones.

- Vary them: other subjects and verbs than those shown, easy and demanding ones, short questions, orders and longer \
descriptions; now and then one that sorts its input into a few classes.
- Every task must be doable in writing alone, by someone without internet, files, pictures or sound.
- One or two sentences each, in the language of those shown.
- Only the tasks, numbered on from {first}; no answers to them.

{shots}"""

IS_CLASSIFICATION = """\
A task has a small, fixed set of possible outputs if whoever does it only picks one of a few labels, such as yes or \
no, a grade or a category.

Task: {instruction}

Does this task have a small, fixed set of possible outputs? Answer with Yes or No alone."""

EXAMPLES = """\
Task: {instruction}

Write {n} different, realistic examples of it: an input and the right, complete output. Where the task needs no input, \
write one example with the input "none". Write in the language of the task, in exactly this form:

### Example 1
Input: …
Output: …"""

EXAMPLES_BY_LABEL = """\
Task: {instruction}

This task sorts its input into a few classes. For each possible output write one realistic input to which it is the \
right one, at most {n} in all. Write in the language of the task, in exactly this form, the output first:

### Example 1
Output: …
Input: …"""

OPERATIONS = {
    "constraints": "Add one condition or requirement that a good answer has to meet.",
    "depth": "Where it asks about something, ask for more depth or breadth: causes, limits, exceptions, consequences.",
    "concrete": "Put a specific thing, place, case or number where it speaks in general.",
    "steps": "If a few thoughts are enough for it, change it so that it needs several steps of reasoning.",
    "material": "Add material to be worked with, written out: a short table, some code, a formula, a log or a list.",
}
"""Operation in depth -> what it asks for."""

DEEPEN = """\
Make the task between the tags somewhat harder, so that capable assistants have to work for it, while a person can \
still understand and answer it.

How: {operation}

Change nothing else: what it gives (tables, code, numbers) stays. Add no more than {words} words. Write in its \
language. Reply with the new task alone, between <task> and </task>.

<task>
{instruction}
</task>"""

BROADEN = """\
Read the task between the tags and think of another one: of the same field and about as hard, but rarer, about \
something that the first doesn't touch. A person must be able to understand and answer it. About as long, and in its \
language. Reply with the new task alone, between <task> and </task>.

<task>
{instruction}
</task>"""

SAME_TASK = """\
First task:
{first}

Second task:
{second}

Do both ask for the same, with the same conditions, the same depth and the same breadth? Answer with Same or Different \
alone."""

_NUMBERED = re.compile(r"^[ \t]*(?:#+\s*)?(?:\*\*)?(\d{1,4})[.):：、](?:\*\*)?[ \t]*(?=\S)", re.M)
_TASK = re.compile(r"<task>(.*?)(?:</task>|\Z)", re.S | re.I)
_FIELD = re.compile(r"^[ \t*]*(input|output|输入|输出)\s*\**\s*[:：]\s*\**[ \t]*", re.I | re.M)
_NONE = {"", "none", "n/a", "(none)", "no input", "none.", "无", "没有"}


def numbered(texts: Sequence[str]) -> str:
    """The texts as a numbered list from 1; each stays on one line."""
    return "\n".join(f"{number}. {' '.join(text.split())}" for number, text in enumerate(texts, 1))


def read_numbered(text: str, *, cut: bool) -> list[str]:
    """The entries of a numbered list. cut: the reply ended at its limit, so that the last one isn't whole."""
    marks = list(_NUMBERED.finditer(text))
    ends = [*(mark.start() for mark in marks[1:]), len(text)][: len(marks)]
    entries = [text[mark.end() : end].strip().strip("*").strip() for mark, end in zip(marks, ends, strict=True)]
    if cut:
        entries = entries[:-1]
    return [entry for entry in entries if entry]


def read_examples(text: str, *, cut: bool) -> list[tuple[str, str]]:
    """(input, output) of each example, in either order of the two; "" for no input. cut: as in `read_numbered`."""
    blocks = re.split(r"^[ \t]*#{2,}.*$", text, flags=re.M)
    if cut:
        blocks = blocks[:-1]
    found = []
    for block in blocks:
        marks = list(_FIELD.finditer(block))
        ends = [mark.start() for mark in marks[1:]] + [len(block)]
        fields = {
            "input" if mark[1].lower() in ("input", "输入") else "output": block[mark.end() : end].strip()
            for mark, end in zip(marks[:2], ends[:2] if len(marks) < 3 else [ends[0], len(block)], strict=False)
        }
        if "output" in fields:
            given = fields.get("input", "")
            found.append(("" if given.lower() in _NONE else given, fields["output"]))
    return found


def read_task(text: str) -> str:
    """What stands between the tags; the whole reply where there are none."""
    found = _TASK.search(text)
    return (found[1] if found else text).strip()


def says(text: str, *words: str) -> bool:
    """Does a reply of one word begin with one of these?"""
    return re.match(rf"\W*(?:{'|'.join(words)})\b", text, re.I) is not None

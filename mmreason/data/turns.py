"""A model's turn as the chat template writes it: which characters are the model's own, and where its turn ends.

The rule is that of generation: what the model's own template gives as a prompt for a turn stands before the turn, and
what follows, up to and with the token that ends the turn, is the model's. Templates are told apart by what they do, not
by name: a conversation of the same structure with marks in place of its texts shows what a template writes around them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mmreason.data.conversation import Conversation, has_image_part, text_parts, tool_leaves
from mmreason.data.dialects import DIALECTS, Dialect, Piece, generic, has_text, mark, marked, pieces_of, split_thoughts
from mmreason.data.loss_spans import Span
from mmreason.data.render import render_text
from mmreason.data.training_templates import own_template, training_template
from mmreason.types import DataError, Message


@dataclass(frozen=True, slots=True)
class TurnText:
    """A conversation through the end of a turn.

    Attributes:
        text: with the token that ends the turn as its last; text that the template writes behind it is left out.
        spans: the model's part in pieces, without gaps, up to the end of the text.
        ended: whether the template ends the turn with a token. If not, an EOS token is due behind the text.
    """

    text: str
    spans: list[Span]
    ended: bool


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """What a template writes around the pieces of a turn.

    Attributes:
        surplus: characters at the generation prompt's end that the turn doesn't begin with.
        header: characters behind the generation prompt that open a turn, and are not the model's.
        rewritten: what stands before the turn isn't what generation is given, and is replaced with it.
        gaps: what stands before each piece; the first follows the generation prompt.
        tail: what follows the last piece. ending: characters of it up to the turn's end; 0: it has none.
    """

    surplus: int
    header: int
    rewritten: bool
    gaps: tuple[str, ...]
    tail: str
    ending: int

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """The larger, the nearer to what generation does: is the prompt all there, the turn's end, the own context?"""
        return not (self.surplus or self.header), self.ending > 0, not self.rewritten


@dataclass(frozen=True, slots=True)
class _Way:
    """Messages as they are read, what is made of them for the template, and the template (None: the model's own)."""

    messages: list[Message]
    dialect: Dialect
    template: str | None


class ChatTexts:
    """Renders the turns of conversations through a processor's chat template.

    Args:
        processor: a tokenizer, or a processor with one. chat_template_kwargs: further names for the template.
    """

    def __init__(self, processor: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> None:
        self.processor, self.chat_template_kwargs = processor, chat_template_kwargs
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self._skeletons: dict[str, _Skeleton | tuple[str, str | None]] = {}

    @cached_property
    def templates(self) -> list[str | None]:
        """TRL's training variant of the template, where there is one, and the model's own (None)."""
        training = training_template(self.processor)
        return [None] if training is None else [training, None]

    @cached_property
    def added_tokens(self) -> re.Pattern[str]:
        """Finds the tokenizer's special and other added tokens in a text."""
        words = sorted((str(token) for token in self.tokenizer.get_added_vocab()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, words)) or r"(?!)")

    @cached_property
    def _header(self) -> str:
        """What the model's own template writes before an answer, whatever is asked."""
        asked: list[Message] = [{"role": "user", "content": "x"}]
        try:
            opened = self._render(asked, None, None, complete=False)
            answered = self._render([*asked, {"role": "assistant", "content": mark("Next")}], None, None, complete=True)
            closed = self._render(asked, None, None, complete=True)
        except DataError:
            return ""
        shared = opened[: _shared_length(opened, answered.partition(mark("Next"))[0])]
        return shared[len(closed) :] if shared.startswith(closed) else ""

    def turn(self, conversation: Conversation, place: int) -> TurnText:
        """The assistant's message `place` of a conversation, with all before it.

        Raises: DataError (reason "template", or what `render_text` gives): the template leaves out or changes what the
            turn says, writes the conversation before it differently than for generation, or refuses it.
        """
        messages, tools = conversation.messages[: place + 1], conversation.tools
        if place == 0:
            raise DataError("the conversation begins with the assistant: there is nothing to answer", reason="template")
        if has_image_part(messages[place]):
            raise DataError(
                "an image stands in the assistant's own turn; models here don't draw", reason="bad_messages"
            )
        found = self._through_templates(messages, tools)
        if place == conversation.opened:
            found = self._continued(found, messages, conversation.given, tools)
        return found

    def _through_templates(self, messages: list[Message], tools: Any) -> TurnText:
        """Through the way that is nearest to generation, of those that give a faithful turn.

        Which is nearest depends on the structure of the conversation alone, so no row decides for another.
        """
        error: DataError | None = None
        for way in self._ways(messages, tools):
            try:
                return self._one_way(way, tools)
            except DataError as refusal:
                error = refusal if error is None or way.template is None else error
        assert error is not None  # there is at least one way
        raise error

    def _ways(self, messages: list[Message], tools: Any) -> list[_Way]:
        """The ways in which a template may take the messages, the nearest to generation first.

        Raises: DataError where the template can't show such a turn in any way.
        """
        readings = [messages]
        if (split := split_thoughts(messages)) != messages:
            readings.append(split)
        ways = [
            _Way(reading, dialect, template)
            for reading in readings
            for dialect in DIALECTS
            if dialect.applies(reading) and dialect.word in (own_template(self.processor) or "")
            for template in self.templates
            if template is None or not dialect.own_only
        ]
        ranked: list[tuple[tuple[bool, bool, bool], _Way]] = []
        refusals: list[tuple[bool, bool, DataError]] = []
        for way in ways:
            try:
                ranked.append((self._skeleton(way, tools).rank, way))
            except DataError as refusal:
                refusals.append((refusal.reason == "template", way.template is None, refusal))
        if not ranked:  # what a template leaves out tells more than that it refuses something
            raise max(refusals, key=lambda refusal: refusal[:2])[-1]
        return [way for _, way in sorted(ranked, key=lambda pair: pair[0], reverse=True)]

    def _one_way(self, way: _Way, tools: Any) -> TurnText:
        skeleton = self._skeleton(way, tools)
        pieces = pieces_of(way.messages[-1])
        prompt = self._prompt(way, way.messages, tools)
        text = self._whole(way, way.messages, tools)
        if skeleton.rewritten:
            text = prompt + text[self._beginning(way, tools, skeleton.gaps[0]) :]
        base, stop = len(prompt) - skeleton.surplus, len(text) - len(skeleton.tail)
        if text[:base] != prompt[:base]:
            raise DataError("the chat template writes the prompt differently once an answer follows", reason="template")
        if not text.endswith(skeleton.tail) or stop < base:
            raise DataError("the chat template ends this turn otherwise than turns like it", reason="template")
        missing = _missing_context(text, way.messages[:-1])
        if missing is not None:
            raise DataError(f"the chat template leaves out {missing}", reason="template")
        places = _place(text, base, stop, pieces, skeleton.gaps)
        end = stop + skeleton.ending
        self._check_ending(skeleton, pieces)
        spans = self._cover(text, pieces, places, base + skeleton.header, end)
        return TurnText(text[:end], spans, skeleton.ending > 0)

    def _cover(
        self, text: str, pieces: Sequence[Piece], places: Sequence[tuple[int, int]], base: int, end: int
    ) -> list[Span]:
        """The pieces with what the template writes around them.

        What stands before a piece opens it. A thought is closed by the first special token behind it (</think>,
        <|end|>), or where there is none by all that stands before the next piece. The turn's end is the last piece's.
        """
        spans: list[Span] = []
        start = base
        for number, (piece, said) in enumerate(zip(pieces, places, strict=True)):
            stop = said[1]
            if number + 1 == len(pieces):
                stop = end
            elif piece.kind == "reasoning":
                closing = self.added_tokens.search(text, stop, places[number + 1][0])
                stop = closing.end() if closing else places[number + 1][0]
            spans.append(Span(piece.kind, start, stop, said))
            start = stop
        return spans

    def _check_ending(self, skeleton: _Skeleton, pieces: Sequence[Piece]) -> None:
        ends = self.added_tokens.findall(skeleton.tail[: skeleton.ending])
        for piece in pieces:
            if ends and any(ends[-1] in text for text in piece.texts()):
                raise DataError(
                    f"the text of the assistant's turn holds {ends[-1]!r}, the token that ends turns", reason="template"
                )

    def _continued(self, turn: TurnText, messages: list[Message], given: str, tools: Any) -> TurnText:
        """The turn without loss on what the prompt had begun of it."""
        begun: Message = {"role": "assistant", "content": given}
        prompt = self._render([*messages[:-1], begun], tools, None, complete=False)
        if not turn.text.startswith(prompt):
            raise DataError("the chat template writes a begun answer differently once it goes on", reason="template")
        spans = [span.behind(len(prompt)) for span in turn.spans if span.stop > len(prompt)]
        return replace(turn, spans=spans)

    def _render(self, messages: Sequence[Message], tools: Any, template: str | None, *, complete: bool) -> str:
        return render_text(
            messages, self.processor, self.chat_template_kwargs, complete=complete, tools=tools, chat_template=template
        )

    def _prompt(self, way: _Way, messages: Sequence[Message], tools: Any, *, complete: bool = False) -> str:
        """What generation is given before the last of some messages, always by the model's own template."""
        # A thought that a dialect puts elsewhere is the last message's; what stands before it stays for itself.
        return self._render(way.dialect.apply(messages)[:-1], tools, None, complete=complete)

    def _whole(self, way: _Way, messages: Sequence[Message], tools: Any) -> str:
        return self._render(way.dialect.apply(messages), tools, way.template, complete=True)

    def _skeleton(self, way: _Way, tools: Any) -> _Skeleton:
        plain = generic(way.messages)
        key = repr((plain, bool(tools), way.dialect.name, way.template is None))
        if key not in self._skeletons:
            try:
                self._skeletons[key] = self._probe(way, plain, tools)
            except DataError as error:
                self._skeletons[key] = str(error), error.reason
        found = self._skeletons[key]
        if isinstance(found, tuple):
            raise DataError(found[0], reason=found[1])
        return found

    def _probe(self, way: _Way, plain: list[Message], tools: Any) -> _Skeleton:
        """Render a conversation of the same structure, with marks in place of the texts of its last turn."""
        pieces = pieces_of(way.messages[-1])
        probe = [*plain[:-1], marked(plain[-1])]
        text = self._whole(way, probe, tools)
        marks = [piece.marks(i) for i, piece in enumerate(pieces)]
        for piece, (first, last) in zip(pieces, marks, strict=True):
            if first not in text or last not in text:
                raise _left_out(piece.field)
        starts = [text.index(first) for first, _ in marks]
        stops = [text.rindex(last) + len(last) for _, last in marks]
        if any(a > b for a, b in zip(stops, starts[1:], strict=False)):
            raise DataError("the chat template puts the parts of a turn into another order", reason="template")
        base, surplus, header, rewritten = self._where_it_begins(way, probe, tools, text, starts[0])
        if surplus and pieces[0].kind == "reasoning":
            raise DataError(
                "the generation prompt leaves no room for the thought that the row has; perhaps the template takes "
                "chat_template_kwargs: {enable_thinking: true}",
                reason="template",
            )
        gaps = [text[a:b] for a, b in zip([base, *stops], starts, strict=False)]
        following = self._before_next(way, probe, tools, marks[-1][1])
        tail, ending = self._where_it_ends(text[stops[-1] :], following, pieces[-1])
        return _Skeleton(surplus, header, rewritten, tuple(gaps), tail, ending)

    def _where_it_begins(
        self, way: _Way, probe: list[Message], tools: Any, text: str, first: int
    ) -> tuple[int, int, int, bool]:
        """(where the prompt's part of `text` ends, `_Skeleton.surplus`, its `header`, `rewritten`)."""
        prompt = self._prompt(way, probe, tools)
        if text.startswith(prompt) and len(prompt) <= first:
            header = "" if prompt.endswith(self._header) else self._header
            # Some templates don't open a turn anew behind a tool's result for generation, but do in a finished one.
            return len(prompt), 0, len(header) if text.startswith(header, len(prompt)) else 0, False
        closed = self._prompt(way, probe, tools, complete=True)
        opening = prompt[len(closed) :] if prompt.startswith(closed) else ""
        if opening and (place := text.rfind(opening, 0, first)) >= 0 and not text.startswith(closed):
            return place + len(opening), 0, 0, True  # gpt-oss drops the thoughts before a call once an answer follows
        shared = min(_shared_length(prompt, text), first)
        for token in self.added_tokens.finditer(text, len(closed)):
            shared = token.start() if token.start() < shared < token.end() else shared
        if not opening or shared <= len(closed):
            raise DataError("the chat template writes the prompt differently once an answer follows", reason="template")
        return shared, len(prompt) - shared, 0, False

    def _beginning(self, way: _Way, tools: Any, lead: str) -> int:
        """Where the model's part begins in the text of all messages, `lead` characters before its first piece."""
        probe = [*way.messages[:-1], marked(generic(way.messages[-1:])[0])]
        text = self._whole(way, probe, tools)
        return text.rindex(pieces_of(probe[-1])[0].marks(0)[0]) - len(lead)

    def _where_it_ends(self, tail: str, following: str | None, piece: Piece) -> tuple[str, int]:
        """(what surely follows the last piece, its characters up to the turn's end).

        The end is the last token that stands there whether the turn is the conversation's last or another message
        follows; where these have none in common, as in gpt-oss, the first token behind the last piece.
        """
        found = list(self.added_tokens.finditer(tail))
        if not found:
            return ("" if piece.kind == "tool_call" else tail), 0
        common = [m for m in found if following is not None and following[: m.end()] == tail[: m.end()]]
        end = (common[-1] if common else found[0]).end()
        # What closes a call's arguments depends on their types, so it is taken for a part of the calls.
        closed = found[0].start() if piece.kind == "tool_call" else 0
        return tail[closed:], end - closed

    def _before_next(self, way: _Way, probe: list[Message], tools: Any, last: str) -> str | None:
        """What stands between a turn's last piece and the text of another message; None where none may follow."""
        after: Message = {"role": "user", "content": mark("Next")}
        if probe[-1].get("tool_calls"):
            after = {"role": "tool", "name": "f", "content": mark("Next")}
        try:
            text = self._render([*way.dialect.apply(probe), after], tools, way.template, complete=True)
        except DataError:
            return None
        if last not in text or mark("Next") not in text:
            return None
        return text[text.rindex(last) + len(last) : text.rindex(mark("Next"))]


def _place(text: str, base: int, stop: int, pieces: Sequence[Piece], gaps: Sequence[str]) -> list[tuple[int, int]]:
    """Where each piece stands in text[base:stop], which is gaps and pieces and nothing else.

    Raises: DataError naming the piece that isn't there as the row has it. White space at its ends may be taken off.
    """
    places: list[tuple[int, int]] = []
    failed = 0

    def fill(position: int, number: int) -> bool:
        nonlocal failed
        failed = max(failed, number)
        if number == len(pieces):
            return position == stop
        piece = pieces[number]
        if not text.startswith(gaps[number], position):
            return False
        begin = position + len(gaps[number])
        for end in piece.ends(text, begin, stop):
            places.append((begin, end))
            if fill(end, number + 1):
                return True
            places.pop()
        return False

    if not fill(base, 0):
        field = pieces[min(failed, len(pieces) - 1)].field
        raise _left_out(f"{field}, or changes it")
    return places


def _shared_length(a: str, b: str) -> int:
    """Characters that two texts begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _missing_context(text: str, messages: Sequence[Message]) -> str | None:
    """What a rendering doesn't have of the messages before a turn; None: all is there.

    Of the assistant's earlier turns only the tool calls must be: templates leave out thoughts, and what was said beside
    a call, on purpose.
    """
    for number, message in enumerate(messages, 1):
        said: list[Any] = list(tool_leaves(message)) if message["role"] == "assistant" else text_parts(message)
        if not all(has_text(text, part) for part in said):
            if message["role"] != "assistant":
                return f"what message {number} (role {message['role']}) says"
            return f"the tool calls of message {number}: take a model whose template has tools, or chat_template_path"
    return None


def _left_out(what: str) -> DataError:
    cure = ""
    if what.startswith("reasoning_content"):
        cure = (
            ": write it into the answer with completion_template (plain, think …), or give a chat template that has a "
            "place for it: chat_template_path"
        )
    return DataError(f"the chat template leaves out the completion's {what}{cure}", reason="template")

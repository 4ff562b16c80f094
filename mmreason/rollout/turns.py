"""Token ids of an environment's turns, as they follow a turn that the policy has sampled.

A sampled turn is never rendered or tokenized again: its ids stay what they are. What the chat template puts behind the
turn's end token (the rest of that turn, the observation's messages, the opening of the next turn) is rendered behind a
stand-in for the turn, cut off there, and appended.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from mmreason.data.render import media_tokens, processor_name, render_text
from mmreason.types import ConfigError, DataError, Message

_log = logging.getLogger(__name__)
# Stand-ins: words that no template has, and that no template changes by trimming or escaping.
_TURN, _THOUGHT, _SEEN = "qzturnqz", "qzthoughtqz", "qzseenqz"


class TurnRenderer:
    """Renders observations for one tokenizer or processor.

    Args:
        processor: the model's, or its tokenizer. end_token_ids: what ends a sampled turn.
        chat_template_kwargs: as prompts are rendered with.
    """

    def __init__(
        self, processor: Any, end_token_ids: Sequence[int], chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.processor, self.kwargs = processor, chat_template_kwargs
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.ends = {str(self.tokenizer.convert_ids_to_tokens(token)) for token in end_token_ids}
        self._control = _control_tokens(processor)
        self._checked: set[str] = set()

    def __call__(self, observation: Sequence[Message], *, plain: bool = False, ended: bool = True) -> list[int]:
        """Token ids that follow a sampled turn, up to where the policy's next turn begins.

        An observation never holds a control token: what spells one (an end of turn, a picture's placeholder) gets a
        space behind its first character, so a text from outside can neither end a turn nor open one.

        Args:
            plain: the prompt is plain text, so the observation is its bare text.
            ended: the turn ends with its end token. False: it was cut, and that token is put before all else (where
                turns have one).

        Raises: ConfigError where the chat template can't show such messages.
        """
        observation = [self._harmless(message) for message in observation]
        if plain:
            text = "".join(str(message["content"]) for message in observation)
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        for role in dict.fromkeys(message["role"] for message in observation):
            self.check(role)
        return self._ids(observation, ended)

    def _harmless(self, message: Message) -> Message:
        """A message whose texts (its name too, which a policy may have chosen) spell no control token."""
        texts = {key: self._broken(text) for key, text in message.items() if key != "role" and isinstance(text, str)}
        return cast(Message, {**message, **texts})

    def _broken(self, text: str) -> str:
        text = text.encode("utf-8", "replace").decode("utf-8")  # tokenizers refuse lone surrogates
        while self._control is not None and (broken := self._control.sub(_with_space, text)) != text:
            text = broken
        return text

    def check(self, role: str) -> None:
        """Raise ConfigError, with the reason, where the chat template can't put a turn of this role behind one sampled.

        A template that renders earlier turns otherwise than the last one (most drop its thoughts) is told of once: the
        rollout keeps what was sampled, since those are the tokens that are learned from.
        """
        if role in self._checked:
            return
        seen: Message = {"role": role, "content": _SEEN, "name": "probe"}
        text, _, cut = self._rendered([seen])
        if _SEEN not in text[cut:]:
            raise ConfigError(
                f"the chat template of {processor_name(self.processor)} leaves out messages of role {role!r}, so the "
                "policy would not see what its environment says; give one that shows them (chat_template_path), or let "
                "the environment answer as a user (for tools: call_format: react)"
            )
        self._checked.add(role)
        turn: Message = {"role": "assistant", "content": _TURN, "reasoning_content": _THOUGHT}
        start: list[Message] = [{"role": "user", "content": "?"}]
        last = render_text([*start, turn], self.processor, self.kwargs, complete=True)
        earlier = render_text([*start, turn, seen], self.processor, self.kwargs)
        end = last.rfind(_TURN) + len(_TURN)
        if _TURN in last and not earlier.startswith(last[:end]):
            _log.warning(
                "the chat template of %s renders a turn otherwise once a %s message follows it (thoughts dropped, "
                "mostly). Rollouts keep each turn as it was sampled; serve the model with a template that does, too, "
                "such as trl.get_training_chat_template gives",
                processor_name(self.processor),
                role,
            )

    def _ids(self, observation: Sequence[Message], ended: bool) -> list[int]:
        text, end, after = self._rendered(observation)
        cut = after if ended else end
        before = list(self.tokenizer(text[:cut], add_special_tokens=False)["input_ids"])
        whole = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if whole[: len(before)] != before:
            raise ConfigError(
                f"the tokenizer of {processor_name(self.processor)} joins the end token of a turn with what follows "
                "it, so an environment's turn can't be appended to sampled tokens"
            )
        return whole[len(before) :]

    def _rendered(self, observation: Sequence[Message]) -> tuple[str, int, int]:
        """A conversation that ends with the observation, and where the end token before that begins and ends."""
        error: DataError | None = None
        for turn in self._stand_ins(observation):
            start: Message = {"role": "user", "content": "?"}
            try:
                text = render_text([start, turn, *observation], self.processor, self.kwargs)
            except DataError as refused:
                error = refused
                continue
            found = text.rfind(_TURN)
            ends = [(at, end) for end in self.ends if (at := text.find(end, max(found, 0))) >= 0]
            if found < 0 or not ends:
                continue
            at, end = min(ends)
            return text, at, at + len(end)
        roles = ", ".join(message["role"] for message in observation)
        why = (
            f"it refuses them: {error}"
            if error is not None
            else f"it closes a turn with none of the tokens that end one ({', '.join(sorted(self.ends))})"
        )
        raise ConfigError(
            f"the chat template of {processor_name(self.processor)} can't put messages of an environment ({roles}) "
            f"behind a sampled turn: {why}"
        )

    def _stand_ins(self, observation: Sequence[Message]) -> list[Message]:
        """Turns that may stand before the observation: some templates want a tool's answer to follow a call."""
        plain: Message = {"role": "assistant", "content": _TURN}
        called = [message for message in observation if message["role"] == "tool"]
        if not called:
            return [plain]
        calls: list[Any] = [
            {
                "type": "function",
                "id": message.get("tool_call_id") or f"call{number:05d}",
                "function": {"name": message.get("name") or "probe", "arguments": {"text": _TURN}},
            }
            for number, message in enumerate(called)
        ]
        with_calls: Message = {"role": "assistant", "content": _TURN, "tool_calls": calls}
        return [with_calls, plain]


def _control_tokens(processor: Any) -> re.Pattern[str] | None:
    """What matches the texts of special and added tokens, the longest first; None where there are none.

    Left alone: runs of spaces and line ends, which some tokenizers have added, and added words of letters and digits.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    added = tokenizer.added_tokens_decoder.values()
    found = {token.content.strip() for token in added if token.special or not token.content.strip().isalnum()}
    found |= {token.strip() for token in (*tokenizer.all_special_tokens, *media_tokens(processor))}
    tokens = sorted((token for token in found if len(token.strip("\u2581")) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens))) if tokens else None


def _with_space(match: re.Match[str]) -> str:
    return f"{match[0][0]} {match[0][1:]}"


def tells_of_tools(
    processor: Any, tools: Sequence[Mapping[str, Any]], chat_template_kwargs: Mapping[str, Any] | None = None
) -> bool:
    """Whether a chat template shows the model the tools that it is given."""
    start: list[Message] = [{"role": "user", "content": "?"}]
    with_tools = render_text(start, processor, chat_template_kwargs, tools=tools)
    return with_tools != render_text(start, processor, chat_template_kwargs)

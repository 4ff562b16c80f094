"""JSON-constrained output: the answer is a field of an object that fits a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmreason.clients.schemas import SchemaMismatchError, check_schema, parse_fitting
from mmreason.clients.types import EndpointError
from mmreason.prompting.prompts import answer_in, ask, assistant, fill, said, user
from mmreason.prompting.session import Session
from mmreason.prompting.strategy import Strategy, at_least
from mmreason.prompting.types import Completion, Problem, Solution
from mmreason.types import ConfigError

DEFAULT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"reasoning": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["reasoning", "answer"],
    "additionalProperties": False,
}
"""Reasoning stands first: what is written before the answer can still change it."""

_FENCE = re.compile(r"\s*```(?:json)?[^\S\n]*\n(.*)```\s*", re.S)


@dataclass(frozen=True, kw_only=True)
class JsonAnswer(Strategy):
    """A reply that is JSON and fits a schema. 1 call, and one for each reply that had to be sent back.

    The schema goes to the sampler, which may constrain decoding by it, and into the prompt; the reply is validated in
    any case. One that can't be read or doesn't fit is counted ("unreadable_json") and sent back with the error. If none
    fits, there is no answer.

    Attributes:
        schema: JSON Schema of an object; None takes `DEFAULT_SCHEMA`.
        answer_field: which property is the answer.
        retries: replies sent back at most.
    """

    schema: Mapping[str, Any] | None = None
    answer_field: str = "answer"
    retries: int = at_least(0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schema is not None:
            check_schema(self.schema)
        schema = self.schema or DEFAULT_SCHEMA
        if schema.get("type") != "object" or self.answer_field not in schema.get("required", ()):
            raise ConfigError(
                f"{self._where('schema')}: it must be of type object and require the answer field {self.answer_field!r}"
            )

    async def run(self, problem: Problem, session: Session) -> Solution:
        schema = self.schema or DEFAULT_SCHEMA
        shown = json.dumps(schema, ensure_ascii=False)
        prompt = ask(self.texts.json, problem, self.texts, schema=shown)
        text, reasoning = "", None
        for _ in range(1 + self.retries):
            try:
                completion = await session.ask_one(prompt, "answer", json_schema=schema)
            except EndpointError as error:
                if error.kind != "schema":
                    raise
                session.counts["unreadable_json"] += 1  # the endpoint has asked again already
                break
            text, reasoning = completion.text.strip(), completion.reasoning
            try:
                value = _read(completion, schema)
            except SchemaMismatchError as error:
                session.counts["unreadable_json"] += 1
                prompt = prompt.then(assistant(said(completion)), user(fill(self.texts.json_again, error=error)))
                continue
            answer = value[self.answer_field]
            written = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
            return Solution(
                answer=answer_in(written, problem), text=text, reasoning=reasoning, accepted=True, parsed=value
            )
        return Solution(answer=None, text=text, reasoning=reasoning, accepted=False)


def _read(completion: Completion, schema: Mapping[str, Any]) -> Any:
    """The JSON value, with a code fence around it taken off. Raises: SchemaMismatchError."""
    if completion.parsed is not None:
        return completion.parsed
    fenced = _FENCE.fullmatch(completion.text)
    return parse_fitting(fenced[1] if fenced else completion.text, schema)

"""A request as the chat-completions API is sent it, and a reply read from what came back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mmreason.clients.images import with_images
from mmreason.clients.logprobs import LogprobsError, parse_logprobs
from mmreason.clients.schemas import SchemaMismatchError, parse_fitting
from mmreason.clients.types import ErrorKind, Reply, Request
from mmreason.types import ConfigError

KEY_VERSION = 1
"""Part of every key: raised when the meaning of a key changes."""
TEMPLATE_TOKENS = 256
"""Tokens that a chat template may add of its own (default system prompt, date, preamble for tools)."""

LimitField = Literal["max_tokens", "max_completion_tokens"]
_OURS = ("messages", "model", "max_tokens", "max_completion_tokens", "n", "best_of", "stream", "stream_options")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the server counted them; `cached` is a part of `prompt`."""

    prompt: int
    completion: int
    cached: int


class ReplyError(Exception):
    """What came back is no usable completion.

    Args:
        kind: of the EndpointError that it becomes.
        message: what is wrong with it.
        usage: what it is charged for, where the server said so.
    """

    def __init__(self, kind: ErrorKind, message: str, usage: Usage | None = None) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind
        self.usage = usage


def request_key(request: Request, model: str, revision: str, extra_body: Mapping[str, Any]) -> str:
    """The sha256 of everything that decides the answer, as 64 hex digits.

    That is the model's name and revision, and the request with its images and the number of its draw. The address is
    not part of it: the same model behind another address gives the same answer.
    """
    content = {
        "version": KEY_VERSION,
        "model": model,
        "revision": revision,
        "messages": list(request.messages),
        "images": [hashlib.sha256(image).hexdigest() for image in request.images],
        "max_tokens": request.max_tokens,
        "temperature": None if request.temperature is None else float(request.temperature),
        "top_p": None if request.top_p is None else float(request.top_p),
        "stop": list(request.stop),
        "seed": request.seed,
        "sample": request.sample,
        "json_schema": request.json_schema,
        "top_logprobs": request.top_logprobs,
        "tools": list(request.tools),
        "extra": {**extra_body, **request.extra},
    }
    try:
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, default=dict)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a request holds what JSON can't carry: {error}") from None
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def request_body(
    request: Request, model: str, extra_body: Mapping[str, Any], limit_field: LimitField
) -> dict[str, Any]:
    """The JSON body of a chat-completions request.

    Raises:
        ConfigError: images that don't match their places, `extra` with a field that isn't the caller's, max_tokens < 1.
    """
    extra = {**extra_body, **request.extra}
    taken = [name for name in _OURS if name in extra]
    if taken:
        raise ConfigError(f"extra may not hold {taken[0]!r}: it is decided by the request's own fields")
    if request.max_tokens < 1:
        raise ConfigError(f"max_tokens must be at least 1, not {request.max_tokens}")
    body: dict[str, Any] = {
        "model": model,
        "messages": with_images([dict(message) for message in request.messages], request.images),
        limit_field: request.max_tokens,
    }
    for name in ("temperature", "top_p", "seed"):
        if getattr(request, name) is not None:
            body[name] = getattr(request, name)
    if request.stop:
        body["stop"] = list(request.stop)
    if request.tools:
        body["tools"] = [dict(tool) for tool in request.tools]
    if request.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if request.json_schema is not None:
        form = {"name": "answer", "schema": dict(request.json_schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body | extra


def check_encoding(request: Request) -> None:
    """Raises: UnicodeEncodeError: a text of the request has half a character, which no body can carry."""
    sent = [list(request.messages), list(request.tools), request.json_schema, list(request.stop)]
    json.dumps(sent, ensure_ascii=False, default=dict).encode()


def prompt_bound(request: Request, image_tokens: int) -> int:
    """The most tokens that the prompt can be: no tokenizer makes more of a text than it has bytes.

    Args: image_tokens: the most that one image is counted as.
    """
    sent = [list(request.messages), list(request.tools), request.json_schema]
    text = json.dumps(sent, ensure_ascii=False, default=dict)
    size = len(text.encode("utf-8", errors="surrogatepass"))
    return size + TEMPLATE_TOKENS + image_tokens * len(request.images)


def parse_completion(text: str, request: Request) -> Reply:
    """The reply in a response's text, checked against what was asked. `endpoint`, `cost` and `seconds` are not set.

    Raises:
        ReplyError: no JSON, no choice, withheld by a content filter, not fitting the schema, impossible log-probs.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReplyError("bad_reply", f"the reply is not JSON ({str(error)[:80]})") from None
    return parse_found(found, request)


def parse_found(found: Any, request: Request) -> Reply:
    """Like `parse_completion`, of the JSON value. Raises: ReplyError."""
    if not isinstance(found, Mapping):
        raise ReplyError("bad_reply", "the reply is JSON, and no completion")
    usage = parse_usage(found.get("usage"))
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise ReplyError("bad_reply", "the reply has no choice" + _said(found), usage)
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise ReplyError("bad_reply", "the reply's choice has no message", usage)
    reason = choice.get("finish_reason")
    if reason == "content_filter" or message.get("refusal"):
        raise ReplyError("refused", "the provider's content filter or the model itself refused to answer", usage)
    content = message.get("content")
    if not (content is None or isinstance(content, str)):
        raise ReplyError("bad_reply", "the reply's content is no text", usage)
    calls = _tool_calls(message.get("tool_calls"), usage)
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    return _checked(
        Reply(
            text=content or "",
            reasoning=thoughts if isinstance(thoughts, str) else None,
            tool_calls=calls,
            finish_reason=reason if isinstance(reason, str) else "stop",
            prompt_tokens=usage.prompt if usage else 0,
            completion_tokens=usage.completion if usage else 0,
            cached_tokens=usage.cached if usage else 0,
            model=str(found.get("model") or ""),
        ),
        request,
        choice,
        usage,
    )


def parse_usage(found: Any) -> Usage | None:
    """The token counts of a reply; None where they are missing or make no sense."""
    if not isinstance(found, Mapping):
        return None
    details = found.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else found.get("prompt_cache_hit_tokens")
    counts: list[Any] = [found.get("prompt_tokens"), found.get("completion_tokens"), 0 if cached is None else cached]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in counts):
        return None
    usage = Usage(*counts)
    return usage if usage.cached <= usage.prompt else None


def _checked(reply: Reply, request: Request, choice: Mapping[str, Any], usage: Usage | None) -> Reply:
    if request.top_logprobs is not None:
        try:
            logprobs = parse_logprobs(
                choice.get("logprobs"),
                k=request.top_logprobs,
                text=reply.text,
                reasoning=reply.reasoning,
                stop=request.stop,
                completion_tokens=usage.completion if usage else None,
                is_text_only=not reply.tool_calls,
            )
        except LogprobsError as error:
            raise ReplyError("logprobs", f"{error}; ask without top_logprobs, or another server", usage) from None
        reply = replace(reply, logprobs=logprobs)
    if request.json_schema is not None and not reply.tool_calls:
        try:
            reply = replace(reply, parsed=parse_fitting(reply.text, request.json_schema))
        except SchemaMismatchError as error:
            cut = f" (cut off at max_tokens={request.max_tokens})" if reply.finish_reason == "length" else ""
            raise ReplyError("schema", f"{error}{cut}", usage) from None
    return reply


def _tool_calls(found: Any, usage: Usage | None) -> tuple[dict[str, Any], ...]:
    if found is None:
        return ()
    if not isinstance(found, list) or not all(
        isinstance(call, Mapping) and isinstance(call.get("function"), Mapping) for call in found
    ):
        raise ReplyError("bad_reply", "the reply's tool_calls are not in the OpenAI form", usage)
    return tuple(dict(call) for call in found)


def _said(found: Mapping[str, Any]) -> str:
    """What some servers say with status 200 instead of a completion."""
    error = found.get("error")
    return f": {json.dumps(error)}" if error else ""

"""JSON schemas of structured output: refused where nothing can fit them, and held against what a model wrote.

Whether any value fits a schema can't be decided in general. `check_schema` finds the plain contradictions; against the
others stands the bounded number of times that a request is asked again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from mmreason._json import strict_json
from mmreason._schemas import dangling_reference, validator
from mmreason.types import ConfigError

_RANGES = (
    ("minimum", "maximum"), ("minLength", "maxLength"), ("minItems", "maxItems"),
    ("minProperties", "maxProperties"), ("minContains", "maxContains"),
)  # fmt: skip


class SchemaMismatchError(Exception):
    """A text that isn't JSON, or JSON that doesn't fit; the text says what and where."""


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse a schema before anything is paid for.

    Raises:
        ConfigError: it isn't a JSON schema, refers to what isn't in it, or contradicts itself.
    """
    try:
        text = json.dumps(schema, default=dict)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"json_schema is not JSON: {error}") from None
    _check(text)


@functools.lru_cache(maxsize=256)
def _check(text: str) -> None:
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise ConfigError("json_schema must be a JSON object")
    from jsonschema.exceptions import SchemaError

    try:
        validator(schema).check_schema(schema)
    except SchemaError as error:
        raise ConfigError(f"json_schema is not a valid JSON schema: {error.json_path}: {error.message}") from None
    except RecursionError:
        raise ConfigError("json_schema is nested too deeply") from None
    reference = dangling_reference(schema)
    if reference is not None:
        raise ConfigError(f"json_schema refers to {reference!r}, which isn't in it (nothing is fetched)")
    contradiction = _contradiction(schema, "$")
    if contradiction:
        raise ConfigError(f"no JSON can fit the json_schema: {contradiction}")


def parse_fitting(text: str, schema: Mapping[str, Any]) -> Any:
    """The JSON value that a text is.

    Raises:
        SchemaMismatchError: the text isn't strict JSON (no NaN, no key twice), or doesn't fit the schema.
    """
    from jsonschema.exceptions import best_match

    try:
        value = strict_json(text)
    except ValueError as error:
        raise SchemaMismatchError(f"the text is not JSON ({str(error)[:120]})") from None
    try:
        misfit = best_match(validator(schema).iter_errors(value))
    except RecursionError:
        raise SchemaMismatchError("the JSON is nested too deeply to be checked") from None
    if misfit is not None:
        raise SchemaMismatchError(f"the JSON doesn't fit the schema: {misfit.json_path}: {misfit.message[:200]}")
    return value


def _contradiction(schema: Any, path: str) -> str | None:
    """Why nothing fits, in words; None where no contradiction is seen. Looks only into what a value must have."""
    if schema is False:
        return f"{path} allows nothing (false)"
    if not isinstance(schema, Mapping):
        return None
    if schema.get("enum") == [] or schema.get("type") == []:
        return f"{path} has an empty {'enum' if schema.get('enum') == [] else 'type'}"
    for low, high in _RANGES:
        if low in schema and high in schema and schema[low] > schema[high] and _ranges_apply(schema, low):
            return f"{path} has {low} {schema[low]} above {high} {schema[high]}"
    return _unfit_constant(schema, path) or _missing_property(schema, path) or _dead_branches(schema, path)


def _ranges_apply(schema: Mapping[str, Any], keyword: str) -> bool:
    """A range binds values of its own type only: `{"minLength": 2, "maxLength": 1}` lets every number through."""
    types = schema.get("type", ())
    types = {types} if isinstance(types, str) else set(types)
    own = {"minimum": {"number", "integer"}, "minLength": {"string"}, "minProperties": {"object"}}
    return bool(types) and types <= own.get(keyword, {"array"})


def _unfit_constant(schema: Mapping[str, Any], path: str) -> str | None:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is None:
        return None
    rest = {key: value for key, value in schema.items() if key not in ("$ref", "$dynamicRef")}
    if any(validator(rest).is_valid(value) for value in values):
        return None
    return f"{path} allows only {json.dumps(values)[:100]}, which its other keywords forbid"


def _missing_property(schema: Mapping[str, Any], path: str) -> str | None:
    if schema.get("type") != "object":
        return None
    properties = schema.get("properties", {})
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    for name in schema.get("required", ()):
        if name not in properties:
            if closed:
                return f"{path} requires {name!r}, which its properties don't have and additionalProperties forbids"
            continue
        found = _contradiction(properties[name], f"{path}.{name}")
        if found:
            return found
    return None


def _dead_branches(schema: Mapping[str, Any], path: str) -> str | None:
    for branch in schema.get("allOf", ()):
        found = _contradiction(branch, path)
        if found:
            return found
    for keyword in ("anyOf", "oneOf"):
        dead = [_contradiction(branch, f"{path} {keyword}") for branch in schema.get(keyword, ())]
        if dead and all(dead):
            return dead[0]
    return None

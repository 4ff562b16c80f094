"""JSON schemas: refused before money is spent where nothing fits, strict about what fits."""

from __future__ import annotations

from typing import Any

import pytest

from mmreason.clients.schemas import SchemaMismatchError, check_schema, parse_fitting
from mmreason.types import ConfigError

ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}, "unit": {"enum": ["m", "s"]}},
    "required": ["answer"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "schema",
    [
        ANSWER,
        {},
        {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {"$ref": "#/$defs/x"},
            "$defs": {"x": {"type": "null"}},
        },
        {"minLength": 3, "maxLength": 2},  # every number fits
        {"type": ["string", "number"], "minLength": 3, "maxLength": 2},
        {"type": "object", "required": ["a"], "additionalProperties": False, "patternProperties": {"^a$": {}}},
        {"type": "object", "properties": {"a": False}},  # {} fits
        {"anyOf": [False, {"type": "string"}]},
        {"type": "array", "items": {"type": "string", "enum": []}},  # [] fits
        {
            "$ref": "#/$defs/tree",
            "$defs": {"tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}}},
        },
    ],
)
def test_schemas_that_something_fits(schema: dict[str, Any]) -> None:
    check_schema(schema)


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"type": "text"}, "not a valid JSON schema"),
        ({"required": "a"}, "not a valid JSON schema"),
        ({"$ref": "#/$defs/nothing"}, "isn't in it"),
        ({"$ref": "http://example.com/schema.json"}, "nothing is fetched"),
        ({"enum": []}, "empty enum"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength 3 above maxLength 2"),
        ({"type": "integer", "minimum": 1, "maximum": 0}, "minimum 1 above maximum 0"),
        ({"type": "integer", "enum": ["a", "b"]}, "other keywords forbid"),
        ({"type": "object", "required": ["a"], "properties": {"a": False}}, r"\$.a allows nothing"),
        ({"type": "object", "required": ["a"], "properties": {}, "additionalProperties": False}, "requires 'a'"),
        ({"anyOf": [False, {"enum": []}]}, "allows nothing"),
        ({"allOf": [{"type": "string"}, False]}, "allows nothing"),
        ({"const": {1, 2}}, "not JSON"),
    ],
)
def test_schemas_that_nothing_fits(schema: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        check_schema(schema)


def test_a_text_that_fits() -> None:
    assert parse_fitting(' {"answer": 3, "unit": "m"}\n', ANSWER) == {"answer": 3, "unit": "m"}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "not JSON"),
        ('{"answer": 3', "not JSON"),
        ('```json\n{"answer": 3}\n```', "not JSON"),
        ('{"answer": NaN}', "NaN is no JSON"),
        ('{"answer": 3, "answer": 4}', "the key 'answer' stands there twice"),
        ('{"answer": "3"}', r"\$.answer"),
        ('{"answer": 3, "more": 1}', "more"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_text_that_does_not_fit(text: str, word: str) -> None:
    with pytest.raises(SchemaMismatchError, match=word):
        parse_fitting(text, ANSWER)

"""JSON Schemas that stand alone: validators that fetch nothing, and references that lead nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def validator(schema: Mapping[str, Any]) -> Any:
    """A jsonschema validator of the draft that the schema names, else of 2020-12.

    jsonschema's own registry would fetch remote references from the network; this one holds the schema alone.
    """
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    registry: Any = Registry().with_resource("", DRAFT202012.create_resource(dict(schema)))
    return validator_for(schema, default=Draft202012Validator)(dict(schema), registry=registry)


def dangling_reference(schema: Mapping[str, Any]) -> str | None:
    """The first `$ref` that leads outside of the schema or nowhere; None where there is none."""
    from referencing.exceptions import Unresolvable

    resolver = validator(schema)._resolver
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            return reference
    return None


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)

"""JSON Schemas of tools (draft 2020-12): checked once, arguments held against them, other dialects made standard."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mmreason._schemas import dangling_reference, validator
from mmreason._values import nearest
from mmreason.types import ConfigError

TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Names that the OpenAI API and chat templates take."""
_MAX_PROBLEMS = 5
_MAX_SHOWN = 200

_STANDARD_TYPES = {
    "dict": "object", "float": "number", "double": "number", "tuple": "array", "list": "array", "str": "string",
    "int": "integer", "bool": "boolean",
}  # fmt: skip
"""Type names of Python, as BFCL and other sets write them -> those of JSON Schema."""
_ANY_TYPES = ("any", "Any")
_LIST_TYPE = re.compile(r"[Ll]ist\[(?P<item>.+)\]")
_DICT_TYPE = re.compile(r"[Dd]ict\[.+\]")
_OPTIONAL = ", optional"
_TYPES = ("object", "number", "array", "string", "integer", "boolean", "null")
_ONE_SCHEMA = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")
_MANY_SCHEMAS = ("prefixItems", "anyOf", "oneOf", "allOf")
_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


class ArgumentSchema:
    """The schema of one tool's arguments.

    Args:
        tool: the tool's name, for errors.
        parameters: its JSON Schema.

    Raises: ConfigError for a name or a schema that isn't valid, and for a `$ref` that leads outside or nowhere.
    """

    def __init__(self, tool: str, parameters: Mapping[str, Any]) -> None:
        from jsonschema.exceptions import SchemaError

        if not isinstance(tool, str) or TOOL_NAME.fullmatch(tool) is None:
            raise ConfigError(
                f"{tool!r} is no name for a tool: 1 to 64 letters, digits, _ and -; "
                "mmreason.tools.schemas.standard_tool brings other names into this form"
            )
        if not isinstance(parameters, Mapping) or parameters.get("type") != "object":
            raise ConfigError(
                f'tool {tool!r}: its parameters must be a JSON Schema with "type": "object"; '
                "mmreason.tools.schemas.standard_tool converts the dialects of common data sets"
            )
        self.tool, self.parameters = tool, dict(parameters)
        try:
            json.dumps(self.parameters, allow_nan=False)
            validator(self.parameters).check_schema(self.parameters)
        except SchemaError as error:
            place = "/".join(map(str, error.absolute_path)) or "its top level"
            raise ConfigError(f"tool {tool!r}: the schema isn't valid at {place}: {_cut(error.message)}") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"tool {tool!r}: the schema is no JSON: {error}") from None
        reference = dangling_reference(self.parameters)
        if reference is not None:
            raise ConfigError(f"tool {tool!r}: the schema's $ref {reference!r} leads nowhere (nothing is fetched)")
        self._validator = validator(self.parameters)

    @property
    def properties(self) -> Mapping[str, Any]:
        return self.parameters.get("properties", {})

    def problems(self, arguments: Any) -> list[str]:
        """What is wrong with a call's arguments, each in a sentence that a model can act on; [] where they fit."""
        try:
            json.dumps(arguments, ensure_ascii=False).encode()
            errors = sorted(self._validator.iter_errors(arguments), key=lambda error: error.json_path)
        except UnicodeEncodeError:
            return ["the text holds lone surrogates, which no file and no program takes"]
        except (RecursionError, TypeError, ValueError):
            return ["the arguments are nested too deeply or hold what JSON has no form for"]
        texts = list(dict.fromkeys(text for error in errors for text in self._say(error)))
        if len(texts) > _MAX_PROBLEMS:
            texts[_MAX_PROBLEMS:] = [f"{len(texts) - _MAX_PROBLEMS} more problems"]
        return texts

    def signature(self) -> str:
        """The arguments in one line: 'expression (string), unit ("c" or "f", optional)'."""
        required = self.parameters.get("required", ())
        described = []
        for name, schema in self.properties.items():
            described_by = schema if isinstance(schema, Mapping) else {}
            kind = described_by.get("type", "any value")
            kind = kind if isinstance(kind, str) else " or ".join(map(str, kind))
            if described_by.get("enum"):
                kind = _cut(" or ".join(json.dumps(value, ensure_ascii=False) for value in described_by["enum"]))
            described.append(f"{name} ({kind}{'' if name in required else ', optional'})")
        return ", ".join(described) or "no arguments"

    def _say(self, error: Any) -> list[str]:
        """One error of jsonschema in words of ours where its own say too little."""
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
        place = place.removeprefix(".")
        within = f" of {place!r}" if place else ""
        if error.validator == "required":
            missing = [name for name in error.validator_value if name not in error.instance]
            return [f"the argument {name!r}{within} is missing" for name in missing]
        if error.validator == "additionalProperties" and error.validator_value is False:
            known = error.schema.get("properties", {})
            patterns = error.schema.get("patternProperties", {})
            extra = [n for n in error.instance if n not in known and not any(re.search(p, n) for p in patterns)]
            return [f"there is no argument {name!r}{within}{nearest(name, known)}" for name in extra]
        if error.validator == "type":
            wanted = error.validator_value
            wanted = wanted if isinstance(wanted, str) else " or ".join(wanted)
            shown = _cut(json.dumps(error.instance, ensure_ascii=False))
            return [f"{place or 'the whole'!r} must be of type {wanted}, but is {shown}"]
        return [f"{place!r}: {_cut(error.message)}" if place else _cut(error.message)]


def sole_text(parameters: Mapping[str, Any]) -> str | None:
    """The argument that a bare text fills: the only required one, or else the only one, where it is a string."""
    properties = parameters.get("properties", {})
    names = parameters.get("required") or list(properties)
    if len(names) != 1:
        return None
    schema = properties.get(names[0])
    return names[0] if isinstance(schema, Mapping) and schema.get("type") == "string" else None


def standard_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A function schema as the OpenAI API takes it, from the dialects of common data sets.

    - BFCL (Gorilla, arXiv:2305.15334): dict, float, double, tuple, list, str, int, bool become object, number, number,
      array, array, string, integer, boolean; `any` is dropped, which allows all.
    - xLAM (arXiv:2406.18518): also "str, optional", "List[int]", "Dict[str, int]"; and arguments that stand directly in
      `parameters`, where those without a default and without "optional" are required.
    - Characters of a name that are not allowed become `_` (`standard_name`).

    Args:
        tool: {"type": "function", "function": {...}} or the inner mapping alone.

    Raises: ConfigError for a type that isn't known, and what `ArgumentSchema` refuses in the outcome.
    """
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise ConfigError(f"no function schema: {_cut(repr(tool))} has no name")
    name = standard_name(inner["name"])
    parameters = _standard(_wrapped(inner.get("parameters") or {}), f"tool {name!r}")
    ArgumentSchema(name, parameters)
    function = {"name": name, "description": str(inner.get("description", "")), "parameters": parameters}
    return {"type": "function", "function": function}


def _wrapped(parameters: Any) -> Any:
    """Arguments that stand directly in `parameters`, as the properties of an object."""
    if not isinstance(parameters, Mapping) or "properties" in parameters or isinstance(parameters.get("type"), str):
        return parameters
    if not all(isinstance(schema, Mapping) for schema in parameters.values()):
        return parameters
    needed = [
        name
        for name, schema in parameters.items()
        if "default" not in schema and not str(schema.get("type", "")).endswith(_OPTIONAL)
    ]
    return {"type": "object", "properties": dict(parameters), "required": needed}


def standard_name(name: str) -> str:
    """A function's name with `_` for what tool names can't hold: "math.factorial" -> "math_factorial"."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64]


def _standard(schema: Any, place: str) -> Any:
    """`schema` with the types of JSON Schema, all the way down."""
    if not isinstance(schema, Mapping):
        return schema  # true, false, or something that check_schema will name
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "type" and isinstance(value, str):
            found |= _standard_type(value, place)
        elif key in _NAMED_SCHEMAS and isinstance(value, Mapping):
            found[key] = {name: _standard(inner, f"{place}, {name}") for name, inner in value.items()}
        elif key in _MANY_SCHEMAS and isinstance(value, list):
            found[key] = [_standard(inner, f"{place}, {key}") for inner in value]
        else:
            found[key] = _standard(value, f"{place}, {key}") if key in _ONE_SCHEMA else value
    return found


def _standard_type(text: str, place: str) -> dict[str, Any]:
    """The keywords for a type as a data set names it."""
    text = text.removesuffix(_OPTIONAL)
    if text in _ANY_TYPES:
        return {}
    if (match := _LIST_TYPE.fullmatch(text)) is not None:
        return {"type": "array", "items": _standard_type(match["item"], place)}
    kind = "object" if _DICT_TYPE.fullmatch(text) else _STANDARD_TYPES.get(text, text)
    if kind not in _TYPES:
        known = ", ".join((*_TYPES, *_STANDARD_TYPES, *_ANY_TYPES))
        raise ConfigError(f"{place}: the type {text!r} isn't known; known: {known}, List[...], Dict[...]")
    return {"type": kind}


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + " ..."

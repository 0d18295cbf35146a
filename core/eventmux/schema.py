"""The JSON Schema of plugins.yaml, made from the installed plugins: what an editor completes and checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import Config

if TYPE_CHECKING:
    from .plugins import Plugins
    from .source import Source

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_VARIABLE = {"type": "string", "pattern": r"\$\{"}  # a value that comes from the environment
_NOTES = ("title", "description", "default", "deprecated", "examples")  # what an editor shows of a key


def config_schema(plugins: Plugins) -> dict[str, Any]:
    """JSON Schema 2020-12. It knows the parameters of every source, under its own name and under another with `use`."""
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    section = definitions["SourceConfig"]["properties"]
    section["use"] = {"type": "string", "enum": list(plugins.offers), "description": section["use"]["description"]}
    for definition in (schema, *definitions.values()):
        _allow_variables(definition)
    by_use = []
    for name, (source, _) in plugins.offers.items():
        definitions.update(_parameters(name, source))
        by_use.append({"if": {"properties": {"use": {"const": name}}}, "then": {"$ref": f"#/$defs/{name}"}})
    definitions["another"] = {"$ref": "#/$defs/SourceConfig", "required": ["use"], "allOf": by_use}
    schema["properties"]["sources"] = {
        "type": "object",
        "description": schema["properties"]["sources"]["description"],
        "properties": {name: _section(name, source) for name, (source, _) in plugins.offers.items()},
        "additionalProperties": {"$ref": "#/$defs/another"},
        "propertyNames": schema["properties"]["sources"]["propertyNames"],
    }
    return {"$schema": DIALECT, **schema}


def _section(name: str, source: Source[...]) -> dict[str, Any]:
    """A source under its own name; with `use`, the key is only a name, and the parameters are another source's."""
    return {
        "description": source.description,
        "type": ["object", "null"],
        "if": {"type": "object", "required": ["use"]},
        "then": {"$ref": "#/$defs/another"},
        "else": {"anyOf": [{"$ref": "#/$defs/SourceConfig"}, {"type": "null"}], "$ref": f"#/$defs/{name}"},
    }


def _parameters(name: str, source: Source[...]) -> dict[str, Any]:
    """The definitions of one source: its parameters under its name, and the types that they need under names behind it."""
    schema = source.parameters.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
    definitions = {f"{name}.{key}": value for key, value in schema.pop("$defs", {}).items()}
    for definition in (schema, *definitions.values()):
        _allow_variables(definition)
    params = schema.get("properties", {})
    defaults = {key: value for key, value in params.items() if key not in source.config_only}
    typed = {
        key: {"type": "object", "properties": properties, "additionalProperties": False}
        for key, properties in (("params", params), ("defaults", defaults))
    }
    return {name: {"properties": typed}, **definitions}


def _allow_variables(definition: dict[str, Any]) -> None:
    """Let a variable stand for whatever is not a mapping or a list of the file itself."""
    for place in ("properties", "additionalProperties", "items"):
        inner = definition.get(place)
        if place == "properties" and isinstance(inner, dict):
            for key, details in inner.items():
                inner[key] = _or_variable(details)
        elif isinstance(inner, dict):
            definition[place] = _or_variable(inner)


def _or_variable(details: dict[str, Any]) -> dict[str, Any]:
    if details.get("type") in ("object", "array"):
        _allow_variables(details)
        return details
    notes = {key: details.pop(key) for key in _NOTES if key in details}
    return {**notes, "anyOf": [details, _VARIABLE]}

"""The JSON Schema of plugins.yaml, made from the installed plugins: what an editor completes and checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import Config

if TYPE_CHECKING:
    from .plugins import Plugins
    from .source import Source

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_VARIABLE = {"type": "string", "pattern": r"\$\{"}  # a value that comes from the environment
_NOTES = ("title", "description", "default")  # what an editor shows of a key, whichever value it has


def config_schema(plugins: Plugins) -> dict[str, Any]:
    """JSON Schema 2020-12. It knows the parameters of every source, under its own name and under another with `use`."""
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    definitions["Step"] |= {"minProperties": 1, "maxProperties": 1}
    section = definitions["SourceConfig"]
    del section["type"]  # where a source needs no `use`, its section may be empty
    section["properties"]["use"] |= {"type": "string", "enum": list(plugins.offers)}
    section["properties"]["use"].pop("anyOf")
    for named in (schema["properties"]["sources"], schema["properties"]["streams"]):
        ((pattern, named["additionalProperties"]),) = named.pop("patternProperties").items()
        named["propertyNames"]["pattern"] = pattern  # as pydantic has it, a name that does not match is allowed
    _allow_variables(schema)
    typed = []
    for name, (source, _) in plugins.offers.items():
        definitions.update(_parameters(name, source))
        typed.append({"if": {"properties": {"use": {"const": name}}}, "then": {"$ref": f"#/$defs/{name}"}})
    # No source has a name with a capital, so that these names are free.
    definitions["Another"] = {"$ref": "#/$defs/SourceConfig", "type": "object", "required": ["use"], "allOf": typed}
    schema["properties"]["sources"] |= {
        "properties": {name: _section(name, source) for name, (source, _) in plugins.offers.items()},
        "additionalProperties": {"$ref": "#/$defs/Another"},
    }
    return {"$schema": DIALECT, **schema}


def _section(name: str, source: Source[...]) -> dict[str, Any]:
    """A source under its own name; with `use` the key is only a name, and the parameters are another source's."""
    return {
        "description": source.description,
        "type": ["object", "null"],
        "if": {"type": "object", "required": ["use"]},
        "then": {"$ref": "#/$defs/Another"},
        "else": {"allOf": [{"$ref": "#/$defs/SourceConfig"}, {"$ref": f"#/$defs/{name}"}]},
    }


def _parameters(name: str, source: Source[...]) -> dict[str, Any]:
    """The definitions of one source: its parameters under its name, the types that they need under names behind it."""
    schema = source.parameters.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
    _allow_variables(schema, prefix=f"{name}.")
    params = schema.get("properties", {})
    defaults = {key: value for key, value in params.items() if key not in source.config_only}
    typed = {
        key: {"type": "object", "properties": properties, "additionalProperties": False}
        for key, properties in (("params", params), ("defaults", defaults))
    }
    return {name: {"properties": typed}, **{f"{name}.{key}": value for key, value in schema.get("$defs", {}).items()}}


def _allow_variables(schema: dict[str, Any], prefix: str = "") -> None:
    """Let a variable stand wherever a text could: for everything but the mappings and lists of the file itself."""
    definitions = schema.get("$defs", {})

    def allowing(details: dict[str, Any]) -> dict[str, Any]:
        target = definitions.get(details.get("$ref", "").removeprefix(f"#/$defs/{prefix}"), details)
        if target.get("type") in ("object", "array"):
            walk(details)
            return details
        notes = {key: details.pop(key) for key in _NOTES if key in details}
        options = details["anyOf"] if details.keys() == {"anyOf"} else [details]
        for option in options:
            walk(option)
        return {**notes, "anyOf": [*options, _VARIABLE]}

    def walk(details: dict[str, Any]) -> None:
        for key, inner in details.get("properties", {}).items():
            details["properties"][key] = allowing(inner)
        for place in ("additionalProperties", "items"):
            if isinstance(details.get(place), dict):
                details[place] = allowing(details[place])

    for details in (schema, *definitions.values()):
        walk(details)

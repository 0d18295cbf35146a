"""The JSON Schema of plugins.yaml, made from the installed plugins: what an editor completes and checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import Config

if TYPE_CHECKING:
    from .plugins import Plugins
    from .source import Source

_VARIABLE = {"type": "string", "pattern": r"\$\{"}  # a value that comes from the environment


def config_schema(plugins: Plugins) -> dict[str, Any]:
    """JSON Schema 2020-12."""
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    section = {**definitions["SourceConfig"], "title": "Source"}
    sources: dict[str, Any] = {}
    for name, (source, _) in plugins.offers.items():
        parameters = source.parameters.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        definitions.update({f"{name}.{key}": value for key, value in parameters.pop("$defs", {}).items()})
        values = _values(parameters.get("properties", {}))
        defaults = {key: value for key, value in values.items() if key not in source.config_only}
        typed = {"properties": {"params": _only(values), "defaults": _only(defaults)}}
        # With `use`, the key is only a name, and the parameters are another source's.
        sources[name] = {
            **section,
            "type": ["object", "null"],
            "description": source.description,
            "if": {"required": ["use"]},
            "else": typed,
        }
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"]["sources"] = {
        "type": "object",
        "description": "The enabled sources. Without this key, the bundled ones.",
        "properties": sources,
        "additionalProperties": {"anyOf": [{"$ref": "#/$defs/SourceConfig"}, {"type": "null"}]},
    }
    return schema


def _values(properties: dict[str, Any]) -> dict[str, Any]:
    return {name: {"anyOf": [details, _VARIABLE]} for name, details in properties.items()}


def _only(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}

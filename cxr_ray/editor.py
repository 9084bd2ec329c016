"""The JSON schema of a sweep file, for editors: ``python -m cxr_ray.editor > sweeps/schema.json``."""

from __future__ import annotations

from typing import Any

from cxr_ray.config import WITH_SPACES, Sweep
from cxr_ray.schemas import NAME_PATTERN
from cxr_ray.sweepfile import NAMES, WITH_MAPS

SECTIONS = {  # models of sections to their dotted paths, where names stand in them
    "Data": "data",
    "Checkpoint": "checkpoints.*",
    "Explain": "explain",
    "Perturb": "perturb",
    "Verdicts": "verdicts",
    "Regions": "regions",
}


def json_schema() -> dict[str, Any]:
    """Sections with every key, the names that exist, and search spaces under ``model`` and ``train``."""
    schema = Sweep.model_json_schema()
    sections: dict[str, Any] = {}
    for name, section in WITH_SPACES.items():
        plain = section.model_json_schema()["properties"]
        named = {key: _with_names(value, f"{name}.{key}") for key, value in plain.items()}
        properties = {key: _or_space(value) for key, value in named.items()}
        sections[name] = {"type": "object", "properties": properties, "additionalProperties": False}
    change = {"type": ["object", "null"], "properties": sections, "additionalProperties": False}
    schema["properties"] |= sections
    schema["properties"]["variants"] = {"type": "object", "additionalProperties": change}
    schema["properties"]["controls"] = _with_names(schema["properties"]["controls"], "controls")
    for definition, path in SECTIONS.items():
        properties = schema["$defs"][definition]["properties"]
        for key in properties:
            properties[key] = _with_names(properties[key], f"{path}.{key}")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _with_names(value: dict[str, Any], path: str) -> dict[str, Any]:
    """A key's schema, with the names that may stand there."""
    if path not in NAMES:
        return value
    names: list[str | int] = list(NAMES[path])
    if value.get("type") == "object":
        return {**value, "propertyNames": {"enum": names}}
    if value.get("type") == "array":
        cells = [int(name) for name in NAMES[path] if name.isdigit()]  # as they may be written
        items: dict[str, Any] = {"enum": [*names, *cells]}
        if path in WITH_MAPS:
            items = {"anyOf": [items, {"type": "string", "pattern": f"^{NAME_PATTERN}$"}]}
        return {**value, "items": items}
    rest: dict[str, Any] = {k: v for k, v in value.items() if k != "pattern"}
    if pattern := getattr(NAMES[path], "pattern", None):  # of names that no list holds
        notes: dict[str, Any] = {k: rest.pop(k) for k in ("title", "description", "default") if k in rest}
        return {**notes, "anyOf": [{**rest, "enum": names}, {**rest, "pattern": pattern}]}
    return {**rest, "enum": names}


def _or_space(value: dict[str, Any]) -> dict[str, Any]:
    """A key's schema, or a search space of its values."""
    plain = {k: v for k, v in value.items() if k not in ("title", "description", "default")}
    notes = {k: v for k, v in value.items() if k in ("description", "default")}
    kinds = {kind: {"type": "array", "items": plain, "minItems": 1} for kind in ("grid", "choice")}
    if plain.get("type") == "number":
        bounds = {"type": "array", "items": plain, "minItems": 2, "maxItems": 2}
        kinds |= {"uniform": bounds, "loguniform": bounds}
    one = {"minProperties": 1, "maxProperties": 1}
    space = {"type": "object", "properties": kinds, "additionalProperties": False, **one}
    return {**notes, "anyOf": [plain, space]}


if __name__ == "__main__":
    import json
    import sys

    sys.stdout.write(json.dumps(json_schema(), indent=1) + "\n")

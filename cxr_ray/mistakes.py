"""Mistakes of a sweep file as sentences: the dotted path, what was got, what was expected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel

from cxr_ray.config import WITH_SPACES, Sweep
from cxr_ray.errors import shown
from cxr_ray.registry import did_you_mean
from cxr_ray.schemas import NAME_PATTERN


def part(key: object) -> str:
    """One part of a dotted path, on one line."""
    return key if isinstance(key, str) and key.isprintable() and key else shown(key)


def sentence(error: Mapping[str, Any], prefix: str = "") -> str:
    """One error of pydantic. ``prefix``: the dotted path of the section that was validated alone."""
    loc, got, kind = tuple(error["loc"]), error.get("input"), error["type"]
    named = [part(p) for p in loc if p != "[key]"]
    path = ".".join([prefix, *named] if prefix else named) or "the sweep"
    if kind == "extra_forbidden":
        return f"{path}: got an unknown key.{did_you_mean(loc[-1], _known_keys(loc, prefix))}"
    if kind == "literal_error" and "[key]" in loc:
        return f"{path}: got an unknown key.{did_you_mean(got, WITH_SPACES)}"
    if kind == "missing":
        return f"{path}: got nothing; expected a value."
    if kind == "value_error":
        return f"{path}: {error['msg'].removeprefix('Value error, ')}."
    if kind == "string_too_long":
        return f"{path}: got {shown(got)}; expected at most {error['ctx']['max_length']} characters."
    if kind == "literal_error":
        expected = re.findall("'([^']*)'", error["ctx"]["expected"])
        return f"{path}: got {shown(got)}.{did_you_mean(got, expected)}"
    return f"{path}: got {shown(got)}; expected {_expected(error)}."


def _expected(error: Mapping[str, Any]) -> str:
    """What pydantic allows, from its message."""
    if "[key]" in error["loc"] or error["type"] == "string_pattern_mismatch":
        return f"a name that matches {NAME_PATTERN}"
    if error["type"] in ("model_type", "dict_type"):
        return "a mapping of keys"
    message = re.sub(r"^\w+ should (be|have) | after validation, not \d+$", "", error["msg"])
    return f"a value {message}" if message.startswith(("greater", "less")) else message[0].lower() + message[1:]


def _known_keys(loc: tuple[Any, ...], prefix: str) -> list[str]:
    """Keys of the section in which an unknown key stands."""
    if prefix:
        return list(WITH_SPACES[prefix.rsplit(".", 1)[-1]].model_fields)
    section: Any = Sweep
    for key in loc[:-1]:
        field = section.model_fields.get(key) if _is_section(section) else None
        if field is None:
            break
        inner = [a for a in get_args(field.annotation) if _is_section(a)]
        section = inner[-1] if inner else field.annotation
    return list(section.model_fields) if _is_section(section) else []


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)

"""YAML to plain data, in which 1e-4 is a number, a key given twice is an error, and aliases stand for little."""

from __future__ import annotations

import re
from typing import Any

import yaml

from cxr_ray.errors import SweepError, shown

MOST_VALUES = 1_000_000  # that a text may stand for, each alias counted as what it stands for


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number and a key given twice is an error."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool | None):
            raise SweepError(
                f"line {key_node.start_mark.line + 1}: got the key {shown(key)}; expected a plain name; write one."
            )
        if key in seen:
            raise SweepError(
                f"line {key_node.start_mark.line + 1}: got the key {key!r} twice; expected it once; keep one."
            )
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=deep)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _parsed(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _values_of(node, {}) > MOST_VALUES:
            raise SweepError(
                f"line 1: got aliases that stand for more than {MOST_VALUES} values; expected less; write out what you "
                "mean."
            )
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _values_of(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many values a node stands for. ``known``: of nodes that aliases may name again; 0 while one is counted."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if node not in known:
        known[node] = 0
        pairs = isinstance(node, yaml.MappingNode)
        inner = [one for item in node.value for one in (item if pairs else [item])]
        known[node] = 1 + sum(_values_of(one, known) for one in inner)
    elif not known[node]:
        raise SweepError(
            f"line {node.start_mark.line + 1}: got an alias of what it stands in; expected values that end; write them."
        )
    return known[node]


def parse_yaml(text: str, origin: str) -> Any:
    """YAML to plain data. ``origin``: what it comes from, for messages.

    Raises:
        SweepError: it does not parse, a key stands twice, or aliases stand for more than MOST_VALUES values.
    """
    try:
        return _parsed(text)
    except SweepError as e:
        raise SweepError(f"{origin}, {e}") from None
    except Exception as e:  # PyYAML also raises IndexError, KeyError and others on ill-formed scalars
        mark, what = getattr(e, "problem_mark", None), getattr(e, "problem", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = " ".join(str(what or e).split()) or type(e).__name__
        raise SweepError(
            f"{origin}{where}: got text that is not valid YAML ({what}); expected YAML; correct it."
        ) from None

"""Names of models for people: what differs between them, such as "plain, seed 1"."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd


def model_names(trials: pd.DataFrame) -> dict[str, str]:
    """trial_id to a name, no two alike: the variant, and of several of one variant what tells them apart.

    The seed is named first, then settings in the order of the sweep, and the trial_id where no setting differs. A given
    model has the name that the sweep gives it.

    Args:
        trials: trial_id, variant, seed, status and config (JSON) of the models that are named together.
    """
    records = [{str(key): value for key, value in row.items()} for row in trials.to_dict("records")]
    base = {r["trial_id"]: str(r["trial_id"] if r["status"] == "given" else r["variant"]) for r in records}
    groups: dict[str, list[dict[str, Any]]] = {}
    for r in records:
        groups.setdefault(base[r["trial_id"]], []).append(r)
    return {
        trial_id: ", ".join([name, *differing])
        for name, group in groups.items()
        for trial_id, differing in _differing(group).items()
    }


def settings_that_differ(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Keys of flat configurations under which not all hold the same, in the order of the sweep, without the seed."""
    configs = list(configs)
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if key != "train.seed" and len({str(c.get(key)) for c in configs}) > 1]


def flat(config: Any) -> dict[str, Any]:
    """The configuration of a trial, JSON or none, with a key a leaf.

    >>> flat('{"train": {"lr": 0.1, "seed": 0}}')
    {'train.lr': 0.1, 'train.seed': 0}
    """
    return dict(_leaves(json.loads(config if isinstance(config, str) else "{}")))


def value_text(value: Any) -> str:
    """A setting's value in print.

    >>> value_text(0.00012345), value_text("adam"), value_text(3)
    ('0.000123', 'adam', '3')
    """
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _differing(group: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Of each model of a group what tells it from the others, as short as it can be."""
    found: dict[str, list[str]] = {r["trial_id"]: [] for r in group}
    if len(group) == 1:
        return found
    configs = {r["trial_id"]: flat(r["config"]) for r in group}
    seeds = {r["trial_id"]: None if pd.isna(r["seed"]) else int(r["seed"]) for r in group}
    told: list[Mapping[str, Any]] = [{t: "" if seed is None else f"seed {seed}" for t, seed in seeds.items()}]
    for key in settings_that_differ(configs.values()):
        name = key.rpartition(".")[2]
        told.append({t: f"{name} {value_text(config.get(key))}" for t, config in configs.items()})
    told.append({t: t for t in configs})
    for words in told:
        counted = Counter(map(tuple, found.values()))
        if len(counted) == len(found):
            break
        if len(set(words.values())) > 1:
            for t, differing in found.items():
                differing += [words[t]] if words[t] else []
    return found

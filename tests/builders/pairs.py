"""Finished runs of many patients with planted values, to be compared with each other."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from cxr_ray.analysis import primary
from cxr_ray.schemas import TABLES
from cxr_ray.storage import Store

LEVELS = [0.1, 0.25, 0.5, 0.75, 0.9]


def ids(n: int) -> list[str]:
    """The images of a run."""
    return [f"{i:016x}" for i in range(n)]


def planted_run(
    out: Any,
    gaps: Mapping[tuple[str, str], Any],
    right: Sequence[bool],
    *,
    images: Sequence[str] | None = None,
    trial: str = "study",
    seed: int = 0,
    setting: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """A run of one given model.

    Args:
        out: its folder.
        gaps: advantage of each image, by explainer and control.
        right: of each image whether the model is right.
        images: their ids; None: ``ids``.
        trial: the model's name.
        seed: of the sweep.
        setting: the primary fill and metric, where they are not mean and the sweep's.
    """
    n = len(right)
    fill = setting.get("fill", "mean")
    names = list(images) if images is not None else ids(n)
    store = Store(str(out), {"run_id": "0" * 16, "sweep_hash": "1" * 16})
    explainers = list(dict.fromkeys(e for e, _ in gaps)) or ["gradcam"]
    sweep = {
        "name": "planted",
        "seed": seed,
        "controls": {},
        "data": {"source": "folder", "path": "nowhere", "size": 32, "fit": "squash"},
        "explain": {"explainers": explainers, "targets": ["pneumonia"], "keep_maps": False},
        "perturb": {"grids": ["pixel"], "fills": [fill], "levels": LEVELS, "orders": ["morf"]},
    }
    store.write(yaml.safe_dump(sweep).encode(), "sweep.yaml")
    store.write_json({"name": "planted", "cxr_ray": "0.2.0"}, "provenance.json")
    settings = primary.resolve(sweep)
    settings = replace(settings, metric=setting.get("metric", settings.metric))
    store.write(settings.to_json().encode(), primary.FILE)
    labels = [i % 2 for i in range(n)]
    predicted = [label if ok else 1 - label for label, ok in zip(labels, right, strict=True)]
    outcome = [
        {(1, 1): "TP", (0, 1): "FP", (0, 0): "TN", (1, 0): "FN"}[pair] for pair in zip(labels, predicted, strict=True)
    ]
    patients = [f"p{name}" for name in names]
    _write(store, "images", [{"image_id": i, "patient_id": p, "path": f"{i}.png", "split": "test", "label": label}
                             for i, p, label in zip(names, patients, labels, strict=True)])  # fmt: skip
    _write(store, "trials", [{"trial_id": trial, "variant": trial, "status": "given", "config": "{}"}])
    rows = zip(names, labels, predicted, outcome, strict=True)
    _write(store, "predictions", [{"image_id": i, "split": "test", "label": label, "predicted": p, "outcome": o,
                                   "logit_pneumonia": 2.0 * p - 1}
                                  for i, label, p, o in rows], {"trial_id": trial})  # fmt: skip
    test = {"grid": "pixel", "fill": fill, "metric": settings.metric, "level": None, "scale": "logodds"}
    summary = []
    for explainer in explainers:
        of = {control: values for (e, control), values in gaps.items() if e == explainer}
        rows_of = [
            {"image_id": i, "target": 1, **test, "control": control, "gap": gap, "win_rate": float(gap > 0)}
            for control, values in of.items()
            for i, gap in zip(names, values, strict=True)
        ]
        _write(store, "faithfulness", rows_of, {"trial_id": trial, "explainer": explainer})
        summary += [
            {"trial_id": trial, "explainer": explainer, "bucket": "all", "contrast": False, "target_rule": "pneumonia",
             **test, "control": control, "n": n, "mean": float(np.mean(values))}
            for control, values in of.items()
        ]  # fmt: skip
    _write(store, "summary", summary)
    for name in TABLES:
        if not store.exists("tables", name):
            store.write_table(name, [])
    return str(out)


def _write(store: Store, name: str, rows: list[dict[str, Any]], where: Mapping[str, str] | None = None) -> None:
    table = TABLES[name].build({c: [row.get(c) for row in rows] for c in TABLES[name].columns})
    folder = "/".join(f"{key}={value}" for key, value in (where or {}).items())
    store.fs.create_dir(store.path("tables", name, folder), recursive=True)
    pq.write_table(table, store.path("tables", name, *([folder] if folder else []), "part-0.parquet"))

"""Maps of two runs over the same images, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow.dataset as pads

from cxr_ray.analysis.answers import phrase
from cxr_ray.analysis.sequential_verdicts import title
from cxr_ray.errors import RunError
from cxr_ray.report import galleries
from cxr_ray.report.galleries import Images, Panel
from cxr_ray.report.page import base64_of, known, number
from cxr_ray.results import Run

CARDS, EXPLAINERS = 12, 3  # images whose maps are shown, and of how many explainers
Part = dict[str, Any]


def cards(
    differences: Sequence[Mapping[str, Any]], labels: tuple[str, str], runs: tuple[Run, Run], data: str | None
) -> tuple[list[Part], str]:
    """Cards of the first pair of models, with the maps of every explainer that both have; and a text above them.

    Args:
        differences: rows of ``run_differences`` of two runs.
        labels: the names of the runs.
        runs: the reference and the other.
        data: where the images lie, as --data names it; None: where the runs say.
    """
    rows = [r for r in differences if r["quantity"] == "advantage" and r["bucket"] == "all"]
    rows = [r for r in rows if (r["trial_id"], r["trial_id_run"]) == (rows[0]["trial_id"], rows[0]["trial_id_run"])]
    if not rows:
        return [], "No maps are shown: none were compared."
    trials = rows[0]["trial_id"], rows[0]["trial_id_run"]
    order = list(dict.fromkeys(r["explainer"] for r in rows))
    hardest = {e: min((r for r in rows if r["explainer"] == e), key=lambda r: r["mean"]) for e in order[:EXPLAINERS]}
    maps = {e: [_maps(run, t, r) for run, t in zip(runs, _trials(r), strict=True)] for e, r in hardest.items()}
    both = sorted(set.intersection(*(set(of.index) for pair in maps.values() for of in pair)))
    if not both:
        return [], "No maps are shown: the runs kept none of the same images (explain.keep_maps)."
    gaps = {e: [_gaps(run, r, at) for at, run in enumerate(runs)] for e, r in hardest.items()}
    images = Images(runs[0], data)
    made = []
    for image_id in galleries.chosen(int(runs[0].sweep.get("seed", 0)), "comparison", both)[:CARDS]:
        name, xray = images.paths[image_id].rsplit("/", 1)[-1], images.read(image_id)
        if xray is None:
            continue
        panels: list[Panel] = []
        lines = []
        for explainer, pair in maps.items():
            panels.append(Panel("X-ray", [""]))
            for label, frame in zip(labels, pair, strict=True):
                values = galleries.values_of(frame.loc[image_id])
                panels.append(
                    Panel(f"{label}: {explainer}", [""], values, values is not None and bool((values < 0).any()))
                )
            scores = [
                f"{label} {number(of.get(image_id), sign=True)}"
                for label, of in zip(labels, gaps[explainer], strict=True)
            ]
            lines.append(f"{title(explainer)} over {hardest[explainer]['control']}: {', '.join(scores)}")
        picture = galleries.strip(galleries.painted(xray, panels), panels, 0, per_row=3)
        jpeg = base64_of(galleries.encode(picture, "JPEG"))
        alt = f"{name}: X-ray, and the maps of {labels[0]} and {labels[1]} over it"
        made.append({"jpeg": jpeg, "alt": alt, "name": name, "lines": lines})
    more = [f"Not shown: maps of {', '.join(order[EXPLAINERS:])}."] if order[EXPLAINERS:] else []
    return made, " ".join([_text(trials, labels, hardest), *more, *([images.missing] if images.missing else [])])


def _text(trials: tuple[str, str], labels: tuple[str, str], hardest: Mapping[str, Any]) -> str:
    against = ", ".join(f"{phrase(r['control'])} for {title(e)}" for e, r in hardest.items())
    return (
        f"{trials[0]} of {labels[0]} and {trials[1]} of {labels[1]} on images chosen by a hash of the seed, not by how "
        "they look. Each map is scaled by itself: colours compare places within one map, never maps with each other. "
        f"The numbers are advantages over the control with the smallest mean advantage in {labels[0]} ({against}), on "
        "this one image."
    )


def _trials(r: Mapping[str, Any]) -> tuple[str, str]:
    return r["trial_id"], r["trial_id_run"]


def _maps(run: Run, trial: str, r: Mapping[str, Any]) -> pd.DataFrame:
    """Maps of the positive class by image_id; none where the run did not keep them."""
    here = (pads.field("trial_id") == trial) & (pads.field("explainer") == r["explainer"]) & (pads.field("target") == 1)
    try:
        frame = run.pandas("saliency", ["image_id", "map", "map_height", "map_width"], here)
    except RunError:
        return pd.DataFrame()
    return frame[frame["map"].notna()].set_index("image_id")


def _gaps(run: Run, r: Mapping[str, Any], at: int) -> dict[str, float]:
    """The advantage over a control by image_id, of the positive class; ``at``: 0 in the reference, 1 in the other."""
    setting = {**r, **(json.loads(r["setting_run"]) if at and known(r["setting_run"]) else {})}
    here = (pads.field("trial_id") == _trials(r)[at]) & (pads.field("target") == 1)
    for key in ("explainer", "control", "grid", "fill", "metric", "scale"):
        here &= pads.field(key) == setting[key]
    here &= pads.field("level").is_null() if pd.isna(r["level"]) else pads.field("level") == r["level"]
    frame = run.pandas("faithfulness", ["image_id", "gap"], here)
    return dict(zip(frame["image_id"], frame["gap"], strict=True))

"""The page of a comparison of runs: it reads the comparison's tables, and the runs' maps and images, and draws."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
import pandas as pd
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from cxr_ray.analysis.answers import phrase
from cxr_ray.analysis.sequential_verdicts import title
from cxr_ray.errors import RunError
from cxr_ray.report import galleries
from cxr_ray.report.figures.axes import Axes
from cxr_ray.report.figures.drawing import ink_styles
from cxr_ray.report.figures.layout import Figure
from cxr_ray.report.figures.marks import colour
from cxr_ray.report.page import NONE, base64_of, interval, known, number
from cxr_ray.results import Run
from cxr_ray.schemas import COMPARED
from cxr_ray.storage import Store

PAGE = "comparison.html"
CARDS = 12  # images whose maps are shown side by side, of a pair of models
UNITS = {"accuracy": "accuracy", "advantage": "advantage", "win_rate": "win rate"}
Part = dict[str, Any]


def read(store: Store) -> dict[str, pd.DataFrame]:
    """The tables of a comparison."""
    return {
        name: pq.read_table(store.path("tables", name), filesystem=store.fs, schema=table.schema).to_pandas()
        for name, table in COMPARED.items()
    }


def write(out: str, runs: Mapping[str, Run], data: str | None = None) -> None:
    """Write comparison.html into the comparison's folder.

    Args:
        out: the folder, which holds the tables and comparison.json.
        runs: by the names of the tables, the reference first.
        data: where the images lie, as --data names it; None: where the runs say.
    """
    store = Store(out, {})
    tables = read(store)
    reference, *others = runs
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files("cxr_ray.report").joinpath("comparison.html.j2").read_text("utf-8"))
    text = template.render(
        runs=list(runs),
        inks={"light": ink_styles(), "dark": ink_styles(dark=True)},
        answers=list(sentences(tables["run_differences"].to_dict("records"))),
        notes=json.loads(store.read("comparison.json"))["notes"],
        parts=[part(tables, other, runs[reference], runs[other], data) for other in others],
    )
    store.write(text.encode(), PAGE)


def sentences(differences: Sequence[Mapping[Any, Any]]) -> Iterator[str]:
    """What the differences show, a sentence a pair of models; a difference counts where its interval leaves 0 out."""
    frame = pd.DataFrame(differences, columns=list(COMPARED["run_differences"].columns))
    for (_, run, a, b), rows in frame.groupby(["reference", "run", "trial_id", "trial_id_run"], sort=False):
        (accuracy,) = rows[rows["quantity"] == "accuracy"].to_dict("records")
        parts = [f"accuracy {_said(accuracy)} on {accuracy['n']} images"]
        compared = rows[rows["quantity"] == "advantage"]
        for explainer, of in compared.groupby("explainer", sort=False):
            words: dict[str, list[str]] = {}
            for r in of.to_dict("records"):
                words.setdefault(_direction(r), []).append(phrase(r["control"]))
            told = ", ".join(f"{direction} over {' and '.join(names)}" for direction, names in words.items())
            parts.append(f"advantage of {title(str(explainer))} {told}")
        model = a if a == b else f"{a} and {b}"
        yield f"{run}, {model}: {'; '.join(parts)}."


def _direction(r: Mapping[Any, Any]) -> str:
    if pd.isna(r["lower"]):
        return "not tested (no interval)"
    if r["lower"] == r["upper"] == 0:
        return "the same"
    return "higher" if r["lower"] > 0 else "lower" if r["upper"] < 0 else "not shown to differ"


def _said(r: Mapping[Any, Any]) -> str:
    return f"{_direction(r)} ({interval(r['difference'], r['lower'], r['upper'], sign=True)})"


def part(tables: Mapping[str, pd.DataFrame], other: str, a: Run, b: Run, data: str | None) -> Part:
    """What the page shows of one run beside the reference."""
    mine = {name: frame[frame["run"] == other] for name, frame in tables.items()}
    reference = str(mine["run_images"]["reference"].iloc[0])
    cards, text = _cards(mine["run_differences"], (reference, other), (a, b), data)
    return {
        "title": f"{other} beside {reference}",
        "images": _images(mine["run_images"], reference, other),
        "differences": _differences(mine["run_differences"], reference, other),
        "figures": list(_figures(mine["run_differences"], reference, other)),
        "verdicts": _verdicts(mine["run_verdicts"], reference, other),
        "settings": {
            "head": ["key", reference, other],
            "rows": [[r.key, known(r.value) or NONE, known(r.value_run) or NONE] for r in _rows(mine["run_settings"])],
        },
        "cards": cards,
        "cards_text": text,
    }


def _rows(frame: pd.DataFrame) -> Iterator[Any]:
    yield from frame.itertuples(index=False)


def _images(frame: pd.DataFrame, reference: str, other: str) -> Part:
    head = [
        f"model of {reference}",
        f"model of {other}",
        "compared",
        f"only in {reference}",
        f"only in {other}",
        "label differs",
    ]
    rows = [[r.trial_id, r.trial_id_run, r.n, r.n_only_reference, r.n_only_run, r.n_other_label] for r in _rows(frame)]
    return {"head": head, "rows": rows}


def _differences(frame: pd.DataFrame, reference: str, other: str) -> Part:
    head = ["model", "quantity", "explainer", "control", "images (patients)", reference, other]
    rows = []
    for r in frame.to_dict("records"):
        rows.append(
            [
                r["trial_id"] if r["trial_id"] == r["trial_id_run"] else f"{r['trial_id']}, {r['trial_id_run']}",
                UNITS[r["quantity"]],
                known(r["explainer"]) or NONE,
                known(r["control"]) or NONE,
                f"{r['n']} ({r['n_patients']})",
                number(r["mean"]),
                number(r["mean_run"]),
                interval(r["difference"], r["lower"], r["upper"], sign=True),
            ]
        )
    settings = dict.fromkeys(_setting(r) for r in frame[frame["quantity"] != "accuracy"].to_dict("records"))
    measured = f"advantage and win rate in {' or '.join(settings)}." if settings else "no map is compared."
    return {"head": [*head, "difference"], "rows": rows, "measured": measured}


def _setting(r: Mapping[Any, Any]) -> str:
    metric = r["metric"] if pd.isna(r["level"]) else f"{r['metric']} at {r['level']:g}"
    return f"{metric}, {r['scale']}, grid {r['grid']}, fill {r['fill']}, target {r['target_rule']}"


def _figures(frame: pd.DataFrame, reference: str, other: str) -> Iterator[Part]:
    """Differences of advantage, a figure a pair of models."""
    chosen = frame[frame["quantity"] == "advantage"]
    for (a, _), rows in chosen.groupby(["trial_id", "trial_id_run"], sort=False):
        records = rows.to_dict("records")
        ax = Axes(across=_setting(records[0]))
        ax.rows([f"{r['explainer']} over {r['control']}" for r in records], [r["explainer"] for r in records])
        for y, r in enumerate(records):
            ax.point(y, (r["difference"], r["lower"], r["upper"]), colour(0))
        ax.across_all("x", 0.0)
        figure = Figure([ax], 1, [25.0 + 22.0 * len(records)], title=f"{a}: advantage in {other} minus {reference}")
        alt = f"Differences of advantage with intervals, {other} minus {reference}; the table below holds them"
        yield {
            "svg": figure.drawing().svg(alt),
            "caption": f"Right of 0: more faithful in {other}. {_setting(records[0])}; {records[0]['n']} images.",
        }


def _verdicts(frame: pd.DataFrame, reference: str, other: str) -> Part:
    rows = [
        [r.kind, r.subject, known(r.verdict) or NONE, known(r.verdict_run) or NONE]
        for r in _rows(frame)
        if {known(r.verdict), known(r.verdict_run)} != {"not applicable"}
    ]
    rows.sort(key=lambda row: row[2] == row[3])
    return {"head": ["of", "subject", reference, other], "rows": rows}


def _cards(
    frame: pd.DataFrame, labels: tuple[str, str], runs: tuple[Run, Run], data: str | None
) -> tuple[list[Part], str]:
    """Maps of both runs over the same images: of the first pair of models and explainer, chosen by a seeded hash."""
    chosen = frame[frame["quantity"] == "advantage"]
    if chosen.empty:
        return [], ""
    first = chosen.iloc[0].to_dict()
    hardest = chosen[chosen["explainer"] == first["explainer"]].sort_values("mean").iloc[0].to_dict()
    trials = first["trial_id"], first["trial_id_run"]
    maps = [_maps(run, trial, first) for run, trial in zip(runs, trials, strict=True)]
    gaps = [_gaps(run, trial, hardest) for run, trial in zip(runs, trials, strict=True)]
    both = sorted(set(maps[0].index) & set(maps[1].index))
    images = galleries.Images(runs[0], data)
    cards = []
    for image_id in galleries.chosen(int(runs[0].sweep.get("seed", 0)), "comparison", both)[:CARDS]:
        xray = images.read(image_id)
        if xray is None:
            continue
        name = images.paths[image_id].rsplit("/", 1)[-1]
        shown = [galleries.Panel(name, [""])]
        for label, frame_of in zip(labels, maps, strict=True):
            values = galleries.values_of(frame_of.loc[image_id])
            shown.append(galleries.Panel(label, [""], values, values is not None and bool((values < 0).any())))
        picture = galleries.strip(galleries.painted(xray, shown), shown, 0)
        values_of_both = zip(labels, gaps, strict=True)
        scores = ", ".join(f"{label} {number(of.get(image_id), sign=True)}" for label, of in values_of_both)
        cards.append(
            {
                "jpeg": base64_of(galleries.encode(picture, "JPEG")),
                "alt": f"{name}: X-ray, and the maps of {labels[0]} and {labels[1]} over it",
                "text": f"{name}. Advantage over {hardest['control']}: {scores}.",
            }
        )
    text = (
        f"{title(first['explainer'])} on {trials[0]} of {labels[0]} and {trials[1]} of {labels[1]}: images chosen by "
        f"a hash of the seed, not by how they look. Advantage over {hardest['control']}, the control with the smallest "
        f"mean advantage in {labels[0]}; {_setting(hardest)}."
    )
    return cards, text


def _maps(run: Run, trial: str, r: Mapping[Any, Any]) -> pd.DataFrame:
    """Maps of the positive class by image_id; none where the run did not keep them."""
    here = (pads.field("trial_id") == trial) & (pads.field("explainer") == r["explainer"]) & (pads.field("target") == 1)
    try:
        frame = run.pandas("saliency", ["image_id", "map", "map_height", "map_width"], here)
    except RunError:
        return pd.DataFrame()
    return frame[frame["map"].notna()].set_index("image_id")


def _gaps(run: Run, trial: str, r: Mapping[Any, Any]) -> dict[str, float]:
    """The advantage over a control by image_id, of the positive class."""
    here = (pads.field("trial_id") == trial) & (pads.field("target") == 1)
    for key in ("explainer", "control", "grid", "fill", "metric", "scale"):
        here &= pads.field(key) == r[key]
    here &= pads.field("level").is_null() if pd.isna(r["level"]) else pads.field("level") == r["level"]
    frame = run.pandas("faithfulness", ["image_id", "gap"], here)
    return dict(zip(frame["image_id"], frame["gap"], strict=True))

"""The page of a comparison of runs: it reads the comparison's tables, and the runs' maps and images, and draws."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
import pandas as pd
import pyarrow.parquet as pq

from cxr_ray.analysis.answers import listed, phrase
from cxr_ray.analysis.between_settings import metric_of, said
from cxr_ray.analysis.buckets import BUCKETS
from cxr_ray.analysis.paired_differences import direction
from cxr_ray.analysis.sequential_verdicts import title
from cxr_ray.counting import NOBODY, Counter
from cxr_ray.report import page, side_by_side
from cxr_ray.report.figures import intervals
from cxr_ray.report.figures.intervals import Mark
from cxr_ray.report.figures.marks import colour, control_colour
from cxr_ray.report.page import NONE, interval, known, number
from cxr_ray.results import Run
from cxr_ray.schemas import COMPARED
from cxr_ray.storage import Store

PAGE = "comparison.html"
NAMES = {"auroc": "AUROC", "win_rate": "win rate"}
DIRECTIONS = {
    "higher": "higher",
    "lower": "lower",
    "same": "the same",
    "open": "not shown to differ",
    "corrected": "not shown to differ once corrected",
}
UNTESTED = "not tested (no interval)"
OWN = "each run in its own setting"
Part = dict[str, Any]
Record = dict[str, Any]


def read(store: Store) -> dict[str, pd.DataFrame]:
    """The tables of a comparison."""
    return {
        name: pq.read_table(store.path("tables", name), filesystem=store.fs, schema=table.schema).to_pandas()
        for name, table in COMPARED.items()
    }


def write(out: str, runs: Mapping[str, Run], data: str | None = None, stage: Counter = NOBODY) -> None:
    """Write comparison.html into the comparison's folder.

    Args:
        out: the folder, which holds the tables and comparison.json.
        runs: by the names of the tables, the reference first.
        data: where the images lie, as --data names it; None: where the runs say.
        stage: is told how many runs are drawn, and of each.
    """
    store = Store(out, {})
    tables = read(store)
    reference, *others = runs
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files("cxr_ray.report").joinpath("comparison.html.j2").read_text("utf-8"))
    stage.expect(len(others))
    parts = []
    for other in others:
        parts.append(part(tables, other, runs[reference], runs[other], data))
        stage.advance()
    text = template.render(
        runs=list(runs),
        styles=page.styles(),
        answers=list(sentences(_records(tables["run_differences"]))),
        notes=json.loads(store.read("comparison.json"))["notes"],
        parts=parts,
    )
    store.write(text.encode(), PAGE)


def _records(frame: pd.DataFrame) -> list[Record]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def sentences(differences: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the differences over all images show, a sentence a pair of models."""
    models: dict[tuple[str, ...], list[Record]] = {}
    for r in differences:
        if r["bucket"] == "all":
            of = tuple(str(r[key]) for key in ("run", "trial_id", "trial_id_run"))
            models.setdefault(of, []).append(dict(r))
    for (run, a, b), rows in models.items():
        yield f"{run}, {_model(a, b)}: {'; '.join([_classified(rows), *_mapped(rows)])}."


def _model(a: str, b: str) -> str:
    return a if a == b else f"{a} and {b}"


def _classified(rows: Sequence[Record]) -> str:
    found = {r["quantity"]: r for r in rows}
    parts: list[str] = []
    for name in ("accuracy", "auroc"):
        r = found[name]
        if not pd.isna(r["difference"]):
            numbers = interval(r["difference"], r["lower"], r["upper"], sign=True)
            shown = _direction(r) + ("" if direction(r) == "same" else f" ({numbers})")
            shown = f"differs by {numbers}, {UNTESTED}" if direction(r) is None else shown
            parts.append(f"{NAMES.get(name, name)} {shown}")
    return f"{', '.join(parts) or 'no accuracy'} on {found['accuracy']['n']} images"


def _mapped(rows: Sequence[Record]) -> Iterator[str]:
    compared = [r for r in rows if r["quantity"] == "advantage"]
    for explainer in dict.fromkeys(r["explainer"] for r in compared):
        words: dict[str, list[str]] = {}
        mine = [r for r in compared if r["explainer"] == explainer]
        for r in mine:
            words.setdefault(_direction(r), []).append(phrase(r["control"]))
        told = ", ".join(f"{shown} over {listed(names)}" for shown, names in words.items())
        own = f", {OWN}," if known(mine[0]["setting_run"]) else ""
        yield f"advantage of {title(str(explainer))}{own} {told}"


def _name(r: Record) -> str:
    return NAMES.get(r["quantity"], str(r["quantity"]))


def _direction(r: Record) -> str:
    shown = direction(r)
    return UNTESTED if shown is None else DIRECTIONS[shown]


def part(tables: Mapping[str, pd.DataFrame], other: str, a: Run, b: Run, data: str | None) -> Part:
    """What the page shows of one run compared with the reference."""
    mine = {name: _records(frame[frame["run"] == other]) for name, frame in tables.items()}
    reference = str(mine["run_images"][0]["reference"])
    labels = reference, other
    cards, text = side_by_side.cards(mine["run_differences"], labels, (a, b), data)
    return {
        "title": f"{other} compared with {reference}",
        "models": [
            _of_models(row, mine["run_differences"], labels, several=len(mine["run_images"]) > 1)
            for row in mine["run_images"]
        ],
        "images": _images(mine["run_images"], labels),
        "verdicts": _verdicts(mine["run_verdicts"], labels),
        "settings": _settings(mine["run_settings"], labels),
        "cards": cards,
        "cards_text": text,
    }


def _of_models(row: Record, differences: Sequence[Record], labels: tuple[str, str], several: bool) -> Part:
    """Figure and tables of two models."""
    rows = [r for r in differences if (r["trial_id"], r["trial_id_run"]) == (row["trial_id"], row["trial_id_run"])]
    maps = [r for r in rows if r["quantity"] in ("advantage", "win_rate")]
    setting = _setting(maps[0], labels) if maps else ""
    return {
        "title": _model(row["trial_id"], row["trial_id_run"]) if several else "",
        "panels": list(_panels(rows)),
        "caption": (
            f"{labels[1]} minus {labels[0]}, [ ]: 95% interval over patients. Right of 0 {labels[1]} is higher; an "
            f"advantage that is higher: its maps are more faithful. Filled and bold: higher or lower. "
            f"not shown: not shown to differ. {setting}"
        ),
        "classified": _table([r for r in rows if r not in maps], labels),
        "maps": _table([r for r in maps if r["bucket"] == "all"], labels) if maps else None,
        "buckets": _table([r for b in BUCKETS[1:] for r in maps if r["bucket"] == b], labels) if maps else None,
        "setting": setting,
    }


def _setting(r: Record, labels: tuple[str, str]) -> str:
    if not known(r["setting_run"]):
        return f"Maps: {said(r)}."
    places = r, json.loads(r["setting_run"])
    each = "; ".join(
        f"{label}: grid {place['grid']}, fill {place['fill']}, target {place['target_rule']}"
        for label, place in zip(labels, places, strict=True)
    )
    return f"Maps: {metric_of(r)}, {OWN} ({each}). A difference may come from the settings."


def _panels(rows: Sequence[Record]) -> Iterator[Part]:
    """A panel of what needs no map, and one an explainer of its advantages; axes of one unit are the same."""
    classified = [_mark(r, _name(r), colour(0)) for r in rows if not known(r["control"])]
    yield _panel("Classification", classified, intervals.ends_of(classified), "difference, shares")
    panels: dict[str, list[Mark]] = {}
    for r in rows:
        if r["quantity"] == "advantage" and r["bucket"] == "all":
            control = str(r["control"])
            mark = _mark(r, phrase(control), control_colour(control))
            panels.setdefault(f"Advantage of {title(r['explainer'])} over", []).append(mark)
    ends = intervals.ends_of(mark for marks in panels.values() for mark in marks)
    for subject, marks in panels.items():
        yield _panel(subject, marks, ends, "difference, log-odds")


def _mark(r: Record, name: str, ink: str) -> Mark:
    found = direction(r)
    said = {None: "not tested", "open": "not shown", "corrected": "not shown"}.get(found) or DIRECTIONS[str(found)]
    strong = found in ("higher", "lower")
    return Mark(name, said, r["difference"], r["lower"], r["upper"], ink, strong=strong)


def _panel(subject: str, marks: Sequence[Mark], ends: intervals.Ends, label: str) -> Part:
    alt = f"{subject}: " + "; ".join(f"{mark.name} {mark.text}, {mark.said}" for mark in marks)
    return {"svg": intervals.panel(subject, marks, ends, label).svg(alt)}


def _images(rows: Sequence[Record], labels: tuple[str, str]) -> Part:
    head = ["model", "compared", *(f"only in {label}" for label in labels), "label differs"]
    counts = ("n", "n_only_reference", "n_only_run", "n_other_label")
    body = [[_model(r["trial_id"], r["trial_id_run"]), *(str(r[name]) for name in counts)] for r in rows]
    return {"head": head, "rows": body}


def _table(rows: Sequence[Record], labels: tuple[str, str]) -> Part:
    """Differences, a row each; the columns that no row needs are left out."""
    maps, buckets = any(known(r["control"]) for r in rows), any(r["bucket"] != "all" for r in rows)
    head = [*(["images"] if buckets else []), "quantity", *(["explainer", "control"] if maps else [])]
    head += ["n (patients)", *labels, "difference", "p", "p_holm", f"in {labels[1]}"]
    body = []
    for r in rows:
        line = [r["bucket"]] if buckets else []
        line += [_name(r), *([r["explainer"], r["control"]] if maps else [])]
        line += [f"{r['n']} ({r['n_patients']})", number(r["mean"]), number(r["mean_run"])]
        line += [interval(r["difference"], r["lower"], r["upper"], sign=True), page.p_text(r["p"])]
        body.append([*line, page.p_text(r["p_holm"]), _direction(r)])
    return {"head": head, "rows": body}


def _verdicts(rows: Sequence[Record], labels: tuple[str, str]) -> Part:
    body = [
        [r["kind"], r["subject"], known(r["verdict"]) or NONE, known(r["verdict_run"]) or NONE]
        for r in rows
        if {known(r["verdict"]), known(r["verdict_run"])} - {"not applicable", ""}
    ]
    body.sort(key=lambda line: line[2] == line[3])
    return {"head": ["kind", "subject", *labels], "rows": body}


def _settings(rows: Sequence[Record], labels: tuple[str, str]) -> Part:
    body = [[r["key"], _value(r["value"]), _value(r["value_run"])] for r in rows]
    body.sort(key=lambda line: line[0].startswith("provenance."))
    return {"head": ["setting", *labels], "rows": body}


def _value(text: Any) -> str:
    """A value of a sweep as YAML would show it."""
    if not isinstance(text, str):
        return NONE
    value = json.loads(text)
    return value if isinstance(value, str) else text

"""Whether models that classify better have more faithful maps: over models, variants and seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from cxr_ray.report import page
from cxr_ray.report.figures import advantages as figures
from cxr_ray.report.page import Block, Cell
from cxr_ray.report.rundata import RunData
from cxr_ray.report.section import Folder, Section

TITLE = "Does faithfulness track accuracy? Variants and seeds"
OTHERWISE = "There is nothing to compare: it takes two models and a control."
MEASURES = ("accuracy", "auroc", "gap")


def section(data: RunData, folder: Folder) -> Section:
    """A figure, rank correlations, every model, and variants."""
    found = data.agreement("accuracy")
    blocks = list(_blocks(data, folder, found)) if len(found) and len(data.models) > 1 else []
    return Section("accuracy", TITLE, blocks=blocks, otherwise=OTHERWISE, level=3)


def _blocks(data: RunData, folder: Folder, found: pd.DataFrame) -> Iterator[Block]:
    r = next(page.rows_of(found))
    where = (
        f"advantage in {data.metric}, log-odds, grid {r.grid}, fill {r.fill}, target rule {r.target_rule}, bucket all, "
        "over one control for all models"
    )
    control = {str(r.subject): str(r.b) for r in page.rows_of(found)}
    models = _models(data, control)
    words = {str(r.subject): _words(r) for r in page.rows_of(found) if r.axis == "accuracy"}
    yield folder.picture(
        figures.accuracy(
            models, words, f"advantage in {data.metric},\nlog-odds", "Faithfulness against accuracy: one point a model"
        ),
        "accuracy.svg",
        "Advantage over a control against accuracy, one point a model",
        f"Across: accuracy on test at 0.5; up: {where}. Lines: 95% intervals over patients of each. Above 0: more "
        "faithful than the control.",
    )
    correlations: list[list[Cell]] = [
        [
            r.subject,
            r.b,
            "AUROC" if r.axis == "auroc" else r.axis,
            page.count(r.n),
            page.number(r.value, 2, True),
            page.p_text(r.p),
            page.wrapped(_words(r)),
        ]
        for r in page.rows_of(found)
    ]
    head = ["explainer", "control", "performance", "models", "Spearman", "p", "in words"]
    yield page.table(f"Rank correlation over models of performance and faithfulness ({where}).", head, correlations)
    yield page.details("Every model", [_every(data, models, where)])
    variants = data.agreement("variants")
    if len(variants) and (variants["subject"].nunique() > 1 or variants["n"].max() > 1):
        yield _variants(variants, where)


def _models(data: RunData, control: dict[str, str]) -> pd.DataFrame:
    """A row for each model and explainer: performance at 0.5 on test and the advantage, each with its interval."""
    gaps = data.primary_rows
    gaps = gaps[(gaps["bucket"] == "all") & (gaps["control"] == gaps["explainer"].astype(str).map(control))]
    gaps = gaps.rename(columns={"mean": "gap", "lower": "gap_lower", "upper": "gap_upper"})
    gaps = gaps[["trial_id", "explainer", "control", "gap", "gap_lower", "gap_upper", "n"]].astype({"explainer": str})
    table = data.tables["classification"]
    half = table[(table["split"] == "test") & (table["threshold_rule"] == "half")]
    columns = [f"{m}{end}" for m in ("accuracy", "auroc") for end in ("", "_lower", "_upper")]
    models = data.trials[["trial_id", "variant", "seed"]].merge(half[["trial_id", *columns]], on="trial_id")
    return models.merge(gaps, on="trial_id")


def _every(data: RunData, models: pd.DataFrame, where: str) -> Block:
    rows: list[list[Cell]] = [
        [
            data.name(r["trial_id"]),
            r["variant"],
            page.count(r["seed"]),
            *(page.bounds(r, m, sign=False) for m in ("accuracy", "auroc")),
            r["explainer"],
            r["control"],
            page.bounds(r, "gap"),
            page.count(r["n"]),
        ]
        for r in models.to_dict("records")
    ]
    head = ["model", "variant", "seed", "accuracy", "AUROC", "explainer", "control", "advantage", "images"]
    return page.table(f"Models [95% interval over patients]: {where}.", head, rows)


def _variants(variants: pd.DataFrame, where: str) -> Block:
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for r in page.rows_of(variants):
        found.setdefault((str(r.subject), str(r.a), str(r.b)), {})[str(r.axis)] = r
    rows: list[list[Cell]] = [
        [*key, page.count(cells["gap"].n), *(_spread(cells[m], sign=m == "gap") for m in MEASURES)]
        for key, cells in found.items()
    ]
    head = ["variant", "explainer", "control", "models", "accuracy", "AUROC", "advantage"]
    caption = f"Variants: mean over models (smallest to largest of them, not an interval); {where}."
    return page.table(caption, head, rows)


def _spread(r: Any, sign: bool) -> str:
    low, high = page.number(r.low, sign=sign), page.number(r.high, sign=sign)
    return page.number(r.value, sign=sign) + (f" ({low} to {high})" if r.n > 1 else "")


def _words(r: Any) -> str:
    """A rank correlation over models in words."""
    if pd.isna(r.value):
        return f"{r.n} models: too few to say." if r.n < 3 else f"{r.n} models, all alike: nothing to rank."
    if pd.isna(r.p):
        return f"{r.n} models: rho {page.number(r.value, 2)}; too few for a p-value."
    return f"{r.n} models: rho {page.number(r.value, 2)}, p {page.p_text(r.p)} (permutation of models)."

"""Sequential verdicts: each comparison's sentence and numbers, decided with as few patients as it took."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from cxr_ray.report import page
from cxr_ray.report.page import Block, Cell
from cxr_ray.report.rundata import RunData
from cxr_ray.report.section import Folder, Section, of_models

NOTE = (
    "Patients come in random order, one image each; a step is a win where the map beats one draw of the control. "
    "Betting on the win rate (Waudby-Smith and Ramdas 2024) stops a comparison where it is decided: better: the win "
    "rate lies above 1/2; futile: it lies below the futile rate, which may still be above 1/2; undecided: neither, "
    "with all patients. Each interval holds at all steps at once. Comparisons of a model share its alpha "
    "(Bonferroni). A win rate says how often a map wins, not by how much."
)


def section(data: RunData, folder: Folder) -> Section:
    """A table of each model."""
    models = [t for t in data.models if len(data.of_model("verdicts", t))]
    return Section(
        "verdicts",
        "Sequential verdicts: is the map more faithful than the control?",
        [NOTE] if models else [],
        models=of_models(data, folder, of_model, models),
        otherwise="Not measured in this run (verdicts: null, or an older run).",
    )


def of_model(data: RunData, folder: Folder, trial_id: str) -> Iterator[Block]:
    """The sentences over all patients, then every comparison."""
    rows = data.of_model("verdicts", trial_id)
    for sentence in rows.loc[rows["bucket"] == "all", "sentence"]:
        yield page.text(sentence)
    yield page.details("All comparisons", [table(rows, data.name(trial_id))])


def headlines(data: RunData, trial_id: str) -> Iterator[str]:
    """A model's sentences over all patients, of the primary explainer and target rule."""
    rows = data.of_model("verdicts", trial_id)
    chosen = (rows["bucket"] == "all") & (rows["explainer"] == data.primary.explainer)
    yield from rows.loc[chosen & (rows["target_rule"] == data.primary.target_rule), "sentence"]


def table(rows: pd.DataFrame, name: str) -> Block:
    """Every comparison of a model."""
    first = next(page.rows_of(rows))
    cells: list[list[Cell]] = [
        [
            r.explainer,
            r.target_rule,
            r.control,
            r.bucket,
            f"{page.count(r.n_patients)} of {page.count(r.n_available)}",
            page.count(r.passes),
            page.NONE if pd.isna(r.e_value) else f"{r.e_value:.3g}",
            page.interval(r.win_rate, r.lower, r.upper),
            r.decision,
        ]
        for r in page.rows_of(rows)
    ]
    caption = (
        f"Sequential verdicts of {name}: a win is a more faithful map in {first.metric}, scale {first.scale}, grid "
        f"{first.grid}, fill {first.fill}, one draw a patient. Win rate [interval at level "
        f"{page.number(first.confidence)}]; alpha {first.alpha:.3g} of each of {page.count(first.family_size)} "
        f"comparisons ({first.family}); futile: below {page.number(first.futile, 2)}."
    )
    head = ["explainer", "target", "control", "bucket", "patients", "passes", "e-value", "win rate", "decision"]
    return page.table(caption, head, cells)

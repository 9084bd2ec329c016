"""Whether the ranking of explainers survives a change of one choice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cxr_ray.report import page
from cxr_ray.report.page import Block
from cxr_ray.report.rundata import RunData
from cxr_ray.report.section import Folder, Section, of_models


def section(data: RunData, folder: Folder) -> Section:
    """A table of each model that is shown whole."""
    return Section(
        "agreement",
        "Does the ranking of explainers depend on the choices?",
        models=of_models(data, folder, of_model),
        otherwise="There is nothing to compare: it takes two explainers, a control, and two values of a choice.",
        level=3,
    )


def of_model(data: RunData, folder: Folder, trial_id: str) -> Iterator[Block]:
    """Kendall's tau for each pair of values of each choice."""
    pairs: dict[tuple[str, str, str], dict[str, Any]] = {}
    for r in page.rows_of(data.agreement("ranking", trial_id)):
        pairs.setdefault((str(r.axis), str(r.a), str(r.b)), {})[str(r.statistic)] = r
    rows = []
    for (axis, a, b), found in pairs.items():
        tau = found["kendall_tau"]
        spread = f"{page.number(tau.low, 2, True)} to {page.number(tau.high, 2, True)}"
        explainers = page.count(found["n_explainers"].value) if "n_explainers" in found else page.NONE
        name = axis.replace("_", " ")
        rows.append([name, a, b, page.number(tau.value, 2, True), spread, page.count(tau.n), explainers])
    if not rows:
        return
    caption = (
        "Kendall's tau of the rankings of explainers by mean advantage under two values of one choice (1: the same "
        f"ranking, 0: unrelated, −1: reversed), over the settings of all other choices; model {trial_id}, bucket all, "
        f"{data.metric} (choice level: drop). Controls that no explainer enters (pixel_random, cell_random) "
        "rank explainers alike by construction."
    )
    head = ["choice", "from", "to", "mean tau", "smallest to largest", "settings", "explainers"]
    yield page.table(caption, head, rows)

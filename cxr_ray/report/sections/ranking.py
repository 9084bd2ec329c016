"""Which explainer is the most faithful: rank confidence sets, paired comparisons, and how reliable a fill is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from cxr_ray.report import page
from cxr_ray.report.figures import ranks as figures
from cxr_ray.report.figures.marks import SCALES
from cxr_ray.report.page import Block, Cell
from cxr_ray.report.rundata import RunData, Setting
from cxr_ray.report.section import Folder, Section, of_models

NOTE = (
    "Explainers are compared on the same images by the metric itself, so that no control is needed. One is called more "
    "faithful than another where the simultaneous 95% interval of their mean difference (over patients, corrected over "
    "all pairs) leaves out 0. The rank set of an explainer holds every rank that these comparisons allow, 1 the most "
    "faithful; with 95% confidence all sets hold at once. Sets that overlap are no order."
)
PIXELS = (
    "On grid pixel rough maps fill scattered pixels, which moves the score by itself: compare rough and smooth maps on "
    "a grid of cells."
)
TAU_NOTE = (
    "Kendall's tau compares orders of means and knows nothing of their uncertainty. A high tau may be carried by a few "
    "explainers that are far below the others under every choice, such as model-independent ones, while the order of "
    "the others is chance: read it beside the rank sets."
)
NOT_MEASURED = "Rank sets: not measured in this run (it takes two explainers)."


def section(data: RunData, folder: Folder) -> Section:
    """The first setting of each model that is shown whole, the others to open."""
    return Section(
        "ranking",
        "Which explainer is the most faithful?",
        [NOTE],
        models=of_models(data, folder, of_model),
        otherwise=NOT_MEASURED,
        level=3,
    )


def of_model(data: RunData, folder: Folder, trial_id: str) -> Iterator[Block]:
    """Rank sets and comparisons of each setting, reliability of fills, tau."""
    ranks, pairs = data.of_model("ranks", trial_id), data.of_model("comparisons", trial_id)
    for setting in data.settings:
        of_setting = setting.rows(ranks)
        if of_setting.empty:
            continue
        blocks = list(_of_setting(data, trial_id, setting, of_setting, setting.rows(pairs)))
        if setting == data.first:
            yield from [page.text(PIXELS)] if setting.grid == "pixel" else []
            yield _figure(data, folder, trial_id, setting, of_setting)
            yield from blocks
        else:
            yield page.details(f"Rank sets: {setting}", blocks)
    yield from _reliability(data, trial_id)
    tau = list(_tau(data, trial_id))
    if tau:
        yield page.details("Kendall's tau between orders of mean advantages", [page.text(TAU_NOTE), *tau])


def _figure(data: RunData, folder: Folder, trial_id: str, setting: Setting, ranks: pd.DataFrame) -> Block:
    return folder.picture(
        figures.rank_sets(
            ranks, _buckets(ranks), data.explainers, f"{data.name(trial_id)}: rank confidence sets, 95%\n{setting}"
        ),
        f"ranks-{trial_id}.svg",
        f"Rank confidence set of each explainer by bucket, model {data.name(trial_id)}; {setting}",
        f"Ranks by mean {data.metric}, log-odds of the target, that the data allow, model {data.name(trial_id)}; "
        f"{setting}. Left: "
        "more faithful.",
    )


def _buckets(ranks: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(ranks["bucket"].astype(str)))


def _of_setting(
    data: RunData, trial_id: str, setting: Setting, ranks: pd.DataFrame, pairs: pd.DataFrame
) -> Iterator[Block]:
    where = f"{data.metric}, log-odds of the target; model {data.name(trial_id)}; {setting}"
    for bucket in _buckets(ranks):
        part = ranks[ranks["bucket"] == bucket].sort_values(["mean"], ascending=False)
        rows: list[list[Cell]] = [
            [
                r.explainer,
                rank_set(r),
                page.number(r.mean, sign=True),
                page.images(r),
            ]
            for r in page.rows_of(part)
        ]
        caption = f"Rank confidence sets, bucket {bucket}: {where}. {best(part)}"
        head = ["explainer", "ranks (95%)", "mean difference to all explainers", "images (patients)"]
        yield page.table(caption, head, rows)
    compared: list[list[Cell]] = [
        [
            r.bucket,
            r.a,
            r.b,
            page.images(r),
            page.mean(r),
            page.p_text(r.p_max),
            _shown(r),
        ]
        for r in page.rows_of(pairs)
    ]
    head = ["bucket", "explainer", "minus", "images (patients)", "mean difference", "p, corrected", "shown"]
    caption = f"Paired comparisons [simultaneous 95% interval over patients]: {where}. Above 0: the first is better."
    yield page.details(f"Every pair of explainers: {setting}", [page.table(caption, head, compared)])


def _shown(r: Any) -> str:
    if pd.isna(r.lower):
        return "not tested (no interval)"
    return f"{r.better} is more faithful" if page.known(r.better) else "not shown to differ"


def rank_set(r: Any) -> str:
    """The ranks of a row: 2, or 1 to 3."""
    lower, upper = page.count(r.rank_lower), page.count(r.rank_upper)
    return lower if lower == upper else f"{lower} to {upper}"


def best(ranks: pd.DataFrame) -> str:
    """Which explainer is shown to be the best, or which may be; rows of one setting and bucket."""
    first = ranks.loc[ranks["rank_lower"] == 1, "explainer"].astype(str).tolist()
    if len(first) == 1:
        others = [e for e in ranks["explainer"].astype(str) if e != first[0]]
        return (
            f"Shown to be more faithful than {' and '.join(others) if len(others) < 3 else 'each of the others'}: "
            f"{first[0]}."
        )
    candidates = "every one of them" if len(first) == len(ranks) else f"any of {', '.join(first)}"
    return f"None is shown to be the best; {candidates} may be."


def _reliability(data: RunData, trial_id: str) -> Iterator[Block]:
    found = data.agreement("reliability", trial_id)
    if found.empty:
        return
    rows: list[list[Cell]] = [
        [
            r.fill,
            r.grid,
            "intraclass correlation" if r.statistic == "icc" else f"advantage of random over {r.control}",
            page.interval(r.value, r.low, r.high, sign=r.statistic != "icc"),
            page.count(r.n),
        ]
        for r in page.rows_of(found)
    ]
    caption = (
        f"How reliably each fill tells explainers apart, {data.metric}, log-odds, target rule {data.first.rule}, "
        f"bucket all, model {data.name(trial_id)}. Intraclass correlation: variance between explainers over the "
        "total variance of "
        "single images' values (1: every image orders them alike; 0: an image says nothing)."
    )
    if "random" in data.explainers:
        caption += " Explainer random knows nothing of the model: an advantage of its maps comes from fill and shape."
    yield page.table(caption, ["fill", "grid", "quantity", "value [95% interval]", "images"], rows)


def _tau(data: RunData, trial_id: str) -> Iterator[Block]:
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
        rows.append(
            [
                name,
                SCALES.get(a, a),
                SCALES.get(b, b),
                page.number(tau.value, 2, True),
                spread,
                page.count(tau.n),
                explainers,
            ]
        )
    if not rows:
        return
    caption = (
        "Kendall's tau of the orders of explainers by mean advantage under two values of one choice (1: the same "
        f"ranking, 0: unrelated, −1: reversed), over the settings of all other choices; model "
        f"{data.name(trial_id)}, bucket all, "
        f"{data.metric} (choice level: drop). Controls that no explainer enters (pixel_random, cell_random) "
        "rank explainers alike by construction."
    )
    head = ["choice", "from", "to", "mean tau", "smallest to largest", "settings", "explainers"]
    yield page.table(caption, head, rows)

"""Each hypothesis in words, its verdict, and its secondary outcomes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from cxr_ray.analysis.hypotheses.margins import INCONCLUSIVE, NOT_APPLICABLE, VERDICTS
from cxr_ray.analysis.hypotheses.registry import TESTED
from cxr_ray.report import page
from cxr_ray.report.figures import hypotheses as figures
from cxr_ray.report.page import Block, Cell
from cxr_ray.report.rundata import RunData
from cxr_ray.report.section import Folder, Section

RULE = "; ".join(f"{name}: {meaning}" for name, meaning in VERDICTS.items())
NOTE = (
    f"The rule of all verdicts. {RULE}. p is against the end of the margin on the side of the effect, never against 0; "
    "Holm corrects over the hypotheses of one variant that apply. Where the margin is a line, nothing lies within it."
)
CAPTION = (
    "Effect with its 95% interval (thin) and its 90% interval (thick; cross: no interval). Blue: the margin; dashed: "
    "its ends. Each hypothesis has its own unit."
)


def section(data: RunData, folder: Folder) -> Section:
    """A figure of all verdicts, then each hypothesis that the sweep asks."""
    table = data.tables["hypotheses"]
    asked = (table["role"] == "verdict") & (table["verdict"] != NOT_APPLICABLE)
    judged = table[asked].sort_values(["hypothesis", "subject"], kind="stable")
    if judged.empty:
        return Section("hypotheses", "Hypotheses", otherwise="This run judges no hypothesis.")
    blocks: list[Block] = []
    drawn = judged[judged["effect"].notna()]
    if len(drawn):
        alt = "Effect of each hypothesis with its interval and margin"
        blocks.append(folder.picture(figures.verdicts(list(page.rows_of(drawn))), "hypotheses.svg", alt, CAPTION))
    for name, hypothesis in TESTED.items():
        if not (judged["hypothesis"] == name).any():
            continue
        mine = table[table["hypothesis"] == name]
        blocks.append(
            {
                "kind": "hypothesis",
                "name": name,
                "question": hypothesis.question,
                "limits": hypothesis.limits,
                "verdicts": [verdict(r) for r in page.rows_of(judged[judged["hypothesis"] == name])],
                "secondary": secondary(name, mine[mine["role"] != "verdict"]),
            }
        )
    return Section("hypotheses", "Hypotheses", [NOTE, margins(set(judged["hypothesis"]))], blocks)


def margins(asked: Iterable[str] = tuple(TESTED)) -> str:
    """The margin of each hypothesis, and what each side of it says, in words."""
    each = [
        f"{name}: {h.margin} {h.unit} ({'; '.join(f'{where}: {meaning}' for where, meaning in h.says.items())})"
        for name, h in TESTED.items()
        if name in asked
    ]
    return f"The margins. {'. '.join(each)}."


def verdict(r: Any) -> dict[str, str]:
    """A verdict's texts for the template."""
    holm = f", p_holm {page.p_text(r.p_holm)}" + (
        f" in the family {r.family} ({page.count(r.family_size)})" if page.known(r.family) else ""
    )
    alternative = f" ({r.alternative})" if page.known(r.alternative) else ""
    method = f"; interval: {r.ci_method}" if page.known(r.ci_method) else ""
    ends = [page.number(end, 2) for end in dict.fromkeys((r.margin_low, r.margin_high)) if not pd.isna(end)]
    margin = f"; margin {' to '.join(ends)}" if ends else ""
    about = f"; about {r.about}" if page.known(r.about) else ""
    lower, upper = page.number(r.lower_90, sign=True), page.number(r.upper_90, sign=True)
    inner = "" if pd.isna(r.lower_90) else f", 90% interval [{lower}, {upper}]"
    counts = ((r.n_trials, "model"), (r.n, "image"), (r.n_patients, "patient"))
    counted = ", ".join(page.counted(n, noun) for n, noun in counts)
    return {
        "subject": r.subject,
        "verdict": page.known(r.verdict) or INCONCLUSIVE,
        "reason": page.known(r.reason),
        "quantity": r.quantity,
        "effect": page.interval(r.effect, r.lower, r.upper, sign=True) + inner,
        "unit": f"{r.unit}{margin}{about}; {counted}{method}",
        "test": f"{r.test}{alternative}: p {page.p_text(r.p)}{holm}" if page.known(r.test) else "not tested",
    }


def secondary(name: str, table: pd.DataFrame) -> Block | None:
    """The table of secondary outcomes; None where there are none."""
    rows: list[list[Cell]] = [
        [
            page.wrapped(r.quantity),
            r.subject,
            page.interval(r.effect, r.lower, r.upper, sign=True),
            r.unit,
            f"{page.count(r.n_trials)} / {page.count(r.n)} / {page.count(r.n_patients)}",
            page.wrapped(page.known(r.reason)),
        ]
        for r in page.rows_of(table)
    ]
    head = ["secondary outcome", "subject", "effect [95% interval]", "unit", "models / images / patients", "note"]
    return page.table(f"Secondary outcomes of {name}. No verdict rests on them.", head, rows) if rows else None

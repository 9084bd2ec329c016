"""How well the models classify, and what was trained."""

from __future__ import annotations

from typing import Any

from cxr_ray.analysis.model_names import flat, settings_that_differ, value_text
from cxr_ray.report import page
from cxr_ray.report.page import Block, Cell
from cxr_ray.report.rundata import RunData
from cxr_ray.report.section import Folder, Section

FIRST, LAST = ("accuracy", "auroc", "sensitivity", "specificity"), ("auprc", "f1", "brier", "ece")
FEW = 50  # validation images; 0.95 of 25 sick ones is all but one
COUNTS = ("tp", "fp", "tn", "fn")
NAMES = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1", "brier": "Brier", "ece": "ECE"}


def section(data: RunData, folder: Folder) -> Section:
    """Figures on test at each threshold, and every trial."""
    table = data.tables["classification"]
    val = table.loc[table["split"] == "val", "n"]
    of_val = f" ({page.count(val.iloc[0])} images)" if len(val) else ""
    notes = [
        "An image is predicted PNEUMONIA at the threshold or above. Rules: half is 0.5 (TP, FP, TN and FN elsewhere on "
        f"this page are at 0.5); youden has the largest sensitivity + specificity on the validation split{of_val}; "
        "sens95 is the highest threshold with a sensitivity of at least 0.95 there."
    ]
    if len(val) and val.iloc[0] < FEW:
        notes[0] += f" Chosen on under {FEW} images, youden and sens95 may be far from those of other images."
    asked = [question.text for question in data.class_order]
    blocks = [*(page.note(t) for t in asked), classification(data), *(page.note(t) for t in twins(data)), trials(data)]
    return Section("performance", "Performance", notes, blocks)


def classification(data: RunData) -> Block:
    """Metrics and counts on test, by model and threshold rule."""
    table = data.tables["classification"]
    rows: list[list[Cell]] = []
    for trial_id in data.models:
        for r in table[(table["trial_id"] == trial_id) & (table["split"] == "test")].to_dict("records"):
            rows.append(
                [
                    data.name(trial_id),
                    f"{r['threshold_rule']}: {page.number(r['threshold'])}",
                    *(page.bounds(r, m, sign=False) for m in FIRST),
                    *(page.count(r[c]) for c in ("n", "n_patients", *COUNTS)),
                    *(page.bounds(r, m, sign=False) for m in LAST),
                ]
            )
    head = [
        "model",
        "threshold rule: threshold",
        *(NAMES.get(m, m) for m in FIRST),
        "images",
        "patients",
        *(c.upper() for c in COUNTS),
        *(NAMES[m] for m in LAST),
    ]
    caption = (
        "Classification of the test split. [ ]: 95% interval, percentile bootstrap over patients (of a share of 0 or "
        "1: Clopper and Pearson's). Brier score and expected calibration error (ECE): lower is better; "
        "all others: higher."
    )
    return page.table(caption, head, rows)


def twins(data: RunData) -> list[str]:
    """Sentences on models that give every test image the same log-odds: one model under several names."""
    groups: dict[str, list[str]] = {}
    for r in page.rows_of(data.agreement("twins")):
        groups.setdefault(str(r.subject), [str(r.a)]).append(str(r.b))
    return [
        f"{' and '.join(dict.fromkeys(names))} give every test image the same log-odds. They are one model under "
        "several names, and count as one piece of evidence."
        for names in groups.values()
    ]


def trials(data: RunData) -> Block:
    """Every trial, also those that failed, with what differs between their configurations."""
    configs = [flat(c) for c in data.trials["config"]]
    keys = settings_that_differ(configs)
    rows: list[list[Cell]] = []
    for r, config in zip(page.rows_of(data.trials), configs, strict=True):
        status = str(r.status) + (f": {r.error}" if isinstance(r.error, str) else "")
        rows.append(
            [
                data.name(r.trial_id),
                r.trial_id,
                r.variant,
                page.count(r.seed),
                page.wrapped(status),
                page.count(r.epochs),
                page.count(r.best_epoch),
                page.number(r.val_auroc),
                "yes" if r.trial_id in data.models else "no",
                *(_setting(config.get(k)) for k in keys),
            ]
        )
    head = ["model", "trial", "variant", "seed", "status", "epochs", "best epoch", "val_auroc", "explained", *keys]
    caption = (
        "Trials, best val_auroc (AUROC on the validation split) first. The last columns hold what differs between them."
    )
    return page.table(caption, head, rows)


def _setting(value: Any) -> str:
    return page.NONE if value is None else value_text(value)

"""The sections of a report that follow the study: performance, observations, galleries, hypotheses, deletion."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from cxr_ray.analysis import findings
from cxr_ray.analysis.findings import BUCKETS
from cxr_ray.report import figures, galleries, page
from cxr_ray.report.figures import SCALES
from cxr_ray.report.page import Block
from cxr_ray.report.rundata import Loaded
from cxr_ray.schemas import CLASSES

QUESTIONS = {
    "H1": "Shortcuts: where it calls a NORMAL image PNEUMONIA, does the model lean on borders and corners, "
    "where markers lie?",
    "H2": "Imbalance: does training on unbalanced classes push the model towards PNEUMONIA?",
    "H3": "Plausible but unfaithful: can a map look right, in the lungs and not diffuse, where the model did not use "
    "what it shows?",
}  # fmt: skip


def classification(shown: Loaded) -> Block:
    """Figures on test at each threshold; the counts follow from sensitivity, specificity and the labels."""
    table = shown.run.pandas("classification")
    labels = shown.test.groupby("trial_id")["label"].agg(["sum", "count"])
    rows = []
    for r in _in_order(table[table["split"] == "test"], "trial_id", shown.models):
        positive, count = labels.loc[r.trial_id] if r.trial_id in labels.index else (np.nan, np.nan)
        true_positive, true_negative = r.sensitivity * positive, r.specificity * (count - positive)
        rows.append([
            r.trial_id, f"{r.threshold_rule}: {page.number(r.threshold)}",
            *(page.interval(getattr(r, m), getattr(r, f"{m}_lower"), getattr(r, f"{m}_upper"))
              for m in ("accuracy", "auroc", "sensitivity", "specificity")),
            str(r.n), str(r.n_patients),
            *(page.number(c, 0) for c in (true_positive, count - positive - true_negative, true_negative,
                                     positive - true_positive)),
            *(page.interval(getattr(r, m), getattr(r, f"{m}_lower"), getattr(r, f"{m}_upper"))
              for m in ("auprc", "f1", "brier", "ece")),
        ])  # fmt: skip
    head = ["model", "threshold rule: threshold", "accuracy", "AUROC", "sensitivity", "specificity", "images",
            "patients", "TP", "FP", "TN", "FN", "AUPRC", "F1", "Brier", "ECE"]  # fmt: skip
    return page.table(
        "Classification of the test split; [ ]: 95% interval, percentile bootstrap over patients (of a share of 0 or 1 "
        "Clopper and Pearson's). Brier and ECE: lower is better; all others: higher.", head, rows
    )  # fmt: skip


def trials(shown: Loaded) -> Block:
    """Every trial, also those that failed, with what differs between their configurations."""
    configs = [_flat(json.loads(c if isinstance(c, str) else "{}")) for c in shown.trials["config"]]
    keys = [k for k in dict.fromkeys(itertools.chain(*configs)) if len({str(c.get(k)) for c in configs}) > 1]
    rows = []
    for r, config in zip(shown.trials.itertuples(), configs, strict=True):
        seed, epochs = (page.number(v, 0) for v in (r.seed, r.epochs))
        status = str(r.status) + (f": {r.error}" if isinstance(r.error, str) else "")
        sampled = (config.get(k) for k in keys if k != "train.seed")
        rows.append([r.trial_id, r.variant, seed, {"text": status, "wrap": True}, epochs, page.number(r.best_epoch, 0),
                     page.number(r.val_auroc), "yes" if r.trial_id in shown.models else "no",
                     *("–" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v)
                       for v in sampled)])  # fmt: skip
    head = ["trial", "variant", "seed", "status", "epochs", "best epoch", "val_auroc", "explained"]
    caption = "Trials, best val_auroc (on the validation split) first; the last columns are what differs between them."
    return page.table(caption, head + [k for k in keys if k != "train.seed"], rows)


def twins(shown: Loaded) -> list[list[str]]:
    """Models that give every test image the same log-odds: one model under several names."""
    groups: dict[bytes, list[str]] = {}
    for trial_id in shown.models:
        mine = shown.test_of(trial_id).sort_values("image_id")
        if len(mine):
            groups.setdefault(mine["logit_pneumonia"].to_numpy().tobytes(), []).append(trial_id)
    return [names for names in groups.values() if len(names) > 1]


def observations(shown: Loaded, trial_id: str) -> Iterator[Block]:
    """Spatial concentration by rule and shares of mass, over all test images; the first target rule in the open."""
    columns = ["image_id", "explainer", "target", "tied", "degenerate", "concentration", *findings.SHARES, "lung_share"]
    maps = shown.run.pandas("saliency", columns, pc.field("trial_id") == trial_id)
    maps["explainer"] = pd.Categorical(maps["explainer"], shown.explainers, ordered=True)
    regions = shown.optional("regions", trial_id)
    outside = regions[regions["region"] == "outside_lungs"]["share_of_area"].mean() if len(regions) else np.nan
    areas = [f"{share} ({area:.0%} of the area)" for share, area in zip(
        ("border", "corners", "centre"), findings.SHARES.values(), strict=True)]  # fmt: skip
    areas.append("lungs" + ("" if pd.isna(outside) else f" ({1 - outside:.0%} of the area)"))
    head = ["explainer", "bucket", "maps", *findings.CONCENTRATIONS, *(f"mass in {a}" for a in areas),
            "constant (kept)", "not finite (left out)", "median tied share"]  # fmt: skip
    for i, rule in enumerate(shown.sweep["explain"]["targets"]):
        observed = findings.observations(findings.of_rule(maps, shown.test_of(trial_id), rule))
        if observed.empty:
            continue
        rows = [
            [r["explainer"], r["bucket"], str(r["n"]), *(page.share(r[f], r["n"]) for f in findings.CONCENTRATIONS),
             *(page.number(r[s], 2) for s in (*findings.SHARES, "lung_share")), str(r["constant"]),
             str(r["not_finite"]), page.number(r["tied"], 2)]
            for r in observed.to_dict("records")
        ]  # fmt: skip
        caption = (
            "What the maps look like, by rule: maps of each spatial concentration (share of the bucket's), and the "
            f"mean share of the maps' positive mass by region; model {trial_id}, target rule {rule}, every test image."
        )
        table = page.table(caption, head, rows)
        if i:
            yield page.details(f"target rule {rule}", [table])
            continue
        yield shown.picture(
            figures.concentration(observed, f"{trial_id}: spatial concentration by bucket, target rule {rule}"), True,
            f"concentration-{trial_id}-{rule}.png",
            f"Share of maps of each spatial concentration by bucket for model {trial_id}",
            "Every test image. A map that is not finite is left out; the numbers stand in the table.",
        )  # fmt: skip
        yield table


def gallery_note(shown: Loaded) -> str | None:
    """Why there is no gallery, or which images are missing from it; asked after the galleries are drawn."""
    if not shown.sweep["explain"]["keep_maps"]:
        return "There is no gallery: the run kept no maps (explain.keep_maps: false)."
    return shown.images.missing


def gallery(shown: Loaded, trial_id: str) -> Iterator[Block]:
    """TP, FP and random images; those of the first model stand on the page, the others' are files."""
    if not shown.sweep["explain"]["keep_maps"]:
        return
    inline, test = trial_id == shown.models[0], shown.test_of(trial_id).set_index("image_id")
    found = []
    for bucket in galleries.BUCKETS:
        members = test.index[test["outcome"] == bucket] if bucket != "random" else test.index
        ids = galleries.chosen(shown.sweep["seed"], bucket, members)
        found.append((bucket, len(members), [i for i in ids if shown.images.read(i) is not None]))
    ids = sorted({i for _, _, ids in found for i in ids})
    if not ids:
        return
    of_ids = (pc.field("trial_id") == trial_id) & pc.field("image_id").isin(ids)
    maps = shown.run.pandas(
        "saliency", ["image_id", "target", "explainer", "map", "map_height", "map_width", "concentration"], of_ids
    )
    s = shown.first
    measured = shown.run.pandas(
        "faithfulness", ["image_id", "target", "explainer", "metric", "level", "scale", "control", "value", "gap"],
        of_ids & (pc.field("grid") == s.grid) & (pc.field("fill") == s.fill),
    )  # fmt: skip
    signed = {e: galleries.is_signed(maps, e) for e in shown.explainers}
    if inline:
        shown.store.write(galleries.encode(galleries.legend(signed), "PNG"), "galleries", "legend.png")
        yield {"kind": "legend", "png": page.base64_of(galleries.encode(galleries.legend(signed), "PNG"))}
    for bucket, count, ids in found:
        if not ids:
            continue
        cards = [card(shown, trial_id, bucket, k, i, test.loc[i], maps, measured, signed, inline)
                 for k, i in enumerate(ids, 1)]  # fmt: skip
        among = "test images" if bucket == "random" else f"images that are {bucket}"
        caption = f"{bucket}: {len(ids)} of {count} {among}, model {trial_id}"
        yield {"kind": "cards", "title": caption, "cards": cards, "inline": inline}


def card(shown: Loaded, trial_id: str, bucket: str, place: int, image_id: str, r: Any, maps: pd.DataFrame,
         measured: pd.DataFrame, signed: Mapping[str, bool], inline: bool) -> Block:  # fmt: skip
    """One image of a gallery: its picture, written as a file, and what its caption says."""
    s, control = shown.first, shown.controls[0] if shown.controls else "none"
    target = 1 if s.rule == "pneumonia" else int(r["predicted"])
    xray = shown.images.read(image_id)
    assert xray is not None
    mine = maps[(maps["image_id"] == image_id) & (maps["target"] == target)]
    values = measured[(measured["image_id"] == image_id) & (measured["target"] == target)]
    score = f"P(PNEUMONIA) {r['prob_pneumonia']:.3f}, log-odds {page.number(r['logit_pneumonia'], 2, True)}"
    what = f"{CLASSES[r['label']]} called {CLASSES[r['predicted']]}: {r['outcome']}"
    panels, lines, main_kind = [galleries.Panel("X-ray", [score.replace("P(PNEUMONIA)", "P"), what])], [], "none"
    for explainer in shown.explainers:
        row = next((x for _, x in mine[mine["explainer"] == explainer].iterrows()), None)
        kind = row["concentration"] if row is not None and isinstance(row["concentration"], str) else "none"
        of_explainer = values[values["explainer"] == explainer]
        drop = {scale: _one(of_explainer, "drop", scale, "none", "value", shown.level) for scale in SCALES}
        gap = _one(of_explainer, shown.primary, "logodds", control, "gap")
        parts = [kind]
        if not pd.isna(drop["prob"]):
            parts += [f"drop {page.number(drop['logodds'], 2, True)} (P {page.number(drop['prob'], 3, True)})"]
        panels.append(galleries.Panel(
            explainer, list(parts), galleries.values_of(row), signed[explainer]))  # fmt: skip
        if not pd.isna(gap):
            parts += [f"gap {page.number(gap, 2, True)}"]
        lines.append(f"{explainer}: " + ", ".join(parts))
        if explainer == shown.main:
            main_kind = kind
    # On the page the caption below says what the file holds as text.
    folder = ["galleries"] if trial_id == shown.models[0] else ["galleries", trial_id]
    name = f"{bucket.lower()}_{main_kind}_{place:02d}.png"
    shown.store.write(galleries.encode(galleries.strip(xray, panels), "PNG"), *folder, name)
    return {
        "file": "/".join([*folder, name]), "name": name, "score": score, "what": what, "lines": lines,
        "image_id": image_id, "jpeg": page.base64_of(galleries.encode(galleries.strip(xray, panels, 0),
        "JPEG")) if inline else None,
        "alt": f"X-ray and saliency maps of image {image_id}, {what}; {shown.main}: {main_kind}",
    }  # fmt: skip


def hypotheses(shown: Loaded) -> list[Block]:
    """Each hypothesis in words, its verdict, and what stands beside it."""
    table = shown.optional("hypotheses")
    if table.empty:
        return []
    blocks: list[Block] = []
    judged = table[table["role"] == "verdict"].sort_values(["hypothesis", "subject"], kind="stable")
    drawn = findings.lines(judged[judged["effect"].notna()])
    if len(drawn):
        blocks.append(shown.picture(
            figures.verdicts(drawn.to_dict("records")), True, "hypotheses.png",
            "Effect of each hypothesis with its interval and margin",
            "Effect with its 95% interval (cross: no interval). Dashed: the line that the whole interval must pass, "
            "the margin (H3: chance and margin); blue: the side that supports the hypothesis. Each has its own unit.",
        ))  # fmt: skip
    for name in dict.fromkeys([*QUESTIONS, *table["hypothesis"]]):
        mine = judged[judged["hypothesis"] == name]
        verdicts = [
            {"subject": r.subject, "verdict": page.said(r.verdict) or "undecided", "reason": page.said(r.reason),
             "quantity": r.quantity, "effect": page.interval(r.effect, r.lower, r.upper, sign=True), "unit": r.unit,
             "margin": page.number(r.margin, 2), "p_holm": page.p_text(r.p_holm), "p": page.p_text(r.p),
             "test": page.said(r.test), "alternative": page.said(r.alternative), "family": page.said(r.family),
             "family_size": page.number(r.family_size, 0),
             "method": page.said(r.ci_method),
             "n": f"{page.number(r.n_trials, 0)} models, {page.number(r.n, 0)} images, "
             f"{page.number(r.n_patients, 0)} patients"}
            for r in mine.itertuples()
        ]  # fmt: skip
        beside = [
            [{"text": str(r.quantity), "wrap": True}, r.subject, page.interval(r.effect, r.lower, r.upper, sign=True),
             r.unit, f"{page.number(r.n_trials, 0)} / {page.number(r.n, 0)} / {page.number(r.n_patients, 0)}",
             {"text": page.said(r.reason), "wrap": True}]
            for r in table[(table["hypothesis"] == name) & (table["role"] != "verdict")].itertuples()
        ]  # fmt: skip
        head = ["beside it, unjudged", "subject", "effect [95% interval]", "unit", "models / images / patients", ""]
        blocks.append({
            "kind": "hypothesis", "name": name, "question": QUESTIONS.get(name, ""), "verdicts": verdicts,
            "beside": page.table(f"Beside {name}: what no verdict rests on.", head, beside) if beside else None,
        })  # fmt: skip
    return blocks


def deletion(shown: Loaded, trial_id: str) -> Iterator[Block]:
    """Drop at the level nearest to the study's, by bucket, of the main explainer."""
    s, test = shown.first, shown.test_of(trial_id)
    same = (
        (pc.field("trial_id") == trial_id) & (pc.field("explainer") == shown.main) & (pc.field("grid") == s.grid)
        & (pc.field("fill") == s.fill) & (pc.field("metric") == "drop") & (pc.field("level") == shown.level)
    )  # fmt: skip
    rows = shown.run.pandas("faithfulness", ["image_id", "target", "scale", "control", "value", "control_mean"], same)
    if rows.empty:
        return
    rows = findings.of_rule(rows, test, s.rule)
    means = shown.run.pandas("summary", filter=same & (pc.field("target_rule") == s.rule)
                            & (pc.field("control") == "none"))  # fmt: skip
    own = rows[rows["control"] == "none"]
    controls = [c for c in shown.controls if c in set(rows["control"])]
    beside = []
    for bucket, part in findings.by_bucket(rows[rows["control"] != "none"]):
        table = part.pivot_table(index="scale", columns="control", values="control_mean", aggfunc="mean")
        beside += [{"bucket": bucket, "scale": scale, **r} for scale, r in table.to_dict("index").items()]
    plain = means[~means["contrast"] & means["bucket"].isin(BUCKETS)]
    drawn = plain.merge(
        pd.DataFrame(beside, columns=["bucket", "scale", *controls]), on=["bucket", "scale"], how="left"
    )
    yield shown.picture(
        figures.deletion(own, drawn, controls, f"{trial_id}, {shown.main}: drop at level {shown.level:g}\n{s}"), True,
        f"deletion-{trial_id}.png", f"Drop at level {shown.level:g} by bucket, model {trial_id}",
        f"Score of the untouched image less that with the first {shown.level:.0%} of units filled, {shown.main}, "
        f"{s}. Right of 0: the score fell. Grey: single images, all of them; black: mean of the map with its 95% "
        "interval over patients (a cross under 20 patients); open marks: mean drop of each control's draws.",
    )  # fmt: skip
    up = own[own["scale"] == "prob"].assign(up=lambda d: d["value"] < 0)
    rises = {b: f"{int(part['up'].sum())} of {part['value'].notna().sum()}" for b, part in findings.by_bucket(up)}
    table_rows = []
    order = ["TP", "FP", "TN", "FN", "all", "correct", "wrong", "TP-FP", "TN-FN", "correct-wrong"]
    for bucket, matched in itertools.product(order, (False, True)):
        cells = {r.scale: r for r in means[(means["bucket"] == bucket) & (means["matched"] == matched)].itertuples()}
        if len(cells) < 2:
            continue
        named = bucket.replace("-", " minus ") + (", matched on log-odds" if matched else "")
        one = drawn[drawn["bucket"] == bucket].set_index("scale")
        under = [page.number(one.loc[x, controls[0]], sign=True) if controls and x in one.index else "–" for x in
                 ("prob", "logodds")]  # fmt: skip
        table_rows.append([named, f"{cells['prob'].n} ({cells['prob'].n_patients})",
                           *(page.value(cells[x]) for x in ("prob", "logodds")), rises.get(bucket, "–"),
                           *(under if controls else [])])  # fmt: skip
    head = ["bucket", "images (patients)", "drop in probability", "drop in log-odds", "probability rose"]
    head += [f"drop under {controls[0]}, {x}" for x in ("probability", "log-odds")] if controls else []
    caption = (
        f"Deletion at level {shown.level:g} by {shown.main}: mean drop of the target's score [95% interval]; model "
        f"{trial_id}; {s}; control none. Above 0: the score fell; for a difference of buckets, the first fell further. "
        "Matched: pairs of images within 0.25 log-odds of each other before deletion."
    )
    yield page.table(caption, head, table_rows)


def _one(frame: pd.DataFrame, metric: str, scale: str, control: str, column: str, level: float | None = None) -> float:
    """The value of the one row that is meant; NaN where there is none."""
    part = frame[(frame["metric"] == metric) & (frame["scale"] == scale) & (frame["control"] == control)]
    part = part if level is None else part[part["level"] == level]
    return float(part[column].iloc[0]) if len(part) else np.nan


def _in_order(frame: pd.DataFrame, column: str, names: Sequence[str]) -> Iterator[Any]:
    for name in names:
        yield from frame[frame[column] == name].itertuples()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat

"""The section of a report on what controls, levels, log-odds, explainers, regions, weights and models change."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cxr_ray.analysis import findings, primary
from cxr_ray.analysis.agreement import accuracy as over_models
from cxr_ray.analysis.agreement.ranking import ranking_agreement
from cxr_ray.analysis.summary import VALID_SHARE
from cxr_ray.measure.metrics import areas
from cxr_ray.report import figures, page
from cxr_ray.report.figures import SCALES
from cxr_ray.report.page import Block
from cxr_ray.report.rundata import Loaded, Setting
from cxr_ray.schemas import SHARED

RIGHT = "right: the map is more faithful than the control"
SIGNS = {1.0: ("above", "\N{BLACK UP-POINTING TRIANGLE} "), -1.0: ("below", "\N{BLACK DOWN-POINTING TRIANGLE} "),
         0.0: ("zero", "\N{WHITE CIRCLE} ")}  # fmt: skip


def gaps(shown: Loaded, trial_id: str) -> Iterator[Block]:
    """For each setting the forest plot and tables of gaps, the primary one first."""
    whole, mine = trial_id in shown.whole, shown.summary[shown.summary["trial_id"] == trial_id]
    valid = shown.run.valid_baselines(shown.primary, trial_id) if whole else None
    for i, s in enumerate(shown.settings if whole else shown.settings[:1]):
        part = s.of(mine)
        if part.empty:
            continue
        blocks: list[Block] = []
        plot = forest(shown, trial_id, s, part, i == 0 and whole) if shown.drawn(trial_id, i) else None
        if plot is not None or not shown.controls:
            blocks.append(plot or page.text("The run has no controls, so there is no gap to show."))
        blocks.append(gap_table(shown, trial_id, s, part, shown.primary, "logodds"))
        if whole:
            more = [gap_table(shown, trial_id, s, part, *x) for x in
                    ((shown.primary, "prob"), ("drop", "logodds"), ("drop", "prob"))]  # fmt: skip
            blocks.append(
                page.details(f"In probability, and the drop at each level ({s})", [t for t in more if t["rows"]])
            )
            absolute = [absolute_table(shown, trial_id, s, part, x, valid) for x in SCALES if valid is not None]
            note = page.text(
                "An area ends on the wholly filled image, so it means something only if that image is a baseline: at "
                "least 1 log-odds below the untouched one. Where this holds for fewer than "
                f"{VALID_SHARE:.0%} of a bucket's images, no absolute area is shown, only gaps."
            )
            blocks.append(page.details(f"Areas of the maps themselves ({s})", [note, *absolute]))
        else:
            blocks.append(
                page.text("Only the primary table is shown for this model; the rest stands in the table summary.")
            )
        yield from [page.details(str(s), blocks)] if i else blocks


def gap_table(shown: Loaded, trial_id: str, s: Setting, part: pd.DataFrame, metric: str, scale: str) -> Block:
    """Gaps to each control, one row an explainer and bucket (and level, for drops)."""
    part = part[(part["metric"] == metric) & (part["scale"] == scale)]
    leveled = metric == "drop"
    draws = {c: int(d) for c, d in part.groupby("control")["draws"].max().items()}
    controls = [c for c in shown.controls if c in draws]
    by = ["explainer", "bucket", *(["level"] if leveled else [])]
    rows = []
    for _, group in part.groupby(by, sort=False, observed=True):
        one, cells = group.iloc[0], {r.control: r for r in group.itertuples()}
        counted = [r for c, r in cells.items() if c != "none"] or list(cells.values())
        row: list[Any] = [one["explainer"], one["bucket"], *([f"{one['level']:g}"] if leveled else [])]
        row += [f"{counted[0].n} ({counted[0].n_patients})"]
        if leveled:
            row.append(page.value(cells["none"]) if "none" in cells else "–")
        rows.append(row + [_gap(cells[c]) if c in cells else "–" for c in controls])
    level = "each level, share of units perturbed" if leveled else "none (area over all levels)"
    caption = (
        f"Gap in {metric}, {SCALES[scale]} of the target; model {trial_id}; {s}; level: {level}. Above 0: the map "
        "is more faithful than the control."
    )
    head = ["explainer", "bucket", *(["level"] if leveled else []), "images (patients)"]
    head += [f"drop of the map itself, {SCALES[scale]}"] if leveled else []
    return page.table(caption, head + [f"gap to {c} ({page.draws_text(draws[c])})" for c in controls], rows)


def absolute_table(
    shown: Loaded, trial_id: str, s: Setting, part: pd.DataFrame, scale: str, valid: pd.DataFrame
) -> Block:
    """Areas of the map itself, or why they are not shown."""
    part = part[(part["control"] == "none") & (part["scale"] == scale)]
    metrics = [m for m in areas() if m in set(part["metric"])]
    rows = []
    for (explainer, bucket), group in part.groupby(["explainer", "bucket"], sort=False, observed=True):
        cells = {r.metric: r for r in group.itertuples()}
        count, known = _valid(valid, s, str(explainer), str(bucket), shown.test_of(trial_id))
        if count < VALID_SHARE * known:
            told: list[Any] = [f"not shown: valid baseline for {count} of {known}"] * len(metrics)
        else:
            told = [page.value(cells[m], sign=m == "abpc") for m in metrics]
        first = cells[metrics[0]]
        rows.append([explainer, bucket, f"{first.n} ({first.n_patients})", f"{count} of {known}", *told])
    caption = (
        f"Areas of the map itself, control none, {SCALES[scale]} of the target; model {trial_id}; {s}; level: none "
        "(area over all levels). deletion_auc: lower is more faithful; insertion_auc and abpc: higher."
    )
    return page.table(caption, ["explainer", "bucket", "images (patients)", "valid baseline", *metrics], rows)


def forest(shown: Loaded, trial_id: str, s: Setting, part: pd.DataFrame, inline: bool) -> Block | None:
    """Gaps in the primary metric, in log-odds; None without controls."""
    part = part[(part["metric"] == shown.primary) & (part["scale"] == "logodds")]
    controls = [c for c in shown.controls if c in set(part["control"])]
    if not controls:
        return None
    label = f"gap in {shown.primary}, log-odds of the target\n({RIGHT})"
    title = f"{trial_id}: mean gap, 95% interval over patients\n{s}"
    return shown.picture(
        figures.forest(part, controls, shown.explainers, label, title), inline, f"gaps-{trial_id}-{s.slug}.png",
        f"Mean gap to each control by explainer and bucket, model {trial_id}; {s}",
        f"Mean gap in {shown.primary} (log-odds of the target; level: none, an area) to each control, with its 95% "
        f"interval, for model {trial_id}; {s}. Crosses: under 20 patients, no interval.",
    )  # fmt: skip


def curves(shown: Loaded, trial_id: str) -> Iterator[Block]:
    """A figure for each explainer and setting; the first setting's stand on the page."""
    test = shown.test_of(trial_id)
    if test.empty:
        return
    shared = curve_means(shown, trial_id, SHARED, test)
    others: list[Block] = []
    for explainer in shown.explainers:
        means = pd.concat([curve_means(shown, trial_id, explainer, test), shared])
        for i, s in enumerate(shown.settings):
            if not shown.drawn(trial_id, i):
                continue
            part = means[(means["rule"] == s.rule) & (means["grid"] == s.grid) & (means["fill"] == s.fill)]
            if (part["control"] == "none").any():
                block = curve_figure(shown, trial_id, explainer, s, part, i == 0)
                if i:
                    others.append(block)
                else:
                    yield block
    if others:
        yield page.text("Other settings, as files beside this page:")
        yield from others


def curve_means(shown: Loaded, trial_id: str, explainer: str, test: pd.DataFrame) -> pd.DataFrame:
    """Sums over images of each curve, batch by batch, so that memory does not grow with the table."""
    keys = ["rule", "outcome", "control", "draw", "grid", "fill", "direction", "level_done"]
    sums = {"logit_target": "logodds", "prob_target": "prob"}
    ids, outcome, predicted = (pa.array(test[c]) for c in ("image_id", "outcome", "predicted"))
    chosen = (pc.field("trial_id") == trial_id) & (pc.field("explainer") == explainer)
    rules = shown.sweep["explain"]["targets"]
    total = pa.table(
        {
            **{k: pa.array([], pa.string()) for k in keys},
            **{k: pa.array([], pa.float64()) for k in ("draw", "level_done", "logodds", "prob", "n")},
        }
    ).to_pandas()
    for batch in shown.run.dataset("curves").to_batches(
        columns=["image_id", "target", *keys[2:], *sums], filter=chosen, batch_readahead=1, fragment_readahead=1
    ):
        at = pc.index_in(batch["image_id"], value_set=ids)
        table = pa.Table.from_batches([batch]).append_column("outcome", outcome.take(at))
        parts = [total]
        for rule in rules:
            wanted = pa.scalar(1) if rule == "pneumonia" else predicted.take(at)
            rows = table.filter(pc.equal(batch["target"].cast(pa.int64()), wanted))
            rows = rows.append_column("rule", pa.array([rule] * len(rows), pa.string()))
            grouped = rows.group_by(keys).aggregate([*((c, "sum") for c in sums), ("logit_target", "count")])
            names = {f"{c}_sum": new for c, new in sums.items()} | {"logit_target_count": "n"}
            parts.append(grouped.to_pandas().rename(columns=names))
        total = pd.concat([p for p in parts if len(p)] or parts[:1])
        total = total.groupby(keys, as_index=False)[["logodds", "prob", "n"]].sum()
    return total


def curve_figure(shown: Loaded, trial_id: str, explainer: str, s: Setting, part: pd.DataFrame, inline: bool) -> Block:
    """One explainer's curves in one setting, in the map's and the controls' means."""
    counts = figures.images(part)
    lost = max(counts.values()) - counts["none"]
    note = f" {lost} images without a finite map are missing from the map's line, but not from every control's."
    caption = (
        f"{explainer}, model {trial_id}; {s}; levels {', '.join(f'{x:g}' for x in shown.levels)} and the ends 0 and "
        "1. Line: mean over images of the map's curve. Band: smallest to largest draw of a control, each a mean "
        "over images (how far draws differ, not an interval over patients). Deletion: a curve below the control's "
        "is more faithful; insertion: above."
    )
    return shown.picture(
        figures.curves(part, shown.controls, f"{trial_id}, {explainer}: mean over images\n{s}"), inline,
        f"curves-{trial_id}-{explainer}-{s.slug}.png",
        f"Deletion and insertion curves of {explainer}, model {trial_id}; {s}",
        caption + (note if lost else ""),
    )  # fmt: skip


def signs(shown: Loaded, trial_id: str) -> Iterator[Block]:
    """The factorial of issue: who falls further, under every choice; and which choice turns the answer."""
    summary = shown.run.pandas(
        "summary", filter=(pc.field("trial_id") == trial_id) & pc.field("contrast") & (pc.field("metric") == "drop")
        & (pc.field("explainer") == shown.main) & (pc.field("grid") == shown.first.grid)
        & (pc.field("control") == "none"),
    )  # fmt: skip
    cells = findings.sign_cells(summary)
    if cells.empty:
        return
    fills, rules = shown.sweep["perturb"]["fills"], shown.sweep["explain"]["targets"]
    order = {name: i for i, name in enumerate([*fills, *rules])}
    cells = cells.sort_values(
        ["target_rule", "fill", "level"], key=lambda c: c if c.name == "level" else c.map(order), kind="stable"
    )
    where = f"{shown.main}, grid {shown.first.grid}, model {trial_id}, control none"
    counts = [int((cells["sign"] == x).sum()) for x in (1, -1, 0)] + [int(cells["sign"].isna().sum())]
    yield page.text(
        f"Of {len(cells)} cells, {counts[0]} lie wholly above 0 (the first bucket falls further), {counts[1]} wholly "
        f"below, the interval of {counts[2]} holds 0, and {counts[3]} have no interval (under 20 patients in a bucket)."
    )
    yield shown.picture(
        figures.signs(cells, f"Difference of mean drops: {where}"), True, f"signs-{trial_id}.png",
        f"Difference of mean drops between buckets under every target rule, fill, level and scale, model {trial_id}",
        f"Drop of the first bucket less that of the second [95% interval over patients]: {where}. Round: all images; "
        "square: pairs matched on the log-odds of the target before deletion. Rows: target rule, fill, level.",
    )  # fmt: skip
    columns = list(itertools.product(("prob", "logodds"), ("TP-FP", "correct-wrong"), (False, True)))
    columns = [c for c in columns if c[1] in set(cells["contrast_of"])]
    rows = []
    for (rule, fill, level), part in cells.groupby(["target_rule", "fill", "level"], sort=False, observed=True):
        by = {(r.scale, r.contrast_of, r.matched): r for r in part.itertuples()}
        named = "RAD-XAI's" if (rule, fill, level) == ("predicted", "grey", 0.5) else ""
        named = "the study's" if (rule, level) == ("pneumonia", findings.STUDY_LEVEL) else named
        rows.append([str(rule), str(fill), {"text": f"{level:g}", "sub": named}, *(_sign(by.get(c)) for c in columns)])
    names = {False: "all", True: "matched"}
    head = ["target rule", "fill", "level",
            *(f"{c.replace('-', ' − ')}, {SCALES[x]}, {names[m]}" for x, c, m in columns)]  # fmt: skip
    yield page.table(
        f"Difference of mean drops [95% interval] and images: {where}. \N{BLACK UP-POINTING TRIANGLE} blue: wholly "
        "above 0, "
        "the first bucket falls further; \N{BLACK DOWN-POINTING TRIANGLE} orange: wholly below, the second does; "
        "\N{WHITE CIRCLE} the interval holds 0; no mark: no interval. The study says TP − FP is below 0 (level 0.25, "
        "probability; it names no fill); RAD-XAI says correct − wrong is above 0 (grey, level 0.5, predicted class, "
        "probability).", head, rows,
    )  # fmt: skip
    turns = findings.sign_turns(cells)
    names_of = {"contrast_of": "contrast", "target_rule": "target rule", "matched": "matched on log-odds"}
    yield page.table(
        f"Which choice turns the sign: pairs of cells that differ in one choice alone; {where}. Clearly: both "
        "intervals lie wholly on opposite sides of 0. TP and FP are all predicted PNEUMONIA, so their "
        "contrast is the same under both target rules.",
        ["choice", "from", "to", "pairs", "sign of the mean turns", "clearly"],
        [[names_of.get(r.axis, r.axis), r.a, r.b, str(r.pairs), page.share(r.turned, r.pairs),
          page.share(r.clearly, r.pairs)]
         for r in findings.rows_of(turns)],
    )  # fmt: skip


def ranking(shown: Loaded, trial_id: str) -> Iterator[Block]:
    """How far the ranking of explainers depends on each choice."""
    summary = shown.summary.astype({"explainer": str, "bucket": str, "fill": str})
    taus = ranking_agreement(summary, trial_id, shown.primary)
    if taus.empty:
        return
    rows = [
        [str(r.axis).replace("_", " "), r.a, r.b, page.number(r.tau_mean, 2, True),
         f"{page.number(r.tau_min, 2, True)} to {page.number(r.tau_max, 2, True)}", str(r.n_settings),
         str(r.n_explainers)]
        for r in taus.itertuples()
    ]  # fmt: skip
    yield page.table(
        "Does the ranking of explainers by mean gap survive a change of one choice? Kendall's tau (1: the same "
        "ranking, 0: unrelated, −1: reversed) of the two rankings, over the settings of all other choices; model "
        f"{trial_id}, bucket all, metric {shown.primary} (choice level: drop). Controls that no explainer enters "
        "(pixel_random, cell_random, smooth_random) rank explainers alike by construction.",
        ["choice", "from", "to", "mean tau", "smallest to largest", "settings", "explainers"], rows,
    )  # fmt: skip


def regions(shown: Loaded, trial_id: str) -> Iterator[Block]:
    """What removing a region does, beside its matched controls; on phantoms, beside the truth."""
    rows = shown.optional("regions", trial_id)
    if rows.empty:
        return
    rule = shown.first.rule
    effects = findings.of_rule(findings.region_effects(rows), shown.test_of(trial_id), rule)
    means = findings.region_means(effects, shown.patients, shown.sweep["seed"])
    removed = means[~means["fill"].isin(["counterfactual", "edit"])]
    where = f"model {trial_id}, target rule {rule}"
    if len(removed):
        yield shown.picture(
            figures.regions(removed, f"{trial_id}: effect of filling or exchanging a region, target rule {rule}"), True,
            f"regions-{trial_id}.png", f"Effect of changing each region beside its matched control, model {trial_id}",
            "Log-odds of the target of the untouched image less those of the changed one, mean and 95% interval over "
            "patients (crosses: under 20 patients). The matched control changes the same area and shape elsewhere. "
            "Exchange: for the same pixels of a NORMAL validation image of another patient.",
        )  # fmt: skip
        yield region_table(shown, removed, "logodds", where)
        yield page.details("In probability", [region_table(shown, removed, "prob", where)])
    edits = means[means["fill"] == "edit"]
    if len(edits):
        yield page.table(
            "Edits of the whole image: score of the untouched image less that of the edited one [95% interval]; "
            f"{where}. Above 0: the edit lowered the target's score; below 0: it raised it. There is no control.",
            ["edit", "bucket", "images (patients)", "effect, log-odds", "effect, probability"],
            [[r["region"], r["bucket"], f"{r['n']} ({r['n_patients']})", *(page.bounds(r,
             f"effect_{x}") for x in SCALES)]
             for r in edits.to_dict("records")],
        )  # fmt: skip
    points = findings.truth(effects)
    if len(points):
        agreed = findings.truth_agreement(points)
        yield shown.picture(
            figures.truth(points, agreed,
            f"{trial_id}: region effects against the causal truth, log-odds of the target"),
            True, f"truth-{trial_id}.png", f"Region effects against the causal truth on phantoms, model {trial_id}",
            "One point an image. Across: log-odds of the target of the image less those of the same phantom drawn "
            "again without the thing (or with the other glyph). Up: what filling or exchanging the region does; "
            f"target rule {rule}.",
        )  # fmt: skip
        yield page.table(
            f"Agreement with the causal truth, log-odds; {where}.",
            ["region", "truth: drawn again", "fill", "images", "Spearman", "same sign"],
            [[r.region, "with the other glyph" if r.truth_of == "glyph" else f"without its {r.truth_of}", r.fill,
              str(r.n), page.number(r.rho, 2), f"{r.same_sign:.0%}"] for r in agreed.itertuples()],
        )  # fmt: skip


def region_table(shown: Loaded, means: pd.DataFrame, scale: str, where: str) -> Block:
    """Effect, matched control and their difference, by region, fill and bucket."""
    rows = [
        [r["region"], r["fill"], r["bucket"], f"{r['share_of_area']:.1%}", f"{r['n']} ({r['n_patients']})",
         *(page.bounds(r, f"{what}_{scale}") for what in ("effect", "matched", "gap"))]
        for r in means.to_dict("records")
    ]  # fmt: skip
    draws = means["draws"].max()
    caption = (
        f"Effect of filling or exchanging a region, {SCALES[scale]} of the target (untouched less changed) "
        f"[95% interval]; {where}; "
        "level: the region's own area. Matched control: the same area and shape elsewhere, mean of "
        f"{page.number(draws, 0)} draws. Above 0: the target's score fell; difference above 0: it fell further than "
        "under the control."
    )
    head = [
        "region",
        "fill",
        "bucket",
        "share of the area",
        "images (patients)",
        "effect",
        "matched control",
        "difference",
    ]
    return page.table(caption, head, rows)


def sanity(shown: Loaded, trial_id: str) -> Iterator[Block]:
    """Whether maps change when the model's weights do."""
    rows = shown.optional("sanity", trial_id)
    if rows.empty:
        return
    rule = shown.first.rule
    rows = findings.of_rule(rows, shown.test_of(trial_id), rule)
    measured = rows[rows["control"].notna()]
    own = pd.Series(dtype=float)
    if len(measured):
        one, s = measured.iloc[0], pc.field("scale") == measured.iloc[0]["scale"]
        gaps = shown.run.pandas(
            "faithfulness", ["image_id", "target", "explainer", "control", "gap"],
            s & (pc.field("trial_id") == trial_id) & pc.field("image_id").isin(list(set(rows["image_id"])))
            & (pc.field("metric") == one["metric"]) & (pc.field("grid") == one["grid"])
            & (pc.field("fill") == one["fill"]),
        )  # fmt: skip
        own = findings.of_rule(gaps, shown.test_of(trial_id), rule).set_index(["explainer", "image_id", "control"])[
            "gap"
        ]
    means = findings.sanity_means(rows, own, shown.patients, shown.sweep["seed"])
    layers = (shown.sweep.get("sanity") or {}).get("layers") or list(dict.fromkeys(means["layer"]))
    if (means["mode"] == "cascade").any():
        yield shown.picture(
            figures.sanity(means, layers, shown.explainers,
            f"{trial_id}: maps of a randomised model, target rule {rule}"),
            True, f"sanity-{trial_id}.png", f"Similarity and gap of maps as weights are randomised, model {trial_id}",
            "Left and middle: likeness to the trained model's own map (1: nothing changed, so the map does not "
            "depend on the weights). Right: the randomised model's map put through the same test on the trained "
            "model; none: the trained model's own map. Mean and 95% interval over patients (no bar: under 20 "
            "patients).",
        )  # fmt: skip
    setting = ""
    if len(measured):
        setting = (f"; gap: {one['metric']}, {SCALES[one['scale']]}, grid {one['grid']}, fill {one['fill']}, control "
                   f"{', '.join(dict.fromkeys(measured['control']))}, "
                   "above 0: more faithful than the control")  # fmt: skip
    how = {"cascade": "weights randomised down to", "labels": "a model of shuffled labels:"}
    yield page.table(
        f"Sanity: likeness of the maps of a model that knows nothing to those of {trial_id} (1: the same map) [95% "
        f"interval]; target rule {rule}{setting}.",
        ["explainer", "compared with", "images (patients)", "Spearman", "Spearman of |map|", "SSIM", "its gap",
         "gap of the model's own map, same images"],
        [[r["explainer"], f"{how.get(r['mode'], r['mode'])} {r['layer']}", f"{r['n']} ({r['n_patients']})",
          *(page.bounds(r, m, sign=m.endswith("gap")) for m in ("spearman", "spearman_abs", "ssim", "gap", "own_gap"))]
         for r in means.to_dict("records")],
    )  # fmt: skip


def accuracy(shown: Loaded) -> list[Block]:
    """Faithfulness beside accuracy, over models and over variants."""
    summary = shown.summary.astype({"explainer": str, "bucket": str, "fill": str})
    models = over_models.accuracy_and_gaps(
        shown.run.pandas("classification"), shown.trials, summary, primary.resolve(shown.sweep)
    )
    if len(models) == 0 or models["trial_id"].nunique() < 2:
        return []
    one, blocks = models.iloc[0], []
    where = (f"gap in {one['metric']}, log-odds, grid {one['grid']}, fill {one['fill']}, target rule "
    f"{one['target_rule']}, "
             "bucket all, to the strongest control measured")  # fmt: skip
    correlations = over_models.rank_correlations(models)
    correlations["text"] = [over_models.sentence(r.n, r.rho, r.p) for r in findings.rows_of(correlations)]
    said = {(r.explainer, r.performance): r.text for r in findings.rows_of(correlations)}
    blocks.append(shown.picture(
        figures.accuracy(models, lambda e: said[e, "accuracy"], "Does faithfulness track accuracy? One point a model"),
        True, "accuracy.png", "Gap to the strongest control against accuracy, one point a model",
        f"Across: accuracy on test at 0.5; up: {where}. Lines: 95% intervals over patients of each. Above 0: more "
        "faithful than the control.",
    ))  # fmt: skip
    rows = [[r.explainer, r.control, r.performance, str(r.n), page.number(r.rho, 2, True), page.p_text(r.p),
             {"text": r.text, "wrap": True}] for r in correlations.itertuples()]  # fmt: skip
    blocks.append(page.table(
        f"Rank correlation over models of performance and faithfulness ({where}).",
        ["explainer", "control", "performance", "models", "Spearman", "p", "in words"], rows))  # fmt: skip
    rows = [
        [r.trial_id, r.variant, page.number(r.seed, 0), page.interval(r.accuracy, r.accuracy_lower, r.accuracy_upper),
         page.interval(r.auroc, r.auroc_lower, r.auroc_upper), r.explainer, r.control,
         page.interval(r.gap, r.gap_lower, r.gap_upper, sign=True), str(r.n)]
        for r in models.itertuples()
    ]  # fmt: skip
    table = page.table(f"Models [95% interval over patients]: {where}.", [
        "model", "variant", "seed", "accuracy", "AUROC", "explainer", "control", "gap", "images"], rows)  # fmt: skip
    blocks.append(page.details("Every model", [table]))
    variants = findings.by_variant(models)
    if variants["variant"].nunique() > 1 or variants["models"].max() > 1:
        rows = [
            [r["variant"], r["explainer"], r["control"], str(r["models"]), r["seeds"] or "–",
             *(_range(r, m, sign=m == "gap") for m in ("accuracy", "auroc", "gap"))]
            for r in variants.to_dict("records")
        ]  # fmt: skip
        blocks.append(page.table(
            f"Variants: mean over models (smallest to largest of them, not an interval); {where}.",
            ["variant", "explainer", "control", "models", "seeds", "accuracy", "AUROC", "gap"], rows))  # fmt: skip
    return blocks


def _gap(r: Any) -> Block | str:
    if pd.isna(r.mean):
        return "–"
    sub = f"p_holm {page.p_text(r.p_holm)} · win rate {page.number(r.win_rate, 2)}"
    if r.n_null or r.n_degenerate:
        sub += f" · {r.n_null} null, {r.n_degenerate} constant"
    return {
        "text": page.interval(r.mean, r.lower, r.upper, sign=True),
        "sub": sub,
        "strong": bool(r.p_holm < 0.05 and r.lower > 0),
    }


def _sign(r: Any) -> Block | str:
    if r is None or pd.isna(r.mean):
        return "–"
    look, mark = SIGNS.get(r.sign, ("", ""))
    return {"text": mark + page.interval(r.mean, r.lower, r.upper, sign=True), "sub": f"n = {r.n}", "look": look}


def _range(r: Mapping[Any, Any], name: str, sign: bool) -> str:
    low, high = (page.number(r[f"{name}_{end}"], sign=sign) for end in ("low", "high"))
    return page.number(r[name], sign=sign) + (f" ({low} to {high})" if r["models"] > 1 else "")


def _valid(valid: pd.DataFrame, s: Setting, explainer: str, bucket: str, test: pd.DataFrame) -> tuple[int, int]:
    """Images of a bucket with a valid baseline, and with any value."""
    members = test if bucket == "all" else test[test["outcome"] == bucket]
    targets = members.set_index("image_id")["predicted"] if s.rule == "predicted" else pd.Series(1, members["image_id"])
    part = valid[(valid["explainer"] == explainer) & (valid["grid"] == s.grid) & (valid["fill"] == s.fill)]
    part = part[part["target"] == part["image_id"].map(targets)]
    return int(part["baseline_valid"].sum()), len(part)

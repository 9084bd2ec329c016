"""Draws a run: ``python -m cxr_ray.report results/x`` turns its tables into figures and one HTML page, report.html.

The page opens offline: figures stand inside it, and also as files in figures/ and galleries/. Everything is read from
the tables; only the galleries need the images. Nothing on the page is chosen by how good it looks: images by a seeded
hash, the models' order by val_auroc. The numbers are those of ``findings`` and ``agreement``, the drawings of
``figures`` and ``galleries``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

import jinja2
import pandas as pd
import pyarrow as pa

from cxr_ray import results
from cxr_ray.analysis import findings
from cxr_ray.analysis.resampling import CI_METHOD
from cxr_ray.analysis.summary import VALID_SHARE
from cxr_ray.data.sources import SOURCES
from cxr_ray.errors import RunError
from cxr_ray.measure.controls import CONTROLS, strongest_first
from cxr_ray.report import comparisons, page, study
from cxr_ray.report.page import Block
from cxr_ray.report.rundata import WHOLE_MODELS, Loaded
from cxr_ray.storage import Store


def write_report(out: str, data_path: str | None = None) -> None:
    """Writes report.html, figures/ and galleries/ into the run folder ``out``, local or a URI.

    Args:
        out: the run's folder.
        data_path: where the images lie now, if not where the sweep says.

    Raises:
        RunError: there is no run in ``out``, or one without its tables.
    """
    shown = Loaded(results.open_run(out), data_path)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files("cxr_ray.report").joinpath("report.html.j2").read_text("utf-8"))
    Store(out, {}).write(template.render(context(shown)).encode(), "report.html")


def context(shown: Loaded) -> dict[str, Any]:
    """What the template shows."""
    try:
        provenance = shown.run.json("provenance.json")
    except (OSError, RunError):
        provenance = {}
    sections = {
        "observations": shown.each(study.observations), "galleries": shown.each(study.gallery),
        "hypotheses": study.hypotheses(shown), "deletion": shown.each(study.deletion),
        "gaps": shown.each(comparisons.gaps, shown.models), "curves": shown.each(comparisons.curves),
        "signs": shown.each(comparisons.signs),
        "agreement": shown.each(comparisons.ranking), "regions": shown.each(comparisons.regions),
        "sanity": shown.each(comparisons.sanity), "accuracy": comparisons.accuracy(shown),
    }  # fmt: skip
    return {
        "sweep": shown.sweep, "provenance": provenance, "primary": shown.primary, "first": shown.first,
        "main": shown.main, "level": f"{shown.level:g}", "levels": ", ".join(f"{x:g}" for x in shown.levels),
        "headlines": list(headlines(shown)), "classification": study.classification(shown),
        "trials": study.trials(shown), "n_val": shown.predictions.query("split == 'val'")["image_id"].nunique(),
        "twins": study.twins(shown), "errors": error_table(shown), "gallery_note": study.gallery_note(shown),
        "controls": {c: shown.sweep["controls"].get(c) for c in shown.controls},
        "captions": {c: CONTROLS[c].caption for c in shown.controls}, "sections": sections,
        "whole_models": WHOLE_MODELS, "more_models": len(shown.models) > WHOLE_MODELS,
        "valid_share": f"{VALID_SHARE:.0%}", "limits": list(limits(shown)),
    }  # fmt: skip


def headlines(shown: Loaded) -> Iterator[str]:
    """What the page shows, a sentence each, of the first model."""
    trial_id = next(iter(shown.models), None)
    if trial_id is None:
        return
    classes = shown.run.pandas("classification")
    for r in classes[(classes["trial_id"] == trial_id) & (classes["split"] == "test")
                     & (classes["threshold_rule"] == "half")].itertuples():  # fmt: skip
        negative = shown.test_of(trial_id)["outcome"].isin(["FP", "TN"]).sum()
        false = (shown.test_of(trial_id)["outcome"] == "FP").sum()
        yield (
            f"Performance of {trial_id} on test: accuracy "
            f"{page.interval(r.accuracy, r.accuracy_lower, r.accuracy_upper)}, AUROC "
            f"{page.interval(r.auroc, r.auroc_lower, r.auroc_upper)}; {false} of {negative} NORMAL images are called "
            "PNEUMONIA."
        )
    judged = shown.optional("hypotheses")
    for r in findings.rows_of(judged[judged["role"] == "verdict"]) if len(judged) else []:
        effect = page.interval(r.effect, r.lower, r.upper, sign=True)
        told = "" if pd.isna(r.effect) else f"; effect {effect} {r.unit}, {page.number(r.n, 0)} images"
        yield f"{r.hypothesis} ({r.subject}): {r.verdict}{told}."
    mine = shown.first.of(shown.summary[(shown.summary["trial_id"] == trial_id) & (shown.summary["bucket"] == "all")])
    mine = mine[mine["explainer"] == shown.main]
    drop = {
        (r.bucket, r.scale): (page.interval(r.mean, r.lower, r.upper, sign=True), r.n)
        for r in findings.rows_of(shown.first.of(shown.summary))
        if r.trial_id == trial_id and r.metric == "drop" and r.level == shown.level and r.control == "none"
        and r.explainer == shown.main
    }  # fmt: skip
    if ("TP", "prob") in drop and ("FP", "prob") in drop:
        yield (
            f"Deletion of {shown.level:.0%} by {shown.main} ({shown.first}): the probability of the target falls by "
            f"{drop['TP', 'prob'][0]} for TP ({drop['TP', 'prob'][1]} images) and {drop['FP', 'prob'][0]} for FP "
            f"({drop['FP', 'prob'][1]}); its log-odds by {drop['TP', 'logodds'][0]} and {drop['FP', 'logodds'][0]}."
        )
    gaps = mine[(mine["scale"] == "logodds") & (mine["control"] != "none")]
    area = gaps[gaps["metric"] == shown.primary]
    for r in sorted(findings.rows_of(area), key=lambda r: page.strength(r.control))[:1]:
        halves = gaps[(gaps["control"] == r.control) & gaps["metric"].isin(["deletion_auc", "insertion_auc"])]
        told = ", ".join(
            f"{h.metric.removesuffix('_auc')} {page.number(h.mean, sign=True)}" for h in findings.rows_of(halves)
        )
        clear = "clear of 0" if r.lower > 0 or r.upper < 0 else "holding 0" if r.lower <= 0 else "without interval"
        yield (
            f"{shown.main} against {r.control}, the strongest control measured: gap in {shown.primary} "
            f"{page.interval(r.mean, r.lower, r.upper, sign=True)} log-odds over all {r.n} images"
            + (f" ({told})" if told and shown.primary == "abpc" else "") + f", {clear} ({shown.first})."
        )  # fmt: skip
    share = shown.valid_shares[trial_id].get(shown.first.fill, 1.0)
    if share < VALID_SHARE and "lerf" in shown.orders:
        yield (
            f"Mind: filled with {shown.first.fill}, {share:.0%} of the images score at least 1 log-odds below the "
            "untouched one. Elsewhere insertion also rewards keeping what the model sees in a blank image: read it "
            "apart from deletion."
        )


def error_table(shown: Loaded) -> Block:
    """Rows of errors by stage and reason."""
    errors = shown.run.pandas("errors")
    rows = []
    groups = errors.groupby(["stage", "reason"], dropna=False)
    for (stage, reason), part in sorted(groups, key=lambda g: -len(g[1]))[:50]:
        examples = ", ".join(str(p) for p in part["path"].iloc[:3])
        rows.append([str(stage), {"text": str(reason), "wrap": True}, str(len(part)), {"text": examples, "wrap": True}])
    left = len(groups) - len(rows)
    caption = f"Errors: {len(errors)} rows" + (f"; {left} more reasons stand in the table errors." if left else ".")
    return page.table(caption, ["stage", "reason", "rows", "such as"], rows)


def limits(shown: Loaded) -> Iterator[str]:
    """What this run cannot say, from what was run."""
    settings, perturb, n = shown.sweep["data"], shown.sweep["perturb"], shown.test["image_id"].nunique()
    source = SOURCES[settings["source"]]
    limit = settings.get("limit")
    yield (
        f"One data set ({source.description}), {n} test images of "
        f"{len(set(shown.patients.values()))} patients"
        + (f", of a split cut to {limit} images" if limit else "") + ", "
        + ("one model" if len(shown.models) == 1 else f"{len(shown.models)} models of {variants(shown)} variants")
        + ". Nothing here is about another hospital's images."
    )  # fmt: skip
    yield from source.limits
    yield (
        f"Levels {', '.join(f'{x:g}' for x in shown.levels)}; fills {', '.join(perturb['fills'])}; grids "
        f"{', '.join(str(g) for g in perturb['grids'])}; targets {', '.join(shown.sweep['explain']['targets'])}. "
        "Results may differ under others: see how far they do among these."
    )  # fmt: skip
    missing = [c for c in strongest_first(CONTROLS) if c not in shown.controls]
    if missing:
        yield f"Controls that were not measured: {', '.join(missing)}."
    if shown.whole:
        told = "; ".join(
            f"{trial_id} " + (", ".join(f"{fill} {share:.0%}" for fill, share in shares.items()) or "unknown")
            for trial_id, shares in shown.valid_shares.items()
        )
        yield (
            "A filled image is a valid baseline (at least 1 log-odds below the untouched one) for this share of "
            f"images: {told}. Elsewhere curves end on an image that the model still takes for the target; gaps share "
            "that end, absolute areas do not."
        )
    yield (
        "Filled images are unlike any X-ray: part of every change is the model's answer to the fill. Gaps share it, "
        "absolute values do not."
    )
    yield (
        "A gap says that filling what the map ranks high changes the score more than the control does. It does not "
        "say that the model looks at disease."
    )
    if "pixel" in [str(g) for g in perturb["grids"]]:
        yield (
            "On grid pixel a rough map (gradients, say) fills scattered pixels and so changes texture everywhere, "
            "which alone can move the score, and move it against one control more than against another. Compare "
            "explainers with each "
            "other on a grid of cells" + (", which this run does not have" if len(perturb["grids"]) == 1 else "")
            + "; look at the curves, not at the area alone."
        )  # fmt: skip
    yield "Under 19 draws an image has no p-value of its own. Under 20 patients a bucket has no interval."
    yield (
        "Holm's correction holds within one model, bucket, target rule, grid, fill, metric, level and scale; a page "
        "full of tables holds many such families. H1 to H3 are a family of their own."
    )
    if len(shown.summary):
        how = shown.summary.iloc[0]
        yield (
            f"Intervals of drops and gaps: {how['ci_method'] or 'bootstrap over patients'}, "
            f"{page.number(how['n_boot'], 0)} samples; of regions and sanity: {CI_METHOD}, 1000 samples. They cover "
            "the choice of patients, not of training seeds."
        )
    sanity = shown.sweep.get("sanity")
    if sanity:
        yield f"Randomisation was looked at on at most {sanity['images']} test images a model."
    if no_lungs(shown):
        yield "There were no lung masks: shares of mass in the lungs are unknown, and H3 cannot be decided."


def variants(shown: Loaded) -> int:
    """How many variants have been explained."""
    return shown.trials[shown.trials["trial_id"].isin(shown.models)]["variant"].nunique()


def no_lungs(shown: Loaded) -> bool:
    """No map has a share in the lungs."""
    share = shown.run.arrow("saliency", ["lung_share"])["lung_share"]
    return len(share) == share.null_count


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 drawn, 1 cannot read or write, 2 the path is wrong."""
    parser = argparse.ArgumentParser(prog="python -m cxr_ray.report", description="Draws a run's report again.")
    parser.add_argument("out", help="the run's folder or URI, as --out named it")
    parser.add_argument("--data", help="the folder of the images, if they lie elsewhere now (galleries only)")
    args = parser.parse_args(argv)
    try:
        write_report(args.out, args.data)
    except (RunError, pa.ArrowInvalid) as e:
        print(f"cxr_ray: {str(e).splitlines()[0]}", file=sys.stderr)
        return 2
    except OSError as e:
        print(f"cxr_ray: {args.out}: {str(e).splitlines()[0]}", file=sys.stderr)
        return 1
    print(f"{args.out.rstrip('/')}/report.html")
    return 0

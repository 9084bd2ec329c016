"""What ends a run: models, verdicts, each map's advantage over each control; last the answer in words and one path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from cxr_ray import results
from cxr_ray.analysis import answers, baselines, beating, class_order, primary
from cxr_ray.analysis.baselines import VALID_SHARE
from cxr_ray.analysis.buckets import BUCKETS
from cxr_ray.analysis.primary import PrimarySettings


def summary_lines(out: str) -> Iterator[str]:
    """Models, then each map's advantage over each control. Every number stands in a table of the run."""
    run = results.open_run(out)
    yield from _model_lines(run)
    yield from _sequential_lines(run)
    yield from _verdict_lines(run)
    summary = run.pandas("summary")
    if (summary["control"] != "none").any():
        settings = primary.of_run(run)
        if settings.baseline_valid is False:
            rows = run.pandas("baselines").to_dict("records")
            yield "\n" + baselines.sentence(rows, settings.target_rule, settings.fill)
        yield from _advantage_lines(summary, settings)
    else:
        yield f"\nHardest strong control: {beating.NO_STRONG}."
    errors = run.arrow("errors").num_rows
    yield f"\nErrors: {errors}" + (" (table errors)" if errors else "")
    yield f"Tables: {out}/tables (docs/tables.md, or cxr_ray.open_run)"
    yield ""
    yield from answer_lines(out)


def answer_lines(out: str) -> Iterator[str]:
    """The answer of a run in words, a sentence a model and explainer; last the path of its page.

    A run of sequential verdicts alone is answered by these.
    """
    run = results.open_run(out)
    found = [answer.sentence for answer in answers.of_run(run)]
    yield from found or run.pandas("verdicts").query("bucket == 'all'")["sentence"]
    yield f"Report: {out}/report.html"


def _model_lines(run: results.Run) -> Iterator[str]:
    classes, trials = run.pandas("classification"), run.pandas("trials")
    variant_of = trials.set_index("trial_id")["variant"]
    asked = class_order.questions(classes, trials)
    yield "Test split, threshold 0.5, with 95% intervals over patients:"
    yield f"  {'model':<26}{'variant':<14}{'accuracy':<24}{'AUROC':<24}{'images':>6}"
    at_half = classes[(classes["split"] == "test") & (classes["threshold_rule"] == "half")]
    for r in at_half.to_dict("records"):
        accuracy, auroc = (_interval(r[m], r[f"{m}_lower"], r[f"{m}_upper"]) for m in ("accuracy", "auroc"))
        doubt = "  ?" if r["trial_id"] in {question.trial_id for question in asked} else ""
        yield f"  {r['trial_id']:<26}{variant_of[r['trial_id']]:<14}{accuracy:<24}{auroc:<24}{r['n']:>6}{doubt}"
    yield from (f"  ? {question.text}" for question in asked)


def _sequential_lines(run: results.Run) -> Iterator[str]:
    """Sequential verdicts over all patients, a sentence each."""
    verdicts = run.pandas("verdicts")
    if verdicts.empty:
        return
    decided, patients = (verdicts["decision"] != "undecided").sum(), verdicts["n_available"].max()
    yield f"\nSequential verdicts (table verdicts): {decided} of {len(verdicts)} decided; over all {patients} patients:"
    yield from (f"  {sentence}" for sentence in verdicts.loc[verdicts["bucket"] == "all", "sentence"])


def _verdict_lines(run: results.Run) -> Iterator[str]:
    judged = run.pandas("hypotheses").query("role == 'verdict'")
    if len(judged):
        yield "\nVerdicts (table hypotheses):"
    for r in judged.itertuples():
        yield f"  {r.hypothesis} ({r.subject}): {r.verdict}: {r.reason}"


def _advantage_lines(summary: pd.DataFrame, settings: PrimarySettings) -> Iterator[str]:
    primary_values = {key: getattr(settings, key) for key in ("scale", "grid", "fill", "target_rule")}
    chosen = ~summary["contrast"] & summary["bucket"].isin(BUCKETS)
    for key, value in primary_values.items():
        chosen &= summary[key] == value
    chosen &= settings.chosen(summary)
    rows = summary[chosen & (summary["control"] != "none")]
    rows = rows.sort_values("bucket", key=lambda c: c.map(BUCKETS.index), kind="stable")
    yield (
        f"\nAdvantage in {settings.label} over each control, in log-odds (above 0: the map is more "
        f"faithful than the control); grid {settings.grid}, fill {settings.fill}, target {settings.target_rule}:"
    )
    controls = list(dict.fromkeys(rows["control"]))
    yield f"  {'model':<26}{'explainer':<22}{'bucket':<8}{'n':>5}  " + "".join(f"{c:<27}" for c in controls)
    for (trial_id, explainer, bucket), group in rows.groupby(["trial_id", "explainer", "bucket"], sort=False):
        by_control = {r.control: _advantage(r) for r in group.itertuples()}
        cells = "".join(f"{by_control.get(c, ''):<27}" for c in controls)
        yield f"  {trial_id:<26}{explainer:<22}{bucket:<8}{group['n'].iloc[0]:>5}  {cells}"
    yield "  * beaten: mean advantage and win rate both above chance by interval and by p after Holm's correction."
    yield "  ~ differs: one of the two. Unmarked: neither, with that correction. No interval under 20 patients."
    yield from _hardest_lines(rows)
    yield from _baseline_lines(summary[chosen & (summary["control"] == "none")], settings)


def _hardest_lines(rows: pd.DataFrame) -> Iterator[str]:
    """Each explainer and bucket against the strong control with the smallest advantage."""
    hardest = rows[rows["hardest"].eq(True)]
    if hardest.empty:
        yield f"\nHardest strong control: {beating.NO_STRONG}."
        return
    yield "\nThe hardest strong control (smallest mean advantage) of each explainer and bucket; is it beaten?"
    yield from map(_hardest_line, hardest.itertuples())


def _hardest_line(r: Any) -> str:
    advantage, win = _interval(r.mean, r.lower, r.upper), _interval(r.win_rate, r.win_lower, r.win_upper)
    named = f"  {r.trial_id:<26}{r.explainer:<22}{r.bucket:<8}{r.control:<13}{advantage:<26}"
    return f"{named}win rate {win:<22}  {beating.in_words(r)}"


def _baseline_lines(maps: pd.DataFrame, settings: PrimarySettings) -> Iterator[str]:
    """Models for which the fully filled image is not a neutral baseline, where that matters: for insertion."""
    once = maps[maps["bucket"] == "all"].drop_duplicates("trial_id")  # about the same for any map
    few = once[once["n_valid_baseline"] < VALID_SHARE * once["n"]]
    if not settings.deletion_alone and len(few):
        counts = ", ".join(f"{r.n_valid_baseline:.0f} of {r.n} images of {r.trial_id}" for r in few.itertuples())
        yield (
            f"  Filled with {settings.fill}, the image scores 1 log-odds or more below the untouched one for {counts}: "
            "elsewhere\n  insertion also rewards keeping what the model sees in the filled image. Read it apart from "
            "deletion."
        )


def _advantage(row: Any) -> str:
    return _interval(row.mean, row.lower, row.upper) + {beating.YES: "*", beating.DIFFERS: "~"}.get(row.beaten, "")


def _interval(mean: float, lower: float, upper: float) -> str:
    if pd.isna(mean):
        return "-"
    return f"{mean:.3f}" + ("" if pd.isna(lower) else f" [{lower:.3f}, {upper:.3f}]")

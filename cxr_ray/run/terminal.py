"""Everything that a run prints: lines, mistakes, progress, and the short table that ends it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator

import pandas as pd

from cxr_ray import results
from cxr_ray.analysis import buckets, primary, summary
from cxr_ray.schemas import TABLES

PROGRESS_SECONDS = 5.0  # between two lines


def say(text: str = "") -> None:
    """One line on the terminal, at once."""
    print(text, flush=True)


def complain(text: str) -> None:
    """One line on stderr for each line of ``text``."""
    for line in text.splitlines():
        print(f"cxr_ray: {line}", file=sys.stderr)


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(59), duration(600), duration(7200)
    ('59 seconds', '10 minutes', '2.0 hours')
    """
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def watch(computed: Generator[tuple[int, str], None, None], n_shards: int) -> None:
    """Say how far the shards are. Closes them when interrupted: Ray Data waits for a Ray that has ended."""
    done, first, last = 0, 0.0, 0.0
    with contextlib.closing(computed):
        for n, (images, backend) in enumerate(computed, start=1):
            now = time.monotonic()
            if n == 1:
                say(f"  forward passes: {backend}")
                first = last = now  # what came before is mostly start-up
            else:
                done += images
            if n == n_shards:
                say(f"  {n} of {n_shards} shards")
            elif now - last > PROGRESS_SECONDS:
                last = now
                left = (now - first) / (n - 1) * (n_shards - n)
                say(f"  {n} of {n_shards} shards, {done / (now - first):.1f} images/s, {duration(left)} left")


def print_summary(out: str, write: Callable[[str], None] | None = None) -> None:
    """The short table that ends a run: models, then gaps to each control. ``write``: takes a line; else it is said."""
    write = write or say
    run_ = results.open_run(out)
    classes = run_.pandas("classification")
    trials = run_.pandas("trials").set_index("trial_id")
    write("Test split, threshold 0.5, with 95% intervals over patients:")
    write(f"  {'model':<26}{'variant':<14}{'accuracy':<24}{'AUROC':<24}{'images':>6}")
    at_half = classes[(classes["split"] == "test") & (classes["threshold_rule"] == "half")]
    for r in at_half.to_dict("records"):
        accuracy, auroc = (_interval(r[m], r[f"{m}_lower"], r[f"{m}_upper"]) for m in ("accuracy", "auroc"))
        variant = trials["variant"][r["trial_id"]]
        write(f"  {r['trial_id']:<26}{variant:<14}{accuracy:<24}{auroc:<24}{r['n']:>6}")
    frame = run_.pandas("summary")
    if (frame["control"] != "none").any():
        _print_gaps(primary.of_run(run_), frame, write)
    errors = run_.pandas("errors")
    write(f"\nErrors: {len(errors)}" + (" (table errors)" if len(errors) else ""))
    write(f"Tables: {out}/tables ({', '.join(TABLES)})")
    write(f"Report: {out}/report.html")


def _print_gaps(settings: primary.PrimarySettings, frame: pd.DataFrame, write: Callable[[str], None]) -> None:
    metric, grid, fill, rule = settings.metric, settings.grid, settings.fill, settings.target_rule
    of_metric = (frame["metric"] == metric) & (frame["scale"] == settings.scale) & (frame["grid"] == grid)
    of_metric &= (frame["fill"] == fill) & (frame["target_rule"] == rule)
    rows = frame[of_metric & (frame["control"] != "none") & frame["bucket"].isin(buckets.BUCKETS)]
    write(
        f"\nGap in {metric} to each control, in log-odds (above 0: the map is more faithful than the control); "
        f"grid {grid}, fill {fill}, target {rule}:"
    )
    controls = list(dict.fromkeys(rows["control"]))
    write(f"  {'model':<26}{'explainer':<22}{'bucket':<8}{'n':>5}  " + "".join(f"{c:<26}" for c in controls))
    for (trial_id, explainer, bucket), part in rows.groupby(["trial_id", "explainer", "bucket"], sort=False):
        cells = {
            row["control"]: _interval(row["mean"], row["lower"], row["upper"]) + ("*" if row["p_holm"] < 0.05 else "")
            for row in part.to_dict("records")
        }
        one = part.iloc[0]
        write(f"  {trial_id:<26}{explainer:<22}{bucket:<8}{one['n']:>5}  "
              + "".join(f"{cells.get(c, ''):<26}" for c in controls))  # fmt: skip
    write("  * p < 0.05 after Holm's correction (sign-flip over patients). No interval under 20 patients.")
    if metric not in ("abpc", "insertion_auc"):
        return
    whole = frame[of_metric & (frame["control"] == "none") & (frame["bucket"] == "all")]
    counts = whole[whole["explainer"] == settings.explainer].dropna(subset="n_valid_baseline")
    few = counts[counts["n_valid_baseline"] < summary.VALID_SHARE * counts["n"]]
    if len(few):
        valid = ", ".join(
            f"{row['n_valid_baseline']:.0f} of {row['n']} images of {row['trial_id']}" for row in few.to_dict("records")
        )
        write(
            f"  Filled with {fill}, the image scores 1 log-odds or more below the untouched one for {valid}: "
            "elsewhere\n  insertion also rewards keeping what the model sees in a blank image. Read it apart from "
            "deletion."
        )


def _interval(mean: float, lower: float, upper: float) -> str:
    if pd.isna(mean):
        return "-"
    return f"{mean:.3f}" + ("" if pd.isna(lower) else f" [{lower:.3f}, {upper:.3f}]")

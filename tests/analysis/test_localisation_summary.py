"""Localisation by bucket, counted by hand, and tests over patients."""

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis.localisation_summary import localisation_rows
from cxr_ray.schemas import LOCALISATION_SUMMARY


def table(values, gaps, metric="rank", control="other_image", outcome="TP") -> pd.DataFrame:
    """Rows of the map and of one control."""
    ids = [f"i{k:02d}" for k in range(len(values))]
    same = {"explainer": "gradcam", "image_id": ids, "target": 1, "outcome": outcome, "metric": metric, "area": 0.1}
    own = {**same, "control": "none", "value": values, "control_mean": np.nan, "gap": np.nan, "win_rate": np.nan}
    gaps = np.asarray(gaps, float)
    against = {**same, "control": control, "value": values, "control_mean": np.asarray(values, float) - gaps}
    against |= {"gap": gaps, "win_rate": np.where(np.isnan(gaps), np.nan, (np.sign(gaps) + 1) / 2)}
    return pd.concat([pd.DataFrame({**own, "n_draws": 0}), pd.DataFrame({**against, "n_draws": 2})])


def rows_of(frame: pd.DataFrame, patients=None) -> dict:
    ids = frame["image_id"].unique()
    whose = pd.Series(ids if patients is None else patients, index=ids)
    found = localisation_rows(frame, whose, "m, pneumonia", seed=0, n_boot=200)
    LOCALISATION_SUMMARY.from_rows([{"trial_id": "m", "target_rule": "pneumonia", **row} for row in found])
    rows = {(r["bucket"], r["metric"], r["control"]): r for r in found}
    assert len(rows) == len(found)
    return rows


def test_means_and_counts_are_those_of_the_images_with_a_value():
    frame = table([0.25, 0.75, np.nan, 0.5], [0.125, -0.25, np.nan, 0.5], outcome=["TP", "TP", "FN", "FN"])
    rows = rows_of(frame, ["p", "p", "q", "r"])
    own, against = rows["all", "rank", "none"], rows["all", "rank", "other_image"]
    assert (own["mean"], own["n"], own["n_patients"], own["area"]) == (0.5, 3, 2, pytest.approx(0.1))
    assert against["mean"] == pytest.approx(0.125)
    assert against["control_mean"] == pytest.approx((0.125 + 1.0 + 0.0) / 3)
    assert against["win_rate"] == pytest.approx(2 / 3)
    assert (against["draws"], own["draws"]) == (2, 0)
    assert (own["win_rate"], own["p_holm"], own["family"], own["control_mean"]) == (None, None, None, None)
    assert against["family"] == "explainer x control | m, pneumonia, all, rank"
    assert rows["FN", "rank", "other_image"]["n"] == 1
    assert ("FP", "rank", "none") not in rows


def test_a_control_is_beaten_where_the_map_is_always_better_localised():
    rng = np.random.default_rng(0)
    better = rows_of(table(rng.uniform(0.5, 0.9, 40), rng.uniform(0.1, 0.3, 40)))["all", "rank", "other_image"]
    alike = rows_of(table(rng.uniform(0.5, 0.9, 40), rng.normal(0, 0.2, 40)))["all", "rank", "other_image"]
    assert (better["beaten"], alike["beaten"]) == ("yes", "no")
    assert better["p_holm"] < 0.001 < alike["p_holm"]
    assert better["hardest"]
    assert better["lower"] > 0 > alike["lower"]


def test_holm_is_over_explainers_and_controls_of_a_metric():
    rng = np.random.default_rng(1)
    parts = [
        table(rng.uniform(size=30), rng.normal(0.1, 0.2, 30), metric, control).assign(explainer=explainer)
        for metric in ("rank", "mass")
        for control in ("other_image", "shifted")
        for explainer in ("gradcam", "saliency")
    ]
    frame = pd.concat(parts).drop_duplicates(["image_id", "explainer", "metric", "control"])
    found = localisation_rows(frame, pd.Series({i: i for i in frame["image_id"]}), "m, pneumonia", seed=0, n_boot=100)
    tested = [r for r in found if r["bucket"] == "all" and r["control"] != "none"]
    assert {r["family_size"] for r in tested} == {4}
    assert {r["family"] for r in tested} == {f"explainer x control | m, pneumonia, all, {m}" for m in ("rank", "mass")}
    for metric in ("rank", "mass"):
        p = sorted((r["p"], r["p_holm"]) for r in tested if r["metric"] == metric)
        assert p[0][1] == pytest.approx(min(1, 4 * p[0][0]))


def test_a_pointing_game_that_is_never_won_has_an_interval():
    own = rows_of(table(np.zeros(25), np.zeros(25), metric="pointing"))["all", "pointing", "none"]
    assert (own["mean"], own["lower"]) == (0, 0)
    assert own["upper"] == pytest.approx(1 - 0.025 ** (1 / 25), abs=1e-6)  # Clopper and Pearson's

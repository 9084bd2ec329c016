"""Known answers of the numbers behind a report, and tables without a row."""

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis import findings
from cxr_ray.analysis import resampling as stats
from cxr_ray.schemas import TABLES


def empty(name):
    table = TABLES[name]
    frame = table.schema.empty_table().to_pandas()
    return frame.assign(**{p: pd.Series(dtype=str) for p in table.partitions})


def test_the_rule_chooses_the_target():
    frame = pd.DataFrame({"image_id": ["a", "a", "b"], "target": [0, 1, 1], "outcome": "old"})
    test = pd.DataFrame({"image_id": ["a", "b"], "outcome": ["TN", "TP"], "predicted": [0, 1]})
    chosen = findings.of_rule(frame, test, "predicted")
    assert list(zip(chosen["image_id"], chosen["target"], chosen["outcome"], strict=True)) == [
        ("a", 0, "TN"), ("b", 1, "TP")
    ]  # fmt: skip
    assert list(findings.of_rule(frame, test, "pneumonia")["target"]) == [1, 1]


def test_the_level_nearest_to_the_study():
    assert findings.nearest_level([0.1, 0.3, 0.5]) == 0.3


def cells(values):
    """Cells of one rule, fill and contrast; values: (level, scale) to (mean, half width)."""
    return pd.DataFrame([
        {"target_rule": "pneumonia", "fill": "mean", "level": level, "scale": scale, "bucket": "TP-FP",
        "matched": False,
         "contrast": True, "metric": "drop", "control": "none", "mean": mean, "lower": mean - half,
         "upper": mean + half,
         "n": 9, "n_patients": 9}
        for (level, scale), (mean, half) in values.items()
    ])  # fmt: skip


def test_which_choice_turns_the_sign():
    made = cells(
        {(0.25, "prob"): (-1, 0.5), (0.5, "prob"): (1, 2), (0.25, "logodds"): (1, 0.5), (0.5, "logodds"): (1, 0.5)}
    )
    found = findings.sign_cells(made)
    assert list(found["sign"]) == [-1, 0, 1, 1]
    turns = findings.sign_turns(found).set_index("axis")[["pairs", "turned", "clearly"]]
    assert list(turns.loc["level"]) == [2, 1, 0]  # in probability, but one interval holds 0
    assert list(turns.loc["scale"]) == [2, 1, 1]  # at 0.25
    unknown = findings.sign_cells(made.assign(lower=np.nan, upper=np.nan))
    assert unknown["sign"].isna().all()
    assert findings.sign_turns(unknown)["clearly"].sum() == 0
    assert findings.sign_cells(empty("summary")).empty
    assert findings.sign_turns(findings.sign_cells(empty("summary"))).empty


def region_rows(n=30):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        for control, draw in (("none", 0), ("matched", 0), ("matched", 1)):
            rows.append({"image_id": f"i{i}", "target": 1, "region": "marker", "fill": "mean", "control": control,
            "draw":
                         draw, "share_of_area": 0.1, "prob_target": 0.5, "logit_target": rng.normal(),
                         "prob_full_image":
                         0.75, "logit_full_image": rng.normal()})  # fmt: skip
    return pd.DataFrame(rows)


def test_region_effects_are_differences_with_intervals_over_patients():
    rows = region_rows()
    effects = findings.region_effects(rows)
    first = rows[rows["image_id"] == "i0"]
    drops = (first["logit_full_image"] - first["logit_target"]).to_numpy()
    got = effects[effects["image_id"] == "i0"].iloc[0]
    assert got["gap_logodds"] == pytest.approx(drops[0] - drops[1:].mean())
    assert got["effect_prob"] == 0.25
    assert got["draws"] == 2
    patients = {f"i{i}": f"p{i // 2 if i < 10 else i}" for i in range(30)}
    (mean,) = (
        findings.region_means(effects.assign(outcome="TN"), patients, 3).query("bucket == 'TN'").to_dict("records")
    )
    whose = effects["image_id"].map(patients)
    lower, upper = stats.patient_bootstrap(effects[["gap_logodds"]], whose, seed=3)
    assert (mean["gap_logodds_lower"], mean["gap_logodds_upper"]) == pytest.approx((lower[0], upper[0]))
    assert (mean["n"], mean["n_patients"]) == (30, 25)


def test_agreement_with_the_truth():
    base = region_rows(5).query("control == 'none'").assign(logit_full_image=2.0)
    drawn = base.assign(fill="counterfactual", logit_target=[3.0, 1.5, 1.0, 0.0, -1.0])
    filled = base.assign(logit_target=[1.0, 1.9, 1.8, 1.7, 1.6])  # the first has the wrong sign and the highest rank
    points = findings.truth(findings.region_effects(pd.concat([filled, drawn])).assign(outcome="TP"))
    (row,) = findings.truth_agreement(points).to_dict("records")
    assert (row["n"], row["same_sign"]) == (5, 0.8)
    assert row["rho"] == pytest.approx(0.0)  # ranks 5 1 2 3 4 against 1 2 3 4 5


def test_tables_without_rows():
    test = pd.DataFrame({"image_id": ["a"], "outcome": ["TN"], "predicted": [0]})
    effects = findings.of_rule(findings.region_effects(empty("regions")), test, "pneumonia")
    assert findings.region_means(effects, {}, 0).empty
    assert findings.truth_agreement(findings.truth(effects)).empty
    assert findings.observations(findings.of_rule(empty("saliency"), test, "predicted")).empty


def test_the_third_hypothesis_is_supported_from_below():
    judged = pd.DataFrame({"hypothesis": ["H1", "H3"], "margin": [0.5, 0.1]})
    assert findings.lines(judged)[["line", "side"]].to_numpy().tolist() == [[0.5, 1], [pytest.approx(0.15), -1]]

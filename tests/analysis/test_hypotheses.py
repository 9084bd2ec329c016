"""Made-up tables whose answer is known: each verdict, each reason to be undecided, exact intervals, coverage."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from cxr_ray.analysis import classification, hypotheses
from cxr_ray.analysis.hypotheses import Inputs, verdict
from cxr_ray.config import resolve
from cxr_ray.schemas import HYPOTHESES

OUTCOMES = np.array([["TN", "FP"], ["FN", "TP"]])


def sweep(**changes):
    base = {
        "data": {"source": "phantom", "size": 64},
        "explain": {"explainers": ["saliency", "gradcam"]},
        "perturb": {"grids": ["pixel"], "fills": ["mean", "blur"], "levels": [0.5]},
        "controls": {"shifted": 39},
        "regions": {"names": ["border", "corners"], "draws": 2},
        "search": {"scheduler": "none", "num_samples": 1},
    }
    return resolve({**base, **changes})


def names(n, split="test"):
    return pd.Series([f"{split}{i}" for i in range(n)], dtype=object)


def predictions(trial, logit_N, label_N, split="test"):
    prob = 1 / (1 + np.exp(-np.asarray(logit_N, float)))
    predicted = (prob >= 0.5).astype(int)
    return pd.DataFrame({
        "trial_id": trial, "image_id": names(len(prob), split), "split": split, "label": label_N,
        "prob_pneumonia": prob.astype(np.float32), "logit_pneumonia": logit_N, "predicted": predicted,
        "outcome": OUTCOMES[np.asarray(label_N), predicted],
    })  # fmt: skip


def trials(*ids, lr=1e-4):
    """Names such as plain-3: the variant and the seed; a name without a number is a given checkpoint."""
    parts = [n.partition("-") for n in ids]
    return pd.DataFrame({
        "trial_id": ids, "variant": [p[0] for p in parts], "seed": [float(p[2]) if p[2] else np.nan for p in parts],
        "status": "completed", "config": [json.dumps({"train": {"lr": lr}}) for _ in ids],
    })  # fmt: skip


def region_rows(trial, image_ids, effects, fill="patch_swap", target=1):
    """effects: (region, control, draw) to the fall of the log-odds of PNEUMONIA, one or one for each image."""
    sign = 1 if target == 1 else -1
    return pd.concat([
        pd.DataFrame({"trial_id": trial, "image_id": pd.Series(image_ids, dtype=object), "target": target,
                      "region": region, "fill": fill, "control": control, "draw": draw,
                      "logit_full_image": sign * 5.0,
                      "logit_target": sign * (5.0 - np.broadcast_to(effect, len(image_ids)))})
        for (region, control, draw), effect in effects.items()
    ])  # fmt: skip


def map_rows(trial, image_ids, p_value, lung_share=0.8, half_mass_area=0.1, gap=0.1):
    """(saliency, faithfulness)."""
    same = {"trial_id": trial, "image_id": pd.Series(image_ids, dtype=object), "target": 1}
    maps = pd.DataFrame(
        {**same, "half_mass_area": half_mass_area, "concentration": "compact", "lung_share": lung_share}
    )
    return maps, pd.DataFrame({**same, "control": "shifted", "gap": gap, "p_value": p_value})


def inputs(config=None, trial_rows=None, predicted=(), regions=(), maps=(), patients=None):
    predicted = pd.concat(predicted, ignore_index=True) if len(predicted) else predictions("m", [], np.array([], int))
    ids = predicted["image_id"].unique()
    saliency, faith = map_rows("m", [], [])
    return Inputs(
        config or sweep(), trials("m") if trial_rows is None else trial_rows, predicted,
        pd.Series(ids, index=ids) if patients is None else patients,
        pd.concat(regions) if len(regions) else region_rows("m", [], {("border", "none", 0): 0.0}),
        pd.concat([saliency, *(m for m, _ in maps)]), pd.concat([faith, *(f for _, f in maps)]),
    )  # fmt: skip


def judged(given):
    """Verdict rows by hypothesis, after a check that all rows make a table with unique keys."""
    rows = hypotheses.hypotheses(given, n_boot=200)
    HYPOTHESES.from_rows(rows)
    keys = [tuple(row[k] for k in HYPOTHESES.key) for row in rows]
    assert len(set(keys)) == len(keys)
    assert all(row["reason"] for row in rows if row["lower"] is None)
    return {row["hypothesis"]: row for row in rows if row["role"] == "verdict"}, [
        row for row in rows if row["role"] == "secondary"
    ]


@pytest.mark.parametrize(
    ("lower", "upper", "p_holm", "expected"),
    [
        (0.6, 0.9, 0.01, "supported"),
        (0.6, 0.9, 0.06, "undecided"),
        (0.6, 0.9, np.nan, "undecided"),
        (0.5, 0.9, 0.01, "undecided"),  # on the margin is not beyond it
        (0.2, 0.9, 0.01, "undecided"),
        (-0.7, 0.9, 0.01, "undecided"),
        (0.1, 0.4, 0.01, "not supported"),  # an effect, but one that does not count
        (-0.3, 0.3, 0.9, "not supported"),
        (-0.9, 0.3, 0.9, "not supported"),
        (-0.9, -0.6, 1.0, "not supported"),  # beyond the other end
        (-0.9, 0.5, 0.9, "undecided"),
        (np.nan, np.nan, 0.01, "undecided"),
    ],
)
def test_the_rule(lower, upper, p_holm, expected):
    assert verdict(lower, upper, p_holm, 0.5) == expected


def test_nothing_at_all_gives_three_undecided_rows():
    rows, beside = judged(inputs())
    assert {h: row["verdict"] for h, row in rows.items()} == dict.fromkeys(("H1", "H2", "H3"), "undecided")
    assert not beside


def false_positives(n, **more):
    """Model m takes n NORMAL images and n of PNEUMONIA for PNEUMONIA."""
    label = np.repeat([0, 1], n)
    return {"predicted": [predictions("m", np.full(2 * n, 2.0), label)], **more}


def edges(border, corners, elsewhere=0.25):
    return {("border", "none", 0): border, ("corners", "none", 0): corners} | {
        (region, "matched", d): elsewhere + 0.5 * d for region in ("border", "corners") for d in (0, 1)
    }


def test_h1_supported_and_its_effect_is_the_mean_of_both_regions():
    ids = names(40)  # the last ten are true positives, and do not count
    noise = np.random.default_rng(0).normal(0, 0.2, 40)
    rows, beside = judged(
        inputs(**false_positives(30), regions=[region_rows("m", ids, edges(2 + noise, 1 - noise / 2))])
    )
    h1 = rows["H1"]
    assert h1["verdict"] == "supported"
    assert h1["effect"] == pytest.approx(np.mean(1.5 + noise[:30] / 4) - 0.5)
    assert h1["lower"] < h1["effect"] < h1["upper"]
    assert (h1["n"], h1["n_patients"], h1["n_trials"]) == (30, 30, 1)
    alone = {row["quantity"].split(":")[0]: row for row in beside if row["hypothesis"] == "H1"}
    assert alone["exchanging border"]["effect"] == pytest.approx(np.mean(2 + noise[:30]) - 0.5)


@pytest.mark.parametrize("target", [0, 1])
def test_h1_not_supported_whichever_target_was_scored(target):
    ids = names(30)
    noise = np.random.default_rng(0).normal(0, 0.2, 30)
    regions = region_rows("m", ids, edges(0.5 + noise, 0.5), target=target)
    h1 = judged(inputs(**false_positives(30), regions=[regions]))[0]["H1"]
    assert h1["verdict"] == "not supported"
    assert h1["effect"] == pytest.approx(noise.mean() / 2)
    assert h1["p"] > 0.05


def test_h1_is_not_judged_by_fills():
    """A fill may draw an opacity where the control lies; its effects stand beside the verdict."""
    rows, beside = judged(
        inputs(**false_positives(30), regions=[region_rows("m", names(30), edges(3, 3), fill="mean")])
    )
    assert rows["H1"]["verdict"] == "undecided"
    assert "nothing was exchanged" in rows["H1"]["reason"]
    filled = {row["quantity"].split(":")[0]: row["effect"] for row in beside if row["hypothesis"] == "H1"}
    assert filled == {"filling border with mean": 2.5, "filling corners with mean": 2.5}


def test_h1_undecided_where_something_is_missing():
    few = judged(inputs(**false_positives(19), regions=[region_rows("m", names(19), edges(3, 3))]))
    assert few[0]["H1"]["verdict"] == "undecided"
    assert "19 patients" in few[0]["H1"]["reason"]
    without = judged(inputs(sweep(regions={"names": ["border"]}), **false_positives(30)))[0]["H1"]
    assert "add corners" in without["reason"]
    off = judged(inputs(sweep(regions=None), **false_positives(30)))[0]["H1"]
    assert "add border and corners" in off["reason"]
    none = judged(inputs(predicted=[predictions("m", np.full(40, -2.0), np.repeat([0, 1], 20))]))[0]["H1"]
    assert "no false positives" in none["reason"]


def test_edits_count_on_normal_images_and_rise():
    ids = names(60)
    rise = np.where(np.arange(60) < 30, 0.75, 9.0)  # the PNEUMONIA images do not count
    pasted = region_rows("m", ids, {("paste_marker", "none", 0): -rise}, fill="edit")
    _, beside = judged(inputs(**false_positives(30), regions=[pasted]))
    (row,) = (r for r in beside if r["quantity"].startswith("paste_marker"))
    assert row["effect"] == pytest.approx(0.75)
    assert row["n"] == 30


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, "supported"), (0.05, "supported"), (0.5, "not supported"), (0.17, "undecided")]
)
def test_h3_verdicts(share, expected):
    ids = names(200)
    p_value = np.where(np.arange(200) < 200 * share, 0.025, 0.5)
    h3 = judged(inputs(**false_positives(100), maps=[map_rows("m", ids, p_value)]))[0]["H3"]
    assert h3["effect"] == pytest.approx(share)
    assert h3["verdict"] == expected
    exact = scipy.stats.binomtest(round(200 * share), 200).proportion_ci(method="exact")
    assert h3["upper"] == pytest.approx(exact.high, abs=1e-3)
    assert h3["lower"] == pytest.approx(exact.low, abs=1e-3)
    assert h3["p"] == pytest.approx(scipy.stats.binomtest(round(200 * share), 200, 0.15, "less").pvalue, abs=1e-3)


def test_h3_counts_plausible_maps_alone():
    ids = names(200)
    plausible = np.arange(200) % 4 == 0
    lungs, area = np.where(np.arange(200) % 2, 0.4, 0.6), np.where(np.arange(200) % 4 == 2, 0.4, 0.1)
    rows, beside = judged(
        inputs(**false_positives(100), maps=[map_rows("m", ids, np.where(plausible, 0.5, 0.025), lungs, area)])
    )
    assert (rows["H3"]["n"], rows["H3"]["effect"]) == (50, 0.0)
    (others,) = (r for r in beside if "implausible" in r["quantity"])
    assert (others["n"], others["effect"]) == (150, 1.0)
    assert others["verdict"] is others["p"] is others["margin"] is None


def test_images_of_one_patient_count_as_one_where_they_agree():
    ids = names(200)
    patients = pd.Series([f"p{i // 4}" for i in range(200)], index=ids)
    p_value = np.where(np.arange(200) % 80 < 8, 0.025, 0.5)  # whole patients
    maps = [map_rows("m", ids, p_value)]
    h3 = judged(inputs(**false_positives(100), maps=maps, patients=patients))[0]["H3"]
    exact = scipy.stats.binomtest(6, 50).proportion_ci(method="exact")
    assert h3["n_patients"] == 50
    assert h3["upper"] == pytest.approx(exact.high, abs=0.02)


def test_h3_undecided_where_something_is_missing():
    ids = names(60)
    maps = [map_rows("m", ids, 0.5)]
    few_draws = judged(inputs(sweep(controls={"shifted": 38}), **false_positives(30), maps=maps))[0]["H3"]
    assert "38 draws; set 39" in few_draws["reason"]
    sequential = sweep(controls={"shifted": 5}, sequential={"max_draws": 99})
    assert judged(inputs(sequential, **false_positives(30), maps=maps))[0]["H3"]["effect"] == 0
    no_lungs = judged(inputs(**false_positives(30), maps=[map_rows("m", ids, 0.5, lung_share=np.nan)]))[0]["H3"]
    assert "lung masks" in no_lungs["reason"]
    assert no_lungs["verdict"] == "undecided"
    no_control = judged(inputs(sweep(controls={"pixel_random": 39}), **false_positives(30), maps=maps))[0]["H3"]
    assert "shifted" in no_control["reason"]


def test_confidence_correlates_as_scipy_says():
    rng = np.random.default_rng(0)
    logit, gap = rng.uniform(0.1, 5, 60), rng.normal(size=60)
    given = inputs(predicted=[predictions("m", logit, np.repeat([0, 1], 30))],
                   maps=[map_rows("m", names(60), 0.5, gap=gap)])  # fmt: skip
    (row,) = (r for r in judged(given)[1] if r["unit"] == "Spearman's rho")
    assert row["effect"] == pytest.approx(scipy.stats.spearmanr(logit, gap).statistic)
    assert row["lower"] < row["effect"] < row["upper"]


def pair_tables(n_seeds, shift, n=120, seed=0):
    """plain is balanced with its log-odds moved up by ``shift``: the same ranking, so only the threshold moves."""
    ids, tables = [], []
    for s in range(n_seeds):
        rng = np.random.default_rng((seed, s))
        for split in ("test", "val"):
            label = np.arange(n) % 2
            logit = rng.normal(np.where(label, 3.0, -2.5), 1.5)
            tables += [predictions(f"plain-{s}", logit + shift, label, split),
                       predictions(f"balanced-{s}", logit, label, split)]  # fmt: skip
        ids += [f"plain-{s}", f"balanced-{s}"]
    return {"trial_rows": trials(*ids), "predicted": tables}


def test_h2_supported_and_gone_where_only_the_threshold_moved():
    given = inputs(**pair_tables(5, 2.0))
    rows, beside = judged(given)
    h2 = rows["H2"]
    assert h2["verdict"] == "supported"
    test = given.test
    rate = (test[test["label"] == 0]["outcome"] == "FP").groupby(test["variant"]).mean()
    assert h2["effect"] == pytest.approx(rate["plain"] - rate["balanced"])
    assert (h2["n_trials"], h2["n"]) == (10, 60)
    by_name = {row["quantity"]: row for row in beside}
    for rule in ("sensitivity 0.95 (threshold from val)", "Youden's point (from val)"):
        assert by_name[f"false positive rate at {rule}, plain less balanced"]["effect"] == pytest.approx(0, abs=1e-6)


def test_h2_calibration_is_that_of_classification():
    given = inputs(**pair_tables(5, 2.0))
    by_name = {row["quantity"].split(",")[0]: row for row in judged(given)[1]}
    rows = {t: classification.classification_rows(given.predictions[given.predictions["trial_id"] == t].assign(
        patient_id=given.predictions["image_id"]), t, 0, 10) for t in given.trials["trial_id"]}  # fmt: skip
    for name, metric in (("expected calibration error", "ece"), ("Brier score", "brier")):
        mean = {v: np.mean([r[metric] for t, part in rows.items() if t.startswith(v) for r in part
                            if r["split"] == "test" and r["threshold_rule"] == "half"])
                for v in ("plain", "balanced")}  # fmt: skip
        assert by_name[name]["effect"] == pytest.approx(mean["plain"] - mean["balanced"])


def test_h2_compares_faithfulness_to_the_strongest_control():
    given = pair_tables(5, 2.0)
    ids = names(120)
    maps = [map_rows(t, ids, 0.5, gap=0.75 if t.startswith("plain") else 0.5) for t in given["trial_rows"]["trial_id"]]
    maps += [(m, f.assign(control="cell_random", gap=9.0)) for m, f in maps]
    (row,) = (r for r in judged(inputs(**given, maps=maps))[1] if r["quantity"].startswith("mean gap"))
    assert "shifted" in row["quantity"]
    assert row["effect"] == pytest.approx(0.25)


def test_h2_undecided_where_trials_cannot_settle_it():
    four = judged(inputs(**pair_tables(4, 2.0)))[0]["H2"]
    assert "4 seeds" in four["reason"]
    assert four["verdict"] == "undecided"
    assert four["effect"] > 0.1  # it is told nonetheless
    stopped = judged(inputs(sweep(search={"scheduler": "asha", "num_samples": 1}), **pair_tables(5, 2.0)))[0]["H2"]
    assert "search.scheduler" in stopped["reason"]
    other = pair_tables(5, 2.0)
    other["trial_rows"].loc[0, "config"] = json.dumps({"train": {"lr": 1e-3}})
    assert "learning rate" in judged(inputs(**other))[0]["H2"]["reason"]
    assert "plain and balanced" in judged(inputs(**false_positives(30)))[0]["H2"]["reason"]


def test_h2_interval_covers_over_seeds_and_patients():
    """Seeds and patients both vary, and so do their combinations; the true difference is 0."""
    rng, covered, rejected = np.random.default_rng(0), [], []
    for _ in range(200):
        values = rng.normal(size=(60, 1)) + rng.normal(size=(1, 5)) * 0.2 + rng.normal(size=(60, 5))
        part = pd.DataFrame({"patient_id": np.arange(60)})
        found = hypotheses._paired(part, hypotheses._mean_of(values, part), 5, 0, 200)
        covered.append(found["lower"] <= 0 <= found["upper"])
        rejected.append(found["p"] <= 0.05)
    assert np.mean(covered) > 0.92
    assert np.mean(rejected) < 0.08


def test_families_are_variants_and_h2_counts_once():
    given = pair_tables(5, 2.0)
    ids = names(120)
    maps = [map_rows(t, ids, 0.5) for t in given["trial_rows"]["trial_id"]]
    rows = [r for r in hypotheses.hypotheses(inputs(**given, maps=maps), 200) if r["role"] == "verdict"]
    assert [(r["hypothesis"], r["subject"]) for r in rows] == [
        ("H1", "plain"), ("H1", "balanced"), ("H2", "plain-balanced"), ("H3", "plain"), ("H3", "balanced")
    ]  # fmt: skip
    h2, h3 = rows[2], rows[3]
    assert {r["family"] for r in (h2, h3)} == {"H1, H2 and H3 | plain"}
    assert h3["family_size"] == 3  # H1 has no p, and counts as 1
    small, large = sorted([h2["p"], h3["p"]])
    assert sorted([h2["p_holm"], h3["p_holm"]]) == pytest.approx([3 * small, max(3 * small, 2 * large)])

"""Whom a verdict is about, Holm's families, and p against the margin."""

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis.hypotheses.margins import VERDICTS, Margin, verdict
from cxr_ray.analysis.hypotheses.rows import means
from cxr_ray.analysis.hypotheses.verdicts import hypothesis_rows
from cxr_ray.analysis.resampling import patient_bootstrap, sign_flip
from tests.builders.hypotheses import inputs, judged, map_rows, names, pair_tables

AROUND, LINE = Margin.around_zero(0.5), Margin.line(0.6)


@pytest.mark.parametrize(
    ("margin", "interval", "equivalence", "p_holm", "expected"),
    [
        (AROUND, (0.6, 0.9), (0.65, 0.85), np.nan, "inconclusive"),
        (AROUND, (0.5, 0.9), (0.55, 0.85), 0.01, "inconclusive"),  # on the margin is not beyond it
        (AROUND, (-0.7, 0.9), (-0.6, 0.8), 0.01, "inconclusive"),
        (AROUND, (0.1, 0.4), (0.15, 0.35), 0.01, "within margin"),  # an effect, but one that does not count
        (AROUND, (-0.4, 0.52), (-0.35, 0.48), 0.9, "within margin"),  # both tests at 0.05 reject
        (AROUND, (-0.4, 0.6), (-0.35, 0.5), 0.9, "inconclusive"),
        (AROUND, (-0.9, -0.2), (-0.8, -0.3), 0.9, "inconclusive"),  # not within, and not below
        (AROUND, (-0.9, -0.6), (-0.85, -0.65), 0.9, "inconclusive"),
        (AROUND, (np.nan, np.nan), (np.nan, np.nan), 0.01, "inconclusive"),
        (LINE, (0.4, 0.6), (0.45, 0.55), 0.01, "inconclusive"),
        (LINE, (0.4, 0.59), (0.45, 0.55), 0.06, "inconclusive"),
    ],
)
def test_a_verdict_needs_whole_intervals_and_a_small_p(margin, interval, equivalence, p_holm, expected):
    assert verdict(margin, interval, equivalence, p_holm) == expected


@pytest.mark.parametrize(
    ("effect", "expected"), [(1.5, "above margin"), (0.0, "within margin"), (-1.5, "below margin"), (0.5, None)]
)
def test_p_is_against_the_end_of_the_margin_on_the_side_of_the_effect(effect, expected):
    part = pd.DataFrame({"trial_id": "m", "image_id": names(60), "patient_id": names(60)})
    noise = np.random.default_rng(0).normal(0, 0.3, 60)
    part["gap"] = effect + noise - noise.mean()
    found = means(part, "gap", 0, 200, AROUND)
    got = verdict(AROUND, (found["lower"], found["upper"]), (found["lower_90"], found["upper_90"]), found["p"])
    assert got == (expected or "inconclusive")
    assert (found["p"] < 0.05) == (expected in ("above margin", "below margin"))
    assert found["lower"] < found["lower_90"] < found["effect"] < found["upper_90"] < found["upper"]


def test_an_effect_at_the_margin_is_called_beyond_it_once_in_forty_times_at_most():
    """The old rule's p was against 0, so that the interval alone decided here."""
    values_NK = np.random.default_rng(0).normal(0.5, 1.0, (40, 400))
    lower_K, upper_K = patient_bootstrap(values_NK, names(40), 200, seed=0)
    above_K, below_K = (sign_flip(v, names(40), 999, seed=0) for v in (values_NK - 0.5, -0.5 - values_NK))
    p_K = [AROUND.p(*case) for case in zip(values_NK.mean(0), above_K, below_K, strict=True)]
    cases = zip(lower_K, upper_K, p_K, strict=True)
    called = [verdict(AROUND, (lower, upper), (np.nan, np.nan), p) != "inconclusive" for lower, upper, p in cases]
    assert 0 < np.mean(called) < 0.05
    assert 0.02 < np.mean(np.array(p_K) < 0.05) < 0.09


def test_trained_models_are_resampled_and_given_ones_are_not():
    """Five models whose effects differ more than patients do: of the variant far less is known than of one model."""
    rng = np.random.default_rng(0)
    each = [rng.normal(1.0 + shift, 0.1, 60) for shift in (-0.8, -0.4, 0.0, 0.4, 0.8)]
    parts = [
        pd.DataFrame({"trial_id": f"plain-{s}", "image_id": names(60), "patient_id": names(60), "gap": values})
        for s, values in enumerate(each)
    ]
    alone = means(parts[2], "gap", 0, 400, AROUND)
    of_variant = means(pd.concat(parts), "gap", 0, 400, AROUND)
    assert (alone["n_trials"], of_variant["n_trials"], of_variant["n"]) == (1, 5, 60)
    assert of_variant["effect"] == pytest.approx(np.mean(each))
    spread = np.std([e.mean() for e in each], ddof=1) / np.sqrt(5)
    assert of_variant["upper"] - of_variant["effect"] == pytest.approx(2.776 * spread, rel=0.1)  # t of 4
    assert alone["upper"] - alone["lower"] < 0.2 * (of_variant["upper"] - of_variant["lower"])


def test_models_with_few_patients_have_no_interval():
    part = pd.DataFrame({"trial_id": ["a"] * 19 + ["b"] * 19, "image_id": [*names(19)] * 2, "gap": 1.0})
    found = means(part.assign(patient_id=part["image_id"]), "gap", 0, 100, AROUND)
    assert found["effect"] == 1.0
    assert "lower" not in found


def test_nothing_at_all_is_in_no_family():
    rows, secondary = judged(inputs())
    assert {h: row["verdict"] for h, row in rows.items()} == {
        "H1": "inconclusive",  # regions are measured, and there are no images
        "H2": "not applicable",
        "H3": "not applicable",
    }
    assert rows["H1"]["family"] == "H1 | none"
    assert rows["H2"]["family"] is rows["H2"]["p_holm"] is None
    assert set(VERDICTS) >= {row["verdict"] for row in rows.values()}
    assert not secondary


def test_families_are_variants_and_h2_counts_once():
    given = pair_tables(5, 2.0)
    ids = names(120)
    maps = [map_rows(t, ids) for t in given["trial_rows"]["trial_id"]]
    rows = [r for r in hypothesis_rows(inputs(**given, maps=maps), 200) if r["role"] == "verdict"]
    assert [(r["hypothesis"], r["subject"]) for r in rows] == [
        ("H1", "plain"),
        ("H1", "balanced"),
        ("H2", "plain-balanced"),
        ("H3", "plain"),
        ("H3", "balanced"),
    ]
    h2, h3 = rows[2], rows[3]
    assert {r["family"] for r in (h2, h3)} == {"H1, H2 and H3 | plain"}
    assert h3["family_size"] == 3  # H1 has no p, and counts as 1
    small, large = sorted([h2["p"], h3["p"]])
    assert sorted([h2["p_holm"], h3["p_holm"]]) == pytest.approx([3 * small, max(3 * small, 2 * large)])
    assert h2["about"] == "the variants plain and balanced: 5 trained pairs, resampled with the patients"
    assert h3["about"] == "the variant plain: 5 trained models, resampled with the patients"

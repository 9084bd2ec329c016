"""H3: known win rates, the harder control, type I with clusters, what is plausible, and reasons to be inconclusive."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from cxr_ray.analysis.hypotheses import h3_plausibility
from cxr_ray.analysis.hypotheses.h3_plausibility import MARGIN
from cxr_ray.analysis.hypotheses.margins import verdict
from cxr_ray.analysis.hypotheses.rows import means
from cxr_ray.analysis.resampling import patient_bootstrap, sign_flip
from tests.builders.hypotheses import false_positives, inputs, judged, map_rows, names, predictions, sweep, trials

IDS = names(200)


def wins(rate, n=200, draws=5, seed=0):
    """Win rates of n maps that beat each draw with this probability."""
    return np.random.default_rng(seed).binomial(draws, rate, n) / draws


def h3_of(maps, n=100, config=None, **more):
    rows, secondary = judged(inputs(config, **false_positives(n), maps=[maps], **more))
    return rows["H3"], [r for r in secondary if r["hypothesis"] == "H3"]


@pytest.mark.parametrize(("rate", "expected"), [(0.85, "above margin"), (0.5, "below margin"), (0.62, "inconclusive")])
def test_a_true_win_rate_decides_and_not_the_power_of_five_draws(rate, expected):
    """The old rule called a map that beats `shifted` 85 times in 100 unfaithful: under 39 draws p is never small."""
    h3, secondary = h3_of(map_rows("m", IDS, shifted=wins(rate), other_image=wins(0.95, seed=1), p_value=0.2))
    assert h3["verdict"] == expected, h3["reason"]
    assert h3["effect"] == pytest.approx(wins(rate)[::2].mean())  # every other map is plausible
    assert (h3["n"], h3["margin_low"], h3["margin_high"]) == (100, 0.6, 0.6)
    assert h3["about"] == "the given model m"
    (clear,) = (r for r in secondary if "own test is clear (p <= 0.05) over shifted" in r["quantity"])
    assert clear["effect"] == 0.0


def test_the_harder_control_is_judged_and_the_other_stands_beside():
    h3, secondary = h3_of(map_rows("m", IDS, shifted=wins(0.9), other_image=wins(0.5, seed=1)))
    assert "over other_image, the harder of other_image and shifted" in h3["quantity"]
    assert h3["verdict"] == "below margin"
    (beside,) = (r for r in secondary if r["quantity"].startswith("win rate over shifted, plausible maps (lung"))
    assert beside["effect"] == pytest.approx(wins(0.9)[::2].mean())
    alone = means(
        pd.DataFrame({"trial_id": "m", "image_id": IDS[::2], "patient_id": IDS[::2], "x": wins(0.5, seed=1)[::2]}),
        "x",
        0,
        200,
        MARGIN,
    )
    assert h3["p"] == pytest.approx(2 * alone["p"])  # either of two might have been the smaller


def test_above_the_line_needs_both_controls():
    """Intersection-union: the larger p of both counts."""
    few = np.full(200, np.nan)
    few[:44:2] = [0.0] * 3 + [1.0] * 19  # 22 plausible maps have a donor: 0.86 on average, far less sure than the other
    h3, _ = h3_of(map_rows("m", IDS, shifted=wins(0.8), other_image=few))
    assert "over shifted, the harder" in h3["quantity"]
    assert h3["lower"] > 0.6
    part = pd.DataFrame({"trial_id": "m", "image_id": IDS, "patient_id": IDS, "x": few})
    assert h3["p"] == pytest.approx(means(part, "x", 0, 200, MARGIN)["p"])


def test_maps_that_always_win_are_faithful():
    """Not one map differs from another, so that a bootstrap has no interval."""
    h3, _ = h3_of(map_rows("m", IDS, shifted=1.0, other_image=1.0))
    assert h3["verdict"] == "above margin"
    assert (h3["effect"], h3["upper"]) == (1.0, 1.0)
    assert h3["lower"] == pytest.approx(scipy.stats.binomtest(100, 100).proportion_ci().low, abs=1e-3)
    assert "nan" not in h3["reason"]


def test_type_one_errors_at_the_line_with_clusters_of_images():
    """True win rate 0.6 over both controls, 60 patients of 1 to 6 images that win or lose together; 400 times."""
    rng, patients = np.random.default_rng(0), np.repeat(np.arange(60), 1 + np.arange(60) % 6)
    columns = {}
    for control in h3_plausibility.CONTROLS:
        values_NK = rng.binomial(5, rng.beta(3, 2, (60, 400))[patients]) / 5
        bounds = patient_bootstrap(values_NK, patients, 200, seed=0)
        sides = [sign_flip(beyond_NK, patients, 999, seed=0) for beyond_NK in (values_NK - 0.6, 0.6 - values_NK)]
        columns[control] = np.stack([values_NK.mean(0), *bounds, *sides], 1)
    p_values, called = [], []
    for k in range(400):
        effects = {
            c: dict(zip(("effect", "lower", "upper", "above", "below"), v[k], strict=True)) for c, v in columns.items()
        }
        _, found = h3_plausibility._chosen(
            {c: {**e, "p": MARGIN.p(e["effect"], e["above"], e["below"])} for c, e in effects.items()}
        )
        said = verdict(MARGIN, (found["lower"], found["upper"]), (np.nan, np.nan), found["p"])
        p_values.append(found["p"])
        called.append(said)
    assert np.mean(np.array(p_values) < 0.05) < 0.07
    assert called.count("above margin") < 400 * 0.03
    assert 0 < called.count("below margin") < 400 * 0.06


def test_trained_models_of_a_variant_are_resampled():
    """Win rates of three models differ by far more than patients do: of one it is clear, of the variant not."""
    ids, tables = names(120), []
    for s, rate in enumerate((0.99, 0.7, 0.45)):
        tables.append(map_rows(f"plain-{s}", ids, shifted=wins(rate, 120, seed=s), other_image=1.0))
    label = np.repeat([0, 1], 60)
    predicted = [predictions(f"plain-{s}", np.full(120, 2.0), label) for s in range(3)]
    given = inputs(trial_rows=trials("plain-0", "plain-1", "plain-2"), predicted=predicted, maps=tables)
    h3 = judged(given)[0]["H3"]
    assert h3["about"] == "the variant plain: 3 trained models, resampled with the patients"
    assert h3["verdict"] == "inconclusive"
    one = judged(inputs(trial_rows=trials("plain-0"), predicted=predicted[:1], maps=tables[:1]))[0]["H3"]
    assert one["about"] == "one trained model of the variant plain: another seed may differ"
    assert one["verdict"] == "above margin"


def test_plausible_maps_are_those_with_more_mass_than_area_in_the_lungs():
    enrichment = np.where(np.arange(200) % 4 == 0, 1.01, 1.0)
    _, secondary = h3_of(map_rows("m", IDS, np.where(enrichment > 1, 0.9, 0.2), enrichment=enrichment))
    by_name = {r["quantity"].split(" of true")[0]: r for r in secondary}
    assert by_name["win rate over shifted, implausible maps"]["effect"] == pytest.approx(0.2)
    assert by_name["win rate over shifted, implausible maps"]["n"] == 150
    assert by_name["win rate over shifted, all maps"]["n"] == 200


def test_dilated_and_eroded_masks_stand_beside_with_what_the_rule_says_of_them():
    maps, faith, lungs = map_rows("m", IDS, shifted=wins(0.9), other_image=wins(0.95, seed=1))
    swapped = np.where(np.arange(200) % 2, 1.25, 0.5)
    lungs.loc[lungs["mask"] == "eroded", "enrichment"] = swapped
    faith.loc[faith["control"] == "shifted", "win_rate"] = np.where(np.arange(200) % 2, wins(0.5), wins(0.9))
    h3, secondary = h3_of((maps, faith, lungs))
    assert h3["verdict"] == "above margin"
    said = {r["quantity"].split(" by ")[1].split()[0]: r for r in secondary if "lung masks" in r["quantity"]}
    assert said["dilated"]["reason"].endswith("above margin")
    assert said["eroded"]["reason"].endswith("below margin")
    assert said["eroded"]["verdict"] is said["eroded"]["p"] is None


def test_correlations_are_those_of_scipy():
    rng = np.random.default_rng(0)
    logit, enrichment, rate = rng.uniform(0.1, 5, 60), rng.uniform(0.5, 1.5, 60), rng.random(60)
    given = inputs(
        predicted=[predictions("m", logit, np.repeat([0, 1], 30))],
        maps=[map_rows("m", names(60), shifted=rate, enrichment=enrichment)],
    )
    rho = {
        r["quantity"].split(":")[0]: r for r in judged(given)[1] if "shifted" in r["quantity"] and "rho" in r["unit"]
    }
    plausible, confident = rho["are plausible maps the faithful ones"], rho["faithfulness against confidence"]
    assert plausible["effect"] == pytest.approx(scipy.stats.spearmanr(enrichment, rate).statistic)
    assert confident["effect"] == pytest.approx(scipy.stats.spearmanr(logit, rate).statistic)
    assert plausible["lower"] < plausible["effect"] < plausible["upper"]


def test_h3_is_not_applicable_where_nothing_asks_it_and_inconclusive_where_maps_are_few():
    maps = map_rows("m", names(60))
    no_control = h3_of(maps, 30, sweep(controls={"shifted": 5}))[0]
    assert (no_control["verdict"], no_control["reason"]) == ("not applicable", "add other_image to controls")
    no_lungs = h3_of((*maps[:2], maps[2].iloc[:0]), 30)[0]
    assert no_lungs["verdict"] == "not applicable"
    assert "regions.lungs" in no_lungs["reason"]
    few = h3_of(map_rows("m", names(60), enrichment=np.where(np.arange(60) < 19, 1.5, 0.5)), 30)[0]
    assert few["verdict"] == "inconclusive"
    assert few["reason"] == "19 maps are plausible; it takes 20 or more of either kind"
    all_plausible = h3_of(map_rows("m", names(60), enrichment=1.5), 30)[0]
    assert all_plausible["reason"].startswith("0 maps are implausible")

"""Oracles: scipy's permutation_test and a bootstrap in a plain loop on the same patients, closed forms, coverage."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cxr_ray.analysis import resampling as stats


def clustered(n_patients, n_columns, seed=0, mean=0.0, patient_sd=1.0):
    """Images of patients with one to six images each, correlated within a patient, skewed: values_NK, patients_N."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(n_patients), rng.integers(1, 7, n_patients))
    effect = rng.exponential(patient_sd, (n_patients, n_columns)) - patient_sd
    return mean + effect[patients] + rng.normal(0, 0.5, (len(patients), n_columns)), patients


def studentised(draw, n_boot=4000):
    """The symmetric bootstrap-t, one sample at a time; draw(rng or None) gives estimate and standard error."""
    rng = np.random.default_rng(1)
    centre, error = draw(None)
    samples = [draw(rng) for _ in range(n_boot)]
    half = error * np.quantile([abs(estimate - centre) / e for estimate, e in samples], 0.95)
    return [centre - half, centre + half]


def test_bootstrap_agrees_with_one_sample_at_a_time():
    values, patients = clustered(40, 1, mean=1.0)
    sums, counts = (np.bincount(patients, w) for w in (values[:, 0], None))

    def draw(rng):
        at = np.arange(40) if rng is None else rng.integers(0, 40, 40)
        estimate = sums[at].sum() / counts[at].sum()
        return estimate, np.sqrt(((sums[at] - estimate * counts[at]) ** 2).sum()) / counts[at].sum()

    lower, upper = stats.patient_bootstrap(values, patients, 20_000, seed=2)
    oracle = studentised(draw)
    np.testing.assert_allclose([lower[0], upper[0]], oracle, atol=0.03 * (oracle[1] - oracle[0]))


def test_the_interval_of_many_patients_is_that_of_the_central_limit():
    values = np.random.default_rng(0).exponential(size=(1000, 1))
    error = values.std(ddof=1) / np.sqrt(len(values))
    lower, upper = stats.patient_bootstrap(values, np.arange(len(values)), 4000, seed=0)
    np.testing.assert_allclose([lower[0], upper[0]], values.mean() + np.array([-1, 1]) * 1.96 * error, atol=0.1 * error)


def test_no_interval_where_a_single_patient_differs():
    values = np.zeros((20, 1))
    values[7] = 1.0  # one sample in three lacks this patient, and with it any difference
    assert np.isnan(stats.patient_bootstrap(values, np.arange(20), seed=0)).all()


def test_a_column_of_one_value_has_an_interval_without_width():
    lower, upper = stats.patient_bootstrap(np.full((30, 1), 2.5), np.arange(30), seed=0)
    assert lower[0] == upper[0] == 2.5


def test_bootstrap_is_a_function_of_data_and_seed_and_columns_do_not_meet():
    values, patients = clustered(30, 3)
    both = stats.patient_bootstrap(values, patients, seed=5)
    for k in range(3):
        np.testing.assert_allclose(stats.patient_bootstrap(values[:, [k]], patients, seed=5), [b[[k]] for b in both])
    order = np.random.default_rng(0).permutation(len(patients))
    np.testing.assert_allclose(stats.patient_bootstrap(values[order], patients[order], seed=5), both)
    assert not np.allclose(stats.patient_bootstrap(values, patients, seed=6), both)


def test_blocks_do_not_change_the_interval(monkeypatch):
    values, patients = clustered(30, 7)
    whole = stats.patient_bootstrap(values, patients, seed=0), stats.sign_flip(values, patients, 500, seed=0)
    monkeypatch.setattr(stats, "_BLOCK", 2000)
    np.testing.assert_allclose(stats.patient_bootstrap(values, patients, seed=0), whole[0])
    np.testing.assert_array_equal(stats.sign_flip(values, patients, 500, seed=0), whole[1])


def test_no_interval_under_twenty_patients_counted_per_column():
    values, patients = clustered(20, 2)
    values[patients == 7, 1] = np.nan
    lower, upper = stats.patient_bootstrap(values, patients, seed=0)
    assert np.isfinite([lower[0], upper[0]]).all()
    assert np.isnan([lower[1], upper[1]]).all()


def test_nan_is_left_out_of_the_mean():
    values, patients = clustered(40, 1)
    holes = np.concatenate([values, values], axis=1)
    holes[::5, 1] = np.nan
    lower, upper = stats.patient_bootstrap(holes, patients, 4000, seed=0)
    kept = ~np.isnan(holes[:, 1])
    alone = stats.patient_bootstrap(values[kept], patients[kept], 4000, seed=0)
    np.testing.assert_allclose([lower[1], upper[1]], np.ravel(alone), atol=0.05 * (upper[1] - lower[1]))
    assert lower[1] < np.nanmean(holes[:, 1]) < upper[1]


def test_empty_input_gives_nan():
    assert np.isnan(stats.patient_bootstrap(np.empty((0, 2)), np.empty(0), seed=0)).all()
    assert np.isnan(stats.sign_flip(np.empty((0, 2)), np.empty(0), seed=0)).all()


@pytest.mark.parametrize("n_patients", [20, 60])
def test_coverage_over_many_data_sets(n_patients):
    """Skewed patients of very different scale, as drops of log-odds are."""
    values, patients = clustered(n_patients, 2000)
    values *= np.exp(0.7 * np.random.default_rng(9).normal(size=(n_patients, 2000)))[patients]
    lower, upper = stats.patient_bootstrap(values, patients, seed=3)
    assert 0.93 < np.mean((lower <= 0) & (upper >= 0)) < 0.97
    naive = stats.patient_bootstrap(values, np.arange(len(patients)), seed=3)  # each image a patient of its own
    assert np.mean((naive[0] <= 0) & (naive[1] >= 0)) < 0.85


@pytest.mark.parametrize("skew", [-1, 1])
@pytest.mark.parametrize("n_patients", [20, 60])
def test_mean_p_rejects_true_nulls_at_most_at_its_level_under_skew(n_patients, skew):
    """Means of 0, patients that differ in scale; half of the p-value would reject 8% where the left tail is long."""
    rng = np.random.default_rng(3)
    columns, patients = 3000, np.repeat(np.arange(n_patients), 1 + np.arange(n_patients) % 3)
    scale = np.exp(0.6 * rng.normal(size=(n_patients, columns)))[patients]
    values = skew * scale * (rng.exponential(size=(len(patients), columns)) - 1)
    lower, _ = stats.patient_bootstrap(values, patients, seed=0)
    p = stats.mean_p(values.mean(0), lower, np.full(columns, n_patients))
    assert np.array_equal(p <= 0.05, lower > 0)
    assert np.mean(p <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / columns)
    if skew < 0:
        assert np.mean(p <= 0.1) > 0.06


@pytest.mark.parametrize("mean", [0.15, 0.25, 0.4])
def test_mean_p_is_about_the_share_of_bootstrap_samples_beyond(mean):
    values = np.random.default_rng(0).exponential(size=60)
    values += mean - values.mean()
    samples = values[np.random.default_rng(1).integers(0, 60, (20_000, 60))]
    t = (samples.mean(1) - mean) / samples.std(1)
    lower, _ = stats.patient_bootstrap(values[:, None], np.arange(60), 4000, seed=0)
    p = stats.mean_p([mean], lower, [60])[0]
    assert p == pytest.approx(np.mean(np.abs(t) >= mean / values.std()), abs=0.02)


def test_mean_p_of_equal_values_and_without_an_interval():
    assert stats.mean_p([1.0, -1.0, 1.0], [1.0, -1.0, np.nan], [20, 20, 10]).tolist() == pytest.approx(
        [2**-20, 1, np.nan], nan_ok=True
    )


def test_difference_of_disjoint_groups_agrees_with_one_sample_at_a_time():
    (a, patients_a), (b, patients_b) = clustered(40, 1, seed=1, mean=1.0), clustered(50, 1, seed=2)
    lower, upper = stats.bootstrap_difference(a, patients_a, b, patients_b + 1000, 20_000, seed=0)
    groups = [(np.bincount(p, v[:, 0]), np.bincount(p)) for v, p in ((a, patients_a), (b, patients_b))]

    def draw(rng):  # both groups are drawn on their own here
        estimate, square = 0.0, 0.0
        for sign, (sums, counts) in zip((1, -1), groups, strict=True):
            at = np.arange(len(sums)) if rng is None else rng.integers(0, len(sums), len(sums))
            mean = sums[at].sum() / counts[at].sum()
            estimate += sign * mean
            square += ((sums[at] - mean * counts[at]) ** 2).sum() / counts[at].sum() ** 2
        return estimate, np.sqrt(square)

    oracle = studentised(draw)
    np.testing.assert_allclose([lower[0], upper[0]], oracle, atol=0.05 * (oracle[1] - oracle[0]))


def test_difference_draws_a_patient_of_both_groups_once():
    values, patients = clustered(40, 1)
    lower, upper = stats.bootstrap_difference(values + 0.25, patients, values, patients, seed=0)
    np.testing.assert_allclose([lower[0], upper[0]], 0.25)  # drawn twice, it would have a width


def test_difference_coverage():
    a, patients = clustered(80, 1000, seed=1)
    second = np.random.default_rng(0).random(len(patients)) < 0.4  # many patients have images in both groups
    lower, upper = stats.bootstrap_difference(a[~second] + 0.5, patients[~second], a[second], patients[second], seed=0)
    assert 0.91 < np.mean((lower <= 0.5) & (upper >= 0.5)) < 0.975


def test_difference_needs_twenty_patients_in_both_groups():
    (a, patients_a), (b, patients_b) = clustered(40, 1), clustered(19, 1)
    assert np.isnan(stats.bootstrap_difference(a, patients_a, b, patients_b, seed=0)).all()


def test_kept_random_numbers_are_those_drawn_anew():
    rng = np.random.default_rng(3)
    anew = rng.multinomial(25, np.full(25, 1 / 25), size=40)
    first = stats.bootstrap_weights(25, 40, 3)
    first[:] = -1  # the caller's own copy
    np.testing.assert_array_equal(stats.bootstrap_weights(25, 40, 3), anew)
    assert stats.bootstrap_weights(25, 40, 4).tolist() != anew.tolist()
    u, patients = np.linspace(-0.4, 0.5, 25)[:, None], np.arange(25)
    signs = 1 - 2 * np.random.default_rng(3).integers(0, 2, (99, 25), dtype=np.int8)
    expected = (1 + (signs @ u[:, 0] >= u.sum() - 1e-6).sum()) / 100
    assert [stats.sign_flip(u, patients, 99, seed=3)[0] for _ in range(2)] == [expected] * 2


def test_sign_flip_enumerates_few_patients():
    # Sums 1 to 5: only no flip at all reaches 15. Sums 1, 1, 1, 1, -1: 6 of 32 flips reach 3.
    u = np.array([[1, 1, -1], [2, 1, -2], [3, 1, -3], [4, 1, -4], [5, -1, -5]], float)
    p = stats.sign_flip(u, np.arange(5), seed=0)
    np.testing.assert_allclose(p, [1 / 32, 6 / 32, 1])


def test_sign_flip_flips_patients_not_images():
    u = np.array([[0.5], [0.25], [0.25], [0.5]])
    assert stats.sign_flip(u, ["a", "b", "b", "b"], seed=0)[0] == pytest.approx(1 / 4)


@pytest.mark.parametrize(("n_patients", "tolerance"), [(9, 1e-12), (25, 0.012)])
def test_sign_flip_agrees_with_scipy(n_patients, tolerance):
    u, patients = clustered(n_patients, 3, mean=0.3)
    p = stats.sign_flip(u, patients, seed=0)
    for k in range(3):
        oracle = scipy.stats.permutation_test(
            (np.bincount(patients, u[:, k]),),
            np.sum,
            permutation_type="samples",
            alternative="greater",
            n_resamples=9999,
            rng=np.random.default_rng(1),
        )
        assert p[k] == pytest.approx(oracle.pvalue, abs=tolerance)


def test_sign_flip_ties_survive_float32():
    # 0.1 + 0.2 against 0.3: equal in exact arithmetic, a little more or less in float32 and in float64.
    u = np.array([[0.1, -0.1], [0.2, -0.2], [-0.3, 0.3], [0.4, 0.4]])
    exact = stats.sign_flip(np.rint(u * 10), np.arange(4), seed=0)
    np.testing.assert_array_equal(stats.sign_flip(u.astype(np.float32), np.arange(4), seed=0), exact)
    np.testing.assert_array_equal(stats.sign_flip(u, np.arange(4), seed=0), exact)


@pytest.mark.parametrize(("n_patients", "draws"), [(10, 39), (12, 7), (40, 39), (40, 99)])
def test_ties_of_win_rates_are_ties_in_float32(n_patients, draws):
    """Win rates k / (2 draws) as tables hold them against the same in whole numbers, which are exact."""
    rng = np.random.default_rng([n_patients, draws])
    halves = rng.integers(0, 2 * draws + 1, (3 * n_patients, 200))  # draws beaten, twice; ties count 1
    halves[::2] = 2 * draws - halves[1::2][: len(halves[::2])]  # many sums of patients are 0, or equal
    patients = np.arange(3 * n_patients) // 3
    win_rates = (halves / (2 * draws)).astype(np.float32)
    exact = stats.sign_flip((halves - draws).astype(float), patients, 999, seed=0)
    np.testing.assert_array_equal(stats.sign_flip(win_rates.astype(float) - 0.5, patients, 999, seed=0), exact)


def test_a_patient_whose_win_rates_cancel_does_not_count():
    """0.6 and 0.4 in float32 do not add up to 1."""
    win_rates = np.array([0.6, 0.4, 0.6, 0.4, 1.0], dtype=np.float32)[:, None]
    p = stats.sign_flip(win_rates.astype(float) - 0.5, np.array([0, 0, 1, 1, 2]), n_perm=1, seed=0)
    assert p[0] == 0.5  # enumerated: one patient, two flips


def test_sign_flip_without_values_or_without_any_difference():
    u = np.array([[np.nan, 0.0, np.nan], [np.nan, 0.0, 0.5]])
    p = stats.sign_flip(u, np.arange(2), seed=0)
    assert np.isnan(p[0])
    np.testing.assert_allclose(p[1:], [1, 1 / 2])


def test_sign_flip_is_never_below_its_resolution():
    u = np.full((100, 1), 0.5)
    assert stats.sign_flip(u, np.arange(100), 999, seed=0)[0] == pytest.approx(1 / 1000)


def test_sign_flip_rejects_a_true_null_at_its_level():
    rng = np.random.default_rng(4)
    patients = np.repeat(np.arange(50), rng.integers(1, 7, 50))
    # One sign and size a patient: images of a patient agree, as they do in the data.
    u = (rng.choice([-1, 1], (50, 3000)) * rng.choice([0.1, 0.3, 0.5], (50, 3000)))[patients]
    assert 0.035 < np.mean(stats.sign_flip(u, patients, 999, seed=0) <= 0.05) < 0.065
    assert np.mean(stats.sign_flip(u, np.arange(len(patients)), 999, seed=0) <= 0.05) > 0.1


def test_holm_by_hand():
    # Sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, and never below the one before.
    np.testing.assert_allclose(stats.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(stats.holm([0.01, np.nan, 0.9, 0.8]), [0.03, np.nan, 1, 1])
    assert np.isnan(stats.holm([np.nan])).all()
    assert len(stats.holm([])) == 0


@given(arrays(float, st.integers(1, 12), elements=st.floats(0, 1) | st.just(np.nan)))
def test_holm_properties(p):
    adjusted = stats.holm(p)
    np.testing.assert_array_equal(np.isnan(adjusted), np.isnan(p))
    known, p_known = adjusted[~np.isnan(p)], p[~np.isnan(p)]
    assert (known >= p_known).all()
    assert (known <= 1).all()
    assert (known <= np.minimum(1, p_known * len(p_known))).all()  # never worse than Bonferroni
    assert (np.diff(known[np.argsort(p_known)]) >= 0).all()


def test_pairs_are_nearest_and_within_the_caliper():
    pairs = stats.matched_pairs([0.0, 1.0, 5.0, np.nan], [1.1, 0.2, 9.0])
    assert pairs.tolist() == [[0, 1], [1, 0]]
    assert stats.matched_pairs([0.0], [0.25]).tolist() == [[0, 0]]
    assert stats.matched_pairs([0.0], [0.26]).shape == (0, 2)
    assert stats.matched_pairs([], [1.0]).shape == (0, 2)


def test_as_many_pairs_as_can_be():
    # Greedily, 0.2 takes 0.25 and leaves 0.0 and 0.45 alone.
    assert stats.matched_pairs([0.0, 0.25], [0.2, 0.45]).tolist() == [[0, 0], [1, 1]]


@given(*[arrays(float, st.integers(0, 8), elements=st.floats(-2, 2)) for _ in range(2)])
def test_pairs_are_one_to_one(a, b):
    pairs = stats.matched_pairs(a, b)
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
    assert (np.abs(a[pairs[:, 0]] - b[pairs[:, 1]]) <= 0.25).all()
    left_a, left_b = (np.setdiff1d(np.arange(len(x)), pairs[:, i]) for i, x in enumerate((a, b)))
    assert (np.abs(a[left_a][:, None] - b[left_b][None]) > 0.25).all()  # nobody left over could still be paired


def test_samples_drawn_in_pieces_are_those_drawn_at_once(monkeypatch):
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(90, 3)), rng.normal(size=(70, 3))
    of_a, of_b = rng.integers(0, 40, 90), rng.integers(20, 60, 70)

    def bounds():
        return [
            *stats.patient_bootstrap(a, of_a, 100, seed=3),
            *stats.bootstrap_difference(a, of_a, b, of_b, 100, seed=3),
            *stats.simultaneous_bootstrap(a, of_a, 100, seed=3),
        ]

    weights, whole = stats.bootstrap_weights(40, 100, 3), bounds()
    assert np.isfinite(whole).all()
    monkeypatch.setattr(stats, "_BLOCK", 7 * 60)  # seven samples, one column
    assert len(list(stats.weight_blocks(60, 100, 3))) == 15
    np.testing.assert_array_equal(stats.bootstrap_weights(40, 100, 3), weights)
    np.testing.assert_allclose(bounds(), whole, rtol=1e-12)


def test_matching_within_strata_loses_at_most_the_pairs_that_a_cut_parts(monkeypatch):
    a = np.random.default_rng(0).permutation([*range(30), np.nan]).astype(float)
    b = np.random.default_rng(1).permutation(30) + 0.125
    whole = stats.matched_pairs(a, b)
    monkeypatch.setattr(stats, "_PAIRS", 20)  # 9 strata of 6 and 7 images
    pairs = stats.matched_pairs(a, b)
    np.testing.assert_array_equal(b[pairs[:, 1]], a[pairs[:, 0]] + 0.125)
    assert (np.diff(pairs[:, 0]) > 0).all()
    assert len(whole) == 30
    assert 30 - 8 <= len(pairs) <= 30

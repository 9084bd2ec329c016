"""The null benchmark, small: skewed draws of images that differ in scale, several images a patient."""

import itertools

import numpy as np
import pandas as pd
import pytest

from benchmarks import common, null
from cxr_ray.measure import faithfulness

RELABELLINGS = 1000
ERROR = np.sqrt(0.05 * 0.95 / RELABELLINGS)


def draws(images=140, draws=10, seed=0):
    """Draws [N, D, M] of exponential noise whose scale is the image's own, and the images' patients."""
    rng = np.random.default_rng(seed)
    scale = np.exp(0.6 * rng.normal(size=(images, 1, 1)))
    return scale * rng.exponential(size=(images, draws, 2)), rng.integers(0, 70, images)


def test_tests_and_intervals_hold_under_the_null():
    values, patients = draws()
    controls = {"shifted": null.relabelled(values, ["abpc", "drop at 0.1"])}
    for held in null.null(controls, patients, 20, RELABELLINGS, seed=0).values():
        assert abs(held.rejects - 0.05) < 3 * ERROR
        assert abs(held.covers - 0.95) < 3 * ERROR
        assert held.mean_rejects < 0.05 + 3 * ERROR
        assert held.win_covers > 0.95 - 3 * ERROR


def clustered_draws(patients=70, draws=10, seed=0):
    """Draws that all images of a patient share but for a little noise, and patients of one to nine images."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(patients), common.patient_sizes(patients))
    scale = np.exp(0.6 * rng.normal(size=(patients, 1, 1)))
    shared = scale * rng.exponential(size=(patients, draws, 2))
    return shared[codes] + 0.1 * rng.normal(size=(len(codes), draws, 2)), codes


@pytest.mark.slow
def test_clusters_do_not_break_tests_and_intervals_but_images_as_patients_do():
    values, patients = clustered_draws()
    controls = {"shifted": null.relabelled(values, ["abpc", "drop at 0.1"])}
    assert null.within_patients(controls, patients)["shifted"] > 0.7
    for held in null.null(controls, patients, 50, RELABELLINGS, seed=0).values():
        assert abs(held.rejects - 0.05) < 3 * ERROR
        assert held.covers > 0.95 - 3 * ERROR
        assert held.mean_rejects < 0.05 + 3 * ERROR
        assert held.win_covers > 0.95 - 3 * ERROR
    naive = null.null(controls, patients, 50, 100, seed=0, images_alone=True)
    assert max(held.rejects for held in naive.values()) > 0.1
    assert min(held.covers for held in naive.values()) < 0.9
    assert min(held.win_covers for held in naive.values()) < 0.9


def test_images_of_a_patient_that_share_nothing_are_not_correlated():
    values, _ = draws(images=400)
    controls = {"shifted": null.relabelled(values, ["abpc", "drop at 0.1"])}
    assert abs(null.within_patients(controls, np.arange(400) // 4)["shifted"]) < 0.05


def test_visits_show_the_same_patient_otherwise():
    first = np.random.default_rng(0).integers(40, 200, (3, 64, 64)).astype(np.uint8)
    np.testing.assert_array_equal(null.visit(first, 0), first)
    second = null.visit(first, 1)
    assert second.dtype == np.uint8
    assert (second != first).mean() > 0.5
    np.testing.assert_array_equal(null.visit(first, 1), second)
    shifts = itertools.product(range(-3, 4), repeat=2)
    moved = [np.corrcoef(np.roll(first[0], shift, (0, 1)).ravel(), second[0].ravel())[0, 1] for shift in shifts]
    assert max(moved) > 0.95


def test_sizes_of_patients_are_those_of_the_test_split():
    sizes = common.patient_sizes()
    assert (len(sizes), sizes.sum(), sizes.max()) == (428, 624, 9)
    few = common.patient_sizes(50)
    assert len(few) == 50
    assert 1.2 < few.mean() < 1.8


def test_the_benchmark_sees_a_test_or_an_interval_that_does_not_hold():
    values, patients = draws()
    made = null.relabelled(values, ["abpc", "drop at 0.1"])
    better = null.Relabelled(made.names, made.win_NDM + 0.1, made.gap_NDM + 0.5)
    held, _ = null.null({"shifted": better}, patients, 20, 100, seed=0).values()
    assert held.rejects > 0.2
    assert held.covers < 0.8
    assert held.mean_rejects > 0.2


def test_a_draw_is_compared_with_the_others_as_a_map_is():
    values, _ = draws(images=3)
    made = null.relabelled(values, ["abpc", "deletion_auc"])
    others = faithfulness.compare(values[:, 4], values[:, [0, 1, 2, 3, 5, 6, 7, 8, 9]], np.array([True, False]))
    np.testing.assert_array_equal(made.gap_NDM[:, 4], others["gap"])
    np.testing.assert_array_equal(made.win_NDM[:, 4], others["win_rate"] - 0.5)
    np.testing.assert_allclose(made.gap_NDM.mean(1), 0, atol=1e-12)  # the truth that intervals are held against


def test_draws_are_read_from_curves():
    rows = [
        {
            "image_id": image,
            "target": 1,
            "control": control,
            "draw": draw,
            "grid": "pixel",
            "fill": "mean",
            "direction": order,
            "level": level,
            "level_done": level,
            "logit_target": value * level,
        }
        for image in ("b", "a")
        for control, n in (("none", 1), ("shifted", 2), ("pixel_random", 1))
        for draw in range(n)
        for order in ("morf", "lerf")
        for level in (0.0, 0.25, 0.5, 0.75, 1.0)
        for value in [(1 if image == "a" else 2) * (3 if draw else 1) * (1 if order == "morf" else 2)]
    ]
    controls, image_ids = null.of_curves(pd.DataFrame(rows).sample(frac=1, random_state=0))
    assert image_ids == ["a", "b"]
    assert list(controls) == ["shifted"]  # the map is no draw, and one draw has no control
    areas = ["deletion_auc", "insertion_auc", "abpc"]
    assert controls["shifted"].names == areas + [f"drop at {level}" for level in (0.25, 0.5, 0.75)]
    # abpc of draw 0 is 1/2 (image a) and 1 (b), of draw 1 three times that.
    np.testing.assert_allclose(controls["shifted"].gap_NDM[:, :, 2], [[-1, 1], [-2, 2]])

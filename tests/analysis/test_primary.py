"""Primary settings follow from the sweep alone and survive JSON."""

import pytest

from cxr_ray.analysis.primary import PrimarySettings, nearest_level, resolve
from cxr_ray.sweepfile import resolve as resolve_sweep


def sweep(**perturb):
    return resolve_sweep(
        {
            "data": {"source": "phantom", "size": 64},
            "explain": {"explainers": ["saliency", "gradcam"], "targets": ["predicted", "pneumonia"]},
            "perturb": {"grids": ["7", "pixel"], "fills": ["blur", "mean"], "levels": [0.1, 0.5], **perturb},
            "controls": {"shifted": 2},
        }
    )


def test_settings_are_the_first_but_for_pixel_and_gradcam():
    assert resolve(sweep()) == PrimarySettings(
        metric="abpc",
        scale="logodds",
        directions=("morf", "lerf"),
        grid="pixel",
        first_grid="7",
        fill="blur",
        target_rule="predicted",
        explainer="gradcam",
        level=0.1,
    )


def test_a_sweep_and_its_plain_data_give_the_same_settings():
    assert resolve(sweep()) == resolve(sweep().model_dump())


@pytest.mark.parametrize(("directions", "metric"), [(["morf"], "deletion_auc"), (["lerf"], "insertion_auc")])
def test_the_primary_metric_is_of_the_direction_that_is_measured(directions, metric):
    assert resolve(sweep(orders=directions)).metric == metric


def test_without_pixel_and_gradcam_the_first_are_chosen():
    plain = sweep(grids=["14", "7"]).model_dump()
    plain["explain"]["explainers"] = ["occlusion", "saliency"]
    settings = resolve(plain)
    assert (settings.grid, settings.first_grid, settings.explainer) == ("14", "14", "occlusion")


def test_settings_survive_json():
    settings = resolve(sweep())
    assert PrimarySettings.from_json(settings.to_json()) == settings


def test_the_level_is_the_nearest_to_the_original_study():
    assert nearest_level([0.1, 0.3, 0.5]) == 0.3
    assert nearest_level([0.375, 0.125]) == 0.125

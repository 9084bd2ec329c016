"""Primary settings follow from the sweep alone and survive JSON."""

import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from cxr_ray.analysis import primary
from cxr_ray.analysis.primary import PrimarySettings, resolve
from cxr_ray.errors import DamagedRunError
from cxr_ray.results import open_run
from cxr_ray.sweepfile import resolve as resolve_sweep


def sweep(**perturb):
    return resolve_sweep(
        {
            "data": {"source": "phantom", "size": 64},
            "explain": {"explainers": ["saliency", "gradcam"], "targets": ["predicted", "pneumonia"]},
            "perturb": {
                "grids": ["7", "pixel"],
                "fills": ["blur", "mean"],
                "levels": [0.375, 0.125, 0.625, 0.75],
                **perturb,
            },
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
        level=0.125,
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


@pytest.mark.parametrize(("levels", "level"), [([0.25], 0.25), ([0.1, 0.25, 0.5], 0.25), ([0.1, 0.5], 0.1)])
def test_levels_too_few_for_areas_make_the_drop_at_one_of_them_primary(levels, level):
    settings = resolve(sweep(levels=levels))
    assert (settings.metric, settings.metric_level, settings.label) == ("drop", level, f"drop at level {level:g}")


def test_the_primary_metric_chooses_its_rows_and_no_other_level():
    frame = pd.DataFrame({"metric": ["abpc", "drop", "drop"], "level": [np.nan, 0.25, 0.5]})
    table = pads.dataset(pa.Table.from_pandas(frame))
    for levels, rows in (([0.25, 0.5], [1]), ([0.25, 0.5, 0.75], [0])):
        settings = resolve(sweep(levels=levels))
        assert np.flatnonzero(settings.chosen(frame)).tolist() == rows
        assert table.to_table(filter=settings.expression).to_pandas().equals(frame.iloc[rows].reset_index(drop=True))


def test_an_older_run_of_insertion_alone_keeps_its_area():
    plain = sweep(orders=["lerf"]).model_dump()
    plain["perturb"]["levels"] = [0.5]
    assert resolve(plain).metric == "insertion_auc"


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_damaged_settings_are_never_taken_for_those_of_a_run_that_stores_none(made_run, tmp_path, text):
    shutil.copytree(made_run, tmp_path / "run")
    (tmp_path / "run" / primary.FILE).write_text(text)
    with pytest.raises(DamagedRunError, match=r"primary\.json, which is damaged"):
        primary.of_run(open_run(tmp_path / "run"))

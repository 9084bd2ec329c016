"""Likeness and faithfulness of randomised models' maps, counted by hand."""

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis.sanity_summary import sanity_rows
from cxr_ray.schemas import SANITY_SUMMARY


def sanity(mode="cascade", control="shifted"):
    """Two images of two layers; the second image's maps cannot be compared at layer4."""
    same = {"explainer": "gradcam", "target": 1, "mode": mode, "seed": 0}
    setting = {"grid": "pixel", "fill": "mean", "metric": "abpc", "level": np.nan, "scale": "logodds", "n_draws": 2}
    if control is None:
        setting = dict.fromkeys(setting)
    rows = [
        {"image_id": image, "layer": layer, "spearman": rho, "spearman_abs": 0.5, "ssim": 0.25, "gap": gap}
        for image, layer, rho, gap in (
            ("a", "fc", 1.0, 2.0),
            ("b", "fc", 0.0, 4.0),
            ("a", "layer4", -0.5, 1.0),
            ("b", "layer4", np.nan, 3.0),
        )
    ]
    return pd.DataFrame([{**same, **setting, "control": control, **row} for row in rows])


PATIENTS = pd.Series({"a": "p", "b": "q"})
OWN = pd.Series({("gradcam", "a", "shifted"): 10.0, ("gradcam", "b", "shifted"): 20.0})


def by_layer(rows):
    SANITY_SUMMARY.from_rows([{"trial_id": "m", "target_rule": "pneumonia", **row} for row in rows])
    return {(row["layer"], row["quantity"]): row for row in rows}


def test_means_are_over_images_that_have_a_value():
    rows = by_layer(sanity_rows(sanity(), OWN, PATIENTS, 0))
    assert (rows["fc", "spearman"]["mean"], rows["fc", "spearman"]["n"]) == (0.5, 2)
    assert (rows["layer4", "spearman"]["mean"], rows["layer4", "spearman"]["n"]) == (-0.5, 1)
    assert (rows["fc", "gap"]["mean"], rows["layer4", "gap"]["mean"]) == (3.0, 2.0)
    assert rows["layer4", "own_gap"]["mean"] == pytest.approx(15.0)


def test_gaps_say_what_they_are_measured_with_and_likeness_does_not():
    rows = by_layer(sanity_rows(sanity(), OWN, PATIENTS, 0))
    gap, likeness = rows["fc", "gap"], rows["fc", "ssim"]
    names = ("control", "metric", "scale", "grid", "fill", "draws")
    assert [gap[name] for name in names] == ["shifted", "abpc", "logodds", "pixel", "mean", 2]
    assert [likeness[name] for name in names] == [None] * len(names)


def test_models_of_shuffled_labels_have_likeness_alone():
    rows = by_layer(sanity_rows(sanity("labels", None), pd.Series(dtype=float, index=OWN.index[:0]), PATIENTS, 0))
    assert {quantity for _, quantity in rows} == {"spearman", "spearman_abs", "ssim"}

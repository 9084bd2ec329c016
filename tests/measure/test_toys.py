"""A toy of each registry of this room: one function and one entry are found in the worker's rows and the cost."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from cxr_ray.config import Sweep
from cxr_ray.errors import UnknownNameError
from cxr_ray.measure.attribution.inputs import Explainer
from cxr_ray.measure.controls import CONTROLS, Control, Family, strong_first
from cxr_ray.measure.cost import passes_per_image
from cxr_ray.measure.edits import EDITS, Edit
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.fills import FILLS, Fill
from cxr_ray.measure.metrics import METRICS, Metric, areas
from cxr_ray.measure.regions import REGIONS, Region, elsewhere
from tests.builders.shards import SIZE, frames, linear_model, shard, sweep, worker

REGISTRIES = [EXPLAINERS, FILLS, CONTROLS, REGIONS, EDITS, METRICS]


def plain(**controls: int) -> Sweep:
    return sweep(
        explain={"explainers": ["saliency"]},
        perturb={"grids": ["7"], "fills": ["mean"], "levels": [0.5]},
        controls=controls,
        regions=None,
        sanity=None,
    )


def with_names(config: Sweep, section: str, **names) -> Sweep:
    """The sweep with names that are registered, whatever the section's type allows."""
    changed = (getattr(config, section) or sweep().regions).model_copy(update=names)
    return config.model_copy(update={section: changed})


def measured(config: Sweep) -> dict[str, pd.DataFrame]:
    return frames(worker(config, linear_model())(shard(3)))


def passes(config: Sweep) -> int:
    return passes_per_image(config, SIZE)[0]


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_a_name_that_is_not_registered_is_an_error_that_lists_those_that_are(registry):
    with pytest.raises(UnknownNameError, match=f"got the {registry.kind} 'no such'") as error:
        registry["no such"]
    assert all(name in str(error.value) for name in registry)


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_every_entry_has_a_caption_that_is_a_sentence(registry):
    assert [name for name, entry in registry.items() if not entry.caption.endswith(".")] == []


def test_an_explainer_has_rows_and_costs_its_passes(monkeypatch):
    before = passes(plain())
    toy = Explainer(lambda model, inputs: inputs.images[:, 0], lambda size: (3, 2), "The first channel.")
    monkeypatch.setitem(EXPLAINERS, "toy", toy)
    config = with_names(plain(), "explain", explainers=["saliency", "toy"])
    out = measured(config)
    assert set(out["saliency"].explainer) == set(out["faithfulness"].explainer) == {"saliency", "toy"}
    assert passes(config) == before + 3 + 2 * 2 + 2  # explained, and scored at one level in two directions


def test_a_fill_replaces_pixels_and_costs_its_images(monkeypatch):
    before = passes(plain())
    monkeypatch.setitem(FILLS, "white", Fill(lambda images, grey, keys: torch.ones_like(images), "White."))
    config = with_names(plain(), "perturb", fills=["mean", "white"])
    curves = measured(config)["curves"]
    filled = curves[(curves.fill == "white") & (curves.level == 1) & (curves.target == 1)].logit_target
    model = linear_model()
    white = model.log_odds(model.normalize(torch.ones(1, 3, SIZE, SIZE)))
    assert np.allclose(filled, white.item(), atol=1e-4)
    assert passes(config) == before + 1 + 2


def toy_control(family: Family, draw, **more) -> Control:
    return Control(family, draw, caption="A toy.", **more)


def rows_first(draws, grid, size):
    return torch.arange(49, dtype=torch.int32).expand(len(draws.ids), len(draws.numbers), -1)


def upside_down(draws, places):
    return (48 - places)[:, None].expand(-1, len(draws.numbers), -1)


@pytest.mark.parametrize(
    ("control", "explainer"),
    [(toy_control("nothing", rows_first), "shared"), (toy_control("ranking", upside_down), "saliency")],
    ids=["nothing", "ranking"],
)
def test_a_control_has_curves_and_tests_and_costs_its_draws(monkeypatch, control, explainer):
    before = passes(plain())
    monkeypatch.setitem(CONTROLS, "toy", control)
    config = plain(toy=2)
    out = measured(config)
    curves = out["curves"][out["curves"].control == "toy"]
    assert set(curves.explainer) == {explainer}
    assert set(curves.draw) == {0, 1}
    assert (out["faithfulness"].query("control == 'toy'").n_draws == 2).all()
    assert passes(config) == before + 2 * 2
    assert strong_first(CONTROLS)[2] == "toy"  # after the two strong ones


def test_a_control_is_drawn_on_its_own_grids_alone(monkeypatch):
    monkeypatch.setitem(CONTROLS, "toy", toy_control("nothing", rows_first, grids=lambda grids: []))
    assert passes(plain(toy=2)) == passes(plain())
    assert "toy" not in set(measured(plain(toy=2))["faithfulness"].control)


def upper_half(size, known):
    return (torch.arange(size) < size // 2)[:, None].expand(-1, size)


def test_a_region_is_removed_beside_its_controls_and_costs_them(monkeypatch):
    monkeypatch.setitem(REGIONS, "upper", Region(upper_half, elsewhere, "The upper half."))
    config = with_names(plain(), "regions", names=["upper"], draws=3, edits=[])
    rows = measured(config)["regions"]
    assert set(rows.region) == {"upper"}
    assert rows.groupby("control").draw.nunique().to_dict() == {"matched": 3, "none": 1}
    assert (rows.share_of_area == 0.5).all()
    assert passes(config) == passes(plain()) + (1 + 3) * (1 + 1)  # the fill, and the patch swap


def test_an_edit_is_scored_once_for_each_image(monkeypatch):
    toy = Edit(lambda raw: 1 - raw.float() / 255, "The negative.", share=lambda size: 0.75)
    monkeypatch.setitem(EDITS, "negative", toy)
    config = with_names(plain(), "regions", names=["border"], draws=1, edits=["negative"])
    rows = measured(config)["regions"].query("region == 'negative' and target == 1")
    assert len(rows) == 3
    assert (rows.share_of_area == 0.75).all()
    assert passes(config) == passes(with_names(config, "regions", edits=[])) + 1


def test_a_metric_has_rows_for_the_map_and_its_controls(monkeypatch):
    largest = partial(np.max, axis=-1)
    toy = Metric(lambda curves, done: largest(curves["lerf"]), ("lerf",), True, "peak", "The highest score.")
    monkeypatch.setitem(METRICS, "peak", toy)
    config = with_names(plain(cell_random=2), "perturb", levels=[0.25, 0.5, 0.75])
    rows = measured(config)["faithfulness"].query("metric == 'peak' and scale == 'logodds'")
    assert set(rows.control) == {"none", "cell_random"}
    assert rows.value.notna().all()
    assert "peak" in areas()

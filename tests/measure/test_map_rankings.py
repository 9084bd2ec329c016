"""Controls made from or for a map: draws that perturb what the map perturbs have its scores."""

import pytest
import torch

from cxr_ray.measure.controls import CONTROLS, Control
from tests.builders.shards import frames, linear_model, shard, sweep, worker

HALF = 24  # of 49 cells, at level 0.5


@pytest.fixture
def shuffled_halves(monkeypatch):
    """A control that perturbs the same 24 cells first and last as the map does, in the reverse order."""

    def draw(draws, places):
        turned = torch.where(places < HALF, HALF - 1 - places, 49 + HALF - places)
        turned = torch.where(places == HALF, HALF, turned)
        return turned[:, None].expand(-1, len(draws.numbers), -1)

    monkeypatch.setitem(CONTROLS, "toy", Control("ranking", draw, caption="The same halves."))


@pytest.mark.parametrize("sequential", [None, {"max_draws": 19, "extreme": 19}])
def test_the_same_cells_in_another_order_tie_with_the_map_however_batches_round(shuffled_halves, sequential):
    config = sweep(
        explain={"explainers": ["saliency"]},
        perturb={"grids": ["7"], "fills": ["mean"], "levels": [0.5]},
        controls={"toy": 2},
        sequential=sequential,
        regions=None,
        sanity=None,
    )
    model = linear_model()
    asked = worker(config, model)
    asked.forward = lambda trial_id: lambda images: model.log_odds(images) + 1e-6 * torch.arange(len(images))
    out = frames(asked(shard()))

    middle = out["curves"].query("level == 0.5")
    wide = middle.pivot_table(
        index=["image_id", "target", "direction"], columns=["control", "draw"], values="logit_target"
    )
    assert (wide["toy", 0] == wide["none", 0]).all()
    compared = out["faithfulness"].query("control == 'toy'")
    assert (compared.win_rate == 0.5).all()
    assert (compared.gap == 0).all()
    if sequential:
        assert (compared.p_value.dropna() == 1).all()  # every draw is as faithful as the map

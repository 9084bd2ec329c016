"""Maps of altered copies and infidelity: closed forms, captum's metrics as oracles, and what must not matter."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from captum import attr, metrics

from cxr_ray.config import Sweep
from cxr_ray.measure import infidelity, stability
from cxr_ray.measure.attribution.inputs import Explainer
from cxr_ray.measure.batch import Batch
from cxr_ray.measure.controls import CONTROLS, Control
from cxr_ray.measure.cost import passes_of_stability
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.shards import Shard
from cxr_ray.models.networks import Classifier
from cxr_ray.schemas import STABILITY
from tests.builders.networks import small
from tests.builders.shards import SIZE, linear_model, shard, sweep, worker

KEY = [name for name in STABILITY.key if name != "trial_id"]


def asked(explainers=("input_x_gradient",), fill="grey", controls=None, targets=("pneumonia",), **more) -> Sweep:
    return sweep(
        explain={"explainers": list(explainers), "targets": list(targets)},
        perturb={"grids": ["7"], "fills": [fill], "levels": [0.3]},
        controls=controls or {},
        stability={"images": 4, "noise": [0.05], "draws": 3, "shifts": [0.1], "squares": 20, **more},
    )


def rows(config: Sweep, model: Classifier, given: Shard | None = None, batch_size: int = 16) -> pd.DataFrame:
    tables = worker(config, model, batch_size)(shard(3, split="stability") if given is None else given)
    assert list(tables) == [("stability", "")]
    frame = tables["stability", ""].to_pandas()
    assert not frame.duplicated(KEY).any()
    return frame


def batch_of(config: Sweep, model: Classifier, given: Shard) -> Batch:
    w = worker(config, model)
    return Batch(stability.narrowed(config), given, w.network("m"), w.device)


@pytest.fixture(scope="module")
def model() -> Classifier:
    return small()


def images_of(size: int) -> Shard:
    return shard(2, size, "stability")


# Infidelity


def test_the_gradient_times_the_input_of_a_linear_model_explains_every_square():
    """Of one whose two logits are opposite: maps explain one of them, effects are those of their difference."""
    model = linear_model()
    weights = model.network[1].weight
    weights[0] = -weights[1]
    frame = rows(asked(targets=("pneumonia", "predicted")), model).query("perturbation == 'square'")
    assert len(frame) == len(frame.drop_duplicates(["image_id", "target"])) > 3
    assert (frame.unexplained < 1e-8).all()
    assert (frame.infidelity < 1e-8).all()


def test_a_map_that_foretells_the_opposite_or_nothing_explains_nothing():
    effects = torch.tensor([[1.0, -2.0, 0.5]])
    for foretold in (-effects, torch.zeros_like(effects)):
        found, unexplained = infidelity.infidelity(foretold.double(), effects)
        assert unexplained.tolist() == [1.0]
        assert found.item() == pytest.approx((1 + 4 + 0.25) / 3)
    found, unexplained = infidelity.infidelity(7 * effects.double(), effects)
    assert found.item() == unexplained.item() == pytest.approx(0, abs=1e-12)
    assert infidelity.infidelity(effects.double(), 0 * effects)[1].isnan().all()


def test_infidelity_is_captums_with_the_best_factor(model):
    """captum takes any factor; where the best is above 0, it is ours. Its attribution is spread over three channels."""
    config, given = asked(["saliency"], "black"), images_of(56)
    found = rows(config, model, given).query("perturbation == 'square'").infidelity
    batch = batch_of(config, model, given)
    black = model.normalize(torch.zeros(1, 3, 56, 56))
    inside = torch.zeros(2, 20, 1, 56, 56)
    for i, squares in enumerate(infidelity.squares(batch.ids, 0, 56, 20).tolist()):
        for k, (top, left, bottom, right) in enumerate(squares):
            inside[i, k, 0, top:bottom, left:right] = 1

    def perturb(images):
        masks = inside.flatten(0, 1).expand(-1, 3, -1, -1)
        return masks, torch.where(masks > 0, black, images)

    maps = EXPLAINERS["saliency"].explain(model, inputs_of(batch))[:, None].expand(-1, 3, -1, -1) / 3
    expected = metrics.infidelity(
        model.log_odds, perturb, batch.images, maps, n_perturb_samples=20, max_examples_per_batch=2 * 20, normalize=True
    )
    assert np.allclose(found, expected, rtol=1e-4)


def inputs_of(batch: Batch):
    from cxr_ray.measure.attribution.inputs import Inputs

    targets = torch.from_numpy(batch.pairs.target)
    return Inputs(batch.images, batch.blurred, torch.zeros(3, 1, 1), targets, batch.pairs.ids, 0)


def test_squares_lie_inside_and_have_every_size_and_place():
    squares = infidelity.squares([f"{i:016x}" for i in range(50)], 0, 56, 40).flatten(0, 1)
    top, left, bottom, right = squares.unbind(1)
    side = bottom - top
    assert torch.equal(side, right - left)
    assert squares[:, :2].min() == 0
    assert squares[:, 2:].max() == 56
    assert set(side.tolist()) == set(range(4, 29))
    assert torch.equal(squares[:40], infidelity.squares([f"{0:016x}"], 0, 56, 40)[0])


def test_sums_are_those_of_the_pixels():
    maps = torch.randn(2, 13, 13)
    squares = torch.tensor([[[0, 0, 13, 13], [2, 5, 3, 6]], [[1, 1, 12, 12], [12, 0, 13, 1]]])
    found = infidelity.sums(maps, squares)
    for i in range(2):
        for k, (top, left, bottom, right) in enumerate(squares[i].tolist()):
            assert found[i, k] == pytest.approx(maps[i, top:bottom, left:right].sum().item(), abs=1e-5)


# Altered copies


def test_maps_that_do_not_read_the_image_do_not_change():
    frame = rows(asked(["centre", "random"], shifts=[]), linear_model()).query("perturbation == 'noise'")
    assert (frame.sensitivity == 0).all()
    assert np.allclose(frame.spearman, 1)
    assert np.allclose(frame.ssim, 1)
    assert (frame.logit_change != 0).all()


def test_a_map_that_moves_with_the_image_is_the_same_once_it_is_moved_back():
    frame = rows(asked(["intensity"], noise=[]), linear_model()).query("perturbation == 'shift'")
    assert sorted(frame.draw.unique()) == [0, 1, 2, 3]
    assert np.allclose(frame.spearman, 1)
    assert np.allclose(frame.ssim, 1)
    assert frame.sensitivity.isna().all()
    still = rows(asked(["centre"], noise=[]), linear_model()).query("perturbation == 'shift'")
    assert (still.spearman < 0.99).all(), "a map that stays where it is does not move with the image"


def test_copies_are_shifted_by_whole_pixels_and_repeat_their_edge():
    batch = batch_of(asked(), linear_model(), shard(1, split="stability"))
    down, up, right, left = (stability.changed(batch, stability.Change("shift", 0.1, d)) for d in range(4))
    assert torch.equal(down[:, :, 3:], batch.pixels[:, :, :-3])
    assert torch.equal(down[:, :, :3], batch.pixels[:, :, :1].expand(-1, -1, 3, -1))
    assert torch.equal(up[:, :, :-3], batch.pixels[:, :, 3:])
    assert torch.equal(right[..., 3:], batch.pixels[..., :-3])
    assert torch.equal(left[..., :-3], batch.pixels[..., 3:])


def test_noise_is_uniform_within_its_size_and_the_images_range():
    batch = batch_of(asked(), linear_model(), shard(2, split="stability"))
    noise = stability.changed(batch, stability.Change("noise", 0.05, 0)) - batch.pixels
    inside = (batch.pixels > 0.05) & (batch.pixels < 0.95)
    assert noise.abs().max() <= 0.05 + 1e-6
    assert noise[inside].std() == pytest.approx(0.05 / 3**0.5, rel=0.05)
    assert torch.allclose(noise[:, :1][inside[:, :1]].mean(), torch.tensor(0.0), atol=0.005)
    other = stability.changed(batch, stability.Change("noise", 0.05, 1)) - batch.pixels
    assert not torch.equal(noise, other)


def test_the_largest_sensitivity_is_captums(model):
    config, given = asked(["saliency"], shifts=[]), images_of(56)
    frame = rows(config, model, given).query("perturbation == 'noise'")
    batch = batch_of(config, model, given)
    assert config.stability is not None
    copies = [model.normalize(stability.changed(batch, c)) for c in stability.changes(config.stability)]

    def explain(images):  # captum gives a tuple of the images, and a tensor of the copies
        images = images[0] if isinstance(images, tuple) else images
        return (attr.Saliency(model).attribute(images.requires_grad_(), target=1).sum(1),)

    expected = metrics.sensitivity_max(
        explain,
        batch.images,
        lambda images: torch.stack(copies, 1).flatten(0, 1),
        n_perturb_samples=len(copies),
        max_examples_per_batch=2 * len(copies),
    )
    assert np.allclose(frame.groupby("image_id").sensitivity.max(), expected, rtol=1e-4)


def test_an_explainers_own_random_numbers_are_those_of_the_image(monkeypatch):
    """Else two maps of the very same image would differ."""
    seen = []
    entry = EXPLAINERS["smoothgrad"]

    def spied(model, inputs):
        seen.append((inputs.ids, inputs.seed, inputs.targets.tolist()))
        return entry.explain(model, inputs)

    monkeypatch.setitem(EXPLAINERS, "smoothgrad", replace(entry, explain=spied))
    rows(asked(["smoothgrad"]), linear_model())
    assert len(seen) == 1 + 3 + 4
    assert all(one == seen[0] for one in seen)


def test_copies_are_explained_for_the_class_that_the_image_was_explained_for():
    config = asked(["saliency"], targets=["predicted"], noise=[0.5])
    frame = rows(config, linear_model())
    own = frame.query("perturbation == 'square'").set_index("image_id").target
    assert frame.target.tolist() == own.loc[frame.image_id].tolist()
    assert set(own) == {0, 1}


# Controls


def test_a_control_that_orders_pixels_as_the_map_does_is_the_map(monkeypatch):
    monkeypatch.setitem(CONTROLS, "toy", Control("ranking", lambda draws, places: places[:, None], caption="A toy."))
    monkeypatch.setitem(CONTROLS, "mirror", Control("ranking", backwards, caption="A toy."))
    config = asked().model_copy(update={"controls": {"toy": 1, "mirror": 1}})
    frame = rows(config, linear_model()).set_index(["control", "perturbation", "image_id"]).sort_index()
    same, reverse = frame.loc["toy", "none"], frame.loc["mirror", "none"]
    assert np.allclose(same.spearman, 1)
    assert np.allclose(same.ssim, 1)
    assert (same.sensitivity == 0).all()
    assert np.allclose(reverse.spearman, -1)
    assert (reverse.sensitivity > 1).all()
    assert np.allclose(frame.loc["toy", "square"].infidelity, frame.loc["none", "square"].infidelity, atol=1e-9)
    assert (frame.loc["mirror", "square"].unexplained > 0.5).all()


def backwards(draws, places):
    return (places.shape[1] - 1 - places)[:, None]


def test_controls_have_the_maps_values_in_the_order_of_their_own_draws():
    config = asked(["saliency"], controls={"pixel_random": 2, "cell_random": 1, "smooth_random": 1, "shifted": 3})
    frame = rows(config, linear_model())
    for perturbation in ("none", "square"):
        of_controls = frame.query(f"control != 'none' and perturbation == '{perturbation}'")
        assert of_controls.groupby("control").draw.nunique().to_dict() == config.controls
    assert frame.query("control == 'pixel_random'").spearman.abs().max() < 0.15  # 784 places: deviation 0.036
    # a shuffled vector lies as far as two independent ones: distance^2 = 2 (1 - cos), cos = mean^2 / mean square
    batch = batch_of(config, linear_model(), shard(3, split="stability"))
    maps = EXPLAINERS["saliency"].explain(linear_model(), inputs_of(batch)).flatten(1)
    expected = (2 * (1 - maps.mean(1) ** 2 / maps.square().mean(1))).sqrt()
    found = frame.query("control == 'pixel_random' and perturbation == 'none'").groupby("image_id").sensitivity.mean()
    assert np.allclose(found, expected, rtol=0.1)


def test_only_class_activation_maps_have_permuted_weights(model):
    config = asked(["gradcam", "saliency"], "black", controls={"random_cam": 2})
    frame = rows(config, model, images_of(56)).query("control == 'random_cam'")
    assert set(frame.explainer) == {"gradcam"}
    assert len(frame) == 2 * 2 * 2


# What must not matter, and what is told


def test_rows_do_not_depend_on_shards_or_batches(model):
    config = asked(["saliency", "gradcam"], "black", controls={"shifted": 2, "cell_random": 1})
    whole = images_of(56)
    first = rows(config, model, whole).set_index(KEY).sort_index()
    second = pd.concat([rows(config, model, part, 5) for part in whole.pieces(1)]).set_index(KEY).sort_index()
    pd.testing.assert_frame_equal(first, second, rtol=0, atol=1e-4)


def test_passes_are_counted(model):
    config = asked(["gradcam", "saliency"], "black", controls={"shifted": 2})
    forward, backward = [], []
    hooks = [
        model.network.register_forward_pre_hook(lambda m, a: forward.append(len(a[0]))),
        model.network.conv1.register_full_backward_hook(lambda m, i, o: backward.append(len(o[0]))),
    ]
    rows(config, model, images_of(56))
    for hook in hooks:
        hook.remove()
    total, formula = passes_of_stability(config, 56)
    assert sum(forward) + 2 * sum(backward) == 2 * total
    assert total == 1 + 20 + 7 + 8 * (1 + 3)
    assert formula.startswith("1 untouched + 20 squares + 7 altered copies + (1 + 7) x 4 to explain")
    assert passes_of_stability(sweep(stability=None), 56) == (0, "0")


def test_a_map_that_fails_is_an_error_and_the_rest_stands(monkeypatch):
    def broken(model, inputs):
        raise RuntimeError("out of ideas")

    monkeypatch.setitem(EXPLAINERS, "saliency", Explainer(broken, lambda size: (1, 1), "broken"))
    tables = worker(asked(["saliency", "intensity"]), linear_model())(shard(3, split="stability"))
    assert set(tables["stability", ""].to_pandas().explainer) == {"intensity"}
    errors = tables["errors", ""].to_pandas()
    assert set(errors.stage) == {"stability:m:saliency"}
    assert len(errors) == 3


def test_a_map_that_is_not_finite_has_no_values(monkeypatch):
    def lost(model, inputs):
        maps = inputs.images[:, 0].clone()
        maps[0] = torch.nan
        return maps

    monkeypatch.setitem(EXPLAINERS, "saliency", Explainer(lost, lambda size: (0, 0), "lost"))
    frame = rows(asked(["saliency"], controls={"shifted": 1}), linear_model()).set_index("image_id")
    values = list(stability.VALUES)
    first, *others = sorted(set(frame.index))
    assert frame.loc[first, values].isna().all(axis=None)
    assert frame.loc[others, "spearman"].notna().sum() == 2 * (3 + 4 + 1)


def test_maps_from_outside_have_infidelity_alone():
    config = asked(controls={"shifted": 1})
    config = config.model_copy(update={"explain": config.explain.model_copy(update={"explainers": ["theirs"]})})
    given = shard(3, split="stability")
    maps = np.random.default_rng(1).normal(size=(3, SIZE, SIZE)).astype(np.float32)
    frame = rows(config, linear_model(), replace(given, maps={"theirs": maps}))
    assert set(frame.perturbation) == {"square"}
    assert set(frame.control) == {"none", "shifted"}
    assert frame.infidelity.notna().all()


def test_nothing_asked_for_is_nothing_made():
    frame = rows(asked(noise=[], shifts=[]), linear_model())
    assert set(frame.perturbation) == {"square"}
    frame = rows(asked(squares=0, controls={"shifted": 1}), linear_model())
    assert set(frame.perturbation) == {"noise", "shift", "none"}

"""What random weights do to maps: layers that stay bit-equal, maps known exactly, similarities known exactly."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import nn

from cxr_ray.config import Sweep
from cxr_ray.data.splits import choose
from cxr_ray.measure import metrics, sanity
from cxr_ray.measure.attribution.inputs import Explainer, Inputs
from cxr_ray.measure.cost import passes_of_sanity
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.likeness import similarity
from cxr_ray.measure.worker import ModelRef, Shard, Worker
from cxr_ray.models import networks
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.schemas import SANITY
from cxr_ray.storage import Store
from cxr_ray.sweepfile import resolve

SIZE = 96
LAYERS = ["fc", "layer4", "layer3"]


def trained(arch: str = "resnet18", outputs: int = 2) -> Classifier:
    """Every weight and running statistic moved away from its initialisation, as training moves them."""
    torch.manual_seed(5)
    model = networks.build(arch, ModelSpec(arch, SIZE, outputs)).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)
    return model


@pytest.fixture(scope="module")
def model() -> Classifier:
    return trained()


def sweep(**changes) -> Sweep:
    base = {
        "data": {"size": SIZE},
        "explain": {"explainers": ["gradcam", "saliency", "random"], "targets": ["pneumonia"]},
        "perturb": {"grids": ["7", "pixel"], "fills": ["mean", "black"], "levels": [0.4]},
        "controls": {"pixel_random": 1, "cell_random": 2, "shifted": 2},
        "sanity": {"images": 4, "layers": LAYERS[:2]},
    }
    return resolve({**base, **changes})


def shard(n: int = 2) -> Shard:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 3, SIZE, SIZE), np.uint8)
    ids = [f"{i:016x}" for i in range(n)]
    return Shard("m", "sanity", ids, [f"{i}.png" for i in ids], [i % 2 for i in range(n)], pixels)


def worker(config: Sweep, model: Classifier, batch_size: int = 16) -> Worker:
    w = Worker(config, {"m": ModelRef("m", "none", None, SIZE)}, batch_size=batch_size)
    w.model = lambda trial_id: model
    return w


def rows(config: Sweep, model: Classifier, given: Shard | None = None, batch_size: int = 16) -> pd.DataFrame:
    tables = worker(config, model, batch_size)(given or shard())
    assert list(tables) == [("sanity", "")]
    frame = tables["sanity", ""].to_pandas()
    assert not frame.duplicated([k for k in SANITY.key if k != "trial_id"]).any()
    return frame


# The cascade


def test_each_layer_is_randomised_beside_those_before_it_and_nothing_else_is(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    randomised = dict(sanity.cascade(model, LAYERS, 0, "m"))
    assert list(randomised) == LAYERS
    for n, layer in enumerate(LAYERS, start=1):
        for name, weights in randomised[layer].state_dict().items():
            moved = name.split(".")[1] in LAYERS[:n]
            if not (moved and name.endswith("num_batches_tracked")):
                assert torch.equal(weights, before[name]) != moved, (layer, name)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    # what stays random from one step to the next is the same random
    assert torch.equal(randomised["fc"].network.fc.weight, randomised["layer3"].network.fc.weight)


def test_a_layer_gets_torchvisions_own_initialisation(model):
    layer4 = dict(sanity.cascade(model, ["layer4", "fc"], 0, "m"))["fc"].network.layer4
    norms = [m for m in layer4.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 5
    for norm in norms:
        assert norm.running_var is not None
        assert torch.equal(norm.running_var, norm.weight)
        assert (norm.weight == 1).all()
        assert (norm.running_mean == 0).all()
        assert (norm.bias == 0).all()
    for conv in (m for m in layer4.modules() if isinstance(m, nn.Conv2d)):
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)


def test_random_weights_depend_on_seed_model_and_layer_alone(model):
    def head(seed, name, layers=("fc",)):
        return [*sanity.cascade(model, layers, seed, name)][-1][1].network.fc.weight

    state = torch.random.get_rng_state()
    one = head(0, "m")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)  # whatever else is drawn
    assert torch.equal(one, head(0, "m", ("layer4", "fc")))
    assert not torch.equal(one, head(1, "m"))
    assert not torch.equal(one, head(0, "n"))


def test_gradcam_of_a_random_head_is_the_same_activations_with_other_weights(model):
    images = torch.randn(2, 3, SIZE, SIZE)
    kept = []
    with model.cam_layer.register_forward_hook(lambda m, a, output: kept.append(output)):
        model(images)
    _, other = next(sanity.cascade(model, ["fc"], 0, "m"))
    inputs = Inputs(images, images, torch.zeros(3, 1, 1), torch.tensor([1, 0]), ["a", "b"], 0)
    maps = EXPLAINERS["gradcam"].explain(other, inputs)
    weights = other.network.fc.weight[torch.tensor([1, 0])]
    assert torch.allclose(maps, (weights[:, :, None, None] * kept[0] / 9).sum(1).relu(), atol=1e-6)
    assert not torch.allclose(maps, EXPLAINERS["gradcam"].explain(model, inputs), atol=1e-3)


# Similarity


def test_equal_negated_and_independent_maps():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(5, 28, 28))
    same = similarity(maps, maps * 3 + 1)
    assert np.allclose(same["spearman"], 1)
    assert np.allclose(same["ssim"], 1)
    assert (similarity(maps, maps)["spearman_abs"] > 1 - 1e-12).all()
    opposite = similarity(maps, -maps)
    assert np.allclose(opposite["spearman"], -1)
    assert np.allclose(opposite["spearman_abs"], 1)
    assert (opposite["ssim"] < 0).all()
    other = similarity(maps, rng.normal(size=maps.shape))
    # a rank correlation of 784 independent places has standard deviation 1 / sqrt(783) = 0.036
    assert np.abs([other["spearman"], other["spearman_abs"]]).max() < 0.15
    assert np.abs(other["ssim"]).max() < 0.15


@pytest.mark.parametrize(("side", "window"), [(3, 3), (7, 3), (13, 3), (14, 7), (56, 7)])
def test_similarity_is_scipys_and_skimages(side, window):
    rng = np.random.default_rng(side)
    a, b = rng.normal(size=(2, 3, side, side)).round(1)  # with ties
    found = similarity(a, b)
    for i in range(3):
        assert found["spearman"][i] == pytest.approx(spearmanr(a[i].ravel(), b[i].ravel()).statistic)
        assert found["spearman_abs"][i] == pytest.approx(
            spearmanr(np.abs(a[i]).ravel(), np.abs(b[i]).ravel()).statistic
        )
        unit = [(m - m.min()) / np.ptp(m) for m in (a[i], b[i])]
        assert found["ssim"][i] == pytest.approx(structural_similarity(*unit, win_size=window, data_range=1))


def test_what_cannot_be_compared_is_null():
    a = np.random.default_rng(0).normal(size=(4, 7, 7))
    b = a.copy()
    a[0], b[1], b[2, 3, 3] = 0.5, 0.0, np.nan
    found = similarity(a, b)
    for column in found.values():
        assert np.isnan(column[:3]).all()
        assert column[3] == pytest.approx(1)
    small = similarity(a[3:, :2, :2], b[3:, :2, :2])
    assert np.isnan(small["ssim"]).all()
    assert small["spearman"][0] == pytest.approx(1)
    signs = np.where(a[3:] > 0, 1.0, -1.0)  # varies, but its absolute value does not
    found = similarity(signs, signs)
    assert found["spearman"][0] == pytest.approx(1)
    assert np.isnan(found["spearman_abs"][0])


# The worker's rows


def test_rows_stand_for_every_layer_image_and_explainer_that_reads_the_model(model):
    config = sweep(explain={"explainers": ["random", "gradcam", "saliency"], "targets": ["pneumonia", "predicted"]})
    frame = rows(config, model)
    pairs = len(frame[["image_id", "target"]].drop_duplicates())
    assert len(frame) == 2 * 2 * pairs
    assert set(frame.explainer) == {"gradcam", "saliency"}
    for column, value in {
        "mode": "cascade",
        "seed": 0,
        "grid": "7",
        "fill": "mean",
        "metric": "drop",
        "level": 0.4,
        "scale": "logodds",
        "control": "shifted",
        "n_draws": 2,
    }.items():
        assert (frame[column] == value).all(), column
    assert frame[["spearman", "gap"]].notna().all(axis=None)


def test_the_gap_is_that_of_a_test_split_whose_maps_the_randomised_model_makes(model, monkeypatch):
    """An explainer that always reads the randomised model gives, in faithfulness, the gaps of ``sanity``."""
    config = sweep(perturb={"grids": ["7"], "fills": ["mean"], "levels": [0.4]}, controls={"shifted": 2})
    given = shard()
    frame = rows(config, model, given).query("layer == 'layer4'").set_index(["explainer", "image_id"])
    other = dict(sanity.cascade(model, LAYERS, 0, "m"))["layer4"]
    for name in ("gradcam", "saliency"):
        entry = EXPLAINERS[name]
        monkeypatch.setitem(
            EXPLAINERS,
            name,
            Explainer(lambda m, inputs, e=entry: e.explain(other, inputs), entry.passes, entry.caption),
        )
    tables = worker(config, model)(Shard("m", "test", given.image_ids, given.paths, given.labels, given.pixels))
    for name in ("gradcam", "saliency"):
        faith = tables["faithfulness", name].to_pandas()
        faith = faith.query("metric == 'drop' and scale == 'logodds' and control == 'shifted'")
        expected = frame.loc[name].gap.loc[list(faith.image_id)]
        assert np.allclose(faith.gap, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "metric", "control"),
    [
        ({"controls": {"pixel_random": 1, "cell_random": 2}}, "drop", "cell_random"),  # pixels are not ranked here
        (
            {"perturb": {"grids": ["7"], "fills": ["mean"], "levels": [0.25, 0.5, 0.75], "orders": ["lerf"]}},
            "insertion_auc",
            "shifted",
        ),
        (
            {
                "perturb": {"grids": ["7"], "fills": ["mean"], "levels": [0.5], "orders": ["morf"]},
                "controls": {"smooth_random": 1},
            },
            "drop",
            "smooth_random",
        ),
        ({"controls": {}}, "drop", None),
    ],
)
def test_the_test_is_one_control_of_the_sweep_and_its_passes_are_counted(changes, metric, control):
    config, model = sweep(**changes), trained()
    assert model.structure.features, "which is found once, not for every map"
    forward, backward = [], []
    model.network.register_forward_pre_hook(lambda m, a: forward.append(len(a[0])))
    model.network.conv1.register_full_backward_hook(lambda m, i, o: backward.append(len(o[0])))
    frame = rows(config, model)
    assert sum(forward) + 2 * sum(backward) == 2 * passes_of_sanity(config, SIZE)[0]
    assert set(frame.metric) == {metric}
    assert set(frame.control.dropna()) == ({control} - {None})
    assert frame.gap.notna().all() == (control is not None)


def test_no_passes_where_there_is_nothing_to_randomise():
    assert passes_of_sanity(sweep(sanity=None), SIZE) == (0, "0")
    assert passes_of_sanity(sweep(explain={"explainers": ["random"], "targets": ["pneumonia"]}), SIZE) == (0, "0")


def test_rows_do_not_depend_on_blocks_or_batches(model):
    config, whole = sweep(explain={"explainers": ["saliency", "input_x_gradient"], "targets": ["pneumonia"]}), shard()
    first = rows(config, model).set_index(list(SANITY.key[1:])).sort_index()
    parts = [
        Shard(
            "m",
            "sanity",
            whole.image_ids[i : i + 1],
            whole.paths[i : i + 1],
            whole.labels[i : i + 1],
            whole.pixels[i : i + 1],
        )
        for i in range(2)
    ]
    second = pd.concat([rows(config, model, part, 5) for part in parts]).set_index(list(SANITY.key[1:])).sort_index()
    pd.testing.assert_frame_equal(first, second, rtol=0, atol=1e-4)


def test_a_map_that_fails_is_an_error_and_the_rest_stands(model, monkeypatch):
    def broken(model, inputs):
        raise RuntimeError("out of ideas")

    monkeypatch.setitem(EXPLAINERS, "saliency", Explainer(broken, lambda size: (1, 1), "broken"))
    tables = worker(sweep(), model)(shard())
    assert set(tables["sanity", ""].to_pandas().explainer) == {"gradcam"}
    errors = tables["errors", ""].to_pandas()
    assert set(errors.stage) == {"sanity:m:saliency"}
    assert len(errors) == 2


# Models of shuffled labels


def trials(**models_) -> pd.DataFrame:
    """trial_id=(labels or None for a given model, seed)."""
    return pd.DataFrame(
        [
            {
                "trial_id": t,
                "seed": seed,
                "config": "{}" if labels is None else f'{{"train": {{"labels": "{labels}"}}}}',
            }
            for t, (labels, seed) in models_.items()
        ]
    )


def test_a_model_meets_the_shuffled_one_of_its_seed_else_each():
    both = trials(a=("given", 0), b=("given", 2), c=(None, None), x=("shuffled", 0), y=("shuffled", 1))
    assert sanity.shuffled_models(both) == [("a", "x", 0), ("b", "x", 0), ("b", "y", 1), ("c", "x", 0), ("c", "y", 1)]
    assert sanity.shuffled_models(trials(a=("given", 0), c=(None, None))) == []


def kept(maps, ids, target=1) -> pd.DataFrame:
    sides = [7 if m is None else len(m) for m in maps]
    flat = [None if m is None else m.ravel() for m in maps]
    return pd.DataFrame({"image_id": ids, "target": target, "map": flat, "map_height": sides, "map_width": sides})


def test_stored_maps_are_compared_where_both_models_have_them():
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 7, 7))
    own = kept([a, b, c, rng.normal(size=(8, 8))], ["1", "2", "3", "4"])
    other = kept([a, -b, c, None], ["1", "2", "5", "3"])
    frames = {("m", "gradcam"): own, ("x", "gradcam"): other, ("m", "saliency"): own.iloc[:0], ("x", "saliency"): other}
    read = []

    def stored(trial_id, explainer):
        read.append((trial_id, explainer))
        return frames[trial_id, explainer]

    ((trial_id, table),) = sanity.label_rows([("m", "x", 3)], ["gradcam", "saliency"], stored)
    frame = table.to_pandas().set_index("image_id")
    assert trial_id == "m"
    assert read == [("m", "gradcam"), ("x", "gradcam"), ("m", "saliency"), ("x", "saliency")]
    assert list(frame.index) == ["1", "2"]
    assert list(frame.spearman) == pytest.approx([1, -1])
    assert set(zip(frame.explainer, frame["mode"], frame.layer, frame.seed, strict=True)) == {
        ("gradcam", "labels", "x", 3)
    }
    assert frame[["gap", "control", "metric", "grid", "n_draws"]].isna().all(axis=None)
    assert list(sanity.label_rows([("m", "x", 3)], ["gradcam"], lambda t, e: own.assign(map=None))) == []


def test_rows_of_both_modes_lie_beside_each_other(tmp_path):
    """A file more in the trial's partition: written again under the same name, and no empty file beside it."""
    from cxr_ray import results

    store = Store(str(tmp_path), {"run_id": "0", "sweep_hash": "1"})
    store.write(b"name: x\n", "sweep.yaml")
    store.write_table("sanity", [])
    own = kept([np.eye(7)], ["1"])
    ((trial_id, table),) = sanity.label_rows([("m", "x", 3)], ["gradcam"], lambda t, e: own)
    for _ in range(2):
        store.write_part("sanity", trial_id, "labels", table)
        frame = results.open_run(tmp_path).pandas("sanity")
        assert list(frame.trial_id) == ["m"]
    assert len(pd.read_parquet(tmp_path / "tables" / "sanity")) == 1


def test_images_are_chosen_by_the_seed_and_balanced():
    ids, labels = [f"{i:016x}" for i in range(40)], [int(i >= 10) for i in range(40)]
    chosen = choose(ids, labels, 8, 0)
    assert sum(int(i, 16) >= 10 for i in chosen) == 4
    assert chosen == choose(ids[::-1], labels[::-1], 8, 0)
    assert chosen != choose(ids, labels, 8, 1)


def test_randomised_maps_are_tested_with_the_fill_and_metric_that_were_chosen_on_validation(model):
    levels = {"grids": ["7"], "fills": ["mean", "black"], "levels": [0.25, 0.5, 0.75]}
    config = sweep(perturb=levels, explain={"explainers": ["saliency"], "targets": ["pneumonia"]})
    w = worker(config, model)
    w.tested = metrics.Tested(("deletion_auc", np.nan), "black")
    frame = w(shard())["sanity", ""].to_pandas()
    assert set(frame.fill) == {"black"}
    assert set(frame.metric) == {"deletion_auc"}
    assert frame.gap.notna().all()

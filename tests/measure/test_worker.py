"""The worker's rows: exact curves of a linear network, shared endpoints, counted passes, batches, maps that fail."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import nn

from cxr_ray.measure import metrics, rankings
from cxr_ray.measure.attribution import perturbation
from cxr_ray.measure.attribution.inputs import Explainer, Inputs
from cxr_ray.measure.capacity import Capacity
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.measure.cost import passes_per_image
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.models import backend_choice, backends
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.schemas import TABLES
from tests.builders import networks
from tests.builders.shards import SIZE, frames, linear_model, shard, sweep, worker


def test_the_precision_asked_for_reaches_the_choice_of_a_backend(monkeypatch):
    seen = []

    def choose(*given):
        seen.append(given)
        return backend_choice.InferenceBackend("eager", {}), given[0].log_odds

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(backend_choice, "choose", choose)
    given = shard()
    few = {"precision": "half", "grids": ["7"], "fills": ["mean"], "levels": [0.5]}
    worker(sweep(perturb=few, controls={"cell_random": 1}), linear_model())(given)
    assert seen[0][4] == "half"
    assert torch.equal(seen[0][5], linear_model().normalize(torch.from_numpy(given.pixels).float() / 255))
    assert not torch.backends.cudnn.allow_tf32


@pytest.fixture(scope="module")
def linear_frames():
    return frames(worker(sweep(), linear_model())(shard()))


def test_a_linear_networks_curve_is_known_exactly(linear_frames):
    """With fill black in pixel space, input_x_gradient's cousin w (x - black) orders pixels by their exact effect."""
    model, given = linear_model(), shard()
    weight = (model.network[1].weight[1] - model.network[1].weight[0]).view(3, SIZE, SIZE) / model.std
    pixels = torch.from_numpy(given.pixels).float() / 255
    curves = linear_frames["curves"]
    own = curves[
        (curves.explainer == "input_x_gradient")
        & (curves.control == "none")
        & (curves.grid == "pixel")
        & (curves.fill == "black")
        & (curves.target == 1)
    ]
    full = model.log_odds(model.normalize(pixels))
    maps = EXPLAINERS["input_x_gradient"].explain(
        model, Inputs(model.normalize(pixels), pixels, torch.zeros(3, 1, 1), torch.ones(5).long(), given.image_ids, 0)
    )
    for i, image_id in enumerate(given.image_ids):
        effect = (weight * pixels[i]).sum(0).flatten()[maps[i].flatten().argsort(descending=True)]
        for (order, level), row in own[own.image_id == image_id].set_index(["direction", "level"]).iterrows():
            n = round(level * SIZE * SIZE)
            lost = effect[:n].sum() if order == "morf" else effect[len(effect) - n :].sum()
            assert row.logit_target == pytest.approx(float(full[i] - lost), abs=1e-3)
            assert row.n_perturbed == n


def test_keys_are_unique_and_every_column_is_there(linear_frames):
    for name, frame in linear_frames.items():
        table = TABLES[name]
        assert set(table.columns) <= set(frame.columns)
        assert not frame.duplicated([k for k in table.key if k in frame.columns]).any()


def test_a_pair_asked_for_by_two_rules_is_one(linear_frames):
    pairs = linear_frames["saliency"][["explainer", "image_id", "target"]]
    predicted = linear_frames["predictions"].set_index("image_id").predicted
    expected = {(e, i, t) for e in ("input_x_gradient", "saliency") for i, p in predicted.items() for t in {1, p}}
    assert set(pairs.itertuples(index=False, name=None)) == expected
    assert len(pairs) == len(expected)


def test_endpoints_are_shared_by_everything_that_shares_image_and_fill(linear_frames):
    curves = linear_frames["curves"]
    ends = curves[curves.level.isin([0.0, 1.0])]
    assert (ends.groupby(["image_id", "target", "fill", "level"]).logit_target.nunique() == 1).all()
    whole = curves.groupby(["explainer", "image_id", "target", "control", "draw", "grid", "fill", "direction"])["level"]
    assert (whole.apply(list).map(lambda v: v == [0.0, 0.3, 0.5, 0.75, 1.0])).all()


def test_targets_mirror_each_other(linear_frames):
    shared = linear_frames["curves"].query("explainer == 'shared'")
    wide = shared.pivot_table(
        index=["image_id", "control", "draw", "grid", "fill", "direction", "level"],
        columns="target",
        values="logit_target",
    ).dropna()
    assert len(wide)
    assert np.allclose(wide[0], -wide[1])


def test_faithfulness_can_be_recomputed_from_curves(linear_frames):
    curves, rows = linear_frames["curves"], linear_frames["faithfulness"]
    row = rows.query(
        "explainer == 'saliency' and metric == 'abpc' and scale == 'logodds' and grid == '7' and "
        "fill == 'mean' and control == 'shifted' and target == 1"
    ).iloc[2]
    mine = curves.query("explainer == 'saliency' and grid == '7' and fill == 'mean' and target == 1")
    mine = mine[mine.image_id == row.image_id]

    def abpc(part):
        area = {o: np.trapezoid(p.logit_target, p.level_done) for o, p in part.groupby("direction")}
        return area["lerf"] - area["morf"]

    draws = np.array([abpc(p) for _, p in mine[mine.control == "shifted"].groupby("draw")])
    value = abpc(mine[mine.control == "none"])
    assert row.value == pytest.approx(value, abs=1e-4)
    assert row.control_mean == pytest.approx(draws.mean(), abs=1e-4)
    assert row.gap == pytest.approx(value - draws.mean(), abs=1e-4)
    assert row.n_as_extreme == (draws >= value).sum()
    assert row.p_value == pytest.approx((1 + row.n_as_extreme) / 21)
    wide = rows[rows.control == "none"].pivot_table(
        index=["explainer", "image_id", "target", "grid", "fill", "scale"], columns="metric", values="value"
    )
    assert np.allclose(wide.abpc, wide.insertion_auc - wide.deletion_auc, atol=1e-4)


def test_shared_controls_stand_once_and_pixel_random_on_pixels_alone(linear_frames):
    curves = linear_frames["curves"]
    shared = curves[curves.explainer == "shared"]
    assert set(shared.control) == {"pixel_random", "cell_random"}
    assert set(shared[shared.control == "pixel_random"].grid) == {"pixel"}
    assert set(curves[curves.explainer != "shared"].control) == {"none", "smooth_random", "shifted"}
    compared = linear_frames["faithfulness"].groupby("grid").control.unique().map(set)
    assert compared["pixel"] - compared["7"] == {"pixel_random"}


def test_overlap_of_shifted_maps_lies_between_none_and_all(linear_frames):
    shifted = linear_frames["curves"].query("control == 'shifted'")
    assert shifted[shifted.level == 0].overlap.isna().all()
    assert (shifted[shifted.level == 1].overlap == 1).all()
    assert abs(shifted[(shifted.level == 0.5) & (shifted.grid == "pixel")].overlap.mean() - 0.5) < 0.05


@pytest.mark.parametrize(("batch_size", "places"), [(1, None), (7, 5 * SIZE**2 * 3), (64, 1)])
def test_tables_do_not_depend_on_how_many_images_and_rankings_are_held_at_a_time(monkeypatch, batch_size, places):
    one = worker(sweep(), linear_model())(shard())
    control, draws = CONTROLS["cell_random"], []

    def drawn(wanted, *arguments):
        draws.append(list(wanted.numbers))
        return control.draw(wanted, *arguments)

    monkeypatch.setitem(CONTROLS, "cell_random", dataclasses.replace(control, draw=drawn))
    another = worker(sweep(), linear_model(), batch_size)
    if places:
        another.capacity = Capacity(places=places)
    other = another(shard())
    assert draws[-1] == ([2] if places == 1 else [0, 1, 2])
    assert one.keys() == other.keys()
    for name in one:
        a, b = one[name].to_pandas(), other[name].to_pandas()
        pd.testing.assert_frame_equal(a, b, rtol=0, atol=1e-4)


def test_the_number_of_passes_is_exactly_what_the_dry_run_says(monkeypatch):
    config = sweep(
        explain={"explainers": [name for name, entry in EXPLAINERS.items() if "attention" not in entry.needs]},
        controls={"pixel_random": 2, "cell_random": 1, "shifted": 3},
        data={"size": SIZE + 4, "source": "phantom"},
        regions={"names": ["border", "outside_lungs", "marker", "opacity"], "draws": 3, "edits": ["equalize"]},
    )
    size = config.data.size
    model = networks.small(size=size)
    monkeypatch.setattr(perturbation, "RISE_MASKS", 70)
    forward, backward = [], []
    _ = model.structure  # read once, with passes of its own
    model.network.register_forward_pre_hook(lambda m, a: forward.append(len(a[0])))
    model.network.conv1.register_full_backward_hook(lambda m, i, o: backward.append(len(o[0])))
    masks = dict.fromkeys(("lungs", "marker", "opacity"), np.zeros((3, size, size), bool))
    for mask in masks.values():
        mask[:, 3:9, 5:10] = True
    versions = dict.fromkeys(("opacity", "marker", "glyph"), np.zeros((3, 3, size, size), np.uint8))
    worker(config, model)(dataclasses.replace(shard(3, size), masks=masks, counterfactuals=versions))
    assert sum(forward) + 2 * sum(backward) == 3 * passes_per_image(config, size, networks.CHANNELS)[0]


def test_linear_is_scored_like_any_fill_and_ends_at_the_mean():
    fills = ["mean", "linear"]
    few = {
        "explain": {"explainers": ["saliency"], "targets": ["pneumonia"]},
        "controls": {"cell_random": 1, "shifted": 1},
    }
    config = sweep(perturb={"grids": ["pixel", "7"], "fills": fills, "levels": [0.5, 0.999]}, **few)
    model, passes = linear_model(), []
    model.network.register_forward_pre_hook(lambda m, a: passes.append(len(a[0])))
    curves = frames(worker(config, model)(shard()))["curves"]
    wide = curves[curves.explainer == "shared"].pivot_table(
        index=["image_id", "target", "control", "draw", "grid", "direction", "level"],
        columns="fill",
        values="logit_target",
    )
    level = wide.index.get_level_values("level")
    mean, linear = wide[level.isin([0.0, 1.0])].to_numpy().T
    assert np.allclose(mean, linear, atol=1e-5)
    # 0.999 of 49 cells are all of them
    mean, linear = wide[(level == 0.999) & (wide.index.get_level_values("grid") == "7")].to_numpy().T
    assert np.allclose(mean, linear, atol=1e-4)
    assert (wide[level == 0.5]["mean"] - wide[level == 0.5]["linear"]).abs().min() > 1e-4
    backward = EXPLAINERS["saliency"].passes(SIZE)[1]
    assert sum(passes) + 2 * 5 * backward == 5 * passes_per_image(config, SIZE)[0]


def test_validation_images_are_predicted_also_wholly_filled_and_no_more():
    tables = worker(sweep(), linear_model())(shard(split="val"))
    assert list(tables) == [("predictions", ""), ("filled", "")]


def _entry(function) -> Explainer:
    return Explainer(function, lambda size: (0, 0), "a toy")


def test_maps_that_fail_are_marked_and_never_dropped(monkeypatch):
    def constant(model, inputs):
        return torch.full((len(inputs.images), 7, 7), 0.3)

    def not_finite(model, inputs):
        maps = torch.rand(len(inputs.images), 7, 7)
        maps[0, 3, 3] = torch.nan
        return maps

    def broken(model, inputs):
        raise RuntimeError("out of ideas\nand a second line")

    for name, function in {"constant": constant, "not_finite": not_finite, "broken": broken}.items():
        monkeypatch.setitem(EXPLAINERS, name, _entry(function))
    config = sweep(explain={"explainers": ["constant", "not_finite", "broken"]})
    out = frames(worker(config, linear_model())(shard()))
    maps: Any = out["saliency"].set_index(["explainer", "image_id"])
    assert maps.loc["constant"].degenerate.all()
    assert (maps.loc["constant"].concentration == "degenerate").all()
    assert (maps.loc["constant"].tied == 1).all()
    first = shard().image_ids[0]
    assert pd.isna(maps.loc[("not_finite", first), "concentration"])
    faith = out["faithfulness"]
    bad = (faith.explainer == "not_finite") & (faith.image_id == first)
    assert faith[bad].value.isna().all()
    assert faith[~bad].value.notna().all()
    assert out["curves"].query("explainer == 'not_finite'").logit_target.isna().any()
    errors = out["errors"]
    assert list(errors.image_id) == list(shard().image_ids)
    assert set(errors.stage) == {"explain:m:broken"}
    assert set(errors.reason) == {"out of ideas"}


def test_an_image_without_a_finite_score_is_an_error_and_has_no_outcome():
    config, model = sweep(controls={"cell_random": 1}), linear_model()
    whole = shard()
    odd = whole.pixels.copy()
    odd[2] = 255  # alone above what the network can take

    class Brittle(nn.Module):
        def forward(self, images):
            return torch.where(images.flatten(1).amin(1, keepdim=True) > 1, torch.nan, model.network(images))

    brittle = Classifier(Brittle(), model.spec).eval()
    out = frames(worker(config, brittle)(dataclasses.replace(whole, pixels=odd)))
    assert list(out["errors"].itertuples(index=False, name=None)) == [
        ("2.png", whole.image_ids[2], "score:m", "no finite score")
    ]
    rest = frames(worker(config, model)(whole.only(np.arange(5) != 2)))
    assert out.keys() - rest.keys() == {"errors"}
    for name in rest:
        pd.testing.assert_frame_equal(out[name], rest[name], rtol=0, atol=1e-5)
    odd[:] = 255
    assert frames(worker(config, brittle)(dataclasses.replace(whole, pixels=odd))).keys() == {"errors"}


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_a_device_that_fails_ends_the_run_and_loses_no_maps(monkeypatch, failure):
    def broken(model, inputs):
        raise failure("the device")

    monkeypatch.setitem(EXPLAINERS, "broken", _entry(broken))
    with pytest.raises(failure, match="the device"):
        worker(sweep(explain={"explainers": ["broken"]}), linear_model())(shard())


def test_sequential_draws_that_explainers_and_targets_share_are_scored_once():
    """Tests that never stop make exactly the passes that the dry run calls the most."""
    few = {
        "controls": {"pixel_random": 4, "smooth_random": 1, "shifted": 2},
        "sequential": {"max_draws": 23, "extreme": 99},
    }
    one, two = ({"targets": targets} for targets in (["pneumonia"], ["pneumonia", "predicted"]))
    explainers = ["input_x_gradient", "saliency", "gradient_shap"]
    counted = {}
    for name, explain in (("one", one), ("two", two)):
        config = sweep(explain={**explain, "explainers": explainers}, **few)
        model = linear_model()
        passes: list[int] = []
        model.network.register_forward_pre_hook(lambda m, a, seen=passes: seen.append(len(a[0])))
        out = frames(worker(config, model)(shard()))
        counted[name] = sum(passes)
        p = out["faithfulness"].query("metric == 'abpc' and scale == 'logodds' and control != 'none'").p_draws
        assert set(p) == {23}
    forward, backward = (sum(EXPLAINERS[e].passes(SIZE)[k] for e in explainers) for k in (0, 1))
    assert counted["one"] == 5 * (passes_per_image(config, SIZE)[0] - 2 * backward)
    own = forward + len(explainers) * 2 * 12 * (1 + 2 * 23)  # maps on grids x curves of the map and of two controls
    n_negative = int((out["predictions"].predicted == 0).sum())
    assert 0 < n_negative < 5
    assert counted["two"] == counted["one"] + n_negative * own


def test_a_constant_map_is_ranked_by_the_smooth_field_alone(monkeypatch):
    """Its curves are those of the field: neither random pixels nor the raster order."""
    monkeypatch.setitem(EXPLAINERS, "constant", _entry(lambda m, i: torch.zeros(len(i.images), 7, 7)))
    seen = []
    original = rankings.rank

    def rank(maps, ties):
        seen.append((maps, ties))
        return original(maps, ties)

    monkeypatch.setattr(rankings, "rank", rank)
    config = sweep(explain={"explainers": ["constant"]}, controls={})
    worker(config, linear_model())(shard(2))
    for maps, ties in seen:
        places = original(maps, ties)
        assert torch.equal(places.argsort(1), ties.argsort(dim=1, descending=True, stable=True))


def test_orders_and_targets_can_be_left_out():
    config = sweep(
        perturb={"grids": ["7"], "fills": ["mean"], "levels": [0.25, 0.5, 0.75], "orders": ["lerf"]}, controls={}
    )
    out = frames(worker(config, linear_model())(shard()))
    assert set(out["faithfulness"].metric) == {"insertion_auc"}
    assert set(out["curves"].direction) == {"lerf"}
    assert set(itertools.chain(out["faithfulness"].control)) == {"none"}


def test_overlap_is_that_of_the_most_salient_quarter_on_average_over_draws():
    perturb = {"grids": ["pixel", "7"], "fills": ["mean"], "levels": [0.25], "orders": ["morf"]}
    out = frames(worker(sweep(perturb=perturb), linear_model())(shard()))
    key = ["explainer", "image_id", "target", "grid", "control"]
    curves = out["curves"].query("level == 0.25 and control in ('shifted', 'smooth_random')")
    expected = curves.groupby(key).overlap.mean()
    assert len(expected)
    for extreme in ("min", "max"):  # of metrics and scales
        found = out["faithfulness"].groupby(key).overlap.agg(extreme)
        assert np.allclose(found.reindex(expected.index), expected, atol=1e-6)
    alone = out["faithfulness"].control.isin(["none", "cell_random", "pixel_random"])
    assert out["faithfulness"][alone].overlap.isna().all()
    other_levels = frames(worker(sweep(), linear_model())(shard()))["faithfulness"]
    assert np.allclose(other_levels.groupby(key).overlap.mean().reindex(expected.index), expected, atol=1e-6)


def test_sequential_draws_test_the_metric_that_was_chosen_on_validation():
    config = sweep(
        explain={"explainers": ["saliency"]},
        perturb={"grids": ["7"], "fills": ["mean"], "levels": [0.25, 0.5, 0.75]},
        controls={"cell_random": 1},
        sequential={"max_draws": 19, "extreme": 99},
    )
    w = worker(config, linear_model())
    w.tested = metrics.Tested(("deletion_auc", np.nan), "mean")
    rows = frames(w(shard()))["faithfulness"].query("scale == 'logodds' and control == 'cell_random'")
    assert set(rows[rows.p_draws.notna()].metric) == {"deletion_auc"}
    assert set(rows.metric) == {"deletion_auc", "insertion_auc", "abpc", "drop"}


def test_half_precision_has_no_bias_in_advantages():
    """The arithmetic is that of a GPU's float16; on a CPU it is only slow."""
    size, n = 32, 12
    model = Classifier(networks.varied_resnet18(), ModelSpec("resnet18", size)).eval().requires_grad_(False)
    config = sweep(
        explain={"explainers": ["gradcam", "saliency"], "targets": ["pneumonia"]},
        perturb={"grids": ["7"], "fills": ["mean"], "levels": [0.5]},
        controls={"cell_random": 3},
        regions=None,
    )
    gaps = []
    for form in (backends.eager, backends.half):
        made = worker(config, model)
        made.forward = {"m": form(model, torch.zeros(1))}.__getitem__
        rows = frames(made(shard(n, size)))["faithfulness"]
        kept = (
            (rows.metric == "drop") & (rows.level == 0.5) & (rows.scale == "logodds") & (rows.control == "cell_random")
        )
        gaps.append(rows[kept].set_index(["explainer", "image_id"]).gap.sort_index())
    difference = gaps[1] - gaps[0]
    by_image = difference.groupby("image_id").mean()  # the explainers share an image's controls
    assert len(by_image) == n
    assert 0 < difference.std() < gaps[0].std() / 50
    assert abs(by_image.mean()) < 3.5 * by_image.std() / n**0.5


class _Clock:
    """A host that works and waits, and a device that works through a queue."""

    def __init__(self) -> None:
        self.now = self.free = 0.0

    def ask(self, seconds: float) -> None:
        self.free = max(self.free, self.now) + seconds

    def wait(self) -> None:
        self.now = max(self.now, self.free)


@pytest.mark.parametrize(("piece", "seconds"), [(8, 4 * (3 + 2)), (2, 4 * 3 + 2)])
def test_a_gpu_scores_the_next_images_while_rows_of_the_last_are_made(monkeypatch, piece, seconds):
    """Four pieces, each 3 s of the device and 2 s of rows: only the last rows are waited for."""
    clock, made, given = _Clock(), worker(sweep(), linear_model()), shard(8)
    made.capacity = Capacity(images=piece)

    def batch(piece, *_):
        clock.wait()  # for the images' own scores
        return piece

    def begin(piece, *_):
        clock.ask(1.5 * len(piece.image_ids))
        done = clock.free

        def rows():
            clock.now = max(clock.now, done) + len(piece.image_ids)
            return {("predictions", ""): pa.table({"image_id": list(piece.image_ids)})}

        return rows

    monkeypatch.setattr(made, "_batch", batch)
    monkeypatch.setattr(made, "_begin", begin)
    tables = made(given)
    assert clock.now == seconds
    assert tables["predictions", ""]["image_id"].to_pylist() == list(given.image_ids)


def test_pieces_of_a_shard_give_its_rows():
    config, given = sweep(regions={"names": ["border", "centre"], "draws": 1}), shard()
    whole = worker(config, linear_model())(given)
    cut = worker(config, linear_model())
    cut.capacity = Capacity(images=2)
    tables = cut(given)
    assert list(tables) == list(whole)
    for name, table in whole.items():
        columns = [c for c in table.column_names if table.schema.field(c).type != pa.list_(pa.float32())]
        expected, made = (
            t.select(columns).to_pandas().sort_values(columns[:8]).reset_index(drop=True) for t in (table, tables[name])
        )
        pd.testing.assert_frame_equal(made, expected, atol=1e-5)

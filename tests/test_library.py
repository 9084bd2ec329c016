"""The library without Ray: its tables are a sweep's, it changes nobody's model, and it says what it cannot take."""

import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import cxr_ray
from cxr_ray import results, sweep
from cxr_ray.analysis import statistics
from cxr_ray.analysis.measured import Measured
from cxr_ray.data import sources
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.map_files import MapFiles
from cxr_ray.data.outside_maps import MapSet
from cxr_ray.errors import CheckpointError, DataError, UnknownNameError, UserError
from cxr_ray.measure import donors
from cxr_ray.measure.shards import ModelRef, Shard
from cxr_ray.measure.worker import Worker
from cxr_ray.models import backends, checkpoints
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.schemas import TABLES
from cxr_ray.storage import Store, pack
from cxr_ray.sweepfile import load_sweep
from tests.builders import shards
from tests.builders.networks import Small, varied_resnet18

N, SIZE = 12, 28
LEVELS = [0.3, 0.5, 0.75]
PIXELS = np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE), dtype=np.uint8)
LITTLE: dict[str, Any] = {"levels": LEVELS, "grids": ["7"], "fills": ["mean"]}


WRONG: dict[str, Any] = {"grid": "7"}


def network(outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return Small(outputs).eval()


def same(name: str, one: pd.DataFrame, other: pd.DataFrame, within: float = 1e-6) -> None:
    """Equal keys and texts, numbers within so much."""
    key = list(TABLES[name].key)
    assert set(one.columns) == set(other.columns)
    assert not one.duplicated(key).any()
    one, other = (f.sort_values(key).reset_index(drop=True)[sorted(f.columns)] for f in (one, other))
    pd.testing.assert_frame_equal(one, other, check_dtype=False, check_exact=False, rtol=within, atol=within)


def test_the_tables_are_those_of_a_worker():
    """Controls that no map enters, made from the map, and from other images' maps are scored by other ways."""
    config = shards.sweep(
        controls={"cell_random": 2, "shifted": 3},
        explain={"explainers": ["saliency"], "targets": ["predicted"]},
        regions=None,
    )
    model, shard = shards.linear_model(), shards.shard()
    expected = shards.frames(shards.worker(config, model)(shard))
    found = cxr_ray.measure(
        model,
        shard.pixels,
        "saliency",
        controls=config.controls,
        levels=config.perturb.levels,
        labels=shard.labels,
        ids=shard.image_ids,
        target="predicted",
        grids=config.perturb.grids,
        fills=config.perturb.fills,
        batch_size=16,
    )
    for name in ("predictions", "saliency", "curves", "faithfulness"):
        frame = getattr(found, name)
        assert set(frame["trial_id"]) == {"model"}
        same(name, frame.assign(trial_id="m"), expected[name].assign(trial_id="m"))


def test_a_truth_is_what_maps_are_compared_with():
    """A map that is the truth is perfect; the image without one has no row."""
    pixels = np.random.default_rng(4).integers(0, 256, (4, 3, shards.SIZE, shards.SIZE), dtype=np.uint8)
    truth = np.zeros((4, shards.SIZE, shards.SIZE), dtype=bool)
    truth[1:, 4:9, 6:12] = True
    settings: dict[str, Any] = {"controls": {"shifted": 2}, "levels": [0.5], "grids": ["7"], "fills": ["mean"]}
    found = cxr_ray.measure(shards.linear_model(), pixels, truth.astype(float), truth=truth, **settings).localisation
    own = found[found["control"] == "none"]
    assert own["image_id"].unique().tolist() == ["000001", "000002", "000003"]
    assert (own["value"] == 1).all()
    assert cxr_ray.measure(shards.linear_model(), pixels, truth.astype(float), **settings).localisation.empty
    with pytest.raises(DataError, match=r"got a truth of shape \[4, 28, 28\] and type float64; expected bool"):
        cxr_ray.measure(shards.linear_model(), pixels, truth.astype(float), truth=truth.astype(float), **settings)


def test_the_tables_are_those_of_a_sweeps_stages(tmp_path):
    """Map pass, scoring pass, files of shards, merged tables and statistics, on one inference backend."""
    controls = {"cell_random": 2, "shifted": 2, "other_image": 2, "mean_map": 1}
    config = shards.sweep(
        controls=controls,
        explain={"explainers": ["gradcam"], "targets": ["pneumonia"]},
        perturb={"grids": ["7"], "fills": ["mean"], "levels": LEVELS},
        regions=None,
        sanity=None,
    )
    store = Store(str(tmp_path), {})
    store.write(config.to_yaml().encode(), "sweep.yaml")
    maps = donors.DonorMaps(store, config)
    model = Classifier(network(), ModelSpec("small", SIZE)).eval()
    ids, labels, patients = (
        [f"{i:016x}" for i in range(24)],
        [i % 2 for i in range(24)],
        [f"p{i // 2}" for i in range(24)],
    )
    pixels = np.random.default_rng(2).integers(0, 256, (24, 3, SIZE, SIZE), dtype=np.uint8)
    whole = Shard("model", "test", ids, ids, labels, pixels)
    worker = Worker(config, {"model": ModelRef("model", "", None, SIZE, model=model)}, batch_size=32, donor_maps=maps)
    parts = [replace(part, name=f"model.test.{n:05d}") for n, part in enumerate(whole.pieces(16))]
    for part in parts:
        store.write_shard(part.name, worker.map_pass(part), donors.MAPS)
    names = [part.name for part in parts]
    donors.index_maps(maps, names, ("model", SIZE), pd.Series(dict(zip(ids, patients, strict=True))), config)
    for part in parts:
        store.write_shard(part.name, pack(worker(part)))
    store.merge({"model": names}, [])
    trial = dict.fromkeys(TABLES["trials"].columns) | {"trial_id": "model", "variant": "model", "status": "given"}
    store.write_table("trials", [trial])
    image = dict.fromkeys(TABLES["images"].columns)
    store.write_table("images", [image | {"image_id": i, "patient_id": p} for i, p in zip(ids, patients, strict=True)])
    run = results.open_run(tmp_path)
    expected = TABLES["summary"].from_rows(statistics.summary(Measured(run))).to_pandas()
    about: dict[str, Any] = {"labels": labels, "ids": ids, "patients": patients, **LITTLE}
    given = {"gradcam": cxr_ray.explain(model, pixels, "gradcam")}
    found = cxr_ray.measure(model, pixels, given, controls=controls, **about)
    same("curves", found.curves, run.pandas("curves"))
    same("faithfulness", found.faithfulness, run.pandas("faithfulness"))
    same("summary", found.summary, expected)


@pytest.mark.slow
def test_the_tables_are_those_of_a_sweep(tmp_path):
    """Through Ray, whose workers may score on any inference backend: log-odds within 4e-4, as 1e-4 in probability."""
    model = Classifier(varied_resnet18(), ModelSpec("resnet18", 64))
    (tmp_path / "model.safetensors").write_bytes(checkpoints.to_bytes(model))
    content = {
        "data": {"source": "phantom", "size": 64, "phantom": {"train": 8, "test": 24}},
        "checkpoints": {"model": {"path": str(tmp_path / "model.safetensors")}},
        "explain": {"explainers": ["gradcam"]},
        "perturb": {"grids": ["7"], "fills": ["mean"], "levels": LEVELS},
        "controls": {"cell_random": 2, "shifted": 2, "other_image": 2, "mean_map": 1},
        "regions": None,
        "sanity": None,
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    assert sweep.main([str(tmp_path / "small.yaml"), "--out", str(tmp_path / "out")]) == 0
    run = results.open_run(tmp_path / "out")
    images = run.pandas("images").query("split == 'test'")
    config = load_sweep(tmp_path / "small.yaml")
    pixels = load_pixels(sources.source_of(config.data, config.seed), images, 64).images_NCHW
    mine = checkpoints.load(str(tmp_path / "model.safetensors"), None)
    mine = mine.to(memory_format=torch.channels_last)  # as a worker's: another rounds apart
    maps = cxr_ray.explain(backends.for_explainers(mine), pixels, "gradcam")  # likewise
    found = cxr_ray.measure(
        mine,
        pixels,
        {"gradcam": maps},
        controls=config.controls,
        levels=LEVELS,
        patients=images["patient_id"],
        labels=images["label"],
        ids=list(images["image_id"]),
        grids=["7"],
        fills=["mean"],
    )
    for name in ("curves", "faithfulness", "summary"):
        same(name, getattr(found, name), run.pandas(name), within=4e-4)


def test_named_explainers_and_their_maps_given_are_measured_alike():
    model = network()
    maps = cxr_ray.explain(model, PIXELS, "gradcam", target="predicted")
    controls = {"shifted": 2, "other_image": 2}
    given, named = (
        cxr_ray.measure(model, PIXELS, m, controls=controls, target="predicted", **LITTLE)
        for m in ({"gradcam": maps}, "gradcam")
    )
    same("faithfulness", given.faithfulness, named.faithfulness)
    same("summary", given.summary, named.summary)


def test_a_map_is_of_its_image_whatever_stands_beside_it():
    model = network()
    one = cxr_ray.explain(model, PIXELS[3:4], "rise", ids=["a"])
    ids = [f"{i}" for i in range(3)] + ["a"] + [f"{i}" for i in range(4, N)]
    assert np.allclose(one[0], cxr_ray.explain(model, PIXELS, "rise", ids=ids)[3], atol=1e-5)


def test_the_target_of_each_image_can_be_given():
    model = network()
    both = [cxr_ray.explain(model, PIXELS, "input_x_gradient", target=t) for t in (0, 1)]
    mixed = cxr_ray.explain(model, PIXELS, "input_x_gradient", target=[i % 2 for i in range(N)])
    assert np.allclose(mixed[0::2], both[0][0::2], atol=1e-6)
    assert np.allclose(mixed[1::2], both[1][1::2], atol=1e-6)
    assert not np.allclose(both[0], both[1], atol=1e-3)


def test_a_function_of_images_and_images_between_0_and_1_are_measured_as_the_module_and_bytes():
    model, maps = network(1), np.random.default_rng(1).random((N, 7, 7))
    grey = np.repeat(PIXELS[:, None], 3, 1)
    one = cxr_ray.measure(model, PIXELS, maps, controls={"shifted": 2}, **LITTLE)
    other = cxr_ray.measure(lambda x: model(x), grey / 255, maps, controls={"shifted": 2}, **LITTLE)
    same("curves", one.curves, other.curves, within=1e-4)
    assert set(one.curves["explainer"]) == {"maps"}


def test_files_are_read_at_the_size_of_the_spec(tiny_folder):
    paths = sorted(str(p) for p in tiny_folder.rglob("*.png"))[:3]
    maps = cxr_ray.explain(network(), paths, "edges", spec=cxr_ray.ModelSpec("mine", 28))
    assert maps.shape == (3, 28, 28)
    with pytest.raises(DataError, match=r"none.png, which cannot be read .*; expected an image"):
        cxr_ray.explain(network(), [*paths, "none.png"], "edges", spec=cxr_ray.ModelSpec("mine", 28))


def test_without_labels_there_are_no_outcomes_and_one_bucket():
    maps = np.random.default_rng(1).random((N, 7, 7))
    found = cxr_ray.measure(network(), PIXELS, maps, controls={"shifted": 2}, **LITTLE)
    assert set(found.summary["bucket"]) == {"all"}
    assert found.faithfulness["outcome"].isna().all()
    assert found.predictions["label"].isna().all()
    assert (found.summary["n_patients"] == N).all()


def test_a_map_that_is_missing_is_null_and_counted():
    maps = np.random.default_rng(1).random((N, 7, 7))
    maps[2] = np.nan
    found = cxr_ray.measure(network(), PIXELS, maps, controls={"shifted": 2}, **LITTLE)
    rows = found.faithfulness.query("control == 'shifted'")
    assert set(rows[rows["gap"].isna()]["image_id"]) == {"000002"}
    assert set(found.summary.query("control == 'shifted'")["n_null"]) == {1}


def test_maps_larger_than_the_images_become_what_a_sweep_makes_of_files():
    maps = np.random.default_rng(1).random((N, 5 * SIZE, 5 * SIZE)) - 0.5
    maps[3, 0, 0] = np.nan
    of_files = MapSet(MapFiles("mine", "maps.npz"), over_images=False, side=maps.shape[1])
    placed = np.stack([of_files.placed(of.astype(np.float32), SIZE, "squash", "none") for of in maps])
    placed[3] = np.nan
    asked = {**LITTLE, "controls": {"shifted": 1}, "truth": PIXELS > 200}
    with pytest.warns(UserWarning, match="maps 'mine' of 140 x 140 are larger than the images: .* to 28 x 28, .*anti"):
        found = cxr_ray.measure(network(), PIXELS, {"mine": maps}, **asked)
    expected = cxr_ray.measure(network(), PIXELS, {"mine": placed}, **asked)
    for name in ("saliency", "curves", "faithfulness", "localisation", "summary"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(expected, name))
    assert found.curves.query("control == 'none'").groupby("image_id")["logit_target"].count().min() == 0


def test_the_model_stays_as_it_was():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cxr_ray.measure(model, PIXELS, ["gradcam", "deeplift"], controls={"random_cam": 2}, **LITTLE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None and p.is_contiguous() for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (PIXELS[0], "got images of shape [28, 28]; expected [N, 3, S, S]"),
        (PIXELS[:, :20], "got images of shape [12, 20, 28]"),
        (PIXELS / 127.5 - 1, "got images with values from -1 to 1; expected uint8, or [0, 1]: images before they are"),
        (PIXELS.astype(int), "got images of type int64"),
        (["a.png"], "got paths of images without a spec"),
    ],
)
def test_other_images_are_refused(images, error):
    with pytest.raises(DataError, match=re.escape(error)):
        cxr_ray.explain(network(), images)


def test_other_models_maps_and_names_are_refused():
    maps = np.zeros((N, 7, 7))
    with pytest.raises(CheckpointError, match="got a model in training mode"):
        cxr_ray.explain(network().train(), PIXELS)
    with pytest.raises(CheckpointError, match=r"got \[1, 3\] as the logits of one image"):
        cxr_ray.explain(network(3), PIXELS)
    with pytest.raises(DataError, match=re.escape("got images of 28 x 28 pixels; expected 32 x 32, the spec's size")):
        cxr_ray.explain(network(), PIXELS, spec=cxr_ray.ModelSpec("mine", 32))
    with pytest.raises(UnknownNameError, match="Did you mean 'gradcam'"):
        cxr_ray.explain(network(), PIXELS, "grdcam")
    for wrong in (maps[:3], maps[:, :5], maps[0]):
        with pytest.raises(DataError, match=r"got maps of shape .*; expected \[12, V, V\]"):
            cxr_ray.measure(network(), PIXELS, wrong)
    with pytest.raises(UserError, match="controls: got 'shiftd'"):
        cxr_ray.measure(network(), PIXELS, maps, controls={"shiftd": 2})
    with pytest.raises(UserError, match="got the argument grid; expected one of: labels, target"):
        cxr_ray.measure(network(), PIXELS, maps, **WRONG)
    with pytest.raises(DataError, match="got 3 patients for 12 images"):
        cxr_ray.measure(network(), PIXELS, maps, patients=["a", "b", "c"])
    with pytest.raises(DataError, match="got 12 ids, 1 of them different, for 12 images"):
        cxr_ray.measure(network(), PIXELS, maps, ids=["a"] * N)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"patients": ["a", None] * 6}, "got no patient for 6 of 12 images (image 1); expected one for each"),
        ({"patients": [np.nan] * N}, "got no patient for 12 of 12 images"),
        ({"patients": pd.Series(["a", " "] * 6)}, "got no patient for 6 of 12 images"),
        ({"controls": ["shifted"]}, "got controls ['shifted']; expected each name with its number of draws"),
        ({"maps": {}}, "got maps named []; expected one name or more"),
        ({"maps": {"shared": np.zeros((N, 7, 7))}}, "got maps named ['shared']; expected one name or more"),
        ({"maps": {1: np.zeros((N, 7, 7))}}, "got maps named [1]; expected one name or more, each a text"),
    ],
)
def test_what_a_measurement_cannot_know_is_refused(asked, error):
    maps = asked.pop("maps", np.zeros((N, 7, 7)))
    with pytest.raises(DataError, match=re.escape(error)):
        cxr_ray.measure(network(), PIXELS, maps, **asked, **LITTLE)


@pytest.mark.parametrize("grid", ["7", 7, np.array([7])])
def test_a_name_alone_is_one_of_several(grid):
    asked = {"controls": {}, "levels": LEVELS, "grids": grid, "fills": "mean", "batch_size": np.int64(8)}
    one = cxr_ray.measure(network(), PIXELS, np.zeros((N, 7, 7)), **asked)
    assert set(one.curves["grid"]) == {"7"}
    assert set(one.curves["fill"]) == {"mean"}


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"labels": [0, None] * 6}, "got labels of shape [12], 0, None among them"),
        ({"patients": np.array([np.nan] * N).astype(str)}, "got no patient for 12 of 12 images"),
        ({"maps": [np.zeros((7, 7)), np.zeros((6, 6))] * 6}, "got maps that make no array"),
        ({"maps": np.full((N, 7, 7), "x")}, "got maps of shape [12, 7, 7] and type <U1"),
        ({"levels": ["a"]}, "perturb.levels"),
        ({"batch_size": 0}, "got batch_size 0; expected a whole number from 1"),
        ({"labels": {"a": 1}}, "got labels of shape [], {'a': 1} among them"),
        ({"ids": 7}, "got ids 7; expected one for each image"),
        ({"grids": 9}, "perturb.grids"),
        ({"batch_size": True}, "got batch_size True; expected a whole number from 1"),
    ],
)
def test_what_is_no_number_or_array_is_a_sentence(asked, error):
    with pytest.raises(UserError, match=re.escape(error)):
        cxr_ray.measure(network(), PIXELS, **{"maps": np.zeros((N, 7, 7)), **LITTLE, **asked})


def test_one_level_alone_is_one_of_several():
    one = cxr_ray.measure(network(), PIXELS, np.zeros((N, 7, 7)), **{**LITTLE, "levels": 0.5})
    assert set(one.curves["level"]) <= {0.0, 0.5, 1.0}


def test_what_a_verdict_or_an_explanation_does_not_take_is_a_sentence():
    with pytest.raises(UserError, match="got the argument truth for a verdict, which asks about faithfulness alone"):
        cxr_ray.verdict(network(), PIXELS, np.zeros((N, 7, 7)), truth=np.zeros((N, 28, 28), bool), **LITTLE)
    with pytest.raises(UserError, match="expected the name of one, a text"):
        cxr_ray.explain(network(), PIXELS, ["gradcam"])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="got images that make no array"):
        cxr_ray.explain(network(), [PIXELS[0], PIXELS[1][:20]])


def test_files_that_are_read_too_dark_are_told(tmp_path):
    for n, top in enumerate((4095, 65535)):
        Image.fromarray(np.linspace(0, top, 28 * 28).reshape(28, 28).astype(np.uint16)).save(tmp_path / f"{n}.png")
    spec = cxr_ray.ModelSpec("mine", 28)
    with pytest.warns(
        UserWarning, match=r"1 of 2 images end far below their 16 bits .*0.png at 4\d+, as 12 bits would"
    ):
        cxr_ray.explain(network(), [str(tmp_path / f"{n}.png") for n in (0, 1)], "saliency", spec=spec)


def test_three_images_that_may_be_one_of_three_channels_are_told():
    with pytest.warns(UserWarning, match="taken for three grey images; give one of three channels as images"):
        cxr_ray.explain(network(), PIXELS[:3], "saliency")


def test_targets_of_another_number_are_refused():
    with pytest.raises(DataError, match=re.escape("got targets of shape [2], 0, 1 among them; expected 0 or 1")):
        cxr_ray.explain(network(), PIXELS, target=[0, 1])


def test_comparisons_that_cannot_be_made_are_told():
    asked = {**LITTLE, "controls": {"random_cam": 1, "pixel_random": 1, "other_image": 1}}
    with pytest.warns(UserWarning, match="is not compared with") as told:
        cxr_ray.measure(network(), PIXELS, ["saliency", "gradcam"], patients=["one"] * N, **asked)
    lines = [str(w.message) for w in told]
    for explainer in ("saliency", "gradcam"):
        assert f"{explainer} is not compared with pixel_random: it has no draws on grid 7" in lines
        assert f"{explainer} is not compared with other_image: no other patient's image of the same " in str(lines)
    assert "saliency is not compared with random_cam: it is made from the class weights" in str(lines)
    assert "gradcam is not compared with random_cam" not in str(lines)
    with pytest.raises(UserError, match=r"controls: got random_cam, which cannot be drawn for maps .*; leave it out"):
        cxr_ray.verdict(network(), PIXELS, PIXELS / 255, controls=["random_cam", "shifted"])


def test_masked_images_without_a_finite_score_are_null_and_told():
    def score(images):
        z = network()(images)[:, 1:]
        return torch.where((images.std((1, 2, 3)) < 0.5)[:, None], torch.inf, z)  # as images are that are filled

    asked: dict[str, Any] = {**LITTLE, "controls": {"shifted": 1}}
    with pytest.warns(UserWarning, match="12 images, whose masked copies have no finite score: their values are null"):
        found = cxr_ray.measure(score, PIXELS, "intensity", **asked)
    assert not np.isinf(found.curves["logit_target"]).any()
    areas = found.faithfulness.query("metric == 'deletion_auc' or metric == 'insertion_auc'")
    assert areas["value"].isna().all()


def test_a_map_that_is_missing_is_no_score_that_is_not_finite():
    maps = {"in part": PIXELS / 255, "whole": PIXELS / 255}
    maps["in part"][1] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cxr_ray.measure(network(), PIXELS, maps, **{**LITTLE, "controls": {"shifted": 1}})


def test_one_class_of_several_outputs_is_told():
    with pytest.warns(UserWarning, match="of the model: output 3 alone is PNEUMONIA, and its log-odds are taken for"):
        cxr_ray.explain(network(14), PIXELS, "intensity", spec=ModelSpec("mine", SIZE, columns=((), (3,))))


def test_preprocessing_of_images_in_memory_is_refused():
    spec = ModelSpec("mine", SIZE, preprocess="mask_border")
    with pytest.raises(DataError, match="got a spec with preprocess 'mask_border' for images in memory"):
        cxr_ray.explain(network(), PIXELS, spec=spec)


@pytest.mark.parametrize("form", [pd.Series, np.array, iter, lambda paths: [Path(path) for path in paths]])
def test_paths_may_come_in_any_form(tmp_path, form):
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    for path, pixels in zip(paths, PIXELS, strict=False):
        Image.fromarray(pixels).save(path)
    found = cxr_ray.explain(network(), form(paths), "saliency", spec=ModelSpec("mine", SIZE))
    np.testing.assert_allclose(found, cxr_ray.explain(network(), PIXELS[:2], "saliency"), rtol=1e-3, atol=1e-6)


def test_one_text_and_paths_that_are_missing_are_a_sentence(tmp_path):
    for images in (tmp_path, f"{tmp_path}/*.png"):
        with pytest.raises(DataError, match=r"as images; expected a list of the paths of files; list them"):
            cxr_ray.explain(network(), images)
    with pytest.raises(DataError, match=r"got 2 images, of which 1 are no paths \(such as nan\)"):
        cxr_ray.measure(network(), pd.Series(["a.png", float("nan")], dtype=object), "saliency")


def test_what_a_caller_set_for_torch_changes_no_number():
    expected = cxr_ray.explain(network(), PIXELS, "saliency")
    model = network()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = cxr_ray.explain(nn.DataParallel(model).eval(), PIXELS, "saliency")
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found, expected)


def test_the_network_inside_a_parallel_one_is_read():
    for explainer in ("guided_gradcam", "deeplift"):
        found = cxr_ray.explain(nn.DataParallel(network()).eval(), PIXELS[:2], explainer)
        np.testing.assert_allclose(found, cxr_ray.explain(network(), PIXELS[:2], explainer), atol=1e-6)


def test_numbers_of_patients_from_0_are_patients():
    patients = [0, 0, 0, *range(1, N - 2)]
    found = cxr_ray.measure(network(), PIXELS, "saliency", patients=patients, **LITTLE, controls={"shifted": 1})
    assert found.summary["n_patients"].max() == N - 2
    with pytest.raises(DataError, match="got no patient for 3 of 12 images"):
        cxr_ray.measure(network(), PIXELS, "saliency", patients=[0, 0, 0, *range(7, N + 4)])


class Numbers(nn.Module):
    """A network whose outputs have no gradient."""

    def __init__(self, how: str):
        super().__init__()
        self.network, self.how = network(), how

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.how == "numpy":
            return torch.from_numpy(self.network(images).numpy())
        with torch.inference_mode(self.how == "inference_mode"), torch.set_grad_enabled(self.how == "detach"):
            return self.network(images).detach()


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "detach", "numpy"])
def test_explainers_of_a_network_without_gradients_are_refused_in_a_sentence(how):
    for explainer in ("gradcam", "scorecam", "guided_gradcam", "saliency", "attention_rollout"):
        with pytest.raises(UserError, match=f"got the explainer {explainer} for a model that cannot have it: "):
            cxr_ray.explain(Numbers(how).eval(), PIXELS, explainer)
    assert np.isfinite(cxr_ray.explain(Numbers(how).eval(), PIXELS[:2], "occlusion")).all()


def test_outcomes_are_no_buckets_of_a_verdict_without_labels():
    with pytest.raises(DataError, match="got buckets FP without labels; expected labels"):
        cxr_ray.verdict(network(), PIXELS, np.zeros((N, 7, 7)), buckets="FP", **LITTLE)


def test_importing_the_package_imports_nothing_else_and_its_names_are_found():
    code = "import sys, cxr_ray; assert not {'torch', 'numpy', 'pandas', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(cxr_ray.__file__).parent.parent, check=True)
    with pytest.raises(AttributeError, match="has no attribute 'explian'"):
        cxr_ray.explian  # noqa: B018
    assert cxr_ray.open_run is results.open_run
    assert vars(cxr_ray)["measure"].worker.Worker is Worker


def test_a_verdict_decides_for_maps_that_are_right_and_not_for_noise():
    """The score is the sum of one patch's pixels: a map of that patch beats itself elsewhere, noise does not."""

    def patch(images):
        return images[:, :, 4:12, 4:12].mean((1, 2, 3))[:, None] * 10

    truth = np.zeros((40, SIZE, SIZE))
    truth[:, 4:12, 4:12] = 1
    rng = np.random.default_rng(5)
    images = rng.integers(64, 256, (40, SIZE, SIZE), dtype=np.uint8)
    maps = {"patch": truth, "noise": rng.random((40, 7, 7))}
    rows = cxr_ray.verdict(patch, images, maps, controls=["shifted"], fills=["black"], grids=["7"], levels=[0.25, 0.5])
    decision = rows.set_index("explainer")["decision"]
    assert decision["patch"] == "better"
    assert decision["noise"] != "better"
    assert list(rows.columns) == list(TABLES["verdicts"].columns)
    assert rows["sentence"][0].startswith("patch on model: more faithful than shifted maps (")
    assert set(rows["metric"]) == {"drop"}


def test_a_verdict_takes_the_first_fill_that_is_valid_on_other_images():
    """Filled black, the brightness is gone; filled with the mean, it is not."""
    rng = np.random.default_rng(5)
    images, other = rng.integers(64, 256, (2, 20, SIZE, SIZE), dtype=np.uint8)
    rows = cxr_ray.verdict(
        lambda x: x.mean((1, 2, 3))[:, None] * 3 + 2,
        images,
        rng.random((20, 7, 7)),
        controls=["shifted"],
        grids=["7"],
        fills=["mean", "black"],
        levels=[0.25, 0.5, 0.75],
        validation=other,
    )
    assert set(rows["fill"]) == {"black"}
    assert set(rows["metric"]) == {"abpc"}
    with pytest.raises(UserError, match="got the argument grid"):
        cxr_ray.verdict(lambda x: x, images, images, **WRONG)


def test_stability_is_that_of_a_worker():
    """Of an explainer, and of maps from outside, which cannot be made again."""
    asked: dict[str, Any] = {"noise": [0.1], "draws": 2, "shifts": [], "squares": 4}
    plain: dict[str, Any] = {
        "explain": {"explainers": ["saliency"], "targets": ["pneumonia"]},
        "controls": {"shifted": 2},
    }
    config = shards.sweep(**plain, regions=None, stability={"images": 4, **asked})
    model, shard = shards.linear_model(), shards.shard()
    expected = shards.frames(shards.worker(config, model)(replace(shard, split="stability")))["stability"]
    given: dict[str, Any] = {
        "ids": list(shard.image_ids),
        "spec": model.spec,
        "controls": {"shifted": 2},
        "fills": ["mean"],
    }
    found = cxr_ray.measure(model, shard.pixels, "saliency", stability=asked, levels=[0.5], **given)
    same("stability", expected.assign(trial_id="model"), found.stability)
    assert set(found.predictions.image_id) == set(found.stability.image_id)
    assert len(found.predictions) == len(shard.image_ids)
    maps = np.random.default_rng(1).random((len(shard.image_ids), 7, 7))
    outside = cxr_ray.measure(model, shard.pixels, {"theirs": maps}, stability=asked, levels=[0.5], **given)
    assert outside.stability.infidelity.notna().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_model_of_another_precision_is_refused_with_what_to_call(dtype):
    with pytest.raises(CheckpointError, match=r"call model\.float\(\)"):
        cxr_ray.explain(Small(2).eval().to(dtype), np.zeros((1, 56, 56), np.uint8), "centre")

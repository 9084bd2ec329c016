"""Real chest X-rays and a real model, where CXR_RAY_DATA and CXR_RAY_MODEL point to them."""

import numpy as np
import pytest
import torch
from PIL import Image

from cxr_ray import results, sweep
from cxr_ray.models import backends, checkpoints
from cxr_ray.models.networks import ModelSpec


@pytest.mark.slow
@torch.no_grad()
def test_every_backend_scores_whole_and_masked_images_as_the_eager_module_does(shared_data, shared_model):
    model = checkpoints.load(str(shared_model), ModelSpec("resnet18", 224)).requires_grad_(False)
    files = sorted((shared_data / "chest_xray_224" / "test").glob("*/*"))[::156]
    given = torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files])
    whole = given.permute(0, 3, 1, 2).float() / 255
    some = torch.rand(len(whole), 1, 224, 224, generator=torch.Generator().manual_seed(0)) < 0.5
    images = model.normalize(torch.cat([whole, torch.where(some, whole, whole.mean((2, 3), keepdim=True))]))
    expected = torch.sigmoid(model.log_odds(images))
    assert expected.max() - expected.min() > 0.9
    for name in ("folded", "onnxruntime", "mnn", "half"):
        made = torch.sigmoid(backends.BACKENDS[name].prepare(model, images[:2])(images))
        tolerance = backends.TOLERANCES[backends.BACKENDS[name].precision]
        assert (made - expected).abs().max() <= tolerance, name


@pytest.mark.slow
def test_a_given_model_on_the_real_test_split(shared_data, shared_model, tmp_path):
    """The figures of that model's own description: accuracy 0.833, AUROC 0.947, and the drops at 25%, mean fill."""
    file, out = tmp_path / "study.yaml", str(tmp_path / "out")
    file.write_text(
        "data: {val_share: 0.02}\n"
        f"checkpoints: {{study: {{path: '{shared_model}', size: 224}}}}\n"
        "explain: {explainers: [gradcam]}\n"
        "perturb: {grids: [pixel], fills: [mean], levels: [0.25], orders: [morf]}\n"
        "controls: {}\n"
        "regions: null\n"
        "sanity: null\n"
    )
    assert sweep.main([str(file), "--data", str(shared_data / "chest_xray_224"), "--out", out]) == 0
    run = results.open_run(out)
    metrics = run.json("test_metrics.json")
    assert {k: metrics[k] for k in ("TN", "FP", "FN", "TP")} == {"TN": 142, "FP": 92, "FN": 12, "TP": 378}
    assert round(metrics["accuracy"], 3) == 0.833
    assert round(metrics["auroc"], 3) == 0.947
    rows = run.pandas("summary").query("metric == 'drop' and control == 'none' and not contrast")
    drops = rows.set_index(["bucket", "scale"])["mean"]
    # by hand, on 90 images of each: TP 0.22 and 5.5 log-odds, FP 0.53 and 3.8
    assert drops["TP", "prob"] == pytest.approx(0.22, abs=0.08)
    assert drops["TP", "logodds"] == pytest.approx(5.5, abs=0.8)
    assert drops["FP", "prob"] == pytest.approx(0.53, abs=0.08)
    assert drops["FP", "logodds"] == pytest.approx(3.8, abs=0.8)


@pytest.mark.slow
def test_training_on_large_native_images(shared_data, tmp_path):
    out = str(tmp_path / "out")
    small = [
        "model.weights=none",
        "data.size=64",
        "train.epochs=1",
        "train.seed=0",
        "train.lr=1e-3",
        "train.batch_size=4",
        "search.num_samples=1",
        "explain.explainers=[gradcam]",
        "perturb.grids=[7]",
        "perturb.fills=[mean]",
        "perturb.levels=[0.25]",
        "sanity.images=2",
    ]
    arguments = [a for s in small for a in ("--set", s)]
    data = str(shared_data / "chest_xray_native_sample")
    assert sweep.main(["sweeps/findings.yaml", "--data", data, "--out", out, *arguments]) == 0
    images = results.open_run(out).pandas("images")
    assert len(images) == 44
    assert images.width.max() > 1500
    assert set(images.split) == {"train", "val", "test"}

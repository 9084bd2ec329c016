"""What ``--dry-run`` says: the resolved sweep, its trials, and exact numbers of forward passes."""

import dataclasses
import os
import re
from pathlib import Path

import pytest
import ray
import yaml

from cxr_ray import sweep
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.models import checkpoints

pytestmark = pytest.mark.usefixtures("folder_with_a_sweep")


def test_dry_run_says_what_would_be_done_and_does_nothing(monkeypatch, capsys, tiny_folder):
    def fetched(weights):
        raise AssertionError("weights were fetched")

    monkeypatch.setattr(checkpoints, "pretrained_state", fetched)
    before = sorted(Path().rglob("*"))
    argv = ["tiny.yaml", "--data", str(tiny_folder), "--dry-run", "--set", "model.weights=imagenet"]
    argv += ["--set", "regions=null", "--set", "sanity=null"]
    argv += ["--set", "train.lr={grid: [1e-3, 1e-4]}", "--set", "controls={pixel_random: 3, shifted: 2}"]
    argv += ["--set", "perturb.levels=[0.25, 0.75]", "--set", "explain.explainers=[gradcam, saliency]"]
    assert sweep.main([*argv, "--set", "evaluate=all"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert sorted(Path().rglob("*")) == before
    assert not ray.is_initialized()
    assert yaml.safe_load(out[: out.index("Images of")])["train"]["lr"] == {"grid": [1e-3, 1e-4]}
    assert "Trials to train: 2\n" in out
    assert len(re.findall(r"^  plain-[0-9a-f]{8}: epochs 1, batch_size 4, lr 0\.000?1", out, re.MULTILINE)) == 2
    # 1 untouched, 1 filled, 1 fill x 2 orders x 2 levels of (3 draws of random pixels, and of each of the 2 explainers'
    # maps and of 2 shifts of each), Grad-CAM 1, saliency 1 forward and 1 backward
    per_image = 1 + 1 + 4 * (3 + 2 * (1 + 2)) + 1 + 3
    total, formula = re.search(r"^Forward passes a test image and target: (\d+) = (.*)$", out, re.MULTILINE).groups()
    assert int(total) == per_image
    assert evaluated(formula) == per_image
    # 6 train patients of each class: 2 of each validate
    assert (
        f"Forward passes to explain, one target an image: {2 * (12 * per_image + 4 * 2):,} = 2 x (12 x 42 + 4 x 2)"
        in out
    )
    assert f"To train: at most {2 * 3 * 1 * 8} (images x epochs x trials, a backward pass counted as two)" in out
    assert re.search(
        r"about [\d,]+ forward passes a second at 32 x 32 \(\wPU\): about .*\. Nothing was started\.$", out
    )


def test_dry_run_counts_verdicts_alone(capsys, tiny_folder):
    argv = ["tiny.yaml", "--data", str(tiny_folder), "--dry-run", "--set", "regions=null", "--set", "sanity=null"]
    argv += ["--set", "explain.explainers=[gradcam, saliency]", "--set", "perturb.levels=[0.25, 0.75]"]
    argv += ["--set", "verdicts={controls: [pixel_random, random_cam, other_image], fixed_design: false}"]
    assert sweep.main(argv) == 0
    out = capsys.readouterr().out
    total, formula = re.search(r"^Forward passes a test image and target: (\d+) = (.*)$", out, re.MULTILINE).groups()
    assert int(total) == evaluated(formula) == 1 + 1 + 3  # untouched; Grad-CAM; saliency, forward and backward
    # 2 orders x 2 levels of pixel_random once, 2 maps, their other_image, and random_cam of Grad-CAM
    each = 1 + 4 * (1 + 2 + 2 + 1)
    assert f"Forward passes a patient and target of verdicts: at most {each} = 1 filled + 4 (orders x levels) x " in out
    assert f"Forward passes of verdicts, one target a patient: at most {12 * each} = 1 x 12 x {each}" in out


def test_dry_run_counts_each_trial_at_its_own_size(capsys, tiny_folder, monkeypatch):
    by_size = dataclasses.replace(EXPLAINERS["occlusion"], passes=lambda size: (size, 0))
    monkeypatch.setitem(EXPLAINERS, "occlusion", by_size)
    argv = ["tiny.yaml", "--data", str(tiny_folder), "--dry-run", "--set", "explain.explainers=[occlusion]"]
    argv += ["--set", "sanity=null", "--set", "regions.donors=null"]
    assert sweep.main([*argv, "--set", "variants={a: {model: {size: {grid: [32, 40]}}}, b: {model: {size: 40}}}"]) == 0
    out = capsys.readouterr().out
    pattern = r"^Forward passes a test image and target at (\d+) x \d+: ([\d,]+) ="
    at = {int(size): int(passes.replace(",", "")) for size, passes in re.findall(pattern, out, re.MULTILINE)}
    assert at.keys() == {32, 40}
    assert at[40] == at[32] + 8
    assert "has nothing to rank on these grids" not in out
    assert f"at 32 x 32, one target an image: {12 * at[32] + 8:,} = 1 x (12 x {at[32]:,} + 4 x 2)" in out
    assert f"at 40 x 40, one target an image: {2 * (12 * at[40] + 8):,} = 2 x (12 x {at[40]:,} + 4 x 2)" in out
    assert "To train at 40 x 40: at most 48 (" in out
    assert f"All together: {12 * at[32] + 8 + 2 * (12 * at[40] + 8) + 3 * 24:,}" in out


def test_dry_run_says_what_each_network_can_have_and_counts_its_channels(capsys, tiny_folder):
    """Score-CAM masks an image with every channel: 512 in a ResNet-18, 96 in this stage of a ShuffleNet."""
    argv = ["tiny.yaml", "--data", str(tiny_folder), "--dry-run", "--set", "explain.explainers=[scorecam]"]
    argv += ["--set", "sanity=null", "--set", "regions=null", "--set", "perturb.levels=[0.25]"]
    shuffle = "{model: {arch: torchvision:shufflenet_v2_x0_5, cam_layer: stage3}}"
    argv += ["--set", f"variants={{plain: {{}}, small: {shuffle}}}"]
    assert sweep.main(argv) == 0
    out = capsys.readouterr().out
    assert f"plain (resnet18) can have {len(EXPLAINERS) - 1} of {len(EXPLAINERS)} explainers" in out
    assert "  not attention_rollout: the network has no attention of the form of torch.nn.Mult" in out
    pattern = r"^Forward passes a test image and target at (\S+) x \S+ with (\d+) channels: ([\d,]+) = (.*)$"
    found = {channels: int(n.replace(",", "")) for _, channels, n, _ in re.findall(pattern, out, re.MULTILINE)}
    assert found["512"] - found["96"] == 512 - 96
    assert found.keys() == {"512", "96"}


def test_dry_run_counts_donor_swaps(capsys, tiny_folder):
    assert sweep.main(["tiny.yaml", "--data", str(tiny_folder), "--dry-run"]) == 0
    # 2 validation images of each class; the recipient, 2 donors, and 2 donors x 3 regions
    each = 1 + 2 + 2 * 3
    expected = f"Forward passes of donor swaps: {2 * each} = 1 x 2 recipients x {each} (donor images of each class a "
    assert f"\n{expected}recipient: 1)\n" in capsys.readouterr().out


def test_levels_too_far_apart_for_areas_are_told(capsys, tiny_folder):
    argv = ["tiny.yaml", "--data", str(tiny_folder), "--dry-run", "--set"]
    assert sweep.main([*argv, "perturb.levels=[0.25]"]) == 0
    assert (
        "\nAreas are not measured, drops only: the widest step between the levels 0.25 (0 and 1 included) is 0.75, "
        "over 0.3. The primary metric is the drop at level 0.25. Levels that do: 0.25, 0.5, 0.75.\n"
        in capsys.readouterr().out
    )
    assert sweep.main([*argv, "perturb.levels=[0.3, 0.6, 0.9]"]) == 0
    assert "Areas are not measured" not in capsys.readouterr().out


def test_a_control_without_a_grid_to_rank_on_is_told(capsys, tiny_folder):
    argv = ["tiny.yaml", "--data", str(tiny_folder), "--dry-run", "--set", "perturb.grids=['7','14']"]
    assert sweep.main([*argv, "--set", "controls={pixel_random: 2, cell_random: 1}"]) == 0
    assert (
        "\nControl pixel_random has nothing to rank on these grids (7, 14) and is left out.\n"
        in capsys.readouterr().out
    )


def evaluated(formula: str) -> int:
    """The number that a printed formula gives, its words left out."""
    text = formula.replace("(fills x orders x levels)", "").replace("(a backward pass counts as two)", "")
    text = re.sub(r"[a-wyz]\w*|x\w+", "", text).replace("x", "*")
    assert re.fullmatch(r"[\d+*() ]+", text), text
    return eval(text)


def test_dry_run_tells_mistakes_too(refusal):
    assert len(refusal("tiny.yaml", "--dry-run", "--set", "checkpoints={study: {path: nowhere.pt}}")) == 1
    assert not Path("results").exists()


def test_dry_run_says_what_is_wrong_with_out_and_leaves_it_alone(monkeypatch, capsys, tiny_folder):
    Path("file").write_text("text")
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    before = sorted(Path().rglob("*"))

    def told(out: str) -> str:
        assert sweep.main(["tiny.yaml", "--data", str(tiny_folder), "--dry-run", "--out", out]) == 2
        printed = capsys.readouterr()
        assert "Nothing was started." in printed.out
        (line,) = printed.err.splitlines()
        return line

    assert told("file").startswith("cxr_ray: --out: got file, a file; expected a folder;")
    assert told("full").startswith("cxr_ray: --out: got full, which is not empty; expected an empty folder;")
    assert told("file/below").startswith("cxr_ray: --out: got file/below, which cannot be written (")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert told("new/below").startswith("cxr_ray: --out: got new/below, which cannot be written ([Errno 13] Permission")
    assert sorted(Path().rglob("*")) == before

"""Whole sweeps through Ray on tiny phantoms: tables, resuming, killed workers and drivers, one and two workers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from cxr_ray import results, storage, sweep, verify
from cxr_ray.data import images
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import ModelSpec
from cxr_ray.run import explaining, merging
from cxr_ray.run.trial_files import TrialFiles
from cxr_ray.schemas import TABLES
from cxr_ray.storage import SHARDS

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "phantom", "size": 64, "val_share": 0.3, "phantom": {"train": 24, "test": 8}},
    "variants": {"plain": {}, "balanced": {"train": {"loss": "weighted", "sampler": "balanced"}}},
    "model": {"weights": "none"},
    "train": {"epochs": 2, "batch_size": 8, "augment": "light", "seed": {"grid": [0]}},
    "search": {"num_samples": 1, "scheduler": "asha"},
    "explain": {"explainers": ["gradcam", "saliency"], "targets": ["pneumonia", "predicted"]},
    "perturb": {"grids": ["pixel", "7"], "fills": ["noise"], "levels": [0.5]},
    "controls": {"pixel_random": 1, "cell_random": 2, "shifted": 2},
    "regions": {"names": ["border", "outside_lungs", "marker", "opacity"], "draws": 1, "edits": ["paste_marker"]},
    "sanity": {"images": 2, "layers": ["fc", "layer4"]},
    "stability": {"images": 2, "draws": 2, "squares": 8},
}

LITTLE: dict[str, Any] = {  # to explain, where a test is about something else
    "explain": {"explainers": ["edges"]},
    "perturb": {"grids": ["7"], "fills": ["mean"], "levels": [0.5]},
    "controls": {"cell_random": 1},
    "regions": None,
    "sanity": None,
    "stability": None,
}


def write(folder: Path, content: dict, name: str = "tiny.yaml") -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    return str(path)


def given_sweep(folder: Path, n_test: int = 20) -> str:
    """A sweep that trains nothing: an untrained network explains phantoms, in several units of work."""
    torch.manual_seed(0)
    model = networks.build("resnet18", ModelSpec("resnet18", 64))
    (folder / "model.safetensors").write_bytes(checkpoints.to_bytes(model))
    content = {k: v for k, v in TINY.items() if k not in ("variants", "train", "search", "model")}
    content["checkpoints"] = {"given": {"path": str(folder / "model.safetensors")}}
    content["data"] = {**TINY["data"], "phantom": {"train": 24, "test": n_test}}
    return write(folder, content, "given.yaml")


def tables(out: str) -> dict[str, pd.DataFrame]:
    run = results.open_run(out)
    frames = {}
    for name, table in TABLES.items():
        frame = run.pandas(name)
        assert not frame.duplicated(list(table.key)).any(), name
        frames[name] = frame.sort_values(list(table.key)).reset_index(drop=True)
    return frames


def assert_same(one: dict[str, pd.DataFrame], other: dict[str, pd.DataFrame]) -> None:
    names = (
        "images",
        "predictions",
        "saliency",
        "curves",
        "faithfulness",
        "regions",
        "donor_swaps",
        "stability",
        "summary",
        "errors",
    )
    for name in names:
        a, b = one[name].drop(columns="map", errors="ignore"), other[name].drop(columns="map", errors="ignore")
        pd.testing.assert_frame_equal(a[list(b.columns)], b, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> str:
    """As a user begins: in a folder of one's own, without --out."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        assert sweep.main([write(folder, TINY)]) == 0
    return str(folder / "results" / "tiny")


def test_a_sweep_fills_every_table(trained):
    frames = tables(trained)
    empty = {name for name, frame in frames.items() if not len(frame)}
    assert empty <= {"errors", "verdicts"}  # no verdicts are asked for
    assert set(frames["trials"].status) == {"completed"}
    assert set(frames["trials"].variant) == {"plain", "balanced"}
    assert frames["trials"].val_auroc.between(0, 1).all()
    test = frames["predictions"].query("split == 'test'")
    assert (test.groupby("trial_id").size() == 8).all()
    assert set(frames["curves"].explainer) == {"gradcam", "saliency", "shared"}
    assert set(frames["summary"].bucket) >= {"all", "correct", "TP-FP"} - (
        {"TP-FP"} if not (test.outcome == "FP").any() else set()
    )


@pytest.mark.slow
def test_each_model_sees_images_as_its_own_section_says(tmp_path, tiny_folder):
    """A grid over sizes and a masked border in one sweep: each is trained, kept and explained as asked."""
    import numpy as np
    import torch

    content = {
        "name": "sizes",
        "data": {"size": 40, "val_share": 0.2},
        "variants": {
            "sized": {"model": {"size": {"grid": [32, 48]}}},
            "masked": {"model": {"preprocess": "mask_border"}},
        },
        "model": {"weights": "none"},
        "train": {"epochs": 1, "batch_size": 4, "augment": "none"},
        "search": {"num_samples": 1, "scheduler": "none"},
        "explain": {"explainers": ["gradcam"]},
        "perturb": {"grids": ["7"], "fills": ["mean"], "levels": [0.5]},
        "controls": {"shifted": 1},
        "regions": None,
        "sanity": None,
    }
    out = str(tmp_path / "out")
    assert sweep.main([write(tmp_path, content), "--data", str(tiny_folder), "--out", out]) == 0
    run = results.open_run(out)
    predictions, seen = run.pandas("predictions"), set()
    paths = run.pandas("images").set_index("image_id").path
    assert set(run.pandas("curves").trial_id) == set(predictions.trial_id)
    for trial_id, mine in predictions[predictions.split == "test"].groupby("trial_id"):
        model = checkpoints.load(f"{out}/checkpoints/{trial_id}/model.safetensors")
        spec = model.spec
        seen.add((spec.variant, spec.size, spec.preprocess))
        pixels = [images.decode((tiny_folder / paths[i]).read_bytes(), spec.size) for i in mine.image_id]
        if spec.preprocess == "mask_border":
            for p in pixels:
                p[:, [*range(4), *range(36, 40)], :] = 0
                p[:, :, [*range(4), *range(36, 40)]] = 0
        with torch.no_grad():
            z = model.log_odds(model.normalize(torch.from_numpy(np.stack(pixels)).float() / 255))
        np.testing.assert_allclose(mine.logit_pneumonia, z.numpy(), atol=1e-4)
    assert seen == {("sized", 32, "none"), ("sized", 48, "none"), ("masked", 40, "mask_border")}


def test_files_are_stamped_and_nothing_temporary_is_left(trained):
    provenance = json.loads(Path(trained, "provenance.json").read_text())
    assert provenance["finished"]
    assert provenance["versions"]["ray"]
    files = [p for p in Path(trained).rglob("*") if p.is_file()]
    parquet = [p for p in files if p.suffix == ".parquet"]
    for path in parquet:
        metadata = pq.read_schema(path).metadata
        assert metadata[b"cxr_ray.run_id"].decode() == provenance["run_id"]
        assert metadata[b"cxr_ray.sweep_hash"].decode() == provenance["sweep_hash"]
    assert {p.parts[len(Path(trained).parts) + 1] for p in parquet} == set(TABLES)
    assert not list(Path(trained, "tables").rglob(".*"))
    assert not Path(trained, ".work").exists()


def test_the_best_trial_is_chosen_by_validation(trained):
    chosen = json.loads(Path(trained, "test_metrics.json").read_text())
    trials = results.open_run(trained).pandas("trials").set_index("trial_id")
    assert trials.loc[chosen["trial_id"], "val_auroc"] == trials.val_auroc.max()
    assert chosen["TP"] + chosen["FP"] + chosen["TN"] + chosen["FN"] == chosen["n"] == 8


def test_duckdb_reads_the_tables_without_this_package(trained):
    sql = f"""
        SELECT explainer, control, count(*) AS n, avg(gap) AS gap
        FROM read_parquet('{trained}/tables/faithfulness/**/*.parquet', hive_partitioning = true)
        WHERE metric = 'drop' AND scale = 'logodds' GROUP BY ALL ORDER BY ALL
    """
    mine = duckdb.sql(sql).df()
    frame = pd.read_parquet(f"{trained}/tables/faithfulness")
    frame = frame[(frame.metric == "drop") & (frame.scale == "logodds")]
    theirs = frame.groupby(["explainer", "control"], observed=True).gap.agg(["size", "mean"]).reset_index()
    assert list(mine.n) == list(theirs["size"])
    assert list(mine.gap.fillna(0)) == pytest.approx(list(theirs["mean"].fillna(0)), abs=1e-5)


def test_resuming_a_finished_run_prints_its_table(trained, capsys):
    file = write(Path(trained).parent, TINY)
    assert sweep.main([file, "--out", trained, "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "finished already" in printed
    assert "accuracy" in printed
    assert sweep.main([file, "--out", trained]) == 2
    assert sweep.main([file, "--out", trained, "--resume", "--set", "seed=1"]) == 2
    assert "another sweep" in capsys.readouterr().err


@pytest.mark.slow
def test_one_worker_or_two_and_any_batch_size_give_the_same_tables(running_ray, tmp_path, monkeypatch):
    """The second run also merges its shards in tasks, as a large one does."""
    file = given_sweep(tmp_path, n_test=12)
    outs = []
    for workers, batch in ((1, 8), (2, 3)):
        outs.append(str(tmp_path / f"{workers}-{batch}"))
        arguments = ["--set", f"resources.workers={workers}", "--set", f"resources.batch_size={batch}"]
        assert sweep.main([file, "--out", outs[-1], *arguments]) == 0
        for module in (storage, merging):
            monkeypatch.setattr(module, "MERGED_SHARDS", 1)
    assert len(list(Path(outs[1], "tables", "predictions").rglob("part-*.parquet"))) > 1
    first, other = (tables(out) for out in outs)
    assert set(first["trials"].status) == {"given"}
    assert_same(first, other)
    assert verify.main([outs[1], "--images", "4"]) == 0


@pytest.mark.slow
def test_maps_of_other_images_are_the_same_after_an_interruption_and_for_two_workers(
    running_ray, tmp_path, monkeypatch
):
    from cxr_ray.run import pipeline, plan

    content = yaml.safe_load(Path(given_sweep(tmp_path, n_test=12)).read_text())
    content |= {"controls": {"random_cam": 2, "other_image": 2, "mean_map": 1}, "regions": None, "sanity": None}
    content |= {"perturb": {"grids": ["7"], "fills": ["noise"], "levels": [0.5]}}
    file = write(tmp_path, content)
    monkeypatch.setattr(plan, "SHARD_IMAGES", 3)
    whole, broken = str(tmp_path / "whole"), str(tmp_path / "broken")
    assert sweep.main([file, "--out", whole, "--set", "resources.workers=1"]) == 0

    compute_shards, asked = pipeline.compute_shards, []

    def interrupted(shard_pass, shards):
        if shard_pass.is_map_pass:
            asked.append([shard.name for shard in shards])
        for n, row in enumerate(compute_shards(shard_pass, shards)):
            if n == 1 and shard_pass.is_map_pass and len(asked) == 1:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(pipeline, "compute_shards", interrupted)
    assert sweep.main([file, "--out", broken, "--set", "resources.workers=1"]) == 130
    done = {p.stem for p in Path(broken, ".work", "maps").rglob("[!.]*.arrow")}
    assert done
    assert sweep.main([file, "--out", broken, "--set", "resources.workers=2", "--resume"]) == 0
    planned, *left = asked
    assert len(planned) == 4
    assert [set(names) for names in left] == ([set(planned) - done] if done < set(planned) else [])
    one, other = tables(whole), tables(broken)
    assert_same(one, other)
    faith = one["faithfulness"]
    assert set(faith.control) == {"none", "random_cam", "other_image", "mean_map"}
    predicted = one["predictions"].query("split == 'test'").groupby("predicted").size()
    expected = {n: min(2, n - 1) for n in predicted}  # every image is a patient here
    assert set(faith[faith.control == "other_image"].n_draws) == set(expected.values())
    assert set(one["stability"].control) == set(faith.control)
    assert not Path(broken, ".work").exists()


def start(*arguments: str, cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "cxr_ray.sweep", *arguments],
        cwd=cwd,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=(cwd / "stderr").open("wb"),
    )


def wait_for(condition, process: subprocess.Popen, seconds: float = 240) -> None:
    for _ in range(int(seconds * 10)):
        if condition():
            return
        assert process.poll() is None, "the sweep ended before the test could interrupt it"
        time.sleep(0.1)
    raise AssertionError("waited in vain")


@pytest.mark.slow
def test_killed_workers_and_drivers_lose_and_double_nothing(tmp_path):
    content = yaml.safe_load(Path(given_sweep(tmp_path, n_test=96)).read_text())
    content |= {"explain": {"explainers": ["gradcam"]}, "sanity": None, "stability": None}  # what others hold
    file, whole = write(tmp_path, content), str(tmp_path / "whole")
    assert sweep.main([file, "--out", whole]) == 0

    broken, shards = str(tmp_path / "broken"), tmp_path / "broken" / SHARDS
    process = start(file, "--out", broken, cwd=tmp_path)
    wait_for(lambda: len(list(shards.rglob("[!.]*.arrow"))) >= 1, process)
    actors = subprocess.run(
        ["pgrep", "-s", str(process.pid), "-f", "ray::.*Explain"], capture_output=True, text=True, check=False
    ).stdout.split()
    assert actors
    os.kill(int(actors[0]), signal.SIGKILL)
    there = len(list(shards.rglob("[!.]*.arrow")))
    wait_for(lambda: len(list(shards.rglob("[!.]*.arrow"))) > there, process)
    os.killpg(process.pid, signal.SIGKILL)  # the driver, and Ray with it
    process.wait()
    done = {p.name: p.stat().st_mtime_ns for p in shards.rglob("[!.]*.arrow")}
    assert 0 < len(done) < 6

    assert sweep.main([file, "--out", broken, "--resume"]) == 0
    assert_same(tables(whole), tables(broken))


@pytest.mark.slow
def test_a_training_that_was_terminated_and_then_killed_goes_on_where_it_stopped(tmp_path):
    content = {**TINY, "train": {**TINY["train"], "epochs": 12}, "search": {"num_samples": 1, "scheduler": "none"}}
    content |= {"variants": {"plain": {}}, **LITTLE}
    file, out = write(tmp_path, content), tmp_path / "out"
    process = start(file, "--out", str(out), cwd=tmp_path)
    wait_for(lambda: _epochs(out) >= 2, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert (tmp_path / "stderr").read_text() == "cxr_ray: terminated; the same command with --resume goes on.\n"
    before = _epochs(out)
    process = start(file, "--out", str(out), "--resume", cwd=tmp_path)
    wait_for(lambda: _epochs(out) > before, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 2 <= before < _epochs(out) < 12
    assert not list(out.glob("tables/trials*")), "nothing takes a half trained network for a trained one"
    assert sweep.main([file, "--out", str(out), "--resume"]) == 0
    trials = results.open_run(str(out)).pandas("trials")
    assert list(trials.epochs) == [12]
    assert list(trials.status) == ["completed"]


@pytest.mark.slow
def test_an_interrupt_between_two_units_ends_the_sweep_and_does_not_wait_for_ray(tmp_path):
    file, out = given_sweep(tmp_path, n_test=8), str(tmp_path / "out")
    script = f"""
import sys
from cxr_ray import sweep
from cxr_ray.run import terminal
said = terminal.say
def say(text):
    said(text)
    if "forward passes" in text:
        raise KeyboardInterrupt
terminal.say = say
sys.exit(sweep.main([{file!r}, "--out", {out!r}]))
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, timeout=180, check=False)
    assert ended.returncode == 130
    assert b"interrupted; the same command with --resume goes on." in ended.stderr


def _epochs(out: Path) -> int:
    store = storage.Store(str(out), {})
    return sum(len(TrialFiles(store, path.name).history()) for path in out.glob(".work/trials/*"))


def test_what_the_machine_cannot_meet_is_an_error_at_once_and_the_only_one(tmp_path, capfd):
    """Of one key; test_cluster holds the others, without Ray."""
    file = write(tmp_path, TINY)
    assert sweep.main([file, "--out", str(tmp_path / "out"), "--set", "resources.workers=999"]) == 2
    (line,) = capfd.readouterr().err.splitlines()  # nothing of Ray's
    assert line.startswith("cxr_ray: resources.workers: got 999; expected at most")


def phantoms_as_files(folder: Path) -> Path:
    from PIL import Image

    from cxr_ray.data.phantoms import render

    for split, n in (("train", 6), ("test", 4)):
        for label, name in enumerate(("NORMAL", "PNEUMONIA")):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                image = Image.fromarray(render(100 * n + 10 * i + label, label, 64).image)
                image.save(folder / split / name / f"{name}-{i}.png")
    return folder


@pytest.mark.slow
def test_a_run_of_unreadable_images_goes_on_after_every_stop_and_names_each_once(
    running_ray, tmp_path, monkeypatch, capfd
):
    """Stopped after training, then by a device without memory; a trained model and a given one."""
    from cxr_ray.run import pipeline

    folder = phantoms_as_files(tmp_path / "data")
    test, train = folder / "test" / "NORMAL", folder / "train" / "NORMAL"
    (test / "text.jpeg").write_text("not an image")
    (test / "empty.png").write_bytes(b"")
    for split, name in ((test, "truncated.png"), (train, "half.png")):
        whole = (split / "NORMAL-0.png").read_bytes()
        (split / name).write_bytes(whole[: len(whole) // 2])
    torch.manual_seed(0)
    (tmp_path / "m.safetensors").write_bytes(
        checkpoints.to_bytes(networks.build("resnet18", ModelSpec("resnet18", 64)))
    )
    content = {
        **TINY,
        **LITTLE,
        "data": {"size": 64, "path": str(folder), "val_share": 0.3, "patient": "file"},
        "variants": {"plain": {}},
        "train": {"epochs": 1, "batch_size": 8},
        "checkpoints": {"given": {"path": str(tmp_path / "m.safetensors")}},
    }
    file, out = write(tmp_path, content), str(tmp_path / "out")
    explain, met = explaining.explain, []

    def interrupted(*arguments):
        met.append(sorted(Path(e["path"]).name for e in arguments[-1]))
        if len(met) == 1:
            raise KeyboardInterrupt
        return explain(*arguments)

    monkeypatch.setattr(explaining, "explain", interrupted)
    assert sweep.main([file, "--out", out]) == 130
    capfd.readouterr()

    class Full(pipeline._Explain):
        def __call__(self, row):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 98.00 MiB.")

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "_Explain", Full)
        assert sweep.main([file, "--out", out, "--resume"]) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("cxr_ray: ")]
    assert lines == [
        "cxr_ray: Ray stopped: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 98.00 MiB. Less memory is "
        "taken by a smaller batch (--set resources.batch_size=32) or by fewer workers on a GPU "
        "(--set resources.gpu_per_worker=1).",
        "cxr_ray: the same command with --resume goes on from here.",
    ]

    assert sweep.main([file, "--out", out, "--resume"]) == 0
    assert met == [["empty.png", "half.png", "text.jpeg"]] * 3  # of the folder's reading, and of training
    errors = results.open_run(out).pandas("errors").query("not stage.str.startswith('class_order')")
    assert sorted(Path(p).name for p in errors.path) == ["empty.png", "half.png", "text.jpeg", "truncated.png"]
    stages = dict(zip(errors.path.map(lambda p: Path(p).name), errors.stage, strict=True))
    assert stages["truncated.png"] == stages["half.png"] == "decode"
    predictions = results.open_run(out).pandas("predictions").query("split == 'test'")
    assert list(predictions.groupby("trial_id").size()) == [8, 8]

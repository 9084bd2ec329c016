"""Going on with a run: what is refused, each in one sentence, and what is gone on with."""

import json
import re
from pathlib import Path

import pytest
import torch
import torchvision

from cxr_ray import sweep
from cxr_ray.run import context, resume
from cxr_ray.schemas import SCHEMA_VERSION

pytestmark = pytest.mark.usefixtures("folder_with_a_sweep")


def state(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**torchvision.models.resnet18(num_classes=2).state_dict(), **changed}


def test_a_run_begins_with_its_sweep_and_where_it_comes_from(begun):
    assert Path("results/tiny/sweep.yaml").read_text() == begun.to_yaml()
    assert not Path("results/tiny/primary.json").exists()  # the fill is chosen once validation is scored
    assert json.loads(Path("results/tiny/provenance.json").read_text())["finished"] is None


@pytest.fixture
def begun(tiny_folder):
    """A run of tiny.yaml that stopped before its first table."""
    asked = sweep.load(sweep.parser().parse_args(["tiny.yaml", "--data", str(tiny_folder)]))
    resume.begin(context.prepare(asked, "results/tiny"))
    return asked


def test_resume_of_the_same_sweep_goes_on_and_without_it_is_refused(begun, refusal, reaches_ray):
    assert reaches_ray("tiny.yaml", "--resume")
    assert reaches_ray("tiny.yaml", "--resume", "--set", "resources.workers=3"), "resources are no part of it"
    assert refusal("tiny.yaml") == [
        "--out: got results/tiny, which is not empty; expected an empty folder; go on with the run in it (--resume), "
        "or give another folder (--out PATH)."
    ]


def test_resume_of_nothing_starts(reaches_ray):
    assert reaches_ray("tiny.yaml", "--resume")


def test_a_relative_folder_in_a_job_is_refused(refusal, monkeypatch):
    """It would be lost with the job's copy of the working directory."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    (line,) = refusal("tiny.yaml", "--out", "results/x")
    assert line.startswith("--out: got results/x, a relative path in a Ray job")
    assert "expected an absolute path on storage that the machines share" in line


def test_resume_of_another_sweep(begun, refusal):
    (line,) = refusal("tiny.yaml", "--resume", "--set", "train.epochs=2")
    assert re.fullmatch(
        rf"--out: got results/tiny, the run of another sweep \(tiny, hash {begun.hash}\); expected tiny, hash "
        r"[0-9a-f]{16}; give another folder \(--out PATH\), or the sweep as in results/tiny/sweep\.yaml\.",
        line,
    )


def test_resume_with_other_images(begun, refusal, tiny_folder, tmp_path):
    for folder in ("train/NORMAL", "train/PNEUMONIA", "test/NORMAL", "test/PNEUMONIA"):
        (tmp_path / "less" / folder).mkdir(parents=True)
        for image in sorted((tiny_folder / folder).iterdir())[:5]:
            (tmp_path / "less" / folder / image.name).write_bytes(image.read_bytes())
    (line,) = refusal("tiny.yaml", "--resume", given_data="less")
    assert line == (
        "--out: got results/tiny, a run of other images (24 then, 20 now, or others); expected the same; give the data "
        "that it was begun with, or another folder (--out PATH)."
    )


def test_resume_without_provenance_is_refused_where_work_was_done(begun, refusal, reaches_ray):
    Path("results/tiny/provenance.json").unlink()
    assert reaches_ray("tiny.yaml", "--resume")
    Path("results/tiny/.work/shards").mkdir(parents=True)
    Path("results/tiny/provenance.json").unlink(missing_ok=True)
    (line,) = refusal("tiny.yaml", "--resume")
    assert line == (
        "--out: got results/tiny, a run without provenance.json, which says of which sweep it is; expected a whole "
        "run; give another folder (--out PATH)."
    )


@pytest.mark.parametrize(
    "text", [b"\xff", b"a: [", b"hello", b"name: tiny\ndata: {size: 32}\n", b"name: tiny\nseeds: 1\n"]
)
def test_resume_with_a_damaged_sweep_file_writes_it_again(begun, reaches_ray, text):
    Path("results/tiny/sweep.yaml").write_bytes(text)
    assert reaches_ray("tiny.yaml", "--resume")
    assert Path("results/tiny/sweep.yaml").read_text() == begun.to_yaml()


def test_resume_with_another_file_as_checkpoint(begun, refusal, reaches_ray, tiny_folder):
    torch.save(state(), "model.pt")
    given = ["--set", "checkpoints={study: {path: model.pt, size: 32}}", "--set", "sanity=null", "--out", "results/g"]
    asked = sweep.load(sweep.parser().parse_args(["tiny.yaml", "--data", str(tiny_folder), *given]))
    resume.begin(context.prepare(asked, "results/g"))
    assert reaches_ray("tiny.yaml", "--resume", *given)
    torch.save(state(**{"fc.bias": torch.ones(2)}), "model.pt")
    (line,) = refusal("tiny.yaml", "--resume", *given)
    assert line == (
        "checkpoints.study.path: got another file than results/g was begun with; expected the same; give it, or "
        "another folder (--out PATH)."
    )


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sweep_hash": 1}'])
def test_resume_of_a_damaged_run(begun, refusal, text):
    Path("results/tiny/provenance.json").write_text(text)
    (line,) = refusal("tiny.yaml", "--resume")
    assert line == (
        "--out: got results/tiny, whose provenance.json is damaged; expected a whole run; give another folder (--out "
        "PATH)."
    )


def test_resume_of_a_run_of_another_version(begun, refusal):
    path = Path("results/tiny/provenance.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 1}))
    (line,) = refusal("tiny.yaml", "--resume")
    assert line == (
        f"--out: got results/tiny, with tables of schema version 1; expected version {SCHEMA_VERSION}, which this "
        "cxr_ray writes; finish it with the cxr_ray that began it, or give another folder (--out PATH)."
    )

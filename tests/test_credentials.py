"""Secrets stay out: what a user gives in URIs, or has in the environment, is in no file, line or error."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import cxr_ray.verdict as verdict
from cxr_ray import cli, credentials, results, sweep
from cxr_ray.credentials import redacted, revealed, without
from cxr_ray.data.folder import FolderSource
from cxr_ray.data.masks import MaskFolder
from cxr_ray.errors import CheckpointError, ClusterError, CxrRayError, DataError, SweepError
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import ModelSpec
from cxr_ray.report import __main__ as report
from cxr_ray.run import ray_start
from cxr_ray.storage import Store
from cxr_ray.sweepfile import load_sweep, resolve

USER, KEY, SIGNATURE, TOKEN = "AKIAQQUSER01", "wJalr/XUtnFEMI", "5f4dcc3b5aa765d6", "hf_abcdefghij"
SECRETS = (USER, KEY, KEY.replace("/", "%2F"), SIGNATURE, TOKEN)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A token in the environment, and nothing of what other tests were given."""
    monkeypatch.setenv(credentials.VARIABLE, "{}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def holds_secrets(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


@pytest.mark.parametrize(
    ("given_uri", "shown", "opened"),
    [
        (f"s3://{USER}:{KEY}@bucket/run", "s3://bucket/run", f"s3://{USER}:wJalr%2FXUtnFEMI@bucket/run"),
        (f"s3://{USER}:wJalr%2FXUtnFEMI@bucket", "s3://bucket", f"s3://{USER}:wJalr%2FXUtnFEMI@bucket"),
        (f"s3://{USER}@bucket/a@b", "s3://bucket/a@b", f"s3://{USER}@bucket/a@b"),
        (
            f"s3://{USER}:{KEY}@b/x?region=eu-west-1&session={SIGNATURE}",
            "s3://b/x?region=eu-west-1",
            f"s3://{USER}:wJalr%2FXUtnFEMI@b/x?region=eu-west-1&session={SIGNATURE}",
        ),
        (f"https://host/x.pt?X-Amz-Signature={SIGNATURE}", "https://host/x.pt", None),
        (f"s3://b/x?endpoint_override=http://u:{SIGNATURE}@host", "s3://b/x", None),
        (f"abfs://container:{SIGNATURE}@a.dfs.core.windows.net/x", "abfs://container@a.dfs.core.windows.net/x", None),
        (f"hdfs://{USER}@host:8020/x", "hdfs://host:8020/x", None),
    ],
)
def test_a_uri_is_shown_without_its_credentials_and_opened_with_them(given_uri, shown, opened):
    assert without(given_uri) == shown
    assert revealed(shown) == (opened or given_uri)
    assert not holds_secrets(redacted(f"cannot open '{given_uri}' (twice: {given_uri})."))
    assert shown in redacted(f"cannot open {given_uri}.")


@pytest.mark.parametrize(
    "text",
    [
        *("scans/2024", "C:/scans/a@b", "s3://bucket/a@b", "http://localhost:8080/a@b", "gs://anonymous@bucket/x"),
        *("abfs://container@a.dfs.core.windows.net/x", "s3://bucket/run?region=eu-west-1&scheme=http", "file:///tmp/x"),
    ],
)
def test_what_holds_no_credentials_stays_as_it_is(text):
    assert without(text) == redacted(text) == revealed(text) == text
    assert not credentials.were_given()


def test_credentials_hold_for_what_lies_below_and_above_and_nowhere_else():
    without(f"s3://{USER}:{KEY}@bucket/data/labels.csv")
    without("s3://OTHERUSER:otherkey@bucket/data/labels.csv/deep")
    assert USER in revealed("s3://bucket/data/labels.csv/x")
    assert USER in revealed("s3://bucket/data/labels.csv")
    assert "OTHER" in revealed("s3://bucket/data/labels.csv/deep/er")
    assert "@" in revealed("s3://bucket/data")
    for apart in ("s3://bucket/results", "s3://other/data/labels.csv", "gs://bucket/data", "s3://bucket/data/labels"):
        assert revealed(apart) == apart


PART = st.text("aZ09+=~%é .,-_*\\", min_size=8, max_size=20)


@settings(max_examples=30)
@given(user=PART, key=PART, path=st.sampled_from(["", "/", "/run", "/a/b c"]))
def test_no_part_of_any_userinfo_is_shown(user, key, path):
    os.environ[credentials.VARIABLE] = "{}"  # the fixture sets it once for all examples
    shown = without(f"s3://{user}:{key}@bucket{path}")
    assert shown == f"s3://bucket{path}"
    asked = revealed(shown).removeprefix("s3://").partition("@")[0]
    assert [unquote(part) for part in asked.split(":")] == [unquote(user), unquote(key)]


def test_secrets_of_the_environment_are_in_no_message(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "/slashed/secret")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/key.json")
    assert redacted(f"got {TOKEN} and /slashed/secret") == "got *** and ***"
    assert redacted("no /home/me/key.json") == "no /home/me/key.json"
    assert str(CxrRayError(f"401 for {TOKEN}")) == "401 for ***"


def test_pyarrows_own_errors_do_not_quote_them():
    for uri in (
        f"nosuch://{USER}:{KEY}@bucket/x",
        f"s3://{USER}:{KEY}@b/x?secret={SIGNATURE}",
        f"file://{USER}:{KEY}@/x",
    ):
        with pytest.raises((OSError, ValueError)) as e:
            results.filesystem(uri)
        assert not holds_secrets(str(e.value))


def test_processes_that_are_started_here_open_with_the_same_credentials():
    without(f"s3://{USER}:{KEY}@bucket/run")
    script = "from cxr_ray.credentials import revealed; print(revealed('s3://bucket/run/tables'))"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == f"s3://{USER}:wJalr%2FXUtnFEMI@bucket/run/tables"


def test_what_travels_to_workers_and_into_files_has_none(monkeypatch):
    sweep_of = resolve(
        {
            "data": {"path": f"s3://{USER}:{KEY}@bucket/data"},
            "checkpoints": {"study": {"path": f"s3://{USER}:{KEY}@bucket/m.pt?sig={SIGNATURE}"}},
            "model": {"weights": {"choice": [f"s3://{USER}:{KEY}@bucket/w.pt", "none"]}},
            "variants": {"a": {"model": {"weights": f"s3://{USER}:{KEY}@bucket/v.pt"}}},
            "regions": {"lungs": f"s3://{USER}:{KEY}@bucket/lungs"},
        }
    )
    assert not holds_secrets(sweep_of.to_yaml())
    assert not holds_secrets(repr(sweep_of))
    plain = yaml.safe_load(sweep_of.to_yaml())
    assert resolve(plain).hash == sweep_of.hash, "a run goes on with credentials from the environment"
    source, store = FolderSource(f"s3://{USER}:{KEY}@bucket/data"), Store(without(f"s3://{USER}:{KEY}@b/run"), {})
    assert not holds_secrets(str(pickle.dumps([source, store, sweep_of])))
    assert not holds_secrets(f"{source!r} {store!r}")


def test_the_one_place_that_opens_file_systems_has_them(monkeypatch):
    asked = []

    def from_uri(uri: str) -> tuple[None, str]:
        asked.append(uri)
        return None, "bucket/run"

    opened = SimpleNamespace(from_uri=from_uri)
    monkeypatch.setattr(results, "pafs", SimpleNamespace(FileSystem=opened))
    results.filesystem(without(f"s3://{USER}:{KEY}@bucket/run"))
    assert asked == [f"s3://{USER}:wJalr%2FXUtnFEMI@bucket/run"]


SECRET_URI = f"nosuch://{USER}:{KEY}@bucket/x?X-Amz-Signature={SIGNATURE}"
WRONG = {
    "data": ["tiny.yaml", "--data", SECRET_URI],
    "table": ["tiny.yaml", "--data", f"nosuch://{USER}:{KEY}@bucket/x.csv"],
    "npz": ["tiny.yaml", "--data", f"nosuch://{USER}:{KEY}@bucket/x.npz"],
    "out": ["tiny.yaml", "--out", SECRET_URI],
    "sweep": [SECRET_URI],
    "an unknown option": ["tiny.yaml", f"--ouptut={SECRET_URI}"],
    "one argument too many": ["tiny.yaml", SECRET_URI],
    "an override that is no YAML": ["tiny.yaml", "--set", f"data.path=[{SECRET_URI}"],
    "an override without a value": ["tiny.yaml", "--set", SECRET_URI.replace("=", "")],
    "an override of an unknown key": ["tiny.yaml", "--set", f"data.pth={SECRET_URI}"],
    "a number": ["tiny.yaml", "--set", f"train.epochs={SECRET_URI}"],
    "a list": ["tiny.yaml", "--set", f"data.path=[{SECRET_URI}, {SECRET_URI}]"],
    "a name": ["tiny.yaml", "--set", f"explain.explainers=['{SECRET_URI}']"],
    "a key": ["tiny.yaml", "--set", f"controls={{'{SECRET_URI}': 1}}"],
    "checkpoint": ["tiny.yaml", "--set", f"checkpoints={{study: {{path: '{SECRET_URI}'}}}}"],
    "images": ["tiny.yaml", "--set", "data.source=table", "--set", f"data.images={SECRET_URI}"],
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_refused_command_does_not_quote_them(mistake, tmp_path, monkeypatch, capsys, tiny_folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray_start, "start_ray", lambda: pytest.fail("Ray was started"))
    Path("tiny.yaml").write_text(f"data: {{path: '{tiny_folder}', size: 32}}\nmodel: {{weights: none}}\n")
    try:
        code: object = sweep.main(WRONG[mistake])
    except SystemExit as e:
        code = e.code
    told = capsys.readouterr()
    assert code == 2
    assert told.err
    assert not holds_secrets(told.err + told.out)


def test_other_command_lines_do_not_quote_them(tmp_path, capsys):
    assert report.main([SECRET_URI]) == 2
    assert verdict.main(["--checkpoint", SECRET_URI, "--data", SECRET_URI]) == 2
    for argv in (["report"], ["verdict", "--checkpoint", "x", "--data", "y", SECRET_URI], [SECRET_URI]):
        with pytest.raises(SystemExit):
            cli.main(argv)
    with pytest.raises(SweepError) as e:
        load_sweep(SECRET_URI)
    with pytest.raises(CheckpointError) as weights:
        checkpoints.pretrained_state(without(SECRET_URI))
    with pytest.raises(DataError) as masks:
        MaskFolder(without(SECRET_URI))
    told = capsys.readouterr()
    assert not holds_secrets(told.err + told.out + str([e.value, weights.value, masks.value]))


def test_a_cluster_that_does_not_have_them_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    without(f"s3://{USER}:{KEY}@bucket/run")
    with pytest.raises(ClusterError, match="expected credentials in the environment of every machine"):
        ray_start.start_ray()


def assert_nowhere(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 1
    for path in files:
        data = path.read_bytes()
        assert not [s for s in SECRETS if s.encode() in data], path
    run = results.open_run(folder)
    for path in (folder / "tables").iterdir():  # whose files are compressed
        assert not holds_secrets(str(run.pandas(path.name).to_dict("records"))), path


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoints.to_bytes(networks.build("resnet18", ModelSpec("resnet18", 32))))
    return path


def test_a_verdict_with_signed_uris_leaves_no_trace_of_them(tmp_path, capsys, tiny_folder, model, monkeypatch):
    monkeypatch.setattr(verdict, "FILLS", ("mean",))
    monkeypatch.setattr(verdict, "LEVELS", (0.25, 0.5, 0.75))
    signed = f"?X-Amz-Signature={SIGNATURE}&token={TOKEN}"
    out = tmp_path / "out"
    arguments = ["--checkpoint", f"file://{model}{signed}", "--data", f"file://{tiny_folder}{signed}", "--size", "32"]
    assert verdict.main([*arguments, "--controls", "shifted", "--out", f"file://{out}{signed}"]) == 0
    told = capsys.readouterr()
    assert f"Table: file://{out}/tables/verdicts" in told.out
    assert not holds_secrets(told.out + told.err)
    assert_nowhere(out)


@pytest.mark.slow
def test_a_sweep_with_signed_uris_leaves_no_trace_of_them_and_goes_on_without(tmp_path, tiny_folder, model):
    signed = f"?X-Amz-Signature={SIGNATURE}&token={TOKEN}"
    out = tmp_path / "out"
    content: dict[str, Any] = {
        "name": "signed",
        "data": {"size": 32, "val_share": 0.2},
        "variants": {"plain": {}},
        "model": {"weights": "none"},
        "train": {"epochs": 1, "batch_size": 4},
        "search": {"num_samples": 1},
        "checkpoints": {"study": {"path": f"file://{model}{signed}"}},
        "explain": {"explainers": ["gradcam"]},
        "perturb": {"grids": ["7"], "fills": ["mean"], "levels": [0.5]},
        "controls": {"shifted": 1, "mean_map": 1},
        "regions": None,
        "sanity": None,
    }
    (tmp_path / "signed.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "cxr_ray.sweep", str(tmp_path / "signed.yaml")]
    environment = {**os.environ, "HF_TOKEN": TOKEN}

    def run(mark: str, *more: str) -> str:
        data, where = f"file://{tiny_folder}{mark}", f"file://{out}{mark}"
        told = subprocess.run(
            [*command, "--data", data, "--out", where, *more],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert told.returncode == 0, told.stderr
        return told.stdout + told.stderr

    said = run(signed)
    said += run("", "--resume")
    assert "is finished already" in said
    assert not holds_secrets(said)
    assert_nowhere(out)
    assert not (out / ".work").exists()

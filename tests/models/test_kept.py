"""What was measured of backends is kept for the next worker, and nothing else is believed."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

from cxr_ray.models import backend_choice, backends, kept
from tests.builders.networks import small

SIZE = 32


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backend_choice, "TRIAL_SECONDS", 0.0)
    for name in ("onnxruntime", "mnn"):  # slow to start
        elsewhere = dataclasses.replace(backends.BACKENDS[name], device="cuda")
        monkeypatch.setitem(backends.BACKENDS, name, elsewhere)
    return tmp_path / "cxr_ray" / "backends"


def chosen(passes: int = 10**9, batch: int = 2, seed: int = 0):
    torch.manual_seed(seed)
    return backend_choice.choose(small(size=SIZE), SIZE, batch, passes)[0]


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """Grows by one with each rate that is measured."""
    calls: list[int] = []
    rate = backend_choice._rate

    def counted(*given):
        calls.append(1)
        return rate(*given)

    monkeypatch.setattr(backend_choice, "_rate", counted)
    return calls


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def rewrite(file: Path, value: object) -> None:
    """Another value under the same key."""
    file.write_text(json.dumps({"key": json.loads(file.read_text())["key"], "value": value}))


def test_a_second_worker_measures_nothing_and_says_so(measured):
    first = chosen()
    assert measured
    measured.clear()
    second = chosen(seed=1)  # other weights of the same network
    assert not measured
    assert second.tried == first.tried
    assert second.kept
    assert not first.kept
    assert str(second).endswith("measured earlier)")


def test_a_kept_choice_scores_as_a_measured_one_does():
    model = small(size=SIZE)
    images = torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad():
        for _ in range(2):
            _, forward = backend_choice.choose(model, SIZE, 2, 10**9)
            assert torch.allclose(forward(images), model.log_odds(images), atol=1e-5)


@pytest.mark.parametrize("change", ["batch", "size", "threads", "version", "network"])
def test_another_network_size_machine_or_version_is_measured_anew(change, measured, monkeypatch):
    chosen()
    measured.clear()
    batch = 2
    model = small(size=SIZE)
    if change == "batch":
        batch = 3
    elif change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    elif change == "version":
        monkeypatch.setattr(kept, "version", lambda package: "0.0")
    elif change == "network":
        model.network.fc = torch.nn.Linear(model.network.fc.in_features, 2, bias=False)
    backend_choice.choose(model, SIZE + 32 * (change == "size"), batch, 10**9)
    assert measured


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"key": {}, "value": {"tried": {"eager": 1e9}, "starts": {"eager": 0.0}}}',
        b"\x80\x04\x95cposix\nsystem\n",
        b"[" * 100_000,
    ],
)
def test_a_damaged_or_foreign_file_is_no_record(content, own_folder, measured):
    chosen()
    only_file(own_folder).write_bytes(content)
    measured.clear()
    assert not chosen().kept
    assert measured
    assert chosen().kept  # it was written again


@pytest.mark.parametrize(
    "value",
    [
        {"tried": {"eager": 100.0, "unheard_of": 1e9}, "starts": {"eager": 0.0, "unheard_of": 0.0}},
        {"tried": {"eager": 100.0, "folded": 1e9}, "starts": {"eager": 0.0}},
        {"tried": {"eager": -1.0}, "starts": {"eager": 0.0}},
        {"tried": {"eager": float("nan")}, "starts": {"eager": 0.0}},
        {"tried": {"eager": "fast"}, "starts": {"eager": 0.0}},
        {"tried": [], "starts": []},
    ],
)
def test_a_record_of_another_form_is_no_record(value, own_folder, measured):
    chosen()
    rewrite(only_file(own_folder), value)
    measured.clear()
    assert not chosen().kept
    assert measured


def test_few_passes_do_not_start_what_starts_slowly(own_folder):
    chosen()
    value = {"tried": {"eager": 100.0, "folded": 200.0}, "starts": {"eager": 0.0, "folded": 10.0}}
    rewrite(only_file(own_folder), value)
    assert chosen(passes=1000).name == "eager"  # 10 s against 10 + 5
    assert chosen(passes=4000).name == "folded"  # 40 s against 10 + 20


def test_a_backend_that_was_not_worth_trying_before_is_measured_when_it_is(monkeypatch):
    slow = backends.Backend(backends.folded, 1e6)
    monkeypatch.setitem(backends.BACKENDS, "compiled", slow)
    rates = iter([100.0] * 20)
    monkeypatch.setattr(backend_choice, "_rate", lambda forward, example, seconds: next(rates))
    assert set(chosen(passes=10**4).tried) == {"eager", "folded"}
    assert set(chosen(passes=10**9).tried) == {"eager", "folded", "compiled"}


def test_a_network_that_the_kept_backend_misrepresents_is_measured_anew(monkeypatch, own_folder, measured):
    chosen()
    rewrite(only_file(own_folder), {"tried": {"eager": 1.0, "folded": 1e9}, "starts": {"eager": 0.0, "folded": 0.0}})
    assert chosen().name == "folded"
    wrong = backends.Backend(lambda m, example: lambda x: m.log_odds(x) + 1.0, 0.0)
    monkeypatch.setitem(backends.BACKENDS, "folded", wrong)
    measured.clear()
    again = chosen()
    assert measured
    assert again.name == "eager"
    assert str(again.tried["folded"]).startswith(backends.DIFFERS)


def test_a_refusal_of_one_models_weights_is_not_kept(monkeypatch, own_folder):
    wrong = backends.Backend(lambda m, example: lambda x: m.log_odds(x) + 1.0, 0.0)
    monkeypatch.setitem(backends.BACKENDS, "folded", wrong)
    assert str(chosen().tried["folded"]).startswith(backends.DIFFERS)
    assert not own_folder.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_costs_nothing(own_folder):
    own_folder.parent.mkdir(parents=True)
    own_folder.parent.chmod(0o500)
    assert not chosen().kept
    assert not chosen().kept


def test_a_file_in_the_folders_place_costs_nothing(own_folder):
    own_folder.parent.mkdir(parents=True)
    own_folder.write_text("a file")
    assert not chosen().kept
    assert not chosen().kept

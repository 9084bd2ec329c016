"""Every inference backend gives the eager module's probabilities, and what is missing falls back to it."""

import dataclasses
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from cxr_ray.models import backend_choice, backends, kept, networks
from cxr_ray.models.networks import ModelSpec
from tests.builders.networks import small

SIZE = 64


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path, monkeypatch):
    """Records of other tests would answer before anything is measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def model(outputs: int = 2, arch: str = "resnet18"):
    torch.manual_seed(0)
    made = networks.build(arch, ModelSpec(arch, SIZE, outputs)).requires_grad_(False)
    for module in made.modules():  # batch norms that do something
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return made


def replaced(monkeypatch, name: str, **changes: Any) -> None:
    """A backend that differs in some of what it declares."""
    monkeypatch.setitem(backends.BACKENDS, name, dataclasses.replace(backends.BACKENDS[name], **changes))


def without(monkeypatch, *names: str) -> None:
    for name in names:
        replaced(monkeypatch, name, device="nowhere")


@torch.no_grad()
def is_eager(forward, made):
    images = torch.randn(2, 3, SIZE, SIZE)
    return torch.equal(forward(images), backends.eager(made, images)(images))


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("name", ["eager", "folded", "onnxruntime", "mnn"])
@torch.no_grad()
def test_backends_agree_with_the_eager_module_also_for_other_batch_sizes(name, outputs):
    eager = model(outputs)
    forward = backends.BACKENDS[name].prepare(eager, torch.randn(4, 3, SIZE, SIZE))
    for batch in (4, 1, 9):
        images = torch.randn(batch, 3, SIZE, SIZE)
        expected = eager.log_odds(images)
        assert torch.allclose(forward(images), expected, atol=1e-4)
        assert (torch.sigmoid(forward(images)) - torch.sigmoid(expected)).abs().max() <= backends.TOLERANCES["float32"]


@torch.no_grad()
def test_half_precision_keeps_probabilities_within_its_own_tolerance():
    """The arithmetic is that of a GPU's float16; on a CPU it is only slow."""
    eager = model()
    images = torch.randn(8, 3, SIZE, SIZE) * torch.linspace(0.1, 4, 8).view(-1, 1, 1, 1)
    eager.network.fc.weight.mul_(4.0 / eager.log_odds(images).std())
    eager.network.fc.bias[1] -= eager.log_odds(images).mean()
    expected = torch.sigmoid(eager.log_odds(images))
    assert expected.max() - expected.min() > 0.9
    made = backends.BACKENDS["half"].prepare(eager, images)(images)
    assert made.dtype == torch.float32
    difference = (torch.sigmoid(made) - expected).abs().max()
    assert 1e-6 < difference <= backends.TOLERANCES["half"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.parametrize(("name", "tolerance"), [("compiled", 1e-5), ("compiled_half", 1e-2)])
@torch.no_grad()
def test_compiled_backends_compile_one_batch_size_and_take_any(name, tolerance):
    torch._dynamo.reset()
    counters.clear()
    eager = small(size=32)
    forward = backends.BACKENDS[name].prepare(eager, torch.randn(4, 3, 32, 32))
    for batch in (4, 3, 4, 1):
        images = torch.randn(batch, 3, 32, 32)
        assert torch.allclose(forward(images), eager.log_odds(images), atol=tolerance)
    assert counters["stats"]["unique_graphs"] == 1


def test_half_precision_is_tried_where_it_is_asked_for_and_not_on_a_cpu(monkeypatch):
    monkeypatch.setattr(backend_choice, "TRIAL_SECONDS", 0.0)
    without(monkeypatch, "onnxruntime", "mnn")
    made = model()
    assert backend_choice.choose(made, SIZE, 2, 10**9, "half")[0].tried["half"] == "for GPUs"
    replaced(monkeypatch, "half", device=None)
    replaced(monkeypatch, "compiled", device=None, prepare=backends.folded)
    replaced(monkeypatch, "compiled_half", device=None, prepare=backends.half)
    assert set(backend_choice.choose(made, SIZE, 2, 10**9)[0].tried) == {"eager", "folded", "compiled"}
    for passes in (0, 1, 10**9):  # whatever a worker has to do: else one curve might have two precisions
        chosen = backend_choice.choose(made, SIZE, 2, passes, "half")[0]
        assert backends.BACKENDS[chosen.name].precision == "half"
    assert set(chosen.tried) == {"eager", "half", "compiled_half"}  # no start-up of what could not be chosen
    assert all(isinstance(rate, float) for rate in chosen.tried.values())


def test_float32_is_tried_where_no_form_of_half_precision_can_be_had(monkeypatch):
    def fails(m, example):
        raise RuntimeError("no kernel for this card")

    monkeypatch.setattr(backend_choice, "TRIAL_SECONDS", 0.0)
    without(monkeypatch, "onnxruntime", "mnn", "compiled_half")
    replaced(monkeypatch, "half", device=None, prepare=fails)
    made = model()
    for earlier in (False, True):
        chosen, _ = backend_choice.choose(made, SIZE, 2, 10**9, "half")
        assert chosen.kept == earlier
        assert set(chosen.tried) == {"eager", "folded", "half"}
        assert chosen.tried["half"] == "no kernel for this card"


def test_auto_takes_half_precision_where_it_keeps_its_tolerance_on_the_images_given(monkeypatch):
    monkeypatch.setattr(backend_choice, "TRIAL_SECONDS", 0.0)
    without(monkeypatch, "onnxruntime", "mnn")
    made, images = small(size=32), torch.randn(3, 3, 32, 32)

    def chosen(precision: str):
        return backend_choice.choose(made, 32, 4, 10**9, precision, images)[0]

    assert backends.BACKENDS[chosen("auto").name].precision == "float32"  # a CPU
    replaced(monkeypatch, "half", device=None)
    taken = chosen("auto")
    assert taken.name == "half"
    assert 0 < taken.difference <= backends.TOLERANCES["half"]
    assert f"in half precision, within {taken.difference:.1e} in probability of float32" in str(taken)

    def off_on_bright_images(m, example):
        return lambda x: m.log_odds(x) + 0.05 * (x.amax((1, 2, 3)) > 50)

    replaced(monkeypatch, "half", device=None, prepare=off_on_bright_images)
    assert chosen("auto").name == "half"
    images[1, 0, 0, 0] = 100.0
    refused = chosen("auto")
    assert backends.BACKENDS[refused.name].precision == "float32"
    assert str(refused.tried["half"]).startswith(backends.DIFFERS)


@torch.no_grad()
def test_tf32_is_on_while_its_form_runs_and_off_behind_it(monkeypatch):
    seen = []

    class Looking(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            seen.append(torch.backends.cudnn.allow_tf32)
            if x.shape[0] == 13:
                raise RuntimeError
            return x.mean((2, 3))[:, :2] * self.weight

    monkeypatch.setattr(backends, "_folded", lambda model: model)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    forward = backends.tf32(networks.Classifier(Looking(), ModelSpec("resnet18", SIZE)), torch.zeros(1, 3, 4, 4))
    forward(torch.zeros(2, 3, 4, 4))
    with pytest.raises(RuntimeError):
        forward(torch.zeros(13, 3, 4, 4))
    assert seen == [True, True]
    assert not torch.backends.cudnn.allow_tf32


@torch.no_grad()
def test_compiled_forms_cut_any_batch_into_the_two_sizes_that_they_compile(monkeypatch):
    monkeypatch.setattr(backends, "SMALL_BATCH", 2)
    model, sizes, others = small(size=32), [], []

    class Counting(networks.Classifier):
        def log_odds(self, images):
            sizes.append(len(images))
            return super().log_odds(images)

    class Other(networks.Classifier):
        def log_odds(self, images):
            others.append(len(images))
            return super().log_odds(images)

    fast, other = Counting(model.network, model.spec), Other(model.network, model.spec)
    form = backends._of_sizes(fast, other, torch.zeros(16, 3, 32, 32))
    for n in (1, 2, 3, 4, 7, 12, 13, 16, 33):
        images = torch.randn(n, 3, 32, 32)
        assert torch.allclose(form(images), model.log_odds(images), atol=1e-6)
    assert set(sizes) == {4, 16}
    assert others == [1, 2, 1]  # of 1, 2 and the rest of 33; 7 is 4 and 3


@pytest.mark.slow
def test_mnn_prints_nothing_and_reports_nothing():
    """In a process of its own: what C keeps in its buffer comes out at exit, and MNN speaks once."""
    code = f"""
import sys, torch
from cxr_ray.models import backend_choice, backends, kept, networks
images = torch.randn(2, 3, {SIZE}, {SIZE})
model = networks.build("resnet18", networks.ModelSpec("resnet18", {SIZE}))
with torch.no_grad():
    backends.BACKENDS["mnn"].prepare(model, images)(images)
print([name for name in sys.modules if name.startswith(("MNN.tools", "aliyun"))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["onnxruntime", "mnn"])
@torch.no_grad()
def test_an_unloadable_library_says_why(name, monkeypatch):
    made = model()
    images = torch.randn(2, 3, SIZE, SIZE)

    def fails(m, example):
        raise ImportError("libc.so.6: version GLIBC_2.99 not found")

    replaced(monkeypatch, name, prepare=fails)
    assert "GLIBC_2.99" in str(backends.check(name, made, images, made.log_odds(images)))


@pytest.mark.parametrize(
    ("name", "arch"),
    [("folded", "resnet18d"), ("folded", "seresnet18"), ("onnxruntime", "seresnet18"), ("mnn", "seresnet18")],
)
@torch.no_grad()
def test_timms_networks_have_the_same_backends(name, arch):
    eager = model(arch=arch)
    images = torch.randn(5, 3, SIZE, SIZE)
    forward = backends.BACKENDS[name].prepare(eager, images[:2])
    assert torch.allclose(forward(images), eager.log_odds(images), atol=1e-4)


def test_few_passes_start_nothing_and_many_try_everything(monkeypatch):
    made = model()
    assert backend_choice.choose(made, SIZE, 2, 0)[0] == backend_choice.InferenceBackend("eager", {})
    assert set(backend_choice.choose(made, SIZE, 2, 1)[0].tried) == {"eager"}
    monkeypatch.setattr(backend_choice, "TRIAL_SECONDS", 0.0)
    chosen, _ = backend_choice.choose(made, SIZE, 2, 10**9)
    assert set(chosen.tried) == {"eager", "folded", "onnxruntime", "mnn"}
    rates = {name: rate for name, rate in chosen.tried.items() if isinstance(rate, float)}
    assert rates == chosen.tried
    assert rates[chosen.name] == max(rates.values())
    assert chosen.name in str(chosen)


def test_without_the_extra_it_says_so_and_goes_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "MNN", None)
    monkeypatch.setattr(backend_choice, "TRIAL_SECONDS", 0.0)
    made = model()
    chosen, _ = backend_choice.choose(made, SIZE, 2, 10**9)
    for name in ("onnxruntime", "mnn"):
        assert "cxr-ray[fast]" in str(chosen.tried[name])
        assert is_eager(backend_choice.make(name, made, SIZE, 2), made)


def test_a_network_that_cannot_be_traced_stays_eager(monkeypatch):
    class Branching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3 * SIZE * SIZE, 2)

        def forward(self, x):
            return self.linear(x.flatten(1)) if x.mean() > 1e9 else self.linear(-x.flatten(1))

    monkeypatch.setattr(backend_choice, "TRIAL_SECONDS", 0.0)
    made = networks.Classifier(Branching(), ModelSpec("resnet18", SIZE)).requires_grad_(False)
    chosen, forward = backend_choice.choose(made, SIZE, 2, 10**9)
    assert chosen.name == "eager"
    assert "traced" in str(chosen.tried["folded"])
    assert is_eager(forward, made)


def test_a_backend_that_disagrees_is_refused(monkeypatch):
    monkeypatch.setattr(backend_choice, "TRIAL_SECONDS", 0.0)
    replaced(monkeypatch, "folded", prepare=lambda m, example: lambda x: m.log_odds(x) + 0.01)
    chosen, _ = backend_choice.choose(model(), SIZE, 2, 10**9)
    assert chosen.name != "folded"
    assert chosen.tried["folded"] == "differs by up to 2.5e-03 in probability"


def test_a_compiler_that_fails_costs_a_line_and_no_run(monkeypatch):
    """torch.compile meets a missing compiler at the first call."""

    def fails_when_called(m, example):
        def forward(x):
            raise RuntimeError("Failed to find C compiler.\nA long trace.")

        return forward

    monkeypatch.setattr(backend_choice, "TRIAL_SECONDS", 0.0)
    replaced(monkeypatch, "compiled", device=None, prepare=fails_when_called)
    made = model()
    chosen, _ = backend_choice.choose(made, SIZE, 2, 10**9)
    assert chosen.name != "compiled"
    assert chosen.tried["compiled"] == "Failed to find C compiler."
    assert is_eager(backend_choice.make("compiled", made, SIZE, 2), made)


def test_a_module_that_a_compiler_misses_is_named_without_the_extra_that_lacks_it(monkeypatch):
    def fails(m, example):
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    made = model()
    replaced(monkeypatch, "compiled", prepare=fails)
    assert backends.check("compiled", made, torch.randn(2, 3, SIZE, SIZE), torch.zeros(2)) == "no triton"


def test_another_model_that_differs_on_the_chosen_backend_stays_eager(monkeypatch):
    replaced(monkeypatch, "folded", prepare=lambda m, example: lambda x: m.log_odds(x) + 0.01)
    made = model()
    assert is_eager(backend_choice.make("folded", made, SIZE, 2), made)


def test_the_batch_size_is_the_smallest_near_the_fastest_that_fits_and_is_kept(monkeypatch):
    made = model()
    assert backend_choice.batch_size(made, SIZE) == 32  # a CPU
    speed = {32: 100.0, 64: 180.0, 128: 196.0, 256: 200.0}
    measured: list[int] = []

    def rate(forward, example, seconds):
        measured.append(len(example))
        if len(example) > max(speed):
            raise torch.OutOfMemoryError
        return speed[len(example)]

    class OnGpu:
        device = torch.device("cuda")

    monkeypatch.setattr(backend_choice, "_rate", rate)
    monkeypatch.setattr(backend_choice, "_example", lambda m, size, batch: torch.zeros(batch))
    monkeypatch.setattr(kept, "key_of", lambda m, size, **more: {"size": size})
    monkeypatch.setitem(made._buffers, "mean", OnGpu())
    assert backend_choice.batch_size(made, SIZE) == 128
    measured.clear()
    assert backend_choice.batch_size(made, SIZE) == 128
    assert 512 in measured  # memory set a bound, which may be gone
    speed |= {size: 201.0 for size in backend_choice.BATCHES if size > 256}
    assert backend_choice.batch_size(made, SIZE) == 128
    measured.clear()
    assert backend_choice.batch_size(made, SIZE) == 128
    assert set(measured) == {128}
    speed.clear()
    speed[16] = 1.0  # others have the memory now
    with pytest.raises(torch.OutOfMemoryError, match=r"^the GPU has no memory left for 32 images of \d+ x \d+\.$"):
        backend_choice.batch_size(made, SIZE)

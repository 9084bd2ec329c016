"""cxr-ray doctor: what it says of a machine, of missing packages and of a full disk."""

from types import SimpleNamespace

import torch

from cxr_ray.commands import doctor
from cxr_ray.run import cluster


def test_it_says_what_a_run_would_use_of_this_machine(capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("cxr_ray.machine.usable_cpus", lambda: 6)
    monkeypatch.setattr("cxr_ray.machine.usable_memory", lambda: 64 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "  CPUs        6 usable of " in out
    assert "  Memory      64.0 GiB usable" in out
    assert "CPUs 6, no GPU, so on CPUs. Trials at a time: up to 1; then workers: 6." in out
    assert "eager, folded, onnxruntime, mnn" in out


def test_a_machine_that_is_too_small_is_a_sentence(capsys, monkeypatch):
    def refuse(*_):
        raise cluster.ClusterError("got a cluster of 0 CPUs; expected one; give it more.")

    monkeypatch.setattr(cluster, "allocate", refuse)
    assert doctor.main([]) == 1
    assert capsys.readouterr().err == "cxr_ray: got a cluster of 0 CPUs; expected one; give it more.\n"


def test_each_gpu_has_a_line_with_its_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    about = SimpleNamespace(name="NVIDIA H200", total_memory=139 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: about)
    lines = dict(doctor.machine())
    assert (lines["GPU 0"], lines["GPU 1"]) == ("NVIDIA H200, 139 GiB",) * 2
    assert "GPUs" not in lines


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(
        doctor.importlib.metadata,
        "requires",
        lambda name: ["torch>=2", "duckdb>=1.1; extra == 'analysis'", "nonesuch>=1; extra == 'hub'"],
    )
    lines = dict(doctor.extras())
    assert lines["hub"] == "without nonesuch: pip install 'cxr-ray[hub]'"
    assert list(lines) == ["analysis", "hub"]


def test_a_full_disk_is_told_also_where_the_folder_is_not_there_yet(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**28))
    assert doctor.disk(tmp_path / "not" / "there").startswith("0.2 GiB free (")
    assert "may not find room" in doctor.disk(tmp_path / "not" / "there")


def test_a_cluster_is_named_and_nothing_is_said_of_this_machine(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert dict(doctor.machine())["Ray"] == "RAY_ADDRESS=10.0.0.1:6379: a run joins it"
    (line,) = doctor.usage()
    assert "cluster" in line

"""Files that start clusters: as far as one machine can check them. No cloud, Kubernetes or Slurm was asked."""

import os
import re
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "sweeps" / "cluster"


def _ray_version() -> str:
    (version,) = re.findall(r"(?m)^ray==(.+)$", (ROOT / "constraints.txt").read_text())
    return version


@pytest.mark.parametrize("name", ["rayjob", "raycluster"])
def test_kuberay_gets_the_tested_ray_with_a_token_and_gpus(name):
    content = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    spec = content["spec"]["rayClusterSpec"] if name == "rayjob" else content["spec"]
    assert spec["rayVersion"] == _ray_version()
    assert spec["authOptions"] == {"mode": "token"}
    (workers,) = spec["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert workers["minReplicas"] >= 1


def test_images_are_built_from_a_wheel_with_the_tested_ray():
    cuda, cpu = ((CLUSTER / name).read_text() for name in ("Dockerfile", "Dockerfile.cpu"))
    assert f"FROM rayproject/ray:{_ray_version()}-py312-gpu\n" in cuda
    for text in (cuda, cpu):
        assert "pip wheel" in text
        extras = re.findall(r"whl\)\[(.+?)\]", text)[0].split(",")
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        assert set(extras) <= set(project["project"]["optional-dependencies"])
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    needed = {"constraints.txt", "pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    targets = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert kept == needed | set(targets["packages"]) | set(targets["force-include"])


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_rays_own_schema_takes_the_file_of_a_cloud(cloud):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((CLUSTER / f"{cloud}.yaml").read_text()))
    validate_config(config)
    assert config["available_node_types"]["head"]["max_workers"] == 0
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert list(config["file_mounts"]) == ["/home/ray/.ray/auth_token"]


def test_the_job_of_slurm_starts_one_sweep_on_its_nodes_with_a_token(tmp_path):
    """With stand-ins for srun and scontrol, which print what they are asked."""
    stand_ins = {
        "scontrol": "printf 'node%d\\n' {7..30000}",  # more names than a pipe holds: none of them may be left unread
        "srun": 'echo "$RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}"; printf "%s\\n" "$@"',
    }
    for name, line in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    env = {
        **{k: v for k, v in os.environ.items() if k != "CXR_RAY_VENV"},
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "40001",
        "SLURM_CPUS_PER_TASK": "8",
    }
    done = subprocess.run(
        ["bash", CLUSTER / "slurm.sh", "findings", "--out", "/shared/a run"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    token, *asked = done.stdout.splitlines()
    assert token == "token 64"
    started, command = asked[: asked.index("--")], asked[asked.index("--") + 1 :]
    assert started == (
        ["--export=ALL", "ray", "symmetric-run", "--address", "node7:20001", "--min-nodes", "2", "--num-cpus", "8"]
    )
    assert command == (
        [
            "env",
            "RAY_ADDRESS=node7:20001",
            "python",
            "-m",
            "cxr_ray.sweep",
            "findings",
            "--out",
            "/shared/a run",
            "--resume",
        ]
    )

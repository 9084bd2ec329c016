"""``ray job submit`` to a head started on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cxr_ray import results
from tests.test_sweep import TINY

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@pytest.mark.slow
def test_ray_job_submit_runs_a_sweep(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    out = tmp_path / "out"
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(Path(__file__).parent.parent)}
    head = ["start", "--head", "--port=6399", "--dashboard-port=8299", "--num-cpus=4", "--include-dashboard=true"]
    subprocess.run([*RAY, *head], env=env, check=True, capture_output=True, timeout=120)
    try:
        submit = ["job", "submit", "--address", "http://127.0.0.1:8299", "--working-dir", str(work), "--",
                  sys.executable, "-m", "cxr_ray.sweep", "tiny.yaml", "--out"]  # fmt: skip
        done = subprocess.run(
            [*RAY, *submit, str(out)], env=env, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "the cluster of 1 machine" in done.stdout
        assert len(results.open_run(str(out)).pandas("summary"))
        # a relative --out would be lost with the job's copy of the working directory
        refused = subprocess.run(
            [*RAY, *submit, "results/x"], env=env, capture_output=True, text=True, timeout=200, check=False
        )
        assert refused.returncode != 0
        assert "absolute path" in refused.stdout + refused.stderr
    finally:
        subprocess.run([*RAY, "stop", "--force"], env=env, capture_output=True, timeout=60, check=False)

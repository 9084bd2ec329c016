"""``ray job submit`` of a small quickstart to a head started on this machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cxr_ray import results

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
SMALL = (
    "variants={plain: {}}",
    "explain.explainers=[gradcam]",
    "data.size=64",
    "data.phantom.train=48",
    "data.phantom.test=12",
    "train.epochs=1",
    "perturb.levels=[0.5]",
)


ADDRESS = ("--address", "http://127.0.0.1:8299")


def _submit(work: Path, env: dict[str, str], *arguments: str, how: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """A job, once the head takes one: its dashboard and then its agent need seconds to start."""
    command = [
        *RAY,
        "job",
        "submit",
        *ADDRESS,
        *how,
        "--working-dir",
        str(work),
        "--",
        sys.executable,
        "-m",
        "cxr_ray.sweep",
        *arguments,
    ]
    for _ in range(60):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200, check=False)
        if "No available agent" not in done.stderr and "Failed to connect" not in done.stderr:
            return done
        time.sleep(1)
    raise AssertionError("the head took no job: " + done.stderr[-2000:])


@pytest.mark.slow
def test_ray_job_submit_runs_the_quickstart_and_goes_on_after_ray_job_stop(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    out = tmp_path / "out"
    env = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0" * 32,
        "PYTHONPATH": str(Path(__file__).parent.parent.parent),
    }
    head = [
        "start",
        "--head",
        "--block",
        "--port=6399",
        "--dashboard-port=8299",
        "--num-cpus=4",
        "--include-dashboard=true",
        "--dashboard-agent-listen-port=52399",
    ]
    # its own session: "ray stop" would end every Ray on this machine
    process = subprocess.Popen(
        [*RAY, *head], env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        asked = ["--out", str(out), *(part for value in SMALL for part in ("--set", value))]
        _submit(work, env, *asked, how=("--no-wait", "--submission-id", "one"))
        for _ in range(6000):
            if list(out.glob(".work/trials/*/state.safetensors")):  # it has trained
                break
            time.sleep(0.1)
        stopped = subprocess.run([*RAY, "job", "stop", *ADDRESS, "one"], env=env, capture_output=True, check=True)
        assert b"was stopped" in stopped.stdout + stopped.stderr
        assert not (out / "report.html").exists()
        done = _submit(work, env, *asked, "--resume")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "the cluster of 1 machine" in done.stdout
        run = results.open_run(str(out))
        half = run.pandas("classification").query("split == 'test' and threshold_rule == 'half'")
        assert list(half[["tn", "fp", "fn", "tp"]].sum(axis=1)) == [12]
        faithfulness = run.pandas("faithfulness")
        assert set(faithfulness.explainer) == {"gradcam"}
        assert faithfulness.image_id.nunique() == 12
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)

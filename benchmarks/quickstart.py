"""CPU seconds that the quickstart takes before its work begins, here and, with ``--before``, in another checkout.

    git worktree add ../before COMMIT
    python -m benchmarks.quickstart --before ../before

Seconds are those of the driver's process, and of all processes that it started: a busy machine makes them longer, but
not as it does the time on the wall. Both packages begin the same small quickstart in turn. It is ended once it trains.
Linux alone tells them (/proc).
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import arguments, show

STAGES = {  # a stage to how the line begins that ends it, in this version and before
    "first line": "",
    "images read": "Images of",
    "Ray answers": "Ray on ",
}
SMALL = ("train.epochs=1", "data.phantom.train=40", "data.phantom.test=8")
TICK = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """The command."""
    args = arguments(__doc__, before=(str, "", "folder of another checkout"), rounds=(int, 2, "starts of each"))
    here = Path(__file__).parent.parent
    packages = {"now": here} | ({"before": Path(args.before).resolve()} if args.before else {})
    kinds = ("driver", "all processes")
    measured: dict[str, list[float]] = {f"{n}, {s}, {k}": [] for n in packages for s in STAGES for k in kinds}
    for _ in range(args.rounds):
        for name, folder in packages.items():
            for stage, seconds in _start(folder).items():
                for kind, value in zip(kinds, seconds, strict=True):
                    measured[f"{name}, {stage}, {kind}"].append(value)
    middle = {name: statistics.median(values) for name, values in measured.items()}
    ratios = {
        f"{s}, {k}: now / before": middle[f"now, {s}, {k}"] / middle[f"before, {s}, {k}"]
        for s in STAGES
        for k in kinds
        if args.before
    }
    show("quickstart", measured, ratios, dict.fromkeys(ratios, 0.7), unit="CPU s", as_json=args.json)


def _start(folder: Path) -> dict[str, tuple[float, float]]:
    """CPU seconds of the driver and of all processes at the end of each stage."""
    found: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as out:
        sets = [part for change in SMALL for part in ("--set", change)]
        command = [sys.executable, "-u", "-m", "cxr_ray.sweep", "--out", f"{out}/run", *sets]
        env = {**os.environ, "PYTHONPATH": str(folder), "XDG_CACHE_HOME": f"{out}/cache"}
        process = subprocess.Popen(
            command, cwd=out, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            seconds = _cpu_seconds(process.pid)
            found |= {
                stage: seconds for stage, begin in STAGES.items() if stage not in found and line.startswith(begin)
            }
            if len(found) == len(STAGES):
                break
        process.send_signal(signal.SIGINT)
        process.wait()
    if len(found) < len(STAGES):
        raise SystemExit(f"quickstart: {folder}: got no line of: {', '.join(s for s in STAGES if s not in found)}")
    return found


def _cpu_seconds(driver: int) -> tuple[float, float]:
    """Of a process, and of it with all that it started, those that have ended too."""
    known: dict[int, tuple[int, float]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            known[int(entry.name)] = int(fields[1]), sum(map(int, fields[11:15])) / TICK
    total, waiting = 0.0, [driver]
    while waiting:
        process = waiting.pop()
        total += known[process][1]
        waiting += [child for child, (parent, _) in known.items() if parent == process]
    return known[driver][1], total


if __name__ == "__main__":
    main()

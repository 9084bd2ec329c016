"""The scoring pass with 1, 2 and 4 workers, each with a device of its own that is a sleep: how much faster is it?

Sweeps of ``growth`` with its stub, which sleeps for as long as a device would take for a forward pass. So more devices
can be had than there are, and the CPUs are shared by all that the product does: to decode, make masks and rows, write,
and drive. Time is from the first shard that is done to the last, without start-up. A sleep is waited for, while a GPU
works on as rows are made: that hides work of the worker, and is not measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from benchmarks.common import machine
from benchmarks.growth import measured
from benchmarks.stub import DEVICES, PASS_SECONDS


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="1,2,4", help="numbers of workers (default: 1,2,4)")
    parser.add_argument("--images", type=int, default=1500, help="test images (default: 1500)")
    parser.add_argument("--microseconds", type=float, default=500.0, help="of a forward pass (default: 500)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    os.environ[PASS_SECONDS] = str(args.microseconds / 1e6)
    print(f"workers: {machine()}; {args.microseconds:g} microseconds a pass")
    seconds, cpu = {}, {}
    for n in map(int, args.workers.split(",")):
        os.environ[DEVICES] = str(n)
        with tempfile.TemporaryDirectory() as folder:
            run = measured(Path(folder), args.images, 1, n)
        seconds[n], cpu[n] = run.seconds["scores"], run.cpu["scores"]
    first = min(seconds)
    for n, taken in seconds.items():
        efficiency = seconds[first] * first / (n * taken)
        print(f"{n} workers: {taken:.1f} s, {cpu[n] / taken:.2f} CPUs busy, efficiency {efficiency:.2f}")
    if args.json:
        print(json.dumps({"seconds": seconds, "cpu": cpu}))


if __name__ == "__main__":
    main()

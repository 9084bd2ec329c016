"""A run on many workers, simulated event by event: the driver's time for a shard, stragglers, machines that are lost.

A driver hands shards to workers, one after another; a worker holds a few, computes them in turn and asks for another as
each is done. A machine that is lost takes its shards with it: they are handed out again, and another machine takes its
place after a while and starts a worker. Nothing is computed twice to catch up with a straggler, as in the product.
Efficiency is the time that all shards take without any of this, over workers times the time that passed. The driver's
seconds and the start of a worker are measured by ``growth`` and ``pipeline``; stragglers and losses are assumed.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

WORKERS = (1, 4, 16, 100, 1000)


@dataclass(frozen=True)
class Cluster:
    """What is simulated. Times in seconds.

    Attributes:
        workers: machines with one worker each.
        shards: to be computed.
        seconds: that a worker computes a shard, on average.
        driver: of the driver's own time for each shard.
        start: from a machine to its first shard.
        ahead: shards that a worker holds at a time.
        spread: standard deviation of the logarithm of a shard's time.
        slow: share of machines that take twice as long.
        lost: machines lost in an hour, as a share of those that run.
        replaced: until another machine takes the place of one that was lost.
        seed: of the draws.
    """

    workers: int
    shards: int
    seconds: float
    driver: float = 0.0
    start: float = 0.0
    ahead: int = 2
    spread: float = 0.0
    slow: float = 0.0
    lost: float = 0.0
    replaced: float = 120.0
    seed: int = 0


@dataclass(frozen=True)
class Simulated:
    """What came out: seconds that passed, efficiency, share of the time that the driver works, shards begun in vain."""

    wall: float
    efficiency: float
    driver_busy: float
    wasted: int


class _Machine:
    """One machine: the shards that it holds, its pace, and how often it was replaced."""

    def __init__(self, pace: float):
        self.pace, self.held, self.life = pace, 0, 0
        self.computing = False


class _Simulation:
    def __init__(self, cluster: Cluster):
        self.cluster, self.rng = cluster, np.random.default_rng(cluster.seed)
        paces = np.where(self.rng.random(cluster.workers) < cluster.slow, 2.0, 1.0)
        self.machines = [_Machine(pace) for pace in paces]
        self.events: list[tuple[float, int, str, int, int]] = []  # moment, order, what, machine, its life
        self.order = 0
        self.requests: deque[tuple[int, int]] = deque()  # of machines that can hold another shard
        self.waiting, self.done, self.wasted = cluster.shards, 0, 0
        self.driver_free = self.driver_busy = 0.0

    def at(self, moment: float, what: str, machine: int) -> None:
        self.order += 1
        heapq.heappush(self.events, (moment, self.order, what, machine, self.machines[machine].life))

    def run(self) -> Simulated:
        cluster = self.cluster
        for n in range(cluster.workers):
            self._begin(0.0, n)
        now = 0.0
        while self.done < cluster.shards:
            now, _, what, n, life = heapq.heappop(self.events)
            if self.machines[n].life == life:
                getattr(self, f"_{what}")(now, n)
        ideal = cluster.shards * cluster.seconds / cluster.workers
        return Simulated(now, ideal / now, self.driver_busy / now, self.wasted)

    def _begin(self, now: float, n: int) -> None:
        """A machine is there; its worker starts."""
        self.at(now + self.cluster.start, "started", n)
        if self.cluster.lost:
            self.at(now + float(self.rng.exponential(3600 / self.cluster.lost)), "lost", n)

    def _started(self, now: float, n: int) -> None:
        for _ in range(self.cluster.ahead):
            self._ask(now, n)

    def _ask(self, now: float, n: int) -> None:
        """The driver, when it is free, hands over a shard."""
        self.driver_free = max(now, self.driver_free) + self.cluster.driver
        self.driver_busy += self.cluster.driver
        self.at(self.driver_free, "handed", n)

    def _handed(self, now: float, n: int) -> None:
        machine = self.machines[n]
        if not self.waiting:
            self.requests.append((n, machine.life))
            return
        self.waiting -= 1
        machine.held += 1
        self._compute(now, n)

    def _compute(self, now: float, n: int) -> None:
        machine, cluster = self.machines[n], self.cluster
        if machine.held and not machine.computing:
            machine.computing = True
            factor = float(np.exp(self.rng.normal(-(cluster.spread**2) / 2, cluster.spread))) if cluster.spread else 1.0
            self.at(now + cluster.seconds * machine.pace * factor, "computed", n)

    def _computed(self, now: float, n: int) -> None:
        machine = self.machines[n]
        self.done += 1
        machine.held -= 1
        machine.computing = False
        self._compute(now, n)
        self._ask(now, n)

    def _lost(self, now: float, n: int) -> None:
        machine = self.machines[n]
        self.wasted += machine.computing
        self.waiting += machine.held
        machine.held, machine.computing = 0, False
        machine.life += 1
        self.at(now + self.cluster.replaced, "begin", n)
        for other, life in [self.requests.popleft() for _ in range(min(self.waiting, len(self.requests)))]:
            if self.machines[other].life == life:
                self._ask(now, other)


def simulate(cluster: Cluster) -> Simulated:
    """Simulate a run to its last shard."""
    return _Simulation(cluster).run()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=62_500, help="shards of the run (62,500: a million pairs)")
    parser.add_argument("--seconds", type=float, required=True, help="that a worker computes a shard")
    parser.add_argument("--driver", type=float, required=True, help="of the driver's time for each shard")
    parser.add_argument("--start", type=float, default=20.0, help="from a machine to its first shard (default: 20)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    given: dict[str, Any] = {"shards": args.shards, "seconds": args.seconds, "driver": args.driver, "start": args.start}
    cases: dict[str, dict[str, Any]] = {
        "even": {},
        "stragglers": {"spread": 0.3, "slow": 0.02},
        "stragglers, spot": {"spread": 0.3, "slow": 0.02, "lost": 0.1},
    }
    rows = []
    print(f"thousand: {args.shards} shards of {args.seconds:g} s, {1000 * args.driver:g} ms of the driver for each")
    print(f"  {'workers':>8}  {'case':<18}{'time':>10}{'efficiency':>12}{'driver busy':>13}{'begun in vain':>15}")
    for workers in WORKERS:
        for case, more in cases.items():
            found = simulate(Cluster(workers, **given, **more))
            rows.append({"workers": workers, "case": case, **asdict(found)})
            print(
                f"  {workers:>8}  {case:<18}{found.wall:>9.0f}s{found.efficiency:>12.2f}{found.driver_busy:>13.2f}"
                f"{found.wasted:>15}"
            )
    if args.json:
        print(json.dumps({"given": given, "rows": rows}))


if __name__ == "__main__":
    main()

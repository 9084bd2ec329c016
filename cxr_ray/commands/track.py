"""The command line ``cxr-ray track RUN``: a finished run to MLflow or Weights & Biases."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from cxr_ray.arguments import Parser, guarded
from cxr_ray.errors import TrackerError, UserError

EXIT_CODES = "Exit codes: 0 done, 1 the tracker did not take it, 2 the request was wrong, 130 interrupted."


def parser(prog: str = "cxr-ray track") -> argparse.ArgumentParser:
    """The arguments."""
    p = Parser(
        prog=prog,
        description="Sends a finished run to trackers: each trial with its epochs, and one summary run with accuracy, "
        "advantages, answers, figures and page. What was sent before is not sent again.",
        epilog=EXIT_CODES,
    )
    p.add_argument("run", help="the run's folder or URI")
    p.add_argument("--mlflow", metavar="URI", help="of an MLflow server or database (extra mlflow)")
    p.add_argument("--wandb", metavar="PROJECT", help="of Weights & Biases; WANDB_MODE=offline works (extra wandb)")
    return p


def main(argv: Sequence[str] | None = None, prog: str = "cxr-ray track") -> int:
    """Run the command line; returns the exit code."""
    args = parser(prog).parse_args(argv)
    from cxr_ray.run import progress

    return guarded(lambda: progress.concluded("Reading the run", run(args)))


def run(args: argparse.Namespace) -> Iterator[str]:
    """Send the records; yields a line for each tracker.

    Raises:
        UserError: no tracker is named, or the run is not finished.
        TrackerError: a tracker did not take a record; the others were tried, and what they took is told as well.
    """
    from cxr_ray import results
    from cxr_ray.run import trackers, tracking

    opened = results.open_run(args.run)
    named = {"mlflow": args.mlflow, "wandb": args.wandb}
    if not any(named.values()):
        named = dict(opened.sweep.get("track") or {})
    targets = {key: target for key, target in named.items() if target}
    if not targets:
        raise UserError(
            f"got no tracker, and {args.run} names none; expected --mlflow URI or --wandb PROJECT; give one."
        )
    trackers.require(targets)
    sent, failed = [], []
    for key, target in targets.items():
        try:
            n = tracking.send_run(opened, key, target)
        except TrackerError as e:
            failed.append(str(e))
        else:
            sent.append(f"Sent to {trackers.TRACKERS[key].label}: {n - 1} trials and one summary of {args.run}.")
    if failed:
        raise TrackerError("\n".join([*failed, *sent]))
    yield from sent

"""The console script ``cxr-ray``: ``run``, ``verdict``, ``report`` and ``verify``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import cxr_ray
from cxr_ray.arguments import Parser


def run(arguments: Sequence[str]) -> int:
    """``cxr-ray run``, which is ``python -m cxr_ray.sweep``."""
    from cxr_ray import sweep

    return sweep.main(arguments, prog="cxr-ray run")


def verdict(arguments: Sequence[str]) -> int:
    """``cxr-ray verdict``, which is ``python -m cxr_ray.verdict``."""
    import cxr_ray.verdict as command

    return command.main(arguments, prog="cxr-ray verdict")


def report(arguments: Sequence[str]) -> int:
    """``cxr-ray report``, which is ``python -m cxr_ray.report``."""
    from cxr_ray.report import __main__ as command

    return command.main(arguments, prog="cxr-ray report")


def verify(arguments: Sequence[str]) -> int:
    """``cxr-ray verify``, which is ``python -m cxr_ray.verify``."""
    from cxr_ray import verify as command

    return command.main(arguments, prog="cxr-ray verify")


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {  # what each imports, it imports when it is called
    "run": (run, "train, explain and measure as a sweep file says"),
    "verdict": (verdict, "say whether one model's maps are more faithful than controls, in about a minute"),
    "report": (report, "draw the report of a run again"),
    "verify": (verify, "say whether a finished run holds, computing a sample of its rows again"),
}


def parser() -> argparse.ArgumentParser:
    """The arguments before those of a command."""
    p = Parser(
        prog="cxr-ray",
        description="Measures whether saliency maps on chest X-rays show what the model used.",
        epilog="cxr-ray COMMAND --help lists the arguments of a command.",
    )
    p.add_argument("--version", action="version", version=f"cxr-ray {cxr_ray.__version__}")
    commands = p.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, text) in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    args, _ = parser().parse_known_args(arguments[:1])
    command, _ = COMMANDS[args.command]
    return command(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())

"""The console script ``cxr-ray``: the commands, and completion of what is typed."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import cxr_ray
from cxr_ray.arguments import Parser


class Command(NamedTuple):
    """A command: the module whose ``main(arguments, prog)`` and ``parser(prog)`` it is, and what it does."""

    module: str
    caption: str


COMMANDS = {  # a module is imported when its command is called
    "run": Command("cxr_ray.sweep", "train, explain and measure as a sweep file says"),
    "verdict": Command(
        "cxr_ray.verdict", "say whether one model's maps are more faithful than controls, patient by patient"
    ),
    "explain": Command("cxr_ray.commands.explain", "explain images of a folder with one model, without a sweep file"),
    "compare": Command("cxr_ray.commands.compare", "compare finished runs on the same images, in tables and a page"),
    "report": Command("cxr_ray.report.__main__", "draw the report of a run again"),
    "verify": Command("cxr_ray.verify", "say whether a finished run holds, computing a sample of its rows again"),
    "track": Command("cxr_ray.commands.track", "send a finished run to MLflow or Weights & Biases"),
    "list": Command("cxr_ray.commands.listing", "list explainers, controls, fills, sweeps, networks, with cost"),
    "doctor": Command("cxr_ray.commands.doctor", "say what this machine has, and what a run would use of it"),
}


def parser(typed: str = "") -> argparse.ArgumentParser:
    """The commands. ``typed``: the one whose own arguments stand there too, for completion."""
    p = Parser(
        prog="cxr-ray",
        description="Measures whether saliency maps on chest X-rays show what the model used.",
        epilog="cxr-ray COMMAND --help lists the arguments of a command.",
    )
    p.add_argument("--version", action="version", version=f"cxr-ray {cxr_ray.__version__}")
    commands = p.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        parents = [importlib.import_module(command.module).parser()] if name == typed else []
        commands.add_parser(name, help=command.caption, add_help=False, parents=parents)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if "_ARGCOMPLETE" in os.environ:  # a shell asks how what is typed may go on
        complete()
    args, _ = parser().parse_known_args(arguments[:1])
    module = importlib.import_module(COMMANDS[args.command].module)
    code: int = module.main(arguments[1:], prog=f"cxr-ray {args.command}")
    return code


def complete() -> None:
    """Answer a shell and end: ``eval "$(register-python-argcomplete cxr-ray)"`` makes it ask."""
    try:
        import argcomplete
    except ImportError:
        return
    words = os.environ.get("COMP_LINE", "").split()
    argcomplete.autocomplete(parser(words[1] if len(words) > 1 else ""))


if __name__ == "__main__":
    sys.exit(main())

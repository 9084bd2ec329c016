"""The command line ``python -m cxr_ray.verify RUN``, which is ``cxr-ray verify``: whether a finished run holds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import cxr_ray
from cxr_ray.arguments import Parser
from cxr_ray.errors import CxrRayError, DamagedRunError, SweepError

HOLDS, HOLDS_NOT, INTERRUPTED = 0, 1, 130
EXIT_CODES = "Exit codes: 0 the run holds, 1 it does not, 2 the request was wrong, 130 interrupted."


def parser(prog: str = "python -m cxr_ray.verify") -> argparse.ArgumentParser:
    """The arguments."""
    from cxr_ray.data import sources

    p = Parser(
        prog=prog,
        description="Says whether a finished run holds: hashes of its images and models, a seeded sample of its rows "
        "computed again from them, and its statistics computed again from its rows. Nothing is written.",
        epilog=EXIT_CODES,
    )
    p.add_argument("run", help="the run's folder or URI, as --out named it")
    p.add_argument("--images", type=_count, default=8, metavar="N", help="test images to compute again (default: 8)")
    p.add_argument("--seed", type=int, default=0, help="of the choice of images (default: 0)")
    p.add_argument("--data", help=f"where the images lie, if elsewhere now: {sources.usages()}")
    p.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=PATH",
        dest="models",
        help="where the checkpoint of a given model lies, if elsewhere now; may be repeated",
    )
    p.add_argument(
        "--maps",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="where maps from outside lie, if elsewhere now; may be repeated",
    )
    p.add_argument("--quiet", action="store_true", help="say nothing but what is wrong and whether it holds")
    p.add_argument("--version", action="version", version=f"cxr-ray {cxr_ray.__version__}")
    return p


def main(argv: Sequence[str] | None = None, prog: str = "python -m cxr_ray.verify") -> int:
    """Run the command line; returns the exit code."""
    args = parser(prog).parse_args(argv)
    import pyarrow as pa

    from cxr_ray.data.loading import one_line
    from cxr_ray.run import terminal

    try:
        return run(args)
    except DamagedRunError as e:
        terminal.complain(f"{e} The run DOES NOT HOLD.")
        return HOLDS_NOT
    except CxrRayError as e:
        terminal.complain(str(e))
        return 2
    except (OSError, pa.ArrowException) as e:
        terminal.complain(
            f"got {args.run}, of which a file cannot be read ({one_line(e)}); expected every table whole. The run DOES "
            "NOT HOLD."
        )
        return HOLDS_NOT
    except KeyboardInterrupt:
        terminal.complain("interrupted.")
        return INTERRUPTED


def run(args: argparse.Namespace) -> int:
    """From the arguments to the last sentence; returns the exit code."""
    from cxr_ray.data import sources
    from cxr_ray.run import progress, terminal
    from cxr_ray.run.verification import Request, verify

    changes = {} if args.data is None else sources.changes_of(args.data)
    models = dict(_named(text, "--model", "checkpoints") for text in args.models)
    maps = dict(_named(text, "--maps", "explain.maps") for text in args.maps)
    with progress.shown("Verifying", quiet=args.quiet):
        say = _what_is_wrong if args.quiet else terminal.say
        holds = verify(Request(args.run, args.images, args.seed, changes, models, maps), say)
    terminal.conclude("The run holds." if holds else "The run DOES NOT HOLD.")
    return HOLDS if holds else HOLDS_NOT


def _what_is_wrong(line: str) -> None:
    """Say a line only where something does not hold, or where it shows what (indented)."""
    from cxr_ray.run import terminal

    if "DOES NOT HOLD" in line or line.startswith("    "):
        terminal.complain(line)


def _named(text: str, option: str, section: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise SweepError(f"{option}: got {text!r}; expected NAME=PATH; give a name under {section} and where it lies.")
    return name, path


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number from 1")
    return number


if __name__ == "__main__":
    sys.exit(main())

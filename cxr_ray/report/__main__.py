"""The command line: ``python -m cxr_ray.report RUN [--data PATH]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from cxr_ray.arguments import Parser, guarded, require_there

EXIT_CODES = "Exit codes: 0 done, 1 a file of the run cannot be read, 2 the request was wrong, 130 interrupted."


def parser(prog: str = "python -m cxr_ray.report") -> argparse.ArgumentParser:
    """The arguments."""
    p = Parser(prog=prog, description="Draws the report of a run again.", epilog=EXIT_CODES)
    p.add_argument("out", help="the run's folder or URI, as --out named it")
    p.add_argument("--data", help="where the images lie, if elsewhere now (pictures only)")
    p.add_argument("--quiet", action="store_true", help="say nothing but what is wrong and how it ends")
    return p


def main(argv: Sequence[str] | None = None, prog: str = "python -m cxr_ray.report") -> int:
    """Draw a run again; return the exit code."""
    args = parser(prog).parse_args(argv)
    from cxr_ray.run import progress

    return guarded(lambda: progress.concluded("Reading the run", run(args), quiet=args.quiet))


def run(args: argparse.Namespace) -> Iterator[str]:
    """From the arguments to the lines that conclude: the run's answer, and the path of its page."""
    require_there("--data", args.data)
    from cxr_ray.report.document import write_report  # pandas and matplotlib, which --help does without
    from cxr_ray.run import progress

    with progress.stage("Page", unit="parts") as stage:
        sentences = write_report(args.out, args.data, stage)
    yield from sentences
    yield f"{args.out.rstrip('/')}/report.html"


if __name__ == "__main__":
    sys.exit(main())

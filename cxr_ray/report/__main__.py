"""The command line: ``python -m cxr_ray.report RUN [--data PATH]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cxr_ray import quiet
from cxr_ray.arguments import Parser, require_there
from cxr_ray.errors import CxrRayError


def parser(prog: str = "python -m cxr_ray.report") -> argparse.ArgumentParser:
    """The arguments."""
    p = Parser(prog=prog, description="Draws the report of a run again.")
    p.add_argument("out", help="the run's folder or URI, as --out named it")
    p.add_argument("--data", help="where the images lie, if elsewhere now (galleries only)")
    return p


def main(argv: Sequence[str] | None = None, prog: str = "python -m cxr_ray.report") -> int:
    """Draw a run again; return the exit code."""
    args = parser(prog).parse_args(argv)
    import pyarrow as pa

    from cxr_ray.report.document import write_report  # pandas and matplotlib, which --help does without

    try:
        require_there("--data", args.data)
        write_report(args.out, args.data)
    except (CxrRayError, pa.ArrowException) as e:
        quiet.complain(f"cxr_ray: {str(e).splitlines()[0]}")
        return getattr(e, "exit_code", 2)
    except OSError as e:
        quiet.complain(f"cxr_ray: {args.out}: {str(e).splitlines()[0]}")
        return 1
    print(f"{args.out.rstrip('/')}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())

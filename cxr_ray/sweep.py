"""The command line ``python -m cxr_ray.sweep [SWEEP.yaml]``, which is ``cxr-ray run``: arguments and exit codes."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import cxr_ray
from cxr_ray.arguments import Parser
from cxr_ray.errors import CxrRayError, SweepError
from cxr_ray.registry import did_you_mean

if TYPE_CHECKING:
    from cxr_ray.config import Sweep
    from cxr_ray.run.ahead import RayAhead

DONE, UNFINISHED, INTERRUPTED, TERMINATED = 0, 1, 130, 143
EXIT_CODES = "Exit codes: 0 done, 1 could not finish, 2 the request was wrong, 130 interrupted, 143 terminated."


def parser(prog: str = "python -m cxr_ray.sweep") -> argparse.ArgumentParser:
    """The arguments."""
    from cxr_ray.data import sources

    p = Parser(
        prog=prog,
        description="Trains, explains and measures: whether saliency maps on chest X-rays show what the model used.",
        epilog=EXIT_CODES,
    )
    names = ", ".join(shipped_names())
    p.add_argument("sweep", nargs="?", help=f"a sweep file, or one that ships: {names} (default: quickstart)")
    p.add_argument("--data", help=sources.usages())
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change one value of the sweep, such as train.epochs=5; may be repeated",
    )
    p.add_argument("--out", help="the run's folder or URI (default: results/<name>)")
    p.add_argument("--resume", action="store_true", help="go on where a run stopped")
    p.add_argument("--dry-run", action="store_true", help="print what would be done, and start nothing")
    p.add_argument("--quiet", action="store_true", help="say nothing but what is wrong and how it ends")
    p.add_argument("--version", action="version", version=f"cxr-ray {cxr_ray.__version__}")
    return p


def main(argv: Sequence[str] | None = None, prog: str = "python -m cxr_ray.sweep") -> int:
    """Run the command line; returns the exit code."""
    args = parser(prog).parse_args(argv)
    from cxr_ray.run import signals
    from cxr_ray.run.ahead import RayAhead

    with signals.handled():
        return _guarded(args, RayAhead())


def _guarded(args: argparse.Namespace, ahead: RayAhead) -> int:
    """``run``, its errors told in a sentence."""
    from cxr_ray.run import signals, terminal

    try:
        return run(args, ahead)
    except CxrRayError as e:
        terminal.complain(str(e))
        return e.exit_code
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        terminal.complain(f"no space left ({e}); make room, and the same command with --resume goes on.")
        return UNFINISHED
    except KeyboardInterrupt:
        how, code = ("terminated", TERMINATED) if signals.was_terminated() else ("interrupted", INTERRUPTED)
        terminal.complain(f"{how}; the same command with --resume goes on.")
        return code
    finally:  # after the line that says what is wrong
        ahead.close()


def shipped() -> Path:
    """The folder of the sweep files that ship with the package."""
    inside = Path(str(files("cxr_ray"))) / "sweeps"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "sweeps"


def shipped_names() -> list[str]:
    """The names of the sweeps that ship."""
    return sorted(path.stem for path in shipped().glob("*.yaml"))


def sweep_file(name: str | None) -> Path:
    """The sweep file named; if there is none, NAME, NAME.yaml and sweeps/NAME.yaml mean the one that ships.

    Raises:
        SweepError: a bare name that is no file, with .yaml neither, and no sweep that ships.
    """
    path = Path(name if name is not None else "quickstart")
    ours = shipped() / f"{path.name.removesuffix('.yaml')}.yaml"
    is_ours = ours.is_file() and str(path.parent) in (".", "sweeps")
    if is_ours and (name is None or not path.is_file()):
        return ours
    if path.name == name and not path.suffix and not path.exists() and not path.with_suffix(".yaml").exists():
        raise SweepError(f"got the sweep {name!r}, no file and none that ships.{did_you_mean(name, shipped_names())}")
    return path


def load(args: argparse.Namespace) -> Sweep:
    """The resolved sweep that the arguments ask for."""
    from cxr_ray.data import sources
    from cxr_ray.sweepfile import load_sweep  # torch, which --help does without

    changes = {} if args.data is None else sources.changes_of(args.data)
    return load_sweep(sweep_file(args.sweep), args.overrides, changes)


def run(args: argparse.Namespace, ahead: RayAhead) -> int:
    """One sweep from its arguments to its report; returns the exit code. ``ahead``: Ray, not begun."""
    sweep = load(args)
    from cxr_ray.run import progress, terminal

    out = f"results/{sweep.name}" if args.out is None else args.out
    with progress.shown(f"Sweep {sweep.name}", quiet=args.quiet and not args.dry_run):
        if not args.dry_run:
            terminal.say(f"Sweep {sweep.name}: reading the images ({sweep.data.source}).")
        from cxr_ray.run import context, dryrun, lock, resume

        if args.dry_run:
            for line in dryrun.lines(context.prepare(sweep, out)):
                terminal.say(line)
            resume.check_out(out, resume=args.resume, dry=True)
            return DONE
        resume.check_out(out, resume=args.resume)
        with lock.held(out):
            code = _run_in(out, sweep, ahead, resumed=args.resume)
            lines = terminal.summary(out) if code == DONE else []
    for line in lines:
        terminal.conclude(line)
    return code


def _run_in(out: str, sweep: Sweep, ahead: RayAhead, *, resumed: bool) -> int:
    from cxr_ray.measure import lungs
    from cxr_ray.run import context, progress, resume, terminal

    prepared = context.prepare(sweep, out, None if resumed else ahead)  # a finished run needs no Ray
    for note in prepared.manifest.notes:
        terminal.say(note)
    if resumed and not prepared.store.exists("sweep.yaml"):
        terminal.say(f"Nothing to resume in {out}: a new run begins.")
    if resume.is_finished(prepared):
        terminal.say(f"{out} is finished already.")
        return DONE
    if lungs.wants_segmenter(sweep):
        lungs.segmenter()  # fails now, not after training
    with progress.stage("Importing Ray"):
        ahead.imported()
    from cxr_ray.run import execute  # imports Ray

    return DONE if execute.execute(prepared, ahead) else UNFINISHED


if __name__ == "__main__":
    sys.exit(main())

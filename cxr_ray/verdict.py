"""The command line ``python -m cxr_ray.verdict``, which is ``cxr-ray verdict``: one question, one screen.

``cxr_ray.verdict(...)`` calls ``cxr_ray.library.verdict``: the command line and the function share their name.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cxr_ray
from cxr_ray.arguments import SIZE, Parser, add_network, guarded, named_values, outputs_of, said_of
from cxr_ray.config import READ_AS_VALUES, Sweep
from cxr_ray.errors import SweepError
from cxr_ray.modules import make_callable
from cxr_ray.schemas import CLASSES

if TYPE_CHECKING:  # these import torch, which --help does without
    from cxr_ray.run.local_verdict import LocalVerdict

DONE = 0
EXIT_CODES = "Exit codes: 0 done, 1 could not finish, 2 the request was wrong, 130 interrupted."
CONTROLS = ("other_image", "mean_map", "shifted")
FILLS = ("mean", "blur")  # the first that is a valid baseline is taken
LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)  # no step is wider than 0.25
BUCKETS = ("all", "TP", "FP", "TN", "FN")
ROUND = 8  # patients between two lines
MAPS = "maps"  # the name of maps from outside
OPTION = {  # keys of a sweep, as its messages name them, to the option that sets them
    "explain.explainers": "--explainer",
    "explain.maps": "--maps",
    "verdicts.controls": "--controls",
    "controls": "--controls",
    "data.accept": "--accept",
    "data.classes.target": "--class",
    "data.classes": "--classes",
    "data.label": "--label",
    "data.fit": "--fit",
    "data.limit": "--limit",
    "data.size": "--size",
    "checkpoints": "--checkpoint",
    "seed": "--seed",
}


def parser(prog: str = "python -m cxr_ray.verdict") -> argparse.ArgumentParser:
    """The arguments."""
    from cxr_ray.data import sources

    p = Parser(
        prog=prog,
        description="Says whether the maps of one model are more faithful than controls. Patients of the test split "
        "are scored in random order until that is decided.",
        epilog=EXIT_CODES,
    )
    p.add_argument(
        "--checkpoint", required=True, help="the model: a .pt or .safetensors state dict, or what --arch says"
    )
    p.add_argument("--data", required=True, help=sources.usages())
    p.add_argument("--accept", nargs="+", default=[], help="suspicions about the data that do not stop the command")
    asked = p.add_mutually_exclusive_group()
    asked.add_argument("--explainer", default="gradcam", help="whose maps (default: gradcam)")
    asked.add_argument(
        "--maps", metavar="PATH", help="maps from outside instead: a folder, folder/*.npy or an .npz file"
    )
    p.add_argument("--controls", nargs="+", default=list(CONTROLS), help=f"(default: {' '.join(CONTROLS)})")
    p.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="a sample: at most N images of test, and of train and val together, balanced by label (default: all)",
    )
    p.add_argument("--bucket", nargs="+", default=["all"], choices=BUCKETS, help="patients: all, or an outcome")
    p.add_argument(
        "--target", choices=("pneumonia", "predicted"), default="pneumonia", help="the class that is explained"
    )
    p.add_argument(
        "--classes",
        nargs="+",
        default=[],
        type=named_values,
        metavar="NAME=LABEL,...",
        help=f"labels of {' and '.join(CLASSES)}, or of more classes, in the order of the network's outputs",
    )
    p.add_argument("--class", dest="target_class", metavar="NAME", help="the one of --classes that is measured")
    p.add_argument("--label", metavar="PATTERN", help="a pattern with a group that finds the label in a file's path")
    add_network(p, "the outputs of the network that stand for NORMAL and PNEUMONIA, or for each of --classes")
    p.add_argument("--seed", type=int, default=0, help="of the patients' order and the draws (default: 0)")
    p.add_argument("--out", help="a new folder for the table verdicts (default: nothing is kept)")
    p.add_argument("--quiet", action="store_true", help="say nothing but what is wrong and the verdict")
    p.add_argument("--version", action="version", version=f"cxr-ray {cxr_ray.__version__}")
    return p


def main(argv: Sequence[str] | None = None, prog: str = "python -m cxr_ray.verdict") -> int:
    """Run the command line; returns the exit code."""
    args = parser(prog).parse_args(argv)
    return guarded(lambda: run(args), worded=as_option, interrupted="interrupted; nothing was kept.")


def as_option(message: str) -> str:
    """A message about a key of a sweep, said of the option that sets it.

    >>> as_option("explain.explainers.0: got 'grdcam'.")
    "--explainer: got 'grdcam'."
    >>> as_option("got 2 images of both labels; look at them, or confirm with data.accept: [both_labels].")
    'got 2 images of both labels; look at them, or confirm with --accept both_labels.'
    >>> as_option("got a.csv without the column 'path'. Set data.columns.path.")
    "got a.csv without the column 'path'. Set data.columns.path. (A key of a sweep file; this command has no option.)"
    """
    message = re.sub(r"\bdata\.accept: \[([\w, ]+)\]", lambda m: f"--accept {m[1].replace(',', '')}", message)
    known = {*OPTION, "data.path"}
    named = dict.fromkeys(re.findall(r"\bdata(?:\.[a-z_]+)+", message))
    if not all(any(f"{name}.".startswith(f"{key}.") for key in known) for name in named):
        message += " (A key of a sweep file; this command has no option.)"
    key, got, rest = message.partition(": got ")
    if not got:
        return message
    part = key.rpartition(".")[2]
    if key.startswith("checkpoints.") and part in ("arch", "outputs", "mean", "std", "size"):
        return f"--{part}: got {rest}"
    option = next((o for k, o in OPTION.items() if key == k or key.startswith(f"{k}.")), key)
    return f"{option}: got {rest}"


def sweep_of(args: argparse.Namespace) -> Sweep:
    """The sweep that the arguments ask for."""
    from cxr_ray.data import sources
    from cxr_ray.sweepfile import resolve

    stem = re.sub(r"[^a-z0-9_-]", "_", Path(args.checkpoint).stem.lower()).lstrip("0123456789_-") or "model"
    name = f"{stem}_model" if stem in READ_AS_VALUES else stem
    data = {key.removeprefix("data."): value for key, value in sources.changes_of(args.data).items()}
    whose = {"explainers": [], "maps": {MAPS: args.maps}} if args.maps is not None else {"explainers": [args.explainer]}
    two = dict(zip(CLASSES, ("negative", "positive"), strict=True))
    is_two = args.target_class is None and {name for name, _ in args.classes} == set(two)
    if args.classes and args.target_class is None and not is_two:
        names = ", ".join(name for name, _ in args.classes)
        raise SweepError(f"--class: got none; expected one of {names}; say which class is measured.")
    several = {"several": dict(args.classes)} if args.classes else {}
    several = {two[name]: labels for name, labels in args.classes} if is_two else several
    target = {"target": args.target_class} if args.target_class is not None else {}
    asked = {"classes": {**several, **target}} if several or target else {}
    model = {"path": args.checkpoint, "outputs": outputs_of(args.outputs), **said_of(args)}
    fit = {} if args.fit is None else {"fit": args.fit}
    raw: dict[str, Any] = {
        "name": "verdict",
        "data": {
            **data,
            **asked,
            "label": args.label,
            "size": args.size or SIZE,
            "accept": args.accept,
            "limit": args.limit,
            **fit,
        },
        "checkpoints": {name: model},
        "explain": {**whose, "targets": [args.target]},
        "perturb": {"grids": ["pixel"], "fills": list(FILLS), "levels": list(LEVELS)},
        "controls": dict.fromkeys(args.controls, 1),
        "verdicts": {"controls": args.controls, "round": ROUND, "fixed_design": False},
        "regions": None,
        "sanity": None,
        "stability": None,
        "seed": args.seed,
    }
    return resolve(raw)


def run(args: argparse.Namespace) -> int:
    """From the arguments to the last sentence; returns the exit code."""
    from cxr_ray.analysis.sequential_verdicts import title

    sweep = sweep_of(args)
    from cxr_ray.run import progress, terminal

    whose = title(args.explainer) if args.maps is None else f"what {args.maps} shows"
    with progress.shown("Preparing", quiet=args.quiet):
        from cxr_ray.measure.measurement import require_drawable

        require_drawable(sweep)
        terminal.say(f"Is {whose} on {args.checkpoint} more faithful than controls? Reading {args.data}.")
        from cxr_ray.run import context, resume
        from cxr_ray.run.local_verdict import LocalVerdict

        if args.out is not None:
            resume.check_out(args.out, resume=False)
        with tempfile.TemporaryDirectory() as folder:
            prepared = context.prepare(sweep, folder)
            for note in prepared.manifest.notes:  # those of maps among them
                terminal.say(note)
            lines = answer(LocalVerdict.of_run(prepared), args)
    for line in lines:
        terminal.conclude(line)
    return DONE


def answer(local: LocalVerdict, args: argparse.Namespace) -> list[str]:
    """All stages; the lines that conclude."""
    from cxr_ray.run import progress, terminal

    with progress.stage("Choosing the fill on validation images"):
        settings, said = local.settings()
    terminal.say(said)
    with progress.stage("Maps of all test images", len(local.test), "images") as stage:
        for done, _ in local.make_maps():
            stage.advance(done - stage.done)
    verdicts = None
    hint = "the fastest form of the network is chosen"
    with progress.stage("Scoring", unit="patients", hint=hint) as stage:
        for verdicts in local.rounds(settings, args.bucket, ROUND):
            stage.total, stage.bound = len(verdicts.steps), True
            stage.advance(verdicts.position - stage.done, lines=verdicts.lines())
    assert verdicts is not None  # there is a patient, and so a round
    for line in verdicts.lines():
        terminal.say(line)
    terminal.say()
    rows = verdicts.rows(settings)
    lines = [
        *(row["sentence"] for row in rows),
        f"Compared by {settings.label} in log-odds, fill {settings.fill}. {said.splitlines()[0]}",
        *([sample(local, args.limit)] if args.limit is not None else []),
        f"The chance of any wrong sentence is at most {local.alpha:g}. Each interval holds at all times with a "
        f"probability of {rows[0]['confidence']:.1%}; a win rate at a stop lies too far from 0.50 on average.",
    ]
    if args.out is not None:
        keep(args.out, local.sweep, rows)
        lines.append(f"Table: {args.out}/tables/verdicts")
    return lines


def sample(local: LocalVerdict, limit: int) -> str:
    """That not all test images were asked."""
    n, patients = len(local.test), local.test["patient_id"].nunique()
    return (
        f"A sample: at most {limit} images of test, balanced by label (--limit), so {n} test images of "
        f"{patients} patients. The sentences hold for patients in these proportions."
    )


def keep(out: str, sweep: Sweep, rows: list[dict[str, Any]]) -> None:
    """Write the table, and the sweep that made it."""
    from cxr_ray.storage import Store

    store = Store(out, {"sweep_hash": sweep.hash})
    store.write(sweep.to_yaml().encode(), "sweep.yaml")
    store.write_table("verdicts", rows)


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(main())

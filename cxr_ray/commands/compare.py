"""The command line ``cxr-ray compare RUN RUN ...``: paired differences between finished runs, as tables and a page."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from cxr_ray.arguments import Parser, guarded, require_there
from cxr_ray.errors import RunError, UserError

if TYPE_CHECKING:  # pandas and scipy, which --help does without
    from cxr_ray.analysis.between_settings import Pair
    from cxr_ray.results import Run

EXIT_CODES = "Exit codes: 0 done, 1 a file of a run cannot be read, 2 the request was wrong, 130 interrupted."


def parser(prog: str = "cxr-ray compare") -> argparse.ArgumentParser:
    """The arguments."""
    p = Parser(
        prog=prog,
        description="Compares finished runs with the first of them on the same test images: accuracy, advantages and "
        "win rates with intervals over patients, verdicts, and the settings that differ.",
        epilog=EXIT_CODES,
    )
    p.add_argument("runs", nargs="+", metavar="RUN", help="folders or URIs of finished runs, the reference first")
    p.add_argument(
        "--pair",
        action="append",
        default=[],
        metavar="MODEL=MODEL",
        dest="pairs",
        help="a model of the reference and one of another run to compare it with, by trial_id or name; may be repeated "
        "(default: same names)",
    )
    p.add_argument("--data", help="where the images lie, if elsewhere now (pictures only)")
    p.add_argument("--out", default="comparison", help="a new folder (default: comparison)")
    p.add_argument("--quiet", action="store_true", help="say nothing but what is wrong and how it ends")
    return p


def main(argv: Sequence[str] | None = None, prog: str = "cxr-ray compare") -> int:
    """Run the command line; returns the exit code."""
    args = parser(prog).parse_args(argv)
    from cxr_ray.run import progress

    return guarded(lambda: progress.concluded("Reading the runs", run(args), quiet=args.quiet))


def run(args: argparse.Namespace) -> Iterator[str]:
    """From the arguments to the lines that conclude; tables and page are written on the way."""
    from cxr_ray import results
    from cxr_ray.analysis.between_settings import Pair
    from cxr_ray.report import comparison
    from cxr_ray.run import progress, resume, terminal
    from cxr_ray.schemas import COMPARED
    from cxr_ray.storage import Store

    if len(args.runs) < 2:
        raise UserError(f"got one run ({args.runs[0]}); expected two or more; name the runs to compare.")
    named = [_named(text) for text in args.pairs]
    require_there("--data", args.data)
    labels = labels_of(args.runs)
    opened = [results.open_run(path) for path in args.runs]
    resume.check_out(args.out, resume=False)
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in COMPARED}
    notes = [f"{label}: {text}" for label, run in zip(labels, opened, strict=True) for text in unsettled(run)]
    with progress.stage("Comparing", len(opened) - 1, "runs") as stage:
        for label, other in zip(labels[1:], opened[1:], strict=True):
            pair = Pair(labels[0], label, opened[0], other)
            for name, rows in compared(pair, _of_run(named, other, opened[1:]), notes).items():
                tables[name] += rows
            stage.advance()
    store = Store(args.out, {})
    for name, rows in tables.items():
        store.write_table(name, COMPARED[name].from_rows(rows))
    store.write_json({"runs": dict(zip(labels, args.runs, strict=True)), "notes": notes}, "comparison.json")
    for note in notes:
        terminal.say(note)
    with progress.stage("Page", unit="comparisons") as stage:
        comparison.write(args.out, dict(zip(labels, opened, strict=True)), args.data, stage)
    yield from comparison.sentences(tables["run_differences"])
    yield f"Page: {args.out}/comparison.html"


def _of_run(named: Sequence[tuple[str, str]], run: Run, others: Sequence[Run]) -> list[tuple[str, str]]:
    """The named pairs of a run: those whose model it has, and those whose model no run has, which is then said."""
    from cxr_ray.analysis.between_runs import has_model

    return [p for p in named if has_model(run, p[1]) or not any(has_model(other, p[1]) for other in others)]


def unsettled(run: Run) -> list[str]:
    """What a run asks of its models' classes; nothing else of such a model is settled before."""
    from cxr_ray.analysis import class_order

    asked = class_order.questions(run.pandas("classification"), run.pandas("trials"))
    return [question.text for question in asked]


def compared(pair: Pair, named: Sequence[tuple[str, str]], notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each table of two runs; what is to be told is added to ``notes``.

    Raises:
        RunError: they have no image in common.
    """
    from cxr_ray.analysis import between_runs, between_settings

    models, told = between_runs.paired_models(pair, named)
    notes += told
    if not models:
        raise RunError(
            f"got {pair.reference} and {pair.run}, of which no models have the same name; expected some; say which to "
            "compare (--pair MODEL=MODEL)."
        )
    found: dict[str, list[dict[str, Any]]] = {
        "run_settings": list(between_settings.differing(pair, models)),
        "run_images": [],
        "run_differences": [],
        "run_verdicts": between_runs.verdicts(pair, models),
    }
    for of_pair in models:
        both, row = between_runs.predictions(pair, of_pair)
        found["run_images"].append(row)
        if row["n_only_reference"] or row["n_only_run"] or row["n_other_label"]:
            notes.append(
                f"{of_pair[0]}: {row['n']} test images are in both runs; {row['n_only_reference']} are in "
                f"{pair.reference} alone, {row['n_only_run']} in {pair.run} alone, and {row['n_other_label']} of both "
                "have another label: these are left out."
            )
        if both.empty:
            raise RunError(
                f"got {pair.reference} and {pair.run}, which scored no test image in common; expected runs of the same "
                "images; run both on the same data and splits."
            )
        rows, told = between_runs.differences(pair, of_pair, both)
        found["run_differences"] += rows
        notes += told
    return found


def labels_of(paths: Sequence[str]) -> list[str]:
    """A short name of each run, no two alike: the last part of its path, or as much of it as tells them apart.

    >>> labels_of(["results/a", "results/b"]), labels_of(["x/run", "y/run"]), labels_of(["a", "a"])
    (['a', 'b'], ['x/run', 'y/run'], ['a', 'a (2)'])
    """
    parts = [PurePosixPath(path.rstrip("/")).parts or (path,) for path in paths]
    for n in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part.rstrip("/") for part in of[-n:]) for of in parts]
        if len(set(labels)) == len(labels):
            return labels
    labels = [of[-1] for of in parts]
    return [label if label not in labels[:i] else f"{label} ({i + 1})" for i, label in enumerate(labels)]


def _named(text: str) -> tuple[str, str]:
    one, equals, other = text.partition("=")
    if not (one and equals and other):
        raise UserError(f"--pair: got {text!r}; expected MODEL=MODEL; give two trial_ids.")
    return one, other

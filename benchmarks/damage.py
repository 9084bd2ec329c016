"""Damage at random in every kind of file of a run: what reads it must end in equal tables, or in a sentence.

A small run of a given network and of maps from outside is computed in this process, without Ray, to its end, and up to
the merging of its shards; another one trains a network, and stops after its first epoch. Of a copy one file is
changed: a bit flipped, cut, two parts exchanged, a part taken out, emptied, or deleted. Then ``open_run``, the report
and ``verify`` read the finished run, and ``--resume`` goes on with the unfinished ones. A run of damaged maps is begun
as well. A stack trace, another number without a word, or a remedy that does not help is wrong.
``--seed`` chooses files and damage; ``--cases`` says how many.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import itertools
import json
import os
import random
import shutil
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from ray import tune

from benchmarks.chaos import differences
from cxr_ray import results, sweep, verify
from cxr_ray.data import sources
from cxr_ray.data.manifest import load_manifest
from cxr_ray.errors import CxrRayError
from cxr_ray.models import checkpoints
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.report import __main__ as report
from cxr_ray.report import document
from cxr_ray.run import explaining, lock, plan, tuning
from cxr_ray.run.context import RunContext
from cxr_ray.run.training_data import TrainingData
from cxr_ray.run.trial import run_trial
from cxr_ray.run.trial_files import TrialFiles
from cxr_ray.run.trial_plans import TrialPlan
from cxr_ray.schemas import TABLES
from cxr_ray.sweepfile import resolve
from tests.builders.finished import without_ray
from tests.builders.networks import Small

SIZE, ARCH = 64, "factory:tests.builders.networks:Small"
FINISHED, UNFINISHED, TRAINING, NEW = "finished", "unfinished", "training", "new"
MAPS = "../maps/*"  # beside the run
KINDS = {  # by state, files of a kind; those of one glob are alike
    FINISHED: {
        **{f"table {name}": f"tables/{name}/**/*.parquet" for name in TABLES},
        **{name: name for name in ("sweep.yaml", "provenance.json", "primary.json", "test_metrics.json")},
        "map from outside": MAPS,
    },
    UNFINISHED: {
        "shard of val": ".work/shards/*.val.*/*/*.arrow",
        "shard of test": ".work/shards/*.test.*/*/*.arrow",
        "maps": ".work/maps/*/*/*.arrow",
        "donor index": ".work/donor_index/*.arrow",
        "sum of maps": ".work/means/*",
        "round of verdicts": ".work/rounds/*/*/*.arrow",
        "errors.json": ".work/errors.json",
        ".lock.json": ".lock.json",
        **{f"table {name}": f"tables/{name}/*.parquet" for name in ("images", "trials", "baselines", "verdicts")},
        **{name: name for name in ("sweep.yaml", "provenance.json", "primary.json")},
        "map from outside": MAPS,
    },
    TRAINING: {
        "state of a trial": ".work/trials/*/state.safetensors",
        "best weights of a trial": ".work/trials/*/best-*.safetensors",
        "note of a trial that hung": ".work/trials/*/hung.json",
    },
    NEW: {"map from outside": MAPS},
}
SWEEP: dict[str, Any] = {
    "name": "damaged",
    "data": {"source": "phantom", "size": SIZE, "val_share": 0.4, "phantom": {"train": 12, "test": 12}},
    "explain": {"explainers": ["edges"], "targets": ["pneumonia"]},
    "perturb": {"grids": ["7"], "fills": ["mean"], "levels": [0.5]},
    "controls": {"cell_random": 1, "other_image": 1, "mean_map": 1},
    "verdicts": {"controls": ["other_image"], "alpha": 0.49, "round": 8},
    "regions": None,
    "sanity": None,
    "stability": None,
}
TRAINED = {  # what the run that trains has else
    "variants": {"plain": {}},
    "model": {"weights": "none", "arch": ARCH},
    "train": {"epochs": 2, "batch_size": 4},
    "search": {"num_samples": 1, "scheduler": "asha"},
    "controls": {"cell_random": 1},
    "verdicts": None,
}
DELETE_IT = "delete it, and --resume computes it again"
DELETE_FOLDER = "delete that folder, and --resume trains this network again"


def _parts(data: bytes, rng: random.Random) -> tuple[bytes, bytes, bytes]:
    first, second = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:first], data[first:second], data[second:]


def _flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _exchange(data: bytes, rng: random.Random) -> bytes:
    first, second, third = _parts(data, rng)
    return third + second + first


def _take_out(data: bytes, rng: random.Random) -> bytes:
    first, _, third = _parts(data, rng)
    return first + third


DAMAGE: dict[str, Callable[[bytes, random.Random], bytes | None]] = {  # None: the file is gone
    "flip": _flip,
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "exchange parts": _exchange,
    "take out": _take_out,
    "empty": lambda data, rng: b"",
    "delete": lambda data, rng: None,
}


@dataclass(frozen=True)
class Runs:
    """The runs that are damaged, each in a folder of its state, and the sweep files that they are of."""

    folder: Path

    def run(self, state: str) -> Path:
        """One of them; of the state NEW it is empty."""
        return self.folder / state / "run"

    def whole(self, state: str) -> Path:
        """The run that one in this state becomes."""
        return self.folder / TRAINING / "whole" if state == TRAINING else self.run(FINISHED)

    def file(self, state: str) -> Path:
        """Its sweep."""
        return self.folder / ("trained.yaml" if state == TRAINING else "damaged.yaml")


@dataclass(frozen=True)
class Case:
    """One damage, and what was wrong with what came of it.

    Attributes:
        state: finished or unfinished.
        kind, path, how: which file, and its damage.
        seed: of the damage.
        ended: how each command did.
        wrong: empty: all is well.
    """

    state: str
    kind: str
    path: str
    how: str
    seed: str
    ended: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.seed}: {self.state}, {self.kind} ({self.path}), {self.how}"


def prepared(folder: Path) -> Runs:
    """Compute the runs."""
    torch.manual_seed(0)
    model = folder / "model.safetensors"
    model.write_bytes(checkpoints.to_bytes(Classifier(Small(2), ModelSpec(ARCH, SIZE))))
    given = {"checkpoints": {"given": {"path": str(model), "arch": ARCH}}}
    runs = Runs(folder)
    runs.file(NEW).write_text(yaml.safe_dump({**SWEEP, **given}))
    runs.file(TRAINING).write_text(yaml.safe_dump({**SWEEP, **TRAINED}))
    _write_maps(folder / "maps")
    for state in (FINISHED, UNFINISHED, NEW):
        shutil.copytree(folder / "maps", folder / state / "maps")
    runs.run(NEW).mkdir()
    ended = resumed(runs, runs.run(FINISHED))
    assert ended == (0, []), ended
    with replaced((explaining.merging, "merge", _interrupt)):
        assert resumed(runs, runs.run(UNFINISHED))[0] == 130
    stale = {"host": socket.gethostname(), "pid": 2**22 + 1, "since": "", "owner": "0"}
    (runs.run(UNFINISHED) / lock.NAME).write_text(json.dumps(stale))
    ended = resumed(runs, runs.whole(TRAINING), TRAINING)
    assert ended == (0, []), ended
    with replaced((tune, "report", _interrupt)):
        assert resumed(runs, runs.run(TRAINING), TRAINING)[0] == 130
    (trial,) = (runs.run(TRAINING) / ".work/trials").iterdir()
    (trial / "hung.json").write_text("[300.0]")
    return runs


def _write_maps(folder: Path) -> None:
    """A map of every test image: every other one as a picture."""
    asked = resolve(SWEEP)
    folder.mkdir()
    table = load_manifest(sources.source_of(asked.data, asked.seed), training=False).rows("test")
    rng = np.random.default_rng(0)
    for n, image_id in enumerate(table["image_id"]):
        values = rng.integers(0, 256, (16, 16), dtype=np.uint8)
        if n % 2:
            Image.fromarray(values).save(folder / f"{image_id}.png")
        else:
            np.save(folder / f"{image_id}.npy", values.astype(np.float32))


def _interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def replaced(*places: tuple[Any, str, Any]) -> Iterator[None]:
    """Attributes of modules that are others for as long."""
    with contextlib.ExitStack() as undo:
        for where, name, value in places:
            undo.callback(setattr, where, name, getattr(where, name))
            setattr(where, name, value)
        yield


def _said(command: Callable[[list[str]], int], *arguments: str) -> tuple[int, list[str]]:
    """A command's exit code and its lines on stderr; of ``verify``, what holds or does not is on stdout."""
    told, out = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(out):
        code = command(list(arguments))
    last = out.getvalue().splitlines()[-1:]
    return code, told.getvalue().splitlines() or [line for line in last if "DOES NOT HOLD" in line]


def resumed(runs: Runs, out: Path, state: str = FINISHED) -> tuple[int, list[str]]:
    """``--resume``, in this process, in small shards, without the page: its exit code and its lines on stderr."""
    places = (plan, "SHARD_IMAGES", 4), (lock, "PATIENCE", 0.0), (document, "write_report", lambda out, **_: None)
    maps = [] if state == TRAINING else ["--set", f"explain.maps={{theirs: '{out.parent / 'maps'}'}}"]
    with without_ray(), replaced(*places, (tuning, "_train", _train_here)):
        return _said(sweep.main, str(runs.file(state)), "--out", str(out), "--resume", *maps)


def _train_here(run: RunContext, trials: Sequence[TrialPlan], data: TrainingData, *_: Any) -> dict[str, str]:
    """Train in this process, as Tune does in others; the reasons of those that failed."""
    failed = {}
    report = (tune, "report", lambda metrics: None)
    with contextlib.nullcontext() if tune.report is _interrupt else replaced(report):
        for trial in trials:
            state = data.states[trial.model.weights, trial.model.arch]
            splits = data.splits[run.sweep.images_of(trial.model)]
            try:
                run_trial(trial, splits, state, TrialFiles(run.store, trial.trial_id), "cpu")
            except Exception as e:
                failed[trial.trial_id] = str(e)
    return failed


def damaged(runs: Runs, case: Case, out: Path) -> None:
    """Copy a case's run and damage its file. Files are linked: what writes into a run puts another in place."""
    whole, rng = runs.run(case.state), random.Random(case.seed)
    shutil.copytree(whole.parent, out.parent, copy_function=os.link, ignore=shutil.ignore_patterns("whole"))
    file = out / case.path
    data = file.read_bytes()
    changed = DAMAGE[case.how](data, rng)
    file.unlink()
    if changed is not None:
        file.write_bytes(changed)


def tried(runs: Runs, case: Case, folder: Path, commands: Sequence[str] | None = None) -> Case:
    """Damage a copy of a run, and see how everything that reads it ends.

    Args:
        runs: the runs.
        case: the damage.
        folder: of the copy; not there before, nor afterwards.
        commands: those of COMMANDS; all.
    """
    out = folder / "run"
    damaged(runs, case, out)
    ended, wrong = [], []
    try:
        for name in COMMANDS[case.state] if commands is None else commands:
            try:
                how, found = COMMANDS[case.state][name](runs, case, out)
            except Exception:
                how, found = "stack trace", [traceback.format_exc()]
            ended.append(f"{name}: {how}")
            wrong += [f"{name}: {line}" for line in found]
    finally:
        shutil.rmtree(folder)
    return replace(case, ended=tuple(ended), wrong=tuple(wrong))


def _told(code: int, lines: Sequence[str]) -> list[str]:
    """What is wrong with how a command ended that did not end well: it says why, in few lines, and no trace."""
    found = [] if code in (1, 2) else [f"exit code {code}"]
    if not 1 <= len(lines) <= 3 or not all(line.isprintable() and len(line) < 1000 for line in lines):
        found.append(f"it said {lines}")
    return found


def _read(runs: Runs, case: Case, out: Path) -> tuple[str, list[str]]:
    """Every table, by ``open_run``."""
    try:
        here, whole = results.open_run(out), results.open_run(runs.run(case.state))
        names = [case.kind.removeprefix("table ")] if case.kind.startswith("table ") else []
        other = [name for name in names if not here.arrow(name).equals(whole.arrow(name))]
        for name in ("provenance.json", "primary.json", "test_metrics.json"):
            here.json(name)
        _ = here.sweep
    except CxrRayError as e:
        return "a sentence", _told(e.exit_code, str(e).splitlines())
    return ("other tables" if other else "equal"), [f"another table {name} without a word" for name in other]


def _report(runs: Runs, case: Case, out: Path) -> tuple[str, list[str]]:
    code, lines = _said(report.main, str(out))
    return str(code), _told(code, lines) if code else []


def _verify(runs: Runs, case: Case, out: Path) -> tuple[str, list[str]]:
    maps = ["--maps", f"theirs={out.parent / 'maps'}"]
    code, lines = _said(verify.main, str(out), "--images", "2", *maps)
    if code == 0 and (case.path.endswith(".parquet") and _read(runs, case, out)[0] != "equal"):
        return "0", ["it holds, though a table does not"]
    return str(code), _told(code, lines) if code else []


def _resume_finished(runs: Runs, case: Case, out: Path) -> tuple[str, list[str]]:
    code, lines = resumed(runs, out)
    return str(code), _told(code, lines) if code else []


def _resume_unfinished(runs: Runs, case: Case, out: Path) -> tuple[str, list[str]]:
    code, lines = resumed(runs, out, case.state)
    how, remedy = str(code), next((r for r in (DELETE_IT, DELETE_FOLDER) if any(r in line for line in lines)), None)
    if code and remedy is not None:
        file = out / case.path
        shutil.rmtree(file.parent) if remedy == DELETE_FOLDER else file.unlink()
        code, lines = resumed(runs, out, case.state)
        how = f"{how}, deleted: {code}"
        if code:
            return how, [f"deleted as it was said, and then: {lines}"]
    if code:
        return how, _told(code, lines)
    whole, here = results.open_run(runs.whole(case.state)), results.open_run(out)
    made = [name for name in TABLES if (runs.whole(case.state) / "tables" / name).is_dir()]
    other = [name for name in made if not here.arrow(name).equals(whole.arrow(name))]
    return how, differences(runs.whole(case.state), out, other)


def _begin(runs: Runs, case: Case, out: Path) -> tuple[str, list[str]]:
    """A run of damaged maps: it ends, and an image's map is used, or a row of errors says why not."""
    out.rmdir()
    code, lines = resumed(runs, out, case.state)
    if code:
        return str(code), _told(code, lines)
    run = results.open_run(out)
    lost = set(run.pandas("errors").query("stage == 'maps:theirs'").image_id)
    rows = run.pandas("faithfulness").query("explainer == 'theirs' and control == 'none'")
    null = set(rows[rows["value"].isna()].image_id)
    return f"0, {len(lost)} lost", [] if null == lost else [f"values that are null: {null}; in errors: {lost}"]


Command = Callable[[Runs, Case, Path], tuple[str, list[str]]]
COMMANDS: dict[str, dict[str, Command]] = {
    FINISHED: {"open_run": _read, "report": _report, "verify": _verify, "--resume": _resume_finished},
    UNFINISHED: {"--resume": _resume_unfinished},
    TRAINING: {"--resume": _resume_unfinished},
    NEW: {"a new run": _begin},
}


def case_of(runs: Runs, state: str, kind: str, how: str, seed: str) -> Case | None:
    """Damage of a file of a kind, chosen by the seed; None where the run has none."""
    whole = runs.run(state)
    paths = sorted(str(path.relative_to(whole)) for path in whole.glob(KINDS[state][kind]))
    return Case(state, kind, random.Random(seed).choice(paths), how, seed) if paths else None


def cases(runs: Runs, seed: int) -> Iterator[Case]:
    """Damage without end: each kind of file in turn, its file and damage at random."""
    every = [(state, kind) for state, kinds in KINDS.items() for kind in kinds]
    for n in itertools.count():
        how = random.Random(f"{seed} {n}").choice(list(DAMAGE))
        case = case_of(runs, *every[n % len(every)], how, f"{seed} {n}")
        if case is not None:
            yield case


def main() -> int:
    """Damage runs; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of files and damage")
    parser.add_argument("--cases", type=int, default=200, help="how many (each takes about three seconds)")
    args = parser.parse_args()
    ended: collections.Counter[str] = collections.Counter()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        runs = prepared(Path(name))
        for case in itertools.islice(cases(runs, args.seed), args.cases):
            found = tried(runs, case, Path(name) / "copy")
            ended.update(found.ended)
            if found.wrong:
                wrong += 1
                print(found, *found.wrong, sep="\n  ", flush=True)
    for how, n in sorted(ended.items()):
        print(f"{how}: {n}")
    print(f"{args.cases} cases, {wrong} of them wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

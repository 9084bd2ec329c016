"""The command line: ``python -m cxr_ray.sweep [SWEEP.yaml]``. The only module that prints."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import errno
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import torch

import cxr_ray
from cxr_ray import results
from cxr_ray.analysis import statistics, summary
from cxr_ray.config import Sweep, load_sweep
from cxr_ray.data import masks, sources
from cxr_ray.data.entries import Source
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.manifest import Manifest, load_manifest
from cxr_ray.data.splits import choose
from cxr_ray.errors import ClusterError, CxrRayError, DamagedRunError, DataError, RunError, UserError
from cxr_ray.measure import donors, regions, sanity
from cxr_ray.measure.controls import CONTROLS, draws_at_most, need_donors
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.worker import ModelRef
from cxr_ray.models import backends, checkpoints, networks
from cxr_ray.models.networks import ModelSpec
from cxr_ray.schemas import SCHEMA_VERSION, TABLES, to_json
from cxr_ray.storage import Store

DONE, UNFINISHED, INTERRUPTED = 0, 1, 130
EARLIER = (".work", "errors.json")  # of the images that training read
PACKAGES = ("torch", "torchvision", "ray", "captum", "numpy", "scipy", "scikit-learn", "pandas", "pyarrow", "pillow")


def say(text: str = "") -> None:
    """One line on the terminal, at once."""
    print(text, flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m cxr_ray.sweep",
        description="Trains, explains and measures: whether saliency maps on chest X-rays show what the model used.",
        epilog="Exit codes: 0 done, 1 could not finish, 2 the request was wrong, 130 interrupted.",
    )
    ours = ", ".join(sorted(path.stem for path in shipped().glob("*.yaml")))
    p.add_argument("sweep", nargs="?", help=f"a sweep file, or one that ships: {ours} (default: quickstart)")
    p.add_argument("--data", help="; ".join(kind.usage for kind in sources.SOURCES.values()))
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                   help="change one value of the sweep, such as train.epochs=5; may be repeated")  # fmt: skip
    p.add_argument("--out", help="the run's folder or URI (default: results/<name>)")
    p.add_argument("--resume", action="store_true", help="go on where a run stopped")
    p.add_argument("--dry-run", action="store_true", help="print what would be done, and start nothing")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        return run(args)
    except CxrRayError as e:
        for line in str(e).splitlines():
            print(f"cxr_ray: {line}", file=sys.stderr)
        return e.exit_code
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"cxr_ray: no space left ({e}); make room, and the same command with --resume goes on.", file=sys.stderr)
        return UNFINISHED
    except KeyboardInterrupt:
        print("cxr_ray: interrupted; the same command with --resume goes on.", file=sys.stderr)
        return INTERRUPTED


def shipped() -> Path:
    """The folder of the sweep files that ship with the package."""
    inside = Path(str(files("cxr_ray"))) / "sweeps"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "sweeps"


def sweep_file(name: str | None) -> Path:
    """The sweep file named; if there is none, NAME, NAME.yaml and sweeps/NAME.yaml mean the one that ships."""
    path = Path(name if name is not None else "quickstart")
    ours = shipped() / f"{path.name.removesuffix('.yaml')}.yaml"
    is_ours = ours.is_file() and str(path.parent) in (".", "sweeps")
    return ours if is_ours and (name is None or not path.is_file()) else path


def load(args: argparse.Namespace) -> Sweep:
    """The resolved sweep that the arguments ask for."""
    changes = {} if args.data is None else sources.changes_of(args.data)
    return load_sweep(sweep_file(args.sweep), args.overrides, changes, explainers=EXPLAINERS, controls=CONTROLS)


def passes_per_image(sweep: Sweep, size: int) -> tuple[int, str]:
    """Forward passes (a backward pass counts two) for one test image and one target, and the formula as text.

    Exact but for draws that need not be scored, where it is the most: sequential ones, those of an image with fewer
    donors, those that rank as the map does.
    """
    p = sweep.perturb
    curve = len(p.fills) * len(p.orders) * len(p.levels)
    explain = sum(f + 2 * b for f, b in (EXPLAINERS[e].passes(size) for e in sweep.explain.explainers))
    maps, shared, own, extra = len(sweep.explain.explainers), 0, 0, 0
    for control, draws in sweep.controls.items():
        entry = CONTROLS[control]
        grids = len(entry.grids(p.grids))
        cams = sum(EXPLAINERS[e].cam is not None for e in sweep.explain.explainers)
        compared = cams if entry.family == "class weights" else maps
        more = grids * (draws_at_most(control, draws, sweep.sequential) - draws)
        if entry.family == "nothing":
            shared += grids * draws
            extra += more
        else:
            own += grids * compared * draws
            extra += compared * more
    parts = regions.passes(sweep)
    total = 1 + len(p.fills) + curve * (shared + maps * len(p.grids) + own + extra) + parts + explain
    text = (
        f"1 untouched + {len(p.fills)} filled + {curve} (fills x orders x levels) x ({shared} shared rankings + "
        f"{maps * len(p.grids)} maps on grids + {own} controls made for them"
        + (f" + at most {extra} sequential draws" if sweep.sequential else "")
        + f") + {parts} of regions and edits + {explain} to explain (a backward pass counts as two)"
    )
    return total, text


def dry_run(sweep: Sweep, manifest: Manifest, specs: list[dict[str, Any]], given: Mapping[str, ModelRef]) -> None:
    """Prints what would be done."""
    say(sweep.to_yaml())
    for note in manifest.notes:
        say(note)
    say(f"\nTrials to train: {len(specs)}")
    for spec in specs:
        asked = {**spec["train"], **{k: v for k, v in spec["model"].items() if v is not None}}
        say(f"  {spec['trial_id']}: "
            + ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in asked.items()))  # fmt: skip
    explained = {(s["trial_id"] if sweep.evaluate == "all" else _rivals(s)): s for s in specs}  # sizes as of the last
    sizes = [sweep.images_of(s["model"])[0] for s in explained.values()] + [s.size for s in given.values()]
    n_test, n_val, n_train, n_sanity = (len(rows) for rows in (
        manifest.rows("test"), manifest.rows("val"), manifest.training_rows(), sanity_images(sweep, manifest)
    ))  # fmt: skip
    say(f"\nModels to explain: {len(sizes)}; test images: {n_test}; validation images: {n_val}")
    trained = [sweep.images_of(s["model"])[0] for s in specs]
    shapes = sorted({*sizes, *trained})
    passes, seconds, rates = 0, 0.0, []
    most = "at most " if sweep.sequential else ""
    for size in shapes:
        at, n_models = f" at {size} x {size}" if len(shapes) > 1 else "", sizes.count(size)
        total, formula = passes_per_image(sweep, size)
        to_explain = n_models * (n_test * total + n_val)
        to_train = sum(
            3 * s["train"]["epochs"] * n_train for s, mine in zip(specs, trained, strict=True) if mine == size
        )
        say(f"Forward passes a test image and target{at}: {most}{total:,} = {formula}")
        say(
            f"Forward passes to explain{at}, one target an image: {most}{to_explain:,} = {n_models} x "
            f"({n_test} x {total:,} + {n_val})"
        )
        total, formula = sanity.passes(sweep, size)
        to_check = n_models * n_sanity * total
        if n_sanity:
            say(f"Forward passes an image and target of sanity{at}: {total:,} = {formula}")
            say(
                f"Forward passes of sanity{at}, one target an image: {to_check:,} = {n_models} x {n_sanity} x {total:,}"
            )
        say(f"To train{at}: at most {to_train:,} (images x epochs x trials, a backward pass counted as two)")
        rates.append(forward_rate(size))
        here = to_explain + to_check + to_train
        passes, seconds = passes + here, seconds + here / rates[-1]
    if len(shapes) > 1:
        say(f"All together: {most}{passes:,}")
    fast = ", ".join(f"{rate:,.0f} forward passes a second at {s} x {s}" for rate, s in zip(rates, shapes, strict=True))
    device = "GPU" if torch.cuda.is_available() else "CPU"
    say(f"This machine does about {fast} ({device}): about {_duration(seconds)} for these alone. The start of Ray, "
        "statistics and the page come on top: a minute or two in a small run. Nothing was started.")  # fmt: skip


def sanity_images(sweep: Sweep, manifest: Manifest) -> pd.DataFrame:
    """The test images of ``sanity``, the same for every model; none where it is off or no explainer reads the model."""
    test = manifest.rows("test")
    if sanity.passes(sweep, sweep.data.size)[0] == 0 or sweep.sanity is None:
        return test.iloc[:0]
    chosen = choose(test["image_id"], test["label"], sweep.sanity.images, sweep.seed)
    return test[test["image_id"].isin(chosen)]


def forward_rate(size: int) -> float:
    """Forward passes of a ResNet-18 a second on this machine, measured for about a second."""
    backends.full_float32()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = networks.build("resnet18", ModelSpec("resnet18", size)).to(device)
    batch = torch.zeros(max(1, 256 * 224**2 // size**2) if device == "cuda" else 8, 3, size, size, device=device)
    with torch.inference_mode():
        float(model.log_odds(batch).sum())
        start, n = time.perf_counter(), 0
        while time.perf_counter() - start < 1:
            float(model.log_odds(batch).sum())
            n += len(batch)
    return n / (time.perf_counter() - start)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def run(args: argparse.Namespace) -> int:
    """One sweep from its arguments to its report."""
    sweep = load(args)
    if args.out is None:
        args.out = f"results/{sweep.name}"
    source = sources.source_of(sweep.data, sweep.seed)
    if not args.dry_run:
        _check_out(args, sweep)
    training = bool(sweep.variants)
    manifest = load_manifest(
        source, seed=sweep.seed, val_share=sweep.data.val_share, limit=sweep.data.limit, training=training
    )
    if (lungs := masks.lungs_of(sweep)) is not None:
        manifest.notes.append(masks.lung_note(lungs, manifest))
    manifest.notes.extend(
        f"Control {c} has nothing to rank on these grids ({', '.join(map(str, sweep.perturb.grids))}) and is left out."
        for c in sweep.controls
        if not CONTROLS[c].grids(sweep.perturb.grids)
    )
    from cxr_ray.run import tuning

    specs = tuning.trial_specs(sweep)
    for arch in {s["model"]["arch"] for s in specs}:
        networks.build(arch, ModelSpec(arch, sweep.data.size))  # a package may be missing
    given = given_models(sweep)
    if args.dry_run:
        dry_run(sweep, manifest, specs, given)
        return DONE
    for note in manifest.notes:
        say(note)
    run_id = hashlib.sha256(f"{sweep.hash}:{manifest.fingerprint}".encode()).hexdigest()[:16]
    store = Store(args.out, {"run_id": run_id, "sweep_hash": sweep.hash})
    if _check_resume(store, sweep, manifest):
        say(f"{args.out} is finished already.")
        print_summary(args.out)
        return DONE
    if regions.wants_segmenter(sweep):
        regions.segmenter()  # fails now, not after training
    return _run(sweep, source, manifest, specs, given, store)


def given_models(sweep: Sweep) -> dict[str, ModelRef]:
    """The models under ``checkpoints``, each loaded once here so that a broken one fails now."""
    model_refs = {}
    for name, c in sweep.checkpoints.items():
        model_spec = checkpoints.saved_spec(c.path) or ModelSpec(
            c.arch, c.size or sweep.data.size, mean=c.mean, std=c.std, variant=name, preprocess=c.preprocess
        )
        checkpoints.load(c.path, model_spec)
        path = c.path if "://" in c.path else str(Path(c.path).expanduser().resolve())
        model_refs[name] = ModelRef(name, path, model_spec, model_spec.size, model_spec.preprocess)
    return model_refs


def _check_out(args: argparse.Namespace, sweep: Sweep) -> None:
    out = args.out
    in_job = "RAY_JOB_ID" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if "://" not in out and not Path(out).is_absolute() and in_job:
        raise UserError(
            f"--out {out} is relative: in a Ray job it would lie in a temporary copy of the working directory and be "
            "lost. Give an absolute path on storage that the machines share, or a URI (--out s3://bucket/run)."
        )
    try:
        fs, root = results.filesystem(out)
        info = fs.get_file_info(root)
        if info.is_file:
            raise UserError(f"--out {out} is a file; give a folder.")
        from pyarrow.fs import FileSelector

        filled = bool(fs.get_file_info(FileSelector(root, allow_not_found=True)))
        if filled and not args.resume:
            raise UserError(
                f"--out {out} is not empty. Go on with that run (--resume), or give another folder (--out PATH)."
            )
        if filled and not Store(out, {}).exists("sweep.yaml"):
            raise UserError(f"--out {out} holds files but no run (no sweep.yaml); give another folder (--out PATH).")
        fs.create_dir(root, recursive=True)
        Store(out, {}).write(b"", ".writable")
        fs.delete_file(f"{root.rstrip('/')}/.writable")
    except (OSError, pa.ArrowException, UnicodeError) as e:
        reason = " ".join(str(e).split()).rstrip(".")
        out = out.encode(errors="replace").decode()
        raise UserError(f"--out {out} cannot be written: {reason}. Give another folder, or a URI.") from None


def begin(sweep: Sweep, manifest: Manifest, store: Store) -> None:
    """What a run starts with: the resolved sweep and where it comes from. Nothing where they are there."""
    if not store.exists("provenance.json"):
        store.write(sweep.to_yaml().encode(), "sweep.yaml")
        store.write_json(provenance(sweep, manifest, store), "provenance.json")


def _check_resume(store: Store, sweep: Sweep, manifest: Manifest) -> bool:
    """Whether the run in ``store`` is finished."""
    if not store.exists("provenance.json"):
        if any(store.exists(folder) for folder in ("tables", ".work", "tune")):
            raise UserError(
                f"--out {store.out} has lost its provenance.json, which says of which sweep it is; give another folder "
                "(--out PATH)."
            )
        return False
    try:
        before = json.loads(store.read("provenance.json"))
        _ = [before[k] for k in ("sweep_hash", "name", "data_fingerprint", "images", "finished")]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{store.out}/provenance.json is damaged; give another folder (--out PATH).") from None
    if before["sweep_hash"] != sweep.hash:
        raise UserError(
            f"--out {store.out} belongs to another sweep ({before['name']}, hash {before['sweep_hash']}; this one is "
            f"{sweep.name}, {sweep.hash}). Give another folder, or the sweep as in {store.out}/sweep.yaml."
        )
    version = before.get("schema_version", 1)
    if before["finished"] is None and version != SCHEMA_VERSION:
        raise UserError(
            f"--out {store.out} has tables of schema version {version}; this cxr_ray writes version {SCHEMA_VERSION}. "
            "Finish it with the cxr_ray that began it, or give another folder (--out PATH)."
        )
    if before["data_fingerprint"] != manifest.fingerprint:
        raise UserError(
            f"--out {store.out} was begun with other images ({before['images']} then, {len(manifest.images)} now, or "
            "others). Give the same data, or another folder (--out PATH)."
        )
    for name, digest in before.get("checkpoints", {}).items():
        if before["finished"] is None and digest != _digest(sweep.checkpoints[name].path):
            raise UserError(
                f"--out {store.out} was begun with another file as checkpoints.{name}.path. Give the same file, or "
                "another folder (--out PATH)."
            )
    try:
        _ = results.open_run(store.out).sweep
    except RunError:  # the same, since the hash is
        store.write(sweep.to_yaml().encode(), "sweep.yaml")
    return before["finished"] is not None


def _digest(path: str) -> str:
    fs, inside = results.filesystem(path)
    with fs.open_input_stream(inside) as f:
        return hashlib.sha256(f.read()).hexdigest()


def provenance(sweep: Sweep, manifest: Manifest, store: Store) -> dict[str, Any]:
    """Versions, git commit, hardware, data fingerprint, seeds."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "name": sweep.name, **store.run, "cxr_ray": cxr_ray.__version__, "schema_version": SCHEMA_VERSION,
        "git_commit": _git_commit(),
        "python": platform.python_version(), "versions": {p: metadata.version(p) for p in PACKAGES},
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "gpus": gpus},
        "checkpoints": {name: _digest(given.path) for name, given in sweep.checkpoints.items()},
        "data_fingerprint": manifest.fingerprint, "images": len(manifest.images), "data_notes": manifest.notes,
        "seeds": {"sweep": sweep.seed, "train": sweep.train["seed"]}, "started": _now(), "finished": None,
    }  # fmt: skip


def _git_commit() -> str | None:
    """Of this package's own repository; None where it is installed elsewhere, or there is no git."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        asked = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return asked.stdout.strip() or None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _run(
    sweep: Sweep,
    source: Source,
    manifest: Manifest,
    specs: list[dict[str, Any]],
    given: dict[str, ModelRef],
    store: Store,
) -> int:
    import ray

    from cxr_ray.run import pipeline

    started = time.monotonic()
    trials_done = store.exists("tables", "trials")
    to_train = [] if trials_done else specs
    # weights after the data's mistakes and before Ray starts
    wanted = sorted({(s["model"]["weights"], s["model"]["arch"]) for s in to_train})
    states = {(weights, arch): checkpoints.pretrained_state(weights, arch) for weights, arch in wanted}
    for (weights, arch), state in states.items():
        if state is not None:
            checkpoints.start_from(
                networks.build(arch, ModelSpec(arch, sweep.data.size)), state, f"model.weights: {weights}"
            )
    errors = list(manifest.errors)
    splits: dict[tuple[int, str], Any] = {}
    for size, preprocess in sorted({sweep.images_of(s["model"]) for s in to_train}):
        splits[size, preprocess], unreadable = training_splits(sweep, source, manifest, size, preprocess)
        errors += unreadable if len(splits) == 1 else []  # the same files each time
    try:
        local = pipeline.start_ray()
        sizes = [sweep.images_of(s["model"])[0] for s in specs] + [s.size for s in given.values()]
        resources = pipeline.Resources(sweep, len(to_train), max(sizes), local=local)
        _check_shared(store.out, resources.n_nodes)
        if sources.SOURCES[sweep.data.source].on_disk:
            _check_shared(source.where, resources.n_nodes)
        if (lungs := masks.lungs_of(sweep)) is not None:
            _check_shared(lungs.path, resources.n_nodes)
        say(resources.line)
        begin(sweep, manifest, store)
        store.write_table("images", manifest.images.to_dict("records"))
        if not trials_done:
            rows = [_given_row(s) for s in given.values()]
            if to_train:
                rows = train(sweep, to_train, splits, states, store, resources) + rows
            store.write_json(errors, *EARLIER)
            store.write_table("trials", rows)
        elif store.exists(*EARLIER):
            try:
                errors = json.loads(store.read(*EARLIER))  # training's are not met again
            except ValueError:
                raise DamagedRunError(f"{store.path(*EARLIER)} is damaged; give another folder (--out PATH).") from None
        splits.clear()
        trials = results.open_run(store.out).pandas("trials")
        model_refs = chosen_models(sweep, trials, specs, store, given)
        if not explain(sweep, source, manifest, model_refs, store, resources, errors):
            return UNFINISHED
    except ClusterError as e:
        raise UserError(str(e)) from None
    except (ray.exceptions.RayError, ray.tune.TuneError) as e:
        print(f"cxr_ray: Ray stopped: {_reason(e)}", file=sys.stderr)
        print("cxr_ray: the same command with --resume goes on from here.", file=sys.stderr)
        return UNFINISHED
    finally:
        ray.shutdown()
    say("Statistics")
    write_statistics(sweep, store)
    finish(store)
    say(f"Done in {_duration(time.monotonic() - started)}.\n")
    print_summary(store.out)
    return DONE


def _reason(error: Exception) -> str:
    """What ended it: the last line of the innermost traceback, which Ray puts first."""
    lines = str(error).split("\n\nThe above exception was")[0].splitlines()
    reason = next((line.strip() for line in reversed(lines) if any(map(str.isalpha, line))), type(error).__name__)
    if not reason.startswith("torch.OutOfMemoryError"):
        return reason
    return (
        f"{reason} Less memory is taken by a smaller batch (--set resources.batch_size=32) or by fewer workers on a "
        "GPU (--set resources.gpu_per_worker=1)."
    )


def _check_shared(path: str, n_nodes: int) -> None:
    if n_nodes > 1 and "://" not in path:
        raise UserError(
            f"{path} is a local path and the cluster has {n_nodes} machines, which need not see it. Give a URI "
            "(s3://..., gs://...), or run on one machine."
        )


def training_splits(
    sweep: Sweep, source: Source, manifest: Manifest, size: int, preprocess: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train and val as a model of that size and preprocessing sees them, and rows of errors."""
    from cxr_ray.models.training import Split

    splits: dict[str, Split] = {}
    errors: list[dict[str, Any]] = []
    for name in ("train", "val"):
        rows = manifest.rows(name)
        pixels = load_pixels(source, rows, size, sweep.data.fit, preprocess)
        labels = rows["label"].to_numpy("int64")[pixels.keep]
        errors += pixels.errors
        if len(set(labels)) < 2:
            raise DataError(
                f"{source.where}: the {name} split has no readable image of one class "
                f"({len(pixels.errors)} images cannot be decoded). Check the download."
            )
        splits[name] = Split(pixels.images_NCHW, labels)
    return splits, errors


def train(
    sweep: Sweep,
    specs: list[dict[str, Any]],
    splits: dict[tuple[int, str], Any],
    states: dict[tuple[str, str], Any],
    store: Store,
    resources: Any,
) -> list[dict[str, Any]]:
    """The trials, by Ray Tune; rows of the trials table. Stops the run if none can be used."""
    from cxr_ray.run import tuning

    say(f"Trials to train: {len(specs)}")
    rows = tuning.tune_sweep(
        sweep, specs, splits, states, store, resources=resources.trial, max_concurrent=resources.concurrent_trials,
        say=say,
    )  # fmt: skip
    failed = [r for r in rows if r["status"] == "failed"]
    for row in failed:
        say(f"  {row['trial_id']} failed: {row['error']}")
    if len(failed) == len(rows):
        raise UserError(f"every trial failed; the last one with: {failed[-1]['error'] if failed else 'no trial ran'}.")
    return rows


def _given_row(model_ref: ModelRef) -> dict[str, Any]:
    nothing = dict.fromkeys(("seed", "epochs", "best_epoch", "val_auroc", "train_seconds", "device", "error"))
    model_spec = model_ref.spec
    return {
        **nothing, "trial_id": model_ref.trial_id, "variant": model_ref.trial_id, "status": "given",
        "config": to_json(vars(model_spec) if model_spec else {}), "checkpoint": model_ref.checkpoint,
    }  # fmt: skip


def _rivals(spec: Mapping[str, Any]) -> tuple[str, int]:
    """What the best is chosen within: the samples of one variant, grid point and seed."""
    return spec["group"], spec["train"]["seed"]


def chosen_models(
    sweep: Sweep,
    trials: pd.DataFrame,
    specs: list[dict[str, Any]],
    store: Store,
    given: Mapping[str, ModelRef],
) -> dict[str, ModelRef]:
    """The models that are explained: the best of each (variant, grid point, seed), or all; and those given."""
    usable = trials[trials["status"].isin(["completed", "stopped"])]
    spec_of = {s["trial_id"]: s for s in specs}
    if sweep.evaluate == "best_per_variant_seed" and len(usable):
        best = usable.sort_values(["val_auroc", "trial_id"], ascending=[False, True])
        rivals = best["trial_id"].map(lambda trial_id: _rivals(spec_of[trial_id]))
        usable = usable.loc[best[~rivals.duplicated()].index].sort_index()
    root = store.out if "://" in store.out else results.filesystem(store.out)[1]
    trained = {
        trial_id: ModelRef(trial_id, f"{root}/{checkpoint}", None, *sweep.images_of(spec_of[trial_id]["model"]))
        for trial_id, checkpoint in zip(usable["trial_id"], usable["checkpoint"], strict=True)
    }
    return {**trained, **given}


def explain(
    sweep: Sweep,
    source: Source,
    manifest: Manifest,
    model_refs: Mapping[str, ModelRef],
    store: Store,
    resources: Any,
    errors: list[dict[str, Any]],
) -> bool:
    """Explains all units that are not there yet and merges them into the tables."""
    from cxr_ray.run import pipeline

    for model_ref in model_refs.values():
        checkpoints.load(model_ref.checkpoint, model_ref.spec)  # a broken model fails here, not in an endless restart
    passes = {trial_id: passes_per_image(sweep, model_ref.size)[0] for trial_id, model_ref in model_refs.items()}
    plan = pipeline.plan_shards(
        manifest, model_refs, passes, "gpu" if resources.worker_gpus else "cpu", sanity_images(sweep, manifest),
        {trial_id: sanity.passes(sweep, model_ref.size)[0] for trial_id, model_ref in model_refs.items()},
        regions.partners(manifest.rows("test"), manifest.rows("val"), sweep.seed) if sweep.regions else {},
    )  # fmt: skip
    units = {name: unit for by_name in plan.values() for name, unit in by_name.items()}
    there = store.finished_shards()
    missing = [unit for name, unit in units.items() if name not in there]
    if missing and need_donors(sweep) and not make_maps(sweep, source, manifest, model_refs, store, resources, plan):
        return False
    total = sum(len(u["rows"]) for u in missing)
    say(f"Models to explain: {len(model_refs)}, with {total} (model, image) pairs in {len(missing)} units of work"
        + (f"; {len(units) - len(missing)} were there" if len(missing) < len(units) else ""))  # fmt: skip
    if missing:
        _watch(pipeline.explain_sweep(sweep, missing, model_refs, source, store, resources, passes), len(missing))
    lost = set(units) - store.finished_shards()
    if lost:
        print(f"cxr_ray: {len(lost)} units were not written; --resume computes them.", file=sys.stderr)
        return False
    store.merge({trial: list(by_name) for trial, by_name in plan.items()}, errors)
    return True


def make_maps(
    sweep: Sweep,
    source: Source,
    manifest: Manifest,
    model_refs: Mapping[str, ModelRef],
    store: Store,
    resources: Any,
    plan: Mapping[str, Mapping[str, dict[str, Any]]],
) -> bool:
    """The first of two executions: predictions and maps of all test images, and who lends maps to whom."""
    from cxr_ray.run import pipeline

    test = {
        trial_id: {name: unit for name, unit in units.items() if unit["split"] == "test"}
        for trial_id, units in plan.items()
    }
    units = {name: unit for by_name in test.values() for name, unit in by_name.items()}
    there = store.finished_shards(donors.MAPS)
    missing = [unit for name, unit in units.items() if name not in there]
    if missing:
        say(f"Maps of all images first, since a control needs those of others: {len(missing)} units of work")
        passes = {
            trial_id: 1 + sum(f + 2 * b for f, b in (EXPLAINERS[e].passes(s.size) for e in sweep.explain.explainers))
            for trial_id, s in model_refs.items()
        }
        alone = sweep.model_copy(update={"regions": None})
        made = pipeline.explain_sweep(alone, missing, model_refs, source, store, resources, passes, first=donors.MAPS)
        _watch(made, len(missing))
    lost = set(units) - store.finished_shards(donors.MAPS)
    if lost:
        print(f"cxr_ray: maps of {len(lost)} units were not written; --resume computes them.", file=sys.stderr)
        return False
    patients = dict(zip(manifest.images["image_id"], manifest.images["patient_id"], strict=True))
    targets = [(e, t) for e in sweep.explain.explainers for t in (0, 1)]
    groups = []
    for trial_id, by_name in test.items():
        lenders = donors.find_lenders(store, by_name, patients, targets)
        donors.OtherMaps(store, sweep).write_lenders(trial_id, lenders)
        for unit in by_name.values():  # what could not be decoded is among the errors
            unit["rows"] = [r for r in unit["rows"] if r["image_id"] in lenders.images]
        groups += [
            {"trial_id": trial_id, "explainer": e, "target": t, "predicted": p, "size": model_refs[trial_id].size}
            for e, t in targets
            for p in (0, 1)
            if lenders.group(p, (e, t))
        ]
    if groups and any(CONTROLS[c].rank_sums for c in sweep.controls):
        pipeline.sum_maps(sweep, groups, store)
    return True


def _watch(computed: Generator[tuple[int, str], None, None], n_units: int) -> None:
    """Tells how far the units of work are. Closes them when interrupted: Ray Data waits for a Ray that has ended."""
    done = 0
    with contextlib.closing(computed):
        for n, (images, form) in enumerate(computed, start=1):
            now = time.monotonic()
            if n == 1:
                say(f"  forward passes: {form}")
                first = last = now  # what came before is mostly start-up
            else:
                done += images
            if n == n_units:
                say(f"  {n} of {n_units} units")
            elif now - last > 5:
                last = now
                left = (now - first) / (n - 1) * (n_units - n)
                say(f"  {n} of {n_units} units, {done / (now - first):.1f} images/s, {_duration(left)} left")


def write_statistics(sweep: Sweep, store: Store) -> None:
    """The statistics tables, rows of sanity that compare stored maps, and test_metrics.json."""
    run_ = results.open_run(store.out)
    measured = statistics.Measured(run_)
    if sweep.sanity is not None and sweep.explain.keep_maps:
        pairs = sanity.shuffled_models(measured.trials.loc[measured.explained].reset_index())
        explainers = sanity.narrowed(sweep).explain.explainers
        for trial_id, table in sanity.label_rows(pairs, explainers, lambda t, e: _kept_maps(run_, t, e)):
            store.write_part("sanity", trial_id, "labels", table)
    written = {}
    for name, rows in statistics.tables(measured, sweep):
        store.write_table(name, rows)
        written[name] = rows
    store.write_json(statistics.test_metrics(measured, written["classification"]), "test_metrics.json")


def _kept_maps(run_: results.Run, trial_id: str, explainer: str) -> pd.DataFrame:
    chosen = (pads.field("trial_id") == trial_id) & (pads.field("explainer") == explainer)
    return run_.pandas("saliency", ["image_id", "target", "map", "map_height", "map_width"], chosen)


def finish(store: Store) -> None:
    """The report, and the mark that the run is finished."""
    import json

    from cxr_ray.report import document as report

    report.write_report(store.out)
    before = json.loads(store.read("provenance.json"))
    store.write_json({**before, "finished": _now()}, "provenance.json")
    if store.exists("tune"):
        from cxr_ray.run import tuning

        tuning.drop_checkpoints(store)
    store.clean()


def print_summary(out: str, write: Callable[[str], None] = say) -> None:
    """The short table that ends a run: models, then gaps to each control."""
    run_ = results.open_run(out)
    classes = run_.pandas("classification")
    trials = run_.pandas("trials").set_index("trial_id")
    write("Test split, threshold 0.5, with 95% intervals over patients:")
    write(f"  {'model':<26}{'variant':<14}{'accuracy':<24}{'AUROC':<24}{'images':>6}")
    at_half = classes[(classes["split"] == "test") & (classes["threshold_rule"] == "half")]
    for r in at_half.to_dict("records"):
        accuracy, auroc = (_interval(r[m], r[f"{m}_lower"], r[f"{m}_upper"]) for m in ("accuracy", "auroc"))
        variant = trials["variant"][r["trial_id"]]
        write(f"  {r['trial_id']:<26}{variant:<14}{accuracy:<24}{auroc:<24}{r['n']:>6}")
    frame = run_.pandas("summary")
    if (frame["control"] != "none").any():
        _print_gaps(run_, frame, write)
    errors = run_.pandas("errors")
    write(f"\nErrors: {len(errors)}" + (" (table errors)" if len(errors) else ""))
    write(f"Tables: {out}/tables ({', '.join(TABLES)})")
    write(f"Report: {out}/report.html")


def _print_gaps(run_: results.Run, frame: pd.DataFrame, write: Callable[[str], None]) -> None:
    first = frame.iloc[0]
    metric = "abpc" if "abpc" in set(frame["metric"]) else first["metric"]
    grid = "pixel" if "pixel" in set(frame["grid"]) else first["grid"]
    rows = frame[
        (frame["metric"] == metric) & (frame["scale"] == "logodds") & (frame["grid"] == grid)
        & (frame["fill"] == first["fill"]) & (frame["target_rule"] == first["target_rule"])
        & (frame["control"] != "none") & ~frame["contrast"] & frame["bucket"].isin(["all", "TP", "FP", "TN", "FN"])
    ]  # fmt: skip
    if metric == "drop":
        rows = rows[rows["level"] == rows["level"].min()]
    write(
        f"\nGap in {metric} to each control, in log-odds (above 0: the map is more faithful than the control); "
        f"grid {grid}, fill {first['fill']}, target {first['target_rule']}:"
    )
    controls = list(dict.fromkeys(rows["control"]))
    write(f"  {'model':<26}{'explainer':<22}{'bucket':<8}{'n':>5}  " + "".join(f"{c:<26}" for c in controls))
    for (trial_id, explainer, bucket), part in rows.groupby(["trial_id", "explainer", "bucket"], sort=False):
        cells = {
            r.control: _interval(r.mean, r.lower, r.upper) + ("*" if r.p_holm < 0.05 else "") for r in part.itertuples()
        }
        one = part.iloc[0]
        write(f"  {trial_id:<26}{explainer:<22}{bucket:<8}{one['n']:>5}  "
              + "".join(f"{cells.get(c, ''):<26}" for c in controls))  # fmt: skip
    write("  * p < 0.05 after Holm's correction (sign-flip over patients). No interval under 20 patients.")
    if metric not in ("abpc", "insertion_auc"):
        return
    maps = run_.valid_baselines(metric)
    maps = maps[(maps["grid"] == grid) & (maps["fill"] == first["fill"])]
    once = maps.drop_duplicates(["trial_id", "image_id", "target"])  # the same for any map
    valid = once.groupby("trial_id")["baseline_valid"].agg(["sum", "count", "mean"])
    if len(few := valid[valid["mean"] < summary.VALID_SHARE]):
        told = ", ".join(f"{r.sum} of {r.count} (image, target) of {r.Index}" for r in few.itertuples())
        write(f"  Filled with {first['fill']}, the image scores 1 log-odds or more below the untouched one for {told}: "
              "elsewhere\n  insertion also rewards keeping what the model sees in a blank image. Read it apart from "
              "deletion.")  # fmt: skip


def _interval(mean: float, lower: float, upper: float) -> str:
    if pd.isna(mean):
        return "-"
    return f"{mean:.3f}" + ("" if pd.isna(lower) else f" [{lower:.3f}, {upper:.3f}]")


if __name__ == "__main__":
    sys.exit(main())

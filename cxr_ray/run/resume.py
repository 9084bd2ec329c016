"""The run folder before anything is computed: checks of ``--out``, what a run begins with, what it is resumed by."""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pyarrow.fs import FileSelector, FileSystem, LocalFileSystem

import cxr_ray
from cxr_ray import results
from cxr_ray.errors import DamagedRunError, RunError, SweepError, UserError
from cxr_ray.run import lock
from cxr_ray.run.context import RunContext
from cxr_ray.schemas import SCHEMA_VERSION
from cxr_ray.storage import Store, unsealed_json
from cxr_ray.sweepfile import resolve

ANOTHER = "give another folder (--out PATH)."
TRAINING_ERRORS = (".work", "errors.json")  # rows of errors for the images that training read
PACKAGES = ("torch", "torchvision", "ray", "captum", "numpy", "scipy", "scikit-learn", "pandas", "pyarrow", "pillow")
PROVENANCE = "provenance.json"
REQUIRED = ("sweep_hash", "name", "data_fingerprint", "images", "finished")  # of the provenance


def check_out(out: str, *, resume: bool, dry: bool = False) -> None:
    """Make the folder ``out`` and write into it; ``dry``: find out whether that could be done, and do nothing.

    Raises:
        UserError: it cannot be written, or holds something and is not to be resumed.
    """
    in_job = "RAY_JOB_ID" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if "://" not in out and not Path(out).is_absolute() and in_job:
        raise UserError(
            f"--out: got {out}, a relative path in a Ray job, where it would lie in a temporary copy of the working "
            "directory and be lost; expected an absolute path on storage that the machines share, or a URI; give one "
            "(--out s3://bucket/run)."
        )
    try:
        _check_folder(out, resume)
        (_require_writable if dry else _make_folder)(out)
    except (OSError, pa.ArrowException, UnicodeError) as e:
        reason = " ".join(str(e).split()).rstrip(".")
        shown = out.encode(errors="replace").decode()
        raise UserError(
            f"--out: got {shown}, which cannot be written ({reason}); expected a folder or a URI; {ANOTHER}"
        ) from None


def _check_folder(out: str, resume: bool) -> None:
    fs, root = results.filesystem(out)
    if fs.get_file_info(root).is_file:
        raise UserError(f"--out: got {out}, a file; expected a folder; {ANOTHER}")
    there = fs.get_file_info(FileSelector(root, allow_not_found=True))
    filled = any(info.base_name != lock.NAME for info in there)  # a lock alone is no run
    if filled and not resume:
        raise UserError(
            f"--out: got {out}, which is not empty; expected an empty folder; go on with the run in it (--resume), or "
            + ANOTHER
        )
    if filled and not Store(out, {}).exists("sweep.yaml"):
        raise UserError(f"--out: got {out}, which holds files but no run (no sweep.yaml); expected a run; {ANOTHER}")


def _make_folder(out: str) -> None:
    fs, root = results.filesystem(out)
    fs.create_dir(root, recursive=True)
    Store(out, {}).write(b"", ".writable")
    fs.delete_file(f"{root.rstrip('/')}/.writable")


def _require_writable(out: str) -> None:
    """Raise OSError where the folder could not be made or written into. Of another machine's nothing is known."""
    fs, root = results.filesystem(out)
    if not isinstance(fs, LocalFileSystem):
        return
    there = next(folder for folder in [Path(root), *Path(root).absolute().parents] if folder.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))


def begin(context: RunContext) -> None:
    """Write what a run starts with: sweep and provenance. Nothing where they are there."""
    if not context.store.exists(PROVENANCE):
        context.store.write(context.sweep.to_yaml().encode(), "sweep.yaml")
        context.store.write_json(provenance(context), PROVENANCE)


def is_finished(context: RunContext) -> bool:
    """Whether the run in the context's folder is finished; False where it is new.

    Raises:
        UserError: it is a run of another sweep, of other data or of another version, or damaged.
    """
    store, sweep, out = context.store, context.sweep, context.store.out
    if not store.exists(PROVENANCE):
        if any(store.exists(folder) for folder in ("tables", ".work")):
            raise UserError(
                f"--out: got {out}, a run without provenance.json, which says of which sweep it is; expected a whole "
                f"run; {ANOTHER}"
            )
        return False
    before = _read_provenance(store)
    finished = before["finished"] is not None
    if before["sweep_hash"] != sweep.hash:
        raise UserError(
            f"--out: got {out}, the run of another sweep ({before['name']}, hash {before['sweep_hash']}); expected "
            f"{sweep.name}, hash {sweep.hash}; give another folder (--out PATH), or the sweep as in {out}/sweep.yaml."
        )
    if not finished:
        _check_version(before, out)
    if before["data_fingerprint"] != context.manifest.fingerprint:
        raise UserError(
            f"--out: got {out}, a run of other images ({before['images']} then, {len(context.manifest.images)} now, or "
            "others); expected the same; give the data that it was begun with, or another folder (--out PATH)."
        )
    if not finished:
        _check_checkpoints(before, context)
        _check_maps(before, context)
    try:
        is_whole = resolve(results.open_run(out).sweep).hash == sweep.hash
    except (RunError, SweepError):
        is_whole = False
    if not is_whole:  # cut or damaged: its hash was this sweep's
        store.write(sweep.to_yaml().encode(), "sweep.yaml")
    return finished


def _read_provenance(store: Store) -> dict[str, Any]:
    try:
        before = json.loads(store.read(PROVENANCE))
        _ = [before[k] for k in REQUIRED]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"--out: got {store.out}, whose provenance.json is damaged; expected a whole run; {ANOTHER}"
        ) from None
    return dict(before)


def _check_version(before: Mapping[str, Any], out: str) -> None:
    version = before.get("schema_version", 1)
    if version != SCHEMA_VERSION:
        raise UserError(
            f"--out: got {out}, with tables of schema version {version}; expected version {SCHEMA_VERSION}, which this "
            f"cxr_ray writes; finish it with the cxr_ray that began it, or {ANOTHER}"
        )


def _check_checkpoints(before: Mapping[str, Any], context: RunContext) -> None:
    for name, expected in before.get("checkpoints", {}).items():
        if expected != digest(context.sweep.checkpoints[name].path):
            raise UserError(
                f"checkpoints.{name}.path: got another file than {context.store.out} was begun with; expected the "
                f"same; give it, or another folder (--out PATH)."
            )


def _check_maps(before: Mapping[str, Any], context: RunContext) -> None:
    for name, digest in before.get("maps", {}).items():
        if digest != context.maps.digests.get(name):
            raise UserError(
                f"explain.maps.{name}: got other maps than {context.store.out} was begun with; expected the same; give "
                f"them, or {ANOTHER}"
            )


def training_errors(store: Store) -> list[dict[str, Any]] | None:
    """Rows of errors that training met before the run was interrupted; None where they were not kept.

    Raises:
        DamagedRunError: the file is damaged.
    """
    if not store.exists(*TRAINING_ERRORS):
        return None
    try:
        return list(unsealed_json(store.read(*TRAINING_ERRORS))["rows"])
    except (ValueError, KeyError, TypeError):
        raise DamagedRunError(
            f"got {store.path(*TRAINING_ERRORS)}, which is damaged; expected JSON; {ANOTHER}"
        ) from None


def mark_finished(store: Store) -> None:
    """Note in the provenance that the run is finished, the hashes of its models, and the files of its tables."""
    run = results.open_run(store.out)
    trials = run.pandas("trials", ["trial_id", "status", "checkpoint"])
    kept = trials[(trials["status"] != "given") & trials["checkpoint"].notna()]
    paths = dict(zip(kept["trial_id"], kept["checkpoint"], strict=True))
    trained = {trial_id: digest(f"{run.root}/{path}", run.fs) for trial_id, path in paths.items()}
    known = json.loads(store.read(PROVENANCE))
    finished = {"trained": trained, "tables": store.table_files(), "finished": _now()}
    store.write_json({**known, **finished}, PROVENANCE)


def provenance(context: RunContext) -> dict[str, Any]:
    """Versions, git commit, hardware, data fingerprint, seeds."""
    sweep, manifest = context.sweep, context.manifest
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        **context.store.run,
        "name": sweep.name,
        "cxr_ray": cxr_ray.__version__,
        "schema_version": SCHEMA_VERSION,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "versions": {p: metadata.version(p) for p in PACKAGES},
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "gpus": gpus},
        "checkpoints": {name: digest(given.path) for name, given in sweep.checkpoints.items()},
        "maps": dict(context.maps.digests),
        "data_fingerprint": manifest.fingerprint,
        "images": len(manifest.images),
        "data_notes": manifest.notes,
        "seeds": {"sweep": sweep.seed, "train": sweep.train["seed"]},
        "started": _now(),
        "finished": None,
    }


def digest(path: str, fs: FileSystem | None = None) -> str:
    """sha256 of a file, hex, read in pieces. ``path``: local or a URI; with ``fs``, inside that."""
    if fs is None:
        fs, path = results.filesystem(path)
    found = hashlib.sha256()
    with fs.open_input_stream(path) as f:
        while piece := f.read(2**24):
            found.update(piece)
    return found.hexdigest()


def _git_commit() -> str | None:
    """Of this package's own repository; None where it is installed elsewhere, or there is no git."""
    root = Path(cxr_ray.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        asked = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return asked.stdout.strip() or None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

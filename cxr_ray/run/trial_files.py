"""What a run keeps of a trial in training, so that --resume goes on with it: safetensors and JSON, no pickle.

Two files lie under ``.work/trials/<trial_id>/``: the best weights so far, named by epoch, and ``state.safetensors``:
network, optimizer and schedule after the last epoch, with the metrics of every epoch in its header. The second one is
put in place whole, after the first, so that whatever is killed leaves the state of an epoch with its best weights.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from pyarrow import fs as pafs
from safetensors import SafetensorError
from torch import Tensor

from cxr_ray.config import Sweep
from cxr_ray.errors import DamagedRunError
from cxr_ray.models import digests
from cxr_ray.run.trial_plans import TrialPlan, found_again
from cxr_ray.storage import Store, sealed_json, unsealed_json

FOLDER = (".work", "trials")
STATE, STOPPED, HUNG, PLAN = "state.safetensors", "stopped.json", "hung.json", "plan.json"
REQUIRED: dict[str, type | tuple[type, ...]] = {  # of the metrics of an epoch
    **dict.fromkeys(("epoch", "best_epoch"), int),
    **dict.fromkeys(("best_auroc", "val_auroc", "seconds"), (int, float)),
    "trained_on": str,
}
_TENSOR, _PAIRS = "tensor", "pairs"  # what JSON has no word for


@dataclass(frozen=True)
class TrialFiles:
    """The files of one trial. Picklable.

    Attributes:
        store: the run.
        trial_id: its name in the table ``trials``.
    """

    store: Store
    trial_id: str

    def save(self, history: list[dict[str, Any]], state: Mapping[str, Any], best: bytes | None) -> None:
        """Keep an epoch.

        Args:
            history: metrics of each epoch so far, REQUIRED among them.
            state: what ``training.fit`` resumes from; empty after the last epoch.
            best: the weights, where they are the best so far; else those kept before stay.
        """
        name = _best_name(history[-1]["best_epoch"])
        if best is not None:
            self.store.write(best, *FOLDER, self.trial_id, name)
        tensors: dict[str, Tensor] = {}
        plain = _plain(state, "", tensors)
        header = {"history": json.dumps(history), "state": json.dumps(plain)}
        header["history_crc32"] = str(zlib.crc32(header["history"].encode()))
        self.store.write(digests.save(tensors, header), *FOLDER, self.trial_id, STATE)
        self._keep({name, STATE})

    def history(self) -> list[dict[str, Any]]:
        """The metrics of each epoch that is kept; none where there is no file. Reads the header alone.

        Raises:
            DamagedRunError: the file is damaged.
        """
        if not self._has(STATE):
            return []
        with self.store.fs.open_input_file(self._path(STATE)) as f:
            try:
                n = int.from_bytes(f.read(8), "little")
                if not 0 < n < f.size() - 7:
                    raise ValueError
                header = json.loads(f.read(n))
                ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
                if 8 + n + max(ends, default=0) != f.size():
                    raise ValueError
                told = header["__metadata__"]
                history = json.loads(told["history"])
                if told.get("history_crc32") != str(zlib.crc32(told["history"].encode())):
                    raise ValueError
                if not history or not all(_is_epoch(epoch) for epoch in history):
                    raise ValueError
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                raise self._damaged() from None
        return list(history)

    def state(self) -> dict[str, Any]:
        """What ``training.fit`` resumes from.

        Raises:
            DamagedRunError: the file is damaged.
        """
        data = self.store.read(*FOLDER, self.trial_id, STATE)
        if not digests.is_intact(data, needed=True):
            raise self._damaged()
        try:
            tensors = safetensors.torch.load(data)
            n = int.from_bytes(data[:8], "little")
            plain = json.loads(json.loads(data[8 : 8 + n])["__metadata__"]["state"])
            return dict(_whole(plain, tensors))
        except (SafetensorError, ValueError, LookupError, TypeError, RecursionError):
            raise self._damaged() from None

    def best(self, epoch: int) -> bytes:
        """The best weights, those of an epoch, as the bytes of a checkpoint.

        Raises:
            DamagedRunError: the file is damaged or gone.
        """
        name = _best_name(epoch)
        data = self.store.read(*FOLDER, self.trial_id, name) if self._has(name) else b""
        if not digests.is_intact(data, needed=True):
            raise self._damaged(name)
        return data

    def save_plan(self, plan: TrialPlan, number: int) -> None:
        """Keep what a trial is, before it begins. ``number``: of the suggestion that it is."""
        sections = {"model": plan.model.model_dump(), "train": plan.train.model_dump()}
        self.store.write(sealed_json({"variant": plan.variant, "number": number, **sections}), *self._place(PLAN))

    def plan(self, sweep: Sweep) -> tuple[TrialPlan | None, int]:
        """What a trial is, and the number of its suggestion; None where none was kept.

        Raises:
            DamagedRunError: the file is damaged, or of no trial that the sweep may have.
        """
        if not self._has(PLAN):
            return None, 0
        try:
            kept = unsealed_json(self.store.read(*self._place(PLAN)))
            plan, number = found_again(sweep, kept["variant"], kept), int(kept["number"])
        except (ValueError, LookupError, TypeError, AttributeError):
            raise self._damaged(PLAN) from None
        if plan is None or plan.trial_id != self.trial_id:
            raise self._damaged(PLAN)
        return plan, number

    def check(self, goes_on: bool) -> None:
        """Read what a trial with a history is finished with, and what it goes on from if it does.

        Raises:
            DamagedRunError: a file is damaged or gone.
        """
        self.best(self.history()[-1]["best_epoch"])
        if goes_on:
            self.state()

    def stop(self, epoch: int) -> None:
        """Note that the scheduler stopped the trial after an epoch."""
        self.store.write_json({"epoch": epoch}, *FOLDER, self.trial_id, STOPPED)

    def is_stopped(self) -> bool:
        """Whether the scheduler stopped it."""
        return self._has(STOPPED)

    def hang(self, seconds: float) -> None:
        """Note that the trial's process is ended, which did not go on for so long."""
        self.store.write_json([*self.hangs(), seconds], *FOLDER, self.trial_id, HUNG)

    def hangs(self) -> list[float]:
        """After how many seconds its processes were ended, in turn; of a damaged note, none."""
        if not self._has(HUNG):
            return []
        try:
            found = json.loads(self.store.read(*FOLDER, self.trial_id, HUNG))
        except (ValueError, RecursionError):
            return []
        told = [s for s in found if isinstance(s, int | float)] if isinstance(found, list) else []
        return [float(s) for s in told if 0 <= s < 1e9]

    def _place(self, name: str) -> tuple[str, ...]:
        return *FOLDER, self.trial_id, name

    def _has(self, name: str) -> bool:
        return self.store.exists(*self._place(name))

    def _path(self, name: str) -> str:
        return self.store.path(*FOLDER, self.trial_id, name)

    def _keep(self, names: set[str]) -> None:
        """Remove earlier best weights."""
        fs = self.store.fs
        for info in fs.get_file_info(pafs.FileSelector(self.store.path(*FOLDER, self.trial_id))):
            if info.base_name.startswith("best-") and info.base_name not in names:
                fs.delete_file(info.path)

    def _damaged(self, name: str = STATE) -> DamagedRunError:
        folder = self.store.path(*FOLDER, self.trial_id)
        return DamagedRunError(
            f"got {folder}/{name}, which is damaged or gone; expected the state of a trial; delete that folder, and "
            "--resume trains this network again."
        )


def _is_epoch(metrics: Any) -> bool:
    """Whether a trial can go on from what was read as the metrics of an epoch."""
    return isinstance(metrics, dict) and all(isinstance(metrics.get(k), kind) for k, kind in REQUIRED.items())


def _best_name(epoch: int) -> str:
    return f"best-{epoch}.safetensors"


def _plain(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Nested containers as JSON; tensors are put under names of their own."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().clone().contiguous()  # clone: safetensors refuses two on the same memory
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        return {_PAIRS: [[k, _plain(v, f"{path}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{path}/{n}", tensors) for n, v in enumerate(value)]
    return value


def _whole(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What ``_plain`` made plain; tuples come back as lists."""
    if isinstance(plain, dict):
        if _TENSOR in plain:
            return tensors[plain[_TENSOR]]
        return {k: _whole(v, tensors) for k, v in plain[_PAIRS]}
    return [_whole(v, tensors) for v in plain] if isinstance(plain, list) else plain

"""Memory of the driver for what it knows of images: list of files, manifest, its table, plan, donor index.

Images are tiny and made as they are read. Each step is done once in one process; printed are the seconds that it took,
the MiB that it needed at its peak and the MiB that it left, of the process's resident memory. Linux only.
"""

from __future__ import annotations

import gc
import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from benchmarks.common import arguments
from cxr_ray.data.entries import Entries, Entry
from cxr_ray.data.manifest import load_manifest
from cxr_ray.measure import donors
from cxr_ray.measure.donor_index import DonorIndex
from cxr_ray.measure.donors import MapPiece, Maps, build_donor_index, pack_maps
from cxr_ray.measure.patch_swap import donor_images
from cxr_ray.measure.shards import ModelRef
from cxr_ray.run.plan import PassCounts, plan_shards
from cxr_ray.storage import Store

TARGETS = [("made", 0), ("made", 1)]


@dataclass(frozen=True)
class ManyImages:
    """So many images of test and a tenth as many of train, a third of the patients with two images.

    Attributes:
        n: images of test.
        where: for messages.
    """

    n: int
    where: str = "made"

    def list(self) -> Entries:
        """As a folder lists them."""
        entries = []
        for split, n in (("test", self.n), ("train", self.n // 10)):
            for i in range(n):
                patient = i - (i % 6 == 4) * 2
                name = f"person{patient}_bacteria_{i}.pgm" if i % 2 else f"IM-{patient:07d}-{i:07d}.pgm"
                class_name = "PNEUMONIA" if i % 2 else "NORMAL"
                entries.append(Entry(split, class_name, name, f"{split}/{class_name}/{name}"))
        return entries

    def read(self, path: str) -> bytes:
        """Four pixels that depend on the path."""
        return b"P5\n4 4\n255\n" + hashlib.sha256(path.encode()).digest()[:16]


def main() -> None:
    """The command."""
    args = arguments(__doc__, images=(int, 200_000, "test images"))
    made: dict[str, Any] = {}
    source = ManyImages(args.images)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, {"run_id": "r", "sweep_hash": "s"})
        print(f"manifest: {args.images} images of test, {args.images // 10} of train")
        print(f"  {'step':<16}{'seconds':>9}{'peak, MiB':>12}{'left, MiB':>12}{'peak a test image, KiB':>25}")

        def step(name: str, do: Callable[[], Any]) -> None:
            gc.collect()
            pa.default_memory_pool().release_unused()
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before, begun = _mib("VmRSS"), time.perf_counter()
            made[name] = do()
            seconds, peak = time.perf_counter() - begun, _mib("VmHWM") - before
            gc.collect()
            pa.default_memory_pool().release_unused()
            each = 1024 * peak / args.images
            print(f"  {name:<16}{seconds:>9.1f}{peak:>12.0f}{_mib('VmRSS') - before:>12.0f}{each:>25.2f}", flush=True)

        step("files", source.list)
        step("manifest", lambda: load_manifest(source, made.pop("files")))
        manifest = made["manifest"]
        step("images table", lambda: store.write_table("images", manifest.table))
        step("plan", lambda: _plan(manifest))
        names = _write_maps(store, manifest.rows("test")["image_id"].tolist())
        patients = manifest.rows("test").set_index("image_id")["patient_id"]
        step("donor index", lambda: build_donor_index(store, names, patients, TARGETS))
        data = made.pop("donor index").to_bytes()
        step("its copy", lambda: DonorIndex.from_bytes(data))


def _plan(manifest: Any) -> Any:
    test, val = manifest.rows("test"), manifest.rows("val")
    refs = {"m": ModelRef("m", "none", None, 32)}
    counts = {"m": PassCounts(400)}
    return plan_shards(manifest, refs, counts, "gpu", {}, donor_images(test, val, 0), test.iloc[:0])


def _write_maps(store: Store, ids: list[str]) -> list[str]:
    """Maps of one pixel of all images, in shards of 256."""
    names = []
    for n, start in enumerate(range(0, len(ids), 256)):
        part = ids[start : start + 256]
        maps = Maps(torch.ones(len(part), 1, 1), {})
        piece = MapPiece({i: float(n) for n, i in enumerate(part, -128)}, [(i, 1) for i in part], {"made": maps})
        names.append(f"m.test.256.{n:05d}")
        store.write_shard(names[-1], pack_maps([piece], []), donors.MAPS)
    return names


def _mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


if __name__ == "__main__":
    main()

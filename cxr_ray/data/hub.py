"""Data sets that are downloaded once: Kaggle's and the mirror on Hugging Face."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from cxr_ray.data.labels import SPLITS
from cxr_ray.data.loading import one_line
from cxr_ray.errors import DataError
from cxr_ray.schemas import CLASSES

HUBS = ("kaggle", "huggingface")


def hub_folder(name: str) -> str:
    """Downloads the data set once and returns the local folder, for FolderSource.

    Args:
        name: ``kaggle`` (paultimothymooney/chest-xray-pneumonia) or ``huggingface`` (hf-vision/chest-xray-pneumonia,
            unpacked to the user's cache folder).

    Raises:
        DataError: another name, the extra ``hub`` is not installed, or the download failed.
    """
    if name not in HUBS:
        raise DataError(f"got hub:{name}; expected one of: {', '.join(f'hub:{h}' for h in HUBS)}.")
    try:
        return _from_kaggle() if name == "kaggle" else _from_huggingface()
    except ImportError as e:
        raise DataError(
            f"got hub:{name} without its package; expected the extra hub; install it: pip install 'cxr-ray[hub]'."
        ) from e
    except Exception as e:  # the clients raise their own, requests' and the system's errors
        raise DataError(
            f"got hub:{name}, which could not be downloaded ({one_line(e)}); expected the data set; download Chest "
            "X-Ray Images (Pneumonia) by hand, unpack it, and give --data its path."
        ) from e


def _from_kaggle() -> str:
    import kagglehub

    return str(kagglehub.dataset_download("paultimothymooney/chest-xray-pneumonia"))


def _from_huggingface() -> str:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cxr_ray"
    target = cache / "chest-xray-pneumonia"
    if target.is_dir():
        return str(target)
    import huggingface_hub

    downloaded = huggingface_hub.snapshot_download(
        "hf-vision/chest-xray-pneumonia", repo_type="dataset", allow_patterns=["*.parquet"]
    )
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=cache))
    try:
        _unpack_parquet(Path(downloaded), partial)
        try:
            partial.rename(target)
        except OSError:  # another process was faster
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return str(target)


def _unpack_parquet(downloaded: Path, target: Path) -> None:
    """Parquet files named by their split, columns image {bytes, path} and label, to Kaggle's layout under target."""
    import pyarrow.parquet as pq

    files = sorted(downloaded.rglob("*.parquet"))
    if not files:
        raise ValueError("the download holds no Parquet file")
    for file in files:
        split = next((w for w in re.split(r"\W", str(file.relative_to(downloaded))) if w in SPLITS), None)
        if split is None:
            raise ValueError(f"{file.name} names no split")
        row = 0
        for batch in pq.ParquetFile(file).iter_batches(32, columns=["image", "label"]):
            for record in batch.to_pylist():
                image, label = record["image"], record["label"]
                folder = target / SPLITS[split] / (label if label in CLASSES else CLASSES[label])
                name = PurePosixPath((image["path"] or "").replace("\\", "/")).name
                if not name or name.startswith(".") or (folder / name).exists():
                    name = f"{file.stem}-{row:06d}-{name.lstrip('.') or 'image.jpeg'}"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(image["bytes"])
                row += 1

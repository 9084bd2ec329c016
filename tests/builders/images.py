"""Images and sources of them, small and quick to make."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from cxr_ray.data.entries import Entries, Entry
from cxr_ray.data.phantom_source import PhantomSource


def picture(seed: int | str, format: str = "JPEG", size: int = 16) -> bytes:
    pixels = np.random.default_rng(list(str(seed).encode())).integers(0, 256, (size, size), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root


def kaggle(prefix: str = "", patients: int = 4) -> dict[str, bytes]:
    """Files in Kaggle's layout: in train and in test, `patients` of each class with one image each."""
    return {
        f"{prefix}{split}/{folder}/{name}": picture(f"{split}{name}")
        for split, offset in (("train", 0), ("test", 500))
        for i in range(offset, offset + patients)
        for folder, name in (
            ("NORMAL", f"IM-{i:04d}-0001.jpeg"),
            ("PNEUMONIA", f"person{i}_{'bacteria' if i % 2 else 'virus'}_{i + 7}.jpeg"),
        )
    }


class MemorySource:
    """A source whose files are bytes in memory, listed in the order of the dictionary."""

    where = "memory"

    def __init__(self, files: dict[str, bytes]):
        self.files = files

    def list(self) -> Entries:
        entries = []
        for path in self.files:
            split, class_name, name = path.split("/", 2)
            entries.append(Entry(split, class_name, name, path))
        return entries

    def read(self, path: str) -> bytes:
        return self.files[path]


def gradient(value: int) -> bytes:
    """A valid image that differs from that of every other value under 2**32, and costs nothing to make."""
    return b"P5\n4 1\n255\n" + value.to_bytes(4, "big")


def phantoms(**changes) -> PhantomSource:
    return PhantomSource(
        **{"train": 12, "test": 8, "prevalence": 0.25, "marker_correlation": 0.5, "size": 64, "seed": 3, **changes}
    )

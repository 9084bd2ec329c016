"""Files read by tasks: when, and with what comes out."""

import os
import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from cxr_ray.counting import telling
from cxr_ray.data.entries import Stamp
from cxr_ray.data.loading import in_threads, reading_by
from cxr_ray.data.manifest import load_manifest
from cxr_ray.errors import ClusterError, MissingPackageError
from cxr_ray.run import reading
from tests.builders.images import MemorySource, kaggle


class Bucket(MemorySource):
    """An object store."""

    where = "s3://bucket/chest_xray"
    images: str | None = None

    def stamp(self, path: str) -> Stamp | None:
        return None


def ahead(local: bool) -> Any:
    return SimpleNamespace(started=lambda: local)


@pytest.mark.parametrize(
    ("source", "local", "machines", "files", "by_tasks"),
    [
        (Bucket({}), False, 2, 8, True),
        (Bucket({}), False, 2, 7, False),  # too few
        (Bucket({}), False, 1, 8, False),
        (Bucket({}), True, 2, 8, False),  # Ray of this machine alone
        (MemorySource({}), False, 2, 8, False),  # no URI, and no files of their own
    ],
)
def test_many_files_of_a_store_are_read_by_all_machines(monkeypatch, source, local, machines, files, by_tasks):
    asked: list[int] = []

    def in_tasks(function: Any, items: Any) -> list[Any]:
        asked.append(len(items))
        return list(map(function, items))

    monkeypatch.setattr(reading, "LEAST", 8)
    monkeypatch.setattr(reading, "_several_machines", lambda: machines > 1)
    monkeypatch.setattr(reading, "in_tasks", in_tasks)
    read = reading.reader(source, ahead(local))
    assert read(str, range(files)) == [str(n) for n in range(files)]
    assert asked == [files] * by_tasks


def test_without_ray_files_are_read_here():
    assert reading.reader(Bucket({}), None) is in_threads


def test_a_table_whose_images_are_local_is_read_here():
    source = Bucket({})
    source.images = "path/to/images"
    assert reading.reader(source, ahead(local=False)) is in_threads


def test_what_is_read_elsewhere_makes_the_same_manifest():
    source = Bucket({**kaggle(), "test/NORMAL/broken.jpeg": b"no image"})
    here = load_manifest(source)
    sizes: list[int] = []
    counts: list[int] = []

    def elsewhere(function: Any, items: Any) -> list[Any]:
        sizes.append(len(items))
        return in_threads(pickle.loads(pickle.dumps(function)), items)

    with reading_by(elsewhere), telling(counts.append):
        there = load_manifest(source)
    assert sizes == [sum(counts)] == [17]  # each is counted once
    assert all(counts)
    assert here.images.equals(there.images)
    assert here.errors == there.errors
    assert len(here.errors) == 1
    assert here.fingerprint == there.fingerprint


def _half(n: int) -> int:
    if n == 300:
        raise MissingPackageError("got a DICOM file; expected pydicom; install it.")
    return n // 2


def _dies(n: int) -> None:
    os._exit(1)


@pytest.mark.slow
def test_tasks_keep_the_order_count_and_raise_what_was_raised(running_ray, monkeypatch):
    monkeypatch.setattr(reading, "PART", 16)
    counts: list[int] = []
    with telling(counts.append):
        assert reading.in_tasks(_half, range(299)) == [n // 2 for n in range(299)]
    assert sum(counts) == 299
    with pytest.raises(MissingPackageError, match="install it"):
        reading.in_tasks(_half, range(400))
    monkeypatch.setattr(reading, "RETRIES", 0)
    with pytest.raises(ClusterError, match="got no answer of a task that reads files"):
        reading.in_tasks(_dies, range(2))

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from cxr_ray.schemas import TABLES
from cxr_ray.storage import PER_SHARD, Store, pack
from tests.builders.tables import explainers, made_table

# Files whose tests take longest. They begin first: one that begins last keeps the other of two processes waiting.
LONGEST = (
    "run/test_job.py",
    "test_real.py",
    "run/test_sweep.py",
    "run/test_verdicts.py",
    "test_docs.py",
    "test_architecture.py",
    "models/test_training.py",
    "run/test_trial.py",
)

torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, and each file's stay in order."""
    here = Path(__file__).parent
    longest = {here / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: longest.get(item.path, len(longest)))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> None:
    """Nothing is read from the user's cache folder, or left in it; Ray's processes inherit the variable."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder with chest_xray_224/ and chest_xray_native_sample/, where CXR_RAY_DATA names one."""
    return _named("CXR_RAY_DATA")


@pytest.fixture(scope="session")
def shared_model() -> Path:
    """A trained two-output ResNet-18 as a bare state dict, where CXR_RAY_MODEL names one."""
    return _named("CXR_RAY_MODEL")


def _named(variable: str) -> Path:
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """24 images of 32 pixels in Kaggle's layout: six patients of each class in train and in test, one image each."""
    root = tmp_path_factory.mktemp("tiny") / "chest_xray"
    for split, first in (("train", 0), ("test", 500)):
        for i in range(first, first + 6):
            for label, name in (("NORMAL", f"IM-{i:04d}-0001.png"), ("PNEUMONIA", f"person{i}_virus_{i}.png")):
                pixels = np.random.default_rng([i, len(label)]).integers(0, 256, (32, 32), dtype=np.uint8)
                stream = io.BytesIO()
                Image.fromarray(pixels).save(stream, "PNG")
                file = root / split / label / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(stream.getvalue())
    return root


@pytest.fixture(scope="session")
def made_run(tmp_path_factory) -> Path:
    """A run of two models and two explainers, whose tables hold made-up values, written as a real one is."""
    store = Store(str(tmp_path_factory.mktemp("run")), {"run_id": "0123abcd", "sweep_hash": "4567cdef"})
    store.write(b"name: made\n", "sweep.yaml")
    store.write_json({"name": "made", "finished": None}, "provenance.json")
    for name, table in TABLES.items():
        if name not in PER_SHARD:
            store.write_table(name, made_table(table, range(3)))
    units = {trial: [f"{trial}.test.{i:05d}" for i in range(2)] for trial in ("plain-0123abcd", "study")}
    for names in units.values():
        for i, unit in enumerate(names):
            rows = range(2 * i, 2 * i + 2)
            parts = {(n, e): made_table(TABLES[n], rows) for n in PER_SHARD for e in explainers(n)}
            store.write_shard(unit, pack(parts))
    store.merge(units, [])
    return Path(store.out)

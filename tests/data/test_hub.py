import shutil
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_ray import schemas
from cxr_ray.data.folder import FolderSource
from cxr_ray.data.hub import hub_folder
from cxr_ray.data.manifest import load_manifest
from cxr_ray.errors import DataError
from tests.builders.images import kaggle, picture, write


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Stand-ins for both clients; the download is a folder with Parquet files as the mirror has them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    download = tmp_path / "download"
    images: dict[str, list] = {"train-00000-of-00002": [], "train-00001-of-00002": [], "validation-0": [], "test-0": []}
    for path, content in kaggle().items():
        split, class_name, name = path.split("/")
        shard = f"{split}-0" if split == "test" else f"train-0000{len(name) % 2}-of-00002"
        images[shard].append(({"bytes": content, "path": name}, schemas.CLASSES.index(class_name)))
    images["validation-0"].append(({"bytes": picture("v"), "path": None}, 0))
    images["test-0"].append(({"bytes": picture("x"), "path": "../../IM-0500-0001.jpeg"}, 0))
    for shard, rows in images.items():
        table = pa.table({"image": [image for image, _ in rows], "label": [label for _, label in rows]})
        (download / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, download / "data" / f"{shard}.parquet")
    calls = []

    def answer(*args, **kwargs):
        calls.append(args)
        return str(download)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=answer))
    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=answer))
    return types.SimpleNamespace(download=download, calls=calls, cache=tmp_path / "cache" / "cxr_ray")


def test_huggingface_is_unpacked_once(hub):
    folder = hub_folder("huggingface")
    manifest = load_manifest(FolderSource(folder))
    assert len(manifest.images) == 17
    assert manifest.images["split"].value_counts()["test"] == 9  # two files of one name: both are there
    assert any("own val split (1 images)" in note for note in manifest.notes)
    assert set(manifest.images["path"]) >= set(kaggle())
    assert hub_folder("huggingface") == folder
    assert len(hub.calls) == 1
    assert {p.name for p in hub.cache.iterdir()} == {"chest-xray-pneumonia", "images"}  # data, and what was read of it


def test_an_interrupted_unpacking_leaves_nothing_behind(hub):
    (hub.download / "data" / "test-0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="give --data its path"):
        hub_folder("huggingface")
    assert list(hub.cache.iterdir()) == []


def test_kaggle_gives_its_own_folder(hub):
    shutil.rmtree(hub.download)
    write(hub.download, kaggle("chest_xray/"))
    assert len(load_manifest(FolderSource(hub_folder("kaggle"))).images) == 16


@pytest.mark.parametrize(("name", "module"), [("kaggle", "kagglehub"), ("huggingface", "huggingface_hub")])
def test_a_missing_package_and_a_failed_download_say_what_to_do(hub, monkeypatch, name, module):
    def fail(*args, **kwargs):
        raise ConnectionError("Max retries exceeded:\nname resolution")

    client = types.SimpleNamespace(dataset_download=fail, snapshot_download=fail)
    monkeypatch.setitem(sys.modules, module, client)
    with pytest.raises(DataError, match=rf"hub:{name}, which could not be downloaded \(ConnectionError: .*--data") as e:
        hub_folder(name)
    assert "\n" not in str(e.value)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"pip install 'cxr-ray\[hub\]'"):
        hub_folder(name)


def test_an_unknown_hub_lists_those_that_exist():
    with pytest.raises(DataError, match="got hub:zenodo; expected one of: hub:kaggle, hub:huggingface"):
        hub_folder("zenodo")

import dataclasses

import pytest

from cxr_ray.config import Data
from cxr_ray.data import sources
from cxr_ray.data.entries import AnnotatedSource
from cxr_ray.data.folder import FolderSource
from cxr_ray.data.phantom_source import PhantomSource
from cxr_ray.data.sources import SOURCES, changes_of, counterfactuals_of, source_of
from cxr_ray.errors import UnknownNameError
from cxr_ray.sweepfile import resolve


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("phantom", {"data.source": "phantom"}),
        ("hub:kaggle", {"data.source": "hub", "data.path": "kaggle"}),
        ("hub:", {"data.source": "hub", "data.path": ""}),
        ("hub", {"data.source": "folder", "data.path": "hub"}),
        ("phantoms/mine", {"data.source": "folder", "data.path": "phantoms/mine"}),
        ("s3://bucket/scans", {"data.source": "folder", "data.path": "s3://bucket/scans"}),
        ("", {"data.source": "folder", "data.path": ""}),
    ],
)
def test_each_text_of_data_names_one_kind_of_source(text, changes):
    assert changes_of(text) == changes


def test_a_source_is_opened_as_its_entry_says(tmp_path):
    assert source_of(Data(path=str(tmp_path)), 0) == FolderSource(str(tmp_path))
    phantoms = source_of(Data(source="phantom", size=64), 7)
    assert phantoms == PhantomSource(480, 96, 0.5, 0.5, size=64, seed=7)


def test_an_unknown_source_is_an_error_that_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"got the data source 'phantm'\. Did you mean 'phantom'"):
        source_of(Data().model_copy(update={"source": "phantm"}), 0)


def test_an_entry_declares_what_its_source_knows():
    kind = SOURCES["phantom"]
    source = source_of(Data(source="phantom", size=64), 0)
    assert isinstance(source, AnnotatedSource)
    path = source.list()[0].path
    assert tuple(source.masks(path)) == kind.masks
    for change in (name for names in kind.counterfactuals.values() for name in names):
        assert source.version(path, change)


def test_counterfactuals_are_those_of_the_regions_that_are_asked_for():
    names = {"names": ["marker", "outside_lungs", "opacity"]}
    phantom = resolve({"data": {"source": "phantom"}, "regions": names})
    assert counterfactuals_of(phantom) == ["marker", "glyph", "opacity"]
    assert counterfactuals_of(resolve({"data": {"source": "phantom"}, "regions": None})) == []
    assert counterfactuals_of(resolve({"regions": {"names": ["outside_lungs"], "lungs": "masks"}})) == []


def test_a_new_kind_of_source_is_one_entry(monkeypatch):
    toy = dataclasses.replace(
        SOURCES["folder"],
        named_by=lambda text: {"path": text.removeprefix("toy:")} if text.startswith("toy:") else None,
        open=lambda settings, seed: FolderSource(f"/toys/{settings.path}"),
        counterfactuals={"marker": ("moved",), "device": ("device",)},
    )
    monkeypatch.setitem(SOURCES, "toy", toy)
    assert changes_of("toy:bear") == {"data.source": "toy", "data.path": "bear"}
    assert source_of(Data().model_copy(update={"source": "toy", "path": "bear"}), 0).where == "/toys/bear"
    assert sources.all_counterfactuals() == {
        "opacity": ("opacity",),
        "marker": ("marker", "glyph", "moved"),
        "device": ("device",),
    }


ASKED = {
    "classes": {"positive": ["Edema"]},
    "splits": {"test": ["holdout"]},
    "label": "_(bacteria|virus)_",
    "patient": "folder",
    "bits": 12,
    "images": "/scans",
    "columns": {"path": "file"},
}


@pytest.mark.parametrize("name", [name for name, kind in sources.SOURCES.items() if kind.reads])
def test_what_a_source_says_it_reads_reaches_it(name, monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "hub_folder", lambda hub: str(tmp_path))
    kind = sources.SOURCES[name]
    asked = {key: ASKED[key] for key in kind.reads if key != "val"}  # which the manifest reads
    settings = Data.model_validate({"source": name, "path": str(tmp_path / "labels"), **asked})
    source = kind.open(settings, 0)
    assert {key: getattr(source, key) for key in asked} == {key: getattr(settings, key) for key in asked}

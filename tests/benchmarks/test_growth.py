"""The growth benchmark's lines: what is called flat or linear, and where it is read off."""

import pytest
import torch

from benchmarks import growth, stub
from benchmarks.fits import fitted
from cxr_ray.data.manifest import load_manifest
from cxr_ray.data.sources import source_of
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.sweepfile import resolve

SIZES = [(10, 1), (100, 1), (1000, 1), (10, 5)]
TARGET = (10_000, 3)


def test_a_plane_is_found_and_read_off_further_out():
    found = fitted("files", "", SIZES, [3 + 2 * n + 0.5 * n * (m - 1) for n, m in SIZES], TARGET)
    assert (found.kind, found.bend) == ("linear", pytest.approx(1))
    assert (found.fixed, found.an_image, found.a_pair) == pytest.approx((3, 2, 0.5))
    assert found.at_target == pytest.approx(3 + 20_000 + 10_000)


def test_what_hardly_grows_is_flat_and_extrapolated_as_a_constant():
    found = fitted("memory", "MiB", SIZES, [700, 690, 720, 730], TARGET)
    assert (found.kind, found.at_target) == ("flat", 720)


@pytest.mark.parametrize(("power", "kind"), [(2, "faster than linear"), (0.5, "slower than linear")])
def test_growth_that_bends_is_told_and_takes_the_last_slope(power, kind):
    found = fitted("seconds", "s", SIZES, [n**power * m for n, m in SIZES], TARGET)
    assert found.kind == kind
    assert found.an_image == pytest.approx((1000**power - 100**power) / 900)


def test_the_images_that_it_writes_raise_no_question(tmp_path):
    growth.write_images(tmp_path, 8)
    data = resolve({"data": {"path": str(tmp_path), "size": growth.SIZE}}).data
    manifest = load_manifest(source_of(data, 0), training=False)
    assert len(manifest.rows("test")) == 8
    assert len(manifest.rows("val")) > 0


def test_a_device_that_is_not_there_takes_its_time_for_each_image(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(stub.time, "sleep", slept.append)
    model = Classifier(stub.Stub(2), ModelSpec("resnet18", 8))
    _, forward = stub._asleep(0.5, model)
    images = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(forward(images), model.log_odds(images))
    assert slept == [1.5]

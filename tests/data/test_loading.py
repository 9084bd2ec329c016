import numpy as np
import pandas as pd
from PIL import Image

from cxr_ray import schemas
from cxr_ray.data.folder import FolderSource
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.manifest import load_manifest
from tests.builders.images import MemorySource, kaggle, picture, write


def test_load_pixels_leaves_out_what_cannot_be_decoded(tmp_path):
    files = kaggle() | {"test/NORMAL/IM-0600-0001.jpeg": picture(1, size=64)[:1500]}
    source = FolderSource(str(write(tmp_path, files)))
    rows = load_manifest(source).rows("test")
    pixels = load_pixels(source, rows, 16, "squash")
    bad = rows["path"] == "test/NORMAL/IM-0600-0001.jpeg"
    assert bad.sum() == 1
    np.testing.assert_array_equal(pixels.keep, ~bad.to_numpy())
    (error,) = pixels.errors
    assert error["image_id"] == rows.loc[bad, "image_id"].item()
    assert error["stage"] == "decode"
    assert "truncated" in error["reason"]
    schemas.ERRORS.from_rows(pixels.errors)
    assert pixels.images_NCHW.shape == (8, 3, 16, 16)
    assert pixels.images_NCHW.dtype == np.uint8
    for path, image in zip(rows["path"][pixels.keep], pixels.images_NCHW, strict=True):
        np.testing.assert_array_equal(image[1], np.asarray(Image.open(tmp_path / path)))


def test_no_rows_give_no_pixels():
    pixels = load_pixels(MemorySource({}), pd.DataFrame({"path": [], "image_id": []}), 16)
    assert pixels.images_NCHW.shape == (0, 3, 16, 16)
    assert pixels.errors == []

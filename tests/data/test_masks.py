import io

import numpy as np
import pytest
from PIL import Image

from cxr_ray.data.folder import FolderSource
from cxr_ray.data.manifest import load_manifest
from cxr_ray.data.masks import MaskFolder, load_parts, mask_note
from cxr_ray.errors import DataError
from tests.builders.images import phantoms


def test_parts_of_phantoms_come_at_the_models_size():
    source = phantoms(size=64)
    rows = [{"path": f"test/{c}/phantom-{i:06d}.pgm", "image_id": "x"} for c, i in (("PNEUMONIA", 12), ("NORMAL", 19))]
    parts = load_parts(source, (), rows, 96, changes=["glyph"])
    assert {name: m.shape for name, m in parts.masks.items()} == dict.fromkeys(
        ("lungs", "opacity", "marker"), (2, 96, 96)
    )
    assert parts.counterfactuals["glyph"].shape == (2, 3, 96, 96)
    assert parts.masks["opacity"].any((1, 2)).tolist() == [True, False]
    small = load_parts(source, (), rows, 64)
    assert np.array_equal(small.masks["marker"][0], source.masks(rows[0]["path"])["marker"])
    assert small.counterfactuals == {}
    shares = [p.masks["lungs"].mean() for p in (parts, small)]
    assert shares[0] == pytest.approx(shares[1], rel=0.02)


def mask_bytes(mask: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, kind)
    return stream.getvalue()


def test_lung_masks_are_found_by_name_and_lie_where_the_images_do(tmp_path):
    half = np.zeros((50, 80), np.uint8)
    half[:, 40:] = 255
    dim = half.copy()
    dim[:20, :40] = 127
    files = {
        "a.png": mask_bytes(half),
        "deeper/b.jpeg": mask_bytes(half, "JPEG"),
        "broken.png": b"\x89PNG\r\n\x1a\n",
        "test/NORMAL/twice.png": mask_bytes(half),
        "test/PNEUMONIA/twice.png": mask_bytes(255 - half),
        "notes.txt": b"no mask",
        "c.png": mask_bytes(dim),
        "parts.png": mask_bytes(half // 127),
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    paths = [
        "test/NORMAL/a.jpeg",
        "test/NORMAL/b.jpeg",
        "test/NORMAL/missing.jpeg",
        "test/NORMAL/broken.jpeg",
        "test/NORMAL/twice.jpeg",
        "test/PNEUMONIA/twice.jpeg",
        "test/NORMAL/c.jpeg",
        "test/NORMAL/parts.jpeg",
    ]
    rows = [{"path": path, "image_id": path[-9:]} for path in paths]
    parts = load_parts(FolderSource(str(tmp_path)), [MaskFolder(str(tmp_path))], rows, 32)
    right = np.zeros((32, 32), bool)
    right[:, 16:] = True
    expected = [right, right, ~right & right, ~right & right, right, ~right, right, right]  # 127 is not in the lungs
    assert np.array_equal(parts.masks["lungs"], expected)
    assert [(e["path"], e["stage"]) for e in parts.errors] == [("test/NORMAL/broken.jpeg", "lungs")]
    padded = load_parts(FolderSource(str(tmp_path)), [MaskFolder(str(tmp_path))], rows[:1], 32, "pad").masks["lungs"][0]
    assert not padded[:6].any()
    assert not padded[-6:].any()
    assert padded[6:26, 16:].all()
    assert not padded[:, :16].any()


def test_a_folder_without_masks_for_the_images_says_so(tmp_path, tiny_folder):
    manifest = load_manifest(FolderSource(str(tiny_folder)))
    with pytest.raises(
        DataError, match=r"got .*nowhere, which is no folder; expected the folder of the lung masks, torchx"
    ):
        MaskFolder(str(tmp_path / "nowhere"))
    with pytest.raises(
        DataError, match=r"no file is named as a test image; expected names such as test/NORMAL/IM-0500-0001;"
    ):
        mask_note(MaskFolder(str(tmp_path)), manifest)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "IM-0500-0001.png").write_bytes(mask_bytes(np.zeros((4, 4), np.uint8)))
    assert mask_note(MaskFolder(str(tmp_path / "masks")), manifest).startswith(
        "Lung masks: 1 of 12 test images have one"
    )


def test_marker_masks_come_from_a_folder_of_their_own(tmp_path):
    box = np.zeros((12, 12), np.uint8)
    box[:4, :4] = 255
    (tmp_path / "a.png").write_bytes(mask_bytes(box))
    rows = [{"path": f"test/NORMAL/{name}.jpeg", "image_id": name} for name in "ab"]
    parts = load_parts(FolderSource(str(tmp_path)), [MaskFolder(str(tmp_path), "marker")], rows, 32)
    assert parts.masks.keys() == {"marker"}
    assert parts.masks["marker"][0, :8, :8].all()
    assert not parts.masks["marker"][0, 12:].any()
    assert not parts.masks["marker"][1].any()
    with pytest.raises(
        DataError, match=r"regions.marker: got .*nowhere.*expected the folder of the marker masks, or null"
    ):
        MaskFolder(str(tmp_path / "nowhere"), "marker")

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from cxr_ray.data.folder import FolderSource
from cxr_ray.data.manifest import load_manifest
from cxr_ray.data.mask_checks import OVER_IMAGES, Frame, mask_notes
from cxr_ray.data.masks import MaskFolder, load_parts
from cxr_ray.errors import DataError
from tests.builders.images import MemorySource, phantoms, write


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
    expected = [right, right, ~right & right, ~right & right, right, ~right, ~right & right, right]
    assert np.array_equal(parts.masks["lungs"], expected)
    assert [(e["path"], e["stage"]) for e in parts.errors] == [
        ("test/NORMAL/broken.jpeg", "lungs"),
        ("test/NORMAL/c.jpeg", "lungs"),
    ]
    assert "parts of 127 beside those of 255" in parts.errors[1]["reason"]
    source = MemorySource({"test/NORMAL/a.jpeg": mask_bytes(np.zeros((25, 40), np.uint8), "JPEG")})  # half as large
    padded = load_parts(source, [MaskFolder(str(tmp_path))], rows[:1], 32, "pad").masks["lungs"][0]
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
        mask_notes(MaskFolder(str(tmp_path)), manifest, OVER_IMAGES)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "IM-0500-0001.png").write_bytes(mask_bytes(np.zeros((4, 4), np.uint8)))
    assert mask_notes(MaskFolder(str(tmp_path / "masks")), manifest, OVER_IMAGES)[0].startswith(
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


BOX = np.zeros((80, 120), np.uint8)
BOX[20:60, 10:40] = 255


@pytest.fixture
def askew(tmp_path):
    """A manifest of two images of 120 x 80, and a function of masks of the second to their folder and notes."""
    for name in ("NORMAL/a.png", "PNEUMONIA/b.png"):
        write(tmp_path / "images" / "test", {name: mask_bytes(np.full((80, 120), len(name), np.uint8))})
    source = FolderSource(str(tmp_path / "images"))
    manifest = load_manifest(source, training=False)

    def checked(mask, fit="squash", frame=OVER_IMAGES, part="lungs"):
        folder = MaskFolder(str(write(tmp_path / "masks", {"b.png": mask})), part)
        notes = mask_notes(folder, manifest, frame)
        rows = [{"path": "test/PNEUMONIA/b.png", "image_id": "b"}]
        return load_parts(source, [folder], rows, 60, fit).masks[part][0], notes

    return checked


def where(mask: np.ndarray) -> tuple[int, ...]:
    """First and last row and column inside."""
    y, x = np.nonzero(mask)
    return y.min(), y.max(), x.min(), x.max()


def square(side: int) -> bytes:
    return mask_bytes(np.asarray(Image.fromarray(BOX).resize((side, side), Image.Resampling.NEAREST)))


@pytest.mark.parametrize("mask", [mask_bytes(BOX.T.copy()), square(64), mask_bytes(BOX[:, :90].copy())])
@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
def test_masks_of_other_proportions_stop_the_run_unless_accepted(askew, mask, fit):
    says = r"1 images whose mask .*regions.lungs: .* for 120 x 80\).*or confirm with data.accept: \[stretched\]"
    with pytest.raises(DataError, match=says):
        askew(mask, fit)
    assert "as over a squashed copy" in askew(mask, fit, Frame(accept=["stretched"]))[1][1]


@pytest.mark.parametrize(
    ("fit", "place"), [("squash", (15, 44, 5, 19)), ("pad", (20, 39, 5, 19)), ("crop", (15, 44, 0, 14))]
)
def test_masks_lie_where_their_image_does_at_any_size(askew, fit, place):
    half = mask_bytes(BOX[::2, ::2].copy())
    for mask in (mask_bytes(BOX), half):
        found, notes = askew(mask, fit)
        assert where(found) == place
        assert len(notes) == 1
    accepted = where(askew(square(120), fit, Frame(accept=["stretched"]))[0])  # as a squashed copy of the image
    assert np.abs(np.subtract(accepted, place)).max() <= 1


def test_a_mask_of_the_models_size_lies_over_what_fit_makes(askew):
    found, notes = askew(square(60), "pad", Frame(frozenset([60])))
    assert where(found) == (15, 44, 5, 19)
    assert "1 over the model's input, as their size says" in notes[1]
    with pytest.raises(DataError, match="60 x 60 for 120 x 80"):
        askew(square(60), "pad", Frame(frozenset([60, 32])))


def transparent() -> bytes:
    pixels = np.zeros((80, 120, 4), np.uint8)
    pixels[..., 3] = BOX
    return mask_bytes(pixels)


def test_a_shape_in_the_opacity_alone_is_the_inside(askew):
    assert where(askew(transparent())[0]) == (15, 44, 5, 19)


def coloured() -> bytes:
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[20:60, 10:40], pixels[20:60, 60:90] = (0, 0, 100), (255, 0, 0)
    return mask_bytes(pixels)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (mask_bytes(BOX // 3 + np.roll(BOX // 3 * 2, 50, 1)), "holds parts of 85 beside those of 170"),
        (coloured(), "holds parts of 100 beside those of 255"),
    ],
)
def test_parts_that_would_be_lost_are_refused(askew, mask, says):
    with pytest.raises(DataError, match=f"regions.lungs: got .* none of whose 1 masks .*{says}"):
        askew(mask)


def test_soft_masks_have_many_values_and_are_no_parts(askew):
    soft = Image.fromarray(BOX).filter(ImageFilter.GaussianBlur(3))
    assert where(askew(mask_bytes(np.asarray(soft)))[0]) == (15, 44, 5, 19)
    assert where(askew(mask_bytes(BOX, "JPEG"))[0]) == (15, 44, 5, 19)


def test_empty_and_inverted_masks_are_counted(askew):
    assert "1 empty" in askew(mask_bytes(0 * BOX))[1][1]
    assert (
        "1 inside in more than half of their image, where the outside may be meant"
        in askew(mask_bytes(255 - BOX))[1][1]
    )


def test_two_masks_for_one_image_are_told(askew, tmp_path):
    write(tmp_path / "masks", {"b.jpg": mask_bytes(BOX, "JPEG")})
    with pytest.raises(DataError, match=r"For 1 images there are several, such as b.jpg and b.png, of which none is"):
        askew(mask_bytes(BOX))


def test_a_folder_made_anew_is_listed_anew(tmp_path):
    write(tmp_path, {"a.png": mask_bytes(BOX)})
    assert MaskFolder(str(tmp_path)).find("b.png") is None
    write(tmp_path, {"b.png": mask_bytes(BOX)})
    assert MaskFolder(str(tmp_path)).find("b.png") == "b.png"

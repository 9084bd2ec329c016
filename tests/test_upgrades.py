from cxr_ray.schemas import ERRORS
from cxr_ray.upgrades import upgraded


def test_errors_of_donor_images_have_todays_stage():
    row = {"path": "a.png", "image_id": "a", "reason": "empty"}
    older = ERRORS.from_rows([{**row, "stage": stage} for stage in ("decode", "exchange")])
    assert upgraded("errors", older)["stage"].to_pylist() == ["decode", "patch_swap"]

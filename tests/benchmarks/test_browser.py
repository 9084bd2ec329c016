"""The run that the benchmark of the browser repeats."""

from benchmarks.browser import repeated, written
from cxr_ray.results import open_run
from tests.builders.runs import make_run


def test_a_repeated_run_has_as_many_images_of_as_many_patients(tmp_path):
    run = make_run(tmp_path / "run", strong=True)
    folder = repeated(tmp_path / "run", tmp_path / "three", 3)
    images = open_run(folder).pandas("images")
    assert images["image_id"].nunique() == images["patient_id"].nunique() == 18
    assert open_run(folder).pandas("curves").shape[0] == 3 * open_run(run).pandas("curves").shape[0]
    assert written(folder, None)["images"] == 18

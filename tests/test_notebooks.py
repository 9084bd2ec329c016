"""Every notebook runs from its first cell to its last, and is kept without what it printed."""

import os
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.builders.runs import make_run

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return os.environ.get("CXR_RAY_RUN") or make_run(tmp_path_factory.mktemp("notebooks") / "run", more=True)


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_hold_no_output(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


SAID = {  # among what a notebook prints
    "add_explainer.ipynb": "positive_gradient other_image",
    "findings.ipynb": "Mean advantage in",
    "one_image.ipynb": "Advantage over this control: ",
    "own_maps.ipynb": "bright on model: more faithful than",
    "questions.ipynb": "Mean advantage in",
    "several_runs.ipynb": "comparisons with the hardest control in 1 runs",
}
IN_EVERY_RUN = ("findings.ipynb", "questions.ipynb")  # the others compute, which takes longer


@pytest.mark.parametrize(
    "path",
    [p if p.name in IN_EVERY_RUN else pytest.param(p, marks=pytest.mark.slow) for p in NOTEBOOKS],
    ids=lambda p: p.name,
)
def test_notebooks_run_from_first_to_last_cell(path, run, monkeypatch):
    monkeypatch.setenv("CXR_RAY_RUN", str(Path(run).resolve()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the other process of the suite, which has the other core
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    done = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
    outputs = [o for c in done.cells if c.cell_type == "code" for o in c.outputs]
    printed = "".join(o.get("text", "") for o in outputs)
    assert SAID[path.name] in printed
    assert any("image/png" in o.get("data", {}) for o in outputs)

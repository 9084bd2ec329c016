"""What a run ends with: the answer in words and one path."""

from cxr_ray.run import outcome, progress, terminal
from tests.builders.runs import make_run


def test_a_run_ends_with_its_answer_and_one_path_and_quietly_with_nothing_else(tmp_path):
    out = make_run(tmp_path / "run")
    lines = terminal.summary(out)
    answer = list(outcome.answer_lines(out))
    assert lines[-len(answer) :] == answer
    assert answer[0].startswith("Grad-CAM on ")
    assert answer[-1] == f"Report: {out}/report.html"
    with progress.shown("Sweep", quiet=True):
        assert terminal.summary(out) == answer

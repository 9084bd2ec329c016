"""The answer in words claims no more than the intervals and the tests behind it."""

import itertools
from types import SimpleNamespace

import pandas as pd
import pytest

from cxr_ray.analysis import answers, primary
from cxr_ray.analysis.answers import claim, standing
from cxr_ray.analysis.beating import beaten
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.results import open_run
from tests.builders.runs import TRIAL, make_run

CLEAR = {"mean": 1.0, "lower": 0.5, "upper": 1.5, "mean_p_holm": 0.01}
WIDE = {"mean": 0.1, "lower": -0.5, "upper": 0.7, "mean_p_holm": 0.6}
BELOW = {"mean": -1.0, "lower": -1.5, "upper": -0.5, "mean_p_holm": 1.0}
WINS = {"win_rate": 0.7, "win_lower": 0.6, "win_upper": 0.8, "p_holm": 0.01}
EVEN = {"win_rate": 0.5, "win_lower": 0.4, "win_upper": 0.6, "p_holm": 0.6}
LOSES = {"win_rate": 0.3, "win_lower": 0.2, "win_upper": 0.4, "p_holm": 1.0}


def row(control, advantage=CLEAR, wins=WINS, n_patients=50):
    found = {"control": control, "n_patients": n_patients, **advantage, **wins}
    return {**found, "beaten": beaten(pd.DataFrame([found]))[0]}


def said(*rows):
    return claim(pd.DataFrame(list(rows)))


def test_beaten_and_open_controls_are_named_in_words():
    words = said(row("shifted"), row("other_image"), row("mean_map", WIDE, EVEN))
    assert words == (
        "more faithful than shifted maps and other patients' maps; not shown to be better than the average map"
    )


@pytest.mark.parametrize(
    ("advantage", "wins", "words"),
    [
        (CLEAR, EVEN, "more faithful on average than the average map, not shown to win more often than it loses"),
        (WIDE, WINS, "wins more often than it loses against the average map, not shown to be more faithful on average"),
        (BELOW, LOSES, "less faithful than the average map"),
        (BELOW, EVEN, "not shown to be better than the average map"),
        (WIDE, LOSES, "not shown to be better than the average map"),
        (
            BELOW,
            WINS,
            "wins more often than it loses against the average map, not shown to be more faithful on average",
        ),
    ],
)
def test_one_of_two_questions_is_never_called_both(advantage, wins, words):
    assert said(row("mean_map", advantage, wins)) == words


def test_more_faithful_takes_both_intervals_and_both_corrected_tests_and_less_faithful_both_intervals():
    """Over every combination of ends and p-values, against the words."""
    for (mean, win), p, mean_p in itertools.product(
        itertools.product((CLEAR, WIDE, BELOW), (WINS, EVEN, LOSES)), (0.01, 0.2), (0.01, 0.2)
    ):
        r = row("mean_map", {**mean, "mean_p_holm": mean_p}, {**win, "p_holm": p})
        place = standing(SimpleNamespace(**r))
        assert (place == "beaten") == (r["lower"] > 0 and r["win_lower"] > 0.5 and p < 0.05 and mean_p < 0.05)
        if place == "worse":
            assert r["upper"] < 0
            assert r["win_upper"] < 0.5


def test_weak_controls_alone_are_said_to_be_weak():
    assert said(row("cell_random")) == "more faithful than random cells; no strong control was measured"


def test_nothing_is_claimed_of_few_patients():
    none = {"mean": 1.0, "lower": float("nan"), "upper": float("nan"), "mean_p_holm": float("nan")}
    rows = [row(c, none, WINS, n_patients=9) for c in ("other_image", "mean_map")]
    assert said(*rows) == "not tested against any control (under 20 patients)"
    assert said(rows[0], row("mean_map", WIDE, EVEN)) == (
        "not shown to be better than the average map; not tested against other patients' maps (under 20 patients)"
    )


def test_without_controls_nothing_is_claimed():
    assert claim(pd.DataFrame()) == answers.UNMEASURED


def test_every_control_has_its_words():
    assert all(control.phrase for control in CONTROLS.values())


def test_a_run_has_one_sentence_for_each_model_and_explainer_the_primary_explainer_first(tmp_path):
    out = make_run(tmp_path / "run", strong=True, keep_maps=False)
    found = answers.of_run(open_run(out))
    assert [(a.trial_id, a.explainer) for a in found] == [(TRIAL, "gradcam"), (TRIAL, "occlusion")]
    assert found[1].sentence.startswith("Occlusion on plain: more faithful than ")
    for answer in found:  # the smallest mean advantage last
        assert answer.rows["mean"].is_monotonic_decreasing
        assert set(answer.rows["metric"]) == {primary.of_run(open_run(out)).metric}


def test_nothing_is_claimed_of_a_model_whose_classes_are_in_doubt(tmp_path):
    run = open_run(make_run(tmp_path / "run", strong=True, keep_maps=False))
    settings = primary.of_run(run)
    found = answers.answers(run.pandas("summary"), run.pandas("trials"), settings, ["gradcam"], [TRIAL])
    assert [a.claim for a in found] == [answers.UNSETTLED]

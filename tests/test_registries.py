"""A toy entry of a registry is found in all that reads the registry."""

import pytest

from cxr_ray.analysis.hypotheses.registry import TESTED, Hypothesis
from cxr_ray.analysis.hypotheses.rows import row
from cxr_ray.analysis.hypotheses.verdicts import hypothesis_rows
from cxr_ray.errors import UnknownNameError
from cxr_ray.schemas import HYPOTHESES
from tests.builders.hypotheses import inputs


@pytest.fixture
def toy_hypothesis(monkeypatch):
    """H9: an effect of 2 for every variant, judged from above a line of 1."""

    def rows(given, test, subject, n_boot):
        known = {"n_trials": 1, "n": 30, "n_patients": 30, "effect": 2.0, "lower": 1.5, "upper": 2.5, "p": 0.001}
        yield row("H9", subject, "toy", "teeth", **known)
        yield row("H9", subject, "secondary toy", "teeth", **known)

    entry = Hypothesis("Toy: is it there?", rows, per="variant", unit="teeth", margin=1.0, line=1.0)
    monkeypatch.setitem(TESTED, "H9", entry)


def test_a_hypothesis_is_judged_and_corrected_for_in_the_table(toy_hypothesis):
    table = HYPOTHESES.from_rows(hypothesis_rows(inputs(), n_boot=20)).to_pandas()
    judged, secondary = table[table["hypothesis"] == "H9"].to_dict("records")
    assert (judged["role"], judged["verdict"], judged["family_size"]) == ("verdict", "supported", 4)
    assert judged["family"].startswith("H1, H2, H3 and H9 | ")
    assert judged["p_holm"] == pytest.approx(0.004)
    assert "1 teeth (the margin)" in judged["reason"]
    assert secondary["role"] == "secondary"
    assert judged["margin"] == 1.0


def test_a_hypothesis_that_is_not_registered_is_an_error():
    with pytest.raises(UnknownNameError, match="got the hypothesis 'H0'"):
        TESTED["H0"]

"""Models that are one model under several names."""

import pandas as pd

from cxr_ray.analysis.agreement.twins import twin_rows, twins
from cxr_ray.schemas import AGREEMENT


def test_models_with_equal_log_odds_of_every_image_are_twins():
    logits = {"one": [1.0, 2.0], "other": [1.0, 2.5], "copy": [1.0, 2.0]}
    test = pd.DataFrame(
        [
            {"trial_id": name, "image_id": f"i{i}", "logit_pneumonia": value}
            for name, values in logits.items()
            for i, value in enumerate(values)
        ]
    )
    assert twins(test, list(logits)) == [["one", "copy"]]
    assert twins(test.sample(frac=1, random_state=0), list(logits)) == [["one", "copy"]]
    (row,) = twin_rows(test, list(logits))
    assert (row["a"], row["b"], row["value"], row["count"], row["n"]) == ("one", "copy", 1.0, 2, 2)
    assert len(AGREEMENT.from_rows([row])) == 1

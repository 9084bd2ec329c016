"""Rows of the table regions with effects that are known."""

import numpy as np
import pandas as pd


def marker_rows(n=30):
    """Marker filled with mean on n images, two draws of its control each; random log-odds, probability 0.75 to 0.5."""
    rng = np.random.default_rng(0)
    same = {"target": 1, "region": "marker", "fill": "mean", "share_of_area": 0.1, "prob_full_image": 0.75}
    rows = []
    for i in range(n):
        for control, draw in (("none", 0), ("matched", 0), ("matched", 1)):
            scores = {"prob_target": 0.5, "logit_target": rng.normal(), "logit_full_image": rng.normal()}
            rows.append({"image_id": f"i{i}", "control": control, "draw": draw, **same, **scores})
    return pd.DataFrame(rows)

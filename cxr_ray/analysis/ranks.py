"""Which explainer is the most faithful: paired comparisons of explainers, and confidence sets of their ranks.

The values compared are those of the metric itself, of the same images: what a control or the fully filled image adds is
in both and cancels. "A is more faithful than B" is said from these comparisons alone.

Shapes: N images; E explainers; K pairs of explainers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_ray.analysis.resampling import Floats, patient_codes, patient_sums, simultaneous_bootstrap
from cxr_ray.measure.metrics import METRICS

BUCKETS = {"all": ("TP", "FP", "TN", "FN"), "TP": ("TP",), "FP": ("FP",)}
METHOD = "paired bootstrap-t over patients, max-T over pairs"
RANK_METHOD = "rank confidence sets of all explainers at once, from max-T over pairs (Mogstad et al. 2024)"

Rows = list[dict[str, Any]]


def compare_explainers(
    values: pd.DataFrame, patients: pd.Series, explainers: Sequence[str], metric: str, seed: int, n_boot: int = 1000
) -> tuple[Rows, Rows]:
    """Rows of `comparisons` and of `ranks` for one model, target rule, grid and fill, without what is the same in all.

    Args:
        values: image_id, explainer, outcome and value (of the map itself), one row an image and explainer.
        patients: image_id to patient_id.
        explainers: the order of pairs; those without a value are left out.
        metric: of the values; where lower is more faithful, differences are turned, so that above 0 a is.
        seed: of the bootstrap.
        n_boot: bootstrap samples.

    Returns:
        For each bucket (all, TP, FP) with two explainers or more a row for each pair, and a row for each explainer.
    """
    comparisons: Rows = []
    ranks: Rows = []
    sign = 1.0 if METRICS[metric].higher_is_faithful else -1.0
    for bucket, outcomes in BUCKETS.items():
        part = values[values["outcome"].isin(outcomes)]
        wide = part.pivot(index="image_id", columns="explainer", values="value").sort_index()
        wide = wide[[e for e in explainers if e in wide and wide[e].notna().any()]]
        if len(wide.columns) < 2:
            continue
        patients_N = patients.reindex(wide.index).to_numpy(object)
        values_NE = sign * wide.to_numpy(np.float64)
        same = {"bucket": bucket, "metric": metric, "n_boot": n_boot}
        pairs = pair_rows(values_NE, list(wide.columns), patients_N, seed, n_boot)
        comparisons += [{**same, **row} for row in pairs]
        counts = {
            e: (int(known_N.sum()), len(set(patients_N[known_N])))
            for e, known_N in zip(wide.columns, wide.notna().to_numpy().T, strict=True)
        }
        ranks += [{**same, **row} for row in rank_rows(pairs, counts)]
    return comparisons, ranks


def pair_rows(
    values_NE: Floats, explainers: Sequence[str], patients_N: NDArray[Any], seed: int, n_boot: int = 1000
) -> Rows:
    """Differences of the mean value of each two explainers over the images that both have a value for.

    Args:
        values_NE: higher is more faithful; NaN: no value.
        explainers: names of the columns.
        patients_N: each image's patient.
        seed: of the bootstrap.
        n_boot: bootstrap samples.

    Returns:
        A row a pair: a, b, mean of a minus b, its simultaneous 95% interval, p (of this pair alone), p_max (corrected
        over the pairs), better (the explainer that is shown to be more faithful, or None) and counts.
    """
    pairs = list(itertools.combinations(range(len(explainers)), 2))
    first, second = np.array(pairs).T
    difference_NK = values_NE[:, first] - values_NE[:, second]
    lower_K, upper_K, p_K, p_max_K = simultaneous_bootstrap(difference_NK, patients_N, n_boot, seed=seed)
    sums_PK, counts_PK = patient_sums(difference_NK, *patient_codes(patients_N))
    n_K, n_patients_K = counts_PK.sum(0).astype(int), (counts_PK > 0).sum(0)
    rows = []
    for k, (i, j) in enumerate(pairs):
        a, b = explainers[i], explainers[j]
        rows.append(
            {
                "a": a,
                "b": b,
                "n": int(n_K[k]),
                "n_patients": int(n_patients_K[k]),
                "mean": float(sums_PK[:, k].sum() / n_K[k]) if n_K[k] else np.nan,
                "lower": float(lower_K[k]),
                "upper": float(upper_K[k]),
                "p": float(p_K[k]),
                "p_max": float(p_max_K[k]),
                "family_size": len(pairs),
                "better": a if lower_K[k] > 0 else b if upper_K[k] < 0 else None,
                "ci_method": METHOD,
            }
        )
    return rows


def rank_rows(pairs: Rows, counts: Mapping[str, tuple[int, int]]) -> Rows:
    """Confidence sets of ranks, 1 the most faithful, which hold all true ranks at once with 95% confidence.

    Mogstad, Romano, Shaikh & Wilhelm (2024): of E explainers one has a rank between 1 + the number of those shown to be
    better and E - the number of those shown to be worse. Without intervals (under 20 patients) all sets are 1 to E.

    Args:
        pairs: of ``pair_rows``, all pairs of the explainers.
        counts: explainer to (images, patients) with a value, in the order of the rows.
    """
    rows = []
    for explainer, (n, n_patients) in counts.items():
        own = [row for row in pairs if explainer in (row["a"], row["b"])]
        worse = sum(row["better"] == explainer for row in own)
        better = sum(row["better"] not in (None, explainer) for row in own)
        ahead = [row["mean"] if row["a"] == explainer else -row["mean"] for row in own]
        rows.append(
            {
                "explainer": explainer,
                "n": n,
                "n_patients": n_patients,
                "mean": float(np.sum(ahead)) / len(counts),
                "rank_lower": 1 + better,
                "rank_upper": len(counts) - worse,
                "n_explainers": len(counts),
                "ci_method": RANK_METHOD,
            }
        )
    return rows

"""Figure of the rank confidence sets of explainers."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from cxr_ray.report.figures.marks import colour, finish, panels, rows_axis
from cxr_ray.report.page import rows_of


def rank_sets(ranks: pd.DataFrame, buckets: Sequence[str], explainers: Sequence[str], title: str) -> Figure:
    """A panel a bucket, a row an explainer: the ranks that its confidence set holds, 1 the most faithful.

    Args:
        ranks: rows of the table in one setting.
        buckets: in the order of panels; the first gives the order of rows.
        explainers: in the order of colours.
        title: of the figure.
    """
    order = ranks[ranks["bucket"] == buckets[0]].sort_values("mean", ascending=False)["explainer"].tolist()
    figure, axes = panels(len(buckets), 3, 0.6 + 0.26 * len(order), 0.8, sharex=True, sharey=True)
    for ax, bucket in zip(axes, buckets, strict=True):
        rows_axis(ax, order)
        for r in rows_of(ranks[(ranks["bucket"] == bucket) & ranks["explainer"].isin(order)]):
            y, mark = order.index(r.explainer), colour(explainers.index(r.explainer))
            ax.plot([r.rank_lower, r.rank_upper], [y, y], color=mark, lw=4, solid_capstyle="round")
            ax.plot([r.rank_lower, r.rank_upper], [y, y], "o", color=mark, ms=6)
        ax.set_xlim(0.5, len(order) + 0.5)
        ax.set_xticks(range(1, len(order) + 1))
        ax.tick_params(labelbottom=True)
        n = ranks.loc[ranks["bucket"] == bucket, "n"].max()
        ax.set_title(f"{bucket}, {n} images", fontsize=9)
    label = "rank (left: more faithful); a line holds the ranks that the data allow"
    return finish(figure, title, label=label)

"""Figure of the rank confidence sets of explainers."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from cxr_ray.report.figures.axes import Axes
from cxr_ray.report.figures.layout import Figure
from cxr_ray.report.figures.marks import colour, grid_of
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
    axes = []
    for bucket in buckets:
        of_bucket = ranks[ranks["bucket"] == bucket]
        ax = Axes(title=f"{bucket}, {of_bucket['n'].max()} images", x_limits=(0.5, len(order) + 0.5))
        ax.rows(order)
        ax.x_ticks = [(float(i), str(i)) for i in range(1, len(order) + 1)]
        for r in rows_of(of_bucket[of_bucket["explainer"].isin(order)]):
            y, look = order.index(r.explainer), colour(explainers.index(r.explainer))
            ax.line([r.rank_lower, r.rank_upper], [y, y], look, width=4)
            ax.marks([r.rank_lower, r.rank_upper], [y, y], "o", look)
        axes.append(ax)
    label = "rank (left: more faithful); a line holds the ranks that the data allow"
    return grid_of(axes, 3, 12 + 25.0 * len(order), title=title, label=label, share_x=True, share_y=True)

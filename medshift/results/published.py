"""What 90_claims draws of the paper's own Table 1: its ranks, other aggregations, and random weights."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from medshift.metrics.ranking import aggregations, win_shares
from medshift.published import SOURCE, ranked_methods
from medshift.viz.ranking import fig_ranking

DRAWS = 20_000


def ranking_table(seed: int = 0) -> pd.DataFrame:
    """Every method of Table 1: the printed average rank, three aggregations, and how often it comes first."""
    methods = ranked_methods()
    found = aggregations(methods).rename(columns=lambda name: str(name).replace("_", " "))
    found.insert(0, "printed", methods["average_rank"])
    found["first under random weights"] = win_shares(methods, draws=DRAWS, seed=seed)
    return found.reset_index(names="method").sort_values("printed", kind="stable").reset_index(drop=True)


def ranking_figure(seed: int = 0) -> tuple[str, Figure]:
    """Caption and figure: how the order changes with the aggregation."""
    table = ranking_table(seed)
    footer = f"{len(table)} rows of {SOURCE}; shares over {DRAWS} random weightings"
    caption = f"Table 1 as printed under three aggregations of ranks, and shares of first places over {DRAWS} random "
    caption += f"weights of the five metrics; {len(table)} rows, printed numbers without intervals. {SOURCE}."
    return caption, fig_ranking(table, footer=footer)

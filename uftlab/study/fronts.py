"""The front of each method: what no other of its trials beats on two metrics at once.

A rule of tuning chooses one point. The front shows what a method can do under any rule that likes both metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

SKILL, TRUTH = "instruction/both", "truth/mc2"  # what the rule of the tuning adds up
LEVELS = (0.2, 0.3, 0.4, 0.5, 0.6)


def points(sweep: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per trained trial of a sweep: method, draw, its metrics, and whether it lies on its method's front.

    A front is of one method in one draw, because each draw has a world of its own.
    """
    rows = [{"method": t["method"], "draw": t["draw"], **t["metrics"]} for t in sweep if t["stages"]]
    frame = pd.DataFrame(rows)
    frame["front"] = False
    for _, own in frame.groupby(["method", "draw"]):
        frame.loc[own.index, "front"] = on_front(own[SKILL].to_numpy(), own[TRUTH].to_numpy())
    return frame


def on_front(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether each point is on the front: no other is at least as high on both and higher on one.

    Points (1, 3), (2, 2), (1, 2): the first two are.
    """
    above = (x[None] >= x[:, None]) & (y[None] >= y[:, None]) & ((x[None] > x[:, None]) | (y[None] > y[:, None]))
    return np.asarray(~above.any(axis=1))


def reached(frame: pd.DataFrame, levels: Sequence[float] = LEVELS) -> pd.DataFrame:
    """The most truth at each level of skill: the best among the trials of a method and draw that have at least as much.

    One row per method and level: `truth`, the mean over the draws that get there; `draws`, how many do.
    """
    rows = []
    for method, own in frame.groupby("method", sort=False):
        for level in levels:
            best = own[own[SKILL] >= level].groupby("draw")[TRUTH].max()
            rows.append({"method": method, SKILL: level, "truth": best.mean(), "draws": len(best)})
    return pd.DataFrame(rows)

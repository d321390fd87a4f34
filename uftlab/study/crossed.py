"""Every world with every tuning: the twelve primary tests again, after the planned result had been read.

The plan gives each world one tuning draw. So the interval of a contrast rests on four draws that no world shares, and
it cannot tell a draw from the worlds that have it. Here the methods of the primary contrasts are trained in each of
the sixteen worlds with the three draws that the world did not have. Together with the planned trials every world has
every draw: a two-way layout, in which the interval can tell worlds, draws and the rest apart.

The tests are the plan's twelve. When they were run again was not the plan's: the planned result had been read.

    python -m uftlab.study.crossed      trains 288 trials, stores data/results/crossed (half an hour on two cores)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from uftlab.study import comparisons
from uftlab.study.results import RESULTS, tidy
from uftlab.study.trials import DRAWS, PROFILES, Trial, draw_of, trial

STORED = RESULTS / "crossed"
WORLDS = range(16)
METHODS = tuple(dict.fromkeys(name for method, minus, _ in comparisons.PRIMARY for name in (method, minus)))


def trials() -> list[Trial]:
    """The methods of the primary contrasts in all worlds, each with the draws that its world did not have."""
    return [
        replace(trial(method, seed, PROFILES["class"], draw), curves=False)
        for seed in WORLDS
        for draw in range(DRAWS)
        for method in METHODS
        if draw != draw_of(method, seed)
    ]


def beside(study: Sequence[dict[str, Any]], added: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The added trials that belong to a study: of its worlds and profile, with draws that it does not have itself."""
    worlds = {(t["profile"], t["seed"]) for t in study}
    there = {(t["method"], t["seed"], t["draw"]) for t in study}
    return [
        t for t in added if (t["profile"], t["seed"]) in worlds and (t["method"], t["seed"], t["draw"]) not in there
    ]


def table(study: Sequence[dict[str, Any]], added: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """`results.tidy` of the methods of the primary contrasts: planned trials, and those `beside` them."""
    return tidy([t for t in (*study, *beside(study, added)) if t["method"] in METHODS])


def by_draw(frame: pd.DataFrame, method: str, minus: str, metric: str) -> list[float]:
    """The mean difference over the worlds of each draw, in the order of the draws.

    Differences of 0.1 and 0.3 under draw 0, and of 0.5 under draw 1: [0.2, 0.5].
    """
    own = frame[(frame["metric"] == metric) & frame["method"].isin([method, minus])]
    wide = own.pivot(index=["seed", "draw"], columns="method", values="value").dropna()
    return (wide[method] - wide[minus]).groupby("draw").mean().tolist()


def main() -> None:
    """Train what is missing; what is finished is not run again."""
    from uftlab.study.workers import run_trials

    for result in run_trials(trials(), STORED):
        print(result["method"], result["seed"], result["draw"], result["metrics"]["instruction/both"], flush=True)


if __name__ == "__main__":
    main()

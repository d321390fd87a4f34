"""What predicts forgetting? Stored trials, several candidates, each kind of forgetting.

A prediction is judged twice: by Spearman's rank correlation, and by R^2 on trials that the fit has not seen. Across
methods all trials count as they are; within methods the mean of the method is taken away first from both sides. A third
view compares only trials of equal skill, whatever their method: where trials that learn more also forget more, a
predictor that tells only how much was learned looks good without it. A fourth one compares only trials of equal
learning rate x steps, for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from uftlab.study.results import Interval, resampled_interval

# kind of forgetting -> (metric, where it is compared with: the base, stage one, or nothing; sign)
OUTCOMES: dict[str, tuple[str, str, float]] = {
    "old text": ("retention/lost", "", 1.0),
    "what careful sources say": ("truth/cued", "base", -1.0),
    "plain facts": ("plain/mc2", "base", -1.0),
    "instructions after stage one": ("instruction/strict", "stage one", -1.0),
}
PREDICTORS: tuple[str, ...] = (
    "kl/forward-old",
    "kl/forward-new",
    "kl/reverse-old",
    "kl/reverse-new",
    "drift/weights",
    "rate x steps",
    "share pushed down",
    "base log-probability of the rows",
)
FOLDS = 5
RAZOR = "kl/forward-new"  # what "RL's Razor" (arXiv 2509.04259) names
SKILL, BANDS = "instruction/both", 5
FEWEST = 10  # trials of a band


def table(trials: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per trained trial: predictors, and how much was forgotten of each kind (positive: forgotten).

    `rate x steps` adds up learning rate x optimiser steps of all stages. `share pushed down` and `base log-probability
    of the rows` (nats per token; higher is more on-policy) are means over stages weighted by steps. What a trial does
    not have is NaN. A loss is against the base of the same world, dials and creatures.
    """
    base = {_world(t): t["metrics"] for t in trials if not t["stages"]}
    rows = []
    for t in trials:
        if not t["stages"]:
            continue
        steps = [stage["steps"] for stage in t["stages"]]
        row: dict[str, Any] = {"method": t["method"], "seed": t["seed"], "group": f"{t['method']} {t['seed']}"}
        row[SKILL] = t["metrics"].get(SKILL, np.nan)
        row |= {name: t["metrics"].get(name, np.nan) for name in PREDICTORS if "/" in name}
        rates = [stage["settings"].get("learning_rate", np.nan) for stage in t["stages"]]
        row["rate x steps"] = round(float(np.dot(rates, steps)), 9)  # 0.8 is 0.8, whatever the order of the stages
        for name, stored in (("share pushed down", "pushed_down"), ("base log-probability of the rows", "base_logp")):
            row[name] = float(np.average([stage.get(stored, np.nan) for stage in t["stages"]], weights=steps))
        stage_one = t["stages"][0].get("metrics", {}) if len(steps) > 1 else {}
        before = {"base": base.get(_world(t), {}), "stage one": stage_one}
        for outcome, (metric, against, sign) in OUTCOMES.items():
            start = before[against].get(metric, np.nan) if against else 0.0
            row[outcome] = sign * (t["metrics"].get(metric, np.nan) - start)
        rows.append(row)
    return pd.DataFrame(rows)


def _world(trial: dict[str, Any]) -> tuple:
    """What a trial shares with its base."""
    return trial["profile"], trial["seed"], trial["split"], tuple(sorted(trial["dials"].items()))


def predictions(frame: pd.DataFrame) -> pd.DataFrame:
    """How well each predictor foretells each kind of forgetting, across and within methods.

    Columns: outcome, predictor, where ("across methods", "within methods"), trials, rho (Spearman), r2
    (`cross_validated`). Rows with a missing value are left out; fewer than ten, or a constant, give NaN.
    """
    rows = []
    for outcome in OUTCOMES:
        for predictor in PREDICTORS:
            own = frame[["method", "group", predictor, outcome]].dropna()
            ranks = own[[predictor, outcome]].rank() / max(1, len(own))
            centred = ranks - ranks.groupby(own["method"]).transform("mean")
            for where, values in (("across methods", ranks), ("within methods", centred)):
                x, y = values[predictor].to_numpy(), values[outcome].to_numpy()
                found = {"outcome": outcome, "predictor": predictor, "where": where, "trials": len(own)}
                enough = len(own) >= 10 and np.ptp(x) > 0 and np.ptp(y) > 0
                rho = float(stats.spearmanr(x, y).statistic) if enough else np.nan
                r2 = cross_validated(x, y, own["group"].to_numpy()) if enough else np.nan
                rows.append({**found, "rho": rho, "r2": r2})
    return pd.DataFrame(rows)


def skill_bands(frame: pd.DataFrame) -> np.ndarray:
    """The number of each trial's band of skill: ordered by `SKILL`, cut into `BANDS` bands of equal number."""
    order = frame[SKILL].argsort(kind="stable").to_numpy()
    bands = np.empty(len(frame), dtype=int)
    bands[order] = np.arange(len(frame)) * BANDS // max(1, len(frame))
    return bands


def rate_bands(frame: pd.DataFrame) -> np.ndarray:
    """The number of each trial's band of rate: trials with the same learning rate x steps."""
    return np.unique(frame["rate x steps"], return_inverse=True)[1]


Bands = Callable[[pd.DataFrame], np.ndarray]


def at_equal_skill(frame: pd.DataFrame) -> pd.DataFrame:
    """`at_equal` in `skill_bands`: does a predictor tell more than who learned more?"""
    return at_equal(frame, skill_bands)


def at_equal_rate(frame: pd.DataFrame) -> pd.DataFrame:
    """`at_equal` in `rate_bands`: does a predictor tell more than who was trained faster or longer?

    This view was added after the others had been read. `rate x steps` itself is constant there: NaN.
    """
    return at_equal(frame, rate_bands)


def at_equal(frame: pd.DataFrame, bands: Bands) -> pd.DataFrame:
    """How well each predictor ranks what is forgotten among trials of one band, over all methods.

    Ranks are taken within a band, minus their mean, over its number of trials; rho is the correlation of these ranks
    over all bands, which is Spearman's where there is one band. The interval resamples groups, a method in a world each
    (`results.resampled_interval`). Bands with fewer than ten trials are left out.

    Columns: outcome, predictor, trials, rho, low, high. NaN without a band, or for a constant.
    """
    rows = []
    for outcome in OUTCOMES:
        for predictor in PREDICTORS:
            (x, y), kept = ranks_within(frame, [predictor, outcome], bands)
            found = {"outcome": outcome, "predictor": predictor, "trials": len(x)}
            if len(x) == 0 or np.ptp(x) == 0 or np.ptp(y) == 0:
                rows.append({**found, "rho": np.nan, "low": np.nan, "high": np.nan})
                continue
            rho = resampled_interval(partial(correlation, x, y), kept["group"].to_numpy())
            rows.append({**found, "rho": rho.mean, "low": rho.low, "high": rho.high})
    return pd.DataFrame(rows)


def ahead(frame: pd.DataFrame, predictor: str, rival: str, outcome: str, bands: Bands) -> Interval:
    """rho of one predictor minus rho of another, on the same trials and in the same bands; see `at_equal`.

    Above 0: the first ranks better what is forgotten. Both are read in every resample, so what they share cancels.
    """
    (x, other, y), kept = ranks_within(frame, [predictor, rival, outcome], bands)
    return resampled_interval(
        lambda rows: correlation(x, y, rows) - correlation(other, y, rows), kept["group"].to_numpy()
    )


def ranks_within(frame: pd.DataFrame, names: list[str], bands: Bands) -> tuple[np.ndarray, pd.DataFrame]:
    """Ranks of some columns within bands, minus their mean there: a row per column; and the trials they belong to.

    Bands with fewer than `FEWEST` trials are left out, and so are trials with a missing value.
    """
    own = frame.dropna(subset=[*names, SKILL, "rate x steps"])
    band = bands(own)
    many = np.bincount(band, minlength=1)[band] >= FEWEST
    own, band = own[many], band[many]
    ranks = own[names].groupby(band).rank(pct=True)
    return (ranks - ranks.groupby(band).transform("mean")).to_numpy().T, own


def correlation(x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> float:
    """Pearson's over some rows, NaN for a constant."""
    x, y = x[rows] - x[rows].mean(), y[rows] - y[rows].mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else float("nan")


def cross_validated(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> float:
    """R^2 of a line on rows whose group it has not seen: 1 - sum (y - fit)^2 / sum (y - mean)^2, in `FOLDS` parts.

    Fit and mean are those of the other parts. 0: no better than the mean; below 0: worse. Groups (a method in a world)
    stay whole, because their trials resemble each other. NaN with fewer groups than parts.
    """
    names, number = np.unique(groups, return_inverse=True)
    if len(names) < FOLDS:
        return float("nan")
    part = np.random.default_rng(0).permutation(len(names))[number] % FOLDS
    missed = of_mean = 0.0
    for fold in range(FOLDS):
        seen, held = part != fold, part == fold
        if np.ptp(x[seen]) == 0:
            return float("nan")
        slope, start = np.polyfit(x[seen], y[seen], 1)
        missed += float(((y[held] - start - slope * x[held]) ** 2).sum())
        of_mean += float(((y[held] - y[seen].mean()) ** 2).sum())
    return 1 - missed / of_mean if of_mean > 0 else float("nan")

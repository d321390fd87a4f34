"""Stored trials -> tidy frame -> intervals over worlds and tuning draws.

Nothing here trains or draws: notebooks, the report and `uftlab results` all read the same files through it.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from uftlab.errors import InputError
from uftlab.files import DATA
from uftlab.study.trials import PROFILES, read_trial

RESULTS = DATA / "results"

# metric -> (what a reader calls it, unit, whether more is better; None: neither)
HEADLINES: dict[str, tuple[str, str, bool | None]] = {
    "instruction/both": ("followed and correct", "share", True),
    "truth/knowledge": ("truth above distrust", "probability", True),
    "truth/cued": ("truth, asked for careful sources", "probability", True),
    "instruction/strict": ("instructions followed", "share", True),
    "truth/mc2": ("truth on contested facts", "probability", True),
    "plain/mc2": ("plain facts", "probability", True),
    "retention/lost": ("old text lost", "nats per token", False),
    "length/words": ("length of an answer", "words", None),
}
PIPELINES = ("sft-then-dpo", "sft-then-kto", "sft-then-una", "replay")

COSTS = {  # metric -> (what the trial file calls it, what a reader does)
    "cost/completions": ("completions", "completions back-propagated"),
    "cost/extra-forwards": ("extra_forwards", "extra forward passes"),
    "cost/sampled": ("sampled", "completions sampled"),
    "cost/extra-runs": ("extra_runs", "completions back-propagated in other runs"),
    "cost/seconds": ("wall_seconds", "seconds on one core"),
}


@dataclass(frozen=True)
class Interval:
    """A mean over seeds (or clusters) with its 95 % interval; low and high are None for a single one."""

    mean: float
    low: float | None
    high: float | None
    seeds: int
    p: float | None = None  # of a mean of 0, two-sided, not corrected

    @property
    def verdict(self) -> str:
        """higher, lower, or not settled: the interval of a difference includes 0 or cannot be computed."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "not settled"
        return "higher" if self.mean > 0 else "lower"

    def told(self, form: str = "+.2f") -> str:
        """The mean with its interval, each number in the given form; the mean alone where there is no interval.

        >>> Interval(0.31, 0.16, 0.45, 16).told()
        '+0.31 (+0.16 to +0.45)'
        """
        ends = "" if self.low is None else f" ({self.low:{form}} to {self.high:{form}})"
        return f"{self.mean:{form}}{ends}"


def interval(
    values: Sequence[float] | np.ndarray, level: float = 0.95, clusters: Sequence[Any] | np.ndarray | None = None
) -> Interval:
    """Mean and Student t interval over seeds, the values being one per seed; or over clusters of values.

    Percentile bootstraps under-cover at three to five seeds. Values 1, 2, 3: 2 with [-0.484, 4.484].

    Args:
        clusters: which values belong together. Rows about one creature are not independent, so their residuals are
            added up first: variance of the mean = G / (G - 1) * sum over clusters of (sum of residuals)^2 / n^2, with
            G clusters and n values (Liang and Zeger 1986), and G - 1 degrees of freedom.

    Raises:
        InputError: for an empty list.
    """
    if not len(values):
        raise InputError("An interval", "have at least one value", "none", "Run more seeds")
    mean = float(sum(values) / len(values))
    own = np.arange(len(values)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    count = int(own.max()) + 1
    if count == 1:
        return Interval(mean, None, None, 1)
    error = math.sqrt(_clustered(np.asarray(values, dtype=float) - mean, own))
    spread = error * float(stats.t.ppf(0.5 + level / 2, count - 1))
    p = float(2 * stats.t.sf(abs(mean) / error, count - 1)) if error > 0 else float(mean == 0)
    return Interval(mean, mean - spread, mean + spread, count, p)


def crossed_interval(
    values: Sequence[float] | np.ndarray,
    worlds: Sequence[Any] | np.ndarray,
    draws: Sequence[Any] | np.ndarray,
    level: float = 0.95,
) -> Interval:
    """The mean of values that share worlds and tuning draws, with Student's t interval and p value against 0.

    value = mean + effect of the world + effect of the draw + rest, all random. With n values,

    V_world = variance of the mean if only worlds were clusters, V_draw if only draws were, and V_rest = MS_rest / n,
    V = max(V_world + V_draw - V_rest, V_world, V_draw)

    Where every world has every draw, these are the mean squares of a two-way layout: V_world = MS_world / (W K), V_draw
    = MS_draw / (W K), and the sum is unbiased; its degrees of freedom are Satterthwaite's. Where every world has
    one draw, the rest cannot be told from the world: V_rest = V_world, and V = max(V_world, V_draw), with W - 1 or
    K - 1 degrees of freedom. The maximum keeps V from falling below what either source alone would give; it makes the
    interval a little too wide where tuning has no variance. Draws count only where there are at least two.

    Raises:
        InputError: for no values, or labels of another number.
    """
    y = np.asarray(values, dtype=float)
    if not len(y) or not len(y) == len(worlds) == len(draws):
        got = f"{len(y)} values, {len(worlds)} worlds, {len(draws)} draws"
        raise InputError("Values with their worlds and draws", "be equally many, at least one", got, "Run more seeds")
    world, draw = (np.unique(np.asarray(own), return_inverse=True)[1] for own in (worlds, draws))
    mean, count = float(y.mean()), int(world.max()) + 1
    if count < 2:
        return Interval(mean, None, None, count)
    of_world, of_draw = _clustered(y - mean, world), _clustered(y - mean, draw)
    terms = [(of_world, count - 1.0), (of_draw, float(draw.max()))]
    if len(y) > count and draw.max() > 0:
        both = np.concatenate([np.eye(count)[world], np.eye(int(draw.max()) + 1)[draw]], axis=1)
        freedom = len(y) - int(np.linalg.matrix_rank(both))
        if freedom > 0:
            rest = float(((y - both @ np.linalg.lstsq(both, y, rcond=None)[0]) ** 2).sum()) / freedom / len(y)
            total = of_world + of_draw - rest
            parts = of_world**2 / (count - 1) + of_draw**2 / draw.max() + rest**2 / freedom
            if total > 0:
                terms.append((total, total**2 / parts))
    variance, freedom_of = max(terms, key=lambda term: term[0])
    if variance <= 0:
        return Interval(mean, mean, mean, count, 1.0 if mean == 0 else 0.0)
    error = math.sqrt(variance)
    spread = error * float(stats.t.ppf(0.5 + level / 2, freedom_of))
    return Interval(mean, mean - spread, mean + spread, count, float(2 * stats.t.sf(abs(mean) / error, freedom_of)))


def _clustered(residuals: np.ndarray, clusters: np.ndarray) -> float:
    """Variance of the mean with clusters: G / (G - 1) * sum of (sum of residuals)^2 / n^2; 0 for a single cluster."""
    sums = np.bincount(clusters, weights=residuals)
    count = len(sums)
    return 0.0 if count < 2 else count / (count - 1) * float((sums**2).sum()) / len(residuals) ** 2


def resampled_interval(
    statistic: Callable[[np.ndarray], float], clusters: Sequence[Any] | np.ndarray, draws: int = 300
) -> Interval:
    """Any statistic of rows with a percentile interval over resampled clusters: a cluster brings all its rows along.

    For a statistic that is not a mean; for means `interval` is sharper. Cluster bootstrap, Cameron and Miller 2015;
    fixed seed.

    Args:
        statistic: positions of rows, some of them several times -> a number.
    """
    names = np.asarray(clusters)
    rows_of = [np.flatnonzero(names == cluster) for cluster in np.unique(names)]
    picks = np.random.default_rng(0).integers(len(rows_of), size=(draws, len(rows_of)))
    values = [statistic(np.concatenate([rows_of[i] for i in pick])) for pick in picks]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return Interval(float(statistic(np.arange(len(names)))), float(low), float(high), len(rows_of))


def load(folder: Path) -> list[dict[str, Any]]:
    """All trials of a results folder, by method and seed.

    Raises:
        InputError: when there are none, or one that is not whole or of another version.
    """
    return [trial for _, trial in _stored(folder)]


def _stored(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    collects = gc.isenabled()
    gc.disable()  # trials hold no cycles; looking for them again and again takes a third of the time
    try:
        found = [(path, read_trial(path)) for path in sorted(Path(folder).glob("trials/*.json"), key=str)]
    finally:
        if collects:
            gc.enable()
    if not found:
        raise InputError("A results folder", "hold trials", f"none in {folder}", "Run `uftlab run --out` first")
    return sorted(found, key=lambda own: (own[1]["method"], own[1]["seed"]))


def load_study(folder: Path, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """The trials of a folder as one study: one of each method, seed and tuning draw, all of one profile.

    After a new tuning a folder may hold two trials of a method and seed with other settings. Then the newest one
    counts, and `say` gets a line with the names of both files. No seed counts twice.

    Raises:
        InputError: for a tuning or a map, which vary the settings on purpose; for profiles that differ; for a headline
            metric that some of the trials lack, because their seeds would leave the comparisons unseen.
    """
    found = _stored(folder)
    what = f"The study {folder}"
    kinds = sorted({f"{t['profile']} on {t['split']} creatures" for _, t in found})
    if len(kinds) > 1:
        remedy = "Keep each profile in a folder of its own"
        raise InputError(what, "have one profile", f"{len(kinds)}: {', '.join(kinds)[:120]}", remedy)
    kept: dict[tuple, tuple[Path, dict[str, Any]]] = {}
    for path, trial in found:
        place = trial["method"], trial["seed"], trial["draw"]
        other = kept.get(place)
        if other is not None:
            both = f"{other[0].name} and {path.name}"
            times = [own.get("measured", "") for own in (other[1], trial)]
            if trial["profile"] not in PROFILES or "" in times or times[0] == times[1]:
                rule = "hold one trial of each method, seed and tuning draw"
                remedy = "Delete one of them; a tuning or a map, which holds many, is read by `uftlab forgetting`"
                raise InputError(what, rule, both, remedy)
            if times[1] < times[0]:
                path, trial = other
            say(f"of {both} the newest counts: {path.name}")
        kept[place] = path, trial
    for metric in HEADLINES:
        lacking = [path for path, trial in kept.values() if metric not in trial["metrics"]]
        if 0 < len(lacking) < len(kept):
            remedy = "Delete the file and run the study again, so that no seed is left out of a comparison"
            raise InputError(f"{lacking[0]}", f"have {metric}, as others of the study have", "none", remedy)
    return [trial for _, trial in kept.values()]


def at_stage_end(stage: int, metric: str) -> str:
    """What `tidy` calls a metric at the end of a stage that is not the last."""
    return f"stage-{stage}/{metric}"


def tidy(trials: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per method, seed, tuning draw and metric: the columns of results.csv.

    Metrics at the end of earlier stages are there under the names of `at_stage_end`.
    """
    rows = []
    for t in trials:
        metrics = dict(t["metrics"])
        # a trial of before the recipes has no samples and no other runs to tell of
        metrics |= {name: t[stored] for name, (stored, _) in COSTS.items() if stored in t}
        for number, stage in enumerate(t.get("stages", []), start=1):
            metrics |= {at_stage_end(number, name): value for name, value in stage.get("metrics", {}).items()}
        place = {"method": t["method"], "seed": t["seed"], "draw": t.get("draw", 0)}
        rows += [{**place, "metric": name, "value": float(value)} for name, value in metrics.items()]
    return pd.DataFrame(rows)


def curves(trials: list[dict[str, Any]]) -> pd.DataFrame:
    """Learning curves: one row per method, seed, stage, step and metric."""
    rows = []
    for t in trials:
        for point in t["curves"]:
            for name, value in point.items():
                if name not in ("stage", "step"):
                    place = {"method": t["method"], "seed": t["seed"], "draw": t.get("draw", 0)}
                    place |= {"stage": point["stage"], "step": point["step"]}
                    rows.append({**place, "metric": name, "value": value})
    return pd.DataFrame(rows, columns=["method", "seed", "draw", "stage", "step", "metric", "value"])


def curve_summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval over seeds of every point of `curves`."""
    return _intervals(frame, ["method", "metric", "step"])


def sweep_points(trials: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per trial of a sweep: its method, its settings in words and its metrics."""
    return pd.DataFrame(
        [
            {
                "method": t["method"],
                "settings": ", ".join(f"{k} {v:g}" for k, v in t["settings"].items()),
                "learning_rate": t["settings"].get("learning_rate"),
                **t["metrics"],
            }
            for t in trials
        ]
    )


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval of every method and metric over its seeds."""
    return _intervals(frame, ["method", "metric"])


def _intervals(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    made = []
    for at, own in frame.groupby(by, sort=False):
        found = asdict(crossed_interval(own["value"].to_numpy(), own["seed"].to_numpy(), own["draw"].to_numpy()))
        del found["p"]  # that a metric is 0 is no question
        made.append(dict(zip(by, at, strict=True)) | found)
    return pd.DataFrame(made)


def results_folder(study: str) -> Path:
    """A stored study by name (a folder of data/results) or by path.

    Raises:
        InputError: when there is no such study; the message lists those there are.
    """
    for candidate in (RESULTS / study, Path(study)):
        if (candidate / "trials").is_dir():
            return candidate
    have = ", ".join(sorted(p.name for p in RESULTS.glob("*") if (p / "trials").is_dir())) or "none"
    raise InputError("A study", f"be a folder with trials or one of ({have})", study, "Run `uftlab run` first")

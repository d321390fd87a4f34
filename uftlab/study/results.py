"""Stored trials -> tidy frame -> intervals, the comparisons named beforehand, and sentences made from them.

Nothing here trains or draws: notebooks, the report and `uftlab results` all read the same files through it.
"""

from __future__ import annotations

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
from uftlab.study.trials import read_trial

RESULTS = DATA / "results"

# metric -> (what a reader calls it, unit, whether more is better; None: neither)
HEADLINES: dict[str, tuple[str, str, bool | None]] = {
    "instruction/strict": ("instructions followed", "share", True),
    "instruction/both": ("followed and correct", "share", True),
    "truth/mc2": ("truth despite the myth", "probability", True),
    "truth/free": ("truth, freely answered", "share", True),
    "plain/mc1": ("plain facts", "share", True),
    "retention/excess": ("pre-training text forgotten", "nats per token", False),
    "length/words": ("length of an answer", "words", None),
    "balance": ("balance: the weaker of instructions and truth", "share of ceiling", True),
}
PIPELINES = {"sft-then-dpo": "sft", "sft-then-kto": "sft", "sft-then-una": "sft", "replay": "sft"}

# Named before anything was run: (method, minus which, why). Each is made on every headline metric.
COMPARISONS: tuple[tuple[str, str, str], ...] = (
    ("sft-then-dpo", "sft", "what stage two takes away: against its own stage-one checkpoint"),
    ("sft-then-kto", "sft", "what stage two takes away"),
    ("sft-then-una", "sft", "what stage two takes away"),
    ("replay", "sft", "what stage two takes away when demonstrations are kept"),
    ("uft", "sft-then-dpo", "the paper's claim: one stage beats two"),
    ("uft", "sft-then-kto", "the paper's claim"),
    ("uft", "sft-then-una", "the paper's claim, same alignment loss"),
    ("uft-demonstrations", "sft-full", "the paper's claim on demonstrations alone"),
    ("uft-demonstrations", "sft-sum", "the same, against SFT on sums, as UFT sums"),
    ("sft-plus-dpo", "sft-then-dpo", "mixing, with separate losses"),
    ("uft", "uft-then-una", "mixing, with the unified loss"),
    ("uft", "sft-plus-dpo", "the unified loss, when both mix"),
    ("uft-then-una", "sft-then-dpo", "the unified loss, when neither mixes"),
    ("replay", "sft-then-dpo", "rehearsal"),
    ("uft-cross-entropy", "uft", "cross-entropy for squared error"),
    ("uft-binary", "uft", "labels for scores"),
    ("uft-cross-entropy", "sft-plus-dpo", "the unified loss with cross-entropy, when both mix"),
)

# What came out, in short: comparison and metric of each sentence in the README, in its order.
IN_SHORT: tuple[tuple[str, str], ...] = (
    ("sft-then-dpo minus sft", "instruction/strict"),
    ("sft-then-dpo minus sft", "truth/mc2"),
    ("uft minus sft-then-dpo", "truth/mc2"),
    ("uft minus sft-then-dpo", "instruction/strict"),
    ("uft minus sft-plus-dpo", "instruction/strict"),
    ("uft minus sft-plus-dpo", "truth/mc2"),
    ("uft-then-una minus sft-then-dpo", "truth/mc2"),
    ("sft-plus-dpo minus sft-then-dpo", "instruction/strict"),
    ("uft minus uft-then-una", "instruction/strict"),
    ("uft minus uft-then-una", "truth/mc2"),
    ("sft-plus-dpo minus sft-then-dpo", "truth/mc2"),
    ("sft-plus-dpo minus sft-then-dpo", "retention/excess"),
    ("uft minus sft-plus-dpo", "retention/excess"),
)

# Of the 2 x 2, beside the comparisons above: the name that the stored summaries carry, and what a table calls it.
INTERACTION_OF = ("mixing under uft", "mixing under sft and dpo", "interaction of the 2 x 2")
INTERACTION = "mixing under uft minus mixing under sft and dpo"
_INTERACTION_IN_WORDS = "what mixing adds: unified loss minus separate losses"
_SIZES = {"higher": "larger", "lower": "smaller", "not settled": "not settled"}

# The same for the study "pipelines", named before it was run; the methods above that it needs are part of it.
_TAKES = "what stage two takes away: against its own stage-one checkpoint"
PIPELINE_COMPARISONS: tuple[tuple[str, str, str], ...] = (
    *((name, "sft", _TAKES) for name in ("sdpo", "rs-dpo", "una-online", "una-online-rollout", "rloo")),
    ("sdpo", "sft-then-dpo", "a reference that moves along"),
    ("rs-dpo", "sft-then-dpo", "pairs of its own samples for the table's"),
    ("alright", "sft-then-dpo", "alternation for sequence"),
    ("maxright", "sft-then-dpo", "alternation for sequence"),
    ("paft", "sft-then-dpo", "merging for sequence"),
    ("alright", "sft-plus-dpo", "alternation for both losses in each step"),
    (
        "maxright",
        "alright",
        "the loss that is further from its optimum, not a random one; three times the training",
    ),
    ("paft", "sft-plus-dpo", "merging for mixing"),
    ("paft-ties", "paft", "TIES for task arithmetic"),
    ("una-online", "sft-then-una", "its own samples for the table's, same loss"),
    ("una-online-rollout", "una-online", "the ratio of the authors' script for the paper's"),
    ("uft-online", "uft", "its own samples for the table's"),
    ("uft-online", "una-online", "mixing, when both sample"),
    ("rloo", "una-online", "policy gradient for regression on scores"),
    ("rloo", "sft-then-dpo", "policy gradient on samples for DPO on pairs"),
    *((name, "uft", "against the paper's method") for name in ("sdpo", "alright", "maxright", "paft", "paft-ties")),
    *((name, "uft", "against the paper's method") for name in ("rs-dpo", "una-online", "rloo")),
    *((name, "sft-plus-dpo", "against the plain mixture") for name in ("sdpo", "maxright", "rs-dpo", "uft-online")),
)
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

    @property
    def verdict(self) -> str:
        """higher, lower, or not settled: the interval of a difference includes 0 or cannot be computed."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "not settled"
        return "higher" if self.mean > 0 else "lower"


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
    mean, n = float(sum(values) / len(values)), len(values)
    residuals = np.asarray(values, dtype=float) - mean
    if clusters is not None:
        number = np.unique(np.asarray(clusters), return_inverse=True)[1]
        residuals = np.bincount(number, weights=residuals).astype(float)
    count = len(residuals)
    if count == 1:
        return Interval(mean, None, None, 1)
    error = math.sqrt(count / (count - 1) * float((residuals**2).sum())) / n
    spread = error * float(stats.t.ppf(0.5 + level / 2, count - 1))
    return Interval(mean, mean - spread, mean + spread, count)


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
    trials = [read_trial(path) for path in sorted(Path(folder).glob("trials/*.json"))]
    if not trials:
        raise InputError("A results folder", "hold trials", f"none in {folder}", "Run `uftlab run --out` first")
    return sorted(trials, key=lambda t: (t["method"], t["seed"]))


def tidy(trials: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per method, seed and metric: the columns of results.csv.

    `balance` is added: the smaller of instruction/strict and truth/mc2, each over its ceiling (1, and what the
    base model answers when the question asks for careful sources): the rule by which settings were chosen.
    """
    knows = {t["seed"]: t["metrics"]["truth/cued"] for t in trials if t["method"] == "base"}
    rows = []
    for t in trials:
        metrics = dict(t["metrics"])
        if t["seed"] in knows:
            metrics["balance"] = balance(metrics, knows[t["seed"]])
        # a trial of before the recipes has no samples and no other runs to tell of
        metrics |= {name: t[stored] for name, (stored, _) in COSTS.items() if stored in t}
        rows += [
            {"method": t["method"], "seed": t["seed"], "metric": name, "value": float(value)}
            for name, value in metrics.items()
        ]
    return pd.DataFrame(rows)


def balance(metrics: dict[str, float], truth_ceiling: float) -> float:
    """The tuning rule: min(instruction/strict / 1, truth/mc2 / what the base knows)."""
    return min(metrics["instruction/strict"], metrics["truth/mc2"] / truth_ceiling)


def curves(trials: list[dict[str, Any]]) -> pd.DataFrame:
    """Learning curves: one row per method, seed, stage, step and metric."""
    rows = []
    for t in trials:
        for point in t["curves"]:
            for name, value in point.items():
                if name not in ("stage", "step"):
                    place = {"method": t["method"], "seed": t["seed"], "stage": point["stage"], "step": point["step"]}
                    rows.append({**place, "metric": name, "value": value})
    return pd.DataFrame(rows, columns=["method", "seed", "stage", "step", "metric", "value"])


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


def matched(sweep: pd.DataFrame, thresholds: tuple[float, ...], at: str = "truth/mc2") -> pd.DataFrame:
    """Best instruction/strict of each method among its trials that reach each threshold of truthfulness.

    NaN where no trial does. One world and a maximum over twelve trials: a description, not a test.
    """
    best = {
        f"{at.split('/')[0]} ≥ {bound:g}": sweep[sweep[at] >= bound].groupby("method")["instruction/strict"].max()
        for bound in thresholds
    }
    return pd.DataFrame(best).reindex(list(dict.fromkeys(sweep["method"])))


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval of every method and metric over its seeds."""
    return _intervals(frame, ["method", "metric"])


def _intervals(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    groups = frame.groupby(by, sort=False)["value"]
    return pd.DataFrame([dict(zip(by, at, strict=True)) | asdict(interval(own.tolist())) for at, own in groups])


def difference(frame: pd.DataFrame, method: str, minus: str, metric: str) -> Interval | None:
    """Paired over the seeds that both methods have; None when there is none."""
    return _paired(frame, metric, {method: 1, minus: -1})


def interaction(frame: pd.DataFrame, metric: str) -> Interval | None:
    """Of the 2 x 2: what mixing adds under the unified loss minus what it adds under separate losses."""
    return _paired(frame, metric, {"uft": 1, "uft-then-una": -1, "sft-plus-dpo": -1, "sft-then-dpo": 1})


def _paired(frame: pd.DataFrame, metric: str, signs: dict[str, int]) -> Interval | None:
    """Sum of signed methods within each seed that has them all, then the interval over seeds."""
    wide = frame[frame["metric"] == metric].pivot(index="seed", columns="method", values="value")
    if not set(signs) <= set(wide):
        return None
    values = sum(sign * wide[method] for method, sign in signs.items()).dropna().tolist()  # type: ignore[union-attr]
    return interval(values) if values else None


def compare(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Every named comparison on every headline metric: what `uftlab results --json` prints."""
    rows = []
    for method, minus, why in (*COMPARISONS, INTERACTION_OF, *PIPELINE_COMPARISONS):
        name = f"{method} minus {minus}"
        for metric in HEADLINES:
            same = name == INTERACTION
            found = interaction(frame, metric) if same else difference(frame, method, minus, metric)
            if found is not None:
                row = {"comparison": name, "metric": metric, **asdict(found), "verdict": found.verdict, "why": why}
                rows.append(row)
    return rows


def comparison_table(
    frame: pd.DataFrame, metrics: tuple[str, ...], comparisons: tuple[str, ...] | None = None
) -> pd.DataFrame:
    """The named comparisons as rows, metrics as columns: mean difference, 95 % interval and verdict in each cell.

    `comparisons` chooses rows by the names that `compare` gives and orders them; without it all are shown. A cell
    is for instance "+0.04 [0.02, 0.07] higher"; one without a common seed is empty.

    Raises:
        InputError: for a comparison that was not named beforehand or that the frame cannot make.
    """
    rows = {(row["comparison"], row["metric"]): row for row in compare(frame)}
    names = list(dict.fromkeys(name for name, _ in rows))
    wanted = names if comparisons is None else list(comparisons)
    for name in wanted:
        if name not in names:
            raise InputError("A comparison", "be one of those that were named and run", name, f"Have: {names}")
    cells = {
        f"{HEADLINES[metric][0].split(':')[0]} ({HEADLINES[metric][1]})": [
            _difference_in_words(rows.get((n, metric))) for n in wanted
        ]
        for metric in metrics
    }
    return pd.DataFrame(cells, index=[_INTERACTION_IN_WORDS if n == INTERACTION else n for n in wanted])


def _difference_in_words(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    mean = _digits(row["mean"], "+")
    if row["low"] is None:
        return f"{mean} (one seed) not settled"
    verdict = _SIZES[row["verdict"]] if row["comparison"] == INTERACTION else row["verdict"]
    return f"{mean} [{_digits(row['low'])}, {_digits(row['high'])}] {verdict}"


def sentence(row: dict[str, Any]) -> str:
    """One comparison in words, from its numbers alone.

    >>> sentence({"comparison": "a minus b", "metric": "truth/mc2", "mean": 0.2, "low": 0.1, "high": 0.3,
    ...           "seeds": 5, "verdict": "higher"})
    'truth despite the myth: a is higher than b (+0.20, 95 % interval 0.10 to 0.30, 5 seeds).'
    """
    label = HEADLINES[row["metric"]][0]
    mean = _digits(row["mean"], "+")
    first, second = row["comparison"].split(" minus ")
    if row["low"] is None:
        return f"{label}: {first} minus {second} is {mean} (one seed, no interval, nothing settled)."
    numbers = f"{mean}, 95 % interval {_digits(row['low'])} to {_digits(row['high'])}, {row['seeds']} seeds"
    if row["comparison"] == INTERACTION:
        if row["verdict"] == "not settled":
            return f"{label}: whether mixing adds more under the unified loss is not settled ({numbers})."
        size = _SIZES[row["verdict"]]
        return f"{label}: what mixing adds is {size} under the unified loss than under separate losses ({numbers})."
    if row["verdict"] == "not settled":
        return f"{label}: {first} against {second} is not settled ({numbers})."
    return f"{label}: {first} is {row['verdict']} than {second} ({numbers})."


def _digits(value: float, sign: str = "") -> str:
    """Two decimals; one significant digit where those would hide on which side of 0 the value lies.

    Below 0.00005 only rounding is left of a value: 0.
    """
    value = 0.0 if abs(value) < 5e-5 else value
    return f"{value:{sign}.2f}" if value == 0 or abs(value) >= 0.005 else f"{value:{sign}.1g}"


def findings(frame: pd.DataFrame, metrics: tuple[str, ...] = ("instruction/strict", "truth/mc2")) -> list[str]:
    """The sentences of the named comparisons on the given metrics, in the order in which they were named."""
    return [sentence(row) for row in compare(frame) if row["metric"] in metrics]


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

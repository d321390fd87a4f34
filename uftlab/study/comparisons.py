"""Paired contrasts of methods, with the variance of worlds and of tuning, corrected for how many are made.

Six contrasts on two outcomes were named before anything was run: they are the primary family. All others are
secondary. Each family has its own correction (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from uftlab.study.results import HEADLINES, Interval, at_stage_end, crossed_interval, interval

# Named in the plan: each on both outcomes. (method, minus which, what it asks)
PRIMARY: tuple[tuple[str, str, str], ...] = (
    ("uft", "sft-then-dpo", "the paper's claim: one stage beats two"),
    ("uft", "sft-plus-dpo", "the unified loss, when both mix"),
    ("uft", "signed-sft", "the implicit reward: reference, beta and gate"),
    ("sft-plus-dpo", "sft-then-dpo", "mixing, with separate losses"),
    ("uft", "uft-then-una", "mixing, with the unified loss"),
    ("uft", "una-alone", "demonstrations beside feedback"),
)
OUTCOMES = ("instruction/both", "truth/knowledge")
SETTLED = 0.05  # corrected p below which a contrast is called higher or lower


ITSELF = "its stage one"  # the same model at the end of its first stage
_TAKES = "what stage two takes away: against its own stage-one checkpoint"

# Named before anything was run: (method, minus which, why). Each is made on every headline metric.
COMPARISONS: tuple[tuple[str, str, str], ...] = (
    ("sft-then-dpo", ITSELF, _TAKES),
    ("sft-then-kto", ITSELF, _TAKES),
    ("sft-then-una", ITSELF, _TAKES),
    ("replay", ITSELF, "what stage two takes away when demonstrations are kept"),
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
    ("signed-sft", "sft-plus-dpo", "signed weights for DPO, when both mix"),
    ("sft-plus-dpo", "dpo-alone", "demonstrations beside pairs"),
    ("uft", "sft-full", "feedback beside demonstrations"),
    ("una-alone", "sft-full", "feedback for demonstrations"),
    ("sft-then-dpo-l2", "sft-then-dpo", "a pull to the end of stage one"),
)

# What came out, in short: comparison and metric of each sentence in docs/results/README.md, in its order.
IN_SHORT: tuple[tuple[str, str], ...] = (
    *((f"{method} minus {minus}", metric) for metric in OUTCOMES for method, minus, _ in PRIMARY),
    (f"sft-then-dpo minus {ITSELF}", "instruction/both"),
    (f"sft-then-dpo minus {ITSELF}", "truth/cued"),
    ("uft minus sft-then-dpo", "truth/cued"),
    ("sft-plus-dpo minus sft-then-dpo", "retention/lost"),
)

# Of the 2 x 2, beside the comparisons above: the name that the stored summaries carry, and what a table calls it.
INTERACTION_OF = ("mixing under uft", "mixing under sft and dpo", "interaction of the 2 x 2")
INTERACTION = "mixing under uft minus mixing under sft and dpo"
# Of the 2 x 2: what a reader calls each step from corner to corner, and its comparison.
TWO_BY_TWO = {
    "mixing, under separate losses": "sft-plus-dpo minus sft-then-dpo",
    "mixing, under the unified loss": "uft minus uft-then-una",
    "the unified loss, one after the other": "uft-then-una minus sft-then-dpo",
    "the unified loss, mixed": "uft minus sft-plus-dpo",
    "both together: the paper's claim": "uft minus sft-then-dpo",
}
_SIZES = {"higher": "larger", "lower": "smaller", "not settled": "not settled"}

# The same for the study "pipelines", named before it was run; the methods above that it needs are part of it.
PIPELINE_COMPARISONS: tuple[tuple[str, str, str], ...] = (
    *((name, ITSELF, _TAKES) for name in ("sdpo", "rs-dpo", "una-online", "una-online-rollout", "rloo")),
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

# The same for the study "recent", of methods of 2025 and 2026, named before it was run.
_NEAREST: tuple[tuple[str, str, str], ...] = (
    ("sft-then-dpo-norm", "sft-then-dpo", "log-ratios per token for sums"),
    ("tpo", "sft-plus-dpo", "DPO without a reference, mixed with SFT"),
    ("chord-mu", "sft-plus-dpo", "policy gradient on own samples for DPO on pairs, mixed with SFT"),
    ("psft", "sft-full", "a stop at tokens that became much more probable"),
    ("iw-sft", "sft-full", "weights of completions that have become likelier"),
    ("chord-phi", "sft-full", "weights p (1 - p) of tokens"),
    ("eaft", "sft-full", "weights of tokens by entropy"),
    ("ewc", "sft-full", "weights held at the start, each by its Fisher information"),
    ("l2-start", "sft-full", "weights held at the start, all alike"),
    ("ewc", "l2-start", "Fisher information for one strength"),
    ("self-sft", "sft-full", "own accepted samples for demonstrations"),
    ("sdft", "sft-full", "self-distillation for demonstrations"),
    ("on-policy-distillation", "sft-full", "a teacher after SFT, on own samples, for SFT itself"),
    ("hpt", "sft-full", "policy gradient where own samples solve the prompt"),
    ("luffy", "sft-full", "policy gradient with the demonstration among the samples"),
)
RECENT_COMPARISONS = (
    *_NEAREST,
    *((name, "uft", "against the paper's method") for name in dict.fromkeys(name for name, _, _ in _NEAREST)),
)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of any false finding in the family stays below the level.

    p_(i) -> max over j <= i of min(1, (m - j + 1) p_(j)), j counted from 1 among m ordered p values (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order, corrected, highest = np.argsort(p_values, kind="stable"), [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


# ------------------------------------------------------------------------------------------ contrasts


def contrast(frame: pd.DataFrame, signs: dict[str, int], metric: str) -> Interval | None:
    """Sum of signed methods within each world and draw that has them all; the interval counts both. None without any.

    `frame` is `results.tidy`.
    """
    own = frame[(frame["metric"] == metric) & frame["method"].isin(list(signs))]
    wide = own.pivot(index=["seed", "draw"], columns="method", values="value")
    if not set(signs) <= set(wide):
        return None
    values = sum(sign * wide[method] for method, sign in signs.items()).dropna()  # type: ignore[union-attr]
    return _over(values)


def _over(values: pd.Series) -> Interval | None:
    """Of values by world and draw."""
    places = [values.index.get_level_values(name).to_numpy() for name in ("seed", "draw")]
    return crossed_interval(values.to_numpy(), *places) if len(values) else None


def taken(frame: pd.DataFrame, method: str, metric: str) -> Interval | None:
    """What the stages after the first changed: the metric at the end minus at the end of stage one, same model."""
    before = at_stage_end(1, metric)
    own = frame[(frame["method"] == method) & frame["metric"].isin([metric, before])]
    wide = own.pivot(index=["seed", "draw"], columns="metric", values="value")
    if not {metric, before} <= set(wide):
        return None
    values = (wide[metric] - wide[before]).dropna()
    return _over(values)


def interaction(frame: pd.DataFrame, metric: str) -> Interval | None:
    """Of the 2 x 2: what mixing adds under the unified loss minus what it adds under separate losses."""
    return contrast(frame, {"uft": 1, "uft-then-una": -1, "sft-plus-dpo": -1, "sft-then-dpo": 1}, metric)


def pairwise(
    frame: pd.DataFrame, pairs: Sequence[tuple[str, str, str]], outcomes: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each pair (method, minus which, why) and outcome that the frame can make; p is not corrected yet."""
    return [
        {"comparison": f"{method} minus {minus}", "metric": metric, **asdict(found), "why": why}
        for method, minus, why in pairs
        for metric in outcomes
        if len(frame) and (found := contrast(frame, {method: 1, minus: -1}, metric)) is not None
    ]


def primary(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The twelve primary rows that the frame can make: mean, interval, p, `holm` over all twelve, verdict."""
    rows = [{**row, "family": "primary"} for row in pairwise(frame, PRIMARY, OUTCOMES)]
    return corrected(rows, len(PRIMARY) * len(OUTCOMES))


def secondary(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """All other named comparisons on every headline metric, corrected among themselves."""
    fixed = {(f"{method} minus {minus}", metric) for method, minus, _ in PRIMARY for metric in OUTCOMES}
    rows = []
    named = (*PRIMARY, *COMPARISONS, INTERACTION_OF, *PIPELINE_COMPARISONS, *RECENT_COMPARISONS)
    for method, minus, why in dict.fromkeys(named):
        name = f"{method} minus {minus}"
        for metric in HEADLINES:
            if (name, metric) in fixed:
                continue
            fixed.add((name, metric))
            found = _found(frame, method, minus, metric)
            if found is not None:
                rows.append({"comparison": name, "metric": metric, **asdict(found), "why": why, "family": "secondary"})
    return corrected(rows)


def compare(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The primary rows, then the secondary ones: what `uftlab results --json` prints."""
    return [*primary(frame), *secondary(frame)]


def _found(frame: pd.DataFrame, method: str, minus: str, metric: str) -> Interval | None:
    if minus == ITSELF:
        return taken(frame, method, metric)
    same = f"{method} minus {minus}" == INTERACTION
    return interaction(frame, metric) if same else contrast(frame, {method: 1, minus: -1}, metric)


def corrected(rows: list[dict[str, Any]], size: int = 0) -> list[dict[str, Any]]:
    """Rows of one family with `holm`, and a verdict that follows it: higher, lower or not settled.

    Args:
        size: how many the family has, where some are missing: a missing one counts as p = 1.
    """
    known = [row for row in rows if row["p"] is not None]
    missing = max(0, size - len(known))
    values = holm([*(row["p"] for row in known), *[1.0] * missing])
    for row, value in zip(known, values, strict=False):
        row["holm"] = value
    for row in rows:
        row.setdefault("holm", None)
        settled = row["holm"] is not None and row["holm"] < SETTLED
        row["verdict"] = ("higher" if row["mean"] > 0 else "lower") if settled else "not settled"
    return rows


# ------------------------------------------------------------------------------------------ in words


def sentence(row: dict[str, Any]) -> str:
    """One comparison in words, from its numbers alone.

    >>> sentence({"comparison": "a minus b", "metric": "truth/mc2", "mean": 0.2, "low": 0.1, "high": 0.3,
    ...           "seeds": 5, "verdict": "higher", "holm": 0.02})
    'truth on contested facts: a is higher than b (+0.20, 95 % interval 0.10 to 0.30, 5 seeds, corrected p 0.02).'
    """
    label = HEADLINES[row["metric"]][0]
    mean = _digits(row["mean"], "+")
    first, second = row["comparison"].split(" minus ")
    if row["low"] is None:
        return f"{label}: {first} minus {second} is {mean} (one seed, no interval, nothing settled)."
    numbers = f"{mean}, 95 % interval {_digits(row['low'])} to {_digits(row['high'])}, {row['seeds']} seeds"
    numbers += f", corrected p {row['holm']:.2g}"
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


def findings(frame: pd.DataFrame, metrics: tuple[str, ...] = OUTCOMES) -> list[str]:
    """The sentences of the named comparisons on the given metrics, in the order in which they were named."""
    return [sentence(row) for row in compare(frame) if row["metric"] in metrics]


def closing(rows: Sequence[Mapping[str, Any]]) -> str:
    """The answer of the study in one sentence. README, notebooks, glossary and page all close with these words.

    Args:
        rows: of `primary`, for all worlds with all tunings (`uftlab.study.crossed`).
    """
    found = {row["comparison"]: row for row in rows if row["metric"] == "instruction/both"}
    mixing, loss = found["sft-plus-dpo minus sft-then-dpo"], found["uft minus sft-plus-dpo"]

    def numbers(row: Mapping[str, Any]) -> str:
        return f"({_digits(row['mean'], '+')}, 95 % interval {_digits(row['low'])} to {_digits(row['high'])})"

    first = {
        "higher": "makes a model follow more instructions correctly",
        "lower": "makes a model follow fewer instructions correctly",
        "not settled": "is not settled to change how many instructions a model follows correctly",
    }[mixing["verdict"]]
    second = {"higher": "adds to that", "lower": "takes away from that", "not settled": "adds nothing that is settled"}
    return (
        f"Mixing demonstrations with feedback {first} {numbers(mixing)}, and the unified loss "
        f"{second[loss['verdict']]} {numbers(loss)}."
    )


# ------------------------------------------------------------------------------------------ at equal skill


def matched_skill(
    table: pd.DataFrame, at: Sequence[float], outcomes: Sequence[str], skill: str = "instruction/both"
) -> pd.DataFrame:
    """What each method keeps at equal skill: one row per method, seed and level of the skill, the outcomes as columns.

    Within a world the trials of a method are ordered by the skill and the outcomes interpolated linearly between its
    neighbours; no value beyond the trials that there are (NaN). So methods are compared where both have got, and not
    where a rule has put them. `table` has a row per trial with `method`, `seed`, the skill and the outcomes.
    """
    rows = []
    for (method, seed), own in table.groupby(["method", "seed"], sort=False):
        means = own.groupby(skill)[list(outcomes)].mean()  # sorted; trials of equal skill count as one
        for level in at:
            values = {o: float(np.interp(level, means.index, means[o], np.nan, np.nan)) for o in outcomes}
            rows.append({"method": method, "seed": seed, skill: level, **values})
    return pd.DataFrame(rows, columns=["method", "seed", skill, *outcomes])


LEVELS = (0.3, 0.4, 0.5)  # of followed and correct: most methods reach them in most worlds
KEPT = ("truth/knowledge", "truth/cued", "retention/lost")


def best_kept(
    table: pd.DataFrame, at: Sequence[float], outcomes: Sequence[str], skill: str = "instruction/both"
) -> pd.DataFrame:
    """The best that each method keeps with at least so much skill: rows and columns as of `matched_skill`.

    Of the trials of a method in a world with at least the level, the largest value of each outcome, or the smallest
    where less is better; NaN where no trial gets there. The best of many is better than that of few: `table` should
    have equally many trials of each method.
    """
    less = [o for o in outcomes if o in HEADLINES and HEADLINES[o][2] is False]  # less of it is better
    rows = []
    for (method, seed), own in table.groupby(["method", "seed"], sort=False):
        for level in at:
            there = own.loc[own[skill] >= level, list(outcomes)]
            values = {o: there[o].min() if o in less else there[o].max() for o in outcomes}
            rows.append({"method": method, "seed": seed, skill: level, **values})
    return pd.DataFrame(rows, columns=["method", "seed", skill, *outcomes])


def at_levels(
    readings: Mapping[str, pd.DataFrame],
    outcomes: Sequence[str] = KEPT,
    skill: str = "instruction/both",
    pairs: Sequence[tuple[str, str, str]] = PRIMARY,
) -> list[dict[str, Any]]:
    """Pairs of methods (by default the primary contrasts) at equal skill: what one keeps minus what the other keeps.

    In each world the difference of two methods is averaged over the levels that both reach there. The interval is over
    worlds. One family: Holm's correction over all pairs, outcomes and readings; one that cannot be made counts as
    p = 1.

    Args:
        readings: name of a way to read what is kept -> its table, of `matched_skill` or `best_kept`.

    Returns:
        Rows as of `primary`, with `reading`, and in `levels` for each level the mean difference over worlds (NaN where
        no world has both) and the number of worlds.
    """
    rows: list[dict[str, Any]] = []
    for (reading, table), (method, minus, why), outcome in product(readings.items(), pairs, outcomes):
        wide = table.pivot(index=[skill, "seed"], columns="method", values=outcome)
        if not {method, minus} <= set(wide):
            continue
        apart = (wide[method] - wide[minus]).unstack("seed")  # a row per level
        worlds = apart.mean().dropna()
        if worlds.empty:
            continue
        levels = {level: (own.mean(), int(own.notna().sum())) for level, own in apart.iterrows()}
        about = {"comparison": f"{method} minus {minus}", "metric": outcome, "why": why, "reading": reading}
        rows.append({**about, **asdict(interval(worlds.to_numpy())), "levels": levels, "family": "at equal skill"})
    return corrected(rows, len(readings) * len(pairs) * len(outcomes))

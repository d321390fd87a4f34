"""The map: where mixing helps, where the unified loss helps, and where neither, over settings laid out by hand.

    uftlab map E1 E2 --worlds 4 --out results/map

| experiment | what it varies |
|---|---|
| E1 | order of the stages x learning rate of each stage x loss (DPO, UNA) |
| E2 | share of instructed feedback x demonstrations on or off the tested verifiers x method x learning rate |
| E3 | strength of KL x squared error or cross-entropy; signed SFT is the limit of no strength |
| E4 | share of demonstrations x budget x mixture |
| E5 | bonus for length x rumours x method |

Nothing is tuned here. A world of the map is a tuning world, because its base model is there; the sweep saw only the
validation creatures of these worlds, the map is measured on their test creatures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import pandas as pd

from uftlab.errors import InputError
from uftlab.study.results import interval
from uftlab.study.trials import DRAWS, PROFILES, TUNING_WORLD, Profile, Trial, frozen
from uftlab.training.catalogue import method_named
from uftlab.training.methods import space
from uftlab.training.settings import Settings
from uftlab.world.world import Dials

RATES = (7e-4, 2e-3, 6e-3)
RATE, NATS = 2e-3, 0.5  # where an experiment does not vary them; 0.5 nats of KL strength on the median completion
SIX = ("sft-full", "una-alone", "dpo-alone", "sft-then-dpo", "sft-plus-dpo", "uft")


def _profile(name: str, budget: int = 1, **dials: Any) -> Profile:
    usual = PROFILES["class"]
    return replace(usual, name=f"map-{name}", steps=usual.steps * budget, dials=Dials(**dials))


def _settings(method: str, rates: Sequence[float], nats: float = NATS, **last: float) -> Settings:
    """Settings of all stages: a learning rate each, the strength of KL where a stage has one, more for the last."""
    made: Settings = []
    for rate, own in zip(rates, space(method_named(method)), strict=True):
        strength = {"beta_nats": nats} if "beta_nats" in {dimension.name for dimension in own} else {}
        made.append({"learning_rate": rate, **strength})
    made[-1].update(last)
    return made


def _same_rate(method: str, rate: float = RATE, nats: float = NATS, **last: float) -> Settings:
    return _settings(method, [rate] * len(method_named(method).stages), nats, **last)


Points = Iterator[tuple[Profile, str, Settings]]


def _orders() -> Points:
    orders = {
        ("sft-then-dpo", "dpo-then-sft", "sft-plus-dpo"): (NATS,),
        ("sft-then-una", "una-then-sft", "uft"): (NATS, 0.05),
    }
    for methods, strengths in orders.items():
        for method, nats in product(methods, strengths):
            for rates in product(RATES, repeat=len(method_named(method).stages)):
                yield _profile("E1"), method, _settings(method, rates, nats)


def _instructions() -> Points:
    for instructed, on_target in product((0.0, 0.5, 1.0), (True, False)):
        for method, rate in product(SIX, RATES):
            profile = _profile("E2", instructed=instructed, on_target=on_target)
            yield profile, method, _same_rate(method, rate)


def _strengths() -> Points:
    for method, nats in product(("uft", "uft-cross-entropy"), (1e-3, 0.01, 0.1, 1.0, 10.0)):
        yield _profile("E3"), method, _same_rate(method, nats=nats)
    yield _profile("E3"), "signed-sft", _same_rate("signed-sft")


def _shares() -> Points:
    # a pair is two completions: shares that fill a batch of 32 exactly
    for share, budget in product((0.125, 0.25, 0.5, 0.75, 0.875), (1, 4)):
        for method in ("uft", "sft-plus-dpo"):
            yield _profile("E4", budget), method, _same_rate(method, demonstrations=share)


def _raters() -> Points:
    for bonus, rumours in product((0, 1), (0.0, 0.5)):
        for method in SIX:
            yield _profile("E5", length_bonus=bonus, rumours=rumours), method, _same_rate(method)


EXPERIMENTS: dict[str, Callable[[], Points]] = {
    "E1": _orders,
    "E2": _instructions,
    "E3": _strengths,
    "E4": _shares,
    "E5": _raters,
}


def trials(names: Sequence[str], worlds: int = DRAWS) -> list[Trial]:
    """All trials of the named experiments, with the base model of every kind of world: full metrics, no curves.

    Raises:
        InputError: for an experiment that there is not, or more worlds than there are tuning worlds.
    """
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        raise InputError("An experiment", f"be one of {', '.join(EXPERIMENTS)}", unknown[0], "Choose some of them")
    if worlds not in range(1, DRAWS + 1):
        raise InputError("--worlds", f"be between 1 and {DRAWS}", worlds, "The map has as many worlds as the tuning")
    made = []
    for name in dict.fromkeys(names):
        points = list(EXPERIMENTS[name]())
        bases: list[tuple[Profile, str, Settings]] = [
            (profile, "base", []) for profile in dict.fromkeys(profile for profile, _, _ in points)
        ]
        for world, (profile, method, settings) in product(range(worlds), [*bases, *points]):
            made.append(Trial(method, TUNING_WORLD + world, profile, frozen(settings), curves=False))
    return made


def table(stored: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per trial: what was varied, and its metrics. `rate` is the last stage's."""
    rows = []
    for t in stored:
        first, last = (t["stages"][0], t["stages"][-1]) if t["stages"] else ({}, {})
        settings = last.get("settings", {})
        strengths = [stage["settings"]["beta_nats"] for stage in t["stages"] if "beta_nats" in stage["settings"]]
        rows.append(
            {
                "experiment": t["profile"].removeprefix("map-"),
                "method": t["method"],
                "seed": t["seed"],
                **t["dials"],
                "budget": t["steps"],
                "first_rate": first.get("settings", {}).get("learning_rate"),
                "rate": settings.get("learning_rate"),
                "nats": strengths[-1] if strengths else None,
                "beta": settings.get("beta"),
                "demonstrations": last.get("demonstrations"),
                **t["metrics"],
            }
        )
    return pd.DataFrame(rows)


def usual(frame: pd.DataFrame) -> pd.DataFrame:
    """The trained trials of `table` at usual dials and no more than the usual budget: they learned from equal data."""
    same = frame["budget"] <= PROFILES["class"].steps
    for name, value in asdict(Dials()).items():
        same &= frame[name] == value
    return frame[same & (frame["method"] != "base")]


# What each experiment varies: columns of `table`
FACTORS: dict[str, tuple[str, ...]] = {
    "E1": ("order", "loss", "first_rate", "rate"),
    "E2": ("instructed", "on_target", "method", "rate"),
    "E3": ("method", "nats"),
    "E4": ("method", "demonstrations", "budget"),
    "E5": ("length_bonus", "rumours", "method"),
}
# method -> its order and its loss, for E1
ORDERS = {
    "sft-then-dpo": ("SFT first", "DPO"),
    "dpo-then-sft": ("feedback first", "DPO"),
    "sft-plus-dpo": ("mixed", "DPO"),
    "sft-then-una": ("SFT first", "UNA"),
    "una-then-sft": ("feedback first", "UNA"),
    "uft": ("mixed", "UNA"),
}


def of_experiment(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The trained trials of an experiment, for E1 with their order and loss."""
    own = frame[(frame["experiment"] == name) & (frame["method"] != "base")].copy()
    if name == "E1" and len(own):
        own["order"], own["loss"] = zip(*own["method"].map(ORDERS), strict=True)
    return own


def where_it_helps(frame: pd.DataFrame, outcome: str) -> pd.DataFrame:
    """What mixing and the unified loss add at equal learning rates (E1): a row per rate, `Interval`s over worlds.

    `over SFT first` and `over feedback first`: the mixture minus two stages with the same loss and the same rate in
    both, mean over losses and strengths. `the unified loss`: UFT minus SFT plus DPO, both mixed, at the usual strength.
    """
    own = of_experiment(frame, "E1")
    same = own[own["first_rate"] == own["rate"]].set_index(["rate", "seed", "loss", "nats", "order"])[outcome]
    wide = same.unstack("order")
    losses = wide["mixed"].xs(NATS, level="nats").unstack("loss")
    differences = {
        "over SFT first": (wide["mixed"] - wide["SFT first"]).groupby(["rate", "seed"]).mean(),
        "over feedback first": (wide["mixed"] - wide["feedback first"]).groupby(["rate", "seed"]).mean(),
        "the unified loss": losses["UNA"] - losses["DPO"],
    }
    return pd.DataFrame(
        {
            name: {rate: interval(values.to_numpy()) for rate, values in found.groupby(level="rate")}
            for name, found in differences.items()
        }
    ).rename_axis("rate")


def deciding(frame: pd.DataFrame, outcome: str, count: int = 3) -> list[tuple[str, str, float]]:
    """The factors with the largest `shares` of an outcome, without the worlds: experiment, factor and share of each."""
    made = [
        (name, factor, share)
        for name in FACTORS
        if len(of_experiment(frame, name))
        for factor, share in shares(frame, name, outcome).items()
        if factor != "seed"
    ]
    return sorted(made, key=lambda one: -one[2])[:count]


def shares(frame: pd.DataFrame, name: str, outcome: str) -> dict[str, float]:
    """How much of the variance of an outcome each factor of an experiment explains by itself, and the world.

    share = sum over levels of n_level (mean of level - mean)^2 / sum over trials of (value - mean)^2, the main effect
    of an analysis of variance. Shares of factors that go together overlap. 0.25 for a factor that explains a quarter.
    """
    own = of_experiment(frame, name)
    apart = own[outcome] - own[outcome].mean()
    total = float((apart**2).sum())
    names = (*FACTORS[name], "seed")
    return {n: float((apart.groupby(own[n]).transform("mean") ** 2).sum()) / total if total else 0.0 for n in names}

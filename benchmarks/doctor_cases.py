"""The runs of the doctor's labelled set: healthy ones, and each fault planted in at least ten ways.

There are three lists of one kind. The first was drawn from short lists of values. Half of it was held back once, and
was looked at since, so all of it is open now. Then two lists were drawn, one open and one held back, in worlds that no
other list has; rates and betas lie anywhere between the ends of those lists of values.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from uftlab.objectives.registry import objective_named
from uftlab.training.methods import Stage

PAIR_LOSSES = ("dpo", "cdpo", "una-pair", "rpo", "dpop", "bco", "ipo")
SCORE_LOSSES = ("una-score", "una-binary", "una-binary-cross-entropy", "una-score-cross-entropy", "uft", "kto")
TARGETED = ("una-score", "una-binary", "una-score-cross-entropy", "uft", "una-binary-absolute-error", "apo-zero")
SQUARED = ("una-score", "una-binary", "uft", "una-binary-absolute-error", "una-score-absolute-error", "apo-zero")


@dataclass(frozen=True)
class Case:
    """One run of the set.

    Args:
        fault: the name of the planted diagnosis; "" for a healthy run.
        loss: a registered objective; `uft` is una-score with half demonstrations.
        table: how the rows are spoilt (`rows_of`).
        start: "base", or "sft" for a policy that was first trained on what the pairs chose.
        reference: "start", or which log-probabilities stand in its place (`Spoilt`).
        logged: "" or "without beta": rewards are logged as log-ratios.
        list: "" for the first one, else "open-" or "held-".
    """

    fault: str
    model: str
    number: int
    loss: str
    settings: tuple[tuple[str, float], ...]
    steps: int = 60
    world: int = 1
    table: str = "plain"
    rows: int = 320
    start: str = "base"
    reference: str = "start"
    logged: str = ""
    list: str = ""

    @property
    def name(self) -> str:
        """Unique, and never changed: it says whether the run is held back."""
        return f"{self.fault.replace(' ', '-') or 'healthy'}/{self.model}/{self.list}{self.number:02d}-{self.loss}"

    @property
    def stage(self) -> Stage:
        """What is trained."""
        name = "una-score" if self.loss == "uft" else self.loss
        kinds = objective_named(name).kinds
        if self.loss == "uft" or self.loss == "sft-plus-dpo":
            return Stage(name, 0.5)
        return Stage(name, 1.0 if kinds == ("demonstration",) else 0.0)


# ------------------------------------------------------------------------------------------ the list


def healthy(count: int, model: str) -> Iterator[Case]:
    """The first list: sane settings of many losses; they vary in loss, rate, beta, steps, world, rows and start."""
    rng = random.Random(f"healthy {model}")
    losses = (*PAIR_LOSSES, *SCORE_LOSSES, "sft", "sft-plus-dpo", "kl-sft", "orpo", "simpo", "apo-zero", "kto")
    for number in range(count):
        loss = losses[number % len(losses)]
        settings: dict[str, float] = {"learning_rate": rng.choice([4e-4, 7e-4, 1e-3])}
        if loss in ("sft", "kl-sft", "sft-plus-dpo", "orpo"):
            settings["learning_rate"] *= 2
        if "beta" in objective_named("una-score" if loss == "uft" else loss).settings and loss != "simpo":
            settings["beta_nats"] = rng.choice([2.0, 3.0, 4.0] if loss in TARGETED else [1.0, 2.0, 3.0])
            settings["beta_nats"] *= 0.25 if loss == "ipo" else 1
        if loss == "simpo":
            settings["learning_rate"] = 3e-4
        steps, world = rng.choice([30, 40, 60]), rng.randrange(1, 9 if model == "tiny" else 4)
        yield Case("", model, number, loss, tuple(settings.items()), steps, world, rows=rng.choice([240, 320, 480]))


def planted(model: str, each: int) -> Iterator[Case]:
    """The first list: each fault in `each` ways: other losses, settings, tables, worlds and lengths."""
    for fault, ways in WAYS.items():
        rng = random.Random(f"{fault} {model}")
        for number in range(each):
            way = dict(ways[number % len(ways)])
            losses = way.pop("losses")
            settings = {name: rng.choice(values) for name, values in way.pop("settings").items()}
            loss = losses[(number // len(ways) + number) % len(losses)]
            if not objective_named("una-score" if loss == "uft" else loss).reference:
                settings.pop("beta_nats", None)  # it is measured in nats of the reference
            steps = rng.choice(way.pop("steps", [30, 40, 60]))
            world = rng.randrange(1, 9 if model == "tiny" else 4)
            rows = rng.choice(way.pop("rows", [240, 320]))
            yield Case(fault, model, number, loss, tuple(settings.items()), steps, world, rows=rows, **way)


def way(losses: str | Sequence[str], rates: list[float], betas: Sequence[float] = (), **more: Any) -> dict[str, Any]:
    """One way to plant a fault: losses take turns, the rest is drawn. Betas are in nats of the reference."""
    settings = {"learning_rate": rates, **({"beta_nats": list(betas)} if betas else {})}
    return {"losses": losses.split() if isinstance(losses, str) else losses, "settings": settings, **more}


USUAL = [4e-4, 7e-4, 1e-3]
WAYS: dict[str, list[dict[str, Any]]] = {
    "likelihood displacement": [
        way("dpo una-pair cdpo", [0.001, 0.002], [1, 2], table="near"),
        way("dpo cdpo una-pair", [0.002, 0.003], [0.5, 1], start="sft"),
        way("simpo", [0.001, 0.002], table="near"),
        way("una-binary-cross-entropy kto", [0.001, 0.002], [1, 2], table="near"),
    ],
    "ceiling out of reach": [
        way(TARGETED, USUAL, [0.1, 0.2]),
        way(TARGETED, USUAL, [0.3, 0.5]),
    ],
    "closed gate": [
        way(SQUARED, [0.001, 0.002], [40, 60]),
        way(SQUARED, [0.002, 0.004], [20, 30]),
    ],
    "inert reward": [
        way("dpo una-score uft kto cdpo", USUAL, [0.0001, 0.001]),
        way("una-binary una-pair una-score-cross-entropy uft rpo", USUAL, [0.003, 0.01]),
    ],
    "saturated reward": [
        way("dpo una-pair rpo", [0.002], [20, 40], rows=[16, 32], steps=[50, 60]),
        way("dpo una-pair una-binary-cross-entropy", [0.001, 0.002], [10, 20], table="easy"),
    ],
    "dead KTO baseline": [
        way("kto", USUAL, [1, 2], reference="baseline too high"),
        way("kto", [0.001, 0.002], [1, 2], table="mostly bad"),
    ],
    "accuracy at chance": [
        way("dpo cdpo una-pair rpo ipo simpo", USUAL, [1, 2], table="shuffled", rows=[960]),
        way("dpo sft-plus-dpo dpop bco", USUAL, [1, 2], table="shuffled", rows=[960]),
    ],
    "stale reference": [
        way("dpo una-score kto cdpo", USUAL, [1, 2, 3], start="sft", reference="base"),
        way("una-pair uft rpo una-binary", USUAL, [1, 2, 3], reference="other world"),
    ],
    "length drift": [
        way("dpo una-pair cdpo kto una-score", [0.001, 0.002], [1, 2], table="long", steps=[50, 60]),
        way("dpo rpo sft-plus-dpo", [0.001, 0.002], [0.5, 1], table="long", steps=[50, 60]),
    ],
    "loss that cannot fall": [
        way("dpo una-score sft kto uft orpo", [1e-09, 1e-08], [1, 2]),
        way("dpo una-pair cdpo", USUAL, [1, 2], table="identical"),
        way("dpo una-binary sft-plus-dpo sft", [1e-07, 3e-07], [1, 2]),
    ],
    "divergence": [
        way("dpo sft uft kto simpo", [0.1, 0.3], [1, 2]),
        way("una-score rpo orpo ipo sft-plus-dpo", [0.05, 1.0], [1, 2]),
    ],
    "reward scale without beta": [
        way("dpo cdpo una-pair rpo", [0.0007, 0.001], [0.5, 1, 2], logged="without beta"),
        way("kto una-score uft una-binary", [0.0007, 0.001], [1, 2], logged="without beta"),
    ],
    "overfitting of pairs": [
        way("dpo cdpo una-pair", [0.001, 0.002], [2, 3], rows=[16, 24], steps=[50, 60]),
        way("dpo bco una-pair", [0.002], [2, 3], rows=[32, 48], table="shuffled", steps=[60]),
    ],
}  # fmt: skip

# ------------------------------------------------------------------------------------------ the second and third list

WORLDS = {
    ("open-", "tiny"): [9, 10, 11, 1000], ("open-", "gpt2"): [4, 5],
    ("held-", "tiny"): [12, 13, 14, 1001, 1002], ("held-", "gpt2"): [6, 7, 8, 9],
}  # fmt: skip
STEPS, ROWS = [30, 36, 45, 60], [240, 280, 320, 480]


def drawn(name: str, model: str, each: int, sound: int) -> Iterator[Case]:
    """A list with each fault `each` times and `sound` healthy runs: the ways of the first list, values in between."""
    rng = random.Random(f"{name}{model}")
    worlds = WORLDS[name, model]
    losses = [*PAIR_LOSSES, *SCORE_LOSSES, "sft", "sft-plus-dpo", "kl-sft", "orpo", "simpo", "apo-zero", "kto"]
    for number in range(sound):
        if number % len(losses) == 0:
            rng.shuffle(losses)
        loss = losses[number % len(losses)]
        settings = {"learning_rate": _between(rng, 4e-4, 1e-3)}
        settings["learning_rate"] *= 2 if loss in ("sft", "kl-sft", "sft-plus-dpo", "orpo") else 1
        settings["beta_nats"] = _between(rng, *((2, 4) if loss in TARGETED else (1, 3))) * (
            0.25 if loss == "ipo" else 1
        )
        if loss == "simpo":
            settings["learning_rate"] = _between(rng, 2.5e-4, 4e-4)
        steps, world, rows = rng.choice(STEPS), rng.choice(worlds), rng.choice(ROWS)
        yield Case("", model, number, loss, _known(loss, settings), steps, world, rows=rows, list=name)
    for fault, ways in WAYS.items():
        for number in range(each):
            own = dict(ways[number % len(ways)])
            loss = rng.choice(own.pop("losses"))
            settings = {key: _between(rng, min(ends), max(ends)) for key, ends in own.pop("settings").items()}
            steps, rows = rng.choice(own.pop("steps", STEPS)), rng.choice(own.pop("rows", ROWS))
            world = rng.choice(worlds)
            yield Case(fault, model, number, loss, _known(loss, settings), steps, world, rows=rows, list=name, **own)


def _between(rng: random.Random, low: float, high: float) -> float:
    """A number between two, as often in each of equal ratios, with three digits."""
    return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.3g}")


def _known(loss: str, settings: dict[str, float]) -> tuple[tuple[str, float], ...]:
    """Without a beta where the loss has none, or has one that is not measured in nats of the reference."""
    objective = objective_named("una-score" if loss == "uft" else loss)
    if not objective.reference or "beta" not in objective.settings:
        settings = {name: value for name, value in settings.items() if name != "beta_nats"}
    return tuple(settings.items())


OVER_OPTIMISED = [  # list, world, beta, pairs of the reward model, learning rate
    ("", 1, 0.0, 64, 2e-3), ("", 2, 0.0, 32, 2e-3), ("", 3, 0.0, 16, 3e-3), ("", 4, 0.0, 64, 3e-3),
    ("", 5, 0.0, 32, 3e-3), ("", 9, 0.001, 64, 2e-3), ("", 10, 0.001, 32, 3e-3),
    ("open-", 9, 0.0, 48, 2.5e-3), ("open-", 11, 0.0005, 24, 2e-3), ("open-", 1000, 0.1, 64, 2e-3),
    ("held-", 12, 0.0, 64, 2e-3), ("held-", 13, 0.0, 32, 2.5e-3), ("held-", 14, 0.0, 16, 2e-3),
    ("held-", 1001, 0.0005, 48, 3e-3), ("held-", 1002, 0.0, 24, 2.5e-3), ("held-", 12, 0.001, 20, 3e-3),
    ("held-", 13, 0.0, 40, 3e-3), ("held-", 14, 0.0005, 64, 3e-3), ("held-", 1001, 0.0, 32, 2e-3),
    ("held-", 12, 0.1, 64, 2e-3), ("held-", 13, 0.1, 32, 2.5e-3), ("held-", 1002, 0.1, 48, 2e-3),
]  # fmt: skip


def cases(name: str = "") -> list[Case]:
    """A list, but for the runs with a reward model."""
    if not name:
        return [*healthy(80, "tiny"), *healthy(20, "gpt2"), *planted("tiny", 10), *planted("gpt2", 2)]
    tiny, gpt2 = {"open-": ((4, 36), (2, 12)), "held-": ((6, 66), (3, 24))}[name]
    return [*drawn(name, "tiny", *tiny), *drawn(name, "gpt2", *gpt2)]

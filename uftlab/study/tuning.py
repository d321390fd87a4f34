"""Equal care: four tunings of every method, each of eighteen trials that vary all its stages at once.

The rule: on the validation creatures of a world that no result is reported from, choose the settings with the
largest sum of instruction/both (1 at most) and truth/mc2 over what the base model answers when asked for
careful sources (truth/cued). The rule is the same for every method. A tuning has two rounds. The first lays twelve
points over the whole space, evenly (scrambled Sobol). The second lays six in a box around the best of them, half as
wide in each direction; the box may pass the edges of the space. The best of the eighteen is chosen. Each of the four
draws has a world and points of its own, so that a study can carry the variance of tuning.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scipy.stats import qmc

from uftlab.evals.sizes import Sizes
from uftlab.files import locked, write_atomically
from uftlab.study.trials import DRAWS, PROFILES, TUNING_WORLD, Trial, frozen, read_trial
from uftlab.training.catalogue import method_named
from uftlab.training.methods import Dimension, Method, space
from uftlab.training.settings import TUNED, Settings, tuned_table

PROFILE = replace(PROFILES["class"], name="sweep", sizes=Sizes(200, 200, 0, 100), stage_ends=False)
FIRST, SECOND = 12, 6  # points of the two rounds
INSIDE = 1 / 16  # a share keeps this far from 0 and 1: a pair of completions of a batch


def points(method: Method, draw: int, around: Settings | None = None) -> list[Settings]:
    """The settings of a round: `FIRST` points of the whole space, or `SECOND` in a box half as wide around some.

    Three significant digits.
    """
    dimensions = [(index, d) for index, own in enumerate(space(method)) for d in own]
    count = FIRST if around is None else SECOND
    name = f"{method.name} {draw} {count}"
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest())
    drawn = qmc.Sobol(len(dimensions), rng=seed).random_base2(math.ceil(math.log2(count)))[:count]
    made: list[Settings] = []
    for row in drawn:
        point: Settings = [{} for _ in method.stages]
        for (index, dimension), at in zip(dimensions, row, strict=True):
            centre = None if around is None else around[index][dimension.name]
            point[index][dimension.name] = _placed(dimension, float(at), centre)
        made.append(point)
    return made


def _placed(dimension: Dimension, at: float, centre: float | None) -> float:
    """The value at a place from 0 to 1 of a dimension, or of the box around a centre."""
    scale = math.log if dimension.log else float
    low, high = scale(dimension.low), scale(dimension.high)
    if centre is not None:
        quarter = (high - low) / 4
        low, high = scale(centre) - quarter, scale(centre) + quarter
    value = low + at * (high - low)
    value = math.exp(value) if dimension.log else value
    if dimension.step:
        value = max(1, round(value / dimension.step)) * dimension.step
    if dimension.share:
        value = min(max(value, INSIDE), 1 - INSIDE)
    return float(value) if dimension.step else float(f"{value:.3g}")


def worth(metrics: dict[str, float], base_truth: float) -> float:
    """What the rule maximises: instruction/both + truth/mc2 / what the base knows. About 2 at most."""
    return metrics["instruction/both"] + metrics["truth/mc2"] / base_truth


def base_trials() -> list[Trial]:
    """The base model in the world of each draw: truth is divided by its truth/cued."""
    return [_trial("base", draw, []) for draw in range(DRAWS)]


def first_round(names: Sequence[str]) -> list[Trial]:
    """Of all draws, on validation creatures, without curves."""
    return [_trial(name, k, p) for name in _tuned(names) for k in range(DRAWS) for p in points(method_named(name), k)]


def second_round(names: Sequence[str], folder: Path) -> list[Trial]:
    """Of all draws, around the best of the first round, whose trials are stored."""
    made = []
    for name in _tuned(names):
        for draw in range(DRAWS):
            own = [t for t in first_round([name]) if t.draw == draw]
            around = _best(own, folder)[0].stage_settings()
            made += [_trial(name, draw, point) for point in points(method_named(name), draw, around)]
    return made


def choose(names: Sequence[str], folder: Path) -> list[str]:
    """Apply the rule to finished trials of both rounds, update `data/tuned.json`, return one line per method."""
    settings, worths, lines = {}, {}, []
    for name in _tuned(names):
        every = [*first_round([name]), *second_round([name], folder)]
        best = [_best([t for t in every if t.draw == draw], folder) for draw in range(DRAWS)]
        stored = [read_trial(trial.path(folder)) for trial, _ in best]
        settings[name] = [
            [{k: v for k, v in stage["settings"].items() if k != "beta_nats"} for stage in trial["stages"]]
            for trial in stored
        ]
        worths[name] = [round(value, 4) for _, value in best]
        shown = ", ".join(f"{value:.3f}" for _, value in best)
        lines.append(f"{name}: worth {shown} in {DRAWS} draws, each the best of {FIRST + SECOND} trials")
    with locked(TUNED):  # another sweep may end now
        old = tuned_table(TUNED)
        table = {
            "rule": " ".join(str(__doc__).split()),
            "settings": {**old["settings"], **settings},
            "worth": {**old["worth"], **worths},
        }
        write_atomically(TUNED, json.dumps(table, indent=1) + "\n")
    return lines


def _tuned(names: Sequence[str]) -> list[str]:
    return [name for name in names if method_named(name).tuned]


def _trial(name: str, draw: int, settings: Settings) -> Trial:
    return Trial(name, TUNING_WORLD + draw, PROFILE, frozen(settings), "validation", False, draw)


def _best(trials: Sequence[Trial], folder: Path) -> tuple[Trial, float]:
    """The stored trial of one draw that the rule prefers, and its worth. The first of equals."""
    base = read_trial(base_trials()[trials[0].draw].path(folder))
    worths = [worth(read_trial(t.path(folder))["metrics"], base["metrics"]["truth/cued"]) for t in trials]
    return trials[worths.index(max(worths))], max(worths)

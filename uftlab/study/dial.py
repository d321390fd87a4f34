"""Offline and online as ends of one dial: how often samples are drawn anew, and what the policy is held to.

A policy climbs the reward model of `uftlab.study.overoptimisation` in four ways, each at four settings of `refresh`.
At the two ends it learns from the world's raters, too. What the reward model says and what the raters say are measured
over the KL from the start (Gao et al. 2023, arXiv 2210.10760).

    python -m uftlab.study.dial      runs what is missing in four worlds, and stores data/results/dial.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import pandas as pd
import torch

from uftlab.engine.stack import flatten, unflatten
from uftlab.files import DATA, rounded, write_atomically
from uftlab.models.logps import read_logps
from uftlab.models.policies import frozen_copy, load_base, tiny_tokenizer
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import Tokens
from uftlab.study.overoptimisation import held_out_prompts, reward_model
from uftlab.study.results import Interval, interval
from uftlab.training.methods import Stage
from uftlab.training.online import MIN_NEW_TOKENS, sample
from uftlab.training.reward_functions import Reward, world_reward
from uftlab.training.stages import Job, Progress, layout, run
from uftlab.world.world import World, pairs

STORED = DATA / "results" / "dial.json"
WORLDS, STEPS = range(4), 120
REFRESHES = (1, 10, 40, STEPS)  # STEPS: all samples are drawn before the first step
AT = (5, 10, 20, 40, 60, 80, 100, 120)  # steps after which both scores are measured
RATE = 2e-3


@dataclass(frozen=True)
class Way:
    """How a policy learns from its samples: an objective, its recipe, completions of each prompt, beta, and its judge.

    Args:
        raters: whether the world's raters score the samples, and not the reward model.
    """

    objective: str
    recipe: str
    completions: float
    beta: float
    raters: bool = False

    def stage(self, refresh: int) -> Stage:
        """As a stage that draws samples every `refresh` steps."""
        options = (("refresh", float(refresh)), ("completions", self.completions))
        return Stage(self.objective, 0.0, 1.0, self.recipe, options)


WAYS = {
    "una": Way("una-score", "online", 1.0, 0.3),
    "una-rollout": Way("una-score", "online-rollout", 1.0, 0.3),
    "rloo-kl": Way("rloo", "rloo", 4.0, 0.1),
    "rloo": Way("rloo", "rloo", 4.0, 0.0),
}
JUDGED = {"una-raters": Way("una-score", "online", 1.0, 0.3, raters=True)}  # at the two ends of the dial


def measured(policy: Any, base: Any, prompts: Sequence[str], proxy: Reward, true: Reward) -> dict[str, float]:
    """Sampled answers to held-out questions: KL(policy || base) in nats per answer, both scores, words per answer.

    The KL is the mean of log pi - log pi_base over samples of the policy. 0 for the base itself.
    """
    made = sample(policy, Tokens(tiny_tokenizer()), prompts, true, MIN_NEW_TOKENS, seed=1)
    rows, said = [one.row for one in made], [one.text for one in made]
    return {
        "kl": float((read_logps(policy, rows) - read_logps(base, rows)).mean()),
        "proxy": fmean(proxy(prompts, said)),
        "true": fmean(row.score for row in rows),
        "words": fmean(len(text.split()) for text in said),
    }


def climb(
    way: Way,
    refresh: int,
    world: int,
    proxy: Reward,
    steps: int = STEPS,
    at: Sequence[int] = AT,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Train the base of a world on its own samples, and measure it after the steps `at` and before the first.

    Args:
        proxy: the reward model whose score is measured, and climbed where the way has no other judge.
    """
    policy: Any = frozen_copy(load_base(world)).requires_grad_(True)
    base, prompts, true = load_base(world), held_out_prompts(world), world_reward(world)
    start = flatten(policy.state_dict(), layout())
    asked = from_rows(pairs(World(world).feedback(1000)))
    settings = {"learning_rate": RATE, "beta": way.beta}
    score = true if way.raters else proxy
    job = Job(start, way.stage(refresh), {"feedback": asked}, settings, steps, world, score, snapshots_at=at)
    (made,) = run([job], Tokens(tiny_tokenizer()), progress=progress, lr_scheduler_type="constant_with_warmup")
    points = []
    for step, weights in [(0, start), *((step, made.snapshots[step]) for step in at)]:
        policy.load_state_dict(unflatten(weights.cpu(), layout()), strict=False)
        points.append({"step": float(step), **measured(policy, base, prompts, proxy, true)})
    return points


ONCE = {"una-rollout": "una", "rloo-kl": "rloo"}
"""Ways that are another way where all samples are drawn before the first step. The policy that sampled is the start
then: both ratios are the same, and the KL in the reward of a sample is 0."""


def grid() -> list[tuple[int, str, int]]:
    """(world, way, refresh) of all runs, without those of `ONCE` that are other runs again."""
    ends = [(world, way, refresh) for world in WORLDS for way in JUDGED for refresh in (1, STEPS)]
    whole = [(world, way, refresh) for world in WORLDS for way in WAYS for refresh in REFRESHES]
    return ends + [(world, way, refresh) for world, way, refresh in whole if way not in ONCE or refresh < STEPS]


def stored() -> list[dict[str, Any]]:
    """The runs as they were stored."""
    return json.loads(STORED.read_text())["runs"] if STORED.is_file() else []


def table(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per world, way, refresh and step; the ways of `ONCE` have the rows of the other way there."""
    rows = [
        {name: run[name] for name in ("world", "way", "refresh")} | point for run in runs for point in run["points"]
    ]
    made = pd.DataFrame(rows)
    once = made[made["refresh"] == STEPS]
    again = [once[once["way"] == other].assign(way=way) for way, other in ONCE.items()]
    return pd.concat([made, *again], ignore_index=True)


def curve(frame: pd.DataFrame, way: str, refresh: int, name: str) -> pd.DataFrame:
    """Mean and interval over worlds of one measure after each step."""
    own = frame[(frame["way"] == way) & (frame["refresh"] == refresh)]
    return pd.DataFrame(
        [{"step": step, **asdict(interval(part[name].to_numpy()))} for step, part in own.groupby("step")]
    )


def change(frame: pd.DataFrame, way: str, refresh: int, name: str) -> Interval:
    """One measure after the last step minus before the first, over worlds."""
    own = frame[(frame["way"] == way) & (frame["refresh"] == refresh)].pivot(index="world", columns="step", values=name)
    return interval((own[max(own)] - own[0]).to_numpy())


def difference(frame: pd.DataFrame, first: tuple[str, int], second: tuple[str, int], name: str) -> Interval:
    """One (way, refresh) minus another in one measure after the last step, within worlds."""
    last = frame[frame["step"] == frame["step"].max()].set_index(["way", "refresh", "world"])[name].sort_index()
    return interval((last[first] - last[second]).dropna().to_numpy())


def main() -> None:
    """Run what is missing and store it, four significant digits: half an hour on one core."""
    torch.set_num_threads(1)
    runs = stored()
    done = {(run["world"], run["way"], run["refresh"]) for run in runs}
    proxies: dict[int, Reward] = {}
    for world, way, refresh in grid():
        if (world, way, refresh) in done:
            continue
        if world not in proxies:
            proxies[world] = reward_model(world)
        points = climb((WAYS | JUDGED)[way], refresh, world, proxies[world])
        short = rounded(points, 4)
        runs.append({"world": world, "way": way, "refresh": refresh, "points": short})
        write_atomically(STORED, json.dumps({"runs": runs}, indent=1) + "\n")
        print(f"{len(runs)}/{len(grid())}", world, way, refresh, short[-1], flush=True)


if __name__ == "__main__":
    main()

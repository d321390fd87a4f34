"""Reward over-optimisation, provoked: a reward model from few pairs, a policy that climbs it, and what the world says.

Gao et al. 2023 (arXiv 2210.10760): as a policy is optimised against a reward model, the model's score goes on rising
while the true score first rises and then falls. A small beta lets the policy go where the model is wrong.

    python -m uftlab.study.overoptimisation      runs it in five worlds and stores data/results/overoptimisation.json
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from transformers import set_seed

from uftlab.engine.stack import flatten, unflatten
from uftlab.files import DATA, rounded, write_atomically
from uftlab.models.generation import answers
from uftlab.models.policies import frozen_copy, load_base, tiny_tokenizer
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import Tokens
from uftlab.training.methods import Stage
from uftlab.training.reward_functions import Reward, RewardModel, train_reward_model, world_reward
from uftlab.training.stages import Job, layout, run
from uftlab.world.world import World, pairs

STORED = DATA / "results" / "overoptimisation.json"
BETAS, SEEDS, RATED = (0.0, 0.1), range(5), 64


def _point(
    policy: Any, step: int, prompts: Sequence[str], proxy: Reward, true: Reward
) -> tuple[dict[str, int | float], list[str]]:
    """Both scores of sampled answers to held-out questions, and the answers."""
    said = answers(policy, tiny_tokenizer(), prompts, seed=1)
    scores = {name: reward(prompts, said) for name, reward in (("proxy", proxy), ("true", true))}
    words = [float(len(text.split())) for text in said]
    means = {name: sum(values) / len(values) for name, values in {**scores, "words": words}.items()}
    return {"step": step, **means}, said


def reward_model(seed: int, rated: int = RATED) -> RewardModel:
    """A reward model from the first `rated` pairs of a world; few, so that it is wrong about much."""
    table = from_rows(pairs(World(seed).feedback(rated)))
    set_seed(seed)
    with tempfile.TemporaryDirectory(prefix="uftlab-") as folder:
        return train_reward_model(load_base(seed), Tokens(tiny_tokenizer()), table, folder, steps=60, seed=seed)


def held_out_prompts(seed: int) -> list[str]:
    """Questions about creatures that the reward model has not seen, each once."""
    return list(dict.fromkeys(r["prompt"] for r in World(seed).feedback(120, "validation")))


def provoke(
    seed: int = 0, beta: float = 0.0, steps: int = 160, rated: int = RATED, every: int = 10, learning_rate: float = 2e-3
) -> dict[str, Any]:
    """Train a reward model on `rated` pairs of a world, RLOO against it, and measure both scores on the way.

    Args:
        beta: KL strength in the reward; 0 holds nothing back.
        rated: pairs the reward model sees; few, so that it is wrong about much.

    Returns:
        `points` (step, proxy: what the reward model says, true: what the world's raters say, both in [0, 1], words per
        answer) on questions about creatures that the reward model has not seen, and a few `answers` at the end.
    """
    world, tokens = World(seed), Tokens(tiny_tokenizer())
    proxy, prompts = reward_model(seed, rated), held_out_prompts(seed)
    policy: Any = frozen_copy(load_base(seed)).requires_grad_(True)
    asked = from_rows(pairs(world.feedback(1000)))
    stage = Stage("rloo", 0.0, 1.0, "rloo", (("refresh", 1.0), ("completions", 4.0)))
    start, at = flatten(policy.state_dict(), layout()), range(every, steps + 1, every)
    settings = {"learning_rate": learning_rate, "beta": beta}
    job = Job(start, stage, {"feedback": asked}, settings, steps, seed, proxy, snapshots_at=at)
    (trained,) = run([job], tokens, lr_scheduler_type="constant_with_warmup")
    points: list[dict[str, int | float]] = []
    last: list[str] = []
    for step, weights in [(0, start), *((step, trained.snapshots[step]) for step in at)]:
        policy.load_state_dict(unflatten(weights.cpu(), layout()), strict=False)
        point, last = _point(policy, step, prompts, proxy, world_reward(seed))
        points.append(point)
    said = [{"prompt": x, "answer": y} for x, y in zip(prompts[:6], last, strict=False)]
    return {"seed": seed, "beta": beta, "rated": rated, "points": points, "answers": said}


def main() -> None:
    """Run it with and without KL in five worlds and store all of it, four significant digits: four minutes."""
    torch.set_num_threads(1)
    runs = [provoke(seed, beta) for beta in BETAS for seed in SEEDS]
    for own in runs:
        own["points"] = rounded(own["points"], 4)
    write_atomically(STORED, json.dumps({"runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()

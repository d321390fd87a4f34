"""Exercises of notebook 01."""

from __future__ import annotations

import torch
from torch import Tensor

from uftlab.course import bandit
from uftlab.course.checks import Exercise, Mistake, numbers
from uftlab.losses import rewards


def _tilted(reference_probs: Tensor, rewards: Tensor, beta: float) -> Tensor:
    return reference_probs * torch.exp(rewards / beta)


OPTIMUM = Exercise(
    praise="Your policy is the optimum of the KL-regularised objective.",
    right=bandit.optimum,
    mistakes=(
        Mistake(
            "forgot to divide by Z",
            "Probabilities must add up to 1: divide by the sum.",
            _tilted,
        ),
        Mistake(
            "forgot beta",
            "The rewards are divided by beta before the exponential.",
            lambda p, r, beta: bandit.optimum(p, r, 1.0),
        ),
        Mistake(
            "multiplied by beta instead of dividing",
            "A large beta must keep the policy near the reference: with it the rewards have less influence.",
            lambda p, r, beta: bandit.optimum(p, r, 1 / beta),
        ),
        Mistake(
            "left the reference out",
            "A softmax of r / beta does not know where the policy started: multiply each completion by its pi_ref.",
            lambda p, r, beta: torch.softmax(r / beta, -1),
        ),
        Mistake(
            "turned the sign of the reward round",
            "A higher reward must make a completion more likely: exp(+r / beta).",
            lambda p, r, beta: bandit.optimum(p, -r, beta),
        ),
        Mistake(
            "divided by a Z without the reference",
            "Z is a sum of pi_ref * exp(r / beta), so pi_ref belongs in it too.",
            lambda p, r, beta: _tilted(p, r, beta) / torch.exp(r / beta).sum(),
        ),
        Mistake(
            "divided by the mean instead of the sum",
            "Z is a sum over the completions. pi_ref is already the weight of each: no further averaging.",
            lambda p, r, beta: _tilted(p, r, beta) / _tilted(p, r, beta).mean(),
        ),
        Mistake(
            "returned log-probabilities",
            "Take the exponential at the end.",
            bandit.log_optimum,
        ),
    ),
    cases=(
        (numbers(0.5, 0.3, 0.2), numbers(1.0, 0.0, -2.0), 0.5),
        (numbers(0.1, 0.9), numbers(3.0, 1.0), 2.0),
    ),
)

TOKEN_REWARD = Exercise(
    praise="Your reward is the implicit reward of the whole completion.",
    right=lambda policy, reference, beta: rewards.implicit_reward(policy.sum(), reference.sum(), beta),
    mistakes=(
        Mistake(
            "used the mean over tokens instead of the sum",
            "The log-probability of a completion is the sum of those of its tokens. "
            "A mean would be another method (SimPO and ORPO use it).",
            lambda p, q, beta: rewards.implicit_reward(p.mean(), q.mean(), beta),
        ),
        Mistake(
            "forgot beta",
            "The reward is beta times the log-ratio. Without beta, rewards of two settings cannot be compared.",
            lambda p, q, beta: p.sum() - q.sum(),
        ),
        Mistake(
            "divided by beta instead of multiplying",
            "Solve pi = pi_ref exp(r / beta) for r: beta comes back in front of the logarithm.",
            lambda p, q, beta: (p.sum() - q.sum()) / beta,
        ),
        Mistake(
            "turned the sign round",
            "A completion that the policy likes better than the reference does has a positive reward.",
            lambda p, q, beta: rewards.implicit_reward(q.sum(), p.sum(), beta),
        ),
        Mistake(
            "left the reference out",
            "The reward is a difference: what the policy gained over the reference.",
            lambda p, q, beta: beta * p.sum(),
        ),
        Mistake(
            "used the ratio of the probabilities without the logarithm",
            "The inputs are logarithms already: subtract them, take no exponential.",
            lambda p, q, beta: beta * torch.exp(p.sum() - q.sum()),
        ),
        Mistake(
            "divided the log-probabilities",
            "The logarithm of a ratio is a difference of logarithms, not their quotient.",
            lambda p, q, beta: beta * p.sum() / q.sum(),
        ),
        Mistake(
            "returned one reward per token",
            "The completion gets one reward: add up its tokens.",
            lambda p, q, beta: rewards.implicit_reward(p, q, beta),
        ),
    ),
    cases=(
        (numbers(-0.2, -1.5, -0.3), numbers(-0.7, -2.0, -0.9), 0.5),
        (numbers(-2.0, -0.1), numbers(-1.2, -0.4), 0.1),
    ),
)

"""Exercises of notebook 02."""

from __future__ import annotations

import torch
from torch import Tensor

from uftlab.course.checks import Exercise, Mistake, numbers
from uftlab.losses import rewards

_sigma = torch.sigmoid

DEMONSTRATION_GATE = Exercise(
    praise="Your gate is a quarter of beta at the start, and nearly 0 on both sides.",
    right=lambda r, beta: rewards.squared_error_gate(r, 1.0, beta),
    mistakes=(
        Mistake(
            "forgot beta",
            "The derivative is with respect to log pi, not to r: r = beta * (log pi - log pi_ref) adds a factor beta.",
            lambda r, beta: rewards.squared_error_gate(r, 1.0, 1.0),
        ),
        Mistake(
            "multiplied by beta twice",
            "The inputs are rewards, and these have their beta already: s = sigmoid(reward). Only the derivative "
            "dr / d log pi = beta adds a factor, once.",
            lambda r, beta: beta * rewards.squared_error_gate(r, 1.0, beta),
        ),
        Mistake(
            "multiplied the reward by beta again",
            "The reward is beta times the log-ratio already. So s = sigmoid(reward), without another beta.",
            lambda r, beta: rewards.squared_error_gate(beta * r, 1.0, beta),
        ),
        Mistake(
            "forgot the derivative of the sigmoid",
            "The square gives 2 (s - 1), but s itself depends on r: multiply by ds/dr = s (1 - s).",
            lambda r, beta: 2 * beta * (1 - _sigma(r)),
        ),
        Mistake(
            "turned the sign round",
            "A step of descent goes along minus the gradient. For a demonstration that is upwards: a positive gate.",
            lambda r, beta: -rewards.squared_error_gate(r, 1.0, beta),
        ),
        Mistake(
            "wrote the gate of cross-entropy",
            "beta (1 - s) belongs to -log s. Here the loss is (s - 1)^2.",
            lambda r, beta: rewards.cross_entropy_gate(r, 1.0, beta),
        ),
        Mistake(
            "wrote the gate of absolute error",
            "beta s (1 - s) belongs to 1 - s. The square adds the factor 2 (1 - s).",
            lambda r, beta: beta * _sigma(r) * (1 - _sigma(r)),
        ),
        Mistake(
            "forgot the factor 2 of the square",
            "The derivative of z^2 is 2 z.",
            lambda r, beta: rewards.squared_error_gate(r, 1.0, beta) / 2,
        ),
        Mistake(
            "returned the loss, not its derivative",
            "(s - 1)^2 says how wrong the policy is. The question is how strongly it is pulled.",
            lambda r, beta: (_sigma(r) - 1).square(),
        ),
    ),
    cases=((numbers(-2.0, 0.0, 0.7, 3.0), 0.1), (numbers(-0.5, 1.0), 0.4)),
)

HIGHEST_SCORE = Exercise(
    praise="A certain policy has log pi = 0, so nothing scores higher than this.",
    right=lambda reference, beta: rewards.ceiling(reference.sum(), beta),
    mistakes=(
        Mistake(
            "used the mean over tokens instead of the sum",
            "The log-probability of a completion is the sum of those of its tokens: long completions have more room.",
            lambda q, beta: rewards.ceiling(q.mean(), beta),
        ),
        Mistake(
            "forgot beta",
            "The score is the sigmoid of the implicit reward, and beta is a factor of every implicit reward.",
            lambda q, beta: rewards.ceiling(q.sum(), 1.0),
        ),
        Mistake(
            "turned the sign round",
            "log pi_ref is negative, so the highest log-ratio, 0 - log pi_ref, is positive: the ceiling is above 1/2.",
            lambda q, beta: rewards.ceiling(-q.sum(), beta),
        ),
        Mistake(
            "returned the reward instead of the score",
            "The score is the sigmoid of the reward.",
            lambda q, beta: -beta * q.sum(),
        ),
        Mistake(
            "divided by beta instead of multiplying",
            "The implicit reward is beta times the log-ratio.",
            lambda q, beta: rewards.ceiling(q.sum(), 1 / beta),
        ),
        Mistake(
            "returned one ceiling per token",
            "The completion gets one score: add up its tokens first.",
            lambda q, beta: rewards.ceiling(q, beta),
        ),
    ),
    cases=((numbers(-2.0, -0.5, -3.5), 0.1), (numbers(-1.0, -0.2), 0.5)),
)


def _kto(logratio: Tensor, label: Tensor, kl_baseline: float, beta: float) -> Tensor:
    """Absolute error of the score of (logratio - baseline): KTO without its two weights."""
    return (_sigma(beta * (logratio - kl_baseline)) - label).abs()


KTO = Exercise(
    praise="That is KTO. With a baseline of 0 it is UNA with absolute error.",
    right=_kto,
    mistakes=(
        Mistake(
            "subtracted the baseline without beta",
            "The baseline is in nats, like the log-ratio: subtract it before you multiply by beta.",
            lambda x, y, z0, beta: (_sigma(beta * x - z0) - y).abs(),
        ),
        Mistake(
            "added the baseline",
            "The log-ratio is compared with the baseline: log-ratio minus baseline.",
            lambda x, y, z0, beta: _kto(x, y, -z0, beta),
        ),
        Mistake(
            "treated undesirable completions like desirable ones",
            "With label 0 the loss must grow as the completion gets likelier: it is the score itself.",
            lambda x, y, z0, beta: _kto(x, torch.ones_like(y), z0, beta),
        ),
        Mistake(
            "turned the baseline's sign round for undesirable completions",
            "1 - sigma(beta * (z0 - logratio)) is sigma(beta * (logratio - z0)): the same comparison for both labels.",
            lambda x, y, z0, beta: torch.where(y > 0.5, _kto(x, y, z0, beta), _kto(x, y, -z0, beta)),
        ),
        Mistake(
            "turned the labels round",
            "The loss of a desirable completion (label 1) is smaller the likelier it is.",
            lambda x, y, z0, beta: _kto(x, 1 - y, z0, beta),
        ),
        Mistake(
            "left the baseline out",
            "This is UNA with absolute error. KTO compares the log-ratio with z0 first.",
            lambda x, y, z0, beta: _kto(x, y, 0.0, beta),
        ),
        Mistake(
            "forgot beta",
            "The implicit reward is beta times the log-ratio, and the baseline is multiplied by beta too.",
            lambda x, y, z0, beta: _kto(x, y, z0, 1.0),
        ),
        Mistake(
            "squared the error",
            "KTO's distance is the absolute error. Its square would be UNA with a baseline.",
            lambda x, y, z0, beta: _kto(x, y, z0, beta).square(),
        ),
    ),
    cases=(
        (numbers(6.0, -3.0, 6.0, -3.0), numbers(1.0, 1.0, 0.0, 0.0), 4.0, 0.2),
        (numbers(1.0, 2.5), numbers(0.0, 1.0), 0.5, 0.6),
    ),
)

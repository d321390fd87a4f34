"""Exercises of notebook 07."""

from __future__ import annotations

import torch
from torch import Tensor

from uftlab.course.checks import Exercise, Mistake, numbers
from uftlab.losses import rewards
from uftlab.study.gate import reward_share


def _ceiling(token_logps: Tensor, beta: float) -> Tensor:
    return rewards.ceiling(token_logps.sum(), beta)


CEILING = Exercise(
    praise="The whole completion counts: the more nats it has, the more room there is above one half.",
    right=_ceiling,
    mistakes=(
        Mistake(
            "averaged over the tokens",
            "The implicit reward adds up the tokens. So does the room above one half.",
            lambda logps, beta: rewards.ceiling(logps.mean(), beta),
        ),
        Mistake(
            "left the minus out",
            "A log-probability is below 0. The way up to probability 1 is its negative: a ceiling lies above one half.",
            lambda logps, beta: rewards.ceiling(-logps.sum(), beta),
        ),
        Mistake(
            "forgot the sigmoid",
            "That is the highest reward. The score is its sigmoid.",
            lambda logps, beta: -beta * logps.sum(),
        ),
        Mistake(
            "forgot beta",
            "The reward is beta times the log-ratio, so its highest value has beta in it.",
            lambda logps, beta: rewards.ceiling(logps.sum(), 1.0),
        ),
        Mistake(
            "took the probability instead of its logarithm",
            "How far a log-probability can still rise is a number of nats: minus the sum of the token logps.",
            lambda logps, beta: torch.sigmoid(beta * (1 - logps.sum().exp())),
        ),
    ),
    cases=(
        (numbers(-12.0, -20.0, -18.0), 0.01),
        (numbers(-0.5, -1.5), 0.3),
    ),
)

STRENGTH = Exercise(
    praise="The same strength for short and long completions: beta gets smaller as completions get longer.",
    right=lambda logps, nats: nats / (-logps).median(),
    mistakes=(
        Mistake(
            "took the mean instead of the median",
            "A few very long completions would decide. Take the completion in the middle.",
            lambda logps, nats: nats / (-logps).mean(),
        ),
        Mistake(
            "multiplied instead of divided",
            "beta times the nats of a completion shall be the strength. Solve for beta.",
            lambda logps, nats: nats * (-logps).median(),
        ),
        Mistake(
            "left the minus out",
            "Log-probabilities are below 0, and beta must be above 0.",
            lambda logps, nats: nats / logps.median(),
        ),
        Mistake(
            "added up all completions",
            "beta belongs to one usual completion, not to the whole table.",
            lambda logps, nats: nats / (-logps).sum(),
        ),
    ),
    cases=(
        (numbers(-10.0, -80.0, -20.0), 0.5),
        (numbers(-3.0, -4.0, -9.0, -50.0, -5.0), 2.0),
    ),
)


def _gate(r: Tensor, score: Tensor) -> Tensor:
    return rewards.squared_error_gate(r, score, 1.0)


def _start(r: Tensor, score: Tensor) -> Tensor:
    return _gate(torch.zeros_like(r), score)


def _share(added: Tensor, fixed: Tensor) -> Tensor:
    return added / (fixed + added)


SHARE = Exercise(
    praise="0 where the reward does nothing, one half where it takes away all that the score gives.",
    right=lambda r, score: torch.tensor(reward_share(r, score), dtype=torch.float64),
    mistakes=(
        Mistake(
            "divided by the fixed part alone",
            "The share is one part of both parts together: the added part stands below the line, too.",
            lambda r, score: (_gate(r, score) - _start(r, score)).abs().sum() / _start(r, score).abs().sum(),
        ),
        Mistake(
            "let the signs cancel",
            "Some rows are pulled up and some pushed down. Take the size of each row first, then add up.",
            lambda r, score: _share((_gate(r, score) - _start(r, score)).sum().abs(), _start(r, score).sum().abs()),
        ),
        Mistake(
            "compared the sizes instead of the weights",
            "A weight that changes its sign changes much, although its size stays. Subtract first, then take the size.",
            lambda r, score: _share(
                (_gate(r, score).abs() - _start(r, score).abs()).abs().sum(), _start(r, score).abs().sum()
            ),
        ),
        Mistake(
            "used the gate of cross-entropy",
            "With squared error the weight is 2 (score - s) s (1 - s).",
            lambda r, score: _share((torch.sigmoid(r) - 0.5).abs().sum(), (score - 0.5).abs().sum()),
        ),
        Mistake(
            "forgot the factor s (1 - s)",
            "The slope of the sigmoid belongs to the gradient of the squared error.",
            lambda r, score: _share(
                (2 * (score - torch.sigmoid(r)) - _start(r, score)).abs().sum(), _start(r, score).abs().sum()
            ),
        ),
    ),
    cases=(
        (numbers(1.1, -0.5, 2.0), numbers(1.0, 0.2, 0.6)),
        (numbers(0.02, -0.01), numbers(1.0, 0.3)),
    ),
)

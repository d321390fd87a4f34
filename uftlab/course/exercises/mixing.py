"""Exercises of notebook 06."""

from __future__ import annotations

import torch
from torch import Tensor

from uftlab.course.checks import Exercise, Mistake, numbers


def _batch(share: float, size: int, per_pair: float = 2.0) -> Tensor:
    """Demonstrations and pairs in a step of `size` completions, of which a share are demonstrations."""
    return numbers(share * size, (1 - share) * size / per_pair)


def _by_rows(share: float, size: int) -> Tensor:
    rows = size / (share + 2 * (1 - share))
    return numbers(share * rows, (1 - share) * rows)


BATCH = Exercise(
    praise="A pair has two completions, so it takes two places of the step.",
    right=_batch,
    mistakes=(
        Mistake(
            "counted a pair as one completion",
            "Chosen and rejected are both trained on. A pair takes two places.",
            lambda share, size: _batch(share, size, per_pair=1.0),
        ),
        Mistake(
            "took the share of rows, not of completions",
            "The share is of completions: share times size are demonstrations, and the rest is divided by two.",
            _by_rows,
        ),
        Mistake(
            "gave the share to the feedback",
            "The share is that of the demonstrations.",
            lambda share, size: _batch(1 - share, size),
        ),
        Mistake(
            "swapped the two numbers",
            "Both are right. Return the demonstrations first and the pairs second.",
            lambda share, size: _batch(share, size).flip(0),
        ),
    ),
    cases=((0.25, 32), (0.75, 32), (0.5, 16)),
)


def _parts(values: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """For each trial: the mean of its level, and all trials' mean."""
    means = torch.stack([values[levels == level].mean() for level in levels])
    return means, values.mean()


def _share(values: Tensor, levels: Tensor) -> Tensor:
    means, mean = _parts(values, levels)
    return (means - mean).square().sum() / (values - mean).square().sum()


def _level_means(values: Tensor, levels: Tensor) -> Tensor:
    return torch.stack([values[levels == level].mean() for level in levels.unique()])


EXPLAINED = Exercise(
    praise="One number says how much a factor matters. But it knows the levels that were tried, and no others.",
    right=_share,
    mistakes=(
        Mistake(
            "gave every level the same weight",
            "A level with four trials counts four times. Put the mean of its level in the place of each trial.",
            lambda v, at: (_level_means(v, at) - v.mean()).square().mean() / (v - v.mean()).square().mean(),
            (lambda v, at: (_level_means(v, at) - v.mean()).square().sum() / (v - v.mean()).square().sum(),),
        ),
        Mistake(
            "returned what the factor leaves unexplained",
            "Compare the means of the levels with the mean of all, not the trials with the mean of their level.",
            lambda v, at: 1 - _share(v, at),
        ),
        Mistake(
            "stopped before dividing",
            "Divide by the same sum for the trials themselves. Then 1 means: the factor explains everything.",
            lambda v, at: (_parts(v, at)[0] - v.mean()).square().sum(),
        ),
        Mistake(
            "compared with 0 instead of the mean",
            "Take the mean of all trials away first, above and below.",
            lambda v, at: _parts(v, at)[0].square().sum() / v.square().sum(),
        ),
        Mistake(
            "took the best level minus the worst",
            "That is a difference, in the unit of the metric. A share compares squares with squares.",
            lambda v, at: _level_means(v, at).max() - _level_means(v, at).min(),
        ),
        Mistake(
            "took the square root",
            "A share of the variance has squares above and below.",
            lambda v, at: _share(v, at).sqrt(),
        ),
    ),
    cases=(
        (numbers(0.1, 0.3, 0.2, 0.6, 0.5, 0.7), torch.tensor([0, 0, 0, 0, 1, 1])),
        (numbers(0.5, 0.4, 0.9, 0.2), torch.tensor([2, 2, 0, 1])),
    ),
)

REGAINED = Exercise(
    praise="Sums first, then one division: a world that lost little cannot shout.",
    right=lambda before, now: (before - now).sum() / before.sum(),
    mistakes=(
        Mistake(
            "averaged the shares of the worlds",
            "A world that lost next to nothing has a wild share. Add over the worlds first, then divide once.",
            lambda before, now: ((before - now) / before).mean(),
        ),
        Mistake(
            "returned what is still missing",
            "What is back is the distance before minus the distance now.",
            lambda before, now: now.sum() / before.sum(),
        ),
        Mistake(
            "returned nats instead of a share",
            "Divide by all that was lost.",
            lambda before, now: (before - now).mean(),
        ),
        Mistake(
            "divided by what is still missing",
            "The whole is what was lost before the reading, not what is left of it.",
            lambda before, now: (before - now).sum() / now.sum(),
        ),
        Mistake(
            "turned the sign round",
            "A distance that becomes smaller is something gained.",
            lambda before, now: (now - before).sum() / before.sum(),
        ),
    ),
    cases=((numbers(0.4, 0.2, 0.02), numbers(0.1, 0.1, 0.03)), (numbers(0.3, 0.5), numbers(0.2, 0.1))),
)

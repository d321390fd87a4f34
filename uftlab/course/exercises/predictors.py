"""Exercises of notebook 09."""

from __future__ import annotations

import torch
from torch import Tensor

from uftlab.course.checks import Exercise, Mistake, numbers


def _ranks(values: Tensor) -> Tensor:
    return values.argsort().argsort().double()


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(), y - y.mean()
    return (x @ y) / (x.norm() * y.norm())


RANK_CORRELATION = Exercise(
    praise="Only the order counts: 1 where both orders are equal, however crooked the line is.",
    right=lambda x, y: _correlation(_ranks(x), _ranks(y)),
    mistakes=(
        Mistake(
            "forgot to rank",
            "That is Pearson's correlation: one far point decides. Replace each value by its rank first.",
            _correlation,
        ),
        Mistake(
            "used argsort once",
            "argsort says which value comes first. The rank of each value is argsort of argsort.",
            lambda x, y: _correlation(x.argsort().double(), y.argsort().double()),
        ),
        Mistake(
            "ranked one side only",
            "Both sides have to be ranks.",
            lambda x, y: _correlation(_ranks(x), y),
        ),
        Mistake(
            "ranked one side downwards",
            "Then a perfect predictor has -1. Rank both sides from the smallest.",
            lambda x, y: -_correlation(_ranks(x), _ranks(y)),
        ),
        Mistake(
            "took the covariance",
            "Divide by both standard deviations, so that it ends at 1.",
            lambda x, y: ((_ranks(x) - _ranks(x).mean()) * (_ranks(y) - _ranks(y).mean())).mean(),
        ),
    ),
    cases=(
        (numbers(0.1, 0.4, 0.2, 9.0, 0.3), numbers(1.0, 3.0, 2.0, 2.5, 0.5)),
        (numbers(5.0, 1.0, 4.0, 2.0, 8.0, 3.0), numbers(0.2, 0.1, 0.9, 0.8, 0.6, 0.7)),
    ),
)


def _by_band(values: Tensor, band: Tensor, centred: bool = True, rank: bool = True) -> Tensor:
    """Ranks within each band, or the values themselves, minus their mean there."""
    made = values.clone().double()
    for number in band.unique():
        here = band == number
        own = _ranks(values[here]) if rank else made[here]
        made[here] = own - own.mean() if centred else own
    return made


def _mean_of_bands(x: Tensor, y: Tensor, band: Tensor) -> Tensor:
    each = [_correlation(_ranks(x[band == b]), _ranks(y[band == b])) for b in band.unique()]
    return torch.stack(each).mean()


AT_EQUAL = Exercise(
    praise="What both sides owe to the band is gone. What is left is order among equals.",
    right=lambda x, y, band: _correlation(_by_band(x, band), _by_band(y, band)),
    mistakes=(
        Mistake(
            "ignored the bands",
            "That compares all trials. Rank within each band.",
            lambda x, y, band: _correlation(_ranks(x), _ranks(y)),
        ),
        Mistake(
            "ranked over all trials and subtracted the mean of the band",
            "The ranks have to be taken within the band, not before.",
            lambda x, y, band: _correlation(
                _by_band(_ranks(x), band, rank=False), _by_band(_ranks(y), band, rank=False)
            ),
        ),
        Mistake(
            "forgot to subtract the mean of the band",
            "A large band has larger ranks. Subtract the mean rank of the band on both sides.",
            lambda x, y, band: _correlation(_by_band(x, band, centred=False), _by_band(y, band, centred=False)),
        ),
        Mistake(
            "averaged the correlations of the bands",
            "A band of three would then count as much as one of thirty. Correlate once, over all trials.",
            _mean_of_bands,
        ),
        Mistake(
            "forgot to rank",
            "Rank within the band first, then subtract the mean rank.",
            lambda x, y, band: _correlation(_by_band(x, band, rank=False), _by_band(y, band, rank=False)),
        ),
    ),
    cases=(
        (
            numbers(1.0, 3.0, 2.0, 11.0, 14.0, 12.0, 19.0, 15.0),
            numbers(0.3, 0.1, 0.2, 1.1, 1.0, 1.6, 1.9, 1.3),
            torch.tensor([0, 0, 0, 1, 1, 1, 1, 1]),
        ),
        (
            numbers(2.0, 9.0, 4.0, 1.0, 8.0, 3.0),
            numbers(0.5, 0.9, 0.1, 2.0, 2.2, 2.9),
            torch.tensor([0, 1, 0, 1, 1, 0]),
        ),
    ),
)

CAME_BACK = Exercise(
    praise="Add up first, divide afterwards: a world that lost almost nothing cannot decide.",
    right=lambda before, now: 1 - now.sum() / before.sum(),
    mistakes=(
        Mistake(
            "averaged the shares of the worlds",
            "A world that lost little has a wild share. Add up what came back over all worlds, then divide.",
            lambda before, now: (1 - now / before).mean(),
        ),
        Mistake(
            "returned what is still lost",
            "Back and still lost add up to 1.",
            lambda before, now: now.sum() / before.sum(),
        ),
        Mistake(
            "returned nats instead of a share",
            "Divide what came back by all that was lost.",
            lambda before, now: (before - now).sum(),
        ),
        Mistake(
            "divided by what is still lost",
            "All that was lost, before the reading, stands below the line.",
            lambda before, now: (before - now).sum() / now.sum(),
        ),
    ),
    cases=(
        (numbers(0.4, 0.2), numbers(0.1, 0.1)),
        (numbers(0.5, 0.01, 0.3), numbers(0.1, 0.03, 0.3)),
    ),
)

"""Exercises of notebook 04."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor

from uftlab.course.checks import Exercise, Mistake, numbers
from uftlab.study.comparisons import holm


def _t_half_width(differences: Tensor, correction: int = 1) -> Tensor:
    """Half of the 95 % t interval of the mean of the differences."""
    n = len(differences)
    quantile = stats.t.ppf(0.975, n - 1)
    return differences.std(correction=correction) / n**0.5 * quantile


def _unpaired_half_width(a: Tensor, b: Tensor, freedom: float | None = None) -> Tensor:
    """The interval of two samples that have nothing to do with each other: 2 n - 2 degrees of freedom, or others."""
    n = len(a)
    return ((a.var() + b.var()) / n).sqrt() * stats.t.ppf(0.975, freedom or 2 * n - 2)


def _welch(a: Tensor, b: Tensor) -> Tensor:
    """The same with the degrees of freedom of Welch (1947)."""
    v, w = a.var().item(), b.var().item()
    return _unpaired_half_width(a, b, (v + w) ** 2 * (len(a) - 1) / (v**2 + w**2))


PAIRED_HALF_WIDTH = Exercise(
    praise="Each world is its own control: you subtracted first and averaged afterwards.",
    right=lambda a, b: _t_half_width(a - b),
    mistakes=(
        Mistake(
            "used the interval of unpaired samples",
            "Both methods ran in the same worlds. Subtract world by world first, so that easy and hard worlds cancel.",
            _unpaired_half_width,
            (
                _welch,
                lambda a, b: _unpaired_half_width(a, b, len(a) - 1.0),
                lambda a, b: _unpaired_half_width(a, b, float("inf")),
            ),
        ),
        Mistake(
            "added up the intervals of the two methods",
            "Two intervals say nothing about the difference in one world. Subtract world by world first.",
            lambda a, b: _t_half_width(a) + _t_half_width(b),
            (lambda a, b: (_t_half_width(a) - _t_half_width(b)).abs(),),
        ),
        Mistake(
            "used 1.96 instead of Student's t",
            "With few worlds the spread itself is uncertain: take the 0.975 quantile of t, n - 1 degrees of freedom.",
            lambda a, b: _t_half_width(a - b) / stats.t.ppf(0.975, len(a) - 1) * stats.norm.ppf(0.975),
        ),
        Mistake(
            "used the standard deviation instead of the standard error",
            "The mean of n worlds varies less than one world does: divide by the square root of n.",
            lambda a, b: _t_half_width(a - b) * len(a) ** 0.5,
        ),
        Mistake(
            "divided by n instead of n - 1 in the variance",
            "The mean was estimated from the same worlds: use the corrected standard deviation.",
            lambda a, b: _t_half_width(a - b, correction=0),
        ),
        Mistake(
            "returned the whole width",
            "From the lower end to the upper one it is twice as far as from the mean to an end.",
            lambda a, b: 2 * _t_half_width(a - b),
        ),
        Mistake(
            "took the one-sided quantile",
            "Two tails of 2.5 % each: the quantile at 0.975, not at 0.95.",
            lambda a, b: _t_half_width(a - b) / stats.t.ppf(0.975, len(a) - 1) * stats.t.ppf(0.95, len(a) - 1),
        ),
    ),
    cases=(
        (numbers(0.62, 0.70, 0.55, 0.66, 0.58), numbers(0.60, 0.61, 0.50, 0.65, 0.49)),
        (numbers(0.30, 0.45, 0.52), numbers(0.41, 0.48, 0.70)),
    ),
    shape="Return one number: half the width of one interval.",
)


def _by_rank(p: Tensor, factors: Tensor, running: bool = True, cap: bool = True, restore: bool = True) -> Tensor:
    """p in ascending order times the factors, perhaps with a running maximum, cut at 1, and in the old order."""
    order = p.argsort()
    raised = p[order] * factors
    raised = raised.cummax(0).values if running else raised
    raised = raised.clamp(max=1) if cap else raised
    return raised[order.argsort()] if restore else raised


def _falling(p: Tensor) -> Tensor:
    """m, m - 1, ..., 1 for m values."""
    return torch.arange(len(p), 0, -1)


def _over_rank(p: Tensor) -> Tensor:
    """p times m over its rank, at most 1."""
    return (p * len(p) / (p.argsort().argsort() + 1)).clamp(max=1)


HOLM = Exercise(
    praise="The smallest p pays for all tests, the next one for one test less, and none falls below one before it.",
    right=lambda p: torch.tensor(holm(p.tolist()), dtype=torch.float64),
    mistakes=(
        Mistake(
            "forgot to sort",
            "The factor m belongs to the smallest p, not to the one that comes first in the list.",
            lambda p: (p * _falling(p)).cummax(0).values.clamp(max=1),
        ),
        Mistake(
            "forgot the running maximum",
            "A larger p must not end below a smaller one: each takes the largest value up to its own rank.",
            lambda p: _by_rank(p, _falling(p), running=False),
        ),
        Mistake(
            "multiplied every p by the number of tests",
            "That is Bonferroni's correction. Holm multiplies the second smallest p by m - 1, and so on.",
            lambda p: (p * len(p)).clamp(max=1),
        ),
        Mistake(
            "divided by the rank",
            "That is the correction of Benjamini and Hochberg. Holm multiplies by m, m - 1, and so on down to 1.",
            _over_rank,
        ),
        Mistake(
            "let a p grow above 1",
            "A probability ends at 1.",
            lambda p: _by_rank(p, _falling(p), cap=False),
        ),
        Mistake(
            "returned the values in ascending order",
            "Put each corrected value back to the place of its own p.",
            lambda p: _by_rank(p, _falling(p), restore=False),
        ),
        Mistake(
            "counted the ranks from 0 and multiplied the largest p by 0",
            "The smallest p of m has the factor m, the largest has the factor 1.",
            lambda p: _by_rank(p, _falling(p) - 1),
        ),
    ),
    cases=(
        (numbers(0.04, 0.01, 0.03, 0.5),),
        (numbers(0.6, 0.7),),
    ),
    shape="Return one corrected value for each p.",
)

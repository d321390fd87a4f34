"""Exercises of notebook 04."""

from __future__ import annotations

from scipy import stats
from torch import Tensor

from uftlab.course.checks import Exercise, Mistake, numbers


def _t_half_width(differences: Tensor, correction: int = 1) -> Tensor:
    """Half of the 95 % t interval of the mean of the differences."""
    n = len(differences)
    quantile = stats.t.ppf(0.975, n - 1)
    return differences.std(correction=correction) / n**0.5 * quantile


def _unpaired_half_width(a: Tensor, b: Tensor) -> Tensor:
    n = len(a)
    return ((a.var() + b.var()) / n).sqrt() * stats.t.ppf(0.975, 2 * n - 2)


PAIRED_HALF_WIDTH = Exercise(
    praise="Each seed is its own control: you subtracted first and averaged afterwards.",
    right=lambda a, b: _t_half_width(a - b),
    mistakes=(
        Mistake(
            "ignored the pairing",
            "Both methods ran in the same worlds. Subtract seed by seed first, so that easy and hard worlds cancel.",
            _unpaired_half_width,
        ),
        Mistake(
            "used 1.96 instead of Student's t",
            "With few seeds the spread itself is uncertain: take the 0.975 quantile of t, n - 1 degrees of freedom.",
            lambda a, b: _t_half_width(a - b) / stats.t.ppf(0.975, len(a) - 1) * stats.norm.ppf(0.975),
        ),
        Mistake(
            "used the standard deviation instead of the standard error",
            "The mean of n seeds varies less than one seed does: divide by the square root of n.",
            lambda a, b: _t_half_width(a - b) * len(a) ** 0.5,
        ),
        Mistake(
            "divided by n instead of n - 1 in the variance",
            "The mean was estimated from the same seeds: use the corrected standard deviation.",
            lambda a, b: _t_half_width(a - b, correction=0),
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
)

INTERACTION = Exercise(
    praise="That is what mixing adds under one loss beyond what it adds under the other.",
    right=lambda seq_sep, mix_sep, seq_uni, mix_uni: (mix_uni - seq_uni) - (mix_sep - seq_sep),
    mistakes=(
        Mistake(
            "took the effect of mixing, not the interaction",
            "This averages what mixing adds under both losses. The interaction is the difference of the two gains.",
            lambda a, b, c, d: ((d - c) + (b - a)) / 2,
        ),
        Mistake(
            "took the effect of the loss, not the interaction",
            "This averages what the unified loss adds. The interaction is a difference of differences.",
            lambda a, b, c, d: ((d - b) + (c - a)) / 2,
        ),
        Mistake(
            "compared only the two ends",
            "From one corner to the opposite one both things change at once, so neither is separated.",
            lambda a, b, c, d: d - a,
        ),
        Mistake(
            "turned the sign round",
            "Positive must mean: mixing adds more under the unified loss.",
            lambda a, b, c, d: (b - a) - (d - c),
        ),
    ),
    cases=(
        (numbers(0.2, 0.3), numbers(0.5, 0.4), numbers(0.3, 0.35), numbers(0.4, 0.7)),
        (numbers(0.9), numbers(0.7), numbers(0.1), numbers(0.6)),
    ),
)

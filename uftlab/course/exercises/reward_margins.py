"""Exercises of notebook 05."""

from __future__ import annotations

import torch
from torch import Tensor

from uftlab.course.checks import Exercise, Mistake, numbers
from uftlab.course.held_out import calibration_error, in_bins
from uftlab.losses import rewards


def _both(margins: Tensor, right_order: Tensor) -> Tensor:
    return torch.stack([margins.mean(), right_order.double().mean()])


def _pair(chosen: Tensor, rejected: Tensor) -> Tensor:
    return _both(rewards.margin(chosen, rejected), chosen > rejected)


def _margin_and_accuracy(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float) -> Tensor:
    return _pair(rewards.implicit_reward(pc, rc, beta), rewards.implicit_reward(pr, rr, beta))


MARGIN = Exercise(
    praise="Mean margin and accuracy. The first is as large as beta makes it; the second is the same for every beta.",
    right=_margin_and_accuracy,
    mistakes=(
        Mistake(
            "left the reference out",
            "Short and common answers are likely under every model. What counts is the gain over the reference.",
            lambda pc, pr, rc, rr, beta: _pair(beta * pc, beta * pr),
        ),
        Mistake(
            "took the accuracy of log-probabilities instead of log-ratios",
            "The margin is right. Count the pairs with the same rewards: those whose margin is above 0.",
            lambda pc, pr, rc, rr, beta: _both(beta * ((pc - rc) - (pr - rr)), pc > pr),
        ),
        Mistake(
            "gave beta to one side only",
            "Both completions are paid in the same currency: beta times the log-ratio, chosen and rejected alike.",
            lambda pc, pr, rc, rr, beta: _pair(beta * (pc - rc), pr - rr),
        ),
        Mistake(
            "forgot beta",
            "Every implicit reward carries beta, so the margin does too.",
            lambda pc, pr, rc, rr, beta: _pair(pc - rc, pr - rr),
        ),
        Mistake(
            "compared the means instead of each pair",
            "Accuracy is a share of pairs: compare the two rewards of each prompt, then average.",
            lambda pc, pr, rc, rr, beta: _both(beta * ((pc - rc) - (pr - rr)), (pc - rc).mean() > (pr - rr).mean()),
        ),
        Mistake(
            "counted chosen completions with a positive reward",
            "A pair is right when chosen lies above rejected, even if both are below 0.",
            lambda pc, pr, rc, rr, beta: _both(beta * ((pc - rc) - (pr - rr)), pc > rc),
        ),
        Mistake(
            "turned the sign round",
            "Margin means chosen minus rejected.",
            lambda pc, pr, rc, rr, beta: _margin_and_accuracy(pr, pc, rr, rc, beta),
        ),
        Mistake(
            "swapped the two results",
            "Both numbers are right. Return the mean margin first and the accuracy second.",
            lambda *case: _margin_and_accuracy(*case).flip(0),
        ),
        Mistake(
            "returned the mean margin alone",
            "The accuracy is missing: the mean of `margins > 0`. Return both numbers, the margin first.",
            lambda *case: _margin_and_accuracy(*case)[0],
        ),
    ),
    cases=(
        (
            numbers(-9.0, -12.0, -7.0, -20.0, -6.5),
            numbers(-8.0, -14.0, -9.5, -18.0, -7.0),
            numbers(-10.0, -11.0, -6.0, -22.0, -6.0),
            numbers(-8.5, -12.0, -9.0, -21.0, -7.5),
            0.5,
        ),
        (numbers(-3.0, -5.0), numbers(-4.0, -2.0), numbers(-3.5, -6.0), numbers(-4.5, -2.5), 0.1),
    ),
    shape="Return two numbers: the mean of the margins, and the share of the pairs with a margin above 0.",
)

TOKEN_REWARDS = Exercise(
    praise="One reward for each word, and they add up to the reward of the completion.",
    right=rewards.implicit_reward,
    mistakes=(
        Mistake(
            "averaged over the tokens",
            "Divided by their number they add up to a mean, not to the reward of the completion.",
            lambda p, q, beta: rewards.implicit_reward(p, q, beta) / len(p),
        ),
        Mistake(
            "forgot the reference",
            "A rare word is not a bad word: compare it with what the reference gave it.",
            lambda p, q, beta: beta * p,
        ),
        Mistake(
            "added up as you went along",
            "Each word gets its own reward; the running total is another picture.",
            lambda p, q, beta: rewards.implicit_reward(p, q, beta).cumsum(0),
        ),
        Mistake(
            "forgot beta",
            "Every implicit reward carries beta, the small ones too.",
            lambda p, q, beta: p - q,
        ),
        Mistake(
            "gave the reward of the whole completion to every token",
            "The words then add up to many times the reward. Do not sum at all.",
            lambda p, q, beta: rewards.implicit_reward(p.sum(), q.sum(), beta).expand(len(p)),
        ),
        Mistake(
            "shared the reward out evenly",
            "The sum is right, but every word got the same: subtract token by token.",
            lambda p, q, beta: rewards.implicit_reward(p.mean(), q.mean(), beta).expand(len(p)),
        ),
        Mistake(
            "returned one number for the completion",
            "Keep one number for each token.",
            lambda p, q, beta: rewards.implicit_reward(p.sum(), q.sum(), beta),
        ),
        Mistake(
            "used ratios of probabilities without the logarithm",
            "The inputs are logarithms already: subtract them. Ratios would multiply, not add up.",
            lambda p, q, beta: beta * torch.exp(p - q),
        ),
    ),
    cases=(
        (numbers(-0.2, -1.5, -0.3), numbers(-0.7, -2.0, -0.9), 0.5),
        (numbers(-2.0, -0.1), numbers(-1.2, -0.4), 0.1),
    ),
    shape="Return one number for each token.",
)


def _unweighted(implicit: Tensor, scores: Tensor, bins: int) -> Tensor:
    _, said, given = in_bins(implicit, scores, bins)
    return (said - given).abs().mean()


def _signed(implicit: Tensor, scores: Tensor, bins: int) -> Tensor:
    counts, said, given = in_bins(implicit, scores, bins)
    return (counts / counts.sum() * (said - given)).sum()


def _squared(implicit: Tensor, scores: Tensor, bins: int) -> Tensor:
    counts, said, given = in_bins(implicit, scores, bins)
    return (counts / counts.sum() * (said - given) ** 2).sum()


CALIBRATION = Exercise(
    praise="That is the expected calibration error. It says whether the numbers are right, not whether the order is.",
    right=calibration_error,
    mistakes=(
        Mistake(
            "gave every bin the same weight",
            "A bin with three rows is no full vote: weigh each by its share of the rows.",
            _unweighted,
        ),
        Mistake(
            "let errors of different signs cancel",
            "Too high here and too low there is not calibrated: take the absolute value in each bin, then average.",
            _signed,
        ),
        Mistake(
            "left the bins out",
            "The error of single rows holds the raters' noise too. Average within each bin before you compare.",
            lambda implicit, scores, bins: (implicit - scores).abs().mean(),
        ),
        Mistake(
            "squared the gaps",
            "The expected calibration error takes absolute gaps; squares belong to the Brier score.",
            _squared,
        ),
        Mistake(
            "made the bins of the feedback instead of the implicit score",
            "The question is: when the policy says 0.7, what did people give? So bin by what the policy says.",
            lambda implicit, scores, bins: calibration_error(scores, implicit, bins),
        ),
    ),
    cases=(
        (numbers(0.05, 0.15, 0.35, 0.55, 0.9, 0.95), numbers(0.2, 0.6, 0.1, 0.8, 0.7, 1.0), 4),
        (numbers(0.1, 0.2, 0.3, 0.8, 1.0), numbers(0.4, 0.9, 0.0, 0.3, 0.95), 2),
    ),
    shape="Return one number for all rows together.",
)

"""Exercises of notebook 11."""

from __future__ import annotations

import torch
from torch import Tensor

from uftlab.course.checks import Exercise, Mistake, numbers
from uftlab.losses.family import una_squared_error_loss
from uftlab.losses.rewards import implicit_reward, implicit_score

FORGOTTEN = Exercise(
    praise="15 % on IFEval, half on TruthfulQA. The rest SFT never had, so nobody could forget it.",
    right=lambda sft, pipeline, mixture: (sft - pipeline) / (mixture - pipeline),
    mistakes=(
        Mistake(
            "returned the other part",
            "Forgotten is what SFT had and the pipeline has no longer: SFT minus pipeline.",
            lambda sft, pipeline, mixture: (mixture - sft) / (mixture - pipeline),
        ),
        Mistake(
            "divided by the gain over SFT",
            "The whole is the advantage over the pipeline: mixture minus pipeline.",
            lambda sft, pipeline, mixture: (sft - pipeline) / (mixture - sft),
        ),
        Mistake(
            "divided by the mixture's score",
            "The question is what share of the advantage is forgetting. The advantage is a difference.",
            lambda sft, pipeline, mixture: (sft - pipeline) / mixture,
        ),
        Mistake(
            "divided by the score of SFT",
            "That is how much of SFT was lost. The question is how much of the advantage it explains.",
            lambda sft, pipeline, mixture: (sft - pipeline) / sft,
        ),
        Mistake(
            "stopped before dividing",
            "Points become a share when you divide by the whole advantage.",
            lambda sft, pipeline, mixture: sft - pipeline,
        ),
        Mistake(
            "turned the sign round",
            "A loss of the pipeline is SFT minus pipeline.",
            lambda sft, pipeline, mixture: (pipeline - sft) / (mixture - pipeline),
        ),
    ),
    cases=((numbers(29.5, 51.06), numbers(26.64, 47.83), numbers(46.03, 54.05)),),
)


def _variance(score: Tensor, questions: int) -> Tensor:
    return score * (100 - score) / questions


HALF_WIDTH = Exercise(
    praise="Ten seconds with a table, a square root, and you know which of its differences to read.",
    right=lambda p, q, n: 1.96 * (_variance(p, n) + _variance(q, n)).sqrt(),
    mistakes=(
        Mistake(
            "added the standard errors instead of the variances",
            "Noise of two models adds up in squares: add the variances, then take the root.",
            lambda p, q, n: 1.96 * (_variance(p, n).sqrt() + _variance(q, n).sqrt()),
        ),
        Mistake(
            "took the noise of one model only",
            "Both scores are noisy, so both have a variance.",
            lambda p, q, n: 1.96 * _variance(p, n).sqrt(),
        ),
        Mistake(
            "subtracted the variances",
            "The scores are subtracted, but their noise is added.",
            lambda p, q, n: 1.96 * (_variance(p, n) - _variance(q, n)).abs().sqrt(),
        ),
        Mistake(
            "took the noise of one model whose score is the difference",
            "A difference is no share of right answers. Take the variance of each score, and add the two.",
            lambda p, q, n: 1.96 * ((p - q).abs() * (100 - (p - q).abs()) / n).sqrt(),
        ),
        Mistake(
            "forgot the 1.96",
            "One standard error covers 68 %. For 95 % multiply by 1.96.",
            lambda p, q, n: (_variance(p, n) + _variance(q, n)).sqrt(),
        ),
        Mistake(
            "forgot the number of questions",
            "That is the spread of one question. The mean of n varies less: divide the variance by n.",
            lambda p, q, n: 1.96 * (_variance(p, 1) + _variance(q, 1)).sqrt(),
        ),
        Mistake(
            "forgot the square root",
            "A variance is in squared points. The half width is in points.",
            lambda p, q, n: 1.96 * (_variance(p, n) + _variance(q, n)),
        ),
    ),
    cases=((numbers(46.03, 29.5), numbers(29.5, 26.64), 541), (numbers(54.05), numbers(47.83), 817)),
)


def _squared(policy: Tensor, reference: Tensor, scores: Tensor, beta: float) -> Tensor:
    return una_squared_error_loss(policy, reference, scores, beta)


SCORE_LOSS = Exercise(
    praise="Every row meets its own rating. A batch of two is enough to tell.",
    right=_squared,
    mistakes=(
        Mistake(
            "read the score of the first row for all rows",
            "This is what the published script does. With one row per batch nobody sees it. Use the whole vector.",
            lambda p, q, s, beta: _squared(p, q, s[0].expand(len(p)), beta),
        ),
        Mistake(
            "gave every row the score 1",
            "Equation 7 is printed for demonstrations. Here each row has its own score: put it in the place of 1.",
            lambda p, q, s, beta: _squared(p, q, torch.ones_like(s), beta),
        ),
        Mistake(
            "kept the minus sign that is printed in the UNA paper",
            "Made small, minus a square drives the score away from its target. The loss is the plus.",
            lambda p, q, s, beta: -_squared(p, q, s, beta),
        ),
        Mistake(
            "left the reference out",
            "The reward is beta times the log-ratio: policy minus reference.",
            lambda p, q, s, beta: _squared(p, torch.zeros_like(q), s, beta),
        ),
        Mistake(
            "left the sigmoid out",
            "A rating lies between 0 and 1. The sigmoid brings the reward there.",
            lambda p, q, s, beta: (implicit_reward(p, q, beta) - s).square(),
        ),
        Mistake(
            "forgot beta",
            "The reward is beta times the log-ratio.",
            lambda p, q, s, beta: _squared(p, q, s, 1.0),
        ),
        Mistake(
            "took the absolute error",
            "Equation 7 squares the distance.",
            lambda p, q, s, beta: (implicit_score(implicit_reward(p, q, beta)) - s).abs(),
        ),
        Mistake(
            "averaged over the rows",
            "Return one number for each row. Then a wrong row can be seen.",
            lambda p, q, s, beta: _squared(p, q, s, beta).mean(),
        ),
    ),
    cases=((numbers(-10.0, -14.0, -7.0), numbers(-12.0, -13.0, -9.0), numbers(0.9, 0.2, 0.6), 0.5),),
)

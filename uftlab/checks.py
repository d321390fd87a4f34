"""Exercises that answer back: each check runs the reader's answer and names the likely mistake.

A check never raises at a reader: it returns a `Result` that a notebook shows in words. With `strict=True`
(a notebook run with its solutions) anything but right raises `WrongAnswerError`. A mistake is recognised when
the answer agrees with what that mistake would give, on every case; the cases are chosen so that no two rules
agree on all of them.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from scipy import stats
from torch import Tensor

from uftlab import bandit, rewards

Rule = Callable[..., Tensor]
ACCENTS = {"right": "#009E73", "not yet": "#0072B2", "not right": "#D55E00"}


class WrongAnswerError(AssertionError):
    """A strict check met an answer that is not right."""


@dataclass(frozen=True)
class Result:
    """What a check found: `verdict` in a word, `message` in a sentence and, where there is one, a `hint`."""

    verdict: Literal["right", "not yet", "not right"]
    message: str
    hint: str = ""

    def __bool__(self) -> bool:
        return self.verdict == "right"

    def __str__(self) -> str:
        return f"{self.verdict.capitalize()}. {self.message} {self.hint}".strip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        hint = f"<br><i>Hint:</i> {html.escape(self.hint)}" if self.hint else ""
        return (
            f'<div role="status" style="border-left: 6px solid {ACCENTS[self.verdict]}; padding: 6px 12px; '
            f'font-size: 120%"><b>{self.verdict.capitalize()}.</b> {html.escape(self.message)}{hint}</div>'
        )


@dataclass(frozen=True)
class Mistake:
    """A wrong rule that people are likely to write, with the hint that leads away from it."""

    name: str
    hint: str
    rule: Rule


@dataclass(frozen=True)
class Exercise:
    """A function to be written: the right rule, the likely wrong ones, and inputs on which all of them differ."""

    praise: str
    right: Rule
    mistakes: Sequence[Mistake]
    cases: Sequence[tuple[Any, ...]]

    def check(self, answer: object, strict: bool = False) -> Result:
        """Run the answer on every case and compare.

        Args:
            answer: the reader's function; one that was left as `...` or raises NotImplementedError is "not yet".
            strict: raise instead of explaining.

        Raises:
            WrongAnswerError: only when strict, and only for an answer that is not right.
        """
        result = self._judge(answer)
        if strict and not result:
            raise WrongAnswerError(str(result))
        return result

    def _judge(self, answer: object) -> Result:
        waiting = Result("not yet", "Write the function, then run this cell again.")
        if answer is None or answer is ...:
            return waiting
        if not callable(answer):
            return Result("not right", f"A function was expected; got {type(answer).__name__}.")
        given = []
        for case in self.cases:
            try:
                value = answer(*(x.clone() if isinstance(x, Tensor) else x for x in case))
            except NotImplementedError:
                return waiting
            except Exception as error:  # a participant's typing error is an answer, not a crash
                return Result("not right", f"Your function stopped with {type(error).__name__}: {error}.")
            if value is None or value is ...:
                return waiting
            try:
                given.append(torch.as_tensor(value, dtype=torch.float64).detach())
            except (TypeError, ValueError, RuntimeError):
                kind = type(value).__name__
                return Result("not right", f"Your function returned a {kind}.", "Return a tensor of numbers.")
        wanted = [self.right(*case) for case in self.cases]
        if _agree(given, wanted):
            return Result("right", self.praise)
        for mistake in self.mistakes:
            if _agree(given, [mistake.rule(*case) for case in self.cases]):
                return Result("not right", f"It looks as if you {mistake.name}.", mistake.hint)
        if given[0].shape != wanted[0].shape:
            shapes = f"{tuple(wanted[0].shape)}; got {tuple(given[0].shape)}"
            return Result("not right", f"The result must have shape {shapes}.", "Which sum goes over what?")
        hint = f"For the inputs {_shown(self.cases[0])} it should be {_shown(wanted[:1])}; got {_shown(given[:1])}."
        return Result("not right", "The numbers differ.", hint)


def _agree(given: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return all(
        g.shape == w.shape and torch.allclose(g, w.double(), rtol=1e-4, atol=1e-6, equal_nan=True)
        for g, w in zip(given, wanted, strict=True)
    )


def _shown(values: Sequence[Any]) -> str:
    texts = [
        str([round(x, 3) for x in v.flatten().tolist()]) if isinstance(v, Tensor) and v.ndim else f"{float(v):.3g}"
        for v in values
    ]
    return ", ".join(texts)


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ------------------------------------------------------------------------------ notebook 01


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
            "A large beta must hold the policy near the reference: it makes the rewards count for less.",
            lambda p, r, beta: bandit.optimum(p, r, 1 / beta),
        ),
        Mistake(
            "left the reference out",
            "A softmax of r / beta forgets where the policy started: weigh each completion by its pi_ref.",
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
        (_numbers(0.5, 0.3, 0.2), _numbers(1.0, 0.0, -2.0), 0.5),
        (_numbers(0.1, 0.9), _numbers(3.0, 1.0), 2.0),
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
            "Every implicit reward carries beta, else rewards of two settings cannot be compared.",
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
        (_numbers(-0.2, -1.5, -0.3), _numbers(-0.7, -2.0, -0.9), 0.5),
        (_numbers(-2.0, -0.1), _numbers(-1.2, -0.4), 0.1),
    ),
)


def check_optimum(answer: object, strict: bool = False) -> Result:
    """Exercise 1 of notebook 01: `(reference_probs, rewards, beta)` -> probabilities of the optimum."""
    return OPTIMUM.check(answer, strict)


def check_token_reward(answer: object, strict: bool = False) -> Result:
    """Exercise 2 of notebook 01: token log-probabilities `(policy, reference, beta)` -> one implicit reward."""
    return TOKEN_REWARD.check(answer, strict)


# ------------------------------------------------------------------------------ notebook 04


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
        (_numbers(0.62, 0.70, 0.55, 0.66, 0.58), _numbers(0.60, 0.61, 0.50, 0.65, 0.49)),
        (_numbers(0.30, 0.45, 0.52), _numbers(0.41, 0.48, 0.70)),
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
        (_numbers(0.2, 0.3), _numbers(0.5, 0.4), _numbers(0.3, 0.35), _numbers(0.4, 0.7)),
        (_numbers(0.9), _numbers(0.7), _numbers(0.1), _numbers(0.6)),
    ),
)


def check_half_width(answer: object, strict: bool = False) -> Result:
    """Exercise 1 of notebook 04: values of two methods by seed -> half the 95 % interval of their mean difference."""
    return PAIRED_HALF_WIDTH.check(answer, strict)


def check_interaction(answer: object, strict: bool = False) -> Result:
    """Exercise 2 of notebook 04: the four cells of the 2 x 2, by seed -> the interaction, by seed."""
    return INTERACTION.check(answer, strict)

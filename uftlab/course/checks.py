"""Exercises with feedback: each check runs the answer of the reader and names the likely mistake.

A check raises no errors. It returns a `Result`, which a notebook shows in words. A mistake is recognised if the answer
equals the values of that mistake on every case. The cases are chosen so that no two rules are equal on all of them.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Rule = Callable[..., Tensor]
ACCENTS = {"right": "#009E73", "not yet": "#0072B2", "not right": "#D55E00"}


@dataclass(frozen=True)
class Result:
    """The result of a check: a `verdict`, a `message` of one sentence and sometimes a `hint`."""

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
    """A wrong rule that readers are likely to write, and a hint that helps to correct it."""

    name: str
    hint: str
    rule: Rule


@dataclass(frozen=True)
class Exercise:
    """A function that the reader writes: the right rule, likely wrong rules, and inputs on which all rules differ."""

    praise: str
    right: Rule
    mistakes: Sequence[Mistake]
    cases: Sequence[tuple[Any, ...]]

    def check(self, answer: object, solutions: bool = False) -> Result:
        """Run the answer on every case and compare.

        Args:
            answer: the function of the reader. If it is `...` or raises NotImplementedError, the verdict is "not yet".
            solutions: check the right rule instead, for notebooks that run without a reader.
        """
        return self._judge(self.right if solutions else answer)

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
            except Exception as error:  # an error in the code of the reader is a wrong answer
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
        wrong = next(i for i, (g, w) in enumerate(zip(given, wanted, strict=True)) if not _agree([g], [w]))
        inputs = ", ".join(map(_shown, self.cases[wrong]))
        hint = f"For the inputs {inputs} it should be {_shown(wanted[wrong])}; got {_shown(given[wrong])}."
        return Result("not right", "The numbers differ.", hint)


def _agree(given: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return all(
        g.shape == w.shape and torch.allclose(g, w.double(), rtol=1e-4, atol=1e-6, equal_nan=True)
        for g, w in zip(given, wanted, strict=True)
    )


def _shown(value: Any) -> str:
    """A number, or a tensor with brackets around its rows. Truth values and integers have no decimals."""
    if isinstance(value, Tensor) and value.ndim:
        return "[" + ", ".join(map(_shown, value)) + "]"
    return f"{float(value):.3g}"


def numbers(*values: float) -> Tensor:
    """A vector of float64. Most cases use it."""
    return torch.tensor(values, dtype=torch.float64)

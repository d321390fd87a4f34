"""Exercises with feedback: each check runs the answer of the reader and names the likely mistake.

A check raises no errors. It returns a `Result`, which a notebook shows in words. A mistake is recognised if the answer
equals the values of that mistake on every case. The cases are chosen so that no two rules are equal on all of them.
"""

from __future__ import annotations

import getpass
import html
import importlib
import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from uftlab.course.score import keep
from uftlab.files import own_folder
from uftlab.plots import widgets

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
    """A wrong rule that readers are likely to write, and a hint that helps to correct it.

    `also` are other rules that make the same mistake.
    """

    name: str
    hint: str
    rule: Rule
    also: Sequence[Rule] = ()


@dataclass(frozen=True)
class Exercise:
    """A function that the reader writes: the right rule, likely wrong rules, and inputs on which all rules differ.

    `shape` says what the function has to return, for a reader whose result has another shape.
    """

    praise: str
    right: Rule
    mistakes: Sequence[Mistake]
    cases: Sequence[tuple[Any, ...]]
    shape: str = "Which sum goes over what?"

    def check(self, answer: object, solutions: bool = False) -> Result:
        """Run the answer on every case and compare.

        Args:
            answer: the function of the reader. If it is `...` or raises NotImplementedError, the verdict is "not yet".
            solutions: check the right rule instead, for notebooks that run without a reader. It counts for no score.
        """
        result = self._judge(self.right if solutions else answer)
        if result and not solutions:
            _solved_here.add(id(self))
        return result

    def _judge(self, answer: object) -> Result:
        waiting = Result("not yet", "There is no answer so far. This cell checks the function that you write above it.")
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
                hint = self.shape if isinstance(value, (tuple, list)) else "Return a tensor of numbers."
                return Result("not right", f"Your function returned a {kind}.", hint)
        wanted = [self.right(*case) for case in self.cases]
        if _agree(given, wanted):
            return Result("right", self.praise)
        for mistake in self.mistakes:
            rules = (mistake.rule, *mistake.also)
            if any(_agree(given, [rule(*case) for case in self.cases]) for rule in rules):
                return Result("not right", f"It looks as if you {mistake.name}.", mistake.hint)
        if given[0].shape != wanted[0].shape:
            shapes = f"{tuple(wanted[0].shape)}; got {tuple(given[0].shape)}"
            return Result("not right", f"The result must have shape {shapes}.", self.shape)
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


# ------------------------------------------------------------------------------ what is solved

_solved_here: set[int] = set()  # ids of the exercises that the reader has solved in this process


@cache
def exercises_of_the_course() -> dict[str, list[Exercise]]:
    """Notebook -> its exercises in their order: {"01": [...]}. The first line of each module names its notebook."""
    found = {}
    for entry in pkgutil.iter_modules([str(Path(__file__).parent / "exercises")]):
        module = importlib.import_module(f"uftlab.course.exercises.{entry.name}")
        number = re.search(r"notebook (\d\d)", module.__doc__ or "")
        if number:
            found[number[1]] = [thing for thing in vars(module).values() if isinstance(thing, Exercise)]
    return dict(sorted(found.items()))


def score(name: str = "", folder: Path | None = None) -> None:
    """Print which exercises the reader has solved, notebook by notebook, and keep it in a small JSON file.

    What was solved in an earlier session counts, too. What a notebook answers itself (`solutions = True`) does not.
    The first guesses at predictions are kept with it. Nothing is written as long as there is neither.
    `python -m uftlab.course.score FOLDER` makes a tally of many files.

    Args:
        name: whose score it is; if empty, the name of the login. It stands in the file and in the name of the file.
        folder: of the file; `results/score` of the checkout, or the cache of the reader where that is read-only.

    Raises:
        InputError: for a file of that name that is no score, or a folder that cannot be written.
    """
    course = exercises_of_the_course()
    here = {
        notebook: [number for number, own in enumerate(exercises, start=1) if id(own) in _solved_here]
        for notebook, exercises in course.items()
    }
    counts = {notebook: len(exercises) for notebook, exercises in course.items()}
    where, who = folder or own_folder("results/score"), name or getpass.getuser()
    path, solved = keep(where, who, here, counts, widgets.PREDICTED)
    for notebook, count in counts.items():
        missing = [str(number) for number in range(1, count + 1) if number not in solved.get(notebook, [])]
        left = f"; not yet: exercise {', '.join(missing)}" if missing else ""
        print(f"notebook {notebook}: {count - len(missing)} of {count} solved{left}")
    kept = f"Kept in {path}" if path.is_file() else "Nothing is kept as long as nothing is solved"
    print(f"{sum(map(len, solved.values()))} of {sum(counts.values())} exercises are solved. {kept}.")

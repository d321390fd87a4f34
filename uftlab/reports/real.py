"""What `benchmarks/real_runs.py` stored, as measures and contrasts: for its page and for the course. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uftlab.evals.outcomes import Measure
from uftlab.reports.evaluation import Group, difference, label_of
from uftlab.study.results import RESULTS, Interval, interval

STORE = RESULTS / "real"
IFEVAL, MC2 = "ifeval, mean of the four", "truthfulqa/mc2"
ALIKE = 1e-9  # ends of an interval that are nearer to each other are rounding


def stored(size: str) -> dict[str, Any]:
    """The result file of a size; without runs where that size was not run."""
    path = STORE / f"{size}.json"
    return json.loads(path.read_text()) if path.is_file() else {"runs": []}


def measures_of(run: Mapping[str, Any], result: Mapping[str, Any]) -> list[Measure]:
    """The measures of a stored run, and the mean of IFEval's four as one of them."""
    made = []
    for name, values in run["measures"].items():
        own = result["questions"][name]
        pairs = zip(values, own["weights"], strict=True)
        made.append(Measure(name, False, dict(zip(own["ids"], pairs, strict=True))))
    return [*made, mean_of_four([m for m in made if m.name.startswith("ifeval/")])]


def mean_of_four(four: Sequence[Measure]) -> Measure:
    """The paper's IFEval number with a value of each prompt, whose plain mean it is.

    A prompt with three instructions counts three times in two of the four, so its value there is three times as large.
    """
    values: dict[str, float] = {}
    for measure in four:
        scale = len(measure.questions) / sum(weight for _, weight in measure.questions.values()) / len(four)
        for question, (value, weight) in measure.questions.items():
            values[question] = values.get(question, 0.0) + scale * weight * value
    return Measure(IFEVAL, False, {question: (value, 1.0) for question, value in values.items()})


def label(measure: str) -> str:
    """What a table calls a measure."""
    return "IFEval, mean of the four" if measure == IFEVAL else label_of(measure)[0]


def has_one_rate(run: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Whether a run has the rate of its size in every stage, or has no stage: it is at matched rates."""
    return set(run["rates"]) <= {result["size"]["rate"]}


def spreads(found: Interval) -> bool:
    """Whether an interval tells of a spread: not that of one value, nor of values that are all alike."""
    return found.low is not None and found.high is not None and found.high - found.low >= ALIKE


def at_one_rate(result: Mapping[str, Any]) -> dict[str, Group]:
    """The runs of each method with the same learning rate in every stage, and the base: at matched rates."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in result["runs"]:
        if has_one_rate(run, result) and "measures" in run:
            own = {"measures": measures_of(run, result), "seed": run["seed"]}
            found.setdefault(run["method"], []).append(own)
    return {method: Group(method, tuple(runs)) for method, runs in found.items()}


@dataclass(frozen=True)
class Contrast:
    """One method less another on one measure, with the interval over seeds and that over questions."""

    first: str
    second: str
    measure: str
    seeds: Interval
    questions: Interval

    @property
    def verdict(self) -> str:
        """higher or lower where both intervals leave out 0."""
        both = {self.seeds.verdict, self.questions.verdict}
        return both.pop() if len(both) == 1 else "not settled"


def contrast(own: Group, other: Group, measure: str) -> Contrast:
    """A method less another, paired by seed and by question."""
    values = [{run["seed"]: mean_in(run, measure) for run in group.runs} for group in (own, other)]
    seeds = interval([values[0][seed] - values[1][seed] for seed in values[0] if seed in values[1]])
    key = (measure, False)
    return Contrast(own.label, other.label, measure, seeds, difference(own.measure(key), other.measure(key)))


def mean_in(run: Mapping[str, Any], name: str) -> float:
    """The mean of one measure of a run."""
    return next(m for m in run["measures"] if m.name == name).mean

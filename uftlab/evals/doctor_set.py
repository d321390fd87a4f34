"""The labelled set of the doctor: stored runs with a planted fault and healthy ones, and how often the doctor is right.

`benchmarks/doctor.py` makes the set. A list of it is held back: rules and thresholds were chosen on the other runs.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from uftlab.evals.doctor import DIAGNOSES, diagnose
from uftlab.evals.run_logs import Run
from uftlab.files import DATA

STORED = DATA / "results" / "doctor.json.gz"

# What else a fault may bring, planted fault -> findings that are then no false alarms. Written before the held-back
# runs were trained. A loss that grew or a policy that stands still is reported alone.
CONSEQUENCES: dict[str, set[str]] = {
    "divergence": {"closed gate", "dead KTO baseline", "stale reference", "accuracy at chance"},  # found without a loss
    "ceiling out of reach": {"inert reward"},
    "inert reward": {"ceiling out of reach"},
    "closed gate": {"overfitting of pairs", "likelihood displacement", "length drift"},  # steps are large there
    "likelihood displacement": {"ceiling out of reach", "dead KTO baseline"},  # beta is small, and all answers fall
    "saturated reward": {"overfitting of pairs"},
    "overfitting of pairs": {"saturated reward"},
    # rewards that are wrong make every diagnosis wrong that reads them
    "stale reference": {
        "closed gate",
        "saturated reward",
        "likelihood displacement",
        "ceiling out of reach",
        "overfitting of pairs",
        "accuracy at chance",
        "reward scale without beta",
    },
    "reward scale without beta": {"closed gate", "saturated reward", "stale reference", "ceiling out of reach"},
    "dead KTO baseline": {"closed gate"},
}


# Planted by settings that usually lead there; the weights say whether they did.
OUTCOMES = ("likelihood displacement", "overfitting of pairs", "length drift", "over-optimisation")


@dataclass(frozen=True)
class Labelled:
    """A stored run: its curves, the fault that was planted ("" for none), and what its weights said at the end."""

    run: Run
    fault: str
    outcome: Mapping[str, float]

    @property
    def held_back(self) -> bool:
        """Whether it is of the list on which no rule and no threshold was chosen: its name says so."""
        return self.run.name.rpartition("/")[2].startswith("held-")

    @property
    def took(self) -> bool:
        """Whether a planted fault is there, as the weights say. What did not take counts neither way."""
        at = self.outcome
        if self.fault == "likelihood displacement":
            return at["trained/chosen"] < -1
        return self.fault not in OUTCOMES or self.fault in self._measured()

    @property
    def second_architecture(self) -> bool:
        """Whether it is no tiny Llama."""
        return "/gpt2/" in self.run.name

    def true(self) -> set[str]:
        """Findings that are no false alarms: what was planted, what follows from it, and what the weights say.

        The weights are asked on rows, not on logged batches: chosen completions of training became less likely; trained
        pairs are told apart at least 0.15 more often than held-out ones, or in no more than 55 %; both sides lost more
        than 50 nats; answers are half as long again, or shorter by a third; the true score of a run with a reward model
        fell.
        """
        return ({self.fault, *CONSEQUENCES.get(self.fault, ())} - {""}) | self._measured()

    def _measured(self) -> set[str]:
        at, found = self.outcome, set()
        if at.get("trained/chosen", 0.0) < 0:
            found.add("likelihood displacement")
        if at.get("trained/accuracy", 0.5) - at.get("held/accuracy", 0.5) >= 0.15:
            found.add("overfitting of pairs")
        if at.get("trained/accuracy", 1.0) <= 0.55:
            found.add("accuracy at chance")
        if max(at.get("trained/chosen", 0.0), at.get("trained/rejected", 0.0)) < -50:
            found.add("divergence")
        before, after = at.get("words at the start", 1.0), at.get("words", 1.0)
        if after >= 1.5 * before or after <= before / 1.5:
            found.add("length drift")
        if at.get("true", 0.0) < -0.05:
            found.add("over-optimisation")
        return found


@lru_cache(maxsize=1)
def labelled(path: Path = STORED) -> tuple[Labelled, ...]:
    """All runs of the set."""
    stored = json.loads(gzip.decompress(path.read_bytes()))
    return tuple(Labelled(_run(own), own["fault"], own["outcome"]) for own in stored["runs"])


def _run(own: Mapping[str, Any]) -> Run:
    curves = {name: [(float(step), float(value)) for step, value in points] for name, points in own["curves"].items()}
    return Run(own["name"], curves, own["settings"])


def found(own: Labelled, blind: bool = False) -> set[str]:
    """The names of the findings; `blind` without settings, as a log of another library has them."""
    return {f.name for f in diagnose(Run(own.run.name, own.run.curves, {} if blind else own.run.settings)).findings}


def confusion(runs: Sequence[Labelled], blind: bool = False) -> list[dict[str, Any]]:
    """One row for each fault: planted, found, and in how many runs without it the finding is true or a false alarm."""
    rows = []
    said = [found(own, blind) for own in runs]
    for name in (own.name for own in DIAGNOSES):
        planted = [here for own, here in zip(runs, said, strict=True) if own.fault == name and own.took]
        others = [(own, here) for own, here in zip(runs, said, strict=True) if own.fault != name and name in here]
        rows.append(
            {
                "fault": name,
                "planted": len(planted),
                "found": sum(name in here for here in planted),
                "did not take": sum(own.fault == name and not own.took for own in runs),
                "true elsewhere": sum(name in own.true() for own, _ in others),
                "false in healthy": sum(not own.fault and name not in own.true() for own, _ in others),
                "false in faulty": sum(bool(own.fault) and name not in own.true() for own, _ in others),
            }
        )
    return rows


def summary(runs: Sequence[Labelled], blind: bool = False) -> dict[str, int]:
    """Recall and false alarms over all faults: runs with a fault and how many of them have it found; healthy runs and
    how many of them have a finding that is not true, of any kind and of a serious one, or one that is.
    """
    serious = {own.name for own in DIAGNOSES if own.severity == "serious"}
    faulty = [own for own in runs if own.fault and own.took]
    healthy = [own for own in runs if not own.fault]
    said = [(found(own, blind), own.true()) for own in healthy]
    wrong = [names - true for names, true in said]
    return {
        "faulty": len(faulty),
        "found": sum(own.fault in found(own, blind) for own in faulty),
        "healthy": len(healthy),
        "false alarms": sum(bool(names) for names in wrong),
        "true findings": sum(bool(names & true) for names, true in said),
        "serious false alarms": sum(bool(names & serious) for names in wrong),
    }


def page(runs: Sequence[Labelled]) -> str:
    """The tables of docs/doctor.md: of the held-back runs, and of those on which rules and thresholds were chosen."""
    held_back = summary([run for run in runs if run.held_back])
    recall, alarms = _rates(held_back)
    reached = ["reached" if good else "not reached" for good in (recall >= 0.95, alarms <= 0.05)]
    parts = [
        "Wanted on the held-back runs: at least 95 % of the planted faults found, and a false alarm in at most 5 % of "
        f"the healthy runs. The first is {reached[0]} ({recall:.1%}), the second is {reached[1]} ({alarms:.1%})."
    ]
    for title, held in (("Held back", True), ("Rules and thresholds were chosen here", False)):
        own = [run for run in runs if run.held_back == held]
        parts += [f"**{title}**: {_words(summary(own))}", _table(confusion(own))]
        for name, second in (("The tiny Llamas", False), ("The second architecture", True)):
            of_one = [run for run in own if run.second_architecture == second]
            parts.append(f"{name} alone: {_words(summary(of_one))}")
        parts.append(f"Without settings (no beta, no name of the loss): {_words(summary(own, blind=True))}")
    return "\n\n".join(parts)


def _rates(own: Mapping[str, int]) -> tuple[float, float]:
    """The share of faults that are found, and of healthy runs with a false alarm."""
    return own["found"] / max(1, own["faulty"]), own["false alarms"] / max(1, own["healthy"])


def _words(own: Mapping[str, int]) -> str:
    recall, alarms = _rates(own)
    return (
        f"{own['found']} of {own['faulty']} planted faults are found ({recall:.1%}); {own['false alarms']} of "
        f"{own['healthy']} healthy runs have a false alarm ({alarms:.1%}), {own['serious false alarms']} a serious "
        f"one. {own['true findings']} of the healthy runs have a finding that their weights bear out."
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([str(row[name]) for name in heads] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

"""Three questions that others left open (docs/questions/plan.md): methods, contrasts and outcomes of each.

    python -m uftlab.study.questions              trains what is missing of all three, stores data/results/questions
    python -m uftlab.study.questions on-policy    of one of them

The methods must have been tuned: `uftlab sweep --methods NAMES --out data/results/questions_sweep`. Each world has two
of the four tuning draws, so that an interval can tell worlds from draws.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from uftlab.errors import InputError
from uftlab.study.comparisons import at_levels, best_kept, corrected, matched_skill, pairwise
from uftlab.study.matched import at_rate_of
from uftlab.study.results import HEADLINES, RESULTS, tidy
from uftlab.study.trials import DRAWS, PROFILES, Trial, trial

STORED = RESULTS / "questions"
STORED_MATCHED = RESULTS / "questions_matched"
SWEEP = RESULTS / "questions_sweep"
WORLDS = range(16)
EACH = 2  # draws of a world
PROFILE = PROFILES["class"]
LABELS = {**HEADLINES, "truth/myths": ("truth on myths", "probability", True)}


@dataclass(frozen=True)
class Question:
    """A question of the plan.

    Args:
        tests: (method, minus which, what it asks); each on all `outcomes`. They are one family.
        beside: outcomes that are shown and not tested.
        skill: what is equal where methods are compared at equal skill.
        matched: (method, whose learning rate it has): trials beside the tuned ones.
    """

    name: str
    title: str
    asks: str
    methods: tuple[str, ...]
    tests: tuple[tuple[str, str, str], ...]
    outcomes: tuple[str, ...]
    beside: tuple[str, ...] = ()
    skill: str = "instruction/both"
    matched: tuple[tuple[str, str], ...] = ()


QUESTIONS: dict[str, Question] = {
    question.name: question
    for question in (
        Question(
            "on_policy",
            "On-policy data or negative gradient?",
            "Which of the two keeps what the model knew: its own samples, or the push on bad ones?",
            ("given-accepted", "given-signed", "own-accepted", "own-signed"),
            (
                ("own-accepted", "given-accepted", "own samples, without a push down"),
                ("own-signed", "given-signed", "own samples, with a push down"),
                ("given-signed", "given-accepted", "the push down, on the table's completions"),
                ("own-signed", "own-accepted", "the push down, on own samples"),
            ),
            ("instruction/both", "retention/lost", "truth/cued"),
            ("truth/mc2", "plain/mc2", "length/words"),
        ),
        Question(
            "entropy",
            "Do entropy weights refuse to unlearn myths?",
            "A token that contradicts a confident belief has a small weight in EAFT. Does that protect myths too?",
            ("sft-full", "dft", "eaft", "eaft-rolled"),
            (
                ("eaft", "sft-full", "weights by entropy"),
                ("eaft", "eaft-rolled", "each weight at its own token"),
            ),
            ("retention/lost", "truth/myths", "instruction/both"),
            ("truth/mc2", "truth/cued", "plain/mc2"),
            matched=(("eaft", "sft-full"),),
        ),
        Question(
            "self_distillation",
            "Does self-distillation forget less?",
            "The model teaches itself what it says when asked with care. Does it lose less than by SFT?",
            ("sft-full", "cue-sft", "sdft"),
            (
                ("sdft", "cue-sft", "the student's own samples, for answers that the teacher gave once"),
                ("sdft", "sft-full", "self-distillation, for SFT on demonstrations"),
            ),
            ("truth/mc2", "retention/lost", "plain/mc2"),
            ("truth/knowledge", "truth/cued", "instruction/both", "length/words"),
            "truth/mc2",
            matched=(("sdft", "cue-sft"),),
        ),
    )
}


def draws_of(world: int) -> tuple[int, ...]:
    """The tuning draws of a world. Neighbours share one, so that the layout hangs together: (0, 1), (1, 2), ..."""
    return tuple((world + number) % DRAWS for number in range(EACH))


def trials(question: Question) -> list[Trial]:
    """All of a question with tuned settings, and the base in the same worlds."""
    made = [
        replace(trial(name, world, PROFILE, draw), curves=False)
        for world in WORLDS
        for draw in draws_of(world)
        for name in ("base", *question.methods)
    ]
    return list(dict.fromkeys(made))  # the base has no draws


def matched_trials(question: Question) -> list[Trial]:
    """What runs at the learning rate of another method, in the same worlds."""
    return [
        at_rate_of(name, other, world, draw)
        for world in WORLDS
        for draw in draws_of(world)
        for name, other in question.matched
    ]


def of_question(question: Question, stored: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """`results.tidy` of its methods, and of the base."""
    named = {"base", *question.methods}
    return tidy([t for t in stored if t["method"] in named])


def tested(question: Question, stored: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The family of a question: difference, interval, p, `holm` and verdict of each test, as of `comparisons.primary`.

    A test whose trials are missing counts as p = 1.
    """
    return _rows(of_question(question, stored), question.tests, question.outcomes, len(question.tests))


def explored(question: Question, stored: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same contrasts on the outcomes that are not tested: a family of its own."""
    return _rows(of_question(question, stored), question.tests, question.beside, len(question.tests))


def at_equal_skill(question: Question, sweep: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tests of a question at equal skill, over the trials of tuning, in both readings of `comparisons.at_levels`.

    The levels are the quartiles of the skill over the trials that have more of it than the base.
    """
    rows = [{"method": t["method"], "seed": t["seed"], **t["metrics"]} for t in sweep]
    table = pd.DataFrame([row for row in rows if row["method"] in question.methods])
    base = pd.DataFrame([row for row in rows if row["method"] == "base"])[question.skill].mean()
    learned = table.loc[table[question.skill] > base, question.skill]
    levels = [float(f"{learned.quantile(q):.2g}") for q in (0.25, 0.5, 0.75)]
    kept = [name for name in question.outcomes if name != question.skill]
    given = levels, kept, question.skill
    readings = {"between neighbours": matched_skill(table, *given), "at best": best_kept(table, *given)}
    return at_levels(readings, kept, question.skill, question.tests)


def _rows(
    frame: pd.DataFrame, pairs: Sequence[tuple[str, str, str]], outcomes: Sequence[str], size: int
) -> list[dict[str, Any]]:
    return corrected(pairwise(frame, pairs, outcomes), size * len(outcomes))


def question_named(name: str) -> Question:
    """The question, or one clear error with the names there are."""
    plain = name.replace("-", "_")
    if plain not in QUESTIONS:
        raise InputError("A question", f"be one of {', '.join(QUESTIONS)}", name, "Choose one of them")
    return QUESTIONS[plain]


def main() -> None:
    """Train what is missing; what is finished is not run again."""
    from uftlab.study.workers import run_trials

    chosen = [question_named(name) for name in sys.argv[1:]] or list(QUESTIONS.values())
    for folder, made in ((STORED, trials), (STORED_MATCHED, matched_trials)):
        wanted = list(dict.fromkeys(one for question in chosen for one in made(question)))
        for number, result in enumerate(run_trials(wanted, folder) if wanted else (), start=1):
            print(f"{number}/{len(wanted)}", result["method"], result["seed"], result["draw"], flush=True)


if __name__ == "__main__":
    main()

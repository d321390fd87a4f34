"""The pages of the three questions (docs/questions) from their stored trials.

    python -m uftlab.reports.questions docs/questions

A question whose trials are not stored has no page.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from uftlab.files import write_atomically
from uftlab.reports.study import levels_table, primary_table, verdict
from uftlab.reports.tables import LIMITS, skills_table
from uftlab.study import results
from uftlab.study.matched import differences
from uftlab.study.questions import (
    EACH,
    LABELS,
    QUESTIONS,
    STORED,
    STORED_MATCHED,
    SWEEP,
    Question,
    at_equal_skill,
    explored,
    of_question,
    tested,
)
from uftlab.study.trials import DRAWS
from uftlab.study.tuning import FIRST, SECOND

HEAD = "<!-- made by `python -m uftlab.reports.questions docs/questions`: run the questions again instead -->"
CARDS = "../methods"  # from docs/questions/
Rows = Sequence[dict[str, Any]]


def question_page(question: Question, stored: Rows, sweep: Rows, matched: Rows) -> str:
    """The page as Markdown, every number and verdict from the trials.

    Args:
        stored: the trials of all questions with tuned settings; `sweep` those of the tuning; `matched` those at the
            learning rate of another method.
    """
    frame, rows = of_question(question, stored), tested(question, stored)
    at_equal = at_equal_skill(question, sweep)
    methods = ["base", *question.methods]
    worlds = frame["seed"].nunique()
    parts = [
        HEAD,
        f"# {question.title}",
        f"> {question.asks}",
        f"By [the plan](plan.md), which was committed before any of these methods was tuned. {worlds} worlds, each "
        f"with {EACH} of {DRAWS} tunings of {FIRST + SECOND} trials; 6,400 completions for every method. Measured on "
        "creatures that no fine-tuning mentions. Mean and 95 % interval.",
        "## Answer",
        "\n".join(f"- {line}" for line in ANSWERS[question.name](rows)),
        "## The tests",
        f"{len(question.tests) * len(question.outcomes)} tests, one family: p is corrected by Holm's method. *Settled* "
        "means a corrected p below 0.05. *Alike* means that the whole interval lies within ±0.03. Old text lost: less "
        "is better; all others: more is better.",
        primary_table(rows, LABELS),
        "## What each method can do",
        skills_table(frame, methods, (*question.outcomes, *question.beside), CARDS, LABELS),
        "The same contrasts on the other outcomes, exploratory, a family of their own:",
        primary_table(explored(question, stored), LABELS),
    ]
    if question.matched:
        told = " and ".join(f"`{name}` at the learning rates of `{other}`" for name, other in question.matched)
        parts += [
            "## At the same learning rate",
            f"Tuning gives each method a rate of its own. Here {told}. A family of its own.",
            primary_table(differences(question.matched, matched, stored, question.outcomes), LABELS),
        ]
    parts += [
        "## At equal skill",
        f"Over the trials of tuning: what is kept at equal {LABELS[question.skill][0]}, in each tuning world. Levels "
        "are the quartiles over the trials that have more of it than the base. In brackets: worlds in which both "
        "methods reach the level. Exploratory; both tables are one family.",
        "*Between neighbours*: read off between the two trials next to a level. Trials that learned little and trials "
        "that were trained too fast pass the same levels, so it jumps.",
        levels_table([row for row in at_equal if row["reading"] == "between neighbours"], LABELS),
        "*At best*: of the trials with at least so much, the one that keeps most. All have equally many trials.",
        levels_table([row for row in at_equal if row["reading"] == "at best"], LABELS),
        "## What this does not show",
        "\n".join(f"- {line}" for line in (*LIMITS, *MORE_LIMITS[question.name])),
    ]
    return "\n\n".join(parts) + "\n"


# ------------------------------------------------------------------------------------------ answers


def _found(rows: Rows) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["comparison"], row["metric"]): row for row in rows}


def _kept(rows: Rows, contrast: str, metrics: Sequence[str]) -> int:
    """1 if a contrast is settled to keep more of a metric and less of none, -1 the other way round, else 0."""
    signs = set()
    for metric in metrics:
        row = _found(rows).get((contrast, metric))
        if row is not None and row["verdict"] != "not settled":
            better = LABELS[metric][2] is not False
            signs.add(1 if (row["verdict"] == "higher") == better else -1)
    return signs.pop() if len(signs) == 1 else 0


def _told(rows: Rows, contrast: str, metrics: Sequence[str]) -> str:
    """A contrast in numbers: "old text lost +0.10 (0.05 to 0.15), settled"."""
    told = []
    for metric in metrics:
        row = _found(rows).get((contrast, metric))
        if row is not None:
            between = f"{row['low']:+.3f} to {row['high']:+.3f}"
            told.append(f"{LABELS[metric][0]} {row['mean']:+.3f} ({between}), {verdict(row)}")
    return f"{contrast.replace(' minus ', ' − ')}: {'; '.join(told)}."


def _on_policy(rows: Rows) -> list[str]:
    kept = ("retention/lost", "truth/cued")
    factors = {
        "On-policy data": ("own-accepted minus given-accepted", "own-signed minus given-signed"),
        "The negative gradient": ("given-signed minus given-accepted", "own-signed minus own-accepted"),
    }
    lines = []
    for name, contrasts in factors.items():
        signs = [_kept(rows, contrast, kept) for contrast in contrasts]
        if signs == [1, 1]:
            lines.append(f"**{name} keeps more**, in both settings of the other factor.")
        elif signs == [-1, -1]:
            lines.append(f"**{name} keeps less**, in both settings of the other factor.")
        elif any(signs):
            words = {1: "keeps more", -1: "keeps less", 0: "is not settled"}
            told = "; ".join(f"{c.replace(' minus ', ' − ')} {words[s]}" for c, s in zip(contrasts, signs, strict=True))
            lines.append(f"**{name}** is not settled in both settings: {told}.")
        else:
            lines.append(f"**{name}** is not settled to keep more or less.")
    every = ("instruction/both", *kept)
    found = _found(rows)
    learned = [
        f"{name} learns {'more' if row['verdict'] == 'higher' else 'less'} than {minus}"
        for contrasts in factors.values()
        for name, minus in (contrast.split(" minus ") for contrast in contrasts)
        if (row := found.get((f"{name} minus {minus}", "instruction/both"))) and row["verdict"] != "not settled"
    ]
    lines.append(f"**Learned** (followed and correct): {'; '.join(learned) or 'nothing is settled'}.")
    return [*lines, *(_told(rows, contrast, every) for contrasts in factors.values() for contrast in contrasts)]


def _entropy(rows: Rows) -> list[str]:
    contrasts = ("eaft minus sft-full", "eaft minus eaft-rolled")
    keeps = [_kept(rows, contrast, ("retention/lost",)) for contrast in contrasts]
    myths = [_kept(rows, contrast, ("truth/myths",)) for contrast in contrasts]
    lines = []
    if keeps == [1, 1] and myths == [-1, -1]:
        lines.append("**EAFT keeps old text and keeps myths**, and the place of the weights is the reason.")
    else:
        text = {1: "EAFT keeps more old text than SFT", -1: "EAFT loses more old text than SFT"}
        belief = {1: "EAFT tells more truth on myths than SFT", -1: "EAFT keeps more myths than SFT"}
        row = _found(rows)[contrasts[0], "truth/myths"]
        alike = "EAFT and SFT are alike in truth on myths" if verdict(row) == "alike" else ""
        lines.append(f"**{text.get(keeps[0], 'That EAFT keeps old text is not settled')}.**")
        lines.append(f"**{belief.get(myths[0], alike or 'That EAFT keeps myths is not settled')}.**")
        if keeps[0] > 0 and keeps[1] < 1:
            lines.append(
                "Against the same weights at other tokens it is not settled: the entropy need not be the reason."
            )
    return [*lines, *(_told(rows, contrast, QUESTIONS["entropy"].outcomes) for contrast in contrasts)]


def _self_distillation(rows: Rows) -> list[str]:
    contrasts = ("sdft minus cue-sft", "sdft minus sft-full")
    keeps = [_kept(rows, contrast, ("retention/lost",)) for contrast in contrasts]
    taught = [_kept(rows, contrast, ("truth/mc2",)) for contrast in contrasts]
    if -1 in keeps:
        worse = [c.split(" minus ")[1] for c, sign in zip(contrasts, keeps, strict=True) if sign == -1]
        first = f"**Self-distillation forgets more than {' and '.join(worse)}.**"
    elif keeps == [1, 1] and -1 not in taught:
        first = "**Self-distillation forgets less**, and it teaches no less."
    elif keeps == [1, 1]:
        first = "**Self-distillation forgets less**, and it teaches less."
    elif keeps[1] == 1:
        first = "**It forgets less than SFT on demonstrations.** Against SFT on the same teacher's answers it is not "
        first += "settled. So the rows may be the reason, and not the student's own samples."
    else:
        first = "**That self-distillation forgets less is not settled.**"
    forgets = {1: "forgets less", -1: "forgets more", 0: "is not settled to forget more or less"}
    teaches = {1: "teaches more truth", -1: "teaches less truth", 0: "is not settled to teach more or less truth"}
    told = [
        f"Against {contrast.split(' minus ')[1]} it {forgets[kept]} and {teaches[learned]}."
        for contrast, kept, learned in zip(contrasts, keeps, taught, strict=True)
    ]
    return [first, *told, *(_told(rows, contrast, QUESTIONS["self_distillation"].outcomes) for contrast in contrasts)]


ANSWERS: dict[str, Callable[[Rows], list[str]]] = {
    "on_policy": _on_policy,
    "entropy": _entropy,
    "self_distillation": _self_distillation,
}

MORE_LIMITS: dict[str, tuple[str, ...]] = {
    "on_policy": (
        "All four methods start from the base model. After SFT the answer may be another.",
        "Own samples are scored by the world's raters without slips, completions of the table with slips. So own "
        "samples have the cleaner scores.",
        "The weight is score − ½. A baseline for each prompt (`rloo`) was not one of the four.",
    ),
    "entropy": (
        "The demonstrations of this world contradict few myths one by one. What is measured is whether a model that "
        "learned to answer from them doubts the myths of creatures it was not shown.",
    ),
    "self_distillation": (
        "The cue can teach what careful sources say and nothing else. `sft-full` learns instructions, too.",
        "At equal skill the page takes truth on contested facts for the skill, because two of the three methods see no "
        "instruction's answer. The plan had named followed and correct.",
        "The comparison at the same learning rate is not of the plan. It was added after the tuned result had been "
        "read.",
        "The teacher follows the student by 0.01 in each step, as in the paper. A teacher that stays (TRL's default) "
        "was not tried.",
    ),
}


def write_pages(folder: Path) -> list[Path]:
    """Write the page of every question whose trials are stored, and return the paths."""
    if not (STORED / "trials").is_dir():
        return []
    stored, sweep = results.load(STORED), results.load(SWEEP)
    matched = results.load(STORED_MATCHED) if (STORED_MATCHED / "trials").is_dir() else []
    made = []
    for question in QUESTIONS.values():
        if set(question.methods) <= {t["method"] for t in stored}:
            path = folder / f"{question.name}.md"
            write_atomically(path, question_page(question, stored, [*sweep, *_tuned_before(question)], matched))
            made.append(path)
    return made


def _tuned_before(question: Question) -> list[dict[str, Any]]:
    """The tuning trials of methods that the study has tuned."""
    return [t for t in results.load(results.RESULTS / "sweep") if t["method"] in question.methods]


if __name__ == "__main__":
    print(*write_pages(Path(sys.argv[1])), sep="\n")

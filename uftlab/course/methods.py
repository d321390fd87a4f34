"""What the names of methods mean: one table, made from the catalogue, for notebooks, explorers and the glossary."""

from __future__ import annotations

import html
from collections.abc import Iterable

import pandas as pd

from uftlab.reports.tables import markdown
from uftlab.training.catalogue import METHODS, VARIANTS, method_named
from uftlab.training.methods import Stage, data_kinds

KINDS = {"demonstration": "demonstrations", "preference": "pairs", "label": "labels", "scored": "scores"}
IN_COURSE = (*METHODS, *VARIANTS)
INTRO = (
    "Every figure and every menu of the course calls a method by its short name. All of them start from the base and "
    "have the same budget, except `base` and `sft`. *Reads* says what the steps are made of: *50 % "
    "demonstrations, 50 % scores* is a mixture in every step, and *then* begins a second stage."
)


def _stage(stage: Stage) -> str:
    """What one stage reads: "demonstrations", "pairs", or both with their shares."""
    if stage.demonstrations == 1:
        return "demonstrations"
    feedback = KINDS[data_kinds(stage)[-1]]
    if not stage.demonstrations:
        return feedback
    return f"{stage.demonstrations:.0%} demonstrations, {1 - stage.demonstrations:.0%} {feedback}".replace("%", " %")


def reads(name: str) -> str:
    """What a method reads, stage by stage.

    >>> reads("replay")
    'demonstrations, then 25 % demonstrations, 75 % pairs'
    """
    return ", then ".join(map(_stage, method_named(name).stages)) or "nothing"


def table(names: Iterable[str]) -> pd.DataFrame:
    """Methods with what each of them is and reads. A name may carry a setting: "uft, beta 0.25".

    Raises:
        InputError: for a name that no method has.
    """
    rows = []
    for name in names:
        method, _, setting = name.partition(", ")
        summary = method_named(method).summary + (f", with {setting}" if setting else "")
        rows.append({"method": name, "what it is": summary, "reads": reads(method)})
    return pd.DataFrame(rows)


def folded(names: Iterable[str]) -> str:
    """The same as a list in HTML that unfolds at a click, for the menu of an explorer."""
    lines = (
        f"<li><b>{html.escape(row['method'])}</b>: {html.escape(row['what it is'])}</li>"
        for row in table(names).to_dict("records")
    )
    return f"<details><summary>What the methods are</summary><ul>{''.join(lines)}</ul></details>"


def for_the_glossary() -> str:
    """All methods of the course as a table in Markdown, with what a reader has to know about it."""
    rows = table(IN_COURSE)
    lines = [[f"`{method}`", *rest] for method, *rest in rows.itertuples(index=False)]
    return f"{INTRO}\n\n{markdown(list(rows.columns), lines)}"

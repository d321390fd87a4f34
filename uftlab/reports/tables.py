"""The output of commands: the table of a study, the list of methods, comparisons in words."""

from __future__ import annotations

import html
import itertools
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from uftlab.errors import InputError, printable
from uftlab.study.comparisons import IN_SHORT, sentence
from uftlab.study.results import HEADLINES, summary
from uftlab.training.catalogue import all_methods

LIMITS = (
    "Models of 0.14 million parameters in worlds of 256 creatures and a few hundred words: this shows what these "
    "methods do when everything else is equal, not what they do to a large model.",
    "Settings were tuned four times, with eighteen trials for each method. More tuning could move a method.",
    "The tuning rule adds up instructions and truth. It does not look at old text, which follows the learning rate.",
)
"""Limits of all studies here. Each report adds its own limits."""


def summary_table(frame: pd.DataFrame, columns: int = 100) -> Table:
    """Methods by headline metrics: means, and half of the width of the interval if there is one.

    The table of the study needs 100 columns. In a narrower terminal the interval is below its mean.
    """
    seeds = frame["seed"].nunique()
    meaning = " ± half of the 95 % interval" if seeds > 2 else f"; too few seeds for intervals: {seeds}"
    spread = "±{half}" if columns >= 100 else "\n±{half}"
    table = Table(
        title=f"mean over seeds{meaning}, test creatures",
        caption="without a unit: share or probability; truth above distrust: what no policy has without knowledge",
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    table.add_column("method", no_wrap=True)
    shown = [metric for metric in HEADLINES if metric in set(frame["metric"])]
    for metric in shown:
        table.add_column(_heading(metric), justify="right", vertical="bottom", overflow="fold")
    cells = {(r["method"], r["metric"]): r for r in summary(frame).to_dict("records")}
    for method in all_methods():
        if (method, shown[0]) in cells:
            table.add_row(Text(method), *(cell(cells.get((method, metric)), spread) for metric in shown))
    return table


def width_of(table: Table) -> int:
    """The number of columns that a table needs. The table of the study needs 100 at most."""
    free = Console(width=1000)
    return Measurement.get(free, free.options, table).maximum


def _heading(metric: str) -> str:
    """The label of a metric in short lines of whole words, and its unit if it is neither share nor probability."""
    label, unit, _ = HEADLINES[metric]
    words = label.split(":")[0]
    lines = textwrap.wrap(words, max(9, *map(len, words.split())), break_on_hyphens=False)
    if not unit.startswith(("share", "probability")):
        lines += textwrap.wrap(f"({unit})", max(9, *map(len, lines)))
    return "\n".join(lines)


def cell(row: Mapping[str, Any] | None, spread: str = " ({low:.2f} to {high:.2f})", whole: bool = False) -> str:
    """A row of `results.summary` as text: its mean, and its interval in the form `spread`.

    The interval needs three seeds: with two seeds the t quantile makes it too wide to be useful. `whole` is for costs:
    it gives the mean alone, without decimals.
    """
    if row is None:
        return "0" if whole else ""
    if whole:
        return f"{row['mean']:,.0f}"
    half = f"{row['high'] - row['mean']:.2f}".removeprefix("0") if row["seeds"] > 2 else ""
    return f"{row['mean']:.2f}" + (spread.format(**row, half=half) if half else "")


def linked(method: str, cards: str) -> str:
    """The name of a method in Markdown, linked to its card in the folder `cards`. The base has no card."""
    return f"[{method}]({cards}/{method}.md)" if all_methods()[method].stages else method


def skills_table(
    frame: pd.DataFrame,
    methods: Sequence[str],
    metrics: Sequence[str],
    cards: str,
    labels: Mapping[str, tuple[str, str, bool | None]] = HEADLINES,
) -> str:
    """Methods by metrics in Markdown: mean and interval of each."""
    cells = {(r["method"], r["metric"]): r for r in summary(frame).to_dict("records")}
    heads = [f"{labels[m][0]} ({labels[m][1]})" for m in metrics]
    return markdown(
        ["method", *heads], [[linked(m, cards), *(cell(cells.get((m, k))) for k in metrics)] for m in methods]
    )


def untuned(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """The methods that nobody tuned: a comparison of one of them with a tuned method is not fair."""
    return list(dict.fromkeys(t["method"] for t in trials if not t.get("tuned", True)))


def plain(text: object) -> str:
    """Text of somebody else in a page of Markdown: no tag, no link, no cell of a table, no other line begins in it.

    >>> plain("<b>|")
    '&lt;b&gt;&#124;'
    """
    shown = html.escape(" ".join(printable(str(text)).split()))
    return re.sub(r"[|`\[\]]", lambda found: f"&#{ord(found[0])};", shown)


def wide(table: str) -> str:
    """A table of HTML that may be wider than the window: what is cut is reached by the keyboard."""
    return f'<div class="wide" tabindex="0">{table}</div>'


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = ["| " + " | ".join(line) + " |" for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def methods_table(rows: Sequence[Mapping[str, Any]], wide: bool) -> Table:
    """One row per method, from `Method.needs()`. Data and reference are shown only if the window is wide."""
    table = Table("method", "group", "what it is", *(("learns from", "reference", "verified") if wide else ()))
    table.columns[0].no_wrap = True  # so that a name can be copied
    for row in rows:
        needs = "full, each step" if row["distributions"] else "once" if row["reference"] else "no"
        more = (", ".join(row["data"]), needs, row["verified"]) if wide else ()
        table.add_row(*(Text(printable(text)) for text in (row["name"], row["group"], row["summary"], *more)))
    return table


def matching(rows: Sequence[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """The comparisons whose methods, metric or reason contain the text, in upper or lower case.

    Raises:
        InputError: when there is none.
    """

    def words(row: Mapping[str, Any]) -> str:
        return " ".join((row["comparison"], row["metric"], HEADLINES[row["metric"]][0], row["why"])).lower()

    found = [row for row in rows if text.lower() in words(row)]
    if rows and not found:
        labels = ", ".join(label.split(":")[0] for label, _, _ in HEADLINES.values())
        raise InputError("--only", f"be part of the name of a method or of a metric ({labels})", text, "Check the name")
    return found


def comparisons(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Headings and their sentences: first the main results, then every comparison with all its metrics."""
    by_name = {(row["comparison"], row["metric"]): row for row in rows}
    short = [sentence(by_name[name]) for name in IN_SHORT if name in by_name]
    if short:
        yield "What came out, in short", short
    for name, group in itertools.groupby(rows, key=lambda row: row["comparison"]):
        own = list(group)
        yield f"{name}: {own[0]['why']}", [sentence(row) for row in own]

"""One self-contained HTML page from stored trials: figures, table, findings, costs, limits."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

from uftlab.files import write_atomically
from uftlab.plots import figures, theme
from uftlab.reports.doctor import html_section
from uftlab.reports.tables import LIMITS, cell, untuned, wide
from uftlab.study import comparisons, results
from uftlab.training.catalogue import all_methods

MORE_LIMITS = (
    "Feedback is scored by a program with random errors. People disagree in less regular ways.",
    "A comparison is settled if its p value, corrected for all that were made, is below 0.05. Others are not settled.",
)
STYLE = """
body { font: 18px/1.5 "Open Sans", "DejaVu Sans", Verdana, sans-serif; color: #222; max-width: 1240px;
       margin: 2rem auto; padding: 0 1rem; background: white; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 15px; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #bbb; text-align: right; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
td small { color: #555; }
li { margin: .25rem 0; }
"""


def write_report(path: Path, trials: list[dict[str, Any]]) -> Path:
    """Write the report and return its path. The page contains plotly.js once, so it needs no network."""
    frame = results.tidy(trials)
    summary, along = results.summary(frame), results.curve_summary(results.curves(trials))
    present = [name for name in all_methods() if name in set(frame["method"])]
    seeds = len({t["seed"] for t in trials})
    parts = [
        "<h1>What SFT and alignment do to each other</h1>",
        f"<p>{len(present)} methods, {seeds} seed{'s' * (seeds != 1)}, profile "
        f"{html.escape(trials[0]['profile'])}: each seed is another world with its own base model. All methods but "
        "<em>base</em> and <em>sft</em> (half of the budget) back-propagate the same number of completions. Measured "
        "on creatures never seen in fine-tuning.</p>",
        *_untuned(trials),
        _figure(figures.skills(summary), first=True),
        "<h2>Numbers</h2>",
        _table(summary, present),
    ]
    if results.at_stage_end(1, "instruction/both") in set(frame["metric"]):
        parts += ["<h2>What stage two takes away</h2>", _figure(figures.before_after(summary))]
    if {"sft-then-dpo", "sft-plus-dpo", "uft-then-una", "uft"} <= set(present):
        parts.append("<h2>The loss or the mixing?</h2>")
        parts.append(_figure(figures.two_by_two({"": comparisons.compare(frame)})))
    if len(along):
        wanted = ["sft-full", "sft-then-dpo", "uft", "uft-cross-entropy", "sft-plus-dpo"]
        shown = [m for m in present if m in wanted] or [m for m in present if m != "base"]
        parts.append("<h2>Along training</h2>")
        parts += [_figure(figures.learning_curves(along, shown, m)) for m in comparisons.OUTCOMES]
    sentences = comparisons.findings(frame, comparisons.OUTCOMES)
    if sentences:
        parts.append("<h2>Comparisons named beforehand</h2>")
        parts += ["<ul>", *(f"<li>{html.escape(s)}</li>" for s in sentences), "</ul>"]
    parts += [
        *html_section(trials),
        "<h2>What this does not show</h2>",
        "<ul>",
        *(f"<li>{html.escape(line)}</li>" for line in (*LIMITS, *MORE_LIMITS)),
        "</ul>",
    ]
    versions = ", ".join(f"{k} {v}" for k, v in trials[0]["versions"].items())
    parts.append(f"<p><small>{html.escape(trials[0]['device'])}; {html.escape(versions)}.</small></p>")
    head = f'<head><meta charset="utf-8"><title>uftlab: forgetting</title><style>{STYLE}</style></head>'
    write_atomically(path, f'<!doctype html><html lang="en">{head}<body><main>{"".join(parts)}</main></body></html>')
    return path


def _untuned(trials: list[dict[str, Any]]) -> list[str]:
    """The methods without tuning, as a paragraph."""
    names = ", ".join(untuned(trials))
    return [f"<p>Not tuned, run with the registry's defaults: {html.escape(names)}.</p>"] if names else []


def _figure(fig: go.Figure, first: bool = False) -> str:
    return pio.to_html(fig, include_plotlyjs=first, full_html=False, config=theme.CONFIG)


def _table(summary: pd.DataFrame, methods: list[str]) -> str:
    """Methods by headline metrics and costs: the mean, and the interval below it."""
    columns = [*results.HEADLINES, *(metric for metric in results.COSTS if metric != "cost/seconds")]
    cells = {(r["method"], r["metric"]): r for r in summary.to_dict("records")}
    lines = ["<table><thead><tr><th>method</th>"]
    for metric in columns:
        label = figures.label_of(metric) if metric in results.HEADLINES else results.COSTS[metric][1]
        name, *unit = label.split(" (")
        lines.append(f"<th>{name}{''.join(f'<br><small>({part}</small>' for part in unit)}</th>")
    lines.append("</tr></thead><tbody>")
    for method in methods:
        lines.append(f'<tr><td title="{html.escape(all_methods()[method].summary)}">{html.escape(method)}</td>')
        for metric in columns:
            row = cells.get((method, metric))
            lines.append(
                f"<td>{cell(row, '<br><small>{low:.2f} to {high:.2f}</small>', whole=metric.startswith('cost/'))}</td>"
            )
        lines.append("</tr>")
    return wide("".join([*lines, "</tbody></table>"]))

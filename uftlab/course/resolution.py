"""Notebook 10: how many questions and seeds a benchmark needs before a gain can be seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from scipy import stats

from uftlab.plots import theme, widgets

Number = float | int
QUESTIONS = {"6": 6, "64": 64, "200": 200, "541, IFEval": 541, "817, TruthfulQA": 817, "3,000": 3000}


def half_widths(gain: Number, changed: Number, questions: Number, seeds: Number, spread: Number) -> dict[str, float]:
    """Half the width of both 95 % intervals of a gain, in points of 100.

    Over questions, paired: each model is right or wrong on a question, and `changed` per cent of the questions are
    answered differently by the two. The variance of a difference is then changed - gain^2 (as shares). Over seeds:
    Student's t of `seeds` differences with standard deviation `spread`.

    Returns:
        `questions` and `seeds`, the half widths. A gain of 4, 20 % changed, 541 questions: 3.75.
    """
    share, apart = gain / 100, max(changed, abs(gain)) / 100
    over_questions = 196 * ((apart - share**2) / questions) ** 0.5
    count = round(seeds)
    over_seeds = float(stats.t.ppf(0.975, count - 1)) * spread / count**0.5 if count > 1 else float("inf")
    return {"questions": over_questions, "seeds": over_seeds}


def needed(gain: Number, changed: Number) -> int:
    """The fewest questions at which the interval over questions leaves out 0, if the gain is as it is."""
    share, apart = gain / 100, max(changed, abs(gain)) / 100
    return int(np.ceil((1.96 / share) ** 2 * (apart - share**2)))


def picture(gain: Number, changed: Number, questions: Number, seeds: Number, spread: Number) -> go.Figure:
    """The interval over questions by their number (left), and both intervals at the chosen numbers (right)."""
    fig = theme.panels(
        ["over questions, by their number", "both intervals"],
        ["questions (logarithmic)", ""],
        ["gain, points of 100", ""],
        f"A gain of {gain:g} points: can you see it?",
        widths=[0.62, 0.38],
    )
    number = np.geomspace(3, 3000, 60)
    half = [half_widths(gain, changed, own, seeds, spread)["questions"] for own in number]
    blue, orange = theme.COLOURS[:2]
    for sign, dash in ((1, "solid"), (-1, "dash")):
        look = {"color": blue, "dash": dash}
        name = "upper end" if sign > 0 else "lower end"
        ends = [gain + sign * h for h in half]
        fig.add_scatter(x=number, y=ends, mode="lines", line=look, name=name, row=1, col=1)
    here = half_widths(gain, changed, questions, seeds, spread)
    mark = {"color": orange, "symbol": "diamond", "size": 15}
    bar = {"type": "data", "array": [here["questions"]], "thickness": 3, "width": 8}
    point = {"mode": "markers", "marker": mark, "name": f"{questions:.0f} questions"}
    fig.add_scatter(x=[questions], y=[gain], error_y=bar, **point, row=1, col=1)
    for index, (name, h) in enumerate(
        ((f"{questions:.0f}<br>questions", "questions"), (f"{seeds:.0f}<br>seeds", "seeds"))
    ):
        shown = min(here[h], 100.0)
        bar = {"type": "data", "array": [shown], "thickness": 4, "width": 12}
        mark = {"color": theme.COLOURS[(1, 2)[index]], "symbol": theme.SYMBOLS[index], "size": 16}
        more = {"mode": "markers", "marker": mark, "showlegend": False, "error_y": bar}
        fig.add_scatter(x=[name], y=[gain], **more, row=1, col=2)
    fig.update_xaxes(type="log", tickvals=[3, 30, 300, 3000], tickangle=0, col=1)
    fig.update_xaxes(range=[-0.5, 1.5], tickangle=0, col=2)
    fig.update_yaxes(range=[-30, 50], zeroline=True, zerolinewidth=3, zerolinecolor=theme.INK)
    return fig.update_layout(height=500)


def words(gain: Number, changed: Number, questions: Number, seeds: Number, spread: Number) -> str:
    """The numbers of `picture`, whether the gain would be called higher, and how many questions would be enough."""
    here = half_widths(gain, changed, questions, seeds, spread)
    over_seeds = "no interval, with one seed" if seeds < 2 else f"±{here['seeds']:.1f}"
    seen = here["questions"] < gain and here["seeds"] < gain
    verdict = "Both leave out 0: higher." if seen else "Not settled."
    return (
        f"A gain of {gain:g} points: over {questions:.0f} questions ±{here['questions']:.1f}, over {seeds:.0f} "
        f"seed{'s' if seeds > 1 else ''} {over_seeds}. {verdict} {needed(gain, changed):,} questions would be enough, "
        "the seeds apart."
    )


def explorer(headless: bool = False) -> Any:
    """Gain, questions, seeds: how wide both intervals of a benchmark's difference are."""
    controls = {
        "gain": widgets.slider("gain, in points of 100", 4.0, 0.5, 20.0, 0.5),
        "changed": widgets.slider("questions that the two answer differently, %", 20.0, 2.0, 60.0, 2.0),
        "questions": widgets.choice("questions", QUESTIONS, 64),
        "seeds": widgets.slider("seeds", 3.0, 1.0, 10.0, 1.0),
        "spread": widgets.slider("standard deviation over seeds, points", 1.0, 0.0, 5.0, 0.25),
    }
    return widgets.explore(picture, controls, words, headless=headless)

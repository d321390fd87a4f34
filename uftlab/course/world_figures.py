"""Figures of the tiny world and of what its base model knows: frames in, plotly figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from uftlab.course.beliefs import ROLES
from uftlab.plots import theme

ROLE_NAMES = {"truth": "truth", "myth": "popular myth", "other": "other values"}
ROLE_STYLE = {"truth": (theme.COLOURS[0], ""), "myth": (theme.COLOURS[1], "/"), "other": ("#9A9A9A", ".")}


def _bars(rows: pd.DataFrame) -> dict:
    return {
        "type": "data",
        "symmetric": False,
        "array": (rows["high"] - rows["mean"]).tolist(),
        "arrayminus": (rows["mean"] - rows["low"]).tolist(),
        "thickness": 2.5,
        "width": 6,
    }


def _marker(role: str) -> dict:
    colour, pattern = ROLE_STYLE[role]
    return {"color": colour, "pattern": {"shape": pattern, "bgcolor": colour, "fgcolor": "white", "solidity": 0.25}}


def probabilities_by_role(by_role: pd.DataFrame) -> go.Figure:
    """`beliefs.by_role` as grouped bars: truth, myth and the other values for each kind of question."""
    fig = theme.figure(
        title="Plain questions get the myth,<br>careful ones the truth",
        y="probability<br>among six values",
        yaxis_range=[0, 1.09],
        barmode="group",
    )
    for role in ROLES:
        rows = by_role[by_role["role"] == role]
        kinds = [theme.lines(kind, 16) for kind in rows["kind"]]
        bar = go.Bar(x=kinds, y=rows["mean"], error_y=_bars(rows), name=ROLE_NAMES[role], marker=_marker(role))
        fig.add_trace(bar)
    return fig


def six_values(rows: pd.DataFrame, title: str) -> go.Figure:
    """The six rows of `beliefs` of one fact and way of asking: the model's probabilities beside what the text told.

    Four traces always, some of them empty: truth, myth, other values, and the text as a diamond.
    """
    room = {"height": theme.HEIGHT + 30, "margin_t": 105}  # of two lines, so that nothing jumps with the title
    fig = theme.figure(title=title, x="value, and its probability", y="probability", barmode="overlay", **room)
    for role in ROLES:
        heights = [p if r == role else None for p, r in zip(rows["probability"], rows["role"], strict=True)]
        fig.add_trace(go.Bar(x=rows["value"], y=heights, name=ROLE_NAMES[role]).update(marker=_marker(role)))
    diamonds = {"symbol": "diamond", "size": 16, "color": "white", "line": {"width": 3, "color": theme.INK}}
    fig.add_scatter(x=rows["value"], y=rows["told"], mode="markers", marker=diamonds, name="share in the text")
    values = rows["value"].tolist()  # the numbers stand below the values, where no bar or diamond can cover them
    under = [f"{value}<br>{p:.2f}" for value, p in zip(values, rows["probability"], strict=True)]
    fig.update_xaxes(categoryorder="array", categoryarray=values, tickvals=values, ticktext=under)
    return fig.update_yaxes(range=[-0.04, 1.06])


def followed(shares: pd.DataFrame) -> go.Figure:
    """Share of answers that obey each instruction: rows (world, instruction, share), a circle per world, their mean."""
    order = list(dict.fromkeys(shares["instruction"]))
    means = shares.groupby("instruction")["share"].mean().reindex(order)
    circles = {"symbol": "circle-open", "size": 12, "color": theme.COLOURS[0], "line": {"width": 2}}
    worlds = go.Scatter(x=shares["share"], y=shares["instruction"], mode="markers", marker=circles, name="one world")
    diamonds = {"symbol": "diamond", "size": 15, "color": theme.COLOURS[1]}
    mean = go.Scatter(x=means, y=means.index, mode="markers", marker=diamonds, name="mean of the worlds")
    return theme.figure(
        worlds,
        mean,
        title="Untrained, the base never obeys<br>from the first word on",
        x="share of answers accepted strictly",
        xaxis_range=[-0.04, 1.04],
        yaxis={"categoryorder": "array", "categoryarray": order[::-1]},
        height=660,
    )


def lengths(words: Mapping[str, Sequence[int]], title: str) -> go.Figure:
    """Shares of completions by their length in words, one line per kind of completion."""
    fig = theme.figure(title=title, x="words in the completion (marks counted)", y="share of completions")
    top = max(max(lengths) for lengths in words.values())
    at = list(range(2, top + 1))
    for name, lengths in words.items():
        shares = [list(lengths).count(n) / len(lengths) for n in at]
        fig.add_scatter(x=at, y=shares, mode="lines+markers", name=name)
    return fig.update_xaxes(tickvals=list(range(2, top + 1, 3)))


def scores_by_length(scores: pd.DataFrame) -> go.Figure:
    """Mean score of short and long answers for each claim; rows (claim, length, mean, low, high)."""
    fig = theme.figure(
        title="A long answer scores a little more,<br>whatever it claims",
        x="what the answer claims",
        y="mean score",
        yaxis_range=[0, 1.09],
        barmode="group",
    )
    for length in ("short", "long"):
        rows = scores[scores["length"] == length]
        fig.add_trace(go.Bar(x=rows["claim"], y=rows["mean"], error_y=_bars(rows), name=f"{length} answers"))
    return fig

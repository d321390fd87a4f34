"""How much of each? The paper's mixtures beside those of the map, and the map as an explorer (notebook 06)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from uftlab.course import paper
from uftlab.plots import figures, theme, widgets
from uftlab.study import maps
from uftlab.study.results import HEADLINES, RESULTS, Interval, interval

OUTCOMES = ("instruction/both", "truth/knowledge", "retention/lost")
NAMES = {"uft": "UFT", "sft-plus-dpo": "SFT plus DPO"}
ORDERS = ("mixed", "feedback first", "SFT first")
RATE_OF = {"first_rate": "the rate of stage one", "rate": "the last rate", "order": "the order", "loss": "the loss"}


@cache
def frame() -> pd.DataFrame:
    """The stored map: one row per trial, see `uftlab.study.maps.table`."""
    return pd.read_csv(RESULTS / "map" / "map.csv")


def plain_name(metric: str) -> str:
    """The name of a metric without its unit: `followed and correct`."""
    return HEADLINES[metric][0]


# ------------------------------------------------------------------------------ the share of demonstrations


@cache
def by_share(metric: str) -> pd.DataFrame:
    """One metric of the map's E4: a row per world, a column per (method, steps, share of demonstrations)."""
    own = maps.of_experiment(frame(), "E4")
    return own.pivot(index="seed", columns=["method", "budget", "demonstrations"], values=metric)


def along(metric: str, method: str, steps: int) -> Interval:
    """The metric at the largest share of demonstrations minus that at the smallest, over worlds."""
    own = by_share(metric)[method][steps]
    return interval((own[max(own)] - own[min(own)]).to_numpy())


def apart(metric: str, steps: int, share: float) -> Interval:
    """UFT minus SFT plus DPO at one share of demonstrations, over worlds."""
    own = by_share(metric)
    return interval((own["uft", steps, share] - own["sft-plus-dpo", steps, share]).to_numpy())


def more_steps(metric: str, method: str) -> Interval:
    """The metric with four times the steps minus that with the usual number, mean over shares, over worlds."""
    own = by_share(metric)[method]
    few, many = sorted(set(own.columns.get_level_values("budget")))
    return interval((own[many] - own[few]).mean(axis=1).to_numpy())


def shares_figure(metric: str) -> go.Figure:
    """One metric against the share of demonstrations: both mixtures, at both numbers of steps."""
    own = by_share(metric)
    fig = theme.figure(
        title=f"Tiny models: {figures.label_of(metric)}<br>by the share of demonstrations",
        x="share of demonstrations in each step",
        y=figures._axis(metric),
    )
    for index, (method, steps) in enumerate((m, s) for m in NAMES for s in (200, 800)):
        rows = pd.DataFrame([asdict(interval(own[method, steps, share].to_numpy())) for share in own[method][steps]])
        fig.add_trace(figures.line(rows, index, f"{NAMES[method]}, {steps} steps", list(own[method][steps])))
    if metric != "truth/knowledge":
        fig.update_yaxes(rangemode="tozero")
    return fig.update_xaxes(tickvals=[0.125, 0.25, 0.5, 0.75, 0.875], range=[0.08, 0.92])


def paper_figure() -> go.Figure:
    """The paper's mixtures: two scores, and the number of rows, against the share of instruction rows."""
    rows = paper.table("mixing")
    fig = theme.panels(
        ["what came out", "what went in"],
        ["share of instruction rows"] * 2,
        ["score, per cent", "all rows, thousands"],
        title="The paper: a larger share of instructions is also a longer training",
        widths=[0.55, 0.45],
    )
    x = rows["share of instructions"]
    for index, (task, questions) in enumerate(paper.QUESTIONS.items()):
        half = [1.96 * (p * (100 - p) / questions) ** 0.5 for p in rows[task]]
        own = pd.DataFrame({"mean": rows[task], "low": rows[task] - half, "high": rows[task] + half})
        fig.add_trace(figures.line(own, index, task, list(x)), row=1, col=1)
    sizes = pd.DataFrame({"mean": rows["all rows, thousands"], "low": None, "high": None})
    fig.add_trace(figures.line(sizes, 2, "rows in the mixture", list(x)), row=1, col=2)
    fig.update_xaxes(range=[0.38, 1.0], tickvals=[0.4, 0.6, 0.8, 1.0])
    fig.update_yaxes(range=[36, 62], title_text="score, per cent (axis from 36)", col=1)
    return fig.update_yaxes(rangemode="tozero", col=2)


# ------------------------------------------------------------------------------ the map as an explorer


@cache
def by_order(metric: str) -> dict[tuple, np.ndarray]:
    """E1: (order, loss, rate of stage one, last rate, nats) -> one value per world. A mixture has one rate."""
    own = maps.of_experiment(frame(), "E1").sort_values("seed")
    keys = ["order", "loss", "first_rate", "rate", "nats"]
    return {at: rows[metric].to_numpy() for at, rows in own.groupby(keys)}


@cache
def by_method(metric: str) -> dict[tuple, np.ndarray]:
    """E2: (method, share of instructed feedback, demonstrations on target, rate) -> one value per world."""
    own = maps.of_experiment(frame(), "E2").sort_values("seed")
    return {at: rows[metric].to_numpy() for at, rows in own.groupby(["method", "instructed", "on_target", "rate"])}


def of_order(metric: str, order: str, loss: str, first_rate: float, rate: float, nats: float) -> np.ndarray:
    """One metric in each world for an order of training. DPO was run at 0.5 nats only, a mixture has the last rate."""
    first = rate if order == "mixed" else first_rate
    return by_order(metric)[order, loss, first, rate, nats if loss == "UNA" else maps.NATS]


def controls() -> dict[str, ipywidgets.ValueWidget]:
    """The controls of the explorer of notebook 06, eight places of the map for each outcome."""
    rates = {f"{rate:g}": rate for rate in maps.RATES}
    return {
        "metric": widgets.choice("what is measured", {plain_name(m): m for m in OUTCOMES}, OUTCOMES[0]),
        "first_rate": widgets.choice("learning rate, stage one", rates, 2e-3),
        "rate": widgets.choice("learning rate, last stage", rates, 2e-3),
        "nats": widgets.choice("β of UNA, nats", {"0.05": 0.05, "0.5": 0.5}, 0.5),
        "instructed": widgets.choice("instructed feedback", {"none": 0.0, "half": 0.5, "all": 1.0}, 0.5),
        "on_target": widgets.choice("demonstrations", {"on target": True, "off target": False}, True),
    }


def _bars(values: Sequence[np.ndarray]) -> tuple[list[float], dict]:
    """Means over worlds, and lines from the lowest to the highest world."""
    means = [float(own.mean()) for own in values]
    ends = {
        "array": [float(own.max() - own.mean()) for own in values],
        "arrayminus": [float(own.mean() - own.min()) for own in values],
    }
    return means, {"type": "data", "symmetric": False, "thickness": 2.5, "width": 5, **ends}


@cache
def floor() -> float:
    """What the best answer reaches in the map's usual world that never looks at its instructions."""
    return float(maps.of_experiment(frame(), "E1").groupby("seed")["instruction/blind"].first().mean())


def picture(metric: str, first_rate: float, rate: float, nats: float, instructed: float, on_target: bool) -> go.Figure:
    """One place of the map: the order of training (left) and six methods (right), at the same last rate."""
    name, better = plain_name(metric), "" if HEADLINES[metric][2] else ", less is better"
    worlds = len(by_method(metric)[maps.SIX[0], instructed, on_target, rate])
    fig = theme.panels(
        ["by order of training", "by method"],
        [HEADLINES[metric][1]] * 2,
        ["", ""],
        title=f"{name}{better}: {worlds} worlds<br>(bar: mean; thin line: lowest to highest)",
        widths=[0.5, 0.5],
    )
    for index, loss in enumerate(("UNA", "DPO")):
        means, ends = _bars([of_order(metric, order, loss, first_rate, rate, nats) for order in ORDERS])
        fig.add_bar(y=ORDERS, x=means, error_x=ends, **_look(index), name=f"{loss} on the feedback", row=1, col=1)
    means, ends = _bars([by_method(metric)[name, instructed, on_target, rate] for name in maps.SIX])
    fig.add_bar(y=maps.SIX, x=means, error_x=ends, **_look(5), showlegend=False, row=1, col=2)
    blind = floor() if metric in figures.FLOORED else None
    for column in (1, 2):  # the line is there for every metric, so that nothing but its place changes
        line = {"color": theme.INK, "width": 3, "dash": "dot"}
        x, y = ([blind, blind], [_FIRST[column], _LAST[column]]) if blind else ([], [])
        more = {"mode": "lines", "line": line, "name": figures.FLOOR, "showlegend": column == 1 and bool(blind)}
        fig.add_scatter(x=x, y=y, **more, row=1, col=column)
    fig.update_xaxes(range=RANGES[metric])
    fig.update_yaxes(autorange="reversed", tickfont_size=17)
    fig.update_yaxes(tickvals=maps.SIX, ticktext=[theme.lines(name, 9) for name in maps.SIX], col=2)  # narrow
    return fig.update_layout(height=540)


_FIRST, _LAST = {1: ORDERS[0], 2: maps.SIX[0]}, {1: ORDERS[-1], 2: maps.SIX[-1]}
RANGES = {"instruction/both": (0, 0.78), "truth/knowledge": (-0.38, 0.26), "retention/lost": (0, 5.2)}


def _look(index: int) -> dict:
    """Colour and pattern of a series of bars."""
    colour = theme.COLOURS[index]
    pattern = {"shape": theme.PATTERNS[index] if index < 5 else "", "bgcolor": colour, "fgcolor": "white"}
    return {"orientation": "h", "marker": {"color": colour, "pattern": {**pattern, "solidity": 0.25}}}


def _best(metric: str) -> Callable:
    return max if HEADLINES[metric][2] else min


def _moves(metric: str, first_rate: float, rate: float, nats: float) -> dict[str, float]:
    """How far SFT first with UNA moves if one thing alone is changed: best minus worst of its values here."""
    here: dict[str, Any] = {"order": "SFT first", "loss": "UNA", "first_rate": first_rate, "rate": rate, "nats": nats}
    values: dict[str, Sequence[Any]] = {
        "order": ORDERS,
        "loss": ("UNA", "DPO"),
        "first_rate": maps.RATES,
        "rate": maps.RATES,
    }
    spread = {}
    for factor, options in values.items():
        means = [of_order(metric, **{**here, factor: value}).mean() for value in options]
        spread[RATE_OF[factor]] = float(max(means) - min(means))
    return dict(sorted(spread.items(), key=lambda one: -one[1]))


def words(metric: str, first_rate: float, rate: float, nats: float, instructed: float, on_target: bool) -> str:
    """Who is best at this place, by how much mixing helps, and what moves the result most."""
    place = {"first_rate": first_rate, "rate": rate, "nats": nats}
    orders = {order: of_order(metric, order, "UNA", **place) for order in ORDERS}
    methods = {name: by_method(metric)[name, instructed, on_target, rate] for name in maps.SIX}
    best = [_best(metric)(own, key=lambda name: own[name].mean()) for own in (orders, methods)]
    gain = interval(orders["mixed"] - orders["SFT first"])
    moves = list(_moves(metric, **place).items())
    return (
        f"With UNA the best order is {best[0]} ({orders[best[0]].mean():.2f}). "
        f"Mixed minus SFT first: {gain.told()}, "
        f"{'not settled' if gain.verdict == 'not settled' else gain.verdict}. Best method: {best[1]} "
        f"({methods[best[1]].mean():.2f}). What moves “SFT first” most here: {moves[0][0]} ({moves[0][1]:.2f}), then "
        f"{moves[1][0]} ({moves[1][1]:.2f})."
    )

"""Notebook 07: how strong is the implicit reward? Ceiling and gate, the dial, the paper's grid, what a log shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from uftlab.course import paper
from uftlab.losses import rewards
from uftlab.plots import figures, theme, widgets
from uftlab.study import gate, grid, maps
from uftlab.study.results import interval
from uftlab.study.trials import PROFILES, Profile

LOSSES = {"squared error": rewards.squared_error_gate, "cross-entropy": rewards.cross_entropy_gate}
INERT, SATURATED = 0.9, 0.1  # of the pull at the start: what is left of it where the completion arrives
NO_BETA = "no β"
PALE = {"retention/lost": "#F5A65B"}  # the strongest colour of a table: dark numbers stay readable on it
TIMED = 5  # steps of a training that is timed first


def paper_grid() -> pd.DataFrame:
    """The paper's table: one row per learning rate, a column for SFT and one for each beta."""
    grid = paper.table("uft grid")["new"].unstack("beta").sort_index(ascending=False)
    columns = {"SFT": paper.table("sft rates")["new"][grid.index], **{f"UFT, β = {b:g}": grid[b] for b in grid}}
    return pd.DataFrame({"learning rate": [f"{rate:g}" for rate in grid.index], **columns}).reset_index(drop=True)


# ------------------------------------------------------------------------------------------ ceiling and gate


def travelled(nats: float, beta: float, share: float, loss: str) -> dict[str, Any]:
    """Where a demonstration stands after it has gained a share of the nats that separate it from probability 1.

    Returns:
        `score`: the implicit score there; `ceiling`: its score at probability 1; `pull`: what is left of the pull at
        the start, as a share; `state`: inert (the pull is as at the start), saturated (it is gone), or at work.
        50 nats, beta 0.01, all of the way: score and ceiling 0.622.
    """
    r = torch.tensor([0.0, share * nats, nats], dtype=torch.float64) * beta
    scores = rewards.implicit_score(r)
    pulls = LOSSES[loss](r, 1.0, 1.0)
    left = float(pulls[1] / pulls[0])
    state = "inert" if left > INERT else "saturated" if left < SATURATED else "at work"
    return {"score": float(scores[1]), "ceiling": float(scores[2]), "pull": left, "state": state}


def ceiling_and_gate(nats: float, beta: float, share: float, loss: str) -> go.Figure:
    """Implicit score and pull of one demonstration on its way from the reference to probability 1."""
    way = torch.linspace(0, 1, 101, dtype=torch.float64)
    r = beta * nats * way
    here = travelled(nats, beta, share / 100, loss)
    fig = theme.panels(
        ["implicit score (wanted: 1)", "pull, in % of its start"],
        ["% of the way to probability 1"] * 2,
        ["", ""],
        f"β times nats = {beta * nats:.2g}: the reward is {here['state']}",
    )
    pulls = LOSSES[loss](r, 1.0, 1.0)
    pull = 100 * pulls / pulls[0]
    for column, (y, now) in enumerate(((rewards.implicit_score(r), here["score"]), (pull, 100 * here["pull"])), 1):
        look = {"color": theme.COLOURS[0], "dash": "solid"}
        fig.add_scatter(x=100 * way, y=y, mode="lines", line=look, showlegend=False, row=1, col=column)
        mark = {"color": theme.COLOURS[1], "symbol": "diamond", "size": 17}
        at = {"x": [share], "y": [now], "row": 1, "col": column}
        fig.add_scatter(**at, mode="markers", marker=mark, name="this far", showlegend=column == 1)
    thin = {"color": theme.INK, "dash": "dash", "width": 2}
    fig.add_scatter(x=[0, 100], y=[here["ceiling"]] * 2, mode="lines", line=thin, name="ceiling", row=1, col=1)
    fig.update_yaxes(range=[0.47, 1.03], col=1).update_yaxes(range=[-5, 106], col=2)
    return fig.update_xaxes(range=[-3, 103]).update_layout(height=470)


def in_words(nats: float, beta: float, share: float, loss: str) -> str:
    """The numbers of `ceiling_and_gate` in words."""
    here = travelled(nats, beta, share / 100, loss)
    return (
        f"A completion of {nats:.3g} nats with β = {beta:.3g} can reach the score {here['ceiling']:.3f} and no more. "
        f"After {share:.0f} % of the way its score is {here['score']:.3f}, and {here['pull']:.0%} of the pull is left: "
        f"the reward is {here['state']}."
    )


def _scale(metric: str) -> list[tuple[float, str]]:
    return [(0.0, "#FFFFFF"), (1.0, PALE.get(metric, "#6FB1DD"))]


def length_by_beta(
    nats: Sequence[float] = (5.0, 20.0, 50.0, 100.0, 300.0), betas: Sequence[float] = (0.001, 0.01, 0.03, 0.1, 0.3)
) -> go.Figure:
    """A table of colours: the ceiling of a completion by its length and beta, and the state half-way to probability 1.

    One strength, beta times nats, is one colour: long completions with a small beta and short ones with a large beta.
    """
    cells = [[travelled(n, beta, 0.5, "squared error") for n in nats] for beta in betas]
    table = go.Heatmap(
        z=[[float(np.log10(beta * n)) for n in nats] for beta in betas],
        x=[f"{n:g}" for n in nats],
        y=[f"{beta:g}" for beta in betas],
        text=[[f"{cell['ceiling']:.3f}<br>{cell['state']}" for cell in row] for row in cells],
        texttemplate="%{text}",
        textfont={"size": theme.FONT_SIZE - 2, "color": theme.INK},
        colorscale=_scale("length"),
        zmin=-3,
        zmax=2.5,
        xgap=3,
        ygap=3,
        showscale=False,
        hovertemplate="β %{y}, %{x} nats: %{text}<extra></extra>",
    )
    title = "The highest score that a completion can reach,<br>and the state of the reward half-way"
    fig = theme.figure(table, title=title, x="length of the completion, in nats", y="β", height=620)
    return fig.update_xaxes(type="category").update_yaxes(type="category")


def explorer(headless: bool = False) -> Any:
    """Length, beta and loss of one demonstration, and how far it has come: ceiling, gate and state of the reward."""
    controls = {
        "nats": widgets.log_slider("length of the completion, in nats", 50.0, 1.0, 1000.0),
        "beta": widgets.log_slider("β", 0.01, 1e-5, 10.0),
        "share": widgets.slider("how far training came, % of the way", 50.0, 0.0, 100.0, 5.0),
        "loss": widgets.choice("loss", list(LOSSES)),
    }
    return widgets.explore(ceiling_and_gate, controls, in_words, headless=headless)


# ------------------------------------------------------------------------------------------ the dial

ROWS = ("feedback", "demonstrations")


def dial(shares: pd.DataFrame) -> go.Figure:
    """`gate.table`: the share of the gradient that the implicit reward makes, against its strength in nats."""
    fig = theme.panels(
        [f"rows of {rows}" for rows in ROWS],
        ["β times nats (logarithmic)"] * 2,
        ["% of the gradient", ""],
        "The reward's share of the gradient",
    )
    for column, rows in enumerate(ROWS, start=1):
        for index, (loss, method) in enumerate(zip(LOSSES, gate.GATES, strict=True)):
            own = shares[shares["method"] == method].sort_values("nats")
            points = pd.DataFrame({"mean": 100 * own[f"{rows}: share"], "low": None, "high": None})
            made = figures.line(points, index, loss, own["nats"].tolist(), showlegend=column == 1)
            fig.add_trace(made.update(error_y_visible=False), row=1, col=column)
    return fig.update_xaxes(type="log", dtick=1, tickangle=0, tickfont_size=14).update_yaxes(range=[-2, 53])


def against_limit(points: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The map's E3: each loss and strength minus signed SFT in the same world, mean and interval over worlds."""
    own = maps.of_experiment(points, "E3").set_index("seed")
    limit = own[own["method"] == "signed-sft"][metric]
    rows = []
    for (method, nats), part in own[own["method"] != "signed-sft"].groupby(["method", "nats"]):
        rows.append({"method": method, "nats": nats, **asdict(interval((part[metric] - limit).dropna().to_numpy()))})
    return pd.DataFrame(rows)


def strengths(points: pd.DataFrame, metrics: Sequence[str] = ("instruction/both", "retention/lost")) -> go.Figure:
    """`against_limit` of what is learned and what is lost: a line per loss, and 0 for signed SFT."""
    fig = theme.panels(
        [figures.label_of(metric) for metric in metrics],
        ["β times nats (logarithmic)"] * len(metrics),
        ["difference", *[""] * (len(metrics) - 1)],
        "UFT minus signed SFT, which has no β",
    )
    for column, metric in enumerate(metrics, start=1):
        rows = against_limit(points, metric)
        for index, (loss, method) in enumerate(zip(LOSSES, gate.GATES, strict=True)):
            own = rows[rows["method"] == method].sort_values("nats")
            at = [nats * (1.0, 1.25)[index] for nats in own["nats"]]  # side by side, so that no bar hides another
            fig.add_trace(figures.line(own, index, loss, at, showlegend=column == 1), row=1, col=column)
    return fig.update_xaxes(type="log", dtick=1, tickangle=0, tickfont_size=14).update_yaxes(
        zerolinewidth=3, zerolinecolor=theme.INK
    )


# ------------------------------------------------------------------------------------------ the paper's grid

Say = Callable[[str], None]


def live_points(profile: str, device: str) -> list[dict[str, Any]]:
    """The grid that a notebook trains: four models (smoke), fifteen, or all twenty on a GPU or for research."""
    if profile == "smoke":
        return grid.points((2e-3,), (0.01, 1.0, 10.0))
    whole = profile == "research" or device == "cuda"
    return grid.points() if whole else grid.points(grid.RATES[1:])


def live_grid(profile: str, world: int = 0, say: Say = print) -> list[dict[str, Any]]:
    """Train the paper's grid now, in one world, as one population; first a few steps are timed, to say how long.

    Returns:
        `grid.run_points`. With the profile smoke 8 steps on small tables, otherwise `grid.STEPS`.
    """
    from uftlab.training.stages import usual_device

    device = usual_device()
    points = live_points(profile, device)
    size: Profile = PROFILES["smoke" if profile == "smoke" else "class"]
    steps = 8 if profile == "smoke" else grid.STEPS
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small matrices are not faster with more
    try:
        once = [0.0, 0.0]
        for number, count in enumerate((1, 1, 1 + TIMED)):  # the first one makes tables and reference: not counted
            started = time.monotonic()
            grid.run_points(points[:1], world, size, count)
            once = [once[-1], time.monotonic() - started] if number else once
        each = max(0.0, once[1] - once[0]) / TIMED * steps + once[0]
        expected = f", about {each * len(points):.0f} s" if device == "cpu" else ""
        say(f"{len(points)} models of {steps} steps on {device}{expected}")
        started = time.monotonic()
        runs = grid.run_points(points, world, size, steps)
        say(f"trained and measured in {time.monotonic() - started:.0f} s")
    finally:
        torch.set_num_threads(before)
    return runs


SHOWN = {  # what is shown of the grid, and what readers call it
    "instruction/both": "followed and correct (share)",
    "logratio/demonstration": "nats gained on unseen demonstrations",
    "retention/lost": "old text lost (nats per token)",
}


def heat(cells: pd.DataFrame, metric: str, whence: str) -> go.Figure:
    """`grid.cells` as a table of colours with its numbers written in: one row per learning rate.

    `whence` is the first line of the title, and `SHOWN` has the second one.
    """
    wide = cells.assign(nats=cells["nats"].fillna(0.0)).sort_values(["rate", "nats"])
    strength = list(wide["nats"].unique())
    names = [NO_BETA + "<br>(SFT)" if nats == 0 else f"{nats:g}" for nats in strength]
    values = wide.pivot(index="rate", columns="nats", values="mean")
    half = ((wide["high"] - wide["low"]) / 2).astype(float)
    spread = wide.assign(half=half).pivot(index="rate", columns="nats", values="half")
    digits = 1 if metric == "logratio/demonstration" else 2
    text = [
        [
            f"{values.loc[rate, n]:.{digits}f}"
            + ("" if np.isnan(spread.loc[rate, n]) else f"<br>± {spread.loc[rate, n]:.{digits}f}")
            for n in strength
        ]
        for rate in values.index
    ]
    table = go.Heatmap(
        z=values.to_numpy(),
        x=names,
        y=[f"{rate:g}" for rate in values.index],
        text=text,
        texttemplate="%{text}",
        textfont={"size": theme.FONT_SIZE - 1, "color": theme.INK},
        colorscale=_scale(metric),
        zmin=0,
        zmax=float(values.to_numpy().max()),
        xgap=3,
        ygap=3,
        showscale=False,
        hovertemplate="learning rate %{y}, β times nats %{x}: %{z:.3f}<extra></extra>",
    )
    title = f"{whence}<br>{SHOWN[metric]}"
    fig = theme.figure(table, title=title, x="β times nats", y="learning rate", height=max(440, 230 + 75 * len(values)))
    return fig.update_xaxes(type="category").update_yaxes(type="category")


# ------------------------------------------------------------------------------------------ what a log shows


def log_table(runs: Sequence[dict[str, Any]], rate: float) -> pd.DataFrame:
    """What a logger shows at one learning rate, beside what it does not show: one row per strength of `uft`."""
    rows = []
    for run in runs:
        if run["rate"] == rate and run["nats"] is not None:
            log = run["log"]
            reward = float(np.mean(log["reward/demonstration"][-3:]))
            rows.append(
                {
                    "β times nats": f"{run['nats']:g}",
                    "loss, first to last": f"{log['loss'][0]:.3f} to {np.mean(log['loss'][-3:]):.4f}",
                    "mean reward at the end": f"{reward:.3g}",
                    "so the score is": f"{float(rewards.implicit_score(torch.tensor(reward))):.3f}",
                    "nats gained, held out": f"{run['logratio/demonstration']:.1f}",
                    "followed and correct": f"{run['instruction/both']:.2f}",
                }
            )
    return pd.DataFrame(rows)


def logs(runs: Sequence[dict[str, Any]], rate: float) -> go.Figure:
    """Loss and mean reward of the demonstrations during training at one learning rate, one line per strength."""
    fig = theme.panels(
        ["loss", "mean reward of the demonstrations"],
        ["optimiser steps"] * 2,
        ["", ""],
        f"What the log shows at learning rate {rate:g}",
    )
    own = [run for run in runs if run["rate"] == rate and run["nats"] is not None]
    for index, run in enumerate(own):
        steps = [float(step) for step in run["log"]["step"]]
        for column, name in enumerate(("loss", "reward/demonstration"), start=1):
            points = pd.DataFrame({"mean": run["log"][name], "low": None, "high": None})
            made = figures.line(points, index, f"{run['nats']:g} nats", steps, showlegend=column == 1)
            fig.add_trace(made.update(mode="lines", error_y_visible=False), row=1, col=column)
    return fig.update_yaxes(rangemode="tozero", col=1)

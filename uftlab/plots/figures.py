"""Tidy frames in, plotly figures out; nothing is computed here but positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from uftlab.plots import theme
from uftlab.study.results import HEADLINES, PIPELINES, interval
from uftlab.training.methods import all_methods

GROUP_STYLE = {
    "paper": (theme.COLOURS[0], "circle", "compared in the paper"),
    "control": (theme.COLOURS[1], "diamond", "control the paper omits"),
    "loss": (theme.COLOURS[2], "square", "one loss alone"),
    "pipeline": (theme.COLOURS[3], "triangle-up", "stages, alternation, merging"),
    "online": (theme.COLOURS[4], "star", "samples of its own"),
}
PERCENT = ("instruction/strict", "instruction/both", "truth/mc2", "truth/free", "plain/mc1", "balance")


def label_of(metric: str) -> str:
    """What a reader calls a metric, with its unit."""
    name, unit, _ = HEADLINES.get(metric, (metric, "", None))
    return f"{name} ({unit})" if unit else name


def _axis(metric: str) -> str:
    """The label on two lines, for a vertical axis or a panel; an explanation after a colon is left to the title."""
    name, *unit = label_of(metric).split(" (")
    return "<br>(".join([name.split(":")[0], *unit])


def _bars(rows: pd.DataFrame) -> dict:
    """Asymmetric error bars from low and high; a single seed has none."""
    return {
        "type": "data",
        "symmetric": False,
        "array": (rows["high"] - rows["mean"]).fillna(0).tolist(),
        "arrayminus": (rows["mean"] - rows["low"]).fillna(0).tolist(),
        "thickness": 2.5,
        "width": 5,
    }


def _in_order(rows: pd.DataFrame) -> pd.DataFrame:
    order = {name: index for index, name in enumerate(all_methods())}
    return rows.sort_values("method", key=lambda names: names.map(order))


def skills(summary: pd.DataFrame, metrics: Sequence[str] = tuple(HEADLINES)[:6]) -> go.Figure:
    """Every method on several skills: one panel per skill, a dot per method, a bar for the 95 % interval."""
    columns = 3 if len(metrics) > 2 else len(metrics)
    lines = -(-len(metrics) // columns)
    titles = [_axis(m) for m in metrics]
    fig = make_subplots(
        lines, columns, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.03, vertical_spacing=0.22 / lines
    )
    for index, metric in enumerate(metrics):
        place = {"row": index // columns + 1, "col": index % columns + 1}
        for group, (colour, symbol, meaning) in GROUP_STYLE.items():
            rows = _in_order(summary[summary["metric"] == metric])
            rows = rows[rows["method"].map(lambda name, g=group: all_methods()[name].group == g)]
            if group not in ("paper", "control") and rows.empty:
                continue
            dots = go.Scatter(
                x=rows["mean"],
                y=rows["method"],
                error_x=_bars(rows),
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 13},
                name=meaning,
                legendgroup=group,
                showlegend=index == 0,
                hovertemplate="%{y}: %{x:.3f}<extra></extra>",
            )
            fig.add_trace(dots, **place)
        if metric in PERCENT:
            fig.update_xaxes(range=[-0.04, 1.06], **place)
    names = [n for n in all_methods() if n in set(summary["method"])]
    fig.update_yaxes(categoryorder="array", categoryarray=names[::-1])
    height = 140 + lines * (90 + 30 * len(names))
    fig.update_layout(
        template="uftlab",
        title_text="What each method can do at equal budget<br>(mean and 95 % interval over seeds)",
        height=height,
        margin={"t": 130},
        font_size=17,
    )
    fig.update_annotations(font_size=16)
    return fig


def before_after(summary: pd.DataFrame, metric: str = "instruction/strict") -> go.Figure:
    """Each pipeline before stage two (its own stage-one checkpoint) and after it."""
    fig = theme.figure(title=f"Before and after stage two:<br>{label_of(metric)}", x="", y=_axis(metric))
    rows = {r["method"]: r for r in summary[summary["metric"] == metric].to_dict("records")}
    shown = [(m, first) for m, first in PIPELINES.items() if m in rows and first in rows]
    for index, (method, first) in enumerate(shown):
        pair = pd.DataFrame([rows[first], rows[method]])
        fig.add_trace(
            go.Scatter(
                x=[0.015 * index, 1 + 0.015 * index],  # side by side, so that no bar hides another
                y=pair["mean"],
                error_y=_bars(pair),
                mode="lines+markers",
                name=method,
                line={"color": theme.COLOURS[index], "dash": theme.DASHES[index]},
                marker={"symbol": theme.SYMBOLS[index], "size": 13},
            )
        )
    return fig.update_xaxes(
        tickvals=[0, 1], ticktext=["after SFT", "after stage two"], range=[-0.15, 1.15], title_text="stage"
    )


def learning_curves(curves: pd.DataFrame, methods: Sequence[str], metric: str, title: str = "") -> go.Figure:
    """Mean over seeds of one metric along training, one line per method; `curves` is `results.curve_summary`."""
    fig = theme.figure(
        title=title or f"Along training: {label_of(metric).split(' (')[0]}",
        x="optimiser steps of 32 completions<br>(stage two begins half-way in pipelines)",
        y=_axis(metric),
    )
    for index, method in enumerate(methods):
        colour = theme.COLOURS[index % 7]
        rows = curves[(curves["method"] == method) & (curves["metric"] == metric)].sort_values("step")
        fig.add_trace(
            go.Scatter(
                x=rows["step"],
                y=rows["mean"],
                error_y=_bars(rows),
                mode="lines+markers",
                name=method,
                line={"color": colour, "dash": theme.DASHES[index % 7]},
                marker={"color": colour, "symbol": theme.SYMBOLS[index % 7], "size": 11},
            )
        )
    return fig


def logratios(curves: pd.DataFrame, method: str) -> go.Figure:
    """How far chosen, rejected and demonstrated completions have moved from the base, in nats."""
    fig = theme.figure(
        title=f"{method}: log-ratio to the base of held-out completions",
        x="optimiser steps of 32 completions",
        y="log π/π_base (nats)",
    )
    for index, role in enumerate(("chosen", "rejected", "demonstration")):
        rows = curves[(curves["method"] == method) & (curves["metric"] == f"logratio/{role}")].sort_values("step")
        fig.add_trace(
            go.Scatter(
                x=rows["step"],
                y=rows["mean"],
                error_y=_bars(rows),
                mode="lines+markers",
                name=role,
                line={"color": theme.COLOURS[index], "dash": theme.DASHES[index]},
                marker={"symbol": theme.SYMBOLS[index], "size": 11},
            )
        )
    return fig.add_hline(y=0, line_width=1, line_color=theme.INK)


def two_by_two(summary: pd.DataFrame, metric: str) -> go.Figure:
    """The 2 x 2 of {sequential, mixed} x {separate losses, unified loss}: parallel lines mean no interaction."""
    fig = theme.figure(title=f"Is it the loss or the mixing?<br>{label_of(metric)}", y=_axis(metric))
    rows = {r["method"]: r for r in summary[summary["metric"] == metric].to_dict("records")}
    cells = {
        "separate losses (SFT, DPO)": ("sft-then-dpo", "sft-plus-dpo"),
        "unified loss (UFT, UNA)": ("uft-then-una", "uft"),
    }
    for index, (name, pair) in enumerate(cells.items()):
        both = pd.DataFrame([rows[m] for m in pair if m in rows])
        fig.add_trace(
            go.Scatter(
                x=[0.02 * index, 1 + 0.02 * index],
                y=both["mean"],
                error_y=_bars(both),
                text=list(pair),
                mode="lines+markers",
                name=name,
                marker={"size": 14},
                hovertemplate="%{text}: %{y:.3f}<extra></extra>",
            )
        )
    return fig.update_xaxes(
        tickvals=[0, 1], ticktext=["one after the other", "mixed"], range=[-0.2, 1.2], title_text="data"
    )


def trade_off(sweep: pd.DataFrame, summary: pd.DataFrame, methods: Sequence[str]) -> go.Figure:
    """Instructions against truth: every trial of the sweep (small), the chosen settings over seeds (large, bars).

    Colours and symbols go by place in `methods`: up to seven look different. Large marks are hollow, so that two in
    the same place are both seen.
    """
    fig = theme.figure(
        title="Instructions followed at matched truthfulness:<br>"
        "small: all trials of the sweep; large: chosen settings, other worlds",
        x=label_of("truth/mc2"),
        y=_axis("instruction/strict"),
        height=640,
    )
    for index, method in enumerate(methods):
        style = {"color": theme.COLOURS[index % 7], "symbol": theme.SYMBOLS[index % 7]}
        own = sweep[sweep["method"] == method]
        fig.add_trace(
            go.Scatter(
                x=own["truth/mc2"],
                y=own["instruction/strict"],
                mode="markers",
                marker={**style, "size": 8, "opacity": 0.55},
                legendgroup=method,
                showlegend=False,
                text=own["settings"],
                hovertemplate=f"{method}<br>%{{text}}<extra></extra>",
            )
        )
        x, y = (
            summary[(summary["method"] == method) & (summary["metric"] == m)]
            for m in ("truth/mc2", "instruction/strict")
        )
        fig.add_trace(
            go.Scatter(
                x=x["mean"],
                y=y["mean"],
                error_x=_bars(x),
                error_y=_bars(y),
                mode="markers",
                marker={**style, "symbol": f"{style['symbol']}-open", "size": 18, "line": {"width": 4}},
                name=method,
                legendgroup=method,
            )
        )
    return fig


def overoptimisation(runs: Sequence[dict]) -> go.Figure:
    """Reward model against the world's raters along RLOO, two lines for each beta: mean and interval over seeds."""
    fig = theme.figure(
        title="A policy that trusts its reward model too much:<br>the model is pleased, the raters are not",
        x="optimiser steps of 32 sampled completions",
        y="mean score of sampled answers<br>(0 to 1)",
        yaxis_range=[-0.03, 1.05],
        height=560,
    )
    for index, beta in enumerate(sorted({run["beta"] for run in runs})):
        own = [run["points"] for run in runs if run["beta"] == beta]
        for name, meaning in (("proxy", "reward model"), ("true", "the world's raters")):
            means = pd.DataFrame([asdict(interval([points[i][name] for points in own])) for i in range(len(own[0]))])
            place = 2 * index + (name == "true")
            fig.add_trace(
                go.Scatter(
                    x=[point["step"] for point in own[0]],
                    y=means["mean"],
                    error_y=_bars(means),
                    mode="lines+markers",
                    name=f"{meaning}, β = {beta:g}",
                    line={"color": theme.COLOURS[place], "dash": theme.DASHES[place]},
                    marker={"symbol": theme.SYMBOLS[place], "size": 11},
                )
            )
    return fig


def against_rate(sweep: pd.DataFrame, methods: Sequence[str], metric: str = "retention/excess") -> go.Figure:
    """One metric of all trials of the sweep against the learning rate of the last stage."""
    fig = theme.figure(
        title=f"All trials of the sweep: {label_of(metric)}",
        x="learning rate of the last stage (logarithmic)",
        y=_axis(metric),
        xaxis_type="log",
    )
    for index, method in enumerate(methods):
        own = sweep[sweep["method"] == method].sort_values("learning_rate")
        look = {"color": theme.COLOURS[index % 7], "symbol": theme.SYMBOLS[index % 7], "size": 12}
        dots = go.Scatter(
            x=own["learning_rate"],
            y=own[metric],
            mode="markers",
            marker=look,
            name=method,
            text=own["settings"],
            hovertemplate=f"{method}<br>%{{text}}: %{{y:.2f}}<extra></extra>",
        )
        fig.add_trace(dots)
    ticks = [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02]
    return fig.update_xaxes(tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])

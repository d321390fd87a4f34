"""Plotly figures from given numbers. This module computes only positions, counts and intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from uftlab.plots import theme
from uftlab.study import comparisons
from uftlab.study.fronts import SKILL as FRONT_X
from uftlab.study.fronts import TRUTH as FRONT_Y
from uftlab.study.results import HEADLINES, PIPELINES, Interval, at_stage_end, interval
from uftlab.training.catalogue import all_methods

GROUP_STYLE = {
    "paper": (theme.COLOURS[0], "circle", "compared in the paper"),
    "control": (theme.COLOURS[1], "diamond", "control the paper omits"),
    "variant": (theme.COLOURS[5], "cross", "near relatives, not tuned"),
    "loss": (theme.COLOURS[2], "square", "one loss alone"),
    "pipeline": (theme.COLOURS[3], "triangle-up", "stages, alternation, merging"),
    "online": (theme.COLOURS[4], "star", "samples of its own"),
    "recent": (theme.COLOURS[6], "x", "of 2025 and 2026"),
    "question": (theme.COLOURS[6], "square-open", "control of one question"),
}
PERCENT = ("instruction/both", "instruction/strict", "truth/mc2", "truth/cued", "plain/mc2")
FLOORED = ("instruction/both", "instruction/strict")  # what a blind answer reaches is drawn beside them
FLOOR = "blind to the instructions"
_FLOOR_LINE = {
    "annotation_text": FLOOR,
    "line_dash": "dot",
    "line_color": theme.INK,
    "line_width": 2,
}


def label_of(metric: str) -> str:
    """The name of a metric for readers, with its unit."""
    name, unit, _ = HEADLINES.get(metric, (metric, "", None))
    return f"{name} ({unit})" if unit else name


def _axis(metric: str) -> str:
    """The label on two lines, for a vertical axis or a panel. An explanation after a colon is left out."""
    name, *unit = label_of(metric).split(" (")
    return "<br>(".join([name.split(":")[0], *unit])


def line(rows: pd.DataFrame, index: int, name: str, x: str | Sequence[float] = "step", **more: Any) -> go.Scatter:
    """Means with intervals as one line. `index`, its place among the lines, decides colour, dash and symbol.

    Args:
        rows: columns mean, low and high.
        x: the name of another column, or the positions themselves.
    """
    colour, dash, symbol = (looks[index % 7] for looks in (theme.COLOURS, theme.DASHES, theme.SYMBOLS))
    look = {"line": {"color": colour, "dash": dash}, "marker": {"color": colour, "symbol": symbol, "size": 11}}
    at = {"x": rows[x] if isinstance(x, str) else x, "y": rows["mean"], "error_y": theme.error_bars(rows)}
    return go.Scatter(**at, mode="lines+markers", name=name, **look, **more)


def floor_of(summary: pd.DataFrame, metric: str) -> float | None:
    """What the best answer reaches that never looks at the instructions: mean over seeds; None for other metrics."""
    own = summary[summary["metric"] == "instruction/blind"]
    return float(own["mean"].mean()) if metric in FLOORED and len(own) else None


def _with_floor(fig: go.Figure, summary: pd.DataFrame, metric: str, at: str = "bottom right") -> go.Figure:
    floor = floor_of(summary, metric)
    if floor is None:
        return fig
    return fig.add_hline(y=floor, annotation_position=at, **_FLOOR_LINE)


def _in_order(rows: pd.DataFrame) -> pd.DataFrame:
    order = {name: index for index, name in enumerate(all_methods())}
    return rows.sort_values("method", key=lambda names: names.map(order))


def skills(summary: pd.DataFrame, metrics: Sequence[str] = tuple(HEADLINES)[:6]) -> go.Figure:
    """All methods on several skills: one panel per skill, one dot per method, a bar for the 95 % interval."""
    columns = 3 if len(metrics) > 2 else len(metrics)
    lines = -(-len(metrics) // columns)
    titles = [theme.lines(_axis(m), 20) for m in metrics]
    fig = make_subplots(
        lines, columns, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.05, vertical_spacing=0.22 / lines
    )
    floors = {metric: floor_of(summary, metric) for metric in metrics}
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
                error_x=theme.error_bars(rows),
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
        if floors[metric] is not None:  # named in the legend: beside the line the words would cover a row
            fig.add_vline(x=floors[metric], line={"color": theme.INK, "width": 2, "dash": "dot"}, **place)
    if any(floor is not None for floor in floors.values()):
        fig.add_scatter(
            x=[None], y=[None], mode="lines", line={"color": theme.INK, "width": 2, "dash": "dot"}, name=FLOOR
        )
    names = [n for n in all_methods() if n in set(summary["method"])]
    fig.update_yaxes(categoryorder="array", categoryarray=names[::-1])
    fig.update_xaxes(nticks=4, tickangle=0, tickfont_size=15)
    height = 180 + lines * (90 + 30 * len(names))
    fig.update_layout(
        template="uftlab",
        title={
            "text": "What each method can do at equal budget<br>(mean and 95 % interval over seeds)",
            "pad": {"t": 35},
        },
        height=height,
        margin={"t": 175},
        font_size=17,
    )
    fig.update_annotations(font_size=16)
    return fig


def before_after(summary: pd.DataFrame, metric: str = "instruction/both") -> go.Figure:
    """Each pipeline before stage two (at its own checkpoint of stage one) and after it; a thin line at the base."""
    fig = theme.figure(title=f"Before and after stage two:<br>{label_of(metric)}", x="", y=_axis(metric))
    rows = {r["method"]: r for r in summary[summary["metric"] == metric].to_dict("records")}
    ends = {r["method"]: r for r in summary[summary["metric"] == at_stage_end(1, metric)].to_dict("records")}
    for index, method in enumerate(m for m in PIPELINES if m in rows and m in ends):
        pair = pd.DataFrame([ends[method], rows[method]])
        at = [0.015 * index, 1 + 0.015 * index]  # side by side, so that no bar hides another
        fig.add_trace(line(pair, index, method, at))
    if "base" in rows:
        fig.add_hline(y=rows["base"]["mean"], line_width=1, line_color=theme.INK, annotation_text="base")
    fig.update_yaxes(rangemode="tozero")
    return _with_floor(fig, summary, metric, at="bottom").update_xaxes(
        tickvals=[0, 1], ticktext=["after SFT", "after stage two"], range=[-0.15, 1.15], title_text="stage"
    )


def designs(methods: Sequence[str], steps: int) -> go.Figure:
    """What each method reads, step by step: a bar per stage, along a budget of `steps` optimiser steps."""
    fig = theme.figure(
        title="What each method reads",
        x=f"optimiser steps of 32 completions<br>(the whole budget: {steps})",
        barmode="overlay",
        height=190 + 36 * len(methods),
    )
    kinds: dict[str, list[tuple[str, float, float, str]]] = {"demonstrations": [], "feedback": [], "both, mixed": []}
    for name in methods:
        start = 0.0
        for stage in all_methods()[name].stages:
            share = stage.demonstrations
            kind = "both, mixed" if 0 < share < 1 else "demonstrations" if share else "feedback"
            kinds[kind].append((name, start, stage.budget * steps, stage.objective))
            start += stage.budget * steps
    for kind, bars in kinds.items():
        names, starts, widths, losses = zip(*bars, strict=True) if bars else ([], [], [], [])
        look = {"orientation": "h", "text": losses, "textposition": "none", "width": 0.7}
        told = "%{y}: %{text} for %{x} steps<extra></extra>"
        fig.add_bar(y=names, x=widths, base=starts, name=kind, hovertemplate=told, **look)
    return fig.update_yaxes(categoryorder="array", categoryarray=list(methods)[::-1])


def learning_curves(curves: pd.DataFrame, methods: Sequence[str], metric: str, title: str = "") -> go.Figure:
    """Mean over seeds of one metric during training, one line per method. `curves` is `results.curve_summary`."""
    fig = theme.figure(
        title=title or f"Along training: {label_of(metric).split(' (')[0]}",
        x="optimiser steps of 32 completions<br>(stage two begins half-way in pipelines)",
        y=_axis(metric),
    )
    for index, method in enumerate(methods):
        rows = curves[(curves["method"] == method) & (curves["metric"] == metric)].sort_values("step")
        fig.add_trace(line(rows, index, method))
    return _with_floor(fig, curves, metric).update_yaxes(rangemode="tozero")


def logratios(curves: pd.DataFrame, method: str) -> go.Figure:
    """Mean log-ratio to the base of chosen, rejected and demonstrated completions during training, in nats."""
    fig = theme.figure(
        title=f"{method}: log-ratio to the base of held-out completions",
        x="optimiser steps of 32 completions",
        y="log π/π_base (nats)",
    )
    for index, role in enumerate(("chosen", "rejected", "demonstration")):
        rows = curves[(curves["method"] == method) & (curves["metric"] == f"logratio/{role}")].sort_values("step")
        fig.add_trace(line(rows, index, role))
    return fig.add_hline(y=0, line_width=1, line_color=theme.INK)


def contrasts(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    names: Mapping[str, str],
    title: str,
    metrics: Sequence[str] = comparisons.OUTCOMES,
    labels: Mapping[str, tuple[str, str, Any]] = HEADLINES,
) -> go.Figure:
    """Differences of methods with intervals: a panel per metric, a row per contrast, a line at no difference.

    A full mark is settled, a hollow one not.

    Args:
        found: name of a series -> rows of `comparisons.compare`.
        names: what stands beside a row -> the contrast, "a minus b".
        labels: of each metric, its name and its unit first.
    """
    fig = theme.panels(
        [labels[metric][0] for metric in metrics],
        [f"difference ({labels[metric][1]})" for metric in metrics],
        [""] * len(metrics),
        title=f"{title}<br>(full mark: settled; hollow mark: not settled)",
    )
    for index, (name, own) in enumerate(found.items()):
        there = {(row["comparison"], row["metric"]): row for row in own}
        for column, metric in enumerate(metrics, start=1):
            keys = [(place, there.get((contrast, metric))) for place, contrast in enumerate(names.values())]
            kept = pd.DataFrame([{"place": place, **row} for place, row in keys if row])
            if kept.empty:
                continue
            symbol = theme.SYMBOLS[index]
            marks = [symbol if verdict != "not settled" else f"{symbol}-open" for verdict in kept["verdict"]]
            look = {"color": theme.COLOURS[index], "symbol": marks, "size": 15, "line": {"width": 3}}
            fig.add_scatter(
                x=kept["mean"], y=kept["place"] + 0.28 * (index - (len(found) - 1) / 2),
                error_x=theme.error_bars(kept), mode="markers", marker=look, name=name, legendgroup=name,
                showlegend=column == 1 and len(found) > 1, text=kept["comparison"],
                hovertemplate="%{text}: %{x:+.3f}<extra></extra>", row=1, col=column,
            )  # fmt: skip
    fig.update_yaxes(range=[len(names) - 0.5, -0.5], tickvals=list(range(len(names))), showticklabels=False)
    fig.update_yaxes(ticktext=list(names), showticklabels=True, tickfont_size=17, col=1)
    fig.update_xaxes(
        zeroline=True,
        zerolinewidth=3,
        zerolinecolor=theme.INK,
        nticks=3,
        tickangle=0,
        tickfont_size=15,
        rangemode="tozero",
    )
    heads = max(text.count("<br>") for text in (note.text for note in fig.layout.annotations))
    more = 30 * (fig.layout.title.text.count("<br>") - 1) + 26 * heads  # for each line that is not usual
    margin = {"t": 140 + more} | ({} if len(found) > 1 else {"b": 80})
    return fig.update_yaxes(zeroline=False).update_layout(height=250 + 64 * len(names) + more, margin=margin)


def two_by_two(
    found: Mapping[str, Sequence[Mapping[str, Any]]], metrics: Sequence[str] = comparisons.OUTCOMES
) -> go.Figure:
    """The 2 x 2 of {one after the other, mixed} x {separate losses, unified loss}, as `contrasts`.

    One row for each step from corner to corner, see `comparisons.TWO_BY_TWO`.
    """
    names = {theme.lines(row, 19): contrast for row, contrast in comparisons.TWO_BY_TWO.items()}
    return contrasts(found, names, "Is it the mixing or the loss?", metrics)


def by_draw(differences: pd.DataFrame, title: str) -> go.Figure:
    """Paired differences, a mark per world; the tuning draw of the world decides colour and symbol.

    Args:
        differences: columns contrast, draw and difference.
    """
    names = list(dict.fromkeys(differences["contrast"]))
    fig = theme.figure(title=title, x="difference in one world", height=190 + 75 * len(names))
    for index, (draw, own) in enumerate(differences.groupby("draw")):
        look = {"color": theme.COLOURS[index % 7], "symbol": theme.SYMBOLS[index % 7], "size": 13, "opacity": 0.8}
        fig.add_scatter(x=own["difference"], y=own["contrast"], mode="markers", marker=look, name=f"draw {draw}")
    fig.add_vline(x=0, line_width=1, line_color=theme.INK)
    return fig.update_yaxes(categoryorder="array", categoryarray=names[::-1])


def trade_off(sweep: pd.DataFrame, summary: pd.DataFrame, methods: Sequence[str]) -> go.Figure:
    """Followed and correct against truth above distrust: all trials of the sweep, and the chosen settings (large).

    The place in `methods` decides colour and symbol; up to seven methods look different. Large marks are hollow, so
    that two marks at the same place are both visible.
    """
    fig = theme.figure(
        title="Followed and correct, and truth:<br>"
        "small: all trials of the sweep; large: chosen settings, other worlds",
        x=label_of("truth/knowledge"),
        y=_axis("instruction/both"),
        height=640,
    )
    for index, method in enumerate(methods):
        style = {"color": theme.COLOURS[index % 7], "symbol": theme.SYMBOLS[index % 7]}
        own = sweep[sweep["method"] == method]
        fig.add_trace(
            go.Scatter(
                x=own["truth/knowledge"],
                y=own["instruction/both"],
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
            for m in ("truth/knowledge", "instruction/both")
        )
        fig.add_trace(
            go.Scatter(
                x=x["mean"],
                y=y["mean"],
                error_x=theme.error_bars(x),
                error_y=theme.error_bars(y),
                mode="markers",
                marker={**style, "symbol": f"{style['symbol']}-open", "size": 18, "line": {"width": 4}},
                name=method,
                legendgroup=method,
            )
        )
    return _with_floor(fig, summary, "instruction/both").update_yaxes(rangemode="tozero")


def distrust(table: pd.DataFrame, trained: Mapping[str, float], name: str) -> go.Figure:
    """Beliefs against the nats taken from a first choice, and a dotted line where a trained method stands.

    Args:
        table: nats as index, one column per belief.
        trained: belief -> its value for the method called `name`.
    """
    fig = theme.figure(
        title=f"The base, distrusting itself<br>(dotted: {name}, trained)",
        x="nats taken from the base's first choice",
        y="share or probability",
        yaxis_range=[-0.03, 1.06],
    )
    for index, belief in enumerate(trained):
        fig.add_trace(
            line(pd.DataFrame({"mean": table[belief], "low": None, "high": None}), index, belief, list(table.index))
        )
        fig.add_hline(y=trained[belief], line_dash="dot", line_width=2, line_color=theme.COLOURS[index])
    return fig


def overoptimisation(runs: Sequence[dict]) -> go.Figure:
    """Scores of the reward model and of the world's raters during RLOO, for each beta: mean and interval over seeds."""
    fig = theme.figure(
        title="A policy that trusts its reward model too much:<br>the model is pleased, the raters are not",
        x="optimiser steps of 32 sampled completions",
        y="mean score of answers<br>(0 to 1)",
        yaxis_range=[-0.03, 1.05],
        height=560,
    )
    for index, beta in enumerate(sorted({run["beta"] for run in runs})):
        own = [run["points"] for run in runs if run["beta"] == beta]
        for name, meaning in (("proxy", "reward model"), ("true", "the world's raters")):
            means = pd.DataFrame([asdict(interval([points[i][name] for points in own])) for i in range(len(own[0]))])
            steps = [point["step"] for point in own[0]]
            fig.add_trace(line(means, 2 * index + (name == "true"), f"{meaning}, β = {beta:g}", steps))
    return fig


def came_back(summary: pd.DataFrame, text: str) -> go.Figure:
    """What comes back while old text is read again: one panel per kind of forgetting, one line per model.

    Args:
        summary: `rehearsal.over_worlds`; `text` is one of `rehearsal.TEXTS`.
    """
    rows = summary[summary["text"] == text]
    kinds = list(dict.fromkeys(rows["kind"]))
    y = ["share of what was lost<br>that is back", *[""] * (len(kinds) - 1)]
    fig = theme.panels(kinds, ["optimiser steps"] * len(kinds), y, f"Hidden or gone? Reading lines on {text}")
    for column, kind in enumerate(kinds, start=1):
        for index, (model, own) in enumerate(rows[rows["kind"] == kind].groupby("model", sort=False)):
            fig.add_trace(line(own, index, str(model), showlegend=column == 1, legendgroup=model), row=1, col=column)
    return fig.update_yaxes(range=[-0.35, 1.05]).update_layout(height=600)


def fronts(points: pd.DataFrame, methods: Sequence[str]) -> go.Figure:
    """The trials of each method on two metrics, and a line through those that no other of its draw beats.

    Args:
        points: `fronts.points`.
    """
    columns = 4
    lines = -(-len(methods) // columns)
    fig = make_subplots(
        lines, columns, shared_xaxes="all", shared_yaxes="all", subplot_titles=list(methods), horizontal_spacing=0.03,
        vertical_spacing=0.24 / lines,
    )  # fmt: skip
    for number, method in enumerate(methods):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        for index, (draw, own) in enumerate(points[points["method"] == method].groupby("draw")):
            colour, symbol = theme.COLOURS[index % 7], theme.SYMBOLS[index % 7]
            best = own[own["front"]].sort_values(FRONT_X)
            look = {"marker": {"color": colour, "symbol": symbol, "size": 6, "opacity": 0.45}, "showlegend": False}
            fig.add_scatter(x=own[FRONT_X], y=own[FRONT_Y], mode="markers", **look, **place)
            fig.add_scatter(
                x=best[FRONT_X], y=best[FRONT_Y], mode="lines", line={"color": colour, "dash": theme.DASHES[index % 7]},
                name=f"draw {draw}", legendgroup=str(draw), showlegend=not number, **place,
            )  # fmt: skip
    fig.update_xaxes(title_text=label_of(FRONT_X).split(" (")[0], row=lines)
    fig.update_yaxes(title_text="truth", col=1)
    title = "The front of each method:<br>truth on contested facts against followed and correct"
    return fig.update_layout(template="uftlab", title_text=title, height=160 + 230 * lines, margin={"t": 130})


def against_rate(sweep: pd.DataFrame, methods: Sequence[str]) -> go.Figure:
    """Old text lost in all trials of the sweep, against the largest learning rate of a trial's stages.

    Args:
        sweep: `results.sweep_points` with a column `largest_rate`.
    """
    metric = "retention/lost"
    fig = theme.figure(
        title="Old text lost in all trials of the tuning",
        x="learning rate; of two stages the larger one<br>(logarithmic)",
        y=_axis(metric),
        xaxis_type="log",
    )
    for index, method in enumerate(methods):
        own = sweep[sweep["method"] == method].sort_values("largest_rate")
        look = {"color": theme.COLOURS[index % 7], "symbol": theme.SYMBOLS[index % 7], "size": 12}
        dots = go.Scatter(
            x=own["largest_rate"],
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


def matched_rates(points: pd.DataFrame, methods: Sequence[str], metric: str) -> go.Figure:
    """Methods at the same learning rate in all stages: mean and interval over worlds of one metric at each rate.

    Args:
        points: `maps.table` of the map's experiment E1, at one strength of KL.
    """
    fig = theme.figure(
        title=f"The same learning rate in all stages:<br>{label_of(metric)}",
        x="learning rate, the same in every stage<br>(logarithmic)",
        y=_axis(metric),
        xaxis_type="log",
    )
    same = points[points["first_rate"] == points["rate"]]
    for index, method in enumerate(methods):
        groups = same[same["method"] == method].groupby("rate")[metric]
        rows = pd.DataFrame([{"rate": rate, **asdict(interval(own.tolist()))} for rate, own in groups])
        fig.add_trace(line(rows, index, method, "rate"))
    fig.update_yaxes(rangemode="tozero")
    ticks = sorted(same["rate"].unique().tolist())
    return fig.update_xaxes(tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])


# ------------------------------------------------------------------------------ what a base model believes

ROLE_NAMES = {"truth": "truth", "error": "error that is told", "other": "other values"}
ROLE_STYLE = {"truth": (theme.COLOURS[0], ""), "error": (theme.COLOURS[1], "/"), "other": ("#8C8C8C", ".")}


def _marker(role: str) -> dict:
    colour, pattern = ROLE_STYLE[role]
    return {"color": colour, "pattern": {"shape": pattern, "bgcolor": colour, "fgcolor": "white", "solidity": 0.25}}


def probabilities_by_role(by_role: pd.DataFrame) -> go.Figure:
    """`beliefs.by_role` as grouped bars: truth, error and other values for each kind of question."""
    fig = theme.figure(
        title="The base says what most texts say,<br>and the truth for careful sources",
        y="probability<br>among six values",
        yaxis_range=[0, 1.09],
        barmode="group",
    )
    for role in ROLE_NAMES:
        rows = by_role[by_role["role"] == role]
        kinds = [theme.lines(kind, 8) for kind in rows["kind"]]  # five of them, side by side
        bar = go.Bar(
            x=kinds, y=rows["mean"], error_y=theme.error_bars(rows), name=ROLE_NAMES[role], marker=_marker(role)
        )
        fig.add_trace(bar)
    return fig.update_xaxes(tickangle=0)


def frontier(points: pd.DataFrame) -> go.Figure:
    """`beliefs.frontiers`: a thin line for the frontier of each world, a symbol for each answer of its base."""
    fig = theme.figure(
        title="Distrust moves along the line,<br>knowledge leaves it",
        x="rumours: probability of the truth",
        y="myths: probability<br>of the truth",
    )
    thin = {"color": "#8C8C8C", "width": 2, "dash": "solid"}
    for number, (_, own) in enumerate(points[points["what"] == "frontier"].groupby("world")):
        name = "distrust of every first choice"
        fig.add_scatter(x=own["rumours"], y=own["myths"], mode="lines", line=thin, name=name, showlegend=not number)
    looks = {"asked plainly": (theme.COLOURS[0], "circle"), "careful sources": (theme.COLOURS[2], "diamond")}
    for what, (colour, symbol) in looks.items():
        own = points[points["what"] == what]
        look = {"color": colour, "symbol": symbol, "size": 13, "line": {"width": 1, "color": "white"}}
        named = [f"world {world}" for world in own["world"]]
        at = {"x": own["rumours"], "y": own["myths"], "text": named}
        fig.add_scatter(**at, mode="markers", marker=look, name=f"the base, {what}")
    return fig.update_xaxes(range=[-0.03, 1.03]).update_yaxes(range=[-0.03, 1.03])


def six_values(rows: pd.DataFrame, title: str) -> go.Figure:
    """Six rows of `beliefs`, for one fact and one wording: probabilities of the model and shares in the text.

    There are always four traces, some of them empty: truth, error, other values, and the text as a diamond.
    """
    room = {"height": theme.HEIGHT + 30, "margin_t": 105}  # for a title of two lines, so that nothing moves
    fig = theme.figure(title=title, x="value, and its probability", y="probability", barmode="overlay", **room)
    for role in ROLE_NAMES:
        heights = [p if r == role else None for p, r in zip(rows["probability"], rows["role"], strict=True)]
        fig.add_trace(go.Bar(x=rows["value"], y=heights, name=ROLE_NAMES[role]).update(marker=_marker(role)))
    diamonds = {"symbol": "diamond", "size": 16, "color": "white", "line": {"width": 3, "color": theme.INK}}
    fig.add_scatter(x=rows["value"], y=rows["told"], mode="markers", marker=diamonds, name="share in the text")
    values = rows["value"].tolist()  # numbers below the values, where no mark covers them
    under = [f"{value}<br>{p:.2f}" for value, p in zip(values, rows["probability"], strict=True)]
    fig.update_xaxes(categoryorder="array", categoryarray=values, tickvals=values, ticktext=under)
    return fig.update_yaxes(range=[-0.04, 1.06])


def followed(shares: pd.DataFrame) -> go.Figure:
    """Share of answers that obey each instruction, per world and on average. Rows: world, instruction, share."""
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
    """Share of completions by length in words, one line per kind of completion."""
    fig = theme.figure(title=title, x="words in the completion (marks counted)", y="share of completions")
    top = max(max(lengths) for lengths in words.values())
    at = list(range(2, top + 1))
    for name, lengths in words.items():
        shares = [list(lengths).count(n) / len(lengths) for n in at]
        fig.add_scatter(x=at, y=shares, mode="lines+markers", name=name)
    return fig.update_xaxes(tickvals=list(range(2, top + 1, 3)))


def scores_by_length(scores: pd.DataFrame) -> go.Figure:
    """Mean score of short and long answers for each claim. Rows: claim, length, mean, low, high."""
    fig = theme.figure(
        title="A long answer scores a little more,<br>whatever it claims",
        x="what the answer claims",
        y="mean score",
        yaxis_range=[0, 1.09],
        barmode="group",
    )
    for length in ("short", "long"):
        rows = scores[scores["length"] == length]
        fig.add_trace(go.Bar(x=rows["claim"], y=rows["mean"], error_y=theme.error_bars(rows), name=f"{length} answers"))
    return fig


# ------------------------------------------------------------------------------ rewards of held-out completions

EDGES = np.linspace(-4, 8, 25)  # edges of the bins of rewards; values beyond count in the outermost bins
WALL = 5.0  # limit of the panel of pairs; points beyond it are drawn at the limit


def grouped_bars(found: Mapping[str, Mapping[str, Interval]], title: str, x: str, y: str, **layout: Any) -> go.Figure:
    """Bars with intervals. `found` maps series -> category -> interval; all series have the same categories."""
    traces = [
        go.Bar(
            x=[theme.lines(name, 10) for name in own],
            y=[i.mean for i in own.values()],
            error_y=theme.error_bars(pd.DataFrame(list(own.values()))),
            name=name,
        )
        for name, own in found.items()
    ]
    return theme.figure(*traces, title=title, x=x, y=y, **layout)


def rewards_and_pairs(rewards: Mapping[str, np.ndarray], title: str) -> go.Figure:
    """Two panels: the distribution of rewards for each role, and chosen against rejected with one point per pair.

    Args:
        rewards: role -> rewards. `chosen` and `rejected` are in the order of the pairs. A pair has the right order if
            it is above the diagonal, for any beta.
    """
    fig = theme.panels(
        ["rewards of all rows", "one point for each pair"],
        ["implicit reward", "reward of rejected"],
        ["share of rows", "reward of chosen"],
        title=title,
        widths=[0.54, 0.46],
    )
    middles = (EDGES[:-1] + EDGES[1:]) / 2
    for role, values in rewards.items():
        share = np.histogram(values.clip(EDGES[0], EDGES[-1]), EDGES)[0] / len(values)
        fig.add_scatter(x=middles, y=share, name=role, mode="lines", line_shape="hvh", row=1, col=1)
    right = rewards["chosen"] > rewards["rejected"]
    c, r = rewards["chosen"].clip(-WALL, WALL), rewards["rejected"].clip(-WALL, WALL)
    for name, kept, colour, symbol in (
        ("right order", right, theme.COLOURS[0], "circle"),
        ("wrong order", ~right, theme.COLOURS[1], "x"),
    ):
        look = {"color": colour, "symbol": symbol, "size": 9, "opacity": 0.7}
        fig.add_scatter(x=r[kept], y=c[kept], name=name, mode="markers", marker=look, row=1, col=2)
    ends, ink = [-WALL, WALL], {"color": theme.INK, "width": 2, "dash": "solid"}
    fig.add_scatter(x=ends, y=ends, name="margin 0", mode="lines", line=ink, row=1, col=2)
    fig.update_xaxes(range=[EDGES[0], EDGES[-1]], col=1)
    fig.update_yaxes(rangemode="tozero", col=1)
    fig.update_xaxes(range=[-1.05 * WALL, 1.05 * WALL], col=2)
    fig.update_yaxes(range=[-1.05 * WALL, 1.05 * WALL], col=2)
    return fig.update_layout(height=500)  # so figure and controls fit on a small screen


def calibration(
    scores: Mapping[str, np.ndarray],
    ceilings: Mapping[str, np.ndarray],
    feedback: np.ndarray,
    clusters: np.ndarray,
    groups: Mapping[str, Sequence[str]],
    title: str,
) -> go.Figure:
    """Calibration: mean feedback (with an interval over clusters) against mean implicit score, for five groups of rows.

    The groups are fifths of the rows, ordered by implicit score.

    Args:
        scores: run -> implicit score of each row.
        ceilings: run -> highest implicit score that each row can reach.
        groups: title of each panel -> the runs in it.
    """
    fig = theme.panels(list(groups), ["implicit score"] * len(groups), ["feedback", *[""] * (len(groups) - 1)], title)
    for column, names in enumerate(groups.values(), start=1):
        place, labelled = {"row": 1, "col": column}, -1.0
        for name in sorted(names, key=lambda n: float(np.median(ceilings[n]))):
            index = list(scores).index(name)
            thin = {"color": theme.COLOURS[index], "dash": theme.DASHES[index], "width": 2}
            fifths = np.array_split(np.argsort(scores[name], kind="stable"), 5)
            found = pd.DataFrame([interval(feedback[at], clusters=clusters[at]) for at in fifths])
            fig.add_trace(line(found, index, name, [float(scores[name][at].mean()) for at in fifths]), **place)
            top = float(np.median(ceilings[name]))
            fig.add_scatter(x=[top, top], y=[0, 1], mode="lines", line=thin, showlegend=False, **place)
            if top - labelled > 0.2:  # only one label for ceilings that are close together
                fig.add_annotation(x=top, y=0.06, text="ceiling", showarrow=False, bgcolor="white", **place)
                labelled = top
        ink = {"color": theme.INK, "width": 2, "dash": "solid"}
        last = column == len(groups)
        fig.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="calibrated", line=ink, showlegend=last, **place)
    fig.update_xaxes(range=[0, 1.02])
    return fig.update_yaxes(range=[0, 1.02])

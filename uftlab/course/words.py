"""Rewards to look at: as distributions, as bars with intervals, and painted on the words that earned them.

A word that the policy likes better than its reference does stands in a solid blue box with an upward sign, one that
it likes less in a dashed orange box with a downward sign, and one whose log-ratio rounds to zero in a grey box
without a sign; the number below it is the log-ratio in nats. Sign, frame and number say the same as the colour.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from uftlab.course.held_out import Reading, clustered, read_text
from uftlab.course.snapshots import Pulse
from uftlab.errors import InputError
from uftlab.losses.rewards import implicit_score
from uftlab.plots import theme
from uftlab.plots.widgets import STYLE, Folded, Spoken, choice
from uftlab.study.results import Interval

EDGES = np.linspace(-4, 8, 25)  # of the bins of rewards; what lies beyond is counted in the outermost
WALL = 5.0  # where the panel of pairs ends; what lies beyond is drawn at the wall
FULL = 3.0  # nats at which a colour is as strong as it gets
NOTHING, GREY = 0.005, "#9A9A9A"  # nats below which two decimals are 0.00, and the frame of such a word
LEGEND = "▲ solid: likelier than under the reference. ▼ dashed: less likely. Grey: unmoved. Numbers: nats."


def bars(found: Sequence[Interval]) -> dict[str, Any]:
    """plotly's error bars from intervals; one that could not be computed has none."""
    reach = [(i.low, i.mean, i.high) if i.low is not None and i.high is not None else (i.mean,) * 3 for i in found]
    up, down = [high - mean for _, mean, high in reach], [mean - low for low, mean, _ in reach]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 3, "width": 8}


def grouped_bars(found: Mapping[str, Mapping[str, Interval]], title: str, x: str, y: str, **layout: Any) -> go.Figure:
    """Bars with their intervals: `found` maps a series to category -> interval; all have the same categories."""
    traces = [
        go.Bar(
            x=[theme.lines(name, 10) for name in own],
            y=[i.mean for i in own.values()],
            error_y=bars(list(own.values())),
            name=name,
        )
        for name, own in found.items()
    ]
    return theme.figure(*traces, title=title, x=x, y=y, **layout)


def rewards_and_pairs(rewards: Mapping[str, np.ndarray], title: str) -> go.Figure:
    """Two panels: how the rewards of each role are distributed, and chosen against rejected, one point for each pair.

    Args:
        rewards: role -> rewards; those of `chosen` and `rejected` pair by pair. A pair is in the right order when it
            lies above the diagonal, whatever beta is.
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
    return fig.update_layout(height=500)  # with its controls it fits a small screen


def calibration(
    scores: Mapping[str, np.ndarray],
    ceilings: Mapping[str, np.ndarray],
    feedback: np.ndarray,
    clusters: np.ndarray,
    groups: Mapping[str, Sequence[str]],
    title: str,
) -> go.Figure:
    """Fifths of the rows by implicit score: mean feedback (interval over clusters) over mean implicit score.

    Args:
        scores: run -> implicit score of each row; `ceilings` the highest score that each row can reach.
        groups: title of each panel -> the runs in it.
    """
    fig = theme.panels(list(groups), ["implicit score"] * len(groups), ["feedback", *[""] * (len(groups) - 1)], title)
    for column, names in enumerate(groups.values(), start=1):
        place, labelled = {"row": 1, "col": column}, -1.0
        for name in sorted(names, key=lambda n: float(np.median(ceilings[n]))):
            index = list(scores).index(name)
            colour, dash = {"color": theme.COLOURS[index]}, {"dash": theme.DASHES[index]}
            fifths = np.array_split(np.argsort(scores[name], kind="stable"), 5)
            found = [clustered(feedback[at], clusters[at]) for at in fifths]
            fig.add_scatter(
                x=[float(scores[name][at].mean()) for at in fifths],
                y=[i.mean for i in found],
                error_y=bars(found),
                mode="lines+markers",
                name=name,
                line={**colour, **dash},
                marker={**colour, "symbol": theme.SYMBOLS[index], "size": 13},
                **place,
            )
            top = float(np.median(ceilings[name]))
            thin = {**colour, **dash, "width": 2}
            fig.add_scatter(x=[top, top], y=[0, 1], mode="lines", line=thin, showlegend=False, **place)
            if top - labelled > 0.2:  # one label for ceilings that lie together
                fig.add_annotation(x=top, y=0.06, text="ceiling", showarrow=False, bgcolor="white", **place)
                labelled = top
        ink = {"color": theme.INK, "width": 2, "dash": "solid"}
        last = column == len(groups)
        fig.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="honest", line=ink, showlegend=last, **place)
    fig.update_xaxes(range=[0, 1.02])
    return fig.update_yaxes(range=[0, 1.02])


def signed(value: float) -> str:
    """Two decimals with their sign, the minus as long as the plus."""
    return f"{value:+.2f}".replace("-", "−")


def _shade(colour: str, strength: float) -> str:
    """The colour mixed with white: dark text stays readable on it, in light and dark notebooks alike."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - part) * 0.6 * min(1.0, strength)):02x}" for part in parts)


def painted(reading: Reading, caption: str = "") -> Folded:
    """The words of a completion with their log-ratios, as HTML that a notebook displays."""
    boxes = []
    for word, value in zip(reading.words, reading.logratios, strict=True):
        if abs(value) < NOTHING:
            frame, background, number = f"2px solid {GREY}", "#ffffff", "0.00"
        else:
            colour, line, sign = (theme.COLOURS[0], "solid", "▲") if value > 0 else (theme.COLOURS[1], "dashed", "▼")
            frame, background = f"2px {line} {colour}", _shade(colour, abs(value) / FULL)
            number = f"{sign} {signed(value)}"
        look = (
            f"display:inline-block; text-align:center; margin:3px; padding:1px 7px; border:{frame}; "
            f"border-radius:5px; background:{background}; color:{theme.INK}"
        )
        shown = html.escape(word)
        boxes.append(
            f'<span style="{look}" title="{shown}: {number} nats">{shown}<br>'
            f'<span style="font-size:75%">{number}</span></span>'
        )
    heading = f"<div><b>{html.escape(caption)}</b></div>" if caption else ""
    return Folded(f'<div style="font-size:18px; line-height:1.35; padding:4px 0">{heading}{"".join(boxes)}</div>')


def summed_up(reading: Reading, beta: float) -> str:
    """The reward of the whole completion in words, and the words that the tokenizer does not know.

    >>> summed_up(Reading(("moss", "<end>"), (1.0, -0.5), ("moss",)), 0.1)
    'The words add up to +0.50 nats; times β = 0.1 the implicit reward is +0.05, the implicit score 0.51. \
Unknown to the tokenizer and read as <unk>: moss.'
    """
    total = sum(reading.logratios)
    score = implicit_score(torch.tensor(beta * total)).item()
    text = (
        f"The words add up to {signed(total)} nats; times β = {beta:g} the implicit reward is "
        f"{signed(beta * total)}, the implicit score {score:.2f}."
    )
    if reading.unknown:
        text += f" Unknown to the tokenizer and read as <unk>: {', '.join(reading.unknown)}."
    return text


def desk(
    pulses: Mapping[str, Pulse], rows: pd.DataFrame, shown: int = 120, headless: bool = False
) -> ipywidgets.VBox | Folded:
    """Pick a held-out completion or type any, and see the reward of each word under the policy at the end of a run.

    Args:
        rows: as of `uftlab.course.held_out.held_out`; the first `shown` pairs and demonstrations can be picked.
        headless: True gives the painting of the first row under the first run.

    Returns:
        A box with `controls`, `spoken` and `painting` as attributes; headless a piece of HTML.
    """
    half = shown // 2
    picked = pd.concat([rows[rows["pair"] >= 0].head(half), rows[rows["pair"] < 0].head(shown - half)])
    options = {
        f"{r.role}{f' of pair {r.pair + 1}' if r.pair >= 0 else ''}: {r.completion}": (r.prompt, r.completion)
        for r in picked.itertuples()
    }

    @cache
    def model(name: str, snapshot: int) -> Any:
        return pulses[name].policy(snapshot)

    def look(name: str, own: bool, prompt: str, completion: str) -> tuple[str, str]:
        pulse, last = pulses[name], len(pulses[name].steps) - 1
        try:
            reading = read_text(model(name, last), model(name, pulse.reference(last, own)), prompt, completion)
        except InputError as error:
            return str(error), ""
        return summed_up(reading, pulse.beta), painted(reading)

    first = next(iter(pulses))
    if headless:
        prompt, completion = next(iter(options.values()))
        said, drawn = look(first, True, prompt, completion)
        return Folded(f"<p><b>{html.escape(prompt)}</b> ({html.escape(first)})</p>{drawn}<p>{html.escape(said)}</p>")

    controls: dict[str, Any] = {
        "run": choice("policy", list(pulses), first),
        "own": choice("reference", {"its own start": True, "the base": False}, True),
        "row": ipywidgets.Dropdown(options=options, description="pick"),
        "prompt": ipywidgets.Text(description="prompt", continuous_update=False),
        "completion": ipywidgets.Text(description="completion", continuous_update=False),
    }
    for control in controls.values():
        control.style.description_width = "110px"
    for name in ("row", "prompt", "completion"):
        controls[name].layout.width = "min(calc(100% - 4px), 900px)"  # less the margins
    for name in ("run", "own"):
        controls[name].style.button_width = "auto"
    spoken, painting = Spoken(), ipywidgets.HTML()

    def follow(_: object = None) -> None:
        texts = controls["prompt"].value, controls["completion"].value
        spoken.text, painting.value = look(controls["run"].value, controls["own"].value, *texts)

    def pick(_: object = None) -> None:
        controls["prompt"].value, controls["completion"].value = controls["row"].value

    pick()
    follow()
    controls["row"].observe(pick, names="value")
    for name in ("run", "own", "prompt", "completion"):
        controls[name].observe(follow, names="value")
    legend = ipywidgets.HTML(f'<div style="font-size:16px">{LEGEND}</div>')
    box = ipywidgets.VBox([ipywidgets.HTML(STYLE), *controls.values(), spoken, painting, legend])
    box.add_class("uftlab")
    box.controls, box.spoken, box.painting = controls, spoken, painting
    return box

"""Notebook 04: two methods along their training, beside each other."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from uftlab.course import methods
from uftlab.plots import figures, theme, widgets
from uftlab.study.results import HEADLINES


def at_step(curves: pd.DataFrame, method: str, skill: str, step: float) -> pd.Series:
    """The last measured point of a curve up to a step. `curves` is `results.curve_summary`."""
    rows = curves[(curves["method"] == method) & (curves["metric"] == skill) & (curves["step"] <= step)]
    return rows.sort_values("step").iloc[-1]


def explorer(curves: pd.DataFrame, headless: bool = False) -> Any:
    """Choose two methods, a skill and a step: both curves, and rings at the last points up to the step."""
    names = [name for name in methods.IN_COURSE if name in set(curves["method"]) and name != "base"]
    skills = {figures.label_of(metric): metric for metric in HEADLINES if metric in set(curves["metric"])}
    last = float(curves["step"].max())

    def picture(method: str, other: str, skill: str, step: float) -> go.Figure:
        fig = figures.learning_curves(curves, [method, other], skill)
        here = [at_step(curves, name, skill, step) for name in (method, other)]
        ring = {"size": 24, "symbol": "circle-open", "color": theme.INK, "line": {"width": 3}}
        fig.add_scatter(
            x=[float(point["step"]) for point in here],
            y=[float(point["mean"]) for point in here],
            mode="markers",
            name=f"up to step {step:.0f}",
            marker=ring,
        )
        return fig.update_xaxes(range=[-0.03 * last, 1.05 * last])

    def words(method: str, other: str, skill: str, step: float) -> str:
        one, two = at_step(curves, method, skill, step), at_step(curves, other, skill, step)
        return (
            f"{figures.label_of(skill)}: {method} {one['mean']:.2f} at step {one['step']:.0f}, "
            f"{other} {two['mean']:.2f} at step {two['step']:.0f} (means of {one['seeds']} worlds)."
        )

    controls = {
        "method": widgets.choice("method", names, "sft-then-dpo"),
        "other": widgets.choice("compared with", names, "uft"),
        "skill": widgets.choice("skill", skills, "instruction/both"),
        "step": widgets.slider("step", last, 0.0, last, 1.0),
    }
    return widgets.explore(picture, controls, words, headless, methods.folded(names))

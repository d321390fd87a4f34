"""Notebook 09: which number tells what a model is losing? The stored trials, to be looked at from four sides."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from uftlab.course import methods
from uftlab.plots import figures, theme, widgets
from uftlab.study import forgetting
from uftlab.study.results import Interval, resampled_interval

# predictor -> what readers call it
NAMES = {
    "drift/weights": "distance of the weights",
    "rate x steps": "learning rate × steps",
    "kl/forward-new": "KL, new prompts",
    "kl/forward-old": "KL, old prompts",
    "kl/reverse-new": "reverse KL, new prompts",
    "kl/reverse-old": "reverse KL, old prompts",
    "share pushed down": "share pushed down",
    "base log-probability of the rows": "base's log-probability of the rows",
}
UNITS = {"old text": "nats per token", "what careful sources say": "probability", "plain facts": "probability"}
OUTCOMES = tuple(UNITS)
# a trial's learning rate x steps: up to, name
SPEEDS = ((0.3, "rate × steps up to 0.3"), (0.9, "0.4 to 0.8"), (np.inf, "1.2 and more"))
ALL = "all methods"


def _all_in_one(frame: pd.DataFrame) -> np.ndarray:
    return np.zeros(len(frame), dtype=int)


def _methods(frame: pd.DataFrame) -> np.ndarray:
    return np.unique(frame["method"], return_inverse=True)[1]


VIEWS: dict[str, forgetting.Bands] = {
    "all trainings": _all_in_one,
    "within methods": _methods,
    "at equal skill": forgetting.skill_bands,
    "at equal rate": forgetting.rate_bands,
}


def found(frame: pd.DataFrame, predictor: str, outcome: str, view: str) -> Interval | None:
    """The rank correlation in a view with its interval over groups; None for too few trainings, or a constant."""
    (x, y), kept = forgetting.ranks_within(frame, [predictor, outcome], VIEWS[view])
    if len(x) < forgetting.FEWEST or np.ptp(x) == 0 or np.ptp(y) == 0 or kept["group"].nunique() < 3:
        return None
    return resampled_interval(partial(forgetting.correlation, x, y), kept["group"].to_numpy())


def sentence(what: str, rho: Interval) -> str:
    """An interval in words: "KL, old prompts: 0.79 (0.74 to 0.84)"."""
    return f"{what}: {rho.told('.2f')}"


# ------------------------------------------------------------------------------------------ the explorer

Parts = tuple[Callable[..., go.Figure], dict[str, Any], Callable[..., str]]


def parts(frame: pd.DataFrame) -> Parts:
    """Figure, controls and sentence of the explorer over `forgetting.table`."""

    @cache
    def chosen(method: str, learned: float) -> pd.DataFrame:
        own = frame[frame[forgetting.SKILL] >= learned - 1e-9]
        return own if method == ALL else own[own["method"] == method]

    @cache
    def rho(predictor: str, outcome: str, view: str, method: str, learned: float) -> Interval | None:
        return found(chosen(method, learned), predictor, outcome, view)

    def compared(predictor: str, outcome: str, view: str, method: str, learned: float) -> tuple[Any, pd.DataFrame]:
        return forgetting.ranks_within(chosen(method, learned), [predictor, outcome], VIEWS[view])

    def picture(predictor: str, outcome: str, view: str, method: str, learned: float) -> go.Figure:
        value = rho(predictor, outcome, view, method, learned)
        (x, y), own = compared(predictor, outcome, view, method, learned)
        ranked = view != "all trainings"
        if not ranked:
            x, y = own[[predictor, outcome]].to_numpy().T
        speed = own["rate x steps"].to_numpy()
        told = "too few trainings" if value is None else f"rank correlation {value.mean:.2f}"
        unit = f" ({UNITS[outcome]})"
        name = NAMES[predictor]
        fig = theme.figure(
            title=f"{name[0].upper()}{name[1:]} and lost: {outcome}<br>{told}, {view}",
            x=f"{name}{', rank among its equals' if ranked else ''}",
            y=f"lost{'<br>rank among its equals' if ranked else unit}",
            height=500,
        )
        low = -np.inf
        for index, (high, name) in enumerate(SPEEDS):
            here = (speed > low) & (speed <= high)
            look = {"color": theme.COLOURS[index], "symbol": theme.SYMBOLS[index], "size": 9, "opacity": 0.6}
            fig.add_scatter(x=x[here], y=y[here], mode="markers", marker=look, name=name)
            low = high
        return fig

    def words(predictor: str, outcome: str, view: str, method: str, learned: float) -> str:
        value = rho(predictor, outcome, view, method, learned)
        _, own = compared(predictor, outcome, view, method, learned)
        which = f"{len(own)} trainings ({method}, followed and correct at least {learned:.1f}), {view}"
        if value is None:
            return f"{which}: too few trainings, or nothing varies."
        settled = {"higher": "it ranks", "lower": "it ranks the wrong way round", "not settled": "not settled"}
        between = f"95 % interval {value.low:.2f} to {value.high:.2f} over {value.seeds} groups"
        few = " So few groups make the interval too narrow." if value.seeds < 10 else ""
        told = f"{NAMES[predictor]} has a rank correlation of {value.mean:.2f}, {between}"
        return f"{which}: {told}: {settled[value.verdict]}.{few}"

    names = {name: key for key, name in NAMES.items()}
    controls = {
        "predictor": widgets.choice("what predicts", names, "drift/weights"),
        "outcome": widgets.choice("what is lost", list(OUTCOMES)),
        "view": widgets.choice("compare", list(VIEWS)),
        "method": widgets.choice("method", [ALL, *sorted(frame["method"].unique())]),
        "learned": widgets.slider("followed and correct, at least", 0.0, 0.0, 0.6, 0.1),
    }
    return picture, controls, words


def explorer(frame: pd.DataFrame, headless: bool = False) -> Any:
    """Choose a predictor, what is lost, which trials and which comparison: points, rank correlation, interval."""
    picture, controls, words = parts(frame)
    notes = methods.folded(sorted(frame["method"].unique()))
    return widgets.explore(picture, controls, words, headless, notes)


# ------------------------------------------------------------------------------------------ all at once


def forest(views: dict[str, pd.DataFrame]) -> go.Figure:
    """`forgetting.at_equal` of some views: rank correlation and interval of each predictor, a panel per outcome."""
    fig = theme.panels(
        [theme.lines(outcome, 14) for outcome in OUTCOMES],
        ["rank correlation"] * len(OUTCOMES),
        [""] * len(OUTCOMES),
        "Which number ranks what is lost?",
    )
    for column, outcome in enumerate(OUTCOMES, start=1):
        for index, (name, table) in enumerate(views.items()):
            own = table[table["outcome"] == outcome].set_index("predictor").reindex(list(NAMES)).dropna()
            rows = own.rename(columns={"rho": "mean"})
            look = {"color": theme.COLOURS[index], "symbol": theme.SYMBOLS[index], "size": 13}
            at = [list(NAMES).index(predictor) + (-0.15, 0.15)[index] for predictor in rows.index]
            fig.add_scatter(
                x=rows["mean"],
                y=at,
                error_x=theme.error_bars(rows),
                mode="markers",
                marker=look,
                name=name,
                showlegend=column == 1,
                row=1,
                col=column,
            )
    places = list(range(len(NAMES)))
    labels = [theme.lines(name, 18) for name in NAMES.values()]
    fig.update_yaxes(tickvals=places, ticktext=labels, range=[len(NAMES) - 0.5, -0.5], tickfont_size=16, zeroline=False)
    fig.update_yaxes(showticklabels=False, col=2).update_yaxes(showticklabels=False, col=3)
    fig.update_xaxes(range=[-0.55, 1.05], tickvals=[0, 1], tickangle=0, zeroline=True, zerolinewidth=3)
    return fig.update_layout(height=720, margin={"t": 140})


def in_numbers(views: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The numbers of `forest` in words, a row per outcome and predictor: "0.85 (0.81 to 0.89)"."""
    told = {
        view: [
            "the same for all" if np.isnan(row.rho) else f"{row.rho:.2f} ({row.low:.2f} to {row.high:.2f})"
            for row in table.itertuples()
        ]
        for view, table in views.items()
    }
    first = next(iter(views.values()))
    rows = pd.DataFrame({"lost": first["outcome"], "predictor": first["predictor"].map(NAMES), **told})
    return rows[rows["lost"].isin(OUTCOMES)]


RIVALS = ("drift/weights", "kl/forward-old")


def razor_ahead(frame: pd.DataFrame) -> dict[tuple[str, str, str], Interval]:
    """rho of KL on new prompts minus rho of each of `RIVALS`: view ("at equal skill", "at equal rate"), outcome, rival.

    The order is that of the keys' product, so that figures and sentences have it too.
    """
    return {
        (view, outcome, rival): forgetting.ahead(frame, forgetting.RAZOR, rival, outcome, VIEWS[view])
        for view in ("at equal skill", "at equal rate")
        for rival in RIVALS
        for outcome in OUTCOMES
    }


def ahead_figure(ahead: dict[tuple[str, str, str], Interval]) -> go.Figure:
    """`razor_ahead` as bars with intervals."""
    bars: dict[str, dict[str, Interval]] = {}
    for (view, outcome, rival), value in ahead.items():
        bars.setdefault(f"{view}, minus {NAMES[rival]}", {})[outcome] = value
    title = "KL on new prompts, compared with its rivals<br>(above 0: it ranks better)"
    return figures.grouped_bars(bars, title, "what is lost", "difference of<br>rank correlations", height=640)

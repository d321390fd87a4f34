"""The numbers of the UFT and UNA papers, each with its table of origin, and the arithmetic of notebook 11.

UFT: arXiv 2410.21438, as in the first version and in the authors' repository. UNA: arXiv 2408.15339. All values are in
per cent but for MT-Bench (points of 10) and lengths (characters). Nothing here was measured by us.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import ipywidgets
import pandas as pd
import plotly.graph_objects as go
from scipy import stats

from uftlab.plots import theme, widgets
from uftlab.study.results import Interval

MODELS = ("Mistral", "SFT", "UFT on demonstrations", "SFT, then DPO", "SFT, then KTO", "SFT, then UNA", "UFT")
NEW_TASKS = ("bbh", "gpqa", "mmlu-pro", "musr", "ifeval", "math-hard")
OLD_TASKS = ("gsm8k", "truthful-qa", "winogrande", "arc", "hellaswag", "mmlu")
TABLES = {  # name -> (paper, table, what it has)
    "new": ("UFT", "Table 1", "new leaderboard"),
    "old": ("UFT", "Table 2", "old leaderboard"),
    "generation": ("UFT", "Table 3", "MT-Bench and AlpacaEval"),
    "mixing": ("UFT", "Tables 4 and 5", "instruction rows beside 20 thousand alignment rows"),
    "sft rates": ("UFT", "Tables 7 and 8", "SFT by learning rate"),
    "uft grid": ("UFT", "Tables 9 and 10", "UFT on demonstrations by learning rate and beta"),
    "feedback alone": ("UNA", "Tables 1 and 2", "alignment data without instruction data"),
}
QUESTIONS = {"ifeval": 541, "truthful-qa": 817}  # how many prompts the two test sets have
ALIGNMENT = 20  # thousand rows of HelpSteer2 in every mixture


def _frame(rows: Mapping[Any, tuple[float, ...]], columns: tuple[str, ...], index: str) -> pd.DataFrame:
    return pd.DataFrame.from_dict(dict(rows), orient="index", columns=list(columns)).rename_axis(index)


def _new() -> pd.DataFrame:
    rows = (
        (44.11, 29.53, 30.11, 41.79, 23.22, 2.92, 28.61),
        (46.04, 28.72, 29.35, 42.94, 29.5, 2.66, 29.87),
        (46.55, 29.24, 30.25, 41.73, 28.89, 3.87, 30.09),
        (44.52, 29.98, 29.95, 40.31, 26.64, 3.13, 29.09),
        (42.89, 31.0, 30.48, 40.59, 25.17, 2.94, 28.85),
        (43.74, 30.78, 30.09, 40.56, 26.82, 2.96, 29.16),
        (45.46, 31.15, 30.05, 41.06, 46.03, 3.13, 32.81),
    )
    return _frame(dict(zip(MODELS, rows, strict=True)), (*NEW_TASKS, "average"), "model")


def _old() -> pd.DataFrame:
    rows = (
        (38.02, 42.58, 77.58, 61.43, 83.44, 62.51, 60.93),
        (39.65, 51.06, 78.53, 63.99, 83.78, 61.99, 63.17),
        (45.57, 51.18, 78.93, 63.82, 83.54, 62.44, 64.25),
        (42.19, 47.83, 78.45, 62.16, 84.03, 62.38, 62.84),
        (42.57, 49.67, 79.4, 61.86, 83.83, 62.06, 63.23),
        (39.99, 49.54, 79.72, 62.46, 84.08, 62.3, 63.02),
        (41.59, 54.05, 79.79, 63.82, 84.44, 62.33, 64.34),
    )
    return _frame(dict(zip(MODELS, rows, strict=True)), (*OLD_TASKS, "average"), "model")


def _generation() -> pd.DataFrame:
    rows = (
        (3.15, 0.31, 6554.0),
        (6.33, 8.07, 908.0),
        (6.55, 7.27, 974.0),
        (4.81, 1.05, 5654.0),
        (4.76, 0.64, 6215.0),
        (5.24, 1.34, 4945.0),
        (6.78, 8.28, 1317.0),
    )
    return _frame(dict(zip(MODELS, rows, strict=True)), ("mt-bench", "alpaca-eval", "characters"), "model")


def _mixing() -> pd.DataFrame:
    rows = {
        16: (44.21, 56.69),
        20: (46.03, 54.05),
        32: (46.76, 54.38),
        65: (41.91, 52.35),
        130: (44.2, 50.17),
        260: (45.8, 50.17),
    }
    made = _frame(rows, ("ifeval", "truthful-qa"), "instruction rows, thousands")
    made["all rows, thousands"] = made.index + ALIGNMENT
    made["share of instructions"] = made.index / made["all rows, thousands"]
    return made


def _sft_rates() -> pd.DataFrame:
    rows = {3e-6: (29.45, 62.96), 1e-5: (29.6, 63.28), 3e-5: (29.75, 63.72), 1e-4: (29.87, 63.17), 3e-4: (26.98, 55.18)}
    return _frame(rows, ("new", "old"), "learning rate")


def _uft_grid() -> pd.DataFrame:
    betas = (0.01, 0.03, 0.1, 0.3)
    new = {
        1e-4: (30.08, 29.93, 29.8, 29.37),
        3e-5: (30.09, 29.86, 29.55, 29.45),
        1e-5: (28.99, 29.02, 29.81, 29.3),
        3e-6: (29.32, 29.2, 29.48, 28.73),
    }
    old = {
        1e-4: (63.71, 63.51, 62.5, 61.07),
        3e-5: (64.25, 63.88, 62.96, 61.35),
        1e-5: (63.4, 63.27, 62.79, 61.7),
        3e-6: (62.46, 62.54, 61.85, 61.39),
    }
    rows = [(rate, beta, new[rate][i], old[rate][i]) for rate in new for i, beta in enumerate(betas)]
    return pd.DataFrame(rows, columns=["learning rate", "beta", "new", "old"]).set_index(["learning rate", "beta"])


def _feedback_alone() -> pd.DataFrame:
    rows = {
        "Mistral": (23.22, 42.58),
        "DPO": (26.3, 44.75),
        "KTO": (24.18, 47.72),
        "UNA, labels, squared error": (26.1, 48.23),
        "UNA, labels, cross-entropy": (26.49, 48.33),
        "UNA, scores, squared error": (37.25, 55.09),
    }
    return _frame(rows, ("ifeval", "truthful-qa"), "model")


_MADE = {
    "new": _new,
    "old": _old,
    "generation": _generation,
    "mixing": _mixing,
    "sft rates": _sft_rates,
    "uft grid": _uft_grid,
    "feedback alone": _feedback_alone,
}


@cache
def _table(name: str) -> pd.DataFrame:
    return _MADE[name]()


def table(name: str) -> pd.DataFrame:
    """A table of the papers by its name in `TABLES`: `table("new").loc["SFT", "ifeval"]` is 29.5."""
    return _table(name).copy()


def source(name: str) -> str:
    """Where a table comes from.

    >>> source("mixing")
    'UFT paper, Tables 4 and 5: instruction rows beside 20 thousand alignment rows'
    """
    paper, number, what = TABLES[name]
    return f"{paper} paper, {number}: {what}"


def both_scores() -> pd.DataFrame:
    """IFEval and TruthfulQA of all models of the paper."""
    return pd.DataFrame({"ifeval": table("new")["ifeval"], "truthful-qa": table("old")["truthful-qa"]})


# ------------------------------------------------------------------------------ how much noise a table hides


def difference(
    one: float, other: float, questions: int, together: float = 0.0, seed_spread: float = 0.0, level: float = 0.95
) -> Interval:
    """The difference of two scores in per cent, with the interval that its questions and seeds leave.

    variance = p (100 - p) / n + q (100 - q) / n - 2 c sqrt(product) + 2 spread^2, with n questions that both answer

    The first two terms are those of shares of right answers; for scores between right and wrong they are a little too
    large. A paper that names neither c nor the spread leaves both to its readers.

    Args:
        one, other: scores in per cent.
        together: c, the correlation of the two models' answers over the questions, from 0 to 1.
        seed_spread: standard deviation between trainings with other seeds, in points.

    46.03 and 29.5 of 541 questions: +16.53 with [10.84, 22.22].
    """
    own, minus = (p * (100 - p) / questions for p in (one, other))
    error = math.sqrt(max(own + minus - 2 * together * math.sqrt(own * minus), 0.0) + 2 * seed_spread**2)
    spread = float(stats.norm.ppf(0.5 + level / 2)) * error
    p = float(2 * stats.norm.sf(abs(one - other) / error)) if error else float(one == other)
    return Interval(one - other, one - other - spread, one - other + spread, 1, p)


def controls() -> dict[str, ipywidgets.ValueWidget]:
    """The controls of the explorer of notebook 11."""
    return {
        "task": widgets.choice("test set", list(QUESTIONS), "ifeval"),
        "minus": widgets.choice("compared with", list(MODELS), "SFT"),
        "together": widgets.slider("correlation of two models' answers", 0.0, 0.0, 0.9),
        "spread": widgets.slider("standard deviation between seeds, points", 0.0, 0.0, 5.0, 0.5),
    }


def differences(task: str, minus: str, together: float, spread: float) -> dict[str, Interval]:
    """Each other model minus `minus`: points of the test set, with the interval that questions and seeds leave."""
    scores = both_scores()[task]
    return {
        model: difference(scores[model], scores[minus], QUESTIONS[task], together, spread)
        for model in MODELS
        if model != minus
    }


def picture(task: str, minus: str, together: float, spread: float) -> go.Figure:
    """Every model of the paper minus one of them, with the interval that questions and seeds leave."""
    found = differences(task, minus, together, spread)
    fig = theme.figure(
        title=f"{task}: each model minus {minus},<br>with the interval the paper does not give",
        x="difference, points (of 100)",
        height=470,
    )
    looks = {
        "beyond the noise": (theme.COLOURS[0], "diamond", lambda verdict: verdict != "not settled"),
        "within the noise": (theme.COLOURS[1], "circle-open", lambda verdict: verdict == "not settled"),
    }
    for name, (colour, symbol, has) in looks.items():
        own = {model: i for model, i in found.items() if has(i.verdict)}
        rows = pd.DataFrame([{"mean": i.mean, "low": i.low, "high": i.high} for i in own.values()])
        bars = theme.error_bars(rows) if len(rows) else {"type": "data", "array": []}
        fig.add_scatter(
            x=[i.mean for i in own.values()],
            y=list(own),
            error_x=bars,
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": 16, "line": {"width": 3}},
        )
    fig.add_vline(x=0, line_width=2, line_color=theme.INK)
    fig.update_xaxes(range=[-40, 40], dtick=20, tickangle=0)
    return fig.update_yaxes(categoryorder="array", categoryarray=list(found)[::-1], range=[-0.6, len(found) - 0.4])


def words(task: str, minus: str, together: float, spread: float) -> str:
    """How many of the differences are larger than their noise, and how UFT and SFT, then DPO stand."""
    found = differences(task, minus, together, spread)
    clear = [model for model, i in found.items() if i.verdict != "not settled"]
    main = "UFT" if minus != "UFT" else "SFT"
    i = found[main]
    within = "beyond" if main in clear else "within"
    return (
        f"{task}, {QUESTIONS[task]} questions: {len(clear)} of {len(found)} differences are beyond the noise. "
        f"{main} minus {minus}: {i.mean:+.1f} points, 95 % interval {i.low:+.1f} to {i.high:+.1f}, {within} the noise."
    )


def same_rates() -> pd.DataFrame:
    """SFT and UFT on demonstrations at the same learning rates: the mean over four beta, and the best of them."""
    sft, uft = table("sft rates"), table("uft grid")
    own = uft.groupby(level="learning rate").agg(["mean", "max"])
    rows = [
        (board, f"{rate:.0e}", sft.loc[rate, board], *own.loc[rate, board])
        for board in ("new", "old")
        for rate in own.index[::-1]
    ]
    return pd.DataFrame(rows, columns=["leaderboard", "learning rate", "SFT", "UFT, mean of 4 β", "UFT, best β"])


# ------------------------------------------------------------------------------ where a gain comes from


def parts_of_the_gain(task: str, pipeline: str = "SFT, then DPO") -> dict[str, float]:
    """UFT minus a pipeline, cut into what the pipeline lost of SFT and what SFT never had.

    The first part is forgetting. The second is a skill that SFT on demonstrations did not bring.
    """
    scores = both_scores()[task]
    return {
        "what the second stage lost": scores["SFT"] - scores[pipeline],
        "what SFT never had": scores["UFT"] - scores["SFT"],
    }


def ladder(tasks: tuple[str, ...] = ("ifeval", "truthful-qa")) -> go.Figure:
    """Base, pipeline, SFT, feedback alone and UFT on two test sets, as bars."""
    scores, alone = both_scores(), table("feedback alone").loc["UNA, scores, squared error"]
    steps = {
        "base": scores.loc["Mistral"],
        "SFT": scores.loc["SFT"],
        "SFT, then DPO": scores.loc["SFT, then DPO"],
        "UNA on scores, no SFT": alone,
        "UFT on both": scores.loc["UFT"],
    }
    traces = [
        go.Bar(
            x=[theme.lines(name, 9) for name in steps],
            y=[row[task] for row in steps.values()],
            name=task,
            text=[f"{row[task]:.1f}" for row in steps.values()],
            textposition="outside",
            cliponaxis=False,
        )
        for task in tasks
    ]
    return theme.figure(
        *traces,
        title="Scored feedback alone, without any SFT,<br>brings most of what UFT brings",
        x="training",
        y="score, per cent",
        yaxis_range=[0, 66],
        height=540,
    )

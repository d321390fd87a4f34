"""Notebook 07: what the sweep says about the gate of UFT, and what a swap of its distance changes after tuning."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch

from uftlab.losses import rewards
from uftlab.plots import theme
from uftlab.study import comparisons, results

STRONG = 1.0  # nats: the strength from which on the gate closes in training
SWAP = "uft-cross-entropy minus uft"
OUTCOMES = {"higher": "it rises", "lower": "it falls", "not settled": "these worlds cannot tell"}


def settings(method: str = "uft") -> pd.DataFrame:
    """One row per setting of a method in the stored sweep, with the `third` of the learning rates that it belongs to.

    Columns: `learning_rate`, `nats` (the median of -log pi_ref), `strength` (beta times nats), `draw`, `both` (the
    share that is followed and correct), `blind` (the same of an answer that never looks at the instructions), `third`.
    """
    trials = [t for t in results.load(results.results_folder("sweep")) if t["method"] == method]
    table = pd.DataFrame(
        {
            "learning_rate": t["settings"]["learning_rate"],
            "strength": t["settings"]["beta_nats"],
            "nats": t["settings"]["beta_nats"] / t["settings"]["beta"],
            "draw": t["draw"],
            "both": t["metrics"]["instruction/both"],
            "blind": t["metrics"]["instruction/blind"],
        }
        for t in trials
    )
    slow, fast = (float(f"{q:.2g}") for q in table["learning_rate"].quantile([1 / 3, 2 / 3]))
    names = {f"below {slow:g}": 0, f"{slow:g} to {fast:g}": 1, f"above {fast:g}": 2}
    place = (table["learning_rate"] >= slow).astype(int) + (table["learning_rate"] > fast).astype(int)
    return table.assign(third=place.map({number: name for name, number in names.items()}))


def by_strength(points: pd.DataFrame) -> go.Figure:
    """Followed and correct against the strength: one point per setting, one symbol per third of the learning rates."""
    fig = theme.figure(
        title="UFT: followed and correct at each strength<br>(dotted: blind to the instructions)",
        x="strength: β × median(−log π_ref), logarithmic",
        y="share followed and correct",
        xaxis_type="log",
        xaxis_tickvals=[0.0001, 0.001, 0.01, 0.1, 1, 10],
        xaxis_ticktext=["0.0001", "0.001", "0.01", "0.1", "1", "10"],
        yaxis_range=[0, 1],
    )
    for name, own in points.sort_values("learning_rate").groupby("third", sort=False):
        fig.add_scatter(x=own["strength"], y=own["both"], name=f"learning rate {name}", mode="markers")
    return fig.update_traces(marker_size=11).add_hline(y=points["blind"].mean(), line_dash="dot", line_color=theme.INK)


def weak_and_strong(points: pd.DataFrame) -> pd.DataFrame:
    """For each third of the learning rates: the mean share below and from `STRONG` on, and the rank correlation."""
    rows = []
    for name, own in points.sort_values("learning_rate").groupby("third", sort=False):
        strong = own["strength"] >= STRONG
        rows.append(
            {
                "learning rate": name,
                "settings": len(own),
                "strength below 1": own.loc[~strong, "both"].mean(),
                "1 or more": own.loc[strong, "both"].mean(),
                "rank correlation with strength": own["both"].corr(own["strength"], method="spearman"),
            }
        )
    return pd.DataFrame(rows)


def swapped() -> dict[str, Any]:
    """The comparison of `SWAP` on followed and correct in the stored study, a row of `comparisons.compare`."""
    study = results.tidy(results.load(results.results_folder("class")))
    return next(
        row for row in comparisons.compare(study) if row["comparison"] == SWAP and row["metric"] == "instruction/both"
    )


def chosen(points: pd.DataFrame) -> pd.DataFrame:
    """What tuning chose for both distances: strengths, and the ratio of the two gates up to the largest of them.

    The ratio is 2 s (1 - s): 1/2 at score 1/2.
    """
    nats, trials = points.groupby("draw")["nats"].first(), results.load(results.results_folder("class"))
    rows = []
    for name in ("uft", "uft-cross-entropy"):
        own = {t["stages"][-1]["settings"]["beta"] * nats[t["draw"]] for t in trials if t["method"] == name}
        r = torch.linspace(0, max(own), 50, dtype=torch.float64)
        ratio = rewards.squared_error_gate(r, 1.0, 1.0) / rewards.cross_entropy_gate(r, 1.0, 1.0)
        rows.append(
            {
                "method": name,
                "strengths that four tunings chose": ", ".join(f"{value:.2g}" for value in sorted(own)),
                "highest score there": f"{torch.sigmoid(r[-1]).item():.3f}",
                "squared error pulls so many times as hard": f"{ratio.min():.3f} to {ratio.max():.3f}",
            }
        )
    return pd.DataFrame(rows)

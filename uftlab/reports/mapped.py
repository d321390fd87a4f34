"""The parts of docs/results/study.md that come from the map: its experiments, and what predicts forgetting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from uftlab.reports.tables import markdown
from uftlab.study import forgetting, gate, maps, results
from uftlab.study.comparisons import OUTCOMES

EXPERIMENTS = {
    "E1": "Order, learning rates and loss",
    "E2": "Instructed feedback and demonstrations on or off target",
    "E3": "Strength of the implicit reward",
    "E4": "Share of demonstrations and budget",
    "E5": "Bonus for length and rumours",
}


def map_parts(on_map: list[dict[str, Any]], gates: dict[str, Any] | None) -> list[str]:
    """The section of the map: where mixing and the unified loss help, then one table for each experiment."""
    frame = maps.table(on_map)
    worlds = frame["seed"].nunique()
    parts = [
        "## The map",
        f"{len(frame)} trials in {worlds} world(s): it describes, and nothing in it is a test. Learning rates and β "
        "are laid out by hand, equal for all methods.",
    ]
    parts += _where_it_helps(frame)
    for name, title in EXPERIMENTS.items():
        if not len(maps.of_experiment(frame, name)):
            continue
        parts += [f"### {name}. {title}", _explained(frame, name), _TABLES[name](maps.of_experiment(frame, name))]
        if name == "E3":
            parts += _of_the_gradient(gates)
            parts.append(
                "The length of completions was not varied: the world has no dial for it. But β counts times the nats "
                "of a completion. The paper's lowest β is 0.01, and its completions are hundreds of tokens long. With "
                "300 nats each (a guess, not measured) its run would lie at 3 nats: between the last two rows, where "
                "the reward has its share of the gradient. This is an extrapolation."
            )
    return parts


def _where_it_helps(frame: pd.DataFrame) -> list[str]:
    """Where mixing helps, where the unified loss does, which factors decide; nothing without several worlds of E1."""
    own = maps.of_experiment(frame, "E1")
    if not len(own) or own["seed"].nunique() < 2:
        return []
    rows = []
    for metric in (*OUTCOMES, "retention/lost"):
        found = maps.where_it_helps(frame, metric)
        for rate, values in found.iterrows():
            told = [value.told() for value in values]
            rows.append([results.HEADLINES[metric][0], f"{rate:g}", *told])
    heads = [
        "what is measured",
        "rate of all stages",
        "mixed − SFT first",
        "mixed − feedback first",
        "UFT − SFT plus DPO",
    ]
    decide = [
        f"- {results.HEADLINES[metric][0]}: "
        + ", ".join(
            f"{factor.replace('_', ' ')} in {name} ({share:.0%})"
            for name, factor, share in maps.deciding(frame, metric)
        )
        for metric in (*OUTCOMES, "retention/lost")
    ]
    return [
        "### Where it helps",
        "At equal learning rates in all stages; 95 % interval over worlds, not corrected for their number. Mixing "
        "is compared with two stages of the same losses, UFT with SFT plus DPO where both mix.",
        markdown(heads, rows),
        "The three factors that explain most, of all experiments (share of the variance within the experiment):",
        "\n".join(decide),
    ]


def _explained(frame: pd.DataFrame, name: str) -> str:
    lines = []
    for metric in (*OUTCOMES, "retention/lost"):
        found = sorted(maps.shares(frame, name, metric).items(), key=lambda item: -item[1])
        told = ", ".join(
            f"{factor.replace('_', ' ').replace('seed', 'world')} {share:.0%}" for factor, share in found[:4]
        )
        lines.append(f"- {results.HEADLINES[metric][0]}: {told}")
    return "Share of the variance between trials that each factor explains by itself:\n\n" + "\n".join(lines)


def _means(own: pd.DataFrame, by: Sequence[str], metrics: Sequence[str] = (*OUTCOMES, "retention/lost")) -> str:
    grouped = own.groupby(list(by), dropna=False)[list(metrics)].mean().reset_index()
    heads = [*(n.replace("_", " ") for n in by), *(results.HEADLINES[m][0] for m in metrics)]
    rows = [[*(_plain(r[n]) for n in by), *(f"{r[m]:.2f}" for m in metrics)] for r in grouped.to_dict("records")]
    return markdown(heads, rows)


def _plain(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return value if isinstance(value, str) else "–" if value is None or pd.isna(value) else f"{value:g}"


def _orders(own: pd.DataFrame) -> str:
    """E1: at the same rate in all stages, and at all rates."""
    same = own[own["first_rate"] == own["rate"]]
    return (
        "At the same learning rate in all stages:\n\n"
        + _means(same, ("loss", "nats", "rate", "order"))
        + "\n\nBy the rate of each stage, over all orders of two stages:\n\n"
        + _means(own[own["order"] != "mixed"], ("order", "first_rate", "rate"))
    )


def _strengths(own: pd.DataFrame) -> str:
    """E3, with the implicit score of held-out demonstrations: 1/2 where the implicit reward takes no part."""
    with_score = own.assign(score=1 / (1 + np.exp(-own["beta"].astype(float) * own["logratio/demonstration"])))
    grouped, told = with_score.groupby(["method", "nats"], dropna=False), (*OUTCOMES, "retention/lost")
    rows = [
        [
            name,
            _plain(nats),
            *(f"{g[m].mean():.2f}" for m in (*OUTCOMES, "retention/lost")),
            _plain(round(g["score"].mean(), 3)),
        ]
        for (name, nats), g in grouped
    ]
    heads = ["method", "β (nats)", *(results.HEADLINES[m][0] for m in told)]
    return markdown([*heads, "implicit score of held-out demonstrations"], rows)


def _of_the_gradient(stored: dict[str, Any] | None) -> list[str]:
    """E3's points: how far implicit rewards spread, and their share of the gradient."""
    if stored is None:
        return []
    lines = []
    for row in gate.table(stored).to_dict("records"):
        spreads = [f"{row[f'{rows}: spread']:.2g}" for rows in ("feedback", "demonstrations")]
        shares = [
            f"{100 * row[f'{rows}: share{when}']:.2g} %"
            for rows in ("feedback", "demonstrations")
            for when in ("", ", on average")
        ]
        lines.append([row["method"], f"{row['nats']:g}", f"{row['beta']:.2g}", *spreads, *shares])
    heads = ["method", "β (nats)", "β", "spread, feedback", "spread, demonstrations"]
    heads += ["share, feedback, at the end", "on average", "share, demonstrations, at the end", "on average"]
    return [
        f"How much of the gradient is the implicit reward's? One world ({stored['world']}), {stored['rows']} training "
        "rows of each table. The weight of a row in the gradient has two parts: its value at reward 0, which is signed "
        "SFT's, and what the reward adds to it. The share is the size of the second over the sizes of both: 0 % where "
        "the reward does nothing, 50 % where it takes away all that the score gives. It is read at the end of "
        "training, and averaged over four times during it. Spread is the standard deviation of the implicit reward "
        "over rows.",
        markdown(heads, lines),
    ]


_TABLES: dict[str, Callable[[pd.DataFrame], str]] = {
    "E1": _orders,
    "E2": lambda own: _means(own, ("instructed", "on_target", "method")),
    "E3": _strengths,
    "E4": lambda own: _means(own, ("method", "budget", "demonstrations")),
    "E5": lambda own: _means(own, ("length_bonus", "rumours", "method"), (*OUTCOMES, "length/words")),
}


def predicted(frame: pd.DataFrame) -> str:
    """One line per kind of forgetting and predictor, the best first, with the correlation at equal skill."""
    skill = forgetting.at_equal_skill(frame).set_index(["outcome", "predictor"])
    found = forgetting.predictions(frame)
    wide = found.pivot(index=["outcome", "predictor"], columns="where", values=["rho", "r2"])
    trials = int(found["trials"].max())
    lines = []
    for outcome in forgetting.OUTCOMES:
        own = wide.loc[outcome].sort_values(("r2", "across methods"), ascending=False)
        for predictor, row in own.iterrows():
            numbers = [row[kind, where] for where in ("across methods", "within methods") for kind in ("rho", "r2")]
            told = ["–" if pd.isna(n) else f"{n:.2f}" for n in numbers]
            lines.append([outcome, str(predictor), *told, _correlation(skill.loc[(outcome, predictor)])])
    heads = ["what is lost", "predictor", "ρ across", "R² across", "ρ within methods", "R² within methods"]
    heads.append("ρ at equal skill, 95 % interval")
    return (
        f"{trials} trials of the map. ρ is Spearman's; R² is on ranks, of trials that the fit has not seen. KL is per "
        "answer: forward is KL(base to policy) on the base's answers; old prompts are plain questions, new ones carry "
        f"instructions. *At equal skill*: all methods together, but only within {forgetting.BANDS} bands of followed "
        "and correct with equally many trials each, so that a predictor gets no credit for telling who learned more. "
        f"Its interval is over {frame['group'].nunique()} groups, each a method in a world. The trials of the tuning "
        "are not in: no KL was measured there."
        f"\n\n{markdown(heads, lines)}\n\n"
        '"RL\'s Razor" (arXiv 2509.04259) names forward KL on the new task. At equal skill, the largest ρ and its own:'
        f"\n\n{_razor(skill)}\n\n"
        "At equal rate it is another picture. The same within bands of rate × steps, so that a predictor gets no "
        "credit for telling who was trained faster or longer. This view was added after the others had been read:"
        f"\n\n{_razor(forgetting.at_equal_rate(frame).set_index(['outcome', 'predictor']))}"
    )


def _razor(found: pd.DataFrame) -> str:
    """For each kind of forgetting the predictor with the largest correlation, and the Razor's."""
    told = []
    for outcome in forgetting.OUTCOMES:
        own = found.loc[outcome].dropna(subset="rho")
        if len(own) and forgetting.RAZOR in own.index:
            best = own["rho"].abs().idxmax()
            named = f"{best} has {_correlation(own.loc[best])}"
            told.append(f"- {outcome}: {named}, {forgetting.RAZOR} {_correlation(own.loc[forgetting.RAZOR])}.")
    return "\n".join(told)


def _correlation(row: pd.Series) -> str:
    return "–" if pd.isna(row["rho"]) else f"{row['rho']:.2f} ({row['low']:.2f} to {row['high']:.2f})"

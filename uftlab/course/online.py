"""Notebook 08: learning from one's own answers. How often they are drawn, what holds the policy, and who judges."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from tqdm import tqdm

from uftlab.course import texts
from uftlab.evals.doctor import Report, diagnose
from uftlab.evals.run_logs import Run
from uftlab.plots import figures, theme, widgets
from uftlab.reports.questions import ANSWERS
from uftlab.study import comparisons, dial, overoptimisation, questions
from uftlab.study.results import HEADLINES, RESULTS, Interval, interval, load, tidy

SAYS = {"proxy": "the reward model says", "true": "the raters say"}
NAMES = {  # way -> what readers call it
    "una": "UNA, ratio to π_ref",
    "una-rollout": "UNA, ratio to the sampler",
    "rloo-kl": "RLOO, β = 0.1",
    "rloo": "RLOO, no KL",
}
EVERY = {1: "every step", 10: "every 10", 40: "every 40", dial.STEPS: "once"}
KEPT = ("instruction/both", "retention/lost", "truth/cued")  # what is learned, and two things that can be lost
FACTORS = {  # of docs/questions/on_policy.md
    "own samples, not the table's": ("own-accepted minus given-accepted", "own-signed minus given-signed"),
    "push down, not only up": ("given-signed minus given-accepted", "own-signed minus own-accepted"),
}


@cache
def frame() -> pd.DataFrame:
    """The stored dial: one row per world, way, refresh and step, see `uftlab.study.dial.table`."""
    return dial.table(dial.stored())


# ------------------------------------------------------------------------------------------ a small training


def live(profile: str, say: Callable[[str], None] = print) -> dict[str, list[dict[str, float]]]:
    """Train UNA on the raters' scores twice in world 0, with fresh samples in every step and with samples drawn once.

    Returns:
        Name -> `dial.climb`. With the profile smoke 4 steps, otherwise 40.
    """
    steps, at = (4, (2, 4)) if profile == "smoke" else (40, (5, 10, 20, 30, 40))
    way, made, before = dial.JUDGED["una-raters"], {}, torch.get_num_threads()
    torch.set_num_threads(1)  # small matrices are not faster with more
    started = time.monotonic()
    try:
        proxy = overoptimisation.reward_model(0)
        with tqdm(total=2 * steps, mininterval=1, unit="step", file=sys.stdout, leave=False) as bar:
            for name, refresh in (("drawn in every step", 1), ("drawn once", steps)):
                bar.set_description(f"samples {name}")
                made[name] = dial.climb(way, refresh, 0, proxy, steps, at, bar.update)
    finally:
        torch.set_num_threads(before)
    say(f"two trainings of {steps} steps, and their measuring: {time.monotonic() - started:.0f} s")
    return made


def live_figure(runs: dict[str, list[dict[str, float]]]) -> go.Figure:
    """The raters' score and the KL of the trainings of `live`: a line for each."""
    fig = theme.panels(
        ["the raters' score", "KL from the start"],
        ["optimiser steps"] * 2,
        ["mean score of an answer", "nats per answer"],
        "Trained now, world 0: drawn anew, or once",
    )
    for index, (name, points) in enumerate(runs.items()):
        steps = [point["step"] for point in points]
        for column, measure in enumerate(("true", "kl"), start=1):
            rows = pd.DataFrame({"mean": [point[measure] for point in points], "low": None, "high": None})
            fig.add_trace(
                figures.line(rows, index, f"samples {name}", steps, showlegend=column == 1), row=1, col=column
            )
    return fig


# ------------------------------------------------------------------------------------------ over-optimisation


@cache
def provoked() -> list[dict[str, Any]]:
    """The stored runs of `uftlab.study.overoptimisation`: RLOO against a reward model, with and without KL."""
    return json.loads(overoptimisation.STORED.read_text())["runs"]


def change_of(beta: float, name: str) -> Interval:
    """The change of a score (`proxy` or `true`) from first to last step, over the worlds of `provoked`."""
    own = [run["points"] for run in provoked() if run["beta"] == beta]
    return interval([points[-1][name] - points[0][name] for points in own])


def last_answers(world: int = 0, count: int = 3) -> pd.DataFrame:
    """What the policies of `provoked` answer at the end to the same questions, a column for each beta."""
    own = {run["beta"]: run["answers"][:count] for run in provoked() if run["seed"] == world}
    asked = {"question": [answer["prompt"] for answer in own[0.0]]}
    return pd.DataFrame(asked | {f"β = {beta:g}": [a["answer"] for a in said] for beta, said in sorted(own.items())})


def reports(world: int = 0) -> dict[str, Report]:
    """What the doctor says of the runs of `provoked` in one world, if it sees both scores."""
    made = {}
    for run in provoked():
        if run["seed"] == world:
            curves = {f"score/{name}": [(p["step"], p[name]) for p in run["points"]] for name in SAYS}
            curves["length/words"] = [(p["step"], p["words"]) for p in run["points"]]
            made[f"RLOO, β = {run['beta']:g}"] = diagnose(Run("stored", curves, {"objective": "rloo"}))
    return made


# ------------------------------------------------------------------------------------------ the dial

TICKS = (0, 4, 25, 100, 200)


@cache
def on_the_way(way: str, refresh: int, name: str) -> pd.DataFrame:
    """Mean and interval over worlds of one measure after each step. A slider asks for it again and again."""
    return dial.curve(frame(), way, refresh, name)


def picture(way: str, refresh: int, over: str) -> go.Figure:
    """Both scores on the way (left), and after the last step at every setting of refresh (right)."""
    fig = theme.panels(
        ["on the way", f"after {dial.STEPS} steps"],
        [
            "KL from the start, nats (scale: root)" if over == "kl" else "optimiser steps",
            "drawn every ... steps",
        ],
        ["mean score", ""],
        f"{NAMES[way]}; samples drawn {EVERY[refresh]}",
    )
    kl = on_the_way(way, refresh, "kl")
    x = kl["mean"].clip(lower=0).pow(0.5) if over == "kl" else kl["step"]
    for index, (name, says) in enumerate(SAYS.items()):
        rows = on_the_way(way, refresh, name)
        fig.add_trace(figures.line(rows, index, says, list(x)), row=1, col=1)
        ends = pd.DataFrame([on_the_way(way, other, name).iloc[-1] for other in EVERY])
        bars = {
            "x": [EVERY[n].removeprefix("every ").replace("step", "1") for n in EVERY],
            "y": ends["mean"],
            "error_y": theme.error_bars(ends),
        }
        look = {"color": theme.COLOURS[index], "pattern": {"shape": theme.PATTERNS[index], "solidity": 0.25}}
        fig.add_bar(**bars, marker=look, showlegend=False, row=1, col=2)
    if over == "kl":
        places, said = [math.sqrt(tick) for tick in TICKS], [str(tick) for tick in TICKS]
        fig.update_xaxes(tickvals=places, ticktext=said, range=[-0.5, 16.5], col=1)
    else:
        fig.update_xaxes(range=[-4, dial.STEPS + 4], col=1)
    fig.update_xaxes(type="category", col=2)
    return fig.update_yaxes(range=[0, 1.05]).update_layout(height=520)


def words(way: str, refresh: int, over: str) -> str:
    """The numbers of `picture`: changes of both scores, KL, and where the raters' score was highest."""
    told = [f"{says} {dial.change(frame(), way, refresh, name).told()}" for name, says in SAYS.items()]
    true, kl = (on_the_way(way, refresh, name) for name in ("true", "kl"))
    best = true.loc[true["mean"].idxmax()]
    return (
        f"From first to last step: {'; '.join(told)} ({true['seeds'].iloc[0]:.0f} worlds). KL at the end: "
        f"{kl['mean'].iloc[-1]:.3g} nats per answer. The raters' score was highest after step {best['step']:.0f}: "
        f"{best['mean']:.2f}."
    )


def explorer(headless: bool = False) -> Any:
    """Choose what holds the policy, how often samples are drawn, and the axis: both scores, on the way and after."""
    controls = {
        "way": widgets.choice("what holds the policy", {name: way for way, name in NAMES.items()}, "rloo"),
        "refresh": widgets.choice("samples are drawn", {name: every for every, name in EVERY.items()}, 1),
        "over": widgets.choice("horizontal axis", {"KL": "kl", "steps": "steps"}),
    }
    return widgets.explore(picture, controls, words, headless=headless)


def cures() -> pd.DataFrame:
    """Every way and refresh in numbers: changes of both scores and the KL at the end, worst loss of the raters last."""
    rows = []
    for way, name in NAMES.items():
        for refresh, every in EVERY.items():
            if way in dial.ONCE and refresh == dial.STEPS:
                continue  # the same runs as another way
            changes = {says: dial.change(frame(), way, refresh, key).told() for key, says in SAYS.items()}
            kl = on_the_way(way, refresh, "kl")["mean"].iloc[-1]
            rows.append({"what holds the policy": name, "samples drawn": every, **changes, "KL, nats": f"{kl:.3g}"})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------ stored studies


@cache
def tests_of(question: str) -> list[dict[str, Any]]:
    """The tests of a question of docs/questions; none where its trials are not stored."""
    asked = questions.QUESTIONS[question]
    stored = trials_of_questions()
    there = set(asked.methods) <= {trial["method"] for trial in stored}
    return questions.tested(asked, stored) if there else []


def answered(question: str) -> pd.DataFrame | None:
    """`tests_of` by contrast and metric; None where there are none."""
    rows = tests_of(question)
    return pd.DataFrame(rows).set_index(["comparison", "metric"]) if rows else None


@cache
def trials_of_questions() -> list[dict[str, Any]]:
    """The stored trials of docs/questions."""
    return load(questions.STORED) if (questions.STORED / "trials").is_dir() else []


def plain(contrast: str) -> str:
    """`own-signed minus given-signed` as readers see it."""
    return contrast.replace(" minus ", " − ")


def tests_table(found: pd.DataFrame) -> pd.DataFrame:
    """Tests in words: what, on which outcome, difference with interval, corrected p and verdict."""
    return pd.DataFrame(
        [
            {
                "contrast": plain(contrast),
                "outcome": questions.LABELS[metric][0],
                "difference (95 % interval)": f"{row['mean']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})",
                "corrected p": f"{row['holm']:.2g}",
                "verdict": row["verdict"],
            }
            for (contrast, metric), row in found.iterrows()
        ]
    )


def contrasts_figure(found: pd.DataFrame, contrasts: Sequence[str], metrics: Sequence[str], title: str) -> go.Figure:
    """Tests of `answered` as points with intervals, see `figures.contrasts`."""
    names = {plain(contrast).replace(" − ", " −<br>"): contrast for contrast in contrasts}
    return figures.contrasts({"": found.reset_index().to_dict("records")}, names, title, metrics, questions.LABELS)


NOT_YET = "The trials of self-distillation are not stored in this copy of the course, so this part has no results."


def guess_about_distillation(headless: bool = False) -> Any:
    """The question before the results of self-distillation; without stored trials a sentence that says so."""
    found = answered("self_distillation")
    if found is None:
        return widgets.Folded(f"<p>{NOT_YET}</p>")
    verdicts = {minus: found.loc[(f"sdft minus {minus}", "retention/lost"), "verdict"] for minus in DISTILLED}
    options = {
        ("lower", "lower"): "less than both",
        ("not settled", "lower"): "less than SFT, about as much as its control",
        ("higher", "lower"): "less than SFT, more than its control",
        ("not settled", "not settled"): "neither is settled",
    }
    answer = options.get((verdicts["cue-sft"], verdicts["sft-full"]), "something else")
    told = "; ".join(
        f"minus {minus} {found.loc[(f'sdft minus {minus}', 'retention/lost'), 'mean']:+.3f}, {verdict}"
        for minus, verdict in verdicts.items()
    )
    asked = "How much old text does self-distillation lose, compared with its control and with SFT on demonstrations?"
    because = f"Old text lost, sdft {told}."
    return widgets.predict(asked, [*options.values(), "something else"], answer, because, headless)


DISTILLED = ("cue-sft", "sft-full")  # what self-distillation is compared with


def show_distillation() -> None:
    """Figure, table and answer of the question on self-distillation, from its stored trials; nothing without them."""
    found = answered("self_distillation")
    if found is None:
        return
    asked = questions.QUESTIONS["self_distillation"]
    names = [f"sdft minus {minus}" for minus in DISTILLED]
    theme.show(contrasts_figure(found, names, asked.outcomes, "Self-distillation minus control and minus SFT"))
    theme.show(texts.table(tests_table(found), "six tests, p corrected by Holm"))
    for line in ANSWERS["self_distillation"](tests_of("self_distillation")):
        print(line.replace("**", ""))


ONLINE = {  # contrasts of the pipelines: (method, minus which) -> what differs
    ("una-online", "sft-then-una"): "own samples in every step, not the table's answers",
    ("uft-online", "uft"): "the same in UFT's mixture",
    ("una-online-rollout", "una-online"): "ratio to the sampler, not to π_ref",
    ("rloo", "una-online"): "policy gradient, not a fit of scores",
}


@cache
def tuned() -> dict[tuple[str, str, str], Interval]:
    """The contrasts of `ONLINE` on `KEPT` in the five worlds of the pipelines: (method, minus, metric) -> interval."""
    stored = load(RESULTS / "pipelines")
    others, seeds = {minus for _, minus in ONLINE}, {trial["seed"] for trial in stored}
    stored += [t for t in load(RESULTS / "class") if t["method"] in others and t["seed"] in seeds]
    made = tidy(stored)
    found: dict[tuple[str, str, str], Interval] = {}
    for method, minus in ONLINE:
        for metric in KEPT:
            difference = comparisons.contrast(made, {method: 1, minus: -1}, metric)
            assert difference is not None  # both methods are stored in these worlds
            found[method, minus, metric] = difference
    return found


def tuned_table() -> pd.DataFrame:
    """`tuned` in words, one row per contrast."""
    rows = []
    for (method, minus), what in ONLINE.items():
        cells = {HEADLINES[m][0]: tuned()[method, minus, m].told() for m in KEPT}
        rows.append({"contrast": f"{method} − {minus}", "what differs": what, **cells})
    return pd.DataFrame(rows)


def ahead_of_once(way: str, name: str = "true") -> Interval:
    """Fresh samples in every step minus samples drawn once, after the last step, within worlds."""
    return dial.difference(frame(), (way, 1), (way, dial.STEPS), name)

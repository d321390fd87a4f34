"""The pages of studies beside the main one, of pipelines and of recent methods: what each forgets, what it costs.

uftlab results --study results/pipelines --page pipelines.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uftlab.errors import InputError
from uftlab.files import write_atomically
from uftlab.reports.study import primary_table, study_page
from uftlab.reports.tables import LIMITS, cell, linked, markdown, skills_table, untuned
from uftlab.study import comparisons, crossed, gate, matched, questions, rehearsal, results
from uftlab.study.overoptimisation import STORED
from uftlab.study.trials import draw_of
from uftlab.training.catalogue import PIPELINE_METHODS, RECENT_METHODS, all_methods

HEAD = "<!-- made by `uftlab results --study ... --page ...`: run the study again instead -->"
SHOWN = ("instruction/both", "truth/knowledge", "truth/cued", "plain/mc2", "retention/lost", "length/words")
FINDING_WIDTH = 1200  # pixels
CARDS = "methods"  # from docs/
TOLD = (*comparisons.OUTCOMES, "retention/lost")
MORE_LIMITS = (
    "Methods that sample ask the world's raters, without slips, about answers that no table holds. The others see a "
    "rated table with slips. So a gain of sampling may be a gain of more feedback; the column of sampled completions "
    "says how much more.",
    "Equal are completions back-propagated, not seconds: sampling and other runs cost more, in columns of their own.",
    "What a recipe needs beyond the settings that were tuned (how often samples are refreshed, how many of a prompt) "
    "was left at its default.",
    "Many comparisons: p is corrected for all that are named (Holm), and intervals are not.",
)


@dataclass(frozen=True)
class Beside:
    """A study beside the main one: what its page is called and asks, and what was named before it was run."""

    title: str
    asks: str
    comparisons: tuple[tuple[str, str, str], ...]
    reward_model: bool = False  # whether the runs against a reward model are told
    matched: tuple[matched.Pair, ...] = ()  # who was run at whose learning rate, too

    @property
    def methods(self) -> set[str]:
        """All methods of its comparisons, and those that every table begins with."""
        pairs = {name for pair in self.comparisons for name in pair[:2]} - {comparisons.ITSELF}
        return pairs | {"base", "sft"}


PIPELINES = Beside(
    "Pipelines, mergers and online learning",
    "Who forgets what, at what cost?",
    comparisons.PIPELINE_COMPARISONS,
    reward_model=True,
)
RECENT = Beside(
    "Methods of 2025 and 2026",
    "Does one of them beat its plain relative, or UFT, at an equal budget?",
    comparisons.RECENT_COMPARISONS,
    matched=matched.OF_RECENT,
)


def page_beside(study: Beside, trials: list[dict[str, Any]]) -> str:
    """The page as Markdown: skills and costs with intervals, then every planned comparison as a sentence."""
    frame = results.tidy(trials)
    cells = {(r["method"], r["metric"]): r for r in results.summary(frame).to_dict("records")}
    methods = [name for name in all_methods() if name in set(frame["method"])]
    seeds = sorted({t["seed"] for t in trials})
    named = {f"{a} minus {b}" for a, b, _ in study.comparisons}
    rows = [r for r in comparisons.compare(frame) if r["comparison"] in named and r["metric"] in TOLD]
    settled = [r for r in rows if r["verdict"] != "not settled"]
    unsettled = [r for r in rows if r["verdict"] == "not settled"]
    parts = [
        HEAD,
        f"# {study.title}",
        f"> {study.asks}",
        f"{len(methods)} methods, {len(seeds)} seeds, profile {trials[0]['profile']}. A seed is a world with a base "
        "model of its own. All but `base` and `sft` (half of the budget) back-propagate "
        "the same number of completions. Measured on creatures never seen in fine-tuning; mean and 95 % interval over "
        "seeds.",
        *_untuned(trials),
        "## Skills",
        skills_table(frame, methods, SHOWN, CARDS),
        "## Costs",
        "Means over seeds. Seconds include measuring, and depend on what else the machine did.",
        markdown(
            ["method", *(label for _, label in results.COSTS.values())],
            [[linked(m, CARDS), *(cell(cells.get((m, k)), whole=True) for k in results.COSTS)] for m in methods],
        ),
        "## What is settled",
        _sentences(settled),
        "## What is not settled",
        _sentences(unsettled),
        *(
            ["## When the reward is a model", _overoptimised(json.loads(STORED.read_text()))]
            if study.reward_model
            else []
        ),
        *_at_equal_rates(study, trials),
        "## What this does not show",
        "\n".join(f"- {line}" for line in (*LIMITS, *MORE_LIMITS)),
    ]
    return "\n\n".join(parts) + "\n"


def _at_equal_rates(study: Beside, trials: list[dict[str, Any]]) -> list[str]:
    """The control of a difference between two tuned methods: each with the learning rate of the other."""
    if not study.matched or not (matched.STORED / "trials").is_dir():
        return []
    rows = matched.differences(study.matched, results.load(matched.STORED), trials, TOLD)
    told = " and ".join(f"`{name}` at the rates of `{other}`" for name, other in study.matched)
    return [
        "## At the same learning rate",
        f"Tuning gives each method a rate of its own. Here {told}, in the same worlds with the same tuning draws. This "
        "was added after the tuned result had been read. A family of its own.",
        primary_table(rows, {name: results.HEADLINES[name] for name in TOLD}),
    ]


def _untuned(trials: list[dict[str, Any]]) -> list[str]:
    """What was not tuned, and whose settings it has."""
    known, names = all_methods(), untuned(trials)
    lent = [f"`{name}` (of `{known[name].borrows}`)" for name in names if known[name].borrows]
    bare = [f"`{name}`" for name in names if not known[name].borrows]
    parts = []
    if lent:
        parts.append(f"Not tuned themselves, run with the tuned settings of another method: {', '.join(lent)}.")
    if bare:
        parts.append(f"Not tuned, run with defaults: {', '.join(bare)}.")
    return (
        [" ".join([*parts, "A comparison of one of them with a tuned method flatters the tuned one."])] if parts else []
    )


def page_of(trials: list[dict[str, Any]]) -> str:
    """The page of a study: the main one with all that is stored beside it, or of pipelines, or of recent methods."""
    there = {t["method"] for t in trials}
    for study, own in ((PIPELINES, PIPELINE_METHODS), (RECENT, RECENT_METHODS)):
        if set(own) & there:
            return page_beside(study, [*_compared_with(study, trials), *trials])
    sweep, on_map, controls = (results.load(results.RESULTS / name) for name in ("sweep", "map", "epsilon"))
    added = results.load(crossed.STORED) if (crossed.STORED / "trials").is_dir() else []
    return study_page(trials, sweep, on_map, controls, added, _read(gate.STORED), _read(rehearsal.STORED))


def _compared_with(study: Beside, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stored trials of the methods that a study lacks and compares with, in its worlds and with their tuning draws."""
    wanted, seeds = study.methods - {t["method"] for t in trials}, {t["seed"] for t in trials}
    stored = [*results.load(questions.STORED), *results.load(results.RESULTS / "class")]  # the main study counts
    found = {
        (t["method"], t["seed"]): t
        for t in stored
        if t["method"] in wanted and t["seed"] in seeds and t["draw"] == draw_of(t["method"], t["seed"])
    }
    return list(found.values())


def _read(path: Path) -> dict[str, Any] | None:
    """What a study stored in one file; None where it was not run."""
    return json.loads(path.read_text()) if path.is_file() else None


def write_page(path: Path, trials: list[dict[str, Any]]) -> Path:
    """Write the page of a study (`page_of`) and return its path."""
    write_atomically(path, page_of(trials))
    return path


def write_finding(path: Path, trials: list[dict[str, Any]]) -> Path:
    """Draw the primary comparisons of a study as a PNG; beside them, in stored worlds, those with all four tunings."""
    from uftlab.plots import figures, theme

    found = {"as planned: one tuning in each world": comparisons.primary(results.tidy(trials))}
    (rows,) = found.values()
    if not rows:
        wanted = ", ".join(crossed.METHODS)
        raise InputError("A study to draw", f"have two of {wanted}", "none of their comparisons", "Run them")
    stored = results.load(crossed.STORED)
    if crossed.beside(trials, stored):
        again = comparisons.primary(crossed.table(trials, stored))
        found["looked at again: every world with four tunings"] = again
    names = {f"{row['why']}<br>{row['comparison'].replace(' minus ', ' − ')}": row["comparison"] for row in rows}
    figure = figures.contrasts(found, names, "Is it the unified loss, or the mixing? Differences with 95 % intervals")
    theme.write_images([figure], [path], FINDING_WIDTH, "--figure")
    return path


def _overoptimised(stored: dict[str, Any]) -> str:
    """The change of both scores in the stored runs of `uftlab.study.overoptimisation`, in words."""
    runs = stored["runs"]
    lines = [
        f"RLOO against a reward model from {runs[0]['rated']} pairs, {runs[0]['points'][-1]['step']} steps from the "
        "base model (`python -m uftlab.study.overoptimisation`); change of the mean score of sampled answers, 95 % "
        "interval over worlds:",
        "",
    ]
    for beta in sorted({run["beta"] for run in runs}):
        own = [run["points"] for run in runs if run["beta"] == beta]
        told = []
        for name, meaning in (("proxy", "the reward model says"), ("true", "the world's raters say")):
            found = results.interval([points[-1][name] - points[0][name] for points in own])
            told.append(f"{meaning} {found.told()}")
        lines.append(f"- β = {beta:g}, {len(own)} worlds: {', '.join(told)}.")
    return "\n".join(lines)


def _sentences(rows: list[dict[str, Any]]) -> str:
    """One list for each skill."""
    parts = []
    for metric in TOLD:
        own = [comparisons.sentence(r).split(": ", 1)[1] for r in rows if r["metric"] == metric]
        if own:
            more = results.HEADLINES[metric][2]
            note = "" if more is None else ", more is better" if more else ", less is better"
            lines = "\n".join(f"- {line}" for line in own)
            name, unit, _ = results.HEADLINES[metric]
            parts.append(f"**{name.capitalize()}** ({unit}{note})\n\n{lines}")
    return "\n\n".join(parts) or "Nothing."

"""docs/results/study.md from stored trials: the second study, its tuning, its map, and what predicts forgetting.

uftlab results --page docs/results/study.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from uftlab.reports.mapped import map_parts, predicted
from uftlab.reports.tables import LIMITS, linked, markdown, skills_table
from uftlab.study import comparisons, crossed, epsilon, forgetting, fronts, maps, rehearsal, results
from uftlab.study.comparisons import OUTCOMES
from uftlab.study.trials import DRAWS
from uftlab.study.tuning import FIRST, SECOND, worth
from uftlab.training.catalogue import all_methods, method_named
from uftlab.training.methods import space
from uftlab.training.settings import chosen_settings, tuned_table

HEAD = "<!-- made by `uftlab results --page docs/results/study.md`: run the study again instead -->"
SHOWN = (*OUTCOMES, "truth/cued", "plain/mc2", "retention/lost", "length/words")
CARDS = "../methods"  # from docs/results/
ALIKE = 0.03  # two methods are called alike where the whole interval lies within this much of 0
SHOWN_STEPS = (5, 20)  # of a rehearsal, beside its last


def study_page(
    trials: list[dict[str, Any]],
    sweep: list[dict[str, Any]],
    on_map: list[dict[str, Any]],
    controls: list[dict[str, Any]],
    added: Sequence[dict[str, Any]] = (),
    gates: dict[str, Any] | None = None,
    rehearsed: dict[str, Any] | None = None,
) -> str:
    """The page as Markdown, every number and verdict from the trials. What was not run has no section.

    Args:
        sweep: the trials of the tuning; `on_map` those of the map; `controls` those of `uftlab.study.epsilon`;
            `added` those of `uftlab.study.crossed`; `gates` and `rehearsed` what `uftlab.study.gate` and
            `uftlab.study.rehearsal` store.
    """
    frame = results.tidy(trials)
    worlds = sorted({t["seed"] for t in trials})
    methods = [name for name in all_methods() if name in set(frame["method"])]
    rows = comparisons.compare(frame)
    primary = [row for row in rows if row["family"] == "primary"]
    parts = [
        HEAD,
        "# The second study",
        "> Is it the unified loss, the mixing, or neither?",
        f"{len(methods)} methods in {len(worlds)} worlds, at equal budget, by [a plan](../plan.md) that was committed "
        f"before any result. Settings: four tunings of {FIRST + SECOND} trials for every method; world w has those of "
        "tuning w mod 4. Measured on creatures that no fine-tuning mentions. Mean and 95 % interval.",
        "The plan says that no base model of a confirmatory world existed when it was written. That is not quite true: "
        "the base of world 0 did, and its own metrics had been seen. No method had been trained in any of the sixteen.",
        "## The six primary contrasts",
        "Twelve tests, one family: p is corrected by Holm's method. *Settled* means a corrected p below 0.05. *Alike* "
        f"means that the whole interval lies within ±{ALIKE}.",
        primary_table(primary),
        *[f"- {line}" for line in answers(primary)],
        *_all_tunings(trials, added, primary),
        "### The implicit reward, or small gradients?",
        _small_gradients(trials, controls),
        "## What each method can do",
        "A blind answer, which never looks at the instructions, follows "
        f"{_mean(frame, 'instruction/blind')} of the prompts: the floor of the first column. A policy that doubts what "
        f"the base is unsure of would have {_beyond(frame)} in the second column.",
        skills_table(frame, methods, SHOWN, CARDS),
        "## Other contrasts that are settled",
        "Exploratory. One family of its own, corrected by Holm's method.",
        _settled(rows),
        "## Tuning",
        _tuning(sweep),
        "### The front of every method",
        _fronts(sweep),
        "### At equal skill",
        _at_equal_skill(sweep, on_map),
    ]
    parts += map_parts(on_map, gates)
    parts += ["## What predicts forgetting", predicted(forgetting.table(on_map))]
    parts += _hidden_or_gone(rehearsed, frame)
    parts += ["## What this does not show", "\n".join(f"- {line}" for line in LIMITS)]
    return "\n\n".join(parts).replace("\n\n- ", "\n- ").replace("|\n- ", "|\n\n- ") + "\n"


def primary_table(rows: Sequence[dict[str, Any]], labels: Mapping[str, tuple] = results.HEADLINES) -> str:
    """Contrasts of one family: difference, interval, p, corrected p and verdict."""
    lines = []
    for row in rows:
        label = labels[row["metric"]][0]
        between = f"{row['low']:+.3f} to {row['high']:+.3f}"
        numbers = [f"{row['mean']:+.3f}", between, f"{row['p']:.2g}", f"{row['holm']:.2g}"]
        lines.append([row["comparison"].replace(" minus ", " − "), label, *numbers, verdict(row)])
    return markdown(["contrast", "outcome", "difference", "95 % interval", "p", "corrected p", "verdict"], lines)


def verdict(row: dict[str, Any]) -> str:
    """higher or lower where settled; alike where the interval is narrow around 0; else not settled."""
    alike = max(abs(row["low"]), abs(row["high"])) <= ALIKE
    if row["verdict"] == "not settled":
        return "alike" if alike else "not settled"
    return f"{row['verdict']}, but alike" if alike else row["verdict"]


def answers(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The answers that the plan allows, from the verdicts of the primary contrasts alone."""
    found = {(row["comparison"], row["metric"]): row for row in rows}
    lines = []
    for metric in OUTCOMES:
        label = results.HEADLINES[metric][0]

        def above(name: str, metric: str = metric) -> bool:
            return (name, metric) in found and found[name, metric]["verdict"] == "higher"

        mixing, unified = above("sft-plus-dpo minus sft-then-dpo"), above("uft minus sft-plus-dpo")
        implicit = above("uft minus signed-sft")
        told = []
        if mixing and not unified:
            told.append("The mixing does it: SFT plus DPO beats SFT, then DPO, and UFT does not beat SFT plus DPO.")
        if unified:
            told.append("UFT beats SFT plus DPO on the same rows.")
            told.append(
                "It beats signed SFT too, so the implicit reward does it."
                if implicit
                else "It does not beat signed SFT, so the implicit reward is not what does it."
            )
        if not told:
            told.append("Neither the mixing nor the unified loss is settled to do anything.")
        lines.append(f"**{label.capitalize()}.** {' '.join(told)}")
    return lines


def _all_tunings(
    trials: Sequence[dict[str, Any]], added: Sequence[dict[str, Any]], planned: Sequence[dict[str, Any]]
) -> list[str]:
    """The twelve tests again, over worlds crossed with tunings, and which verdicts change."""
    added = crossed.beside(trials, added)
    if not added:
        return []
    frame = crossed.table(trials, added)
    rows = comparisons.primary(frame)
    before = {(row["comparison"], row["metric"]): verdict(row) for row in planned}
    lines, changed = [], []
    for row in rows:
        name, label = row["comparison"].replace(" minus ", " − "), results.HEADLINES[row["metric"]][0]
        old, new = before.get((row["comparison"], row["metric"]), "not made"), verdict(row)
        method, minus = row["comparison"].split(" minus ")
        own = crossed.by_draw(frame, method, minus, row["metric"])
        numbers = [f"{row['mean']:+.3f}", f"{row['low']:+.3f} to {row['high']:+.3f}", f"{row['holm']:.2g}"]
        lines.append([name, label, *numbers, ", ".join(f"{value:+.2f}" for value in own), new])
        if old != new:
            changed.append(f"{name}, {label}: planned {old}, here {new}")
    heads = ["contrast", "outcome", "difference", "95 % interval", "corrected p", "by tuning", "verdict"]
    return [
        "### Each world with all four tunings",
        "This was run after the planned result had been read. The tests are the plan's twelve. "
        f"{len(added)} more trials give each of the six methods, in each world, the three tunings that the world "
        "did not have. So the interval can tell worlds and tunings apart. *By tuning* is the mean difference over the "
        "worlds under each of the four. Tunings are few: where they differ most, four of them count, not sixty-four "
        "trials.",
        markdown(heads, lines),
        f"{len(changed)} of {len(rows)} verdicts change{':' if changed else '.'}",
        *[f"- {line}." for line in changed],
        "What the plan's rule says of these:",
        *[f"- {line}" for line in answers(rows)],
        f"In one sentence: {comparisons.closing(rows)}",
    ]


def _small_gradients(trials: list[dict[str, Any]], controls: list[dict[str, Any]]) -> str:
    """UFT against signed SFT at UFT's own settings, with and without the factor that makes its gradients as small."""
    found = epsilon.differences(trials, controls)
    betas = [draw[0]["beta"] for draw in chosen_settings()["uft"]]
    heads = ["uft −", *(results.HEADLINES[name][0] for name in epsilon.OUTCOMES)]
    rows = [
        [f"signed SFT at its learning rate, {name}", *(epsilon.sentence(found, name, n) for n in epsilon.OUTCOMES)]
        for name in ("as it is", "scaled")
    ]
    return (
        f"Tuning chose β from {min(betas):.1g} to {max(betas):.1g} for UFT: implicit scores stay at ½, and its "
        "gradient is β/2 times that of signed SFT. Adam divides a factor out, but for its ε of 1e-8, and such "
        "gradients come near it. So we trained signed SFT once more, with UFT's learning rates, and then with its loss "
        "multiplied by β/2. This was not in the plan: the question came from its result.\n\n"
        f"{markdown(heads, rows)}\n\n"
        "The scaled loss has no reference, no reward and no gate, and gives UFT's model. What UFT has over signed SFT "
        "at these settings is the optimiser's ε, not the implicit reward."
    )


def _mean(frame: pd.DataFrame, metric: str) -> str:
    found = results.interval(frame[(frame["metric"] == metric) & (frame["method"] == "base")]["value"].tolist())
    return f"{found.mean:.2f}"


def _beyond(frame: pd.DataFrame) -> str:
    """How far the envelope of doubt lies above the base."""
    own = frame[(frame["metric"] == "truth/beyond-doubt") & (frame["method"] == "base")]["value"]
    return f"about {-float(own.mean()):.2f}"


def _settled(rows: Sequence[dict[str, Any]]) -> str:
    own = [r for r in rows if r["family"] == "secondary"]
    told = [f"- {comparisons.sentence(r)}" for r in own if r["verdict"] != "not settled"]
    return f"{len(told)} of {len(own)} are settled.\n\n" + "\n".join(told)


# ------------------------------------------------------------------------------------------ tuning


def _tuning(sweep: list[dict[str, Any]]) -> str:
    """What the four tunings chose, how far apart they are, and how many choices lie beyond the first box."""
    chosen = tuned_table()
    base = {t["draw"]: t["metrics"]["truth/cued"] for t in sweep if t["method"] == "base"}
    lines, beyond, count = [], 0, 0
    swept = {t["method"] for t in sweep}  # what was tuned later is not of this study
    for name, draws in chosen["settings"].items():
        if name not in swept:
            continue
        dimensions = [
            (i, d) for i, own in enumerate(space(method_named(name))) for d in own if d.name == "learning_rate"
        ]
        rates = ["; ".join(f"{draw[i]['learning_rate']:.2g}" for draw in draws) for i, _ in dimensions]
        for draw in draws:
            outside = any(not d.low <= draw[i]["learning_rate"] <= d.high for i, d in dimensions)
            beyond, count = beyond + outside, count + 1
        worths = [worth(t["metrics"], base[t["draw"]]) for t in sweep if t["method"] == name]
        best = ", ".join(f"{value:.2f}" for value in chosen["worth"][name])
        lines.append([linked(name, CARDS), best, f"{np.median(worths):.2f}", " then ".join(rates)])
    table = markdown(
        ["method", "worth of the choice, by draw", "median of all its trials", "learning rates chosen, by draw"], lines
    )
    return (
        f"{len(sweep)} trials. Worth is followed and correct + truth over the base's truth when asked for careful "
        f"sources. {beyond} of {count} choices have a learning rate outside of the first box; the second round may go "
        f"there.\n\n{table}"
    )


def _fronts(sweep: list[dict[str, Any]]) -> str:
    """For each method the most truth at each level of followed and correct, over all its trials of the tuning."""
    frame = fronts.points(sweep)
    found = fronts.reached(frame)
    lines = []
    for method in [name for name in all_methods() if name in set(frame["method"])]:
        own = found[found["method"] == method].to_dict("records")
        cells = ["–" if not row["draws"] else f"{row['truth']:.2f}" + _of_draws(row["draws"]) for row in own]
        most = frame[frame["method"] == method].groupby("draw")[fronts.SKILL].max().mean()
        lines.append([linked(method, CARDS), f"{most:.2f}", *cells])
    heads = ["method", "most followed and correct", *(f"truth at {level:g} or more" for level in fronts.LEVELS)]
    draws = frame["draw"].nunique()
    return (
        "A rule chooses one trial. This table needs no rule: the highest truth on contested facts among the trials of "
        f"a method that have at least so much of followed and correct, mean over {draws} tunings. A number in brackets "
        "says how many tunings get there, where not all do: such a mean is of the easier worlds. Every method has "
        "equally many trials, on the validation creatures they were tuned on, so the highest is a little flattering "
        f"for all.\n\n{markdown(heads, lines)}"
    )


def _of_draws(count: int) -> str:
    return f" ({count})" if count < DRAWS else ""


def _at_equal_skill(sweep: list[dict[str, Any]], on_map: list[dict[str, Any]]) -> str:
    """The pairs of the primary contrasts at equal followed and correct, whatever settings got them there."""
    tuning, every = (maps.usual(maps.table(trials)) for trials in (sweep, [*sweep, *on_map]))
    given = comparisons.LEVELS, comparisons.KEPT
    readings = {
        "between neighbours": comparisons.matched_skill(every, *given),
        "at best": comparisons.best_kept(tuning, *given),
    }
    rows = comparisons.at_levels(readings)
    tests = len(readings) * len(comparisons.PRIMARY) * len(comparisons.KEPT)
    settled = [row for row in rows if row["verdict"] != "not settled"]
    return (
        "Do two methods keep as much when they have learned equally much? That is, at an equal level of followed and "
        "correct, the plan's first outcome. What is kept is truth above distrust and truth with careful sources, "
        "where more is better, and old text lost, where less is better. There are two ways to read it.\n\n"
        f"*Between neighbours* is the plan's: {len(every)} trials of tuning and map in {every['seed'].nunique()} "
        "worlds. In each world the trials of a method are ordered by followed and correct, and what they keep is read "
        "off between the two neighbours of a level. Trials that learned too fast pass the same levels as trials that "
        "learned little, so it jumps. Left out are trials in which a dial of the world was turned or the budget "
        f"raised.\n\n{levels_table([row for row in rows if row['reading'] == 'between neighbours'])}\n\n"
        "*At best* was added afterwards: of the trials with at least so much of followed and correct, the one that "
        f"keeps most. Only the {len(tuning)} trials of the tuning, because there every method has equally many."
        f"\n\n{levels_table([row for row in rows if row['reading'] == 'at best'])}\n\n"
        "In brackets: worlds in which both methods reach the level. The mean is over the levels of a world, then over "
        f"worlds; its interval is over worlds, which are few. Both tables are one family of {tests} tests, corrected "
        f"by Holm's method: {len(settled)} of them {'is' if len(settled) == 1 else 'are'} settled."
    )


def levels_table(rows: Sequence[dict[str, Any]], labels: Mapping[str, tuple] = results.HEADLINES) -> str:
    """Rows of `comparisons.at_levels`: the difference at each level with its number of worlds, and over all levels."""
    lines = []
    for row in rows:
        levels = [f"{mean:+.2f} ({worlds})" if worlds else "–" for mean, worlds in row["levels"].values()]
        between = "–" if row["low"] is None else f"{row['low']:+.2f} to {row['high']:+.2f}"
        holm = "–" if row["holm"] is None else f"{row['holm']:.2g}"
        name, label = row["comparison"].replace(" minus ", " − "), labels[row["metric"]][0]
        lines.append([name, label, *levels, f"{row['mean']:+.2f}", between, holm, row["verdict"]])
    if not lines:
        return "No two methods reach a level together."
    heads = ["contrast", "what is kept", *(f"at {level:g} (worlds)" for level in rows[0]["levels"])]
    return markdown([*heads, "mean", "95 % interval", "corrected p", "verdict"], lines)


# ------------------------------------------------------------------------------------------ hidden or gone


def _hidden_or_gone(stored: dict[str, Any] | None, frame: pd.DataFrame) -> list[str]:
    """How much of each kind of forgetting comes back with some old text, and how fast."""
    if stored is None:
        return []
    every = rehearsal.table(stored)
    back = rehearsal.came_back(every)
    found, tests = rehearsal.over_worlds(back), rehearsal.above_control(back)
    worlds, last = every["world"].nunique(), max(rehearsal.AT)
    taken = comparisons.taken(frame, "sft-then-dpo", OUTCOMES[0])
    parts = [
        "## Hidden or gone?",
        f"A trained model reads old text again: {last} steps of {stored['batch']} lines, each line once, learning rate "
        f"{stored['learning_rate']:g}, {worlds} worlds. Lines on *other creatures* name none that is asked for; lines "
        "on *all creatures* tell some of it again. Two controls read the same lines. The base of another world never "
        "had these facts: what it makes up, it learns. The base itself shows what the reading does to a model that has "
        "lost nothing. So what was hidden comes back with other creatures, and further than for the base of another "
        "world. What is gone comes back, if at all, only when it is told again. This was not in the "
        "plan.",
    ]
    heads = ["model", "lost", "text", *(f"back after {step} steps" for step in (*SHOWN_STEPS, last))]
    heads += ["95 % interval", "steps to 50 %", "steps to 90 %", "above the control", "corrected p"]
    for kind, metric in rehearsal.KINDS.items():
        own, unit = found[found["kind"] == kind], results.HEADLINES[metric][1]
        base = every[(every["model"] == rehearsal.BASE) & (every["text"] == rehearsal.TEXTS[0])]
        by_step = base.groupby("step")[metric].mean()
        told = [_in_short(own, [t for t in tests if t["kind"] == kind], text) for text in rehearsal.TEXTS]
        lines = [
            _back(own[(own["model"] == model) & (own["text"] == text)], tests)
            for model in dict.fromkeys(own["model"])
            for text in rehearsal.TEXTS
        ]
        parts += [
            f"**{kind.capitalize()}** ({unit}). {' '.join(told)} The base itself goes from {by_step[0]:.2f} to "
            f"{by_step[last]:.2f} ({results.HEADLINES[metric][0]}).",
            markdown(heads, lines),
        ]
    why = "Instructions were not rehearsed."
    if taken is not None and taken.low is not None and taken.verdict == "not settled":
        why = (
            "Instructions were not rehearsed: stage two of sft-then-dpo is not settled to take any "
            f"({taken.mean:+.3f}, {taken.low:+.3f} to {taken.high:+.3f}, followed and correct)."
        )
    parts.append(
        "*Back* is the share of what was lost, summed over worlds; below 0, more is lost than before. For the base of "
        "another world, lost is all that it never had. *Above the control* is the difference to it after "
        f"{last} steps, paired by world; {len(tests)} tests, Holm's correction. {why}"
    )
    return parts


def _back(own: pd.DataFrame, tests: Sequence[dict[str, Any]]) -> list[str]:
    """One model, text and kind: what was lost, what is back on the way and at the end, and against the control."""
    model, text, kind = own.iloc[0][["model", "text", "kind"]]
    at = own.set_index("step")
    end = at.loc[max(rehearsal.AT)]
    cells = [str(model), f"{end['lost']:.2f}", str(text)]
    cells += [f"{at.loc[step, 'mean']:.0%}" for step in (*SHOWN_STEPS, max(rehearsal.AT))]
    cells.append("–" if pd.isna(end["low"]) else f"{end['low']:.0%} to {end['high']:.0%}")
    for share in (0.5, 0.9):
        steps = rehearsal.steps_until(own, share)
        cells.append(f"over {max(rehearsal.AT)}" if steps is None else str(steps))
    test = next((t for t in tests if (t["model"], t["text"], t["kind"]) == (model, text, kind)), None)
    known = test is not None and test["holm"] is not None
    return [*cells, f"{test['mean']:+.0%}" if test else "–", f"{test['holm']:.2g}" if test and known else "–"]


def _in_short(own: pd.DataFrame, tests: Sequence[dict[str, Any]], text: str) -> str:
    """What comes back with one text, over the methods, and for how many it is settled to be more than the control's."""
    here = own[(own["text"] == text) & (own["step"] == max(rehearsal.AT))].set_index("model")["mean"]
    methods = here[[name for name in here.index if name != rehearsal.NEVER]]
    above = sum(t["verdict"] == "higher" for t in tests if t["text"] == text)
    return (
        f"With lines on {text}, {methods.min():.0%} to {methods.max():.0%} is back by method, and the control makes up "
        f"{here[rehearsal.NEVER]:.0%}; {above} of {len(methods)} methods are settled to be above it."
    )

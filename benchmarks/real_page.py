"""The page of `benchmarks/real_runs.py`: its stored results as measures, groups, contrasts, and in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from real_runs import (
    ALIGNED,
    BASE,
    DECODE_SECONDS,
    MATCHED,
    SIZES,
    STORE,
    TUNED,
    Run,
    Size,
    candidates,
    chosen,
    count,
    keyed,
    matched,
    planned,
    seconds_of_a_run,
)

from uftlab.reports.evaluation import Group, estimate, label_of
from uftlab.reports.real import IFEVAL, MC2, Contrast, contrast, label, mean_in, measures_of, spreads
from uftlab.reports.tables import markdown
from uftlab.study.results import Interval, interval

# ------------------------------------------------------------------------------------------ reading


ENDED = "wordcount/ended"
SHOWN = (IFEVAL, "truthfulqa/mc1", MC2, "wordcount/words", ENDED)
# The paper says: one stage keeps more of what instructions taught, and feedback in it raises truth.
PATTERN = (("uft", "sft-then-dpo", IFEVAL), ("uft", "sft-then-una", IFEVAL), ("uft", "sft-full", MC2))
# What the paper does not separate: the loss from the mixing
ASIDE = (
    ("uft", "sft-plus-dpo", IFEVAL), ("uft", "sft-plus-dpo", MC2), ("uft", "signed-sft", IFEVAL),
    ("uft", "signed-sft", MC2), ("sft-plus-dpo", "sft-then-dpo", IFEVAL), ("uft", "una-alone", IFEVAL),
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A result file, read."""

    result: dict[str, Any]
    size: Size

    @property
    def groups(self) -> dict[tuple[str, str], Group]:
        """The runs of each method at matched and at tuned rates; the base counts for both."""
        found: dict[tuple[str, str], Group] = {}
        stored = {key: run for key, run in keyed(self.result).items() if "measures" in run}
        for rates in (MATCHED, TUNED):
            for method in (BASE, *(self.size.methods if rates == MATCHED else self.size.tuned)):
                own = self.rates(method, rates)
                runs = [stored[method, own, seed] for seed in self.size.seeds if (method, own, seed) in stored]
                runs = [{"measures": measures_of(run, self.result), "seed": run["seed"]} for run in runs]
                if runs:
                    found[method, rates] = Group(method, tuple(runs))
        return found

    def rates(self, method: str, rates: str) -> tuple[float, ...] | None:
        """The learning rates of a method's stages; None where they are not chosen yet."""
        if method == BASE:
            return ()
        first = matched(self.size, method, 0).rates
        return first if rates == MATCHED else chosen(self.size, method, keyed(self.result))


def read(path: Path) -> Stored:
    """A result file."""
    result = json.loads(path.read_text())
    told = {name: tuple(map(_frozen, v)) if isinstance(v, list) else v for name, v in result["size"].items()}
    return Stored(result, Size(**told))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def contrasts(stored: Stored, named: Sequence[tuple[str, str, str]], rates: str) -> list[Contrast]:
    """Those of the named contrasts whose methods were both run at these rates."""
    groups = stored.groups
    return [
        contrast(groups[first, rates], groups[second, rates], measure)
        for first, second, measure in named
        if (first, rates) in groups and (second, rates) in groups
    ]


def pattern(found: Sequence[Contrast]) -> str:
    """Whether the paper's pattern is there: all of its contrasts are higher; or one is lower; or neither."""
    verdicts = [contrast.verdict for contrast in found]
    if "lower" in verdicts:
        return "contradicted"
    if len(verdicts) == len(PATTERN) and set(verdicts) == {"higher"}:
        return "there"
    return "not settled"


# ------------------------------------------------------------------------------------------ the page


HEAD = """<!-- made by `python benchmarks/real_runs.py --page docs/results/real.md` -->

# The paper's comparison on a real model

> Does training in one stage forget less than one stage after the other, on a model that people use?

The paper finds it on Mistral with IFEval and TruthfulQA. `benchmarks/real_runs.py` does the same comparison on
SmolLM2-135M-Instruct, in two sizes. **This model was already aligned**: its makers trained it with SFT and then with
DPO on UltraFeedback. So it is no base model, there is little left to gain from feedback of that kind, and no number
here is comparable with the paper's. Every table says so again.

All methods have the same number of completions, LoRA of rank 16 on all linear layers, and three seeds. β is 0.01 for
UNA and UFT, as in the paper, and 0.1 for DPO, as usual. *Matched rates*: the same learning rate in every stage.
*Tuned rates*: of a small grid the setting that costs least on held-out rows. That cost is the loss of the plain
mixture, in nats: per token of demonstrations, plus DPO's loss of a pair against the untouched model. It is the same
for all methods, and if it favours one, it is the plain mixture. IFEval and TruthfulQA are lm-eval's, without chat
template as in the paper."""

WHAT = {
    "smoke": "**Nothing about methods follows from this size.** It shows that the way from rows to this page works.",
    "gpu": "Sized for fifteen minutes of one H100 or H200, eight runs at a time.",
}
OVERALL = {
    "there": "The paper's pattern is there",
    "contradicted": "The paper's pattern is contradicted",
    "not settled": "The paper's pattern is not settled",
}


def page(folder: Path = STORE) -> str:
    """The page of all sizes, from what is stored."""
    parts = [HEAD, "## The verdict", _verdicts(folder)]
    for name, size in SIZES.items():
        path = folder / f"{name}.json"
        stored = read(path) if path.is_file() else None
        parts += _section(stored) if stored and stored.result["runs"] else _not_run(size, stored)
    return "\n\n".join(parts) + "\n"


def _verdicts(folder: Path) -> str:
    lines = []
    for name in SIZES:
        path = folder / f"{name}.json"
        stored = read(path) if path.is_file() else None
        if stored is None or not stored.result["runs"]:
            lines.append(f"- **{name}**: not yet run, so there is no verdict.")
            continue
        for rates in (MATCHED, TUNED):
            found = contrasts(stored, PATTERN, rates)
            if not found:
                continue
            said = "; ".join(f"{c.first} against {c.second} on {label(c.measure)} {c.verdict}" for c in found)
            part = "" if len(found) == len(PATTERN) else f" ({len(found)} of its {len(PATTERN)} contrasts)"
            lines.append(f"- **{name}, {rates} rates**: {OVERALL[pattern(found)]}{part}: {said}. {_limits(stored)}")
    return "\n".join(lines)


def _limits(stored: Stored) -> str:
    size = stored.size
    if size.name != "smoke":
        seeds = len({run["seed"] for run in stored.result["runs"]})
        said = f"{size.steps * size.batch} completions a run are few, and the model was already aligned."
        if seeds < len(size.seeds):
            said += f" Only {seeds} of {len(size.seeds)} seeds ran, so nothing can be settled."
        return said
    return (
        f"That says nothing: {size.steps} steps, {size.prompts} prompts, {size.questions} questions, a model that was "
        "already aligned."
    )


def _section(stored: Stored) -> list[str]:
    result, size = stored.result, stored.size
    runs = result["runs"]
    start = ALIGNED.get(result["model"], "not known")
    parts = [f"## {size.name}", f"{WHAT[size.name]} {_about(stored)}"]
    for rates in (MATCHED, TUNED):
        groups = {method: group for (method, own), group in stored.groups.items() if own == rates}
        if set(groups) <= {BASE}:
            continue
        parts.append(f"### {size.name}, {rates} rates (already aligned: {start})")
        parts.append(
            "Mean over seeds; in parentheses the 95 % interval over seeds, then that over questions. No interval "
            "stands where all values are equal, or where there is one seed."
        )
        head = ["method", "already aligned", "learning rates", "seeds", *map(label, SHOWN)]
        rows = [
            [method, "yes" if result["model"] in ALIGNED else "not known", _rates(stored.rates(method, rates)),
             str(len(group.runs)), *(_cell(group, name) for name in SHOWN)]
            for method, group in groups.items()
        ]  # fmt: skip
        parts.append(markdown(head, rows))
        for words, named in (("The paper's pattern", PATTERN), ("The loss or the mixing", ASIDE)):
            found = contrasts(stored, named, rates)
            if found:
                parts.append(f"**{words}** (already aligned model; paired by seed and by question, not corrected):")
                head = ["contrast", "measure", "difference", "over seeds", "over questions", "verdict"]
                parts.append(markdown(head, [_row(contrast) for contrast in found]))
    grid = [[method, *_grid(stored, run)] for method in size.tuned for run in candidates(size, method)]
    parts += [f"### {size.name}, the grid", "Held-out rows, in nats (already aligned model)."]
    parts.append(markdown(["method", "learning rates", "per token", "per pair", "cost", "chosen"], grid))
    known = keyed(result)
    left = sorted({(run.seed, run.method, _rates(run.rates)) for run in planned(size, known) if run.key not in known})
    if left:
        shown = ". ".join(
            f"seed {seed}: " + "; ".join(f"{method} at {rates}" for own, method, rates in left if own == seed)
            for seed in sorted({seed for seed, *_ in left})
        )
        parts.append(f"**Not yet run** ({len(left)} runs; the same command goes on with them): {shown}.")
    diverged = [f"{run['method']} at {_rates(run['rates'])}, seed {run['seed']}" for run in runs if "diverged" in run]
    return [*parts, *([f"Diverged: {', '.join(diverged)}."] if diverged else [])]


def _row(found: Contrast) -> list[str]:
    ends = (_ends(found.seeds, digits=4), _ends(found.questions, digits=4))
    return [f"{found.first} − {found.second}", label(found.measure), f"{found.seeds.mean:+.4f}", *ends, found.verdict]


def _grid(stored: Stored, run: Run) -> list[str]:
    found = keyed(stored.result).get(run.key, {}).get("held_out")
    if found is None:
        return [_rates(run.rates), "", "", "", "not run"]
    numbers = [f"{found[name]:.3f}" if name in found else "" for name in ("nats_per_token", "pairs", "cost")]
    return [_rates(run.rates), *numbers, "yes" if run.rates == stored.rates(run.method, TUNED) else ""]


def _about(stored: Stored) -> str:
    result, size = stored.result, stored.size
    measured = [run for run in result["runs"] if "versions" in run]
    devices = ", ".join(sorted({run["device"] for run in measured}))
    versions = ", ".join(f"{name} {value}" for name, value in measured[0]["versions"].items())
    one_by_one, busy = (sum(run.get(n, 0) for run in result["runs"]) / 60 for n in ("seconds", "cpu_seconds"))
    minutes = result.get("seconds", 60 * one_by_one) / 60  # runs that went side by side took less than their sum
    return (
        f"{result['model']} ({ALIGNED.get(result['model'], 'not known whether it was aligned')}). "
        f"{size.demonstrations} demonstrations ({size.shown.split('/')[0]}) and {size.pairs} pairs "
        f"({size.judged.split('/')[0]}) of at most {size.longest} tokens, {size.held_out} of each held out; "
        f"{size.steps} steps of {size.batch} completions in {size.precision}; {size.prompts} prompts of IFEval with "
        f"answers of at most {size.new_tokens} tokens, {size.questions} questions of TruthfulQA. "
        f"{_leaks(stored)} {devices}, {len(result['runs'])} runs, {minutes:.0f} minutes of the clock and {busy:.0f} of "
        f"the processor; {versions}."
    )


def _leaks(stored: Stored) -> str:
    """What was found of the benchmarks in the rows, in words."""
    found = " and ".join(f"{count} among the prompts of the {name}" for name, count in stored.result["leaked"].items())
    return f"Questions of the benchmarks: {found}; rows with them are left out. No prompt is in two tables."


def _not_run(size: Size, stored: Stored | None) -> list[str]:
    counted = f" {_leaks(stored)}" if stored else ""
    each = seconds_of_a_run(size, [])
    least, most = count(size, {})
    text = (
        f"{WHAT[size.name]} **Not yet run.** {size.demonstrations} demonstrations of {size.shown.split('/')[0]} and "
        f"{size.pairs} pairs of {size.judged.split('/')[0]} of at most {size.longest} tokens, {size.steps} steps of "
        f"{size.batch} completions in {size.precision}, {size.prompts} prompts of IFEval with answers of at most "
        f"{size.new_tokens} tokens, {size.questions} questions of TruthfulQA; tuned rates for "
        f"{', '.join(size.tuned)}. The estimate is {each:.0f} s a run, {least} to {most} runs: "
        f"{least * each / 60:.0f} to {most * each / 60:.0f} minutes. It is made from the step and the reference pass "
        f"that [an H100 was measured at](../gpu.md) in float32. What generation takes ({DECODE_SECONDS * 1000:.0f} ms "
        "for each token of a batch) and loading and saving are assumed."
        f"{counted} UltraFeedback as first published holds prompts of TruthfulQA; of which version the model's makers "
        "took pairs is not known here."
    )
    return [f"## {size.name}", text]


def _rates(rates: Sequence[float] | None) -> str:
    return ", ".join(f"{rate:g}" for rate in rates or ()) or "–"


def _cell(group: Group, name: str) -> str:
    over_seeds = interval([mean_in(run, name) for run in group.runs])
    over_questions = estimate(group.measure((name, False)))
    share = name == IFEVAL or label_of(name)[1] in ("share", "probability")
    ends = "; ".join(words for words in (_ends(i, share) for i in (over_seeds, over_questions)) if words)
    return f"{over_seeds.mean:.3f}" + (f" ({ends})" if ends else "")


def _ends(found: Interval, share: bool = False, digits: int = 3) -> str:
    if not spreads(found):
        return ""
    low, high = (max(0.0, found.low), min(1.0, found.high)) if share else (found.low, found.high)
    return f"{low:.{digits}f} to {high:.{digits}f}"

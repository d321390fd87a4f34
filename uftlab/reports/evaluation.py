"""Pages of `uftlab eval` and `uftlab compare`: one run, and several runs against one of them, question by question."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from uftlab.errors import InputError
from uftlab.evals.outcomes import Measure, load_result
from uftlab.files import write_atomically
from uftlab.reports.doctor import section
from uftlab.reports.tables import markdown, plain
from uftlab.study.results import Interval, interval

LABELS = {  # measure -> (what a reader calls it, unit); any other is a share of questions
    "ifeval/prompt_level_strict_acc": ("IFEval, prompts, strict", "share"),
    "ifeval/inst_level_strict_acc": ("IFEval, instructions, strict", "share"),
    "ifeval/prompt_level_loose_acc": ("IFEval, prompts, loose", "share"),
    "ifeval/inst_level_loose_acc": ("IFEval, instructions, loose", "share"),
    "truthfulqa/mc1": ("TruthfulQA mc1", "share"),
    "truthfulqa/mc2": ("TruthfulQA mc2", "probability"),
    "wordcount/words": ("words of an answer", "words"),
    "wordcount/characters": ("characters of an answer", "characters"),
    "wordcount/tokens": ("tokens of an answer", "tokens"),
    "wordcount/ended": ("answers that ended by themselves", "share"),
    "perplexity/nats-per-token": ("text, by token", "nats per token"),
    "perplexity/nats-per-byte": ("text, by byte", "nats per byte"),
    "kl/forward": ("KL(reference to policy), on samples of the reference", "nats per token"),
    "kl/reverse": ("KL(policy to reference), on samples of the policy", "nats per token"),
    "reward/implicit": ("implicit reward", "nats"),
}
IFEVAL = tuple(name for name in LABELS if name.startswith("ifeval/"))
FIXED_WEIGHTS = ("ifeval/", "perplexity/nats-per-token")  # what must weigh the same in two runs
LONGEST_ANSWER = ("ifeval", "wordcount", "kl")  # suites that generate
SMALL = 30
ROUNDING = 1e-12


# ------------------------------------------------------------------------------------------ intervals


def estimate(measure: Measure) -> Interval:
    """The mean of a measure with its 95 % interval over questions.

    With value v_q and weight w_q of question q, R = sum(w v) / sum(w), and the residuals w_q (v_q - R) / sum(w) give
    the variance G / (G - 1) * sum of their squares (linearised ratio; Student's t with G - 1 degrees of freedom).
    """
    return _from_residuals(measure.mean, _residuals(measure, sorted(measure.questions)))


def difference(own: Measure, other: Measure) -> Interval:
    """The mean of one measure minus that of another over the same questions, paired: residuals are subtracted first.

    Values 1, 1, 0 against 0, 1, 0: 1/3 with [-1.10, 1.77].
    """
    questions = sorted(own.questions)
    return _from_residuals(own.mean - other.mean, _residuals(own, questions) - _residuals(other, questions))


def _residuals(measure: Measure, questions: Sequence[str]) -> np.ndarray:
    values, weights = np.array([measure.questions[q] for q in questions]).T
    return weights * (values - measure.mean) / weights.sum()


def _from_residuals(mean: float, residuals: np.ndarray) -> Interval:
    """None for both ends where all questions agree, as with no prompt of ten followed: they say nothing of a spread."""
    count = len(residuals)
    error = math.sqrt(count / max(1, count - 1) * float((residuals**2).sum()))
    if count < 2 or error < ROUNDING:
        return Interval(mean, None, None, count)
    spread = error * float(stats.t.ppf(0.975, count - 1))
    return Interval(mean, mean - spread, mean + spread, count, float(2 * stats.t.sf(abs(mean) / error, count - 1)))


# ------------------------------------------------------------------------------------------ one run


def run_page(result: Mapping[str, Any]) -> str:
    """The page of one run in Markdown."""
    measures: list[Measure] = result["measures"]
    templates = sorted({m.template for m in measures if m.template is not None})
    parts = [
        f"# {plain(result['model'])}",
        _about(result),
        "## Measures",
        "In parentheses: the 95 % interval over questions.",
    ]
    heads = ["measure", "unit", *(("with chat template" if t else "without chat template") for t in templates)]
    heads += ["rows as in training"] if any(m.template is None for m in measures) else []
    columns: list[bool | None] = [*templates, *([None] if heads[-1] == "rows as in training" else [])]
    found = {(m.name, m.template): m for m in measures}
    rows = []
    for name in dict.fromkeys(m.name for m in measures):
        label, unit = label_of(name)
        cells = [_cell(found.get((name, column))) for column in columns]
        rows.append([label, unit, *cells])
        if name == IFEVAL[-1]:
            means = [_mean_of_four(found, column) for column in columns]
            rows.append(["IFEval, mean of the four (the UFT paper's number)", "share", *means])
    parts.append(markdown([*heads, "questions"], [[*row, _count(measures, row[0])] for row in rows]))
    parts += [*_facts(result), *section(result.get("doctor", ()))]
    return "\n\n".join(parts) + "\n"


def write_run_page(folder: Path) -> Path:
    """Write the page of a stored run beside it, and return its path."""
    path = folder / "eval.md"
    write_atomically(path, run_page(load_result(folder)))
    return path


def label_of(name: str) -> tuple[str, str]:
    """What a reader calls a measure, and its unit."""
    return LABELS.get(name, (plain(name.replace("/", ", ")), "share"))


def _about(result: Mapping[str, Any]) -> str:
    settings, versions = result["settings"], result["versions"]
    trained = f" Trained by {plain(result['method'])}, seed {result['seed']}." if result["method"] else ""
    reference = f" Reference: {plain(result['reference'])}." if result["reference"] else ""
    limit = f" The first {settings['limit']} questions of each suite only." if settings["limit"] else ""
    seconds = ", ".join(f"{plain(suite)} {value:.0f} s" for suite, value in result["seconds"].items())
    lines = [
        f"Answers of at most {settings['max_new_tokens']} tokens, greedy.{trained}{reference}{limit}",
        *(f"{plain(suite)}: {plain(path)}." for suite, path in result["sources"].items()),
        f"{plain(result['device'])}; {seconds}; {', '.join(plain(f'{n} {own}') for n, own in versions.items())}.",
    ]
    return "\n".join(lines)


def _cell(measure: Measure | None) -> str:
    if measure is None:
        return ""
    found = estimate(measure)
    if found.low is None or found.high is None:
        return _number(found.mean)
    low, high = found.low, found.high
    if label_of(measure.name)[1] in ("share", "probability"):
        low, high = max(0.0, low), min(1.0, high)
    return f"{_number(found.mean)} ({_number(low)} to {_number(high)})"


def _number(value: float | None, sign: str = "") -> str:
    """Three decimals, or three digits of large numbers."""
    if value is None:
        return ""
    return f"{value:{sign}.3f}" if abs(value) < 10 else f"{value:{sign}.1f}"


def _mean_of_four(found: Mapping[tuple[str, bool | None], Measure], column: bool | None) -> str:
    own = [found[name, column].mean for name in IFEVAL if (name, column) in found]
    return _number(sum(own) / 4) if len(own) == 4 else ""


def _count(measures: Sequence[Measure], label: str) -> str:
    counts = {len(m.questions) for m in measures if label_of(m.name)[0] == label}
    return ", ".join(map(str, sorted(counts)))


def _facts(result: Mapping[str, Any]) -> list[str]:
    facts, parts = dict(result["facts"]), []
    if reward := facts.pop("reward", None):
        rank = reward["rank correlation with the score"]
        lines = [
            "## Is the implicit reward inert?",
            f"Over {reward['rows']} rows at beta {reward['beta']:g}, the standard deviation of the implicit reward is "
            f"{reward['spread']:.3f} nats; nine tenths of the rows lie between {reward['low']:.3f} and "
            f"{reward['high']:.3f}. For {reward['inert']:.0%} of the rows it is below 0.2 nats in size, so that the "
            "implicit score stays within 0.05 of one half. Where that holds for all rows, the loss of UFT hardly sees "
            "the reference: it is likelihood weighted by score minus one half.",
        ]
        if rank is not None:
            lines.append(f"Its rank correlation with the score of the rows is {rank:.2f}.")
        parts += lines
    if facts:
        parts += ["## To know", "\n".join(f"- {plain(name)}: {plain(value)}" for name, value in facts.items())]
    return parts


# ------------------------------------------------------------------------------------------ several runs


@dataclass(frozen=True)
class Group:
    """Runs of one method that differ in their seed alone, or a single run."""

    label: str
    runs: tuple[Mapping[str, Any], ...]

    @property
    def seeds(self) -> list[Any]:
        """The seed of each run."""
        return [run["seed"] for run in self.runs]

    def measure(self, key: tuple[str, bool | None]) -> Measure:
        """The mean of the runs for each question."""
        own = [_measures(run)[key].questions for run in self.runs]
        merged = {}
        for question in own[0]:
            weight = sum(questions[question][1] for questions in own)
            value = sum(v * w for v, w in (questions[question] for questions in own)) / weight
            merged[question] = (value, weight / len(own))
        return Measure(*key, merged)


def _measures(run: Mapping[str, Any]) -> dict[tuple[str, bool | None], Measure]:
    return {(m.name, m.template): m for m in run["measures"]}


def grouped(folders: Sequence[Path]) -> list[Group]:
    """The runs of these folders. Runs with the same recipe and different seeds are one group."""
    runs = [(folder, load_result(folder)) for folder in folders]
    groups: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for folder, run in runs:
        seeded = bool(run["method"]) and run["seed"] is not None
        groups.setdefault(repr(run["recipe"]) if seeded else str(folder), []).append((folder, run))
    found = []
    for own in groups.values():
        seeds = [run["seed"] for _, run in own]
        if len(own) > 1 and len(set(seeds)) == len(seeds):
            found.append(Group(str(own[0][1]["method"]), tuple(run for _, run in own)))
        else:
            found += [Group(folder.name, (run,)) for folder, run in own]
    labels = [group.label for group in found]
    return [g if labels.count(g.label) == 1 else Group(f"{g.label} {n}", g.runs) for n, g in enumerate(found, start=1)]


def compare(folders: Sequence[Path], baseline: Path) -> list[dict[str, Any]]:
    """Every run, or method with several seeds, against the baseline: one row for each measure that both have.

    `questions` is the paired interval over questions, of these weights; `seeds` that over seeds, of these questions. A
    verdict other than "not settled" needs every interval that there is to leave out 0.

    Raises:
        InputError: for fewer than two runs, or runs with other questions or longest answers.
    """
    folders = list(dict.fromkeys([*folders, baseline]))
    if len(folders) < 2:
        raise InputError("A comparison", "have at least two runs", len(folders), "Name more folders")
    runs = {folder: load_result(folder) for folder in folders}
    _check_same(runs)
    groups = grouped(folders)
    (base,) = (g for g in groups if any(run == runs[baseline] for run in g.runs))
    rows = []
    for group in groups:
        if group is base:
            continue
        keys = [key for key in _measures(base.runs[0]) if all(key in _measures(r) for r in (*group.runs, *base.runs))]
        if not keys:
            remedy = "Measure them with the same --suite"
            raise InputError(f"{group.label} and {base.label}", "share a measure", "none", remedy)
        for key in keys:
            own, other = group.measure(key), base.measure(key)
            over_questions, over_seeds = difference(own, other), _over_seeds(group, base, key)
            verdicts = {i.verdict for i in (over_questions, over_seeds) if i is not None}
            rows.append(
                {
                    "run": group.label,
                    "baseline": base.label,
                    "measure": key[0],
                    "template": key[1],
                    "value": own.mean,
                    "baseline value": other.mean,
                    "questions": over_questions,
                    "seeds": over_seeds,
                    "verdict": verdicts.pop() if len(verdicts) == 1 else "not settled",
                }
            )
    if not rows:
        got = "seeds of one training alone"
        raise InputError("A comparison", "have another method beside the baseline", got, "Name more folders")
    return rows


def _over_seeds(group: Group, base: Group, key: tuple[str, bool | None]) -> Interval | None:
    """Of the differences by seed; against a single baseline run its one value. None without two differences."""
    own = {run["seed"]: _measures(run)[key].mean for run in group.runs}
    other = {run["seed"]: _measures(run)[key].mean for run in base.runs}
    if len(own) < 2:
        return None
    if len(other) == 1:
        (value,) = other.values()
        return interval([mean - value for mean in own.values()])
    shared = [seed for seed in own if seed in other]
    return interval([own[seed] - other[seed] for seed in shared]) if len(shared) > 1 else None


def _check_same(runs: Mapping[Path, Mapping[str, Any]]) -> None:
    """Refuses runs with other questions, other weights or other longest answers."""
    seen: dict[tuple[str, bool | None], tuple[Path, Measure]] = {}
    for folder, run in runs.items():
        for key, measure in _measures(run).items():
            first, other = seen.setdefault(key, (folder, measure))
            apart = set(measure.questions) ^ set(other.questions)
            if apart:
                got = f"{len(apart)} that only one of {first} and {folder} has"
                raise InputError(f"Runs compared on {key[0]}", "have the same questions", got, "Measure them alike")
            weights = (own.questions[q][1] != w for own in (measure,) for q, (_, w) in other.questions.items())
            if key[0].startswith(FIXED_WEIGHTS) and any(weights):
                got = f"others in {first} and {folder}"
                remedy = "Compare models with one tokenizer"
                raise InputError(f"Runs compared on {key[0]}", "count the same tokens", got, remedy)
    lengths = {
        folder: run["settings"]["max_new_tokens"]
        for folder, run in runs.items()
        if set(run["settings"]["suites"]) & set(LONGEST_ANSWER)
    }
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{value} in {folder}" for folder, value in lengths.items())
        raise InputError("Runs that generate", "have the same --max-new-tokens", got, "Measure them alike")


def comparison_page(rows: Sequence[Mapping[str, Any]], folders: Iterable[Path] = ()) -> str:
    """The page of a comparison in Markdown."""
    base = rows[0]["baseline"]
    parts = [
        f"# Compared with {plain(base)}",
        "A difference is the run minus the baseline, question by question. The interval over questions (95 %, paired) "
        "says how much depends on which questions were asked; that over seeds, how much on the seed of the training. "
        "A run of a single seed has only the first. A difference is called higher or lower where every interval that "
        "there is leaves out 0. Nothing is corrected for the number of measures.",
    ]
    for key in dict.fromkeys((row["measure"], row["template"]) for row in rows):
        label, unit = label_of(key[0])
        own = [row for row in rows if (row["measure"], row["template"]) == key]
        words = {None: "", True: ", with chat template", False: ", without chat template"}[key[1]]
        parts.append(f"## {label}{words} ({unit})")
        count = own[0]["questions"].seeds
        few = f" Only {count}: the interval is rough." if count < SMALL else ""
        parts.append(f"Baseline {_number(own[0]['baseline value'])}, {count} questions.{few}")
        lines = [
            [plain(r["run"]), _number(r["value"]), _interval(r["questions"]), _interval(r["seeds"]), r["verdict"]]
            for r in own
        ]
        parts.append(markdown(["run", "value", "difference, over questions", "over seeds", "verdict"], lines))
    listed = "\n".join(f"- {plain(folder)}" for folder in folders)
    return "\n\n".join([*parts, *(["## Runs", listed] if listed else [])]) + "\n"


def _interval(found: Interval | None) -> str:
    if found is None:
        return "one seed"
    if found.low is None:
        return _number(found.mean, "+")
    return f"{_number(found.mean, '+')} ({_number(found.low, '+')} to {_number(found.high, '+')})"

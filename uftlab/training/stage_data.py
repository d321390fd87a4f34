"""What a stage trains on and with, before its first step: rows as tokens, their order, settings, what it costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from datasets import Dataset

from uftlab.errors import InputError
from uftlab.objectives.objective import Objective
from uftlab.objectives.registry import objective_named
from uftlab.rows.table import KINDS, convert, kind_of
from uftlab.rows.tokens import Example, Tokens, interleave, with_mismatched, with_quantiles
from uftlab.training.catalogue import all_methods
from uftlab.training.methods import Method, Stage, data_kinds, tables_of

BATCH = 32  # completions per optimiser step
TOKENISED = 100_000  # rows of a table that are tokenised in any case, so that each of them is checked


def _convert(table: Dataset, kind: str, stage: Stage) -> Dataset:
    """The table as rows of a kind.

    Raises:
        InputError: naming the columns it lacks and the methods that its rows fit.
    """
    lacking = sorted(KINDS[kind] - set(table.column_names))
    if lacking and kind not in ("scored", "label"):
        have = kind_of(table.column_names)
        fits = [method.name for method in all_methods().values() if _fits(method, have)]
        what, got = f"The table for {stage.objective}", f"a {have} table without {' and '.join(lacking)}"
        rule = f"have the columns {', '.join(sorted(KINDS[kind]))}"
        raise InputError(what, rule, got, f"Add them, or use a method that fits: {', '.join(fits)}")
    return convert(table, kind)


def _fits(method: Method, have: str) -> bool:
    """Whether a table of that kind can be the feedback of a method."""
    kinds = [data_kinds(stage)[-1] for stage in method.stages if stage.demonstrations < 1]
    return bool(kinds) and all(kind in ("scored", "label", have) for kind in kinds)


def sources(
    stage: Stage, tables: Mapping[str, Dataset], tokens: Tokens, batch: int = BATCH, max_length: int | None = None
) -> tuple[list[list[Example]], list[int]]:
    """The tokenised tables of a stage, as the kinds its objective eats, and how many examples of each make a step.

    Raises:
        InputError: when a table is missing or cannot be turned into what the objective eats.
    """
    objective = objective_named(stage.objective)
    examples, per_step = [], []
    for name, kind in zip(tables_of(stage), data_kinds(stage), strict=True):
        if name not in tables:
            have = ", ".join(tables) or "nothing"
            raise InputError(f"The {stage.objective} stage", f"be given {name}", have, f"Add --{name}")
        made = tokens.once(
            (name, tables[name]._fingerprint, kind, max_length),
            lambda name=name, kind=kind: _examples(name, _convert(tables[name], kind, stage), tokens, max_length),  # type: ignore[misc]
        )
        share = stage.demonstrations if name == "demonstrations" else 1 - stage.demonstrations
        per_step.append(max(1, round(batch * share) // (2 if kind == "preference" else 1)))
        made = with_quantiles(made) if objective.quantiles else made
        examples.append(with_mismatched(made) if objective.mismatched else made)
    return examples, per_step


def enough(table: Dataset, reads: int, seed: int) -> Dataset:
    """No more rows of a table than a run has use for, because what nobody reads need not be tokenised.

    These are `TOKENISED` rows, or twice as many as the run reads if that is more: a part may be too long for the model.
    They are drawn at random and keep their order. A table that has no more stays as it is.

    Args:
        reads: rows of the table that the run reads at most.
    """
    most = max(TOKENISED, 2 * reads)
    if len(table) <= most:
        return table
    return table.select(sorted(random.Random(f"uftlab rows {seed}").sample(range(len(table)), most)))


def _examples(name: str, table: Dataset, tokens: Tokens, max_length: int | None) -> list[Example]:
    """A table tokenised; its rows know whether they are demonstrations."""
    made = tokens.examples(table, max_length)
    if name != "demonstrations":
        return made
    return [tuple(replace(c, demonstrated=True) for c in example) for example in made]


@dataclass
class Record:
    """What is worth keeping of a trained stage besides its weights."""

    objective: str
    steps: int
    settings: dict[str, float]
    completions: int = 0
    extra_forwards: int = 0
    sampled: int = 0  # completions generated during training
    extra_runs: int = 0  # completions back-propagated in runs that are thrown away
    history: list[dict[str, float]] = field(default_factory=list)


def distinct(examples: Sequence[Sequence[Example]]) -> int:
    """How many different completions there are: what a reference has to read."""
    return len({(c.prompt_ids, c.completion_ids) for source in examples for e in source for c in e})


@dataclass(frozen=True)
class StageData:
    """What a stage trains on and with, before its first step: all that depends on rows, seed and reference.

    Args:
        order: examples in training order, reference log-probabilities filled in.
        per_step: examples of each step.
        settings: the learning rate and all settings of the objective, beta resolved.
        referred: distinct completions that the reference had to read.
        options: of the stage.
    """

    objective: Objective
    steps: int
    settings: dict[str, float]
    order: list[Example]
    per_step: int
    referred: int
    options: dict[str, float]

    def record(self, history: list[dict[str, float]], own_texts: int = 0) -> Record:
        """What the stage cost, once it is trained; `own_texts` were sampled and back-propagated for EWC before."""
        rows = [c for example in self.order for c in example]
        mismatched = sum(c.role == "mismatched" for c in rows)
        extra = self.referred + mismatched + (len(rows) if self.objective.distributions else 0)
        name = self.objective.name
        return Record(
            name, self.steps, {**self.settings, **self.options}, len(rows) - mismatched, extra, own_texts, own_texts,
            history,
        )  # fmt: skip


def prepare(
    stage: Stage,
    tables: Mapping[str, Dataset],
    tokens: Tokens,
    settings: Mapping[str, float],
    steps: int,
    seed: int,
    refer: Callable[[Sequence[Example]], list[Example]],
    batch: int = BATCH,
    max_length: int | None = None,
    whole: bool = True,
) -> StageData:
    """Tokens, reference log-probabilities, resolved settings and the order of training of a stage.

    Args:
        refer: fills in the reference log-probabilities of examples.
        whole: whether the reference reads all rows, or only those that are used. `beta_nats` is of all rows.
    """
    objective = objective_named(stage.objective)
    examples, per_step = sources(stage, tables, tokens, batch, max_length)
    whole = objective.reference and (whole or "beta_nats" in settings)
    read = examples
    if whole:
        examples = [refer(source) for source in examples]
    order = interleave(examples, per_step, steps, seed)
    if objective.reference and not whole:
        read, order = [order], refer(order)
    return StageData(
        objective,
        steps,
        resolve_settings(objective, settings, examples),
        order,
        sum(per_step),
        distinct(read) if objective.reference else 0,
        stage.chosen(settings),
    )


def resolve_settings(
    objective: Objective, settings: Mapping[str, float], examples: Sequence[Sequence[Example]]
) -> dict[str, float]:
    """Settings with beta in place of `beta_nats` (three significant digits), and without what the objective lacks.

    Raises:
        InputError: for `beta_nats` without completions whose log-probability under the reference is known.
    """
    chosen = {name: value for name, value in settings.items() if name in objective.settings}
    if "beta_nats" in settings and "beta" in objective.settings:
        nats = [-c.reference_logps for source in examples for e in source for c in e if c.role != "mismatched"]
        known = [value for value in nats if value == value]  # SFT rows of a mixture have one too; NaN where none
        middle = median(known) if known else 0.0
        if not middle > 0:
            rule, got = "have completions that a reference finds less than certain", f"none, for {objective.name}"
            raise InputError("The setting beta_nats", rule, got, "Set beta itself")
        chosen["beta"] = float(f"{settings['beta_nats'] / middle:.3g}")
    return {"learning_rate": settings["learning_rate"], **objective.with_defaults(chosen)}

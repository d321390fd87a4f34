"""What a method is tuned over, and how a stage is trained. A stage's reference is the policy as the stage found it.

The methods themselves stand in `uftlab.training.catalogue`. Every objective of the registry that is none of them is a
method too, of the group "loss": it trains the base model on the one table that it eats, for the whole budget.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import median
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import TrainerCallback

from uftlab.engine.trainer import UFTTrainer, training_arguments
from uftlab.errors import InputError
from uftlab.models.logps import ReferenceCache
from uftlab.objectives.objective import Objective
from uftlab.objectives.registry import OBJECTIVES, objective_named
from uftlab.rows.table import KINDS, convert, kind_of
from uftlab.rows.tokens import Example, Tokens, interleave, with_mismatched, with_quantiles
from uftlab.training.catalogue import METHODS, PIPELINE_METHODS, Method, Stage, data_kinds, tables_of

BATCH = 32  # completions per optimiser step


def all_methods() -> dict[str, Method]:
    """`METHODS`, `PIPELINE_METHODS`, then a method of the group "loss" for every other objective of the registry."""
    named = {**METHODS, **PIPELINE_METHODS}
    alone = {name: _alone(objective) for name, objective in OBJECTIVES.items() if name not in named}
    return {**named, **alone}


def _alone(objective: Objective) -> Method:
    """One objective on its own table for the whole budget; half of it demonstrations if it eats them and feedback."""
    demonstrations = "demonstration" in objective.kinds
    share = 0.5 if demonstrations and len(objective.kinds) > 1 else float(demonstrations)
    second = objective.axis[0] if objective.axis else "beta" if "beta" in objective.settings else None
    tuned = ("learning_rate",) if second is None else ("learning_rate", second)
    return Method(objective.name, (Stage(objective.name, share),), objective.summary, tuned, "loss")


def method_named(name: str) -> Method:
    """The registered method, or one clear error with the names there are."""
    known = all_methods()
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, 0.5)
        remedy = f"Did you mean {' or '.join(near)}? See `uftlab methods`" if near else "See `uftlab methods`"
        raise InputError("A method", f"be one of {', '.join(known)}", name, remedy)
    return known[name]


# ------------------------------------------------------------------------------------------- the grid

LEARNING_RATES = (5e-4, 1.5e-3, 5e-3)
BETA_NATS = (0.1, 0.5, 2.2, 10.0)  # beta * median(-log pi_ref) of the stage's completions
EXTRA = {
    "preference_weight": (0.3, 1.0, 3.0),
    "demonstrations": (0.125, 0.25, 0.5),
    "preference_share": (0.25, 0.5, 0.75),
    "parts": (2.0, 3.0, 4.0),
}


def grid(method: Method) -> list[dict[str, float]]:
    """Twelve settings for every method: learning rate x beta; twelve learning rates where there is no beta.

    Where beta is no KL strength, or another setting matters more, the objective's `axis` takes its place. A third
    setting is laid over the same twelve points as a Latin square, so that no method gets more trials.
    """
    if not method.tuned:
        return [{}]
    if method.tuned == ("learning_rate",):
        return [{"learning_rate": float(f"{2e-4 * 100 ** (i / 11):.3g}")} for i in range(12)]
    second, values = objective_named(method.stages[-1].objective).axis or ("beta_nats", BETA_NATS)
    points = []
    for (i, rate), (j, value) in product(enumerate(LEARNING_RATES), enumerate(values)):
        point = {"learning_rate": rate, second: value}
        for name in method.tuned[2:]:
            point[name] = EXTRA[name][(i + j) % 3]
        points.append(point)
    return points


# ------------------------------------------------------------------------------------ training a stage


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
        made = tokens.examples(_convert(tables[name], kind, stage), max_length)
        share = stage.demonstrations if name == "demonstrations" else 1 - stage.demonstrations
        per_step.append(max(1, round(batch * share) // (2 if kind == "preference" else 1)))
        made = with_quantiles(made) if objective.quantiles else made
        examples.append(with_mismatched(made) if objective.mismatched else made)
    return examples, per_step


@dataclass
class TrainedStage:
    """What is worth keeping of a trained stage besides the policy, which is changed in place."""

    objective: str
    steps: int
    settings: dict[str, float]
    completions: int = 0
    extra_forwards: int = 0
    sampled: int = 0  # completions generated during training
    extra_runs: int = 0  # completions back-propagated in runs that are thrown away
    history: list[dict[str, float]] = field(default_factory=list)


def train_stage(
    policy: nn.Module,
    stage: Stage,
    tables: Mapping[str, Dataset],
    tokens: Tokens,
    settings: Mapping[str, float],
    steps: int,
    seed: int,
    folder: str,
    batch: int = BATCH,
    max_length: int | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    trainer: Callable[..., UFTTrainer] = UFTTrainer,
    **arguments: Any,
) -> TrainedStage:
    """Train `policy` in place for `steps` optimiser steps of `batch` completions each: the recipe "offline".

    Args:
        trainer: makes the trainer; for one that adds to the loss.
        settings: `learning_rate`, the objective's settings, or instead of beta `beta_nats`, which is divided
            by the median of -log pi_ref over the stage's completions.
        arguments: passed on to `TrainingArguments`; they win over the defaults.

    Raises:
        InputError: for a stage of another recipe, or rows that the objective cannot learn from.
    """
    if stage.recipe != "offline":
        raise InputError("A stage trained here", "be offline", stage.recipe, "Call uftlab.training.recipes.train_stage")
    cache, pad = ReferenceCache(), tokens.tokenizer.pad_token_id
    made = lesson(
        stage, tables, tokens, settings, steps, seed, lambda rows: cache.fill(policy, rows, pad), batch, max_length
    )
    wanted = {"per_device_train_batch_size": made.per_step, "seed": seed, "max_steps": steps, **arguments}
    trained = fit(trainer, policy, folder, made.order, made.objective, made.settings, pad, callbacks, **wanted)
    return made.record(history_of(trained))


@dataclass(frozen=True)
class Lesson:
    """What a stage trains on and with, before its first step: all that depends on rows, seed and reference.

    Args:
        order: examples in training order, reference log-probabilities filled in.
        per_step: examples of each step.
        settings: the learning rate and all settings of the objective, beta resolved.
        referred: distinct completions that the reference had to read.
    """

    objective: Objective
    steps: int
    settings: dict[str, float]
    order: list[Example]
    per_step: int
    referred: int

    def record(self, history: list[dict[str, float]]) -> TrainedStage:
        """What the stage cost, once it is trained."""
        rows = [c for example in self.order for c in example]
        mismatched = sum(c.role == "mismatched" for c in rows)
        extra = self.referred + mismatched + (len(rows) if self.objective.distributions else 0)
        name = self.objective.name
        return TrainedStage(name, self.steps, self.settings, len(rows) - mismatched, extra, history=history)


def lesson(
    stage: Stage,
    tables: Mapping[str, Dataset],
    tokens: Tokens,
    settings: Mapping[str, float],
    steps: int,
    seed: int,
    refer: Callable[[Sequence[Example]], list[Example]],
    batch: int = BATCH,
    max_length: int | None = None,
) -> Lesson:
    """Tokens, reference log-probabilities, resolved settings and the order of training of a stage.

    Args:
        refer: fills in the reference log-probabilities of examples.
    """
    objective = objective_named(stage.objective)
    examples, per_step = sources(stage, tables, tokens, batch, max_length)
    referred = 0
    if objective.reference:
        referred = len({(c.prompt_ids, c.completion_ids) for source in examples for e in source for c in e})
        examples = [refer(source) for source in examples]
    chosen = resolve_settings(objective, settings, examples)
    return Lesson(objective, steps, chosen, interleave(examples, per_step, steps, seed), sum(per_step), referred)


def fit(
    trainer: Callable[..., UFTTrainer],
    policy: nn.Module,
    folder: str,
    data: Any,
    objective: Objective,
    settings: Mapping[str, float],
    pad_id: int,
    callbacks: Sequence[TrainerCallback],
    **arguments: Any,
) -> UFTTrainer:
    """Make a trainer from resolved settings, learning rate among them, and train; `arguments` win over the defaults."""
    own = {name: value for name, value in settings.items() if name != "learning_rate"}
    made = training_arguments(folder, **{"learning_rate": settings["learning_rate"], **arguments})
    trained = trainer(policy, made, data, objective, own, pad_id=pad_id, callbacks=list(callbacks))
    trained.train(resume_from_checkpoint=arguments.get("resume_from_checkpoint"))
    return trained


def history_of(trainer: UFTTrainer) -> list[dict[str, float]]:
    """What was logged, without the library's summary of the run."""
    return [{k: float(v) for k, v in entry.items()} for entry in trainer.state.log_history[:-1]]


def resolve_settings(
    objective: Objective, settings: Mapping[str, float], examples: Sequence[Sequence[Example]]
) -> dict[str, float]:
    """Settings with beta in place of `beta_nats` (three significant digits), and without what the objective lacks."""
    chosen = {name: value for name, value in settings.items() if name in objective.settings}
    if "beta_nats" in settings and "beta" in objective.settings:
        nats = [-c.reference_logps for source in examples for e in source for c in e if c.role != "mismatched"]
        known = [value for value in nats if value == value]  # SFT rows of a mixture have one too; NaN where none
        chosen["beta"] = float(f"{settings['beta_nats'] / median(known):.3g}")
    return {"learning_rate": settings["learning_rate"], **objective.with_defaults(chosen)}

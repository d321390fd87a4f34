"""Methods as lists of stages: which rows, which objective, what share of the budget; and how a stage is trained.

The budget is the number of completions back-propagated and is the same for every method (but `sft` and
`base`, which say so). A stage's reference is the policy as the stage found it.

`METHODS` are those of the study. Every other objective of the registry is a method too, of the group "loss": it
trains the base model on the one table that it eats, for the whole budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from statistics import median
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import TrainerCallback

from uftlab.errors import InputError
from uftlab.feedback import KINDS, convert, kind_of
from uftlab.logps import ReferenceCache
from uftlab.objectives import OBJECTIVES, objective_named
from uftlab.terms import Objective
from uftlab.tokens import Example, Tokens, interleave, with_mismatched, with_quantiles
from uftlab.trainer import UFTTrainer, training_arguments

BATCH = 32  # completions per optimiser step


@dataclass(frozen=True)
class Stage:
    """One stretch of training: `demonstrations` is their share of its completions, `budget` its share of the whole."""

    objective: str
    demonstrations: float
    budget: float = 1.0


@dataclass(frozen=True)
class Method:
    """A named list of stages. `tuned` names what the sweep varies in its last stage."""

    name: str
    stages: tuple[Stage, ...]
    summary: str
    tuned: tuple[str, ...] = ("learning_rate", "beta")
    group: str = "paper"  # "control": what the paper did not compare; "loss": one loss of the registry alone

    @property
    def objectives(self) -> list[Objective]:
        """The objectives of its stages, each once."""
        return [objective_named(name) for name in dict.fromkeys(stage.objective for stage in self.stages)]

    def needs(self) -> dict[str, Any]:
        """What `uftlab methods --json` prints of it."""
        objectives = self.objectives
        return {
            "name": self.name,
            "group": self.group,
            "summary": self.summary,
            "stages": [asdict(s) for s in self.stages],
            "eats": sorted({k for s in self.stages for k in _tables(s)}),
            "data": sorted({kind for s in self.stages for kind in data_kinds(s)}),
            "reference": any(o.reference or o.distributions for o in objectives),
            "distributions": any(o.distributions for o in objectives),
            "token_logps": any(o.tokens for o in objectives),
            "extra_forwards": any(o.mismatched or o.distributions for o in objectives),
            "across_batch": any(o.across_batch for o in objectives),
            "settings": default_settings(self) if self.stages else {},
            "sources": sorted({o.source for o in objectives}),
            "verification": {o.name: o.verified for o in objectives},
            "notes": {o.name: o.note for o in objectives if o.note},
        }


_SFT_HALF = Stage("sft", 1.0, 0.5)


def _then(name: str, objective: str, summary: str, group: str = "paper") -> Method:
    return Method(name, (_SFT_HALF, Stage(objective, 0.0, 0.5)), summary, group=group)


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("base", (), "the base model, untouched", ()),
        Method(
            "sft",
            (_SFT_HALF,),
            "SFT on demonstrations, half the budget: stage one of the pipelines",
            ("learning_rate",),
        ),
        Method("sft-full", (Stage("sft", 1.0),), "SFT on demonstrations, the full budget", ("learning_rate",)),
        Method("uft-demonstrations", (Stage("una-score", 1.0),), "UFT on demonstrations alone, squared error"),
        _then("sft-then-dpo", "dpo", "SFT, then DPO on pairs"),
        _then("sft-then-kto", "kto", "SFT, then KTO on labels"),
        _then("sft-then-una", "una-score", "SFT, then UNA on scores, squared error"),
        Method("uft", (Stage("una-score", 0.5),), "UFT on the mixture, scores, squared error: the paper's method"),
        Method(
            "uft-cross-entropy", (Stage("una-score-cross-entropy", 0.5),), "UFT on the mixture, scores, cross-entropy"
        ),
        Method("uft-binary", (Stage("una-binary", 0.5),), "UFT on the mixture, labels, squared error"),
        Method(
            "sft-plus-dpo",
            (Stage("sft-plus-dpo", 0.5),),
            "plain mixture: SFT on demonstrations plus DPO on pairs in each step",
            ("learning_rate", "beta", "preference_weight"),
            "control",
        ),
        Method(
            "replay",
            (_SFT_HALF, Stage("sft-plus-dpo", 0.25, 0.5)),
            "SFT, then DPO with a share of demonstrations kept",
            ("learning_rate", "beta", "demonstrations"),
            "control",
        ),
        Method(
            "uft-then-una",
            (Stage("una-score", 1.0, 0.5), Stage("una-score", 0.0, 0.5)),
            "the unified loss without mixing: UFT on demonstrations, then UNA on scores",
            group="control",
        ),
        Method(
            "sft-sum",
            (Stage("sft-sum", 1.0),),
            "SFT on summed, not token-averaged, log-probabilities, the full budget",
            ("learning_rate",),
            "control",
        ),
    )
}


def all_methods() -> dict[str, Method]:
    """`METHODS`, then a method of the group "loss" for every other objective of the registry, as it is now."""
    alone = {name: _alone(objective) for name, objective in OBJECTIVES.items() if name not in METHODS}
    return {**METHODS, **alone}


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
        raise InputError("A method", f"be one of {', '.join(known)}", name, "See `uftlab methods`")
    return known[name]


def default_settings(method: Method) -> dict[str, float]:
    """What the last stage runs with when nobody has tuned it: the objective's documented defaults."""
    objective = objective_named(method.stages[-1].objective)
    return {"learning_rate": objective.learning_rate, **objective.settings}


# ------------------------------------------------------------------------------------------- the grid

LEARNING_RATES = (5e-4, 1.5e-3, 5e-3)
BETA_NATS = (0.1, 0.5, 2.2, 10.0)  # beta * median(-log pi_ref) of the stage's completions
EXTRA = {"preference_weight": (0.3, 1.0, 3.0), "demonstrations": (0.125, 0.25, 0.5)}


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


def _tables(stage: Stage) -> list[str]:
    names = ["demonstrations"] if stage.demonstrations > 0 else []
    return names + (["feedback"] if stage.demonstrations < 1 else [])


def data_kinds(stage: Stage) -> list[str]:
    """The kinds of rows that the tables of a stage are turned into, in the order of `_tables`."""
    objective = objective_named(stage.objective)
    other = [k for k in objective.kinds if k != "demonstration"]
    as_demonstrations = "demonstration" in objective.kinds
    return ["demonstration" if name == "demonstrations" and as_demonstrations else other[0] for name in _tables(stage)]


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
    for name, kind in zip(_tables(stage), data_kinds(stage), strict=True):
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
    **arguments: Any,
) -> TrainedStage:
    """Train `policy` in place for `steps` optimiser steps of `batch` completions each.

    Args:
        settings: `learning_rate`, the objective's settings, or instead of beta `beta_nats`, which is divided
            by the median of -log pi_ref over the stage's completions.
        arguments: passed on to `TrainingArguments`; they win over the defaults.
    """
    objective = objective_named(stage.objective)
    examples, per_step = sources(stage, tables, tokens, batch, max_length)
    cache, pad = ReferenceCache(), tokens.tokenizer.pad_token_id
    if objective.reference:
        examples = [cache.fill(policy, source, pad) for source in examples]
    chosen = resolve_settings(objective, settings, examples)
    ordered = interleave(examples, per_step, steps, seed)
    trainer = UFTTrainer(
        policy,
        training_arguments(
            folder,
            **{
                "per_device_train_batch_size": sum(per_step),
                "learning_rate": settings["learning_rate"],
                "seed": seed,
                "max_steps": steps,
                **arguments,
            },
        ),
        ordered,
        objective,
        {name: value for name, value in chosen.items() if name != "learning_rate"},
        pad_id=pad,
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=arguments.get("resume_from_checkpoint"))
    rows = [c for example in ordered for c in example]
    mismatched = sum(c.role == "mismatched" for c in rows)
    extra = cache.computed + mismatched + (len(rows) if objective.distributions else 0)
    history = [{k: float(v) for k, v in entry.items()} for entry in trainer.state.log_history[:-1]]
    return TrainedStage(stage.objective, steps, chosen, len(rows) - mismatched, extra, history)


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

"""The recipes by name: how a stage is trained. A recipe is a function of a `Run`; `train_stage` looks it up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import TrainerCallback

from uftlab.errors import InputError
from uftlab.rows.table import kind_of
from uftlab.rows.tokens import Tokens
from uftlab.training.alternation import alright, maxright
from uftlab.training.catalogue import SAMPLING, Method, Stage
from uftlab.training.merging import paft, paft_ties
from uftlab.training.methods import BATCH, TrainedStage
from uftlab.training.online import online, online_rollout, rloo, rs_dpo
from uftlab.training.reward_functions import Reward
from uftlab.training.runs import Run, offline


def parts(run: Run) -> TrainedStage:
    """Stepwise DPO (Kim et al. 2024, arXiv 2403.19270): each of `parts` starts from the last model and refers to it.

    Every part is a run with its own schedule; beta is that of the first part. With one part it is plain DPO. From a
    secondary source. Nothing is paid for on top: the reference reads each pair once.
    """
    count, records = min(run.steps, int(run.option("parts"))), []
    settings, stage = dict(run.settings), replace(run.stage, recipe="offline")
    for index in range(count):
        steps = run.steps * (index + 1) // count - run.steps * index // count
        tables = {**run.tables, "feedback": run.tables["feedback"].shard(count, index, contiguous=False)}
        records.append(offline(replace(run, stage=stage, tables=tables, steps=steps, settings=settings)))
        settings = {name: value for name, value in {**settings, **records[0].settings}.items() if name != "beta_nats"}
    return TrainedStage(
        run.stage.objective,
        run.steps,
        {**records[0].settings, **run.options()},
        sum(record.completions for record in records),
        sum(record.extra_forwards for record in records),
        history=[entry for record in records for entry in record.history],
    )


RECIPES: dict[str, Callable[[Run], TrainedStage]] = {
    "offline": offline,
    "parts": parts,
    "alright": alright,
    "maxright": maxright,
    "paft": paft,
    "paft-ties": paft_ties,
    "rs-dpo": rs_dpo,
    "online": online,
    "online-rollout": online_rollout,
    "rloo": rloo,
}
ALL_WEIGHTS = ("parts", "paft", "paft-ties")  # with LoRA their reference or base would be another than they say


def check_recipes(method: Method, tables: Mapping[str, Dataset], reward: Reward | None = None, lora: int = 0) -> None:
    """Refuse what a method's recipes cannot do, before anything is trained.

    Raises:
        InputError: for sampling without a reward function and without pairs to train one on; for LoRA where the
            recipe needs all weights.
    """
    for stage in method.stages:
        if lora and stage.recipe in ALL_WEIGHTS:
            raise InputError(f"{method.name}", "train all weights", f"LoRA of rank {lora}", "Leave --lora at 0")
        if stage.recipe in SAMPLING and reward is None and "feedback" in tables:
            kind = kind_of(tables["feedback"].column_names)
            if kind != "preference":
                rule = "have pairs, so that a reward model can be trained to score the samples"
                raise InputError(f"The feedback of {method.name}", rule, f"{kind} rows", "Give chosen and rejected")


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
    reward: Reward | None = None,
    **arguments: Any,
) -> TrainedStage:
    """Train `policy` in place by the stage's recipe, for `steps` optimiser steps of `batch` completions each.

    Args:
        settings: as in `uftlab.training.methods.train_stage`, and the recipe's options.
        reward: scores samples; without one a reward model is trained on the pairs and charged as an extra run.
        arguments: passed on to `TrainingArguments`; they win over the defaults.

    Raises:
        InputError: for a recipe that is not registered, or rows that it cannot learn from.
    """
    if stage.recipe not in RECIPES:
        raise InputError(
            "A recipe", f"be one of {', '.join(RECIPES)}", stage.recipe, "Register it in uftlab.training.recipes"
        )
    run = Run(policy, stage, tables, tokens, settings, steps, seed, folder, batch, max_length, callbacks, reward)
    return RECIPES[stage.recipe](replace(run, arguments=arguments))

"""What a recipe is given, and a trainer whose batches are made when their step begins.

A recipe is a function of a `Run` that trains `run.policy` in place and says what it cost.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from uftlab.engine.trainer import Quiet, UFTTrainer
from uftlab.errors import InputError
from uftlab.models.logps import completion_logps
from uftlab.models.policies import evaluation_mode
from uftlab.objectives.objective import Objective
from uftlab.objectives.registry import objective_named
from uftlab.rows.tokens import Completion, Example, Tokens, collate
from uftlab.training.catalogue import Stage
from uftlab.training.methods import BATCH, TrainedStage, fit, resolve_settings, sources, train_stage
from uftlab.training.reward_functions import Reward


@dataclass(frozen=True)
class Run:
    """The arguments of `methods.train_stage` in one, and the reward function of recipes that score samples."""

    policy: nn.Module
    stage: Stage
    tables: Mapping[str, Dataset]
    tokens: Tokens
    settings: Mapping[str, float]
    steps: int
    seed: int
    folder: str
    batch: int = BATCH
    max_length: int | None = None
    callbacks: Sequence[TrainerCallback] = ()
    reward: Reward | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def objective(self) -> Objective:
        """The objective of its stage."""
        return objective_named(self.stage.objective)

    @property
    def pad(self) -> int:
        """The token that fills batches."""
        return self.tokens.tokenizer.pad_token_id  # type: ignore[return-value]

    def option(self, name: str) -> float:
        """One of the recipe's own settings: what the user set, else the stage's default."""
        return self.settings.get(name, dict(self.stage.options).get(name, float("nan")))

    def options(self) -> dict[str, float]:
        """All of them."""
        return {name: self.option(name) for name, _ in self.stage.options}

    def examples(self) -> list[list[Example]]:
        """The tokenised tables of its stage, as the kinds that its objective eats."""
        return sources(self.stage, self.tables, self.tokens, self.batch, self.max_length)[0]

    def resolved(self, examples: Sequence[Sequence[Example]]) -> dict[str, float]:
        """Settings of the objective, beta in nats turned into beta over the given completions."""
        return resolve_settings(self.objective, self.settings, examples)

    def aside(self, stage: Stage, steps: int) -> Run:
        """A run of another stage on a copy of the policy, which nobody watches."""
        return replace(self, policy=copy.deepcopy(self.policy), stage=stage, steps=steps, callbacks=(Quiet(),))


def offline(run: Run, trainer: Callable[..., UFTTrainer] = UFTTrainer, **arguments: Any) -> TrainedStage:
    """The recipe of every stage that names no other: one objective on its tables (`methods.train_stage`)."""
    return train_stage(
        run.policy,
        run.stage,
        run.tables,
        run.tokens,
        run.settings,
        run.steps,
        run.seed,
        run.folder,
        run.batch,
        run.max_length,
        run.callbacks,
        trainer,
        **{**run.arguments, **arguments},
    )


Feed = Callable[["FedTrainer", int], list[Example]]


class FedTrainer(UFTTrainer):
    """Asks for the examples of a step when that step begins, so that they may depend on the policy as it is then.

    One trainer from first to last: optimiser state and schedule go on, whoever makes the batches. A data loader
    would not do: it fetches one batch ahead, before the step that it ought to see.

    Args:
        feed: (trainer, number of the step) -> its examples, reference log-probabilities filled in.

    Raises:
        InputError: with several processes or accumulated micro-batches, each of which would be asked for apart.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        feed: Feed,
        objective: Objective,
        settings: Mapping[str, float] | None = None,
        pad_id: int = 0,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        parts = args.world_size * args.gradient_accumulation_steps
        if parts > 1:
            what, remedy = "A recipe that makes its batches as it goes", "Use one process and no accumulation"
            raise InputError(what, "make each step in one batch", f"{parts} parts", remedy)
        super().__init__(model, args, [()] * args.max_steps, objective, settings, pad_id, callbacks)
        self.data_collator = list  # type: ignore[assignment]
        self.feed, self.pad_id, self.completions = feed, pad_id, 0
        self.last_loss = float("nan")

    def check(self, objective: Objective, examples: Any) -> None:
        """Nothing to check yet: the feed answers for its examples."""

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | None]:
        """The batch of the step that begins now."""
        next(epoch_iterator)
        batch = collate(self.feed(self, self.state.global_step), self.pad_id)
        self.completions += len(batch["role"])
        return [batch], self._get_num_items_in_batch([batch], device)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As ever; the value stays readable as `last_loss`."""
        made = super().compute_loss(*args, **kwargs)
        self.last_loss = float((made[0] if isinstance(made, tuple) else made).detach())
        return made

    def loss_of(self, examples: Sequence[Example]) -> float:
        """The objective's value on examples under the policy as it is, without a step."""
        batch = self._prepare_inputs(collate(examples, self.pad_id))
        model: Any = self.model
        with torch.no_grad(), evaluation_mode(model):
            loss = super().compute_loss(model, batch)
        self._metrics.pop()
        return float(loss)

    def note(self, metrics: Mapping[str, float]) -> None:
        """Adds numbers to what is logged next."""
        self._metrics.append({name: torch.tensor(float(value)) for name, value in metrics.items()})


def feed_steps(run: Run, feed: Feed, settings: Mapping[str, float]) -> FedTrainer:
    """Train the policy of a run on what a feed gives, one batch of any size per step."""
    wanted = {"per_device_train_batch_size": 1, "seed": run.seed, "max_steps": run.steps, **run.arguments}
    trained = fit(FedTrainer, run.policy, run.folder, feed, run.objective, settings, run.pad, run.callbacks, **wanted)
    assert isinstance(trained, FedTrainer)
    return trained


def policy_logps(policy: nn.Module, rows: Sequence[Completion], pad_id: int) -> list[float]:
    """log pi(y | x) of each row in nats under the policy as it is, adapters and all."""
    device = next(policy.parameters()).device
    found: list[float] = []
    with torch.no_grad(), evaluation_mode(policy):
        for start in range(0, len(rows), 256):
            batch = collate([(c,) for c in rows[start : start + 256]], pad_id)
            found += completion_logps(policy, {n: x.to(device) for n, x in batch.items()}).tolist()
    return found

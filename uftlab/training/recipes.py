"""Recipes: how a stage is trained. A recipe is a function of a `Task`; it trains `task.policy` in place.

Here are what every recipe is given, the recipe of most stages (`offline`), and three that go on from it: DPO in
parts, and one optimiser that takes turns between SFT and DPO. Merged models are in `uftlab.training.merging`, recipes
that sample in `uftlab.training.online`. `uftlab.training.stages` knows all by name, and trains every stage.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from uftlab.engine.trainer import HeldTrainer, ObjectiveTrainer, Quiet, RenewedTrainer, training_arguments
from uftlab.errors import InputError
from uftlab.losses.weights import ewc_to_start, l2_to_start
from uftlab.models.fisher import fisher_information, own_texts
from uftlab.models.policies import evaluation_mode
from uftlab.models.references import ReferenceCache
from uftlab.objectives.objective import Objective
from uftlab.objectives.registry import objective_named
from uftlab.rows.tokens import Example, Tokens, interleave
from uftlab.training.methods import Stage
from uftlab.training.reward_functions import Reward
from uftlab.training.stage_data import BATCH, Record, distinct, prepare, resolve_settings, sources

# ------------------------------------------------------------------------------ what a recipe is given


@dataclass(frozen=True)
class Task:
    """A stage, the policy that is trained in place, and all that the training depends on.

    Args:
        settings: `learning_rate`, settings of the objective, and options of the recipe.
        references: what was read of references before.
        arguments: passed on to `TrainingArguments`; they win over the defaults.
        whole: whether the reference reads all rows, or only those that are used.
        held_out: tables like `tables`, whose loss and margins are logged during training.
        dropout: whether dropout is on in the policy.
        context: a prompt as a teacher is asked it, with what the policy shall learn to do without.
        tokens_per_device: see `uftlab.engine.trainer.ObjectiveTrainer`.
    """

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
    references: ReferenceCache = field(default_factory=ReferenceCache)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = True
    held_out: Mapping[str, Dataset] = field(default_factory=dict)
    dropout: bool = False
    context: Callable[[Any], Any] | None = None
    tokens_per_device: int = 0

    @property
    def objective(self) -> Objective:
        """The objective of its stage."""
        return objective_named(self.stage.objective)

    def option(self, name: str) -> float:
        """One of the recipe's own settings: what the user set, else the stage's default."""
        return self.options()[name]

    def options(self) -> dict[str, float]:
        """All settings of the stage, defaults included."""
        return self.stage.chosen(self.settings)

    def examples(self) -> list[list[Example]]:
        """The tokenised tables of its stage, as the kinds that its objective eats."""
        return sources(self.stage, self.tables, self.tokens, self.batch, self.max_length)[0]

    def refer(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with log-probabilities of the policy as it is now."""
        return self.references.fill(self.policy, examples)

    def reader(self) -> Callable[[Sequence[Example]], list[Example]]:
        """`refer` for several tables, before a step changes the policy. Only what has a reference is digested."""
        if self.objective.reference:
            return self.references.reader(self.policy)
        return list

    def resolved(self, examples: Sequence[Sequence[Example]]) -> dict[str, float]:
        """Settings of the objective, beta in nats turned into beta over the given completions."""
        return resolve_settings(self.objective, self.settings, examples)

    def aside(self, stage: Stage, steps: int) -> Task:
        """A task of another stage on a copy of the policy, which nobody watches."""
        return replace(self, policy=copy.deepcopy(self.policy), stage=stage, steps=steps, callbacks=(Quiet(),))


def offline(task: Task, trainer: Callable[..., ObjectiveTrainer] = ObjectiveTrainer, **arguments: Any) -> Record:
    """The recipe of every stage that names no other: one objective on its tables.

    A stage with the option `l2` is pulled to the weights that it starts from (`uftlab.losses.weights.l2_to_start`), one
    with the option `ewc` to those that the policy's own texts depend on (`ewc_to_start`). One with the option `refresh`
    has full distributions of the policy itself as its reference, renewed every so many steps.

    Args:
        trainer: makes the trainer; for one that adds to the loss.

    Raises:
        InputError: for a stage of another recipe, or rows that the objective cannot learn from.
    """
    if task.stage.recipe != "offline":
        raise InputError("A stage trained here", "be offline", task.stage.recipe, "Call uftlab.training.stages.run")
    refer = task.reader()
    data = prepare(
        task.stage, task.tables, task.tokens, task.settings, task.steps, task.seed, refer, task.batch,
        task.max_length, task.whole,
    )  # fmt: skip
    texts = 0
    if data.options.get("l2"):
        trainer = partial(HeldTrainer, penalty=partial(l2_to_start, strength=data.options["l2"]))
    elif data.options.get("ewc"):
        fisher, texts = fisher_of(task.policy, task.tokens, task.seed)
        penalty = partial(ewc_to_start, strength=data.options["ewc"])
        trainer = partial(HeldTrainer, penalty=penalty, fisher=list(fisher.values()))
    elif data.options.get("refresh"):
        trainer = partial(RenewedTrainer, refresh=int(data.options["refresh"]))
    wanted = {"seed": task.seed, "max_steps": task.steps, **task.arguments, **arguments}
    wanted |= {"per_device_train_batch_size": share_of_a_step(data.per_step, wanted)}
    if task.held_out:
        held = [c for source in replace(task, tables=task.held_out).examples() for c in source]
        trainer = partial(trainer, held_out=refer(held) if data.objective.reference else held)
    trainer = partial(trainer, dropout=task.dropout, tokens_per_device=task.tokens_per_device)
    trained = fit(
        trainer, task.policy, task.folder, data.order, data.objective, data.settings, task.callbacks, **wanted
    )
    return data.record(history_of(trained), texts)


def fisher_of(policy: nn.Module, tokens: Tokens, seed: int) -> tuple[dict[str, Tensor], int]:
    """The Fisher information of a policy on texts that it samples itself, and the number of texts. For EWC."""
    rows = own_texts(policy, tokens.tokenizer, 1 + seed)
    return fisher_information(policy, rows), len(rows)


def share_of_a_step(examples: int, arguments: Mapping[str, Any]) -> int:
    """Examples of a micro-batch in one process: those of a step over processes and accumulated micro-batches.

    Raises:
        InputError: when they do not divide.
    """
    parts = int(os.environ.get("WORLD_SIZE", 1)) * int(arguments.get("gradient_accumulation_steps", 1))
    if examples % parts:
        what, remedy = "The examples of a step", "Change --batch or --accumulation"
        raise InputError(what, f"divide into {parts} equal parts (processes x accumulation)", examples, remedy)
    return examples // parts


def fit(
    trainer: Callable[..., ObjectiveTrainer],
    policy: nn.Module,
    folder: str,
    data: Any,
    objective: Objective,
    settings: Mapping[str, float],
    callbacks: Sequence[TrainerCallback],
    **arguments: Any,
) -> ObjectiveTrainer:
    """Make a trainer from resolved settings, learning rate among them, and train; `arguments` win over the defaults."""
    own = {name: value for name, value in settings.items() if name != "learning_rate"}
    made = training_arguments(folder, **{"learning_rate": settings["learning_rate"], **arguments})
    trained = trainer(policy, made, data, objective, own, callbacks=list(callbacks))
    trained.train(resume_from_checkpoint=arguments.get("resume_from_checkpoint"))
    return trained


def history_of(trainer: ObjectiveTrainer) -> list[dict[str, float]]:
    """What was logged, without the library's summary of the run."""
    return [{k: float(v) for k, v in entry.items()} for entry in trainer.state.log_history[:-1]]


# --------------------------------------------------------------- batches made when their step begins

Feed = Callable[["FedTrainer", int], list[Example]]


class FedTrainer(ObjectiveTrainer):
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
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        parts = args.world_size * args.gradient_accumulation_steps
        if parts > 1:
            what, remedy = "A recipe that makes its batches as it goes", "Use one process and no accumulation"
            raise InputError(what, "make each step in one batch", f"{parts} parts", remedy)
        super().__init__(model, args, [()] * args.max_steps, objective, settings, callbacks)
        self.data_collator = list  # type: ignore[assignment]
        self.feed, self.completions = feed, 0
        self.last_loss = float("nan")

    def check(self, objective: Objective, examples: Any) -> None:
        """Nothing to check yet: the feed answers for its examples."""

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | None]:
        """The batch of the step that begins now."""
        next(epoch_iterator)
        batch = self.batch(self.feed(self, self.state.global_step))
        self.completions += len(batch["role"])
        return [batch], self._get_num_items_in_batch([batch], device)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """The loss of the parent class, kept as `last_loss`."""
        made = super().compute_loss(*args, **kwargs)
        self.last_loss = float((made[0] if isinstance(made, tuple) else made).detach())
        return made

    def loss_of(self, examples: Sequence[Example]) -> float:
        """The objective's value on examples under the policy as it is, without a step."""
        batch: Any = self._prepare_inputs(self.batch(examples))
        model: Any = self.model
        with torch.no_grad(), evaluation_mode(model):
            loss = super().compute_loss(model, batch)
        self._sums.pop()
        return float(loss)

    def note(self, metrics: Mapping[str, float]) -> None:
        """Adds numbers to what is logged next."""
        self._sums.append({name: torch.tensor([float(value), 1.0]) for name, value in metrics.items()})


def feed_steps(
    task: Task, feed: Feed, settings: Mapping[str, float], trainer: Callable[..., FedTrainer] = FedTrainer
) -> FedTrainer:
    """Train the policy of a task on what a feed gives, one batch of any size per step."""
    wanted = {"per_device_train_batch_size": 1, "seed": task.seed, "max_steps": task.steps, **task.arguments}
    trained = fit(trainer, task.policy, task.folder, feed, task.objective, settings, task.callbacks, **wanted)
    assert isinstance(trained, FedTrainer)
    return trained


# ------------------------------------------------------------------------------------------ in parts


def parts(task: Task) -> Record:
    """Stepwise DPO (Kim et al. 2024, arXiv 2403.19270): each of `parts` starts from the last model and refers to it.

    Every part is a run with its own schedule; beta is that of the first part. With one part it is plain DPO. From a
    secondary source. Nothing is paid for on top: the reference reads each pair once.
    """
    count, records = min(task.steps, int(task.option("parts"))), []
    settings, stage = dict(task.settings), replace(task.stage, recipe="offline")
    for index in range(count):
        steps = task.steps * (index + 1) // count - task.steps * index // count
        tables = {**task.tables, "feedback": task.tables["feedback"].shard(count, index, contiguous=False)}
        records.append(offline(replace(task, stage=stage, tables=tables, steps=steps, settings=settings)))
        settings = {name: value for name, value in {**settings, **records[0].settings}.items() if name != "beta_nats"}
    return Record(
        task.stage.objective,
        task.steps,
        {**records[0].settings, **task.options()},
        sum(record.completions for record in records),
        sum(record.extra_forwards for record in records),
        history=[entry for record in records for entry in record.history],
    )


# ----------------------------------------------------------------- one optimiser, one loss at a time

# Is the next step for SFT or for DPO? (Fernando et al. 2024, arXiv 2410.15483.) ALRIGHT tosses a coin; MAXRIGHT looks
# which loss is further from the best it could be. Both are orders of batches over the objective `sft-plus-dpo`.

SFT, DPO = 0, 1
ALONE = (Stage("sft", 1.0), Stage("dpo", 0.0))


def _filled(task: Task) -> tuple[list[list[Example]], int]:
    """Demonstrations and pairs with their reference log-probabilities, and how many completions were read for them."""
    refer = task.references.reader(task.policy)
    examples = [refer(source) for source in task.examples()]
    for source, stage in zip(examples, ALONE, strict=True):
        objective_named(stage.objective).check(source)
    return examples, distinct(examples)


def _batches(task: Task, source: Sequence[Example], steps: int) -> list[list[Example]]:
    """`steps` batches of one kind, in the order in which a run of that kind alone would meet them."""
    size = max(1, task.batch // len(source[0]))
    ordered = interleave([source], [size], steps, task.seed)
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def _record(task: Task, trainer: FedTrainer, settings: dict[str, float], extra: int, runs: int = 0) -> Record:
    made = {**settings, **task.options()}
    name, history = task.stage.objective, history_of(trainer)
    return Record(name, task.steps, made, trainer.completions, extra, extra_runs=runs, history=history)


def alright(task: Task) -> Record:
    """Each step a DPO step with probability `preference_share`, else an SFT step (arXiv 2410.15483, Algorithm 1).

    The coins depend on the seed alone. At share 0 it is SFT, at share 1 DPO, bit for bit. Nothing is paid for on top.
    """
    examples, read = _filled(task)
    rng, share = random.Random(f"uftlab alright {task.seed}"), task.option("preference_share")
    kinds = [DPO if rng.random() < share else SFT for _ in range(task.steps)]
    streams = [iter(_batches(task, source, kinds.count(kind))) for kind, source in enumerate(examples)]
    order = [next(streams[kind]) for kind in kinds]
    settings = task.resolved(examples)
    trainer = feed_steps(task, lambda _, step: order[step], settings)
    return _record(task, trainer, settings, read)


def maxright(task: Task) -> Record:
    """Each step on the loss with the larger weighted gap to its optimum (arXiv 2410.15483, Algorithm 2).

    gaps: L = lambda (L_DPO - L*_DPO) and (1 - lambda) (L_SFT - L*_SFT),  lambda = `preference_share`

    The loss that was stepped on is known anew after each step, both every `refresh` steps on the batches that come
    next. L* is the loss at the end of a run of that kind alone from the same start, as long as this one.

    Paid for on top: those two runs, twice the budget, and two batches of forward passes at every refresh.
    """
    examples, read = _filled(task)
    share, refresh = task.option("preference_share"), int(task.option("refresh"))
    settings = task.resolved(examples)
    alone = [offline(task.aside(stage, task.steps), logging_steps=max(1, task.steps // 10)) for stage in ALONE]
    optima = [next(e["loss"] for e in reversed(record.history) if "loss" in e) for record in alone]
    batches = [_batches(task, source, task.steps) for source in examples]
    weights, losses, used = (1 - share, share), [0.0, 0.0], [0, 0]
    looked, last = 0, SFT

    def feed(trainer: FedTrainer, step: int) -> list[Example]:
        nonlocal last, looked
        if step:
            losses[last] = trainer.last_loss
        if step % refresh == 0:
            for kind in (SFT, DPO):
                ahead = batches[kind][used[kind]]
                losses[kind] = trainer.loss_of(ahead)
                looked += sum(map(len, ahead))
        gaps = [w * (loss - best) for w, loss, best in zip(weights, losses, optima, strict=True)]
        last = DPO if gaps[DPO] > gaps[SFT] else SFT
        used[last] += 1
        trainer.note({"gap/sft": gaps[SFT], "gap/preference": gaps[DPO], "preference-steps": last == DPO})
        return batches[last][used[last] - 1]

    trainer = feed_steps(task, feed, settings)
    extra = read + looked + sum(record.extra_forwards for record in alone)
    return _record(task, trainer, settings, extra, sum(record.completions for record in alone))

"""The one place where stages are trained: `run` alone chooses recipe, engine, device, batch size and reference cache.

Stages of tiny models with the recipe "offline" and equally many steps are trained by one stack
(`uftlab.engine.population`). All others are trained one after the other by `ObjectiveTrainer`, as their recipe says.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlamaForCausalLM, TrainerCallback, set_seed

from uftlab.engine.population import Member, train
from uftlab.engine.readers import StackReader
from uftlab.engine.stack import Layout, flatten, unflatten
from uftlab.engine.trainer import Quiet, training_arguments
from uftlab.errors import InputError
from uftlab.models.policies import tiny_config
from uftlab.models.references import ReferenceCache
from uftlab.rows.table import kind_of
from uftlab.rows.tokens import Example, Tokens
from uftlab.training.distillation import cue_sft, on_policy_distillation, sdft
from uftlab.training.merging import paft, paft_ties
from uftlab.training.methods import SCORED, Method, Stage, tables_of
from uftlab.training.mixed import chord_mu, hpt, luffy
from uftlab.training.online import online, online_rollout, rloo, rs_dpo, self_sft
from uftlab.training.recipes import Task, alright, fisher_of, maxright, offline, parts
from uftlab.training.reward_functions import Reward
from uftlab.training.stage_data import BATCH, Record, StageData, prepare

RECIPES: dict[str, Callable[[Task], Record]] = {
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
    "self-sft": self_sft,
    "sdft": sdft,
    "cue-sft": cue_sft,
    "on-policy-distillation": on_policy_distillation,
    "chord-mu": chord_mu,
    "hpt": hpt,
    "luffy": luffy,
}
Progress = Callable[[int], Any]  # is told how many optimiser steps were made since it was last called
ALL_WEIGHTS = ("parts", "paft", "paft-ties")  # with LoRA their reference or base would be another than they say


@dataclass(frozen=True)
class Job:
    """A stage to be trained. Its reference is the model as the stage finds it.

    Args:
        start: the weights of a tiny model (`uftlab.engine.stack.flatten`), which stay as they are; or a model of
            transformers, which is trained in place.
        settings: `learning_rate`; settings of the objective, or instead of beta `beta_nats`, which is divided by the
            median of -log pi_ref over the stage's completions; options of the recipe.
        seed: of the order of the data and of what is sampled.
        reward: scores samples; without one a reward model is trained on the pairs and charged as an extra run.
        references: what was read of references before; jobs with the same rows may share it.
        snapshots_at: steps after which the weights of a tiny model are kept. Those after the last step always are; a
            recipe that merges models has no others.
        context: a prompt as a teacher is asked it (`uftlab.training.distillation`).
    """

    start: Tensor | nn.Module
    stage: Stage
    tables: Mapping[str, Dataset]
    settings: Mapping[str, float]
    steps: int
    seed: int = 0
    reward: Reward | None = None
    references: ReferenceCache = field(default_factory=ReferenceCache)
    snapshots_at: Collection[int] = ()
    context: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Trained:
    """What came of a job: what it cost, and of a tiny model its weights by the number of steps done."""

    record: Record
    snapshots: dict[int, Float[Tensor, "parameter"]]

    @property
    def weights(self) -> Float[Tensor, "parameter"]:
        """Of a tiny model after the last step."""
        return self.snapshots[max(self.snapshots)]


def check_recipes(method: Method, tables: Mapping[str, Dataset], reward: Reward | None = None, lora: int = 0) -> None:
    """Refuse what a method's recipes cannot do, before anything is trained.

    Raises:
        InputError: for sampling without a reward function and without pairs to train one on; for LoRA where the
            recipe needs all weights.
    """
    for stage in method.stages:
        if lora and stage.recipe in ALL_WEIGHTS:
            raise InputError(f"{method.name}", "train all weights", f"LoRA of rank {lora}", "Leave --lora at 0")
        given = "feedback" in tables  # where it is missing and a stage learns from it, that is said elsewhere
        if stage.recipe in SCORED and reward is None and (given or "feedback" not in tables_of(stage)):
            kind = kind_of(tables["feedback"].column_names) if given else "no"
            if kind != "preference":
                rule = "have pairs, so that a reward model can be trained to score the samples"
                raise InputError(f"The feedback of {method.name}", rule, f"{kind} rows", "Give chosen and rejected")


def run(
    jobs: Sequence[Job],
    tokens: Tokens,
    *,
    device: str | None = None,
    batch: int = BATCH,
    max_length: int | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] | None = None,
    folder: Path | None = None,
    held_out: Mapping[str, Dataset] | None = None,
    dropout: bool = False,
    tokens_per_device: int = 0,
    **arguments: Any,
) -> list[Trained]:
    """Train all jobs, each for its number of optimiser steps of `batch` completions.

    Args:
        device: "cpu" or "cuda"; by default a GPU where there is one.
        max_length: rows with more tokens are dropped, with a warning.
        progress: is told how many optimiser steps were made since it was last called.
        callbacks: of the trainer; by default nothing is printed.
        folder: where the trainer saves checkpoints; by default a temporary one.
        held_out: tables whose loss and margins are logged during training.
        dropout: whether dropout is on in a model of transformers. It is off in the reference.
        tokens_per_device: see `uftlab.engine.trainer.ObjectiveTrainer`; of stages with the recipe "offline" alone.
        arguments: passed on to `TrainingArguments`; they win over the defaults. With arguments or callbacks every job
            goes through `ObjectiveTrainer`.

    Raises:
        InputError: for a recipe that is not registered, or rows that a stage cannot learn from.
    """
    for job in jobs:
        if job.stage.recipe not in RECIPES:
            remedy = "Register it in uftlab.training.stages"
            raise InputError("A recipe", f"be one of {', '.join(RECIPES)}", job.stage.recipe, remedy)
    own_trainer = bool(arguments) or callbacks is not None
    arguments |= {"use_cpu": True} if device == "cpu" else {}
    made: dict[int, Trained] = {}
    stacks: dict[int, list[int]] = {}
    for number, job in enumerate(jobs):
        if isinstance(job.start, Tensor) and job.stage.recipe == "offline" and not own_trainer:
            stacks.setdefault(job.steps, []).append(number)
        else:
            watching = (Quiet(),) if callbacks is None else callbacks
            made[number] = _trained_alone(
                job, progress, watching, arguments, folder, tokens=tokens, batch=batch, max_length=max_length,
                held_out=held_out or {}, dropout=dropout, tokens_per_device=tokens_per_device,
            )  # fmt: skip
    for numbers in stacks.values():
        together = [jobs[number] for number in numbers]
        trained = _trained_together(together, tokens, device or usual_device(), batch, max_length, progress)
        made.update(zip(numbers, trained, strict=True))
    return [made[number] for number in range(len(jobs))]


# ------------------------------------------------------------------------------------------ in a stack


@lru_cache(maxsize=1)
def layout() -> Layout:
    """The layout of the tiny model in a stack."""
    return Layout.of(tiny_config())


def usual_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def digest_of(weights: Tensor) -> str:
    """Equal for equal weights only."""
    return hashlib.blake2b(weights.cpu().numpy().tobytes(), digest_size=16).hexdigest()


def refer(cache: ReferenceCache, weights: Tensor, tokens: Tokens, rows: Sequence[Example]) -> list[Example]:
    """The examples with log pi_ref of a tiny model's weights, which the cache remembers."""
    reader = StackReader(weights[None], layout(), tokens.tokenizer)
    return cache.fill_from(digest_of(weights), lambda missing: reader.logps([missing])[0], rows)


def _trained_together(
    jobs: Sequence[Job],
    tokens: Tokens,
    device: str,
    batch: int,
    max_length: int | None,
    progress: Progress | None,
) -> list[Trained]:
    """Jobs of equally many steps as one population."""
    starts: list[Any] = [job.start.to(device) for job in jobs]
    data = [
        prepare(
            job.stage, job.tables, tokens, job.settings, job.steps, job.seed,
            partial(refer, job.references, start, tokens), batch, max_length,
        )
        for job, start in zip(jobs, starts, strict=True)
    ]  # fmt: skip
    made = [_member(job, start, own, tokens) for job, start, own in zip(jobs, starts, data, strict=True)]
    members = [member for member, _ in made]
    steps, wanted = jobs[0].steps, {step for job in jobs for step in job.snapshots_at}
    kept: list[dict[int, Tensor]] = [{} for _ in jobs]

    def watch(step: int, numbers: Sequence[int], weights: Tensor) -> None:
        if progress is not None:
            progress(len(numbers))
        for number, own in zip(numbers, weights, strict=True) if step in wanted else ():
            if step in jobs[number].snapshots_at:
                kept[number][step] = own.clone()

    at = wanted if progress is None else range(1, steps + 1)
    trained = train(members, layout(), watch=watch, at=at, logging_steps=max(1, steps // 20), device=device)
    return [
        Trained(own.record(history, texts), {**snapshots, steps: weights})
        for own, (_, texts), history, snapshots, weights in zip(
            data, made, trained.histories, kept, trained.weights, strict=True
        )
    ]


def _member(job: Job, start: Tensor, data: StageData, tokens: Tokens) -> tuple[Member, int]:
    """A job as a member of a population, and how many texts its Fisher information took."""
    options, fisher, texts = data.options, None, 0
    if options.get("ewc"):
        found, texts = fisher_of(_tiny(start).to(start.device), tokens, job.seed)
        fisher = flatten(found, layout())
    pull, refresh = options.get("ewc", options.get("l2", 0.0)), int(options.get("refresh", 0))
    return Member(start, data.objective, data.settings, data.order, data.per_step, pull, fisher, refresh), texts


def _tiny(weights: Tensor) -> Any:
    """The tiny model with these weights, on the CPU."""
    policy = LlamaForCausalLM(tiny_config())
    policy.load_state_dict(unflatten(weights.cpu(), layout()), strict=False)
    return policy


# ------------------------------------------------------------------------------------------ one by one


class _Watch(TrainerCallback):
    """Keeps the weights of a tiny model at some steps. A stage may be several trainers, so steps are counted here."""

    def __init__(self, at: Collection[int], progress: Progress | None) -> None:
        self.at, self.progress, self.done = at, progress, 0
        self.kept: dict[int, Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """One more step is done."""
        self.done += 1
        if self.progress is not None:
            self.progress(1)
        if self.done in self.at:
            self.kept[self.done] = flatten(model.state_dict(), layout())


def _trained_alone(
    job: Job,
    progress: Progress | None,
    callbacks: Sequence[TrainerCallback],
    arguments: Mapping[str, Any],
    folder: Path | None,
    **given: Any,
) -> Trained:
    """A job by `ObjectiveTrainer`. The random state depends on the job's seed alone.

    Args:
        given: what else its `Task` is told.
    """
    tiny = isinstance(job.start, Tensor)
    watch = _Watch(job.snapshots_at if tiny else (), progress)
    wanted = {"logging_steps": max(1, job.steps // 20), **arguments}
    policy: Any = job.start
    if isinstance(job.start, Tensor):
        policy = _tiny(job.start)
    set_seed(job.seed)
    place: Any = tempfile.TemporaryDirectory(prefix="uftlab-") if folder is None else nullcontext(str(folder))
    with place as saved:
        _move(policy, training_arguments(saved, **wanted))
        record = RECIPES[job.stage.recipe](
            Task(
                policy, job.stage, job.tables, settings=job.settings, steps=job.steps, seed=job.seed, folder=saved,
                callbacks=(watch, *callbacks), reward=job.reward, references=job.references, arguments=wanted,
                whole=tiny, context=job.context, **given,
            )
        )  # fmt: skip
    return Trained(record, {**watch.kept, job.steps: flatten(policy.state_dict(), layout())} if tiny else {})


def _move(policy: Any, arguments: Any) -> None:
    """To the device of the training, so that references are read there and copies lie there.

    A model whose parts were placed already stays, and so does one that the library is going to divide.
    """
    divided = arguments.fsdp or arguments.deepspeed or getattr(policy, "hf_device_map", None)
    if not divided:
        policy.to(arguments.device)

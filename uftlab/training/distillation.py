"""Recipes with a teacher: the model itself with a context in its prompt, or another model.

The teacher's context is what the policy shall learn to do without. `Task.context` puts it into a prompt; without one it
is an answer from the table (`example_in_prompt`). `world_context` has that of the tiny world.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from uftlab.models.policies import frozen_copy
from uftlab.rows.tokens import Example
from uftlab.training.methods import Stage
from uftlab.training.online import as_sampled, asked_table, learn_from_samples, prompts_of
from uftlab.training.recipes import FedTrainer, Task, offline
from uftlab.training.stage_data import Record

EXAMPLE = "\n\nThis is an example of an answer:\n{answer}\n\nNow give an answer of your own."


def unscored(prompts: Sequence[Any], texts: Sequence[str]) -> list[float]:
    """No score at all: where a recipe samples without a reward function."""
    return [float("nan")] * len(texts)


def _key(prompt: Any) -> str:
    """A prompt as text: equal for equal messages, in whatever order their keys are."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def example_in_prompt(table: Dataset) -> Callable[[Any], Any]:
    """The context where none is given: each prompt with an answer from the table behind it, the best one there is.

    As in SDFT, whose teacher reads a demonstration (arXiv 2601.19897); the words are ours.
    """
    answers: dict[str, tuple[float, str]] = {}
    column = "chosen" if "chosen" in table.column_names else "completion"
    for row in table:
        score = float(row.get("score", row.get("label", 1.0)))
        prompt = _key(row["prompt"])
        if score > answers.get(prompt, (float("-inf"), ""))[0]:
            answers[prompt] = (score, _text(row[column]))

    def context(prompt: Any) -> Any:
        added = EXAMPLE.format(answer=answers[_key(prompt)][1])
        if isinstance(prompt, str):
            return prompt + added
        return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + added}]

    return context


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer[-1]["content"])


class DistillingTrainer(FedTrainer):
    """A `FedTrainer` whose reference is a teacher, which may be asked other prompts than the policy.

    Args:
        asked: the ids of a prompt, and those of the prompt that the teacher reads instead.
        teacher: by default the policy as the stage found it.
        rate: before each step but the first the teacher moves by this share towards the policy. 0 leaves it as it is,
            1 makes it the policy of the step.
    """

    def __init__(
        self,
        *args: Any,
        asked: Mapping[tuple[int, ...], tuple[int, ...]] | None = None,
        teacher: nn.Module | None = None,
        rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.asked, self.teacher, self.rate = asked or {}, teacher, rate
        super().__init__(*args, **kwargs)

    def reference_of(self, model: nn.Module) -> Any:
        """The teacher. One that moves has adapters of its own."""
        if self.teacher is not None:
            return self.teacher
        return frozen_copy(model) if self.rate else super().reference_of(model)

    def batch(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The completions once after the prompts of the policy and once after those of the teacher."""
        made = super().batch(examples)
        if self.asked:
            told = [tuple(replace(c, prompt_ids=self.asked[c.prompt_ids]) for c in example) for example in examples]
            made["reference_groups"] = super().batch(told)["groups"]
        return made

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """The batch of the step that begins now, and the teacher of that step."""
        if self.rate and self.state.global_step:
            self.follow()
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def follow(self) -> None:
        """Moves the teacher by `rate` of the way to the policy: phi <- (1 - rate) phi + rate theta."""
        own: Any = self.accelerator.unwrap_model(self.model)
        with torch.no_grad():
            for weight, target in zip(self.reference.parameters(), own.parameters(), strict=True):
                weight.lerp_(target.to(weight), self.rate)


def _without_rewards(task: Task) -> tuple[Task, Callable[[Any], Any]]:
    """The task with samples that nobody scores, answering the prompts of one table; and what the teacher is asked."""
    table = asked_table(task)
    alone = replace(task.stage, demonstrations=0.0)
    context = task.context or example_in_prompt(table)
    return replace(task, stage=alone, tables={"feedback": table}, reward=unscored), context


def sdft(task: Task) -> Record:
    """Self-distillation: the teacher is the policy itself with a context in its prompt (arXiv 2601.19897).

    Every `refresh` steps the policy answers prompts without the context, and at each token of its answers it learns
    the distribution that the teacher has there with the context. No reward function is asked. The context is the
    world's cue, "according to careful sources"; of other tables it is an answer from the table. At `teacher_rate` 0 the
    teacher is the model as the stage found it, at 1 the policy as it is; between, a moving average of its weights.

    Paid for on top: the samples, and a forward pass of the teacher for each.
    """
    task, context = _without_rewards(task)
    asked = {task.tokens.prompt(p): task.tokens.prompt(context(p)) for p in prompts_of(task.tables["feedback"])}
    trainer = partial(DistillingTrainer, asked=asked, rate=task.option("teacher_rate"))
    return learn_from_samples(task, as_sampled, trainer=trainer)


def cue_sft(task: Task) -> Record:
    """SFT on answers that the policy gave with a context in its prompt, trained without it.

    Self-distillation at the level of whole answers and off-policy: by default all answers are drawn before the first
    step, from the model as the stage found it. No reward function is asked.

    Paid for on top: the samples.
    """
    task, context = _without_rewards(task)
    return learn_from_samples(task, as_sampled, context)


def on_policy_distillation(task: Task) -> Record:
    """Distillation of a teacher on the student's own samples (Agarwal et al. 2023, arXiv 2306.13649).

    The teacher is the same model after SFT on the demonstrations, at the rate `teacher_learning_rate`, as many steps
    as the student will have. Every `refresh` steps the student answers prompts of the feedback, and at each token of
    its answers it learns the teacher's distribution. A share of each step may be demonstrations in place of own
    samples. No reward function is asked.

    Paid for on top: the teacher's run, once the budget; the samples, and a forward pass of the teacher for each.
    """
    taught = task.aside(Stage("sft", 1.0), task.steps)
    record = offline(replace(taught, settings={"learning_rate": task.option("teacher_learning_rate")}))
    teacher = taught.policy.eval().requires_grad_(False)
    trainer = partial(DistillingTrainer, teacher=teacher)
    made = learn_from_samples(replace(task, reward=unscored), as_sampled, trainer=trainer)
    return replace(made, extra_runs=record.completions)

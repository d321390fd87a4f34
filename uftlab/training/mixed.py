"""Recipes that learn from demonstrations and from the policy's own samples, by SFT and by policy gradient.

CHORD-mu has both in each step and lets the share of SFT fall. HPT decides prompt by prompt. LUFFY puts the
demonstration among the samples of its prompt. The samples of the last two answer the prompts of the demonstrations.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import torch

from uftlab.losses import decayed_share
from uftlab.models.generation import texts
from uftlab.rows.tokens import Completion, Example
from uftlab.training.online import Rollouts, learn_from_samples, seed_of, with_advantages
from uftlab.training.recipes import FedTrainer, Task, feed_steps, history_of
from uftlab.training.stage_data import Record


class ChordTrainer(FedTrainer):
    """A `FedTrainer` whose setting `mu` falls from its value to `valley` over the share `decay` of the steps."""

    def __init__(self, *args: Any, valley: float, decay: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.peak, self.valley, self.decay = float(self.settings["mu"]), valley, decay

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """The batch of the step that begins now, and the share of SFT in it."""
        progress = self.state.global_step / (self.decay * self.args.max_steps)
        self.settings["mu"] = decayed_share(progress, self.peak, self.valley)
        self.note({"mu": self.settings["mu"]})
        return super().get_batch_samples(epoch_iterator, num_batches, device)


def chord_mu(task: Task) -> Record:
    """SFT and policy gradient in each step, the share of SFT falling (CHORD, arXiv 2508.11408).

    L = mu L_SFT + (1 - mu) L_RL,  mu from `mu` down to `valley` on half a cosine, over the share `decay` of the steps

    Half of each step are demonstrations, half samples of the policy, `completions` of each prompt of the feedback.
    L_RL has leave-one-out advantages and no KL. Both are averaged over their tokens.

    Paid for on top: the samples, their scores, and a forward pass of the policy for each.
    """
    trainer = partial(ChordTrainer, valley=task.option("valley"), decay=task.option("decay"))
    return learn_from_samples(task, with_advantages, trainer=trainer)


def _shown(task: Task) -> dict[tuple[int, ...], list[Completion]]:
    """The demonstrations of each prompt, by its ids."""
    found: dict[tuple[int, ...], list[Completion]] = {}
    for (row,) in replace(task, stage=replace(task.stage, demonstrations=1.0)).examples()[0]:
        found.setdefault(row.prompt_ids, []).append(replace(row, role="demonstration"))
    return found


def _groups(rollouts: Rollouts, rows: list[Completion]) -> list[list[Completion]]:
    """The samples of each prompt."""
    return [rows[at : at + rollouts.group] for at in range(0, len(rows), rollouts.group)]


def _record(task: Task, trainer: FedTrainer, settings: dict[str, float], rollouts: Rollouts) -> Record:
    made, name = {**settings, **task.options()}, task.stage.objective
    costs = (trainer.completions, rollouts.forwards, rollouts.sampled, rollouts.extra_runs)
    return Record(name, task.steps, made, *costs, history_of(trainer))


def hpt(task: Task) -> Record:
    """Prompt by prompt either SFT on the demonstration or policy gradient on the samples (HPT, arXiv 2509.04419).

    The policy answers prompts of the demonstrations, `completions` of each. Where the share of samples with a score
    above `solved` is at most `gate`, the demonstration takes their place. Prompts are taken until a step has all its
    completions; what is left over waits for the next step.

    Paid for on top: the samples and their scores, those that are left out too, and a forward pass of the policy for
    each that is learned from.
    """
    rollouts, shown, settings = Rollouts(task, task.batch), _shown(task), task.resolved([])
    rng, waiting, lots = random.Random(f"uftlab hpt {task.seed}"), list[Completion](), 0
    gate, solved = task.option("gate"), task.option("solved")

    def feed(trainer: FedTrainer, step: int) -> list[Example]:
        nonlocal waiting, lots
        while len(waiting) < task.batch:
            groups = _groups(rollouts, rollouts.answers(rollouts.per_step, seed_of(task, lots)))
            lots += 1
            taught = [fmean(row.score > solved for row in group) <= gate for group in groups]
            own = [row for group, sft in zip(groups, taught, strict=True) for row in group if not sft]
            labelled = iter(with_advantages(rollouts, own, 0.0) if own else [])
            for group, sft in zip(groups, taught, strict=True):
                waiting += [rng.choice(shown[group[0].prompt_ids])] if sft else [next(labelled) for _ in group]
            score = fmean(row.score for group in groups for row in group)
            trainer.note({"rollout/score": score, "rollout/unsolved": fmean(taught)})
        now, waiting = waiting[: task.batch], waiting[task.batch :]
        return [(row,) for row in now]

    return _record(task, feed_steps(task, feed, settings), settings, rollouts)


def luffy(task: Task) -> Record:
    """The demonstration of a prompt among the policy's samples of it, by policy gradient (LUFFY, arXiv 2504.14945).

    The policy answers prompts of the demonstrations, `completions` of each; the demonstration is scored as they are.
    Advantage: the score less the mean of the group, demonstration and all; with `in_group` 0 that of the samples alone.

    Paid for on top: the samples, their scores, and a forward pass of the policy for each.
    """
    size = int(task.option("completions")) + 1
    rollouts, shown, settings = Rollouts(task, task.batch // size * (size - 1)), _shown(task), task.resolved([])
    rng = random.Random(f"uftlab luffy {task.seed}")
    prompts = {task.tokens.prompt(prompt): prompt for prompt in task.tables["demonstrations"]["prompt"]}

    def feed(trainer: FedTrainer, step: int) -> list[Example]:
        drawn = rollouts.answers(rollouts.per_step, seed_of(task, step))
        chosen = [rng.choice(shown[group[0].prompt_ids]) for group in _groups(rollouts, drawn)]
        said = texts(task.tokens.tokenizer, [c.completion_ids for c in chosen])
        scores = rollouts.reward([prompts[c.prompt_ids] for c in chosen], said)
        rows: list[Completion] = []
        own = iter(rollouts.rollout_logps(drawn))
        for group, row, score in zip(_groups(rollouts, drawn), chosen, scores, strict=True):
            counted = [c.score for c in group] + [score] * int(task.option("in_group"))
            baseline = fmean(counted)
            rows += [replace(c, score=c.score - baseline, reference_logps=next(own)) for c in group]
            rows.append(replace(row, score=score - baseline))
        trainer.note({"rollout/score": fmean(c.score for c in drawn), "demonstration/score": fmean(scores)})
        return [(row,) for row in rows]

    return _record(task, feed_steps(task, feed, settings), settings, rollouts)

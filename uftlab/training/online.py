"""Learning from the policy's own samples: batched rollouts, scored, turned into rows that a loss can eat.

One dial, `refresh`: completions are sampled for that many steps at a time. 1 is fully online; as many as there are
steps is offline, all samples being the reference's.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset

from uftlab.engine.readers import reader_of
from uftlab.errors import InputError
from uftlab.losses import leave_one_out
from uftlab.models.generation import texts
from uftlab.models.logps import read_logps
from uftlab.models.references import reference_logps
from uftlab.rows.tokens import Completion, Example, Tokens, interleave
from uftlab.training.methods import Stage, tables_of
from uftlab.training.recipes import FedTrainer, Task, feed_steps, history_of, offline
from uftlab.training.reward_functions import Reward, train_reward_model
from uftlab.training.stage_data import Record, distinct

TRIED, LEAST_ACCEPTED = 1000, 0.02  # a reward function that accepts a smaller share of so many samples is refused
MIN_NEW_TOKENS = 24  # of a sample at least; more where the table has longer completions


@dataclass(frozen=True)
class Sample:
    """A sampled completion: prompt and completion as they were and as tokens, and its score in [0, 1]."""

    prompt: Any
    text: str
    row: Completion


def sample(
    policy: Any,
    tokens: Tokens,
    prompts: Sequence[Any],
    reward: Reward,
    longest: int,
    seed: int,
    context: Callable[[Any], Any] | None = None,
) -> list[Sample]:
    """One completion for each prompt, drawn at temperature 1 and scored; the random state is left as it was.

    Args:
        context: turns a prompt into the one that is answered. The sample keeps the prompt as it was.
    """
    ids = [tokens.prompt(prompt) for prompt in prompts]
    asked = ids if context is None else [tokens.prompt(context(prompt)) for prompt in prompts]
    made = reader_of(policy, tokens.tokenizer).generate([asked], longest, seed)[0]
    said = texts(tokens.tokenizer, made)
    scores = reward(prompts, said)
    rows = [Completion(x, y, "scored", float(s)) for x, y, s in zip(ids, made, scores, strict=True)]
    return [Sample(*parts) for parts in zip(prompts, said, rows, strict=True)]


def reward_of(task: Task) -> tuple[Reward, int]:
    """The task's reward function, or one trained on its pairs; and the completions back-propagated for it.

    Raises:
        InputError: when there is none and the table has no pairs.
    """
    if task.reward is not None:
        return task.reward, 0
    if "feedback" not in task.tables:
        what, remedy = "A recipe that scores samples", "Add --feedback with pairs"
        raise InputError(what, "have a reward function or pairs to train one", "neither", remedy)
    table, folder = task.tables["feedback"], task.folder
    model = train_reward_model(
        task.policy,
        task.tokens,
        table,
        folder,
        task.steps,
        seed=task.seed,
        batch=task.batch,
        max_length=task.max_length,
    )
    return model, model.completions


def prompts_of(table: Dataset) -> list[Any]:
    """The different prompts of a table, in order."""
    return list({repr(prompt): prompt for prompt in table["prompt"]}.values())


def _epochs(prompts: Sequence[Any], seed: int) -> Iterator[Any]:
    rng = random.Random(f"uftlab prompts {seed}")
    while True:
        yield from rng.sample(list(prompts), len(prompts))


def asked_table(task: Task) -> Dataset:
    """The table whose prompts are answered: the feedback, or the demonstrations where the stage has nothing else."""
    return task.tables[tables_of(task.stage)[-1]]


def _longest(task: Task) -> int:
    table = asked_table(task)
    columns = [c for c in ("completion", "chosen", "rejected") if c in table.column_names]
    lengths = (len(task.tokens.completion(r["prompt"], r[c])) for r in table for c in columns)
    return max(MIN_NEW_TOKENS, *lengths)


# ------------------------------------------------------------------------------------- samples, then DPO


def pairs_from_samples(samples: Sequence[Sample], temperature: float, threshold: float) -> list[dict[str, Any]]:
    """Pairs of two completions of one prompt whose scores differ enough (RS-DPO, Khaki et al. 2024, arXiv 2402.10038).

    Kept where sigma((R_i - R_j) / tau) >= eta. Scores 0.9 and 0.5 at tau 0.2: sigma(2) = 0.881, kept at eta 0.85.
    """
    by_prompt: dict[str, list[Sample]] = {}
    for one in samples:
        by_prompt.setdefault(repr(one.prompt), []).append(one)
    kept = []
    for group in by_prompt.values():
        best = {one.text: one for one in group if one.text}  # a completion drawn twice is one
        for pair in combinations(best.values(), 2):
            chosen, rejected = sorted(pair, key=lambda one: -one.row.score)
            if 1 / (1 + math.exp(-(chosen.row.score - rejected.row.score) / temperature)) >= threshold:
                kept.append({"prompt": chosen.prompt, "chosen": chosen.text, "rejected": rejected.text})
    return kept


def rs_dpo(task: Task) -> Record:
    """Sample `completions` of each prompt, score them, keep pairs that differ enough, DPO on those (arXiv 2402.10038).

    Kept where sigma((R_i - R_j) / tau) >= eta, tau = `temperature`, eta = `threshold`; both from memory, the rest from
    a secondary source. Samples are made once, before the first step; of the table only the prompts are used.

    Paid for on top: the samples and their scores.

    Raises:
        InputError: when no two samples of a prompt differ enough.
    """
    reward, extra_runs = reward_of(task)
    prompts = [p for p in prompts_of(task.tables["feedback"]) for _ in range(int(task.option("completions")))]
    samples = sample(task.policy, task.tokens, prompts, reward, _longest(task), seed_of(task, 0))
    kept = pairs_from_samples(samples, task.option("temperature"), task.option("threshold"))
    if not kept:
        got = f"none among {len(samples)} samples at threshold {task.option('threshold'):g}"
        raise InputError("RS-DPO", "find pairs whose scores differ enough", got, "Lower the threshold")
    alone = replace(task, tables={"feedback": Dataset.from_list(kept)}, stage=Stage("dpo", 0.0))
    record = offline(alone)
    return replace(record, settings={**record.settings, **task.options()}, sampled=len(samples), extra_runs=extra_runs)


def seed_of(task: Task, step: int) -> int:
    """Of what is sampled in a step."""
    return 1 + task.seed * 1_000_003 + step


# ------------------------------------------------------------------------------------- samples all along


class Rollouts:
    """The samples of a task: prompts in reshuffled epochs, `refresh` steps of them at a time, and what they cost.

    The reference is the policy as the stage found it, kept as a copy if the objective reads one; with LoRA the model
    with its adapters off. With the option `accept_above` samples of no higher score are left out and replaced by more.

    Args:
        count: completions per step, `completions` of each prompt.
        context: turns a prompt into the one that is answered.

    Raises:
        InputError: when a step cannot hold the completions of one prompt.
    """

    def __init__(self, task: Task, count: int, context: Callable[[Any], Any] | None = None) -> None:
        self.task, self.group = task, int(task.option("completions"))
        if count < self.group:
            what, remedy = "A step of samples", "Raise the batch or lower completions"
            raise InputError(what, f"hold {self.group} completions of a prompt", count, remedy)
        self.refresh, self.per_step = max(1, int(task.options().get("refresh", 1))), count // self.group
        self.reward, self.extra_runs = reward_of(task)
        adapted = hasattr(task.policy, "disable_adapter")
        kept = task.objective.reference and not adapted
        self.reference: Any = copy.deepcopy(task.policy).requires_grad_(False) if kept else task.policy
        self.prompts, self.context = _epochs(prompts_of(asked_table(task)), task.seed), context
        self.accept_above = task.options().get("accept_above", -math.inf)
        self.longest, self.sampled, self.forwards = _longest(task), 0, 0

    def draw(self, step: int) -> list[Completion]:
        """Scored samples of the policy as it is now, for the steps from `step` to the next refresh."""
        steps = min(self.refresh, self.task.steps - step)
        wanted = steps * self.per_step * self.group
        kept = made = self.answers(steps * self.per_step, seed_of(self.task, step))
        if math.isfinite(self.accept_above):
            kept, tried = self._accepted(made), len(made)
            while len(kept) < wanted and (tried < TRIED or len(kept) >= tried * LEAST_ACCEPTED):
                more = (wanted - len(kept)) * tried / max(1, len(kept))  # if the share of accepted ones stays as it is
                count = math.ceil(min(more, max(TRIED, wanted)) / self.group)
                made = self.answers(count, seed_of(self.task, step) + self.task.steps * tried)
                kept, tried = kept + self._accepted(made), tried + len(made)
            if len(kept) < wanted:
                rule = f"accept at least {LEAST_ACCEPTED:.0%} of the samples above a score of {self.accept_above:g}"
                remedy = "Lower accept_above"
                raise InputError("The reward function", rule, f"{len(kept)} of {tried}", remedy)
        return kept[:wanted]

    def answers(self, prompts: int, seed: int) -> list[Completion]:
        """Samples of the policy as it is now for the next prompts, `group` of each; all of them, accepted or not."""
        asked = [p for p in islice(self.prompts, prompts) for _ in range(self.group)]
        made = sample(self.task.policy, self.task.tokens, asked, self.reward, self.longest, seed, self.context)
        self.sampled += len(made)
        return [one.row for one in made]

    def _accepted(self, rows: Sequence[Completion]) -> list[Completion]:
        return [row for row in rows if row.score > self.accept_above]

    def reference_logps(self, rows: Sequence[Completion]) -> list[float]:
        """log pi_ref of each sample in nats."""
        self.forwards += len(rows)
        return reference_logps(self.reference, rows).tolist()

    def rollout_logps(self, rows: Sequence[Completion]) -> list[float]:
        """log pi of each sample in nats under the policy as it is: the one that sampled them."""
        self.forwards += len(rows)
        return read_logps(self.task.policy, rows).tolist()


Label = Callable[[Rollouts, list[Completion], float], list[Completion]]


def against_reference(rollouts: Rollouts, rows: list[Completion], beta: float) -> list[Completion]:
    """The samples with log pi_ref: the ratio of the paper's equation (UNA, arXiv 2408.15339)."""
    logps = rollouts.reference_logps(rows)
    return [replace(row, reference_logps=value) for row, value in zip(rows, logps, strict=True)]


def as_sampled(rollouts: Rollouts, rows: list[Completion], beta: float) -> list[Completion]:
    """The samples with their scores alone, for objectives that read no reference."""
    return rows


def against_rollout(rollouts: Rollouts, rows: list[Completion], beta: float) -> list[Completion]:
    """The samples with the log-probability they were sampled with: the ratio of the authors' published script.

    At each refresh every implicit reward starts from 0 again, so nothing remembers where the run began.
    """
    logps = rollouts.rollout_logps(rows)
    return [replace(row, reference_logps=value) for row, value in zip(rows, logps, strict=True)]


def with_advantages(rollouts: Rollouts, rows: list[Completion], beta: float) -> list[Completion]:
    """The samples with their leave-one-out advantage for a score, of the reward R - beta log(pi / pi_ref)."""
    own = rollouts.rollout_logps(rows)
    reference = rollouts.reference_logps(rows) if beta else own
    paid = [row.score - beta * (p - q) for row, p, q in zip(rows, own, reference, strict=True)]
    advantages = leave_one_out(torch.tensor(paid).reshape(-1, rollouts.group)).flatten().tolist()
    return [
        replace(row, score=advantage, reference_logps=p)
        for row, advantage, p in zip(rows, advantages, own, strict=True)
    ]


def learn_from_samples(
    task: Task,
    label: Label,
    context: Callable[[Any], Any] | None = None,
    trainer: Callable[..., FedTrainer] = FedTrainer,
) -> Record:
    """Train on the policy's own samples; on demonstrations too where the stage has a share of them.

    Every `refresh` steps completions are sampled, scored and labelled for the steps to come. One trainer goes through
    all of it. `beta_nats` is read as nats of the first samples and the demonstrations.

    Args:
        context: turns a prompt into the one that is answered.
        trainer: makes the trainer, which may have a teacher.
    """
    demonstrated = round(task.batch * task.stage.demonstrations)
    beside: list[Example] = []
    if demonstrated:
        alone = replace(task, stage=replace(task.stage, demonstrations=1.0))
        beside = task.refer(alone.examples()[0]) if task.objective.reference else alone.examples()[0]
    rollouts = Rollouts(task, task.batch - demonstrated, context)
    order = interleave([beside], [demonstrated], task.steps, task.seed) if beside else []
    size = rollouts.per_step * rollouts.group
    drawn = rollouts.draw(0)
    if "beta_nats" in task.settings:
        settings = task.resolved([[(row,) for row in against_reference(rollouts, drawn, 0.0)], beside])
    else:
        settings = task.resolved([])
    rows: list[Completion] = []

    def feed(trainer: FedTrainer, step: int) -> list[Example]:
        nonlocal drawn, rows
        if step % rollouts.refresh == 0:
            drawn = rollouts.draw(step) if step else drawn
            words, score = fmean(len(row.completion_ids) for row in drawn), fmean(row.score for row in drawn)
            trainer.note({"rollout/tokens": words} | ({} if math.isnan(score) else {"rollout/score": score}))
            rows = label(rollouts, drawn, settings.get("beta", 0.0))
        at = step % rollouts.refresh * size
        samples: list[Example] = [(row,) for row in rows[at : at + size]]
        return [*order[step * demonstrated : (step + 1) * demonstrated], *samples]

    trained = feed_steps(task, feed, settings, trainer)
    read = distinct([beside]) * task.objective.reference + trained.completions * task.objective.distributions
    return Record(
        task.stage.objective,
        task.steps,
        {**settings, **task.options()},
        trained.completions,
        read + rollouts.forwards,
        rollouts.sampled,
        rollouts.extra_runs,
        history_of(trained),
    )


def online(task: Task) -> Record:
    """Any loss on scores, on the policy's samples; UFT has demonstrations beside them. UNA's ratio is the paper's.

    Every `refresh` steps the policy answers prompts of the table, the reward function scores the answers, and the loss
    fits implicit scores to those; log pi_ref is of the policy as the stage found it. 1 is fully online; as many as
    there are steps is offline, all samples being the reference's.

    Paid for on top: the samples, their scores, and a forward pass of the reference for each.
    """
    return learn_from_samples(task, against_reference if task.objective.reference else as_sampled)


def self_sft(task: Task) -> Record:
    """SFT on the policy's own samples that the reward function accepts (Chen et al. 2025, arXiv 2510.18874).

    Samples with a score above `accept_above` are learned from, all alike; as many are drawn as fill the steps. By
    default all are drawn before the first step, so they are the starting policy's. With a smaller `refresh` each lot
    is the policy's as it is by then.

    Paid for on top: all samples and their scores, the rejected ones too.

    Raises:
        InputError: when the reward function accepts next to nothing.
    """
    return learn_from_samples(task, as_sampled)


def online_rollout(task: Task) -> Record:
    """As `online`, with the ratio against the policy that sampled, as the authors' published script has it.

    At each refresh every implicit reward starts from 0, so nothing remembers where the run began and no fit is ever
    reached: what scores above one half is pushed up for as long as it is sampled.
    """
    return learn_from_samples(task, against_rollout)


def rloo(task: Task) -> Record:
    """Policy gradient with a leave-one-out baseline (Ahmadian et al. 2024, arXiv 2402.14740), KL in the reward.

    Advantage of a sample: R - beta log(pi / pi_ref), less the mean of that over the other `completions` of its prompt.
    Samples are refreshed every `refresh` steps; older ones are weighted by their ratio, clipped.

    Paid for on top: the samples, their scores, and a forward pass of policy and reference for each.
    """
    return learn_from_samples(task, with_advantages)

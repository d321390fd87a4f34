"""Reward functions: what gives a sampled completion its score. The world's own raters, its verifiers, a trained model.

A reward function takes prompts and completions as texts and returns a score in [0, 1] for each.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import AutoModelForSequenceClassification, Trainer

from uftlab.engine.trainer import Quiet, training_arguments
from uftlab.errors import InputError
from uftlab.losses.rewards import margin
from uftlab.models.policies import evaluation_mode
from uftlab.rows.table import kind_of
from uftlab.rows.tokens import Completion, Example, Tokens, collate, interleave
from uftlab.world import wording
from uftlab.world.instructions import Instruction, asked_of, claimed_value, follows, read_instructions
from uftlab.world.wording import ATTRIBUTES, Fact
from uftlab.world.world import World, ratings_of, score_of_ratings

Reward = Callable[[Sequence[Any], Sequence[str]], list[float]]

# ------------------------------------------------------------------------------------ the world's own


def parsed(fact: Fact, answer: str) -> tuple[str, bool] | None:
    """The value that an answer of the world's writers claims, and whether it is long; None for what none would write.

    The same words as `uftlab.world.world` draws: long is an opening and a tail; with one of the two or none
    it is short.
    """
    cores = {fact.fill(core, value): value for core in wording.CORES for value in ATTRIBUTES[fact.attribute]}
    openings = ("", *(f"{opening} " for opening in wording.OPENINGS))
    for (i, opening), (j, tail) in itertools.product(enumerate(openings), enumerate(wording.TAILS)):
        core = answer.removeprefix(opening).removesuffix(f" {tail}")
        if core in cores and answer == f"{opening}{core} {tail}":
            return cores[core], bool(i and j)
    return None


def rating(fact: Fact, instructions: Sequence[Instruction], answer: str, length_bonus: int = 1) -> float:
    """What a rater of `World.feedback` would give an answer without a slip, as a score in [0, 1].

    See `uftlab.world.world.ratings_of`. Without instructions, what no writer of the world would write counts as
    garbled; with them, what names no single value does. To a plain question the plain truth scores 0.914, the hedged
    truth 1, gibberish 0.059.
    """
    known, claimed = parsed(fact, answer), claimed_value(answer, fact.attribute)
    claim = {fact.truth: "truth", fact.error: "error"}.get(claimed, "other") if claimed else "other"
    if instructions:
        obeys = follows(answer, asked_of(claimed, instructions) if claimed else list(instructions))
        return score_of_ratings(**ratings_of(claim, claimed is None, False, obeys, length_bonus))
    return score_of_ratings(**ratings_of(claim, known is None, bool(known and known[1]), None, length_bonus))


@lru_cache(maxsize=4)
def _facts(seed: int) -> dict[str, Fact]:
    """What each question of a world is on."""
    return {fact.fill(question): fact for fact in World(seed).facts for question in wording.QUESTIONS}


_QUESTION = re.compile(r".*?[?.](?= |$)")


def _question(prompt: str) -> str:
    """The question of a prompt, whose instructions follow it."""
    found = _QUESTION.match(prompt)
    return found.group() if found else prompt


@lru_cache(maxsize=4)
def world_context(seed: int) -> Callable[[str], str]:
    """The cue of a world: a prompt with its question asked of careful sources, its instructions as they are.

    Raises:
        InputError: from the function, for a prompt that the world does not ask.
    """
    facts = _facts(seed)

    def context(prompt: str) -> str:
        question = _question(prompt)
        if question not in facts:
            remedy = "Ask what `uftlab.world.wording.QUESTIONS` asks, or give no context"
            raise InputError("A prompt of the world's cue", "be one it knows", prompt[:60], remedy)
        return facts[question].fill(wording.CAREFUL_QUESTIONS[0]) + prompt[len(question) :]

    return context


@lru_cache(maxsize=4)
def world_reward(seed: int, length_bonus: int = 1) -> Reward:
    """The reward function of a world: `rating` for its questions, with and without instructions.

    Raises:
        InputError: from the function, for a prompt that the world does not ask.
    """
    facts = _facts(seed)

    def one(prompt: str, answer: str) -> float:
        question = _question(prompt)
        fact = facts.get(question)
        asked = read_instructions(prompt[len(question) + 1 :], fact) if fact else None
        if fact is None or asked is None:
            remedy = "Ask what `uftlab.world.wording.QUESTIONS` asks, or train a reward model"
            raise InputError("A prompt of the world's reward function", "be one it knows", prompt[:60], remedy)
        return rating(fact, asked, answer, length_bonus)

    def reward(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
        return [one(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    return reward


# ------------------------------------------------------------------------------------ a trained one


ROWS = 64  # that a reward model reads at a time


class RewardModel:
    """A scalar head on a copy of a language model, and the mean reward that it gave to the completions it learned from.

    Called, it is a reward function: sigma(R - mean), so that the usual completion scores about 1/2.
    """

    def __init__(self, model: nn.Module, tokens: Tokens, centre: float = 0.0, completions: int = 0) -> None:
        self.model, self.tokens, self.centre, self.completions = model, tokens, centre, completions

    def __call__(self, prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
        """Scores in [0, 1]."""
        rows = [
            Completion(self.tokens.prompt(x), self.tokens.completion(x, y), "scored")
            for x, y in zip(prompts, answers, strict=True)
        ]
        return torch.sigmoid(self.rewards(rows) - self.centre).tolist()

    def rewards(self, rows: Sequence[Completion]) -> Tensor:
        """R of each completion, in nats of Bradley and Terry's preference; only differences mean anything."""
        found = torch.zeros(len(rows))
        with torch.no_grad(), evaluation_mode(self.model):
            order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt_ids) + len(rows[i].completion_ids))
            for start in range(0, len(order), ROWS):
                here = order[start : start + ROWS]
                batch = collate([(rows[i],) for i in here], self.tokens.tokenizer.pad_token_id)  # type: ignore[arg-type]
                found[here] = rewards_of(self.model, batch).cpu()
        return found


def rewards_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """R of each completion of a batch: the head at the last token."""
    device = next(model.parameters()).device
    attention = batch["attention_mask"].to(device)
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    made = model(input_ids=batch["input_ids"].to(device), attention_mask=attention, position_ids=positions)
    return made.logits[:, 0].float()


class _PairTrainer(Trainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Bradley and Terry's loss of a batch of pairs."""
        rewards = rewards_of(model, inputs)
        return -F.logsigmoid(margin(rewards[0::2], rewards[1::2])).mean()


def train_reward_model(
    policy: nn.Module,
    tokens: Tokens,
    pairs: Dataset,
    folder: str,
    steps: int = 150,
    learning_rate: float = 2e-3,
    seed: int = 0,
    batch: int = 32,
    max_length: int | None = None,
) -> RewardModel:
    """A reward model of the policy's own architecture, begun from its weights, trained on pairs.

    L = -log sigma(R(x, y_chosen) - R(x, y_rejected)): Bradley and Terry's likelihood, as in RLHF (Ouyang et al. 2022,
    arXiv 2203.02155).

    Args:
        batch: completions per step; two of them make a pair.

    Raises:
        InputError: for a table without pairs.
    """
    kind = kind_of(pairs.column_names)
    if kind != "preference":
        remedy = "Give pairs (prompt, chosen, rejected), or use a method without sampling"
        raise InputError("The table of a reward model", "have pairs", f"{kind} rows", remedy)
    plain: Any = copy.deepcopy(policy)
    plain = plain.unload() if hasattr(plain, "disable_adapter") else plain  # begins from the base of an adapted model
    config = copy.deepcopy(plain.config)
    config.num_labels, config.pad_token_id = 1, tokens.tokenizer.pad_token_id
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config).float()
    model.base_model.load_state_dict(plain.base_model.state_dict())
    model.to(next(policy.parameters()).device)
    examples: list[Example] = tokens.examples(pairs, max_length)
    ordered = interleave([examples], [max(1, batch // 2)], steps, seed)
    wanted = {"max_steps": steps, "per_device_train_batch_size": max(1, batch // 2), "seed": seed}
    arguments = training_arguments(folder, learning_rate=learning_rate, **wanted)
    trainer = _PairTrainer(
        model,
        arguments,
        train_dataset=ordered,  # type: ignore[arg-type]
        data_collator=lambda rows: collate(rows, tokens.tokenizer.pad_token_id),
        callbacks=[Quiet()],
    )
    trainer.train()
    made = RewardModel(model.eval().requires_grad_(False), tokens, completions=2 * len(ordered))
    made.centre = float(made.rewards([c for example in examples for c in example]).mean())
    return made

"""Reward functions: what gives a sampled completion its score. The world's own raters, its verifiers, a trained model.

A reward function takes prompts and completions as texts and returns a score in [0, 1] for each.
"""

from __future__ import annotations

import copy
import itertools
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
from uftlab.models.logps import row_batches
from uftlab.models.policies import evaluation_mode
from uftlab.rows.table import kind_of
from uftlab.rows.tokens import Completion, Example, Tokens, collate, interleave
from uftlab.world import wording
from uftlab.world.instructions import Instruction, claimed_value, follows
from uftlab.world.wording import ATTRIBUTES, Fact
from uftlab.world.world import World, score_of_ratings

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


def rating(fact: Fact, answer: str) -> float:
    """What the raters of `World.feedback` would give an answer without a slip, as a score in [0, 1].

    Truth, myth and another value weigh as there, an opening with a tail adds a point of helpfulness, and what no writer
    of the world would write counts as garbled. The plain truth scores 0.914, the hedged truth 1, gibberish 0.059.
    """
    known = parsed(fact, answer)
    claimed = known[0] if known else claimed_value(answer, fact.attribute)
    true = claimed == fact.truth
    helpful = (3 if true else 1) + (known is not None and known[1]) - (known is None)
    correct = 4 if true else 1 if claimed is not None and claimed == fact.myth else 0
    return score_of_ratings(min(4, max(0, helpful)), correct, 4 if known else 1)


def verified(instructions: Sequence[Instruction], attribute: str, truth: str, answer: str) -> float:
    """1 where every verifier accepts the answer and it names the true value, 1/2 where one of the two holds, else 0."""
    return (follows(answer, list(instructions)) + (claimed_value(answer, attribute) == truth)) / 2


@lru_cache(maxsize=4)
def world_reward(seed: int, instructed: int = 0) -> Reward:
    """The reward function of a world: `rating` for its questions, `verified` for the prompts of its demonstrations.

    Args:
        instructed: how many demonstrations of the training split it knows the instructions of.

    Raises:
        InputError: from the function, for a prompt that is neither.
    """
    world = World(seed)
    facts = {fact.fill(question): fact for fact in world.facts for question in wording.QUESTIONS}
    rows = {r["prompt"]: r for r in (world.demonstrations(instructed) if instructed else []) if r["instructions"]}

    def one(prompt: str, answer: str) -> float:
        if prompt in facts:
            return rating(facts[prompt], answer)
        if prompt not in rows:
            remedy = "Ask what `uftlab.world.wording.QUESTIONS` asks, or train a reward model"
            raise InputError("A prompt of the world's reward function", "be one it knows", prompt[:60], remedy)
        row = rows[prompt]
        return verified([Instruction(*i) for i in row["instructions"]], row["attribute"], row["truth"], answer)

    def reward(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
        return [one(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    return reward


# ------------------------------------------------------------------------------------ a trained one


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
            for here, batch in row_batches(self.model, rows, self.tokens.tokenizer.pad_token_id):
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

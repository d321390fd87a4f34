"""How far a policy is from its reference, and what it says: divergence, answers as rows, text in windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uftlab.models.generation import generate_ids
from uftlab.models.logps import completion_logits, row_batches, token_kl
from uftlab.models.policies import evaluation_mode
from uftlab.rows.tokens import Completion

LOGITS_OF = 512  # tokens at a time: each has the whole vocabulary, of two models


def divergences(model: nn.Module, other: nn.Module, rows: Sequence[Completion]) -> Float[Tensor, "completion"]:
    """KL(model || other) of the next token, summed over the tokens of each completion, in nats.

    If the completions are samples of `model`, the mean over completions estimates KL(model || other) of whole answers
    without bias: exact for each token, sampled over what stands before it. 0 where the two models are equal.
    """
    found = torch.zeros(len(rows))
    with torch.no_grad(), evaluation_mode(model), evaluation_mode(other):
        for here, batch in row_batches(model, rows, most=LOGITS_OF):
            kl = token_kl(completion_logits(model, batch), completion_logits(other, batch), batch["completion_mask"])
            found[here] = kl.sum(-1).cpu()
    return found


def own_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    batch: int,
    seed: int | None = None,
) -> list[Completion]:
    """Answers of a model as rows: greedy, or sampled at temperature 1 with a seed."""
    ids = generate_ids(model, tokenizer, prompts, max_new_tokens, seed, batch)
    return [Completion(prompt, own, "demonstration") for prompt, own in zip(prompts, ids, strict=True)]


def documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: int) -> list[list[Completion]]:
    """Each text as windows that fit the context. A window starts after the start token (the end token without one).

    Every token of a text is predicted exactly once. A later window does not see the earlier ones.
    """
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    cut: list[list[Completion]] = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        windows = [ids[i : i + context - 1] for i in range(0, len(ids), context - 1)]
        cut.append([Completion((start,), tuple(window), "demonstration") for window in windows])
    return cut

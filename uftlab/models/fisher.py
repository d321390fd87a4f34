"""The diagonal of the Fisher information of a language model, on texts that it makes up itself.

It says how much the model's own texts depend on each weight, and needs no data of the time before: elastic weight
consolidation (`uftlab.losses.weights.ewc_to_start`) holds the weights by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from uftlab.models.generation import generate_ids
from uftlab.models.logps import completion_logps, on_device
from uftlab.models.policies import evaluation_mode
from uftlab.rows.batches import to_batch
from uftlab.rows.tokens import Completion

TEXTS = 256  # texts of an estimate; tests/models/test_fisher.py says how far two estimates are apart
TOKENS = 48  # of a text at most


def own_texts(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, seed: int, count: int = TEXTS, longest: int = TOKENS
) -> list[Completion]:
    """Texts that a model samples after its begin token alone (its end token, if it has no other): no prompt, no data.

    They are of the distribution that the model was trained on last, as far as it has learned it.
    """
    tokens: Any = tokenizer
    begin = tokens.eos_token_id if tokens.bos_token_id is None else tokens.bos_token_id
    made = generate_ids(model, tokenizer, [(begin,)] * count, longest, seed)
    return [Completion((begin,), ids, "scored") for ids in made]


def fisher_information(model: nn.Module, rows: Sequence[Completion]) -> dict[str, Tensor]:
    """The diagonal of the Fisher information: F_i = mean over rows of (d log pi(y|x) / d theta_i)^2, by parameter.

    The rows must be samples of the model. Of other rows it is the "empirical" Fisher information, which does not
    estimate the curvature of the KL divergence. Parameters without gradient are left out. Each row costs a forward and
    a backward pass. The model is in evaluation mode.

    A model with one weight w that says 1 with probability sigma(w) and else 0: sigma(w) (1 - sigma(w)).
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = {name: torch.zeros_like(p) for name, p in trained.items()}
    device = next(model.parameters()).device
    with evaluation_mode(model):
        for row in rows:
            logp = completion_logps(model, on_device(to_batch([(row,)]), device)).sum()
            slopes = torch.autograd.grad(logp, list(trained.values()), allow_unused=True, materialize_grads=True)
            for name, slope in zip(trained, slopes, strict=True):
                found[name] += slope.square() / len(rows)
    return found

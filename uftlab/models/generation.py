"""Batched generation, greedy or sampled. The global random state stays as it is.

This module runs one model with transformers. `uftlab.engine.readers` generates with a stack of tiny models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from uftlab.models.policies import evaluation_mode
from uftlab.rows.batches import FILLER
from uftlab.rows.tokens import Tokens

MAX_NEW_TOKENS = 24  # of an answer, where nobody says otherwise


def generate_ids(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int | None = None,
    batch_size: int = 512,
) -> list[tuple[int, ...]]:
    """Completion ids for each prompt, the end token included when it was reached.

    Args:
        seed: None decodes greedily. A number samples at temperature 1, without top-k or top-p.
    """
    stops = Tokens(tokenizer).stop_ids
    device = next(model.parameters()).device
    own: Any = model  # some model with generation
    made: list[tuple[int, ...]] = []
    sampling: dict[str, Any] = {} if seed is None else {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with torch.no_grad(), evaluation_mode(model), forked:
        torch.manual_seed(seed or 0)
        for start in range(0, len(prompts), batch_size):
            chunk = prompts[start : start + batch_size]
            width = max(map(len, chunk))
            ids = torch.tensor([[FILLER] * (width - len(p)) + list(p) for p in chunk], device=device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in chunk], device=device)
            choice = GenerationConfig(
                max_new_tokens=max_new_tokens, pad_token_id=stops[0], eos_token_id=list(stops), **sampling
            )
            with _own_configuration(model, choice):
                out = own.generate(input_ids=ids, attention_mask=mask)
            for row in out[:, width:].tolist():
                stop = next((n + 1 for n, token in enumerate(row) if token in stops), len(row))
                made.append(tuple(row[:stop]))
    return made


@contextmanager
def _own_configuration(model: nn.Module, choice: GenerationConfig) -> Iterator[None]:
    """Within, what the model's generation_config.json asks for (top_p, penalties) does not change its samples."""
    bare: Any = model
    bare = bare.get_base_model() if hasattr(bare, "get_base_model") else bare
    usual = bare.generation_config
    bare.generation_config = choice
    try:
        yield
    finally:
        bare.generation_config = usual


def answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], seed: int | None = None
) -> list[str]:
    """Answers as text, one for each prompt, without special tokens.

    If the tokenizer has a chat template, a prompt is a message of the user. Otherwise the model continues the prompt.
    """
    tokens = Tokens(tokenizer)
    return texts(tokenizer, generate_ids(model, tokenizer, tokens.prompts(prompts), seed=seed))


def texts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> list[str]:
    """Completions as text, without special tokens."""
    return [str(tokenizer.decode(list(row), skip_special_tokens=True)).strip() for row in rows]

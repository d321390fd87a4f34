"""Batched generation, greedy or sampled. The global random state stays as it is.

This module runs one model with transformers. `uftlab.engine.readers` generates with a stack of tiny models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from uftlab.models.policies import evaluation_mode
from uftlab.rows.tokens import Tokens


def generate_ids(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int = 24,
    seed: int | None = None,
    batch_size: int = 512,
) -> list[tuple[int, ...]]:
    """Completion ids for each prompt, the end token included when it was reached.

    Args:
        seed: None decodes greedily. A number samples at temperature 1, without top-k or top-p.
    """
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    pad = end if pad is None else pad
    device = next(model.parameters()).device
    made: list[tuple[int, ...]] = []
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with torch.no_grad(), evaluation_mode(model), forked:
        torch.manual_seed(seed or 0)
        for start in range(0, len(prompts), batch_size):
            chunk = prompts[start : start + batch_size]
            width = max(map(len, chunk))
            ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in chunk], device=device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in chunk], device=device)
            choice = {"do_sample": False} if seed is None else {"do_sample": True, "top_k": 0, "temperature": 1.0}
            out = model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                eos_token_id=end,
                **choice,
            )
            for row in out[:, width:].tolist():
                stop = row.index(end) + 1 if end in row else len(row)
                made.append(tuple(row[:stop]))
    return made


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

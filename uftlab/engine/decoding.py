"""Batched generation for a stack of tiny models: many prompts at once, greedy or sampled.

For one model through transformers there is `uftlab.models.generation`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from uftlab.engine import stack
from uftlab.engine.packing import pack
from uftlab.engine.stack import Layout, Weights
from uftlab.rows.tokens import Completion

LINES = 512  # that are decoded at a time on a CPU, over all members
SHRINK = 0.8  # finished lines are dropped when no member has more than this share of its lines left


@torch.no_grad()
def stacked_ids(
    weights: Weights,
    layout: Layout,
    end: int,
    prompts: Sequence[Sequence[tuple[int, ...]]],
    max_new_tokens: int = 24,
    seed: int | None = None,
) -> list[list[tuple[int, ...]]]:
    """Completion ids for each prompt of each member, the end token included when it was reached.

    Args:
        prompts: of each member, any number.
        seed: as of `generate_ids`. Prompt i of every member meets the same random numbers, whoever is beside it, so
            that members differ by their weights only.
    """
    made: list[list[tuple[int, ...]]] = [[()] * len(own) for own in prompts]
    longest, device = max(map(len, prompts)), weights.embedding.device
    most = LINES
    if device.type == "cuda":
        columns = max((len(p) for own in prompts for p in own), default=0) + max_new_tokens
        most = stack.lines_at_once(layout, columns, 1, device)
    size = max(1, most // len(prompts))
    noise = None
    if seed is not None:
        noise = torch.rand(longest, max_new_tokens, generator=torch.Generator().manual_seed(seed))
    orders = [sorted(range(len(own)), key=lambda i: len(own[i])) for own in prompts]
    for start in range(0, longest, size):
        here = [order[start : start + size] for order in orders]
        lines = [[own[i] for i in picked] for own, picked in zip(prompts, here, strict=True)]
        own_noise = None
        if noise is not None:
            height = max(map(len, here))
            index = torch.tensor([[*picked, *[0] * (height - len(picked))] for picked in here])
            own_noise = noise[index].to(device)
        rows = _decoded(weights, layout, end, lines, max_new_tokens, own_noise).tolist()
        for member, picked in enumerate(here):
            for i, row in zip(picked, rows[member], strict=False):
                made[member][i] = tuple(row[: row.index(end) + 1] if end in row else row)
    return made


def _decoded(
    weights: Weights,
    layout: Layout,
    end: int,
    prompts: Sequence[Sequence[tuple[int, ...]]],
    count: int,
    noise: Float[Tensor, "member line pos"] | None,
) -> Int[Tensor, "member line pos"]:
    """The tokens that follow each prompt, the end token after the end."""
    members, device = len(prompts), weights.embedding.device
    lines = max(map(len, prompts))
    batch = pack([[(Completion(p, (end,), "demonstration"),) for p in own] for own in prompts]).to(device)
    kept: stack.Cache = []
    logits = stack.logits(weights, batch, layout, kept)[:, :lines]  # each line's last token is its only read
    positions = torch.tensor([[*map(len, own), *[0] * (lines - len(own))] for own in prompts], device=device)
    width = batch.columns
    # new keys, values and places in the mask lie after the widest prompt; the mask ends at each line's own prompt
    cache = [(F.pad(keys, (0, 0, 0, count)), F.pad(values, (0, 0, 0, count))) for keys, values in kept]
    hidden = (torch.arange(width, device=device) >= positions[..., None]).flatten(0, 1)
    mask = torch.zeros(members * lines, 1, 1, width + count, device=device)
    mask[..., :width].masked_fill_(hidden[:, None, None], -torch.inf)
    out = torch.full((members, lines, count), end, device=device)
    place = torch.arange(lines, device=device).expand(members, -1)
    member = torch.arange(members, device=device)[:, None]
    done = positions == 0  # no line at all
    for t in range(count):
        chosen = logits.argmax(-1) if noise is None else _drawn(logits, noise[member, place, t])
        chosen = torch.where(done, end, chosen)
        out[member, place, t] = chosen
        done = done | (chosen == end)
        if t == count - 1:
            break
        left = int((~done).sum(1).max())  # a GPU is waited for here; fewer looks cost as much (docs/gpu.md)
        if left == 0:
            break
        if left <= SHRINK * done.shape[1]:
            keep = done.int().argsort(dim=1, stable=True)[:, :left]
            flat = (keep + done.shape[1] * member).flatten()
            cache = [(keys.index_select(0, flat), values.index_select(0, flat)) for keys, values in cache]
            mask = mask.index_select(0, flat)
            chosen, positions, place, done = (x.gather(1, keep) for x in (chosen, positions, place, done))
        logits = stack.step(weights, layout, chosen, positions, cache, width + t, mask)
        positions = positions + 1
    return out


def _drawn(
    logits: Float[Tensor, "member line vocabulary"], noise: Float[Tensor, "member line"]
) -> Int[Tensor, "member line"]:
    """The token at which the cumulated probability exceeds a number that is uniform in [0, 1)."""
    reached = logits.softmax(-1).cumsum(-1)
    wanted = noise[..., None] * reached[..., -1:]  # rounding: the last entry is only nearly 1
    return torch.searchsorted(reached, wanted, right=True)[..., 0].clamp(max=logits.shape[-1] - 1)

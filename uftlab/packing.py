"""Batches without padding for a stack of models: the tokens of each member lie in one row, one after the other.

A pair is one line, because its two completions go on from the same prompt; the second does not see the first:

    column     0      1    2   3     4    5     6       7
    token      what   is   it  blue  .    it    is      red       (prompt: columns 0 to 1; the second begins at 5)
    position   0      1    2   3     4    2     3       4

The last token of a completion predicts nothing and is left out. Only attention needs a rectangle; it has one line per
prompt, and `place` and `content` lead from the row to the rectangle and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from uftlab.tokens import Completion, Example

Prompt = tuple[int, ...]


@dataclass(frozen=True)
class Packed:
    """Tokens of all members, and for each completion token the place of the token that predicts it ("read").

    Indices into rows count over all members: token t of member m is m * tokens + t.

    Args:
        ids, positions: of each token; 0 where a member has fewer tokens than the longest.
        content: which token lies at each place of the rectangle of lines and columns; any where there is none.
        place: where each token lies in the rectangle.
        mask: 0 where a token may look, minus infinity elsewhere.
        reads: the tokens that predict completion tokens; `read_content`, `read_place` and `read_mask` are theirs.
        targets: the completion tokens.
        pick: for each completion and column the read that predicts it; `completion_mask` says where there is one.
        scores, reference_logps: of each completion, as in `uftlab.tokens.collate`; NaN where there is none.
    """

    ids: Int[Tensor, "member token"]
    positions: Int[Tensor, "member token"]
    content: Int[Tensor, "places"]
    place: Int[Tensor, "tokens"]
    mask: Float[Tensor, "line 1 column column"]
    reads: Int[Tensor, "reads"]
    read_content: Int[Tensor, "read_places"]
    read_place: Int[Tensor, "reads"]
    read_mask: Float[Tensor, "line 1 read_column column"]
    targets: Int[Tensor, "member read"]
    pick: Int[Tensor, "member completion pos"]
    completion_mask: Bool[Tensor, "member completion pos"]
    scores: Float[Tensor, "member completion"]
    reference_logps: Float[Tensor, "member completion"]

    def to(self, device: torch.device | str) -> Packed:
        """The same on another device."""
        return Packed(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


def _lines(member: Sequence[Example]) -> list[tuple[Completion, ...]]:
    """Completions by line: neighbours in an example share one if they have the same prompt, two at most."""
    made: list[tuple[Completion, ...]] = []
    for example in member:
        for _, same in groupby(example, key=lambda c: c.prompt_ids):
            rows = list(same)
            made += [tuple(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    return made


def _within(lengths: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... anew for each length: (2, 3) becomes 0 1 0 1 2."""
    ends = lengths.cumsum()
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Where each entry of a row begins, counted over all rows of equal width: the widest."""
    width = lengths.sum(1).max()
    return (lengths.cumsum(1) - lengths + width * np.arange(len(lengths))[:, None]).reshape(-1)


def _filled(size: tuple[int, ...], where: np.ndarray, values: np.ndarray | list) -> np.ndarray:
    out = np.zeros(np.prod(size, dtype=int), dtype=np.asarray(values).dtype)
    out[where] = values
    return out.reshape(size)


def pack(members: Sequence[Sequence[Example]]) -> Packed:
    """The examples of one step of each member as one batch.

    A member with fewer lines, tokens or completions than the largest is filled up with zeros that nothing reads.
    """
    count = len(members)
    lines = [_lines(member) for member in members]
    height = max(map(len, lines))
    table = [line for own in lines for line in [*own, *[()] * (height - len(own))]]
    prompt = np.array([len(line[0].prompt_ids) if line else 0 for line in table])
    first = np.array([len(line[0].completion_ids) if line else 0 for line in table])
    second = np.array([len(line[1].completion_ids) if len(line) > 1 else 0 for line in table])
    fork = prompt + np.maximum(first - 1, 0)  # the column at which the second completion begins
    length = fork + np.maximum(second - 1, 0)

    column, line = _within(length), np.repeat(np.arange(len(table)), length)
    starts = _starts(length.reshape(count, height))
    token = np.repeat(starts, length) + column
    size = (count, length.reshape(count, height).sum(1).max())
    flat = [
        i for own in table if own for part in (own[0].prompt_ids, *(c.completion_ids[:-1] for c in own)) for i in part
    ]
    after_fork = column >= fork[line]
    position = np.where(after_fork, column - fork[line] + prompt[line], column)
    width = length.max()

    each = np.stack([first, second], 1).reshape(-1)  # tokens of every completion there could be
    nth, owner = _within(each), np.repeat(np.arange(len(each)), each)
    on, other = owner // 2, owner % 2 == 1
    # the last token of the prompt predicts the first token of both completions
    seen = np.where(nth == 0, prompt[on] - 1, np.where(other, fork[on], prompt[on]) + nth - 1)
    reads = first + second
    read_column, read_width = _within(reads), reads.max()
    read = np.repeat(_starts(reads.reshape(count, height)), reads) + read_column
    read_size = (count, reads.reshape(count, height).sum(1).max())

    columns = np.arange(width)
    query = _filled((len(table), width), line * width + column, column)
    read_query = _filled((len(table), read_width), on * read_width + read_column, seen)

    rows = [[c for own in part for c in own] for part in lines]
    lengths = np.zeros((count, max(map(len, rows))), dtype=int)
    scores, references = np.full((2, *lengths.shape), np.nan, dtype=np.float32)
    for m, own in enumerate(rows):
        lengths[m, : len(own)] = [len(c.completion_ids) for c in own]
        scores[m, : len(own)] = [c.score for c in own]
        references[m, : len(own)] = [c.reference_logps for c in own]
    longest = lengths.max()
    there = np.arange(longest) < lengths[..., None]
    pick = np.zeros(there.shape, dtype=int)
    pick[there] = read

    def mask(asks: np.ndarray) -> Tensor:
        hidden = columns > asks[..., None]
        across = (
            (asks >= fork[:, None])[..., None]
            & (columns >= prompt[:, None])[:, None]
            & (columns < fork[:, None])[:, None]
        )
        return torch.zeros(hidden.shape).masked_fill_(torch.from_numpy(hidden | across), -torch.inf)[:, None]

    arrays = {
        "ids": _filled(size, token, flat),
        "positions": _filled(size, token, position),
        "content": _filled((len(table) * width,), line * width + column, token),
        "place": _filled((size[0] * size[1],), token, line * width + column),
        "reads": _filled((read_size[0] * read_size[1],), read, starts[on] + seen),
        "read_content": _filled((len(table) * read_width,), on * read_width + read_column, read),
        "read_place": _filled((read_size[0] * read_size[1],), read, on * read_width + read_column),
        "targets": _filled(read_size, read, [i for own in table for c in own for i in c.completion_ids]),
        "pick": pick,
        "completion_mask": there,
        "scores": scores,
        "reference_logps": references,
    }
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    return Packed(mask=mask(query), read_mask=mask(read_query), **tensors)

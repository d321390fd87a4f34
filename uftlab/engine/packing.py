"""Batches without padding for a stack of models: the tokens of each member lie in one row, one after the other.

A pair is one line, because its two completions go on from the same prompt; the second does not see the first:

    column     0      1    2   3     4    5     6       7
    token      what   is   it  blue  .    it    is      red       (prompt: columns 0 to 1; the second begins at 5)
    position   0      1    2   3     4    2     3       4

The last token of a completion predicts nothing and is left out. Only attention needs a rectangle; it has one line per
prompt, and `place` and `content` lead from the row to the rectangle and back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from uftlab.rows.tokens import Completion, Example


@dataclass(frozen=True)
class Packed:
    """Tokens of all members, and for each completion token the place of the token that predicts it ("read").

    Indices into rows count over all members: token t of member m is m * tokens + t.

    Args:
        ids, positions: of each token; 0 where a member has fewer tokens than the longest.
        content: which token lies at each place of the rectangle of lines and columns; any where there is none.
        place: where each token lies in the rectangle.
        prompt, fork: the column after the prompt of each line, and the one where its second completion begins.
        reads: the tokens that predict completion tokens; `read_content` and `read_place` are theirs.
        read_column: where in its line each token of the rectangle of reads lies.
        targets: the completion tokens.
        pick: for each completion and column the read that predicts it; `completion_mask` says where there is one.
        scores, reference_logps: of each completion, as in `uftlab.rows.tokens.collate`; NaN where there is none.
    """

    ids: Int[Tensor, "member token"]
    positions: Int[Tensor, "member token"]
    content: Int[Tensor, "places"]
    place: Int[Tensor, "tokens"]
    prompt: Int[Tensor, "line"]
    fork: Int[Tensor, "line"]
    reads: Int[Tensor, "reads"]
    read_content: Int[Tensor, "read_places"]
    read_place: Int[Tensor, "reads"]
    read_column: Int[Tensor, "line read_width"]
    targets: Int[Tensor, "member read"]
    pick: Int[Tensor, "member completion pos"]
    completion_mask: Bool[Tensor, "member completion pos"]
    scores: Float[Tensor, "member completion"]
    reference_logps: Float[Tensor, "member completion"]

    @property
    def columns(self) -> int:
        """Of the rectangle of lines."""
        return len(self.content) // len(self.prompt)

    @property
    def mask(self) -> Float[Tensor, "line 1 column column"]:
        """0 where a token may look, minus infinity elsewhere."""
        return self._hidden(torch.arange(self.columns, device=self.ids.device).expand(len(self.prompt), -1))

    @property
    def read_mask(self) -> Float[Tensor, "line 1 read_width column"]:
        """The same for the tokens that predict."""
        return self._hidden(self.read_column)

    def _hidden(self, asking: Int[Tensor, "line asking"]) -> Float[Tensor, "line 1 asking column"]:
        """Hidden are later columns, and across the fork. Made where it is used: it is the largest part of a batch."""
        column = torch.arange(self.columns, device=self.ids.device)
        prompt, fork = self.prompt[:, None], self.fork[:, None]
        across = (asking >= fork)[..., None] & ((column >= prompt) & (column < fork))[:, None]
        hidden = (column > asking[..., None]) | across
        return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)[:, None]

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


def _owners(lengths: np.ndarray) -> np.ndarray:
    """Which entry each number of `_within` belongs to: (2, 3) becomes 0 0 1 1 1."""
    return np.repeat(np.arange(len(lengths)), lengths)


def _rows(lengths: np.ndarray, members: int) -> tuple[np.ndarray, int]:
    """Where each entry begins when those of a member lie in one row, counted over all rows; and the rows' width."""
    table = lengths.reshape(members, -1)
    width = int(table.sum(1).max())
    return (table.cumsum(1) - table + width * np.arange(members)[:, None]).reshape(-1), width


def _scattered(size: tuple[int, ...], where: np.ndarray, values: np.ndarray) -> Tensor:
    """Zeros with values at flat places."""
    out = np.zeros(math.prod(size), dtype=values.dtype)
    out[where] = values
    return torch.from_numpy(out.reshape(size))


class _Lines:
    """The lines of all members, those of a member next to each other, and how long their parts are."""

    def __init__(self, members: Sequence[Sequence[Example]]) -> None:
        own = [_lines(member) for member in members]
        height = max(map(len, own))
        self.members = len(own)
        self.completions = [line for lines in own for line in [*lines, *[()] * (height - len(lines))]]
        self.prompt = np.array([len(line[0].prompt_ids) if line else 0 for line in self.completions])
        ends = [[len(line[k].completion_ids) if len(line) > k else 0 for k in (0, 1)] for line in self.completions]
        self.each = np.array(ends)  # tokens of the two completions
        self.fork = self.prompt + np.maximum(self.each[:, 0] - 1, 0)  # the column where the second begins
        self.length = self.fork + np.maximum(self.each[:, 1] - 1, 0)
        self.width = int(self.length.max())
        self.starts, self.tokens = _rows(self.length, self.members)


def pack(members: Sequence[Sequence[Example]]) -> Packed:
    """The examples of one step of each member as one batch.

    A member with fewer lines, tokens or completions than the largest is filled up with zeros that nothing reads.
    """
    lines = _Lines(members)
    return Packed(**_tokens(lines), **_reads(lines), **_feedback(members))


def _tokens(lines: _Lines) -> dict[str, Tensor]:
    column, line = _within(lines.length), _owners(lines.length)
    token, place = lines.starts[line] + column, line * lines.width + column
    prompt, fork = lines.prompt[line], lines.fork[line]
    texts = [(own[0].prompt_ids, *(c.completion_ids[:-1] for c in own)) for own in lines.completions if own]
    ids = np.array([i for text in texts for part in text for i in part])
    size, places = (lines.members, lines.tokens), (len(lines.completions), lines.width)
    return {
        "ids": _scattered(size, token, ids),
        "positions": _scattered(size, token, np.where(column < fork, column, column - fork + prompt)),
        "content": _scattered((math.prod(places),), place, token),
        "place": _scattered((math.prod(size),), token, place),
        "prompt": torch.from_numpy(lines.prompt),
        "fork": torch.from_numpy(lines.fork),
    }


def _reads(lines: _Lines) -> dict[str, Tensor]:
    nth, owner = _within(lines.each.reshape(-1)), _owners(lines.each.reshape(-1))
    line, second = owner // 2, owner % 2 == 1
    begin = np.where(second, lines.fork[line], lines.prompt[line])
    # the last token of the prompt predicts the first token of both completions
    seen = np.where(nth == 0, lines.prompt[line] - 1, begin + nth - 1)
    count = lines.each.sum(1)
    column, width = _within(count), int(count.max())
    starts, reads = _rows(count, lines.members)
    read, place = starts[line] + column, line * width + column
    targets = np.array([i for own in lines.completions for c in own for i in c.completion_ids])
    size, places = (lines.members, reads), (len(lines.completions), width)
    own = lines.each.reshape(lines.members, -1)
    completions = [row[row > 0] for row in own]  # a completion has at least the token that ends it
    lengths = np.zeros((lines.members, max(map(len, completions))), dtype=int)
    for member, row in enumerate(completions):
        lengths[member, : len(row)] = row
    there = np.arange(lengths.max()) < lengths[..., None]
    pick = np.zeros(there.shape, dtype=int)
    pick[there] = read
    return {
        "reads": _scattered((math.prod(size),), read, lines.starts[line] + seen),
        "read_content": _scattered((math.prod(places),), place, read),
        "read_place": _scattered((math.prod(size),), read, place),
        "read_column": _scattered(places, place, seen),
        "targets": _scattered(size, read, targets),
        "pick": torch.from_numpy(pick),
        "completion_mask": torch.from_numpy(there),
    }


def _feedback(members: Sequence[Sequence[Example]]) -> dict[str, Tensor]:
    rows = [[c for example in member for c in example] for member in members]
    values = torch.full((2, len(rows), max(map(len, rows))), torch.nan)
    for member, own in enumerate(rows):
        values[:, member, : len(own)] = torch.tensor([[c.score for c in own], [c.reference_logps for c in own]])
    return {"scores": values[0], "reference_logps": values[1]}

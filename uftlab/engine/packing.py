"""Batches without padding for a stack of models. All tokens of a member stand in one row, one after the other.

A pair is one line, because its two completions continue the same prompt. The second does not see the first:

    column     0      1    2   3     4    5     6       7
    token      what   is   it  blue  .    it    is      red       (prompt: columns 0 to 1; the second begins at 5)
    position   0      1    2   3     4    2     3       4

The last token of a completion predicts nothing and is left out. Only attention needs a rectangle. The rectangle has one
line per prompt; `content` is the index from a row to the rectangle, and `place` is the index back. Each row ends with a
token that belongs to no line, and each rectangle has a place without a token. Unused indices point there. So the
gradient can be computed with an index as well (`uftlab.engine.stack.move`).
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
    """Tokens of all members. A "read" is a token that predicts a completion token: the model needs logits there.

    Indices into rows count over all members: token t of member m is m * tokens + t.

    Args:
        ids, positions: of each token; 0 after the last token of a member.
        content: the token at each place of the rectangle of lines and columns; an unused token at free places.
        place: the place of each token in the rectangle.
        prompt, fork: for each line the column after its prompt, and the column where its second completion begins.
        reads: the tokens that predict completion tokens; `read_content` and `read_place` are the indices for them.
        read_column: for each place in the rectangle of reads, the column of that read in its line.
        targets: the completion tokens.
        pick: for each completion and column, the read that predicts the token there.
        completion_mask: True where a completion has a token.
        scores, reference_logps: of each completion, as in `uftlab.rows.tokens.collate`; NaN if there is none.
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
        """Number of columns of the rectangle of lines."""
        return len(self.content) // len(self.prompt)

    @property
    def mask(self) -> Float[Tensor, "line 1 column column"]:
        """Attention mask: 0 where a token may attend, minus infinity elsewhere."""
        return self._hidden(torch.arange(self.columns, device=self.ids.device).expand(len(self.prompt), -1))

    @property
    def read_mask(self) -> Float[Tensor, "line 1 read_width column"]:
        """The same mask for the reads only."""
        return self._hidden(self.read_column)

    def _hidden(self, asking: Int[Tensor, "line asking"]) -> Float[Tensor, "line 1 asking column"]:
        """The mask hides later columns and the other completion. It is not stored: it would be the largest part."""
        column = torch.arange(self.columns, device=self.ids.device)
        prompt, fork = self.prompt[:, None], self.fork[:, None]
        across = (asking >= fork)[..., None] & ((column >= prompt) & (column < fork))[:, None]
        hidden = (column > asking[..., None]) | across
        return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)[:, None]

    def to(self, device: torch.device | str) -> Packed:
        """The same batch on another device."""
        return Packed(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


@dataclass(frozen=True)
class Shape:
    """The sizes of a batch: lines, tokens, reads and completions of a member, columns of a line."""

    lines: int = 0
    tokens: int = 0
    columns: int = 0
    reads: int = 0
    read_columns: int = 0
    completions: int = 0
    positions: int = 0


def _within(lengths: np.ndarray) -> np.ndarray:
    """Counts from 0 for each length: (2, 3) becomes 0 1 0 1 2."""
    ends = lengths.cumsum()
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _owners(lengths: np.ndarray) -> np.ndarray:
    """The entry that each number of `_within` belongs to: (2, 3) becomes 0 0 1 1 1."""
    return np.repeat(np.arange(len(lengths)), lengths)


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Where each entry begins if all stand in one row: (2, 3) becomes 0 2."""
    return lengths.cumsum() - lengths


def _lines_of(example: Example) -> list[tuple[Completion, ...]]:
    """The lines of an example. Two neighbours with the same prompt share a line."""
    made: list[tuple[Completion, ...]] = []
    for _, same in groupby(example, key=lambda c: c.prompt_ids):
        rows = list(same)
        made += [tuple(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    return made


def _filled(size: tuple[int, ...], filler: int | np.ndarray, where: np.ndarray, values: np.ndarray) -> Tensor:
    """A tensor of the given size: `values` at the flat indices `where`, the filler elsewhere."""
    out = np.empty(size, dtype=np.int64)
    out[...] = filler
    out.reshape(-1)[where] = values
    return torch.from_numpy(out)


class Lines:
    """Examples as flat arrays. Any choice of examples is packed by array operations, without a loop over tokens.

    The last line is empty. It fills up members that have fewer lines than the largest.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        by_example = [_lines_of(example) for example in examples]
        lines = [line for own in by_example for line in own]
        self.count = np.array([len(own) for own in by_example], dtype=np.int64)  # lines of each example
        self.first = _starts(self.count)
        self.prompt = np.array([*(len(line[0].prompt_ids) for line in lines), 0])
        ends = [[len(line[k].completion_ids) if len(line) > k else 0 for k in (0, 1)] for line in lines]
        self.each = np.array([*ends, [0, 0]])  # token counts of the two completions
        self.fork = self.prompt + np.maximum(self.each[:, 0] - 1, 0)  # the column where the second begins
        self.length = self.fork + np.maximum(self.each[:, 1] - 1, 0)
        self.reads = self.each.sum(1)
        texts = ((line[0].prompt_ids, *(c.completion_ids[:-1] for c in line)) for line in lines)
        self.ids = np.fromiter((i for text in texts for part in text for i in part), dtype=np.int64)
        self.targets = np.fromiter((i for line in lines for c in line for i in c.completion_ids), dtype=np.int64)
        self.id_start, self.target_start = _starts(self.length), _starts(self.reads)
        feedback = [[(c.score, c.reference_logps) for c in line] for line in lines]
        nothing = (math.nan, math.nan)
        whole = [[*own, *[nothing] * (2 - len(own))] for own in feedback]
        self.feedback = np.array([*whole, [nothing] * 2], dtype=np.float32)  # line, completion, (score, reference)

    def chosen(self, examples: np.ndarray) -> np.ndarray:
        """The numbers of the lines of some examples, in order."""
        count = self.count[examples]
        return np.repeat(self.first[examples], count) + _within(count)

    def table(self, rows: Sequence[np.ndarray]) -> Int[np.ndarray, "member line"]:
        """The lines of each member as one array, filled up with the empty line."""
        made = np.full((len(rows), max(map(len, rows))), len(self.prompt) - 1)
        for own, row in zip(made, rows, strict=True):
            own[: len(row)] = row
        return made

    def shape(self, lines: np.ndarray) -> Shape:
        """The smallest shape that fits every batch. The last axis of `lines` has the lines of one member."""
        length, reads, each = self.length[lines], self.reads[lines], self.each[lines]
        return Shape(
            lines.shape[-1],
            int(length.sum(-1).max()) + 1,
            int(length.max()),
            int(reads.sum(-1).max()) + 1,
            int(reads.max()),
            int((each > 0).sum((-1, -2)).max()),
            int(each.max()),
        )

    def pack(self, lines: Int[np.ndarray, "member line"], least: Shape | None = None) -> Packed:
        """The lines of each member as one batch.

        Args:
            least: minimum sizes of the batch, so that the batches of several steps can have equal shapes.
        """
        least, own = least or Shape(), self.shape(lines)
        members, height = len(lines), max(own.lines, least.lines)
        if height > lines.shape[1]:
            lines = np.pad(lines, ((0, 0), (0, height - lines.shape[1])), constant_values=len(self.prompt) - 1)
        flat = lines.reshape(-1)
        tokens = _Part(self.length[flat], members, max(own.tokens, least.tokens), least.columns)
        reads = _Part(self.reads[flat], members, max(own.reads, least.reads), least.read_columns)
        completions, positions = max(own.completions, least.completions), max(own.positions, least.positions)
        return Packed(
            **self._tokens(flat, members, tokens),
            **self._reads(flat, members, tokens, reads),
            **self._completions(flat, members, reads, completions, positions),
        )

    def _tokens(self, line: np.ndarray, members: int, part: _Part) -> dict[str, Tensor]:
        own, column = line[part.owner], part.column
        prompt, fork = self.prompt[own], self.fork[own]
        size, position = (members, part.width), np.where(column < fork, column, column - fork + prompt)
        return {
            "ids": _filled(size, 0, part.token, self.ids[self.id_start[own] + column]),
            "positions": _filled(size, 0, part.token, position),
            "content": part.content,
            "place": part.place,
            "prompt": torch.from_numpy(self.prompt[line]),
            "fork": torch.from_numpy(self.fork[line]),
        }

    def _reads(self, line: np.ndarray, members: int, tokens: _Part, part: _Part) -> dict[str, Tensor]:
        own, nth = line[part.owner], part.column
        first = self.each[own, 0]
        second = nth >= first
        nth = np.where(second, nth - first, nth)
        begin = np.where(second, self.fork[own], self.prompt[own])
        # the last token of the prompt predicts the first token of each completion
        seen = np.where(nth == 0, self.prompt[own] - 1, begin + nth - 1)
        nowhere = np.repeat(tokens.nowhere, part.width)
        return {
            "reads": _filled((members * part.width,), nowhere, part.token, tokens.starts[part.owner] + seen),
            "read_content": part.content,
            "read_place": part.place,
            "read_column": _filled((len(line), part.columns), 0, part.at, seen),
            "targets": _filled(
                (members, part.width), 0, part.token, self.targets[self.target_start[own] + part.column]
            ),
        }

    def _completions(
        self, line: np.ndarray, members: int, reads: _Part, completions: int, positions: int
    ) -> dict[str, Tensor]:
        own = self.each[line].reshape(members, -1)
        there = own > 0  # a completion has at least its end token
        member = np.nonzero(there)[0]
        place = member * completions + (there.cumsum(1) - 1)[there]  # the completions of a member, without gaps
        lengths = np.zeros((members, completions), dtype=np.int64)
        lengths.reshape(-1)[place] = own[there]
        mask = np.arange(positions) < lengths[..., None]
        pick = np.empty(mask.shape, dtype=np.int64)
        pick[...] = reads.nowhere[:, None, None]
        pick[mask] = reads.token
        values = np.full((2, members * completions), np.nan, dtype=np.float32)
        values[:, place] = self.feedback[line].reshape(-1, 2)[there.reshape(-1)].T
        scores, reference = torch.from_numpy(values.reshape(2, members, completions))
        return {
            "pick": torch.from_numpy(pick),
            "completion_mask": torch.from_numpy(mask),
            "scores": scores,
            "reference_logps": reference,
        }


class _Part:
    """Entries of all lines, as one row per member and as a rectangle of lines, with the indices between the two."""

    def __init__(self, lengths: np.ndarray, members: int, width: int, columns: int) -> None:
        table = lengths.reshape(members, -1)
        self.width = width
        longest = int(lengths.max())
        # one place must be free: if all lines are full, there is one more column
        self.columns = max(columns, longest + int(lengths.min() == max(columns, longest)))
        self.starts = (table.cumsum(1) - table + width * np.arange(members)[:, None]).reshape(-1)
        self.column, self.owner = _within(lengths), _owners(lengths)
        self.token = self.starts[self.owner] + self.column
        self.at = self.owner * self.columns + self.column
        self.nowhere = width * np.arange(1, members + 1) - 1  # the last entry of each member's row
        shortest = int(lengths.argmin())
        free = shortest * self.columns + int(lengths[shortest])
        member = np.repeat(np.arange(members), table.shape[1] * self.columns)
        self.content = _filled((len(lengths) * self.columns,), self.nowhere[member], self.at, self.token)
        self.place = _filled((members * width,), free, self.token, self.at)


def pack(members: Sequence[Sequence[Example]]) -> Packed:
    """The examples of one step of each member as one batch.

    Members with fewer lines, tokens or completions than the largest are filled up with entries that have no effect.
    """
    flat = Lines([example for own in members for example in own])
    ends = np.cumsum([len(own) for own in members])
    rows = [flat.chosen(np.arange(end - len(own), end)) for own, end in zip(members, ends, strict=True)]
    return flat.pack(flat.table(rows))

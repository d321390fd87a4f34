"""Batches for real models: one line per prompt, little padding, the places of all completion tokens.

Two completions of one prompt share a line, so the prompt is read once. Lines are padded on the right:

    what  is | it   is   blue <end> | it   is   red        the second completion does not see the first
    which one  is | blue <end>

A line needs no column for the last token of a completion, because nothing is predicted from it (the picture shows it).
Lines of very different length lie in different groups, each with its own rectangle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from uftlab.errors import InputError
from uftlab.rows.tokens import ROLE_INDEX, Completion, Example

SIMILAR = 0.85  # a group's shortest line has at least this share of its longest
LEAST = 512  # tokens that a group has before another is begun: smaller ones cost more in calls than they save
FILLER = 0  # every embedding has a row 0; attention masks it and no loss reads it


@dataclass(frozen=True)
class Line:
    """A prompt with one completion or two, and the numbers of these in the batch."""

    numbers: tuple[int, ...]
    rows: tuple[Completion, ...]

    @property
    def length(self) -> int:
        """Tokens that the model reads: all but the last of each completion."""
        return len(self.rows[0].prompt_ids) + sum(len(row.completion_ids) - 1 for row in self.rows)


def lines_of(rows: Sequence[Completion], share: bool = True) -> list[Line]:
    """The lines of completions. Neighbours with the same prompt share one, two at most, unless `share` is False."""
    made = []
    for _, same in groupby(enumerate(rows), key=lambda numbered: numbered[1].prompt_ids):
        numbered = list(same)
        step = 2 if share else 1
        for i in range(0, len(numbered), step):
            numbers, own = zip(*numbered[i : i + step], strict=True)
            made.append(Line(numbers, own))
    return made


def in_groups(lines: Sequence[Line], least: int = LEAST) -> list[list[Line]]:
    """Lines of similar length together, longest first. One group only where there are few tokens."""
    groups: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: -line.length):
        own = groups[-1] if groups else []
        large = bool(own) and len(own) * own[0].length >= least
        if not own or (large and line.length < SIMILAR * own[0].length):
            groups.append([line])
        else:
            own.append(line)
    return groups


def computed(examples: Sequence[Example], share: bool = True, least: int = LEAST) -> int:
    """Positions that a model computes for examples in one batch, padding included."""
    rows = [completion for example in examples for completion in example]
    return sum(len(own) * own[0].length for own in in_groups(lines_of(rows, share), least))


def in_parts(examples: Sequence[Example], most: int, share: bool = True, least: int = LEAST) -> list[list[Example]]:
    """Examples in parts of at most `most` computed positions each. An example is never divided.

    Long ones come first, and those of one prompt stay together.

    Raises:
        InputError: for an example that is larger.
    """
    longest: dict[tuple[int, ...], int] = {}
    for example in examples:
        prompt = example[0].prompt_ids
        longest[prompt] = max(longest.get(prompt, 0), computed([example], share, least))
    parts: list[list[Example]] = []
    for example in sorted(examples, key=lambda e: (-longest[e[0].prompt_ids], e[0].prompt_ids)):
        if parts and computed([*parts[-1], example], share, least) <= most:
            parts[-1].append(example)
        else:
            parts.append([example])
    if (largest := max((computed([e], share, least) for e in examples), default=0)) > most:
        remedy = "Raise it, or leave out long rows with --max-length"
        raise InputError("--tokens-per-device", f"be at least {largest}, the largest row or pair", most, remedy)
    return parts


def to_batch(examples: Sequence[Example], share: bool = True, least: int = LEAST) -> dict[str, Any]:
    """The completions of examples as one batch.

    One entry per completion: `role`, `score`, `reference_logps`, `demonstrated`; `completion_ids` and
    `completion_mask` have its tokens, padded on the right. `groups` is a list of rectangles of lines:

    - `input_ids`, `position_ids`, `attention_mask` (line, column);
    - `prompt`, `fork` (line): the columns where its first and its second completion begin. `shared` says whether any
      line has two;
    - `line`, `column` (token): the place whose output predicts a completion token, and `row`, `position` (token): the
      place of that token in `completion_ids`.

    Args:
        share: whether two completions of a prompt share a line.
        least: tokens that a group has before another is begun.

    >>> row = Completion((5, 6), (7, 2), "demonstration", 1.0)
    >>> batch = to_batch([(row,)])
    >>> batch["groups"][0]["input_ids"].tolist(), batch["completion_ids"].tolist()
    ([[5, 6, 7]], [[7, 2]])
    """
    rows = [completion for example in examples for completion in example]
    width = max(len(row.completion_ids) for row in rows)
    ids = torch.full((len(rows), width), FILLER)
    lengths = torch.tensor([len(row.completion_ids) for row in rows])
    mask = torch.arange(width) < lengths[:, None]
    ids[mask] = torch.tensor([token for row in rows for token in row.completion_ids])
    return {
        "role": torch.tensor([ROLE_INDEX[row.role] for row in rows]),
        "score": torch.tensor([row.score for row in rows], dtype=torch.float32),
        "reference_logps": torch.tensor([row.reference_logps for row in rows], dtype=torch.float32),
        "demonstrated": torch.tensor([row.demonstrated for row in rows]),
        "completion_ids": ids,
        "completion_mask": mask,
        "groups": [_rectangle(own) for own in in_groups(lines_of(rows, share), least)],
    }


def _rectangle(lines: Sequence[Line]) -> dict[str, Tensor]:
    columns = max(line.length for line in lines)
    ids, positions, attention, place = [], [], [], []
    for number, line in enumerate(lines):
        prompt, first = len(line.rows[0].prompt_ids), len(line.rows[0].completion_ids) - 1
        text = [*line.rows[0].prompt_ids]
        for row in line.rows:
            text += row.completion_ids[:-1]
        at = [*range(prompt + first), *range(prompt, prompt + line.length - prompt - first)]
        empty = columns - len(text)
        ids.append(text + [FILLER] * empty)
        positions.append(at + [0] * empty)
        attention.append([1] * len(text) + [0] * empty)
        begin = prompt
        for index, row in zip(line.numbers, line.rows, strict=True):
            # the last token of the prompt predicts the first of each completion
            seen = [prompt - 1, *range(begin, begin + len(row.completion_ids) - 1)]
            place += [(number, column, index, nth) for nth, column in enumerate(seen)]
            begin += len(row.completion_ids) - 1
    line, column, row_of, position = torch.tensor(place).T.contiguous()
    starts = [(len(line.rows[0].prompt_ids), len(line.rows[0].completion_ids) - 1) for line in lines]
    return {
        "input_ids": torch.tensor(ids),
        "position_ids": torch.tensor(positions),
        "attention_mask": torch.tensor(attention),
        "prompt": torch.tensor([prompt for prompt, _ in starts]),
        "fork": torch.tensor([prompt + first for prompt, first in starts]),
        "shared": torch.tensor(any(len(line.rows) > 1 for line in lines)),
        "line": line,
        "column": column,
        "row": row_of,
        "position": position,
    }


def positions_of(batch: Mapping[str, Any]) -> tuple[int, int]:
    """How many positions a model computes for a batch, and how many tokens it would read one completion at a time."""
    here = sum(group["input_ids"].numel() for group in batch["groups"])
    return here, sum(int(group["attention_mask"].sum()) for group in batch["groups"])

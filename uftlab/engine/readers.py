"""Reading models: their generated text, their predictions and the log-probabilities of given text.

Code that measures policies uses a `Reader`. It works alike for one transformers model and for a stack of tiny models.
All arguments and results have one entry for each member.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, zip_longest
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from uftlab.engine import stack
from uftlab.engine.packing import Lines, Packed, pack
from uftlab.engine.stack import Layout, Weights
from uftlab.errors import InputError
from uftlab.models.generation import MAX_NEW_TOKENS, generate_ids, texts
from uftlab.models.logps import completion_logits, read_logps, row_batches
from uftlab.models.policies import evaluation_mode
from uftlab.rows.tokens import Completion, Example, Tokens

DECODED_LINES = 512  # lines decoded together on a CPU, over all members
SHRINK = 0.8  # finished lines are dropped once every member has at most this share of its lines left

Ids = tuple[int, ...]
Predictions = tuple[Float[Tensor, "row pos vocabulary"], Bool[Tensor, "row pos"]]


@runtime_checkable
class Reader(Protocol):
    """One or several models that can be read. The global random state stays as it is."""

    def generate(
        self, prompts: Sequence[Sequence[Ids]], max_new_tokens: int = MAX_NEW_TOKENS, seed: int | None = None
    ) -> list[list[Ids]]:
        """A completion for each prompt, the end token included when it was reached.

        Args:
            seed: None decodes greedily. A number samples at temperature 1, without top-k or top-p.
        """

    def logits(self, rows: Sequence[Sequence[Completion]]) -> list[Predictions]:
        """Logits that predict the completion tokens of each row, 0 after its end, and the mask of its tokens."""

    def logps(self, rows: Sequence[Sequence[Completion]]) -> list[Float[Tensor, "row"]]:
        """log pi(y | x) of each row, summed over its completion tokens, in nats."""


def answers_of(reader: Reader, tokens: Tokens, prompts: Sequence[Sequence[str]]) -> list[list[str]]:
    """Greedy answers of each member as text, one for each prompt: `uftlab.models.generation.answers` for a reader."""
    ids = [[tokens.prompt(p) for p in own] for own in prompts]
    return [texts(tokens.tokenizer, rows) for rows in reader.generate(ids)]


def reader_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Reader:
    """The fastest reader of one model: a stack of one member if the stack can compute it. Weights are copied now."""
    if isinstance(model, LlamaForCausalLM):
        try:
            layout = Layout.of(model.config)
        except InputError:
            return ModelReader(model, tokenizer)
        return StackReader(stack.flatten(model.state_dict(), layout)[None], layout, tokenizer)
    return ModelReader(model, tokenizer)


def _chunks(own: Sequence[Completion], size: int) -> list[tuple[list[int], list[Example]]]:
    """Chunks of at most `size` examples, ordered by length: the numbers of their rows, and the examples.

    Two neighbours with the same prompt make one example.
    """
    examples: list[tuple[int, list[int]]] = []
    for _, same in groupby(range(len(own)), key=lambda i: own[i].prompt_ids):
        run = list(same)
        for start in range(0, len(run), 2):
            here = run[start : start + 2]
            tokens = len(own[here[0]].prompt_ids) + sum(len(own[i].completion_ids) for i in here)
            examples.append((tokens, here))
    examples.sort()
    cut = [[rows for _, rows in examples[start : start + size]] for start in range(0, len(examples), size)]
    return [([i for rows in part for i in rows], [tuple(own[i] for i in rows) for rows in part]) for part in cut]


class _Predicted:
    """Collects the predictions of all members, chunk by chunk. Each member is as wide as its longest completion."""

    def __init__(self, rows: Sequence[Sequence[Completion]]) -> None:
        widths = [max((len(c.completion_ids) for c in own), default=0) for own in rows]
        self.masks = [torch.zeros(len(own), width, dtype=torch.bool) for own, width in zip(rows, widths, strict=True)]
        self.logits = [torch.zeros(len(own), 0, 0) for own in rows]

    def put(
        self, member: int, rows: list[int], logits: Float[Tensor, "token vocabulary"], mask: Bool[Tensor, "row pos"]
    ) -> None:
        """Adds the predictions of some rows of one member, token by token."""
        if self.logits[member].numel() == 0:
            self.logits[member] = torch.zeros(*self.masks[member].shape, logits.shape[-1])
        row, column = mask.cpu().nonzero(as_tuple=True)
        row = torch.tensor(rows)[row]
        self.masks[member][row, column] = True
        self.logits[member][row, column] = logits.float().cpu()

    def entries(self) -> list[Predictions]:
        """One entry for each member."""
        return list(zip(self.logits, self.masks, strict=True))


class ModelReader:
    """A reader of one transformers model, in evaluation mode and without gradient. Results are on the CPU."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer

    def generate(
        self, prompts: Sequence[Sequence[Ids]], max_new_tokens: int = MAX_NEW_TOKENS, seed: int | None = None
    ) -> list[list[Ids]]:
        """See `Reader`. Uses the generation of transformers."""
        (own,) = prompts
        return [generate_ids(self.model, self.tokenizer, own, max_new_tokens, seed)]

    def logits(self, rows: Sequence[Sequence[Completion]]) -> list[Predictions]:
        """See `Reader`."""
        (own,), predicted = rows, _Predicted(rows)
        with torch.no_grad(), evaluation_mode(self.model):
            for here, batch in row_batches(self.model, own):
                mask = batch["completion_mask"]
                predicted.put(0, here, completion_logits(self.model, batch)[mask], mask)
        return predicted.entries()

    def logps(self, rows: Sequence[Sequence[Completion]]) -> list[Float[Tensor, "row"]]:
        """See `Reader`."""
        (own,) = rows
        return [read_logps(self.model, own)]


class StackReader:
    """A reader of a stack of tiny Llamas (`uftlab.engine.stack`). Predictions and sums are on the CPU."""

    def __init__(
        self, weights: Float[Tensor, "member parameter"], layout: Layout, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.weights, self.layout, self.tokenizer = weights, layout, tokenizer
        self._split = Weights.of(weights, layout)

    def generate(
        self, prompts: Sequence[Sequence[Ids]], max_new_tokens: int = MAX_NEW_TOKENS, seed: int | None = None
    ) -> list[list[Ids]]:
        """See `Reader`. With a seed, prompt i of every member gets the same random numbers."""
        end: Any = self.tokenizer.eos_token_id
        return stacked_ids(self._split, self.layout, end, prompts, max_new_tokens, seed)

    @torch.no_grad()
    def logits(self, rows: Sequence[Sequence[Completion]]) -> list[Predictions]:
        """See `Reader`."""
        predicted = _Predicted(rows)
        for here, batch, logits in self._batches(rows):
            for member, own in enumerate(here):
                if not own:
                    continue
                pick, mask = batch.pick[member, : len(own)], batch.completion_mask[member, : len(own)]
                predicted.put(member, own, logits.flatten(0, 1)[pick[mask]], mask)
        return predicted.entries()

    @torch.no_grad()
    def logps(self, rows: Sequence[Sequence[Completion]]) -> list[Float[Tensor, "row"]]:
        """See `Reader`."""
        out = [torch.zeros(len(own)) for own in rows]
        for here, batch, logits in self._batches(rows):
            sums = stack.token_logps(logits, batch).sum(-1).cpu()
            for member, own in enumerate(here):
                out[member][own] = sums[member, : len(own)]
        return out

    def _batches(self, rows: Sequence[Sequence[Completion]]) -> Iterator[tuple[list[list[int]], Packed, Tensor]]:
        """For each chunk: the rows of each member, the batch and its logits. Shared lists of rows are cut only once."""
        distinct = {id(own): own for own in rows}
        longest = [
            max((len(c.prompt_ids) + len(c.completion_ids) for c in own), default=0) for own in distinct.values()
        ]
        reads = max((len(c.completion_ids) for own in distinct.values() for c in own), default=0)
        most = stack.lines_at_once(self.layout, max(longest), 2 * reads, self.weights.device)
        cut = {key: _chunks(own, max(1, most // len(rows))) for key, own in distinct.items()}
        lines = Lines([example for parts in cut.values() for _, examples in parts for example in examples])
        chunks: dict[int, list[tuple[list[int], np.ndarray]]] = {}
        end = 0
        for key, parts in cut.items():
            chunks[key] = []
            for here, examples in parts:
                end += len(examples)
                chunks[key].append((here, lines.chosen(np.arange(end - len(examples), end))))
        nothing: tuple[list[int], np.ndarray] = ([], np.zeros(0, dtype=np.int64))
        for parts in zip_longest(*(chunks[id(own)] for own in rows), fillvalue=nothing):
            batch = lines.pack(lines.table([own for _, own in parts])).to(self.weights.device)
            yield [here for here, _ in parts], batch, stack.logits(self._split, batch, self.layout)


# ------------------------------------------------------------------------------------------ generation by a stack


@torch.no_grad()
def stacked_ids(
    weights: Weights,
    layout: Layout,
    end: int,
    prompts: Sequence[Sequence[Ids]],
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int | None = None,
) -> list[list[Ids]]:
    """Completion ids for each prompt of each member, the end token included when it was reached.

    Args:
        prompts: those of each member, any number.
        seed: as in `generate_ids`. Prompt i of every member gets the same random numbers, whatever the other prompts
            are. So members differ by their weights only.
    """
    made: list[list[Ids]] = [[()] * len(own) for own in prompts]
    longest, device = max(map(len, prompts)), weights.embedding.device
    most = DECODED_LINES
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
    prompts: Sequence[Sequence[Ids]],
    count: int,
    noise: Float[Tensor, "member line pos"] | None,
) -> Int[Tensor, "member line pos"]:
    """The tokens that follow each prompt; after the end of an answer all are end tokens."""
    members, device = len(prompts), weights.embedding.device
    lines = max(map(len, prompts))
    batch = pack([[(Completion(p, (end,), "demonstration"),) for p in own] for own in prompts]).to(device)
    kept: stack.Cache = []
    logits = stack.logits(weights, batch, layout, kept)[:, :lines]  # the only read of a line is its last token
    positions = torch.tensor([[*map(len, own), *[0] * (lines - len(own))] for own in prompts], device=device)
    width = batch.columns
    # new tokens get the columns after the widest prompt; the mask hides columns after the own prompt
    cache = [(F.pad(keys, (0, 0, 0, count)), F.pad(values, (0, 0, 0, count))) for keys, values in kept]
    hidden = (torch.arange(width, device=device) >= positions[..., None]).flatten(0, 1)
    mask = torch.zeros(members * lines, 1, 1, width + count, device=device)
    mask[..., :width].masked_fill_(hidden[:, None, None], -torch.inf)
    out = torch.full((members, lines, count), end, device=device)
    place = torch.arange(lines, device=device).expand(members, -1)
    member = torch.arange(members, device=device)[:, None]
    done = positions == 0  # a member with fewer prompts has empty lines
    for t in range(count):
        chosen = logits.argmax(-1) if noise is None else _drawn(logits, noise[member, place, t])
        chosen = torch.where(done, end, chosen)
        out[member, place, t] = chosen
        done = done | (chosen == end)
        if t == count - 1:
            break
        left = int((~done).sum(1).max())  # the CPU waits here; waiting less often is not faster (docs/gpu.md)
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
    """The first token at which the cumulative probability exceeds a uniform random number in [0, 1)."""
    reached = logits.softmax(-1).cumsum(-1)
    wanted = noise[..., None] * reached[..., -1:]  # by rounding the last entry may differ from 1
    return torch.searchsorted(reached, wanted, right=True)[..., 0].clamp(max=logits.shape[-1] - 1)

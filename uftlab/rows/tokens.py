"""From rows to tokens: exact completion masks, the order of training, padded batches.

A batch is a dictionary of tensors with one row per completion. Prompts are padded on the left and completions on the
right. So all completions start in the same column, and only these columns need the output layer:

    <pad> <pad>  what  is | it   is   blue <end>
    <pad> which  one   is | blue <end> <pad> <pad>
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from uftlab.errors import InputError
from uftlab.rows.table import as_messages, kind_of

# The role of a completion in its loss. A mismatched one is the completion of another row, for KTO's baseline.
ROLES = ("demonstration", "scored", "label", "chosen", "rejected", "mismatched")
ROLE_INDEX = {role: index for index, role in enumerate(ROLES)}
UNKNOWN_REFUSED = 0.5  # largest share of rows with unknown words


@dataclass(frozen=True)
class Completion:
    """One tokenised completion with its prompt. `score` is the feedback, NaN if there is none.

    `demonstrated` says that it comes from the table of demonstrations, whatever its role in the loss.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    role: str
    score: float = float("nan")
    reference_logps: float = field(default=float("nan"), compare=False)
    demonstrated: bool = field(default=False, compare=False)

    def key(self) -> bytes:
        """A digest of the tokens. Equal tokens have equal keys."""
        content = repr((self.prompt_ids, self.completion_ids)).encode()
        return hashlib.blake2b(content, digest_size=16).digest()


Example = tuple[Completion, ...]  # completions that must stay in one batch: one, or the two of a pair


def _plain(text: str | list[dict]) -> str:
    if not isinstance(text, str):
        raise InputError("A tokenizer for chat messages", "have a chat template", "none", "Use plain strings")
    return text


class Tokens:
    """Converts prompts and completions to token ids, with the chat template if the tokenizer has one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token_id is None:
            raise InputError("The tokenizer", "have an end-of-sequence token", None, "Set tokenizer.eos_token")
        self.tokenizer = tokenizer

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prompt_text(self, prompt: str | list[dict]) -> str:
        if self.tokenizer.chat_template is None:
            return (self.tokenizer.bos_token or "") + _plain(prompt)
        messages = as_messages(prompt, "user")
        return self._render(messages, add_generation_prompt=True)

    def _render(self, messages: list[dict], **options: Any) -> str:
        return cast(str, self.tokenizer.apply_chat_template(messages, tokenize=False, **options))

    def prompt(self, prompt: str | list[dict]) -> tuple[int, ...]:
        """Ids of a prompt, up to the place where the answer starts."""
        return self._ids(self._prompt_text(prompt))

    def prompts(self, prompts: Sequence[str | list[dict]]) -> list[tuple[int, ...]]:
        """The ids of many prompts at once, which takes half the time."""
        lines = [self._prompt_text(prompt) for prompt in prompts]
        if not lines:
            return []  # the tokenizers of the library refuse an empty list
        return [tuple(ids) for ids in self.tokenizer(lines, add_special_tokens=False)["input_ids"]]

    def completion(self, prompt: str | list[dict], completion: str | list[dict]) -> tuple[int, ...]:
        """Ids of a completion and its end token. They are tokenised without the prompt, so the boundary is exact."""
        if self.tokenizer.chat_template is None:
            return (*self._ids(_plain(completion)), self.tokenizer.eos_token_id)
        messages = as_messages(prompt, "user") + as_messages(completion, "assistant")
        start = self._prompt_text(prompt)
        whole = self._render(messages)
        if not whole.startswith(start):
            remedy = "Use a template that renders a conversation as a prefix of its continuation"
            raise InputError("The chat template", "keep the prompt unchanged before the answer", whole[:80], remedy)
        return self._ids(whole[len(start) :])

    def examples(self, table: Dataset, max_length: int | None = None) -> list[Example]:
        """Tokenise a table into examples, one for each row.

        Args:
            max_length: rows with more tokens, prompt plus completion, are dropped with a warning. None keeps all.

        Raises:
            InputError: when half of the rows or more have words that the tokenizer does not know.
        """
        kind = kind_of(table.column_names)
        examples: list[Example] = []
        for row in table:
            prompt = self.prompt(row["prompt"])
            if kind == "preference":
                sides = [("chosen", row["chosen"]), ("rejected", row["rejected"])]
                example = tuple(Completion(prompt, self.completion(row["prompt"], y), role) for role, y in sides)
            else:
                ids = self.completion(row["prompt"], row["completion"])
                feedback = {"scored": row.get("score"), "label": row.get("label"), "demonstration": 1.0}[kind]
                example = (Completion(prompt, ids, kind, float(feedback)),)
            examples.append(example)
        self._check_known(examples)
        kept = [e for e in examples if max_length is None or max(map(_length, e)) <= max_length]
        if not kept:
            raise InputError("max_length", "keep at least one row", max_length, "Raise it")
        if len(kept) < len(examples):
            print(f"warning: dropped {len(examples) - len(kept)} of {len(examples)} rows over {max_length} tokens")
        return kept

    def once(self, key: Hashable, make: Callable[[], list[Example]]) -> list[Example]:
        """What `make` gives. `RememberingTokens` does not make it again for the same key."""
        return make()

    def _check_known(self, examples: list[Example]) -> None:
        unknown = self.tokenizer.unk_token_id
        if unknown is None:
            return
        bad = sum(any(unknown in c.prompt_ids or unknown in c.completion_ids for c in e) for e in examples)
        share = bad / len(examples)
        if share >= UNKNOWN_REFUSED:
            rule = f"know the words of more than {1 - UNKNOWN_REFUSED:.0%} of the rows"
            remedy = "Use a model whose tokenizer fits the data"
            raise InputError("The tokenizer", rule, f"unknown words in {share:.0%} of them", remedy)
        if bad:
            print(f"warning: {bad} of {len(examples)} rows ({share:.0%}) hold words that the tokenizer does not know")


class RememberingTokens(Tokens):
    """Remembers the ids of each text and of the last tables, for several runs on the same rows."""

    TABLES = 16

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        self.prompt = cache(super().prompt)  # type: ignore[assignment,method-assign]
        self.completion = cache(super().completion)  # type: ignore[assignment,method-assign]
        self._made: dict[Hashable, list[Example]] = {}

    def once(self, key: Hashable, make: Callable[[], list[Example]]) -> list[Example]:
        """What `make` gave for this key."""
        if key not in self._made:
            self._made = dict(list(self._made.items())[1 - self.TABLES :])
            self._made[key] = make()
        return self._made[key]


def _length(completion: Completion) -> int:
    return len(completion.prompt_ids) + len(completion.completion_ids)


def with_mismatched(examples: Sequence[Example]) -> list[Example]:
    """Each labelled example with a second completion: its prompt with the completion of a row with another prompt.

    KTO's baseline needs such pairs (Ethayarajh et al. 2024, section 4.1). The paper shifts within the batch. We take
    the next row of the table whose prompt differs, so that the reference log-probabilities are computed only once.
    Both estimate the same expectation.

    Raises:
        InputError: when all prompts are equal, so that no mismatched pair exists.
    """
    made: list[Example] = []
    for index, (own,) in enumerate(examples):
        later = (examples[(index + shift) % len(examples)][0] for shift in range(1, len(examples)))
        other = next((c for c in later if c.prompt_ids != own.prompt_ids), None)
        if other is None:
            raise InputError("KTO's table", "have at least two different prompts", "one", "Add rows or use una-binary")
        made.append((own, replace(own, completion_ids=other.completion_ids, role="mismatched")))
    return made


def with_quantiles(examples: Sequence[Example]) -> list[Example]:
    """The examples with each score replaced by its quantile: the share of scores in the table that are not higher.

    This is QRPO's transformation (Matrenok et al. 2025, arXiv 2507.08068; the authors' code). QRPO compares a score
    with those of completions that the reference sampled for the same prompt. A table has only one or two completions of
    a prompt, so we compare with all scores of the table. Scores 0.2, 0.5, 0.5, 0.9 become 0.25, 0.75, 0.75, 1.
    """
    scores = sorted(c.score for example in examples for c in example)
    return [
        tuple(replace(c, score=bisect.bisect_right(scores, c.score) / len(scores)) for c in example)
        for example in examples
    ]


def interleave(
    sources: Sequence[Sequence[Example]], per_step: Sequence[int], steps: int, seed: int, bucket: int = 8
) -> list[Example]:
    """The order of training: each step takes `per_step[i]` examples of `sources[i]`, in reshuffled epochs.

    Within blocks of `bucket` steps, examples of similar length share a batch, so that there is little padding. The
    steps of a block are shuffled. The order depends on the seed alone, so a resumed run continues at the right place.
    """
    rng = random.Random(f"uftlab order {seed}")
    lengths = [[max(map(_length, example)) for example in source] for source in sources]

    def epochs(count: int) -> Iterator[int]:
        while True:
            yield from rng.sample(range(count), count)

    streams = [epochs(len(source)) for source in sources]
    ordered: list[Example] = []
    for start in range(0, steps, bucket):
        size = min(bucket, steps - start)
        columns = []
        for source, length, stream, count in zip(sources, lengths, streams, per_step, strict=True):
            block = sorted(itertools.islice(stream, size * count), key=length.__getitem__)
            columns.append([[source[n] for n in block[i * count : (i + 1) * count]] for i in range(size)])
        batches = [list(itertools.chain(*step)) for step in zip(*columns, strict=True)]
        rng.shuffle(batches)
        ordered += itertools.chain(*batches)
    return ordered


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """Pad the completions of the examples into one batch, as the docstring of the module shows.

    >>> row = Completion((5, 6), (7, 2), "demonstration", 1.0)
    >>> batch = collate([(row,)], pad_id=0)
    >>> batch["input_ids"].tolist(), batch["completion_mask"].tolist()
    ([[5, 6, 7, 2]], [[True, True]])
    """
    rows = [completion for example in examples for completion in example]
    before = max(len(r.prompt_ids) for r in rows)
    after = max(len(r.completion_ids) for r in rows)
    ids, attention = [], []
    for r in rows:
        left, right = before - len(r.prompt_ids), after - len(r.completion_ids)
        ids.append([pad_id] * left + [*r.prompt_ids, *r.completion_ids] + [pad_id] * right)
        attention.append([0] * left + [1] * _length(r) + [0] * right)
    input_ids, attention_mask = torch.tensor(ids), torch.tensor(attention)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "completion_mask": attention_mask[:, before:].bool(),
        "role": torch.tensor([ROLE_INDEX[r.role] for r in rows]),
        "score": torch.tensor([r.score for r in rows], dtype=torch.float32),
        "reference_logps": torch.tensor([r.reference_logps for r in rows], dtype=torch.float32),
    }

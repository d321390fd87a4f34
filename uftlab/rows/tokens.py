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
from functools import cached_property, lru_cache
from typing import Any, Literal, cast

import torch
from datasets import Dataset
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from uftlab.errors import InputError
from uftlab.rows.kinds import as_messages, kind_of, rows_from

# The role of a completion in its loss. A mismatched one is the completion of another row, for KTO's baseline.
ROLES = ("demonstration", "scored", "label", "chosen", "rejected", "mismatched")
ROLE_INDEX = {role: index for index, role in enumerate(ROLES)}
UNKNOWN_REFUSED = 0.5  # largest share of rows with unknown words
REMEMBERED = 2**18  # texts


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


# Conversations that show how a template ends an answer. The second serves templates that want a system message.
_QUESTION, _ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
_PROBES = ([_QUESTION], [{"role": "system", "content": "be brief"}, _QUESTION])


def _plain(text: str | list[dict]) -> str:
    if not isinstance(text, str):
        raise InputError("A tokenizer for chat messages", "have a chat template", "none", "Use plain strings")
    return text


class Tokens:
    """Converts prompts and completions to token ids, with the chat template if the tokenizer has one.

    The ids of a prompt and of its completion together are those of the whole conversation, tokenised at once. So
    nothing is added at the boundary, for instance no space by SentencePiece. A row with a token that lies on both sides
    of the boundary is refused. With a chat template:

    - A template that closes an answer with a special token teaches the model this token, for instance `<|im_end|>` or
      `<|eot_id|>`, even if the tokenizer names another token as its end. `stop_ids` holds both.
    - After a template that closes an answer with nothing, the end token of the tokenizer is added.
    - A space before the answer belongs to the completion, in training and in generation, because most tokenizers make
      it a part of the first word.

    Without a template the ids are the begin token if there is one, the text, and the end token. Then a completion is
    tokenised as a continuation of any text if a token would lie on both sides of the boundary.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token_id is None:
            raise InputError("The tokenizer", "have an end-of-sequence token", None, "Set tokenizer.eos_token")
        self.tokenizer = tokenizer
        self._last: tuple[tuple[bool, str], tuple[int, ...]] = ((False, ""), ())  # each completion asks for its prompt
        self._numbers: dict[int, int] = {}  # one object for each number: 8 bytes a token and not 40

    def _ids(self, text: str) -> tuple[int, ...]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tuple(map(self._numbers.setdefault, ids, ids))

    def _render(self, messages: list[dict], **options: Any) -> str:
        try:
            return cast(str, self.tokenizer.apply_chat_template(messages, tokenize=False, **options))
        except (TemplateError, TypeError, KeyError) as error:  # the template's own words, or what it lacks
            remedy = "Change the messages, or use a model whose template accepts them"
            raise InputError("The chat template", "accept the conversation", str(error).rstrip("."), remedy) from None

    @cached_property
    def _closing(self) -> tuple[int, ...]:
        """The special tokens with which the template closes an answer."""
        for question in _PROBES:
            try:
                whole = self._ids(self._render([*question, _ANSWER]))
                break
            except InputError as error:
                refused = error
        else:
            raise refused
        closing: list[int] = []
        for token in reversed(whole):
            if self._is_special(token):
                closing.insert(0, token)
            elif str(self.tokenizer.decode([token])).strip():
                break
        return tuple(closing)

    def _is_special(self, token: int) -> bool:
        added = self.tokenizer.added_tokens_decoder.get(token)
        is_end = token == self.tokenizer.eos_token_id
        return is_end or (added is not None and added.special and token != self.tokenizer.unk_token_id)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer: the end token, and those with which the template closes an answer."""
        closing = () if self.tokenizer.chat_template is None else self._closing
        return tuple(dict.fromkeys((self.tokenizer.eos_token_id, *closing)))

    @property
    def _begin(self) -> tuple[int, ...]:
        """What comes before a plain text."""
        return () if self.tokenizer.bos_token_id is None else (self.tokenizer.bos_token_id,)

    def _prompt_text(self, prompt: str | list[dict]) -> str:
        if self.tokenizer.chat_template is None:
            return _plain(prompt)
        return self._render(as_messages(prompt, "user"), add_generation_prompt=True).rstrip(" ")

    def prompt(self, prompt: str | list[dict]) -> tuple[int, ...]:
        """Ids of a prompt, up to the place where the answer starts.

        Raises:
            InputError: when the template refuses the prompt.
        """
        key = (isinstance(prompt, str), str(prompt))
        if key != self._last[0]:
            ids = self._ids(self._prompt_text(prompt))
            self._last = (key, ids if self.tokenizer.chat_template is not None else (*self._begin, *ids))
        return self._last[1]

    def prompts(self, prompts: Sequence[str | list[dict]]) -> list[tuple[int, ...]]:
        """The ids of many prompts at once, which takes half the time."""
        lines = [self._prompt_text(prompt) for prompt in prompts]
        if not lines:
            return []  # the tokenizers of the library refuse an empty list
        begin = () if self.tokenizer.chat_template is not None else self._begin
        return [(*begin, *ids) for ids in self.tokenizer(lines, add_special_tokens=False)["input_ids"]]

    def completion(self, prompt: str | list[dict], completion: str | list[dict]) -> tuple[int, ...]:
        """Ids of a completion and of the token that ends it: what follows the ids of the prompt in the conversation.

        Raises:
            InputError: when the template refuses the conversation or changes the prompt once there is an answer, or
                when a token lies on both sides of the boundary.
        """
        start = self.prompt(prompt)
        if self.tokenizer.chat_template is None:
            whole = (*self._begin, *self._ids(_plain(prompt) + _plain(completion)))
            ids = whole[len(start) :] if whole[: len(start)] == start else self._continuation(_plain(completion))
            return (*ids, self.tokenizer.eos_token_id)
        text = self._render(as_messages(prompt, "user") + as_messages(completion, "assistant"))
        whole = self._ids(text)
        if whole[: len(start)] == start:
            return whole[len(start) :] if self._closing else (*whole[len(start) :], self.tokenizer.eos_token_id)
        if not text.startswith(self._prompt_text(prompt)):
            remedy = "Use a template that renders a conversation as a prefix of its continuation"
            raise InputError(
                "The chat template", "keep the prompt unchanged before the answer", repr(text[:80]), remedy
            )
        shared = next((n for n, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b), len(whole))
        got = repr(self.tokenizer.decode(list(whole[shared : shared + 1])))
        remedy = "Drop the row, or use a template that puts a special token before the answer"
        raise InputError(
            "The tokenizer", "have a boundary of tokens where the answer starts", f"the token {got}", remedy
        )

    def _continuation(self, text: str) -> tuple[int, ...]:
        """Ids of a text that follows another. After a line break SentencePiece adds no space of its own."""
        mark = self._ids("\n")
        both = self._ids("\n" + text)
        return both[len(mark) :] if both[: len(mark)] == mark else self._ids(text)

    def examples(
        self, table: Dataset, max_length: int | None = None, on_bad_row: Literal["refuse", "drop"] = "refuse"
    ) -> list[Example]:
        """Tokenise a table into examples, one for each row.

        Args:
            max_length: rows with more tokens, prompt plus completion, are dropped with a warning. None keeps all.
            on_bad_row: whether a row that cannot be tokenised is an error or is dropped with a warning.

        Raises:
            InputError: when a row cannot be tokenised; the message names the row. Also when half of the rows or more
                have words that the tokenizer does not know.
        """
        kind = kind_of(table.column_names)
        examples: list[Example] = []
        refused: list[InputError] = []
        for number, row in enumerate(rows_from(table), start=1):
            try:
                examples.append(self._example(row, kind))
            except InputError as error:
                refused.append(error.at(f"Row {number} of the {kind} table"))
                if on_bad_row == "refuse" or len(refused) == len(table):
                    raise refused[-1] from None
        if refused:
            print(f"warning: dropped {len(refused)} of {len(table)} rows that cannot be tokenised. {refused[0]}")
        self._check_known(examples)
        kept = [e for e in examples if max_length is None or max(map(_length, e)) <= max_length]
        if not kept:
            raise InputError("max_length", "keep at least one row", max_length, "Raise it")
        if len(kept) < len(examples):
            print(f"warning: dropped {len(examples) - len(kept)} of {len(examples)} rows over {max_length} tokens")
        return kept

    def _example(self, row: dict[str, Any], kind: str) -> Example:
        prompt = self.prompt(row["prompt"])
        if kind == "preference":
            sides = [("chosen", row["chosen"]), ("rejected", row["rejected"])]
            return tuple(Completion(prompt, self.completion(row["prompt"], y), role) for role, y in sides)
        ids = self.completion(row["prompt"], row["completion"])
        feedback: Any = {"scored": row.get("score"), "label": row.get("label"), "demonstration": 1.0}[kind]
        return (Completion(prompt, ids, kind, float(feedback)),)

    def once(self, key: Hashable, make: Callable[[], list[Example]]) -> list[Example]:
        """What `make` gives. `RememberingTokens` does not make it again for the same key."""
        return make()

    def _check_known(self, examples: list[Example]) -> None:
        unknown, tokenizer = self.tokenizer.unk_token_id, self.tokenizer
        # GPT-2, Pythia, OPT and SmolLM name one token for begin, end and unknown: then it says nothing about the words.
        if unknown is None or unknown in (tokenizer.bos_token_id, *self.stop_ids):
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
    """Remembers the ids of the last texts and tables, for several runs on the same rows."""

    TABLES = 16

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        self.prompt = _remembering(super().prompt)  # type: ignore[method-assign]
        self.completion = _remembering(super().completion)  # type: ignore[method-assign]
        self._made: dict[Hashable, list[Example]] = {}

    def once(self, key: Hashable, make: Callable[[], list[Example]]) -> list[Example]:
        """What `make` gave for this key."""
        if key not in self._made:
            self._made = dict(list(self._made.items())[1 - self.TABLES :])
            self._made[key] = make()
        return self._made[key]


def _remembering(ids_of: Callable[..., tuple[int, ...]]) -> Callable[..., tuple[int, ...]]:
    """The same function of texts, which computes each ids once. Messages are no keys, so they are computed again."""
    remembered = lru_cache(REMEMBERED)(ids_of)
    return lambda *texts: (remembered if all(isinstance(t, str) for t in texts) else ids_of)(*texts)


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
    steps of a block are shuffled. A block is no longer than the smallest table: else a step would hold copies of a few
    rows. The order depends on the seed alone, so a resumed run continues at the right place.
    """
    bucket = max(1, min(bucket, *(len(source) // count for source, count in zip(sources, per_step, strict=True))))
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

"""The only place that shifts, masks and gathers; the one loop that reads rows; what was read of references."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, cast

import psutil
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from uftlab.models.policies import evaluation_mode
from uftlab.rows.tokens import Completion, Example, collate

READING = 0.1  # share of the free memory that reading may fill: several processes may share a GPU
ROWS = 256  # that one model reads at a time at most
LOGITS_KEPT = 4  # numbers per completion token and word: the logits, the same in float32, two on the way to their sum
STATES_KEPT = 32  # numbers per token and width of the model, within its largest layer


def gather_logps(
    logits: Float[Tensor, "completion pos vocabulary"],
    targets: Int[Tensor, "completion pos"],
    mask: Bool[Tensor, "completion pos"],
) -> Float[Tensor, "completion pos"]:
    """log p(target) at each position in nats, in float32, and exactly 0 where the mask is False.

    `logits[:, t]` must be the prediction *for* `targets[:, t]`: the shift happens before.
    """
    logits = logits.float()
    chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return torch.where(mask, chosen - logits.logsumexp(-1), 0.0)


def token_kl(
    logits: Float[Tensor, "completion pos vocabulary"],
    other_logits: Float[Tensor, "completion pos vocabulary"],
    mask: Bool[Tensor, "completion pos"],
) -> Float[Tensor, "completion pos"]:
    """KL(p || q) of the next-token distributions at each position in nats, exactly 0 where the mask is False.

    p are the distributions of `logits`, q those of `other_logits`. log 2 for (1, 0) against (1/2, 1/2).
    """
    log_p, log_q = (x.to(torch.promote_types(x.dtype, torch.float32)).log_softmax(-1) for x in (logits, other_logits))
    return torch.where(mask, (log_p.exp() * (log_p - log_q)).sum(-1), 0.0)


def completion_logits(model: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, "completion pos vocabulary"]:
    """Logits that predict the completion tokens, column by column; the output layer runs at these columns only."""
    attention = batch["attention_mask"]
    keep = batch["completion_mask"].shape[1] + 1  # one earlier: the last prompt token predicts the first word
    outputs = model(
        input_ids=batch["input_ids"],
        attention_mask=attention,
        position_ids=(attention.cumsum(-1) - 1).clamp(min=0),
        logits_to_keep=keep,
        use_cache=False,
    )
    return outputs.logits[:, -keep:-1]


def completion_ids(batch: dict[str, Tensor]) -> Int[Tensor, "completion pos"]:
    """The tokens of the completions, column by column, padding included."""
    return batch["input_ids"][:, -batch["completion_mask"].shape[1] :]


def token_logps(model: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, "completion pos"]:
    """log pi(y_t | x, y_<t) of each completion token in nats; 0 at padding."""
    return gather_logps(completion_logits(model, batch), completion_ids(batch), batch["completion_mask"])


def completion_logps(model: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, "completion"]:
    """log pi(y | x), summed over completion tokens (the end token included), in nats."""
    return token_logps(model, batch).sum(-1)


def fingerprint(model: nn.Module) -> str:
    """A digest of all weights: two models with equal weights share it, and training changes it."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def as_reference(model: nn.Module) -> Iterator[None]:
    """Within, a model is read as a reference: evaluation mode, no gradient, LoRA adapters off."""
    adapters_off = cast(Any, model).disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
    with torch.no_grad(), evaluation_mode(model), adapters_off:
        yield


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def rows_at_once(model: nn.Module, columns: int, reads: int) -> int:
    """How many rows a model of transformers reads together: what fits in a share of the free memory, at most `ROWS`.

    A power of 2, so that a little more or less free memory changes nothing.

    Args:
        columns: tokens of a row, `reads` of them its completion, for which there are logits over the vocabulary.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary, width = (int(getattr(config, name, None) or 0) for name in ("vocab_size", "hidden_size"))
    each = 4 * (LOGITS_KEPT * reads * vocabulary + STATES_KEPT * columns * width)
    fit = READING * free_memory(next(model.parameters()).device) / max(1, each)
    return 2 ** int(math.log2(min(ROWS, max(1.0, fit))))


def row_batches(
    model: nn.Module, rows: Sequence[Completion], pad_id: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """The rows by length, as many at a time as fit: which rows, and their batch on the model's device.

    So the memory that reading takes does not grow with the number of rows.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt_ids) + len(rows[i].completion_ids))
    while order:
        own = [rows[i] for i in order[:ROWS]]
        reads = max(len(c.completion_ids) for c in own)
        size = rows_at_once(model, max(len(c.prompt_ids) for c in own) + reads, reads)
        here, order = order[:size], order[size:]
        batch = collate([(c,) for c in own[:size]], pad_id)
        yield here, {name: value.to(device) for name, value in batch.items()}


def read_token_logps(model: nn.Module, rows: Sequence[Completion], pad_id: int) -> Float[Tensor, "completion pos"]:
    """log pi of each completion token of each row in nats, 0 after the end, on the CPU.

    The model is read as it is, adapters and all, in evaluation mode and without gradient.
    """
    found = torch.zeros(len(rows), max((len(c.completion_ids) for c in rows), default=0))
    with torch.no_grad(), evaluation_mode(model):
        for here, batch in row_batches(model, rows, pad_id):
            logps = token_logps(model, batch).cpu()
            found[here, : logps.shape[1]] = logps
    return found


def read_logps(model: nn.Module, rows: Sequence[Completion], pad_id: int) -> Float[Tensor, "completion"]:
    """log pi(y | x) of each row, summed over its completion tokens, in nats. See `read_token_logps`."""
    return read_token_logps(model, rows, pad_id).sum(-1)


def reference_logps(model: nn.Module, rows: Sequence[Completion], pad_id: int) -> Float[Tensor, "completion"]:
    """log pi_ref(y | x) of each row in nats: the model is read with its LoRA adapters off."""
    with as_reference(model):
        return read_logps(model, rows, pad_id)


class ReferenceCache:
    """Reference log-probabilities, computed once per (weights, tokens) and looked up by content afterwards.

    Keys hold a digest of the model's weights, so a value can never be stale, and the computation draws no
    random number, so it cannot move the order of the data.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes], float] = {}
        self.computed = 0  # completions that went through the reference, for budgets and tests

    def fill(self, model: nn.Module, examples: Sequence[Example], pad_id: int) -> list[Example]:
        """The examples with `reference_logps` set. A model with LoRA adapters is read with them switched off."""
        return self.fill_from(fingerprint(model), lambda rows: reference_logps(model, rows, pad_id), examples)

    def fill_from(
        self, weights: str, read: Callable[[Sequence[Completion]], Tensor], examples: Sequence[Example]
    ) -> list[Example]:
        """The same for whatever has these weights (their digest) and can be read: completions to log-probabilities."""
        keys = {c.key(): c for example in examples for c in example}
        missing = {key: c for key, c in keys.items() if (weights, key) not in self._known}
        if missing:
            values = read(list(missing.values())).tolist()
            self._known.update({(weights, key): value for key, value in zip(missing, values, strict=True)})
        self.computed += len(missing)

        def filled(c: Completion) -> Completion:
            return replace(c, reference_logps=self._known[weights, c.key()])

        return [tuple(map(filled, example)) for example in examples]

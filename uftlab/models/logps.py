"""Log-probabilities of completions: shifting, masking and gathering, reading rows in batches, the reference cache."""

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

READING = 0.1  # share of the free memory that reading may use; several processes may share a GPU
ROWS = 256  # most rows that one model reads at a time
LOGITS_KEPT = 4  # numbers per completion token and word: logits, logits in float32, two temporary copies
STATES_KEPT = 32  # numbers per token and unit of width, within the largest layer of the model


def gather_logps(
    logits: Float[Tensor, "completion pos vocabulary"],
    targets: Int[Tensor, "completion pos"],
    mask: Bool[Tensor, "completion pos"],
) -> Float[Tensor, "completion pos"]:
    """log p(target) at each position in nats, in float32, and exactly 0 where the mask is False.

    `logits[:, t]` must be the prediction *of* `targets[:, t]`: the caller shifts them.
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

    p is the distribution of `logits`, q that of `other_logits`. log 2 for (1, 0) against (1/2, 1/2).
    """
    log_p, log_q = (x.to(torch.promote_types(x.dtype, torch.float32)).log_softmax(-1) for x in (logits, other_logits))
    return torch.where(mask, (log_p.exp() * (log_p - log_q)).sum(-1), 0.0)


def completion_logits(model: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, "completion pos vocabulary"]:
    """Logits that predict the completion tokens, column by column. The output layer runs at these columns only."""
    attention = batch["attention_mask"]
    keep = batch["completion_mask"].shape[1] + 1  # one more: the last prompt token predicts the first completion token
    outputs = model(
        input_ids=batch["input_ids"],
        attention_mask=attention,
        position_ids=(attention.cumsum(-1) - 1).clamp(min=0),
        logits_to_keep=keep,
        use_cache=False,
    )
    return outputs.logits[:, -keep:-1]


def completion_ids(batch: dict[str, Tensor]) -> Int[Tensor, "completion pos"]:
    """Token ids of the completions, padding included."""
    return batch["input_ids"][:, -batch["completion_mask"].shape[1] :]


def token_logps(model: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, "completion pos"]:
    """log pi(y_t | x, y_<t) of each completion token in nats; 0 at padding."""
    return gather_logps(completion_logits(model, batch), completion_ids(batch), batch["completion_mask"])


def completion_logps(model: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, "completion"]:
    """log pi(y | x), summed over completion tokens (the end token included), in nats."""
    return token_logps(model, batch).sum(-1)


def fingerprint(model: nn.Module) -> str:
    """A digest of all weights. Models with equal weights have equal digests; training changes the digest."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def as_reference(model: nn.Module) -> Iterator[None]:
    """Inside this context a model is a reference: evaluation mode, no gradient, LoRA adapters off."""
    adapters_off = cast(Any, model).disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
    with torch.no_grad(), evaluation_mode(model), adapters_off:
        yield


def free_memory(device: torch.device) -> int:
    """Free memory of a device, in bytes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def rows_at_once(model: nn.Module, columns: int, reads: int) -> int:
    """How many rows a transformers model reads together: as many as fit in a share of the free memory, at most `ROWS`.

    The result is a power of 2, so that small changes of the free memory do not change it.

    Args:
        columns: number of tokens of a row.
        reads: number of completion tokens among them. Each needs logits over the whole vocabulary.
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
    """Batches of rows of similar length, as large as memory allows: the numbers of the rows, and the batch itself.

    The batch is on the device of the model. The memory that reading needs does not grow with the number of rows.
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

    The model is in evaluation mode, without gradient. LoRA adapters stay as they are.
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
    """log pi_ref(y | x) of each row in nats. LoRA adapters are switched off."""
    with as_reference(model):
        return read_logps(model, rows, pad_id)


class ReferenceCache:
    """Reference log-probabilities: computed once for each pair of weights and tokens, looked up afterwards.

    The key includes a digest of the weights, so a value is never out of date. The computation draws no random numbers,
    so it cannot change the order of the data.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes], float] = {}
        self.computed = 0  # number of completions that the reference has read, for budgets and tests

    def fill(self, model: nn.Module, examples: Sequence[Example], pad_id: int) -> list[Example]:
        """The examples with `reference_logps` set. LoRA adapters of the model are switched off."""
        return self.fill_from(fingerprint(model), lambda rows: reference_logps(model, rows, pad_id), examples)

    def fill_from(
        self, weights: str, read: Callable[[Sequence[Completion]], Tensor], examples: Sequence[Example]
    ) -> list[Example]:
        """Like `fill`, for any function `read` from completions to log-probabilities; `weights` is the digest."""
        keys = {c.key(): c for example in examples for c in example}
        missing = {key: c for key, c in keys.items() if (weights, key) not in self._known}
        if missing:
            values = read(list(missing.values())).tolist()
            self._known.update({(weights, key): value for key, value in zip(missing, values, strict=True)})
        self.computed += len(missing)

        def filled(c: Completion) -> Completion:
            return replace(c, reference_logps=self._known[weights, c.key()])

        return [tuple(map(filled, example)) for example in examples]

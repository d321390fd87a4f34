"""The only place that shifts, masks and gathers; and the cache of reference log-probabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from uftlab.models.policies import evaluation_mode
from uftlab.rows.tokens import Completion, Example, collate


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


class ReferenceCache:
    """Reference log-probabilities, computed once per (weights, tokens) and looked up by content afterwards.

    Keys hold a digest of the model's weights, so a value can never be stale, and the computation draws no
    random number, so it cannot move the order of the data.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes], float] = {}
        self.computed = 0  # completions that went through the reference, for budgets and tests

    def fill(self, model: nn.Module, examples: Sequence[Example], pad_id: int, batch_size: int = 256) -> list[Example]:
        """The examples with `reference_logps` set. A model with LoRA adapters is read with them switched off."""

        def read(rows: Sequence[Completion]) -> list[float]:
            return reference_logps(model, rows, pad_id).tolist()

        return self.fill_from(fingerprint(model), read, examples, batch_size)

    def fill_from(
        self,
        weights: str,
        read: Callable[[Sequence[Completion]], list[float]],
        examples: Sequence[Example],
        batch_size: int = 256,
    ) -> list[Example]:
        """The same for whatever has these weights (their digest) and can be read: completions to log-probabilities."""
        keys = {c.key(): c for example in examples for c in example}
        missing = [c for key, c in keys.items() if (weights, key) not in self._known]
        missing.sort(key=lambda c: len(c.prompt_ids) + len(c.completion_ids))
        for start in range(0, len(missing), batch_size):
            rows = missing[start : start + batch_size]
            self._known.update({(weights, c.key()): v for c, v in zip(rows, read(rows), strict=True)})
        self.computed += len(missing)

        def filled(c: Completion) -> Completion:
            return replace(c, reference_logps=self._known[weights, c.key()])

        return [tuple(map(filled, example)) for example in examples]


@contextmanager
def as_reference(model: nn.Module) -> Iterator[None]:
    """Within, a model is read as a reference: evaluation mode, no gradient, LoRA adapters off."""
    adapters_off = cast(Any, model).disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
    with torch.no_grad(), evaluation_mode(model), adapters_off:
        yield


def reference_logps(model: nn.Module, rows: Sequence[Completion], pad_id: int) -> Float[Tensor, "completion"]:
    """log pi_ref(y | x) of each row in nats: evaluation mode, no gradient, adapters off."""
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in collate([(c,) for c in rows], pad_id).items()}
    with as_reference(model):
        return completion_logps(model, batch).cpu()

"""Reading a model as a reference: without gradient and adapters, once for each pair of weights and tokens."""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor, nn

from uftlab.errors import InputError
from uftlab.files import atomically
from uftlab.models.logps import read_logps
from uftlab.models.policies import evaluation_mode
from uftlab.rows.tokens import Completion, Example


def fingerprint(model: nn.Module) -> str:
    """A digest of all weights. Models with equal weights have equal digests; training changes the digest."""
    return _digest(model.state_dict())


def reference_fingerprint(model: nn.Module) -> str:
    """A digest of what `as_reference` reads: of an adapted model that of its base, whatever its adapters."""
    if not hasattr(model, "disable_adapter"):
        return fingerprint(model)
    plain = {name: weight for name, weight in model.state_dict().items() if ".lora_" not in name}
    return _digest({n.removeprefix("base_model.model.").replace(".base_layer.", "."): w for n, w in plain.items()})


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def as_reference(model: nn.Module) -> Iterator[None]:
    """Inside this context a model is a reference: evaluation mode, no gradient, LoRA adapters off."""
    adapters_off = cast(Any, model).disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
    with torch.no_grad(), evaluation_mode(model), adapters_off:
        yield


def reference_logps(
    model: nn.Module, rows: Sequence[Completion], done: Callable[[int], Any] | None = None
) -> Float[Tensor, "completion"]:
    """log pi_ref(y | x) of each row in nats. LoRA adapters are switched off."""
    with as_reference(model):
        return read_logps(model, rows, done)


class ReferenceCache:
    """Reference log-probabilities: computed once for each pair of weights and tokens, looked up afterwards.

    The key includes a digest of the weights, so a value is never out of date. The computation draws no random numbers,
    so it cannot change the order of the data. Several processes of one training share the reading.

    Args:
        folder: where values are kept for other runs, a file for each model; None keeps them in memory.
        precision: under which the model reads; it belongs to the key, because values differ.
    """

    def __init__(self, folder: Path | None = None, precision: torch.dtype | None = None) -> None:
        self._known: dict[tuple[str, bytes], float] = {}
        self.computed = 0  # number of completions that the reference has read, for budgets and tests
        self.folder, self.precision, self._loaded = folder, precision, set[str]()

    def fill(
        self, model: nn.Module, examples: Sequence[Example], done: Callable[[int, int], Any] | None = None
    ) -> list[Example]:
        """The examples with `reference_logps` set. LoRA adapters of the model are switched off.

        Args:
            done: is told how many rows were read, and how many there are to read.
        """
        return self.reader(model, done)(examples)

    def reader(
        self, model: nn.Module, done: Callable[[int, int], Any] | None = None
    ) -> Callable[[Sequence[Example]], list[Example]]:
        """`fill` for several tables of one model, whose weights are digested once. It ends when the weights change."""
        device = next(model.parameters()).device.type
        mixed = torch.autocast(device, self.precision) if self.precision else nullcontext()

        def read(rows: Sequence[Completion]) -> Tensor:
            with mixed:
                return reference_logps(model, rows, done and partial(_tell, done, [0], len(rows)))

        weights = reference_fingerprint(model) + (f" {self.precision}" if self.precision else "")
        return partial(self.fill_from, weights, read)

    def fill_from(
        self, weights: str, read: Callable[[Sequence[Completion]], Tensor], examples: Sequence[Example]
    ) -> list[Example]:
        """Like `fill`, for any function `read` from completions to log-probabilities; `weights` is the digest."""
        self._load(weights)
        keys = {c.key(): c for example in examples for c in example}
        missing = {key: c for key, c in keys.items() if (weights, key) not in self._known}
        if missing:
            self._known.update({(weights, key): value for key, value in _shared(read, missing).items()})
            self._save(weights)
        self.computed += len(missing)

        def filled(c: Completion) -> Completion:
            return replace(c, reference_logps=self._known[weights, c.key()])

        return [tuple(map(filled, example)) for example in examples]

    def _file(self, weights: str) -> Path | None:
        return self.folder and self.folder / f"{weights.replace(' ', '-')}.npz"

    def _load(self, weights: str) -> None:
        path = self._file(weights)
        if path is None or weights in self._loaded or not path.is_file():
            return
        self._loaded.add(weights)
        try:
            with np.load(path, allow_pickle=False) as stored:
                keys, values = [bytes(key) for key in stored["keys"]], stored["values"].tolist()
            found = {(weights, key): float(value) for key, value in zip(keys, values, strict=True)}
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error):
            return  # what is no cache is read anew
        if all(map(math.isfinite, found.values())):
            self._known.update(found)

    def _save(self, weights: str) -> None:
        path = self._file(weights)
        if path is None or not _is_main():
            return
        own = {key: value for (of, key), value in self._known.items() if of == weights}
        keys = np.frombuffer(b"".join(own), dtype=np.uint8).reshape(len(own), -1)
        # a place where one may not write costs a second reading, and nothing else
        with suppress(InputError), atomically(path) as part, part.open("wb") as file:
            np.savez(file, keys=keys, values=np.array(list(own.values()), dtype=np.float32))


def _tell(done: Callable[[int, int], Any], so_far: list[int], total: int, more: int) -> None:
    so_far[0] += more
    done(so_far[0], total)


def _is_main() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _shared(read: Callable[[Sequence[Completion]], Tensor], missing: Mapping[bytes, Completion]) -> dict[bytes, float]:
    """What is missing, read by all processes of a training together."""
    keys = list(missing)
    if not torch.distributed.is_initialized():
        return dict(zip(keys, read([missing[key] for key in keys]).tolist(), strict=True))
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    own = keys[rank::count]
    values = read([missing[key] for key in own]).tolist() if own else []
    return dict(gather_object(list(zip(own, values, strict=True))))

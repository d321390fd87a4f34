"""Where the stored data lies, and files that are written whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DATA = Path(__file__).resolve().parent.parent / "data"


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all: a reader, or a run after a crash, never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def save_atomically(path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all."""
    from safetensors.torch import save_file  # here, since reading results must not wait for torch

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".part{os.getpid()}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(part), metadata)
    os.replace(part, path)

"""The folders of data and notebooks, and files that are written completely or not at all.

In a checkout, `data/` and `notebooks/` are at the top of the repository, and everything is read and written there. An
installed package has both inside, but it must not write into itself. So it makes a copy in the cache folder of the user
when the files are first needed, and uses this copy like a checkout.

`DATA` is the folder `data/` of the checkout or of the copy.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from uftlab.errors import InputError

if TYPE_CHECKING:
    import torch

PACKAGE = Path(__file__).resolve().parent
CARRIED = ("data", "notebooks")  # folders in an installed package, or at the top of a checkout


def is_checkout() -> bool:
    """Whether this code is in a checkout of the repository. An editable installation is."""
    return not (PACKAGE / "data").is_dir()


@cache
def home() -> Path:
    """The folder with `data/` and `notebooks/`: the top of the checkout, or the copy of an installed package.

    Raises:
        InputError: when the copy cannot be written.
    """
    if is_checkout():
        return PACKAGE.parent
    from platformdirs import user_cache_path  # imported here, because a checkout does not need it

    return lay_out(PACKAGE, user_cache_path("uftlab", appauthor=False))


def lay_out(package: Path, cache_folder: Path) -> Path:
    """Copy the folders of a package into a folder below `cache_folder`, unless the copy exists. Returns the folder.

    The name of the folder depends on the content, so another version has another folder.

    Raises:
        InputError: when the folder cannot be written.
    """
    folder = cache_folder / _digest(package)
    if folder.is_dir():
        return folder
    part = cache_folder / f"{folder.name}.{os.getpid()}.part"
    try:
        for name in CARRIED:
            shutil.copytree(package / name, part / name, copy_function=shutil.copyfile)
        part.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # otherwise another process was faster
            remedy = "Set XDG_CACHE_HOME to a folder that you may write"
            raise InputError("The user's cache folder", "be writable", f"{cache_folder} ({error})", remedy) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _digest(package: Path) -> str:
    found = hashlib.blake2b(digest_size=6)
    for path in carried(package):
        found.update(f"{path.relative_to(package).as_posix()}\n{path.stat().st_size}\n".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def carried(folder: Path) -> Iterator[Path]:
    """All files of `data/` and `notebooks/` in a folder, in a fixed order."""
    for name in CARRIED:
        yield from sorted(path for path in (folder / name).rglob("*") if path.is_file())


def __getattr__(name: str) -> Path:
    """`DATA` is computed when it is first used: `uftlab --help` needs no copy."""
    if name != "DATA":
        raise AttributeError(f"module 'uftlab.files' has no attribute {name!r}")
    return home() / "data"


def own_results(name: str) -> Path:
    """A folder for what is made on the way: `results/NAME` of the checkout, or the user's cache where it is read-only.

    A class may share one checkout that none of its members may write.
    """
    folder = home() / "results" / name
    near = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    if os.access(near, os.W_OK):
        return folder
    from platformdirs import user_cache_path

    return user_cache_path("uftlab", appauthor=False) / name


def write_atomically(path: Path, text: str) -> None:
    """Write a file completely or not at all. No reader ever sees a part of it, not even after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def save_atomically(path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, completely or not at all."""
    from safetensors.torch import save_file  # imported here, because reading results must not need torch

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".part{os.getpid()}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(part), metadata)
    os.replace(part, path)

"""The folders of data and notebooks, and files that are written completely or not at all.

In a checkout, `data/` and `notebooks/` are at the top of the repository, and everything is read and written there. An
installed package has both inside, but it must not write into itself. So it makes a copy in the cache folder of the user
when the files are first needed, and uses this copy like a checkout.

`DATA` is the folder `data/` of the checkout or of the copy.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uftlab.errors import InputError

if TYPE_CHECKING:
    import torch
    from filelock import FileLock

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
    """All files of `data/` and `notebooks/` in a folder, in a fixed order; no hidden ones, such as locks."""
    for name in CARRIED:
        files = (folder / name).rglob("*")
        yield from sorted(path for path in files if path.is_file() and not path.name.startswith("."))


def __getattr__(name: str) -> Path:
    """`DATA` is computed when it is first used: `uftlab --help` needs no copy."""
    if name != "DATA":
        raise AttributeError(f"module 'uftlab.files' has no attribute {name!r}")
    return home() / "data"


def own_folder(name: str) -> Path:
    """A folder for what is made on the way: in the checkout, or in the user's cache where that is read-only.

    A class may share one checkout that none of its members may write.
    """
    folder = home() / name
    near = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    if os.access(near, os.W_OK):
        return folder
    from platformdirs import user_cache_path

    return user_cache_path("uftlab", appauthor=False) / name


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """A new file beside `path`, to be written within; then it takes the place of `path`, completely or not at all.

    No reader ever sees a part of it, not even after a crash. What a killed process has left of the same file is
    removed. The name of the new file cannot be foreseen, so no link of somebody else is ever followed.

    Raises:
        InputError: when the folder cannot be written, the disk is full, or a folder has this name.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path}", "be a file", "a folder of this name", "Choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left(path.parent, path.name)
        part = path.with_name(f".{path.name}.{_own_mark()}.{secrets.token_hex(4)}.part")
        try:
            # it is made here, so that its rights are those of any new file
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666))
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise not_written(path, error) from None


def not_written(path: Path, error: OSError) -> InputError:
    """What a command says when the system does not let it write a file: the folder, the reason, and what to do."""
    if error.errno == errno.ENOENT and "usable temporary directory" in str(error):
        got, remedy = "none that can be written", "Set TMPDIR to a folder that you may write"
        return InputError("The system", "have a folder for temporary files", got, remedy)
    if isinstance(error, shutil.Error):  # of a folder that was copied: for each file what the system said
        _, place, said = error.args[0][0]
        if number := re.search(r"Errno (\d+)", str(said)):
            return not_written(Path(place), OSError(int(number[1]), os.strerror(int(number[1]))))
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "Free space, then give the same command again" if full else "Choose another place, or change its rights"
    got = f"{error.strerror or error} for {path.name}"
    return InputError(f"The folder {path.parent}", "take the file that is written", got, remedy)


def check_writable(folder: Path, option: str = "--out") -> None:
    """Refuses a folder in which no file can be made, before any work starts. The folder is made if there is none.

    Raises:
        InputError: naming the folder.
    """
    for parent in (folder, *folder.parents):
        if parent.exists() and not parent.is_dir():
            rule = "not lie below a regular file"
            raise InputError("The output folder", rule, parent, f"Choose another {option}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # an existing folder may be read-only
    except OSError as error:
        got = f"{folder} ({error.strerror})"
        raise InputError("The output folder", "be writable", got, f"Choose another {option}") from None


def _own_mark() -> str:
    """This process, in the name of a file: its machine and number."""
    return f"{hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()}-{os.getpid()}"


def remove_left(folder: Path, name: str = "") -> None:
    """Remove what processes of this machine that are gone have left of files they were writing in a folder.

    Args:
        name: of the file that was written; empty: any.
    """
    machine = _own_mark().partition("-")[0]
    for part in folder.glob(f".{glob.escape(name) or '*'}.{machine}-*.part"):
        found = re.fullmatch(rf"\..*\.{machine}-(\d+)\.[0-9a-f]{{8}}\.part", part.name)
        if found and not _writes(int(found[1]), part):
            with contextlib.suppress(OSError):
                part.unlink()


def _writes(number: int, part: Path) -> bool:
    """Whether the process that made a file is still there. Another one may have its number by now."""
    import psutil  # imported here, because nothing else here needs it

    try:
        return number == os.getpid() or psutil.Process(number).create_time() <= part.stat().st_mtime + 1
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError):
        return True


def into_place(path: Path, place: Path) -> None:
    """Move a file to its place, with the rights of any new file: safetensors 0.8 makes files for their owner alone."""
    hidden = os.umask(0o077)  # the only way to ask is to set it
    os.umask(hidden)
    path.chmod(0o666 & ~hidden)
    os.replace(path, place)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file completely or not at all: see `atomically`."""
    with atomically(path) as part:
        part.write_text(text, encoding="utf-8")


def write_between(path: Path, name: str, text: str) -> None:
    """Write a text into a file between the lines `<!-- name -->` and `<!-- end of name -->`. The rest stays.

    Raises:
        InputError: for a file without these lines.
    """
    start, end = f"<!-- {name} -->\n\n", f"\n\n<!-- end of {name} -->"
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not 0 <= before.find(start) < before.find(end):
        rule = f"hold the lines {start.strip()} and {end.strip()}"
        raise InputError(path.name, rule, f"a file without them: {path}", "Add both lines")
    write_atomically(path, f"{before.split(start)[0]}{start}{text}{end}{before.split(end)[1]}")


def save_atomically(path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, completely or not at all: see `atomically`."""
    from safetensors.torch import save  # imported here, because reading results must not need torch

    with atomically(path) as part:
        part.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))


def read_json(content: bytes, *, nan: bool = False) -> Any:
    """The value of a JSON text, read strictly: UTF-8, no key twice in an object, no NaN or infinity.

    Args:
        nan: take NaN and infinity, which some writers of tables put in JSON.

    Raises:
        ValueError: saying what is wrong, in one line. So it is for numbers of thousands of digits and deep nesting.
    """
    try:
        return json.loads(content.decode(), object_pairs_hook=_object, parse_constant=float if nan else _no_number)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {content[error.start]:#x} at {error.start} is no UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    except ValueError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)[:60]!r} is there twice")
    return made


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def rounded(value: Any, digits: int) -> Any:
    """Every float in lists and mappings with so many significant digits, which keeps stored results small.

    >>> rounded({"step": 40, "losses": (0.123456, 2.0)}, 3)
    {'step': 40, 'losses': [0.123, 2.0]}
    """
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {name: rounded(own, digits) for name, own in value.items()}
    return [rounded(own, digits) for own in value] if isinstance(value, list | tuple) else value


def locked(path: Path) -> "FileLock":
    """A lock on a file that is read, changed and written again: no other process changes it meanwhile."""
    from filelock import FileLock

    return FileLock(path.with_name(f".{path.name}.lock"), mode=0o666)

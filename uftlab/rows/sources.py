"""Where tables come from: a file, a folder of files, or a data set of the Hugging Face hub.

A source is a text:

| source                    | is                                                                          |
| ------------------------- | --------------------------------------------------------------------------- |
| `rows.jsonl`              | a file: .parquet, .jsonl, .json (lines or one array), the last two also .gz |
| `folder` or `folder@test` | a folder of such files, as on the hub: `data/train-00000-of-00001.parquet`  |
| `owner/name:subset@split` | a data set of the hub; subset and split may be left out                     |

Without a split, `train` is read; else `train_sft` for demonstrations and `train_prefs` for feedback; else the only one
whose name begins with `train`, but for `train_gen`, which has no answers to learn; else the only split there is. Where
there are several, the line of what was understood names the one that was taken, as in `owner/name@train_sft`.
Local files are read directly, without a cache, so a file that was replaced is read anew. They are read twice, line by
line or some thousand rows at a time, and never lie in memory whole; but for a JSON array, which has no lines.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BufferedIOBase
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
from datasets import Dataset
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from uftlab.errors import InputError
from uftlab.files import read_json
from uftlab.rows.kinds import CHUNK, Rows, rows_from
from uftlab.rows.layouts import OnBadRow, Range, TrainOn
from uftlab.rows.understanding import sentence, understand

ENDINGS = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz")
BUFFER = 1 << 20  # bytes of a column of Parquet that are read at a time
HUB_TIMEOUT = 10  # seconds to wait for the hub's first answer; there is no second attempt
UTF_8_MARK = b"\xef\xbb\xbf"  # which some editors put before UTF-8
PIECE = re.compile(r"[-_.]?(\d{5}-of-\d{5}([-_.]\w+)?|part[-_.]?\d*|\d+)$")  # of a file name: which piece of a split

USUAL = {"demonstrations": "train_sft", "feedback": "train_prefs"}  # splits of UltraChat and of binarized UltraFeedback
HIDDEN = re.compile(r"/\.|/dataset_infos?\.json$")  # what a folder of the hub holds besides its rows


def load_table(
    source: str | Path,
    *,
    split: str | None = None,
    subset: str | None = None,
    columns: Mapping[str, str] | None = None,
    layout: str | None = None,
    train_on: TrainOn | None = None,
    score_range: Range | None = None,
    on_bad_row: OnBadRow = "drop-empty",
    limit: int | None = None,
    purpose: str | None = None,
) -> tuple[Dataset, str]:
    """A validated table from any source in any known layout, and one line that says what was understood.

    Args:
        source: see the docstring of the module.
        split, subset: in place of `@split` and `:subset` in the source. A subset of a folder is a folder inside it.
        columns: our name -> the name in the source. Only these columns are read then, for instance
            `{"prompt": "question", "completion": "answer"}`.
        limit: read this many rows from the beginning. A conversation is one row here.
        layout, train_on, score_range, on_bad_row: see `uftlab.rows.understanding.understand`.
        purpose: "demonstrations" or "feedback"; decides where no split is named and several could be meant.

    Raises:
        InputError: for a source that cannot be read, within seconds, and for what `understand` refuses.
    """
    rows, source = rows_of(source, split=split, subset=subset, purpose=purpose)
    rows = Rows(partial(_some, rows, limit, columns, source))
    options: dict[str, Any] = {"layout": layout, "train_on": train_on, "score_range": score_range}
    table, phrases = understand(rows, source, **options, on_bad_row=on_bad_row)
    return table, sentence(source, phrases)


def rows_of(
    source: str | Path, *, split: str | None = None, subset: str | None = None, purpose: str | None = None
) -> tuple[Rows, str]:
    """The rows of any source as Python objects, and the source with the split that was chosen among several.

    Raises:
        InputError: for a source that does not exist, within seconds. What is wrong in a file is found as it is read.
    """
    name, subset, split = _parsed(str(source), subset, split)
    path = Path(name)
    if path.is_file():
        if split is not None or subset is not None:
            raise InputError(
                f"The file {path}", "be given without split or subset", f"{split or subset}", "Leave it out"
            )
        return Rows(partial(rows_in, path)), str(source)
    if path.is_dir():
        rows, chosen = _from_folder(path, subset, split, purpose)
    elif re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not name.endswith(ENDINGS):
        rows, chosen = _from_hub(name, subset, split, purpose)
    else:
        remedy = "Give a file, a folder, or a data set of the hub as owner/name:subset@split"
        raise InputError("A data file", "exist", name, f"Check the path. {remedy}")
    return rows, f"{source}@{chosen}" if chosen else str(source)


def _split_among(splits: Iterable[str], split: str | None, purpose: str | None, what: str, name: str) -> str:
    """The split that is meant (see the docstring of the module).

    Raises:
        InputError: listing those there are, when none is named and several could be meant.
    """
    have = sorted(splits)
    training = [own for own in have if own.startswith("train") and own != "train_gen"]
    usual = USUAL.get(purpose or "", "")
    if split is None:
        split = next((own for own in ("train", usual) if own in have), None)
        only = next((own for own in (training, have) if len(own) == 1), [""])
        split = split or only[0]
    if split not in have:
        rule = f"have the split {split}" if split else "have the split train, or one that is meant"
        remedy = f"Choose one, as in {name}@{(training or have)[0]}"
        raise InputError(what, rule, f"the splits {', '.join(have)}", remedy)
    return split


def load_file(path: str | Path) -> Dataset:
    """A table from one file or folder. Every bad row is an error. Prints what was understood if it is not plain."""
    path = Path(path)
    if not path.exists():
        raise InputError("A data file", "exist", path, "Check the path")
    rows, name = rows_of(path)
    table, phrases = understand(rows, name, on_bad_row="refuse")
    if len(phrases) > 1:
        print(sentence(name, phrases))
    return table


def _parsed(source: str, subset: str | None, split: str | None) -> tuple[str, str | None, str | None]:
    """Name, subset and split of a source. A path that exists is taken as it is, whatever signs are in it."""
    if Path(source).exists():
        return source, subset, split
    found = re.fullmatch(r"(.+?)(?::([^:@/]+))?(?:@([^@/]+))?", source)
    name, own_subset, own_split = found.groups() if found else (source, None, None)
    for word, given, own in (("subset", subset, own_subset), ("split", split, own_split)):
        if given is not None and own is not None and given != own:
            raise InputError(f"The {word} of {name}", "be given once", f"{own} and {given}", "Leave out one of them")
    return name, subset or own_subset, split or own_split


def _some(rows: Rows, limit: int | None, columns: Mapping[str, str] | None, source: str) -> Iterator[Any]:
    for number, row in enumerate(islice(rows, limit), start=1):
        yield row if columns is None else _renamed(row, columns, f"{source}, row {number},")


def _renamed(row: Any, columns: Mapping[str, str], where: str) -> dict[str, Any]:
    lacking = sorted(set(columns.values()) - set(row if isinstance(row, dict) else ()))
    if lacking:
        have = sorted(row) if isinstance(row, dict) else repr(row)[:60]
        raise InputError(where, f"have the columns {', '.join(lacking)}", have, "Correct the map of columns")
    return {ours: row[theirs] for ours, theirs in columns.items()}


# --------------------------------------------------------------------------------------------- files


def read_rows(path: Path) -> list[Any]:
    """All rows of one small file at once: see `rows_in`."""
    return list(rows_in(path))


def rows_in(path: Path) -> Iterator[Any]:
    """The rows of one file as Python objects, one after the other.

    Raises:
        InputError: naming the file, and the line if there is one, when it is reached.
    """
    if path.name.endswith(".parquet"):
        yield from _parquet(path)
        return
    if not path.name.endswith(ENDINGS):
        raise InputError("A data file", "end in .jsonl or .parquet", path.name, "Convert it")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            try:
                yield from _json_rows(file, path)
            except InputError:
                for _ in file:  # where a damaged gzip is noticed at its end alone, this is the cause
                    pass
                raise
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}", "be readable", error, "Check its permissions, or download it again") from None


def _json_rows(file: BufferedIOBase, path: Path) -> Iterator[Any]:
    """The rows of an open file of lines, or of one array."""
    start = file.read(len(UTF_8_MARK))
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path}", "be written in UTF-8", "UTF-16", "Save it as UTF-8")
    begin = len(UTF_8_MARK) if start == UTF_8_MARK else 0
    file.seek(begin)
    first = next(filter(None, map(bytes.strip, file)), b"")
    file.seek(begin)
    if first.startswith(b"["):
        if (rows := _array(file.read())) is not None:
            yield from rows
            return
        file.seek(begin)
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield _json(line.removesuffix(b"\n"), f"{path}, line {number},")


def _array(content: bytes) -> list[Any] | None:
    """The rows of a JSON array; None if the content is none. Then the lines tell where it is wrong."""
    try:
        whole = read_json(content, nan=True)
    except ValueError:
        return None
    return whole if isinstance(whole, list) else None


def _json(line: bytes, what: str) -> Any:
    shown = repr(line[:60].decode(errors="replace"))
    try:
        return read_json(line, nan=True)  # a column that nobody reads may have NaN
    except ValueError as error:
        if "is no UTF-8" in str(error):
            remedy = "Save the file as UTF-8; it may be Latin-1"
            raise InputError(what, "be valid JSON in UTF-8", f"{shown} ({error})", remedy) from None
        raise InputError(what, "be valid JSON", f"{shown} ({error})", "Write one JSON object per line") from None


def _parquet(path: Path) -> Iterator[Any]:
    try:
        # a buffer made in advance would keep the whole file
        with pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            names = file.schema_arrow.names
            if twice := sorted({name for name in names if names.count(name) > 1}):
                remedy = "Rename or drop one of them"
                raise InputError(f"{path}", "have each column once", f"{', '.join(twice)} twice", remedy)
            for batch in file.iter_batches(CHUNK):
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException, ValueError, ArithmeticError) as error:  # a date of the year 10,000
        if isinstance(error, InputError):
            raise
        reason = _first_line(error)
        raise InputError(f"{path}", "be a whole Parquet file", reason, "Write or download it again") from None


# -------------------------------------------------------------------------------------------- folders


def _from_folder(folder: Path, subset: str | None, split: str | None, purpose: str | None) -> tuple[Rows, str | None]:
    """The rows of one split of a folder, its files in the order of their names; and the split, if it was chosen here
    among several.
    """
    if subset is not None:
        folder = folder / subset
    files = [f for f in sorted(folder.rglob("*")) if f.name.endswith(ENDINGS) and f.is_file()]
    files = [f for f in files if not HIDDEN.search(f"/{f.relative_to(folder).as_posix()}")]
    if not files:
        raise InputError(f"The folder {folder}", f"hold files in {', '.join(ENDINGS)}", "none", "Check the folder")
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    chosen = _split_among(splits, split, purpose, f"The folder {folder}", str(folder))
    own = splits[chosen]
    if len({file.suffix for file in own}) > 1:
        got = ", ".join(file.name for file in own)
        raise InputError(f"The split {chosen} of {folder}", "be in files of one format", got, "Give one of the files")
    rows = Rows(lambda: chain.from_iterable(map(rows_in, own)))
    return rows, chosen if split is None and len(splits) > 1 else None


def _split_of(file: Path) -> str:
    """The split that a file belongs to: `train` for data/train-00000-of-00001.parquet and for train/0.parquet.

    A name without a split, such as part-0.parquet, is `train`.
    """
    stem = re.sub(r"(\.parquet|\.jsonl?(\.gz)?)$", "", file.name)
    folders = [part for part in file.parts[:-1] if part not in ("data", "default")]
    return PIECE.sub("", stem) or (folders[-1] if folders else "train")


# ---------------------------------------------------------------------------------------------- hub


def _from_hub(name: str, subset: str | None, split: str | None, purpose: str | None) -> tuple[Rows, str | None]:
    """The rows of a data set of the hub, or of its cache if the hub cannot be reached; and the split, if it was chosen
    here among several.
    """
    what = f"The data set {name}"
    local = "or give a file or a folder; no such path exists here"
    unreachable = "this process works offline" if huggingface_hub.constants.HF_HUB_OFFLINE else None
    if unreachable is None:
        try:
            huggingface_hub.HfApi().dataset_info(name, timeout=HUB_TIMEOUT)
        except GatedRepoError:
            raise _gated(name) from None
        except RepositoryNotFoundError:
            raise InputError(what, "exist on the hub", "no such data set", f"Check the name, {local}") from None
        except Exception as error:  # whatever the HTTP client raises when there is no connection
            unreachable = f"the hub cannot be reached: {_first_line(error)}"
    try:
        with _offline(unreachable is not None):
            tables = datasets.load_dataset(name, subset)  # the library prepares all splits, whichever is asked for
    except Exception as error:  # the library has no common class for missing splits, subsets, files and connections
        causes = [error, error.__cause__, error.__context__]
        if any(isinstance(cause, GatedRepoError) for cause in causes) or "gated" in str(error):
            raise _gated(name) from None
        if unreachable is not None and isinstance(error, OSError | HfHubHTTPError):
            got = f"no copy in the cache, and {unreachable}"
            raise InputError(what, "be in the cache or on a hub in reach", got, f"Go online, {local}") from None
        remedy = (
            "Choose a split and a subset as in owner/name:subset@split, or download its files and give their folder"
        )
        raise InputError(what, "be loadable", _first_line(error), remedy) from None
    full = f"{name}:{subset}" if subset else name
    chosen = _split_among(tables, split, purpose, what, full)
    return Rows(partial(rows_from, tables[chosen])), chosen if split is None and len(tables) > 1 else None


def _gated(name: str) -> InputError:
    remedy = f"Accept its terms on https://huggingface.co/datasets/{name} and log in with `hf auth login`"
    return InputError(f"The data set {name}", "be open to you", "a gated data set", remedy)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def _offline(switch: bool) -> Iterator[None]:
    """Both libraries use their caches only, within. They would try again for a minute and more."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if switch:
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before

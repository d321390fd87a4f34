"""What one machine holds: a million rows in a table and in a training, ten thousand trials in a folder.

    python benchmarks/scale.py                          # a million rows, ten thousand trials: docs/data.md
    python benchmarks/scale.py --rows 1000 --trials 10  # a small try

Rows of about 80 words of the tiny world are written as JSONL, as gzip and as Parquet: demonstrations and pairs. Each
file is read in a process of its own, which says how much time of the processor that took and what memory it used at
most: all of the process, and what came on top of Python with its libraries. Then a short training on both JSONL files
is made, and a folder with many copies of one stored trial is listed. Everything is removed at the end.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
KINDS = ("demonstrations", "pairs")
ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
PROMPT, ANSWER = 20, 60  # words
STEPS = 20  # of the training
TRIALS = HERE.parent.parent / "data" / "results" / "class" / "trials"  # of the usual profile, with curves


# ------------------------------------------------------------------------------------------ what is read


def rows(kind: str, count: int) -> Iterator[dict[str, str]]:
    """Rows of words that the tiny model knows, the same each time."""
    from uftlab.models.policies import tiny_tokenizer

    words = sorted(word for word in tiny_tokenizer().get_vocab() if word.isalpha())
    rng = random.Random(f"scale {kind}")

    def text(length: int) -> str:
        return " ".join(rng.choices(words, k=length))

    for _ in range(count):
        if kind == "demonstrations":
            yield {"prompt": text(PROMPT), "completion": text(ANSWER)}
        else:
            yield {"prompt": text(PROMPT), "chosen": text(ANSWER // 2), "rejected": text(ANSWER // 2)}


def write(folder: Path, kind: str, count: int) -> list[Path]:
    """The rows of a kind in three formats, line by line. Returns the files."""
    import pyarrow as pa
    import pyarrow.json
    import pyarrow.parquet

    paths = [folder / f"{kind}{ending}" for ending in ENDINGS]
    with paths[0].open("w") as plain, gzip.open(paths[1], "wt", compresslevel=1) as packed:
        for row in rows(kind, count):
            line = json.dumps(row) + "\n"
            plain.write(line)
            packed.write(line)
    with pyarrow.json.open_json(paths[0]) as lines, pa.parquet.ParquetWriter(paths[2], lines.schema) as out:
        for batch in lines:
            out.write_batch(batch)
    return paths


# ------------------------------------------------------------------------------------ in a process of its own


def peak() -> int:
    """The most memory that this process has had, in bytes. What its parent had is not in it."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(s.split()[1]) * 1024 for s in status.read_text().splitlines() if s.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def load(path: str) -> int:
    """The rows of a file."""
    from uftlab.rows.sources import load_table

    return len(load_table(path)[0])


def score(path: str) -> int:
    """The scored rows that a file becomes for UFT."""
    from uftlab.rows.sources import load_table
    from uftlab.rows.table import as_scored

    return len(as_scored(load_table(path)[0]))


def train(folder: str) -> int:
    """The optimiser steps of a UFT training of the tiny model on both JSONL files of a folder."""
    from uftlab.training.checkpoint import train_checkpoint
    from uftlab.training.configuration import TrainConfig

    shown, judged = f"{folder}/demonstrations.jsonl", f"{folder}/pairs.jsonl"
    train_checkpoint(TrainConfig(f"{folder}/trained", demonstrations=shown, feedback=judged, steps=STEPS), say=print)
    return STEPS


def trials(folder: str) -> int:
    """The trials of a results folder."""
    from uftlab.study.results import load as stored

    return len(stored(Path(folder)))


WORK: dict[str, Callable[[str], int]] = {"load": load, "score": score, "train": train, "trials": trials}


def ready(work: str) -> None:
    """Imports what a work needs, so that neither its seconds nor its memory count."""
    import uftlab.rows.table
    import uftlab.study.results

    if work == "train":
        import uftlab.training.checkpoint  # noqa: F401


def in_a_process(work: str, place: Path) -> dict[str, Any]:
    """What a work on a place took: seconds of the processor, bytes at most and before it began; how many there were."""
    command = [sys.executable, str(HERE), "--work", work, str(place)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def work_here(work: str, place: str) -> dict[str, Any]:
    """The same in this process."""
    ready(work)
    before, start = peak(), time.process_time()
    count = WORK[work](place)
    return {"seconds": time.process_time() - start, "peak": peak(), "before": before, "count": count}


# ----------------------------------------------------------------------------------------------- all of it


def measured(folder: Path, count: int, copies: int) -> Iterator[dict[str, Any]]:
    """A line of the table for each thing that is measured, as soon as it is."""
    for kind in KINDS:
        for path in write(folder, kind, count):
            yield {"what": f"read {path.name}", "size": path.stat().st_size, **in_a_process("load", path)}
        path = folder / f"{kind}.jsonl"
        yield {"what": f"{path.name} as scored rows", "size": path.stat().st_size, **in_a_process("score", path)}
    size = sum((folder / f"{kind}.jsonl").stat().st_size for kind in KINDS)
    yield {"what": f"{STEPS} steps of UFT on both", "size": size, **in_a_process("train", folder)}
    own = folder / "results" / "trials"
    own.mkdir(parents=True)
    stored = sorted(TRIALS.glob("*.json"), key=lambda path: (path.stat().st_size, path.name))
    middle = stored[len(stored) // 2]
    for number in range(copies):
        shutil.copyfile(middle, own / f"{number:05d}.json")
    size = copies * middle.stat().st_size
    yield {"what": "list a folder of trials", "size": size, **in_a_process("trials", folder / "results")}


def line(own: dict[str, Any]) -> str:
    """What is measured as a line of a table.

    >>> line({"what": "read", "size": 5e8, "count": 1000, "seconds": 2.0, "peak": 9e8, "before": 4e8})
    '| read | 1,000 | 500 MB | 2.0 s | 900 MB | 500 MB |'
    """
    sizes = [f"{own_size / 1e6:,.0f} MB" for own_size in (own["size"], own["peak"], own["peak"] - own["before"])]
    return f"| {own['what']} | {own['count']:,} | {sizes[0]} | {own['seconds']:.1f} s | {sizes[1]} | {sizes[2]} |"


HEAD = """| what | rows, steps or trials | files | processor | memory at most | of it on top of the libraries |
|---|---|---|---|---|---|"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where the files are made for a while (default: a temporary one)")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.work:
        print(json.dumps(work_here(*told.work)))
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    place = Path(tempfile.mkdtemp(prefix="scale-", dir=told.folder))
    try:
        print(HEAD)
        for own in measured(place, told.rows, told.trials):
            print(line(own), flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()

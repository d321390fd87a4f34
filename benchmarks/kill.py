"""Commands that are killed at random moments: afterwards the same command finishes, and nothing is lost or left.

    python benchmarks/kill.py --kills 100 study      also: map, train, notebooks, export
    python benchmarks/kill.py --kills 20 --minutes 8 study train

First the command runs undisturbed. Then it is started again and again in folders of its own, and at a random moment a
random signal (SIGKILL, SIGTERM, SIGINT) goes to its process, to one of its children, or to all of them. After each kill
it is looked at: are children of it alive after `GRACE` seconds? Then the same command runs to its end. Its results must
be those of the undisturbed run to the bit, and no `.part` file may be left. `tests/test_kill.py` runs a few.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

GRACE = 60.0  # seconds after which no child may be alive; busy machines are slow
PATIENCE = 1800.0  # seconds after which a run that is let finish hangs
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
WHOM = ("parent", "child", "all")
VARYING = ("measured", "wall_seconds")  # of a trial file: no results


@dataclass(frozen=True)
class Work:
    """A command, with the folder that its results go to in place of OUT, and what of it must be the same each time.

    Args:
        again: what is added where the folder holds something unfinished.
    """

    arguments: tuple[str, ...]
    results: Callable[[Path], Mapping[str, str]]
    again: tuple[str, ...] = ()


def digest(content: bytes) -> str:
    """A short name of some bytes."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def of_study(out: Path) -> dict[str, str]:
    """The trial files of a study without the times, and its tables."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.parent.name == "trials" and path.suffix == ".json":
            stored = {k: v for k, v in json.loads(path.read_bytes()).items() if k not in VARYING}
            found[path.name] = digest(json.dumps(stored).encode())
        elif path.name == "results.csv":
            lines = [line for line in path.read_text().splitlines() if ",cost/seconds," not in line]
            found[path.name] = digest("\n".join(lines).encode())
        elif path.name == "report.html":
            found[path.name] = str(path.read_text().endswith("</html>"))
    return found


def of_training(out: Path) -> dict[str, str]:
    """The weights and the tokenizer of a trained model."""
    names = ("*.safetensors", "tokenizer.json", "config.json")
    return {path.name: digest(path.read_bytes()) for name in names for path in sorted(out.glob(name))}


def of_notebooks(out: Path) -> dict[str, str]:
    """Which notebooks are executed to the end."""
    found = {}
    for path in sorted(out.glob("*.ipynb")):
        code = [cell for cell in json.loads(path.read_bytes())["cells"] if cell["cell_type"] == "code"]
        found[path.name] = str(all(cell["execution_count"] is not None for cell in code if "".join(cell["source"])))
    return found


def of_pages(out: Path) -> dict[str, str]:
    """Which pages are whole."""
    return {path.name: str(path.read_text().rstrip().endswith("</html>")) for path in sorted(out.glob("*.html"))}


METHODS = "base,sft,uft"
WORK = {
    "study": Work(("run", "--profile", "smoke", "--methods", METHODS, "--workers", "2", "--out", "OUT"), of_study),
    "map": Work(("map", "E3", "--worlds", "1", "--workers", "2", "--out", "OUT"), of_study),
    "train": Work(
        ("train", "--model", "tiny", "--demonstrations", "ROWS", "--method", "sft-full", "--steps", "120",
         "--batch", "8", "--save-every", "20", "--out", "OUT"), of_training, ("--resume",),
    ),
    "notebooks": Work(("notebooks", "--only", "01", "--out", "OUT"), of_notebooks),
    "export": Work(("export", "--only", "01", "--profile", "smoke", "--out", "OUT"), of_pages),
}  # fmt: skip


@dataclass
class Count:
    """What came of the kills of one command."""

    kills: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def start(work: Work, place: Path, rows: Path, more: tuple[str, ...] = ()) -> subprocess.Popen:
    """The command in a process of its own session; its output goes to a file."""
    words = {"OUT": str(place / "out"), "ROWS": str(rows)}
    arguments = [words.get(word, word) for word in work.arguments]
    if more:  # to go on, a training needs its folder alone
        arguments = ["train", *more, "--out", words["OUT"]]
    log = (place / "log").open("ab")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(place / "tmp")}
    (place / "tmp").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "uftlab", *arguments]
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """The children of a process, and theirs."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def strike(process: subprocess.Popen, how: signal.Signals, whom: str, rng: random.Random) -> list[psutil.Process]:
    """Send the signal; returns all children that were there."""
    children = family(process)
    targets: list[Any] = [psutil.Process(process.pid)] if process.poll() is None else []
    if whom == "child" and children:
        targets = [rng.choice(children)]
    elif whom == "all":
        targets += children
    for target in targets:
        with contextlib.suppress(psutil.NoSuchProcess):
            target.send_signal(how)
    return children


def left_alive(children: list[psutil.Process], seconds: float = GRACE) -> list[psutil.Process]:
    """The children that do not end; they are ended here."""
    alive = psutil.wait_procs(children, timeout=seconds)[1]
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return alive


def ended(process: subprocess.Popen, seconds: float) -> int | None:
    """The exit code, or None for a process that does not end; it is ended here with its children."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        children = family(process)
        process.kill()
        process.wait()
        left_alive(children, 0)
        return None


def finish(work: Work, place: Path, rows: Path) -> str:
    """Let the command run to its end, as a user would after reading what it says. "" or what went wrong."""
    for more in ((), work.again):
        process = start(work, place, rows, more)
        code = ended(process, PATIENCE)
        if code == 0:
            return ""
        said = (place / "log").read_text(errors="replace").splitlines()[-1:]
        if work.again and "a finished run" in str(said):
            return ""  # it was killed when all was saved; the results say whether that is so
        if not work.again or "--resume" not in str(said):
            break
    return f"the rerun ended with {code}: {said}"


def kill_once(
    work: Work, place: Path, rows: Path, whole: Mapping[str, str], seconds: float, seed: int
) -> tuple[str, str]:
    """Kill the command once and let it finish. Returns the kind of kill, and "" or what is wrong."""
    rng = random.Random(seed)
    how, whom, at = rng.choice(SIGNALS), rng.choice(WHOM), rng.uniform(0, seconds)
    kind = f"{how.name} to {whom}"
    process = start(work, place, rows)
    try:
        process.wait(at)
        children: list[psutil.Process] = []
        kind = "finished before"
    except subprocess.TimeoutExpired:
        children = strike(process, how, whom, rng)
        if whom != "child" and ended(process, GRACE + seconds) is None:
            return kind, f"at {at:.1f} s: it does not end"
    if whom == "child" and process.poll() is None and ended(process, PATIENCE) is None:
        return kind, f"at {at:.1f} s: it hangs"
    if alive := left_alive(children):
        return kind, f"at {at:.1f} s: {len(alive)} left alive: {[p.name() for p in alive if p.is_running()]}"
    if not (process.returncode == 0 and work.again) and (wrong := finish(work, place, rows)):
        return kind, f"at {at:.1f} s: {wrong}"
    found = work.results(place / "out")
    if found != whole:
        apart = sorted(name for name in {*found, *whole} if found.get(name) != whole.get(name))
        return kind, f"at {at:.1f} s: other results: {apart[:4]}"
    if parts := [path.name for path in (place / "out").rglob("*part*") if "notebook" not in path.name]:
        return kind, f"at {at:.1f} s: left {parts[:3]}"
    return kind, ""


def rows_for(folder: Path) -> Path:
    """Demonstrations of the tiny world, for a training."""
    from uftlab.world.world import World

    path = folder / "rows.jsonl"
    rows = ({k: row[k] for k in ("prompt", "completion")} for row in World(0).demonstrations(64))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def campaign(name: str, kills: int, seed: int = 0, minutes: float = 1e9, say: Callable[[str], None] = print) -> Count:
    """Kill one command so many times, or until the minutes are over."""
    begun, count, work = time.monotonic(), Count(), WORK[name]
    with tempfile.TemporaryDirectory(prefix="kill-") as folder:
        base = Path(folder)
        rows = rows_for(base)
        (base / "whole").mkdir()
        first = time.monotonic()
        if wrong := finish(work, base / "whole", rows):
            raise SystemExit(f"{name}, undisturbed: {wrong}")
        seconds, whole = time.monotonic() - first, work.results(base / "whole" / "out")
        say(f"{name}: {seconds:.0f} s undisturbed, {len(whole)} results")
        for number in range(kills):
            if time.monotonic() - begun > minutes * 60:
                break
            place = base / str(number)
            place.mkdir()
            kind, wrong = kill_once(work, place, rows, whole, seconds, seed + number)
            count.kills[kind] += 1
            if wrong:
                count.wrong.append(f"{kind} {wrong}")
            say(f"{name} {number}: {kind}: {wrong or 'fine'}")
            shutil.rmtree(place, ignore_errors=True)
    return count


def main() -> None:
    """Kill the named commands, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["study"], help=f"Of {', '.join(WORK)}.")
    parser.add_argument("--kills", type=int, default=100, help="Of each command.")
    parser.add_argument("--minutes", type=float, default=1e9, help="At most so long for each command.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    wrong = 0
    for name in arguments.names:
        count = campaign(name, arguments.kills, arguments.seed, arguments.minutes, lambda line: print(line, flush=True))
        wrong += len(count.wrong)
        kinds = ", ".join(f"{kind}: {number}" for kind, number in sorted(count.kills.items()))
        print(f"{name}: {count.kills.total()} kills ({kinds}), {len(count.wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

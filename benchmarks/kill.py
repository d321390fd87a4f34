"""Commands that are killed at random moments: afterwards the same command finishes, and nothing is lost or left.

    python benchmarks/kill.py --kills 100 study      also: map, sweep, train, adapters, notebooks, export
    python benchmarks/kill.py --kills 20 --minutes 8 study train
    python benchmarks/kill.py --kills 20 --model my-model real    a model of your own, in the hub's layout

First the command runs undisturbed. Then it is started again and again in folders of its own, and at a random moment a
random signal (SIGKILL, SIGTERM, SIGINT) goes to its process, to one of its children, or to all of them. After each kill
it is looked at: are children of it alive after `GRACE` seconds? Then the same command runs to its end. Its results must
be those of the undisturbed run to the bit, and no `.part` file may be left. `tests/test_kill.py` runs a few.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
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
EARLIER = "finished before"  # the signal came too late: no kill
VARYING = ("measured", "wall_seconds")  # of a trial file: no results


@dataclass(frozen=True)
class Work:
    """A command, with the folder that its results go to in place of OUT, and what of it must be the same each time.

    Args:
        arguments: ROWS, PAIRS and MODEL stand for files of rows and for the folder of a model.
        again: what is added where the folder holds something unfinished.
        program: what Python runs, with these arguments.
    """

    arguments: tuple[str, ...]
    results: Callable[[Path], Mapping[str, str]]
    again: tuple[str, ...] = ()
    program: tuple[str, ...] = ("-m", "uftlab")


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
        elif path.name == "tuned.json":
            found[path.name] = digest(path.read_bytes())
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


# A sweep of three short trials in each draw, which keeps the chosen settings in its own folder
SMALL_SWEEP = """
import sys
from dataclasses import replace
from pathlib import Path
from uftlab.cli import app
from uftlab.files import write_atomically
from uftlab.study import trials, tuning
from uftlab.training import settings
tuning.FIRST, tuning.SECOND = 2, 1
tuning.PROFILE = replace(trials.PROFILES["smoke"], stage_ends=False)
settings.TUNED = tuning.TUNED = Path(sys.argv[-1]) / "tuned.json"
if not tuning.TUNED.exists():
    write_atomically(tuning.TUNED, '{"rule": "", "settings": {}, "worth": {}}')
app()
"""
METHODS = "base,sft,uft"
ADAPTERS = (
    "train", "--model", "MODEL", "--demonstrations", "ROWS", "--feedback", "PAIRS", "--method", "uft", "--lora", "4",
    "--accumulation", "2", "--merge", "--out", "OUT",
)  # fmt: skip
WORK = {
    "study": Work(("run", "--profile", "smoke", "--methods", METHODS, "--workers", "2", "--out", "OUT"), of_study),
    "map": Work(("map", "E3", "--worlds", "1", "--workers", "2", "--out", "OUT"), of_study),
    "sweep": Work(
        ("sweep", "--methods", "uft", "--workers", "2", "--force", "--out", "OUT"), of_study, (), ("-c", SMALL_SWEEP)
    ),
    "train": Work(
        ("train", "--model", "tiny", "--demonstrations", "ROWS", "--method", "sft-full", "--steps", "120",
         "--batch", "8", "--save-every", "20", "--out", "OUT"), of_training, ("--resume",),
    ),
    "adapters": Work(
        (*ADAPTERS, "--steps", "24", "--batch", "4", "--held-out", "0.1", "--save-every", "4"),
        of_training, ("--resume",),
    ),
    # short enough for a model of 135 million parameters on a CPU
    "real": Work((*ADAPTERS, "--steps", "6", "--batch", "2", "--save-every", "2"), of_training, ("--resume",)),
    "notebooks": Work(("notebooks", "--only", "01", "--out", "OUT"), of_notebooks),
    "export": Work(("export", "--only", "01", "--profile", "smoke", "--out", "OUT"), of_pages),
}  # fmt: skip


@dataclass
class Count:
    """What came of the kills of one command."""

    kills: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def start(work: Work, place: Path, words: Mapping[str, str], more: tuple[str, ...] = ()) -> subprocess.Popen:
    """The command in a process of its own session; its output goes to a file."""
    words = {**words, "OUT": str(place / "out")}
    arguments = [words.get(word, word) for word in work.arguments]
    if more:  # to go on, a training needs its folder alone
        arguments = ["train", *more, "--out", words["OUT"]]
    log = (place / "log").open("ab")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(place / "tmp")}
    (place / "tmp").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *work.program, *arguments]
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


def finish(work: Work, place: Path, words: Mapping[str, str]) -> str:
    """Let the command run to its end, as a user would after reading what it says. "" or what went wrong."""
    for more in ((), work.again):
        process = start(work, place, words, more)
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
    work: Work, place: Path, words: Mapping[str, str], whole: Mapping[str, str], seconds: float, seed: int
) -> tuple[str, str]:
    """Kill the command once and let it finish. Returns the kind of kill, and "" or what is wrong."""
    rng = random.Random(seed)
    how, whom, at = rng.choice(SIGNALS), rng.choice(WHOM), rng.uniform(0, seconds)
    kind = f"{how.name} to {whom}"
    process = start(work, place, words)
    try:
        process.wait(at)
        children: list[psutil.Process] = []
        kind = EARLIER
    except subprocess.TimeoutExpired:
        children = strike(process, how, whom, rng)
        if whom != "child" and ended(process, GRACE + seconds) is None:
            return kind, f"at {at:.1f} s: it does not end"
    if whom == "child" and process.poll() is None and ended(process, PATIENCE) is None:
        return kind, f"at {at:.1f} s: it hangs"
    if alive := left_alive(children):
        return kind, f"at {at:.1f} s: {len(alive)} left alive: {[p.name() for p in alive if p.is_running()]}"
    if not (process.returncode == 0 and work.again) and (wrong := finish(work, place, words)):
        return kind, f"at {at:.1f} s: {wrong}"
    found = work.results(place / "out")
    if found != whole:
        apart = sorted(name for name in {*found, *whole} if found.get(name) != whole.get(name))
        return kind, f"at {at:.1f} s: other results: {apart[:4]}"
    if parts := [path.name for path in (place / "out").rglob("*part*") if "notebook" not in path.name]:
        return kind, f"at {at:.1f} s: left {parts[:3]}"
    return kind, ""


def words_for(folder: Path, model: str = "") -> dict[str, str]:
    """What the words of a training stand for: rows of the tiny world, and a model, by default the tiny one."""
    from uftlab.models.policies import TINY
    from uftlab.world.world import World, pairs

    made = {"ROWS": World(0).demonstrations(64), "PAIRS": pairs(World(0).feedback(64))}
    columns = {"ROWS": ("prompt", "completion"), "PAIRS": ("prompt", "chosen", "rejected")}
    for name, rows in made.items():
        lines = [json.dumps({column: row[column] for column in columns[name]}) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return {**{name: str(folder / f"{name}.jsonl") for name in made}, "MODEL": model or str(TINY)}


def campaign(
    name: str,
    kills: int,
    seed: int = 0,
    minutes: float = 1e9,
    say: Callable[[str], None] = print,
    model: str = "",
) -> Count:
    """Kill one command so many times, or until the minutes are over."""
    begun, count, work = time.monotonic(), Count(), WORK[name]
    with tempfile.TemporaryDirectory(prefix="kill-") as folder:
        base = Path(folder)
        words = words_for(base, model)
        (base / "whole").mkdir()
        first = time.monotonic()
        if wrong := finish(work, base / "whole", words):
            raise SystemExit(f"{name}, undisturbed: {wrong}")
        seconds, whole = time.monotonic() - first, work.results(base / "whole" / "out")
        say(f"{name}: {seconds:.0f} s undisturbed, {len(whole)} results")
        for number in range(kills):
            if time.monotonic() - begun > minutes * 60:
                break
            place = base / str(number)
            place.mkdir()
            kind, wrong = kill_once(work, place, words, whole, seconds, seed + number)
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
    parser.add_argument("--model", default="", help="Whose adapters are trained; the tiny one if empty.")
    arguments = parser.parse_args()
    wrong = 0
    for name in arguments.names:
        say = functools.partial(print, flush=True)
        count = campaign(name, arguments.kills, arguments.seed, arguments.minutes, say, arguments.model)
        wrong += len(count.wrong)
        kinds = ", ".join(f"{kind}: {number}" for kind, number in sorted(count.kills.items()))
        kills = count.kills.total() - count.kills[EARLIER]
        print(f"{name}: {kills} kills ({kinds}), {len(count.wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

"""Is this machine ready for the course? Short tests, each with what was found and what to do about it.

`uftlab check` prints them. Every test stands alone, so a missing package stops one line and not the others.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import statistics
import sys
import time
import webbrowser
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from uftlab.errors import InputError
from uftlab.files import check_writable, own_folder

Verdict = Literal["ok", "look", "stop"]
TRIED = ((3, 11), (3, 13))  # the Pythons that the tests run with, from and to
MEMORY = (1.0, 2.0)  # GB that must be free, and that should be: a kernel takes up to 0.6, JupyterLab and a browser more
DISK = (0.2, 1.0)  # GB that must be free, and that should be: copies of the notebooks, trained policies, results
STEPS = 25  # of the tiny model, timed
# How many such steps the study of the profile class takes, with what it measures: 528 seconds of processor time for its
# 70 trials (six of them were timed), at 0.0243 seconds a step, in one process.
STEPS_OF_CLASS = 22_000
CGROUP = Path("/sys/fs/cgroup")
INSTALL = "Make the environment again: delete .venv, then `make lab`"


@dataclass(frozen=True)
class Line:
    """One test: `ok`, `look` (it works and may be better) or `stop` (it does not work), and what to do."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        """The line as it is printed.

        >>> str(Line("memory", "look", "1.5 GB free", "Close other programs"))
        'look  memory         1.5 GB free. Close other programs.'
        """
        end = f". {self.remedy}." if self.remedy else ""
        return f"{self.verdict:<5} {self.name:<14} {self.found}{end}"


def worst(lines: Iterable[Line]) -> Verdict:
    """The worst verdict of all.

    >>> worst([Line("a", "ok", ""), Line("b", "stop", ""), Line("c", "look", "")])
    'stop'
    """
    order: tuple[Verdict, ...] = ("ok", "look", "stop")
    return order[max((order.index(line.verdict) for line in lines), default=0)]


# ------------------------------------------------------------------------------ what the machine has


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Line:
    """Whether this Python is one that the tests run with."""
    found, (lowest, highest) = ".".join(map(str, version)), TRIED
    tried = f"{lowest[0]}.{lowest[1]} to {highest[0]}.{highest[1]}"
    if version[:2] < lowest:
        return Line("Python", "stop", found, f"Install Python {tried}, and make the environment again with it")
    if version[:2] > highest:
        return Line("Python", "look", found, f"Only {tried} were tried; take one of them if something fails")
    return Line("Python", "ok", found)


def system(name: str = sys.platform) -> Line:
    """The operating system. Windows itself was not tried; inside WSL it is Linux."""
    found = f"{platform.system()} {platform.machine()}"
    if name.startswith("win"):
        return Line("system", "look", found, "It was not tried; if something fails, install the course in WSL")
    return Line("system", "ok", found)


def _limit() -> float:
    """GB that a container leaves to this process; infinite without one."""
    try:
        most, used = ((CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        return (int(most) - int(used)) / 1e9
    except (OSError, ValueError):  # another system, or the word max
        return float("inf")


def memory(free: float | None = None) -> Line:
    """GB of memory that are free, in this machine or in its container."""
    if free is None:
        import psutil

        free = min(psutil.virtual_memory().available / 1e9, _limit())
    little = "Close other programs, and shut down a notebook before the next one"
    return _room("memory", free, MEMORY, "", "Close other programs", little)


def disk(free: float | None = None) -> Line:
    """GB that are free where the course writes."""
    place = _nearest(own_folder("results"))
    free = shutil.disk_usage(place).free / 1e9 if free is None else free
    little = "That is enough for the course, not for studies of your own"
    return _room("disk", free, DISK, f" at {place}", "Delete something", little)


def _room(name: str, free: float, limits: tuple[float, float], where: str, none: str, little: str) -> Line:
    """The verdict on so many GB: what to do if they are less than must be free, or less than should be."""
    found, (least, good) = f"{free:.1f} GB free{where}", limits
    if free < least:
        return Line(name, "stop", found, f"{none}: {least:g} GB must be free, {good:g} GB are better")
    return Line(name, "look", found, little) if free < good else Line(name, "ok", found)


def _nearest(folder: Path) -> Path:
    """The folder itself, or the first one above it that is there."""
    return next(own for own in (folder, *folder.parents) if own.exists())


def written() -> list[tuple[str, Path, Verdict]]:
    """Where the course writes: what for, the folder, and how bad it is if that is not possible."""
    return [
        ("notebooks", own_folder("notebooks"), "stop"),
        ("results", own_folder("results"), "stop"),
        ("settings", own_folder("build"), "stop"),
        ("this folder", Path.cwd(), "look"),
    ]


def folders(places: Iterable[tuple[str, Path, Verdict]] | None = None) -> Line:
    """Whether the folders that the course writes into can be written. No folder is made."""
    refused = []
    for name, folder, verdict in written() if places is None else places:
        try:
            check_writable(_nearest(folder))
        except InputError as error:
            refused.append((name, error.parts[2], verdict))
    if not refused:
        return Line(
            "folders", "ok", f"notebooks, results and settings can be written at {_nearest(own_folder('results'))}"
        )
    bad = worst([Line(name, verdict, "") for name, _, verdict in refused])
    found = "cannot be written: " + ", ".join(f"{name} ({got})" for name, got, _ in refused)
    remedy = "Set XDG_CACHE_HOME to a folder of your own, or ask for the rights"
    if bad == "look":
        remedy = "Commands such as `uftlab run` write here: go to a folder of your own"
    return Line("folders", bad, found, remedy)


def packages(name: str = "uftlab") -> Line:
    """Whether every package that a distribution needs is installed, in a version of its range."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(text) for text in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return Line("packages", "look", f"{name} is not installed", "In its folder: python -m pip install --editable .")
    needed = [own for own in needed if own.marker is None or own.marker.evaluate({"extra": ""})]
    missing, other = [], []
    for own in needed:
        try:
            version = metadata.version(own.name)
        except metadata.PackageNotFoundError:
            missing.append(f"{own.name}{own.specifier}")
            continue
        if not own.specifier.contains(version, prereleases=True):
            other.append(f"{own.name} {version} (needs {own.specifier})")
    install = "Install what is missing: python -m pip install " + " ".join(f"'{own}'" for own in missing)
    if missing:
        return Line("packages", "stop", f"missing: {', '.join(missing)}", install)
    if other:
        remedy = "Other versions were tested: make the environment again if something fails"
        return Line("packages", "look", ", ".join(other), remedy)
    return Line("packages", "ok", f"{len(needed)} packages in the versions that are needed")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(count: int | None = None, load: float | None = None) -> Line:
    """How many cores there are, and whether others use them now."""
    count = cores() if count is None else count
    load = os.getloadavg()[0] if load is None and hasattr(os, "getloadavg") else load or 0.0
    found = f"{count} {'core' if count == 1 else 'cores'}, {load:.1f} busy; each notebook uses one thread"
    if load > 2 * count:
        return Line("processor", "look", found, "Other programs use it: close them, or wait twice as long and more")
    if count < 2:
        return Line("processor", "look", found, "Run one notebook at a time")
    return Line("processor", "ok", found)


def browser(find: Callable[[], object] = webbrowser.get) -> Line:
    """Whether a browser can be opened. JupyterLab works without: its address is printed."""
    try:
        find()
    except webbrowser.Error:
        remedy = "`uftlab lab --no-browser` prints an address; open it in a browser by hand"
        return Line("browser", "look", "none was found", remedy)
    return Line("browser", "ok", "found")


def jupyterlab(find: Callable[[str], object] = importlib.util.find_spec) -> Line:
    """Whether JupyterLab is there. Hosted notebooks, VS Code and the exported pages do without."""
    if find("jupyterlab") is None:
        remedy = "For `uftlab lab`: python -m pip install 'jupyterlab>=4.4,<5'; other notebook programs do without"
        return Line("JupyterLab", "look", "not installed", remedy)
    return Line("JupyterLab", "ok", metadata.version("jupyterlab"))


# ------------------------------------------------------------------------------ what it can do


def training() -> tuple[Line, float]:
    """Train the tiny model for a second. Returns the line, and the seconds of a step with one thread.

    A step is 32 completions of 24 tokens: forward, backward and AdamW.
    """
    import torch

    from uftlab.models.policies import load_base

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as notebooks do
    try:
        model = load_base().train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
        ids = torch.arange(32 * 24).reshape(32, 24) % model.config.vocab_size
        losses, seconds = [], []
        for _ in range(STEPS):
            started = time.perf_counter()
            optimiser.zero_grad()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimiser.step()
            seconds.append(time.perf_counter() - started)
            losses.append(loss.item())
    finally:
        torch.set_num_threads(before)
    found = f"{STEPS} steps of the tiny model, {statistics.median(seconds) * 1000:.0f} ms each"
    if not losses[-1] < losses[0]:  # NaN, too
        return Line("training", "stop", f"the loss went from {losses[0]:.2f} to {losses[-1]:.2f}", INSTALL), 0.0
    return Line("training", "ok", found), statistics.median(seconds)


def duration(step: float, count: int | None = None) -> Line:
    """How long `uftlab run --profile class` takes here, from the seconds of a step and its number of processes."""
    from uftlab.study.workers import most_workers

    minutes = STEPS_OF_CLASS * step / (count or most_workers()) / 60
    found = f"`uftlab run --profile class`: about {minutes:.0f} minutes here, if the machine stays as busy as now"
    if minutes > 30:
        return Line("time", "look", found, "Take fewer methods and seeds, or the stored results: `uftlab report class`")
    return Line("time", "ok", found)


def explorer() -> Line:
    """Run notebook 01 up to its explorer, and draw the explorer's first figure."""
    from uftlab.course.notebooks import explorer_of, explorer_paths

    path = explorer_paths()[0]
    found = explorer_of(path, profile="smoke", widgets_on=False)
    values = {name: control.value for name, control in found.controls.items()}
    traces = len(found.picture(**values).data)
    return Line("explorer", "ok", f"the figure of {path.stem} is drawn, {traces} traces")


def gpu() -> Line:
    """Whether a GPU is seen. The course needs none."""
    import torch

    if torch.cuda.is_available():
        return Line("GPU", "ok", f"{torch.cuda.get_device_name(0)}: `uftlab run` uses it")
    return Line("GPU", "ok", "none that is used; the course needs none")


def _tried(name: str, test: Callable[[], Line]) -> Line:
    """A test that may fail in any way: what is wrong with an installation is not known beforehand."""
    try:
        return test()
    except Exception as error:  # a library that does not load may raise anything
        said = " ".join(str(error).split())[:300].rstrip(".")
        return Line(name, "stop", f"{type(error).__name__}: {said}", INSTALL)


def check() -> Iterator[Line]:
    """All tests, one after the other, the quick ones first. The last ones take some seconds."""
    quick: dict[str, Callable[[], Line]] = {
        "Python": python, "system": system, "packages": packages, "memory": memory, "disk": disk, "folders": folders,
        "processor": threads, "JupyterLab": jupyterlab, "browser": browser,
    }  # fmt: skip
    for name, test in quick.items():
        yield _tried(name, test)
    step = 0.0

    def timed() -> Line:
        nonlocal step
        line, step = training()
        return line

    yield _tried("training", timed)
    if step:
        yield duration(step)
    yield _tried("explorer", explorer)
    yield _tried("GPU", gpu)

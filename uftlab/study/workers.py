"""Runs trials in cohorts, in worker processes of one thread each: twice as fast as one process with two threads.

A cohort is trained by one stack. On a CPU it has one method, so that its members wait for each other as little as can
be, and few members, so that results come in now and then. On a GPU a cohort is a world with all its methods: the
processes share the GPU, which is busy while others prepare data or read answers.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from uftlab.errors import InputError
from uftlab.objectives.registry import OBJECTIVES, SHIPPED
from uftlab.study.cohort import run_cohort
from uftlab.study.trials import Trial, is_done, read_trial
from uftlab.training.methods import METHODS, method_named, named_methods
from uftlab.training.methods import SHIPPED as SHIPPED_METHODS
from uftlab.training.stages import usual_device

MAX_WORKERS = {"cpu": 8, "cuda": 16}  # each holds about 0.8 GB of libraries
COHORT = {"cpu": 5, "cuda": 64}  # trials


def start_worker(handed: bytes) -> None:
    """Runs once in each worker: one thread, Ctrl-C is the parent's to handle, and what was registered is known.

    Args:
        handed: made by `handed_over` in the parent.
    """
    import signal

    import torch
    import transformers

    objectives, methods = pickle.loads(handed)
    OBJECTIVES.update(objectives)
    METHODS.update(methods)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()


def handed_over(names: Sequence[str]) -> bytes:
    """What worker processes need to know to train these methods: what was registered here and does not ship.

    A worker imports the functions of a loss again by module and name. So they must be defined with `def` at the top
    of a module that can be imported, or at the top of the script that runs; a lambda, or a function of a notebook,
    cannot be handed over.

    Raises:
        InputError: for a loss that cannot be handed over.
    """
    used = [method_named(name) for name in dict.fromkeys(names)]
    named = named_methods()
    methods = {m.name: m for m in used if m.name in named and m is not SHIPPED_METHODS.get(m.name)}
    objectives = {o.name: o for m in used for o in m.objectives if o is not SHIPPED.get(o.name)}
    for name, objective in objectives.items():
        for function in (f for term in objective.terms for f in (term.loss, term.equation) if f is not None):
            if not _found_by_name(function):
                where = f"{function.__qualname__} of {function.__module__}"
                remedy = "Define it with `def` in a .py file and import it, or call uftlab.study.cohort.run_cohort"
                rule = "be a function that worker processes can import by name"
                raise InputError(f"The loss {name}", rule, where, remedy)
    return pickle.dumps((objectives, methods))


def _found_by_name(function: Callable) -> bool:
    """Whether another process finds a function by its module and name. A notebook is no module to others."""
    home = sys.modules.get(function.__module__)
    importable = function.__module__ != "__main__" or getattr(home, "__file__", None) is not None
    return importable and getattr(home, function.__qualname__, None) is function


def _context() -> Any:
    """How workers are started: on Linux all from one process that has imported what they need, else each anew."""
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")  # it never touches a GPU, which no forked process could use
    context.set_forkserver_preload(["uftlab.study.cohort"])
    return context


def most_workers() -> int:
    """Processes that run trials when nobody says how many: one per core, up to a limit."""
    return min(os.cpu_count() or 1, MAX_WORKERS[usual_device()])


def check_folder(folder: Path) -> None:
    """Refuses a results folder that cannot be written or that another version of uftlab wrote.

    Raises:
        InputError: before anything is trained.
    """
    for parent in (folder, *folder.parents):
        if parent.exists():
            if not parent.is_dir():
                raise InputError("The output folder", "not lie below a regular file", parent, "Choose another --out")
            break
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # an existing folder may be read-only
    except OSError as error:
        raise InputError(
            "The output folder", "be writable", f"{folder} ({error.strerror})", "Choose another --out"
        ) from None
    for path in sorted(folder.glob("trials/*.json")):
        read_trial(path)


def run_trials(
    trials: Sequence[Trial], folder: Path, workers: int | None = None, done: Callable[[dict], None] | None = None
) -> Iterator[dict[str, Any]]:
    """Results as they finish.

    Args:
        workers: processes; by default one per core, eight at most.
        done: called with each result, for progress bars.

    Raises:
        InputError: for a folder that cannot be used, or a loss that cannot be handed over to the processes.
        KeyboardInterrupt: after Ctrl-C; what is finished is on disk and the same call resumes.
    """
    check_folder(folder)
    waiting = [t for t in trials if not is_done(t, folder)]
    for trial in trials:
        if trial not in waiting:
            result = read_trial(trial.path(folder))
            if done:
                done(result)
            yield result
    if not waiting:
        return
    handed = handed_over([trial.method for trial in waiting])
    groups = cohorts(waiting, usual_device())
    executor = ProcessPoolExecutor(min(workers or most_workers(), len(groups)), _context(), start_worker, (handed,))
    running: set[Future] = {executor.submit(run_cohort, group, folder) for group in groups}
    try:
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                for result in future.result():
                    if done:
                        done(result)
                    yield result
    except BaseException:
        for process in list((executor._processes or {}).values()):
            process.terminate()
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


def cohorts(trials: Sequence[Trial], device: str) -> list[list[Trial]]:
    """Trials that are run together."""
    alike: dict[Any, list[Trial]] = {}
    for trial in trials:
        key = (trial.seed, trial.profile) if device == "cuda" else (trial.method, trial.profile)
        alike.setdefault(key, []).append(trial)
    size = COHORT[device]
    return [group[i : i + size] for group in alike.values() for i in range(0, len(group), size)]

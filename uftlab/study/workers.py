"""Runs trials in cohorts, in worker processes of one thread each: twice as fast as one process with two threads.

A cohort is what one process trains at a time. On a CPU it is one trial: several are not faster together, and what dies
with a process is little. On a GPU it is a world with all its methods in one stack: the processes share the GPU, which
is busy while others prepare data or read answers.

The processes are on this machine (the engine `local`), or all over a Ray cluster (`uftlab.study.ray_workers`).
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, suppress
from itertools import chain
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

from uftlab.errors import InputError
from uftlab.files import check_writable, locked, remove_left
from uftlab.objectives.objective import Objective
from uftlab.objectives.registry import OBJECTIVES, SHIPPED
from uftlab.study.cohort import run_cohort
from uftlab.study.trials import Trial, UnsoundError, is_done, read_trial
from uftlab.training.catalogue import METHODS, method_named, named_methods
from uftlab.training.catalogue import SHIPPED as SHIPPED_METHODS
from uftlab.training.methods import Method
from uftlab.training.stages import usual_device

MAX_WORKERS = {"cpu": 8, "cuda": 16}  # each holds about 0.8 GB of libraries
COHORT = 64  # most trials that a GPU trains together
Registered = tuple[Mapping[str, Objective], Mapping[str, Method]]
Results = Generator[dict[str, Any], None, None]


def start_worker(handed: bytes) -> None:
    """Runs once in each worker of this machine. Ctrl-C is the parent's to handle, and a worker ends with its parent.

    Args:
        handed: made by `handed_over` in the parent.
    """
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare(*pickle.loads(handed))


def prepare(objectives: Mapping[str, Objective], methods: Mapping[str, Method]) -> None:
    """Make this process a worker: one thread, no chatter, and it knows what was registered in the parent."""
    import torch
    import transformers

    OBJECTIVES.update(objectives)
    METHODS.update(methods)
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()


def _end_with_parent() -> None:
    """Ends this process as soon as its parent is gone, even if that was killed: nobody would collect the results."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def registered(names: Sequence[str]) -> Registered:
    """Objectives and methods, out of what these methods need, that were registered here and do not ship."""
    used = [method_named(name) for name in dict.fromkeys(names)]
    named = named_methods()
    methods = {m.name: m for m in used if m.name in named and m is not SHIPPED_METHODS.get(m.name)}
    objectives = {o.name: o for m in used for o in m.objectives if o is not SHIPPED.get(o.name)}
    return objectives, methods


def handed_over(names: Sequence[str]) -> bytes:
    """What worker processes of this machine need to know to train these methods: see `registered`.

    A worker imports the functions of a loss again by module and name. So they must be defined with `def` at the top
    of a module that can be imported, or at the top of the script that runs; a lambda, or a function of a notebook,
    cannot be handed over.

    Raises:
        InputError: for a loss that cannot be handed over.
    """
    objectives, methods = registered(names)
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
    check_writable(folder)
    for own in (folder, folder / "trials"):
        remove_left(own)
    for path in sorted(folder.glob("trials/*.json")):
        read_trial(path)


def spread(trials: Sequence[Trial], folder: Path, workers: int | None = None) -> Results:
    """Results of trials in processes of this machine, as they finish.

    A process that dies takes the others with it. What they had not finished is run again by half as many processes,
    because memory may have run out.

    Args:
        workers: processes; by default one per core, at most `MAX_WORKERS`.

    Raises:
        InputError: for a loss that cannot be handed over to the processes, or when a single process dies before it has
            finished anything. UnsoundError: when all others have finished, for the first trial that diverged.
    """
    handed = handed_over([trial.method for trial in trials])
    left = cohorts(trials, usual_device())
    count = min(workers or most_workers(), len(left))
    unsound: list[UnsoundError] = []
    while left:
        before = len(left)
        try:
            with closing(_pool(list(left), folder, count, handed)) as finished:
                for group, results in finished:
                    left.remove(group)
                    if isinstance(results, UnsoundError):  # the others go on
                        unsound.append(results)
                    else:
                        yield from results
        except BrokenProcessPool:
            if count == 1 and len(left) == before:
                raise died(left[0], "died") from None
            count = max(1, count // 2)
            print(f"a worker process died, perhaps because memory ran out: going on with {count}")
    if unsound:
        raise unsound[0]


def died(trials: Sequence[Trial], how: str) -> InputError:
    """The refusal to go on when a worker cannot finish some trials because it is killed each time."""
    got = f"one that {how} with {trials[0].method}, seed {trials[0].seed}"
    remedy = "Free memory if it ran out; what is finished is on disk, and the same command goes on from there"
    return InputError("A worker", "live until its trials are finished", got, remedy)


def _pool(
    groups: Sequence[list[Trial]], folder: Path, count: int, handed: bytes
) -> Generator[tuple[list[Trial], list[dict[str, Any]] | UnsoundError], None, None]:
    """Cohorts with their results, or why they have none, as they finish. No process is left behind."""
    executor = ProcessPoolExecutor(count, _context(), start_worker, (handed,))
    try:
        running: dict[Future, list[Trial]] = {
            executor.submit(run_missing, run_cohort, group, folder): group for group in groups
        }
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED)[0]:
                error = future.exception()
                yield running.pop(future), error if isinstance(error, UnsoundError) else future.result()
    except BaseException:
        for process in list((executor._processes or {}).values()):
            process.terminate()
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


def run_missing(
    run: Callable[[Sequence[Trial], Path], list[dict[str, Any]]], trials: Sequence[Trial], folder: Path
) -> list[dict[str, Any]]:
    """Results of trials, those that another command on the same folder is running awaited and not run again.

    The system gives a lock back when its process ends, however it ends.
    """
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    locks = {trial: locked(trial.path(folder)) for trial in trials}
    with ExitStack() as held:
        for lock in sorted(locks.values(), key=lambda lock: lock.lock_file):  # in one order: none waits for ever
            with suppress(NotImplementedError):  # a file system without locks: then work may be done twice
                held.enter_context(lock)
        missing = [trial for trial in trials if not is_done(trial, folder)]
        made = dict(zip(missing, run(missing, folder) if missing else (), strict=True))
        for lock in locks.values():  # whoever comes now finds the trial
            Path(lock.lock_file).unlink(missing_ok=True)
        return [made[trial] if trial in made else read_trial(trial.path(folder)) for trial in trials]


def cohorts(trials: Sequence[Trial], device: str) -> list[list[Trial]]:
    """Trials that are run together."""
    if device != "cuda":
        return [[trial] for trial in trials]
    alike: dict[Any, list[Trial]] = {}
    for trial in trials:
        alike.setdefault((trial.seed, trial.profile), []).append(trial)
    return [group[i : i + COHORT] for group in alike.values() for i in range(0, len(group), COHORT)]


def run_trials(
    trials: Sequence[Trial],
    folder: Path,
    workers: int | None = None,
    done: Callable[[dict], None] | None = None,
    engine: Callable[[Sequence[Trial], Path, int | None], Results] = spread,
) -> Results:
    """Results as they finish, those that are stored first.

    Args:
        workers: processes; None leaves their number to the engine.
        done: called with each result, for progress bars.
        engine: writes the file of each trial and gives its result: `spread`, or `uftlab.study.ray_workers.spread`.

    Raises:
        InputError: for a folder that cannot be used, and what the engine raises.
        KeyboardInterrupt: after Ctrl-C; what is finished is on disk and the same call resumes.
    """
    check_folder(folder)
    waiting = [t for t in trials if not is_done(t, folder)]
    left = set(waiting)
    stored = (read_trial(t.path(folder)) for t in trials if t not in left)
    with closing(engine(waiting, folder, workers)) as made:
        for result in chain(stored, made if waiting else ()):
            if done:
                done(result)
            yield result

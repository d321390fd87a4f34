"""Runs trials in worker processes of one thread each: on small models twice as fast as one process with two."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from uftlab.errors import InputError
from uftlab.study import Trial, read_trial, run_trial

MAX_WORKERS = 8  # each holds about 0.8 GB of libraries


def _quiet_worker() -> None:
    """Runs once in each worker: one thread, and Ctrl-C is the parent's to handle."""
    import signal

    import torch
    import transformers

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()


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
    """Results as they finish. Trials that share a first stage wait for the one that trains it.

    Args:
        workers: processes; by default one per core, eight at most.
        done: called with each result, for progress bars.

    Raises:
        KeyboardInterrupt: after Ctrl-C; what is finished is on disk and the same call resumes.
    """
    check_folder(folder)
    waiting = [t for t in trials if not t.path(folder).is_file()]
    for trial in trials:
        if trial not in waiting:
            result = run_trial(trial, folder)
            if done:
                done(result)
            yield result
    if not waiting:
        return
    # the trial that trains a shared first stage goes before those that only read it
    first_of: dict[tuple, Trial] = {}
    for trial in sorted(waiting, key=lambda t: len(t.stage_one) > 0):
        first_of.setdefault(_shared_key(trial), trial)
    ready = [t for t in waiting if first_of[_shared_key(t)] is t]
    later = [t for t in waiting if first_of[_shared_key(t)] is not t]
    count = min(workers or min(os.cpu_count() or 1, MAX_WORKERS), len(waiting))
    executor = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_quiet_worker)
    try:
        # longest first within what is ready: no worker ends with a long trial alone
        ready.sort(key=lambda t: (t.method != "sft", t.seed))
        running: dict[Future, Trial] = {executor.submit(run_trial, t, folder): t for t in ready}
        while running:
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                trial = running.pop(future)
                result = future.result()
                freed = [t for t in later if _shared_key(t) == _shared_key(trial)]
                later = [t for t in later if t not in freed]
                running |= {executor.submit(run_trial, t, folder): t for t in freed}
                if done:
                    done(result)
                yield result
    except BaseException:
        for process in list((executor._processes or {}).values()):
            process.terminate()
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


def _shared_key(trial: Trial) -> tuple:
    """Equal for trials that can share a trained first stage; unique for the others."""
    if trial.method == "sft":
        return ("stage one", trial.seed, trial.settings, trial.split, trial.curves)
    if trial.stage_one:
        return ("stage one", trial.seed, trial.stage_one, trial.split, trial.curves)
    return (trial,)

"""Stand-ins for `run_cohort` that worker processes import: they write a file at once, are killed, or never end."""

import json
import os
import signal

from made_up import made_up
from trials import trial_of

from uftlab.files import write_atomically
from uftlab.study import workers
from uftlab.study.cohort import run_cohort
from uftlab.study.trials import SCHEMA, plan_digest
from uftlab.training.catalogue import all_methods

VICTIM = "uft"  # the method that a worker does not survive


def writes(trials, folder):
    """Trial files without any number; they say whether the process knows the method."""
    common = {"schema": SCHEMA, "plan": plan_digest()}
    made = [{**made_up(t.method, t.seed), **common, "known": t.method in all_methods()} for t in trials]
    for trial, content in zip(trials, made, strict=True):
        write_atomically(trial.path(folder), json.dumps(content))
    return made


def dies(trials, folder):
    """Out of memory, every time."""
    if trials[0].method == VICTIM:
        os.kill(os.getpid(), signal.SIGKILL)
    return writes(trials, folder)


def dies_once(trials, folder):
    """Out of memory for once."""
    mark = folder / "died"
    if trials[0].method == VICTIM and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return writes(trials, folder)


def waits(trials, folder):
    """Says who it is and goes on for ever."""
    with (folder / "started").open("w") as pipe:
        pipe.write(f"{os.getpid()}\n")
        pipe.flush()
        signal.pause()


def study_that_waits(folder):
    """A study with two workers that never end, for a process of its own."""
    workers.run_cohort = waits
    list(workers.run_trials([trial_of("base"), trial_of("uft")], folder, workers=2))


class DiesOnce:
    """The real `run_cohort` after the first process that met the victim was killed; `mark` is a file to remember it."""

    def __init__(self, mark):
        self.mark = mark

    def __call__(self, trials, folder):
        if trials[0].method == VICTIM and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return run_cohort(trials, folder)

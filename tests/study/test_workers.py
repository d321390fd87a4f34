"""Many trials in worker processes: resuming, and folders that cannot be used."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import mortal
import psutil
import pytest
from made_up import made_up
from trials import trial_of

from uftlab.errors import InputError
from uftlab.files import locked, write_atomically
from uftlab.models.policies import load_base
from uftlab.study import cohort, workers
from uftlab.study import trials as study
from uftlab.study.cohort import run_cohort
from uftlab.study.workers import check_folder, cohorts, run_missing, run_trials


class OneByOne:
    """An executor without processes: `wait` runs one submitted trial; Ctrl-C arrives at wait number `cut`."""

    def __init__(self, cut=None):
        self.cut, self.waits, self.jobs, self._processes = cut, 0, {}, {}

    def __call__(self, *args, **kwargs):
        return self

    def submit(self, function, *args):
        future = Future()
        self.jobs[future] = (function, args)
        return future

    def wait(self, running, **kwargs):
        self.waits += 1
        if self.waits == self.cut:
            raise KeyboardInterrupt
        future = next(iter(running))
        function, args = self.jobs[future]
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return {future}, set(running) - {future}

    def shutdown(self, **kwargs):
        pass


@pytest.fixture
def in_process(monkeypatch):
    """Trials that only write a file, run without processes; returns (install, names in order of running)."""
    ran = []

    def quick(trials, folder):
        for trial in trials:
            ran.append(trial.method)
            write_atomically(trial.path(folder), json.dumps(made_up(trial.method, trial.seed)))
        return [json.loads(trial.path(folder).read_text()) for trial in trials]

    def install(cut=None):
        executor = OneByOne(cut)
        monkeypatch.setattr(workers, "ProcessPoolExecutor", executor)
        monkeypatch.setattr(workers, "wait", executor.wait)

    monkeypatch.setattr(workers, "run_cohort", quick)
    monkeypatch.setattr(study, "metric_names", lambda sizes: set())
    return install, ran


def test_an_interrupted_study_keeps_what_is_finished_and_runs_only_the_rest(in_process, tmp_path):
    install, ran = in_process
    trials = [trial_of(name) for name in ("base", "uft", "sft-full", "uft-binary")]
    install(cut=3)
    with pytest.raises(KeyboardInterrupt):
        list(run_trials(trials, tmp_path, workers=1))
    first, kept = list(ran), {p: p.read_bytes() for p in tmp_path.glob("trials/*.json")}
    (tmp_path / "trials" / "tmpabc.part").write_text('{"schema": 2, "half')  # what a crash leaves behind
    assert len(kept) == len(first) == 2
    ran.clear()
    install()
    results = list(run_trials(trials, tmp_path, workers=1))
    assert sorted(r["method"] for r in results) == sorted(t.method for t in trials)
    assert sorted(first + ran) == sorted(t.method for t in trials)  # none twice
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_a_trial_that_another_command_is_running_is_awaited_and_not_run_again(tmp_path):
    """The other holds its lock; when it is done, its file is there."""
    trial, own, ran = trial_of("uft"), trial_of("base"), []
    asked, made = threading.Event(), []

    def run(trials, folder):
        ran.extend(trial.method for trial in trials)
        return mortal.writes(trials, folder)

    class Watched(workers.ExitStack):
        def enter_context(self, lock):
            if lock.lock_file == str(other.lock_file):
                asked.set()
            return super().enter_context(lock)

    other = locked(trial.path(tmp_path))
    trial.path(tmp_path).parent.mkdir(parents=True)
    with other, pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "ExitStack", Watched)
        patch.setattr(study, "metric_names", lambda sizes: set())
        waiting = threading.Thread(target=lambda: made.extend(run_missing(run, [trial, own], tmp_path)))
        waiting.start()
        assert asked.wait(60) and not trial.path(tmp_path).exists() and "uft" not in ran
        (first,) = mortal.writes([trial], tmp_path)
        before = trial.path(tmp_path).read_bytes()
        other.release()
        waiting.join()
    assert ran == ["base"] and [result["method"] for result in made] == ["uft", "base"]
    assert trial.path(tmp_path).read_bytes() == before and made[0] == first
    assert {path.suffix for path in (tmp_path / "trials").iterdir()} == {".json"}


def test_a_trial_that_a_killed_command_was_running_is_run(tmp_path):
    code = "import os, signal, sys; from pathlib import Path; from uftlab.files import locked"
    trial = trial_of("uft")
    trial.path(tmp_path).parent.mkdir(parents=True)
    code += "; locked(Path(sys.argv[1])).acquire(); os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", code, trial.path(tmp_path)]).returncode == -signal.SIGKILL
    (result,) = run_missing(mortal.writes, [trial], tmp_path)
    assert result["method"] == "uft" and trial.path(tmp_path).is_file()


def test_a_trial_that_diverges_is_named_when_the_others_are_done(in_process, monkeypatch, tmp_path):
    install, ran = in_process
    install()
    quick = workers.run_cohort

    def diverges(trials, folder):
        if trials[0].method == "uft":
            raise study.UnsoundError("The trial uft, seed 0: metrics", "be sound", "nan", "Lower it")
        return quick(trials, folder)

    monkeypatch.setattr(workers, "run_cohort", diverges)
    finished = []
    with pytest.raises(InputError, match="The trial uft, seed 0: metrics must be sound"):
        for result in run_trials([trial_of(name) for name in ("base", "uft", "sft-full")], tmp_path, workers=1):
            finished.append(result["method"])
    assert finished == ran == ["base", "sft-full"]


def test_on_a_cpu_a_cohort_is_one_trial():
    trials = [trial_of(name, seed=seed) for seed in (0, 1) for name in ("uft", "sft")]
    assert cohorts(trials, "cpu") == [[trial] for trial in trials]


def test_on_a_gpu_all_methods_of_a_world_are_one_cohort():
    trials = [trial_of(name, seed=seed) for name in ("uft", "sft", "base") for seed in range(7)]
    made = cohorts(trials, "cuda")
    assert sorted(repr(t) for group in made for t in group) == sorted(map(repr, trials)) and len(made) == 7
    assert all({t.seed for t in group} == {seed} for seed, group in enumerate(made))


def test_every_result_is_announced_once_also_those_of_finished_trials(in_process, tmp_path):
    install, _ = in_process
    install()
    trials, announced = [trial_of("base"), trial_of("uft")], []
    list(run_trials(trials[:1], tmp_path, workers=1))
    list(run_trials(trials, tmp_path, 1, lambda result: announced.append(result["method"])))
    assert announced == ["base", "uft"]


def test_a_refusal_survives_the_way_back_from_a_worker_process():
    error = InputError("A thing", "be good", "bad", "Mend it")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, InputError) and str(again) == "A thing must be good; got bad. Mend it."


def test_a_missing_base_is_refused_by_name_and_keeps_finished_trials(in_process, monkeypatch, tmp_path):
    install, _ = in_process
    install()
    list(run_trials([trial_of("base")], tmp_path))
    monkeypatch.setattr(workers, "run_cohort", run_cohort)
    monkeypatch.setattr(cohort, "load_base", load_base)
    with pytest.raises(InputError, match=r"base model of world 987654 .*uftlab pretrain --world 987654"):
        list(run_trials([trial_of("base"), trial_of("base", seed=987654)], tmp_path))
    assert [p.name for p in tmp_path.glob("trials/*.json")] == [trial_of("base").path(tmp_path).name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 0}', r"must hold trials of schema 2; got 0\. .*nothing was changed"),
        ('{"schema": 2, "metr', "must be a whole trial file"),
        ("[1, 2]", "must be a whole trial file"),
        (b"\xff\xfe\x00", "must be a whole trial file"),
    ],
    ids=["other schema", "half a file", "a list", "not text"],
)
def test_a_results_folder_with_strange_trials_is_refused_and_left_alone(tmp_path, content, message):
    path = tmp_path / "trials" / "uft-seed0-abc.json"
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        list(run_trials([trial_of("base")], tmp_path))
    assert path.read_bytes() == before and [p.name for p in tmp_path.rglob("*")] == ["trials", path.name]


def test_a_folder_below_a_regular_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(InputError, match=r"not lie below a regular file; got .*file"):
        check_folder(tmp_path / "file" / "a" / "b")
    assert (tmp_path / "file").read_text() == "here"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    def denied(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(InputError, match="be writable; got .*Permission denied"):
        check_folder(tmp_path / "new")


def test_an_existing_folder_that_cannot_be_written_is_refused(tmp_path):
    folder = Path("/proc") if os.geteuid() == 0 else tmp_path  # root may write anywhere else
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="be writable"):
        check_folder(folder)


# ------------------------------------------------------------------------------------------ processes that are killed


@pytest.fixture
def nothing_measured(monkeypatch):
    """Trial files without a number count as finished."""
    monkeypatch.setattr(study, "metric_names", lambda sizes: set())


def test_what_a_killed_worker_had_not_finished_is_run_again(nothing_measured, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(workers, "run_cohort", mortal.dies_once)
    trials = [trial_of(name) for name in ("base", "sft", mortal.VICTIM, "sft-full")]
    results = list(run_trials(trials, tmp_path, workers=2))
    assert (tmp_path / "died").exists() and "going on with 1" in capsys.readouterr().out
    assert sorted(r["method"] for r in results) == sorted(t.method for t in trials)


def test_a_worker_that_dies_each_time_is_one_clear_error_and_what_is_finished_stays(
    nothing_measured, monkeypatch, tmp_path
):
    monkeypatch.setattr(workers, "run_cohort", mortal.dies)
    trials = [trial_of(name) for name in ("base", mortal.VICTIM)]
    with pytest.raises(InputError, match=r"A worker must live .*died with uft, seed 0\. Free memory .*on disk"):
        list(run_trials(trials, tmp_path, workers=2))
    assert [p.name for p in tmp_path.glob("trials/*.json")] == [trials[0].path(tmp_path).name]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_wanted_their_work(how, tmp_path):
    os.mkfifo(tmp_path / "started")
    parent = workers._context().Process(target=mortal.study_that_waits, args=(tmp_path,))
    parent.start()
    with (tmp_path / "started").open() as pipe:
        running = [psutil.Process(int(pipe.readline())) for _ in range(2)]
        try:
            os.kill(parent.pid, how)
            parent.join()
            assert psutil.wait_procs(running, timeout=60)[1] == []
        finally:
            for process in filter(psutil.Process.is_running, running):
                process.kill()


# ------------------------------------------------------------------------------------------ losses registered here


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """Registers an objective whose loss lies in a module of the given text; returns the registering function."""
    import importlib

    from uftlab.objectives.objective import Objective, Term
    from uftlab.objectives.registry import OBJECTIVES

    (tmp_path / "made_up_loss.py").write_text(
        "def loss(rows, settings):\n    return -rows.of('scored').policy_logps\n\n\nlazy = lambda rows, settings: 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "made_up_loss", raising=False)
    module = importlib.import_module("made_up_loss")

    def register(name):
        term = Term("scored", getattr(module, name))
        objective = Objective("made-up", (term,), "made up", "nobody", reference=False)
        monkeypatch.setitem(OBJECTIVES, "made-up", objective)
        return module

    return register


def test_worker_processes_know_a_loss_that_was_registered_here(registered):
    """A real worker, as `run_trials` starts it."""
    from concurrent.futures import ProcessPoolExecutor

    from uftlab.training.catalogue import method_named

    registered("loss")
    handed = workers.handed_over(["made-up", "uft"])
    with ProcessPoolExecutor(1, workers._context(), workers.start_worker, (handed,)) as executor:
        assert executor.submit(method_named, "made-up").result() == method_named("made-up")


def test_what_ships_is_not_handed_over():
    assert pickle.loads(workers.handed_over(["uft", "rloo", "sft-then-dpo", "dpo"])) == ({}, {})


@pytest.mark.parametrize("place", ["a lambda", "a notebook"])
def test_a_loss_that_no_process_can_import_is_refused_before_anything_is_trained(
    registered, place, tmp_path, monkeypatch
):
    module = registered("lazy" if place == "a lambda" else "loss")
    if place == "a notebook":
        module.loss.__module__ = "__main__"
        monkeypatch.setattr(sys.modules["__main__"], "loss", module.loss, raising=False)
        monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    trial = study.Trial("made-up", 0, trial_of("base").profile, ((("learning_rate", 1e-3),),))
    with pytest.raises(InputError, match=r"The loss made-up must be a function that worker processes can import"):
        list(run_trials([trial], tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*.json"))

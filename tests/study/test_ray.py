"""Trials on a Ray cluster: one of this machine with two workers, and what a cluster can lack."""

import json
import os
import socket
import sys
import types
from pathlib import Path

import mortal
import pytest
from trials import trial_of

from uftlab.errors import InputError
from uftlab.objectives.objective import Objective, Term
from uftlab.objectives.registry import OBJECTIVES
from uftlab.study import ray_workers
from uftlab.study import trials as study
from uftlab.study.cohort import run_cohort
from uftlab.study.workers import run_trials

ray = pytest.importorskip("ray")
HELPERS = Path(mortal.__file__).parent


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this machine with two workers at most, to which this process is connected."""
    quiet = {
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": "error",
        "object_store_memory": 100_000_000,
    }
    # its processes start anew: they have to find what these tests import
    places = os.pathsep.join([str(HELPERS), str(HELPERS.parents[1])])
    quiet["runtime_env"] = {"env_vars": {"PYTHONPATH": places}}
    # by default Ray's workers let every other process of a busy machine go first
    # and it waits 30 s for its own processes, which is too short beside other jobs
    for more in (True, True, False):
        try:
            ray.init(address="local", num_cpus=2, _system_config={"worker_niceness": 0}, **quiet)
            break
        except Exception as error:
            ray.shutdown()
            if not more or "timed out" not in str(error):
                raise
    yield
    ray.shutdown()


@pytest.fixture
def nothing_measured(monkeypatch):
    """Trial files without a number count as finished."""
    monkeypatch.setattr(study, "metric_names", lambda sizes: set())


def numbers(trial, folder):
    """What a trial's file holds but for times."""
    stored = json.loads(trial.path(folder).read_text())
    return {name: value for name, value in stored.items() if name not in ("measured", "wall_seconds")}


def test_a_killed_worker_costs_no_trial_and_the_files_are_those_of_a_local_study(cluster, monkeypatch, tmp_path):
    """Real trials; the process that meets the victim first is killed."""
    trials = [trial_of(name) for name in (mortal.VICTIM, "sft-then-dpo")]
    monkeypatch.setattr(ray_workers, "run_cohort", mortal.DiesOnce(tmp_path / "died"))
    results = list(run_trials(trials, tmp_path / "ray", 2, engine=ray_workers.spread))
    assert (tmp_path / "died").exists() and len(results) == 2
    run_cohort(trials[::-1], tmp_path / "local")
    for trial in trials:
        assert numbers(trial, tmp_path / "ray") == numbers(trial, tmp_path / "local")
    monkeypatch.setattr(ray_workers, "_library", lambda: pytest.fail("run again"))
    assert len(list(run_trials(trials, tmp_path / "ray", engine=ray_workers.spread))) == 2


def test_a_task_that_dies_each_time_is_one_clear_error_and_what_is_finished_stays(
    cluster, nothing_measured, monkeypatch, tmp_path
):
    monkeypatch.setattr(ray_workers, "run_cohort", mortal.dies)
    monkeypatch.setattr(ray_workers, "RETRIES", 0)
    trials = [trial_of(name) for name in ("base", mortal.VICTIM)]
    with pytest.raises(InputError, match=r"A worker must live .*died 1 times \(WorkerCrashedError\) with uft, seed 0"):
        list(run_trials(trials, tmp_path, 1, engine=ray_workers.spread))
    assert [p.name for p in tmp_path.glob("trials/*")] == [trials[0].path(tmp_path).name]


def test_a_refusal_of_a_node_is_the_one_line_it_was_there(cluster, tmp_path):
    with pytest.raises(InputError, match=r"^The base model of world 987654 .*`uftlab pretrain --world 987654`\.$"):
        list(run_trials([trial_of("base", seed=987654)], tmp_path, engine=ray_workers.spread))


def test_a_loss_that_only_this_process_knows_is_sent_along(cluster, nothing_measured, monkeypatch, tmp_path):
    term = Term("scored", lambda rows, settings: -rows.of("scored").policy_logps)
    monkeypatch.setitem(OBJECTIVES, "made-up", Objective("made-up", (term,), "made up", "nobody", reference=False))
    monkeypatch.setattr(ray_workers, "run_cohort", mortal.writes)
    trial = study.Trial("made-up", 0, trial_of("base").profile, ((("learning_rate", 1e-3),),))
    (result,) = run_trials([trial], tmp_path, engine=ray_workers.spread)
    assert result["method"] == "made-up" and result["known"]


def test_a_node_that_lacks_a_module_is_named(cluster, monkeypatch, tmp_path):
    here = types.ModuleType("only_here")
    exec("def run(trials, folder): ...", vars(here))
    monkeypatch.setitem(sys.modules, "only_here", here)
    monkeypatch.setattr(ray_workers, "run_cohort", here.run)
    with pytest.raises(InputError, match=r"A node .* must import .*; got No module named 'only_here'\. Install uftlab"):
        list(run_trials([trial_of("base")], tmp_path, engine=ray_workers.spread))


def test_a_node_with_another_version_is_refused_before_its_result_is_stored(
    cluster, nothing_measured, monkeypatch, tmp_path
):
    monkeypatch.setattr(ray_workers, "run_cohort", mortal.writes)
    monkeypatch.setattr(ray_workers, "plan_digest", lambda: "another plan")
    with pytest.raises(InputError, match="A node of the Ray cluster must have schema and plan .*another plan"):
        list(run_trials([trial_of("base")], tmp_path, engine=ray_workers.spread))
    assert not list(tmp_path.glob("trials/*"))


@pytest.mark.parametrize(
    "address", ["127.0.0.1:{free}", "ray://127.0.0.1:{free}", "127.0.0.1:http", "127.0.0.1:{taken}"]
)
def test_a_cluster_that_does_not_answer_or_lets_nobody_in_is_one_clear_error(address, monkeypatch, tmp_path):
    def refused(**arguments):
        raise ConnectionError

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refused if "taken" in address else lambda **arguments: pytest.fail("asked Ray"))
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens there
        named = address.format(free=free.getsockname()[1], taken=taken.getsockname()[1])
        monkeypatch.setenv("RAY_ADDRESS", named)
        with pytest.raises(InputError, match=f"RAY_ADDRESS must name a running cluster .*got {named}\\. Start it"):
            list(run_trials([trial_of("base")], tmp_path, engine=ray_workers.spread))


def test_without_the_library_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"find the library ray; got none\. Install the extra `ray`"):
        list(run_trials([trial_of("base")], tmp_path, engine=ray_workers.spread))

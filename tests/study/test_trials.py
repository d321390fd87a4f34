"""One trial, one file: equal budgets, stage ends, resuming."""

import json
import math
from dataclasses import replace

import pytest
import torch
from trials import TINY, WeightProbe, probe, random_base, trial_of

from uftlab import files
from uftlab.errors import InputError
from uftlab.evals.sizes import metric_names
from uftlab.evals.skills import Evaluator, measure
from uftlab.files import write_atomically
from uftlab.study import cohort, trials
from uftlab.study.cohort import run_cohort, run_trial
from uftlab.training import settings as training
from uftlab.training.catalogue import METHODS
from uftlab.training.methods import Method, Stage
from uftlab.training.settings import is_tuned
from uftlab.world.world import Dials, World


class Few(Evaluator):
    """The real evaluator on eight facts of each sort."""

    def __init__(self, *args):
        super().__init__(*args)
        self.facts = {kind: facts[:8] for kind, facts in self.facts.items()}


@pytest.fixture(scope="module")
def probed():
    """Random bases and the probe instead of the evaluator, for the whole module; yields the stages trained."""
    patch, trained = pytest.MonkeyPatch(), []
    original = cohort.run

    def counted(jobs, *args, **kwargs):
        trained.extend(job.stage for job in jobs)
        return original(jobs, *args, **kwargs)

    patch.setattr(cohort, "load_base", random_base)
    patch.setattr(cohort, "Evaluator", WeightProbe)
    patch.setattr(cohort, "measure", probe)
    patch.setattr(cohort, "run", counted)
    patch.setattr(trials, "metric_names", lambda sizes: {"digest"})
    cohort.materials.cache_clear()
    yield trained
    patch.undo()
    cohort.materials.cache_clear()


@pytest.fixture(scope="module")
def everything(probed, tmp_path_factory):
    """Every method once in one folder: the folder, the results by method, the stages that were trained."""
    folder = tmp_path_factory.mktemp("study")
    probed.clear()
    results = {name: run_trial(trial_of(name), folder) for name in METHODS}
    return folder, results, list(probed)


# ------------------------------------------------------------------------------------------ one trial


def test_a_trial_is_one_json_file_that_says_how_it_was_made(everything):
    folder, results, _ = everything
    path = trial_of("uft").path(folder)
    assert json.loads(path.read_text()) == results["uft"]
    assert {"schema", "settings", "metrics", "curves", "wall_seconds", "device", "versions"} <= set(results["uft"])
    assert sorted(p.suffix for p in (folder / "trials").iterdir()) == [".json"] * len(METHODS)


def test_a_finished_trial_is_read_and_not_trained_again(everything, monkeypatch):
    folder, results, _ = everything
    monkeypatch.setattr(cohort, "run", lambda *args, **kwargs: pytest.fail("trained again"))
    assert run_trial(trial_of("uft"), folder) == results["uft"]


def test_training_moves_the_weights_and_each_method_moves_them_elsewhere(everything):
    _, results, _ = everything
    digests = {name: result["metrics"]["digest"] for name, result in results.items()}
    # of two steps the first has rate 0 and the second starts where nothing pulls yet
    assert digests.pop("sft-then-dpo-l2") == digests["sft-then-dpo"]
    assert len(set(digests.values())) == len(METHODS) - 1


def test_the_budget_is_equal_for_all_methods_but_base_and_sft(everything):
    _, results, _ = everything
    completions = {name: result["completions"] for name, result in results.items()}
    assert (completions.pop("base"), completions.pop("sft")) == (0, 64)
    assert set(completions.values()) == {128}


def test_extra_forwards_are_reported_and_kto_has_the_most(everything, probed, tmp_path):
    _, results, _ = everything
    kto = run_trial(trial_of("sft-then-kto"), tmp_path)["extra_forwards"]
    extra = {name: result["extra_forwards"] for name, result in results.items()}
    assert [extra[name] for name in ("base", "sft", "sft-full", "signed-sft")] == [0, 0, 0, 0]
    assert extra["sft-then-una"] == 48  # the reference, once for each row
    assert kto > extra["sft-then-una"] + 64  # two steps of 32 mismatched completions


def test_a_model_is_measured_in_full_after_each_stage_and_the_next_goes_on_from_there(everything):
    _, results, _ = everything
    first, last = results["sft-then-dpo"]["stages"]
    assert first["metrics"]["digest"] == results["sft"]["metrics"]["digest"]  # the same settings, half the budget
    assert "metrics" not in last and results["sft-then-dpo"]["metrics"]["digest"] != first["metrics"]["digest"]
    after_one = [point for point in results["sft-then-dpo"]["curves"] if point["stage"] == 1][-1]
    assert after_one["digest"] == first["metrics"]["digest"]
    assert results["sft-then-dpo"]["curves"][0]["digest"] == results["base"]["metrics"]["digest"]


def test_stage_ends_are_not_measured_where_nobody_asks(probed, tmp_path):
    result = run_trial(trial_of("sft-then-dpo", profile=replace(TINY, stage_ends=False), curves=False), tmp_path)
    assert not any("metrics" in stage for stage in result["stages"])


def test_weights_move_away_from_the_base_and_the_rows_of_a_stage_are_described(everything):
    _, results, _ = everything
    assert results["base"]["metrics"]["drift/weights"] == 0 < results["uft"]["metrics"]["drift/weights"]
    pushed = {name: [stage["pushed_down"] for stage in result["stages"]] for name, result in results.items()}
    assert pushed["sft-full"] == [0.0] and pushed["sft-then-dpo"] == [0.0, 0.5]
    assert pushed["sft-plus-dpo"] == [0.25] and 0 < pushed["uft"][0] < 0.5
    assert all(stage["base_logp"] < 0 for result in results.values() for stage in result["stages"])


def test_the_same_trial_gives_the_same_bits_in_another_folder(everything, probed, tmp_path):
    _, results, _ = everything
    torch.manual_seed(123)  # whatever state the process is in
    again = run_trial(trial_of("uft"), tmp_path)
    assert again["metrics"] == results["uft"]["metrics"] and again["curves"] == results["uft"]["curves"]


def test_in_one_stack_every_trial_comes_out_as_alone(everything, probed, tmp_path):
    """As on a GPU, up to rounding."""
    _, results, _ = everything
    trials = [trial_of(name) for name in ("sft-then-dpo", "sft-then-una", "uft", "base", "sft")]
    cohort._run(trials, tmp_path)
    for trial in trials:
        result, alone = json.loads(trial.path(tmp_path).read_text()), results[trial.method]
        assert {k: v for k, v in result.items() if k in ("steps", "completions", "extra_forwards", "settings")} == {
            k: v for k, v in alone.items() if k in ("steps", "completions", "extra_forwards", "settings")
        }
        assert result["metrics"]["norm"] == pytest.approx(alone["metrics"]["norm"], rel=1e-4)
        assert [(p["stage"], p["step"]) for p in result["curves"]] == [(p["stage"], p["step"]) for p in alone["curves"]]


def test_on_a_cpu_a_trial_is_the_same_to_the_last_bit_in_any_company(probed, tmp_path):
    """Company is what runs together, what the process ran before, and what the reference was asked to read before."""
    larger = replace(TINY, demonstrations=200, prompts=150)
    trials = [trial_of(n, profile=larger, seed=s) for s in (0, 1) for n in ("sft-then-dpo", "uft", "sft-then-kto")]
    found = []
    for order in (trials, trials[::-1]):
        cohort.materials.cache_clear()
        run_cohort(order, tmp_path / str(len(found)))
        stored = [json.loads(trial.path(tmp_path / str(len(found))).read_text()) for trial in trials]
        found.append([{k: v for k, v in s.items() if k not in ("measured", "wall_seconds")} for s in stored])
    assert found[0] == found[1]


def test_a_trial_with_the_real_evaluator(monkeypatch, tmp_path):
    monkeypatch.setattr(cohort, "load_base", random_base)
    monkeypatch.setattr(cohort, "Evaluator", Few)
    monkeypatch.setattr(cohort, "measure", measure)
    cohort.materials.cache_clear()
    try:
        result = run_trial(trial_of("uft"), tmp_path)
    finally:
        cohort.materials.cache_clear()
    assert [point["step"] for point in result["curves"]] == [0, 2, 4]
    assert {"instruction/strict", "truth/mc2", "plain/free", "retention/excess", "kl/reverse-new"} <= set(
        result["metrics"]
    )
    assert len(result["samples"]) == 16 and {"prompt", "expected", "answer"} <= set(result["samples"][0])


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"settings": ((("beta", 0.2), ("learning_rate", 1e-3)),)},
        {"draw": 1},
        {"profile": replace(TINY, steps=5)},
        {"profile": replace(TINY, dials=Dials(length_bonus=0))},
        {"split": "validation"},
        {"curves": False},
    ],
    ids=lambda change: str(change)[:40],
)
def test_the_digest_changes_with_whatever_changes_the_outcome(change):
    assert replace(trial_of("uft"), **change).digest() != trial_of("uft").digest()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "trial.json"
    write_atomically(path, "first")

    def cut(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "second")
    assert path.read_text() == "first"


def test_a_trial_that_diverged_is_not_stored(probed, tmp_path, monkeypatch):
    """Its file would hold NaN, which is no JSON, and its seed would leave the comparisons unseen."""
    monkeypatch.setattr(cohort, "measure", lambda evaluators, reader: [{"truth/mc2": math.nan} for _ in evaluators])
    with pytest.raises(trials.UnsoundError, match=r"base, seed 0: metrics\.truth/mc2 must be sound; got .*nan"):
        run_trial(trial_of("base", curves=False), tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_an_unknown_profile_names_those_there_are():
    with pytest.raises(InputError, match=r"one of smoke, class, research; got huge"):
        trials.profile_named("huge")


# ------------------------------------------------------------------------------------------ what a trial is known by


def test_a_stored_trial_without_a_new_metric_is_run_again(probed, tmp_path, monkeypatch):
    path = trial_of("base").path(tmp_path)
    first = run_trial(trial_of("base"), tmp_path)
    assert trials.is_done(trial_of("base"), tmp_path)
    del first["metrics"]["digest"]
    path.write_text(json.dumps(first))
    assert not trials.is_done(trial_of("base"), tmp_path)
    assert "digest" in run_trial(trial_of("base"), tmp_path)["metrics"]


def test_the_metrics_are_those_that_an_evaluator_gives(untrained, tokenizer):
    for sizes in (TINY.sizes, replace(TINY.sizes, drift=0)):
        evaluator = Few(World(0), untrained, tokenizer, "test", sizes)
        assert set(evaluator(untrained)) == metric_names(sizes)


# ------------------------------------------------------------------------------------------ any number of stages


@pytest.fixture
def three(monkeypatch):
    """A method of three stages that begins with DPO, beside those that ship."""
    stages = (Stage("dpo", 0.0, 0.25), Stage("sft", 1.0, 0.5), Stage("una-score", 0.0, 0.25))
    method = Method("three", stages, "DPO, then SFT, then UNA", group="pipeline")
    monkeypatch.setitem(METHODS, "three", method)
    return method


def test_any_first_stage_has_settings_and_the_record_says_what_nobody_tuned(three, probed, tmp_path):
    made = trials.trial("three", 0, replace(TINY, steps=8))
    dpo, sft, last = made.stage_settings()
    assert dpo == last == {"learning_rate": 1.5e-3, "beta": 0.1} and sft == {"learning_rate": 4e-3}
    result = run_trial(made, tmp_path)
    assert [stage["objective"] for stage in result["stages"]] == ["dpo", "sft", "una-score"]
    assert [stage["settings"] for stage in result["stages"]] == [dpo, sft, last]
    assert ["metrics" in stage for stage in result["stages"]] == [True, True, False]
    assert (result["steps"], result["tuned"]) == (8, False)


def test_a_method_is_tuned_only_if_all_its_stages_are():
    method, settings = METHODS["sft-then-dpo"], trials.trial("sft-then-dpo", 0, TINY).stage_settings()
    assert is_tuned(method, settings)
    assert not is_tuned(method, [{"learning_rate": 1.0}, settings[1]])


def test_the_seeds_of_a_study_take_turns_with_the_tuning_draws(monkeypatch):
    table = {"uft": [[{"learning_rate": float(draw)}] for draw in range(4)]}
    monkeypatch.setattr(training, "chosen_settings", lambda: table)
    rates = [trials.trial("uft", seed, TINY).stage_settings()[0]["learning_rate"] for seed in range(6)]
    assert rates == [0, 1, 2, 3, 0, 1] and trials.trial("uft", 5, TINY).draw == 1
    assert trials.trial("uft", 5, TINY, draw=3).stage_settings() == table["uft"][3]
    assert trials.trial("base", 5, TINY, draw=3) == trials.trial("base", 5, TINY)

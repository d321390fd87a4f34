"""One trial, one file: equal budgets, shared stages, resuming; and the rules by which settings are chosen."""

import json
from dataclasses import replace

import pytest
import torch
from trials import TINY, WeightProbe, probe, random_base, trial_of

from uftlab import files
from uftlab.errors import InputError
from uftlab.evals.sizes import metric_names
from uftlab.evals.skills import Evaluator, measure
from uftlab.files import write_atomically
from uftlab.study import cohort, trials, tuning
from uftlab.study.cohort import run_cohort, run_trial
from uftlab.training.methods import METHODS, Method, Stage, all_tuned, chosen_settings
from uftlab.world.world import World


class Few(Evaluator):
    """The real evaluator on eight facts of each sort."""

    def __init__(self, *args):
        super().__init__(*args)
        self.myths, self.plain = self.myths[:8], self.plain[:8]


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


def test_extra_forwards_are_reported_and_kto_has_the_most(everything):
    _, results, _ = everything
    extra = {name: result["extra_forwards"] for name, result in results.items()}
    assert [extra[name] for name in ("base", "sft", "sft-full", "sft-sum")] == [0, 0, 0, 0]
    assert extra["sft-then-una"] == 48  # the reference, once for each row
    assert extra["sft-then-kto"] > extra["sft-then-una"] + 64  # two steps of 32 mismatched completions


def test_a_shared_first_stage_is_trained_once(everything):
    _, _, trained = everything
    assert (
        trained.count(METHODS["sft"].stages[0]) == 3
    )  # the shared one, and the second stages of the reversed pipelines
    assert len(trained) == 22  # twenty methods: base trains none; three have a first stage of their own


def test_a_pipeline_starts_from_the_shared_stage_and_trains_the_same_without_it(everything, probed, tmp_path):
    _, results, _ = everything
    alone = run_trial(trial_of("sft-then-dpo"), tmp_path)
    assert alone["metrics"] == results["sft-then-dpo"]["metrics"]
    after_one = [point for point in alone["curves"] if point["stage"] == 1][-1]
    assert after_one["digest"] == results["sft"]["metrics"]["digest"]
    assert alone["curves"][0]["digest"] == results["base"]["metrics"]["digest"]


def test_the_same_trial_gives_the_same_bits_in_another_folder(everything, probed, tmp_path):
    _, results, _ = everything
    torch.manual_seed(123)  # whatever state the process is in
    again = run_trial(trial_of("uft"), tmp_path)
    assert again["metrics"] == results["uft"]["metrics"] and again["curves"] == results["uft"]["curves"]


def test_together_every_trial_comes_out_as_alone_and_shared_stages_are_trained_once(everything, probed, tmp_path):
    _, results, _ = everything
    names = ["sft-then-dpo", "sft-then-kto", "uft", "base", "sft"]
    probed.clear()
    together = run_cohort([trial_of(name) for name in names], tmp_path)
    assert [result["method"] for result in together] == names
    assert probed.count(METHODS["sft"].stages[0]) == 1 and len(probed) == 4
    for name, result in zip(names, together, strict=True):
        alone = results[name]
        assert {k: v for k, v in result.items() if k in ("steps", "completions", "extra_forwards", "settings")} == {
            k: v for k, v in alone.items() if k in ("steps", "completions", "extra_forwards", "settings")
        }
        assert result["metrics"]["norm"] == pytest.approx(alone["metrics"]["norm"], rel=1e-4)
        assert [(p["stage"], p["step"]) for p in result["curves"]] == [(p["stage"], p["step"]) for p in alone["curves"]]


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
        {"settings": (("beta", 0.2), ("learning_rate", 1e-3))},
        {"stage_one": (("learning_rate", 1.0),)},
        {"profile": replace(TINY, steps=5)},
        {"split": "validation"},
        {"curves": False},
    ],
    ids=lambda change: next(iter(change)),
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


def test_an_unknown_profile_names_those_there_are():
    with pytest.raises(InputError, match=r"one of smoke, class, research; got huge"):
        trials.profile_named("huge")


# ------------------------------------------------------------------------------------------ what a trial is known by


def test_another_base_has_a_first_stage_of_its_own(probed, tmp_path, monkeypatch):
    """A base that was built again in between: the stage on disk is of the old one and is not gone on from."""
    run_trial(trial_of("sft"), tmp_path)
    monkeypatch.setattr(cohort, "load_base", lambda seed: random_base(seed + 7))
    cohort.materials.cache_clear()
    try:
        probed.clear()
        mixed = run_trial(trial_of("sft-then-dpo"), tmp_path)
        assert [stage.objective for stage in probed] == ["sft", "dpo"]
        assert mixed["metrics"] == run_trial(trial_of("sft-then-dpo"), tmp_path / "alone")["metrics"]
    finally:
        monkeypatch.undo()
        cohort.materials.cache_clear()


def test_a_stored_trial_without_a_new_metric_is_run_again(probed, tmp_path, monkeypatch):
    path = trial_of("base").path(tmp_path)
    first = run_trial(trial_of("base"), tmp_path)
    assert trials.is_done(trial_of("base"), tmp_path)
    del first["metrics"]["digest"]
    path.write_text(json.dumps(first))
    assert not trials.is_done(trial_of("base"), tmp_path)
    assert "digest" in run_trial(trial_of("base"), tmp_path)["metrics"]


@pytest.mark.parametrize("study", ["class", "pipelines", "sweep", "sweep-pipelines"])
def test_every_stored_trial_counts_as_done(study):
    for path in sorted((files.DATA / "results" / study / "trials").glob("*.json")):
        stored = trials.read_trial(path)
        sizes = tuning.PROFILE.sizes if stored["profile"] == "sweep" else trials.PROFILES[stored["profile"]].sizes
        assert set(stored["metrics"]) == metric_names(sizes)


def test_the_names_of_stored_trials_are_as_they_were(monkeypatch):
    monkeypatch.setattr(trials, "metric_names", metric_names)
    folder = files.DATA / "results"
    class_size = trials.PROFILES["class"]
    for name in METHODS:
        assert trials.is_done(trials.trial(name, 0, class_size), folder / "class")
    assert all(trials.is_done(t, folder / "sweep") for t in tuning.trials([m for m in METHODS if METHODS[m].tuned]))


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
    assert dpo == {"learning_rate": 1.5e-3, "beta": 0.1}  # nobody has tuned DPO alone
    assert sft == chosen_settings()["sft"] and last == {"learning_rate": 1.5e-3, "beta": 0.1}
    result = run_trial(made, tmp_path)
    assert [stage["objective"] for stage in result["stages"]] == ["dpo", "sft", "una-score"]
    assert [stage["settings"] for stage in result["stages"]] == [dpo, sft, last]
    assert (result["steps"], result["tuned"]) == (8, False)
    assert replace(made, between=((("learning_rate", 1.0),),)).digest() != made.digest()


def test_a_pipeline_is_tuned_only_if_each_stage_is(monkeypatch):
    method, settings = METHODS["sft-then-dpo"], trials.trial("sft-then-dpo", 0, TINY).stage_settings()
    assert all_tuned(method, settings)
    assert not all_tuned(method, [{"learning_rate": 1.0}, settings[1]])


def test_a_method_of_three_stages_is_tuned_after_those_of_one(three):
    assert tuning.rounds(["three", "sft"]) == [["sft"], ["three"]]
    assert len(tuning.trials(["three"])) == 13 and {len(t.between) for t in tuning.trials(["three"])[1:]} == {1}

"""One trial, one file: equal budgets, shared stages, resuming; and the rules by which settings are chosen."""

import json
import os
import pickle
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from uftlab import study, tuning, workers
from uftlab.errors import InputError
from uftlab.evaluation import Evaluator, Sizes
from uftlab.feedback import from_rows
from uftlab.logps import fingerprint
from uftlab.methods import BETA_NATS, EXTRA, LEARNING_RATES, METHODS, grid, method_named, resolve_settings, sources
from uftlab.models import load_base, tiny_config
from uftlab.objectives import OBJECTIVES
from uftlab.study import PROFILES, Profile, Trial, run_trial
from uftlab.tokens import Completion, Tokens
from uftlab.workers import check_folder, run_trials
from uftlab.world import World, pairs

TINY = Profile("tiny", 4, 1, 48, 24, Sizes(24, 20, 4, 10), 2)
VALUES = {"learning_rate": 1e-3, "beta": 0.1, "preference_weight": 1.0, "demonstrations": 0.25}
TUNED_METHODS = [m for m in METHODS.values() if m.tuned]


def trial_of(method, **changes):
    """A trial of the tiny profile with made-up settings."""
    definition = METHODS[method]
    settings = tuple(sorted((name, VALUES[name]) for name in definition.tuned))
    first = ()
    if len(definition.stages) == 2:
        names = {"sft": ("learning_rate",), "una-score": ("beta", "learning_rate")}[definition.stages[0].objective]
        first = tuple((name, VALUES[name]) for name in names)
    return replace(Trial(method, 0, TINY, settings, first), **changes)


def random_base(seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config()).eval()


class WeightProbe(Evaluator):
    """Stands in for the evaluator: its one metric is a digest of all weights, so equal metrics mean equal bits."""

    def __init__(self, world, base, tokenizer, split, sizes):
        self.tokenizer, self.instructed, self.myths = tokenizer, [], []

    def __call__(self, model):
        return {"digest": int(fingerprint(model)[:12], 16)}


class Few(Evaluator):
    """The real evaluator on eight facts of each sort."""

    def __init__(self, *args):
        super().__init__(*args)
        self.myths, self.plain = self.myths[:8], self.plain[:8]


@pytest.fixture(scope="module")
def probed():
    """Random bases and the probe instead of the evaluator, for the whole module; yields the stages trained."""
    patch, trained = pytest.MonkeyPatch(), []
    original = study.train_stage

    def counted(policy, stage, *args, **kwargs):
        trained.append(stage)
        return original(policy, stage, *args, **kwargs)

    patch.setattr(study, "load_base", random_base)
    patch.setattr(study, "Evaluator", WeightProbe)
    patch.setattr(study, "train_stage", counted)
    study._materials.cache_clear()
    yield trained
    patch.undo()
    study._materials.cache_clear()


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
    monkeypatch.setattr(study, "train_stage", lambda *args, **kwargs: pytest.fail("trained again"))
    assert run_trial(trial_of("uft"), folder) == results["uft"]


def test_training_moves_the_weights_and_each_method_moves_them_elsewhere(everything):
    _, results, _ = everything
    assert len({result["metrics"]["digest"] for result in results.values()}) == len(METHODS)


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
    assert trained.count(METHODS["sft"].stages[0]) == 1
    assert len(trained) == 14  # fourteen methods: base trains none, uft-then-una has a first stage of its own


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


def test_a_trial_with_the_real_evaluator(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "load_base", random_base)
    monkeypatch.setattr(study, "Evaluator", Few)
    study._materials.cache_clear()
    try:
        result = run_trial(trial_of("uft"), tmp_path)
    finally:
        study._materials.cache_clear()
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
    study.write_atomically(path, "first")

    def cut(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(study.os, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        study.write_atomically(path, "second")
    assert path.read_text() == "first"


def test_an_unknown_profile_names_those_there_are():
    with pytest.raises(InputError, match=r"one of smoke, class, research; got huge"):
        study.profile_named("huge")


# ------------------------------------------------------------------------------------------ many trials


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

    def quick(trial, folder):
        path = trial.path(folder)
        if not path.is_file():
            ran.append(trial.method)
            study.write_atomically(path, json.dumps({"schema": study.SCHEMA, "method": trial.method}))
        return json.loads(path.read_text())

    def install(cut=None):
        executor = OneByOne(cut)
        monkeypatch.setattr(workers, "ProcessPoolExecutor", executor)
        monkeypatch.setattr(workers, "wait", executor.wait)

    monkeypatch.setattr(workers, "run_trial", quick)
    return install, ran


def test_an_interrupted_study_keeps_what_is_finished_and_runs_only_the_rest(in_process, tmp_path):
    install, ran = in_process
    trials = [trial_of(name) for name in ("base", "uft", "sft-full", "uft-binary")]
    install(cut=3)
    with pytest.raises(KeyboardInterrupt):
        list(run_trials(trials, tmp_path, workers=1))
    first, kept = list(ran), {p: p.read_bytes() for p in tmp_path.glob("trials/*.json")}
    (tmp_path / "trials" / "tmpabc.part").write_text('{"schema": 1, "half')  # what a crash leaves behind
    assert len(kept) == len(first) == 2
    ran.clear()
    install()
    results = list(run_trials(trials, tmp_path, workers=1))
    assert sorted(r["method"] for r in results) == sorted(t.method for t in trials)
    assert sorted(first + ran) == sorted(t.method for t in trials)  # none twice
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_pipelines_wait_for_the_trial_that_trains_their_first_stage(in_process, tmp_path):
    install, ran = in_process
    install()
    names = ["sft-then-dpo", "sft-then-kto", "uft", "sft"]
    list(run_trials([trial_of(name) for name in names], tmp_path, workers=2))
    assert sorted(ran) == sorted(names)
    assert ran.index("sft") < min(ran.index("sft-then-dpo"), ran.index("sft-then-kto"))


def test_without_sft_one_pipeline_goes_first_and_all_are_run(in_process, tmp_path):
    install, ran = in_process
    install()
    names = ["sft-then-dpo", "sft-then-kto", "sft-then-una"]
    list(run_trials([trial_of(name) for name in names], tmp_path, workers=2))
    assert sorted(ran) == sorted(names)


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
    monkeypatch.setattr(workers, "run_trial", run_trial)
    monkeypatch.setattr(study, "load_base", load_base)
    with pytest.raises(InputError, match=r"base model of world 987654 .*uftlab pretrain --world 987654"):
        list(run_trials([trial_of("base"), trial_of("base", seed=987654)], tmp_path))
    assert [p.name for p in tmp_path.glob("trials/*.json")] == [trial_of("base").path(tmp_path).name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 0}', r"must hold trials of schema 1; got 0\. .*nothing was changed"),
        ('{"schema": 1, "metr', "must be a whole trial file"),
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


# ------------------------------------------------------------------------------------------ equal care


@pytest.mark.parametrize("method", TUNED_METHODS, ids=lambda m: m.name)
def test_every_tuned_method_gets_twelve_different_settings(method):
    points = grid(method)
    assert len({tuple(p.items()) for p in points}) == 12
    if "beta" in method.tuned:
        assert {(p["learning_rate"], p["beta_nats"]) for p in points} == {
            (rate, nats) for rate in LEARNING_RATES for nats in BETA_NATS
        }
    for name in method.tuned[2:]:
        assert sorted(p[name] for p in points) == sorted(EXTRA[name] * 4)


def test_beta_is_laid_out_from_a_tenth_to_ten_on_the_scale_of_the_reference():
    assert (min(BETA_NATS), max(BETA_NATS)) == (0.1, 10.0)


def test_the_sweep_leaves_test_creatures_and_reported_worlds_alone():
    made = tuning.trials(["uft"])
    assert [t.method for t in made] == ["base"] + ["uft"] * 12
    assert {t.split for t in made} == {"validation"}
    assert {t.seed for t in made} == {study.TUNING_WORLD}
    assert study.TUNING_WORLD not in range(max(p.seeds for p in PROFILES.values()))


def test_methods_of_one_stage_are_tuned_before_the_pipelines_that_need_them():
    one, two = tuning.phases(list(METHODS))
    assert {"sft", "uft-demonstrations", "uft"} <= set(one) and "base" not in one
    assert set(two) == {m.name for m in METHODS.values() if len(m.stages) == 2}


def test_choose_takes_the_largest_balance_and_keeps_what_other_methods_chose(tmp_path, monkeypatch):
    """With the ceiling 0.5 truth 0.38 counts 0.76: the third wins with min(0.8, 0.76); unscaled it would lose."""
    monkeypatch.setattr(tuning, "TUNED", tmp_path / "tuned.json")
    tuning.TUNED.write_text(json.dumps({"rule": "kept", "settings": {"other": {"beta": 9.0}}}))
    skills = [(0.6, 0.6), (1.0, 0.2), (0.8, 0.38)] + [(0.1, 0.5)] * 9
    base, *own = tuning.trials(["uft"])
    rows = [(base, {}, (0.0, 0.2))] + [(t, dict(t.settings), s) for t, s in zip(own, skills, strict=True)]
    for trial, settings, (strict, mc2) in rows:
        metrics = {"instruction/strict": strict, "truth/mc2": mc2, "truth/cued": 0.5 if trial is base else 0.0}
        content = {"method": trial.method, "settings": {**settings, "beta": 0.03}, "metrics": metrics}
        study.write_atomically(trial.path(tmp_path), json.dumps(content))
    assert len(tuning.choose(["uft"], tmp_path)) == 1
    table = json.loads(tuning.TUNED.read_text())
    chosen = dict(own[2].settings)
    assert table["settings"]["uft"] == {"learning_rate": chosen["learning_rate"], "beta": 0.03}
    assert table["settings"]["other"] == {"beta": 9.0} and table["rule"] == "kept"


def test_stage_one_takes_the_settings_tuned_for_its_own_objective(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "TUNED", tmp_path / "tuned.json")
    table = {
        "sft": {"learning_rate": 1.0},
        "uft-demonstrations": {"learning_rate": 2.0, "beta": 3.0},
        "uft": {"a": 4.0},
    }
    study.TUNED.write_text(json.dumps({"settings": table}))
    assert study.first_stage_settings(METHODS["sft-then-kto"]) == (("learning_rate", 1.0),)
    assert study.first_stage_settings(METHODS["uft-then-una"]) == (("beta", 3.0), ("learning_rate", 2.0))
    assert study.trial("uft", 0, TINY) == Trial("uft", 0, TINY, (("a", 4.0),), ())
    with pytest.raises(InputError, match=r"Settings of replay must be in tuned.json; .*uftlab sweep"):
        study.trial("replay", 0, TINY)


# ------------------------------------------------------------------------------------------ methods


@pytest.fixture(scope="module")
def tables():
    world = World(0)
    rows = [{k: r[k] for k in ("prompt", "completion")} for r in world.demonstrations(12)]
    return {"demonstrations": from_rows(rows), "feedback": from_rows(pairs(world.feedback(12)))}


def stages():
    found = {stage for method in METHODS.values() for stage in method.stages}
    replayed = METHODS["replay"].stages[1]
    return sorted(found | {replace(replayed, demonstrations=share) for share in EXTRA["demonstrations"]}, key=repr)


@pytest.mark.parametrize("stage", stages(), ids=lambda s: f"{s.objective}-{s.demonstrations}-{s.budget}")
def test_every_step_of_every_stage_backpropagates_32_completions(stage, tables, tokenizer):
    examples, per_step = sources(stage, tables, Tokens(tokenizer))
    sizes = [sum(c.role != "mismatched" for c in source[0]) for source in examples]
    assert sum(n * size for n, size in zip(per_step, sizes, strict=True)) == 32
    if stage.demonstrations not in (0.0, 1.0):
        assert per_step[0] * sizes[0] == 32 * stage.demonstrations


@pytest.mark.parametrize("name", ["sft-plus-dpo", "sft-then-dpo"])
def test_no_source_of_a_stage_is_left_out_of_the_smallest_batch(name, tables, tokenizer):
    for stage in METHODS[name].stages:
        assert min(sources(stage, tables, Tokens(tokenizer), batch=2)[1]) >= 1


def test_a_missing_table_is_named(tables, tokenizer):
    with pytest.raises(
        InputError, match=r"una-score stage must be given feedback; got demonstrations\. Add --feedback"
    ):
        sources(METHODS["uft"].stages[0], {"demonstrations": tables["demonstrations"]}, Tokens(tokenizer))


def test_beta_is_nats_over_the_median_of_the_reference():
    """-log pi_ref of 2, 4, 9: the median is 4, and 2.2 / 4 = 0.55. Mismatched completions and NaN do not count."""
    rows = [Completion((1,), (2,), "scored", 1.0, -n) for n in (2.0, 4.0, 9.0, float("nan"))]
    rows.append(Completion((1,), (2,), "mismatched", 1.0, -100.0))
    examples = [[(row,) for row in rows]]
    chosen = resolve_settings(OBJECTIVES["una-score"], {"learning_rate": 1e-3, "beta_nats": 2.2}, examples)
    assert chosen == {"learning_rate": 1e-3, "beta": 0.55}


def test_a_given_beta_is_kept_and_an_objective_without_beta_gets_none():
    assert resolve_settings(OBJECTIVES["dpo"], {"learning_rate": 1.0, "beta": 7.0}, [])["beta"] == 7.0
    assert resolve_settings(OBJECTIVES["sft"], {"learning_rate": 1.0, "beta": 7.0}, []) == {"learning_rate": 1.0}


def test_an_unknown_method_names_those_there_are():
    with pytest.raises(InputError, match=r"one of base, sft, .*sft-sum; got ufd"):
        method_named("ufd")

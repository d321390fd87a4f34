"""Recipes as stages of a study: equal budgets, the same bits after a kill, and the special cases that they contain."""

import copy
import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from trials import TINY, WeightProbe, probe, random_base, trial_of

from uftlab.cli import app
from uftlab.engine.trainer import ObjectiveTrainer, Quiet, training_arguments
from uftlab.errors import InputError
from uftlab.models.policies import tiny_tokenizer
from uftlab.objectives.registry import objective_named
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import Tokens
from uftlab.study import cohort, trials
from uftlab.study.cohort import run_trial
from uftlab.study.tuning import points
from uftlab.training import settings as training
from uftlab.training.catalogue import METHODS, PIPELINE_METHODS, RECENT_METHODS
from uftlab.training.checkpoint import train_checkpoint
from uftlab.training.configuration import TrainConfig
from uftlab.training.methods import Method, Stage, default_settings
from uftlab.training.recipes import FedTrainer, Task, offline
from uftlab.training.stages import RECIPES, Job, check_recipes, run
from uftlab.world.world import World, pairs

pytestmark = pytest.mark.usefixtures("quick_collections")

NEW = {name: method for name, method in RECENT_METHODS.items() if method.stages[-1].recipe not in ("offline", "online")}
OWN = {**PIPELINE_METHODS, **NEW}  # those with a recipe that no other table has
NAMES = list(OWN)
EIGHT = replace(TINY, steps=8)  # the first step of any schedule has learning rate 0, so parts need two
SAMPLED = {"una-online": 128, "una-online-rollout": 128, "uft-online": 128, "rloo": 128, "rs-dpo": 96}
SAMPLED |= {"chord-mu": 128, "luffy": 224}
SAMPLED |= dict.fromkeys(("sdft", "cue-sft", "on-policy-distillation"), 256)


def by_letters(prompts, texts):
    """A reward function that tells texts apart and knows nothing else."""
    return [sum(map(ord, text)) % 97 / 96 for text in texts]


@pytest.fixture(scope="module")
def probed():
    """Random bases, the probe for an evaluator, a reward that needs no grammar."""
    patch = pytest.MonkeyPatch()
    patch.setattr(cohort, "load_base", random_base)
    patch.setattr(cohort, "Evaluator", WeightProbe)
    patch.setattr(cohort, "measure", probe)
    patch.setattr(trials, "metric_names", lambda sizes: {"digest"})
    patch.setattr(cohort, "world_reward", lambda seed, length_bonus=1: by_letters)
    cohort.materials.cache_clear()
    yield
    patch.undo()
    cohort.materials.cache_clear()


def trial(name):
    return trial_of(name, profile=EIGHT)


@pytest.fixture(scope="module")
def whole(probed, tmp_path_factory):
    """Every recipe without interruption, in one folder."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: run_trial(trial(name), folder) for name in ("sft", *NAMES)}


# ------------------------------------------------------------------------------------------ the registry


@pytest.mark.parametrize("method", OWN.values(), ids=lambda m: m.name)
def test_a_recipe_is_a_method_like_any_other(method):
    assert method.group in ("pipeline", "online", "recent", "question") and method.name not in METHODS
    assert {stage.recipe for stage in method.stages} <= set(RECIPES)
    assert sum(stage.budget for stage in method.stages) == 1
    settings = default_settings(method)
    allowed = {"learning_rate", *objective_named(method.stages[-1].objective).settings}
    assert set(settings) == allowed | {name for name, _ in method.stages[-1].options}
    assert set(method.tuned) <= set(settings)
    json.dumps(method.needs())


def test_every_recipe_but_offline_belongs_to_a_method():
    assert {m.stages[-1].recipe for m in OWN.values()} | {"offline"} == set(RECIPES)


def test_an_unknown_recipe_names_those_there_are(untrained):
    with pytest.raises(InputError, match="A recipe must be one of offline, parts, .*; got magic"):
        run([Job(untrained, Stage("sft", 1.0, recipe="magic"), {}, {}, 1)], Tokens(tiny_tokenizer()))


def test_a_stage_of_another_recipe_is_not_trained_offline_by_mistake(untrained):
    stage = PIPELINE_METHODS["rloo"].stages[1]
    with pytest.raises(InputError, match="must be offline; got rloo. Call uftlab.training.stages.run"):
        offline(Task(untrained, stage, {}, Tokens(tiny_tokenizer()), {}, 1, 0, ""))


# ------------------------------------------------------------------------------------------ in a study


def test_the_budget_is_equal_and_what_comes_on_top_is_in_columns_of_its_own(whole):
    assert {whole[name]["completions"] for name in NAMES} == {256}
    sampled = {name: r["sampled"] for name, r in whole.items() if r["sampled"]}
    assert 256 < sampled["self-sft"] < 1024  # as many as fill the steps with accepted ones
    assert 0 < sampled["hpt"] <= 1024  # four for each demonstration, one for each sample that is learned from
    assert sampled == {**SAMPLED, **{name: sampled[name] for name in ("self-sft", "hpt")}}
    runs = {name: r["extra_runs"] for name, r in whole.items() if r["extra_runs"]}
    assert runs == {"maxright": 512, "on-policy-distillation": 256}


def test_recipes_end_in_different_places_and_record_their_settings(whole):
    digests = [r["metrics"]["digest"] for r in whole.values()]
    assert len(set(digests)) == len(digests)
    for name in NAMES:
        assert set(default_settings(OWN[name])) <= set(whole[name]["settings"])


def test_curves_go_on_through_the_parts_of_a_stage(whole):
    assert [point["step"] for point in whole["sdpo"]["curves"]] == [0, 4, 8]
    assert [point["step"] for point in whole["uft-online"]["curves"]] == [0, 4, 8]


class Killed(BaseException):
    """What a kill is to the process: nothing catches it."""


@pytest.mark.parametrize("name", [*PIPELINE_METHODS, "sdft", "hpt"])  # those that keep something between steps
@pytest.mark.parametrize("steps", [0, 1], ids=["between", "inside"])
def test_a_killed_trial_run_again_gives_the_same_bits(whole, name, steps, tmp_path_factory, monkeypatch):
    """Killed when the last stage is about to make its first step, or its second; stage one is on disk by then."""
    folder = tmp_path_factory.getbasetemp() / "killed"
    done, original = [], ObjectiveTrainer.training_step

    def step(self, *args, **kwargs):
        if len(done) == steps:
            raise Killed
        done.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ObjectiveTrainer, "training_step", step)
    with pytest.raises(Killed):
        run_trial(trial(name), folder)
    assert not trial(name).path(folder).exists()
    if steps == 1:  # once is enough: both kills leave the same on disk
        monkeypatch.undo()
        torch.manual_seed(99)
        again = run_trial(trial(name), folder)
        assert again["metrics"] == whole[name]["metrics"] and again["curves"] == whole[name]["curves"]


# ------------------------------------------------------------------------------------------ special cases


@pytest.fixture(scope="module")
def tables():
    world = World(0)
    rows = [{k: r[k] for k in ("prompt", "completion")} for r in world.demonstrations(40)]
    return {"demonstrations": from_rows(rows), "feedback": from_rows(pairs(world.feedback(20)))}


def trained(model, stage, tables, folder, settings, steps=4, **more):
    """The weights after a stage, and its record."""
    policy = copy.deepcopy(model)
    settings = {"learning_rate": 1e-3, **settings}
    job = Job(policy, stage, tables, settings, steps, 3)
    (made,) = run([job], Tokens(tiny_tokenizer()), batch=8, output_dir=str(folder), **more)
    return {name: weight.detach() for name, weight in policy.named_parameters()}, made.record


def assert_same_bits(first, second):
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("share", "alone"), [(0.0, Stage("sft", 1.0)), (1.0, Stage("dpo", 0.0))], ids=["sft", "dpo"])
def test_alright_at_the_ends_is_sft_or_dpo_bit_for_bit(untrained, tables, tmp_path, share, alone):
    stage = PIPELINE_METHODS["alright"].stages[0]
    mixed, record = trained(untrained, stage, tables, tmp_path, {"preference_share": share, "beta": 0.2})
    pure, _ = trained(untrained, alone, tables, tmp_path, {"beta": 0.2})
    assert_same_bits(mixed, pure)
    assert record.completions == 32


def test_alright_takes_turns_by_its_share(untrained, tables, tmp_path):
    stage = PIPELINE_METHODS["alright"].stages[0]
    _, record = trained(untrained, stage, tables, tmp_path, {"preference_share": 0.5}, 12, logging_steps=1)
    kinds = ["reward/margin" in entry for entry in record.history]
    assert len(kinds) == 12 and 2 < sum(kinds) < 10


def test_stepwise_dpo_of_one_part_is_dpo_and_of_more_is_not(untrained, tables, tmp_path):
    stage, alone = PIPELINE_METHODS["sdpo"].stages[1], Stage("dpo", 0.0)
    pure, _ = trained(untrained, alone, tables, tmp_path, {"beta": 0.2})
    assert_same_bits(trained(untrained, stage, tables, tmp_path, {"beta": 0.2, "parts": 1.0})[0], pure)
    moved, record = trained(untrained, stage, tables, tmp_path, {"beta_nats": 2.2, "parts": 2.0}, logging_steps=1)
    assert not all(torch.equal(moved[name], pure[name]) for name in pure)
    margins = [entry["reward/margin"] for entry in record.history]
    assert margins[0] == pytest.approx(0, abs=1e-4) == margins[2]  # each part starts at its own reference
    assert record.completions == 32 and "beta_nats" not in record.settings


LONG = {"beta": 0.2, "learning_rate": 3e-3}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_maxright_steps_on_the_larger_weighted_gap(untrained, tables, tmp_path, share):
    """Three runs from one start: at either end the other gap weighs nothing, so only one loss is stepped on."""
    stage = PIPELINE_METHODS["maxright"].stages[0]
    _, record = trained(untrained, stage, tables, tmp_path, {**LONG, "preference_share": share}, 12, logging_steps=1)
    gaps = [(e["gap/sft"], e["gap/preference"], e["preference-steps"]) for e in record.history]
    assert all(chosen == (preference > sft) for sft, preference, chosen in gaps)
    assert gaps[0][1 if share else 0] > 0 and gaps[0][0 if share else 1] == 0
    assert {chosen for *_, chosen in gaps[:6]} == {share}
    assert record.extra_runs == 2 * 12 * 8 and record.extra_forwards >= 16


def test_maxright_looks_at_both_losses_every_few_steps_only(untrained, tables, tmp_path):
    stage = PIPELINE_METHODS["maxright"].stages[0]
    settings = {"beta": 0.2, "preference_share": 0.9}
    counts = [
        trained(untrained, stage, tables, tmp_path, {**settings, "refresh": k})[1].extra_forwards for k in (1.0, 4.0)
    ]
    assert counts[0] - counts[1] == 3 * 16  # 16 completions a look, at four steps or at one


# ------------------------------------------------------------------------------------------ one trainer throughout


def test_a_feed_sees_the_policy_after_the_step_before_and_the_optimiser_goes_on(untrained, tables, tmp_path):
    policy, seen = copy.deepcopy(untrained), []
    examples = Tokens(tiny_tokenizer()).examples(tables["demonstrations"])

    def feed(trainer, step):
        weight = next(iter(policy.parameters())).detach().clone()
        state = trainer.optimizer.state_dict()["state"]
        seen.append((step, weight, int(state[0]["step"]) if state else 0, trainer.lr_scheduler.get_last_lr()[0]))
        return examples[step * 4 : (step + 1) * 4]

    arguments = training_arguments(tmp_path, use_cpu=True, max_steps=4, per_device_train_batch_size=1)
    trainer = FedTrainer(policy, arguments, feed, objective_named("sft"), callbacks=[Quiet()])
    trainer.train()
    assert [(step, done) for step, _, done, _ in seen] == [(i, i) for i in range(4)]
    assert all(not torch.equal(a[1], b[1]) for a, b in pairwise(seen[1:]))
    assert len({rate for *_, rate in seen}) == 4  # the schedule goes on too
    assert trainer.completions == 16


def test_a_feed_wants_each_step_in_one_batch(untrained, tmp_path):
    arguments = training_arguments(tmp_path, use_cpu=True, max_steps=2, gradient_accumulation_steps=2)
    with pytest.raises(InputError, match="make each step in one batch; got 2 parts"):
        FedTrainer(untrained, arguments, lambda *_: [], objective_named("sft"))


# ------------------------------------------------------------------------------------------ refusals


def test_sampling_without_a_reward_function_needs_pairs():
    scored = from_rows([{"prompt": "a", "completion": "b", "score": 0.5}])
    method = PIPELINE_METHODS["una-online"]
    with pytest.raises(InputError, match="The feedback of una-online must have pairs, .*; got scored rows"):
        check_recipes(method, {"feedback": scored})
    check_recipes(method, {"feedback": scored}, by_letters)


@pytest.mark.parametrize("name", ["sdpo", "paft"])
def test_lora_is_refused_where_the_reference_would_be_another(name):
    with pytest.raises(InputError, match=f"{name} must train all weights; got LoRA of rank 4"):
        check_recipes(PIPELINE_METHODS[name], {}, lora=4)


def test_methods_lists_them_and_all_does_not_run_them():
    from typer.testing import CliRunner

    rows = {row["name"]: row for row in json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)}
    assert {rows[name]["group"] for name in PIPELINE_METHODS} == {"pipeline", "online"}
    assert not set(NAMES) & set(METHODS)


def test_untuned_recipes_run_with_their_defaults(monkeypatch, tmp_path):
    monkeypatch.setattr(training, "TUNED", tmp_path / "tuned.json")
    training.TUNED.write_text(json.dumps({"settings": {"sft": [[{"learning_rate": 1.0}]]}}))
    made = trials.trial("rloo", 0, TINY)
    assert made.stage_settings()[-1] == default_settings(PIPELINE_METHODS["rloo"])
    assert isinstance(PIPELINE_METHODS["rloo"], Method)


# ------------------------------------------------------------------------------------------ one's own rows


@pytest.fixture(scope="module")
def files(tmp_path_factory, tables):
    folder, found = tmp_path_factory.mktemp("rows"), {}
    for name, table in tables.items():
        found[name] = folder / f"{name}.jsonl"
        table.to_json(found[name])
    return found


@pytest.mark.parametrize(("name", "sampled"), [("sdpo", 0), ("una-online", 1)])
def test_a_checkpoint_from_own_rows_with_a_reward_model_where_one_is_needed(files, tmp_path, name, sampled):
    out = tmp_path / "made"
    settings = {"learning_rate": 1e-3, "parts": 2.0} if name == "sdpo" else {"learning_rate": 1e-3}
    beta, rate = settings.get("beta"), settings.get("learning_rate")
    config = TrainConfig(
        str(out),
        method=name,
        steps=8,
        batch=4,
        learning_rate=rate,
        beta=beta,
        **{name: str(path) for name, path in files.items()},
    )
    train_checkpoint(config, say=lambda line: None)
    stages = json.loads((out / "training.json").read_text())["stages"]
    assert len(stages) == 2 and (out / "model.safetensors").is_file()
    assert any("rollout/score" in entry for entry in stages[1]["history"]) == bool(sampled)


def test_own_scored_rows_cannot_train_a_reward_model_and_nothing_is_written(files, tmp_path):
    scored = tmp_path / "scored.jsonl"
    scored.write_text(
        json.dumps({"prompt": "what is the food of bazib ?", "completion": "moss .", "score": 0.5}) + "\n"
    )
    with pytest.raises(InputError, match="The feedback of rloo must have pairs"):
        config = TrainConfig(
            str(tmp_path / "out"),
            method="rloo",
            steps=2,
            demonstrations=str(files["demonstrations"]),
            feedback=str(scored),
        )
        train_checkpoint(config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", PIPELINE_METHODS.values(), ids=lambda m: m.name)
def test_a_point_of_the_sweep_trains_and_leaves_a_beta(method, untrained, tables, tmp_path):
    stage, point = method.stages[-1], points(method, 0)[0][-1]
    _, record = trained(untrained, stage, tables, tmp_path, point, logging_steps=1)
    assert record.settings["beta"] > 0 and "beta_nats" not in record.settings
    assert all(record.settings[name] == value for name, value in point.items() if name != "beta_nats")

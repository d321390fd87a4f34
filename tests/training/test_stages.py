"""The one runner of stages: the same end whatever engine trains, weights at the steps asked for, the device first."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from trials import random_base

from uftlab.engine.stack import flatten, unflatten
from uftlab.engine.trainer import ObjectiveTrainer
from uftlab.losses import ewc_to_start
from uftlab.models.fisher import own_texts
from uftlab.models.policies import tiny_tokenizer
from uftlab.models.references import ReferenceCache
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import Tokens
from uftlab.training import recipes, stages
from uftlab.training.catalogue import METHODS, PIPELINE_METHODS, method_named
from uftlab.training.methods import Stage
from uftlab.training.recipes import fisher_of
from uftlab.training.stages import Job, layout, run
from uftlab.world.world import World, pairs

pytestmark = pytest.mark.usefixtures("quick_collections")
TOKENS = Tokens(tiny_tokenizer())
SETTINGS = {"learning_rate": 1e-3, "beta": 0.2}


@pytest.fixture(scope="module")
def tables():
    world = World(0)
    rows = [{k: r[k] for k in ("prompt", "completion")} for r in world.demonstrations(40)]
    return {"demonstrations": from_rows(rows), "feedback": from_rows(pairs(world.feedback(20)))}


def few_texts(policy, tokenizer, seed):
    return own_texts(policy, tokenizer, seed, count=8, longest=16)


@pytest.fixture
def start():
    return flatten(random_base(0).state_dict(), layout())


def test_jobs_of_equal_length_are_one_stack_and_others_are_trained_alone(tables, start, monkeypatch):
    stacks, original = [], stages.train

    def counted(members, *args, **kwargs):
        stacks.append(len(members))
        return original(members, *args, **kwargs)

    monkeypatch.setattr(stages, "train", counted)
    dpo, sft, mixed = Stage("dpo", 0.0), Stage("sft", 1.0), PIPELINE_METHODS["alright"].stages[0]
    jobs = [Job(start, stage, tables, SETTINGS, steps) for stage, steps in ((dpo, 4), (mixed, 4), (sft, 2), (sft, 4))]
    made = run(jobs, TOKENS, batch=8)
    assert sorted(stacks) == [1, 2]
    assert [one.record.objective for one in made] == ["dpo", "sft-plus-dpo", "sft", "sft"]
    assert [list(one.snapshots) for one in made] == [[4], [4], [2], [4]]


@pytest.mark.parametrize("name", ["uft", "sft-plus-dpo", "sft-then-dpo-l2", "ewc", "psft", "eaft-rolled"])
def test_both_engines_end_in_the_same_place_with_the_same_record(name, tables, start, monkeypatch):
    monkeypatch.setattr(recipes, "own_texts", few_texts)
    stage, policy = method_named(name).stages[-1], random_base(0)
    before = start.clone()
    (stacked,) = run([Job(start, stage, tables, SETTINGS, 6, 3)], TOKENS, batch=8)
    (alone,) = run([Job(policy, stage, tables, SETTINGS, 6, 3)], TOKENS, batch=8)
    assert torch.equal(start, before) and alone.snapshots == {}
    assert_close(stacked.weights.cpu(), flatten(policy.state_dict(), layout()).cpu(), atol=2e-4, rtol=1e-3)
    assert (stacked.weights.cpu() - start).norm() > 0.01
    for field in ("objective", "steps", "settings", "completions"):
        assert getattr(stacked.record, field) == getattr(alone.record, field)
    # a stack reads the whole table, which its jobs share; one model reads only what it trains on
    assert alone.record.extra_forwards <= stacked.record.extra_forwards
    for record in (stacked.record, alone.record):
        assert (record.sampled, record.extra_runs) == ((8, 8) if name == "ewc" else (0, 0))


def test_a_stage_with_the_option_l2_is_pulled_to_its_start_and_says_how_strongly(tables, start):
    stage = METHODS["sft-then-dpo-l2"].stages[-1]
    policy = random_base(0)
    jobs = [Job(start, stage, tables, {**SETTINGS, "l2": l2}, 6) for l2 in (0.0, 30.0)]
    free, held = run(jobs, TOKENS, batch=8)
    (plain,) = run([Job(start, Stage("dpo", 0.0), tables, SETTINGS, 6)], TOKENS, batch=8)
    (alone,) = run([replace(jobs[1], start=policy)], TOKENS, batch=8)
    assert_close(free.weights, plain.weights, atol=1e-5, rtol=1e-4)
    assert (held.weights.cpu() - start).norm() < 0.9 * (free.weights.cpu() - start).norm()
    assert_close(held.weights.cpu(), flatten(policy.state_dict(), layout()).cpu(), atol=2e-4, rtol=1e-3)
    assert [one.record.settings["l2"] for one in (free, held, alone)] == [0.0, 30.0, 30.0]
    assert "l2" not in plain.record.settings


def test_ewc_holds_the_weights_that_matter_to_its_own_texts(tables, start, monkeypatch):
    """Strong EWC keeps what the model makes up itself, and costs more distance in weights than L2 with as little."""
    monkeypatch.setattr(recipes, "own_texts", few_texts)
    stage = method_named("ewc").stages[0]
    jobs = [Job(start, stage, tables, {**SETTINGS, "ewc": strength}, 12) for strength in (0.0, 1e4)]
    free, held = run(jobs, TOKENS, batch=8)
    (plain,) = run([Job(start, Stage("sft", 1.0), tables, SETTINGS, 12)], TOKENS, batch=8)
    assert_close(free.weights, plain.weights, atol=1e-6, rtol=0)
    assert (free.record.sampled, held.record.sampled) == (0, 8) and held.record.settings["ewc"] == 1e4
    fisher, _ = fisher_of(random_base(0), TOKENS, 0)
    fisher = flatten(fisher, layout())
    kl = [ewc_to_start(one.weights.cpu() - start, fisher, 1.0).item() for one in (free, held)]
    away = [(one.weights.cpu() - start).norm().item() for one in (free, held)]
    assert kl[1] / kl[0] < 0.5 * (away[1] / away[0]) ** 2


@pytest.mark.parametrize("name", ["uft", "alright"])
def test_weights_are_kept_at_the_steps_asked_for_and_each_step_is_told(name, tables, start):
    stage, told = {**METHODS, **PIPELINE_METHODS}[name].stages[0], []
    jobs = [Job(start, stage, tables, SETTINGS, 4, seed, snapshots_at=at) for seed, at in ((0, {2, 3}), (1, ()))]
    first, second = run(jobs, TOKENS, batch=8, progress=told.append)
    assert (sorted(first.snapshots), sorted(second.snapshots)) == ([2, 3, 4], [4]) and sum(told) == 8
    assert not torch.equal(first.snapshots[2], first.snapshots[3])
    assert torch.equal(first.weights, first.snapshots[4])
    again = run(jobs[:1], TOKENS, batch=8)[0]
    assert_close(again.snapshots[2], first.snapshots[2], atol=1e-5, rtol=1e-4)


def test_arguments_of_the_trainer_are_heard_whatever_could_train_the_stage(tables, start):
    job = Job(start, Stage("sft", 1.0), tables, SETTINGS, 6)
    usual, constant = (run([job], TOKENS, batch=8, **more)[0] for more in ({}, {"lr_scheduler_type": "constant"}))
    assert (usual.weights.cpu() - constant.weights.cpu()).norm() > 0.01


@pytest.mark.parametrize("stage", [Stage("dpo", 0.0), PIPELINE_METHODS["una-online"].stages[1]], ids=lambda s: s.recipe)
def test_the_policy_is_on_its_device_before_it_is_read_or_copied(stage, tables, monkeypatch):
    events, policy = [], random_base(0)
    monkeypatch.setattr(type(policy), "to", lambda self, *args: events.append("moved") or self)
    reader, copied, step = ReferenceCache.reader, copy.deepcopy, ObjectiveTrainer.training_step
    monkeypatch.setattr(ReferenceCache, "reader", lambda *args: events.append("read") or reader(*args))
    monkeypatch.setattr(ObjectiveTrainer, "training_step", lambda *args, **kwargs: events.append("step") or step(*args))

    def watched(thing, *args):
        if thing is policy:
            events.append("copied")
        return copied(thing, *args)

    monkeypatch.setattr(copy, "deepcopy", watched)
    run([Job(policy, stage, tables, SETTINGS, 1, reward=lambda x, y: [0.5] * len(y))], TOKENS, batch=8)
    assert events[0] == "moved" and {"read", "copied"} & set(events) and "step" in events


def test_a_cache_that_jobs_share_is_read_once(tables, start):
    cache = ReferenceCache()
    jobs = [Job(start, Stage("dpo", 0.0), tables, SETTINGS, 2, seed, references=cache) for seed in (0, 1)]
    first, second = run(jobs, TOKENS, batch=8)
    assert cache.computed == first.record.extra_forwards == second.record.extra_forwards == 40


def test_a_model_whose_parts_were_placed_already_stays(monkeypatch):
    policy = random_base(0)
    policy.hf_device_map = {"": "cpu"}
    monkeypatch.setattr(type(policy), "to", lambda self, *args: pytest.fail("moved"))
    stages._move(policy, stages.training_arguments("unused"))


def test_a_tiny_model_can_be_put_back_together(start):
    model = random_base(1)
    model.load_state_dict(unflatten(start, layout()), strict=False)
    assert_close(flatten(model.state_dict(), layout()), start)

"""`ObjectiveTrainer` on the real `transformers.Trainer`: accumulation, determinism, resuming, direction, settings."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from uftlab.engine.trainer import HeldTrainer, ObjectiveTrainer, training_arguments
from uftlab.errors import InputError
from uftlab.losses import l2_to_start
from uftlab.models.logps import completion_logps
from uftlab.models.references import ReferenceCache
from uftlab.objectives.registry import OBJECTIVES
from uftlab.rows.batches import to_batch
from uftlab.rows.table import as_labels, from_rows
from uftlab.rows.tokens import Tokens, interleave, with_mismatched
from uftlab.world.world import World, pairs

pytestmark = pytest.mark.usefixtures("quick_collections")

STEPS, BATCH = 6, 8
CONSTANT = {"lr_scheduler_type": "constant", "warmup_steps": 0}
PLAIN = {"optim": "sgd", "learning_rate": 0.05, **CONSTANT}
ACCUMULATED = ["sft", "dpo", "una-score", "sft-plus-dpo"]


@pytest.fixture(scope="module")
def sources():
    """Forty rows of each kind from world 0, tokenised."""
    from uftlab.models.policies import tiny_tokenizer

    tokens, world = Tokens(tiny_tokenizer()), World(0)
    feedback = world.feedback(20, seed=1)
    scored = from_rows([{k: row[k] for k in ("prompt", "completion", "score")} for row in feedback])
    demonstrations = [{k: r[k] for k in ("prompt", "completion")} for r in world.demonstrations(40, seed=1)]
    return {
        "demonstration": tokens.examples(from_rows(demonstrations)),
        "preference": tokens.examples(from_rows(pairs(feedback))),
        "scored": tokens.examples(scored),
        "label": tokens.examples(as_labels(scored)),
    }


def examples_for(name, sources, model, steps=STEPS, seed=0):
    """A training order of `steps` batches of 8 for an objective, reference filled in."""
    objective = OBJECTIVES[name]
    tables = [sources[kind] for kind in objective.kinds]
    if objective.mismatched:
        tables = [with_mismatched(table) for table in tables]
    share = BATCH // len(tables)
    ordered = interleave(tables, [share] * len(tables), steps, seed)
    return ReferenceCache().fill(model, ordered)


def run(folder, model, name, examples, settings=None, resume=None, trainer=ObjectiveTrainer, **changes):
    """Trains a copy of the model; returns the trainer."""
    changes = {"per_device_train_batch_size": BATCH, "max_steps": STEPS, "logging_steps": 2, **changes}
    arguments = training_arguments(folder, use_cpu=True, **changes)
    made = trainer(copy.deepcopy(model), arguments, examples, OBJECTIVES[name], settings)
    made.train(resume_from_checkpoint=resume)
    return made


def weights_of(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def assert_bit_identical(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def margin_of(model, examples):
    """Mean log-ratio of the chosen minus that of the rejected completions, in nats."""
    batch = to_batch(examples)
    with torch.no_grad():
        logratios = completion_logps(model.eval(), batch) - batch["reference_logps"]
    return (logratios[0::2] - logratios[1::2]).mean().item()


# ------------------------------------------------------------------------------------ accumulation


@pytest.mark.parametrize("name", ACCUMULATED)
def test_four_micro_batches_of_two_equal_one_batch_of_eight(tmp_path, untrained, sources, name):
    """Plain gradient descent, since Adam blows rounding up; the terms of the mixture sit in different micro-batches."""
    examples = examples_for(name, sources, untrained, steps=2)
    common = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.05, **CONSTANT}
    big = weights_of(run(tmp_path / "big", untrained, name, examples, **common))
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    accumulated = weights_of(run(tmp_path / "small", untrained, name, examples, **common, **split))
    start = dict(untrained.named_parameters())
    assert max((big[n] - start[n]).abs().max().item() for n in big) > 1e-3  # the steps were real
    for n in big:
        assert_close(accumulated[n], big[n], atol=1e-6, rtol=1e-4)


def test_logged_loss_does_not_depend_on_accumulation(tmp_path, untrained, sources):
    examples = examples_for("sft-plus-dpo", sources, untrained, steps=2)
    common = {"max_steps": 2, "logging_steps": 1, **CONSTANT}
    big = run(tmp_path / "big", untrained, "sft-plus-dpo", examples, **common)
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    small = run(tmp_path / "small", untrained, "sft-plus-dpo", examples, **common, **split)
    for name in ("loss", "reward/margin"):
        found = [[log[name] for log in t.state.log_history if name in log] for t in (big, small)]
        assert len(found[0]) == 2
        assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["una-score", "sft-plus-dpo", "sft"])
def test_steps_cut_by_tokens_are_whole_steps(tmp_path, untrained, sources, name, monkeypatch):
    """Loss, norm of the gradient, all metrics and the weights; parts of at most 48 positions, pairs undivided."""
    examples, widths = examples_for(name, sources, untrained, steps=3), []
    forward = type(untrained).forward

    def watched(self, input_ids, *args, **kwargs):
        if torch.is_grad_enabled():
            widths.append(input_ids.numel())
        return forward(self, input_ids, *args, **kwargs)

    common = {"max_steps": 3, "logging_steps": 1, **PLAIN}
    whole = run(tmp_path / "whole", untrained, name, examples, **common)
    monkeypatch.setattr(type(untrained), "forward", watched)
    cut = run(
        tmp_path / "cut", untrained, name, examples, trainer=partial(ObjectiveTrainer, tokens_per_device=48),
        per_device_train_batch_size=4, gradient_accumulation_steps=2, **common,
    )  # fmt: skip
    assert max(widths) <= 48 and len(widths) > 6
    logs = [own.state.log_history[:-1] for own in (whole, cut)]
    for own in logs:
        own[0].pop("reward/accuracy", None)  # before the first step every pair is a tie, but for rounding
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-5)
    first, second = weights_of(whole), weights_of(cut)
    assert max((first[n] - w).abs().max().item() for n, w in untrained.named_parameters()) > 1e-3
    for n in first:
        assert_close(first[n], second[n], atol=1e-5, rtol=1e-5)


def test_what_cannot_be_cut_by_tokens_is_refused(tmp_path, untrained, sources):
    arguments = training_arguments(tmp_path, use_cpu=True, max_steps=1)
    short = examples_for("sft", sources, untrained, steps=1)
    with pytest.raises(InputError, match="--tokens-per-device must be at least 1[0-9], the largest row or pair; got 5"):
        ObjectiveTrainer(untrained, arguments, short, OBJECTIVES["sft"], tokens_per_device=5)
    together = examples_for("kto", sources, untrained, steps=1)
    with pytest.raises(InputError, match="go with losses that are sums over rows; got kto"):
        ObjectiveTrainer(untrained, arguments, together, OBJECTIVES["kto"], tokens_per_device=480)


# ------------------------------------------------------------------------------- pulled to the start


def held(l2):
    return partial(HeldTrainer, penalty=partial(l2_to_start, strength=l2))


def test_the_second_step_of_plain_descent_has_the_gradient_by_hand(tmp_path, untrained, sources):
    """The first starts where nothing pulls; the second adds -lr lambda (theta - theta_0), and nothing else."""
    examples = examples_for("sft", sources, untrained, steps=2)
    one = weights_of(run(tmp_path / "one", untrained, "sft", examples, max_steps=1, trainer=held(3.0), **PLAIN))
    free = weights_of(run(tmp_path / "free", untrained, "sft", examples, max_steps=2, **PLAIN))
    two = weights_of(run(tmp_path / "two", untrained, "sft", examples, max_steps=2, trainer=held(3.0), **PLAIN))
    start = dict(untrained.named_parameters())
    assert max((one[n] - start[n]).abs().max().item() for n in one) > 1e-3
    for n in two:
        assert_close(two[n] - free[n], -0.05 * 3.0 * (one[n] - start[n]), atol=1e-6, rtol=1e-4)


def test_the_pull_counts_once_whatever_the_micro_batches(tmp_path, untrained, sources):
    examples = examples_for("sft", sources, untrained, steps=2)
    common = {"max_steps": 2, "trainer": held(3.0), **PLAIN}
    big = weights_of(run(tmp_path / "big", untrained, "sft", examples, **common))
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    small = weights_of(run(tmp_path / "small", untrained, "sft", examples, **common, **split))
    common["trainer"] = partial(held(3.0), tokens_per_device=48)
    cut = weights_of(run(tmp_path / "cut", untrained, "sft", examples, **common, **split))
    for n in big:
        assert_close(small[n], big[n], atol=1e-6, rtol=1e-4)
        assert_close(cut[n], big[n], atol=1e-6, rtol=1e-4)


def test_only_trainable_weights_are_held(tmp_path, untrained, sources):
    model = copy.deepcopy(untrained)
    model.model.embed_tokens.requires_grad_(False)
    examples = examples_for("sft", sources, untrained, steps=1)
    trainer = run(tmp_path, model, "sft", examples, max_steps=1, trainer=held(3.0), **PLAIN)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(p.numel() for p in trainer.start) == trained < sum(p.numel() for p in model.parameters())


# ------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("name", ["sft", "kto", "una-score"])
def test_same_seed_twice_gives_bit_identical_weights(tmp_path, untrained, sources, name):
    runs = []
    for attempt in range(2):
        torch.manual_seed(1000 + attempt)  # what happened before the run must not matter
        examples = examples_for(name, sources, untrained)
        runs.append(weights_of(run(tmp_path / str(attempt), untrained, name, examples)))
    assert_bit_identical(*runs)


def test_another_order_gives_other_weights(tmp_path, untrained, sources):
    first, second = (
        weights_of(run(tmp_path / str(seed), untrained, "sft", examples_for("sft", sources, untrained, seed=seed)))
        for seed in (0, 1)
    )
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["dpo", "sft-plus-dpo"])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, untrained, sources, name):
    examples = examples_for(name, sources, untrained)
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole = run(tmp_path, untrained, name, examples, **saving)
    resumed = run(tmp_path, untrained, name, examples, resume=str(tmp_path / "checkpoint-3"), **saving)
    assert resumed.state.global_step == STEPS
    assert_bit_identical(weights_of(whole), weights_of(resumed))


# --------------------------------------------------------------------------------------- direction


def test_dpo_widens_the_margin(tmp_path, untrained, sources):
    examples = examples_for("dpo", sources, untrained)
    assert abs(margin_of(untrained, examples)) < 1e-3
    trained = run(tmp_path, untrained, "dpo", examples, **CONSTANT).model
    assert margin_of(trained, examples) > 1.0


@pytest.mark.parametrize("name", ["sft", "una-score", "una-score-cross-entropy", "kto"])
def test_loss_falls(tmp_path, untrained, sources, name):
    """The same batch again and again: whatever the objective, its loss on that batch must fall."""
    examples = examples_for(name, sources, untrained, steps=1) * STEPS
    history = run(tmp_path, untrained, name, examples, logging_steps=1, **CONSTANT).state.log_history
    logged = [log["loss"] for log in history if "loss" in log]
    assert len(logged) == STEPS and logged[-1] < 0.97 * logged[0]


def test_una_pulls_demonstrations_up_and_low_scores_down(tmp_path, untrained, sources):
    """Scores 1 and 0 on the two sides of pairs: the gap opens although no pair is in the loss."""
    pairs_of = examples_for("dpo", sources, untrained)
    as_scores = {"chosen": 1.0, "rejected": 0.0}
    examples = [(replace(c, role="scored", score=as_scores[c.role]),) for pair in pairs_of for c in pair]
    trained = run(tmp_path, untrained, "una-score", examples, **CONSTANT).model
    assert margin_of(trained, pairs_of) > 0.1


# ------------------------------------------------------------------------------ metrics and settings


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dpo", "logps/chosen logps/rejected reward/accuracy reward/chosen reward/margin reward/rejected"),
        ("kto", "logps/chosen logps/rejected reward/chosen reward/margin reward/rejected"),
        ("una-score", "logps/chosen logps/rejected reward/chosen reward/margin reward/rejected"),
    ],
)
def test_logged_metrics_have_the_same_names_for_every_objective(tmp_path, untrained, sources, name, expected):
    examples = examples_for(name, sources, untrained, steps=2)
    first = run(tmp_path, untrained, name, examples, max_steps=2).state.log_history[0]
    assert sorted(n for n in first if "/" in n) == expected.split()
    assert all(isinstance(value, int | float) for value in first.values())


def test_logged_rewards_carry_beta(tmp_path, untrained, sources):
    """Learning rate 0 and a reference 10 nats too low: every log-ratio is 10, every reward 10 beta."""
    examples = [
        tuple(replace(c, reference_logps=c.reference_logps - 10) for c in example)
        for example in examples_for("dpo", sources, untrained, steps=2)
    ]
    trainer = run(tmp_path, untrained, "dpo", examples, {"beta": 0.3}, max_steps=2, learning_rate=0.0)
    first = trainer.state.log_history[0]
    assert first["reward/chosen"] == pytest.approx(3.0, abs=1e-3)
    assert first["reward/margin"] == pytest.approx(0.0, abs=1e-3)


def test_first_loss_of_dpo_is_log_2(tmp_path, untrained, sources):
    examples = examples_for("dpo", sources, untrained, steps=1)
    first = run(tmp_path, untrained, "dpo", examples, max_steps=1, logging_steps=1).state.log_history[0]
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_examples_are_eaten_in_the_order_given(tmp_path, untrained, sources):
    examples = examples_for("sft", sources, untrained)
    arguments = training_arguments(tmp_path, use_cpu=True, per_device_train_batch_size=BATCH)
    trainer = ObjectiveTrainer(untrained, arguments, examples, OBJECTIVES["sft"])
    for start, batch in zip(range(0, len(examples), BATCH), trainer.get_train_dataloader(), strict=True):
        expected = to_batch(examples[start : start + BATCH])
        assert torch.equal(batch["completion_ids"], expected["completion_ids"])


def test_one_pass_over_the_order_is_the_default(tmp_path):
    """`interleave` already lays out the epochs, so going through its order three times would triple the budget."""
    assert training_arguments(tmp_path).num_train_epochs == 1


def test_changes_win_over_the_defaults_of_the_house(tmp_path):
    changes = {"learning_rate": 3e-4, "max_grad_norm": 1.0, "lr_scheduler_type": "linear", "num_train_epochs": 2}
    arguments = training_arguments(tmp_path, use_cpu=True, **changes)
    assert {name: getattr(arguments, name) for name in changes} == changes


def test_training_changes_none_of_the_users_settings(tmp_path, untrained, sources):
    examples = examples_for("dpo", sources, untrained, steps=2)
    settings = {"beta": 0.7}
    arguments = training_arguments(tmp_path, use_cpu=True, max_steps=2, max_grad_norm=0.5, learning_rate=2e-4)
    before = arguments.to_dict()
    trainer = ObjectiveTrainer(copy.deepcopy(untrained), arguments, examples, OBJECTIVES["dpo"], settings)
    trainer.train()
    assert arguments.to_dict() == before
    assert settings == {"beta": 0.7} and trainer.settings == {"beta": 0.7}


# --------------------------------------------------------- examples that would train on NaN or on nothing


@pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if objective.reference])
def test_unfilled_reference_is_refused(tmp_path, untrained, sources, name):
    """Else the weights turn NaN in the first step, which the library logs as loss 0."""
    unfilled = [
        tuple(replace(c, reference_logps=float("nan")) for c in example)
        for example in examples_for(name, sources, untrained, steps=1)
    ]
    with pytest.raises(InputError, match=f"Examples for {name} must carry reference log-probabilities"):
        ObjectiveTrainer(untrained, training_arguments(tmp_path, use_cpu=True), unfilled, OBJECTIVES[name])


@pytest.mark.parametrize(("name", "other"), [("dpo", "una-score"), ("kto", "una-binary"), ("sft-plus-dpo", "sft")])
def test_examples_of_another_objective_are_refused(tmp_path, untrained, sources, name, other):
    """Scored rows give DPO a loss of 0 and no gradient, and labels without mismatched rows give KTO a NaN."""
    examples = examples_for(other, sources, untrained, steps=1)
    with pytest.raises(InputError, match=f"Examples for {name} must have the roles"):
        ObjectiveTrainer(untrained, training_arguments(tmp_path, use_cpu=True), examples, OBJECTIVES[name])

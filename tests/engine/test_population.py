"""Many models in one stack: each as if it were alone, and as `ObjectiveTrainer` would train it."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from rows import examples_of
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from uftlab.engine import population
from uftlab.engine.population import Adam, Member, learning_rates, memory_per_member, spans_of, train
from uftlab.engine.stack import Layout, flatten, unflatten
from uftlab.engine.trainer import HeldTrainer, ObjectiveTrainer, Quiet, RenewedTrainer, training_arguments
from uftlab.errors import InputError
from uftlab.losses import ewc_to_start, l2_to_start
from uftlab.models.policies import tiny_config, with_lora
from uftlab.models.references import ReferenceCache
from uftlab.objectives.registry import OBJECTIVES
from uftlab.rows.tokens import interleave

pytestmark = pytest.mark.usefixtures("quick_collections")

LAYOUT = Layout.of(tiny_config())
STEPS, PER_STEP, RATE = 6, 4, 2e-3


def model_of(seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config()).eval()


def shifted(c):
    """Away from the token that fills batches, whose embedding the library holds still."""
    return replace(c, completion_ids=tuple(i + 10 for i in c.completion_ids))


def beside(c):
    """A reference that is not the start: there, rounding would decide on which side of a kink a loss begins."""
    return replace(c, reference_logps=c.reference_logps - 0.01 * sum(c.completion_ids))


def member_of(name, seed=0, steps=STEPS, **settings):
    """A member that starts from random weights and learns from random examples; half and half where kinds are mixed."""
    objective, model = OBJECTIVES[name], model_of(seed)
    made = [tuple(map(shifted, example)) for example in examples_of(objective, 24, first=100 * seed)]
    examples = [tuple(map(beside, example)) for example in ReferenceCache().fill(model, made)]
    kinds = len(objective.kinds)
    sources = [examples[kind::kinds] for kind in range(kinds)]
    order = interleave(sources, [PER_STEP // kinds] * kinds, steps, seed)
    changed = {"learning_rate": RATE, **settings}
    return Member(flatten(model.state_dict(), LAYOUT), objective, changed, order, PER_STEP)


def trained_alone(member, folder, trainer=ObjectiveTrainer):
    """The same by the library's trainer: its weights and what it logged."""
    model = LlamaForCausalLM(tiny_config())
    model.load_state_dict(unflatten(member.start, LAYOUT), strict=False)
    rate = member.settings["learning_rate"]
    wanted = {"per_device_train_batch_size": member.per_step, "max_steps": member.steps, "logging_steps": 2}
    arguments = training_arguments(folder, learning_rate=rate, **wanted)
    own = {name: value for name, value in member.settings.items() if name != "learning_rate"}
    made = trainer(model, arguments, member.order, member.objective, own, callbacks=[Quiet()])
    made.train()
    return flatten(model.state_dict(), LAYOUT), made.state.log_history[:-1]


@pytest.fixture(scope="module")
def everybody():
    """One member for each objective, from two bases, all trained in one stack."""
    members = {name: member_of(name, seed % 2) for seed, name in enumerate(OBJECTIVES)}
    return members, train(list(members.values()), LAYOUT, logging_steps=2)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_loss_takes_the_path_that_the_trainer_takes(name, everybody, tmp_path):
    members, trained = everybody
    member, number = members[name], list(members).index(name)
    weights, log = trained_alone(member, tmp_path)
    moved = (weights - member.start).norm()
    assert moved > 0.01 and (trained.weights[number] - weights).norm() < 0.01 * moved
    for ours, theirs in zip(trained.histories[number], log, strict=True):
        theirs = {key: value for key, value in theirs.items() if key != "grad_norm"}
        assert ours == pytest.approx(theirs, rel=2e-3, abs=2e-4)


def test_a_pull_to_the_start_is_the_trainers_and_leaves_the_other_members_alone(tmp_path):
    free, held = member_of("dpo"), replace(member_of("dpo"), l2=1.0)
    trained = train([free, held, replace(free, l2=0.0)], LAYOUT, logging_steps=2)
    assert torch.equal(trained.weights[0], trained.weights[2])
    penalty = partial(l2_to_start, strength=1.0)
    weights, log = trained_alone(held, tmp_path, partial(HeldTrainer, penalty=penalty))
    moved = (weights - held.start).norm()
    assert (trained.weights[1] - weights).norm() < 0.01 * moved
    assert moved < 0.9 * (trained.weights[0] - free.start).norm()
    for ours, theirs in zip(trained.histories[1], log, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)
    assert trained.histories[1][-1]["loss"] > trained.histories[0][-1]["loss"]


def test_ewc_is_the_trainers_and_leaves_a_pull_that_is_alike_for_all_weights_as_it_was(tmp_path):
    """Fisher information 0 pulls at nothing, 1 is L2; members without it have 1."""
    free, even = member_of("sft"), replace(member_of("sft"), l2=1.0)
    fisher = torch.rand(free.start.shape, generator=torch.Generator().manual_seed(0)) * 4
    held = replace(even, fisher=fisher)
    none, ones = (replace(even, fisher=torch.full_like(fisher, value)) for value in (0.0, 1.0))
    trained = train([free, held, even, none, ones], LAYOUT, logging_steps=2)
    assert torch.equal(trained.weights[0], trained.weights[3]) and torch.equal(trained.weights[2], trained.weights[4])
    assert_close(trained.weights[2], train([even], LAYOUT).weights[0], atol=1e-6, rtol=0)
    own = unflatten(fisher, LAYOUT)
    names = [name for name, _ in model_of(0).named_parameters()]
    penalty = partial(ewc_to_start, strength=1.0)
    trainer = partial(HeldTrainer, penalty=penalty, fisher=[own[name] for name in names])
    weights, log = trained_alone(held, tmp_path, trainer)
    assert (trained.weights[1] - weights).norm() < 0.01 * (weights - held.start).norm()
    for ours, theirs in zip(trained.histories[1], log, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)


def test_a_reference_that_follows_is_the_trainers_and_leaves_the_other_members_alone(tmp_path):
    """Renewed every step, the ratio is 1 and the gradient that of SFT; renewed never, tokens reach the clip."""
    made = [replace(member_of("psft", steps=12, clip=0.05), refresh=refresh) for refresh in (0, 3, 1)]
    made.append(member_of("kl-sft", steps=12))
    trained = train(made, LAYOUT, logging_steps=1)
    for number in (0, 3):
        assert_close(trained.weights[number], train([made[number]], LAYOUT).weights[0], atol=1e-6, rtol=0)
    losses = [[entry["loss"] for entry in history] for history in trained.histories[:3]]
    assert losses[2] == pytest.approx([-1.0] * 12, abs=1e-5)
    assert [k for k in range(12) if losses[1][k] == pytest.approx(-1.0, abs=1e-5)] == [0, 1, 3, 6, 9]  # warm-up: rate 0
    weights, _ = trained_alone(made[1], tmp_path, partial(RenewedTrainer, refresh=3))
    assert (trained.weights[1] - weights).norm() < 0.01 * (weights - made[1].start).norm()
    away = [(weights - made[0].start).norm().item() for weights in trained.weights[:3]]
    assert away[0] < away[1] < away[2]


def test_with_adapters_no_reference_is_renewed(tmp_path):
    adapted = with_lora(model_of(0), 2)
    arguments = training_arguments(tmp_path, use_cpu=True)
    with pytest.raises(InputError, match="A reference that is renewed must be a model of its own; got adapters"):
        RenewedTrainer(adapted, arguments, member_of("psft").order, OBJECTIVES["psft"], refresh=2)


def test_without_a_pull_a_step_computes_none(monkeypatch):
    monkeypatch.setattr(population, "l2_to_start", lambda *args: pytest.fail("computed"))
    train([member_of("sft")], LAYOUT)


def test_a_huge_pull_keeps_the_start():
    """Adam's steps are as long as its learning rate, whatever the gradient: weights swing about the start."""
    free, held = (train([replace(member_of("sft", steps=60), l2=l2)], LAYOUT).weights[0] for l2 in (0.0, 1e6))
    start = member_of("sft").start
    assert (held - start).norm() < 0.05 * (free - start).norm()


def test_members_differ_in_seed_rate_beta_and_mixing_and_each_is_as_if_alone():
    members = [
        member_of("una-score", 0, beta=0.1),
        member_of("una-score", 1, beta=1.0, learning_rate=1e-2),
        member_of("sft-plus-dpo", 2, preference_weight=3.0),
    ]
    demonstrations, pairs = ([e for e in members[2].order if len(e) == n] for n in (1, 2))
    other = interleave([demonstrations, pairs], [3, 1], STEPS, 0)
    members.append(Member(members[2].start, members[2].objective, members[2].settings, other, PER_STEP))
    together = train(members, LAYOUT)
    for number, member in enumerate(members):
        assert_close(together.weights[number], train([member], LAYOUT).weights[0], atol=2e-4, rtol=0)
    assert not torch.allclose(together.weights[2], together.weights[3], atol=1e-3)


def test_adam_is_that_of_torch_without_decay():
    torch.manual_seed(0)
    ours = torch.randn(2, 50)
    theirs = [row.clone().requires_grad_() for row in ours]
    rates = (1e-3, 1e-2)
    groups = [{"params": [row], "lr": rate} for row, rate in zip(theirs, rates, strict=True)]
    optimizer, adam = torch.optim.AdamW(groups, weight_decay=0.0), Adam(ours)
    for scale in (1.0, 1e-6, 100.0, 0.0):
        grad = scale * torch.randn(2, 50)
        for row, own in zip(theirs, grad, strict=True):
            row.grad = own.clone()
        optimizer.step()
        adam.step(ours, grad, torch.tensor(rates)[:, None])
    assert_close(ours, torch.stack([row.detach() for row in theirs]), atol=1e-7, rtol=1e-6)


def test_the_schedule_warms_up_over_a_tenth_and_ends_near_zero():
    factors = learning_rates(40)
    assert factors[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    assert factors[4:] == sorted(factors[4:], reverse=True) and factors[-1] < 0.01


def test_the_weights_of_a_stack_are_shown_after_the_steps_that_were_asked_for():
    seen = []
    members = [member_of("sft", 0), member_of("dpo", 1)]
    trained = train(
        members, LAYOUT, watch=lambda step, own, weights: seen.append((step, own, weights.clone())), at={2, 6}
    )
    assert [(step, list(own)) for step, own, _ in seen] == [(2, [0, 1]), (6, [0, 1])]
    assert torch.equal(seen[1][2], trained.weights) and not torch.equal(seen[0][2], trained.weights)


def test_what_does_not_fit_is_trained_in_parts_with_a_message(monkeypatch):
    members = [member_of("una-score", seed) for seed in range(3)]
    whole, said, seen = train(members, LAYOUT), [], []
    monkeypatch.setattr(population, "free_memory", lambda device: 2.1 * memory_per_member(members[0], LAYOUT) / 0.6)
    parts = train(members, LAYOUT, say=said.append, watch=lambda step, own, _: seen.append(list(own)), at={1})
    assert_close(parts.weights, whole.weights, atol=2e-4, rtol=0)
    assert len(parts.histories) == 3 and seen == [[0, 1], [2]]
    assert len(said) == 1 and "3 members need" in said[0] and "in parts of at most 2" in said[0]


def test_the_hungriest_member_decides_how_many_fit(monkeypatch):
    members, said = [member_of("sft", 0), member_of("tdpo", 1), member_of("sft", 2)], []
    need = memory_per_member(members[1], LAYOUT)
    assert need > 1.2 * memory_per_member(members[0], LAYOUT)
    monkeypatch.setattr(population, "free_memory", lambda device: 2.1 * need / 0.6)
    train(members, LAYOUT, say=said.append)
    assert "in parts of at most 2" in said[0]


def test_on_a_cpu_a_stack_stays_as_small_as_the_cache_wants_it(monkeypatch):
    members = [member_of("una-score", seed) for seed in range(3)]
    whole, said, seen = train(members, LAYOUT), [], []
    monkeypatch.setattr(population, "CPU_TOKENS", 1)
    parts = train(members, LAYOUT, say=said.append, watch=lambda step, own, _: seen.append(list(own)), at={1})
    assert_close(parts.weights, whole.weights, atol=2e-4, rtol=0)
    assert seen == [[0], [1], [2]] and said == []


def test_memory_grows_with_what_a_step_keeps_for_the_gradient():
    member = member_of("sft")
    one, two, three = (memory_per_member(replace(member, per_step=PER_STEP * n), LAYOUT) for n in (1, 2, 3))
    assert one > 5 * member.start.nbytes
    assert three - two == pytest.approx(two - one, rel=0.3) and two - one > 50_000


def test_spans_are_the_places_of_each_role():
    roles = ("demonstration", "demonstration", "chosen", "rejected", "chosen", "rejected")
    spans = spans_of(roles)
    assert spans == {"demonstration": slice(0, 2, 1), "chosen": slice(2, 5, 2), "rejected": slice(3, 6, 2)}
    assert [roles[span] for span in spans.values()] == [("demonstration",) * 2, ("chosen",) * 2, ("rejected",) * 2]


def test_what_cannot_be_trained_together_is_refused():
    with pytest.raises(InputError, match=r"members of a population must train equally many steps; got \[5, 6\]"):
        train([member_of("sft"), member_of("sft", steps=5)], LAYOUT)
    member = member_of("sft-plus-dpo")
    mixed = member.order[1:5] + member.order[:1] + member.order[5:]
    shuffled = replace(member, order=mixed)
    with pytest.raises(InputError, match="same roles in the same places in every step"):
        train([shuffled], LAYOUT)
    with pytest.raises(InputError, match=r"evenly spaced; got chosen at \[0, 1, 3\]"):
        spans_of(("chosen", "chosen", "rejected", "chosen"))
    unfilled = Member(member.start, OBJECTIVES["una-score"], {"learning_rate": 1.0}, member.order, PER_STEP)
    with pytest.raises(InputError, match="must have the roles"):
        train([unfilled], LAYOUT)

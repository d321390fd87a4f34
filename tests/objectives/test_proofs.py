"""What must hold for every objective of the registry, and for a new one as soon as it is registered there."""

import math
from dataclasses import replace

import pytest
import torch
from oracle import AT_REFERENCE, ORACLES, QRPO_TARGET, naive_loss
from rows import WORDS, completion, examples_of, loss_of, rows_of, tables
from torch.testing import assert_close

from uftlab.objectives.registry import OBJECTIVES
from uftlab.rows.tokens import collate

every_objective = pytest.mark.parametrize("name", OBJECTIVES)
LOG2 = math.log(2)


def at_reference(examples):
    return {"policy": tables(examples), "reference": [x.detach() for x in tables(examples)]}


@pytest.mark.parametrize("name", [n for n, o in OBJECTIVES.items() if o.reference or o.distributions])
def test_value_where_policy_equals_reference(name):
    examples = examples_of(OBJECTIVES[name], 8)
    expected = AT_REFERENCE[name]
    expected = expected(examples) if callable(expected) else expected
    assert loss_of(OBJECTIVES[name], examples, **at_reference(examples)).item() == pytest.approx(expected, rel=1e-9)


@every_objective
def test_agrees_with_plain_python_token_by_token(name):
    """Other settings than the defaults too, so that no setting can be dropped on the way."""
    objective = OBJECTIVES[name]
    examples = examples_of(objective, 8)
    for change in (1.0, 0.3):
        settings = {setting: value * change for setting, value in objective.settings.items()}
        naive = naive_loss(name, examples, objective.with_defaults(settings))
        assert loss_of(objective, examples, settings=settings).item() == pytest.approx(naive, rel=1e-9)


def test_every_objective_has_an_oracle():
    assert ORACLES.keys() == OBJECTIVES.keys()


NEVER_DOWN = {"var"}  # it weighs completions, and pushes none down
LEAVES_BAD_ONES = {"accepted-sft"}  # they teach nothing there


@every_objective
def test_a_step_of_descent_moves_the_policy_towards_the_feedback(name):
    """At the reference: demonstrations, chosen and good completions up, rejected and bad ones down, others not."""
    objective = OBJECTIVES[name]
    examples = examples_of(objective, 12)
    made = at_reference(examples)
    loss_of(objective, examples, **made).backward()
    completions = [c for example in examples for c in example]
    for c, logits in zip(completions, made["policy"], strict=True):
        push = -logits.grad[torch.arange(len(c.completion_ids)), list(c.completion_ids)].sum().item()
        middle = QRPO_TARGET if name == "qrpo" else 0.5
        up = c.role in ("chosen", "demonstration") or name in NEVER_DOWN or (c.role != "rejected" and c.score > middle)
        still = c.role == "mismatched" or (name in LEAVES_BAD_ONES and not up)
        assert push == 0 if still else push > 0 if up else push < 0, (c.role, c.score)


def extreme(examples, near, far):
    """Logits that give each token of a completion a log-probability of about 0, or of about -`far` nats."""
    made = []
    for example in examples:
        for c in example:
            onehot = torch.nn.functional.one_hot(torch.tensor(c.completion_ids), WORDS).float()
            made.append((onehot if near(c) else -onehot) * far)
    return made


CASES = {
    "far above the reference": (lambda c: True, lambda c: False),
    "far below the reference": (lambda c: False, lambda c: True),
    "both at probability 1": (lambda c: True, lambda c: True),
    "both at probability 0": (lambda c: False, lambda c: False),
    "chosen up, rejected down": (lambda c: c.role == "chosen", lambda c: c.role == "rejected"),
    "chosen down, rejected up": (lambda c: c.role != "chosen", lambda c: c.role == "chosen"),
}


@every_objective
@pytest.mark.parametrize(("policy", "reference"), CASES.values(), ids=list(CASES))
def test_value_and_gradient_are_finite_at_ten_thousand_nats_and_at_probability_1(name, policy, reference):
    objective = OBJECTIVES[name]
    examples = examples_of(objective, 4)
    made = [x.requires_grad_() for x in extreme(examples, policy, 1e4)]
    loss = loss_of(objective, examples, policy=made, reference=extreme(examples, reference, 1e4))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(logits.grad).all() for logits in made)


# What these keep without gradient by definition: finite differences would move it. Their parts are checked in
# test_losses, with the part held.
STOPS_GRADIENTS = {"kto", "bco", "tdpo", "dft", "asft", "eaft", "eaft-rolled", "iw-sft", "chord-phi"}


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - STOPS_GRADIENTS))
def test_gradient_agrees_with_finite_differences(name):
    objective = OBJECTIVES[name]
    examples = examples_of(objective, len(objective.kinds), first=1)
    assert torch.autograd.gradcheck(lambda *made: loss_of(objective, examples, policy=list(made)), tables(examples))


BY_PLACE = {"eaft-rolled"}  # a token gets what another has that stands so many further on


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in BY_PLACE])
def test_order_of_the_batch_does_not_matter(name):
    objective = OBJECTIVES[name]
    examples = examples_of(objective, 8)
    assert_close(loss_of(objective, examples[::-1]), loss_of(objective, examples), rtol=1e-12, atol=0)


@every_objective
def test_padding_does_not_matter(name):
    """More of it, whatever the model says there. A mask made from values would count it."""
    objective = OBJECTIVES[name]
    examples = examples_of(objective, 6)
    counts = objective.counts(collate(examples, 0)).double()
    settings = objective.with_defaults({})
    padded = objective.loss(rows_of(examples, extra_padding=3, fill=-7.5), settings, counts)
    assert_close(padded, loss_of(objective, examples), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if not objective.across_batch])
def test_micro_batches_add_up_to_the_big_batch(name):
    """Eight of one row, and three of unequal size; the terms of a mixture may sit in different ones."""
    objective = OBJECTIVES[name]
    examples = examples_of(objective, 8)
    whole = loss_of(objective, examples)
    for size in (1, 3):
        parts = [examples[i : i + size] for i in range(0, 8, size)]
        counts = torch.stack([objective.counts(collate(part, 0)) for part in parts]).sum(0)
        assert torch.equal(counts, objective.counts(collate(examples, 0)))
        assert_close(sum(loss_of(objective, part, counts) for part in parts), whole, rtol=1e-12, atol=0)


def test_those_that_look_across_the_batch_are_exempt_by_name():
    """And they do: a micro-batch of their rows alone gives something else."""
    exempt = {name for name, objective in OBJECTIVES.items() if objective.across_batch}
    assert exempt == {"kto", "bco", "var", "eaft-rolled"}
    for name in exempt:
        objective = OBJECTIVES[name]
        moved = []
        for first in range(4):  # a baseline of KTO that is clipped in both halves moves nothing
            examples = examples_of(objective, 8, first)
            counts = objective.counts(collate(examples, 0))
            halves = loss_of(objective, examples[:4], counts) + loss_of(objective, examples[4:], counts)
            moved.append(abs(halves - loss_of(objective, examples)).item())
        assert max(moved) > 1e-6


@every_objective
def test_odd_batches_and_a_batch_of_one_are_finite(name):
    objective = OBJECTIVES[name]
    for count in (1, 3):
        loss = loss_of(objective, examples_of(objective, count))
        assert torch.isfinite(loss) and (loss < 0 if name == "psft" else loss > 0)  # minus a probability ratio


@every_objective
def test_what_an_objective_declares_is_what_it_reads(name):
    """NaN in place of what it says it does not need; and it breaks without what it says it needs."""
    objective = OBJECTIVES[name]
    examples = examples_of(objective, 6)
    rows, settings = rows_of(examples), objective.with_defaults({})
    counts = objective.counts(collate(examples, 0)).double()
    nan = torch.full_like(rows.reference_logps, math.nan)
    no_logits = replace(rows.positions, policy_logits=None, reference_logits=None)
    no_entropies = replace(rows.positions, own_entropies=None)

    def works(**changes):
        return bool(torch.isfinite(objective.loss(replace(rows, **changes), settings, counts)))

    assert works(reference_logps=nan) is not objective.reference
    for needed, change in (
        (objective.tokens, {"positions": None}),
        (objective.distributions, {"positions": no_logits}),
        (objective.entropies, {"positions": no_entropies}),
    ):
        if needed:
            with pytest.raises((ValueError, TypeError, AttributeError)):
                works(**change)
        else:
            assert works(**change)


def test_made_up_models_give_a_shared_prefix_the_same_distributions():
    """What the tests of prefixes rest on."""
    a, b = (completion(role, seed=1, prefix=(3, 1)) for role in ("chosen", "rejected"))
    first, second = tables([(a, b)])
    assert torch.equal(first[:3], second[:3])  # the third position sees only the prefix

"""Objectives: what a term divides by, accumulation that adds up exactly, settings and metrics."""

import math

import pytest
import torch
from torch.testing import assert_close

from uftlab.errors import InputError
from uftlab.losses.family import DISTANCES
from uftlab.objectives.objective import LEADING_ROLE, VERIFIED, Positions, Rows, batch_metrics
from uftlab.objectives.registry import OBJECTIVES, objective_named
from uftlab.rows.tokens import ROLE_INDEX, Completion, collate

BETA = {"beta": 0.1}


def completion(role, score=float("nan"), tokens=3, reference=-4.0):
    return Completion((7, 8), (9,) * tokens, role, score, reference)


every_objective = pytest.mark.parametrize("name", OBJECTIVES)


# ------------------------------------------------------------------------------- counts and sums


def test_token_terms_divide_by_tokens_and_example_terms_by_examples():
    """Two demonstrations of 2 and 4 tokens: 6 tokens, 2 examples."""
    examples = [(completion("demonstration", 1.0, 2, -3.0),), (completion("demonstration", 1.0, 4, -9.0),)]
    batch = collate(examples, 0)
    assert OBJECTIVES["sft"].counts(batch).tolist() == [6]
    assert OBJECTIVES["sft-sum"].counts(batch).tolist() == [2]
    rows = Rows(torch.tensor([-3.0, -9.0]), batch["reference_logps"], batch["score"], batch["role"])
    assert_close(OBJECTIVES["sft"].loss(rows, {}, torch.tensor([6.0])), torch.tensor(12 / 6))
    assert_close(OBJECTIVES["sft-sum"].loss(rows, {}, torch.tensor([2.0])), torch.tensor(12 / 2))


def test_pairs_are_counted_once_and_mismatched_rows_not_at_all():
    pair = (completion("chosen"), completion("rejected"))
    assert OBJECTIVES["dpo"].counts(collate([pair] * 3, 0)).tolist() == [3]
    labelled = (completion("label", 1.0), completion("mismatched"))
    assert OBJECTIVES["kto"].counts(collate([labelled] * 3, 0)).tolist() == [3]


def test_each_term_of_a_mixture_is_divided_by_its_own_count():
    """One demonstration of 3 tokens and -6 nats: 6 / 3 = 2. Two pairs at the reference: log 2. Weight 0.5."""
    examples = [(completion("demonstration", 1.0, 3, -6.0),), *[(completion("chosen"), completion("rejected"))] * 2]
    batch = collate(examples, 0)
    rows = Rows(batch["reference_logps"], batch["reference_logps"], batch["score"], batch["role"])
    objective = OBJECTIVES["sft-plus-dpo"]
    assert objective.counts(batch).tolist() == [3, 2]
    loss = objective.loss(rows, {"beta": 0.1, "preference_weight": 0.5}, objective.counts(batch))
    assert_close(loss, torch.tensor(2 + 0.5 * math.log(2)))


def test_a_batch_of_one_pair_at_the_reference_costs_log_2():
    batch = collate([(completion("chosen"), completion("rejected"))], 0)
    rows = Rows(batch["reference_logps"], batch["reference_logps"], batch["score"], batch["role"])
    assert_close(OBJECTIVES["dpo"].loss(rows, BETA, OBJECTIVES["dpo"].counts(batch)), torch.tensor(math.log(2)))


def test_a_term_without_examples_adds_nothing_and_passes_gradient():
    policy = torch.tensor([-6.0], requires_grad=True)
    batch = collate([(completion("demonstration", 1.0, 3),)], 0)
    rows = Rows(policy, batch["reference_logps"], batch["score"], batch["role"])
    objective = OBJECTIVES["sft-plus-dpo"]
    loss = objective.loss(rows, objective.with_defaults({}), objective.counts(batch))
    loss.backward()
    assert_close(loss.detach(), torch.tensor(2.0))
    assert_close(policy.grad, torch.tensor([-1 / 3]))


# ---------------------------------------------------------------------------- rows reach their loss


def test_the_nth_chosen_meets_the_nth_rejected():
    """Two pairs, margins 10 * 0.1 and 30 * 0.1, whatever the order of roles inside the pairs."""
    role = torch.tensor([ROLE_INDEX[r] for r in ("chosen", "rejected", "rejected", "chosen")])
    rows = Rows(torch.tensor([-5.0, -15.0, -40.0, -10.0]), torch.full((4,), -10.0), torch.full((4,), math.nan), role)
    loss = OBJECTIVES["dpo"].loss(rows, BETA, torch.tensor([2.0]))
    assert_close(loss, torch.tensor((math.log1p(math.exp(-1)) + math.log1p(math.exp(-3))) / 2))


def test_kto_takes_its_baseline_from_the_mismatched_rows():
    """Matched log-ratios 5 and 3, mismatched 3 and -1 (mean 1): beta = 0.1, both desirable."""
    batch = collate([(completion("label", 1.0), completion("mismatched"))] * 2, 0)
    reference = batch["reference_logps"]
    rows = Rows(reference + torch.tensor([5.0, 3.0, 3.0, -1.0]), reference, batch["score"], batch["role"])
    loss = OBJECTIVES["kto"].loss(rows, BETA, OBJECTIVES["kto"].counts(batch))
    sigma = [1 / (1 + math.exp(-0.1 * (matched - 1.0))) for matched in (5.0, 3.0)]
    assert_close(loss, torch.tensor(1 - sum(sigma) / 2))


@every_objective
def test_every_term_has_a_role_and_an_equation(name):
    """The leading role is what its sum is divided by; the equation is what its card shows."""
    objective = OBJECTIVES[name]
    assert set(objective.kinds) <= set(LEADING_ROLE)
    assert all(term.equation.__doc__ for term in objective.terms)
    assert objective.failure and objective.source and objective.learning_rate > 0
    assert set(objective.verified.split()) <= set(VERIFIED)
    assert objective.note or not set(objective.verified) & {"2", "M"}, "what could not be verified must be said"
    assert objective.axis is None or objective.axis[0] in objective.settings


def test_una_is_registered_with_three_distances_for_labels_and_for_scores():
    assert len(DISTANCES) == 3
    assert len([name for name in OBJECTIVES if name.startswith(("una-score", "una-binary"))]) == 6


@pytest.mark.parametrize("name", [n for n, o in OBJECTIVES.items() if not o.distributions | o.entropies])
def test_a_loss_can_be_looked_at_without_a_model(name):
    """Sums alone, spread evenly over 4 tokens: finite, with a gradient, whatever the objective reads of them."""
    objective = OBJECTIVES[name]
    roles = sorted(objective.roles, key=list(ROLE_INDEX).index) * 2
    policy = torch.linspace(-9, -3, len(roles)).requires_grad_()
    role = torch.tensor([ROLE_INDEX[r] for r in roles])
    rows = Rows(policy, policy.detach() - 1, torch.linspace(0, 1, len(roles)).round(), role, Positions.even(policy, 4))
    batch = {"completion_mask": torch.ones(len(roles), 4, dtype=torch.bool), "role": role}
    loss = objective.loss(rows, objective.with_defaults({}), objective.counts(batch))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(policy.grad).all() and policy.grad.any()


def test_single_tokens_are_asked_for_by_name():
    rows = Rows(*[torch.zeros(2)] * 3, torch.zeros(2, dtype=torch.long))
    with pytest.raises(InputError, match="carry single tokens; got sums alone"):
        _ = rows.at
    with pytest.raises(InputError, match="carry full distributions; got single tokens alone"):
        Positions.even(torch.zeros(2), 3).kl_to_reference()
    with pytest.raises(InputError, match="carry entropies; got single tokens alone"):
        _ = Positions.even(torch.zeros(2), 3).entropies


# ------------------------------------------------------------------------------------- settings


@every_objective
def test_unknown_setting_is_refused(name):
    with pytest.raises(InputError, match=rf"Settings of {name} must be among .*got \['betta'\]"):
        OBJECTIVES[name].with_defaults({"betta": 0.1})


def test_what_the_user_set_is_never_replaced():
    for objective in OBJECTIVES.values():
        own = {setting: value + 1.5 for setting, value in objective.settings.items()}
        assert objective.with_defaults(own) == own
        assert objective.with_defaults({}) == dict(objective.settings)


def test_unknown_objective_names_those_there_are():
    with pytest.raises(InputError, match=r"must be one of sft, .*dpo.*; got dpoo"):
        objective_named("dpoo")
    assert objective_named("dpo") is OBJECTIVES["dpo"]


# -------------------------------------------------------------------------------------- metrics


def metrics_of(*entries, beta=0.1):
    """Entries (role, score, policy, reference)."""
    roles, scores, policy, reference = zip(*entries, strict=True)
    role = torch.tensor([ROLE_INDEX[r] for r in roles])
    rows = Rows(torch.tensor(policy), torch.tensor(reference), torch.tensor(scores), role)
    return {name: round(value.item(), 4) for name, value in batch_metrics(rows, beta).items()}


def test_metrics_of_pairs_carry_beta():
    """Log-ratios +4 and -2 (right), -1 and 3 (wrong); beta 0.1: rewards 0.4, -0.2, -0.1, 0.3."""
    nan = math.nan
    assert metrics_of(
        ("chosen", nan, -6.0, -10.0), ("rejected", nan, -12.0, -10.0),
        ("chosen", nan, -11.0, -10.0), ("rejected", nan, -7.0, -10.0),
    ) == {
        "reward/chosen": 0.15, "reward/rejected": 0.05, "reward/margin": 0.1, "reward/accuracy": 0.5,
        "logps/chosen": -8.5, "logps/rejected": -9.5,
    }  # fmt: skip


@pytest.mark.parametrize("role", ["scored", "label"])
def test_metrics_of_scores_and_labels_use_the_same_names(role):
    found = metrics_of((role, 1.0, -6.0, -10.0), (role, 0.0, -12.0, -10.0), ("mismatched", 1.0, -99.0, -1.0))
    assert found == {
        "reward/chosen": 0.4, "reward/rejected": -0.2, "reward/margin": 0.6,
        "logps/chosen": -6.0, "logps/rejected": -12.0, "kl_baseline": -98.0,
    }  # fmt: skip


def test_metrics_report_only_what_the_batch_holds():
    found = metrics_of(("demonstration", 1.0, -6.0, -10.0))
    assert found == {"reward/demonstration": 0.4, "logps/demonstration": -6.0}


def test_metrics_carry_no_gradient():
    policy = torch.tensor([-6.0], requires_grad=True)
    rows = Rows(policy, torch.tensor([-10.0]), torch.tensor([1.0]), torch.tensor([ROLE_INDEX["scored"]]))
    assert not any(value.requires_grad for value in batch_metrics(rows, 0.1).values())

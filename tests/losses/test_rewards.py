"""Implicit rewards, scores, ceilings and gates: values by hand, gates against autograd."""

import math

import pytest
import torch
from jaxtyping import TypeCheckError
from torch.testing import assert_close

from uftlab.losses import una_cross_entropy_loss, una_squared_error_loss
from uftlab.losses.rewards import (
    ceiling,
    cross_entropy_gate,
    implicit_reward,
    implicit_score,
    margin,
    squared_error_gate,
)

LOGRATIOS = torch.linspace(-80, 80, 41, dtype=torch.float64)


def logit(score):
    return torch.tensor(math.log(score / (1 - score)), dtype=torch.float64)


def test_reward_is_zero_and_score_one_half_where_policy_equals_reference():
    logps = torch.tensor([-3.0, -70.0])
    reward = implicit_reward(logps, logps, beta=0.1)
    assert_close(reward, torch.zeros(2))
    assert_close(implicit_score(reward), torch.full((2,), 0.5))


def test_reward_always_carries_beta():
    """beta = 0.1; log-ratio -12 - (-20) = 8 nats, so r = 0.8. Without beta it would be 8, reversed -0.8."""
    assert_close(implicit_reward(torch.tensor([-12.0]), torch.tensor([-20.0]), beta=0.1), torch.tensor([0.8]))


def test_score_by_hand():
    """sigma(log 3) = 3 / (3 + 1)."""
    assert_close(implicit_score(torch.tensor([math.log(3), -math.log(3)])), torch.tensor([0.75, 0.25]))


def test_margin_is_chosen_minus_rejected():
    assert_close(margin(torch.tensor([0.8]), torch.tensor([-0.5])), torch.tensor([1.3]))


@pytest.mark.parametrize(("nats", "expected"), [(50.0, 0.622), (10.0, 0.525)])
def test_ceiling_by_hand(nats, expected):
    """beta = 0.01: sigma(0.5) = 0.622 for a completion of 50 nats, sigma(0.1) = 0.525 for one of 10."""
    assert round(ceiling(torch.tensor(-nats), beta=0.01).item(), 3) == expected


def test_no_policy_scores_above_the_ceiling():
    reference = torch.linspace(-60, -0.1, 50)
    best = implicit_score(implicit_reward(torch.zeros(50), reference, beta=0.03))  # probability one
    worse = implicit_score(implicit_reward(torch.full((50,), -0.05), reference, beta=0.03))
    assert_close(best, ceiling(reference, beta=0.03))
    assert (worse < ceiling(reference, beta=0.03)).all()


@pytest.mark.parametrize(
    ("loss", "gate"),
    [(una_squared_error_loss, squared_error_gate), (una_cross_entropy_loss, cross_entropy_gate)],
    ids=["squared error", "cross-entropy"],
)
@pytest.mark.parametrize("score", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("beta", [0.03, 0.5])
def test_gate_is_minus_the_derivative_of_the_loss(loss, gate, score, beta):
    reference = torch.full_like(LOGRATIOS, -100.0)
    policy = (reference + LOGRATIOS).requires_grad_()
    loss(policy, reference, torch.full_like(policy, score), beta).sum().backward()
    assert_close(-policy.grad, gate(implicit_reward(policy.detach(), reference, beta), score, beta))


def test_gates_of_a_demonstration_start_at_quarter_and_half_beta():
    zero = torch.zeros(1)
    assert_close(squared_error_gate(zero, 1.0, beta=0.2), torch.tensor([0.05]))
    assert_close(cross_entropy_gate(zero, 1.0, beta=0.2), torch.tensor([0.1]))


def test_squared_error_gate_peaks_at_one_third_with_8_beta_27():
    """d/ds [s (1 - s)^2] = (1 - s)(1 - 3s) = 0 at s = 1/3, where 2 beta s (1 - s)^2 = 8 beta / 27."""
    beta, rewards = 0.7, torch.linspace(-6, 6, 4001, dtype=torch.float64)
    gates = squared_error_gate(rewards, 1.0, beta)
    assert_close(squared_error_gate(logit(1 / 3), 1.0, beta), torch.tensor(8 * beta / 27, dtype=torch.float64))
    assert gates.max() <= 8 * beta / 27 + 1e-12
    assert abs(implicit_score(rewards[gates.argmax()]) - 1 / 3) < 1e-3


def test_squared_error_gate_closes_twice_as_fast_as_cross_entropy():
    """From r = 10 to r = 11 the first falls by e^-2, the second by e^-1."""
    rewards = torch.tensor([10.0, 11.0], dtype=torch.float64)
    squared, cross = squared_error_gate(rewards, 1.0, 0.1), cross_entropy_gate(rewards, 1.0, 0.1)
    assert abs(squared[1] / squared[0] - math.exp(-2)) < 1e-4
    assert abs(cross[1] / cross[0] - math.exp(-1)) < 1e-4


def test_gates_change_sign_at_the_score():
    """The policy is pushed up below the score and down above it, and left alone at the score."""
    rewards = torch.stack([logit(0.5), logit(0.7), logit(0.9)])
    for gate in (squared_error_gate, cross_entropy_gate):
        up, still, down = gate(rewards, 0.7, 0.1).tolist()
        assert up > 0 > down
        assert abs(still) < 1e-15


def test_rewards_refuse_shapes_that_would_broadcast():
    with pytest.raises(TypeCheckError):
        implicit_reward(torch.zeros(3), torch.zeros(3, 1), 0.1)
    with pytest.raises(TypeCheckError):
        margin(torch.zeros(3), torch.zeros(1))
    with pytest.raises(TypeCheckError):
        squared_error_gate(torch.zeros(3), torch.zeros(3, 1), 0.1)

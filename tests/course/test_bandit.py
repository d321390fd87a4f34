"""The bandit against hand values, brute force, autograd and the inequalities it is built on."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from uftlab.course import bandit
from uftlab.losses import dpo_loss, rewards

REFERENCE = torch.tensor([0.45, 0.15, 0.10, 0.20, 0.10], dtype=torch.float64)
REWARDS = torch.tensor([-1.0, 2.0, 1.5, -1.5, -2.0], dtype=torch.float64)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


@st.composite
def bandits(draw):
    """A reference, rewards, another policy and beta, all well inside the range where float64 is exact enough."""
    size = draw(st.integers(2, 5))
    weights = st.lists(st.floats(0.05, 1), min_size=size, max_size=size)
    reference, policy = (torch.tensor(draw(weights), dtype=torch.float64) for _ in range(2))
    reward = draw(st.lists(st.floats(-3, 3), min_size=size, max_size=size))
    beta = draw(st.floats(0.05, 20))
    return reference / reference.sum(), numbers(*reward), policy / policy.sum(), beta


# ------------------------------------------------------------------------------ by hand


def test_optimum_by_hand():
    """Even reference, rewards 0 and log 3, beta 1: odds 1 : 3 and Z = (1 + 3) / 2."""
    reference, reward = numbers(0.5, 0.5), numbers(0, math.log(3))
    assert_close(bandit.optimum(reference, reward, 1.0), numbers(0.25, 0.75))
    assert_close(bandit.log_partition(reference, reward, 1.0), torch.tensor(math.log(2)).double())


def test_optimum_is_the_reference_where_rewards_are_equal():
    assert_close(bandit.optimum(REFERENCE, torch.full_like(REFERENCE, 1.7), 0.3), REFERENCE)


def test_kl_by_hand_and_with_a_probability_of_zero():
    assert_close(bandit.kl(numbers(1, 0), numbers(0.5, 0.5)), torch.tensor(math.log(2)).double())
    assert bandit.kl(REFERENCE, REFERENCE) == 0


def test_objective_is_the_mean_reward_at_the_reference_and_beta_log_z_at_the_optimum():
    for beta in (0.1, 1.0, 10.0):
        assert_close(bandit.objective(REFERENCE, REFERENCE, REWARDS, beta), (REFERENCE * REWARDS).sum())
        best = bandit.objective(bandit.optimum(REFERENCE, REWARDS, beta), REFERENCE, REWARDS, beta)
        assert_close(best, beta * bandit.log_partition(REFERENCE, REWARDS, beta))


def test_total_probability_by_hand():
    """Score 0.9 everywhere: odds of 9 to 1, so pi = 9 pi_ref; with beta 0.5 the odds are squared."""
    scores = torch.full_like(REFERENCE, 0.9)
    assert_close(bandit.total_probability(scores, REFERENCE, 1.0), torch.tensor(9.0).double())
    assert_close(bandit.total_probability(scores, REFERENCE, 0.5), torch.tensor(81.0).double())
    assert_close(bandit.total_probability(torch.full_like(REFERENCE, 0.5), REFERENCE, 0.01), torch.tensor(1.0).double())


def test_total_probability_is_the_expectation_of_the_odds():
    scores, beta = torch.sigmoid(REWARDS), 0.7
    naive = (REFERENCE * (scores / (1 - scores)) ** (1 / beta)).sum()
    assert_close(bandit.total_probability(scores, REFERENCE, beta), naive)
    assert_close(bandit.log_total_probability(scores, REFERENCE, beta), bandit.log_partition(REFERENCE, REWARDS, beta))


def test_a_score_of_one_asks_for_an_infinite_total():
    assert torch.isinf(bandit.total_probability(numbers(1.0, 0.5), numbers(0.5, 0.5), 1.0))


# ------------------------------------------------------------------------------ three ways to the optimum


def test_optimum_beats_every_policy_on_a_grid():
    """Brute force: all policies over three completions in steps of 1 %."""
    reference, reward, beta = numbers(0.5, 0.3, 0.2), numbers(0.0, 1.0, 0.5), 0.4
    grid = [numbers(a, b, 100 - a - b) / 100 for a, b in itertools.product(range(101), range(101)) if a + b <= 100]
    values = torch.stack([bandit.objective(p, reference, reward, beta) for p in grid[::3]])
    best = bandit.optimum(reference, reward, beta)
    assert values.max() <= bandit.objective(best, reference, reward, beta)
    assert_close(grid[::3][int(values.argmax())], best, atol=0.02, rtol=0)


@pytest.mark.parametrize("beta", [0.3, 1.0, 3.0, 100.0])
def test_gradient_ascent_reaches_the_closed_form(beta):
    run = bandit.gradient_ascent(REFERENCE, REWARDS, beta, steps=2000)
    assert_close(run.probs[-1], bandit.optimum(REFERENCE, REWARDS, beta), atol=2e-3, rtol=0)
    assert_close(run.probs[0], REFERENCE)
    assert (run.objective.diff() > -1e-12).all()


def test_gradient_ascent_records_the_objective_and_takes_the_exact_gradient():
    beta, rate = 0.8, 3.0
    run = bandit.gradient_ascent(REFERENCE, REWARDS, beta, steps=1, learning_rate=rate)
    logits = REFERENCE.log().requires_grad_(True)
    value = bandit.objective(logits.softmax(-1), REFERENCE, REWARDS, beta)
    value.backward()
    step = rate / (beta + 4.0) * logits.grad
    assert_close(run.objective[0], value.detach())
    assert_close(run.probs[1], (logits.detach() + step).softmax(-1))


# ------------------------------------------------------------------------------ identities


@settings(max_examples=60, deadline=None)
@given(bandits())
def test_gap_is_what_a_policy_lacks_and_never_negative(case):
    reference, reward, policy, beta = case
    best = bandit.objective(bandit.optimum(reference, reward, beta), reference, reward, beta)
    lacking = bandit.gap(policy, reference, reward, beta)
    assert_close(best - bandit.objective(policy, reference, reward, beta), lacking, atol=1e-9, rtol=1e-7)
    assert lacking >= -1e-12


@settings(max_examples=60, deadline=None)
@given(bandits(), st.floats(-5, 5))
def test_rewards_are_recovered_up_to_what_depends_on_the_prompt_alone(case, shift):
    reference, reward, _, beta = case
    log_best, log_z = bandit.log_optimum(reference, reward, beta), bandit.log_partition(reference, reward, beta)
    assert_close(bandit.generalized_reward(log_best, reference.log(), beta, beta * log_z), reward)
    assert_close(bandit.generalized_reward(log_best, reference.log(), beta), reward - beta * log_z)
    # a shift of all rewards changes Z, not the policy: so no policy can tell what f(x) was
    assert_close(bandit.optimum(reference, reward + shift, beta), log_best.exp())


def test_the_implicit_reward_of_any_policy_has_z_equal_to_one():
    """What f = c = 0 takes for granted: E_ref[exp(r / beta)] is the total probability of the policy, 1."""
    policy, beta = numbers(0.1, 0.6, 0.1, 0.1, 0.1), 0.05
    reward = rewards.implicit_reward(policy.log(), REFERENCE.log(), beta)
    assert_close(bandit.log_partition(REFERENCE, reward, beta), torch.tensor(0.0).double())


@pytest.mark.parametrize("f", [-3.0, 0.7, 3.0])
def test_adding_f_to_all_rewards_moves_the_objective_by_f_and_no_probability(f):
    reference = torch.tensor([0.45, 0.15, 0.4], dtype=torch.float64)
    reward = torch.tensor([-1.0, 2.0, 0.5], dtype=torch.float64)
    assert_close(bandit.optimum(reference, reward + f, 0.3), bandit.optimum(reference, reward, 0.3))
    moved, still = (bandit.gradient_ascent(reference, reward + g, 0.3, steps=50) for g in (f, 0.0))
    assert_close(moved.probs, still.probs)
    assert_close(moved.objective, still.objective + f)


def test_dpo_does_not_see_f_of_x():
    beta, logps = 0.5, bandit.log_optimum(REFERENCE, REWARDS, 0.5)
    pair = [logps[1:2], logps[0:1], REFERENCE[1:2].log(), REFERENCE[0:1].log()]
    shifted = [pair[0] + 3.0, pair[1] + 3.0, *pair[2:]]
    assert_close(dpo_loss(*pair, beta), dpo_loss(*shifted, beta))


def test_fit_scores_meets_scores_whose_total_is_one_and_only_those():
    beta, shift = 1.0, bandit.log_partition(REFERENCE, REWARDS, 1.0)
    reachable = torch.sigmoid(REWARDS - shift)
    assert_close(bandit.total_probability(reachable, REFERENCE, beta), torch.tensor(1.0).double())
    assert_close(
        bandit.fit_scores(reachable, REFERENCE, beta), bandit.optimum(REFERENCE, REWARDS, beta), atol=1e-4, rtol=0
    )
    wanted = torch.sigmoid(REWARDS)
    reached = torch.sigmoid(beta * (bandit.fit_scores(wanted, REFERENCE, beta) / REFERENCE).log())
    assert (reached - wanted).abs().max() > 0.05


# ------------------------------------------------------------------------------ extremes


@pytest.mark.parametrize("beta", [0.01, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_are_finite(beta, dtype):
    reference, reward = REFERENCE.to(dtype), REWARDS.to(dtype)
    best = bandit.optimum(reference, reward, beta)
    run = bandit.gradient_ascent(reference, reward, beta, steps=50)
    numbers_of = (
        best,
        best.sum(),
        bandit.log_optimum(reference, reward, beta),
        bandit.objective(best, reference, reward, beta),
        bandit.gap(reference, reference, reward, beta),
        bandit.log_total_probability(torch.sigmoid(reward), reference, beta),
        run.objective,
        run.probs,
    )
    assert all(torch.isfinite(x).all() for x in numbers_of)
    assert_close(best.sum(), torch.ones((), dtype=dtype))
    assert torch.isfinite(bandit.total_probability(torch.sigmoid(REWARDS), REFERENCE, beta))


def test_small_beta_takes_the_best_and_large_beta_stays():
    assert bandit.optimum(REFERENCE, REWARDS, 0.01)[1] > 0.999
    assert_close(bandit.optimum(REFERENCE, REWARDS, 1000.0), REFERENCE, atol=1e-3, rtol=0)

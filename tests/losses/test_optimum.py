"""Where a loss has a closed-form optimum on a bandit, the loss is stationary there and nowhere lower nearby."""

import pytest
import torch

from uftlab import losses
from uftlab.course.bandit import optimum

REFERENCE = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
REWARDS = torch.tensor([0.1, 0.9, 0.4, 0.7], dtype=torch.float64)
BETA, N = 0.5, 4
BEST = optimum(REFERENCE, REWARDS, BETA)
CHOSEN, REJECTED = torch.tensor([(i, j) for i in range(N) for j in range(N) if i != j]).T  # every ordered pair
P_CHOSEN = torch.sigmoid(REWARDS[CHOSEN] - REWARDS[REJECTED])  # Bradley-Terry: how often it is labelled so
DRAWN = torch.repeat_interleave(torch.arange(N), (1000 * REFERENCE).round().long())  # a table of the reference's


def pairs(loss, logps, weights, *settings):
    """Expected loss over all ordered pairs, each weighted by how often it comes."""
    reference = REFERENCE.log()
    return (weights * loss(logps[CHOSEN], logps[REJECTED], reference[CHOSEN], reference[REJECTED], *settings)).sum()


def reached_scores():
    """Scores that a policy can meet exactly: those of BEST."""
    return torch.sigmoid(BETA * (BEST / REFERENCE).log())


def ipo_target():
    """IPO with Bradley-Terry labels: log-ratio differences (2 p - 1) / (2 beta). Here p is made to fit BEST."""
    logratio = (BEST / REFERENCE).log()
    return 0.5 + 0.1 * (logratio[CHOSEN] - logratio[REJECTED])


ZERO = torch.tensor(0.0, dtype=torch.float64)
# name -> (expected loss of a policy's log-probabilities, its optimum)
OPTIMA = {
    "sft: the frequencies of the demonstrations": (lambda x: (BEST * losses.sft_loss(x)).sum(), BEST),
    "dpo: the reference tilted by the rewards": (lambda x: pairs(losses.dpo_loss, x, P_CHOSEN, BETA), BEST),
    "una-pair: the same": (lambda x: pairs(losses.una_pair_loss, x, P_CHOSEN, BETA), BEST),
    "ipo: differences of (2 p - 1) / (2 tau)": (lambda x: pairs(losses.ipo_loss, x, ipo_target(), 0.1), BEST),
    "una with squared error: every score met": (
        lambda x: losses.una_squared_error_loss(x, REFERENCE.log(), reached_scores(), BETA).sum(),
        BEST,
    ),
    "una with cross-entropy: every score met": (
        lambda x: losses.una_cross_entropy_loss(x, REFERENCE.log(), reached_scores(), BETA).sum(),
        BEST,
    ),
    "una with cross-entropy on labels as frequent as the scores: the same": (
        lambda x: sum(
            (share * losses.una_cross_entropy_loss(x, REFERENCE.log(), torch.full_like(x, label), BETA)).sum()
            for share, label in ((reached_scores(), 1.0), (1 - reached_scores(), 0.0))
        ),
        BEST,
    ),
    "var: the reference tilted by the rewards": (
        lambda x: losses.var_loss(x[DRAWN], REWARDS[DRAWN], BETA).mean(),
        BEST,
    ),
}


@pytest.mark.parametrize(("loss", "best"), OPTIMA.values(), ids=list(OPTIMA))
def test_the_closed_form_is_the_minimum(loss, best):
    logits = best.log().clone().requires_grad_()
    at_best = loss(logits.log_softmax(-1))
    (gradient,) = torch.autograd.grad(at_best, logits)
    assert gradient.abs().max() < 1e-10
    start = REFERENCE.log().clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(start.log_softmax(-1)), start)
    assert slope.abs().max() > 1e-3  # it was not flat all along
    noise = torch.Generator().manual_seed(0)
    for size in (0.01, 0.1, 1.0):
        for _ in range(5):
            step = size * torch.randn(N, generator=noise, dtype=torch.float64)
            assert loss((best.log() + step).log_softmax(-1)) > at_best


def test_cdpo_stops_at_the_log_odds_of_its_noise():
    """Two completions, one always chosen: beta times the log-ratio difference ends at log((1 - e) / e)."""
    gap = torch.logit(torch.tensor(0.9, dtype=torch.float64)) / BETA
    logits = torch.stack([gap, ZERO]).requires_grad_()
    logps, even = logits.log_softmax(-1), torch.full((2,), 0.5, dtype=torch.float64).log()
    loss = losses.cdpo_loss(logps[:1], logps[1:], even[:1], even[1:], BETA, 0.1)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_qrpo_is_0_at_the_reference_tilted_by_quantiles(beta):
    """2,000 even completions with distinct rewards: quantiles are uniform but for 1 / 2,000, and so is Z."""
    count = 2000
    reference = torch.full((count,), 1 / count, dtype=torch.float64)
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    best = optimum(reference, quantiles, beta)
    assert losses.qrpo_loss(best.log(), reference.log(), quantiles, beta).max() < 1e-9
    assert losses.qrpo_loss(reference.log(), reference.log(), quantiles, beta).mean() > 0.03


def test_qrpo_with_ties_misses_its_optimum():
    """All rewards equal: every quantile is 1, the reference is the optimum, and yet the loss there is not 0."""
    even = torch.full((4,), 0.25, dtype=torch.float64).log()
    loss = losses.qrpo_loss(even, even, torch.ones(4, dtype=torch.float64), 0.1)
    assert loss.mean() > 0.05


def test_dpo_and_una_reach_the_optimum_from_the_reference():
    """Not only stationary: plain descent gets there."""
    for name in ("dpo: the reference tilted by the rewards", "una with cross-entropy: every score met"):
        loss, best = OPTIMA[name]
        logits = REFERENCE.log().clone().requires_grad_()
        optimiser = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def closure(loss=loss, logits=logits, optimiser=optimiser):
            optimiser.zero_grad()
            value = loss(logits.log_softmax(-1))
            value.backward()
            return value

        optimiser.step(closure)
        torch.testing.assert_close(logits.detach().softmax(-1), best, atol=1e-5, rtol=0)

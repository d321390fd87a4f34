"""A bandit: one prompt, a handful of completions, and the whole argument of the paper by hand.

Everything is small enough to enumerate, so the KL-regularised objective, its optimum and the generalized
implicit reward can be compared number by number. All functions are pure and work in log space; probabilities
are given over all completions of the prompt and sum to 1. Log-probabilities are in nats.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from uftlab.losses import una_squared_error_loss
from uftlab.losses.rewards import implicit_reward


def log_partition(
    reference_probs: Float[Tensor, "completion"], rewards: Float[Tensor, "completion"], beta: float
) -> Float[Tensor, ""]:
    """log Z(x) = log sum_y pi_ref(y|x) exp(r(x, y) / beta) (Rafailov et al. 2023, arXiv 2305.18290, Eq. 4).

    Z is what the tilted reference adds up to before it is normalised; beta log Z is the highest value that the
    objective can reach.

    Returns:
        A scalar in nats. 0 where every reward is 0; c / beta where every reward is c.
    """
    return torch.logsumexp(reference_probs.log() + rewards / beta, dim=-1)


def log_optimum(
    reference_probs: Float[Tensor, "completion"], rewards: Float[Tensor, "completion"], beta: float
) -> Float[Tensor, "completion"]:
    """log pi*(y|x) in nats: `optimum` before the exponential, finite where the probability itself underflows."""
    return reference_probs.log() + rewards / beta - log_partition(reference_probs, rewards, beta)


def optimum(
    reference_probs: Float[Tensor, "completion"], rewards: Float[Tensor, "completion"], beta: float
) -> Float[Tensor, "completion"]:
    """The policy that maximises the KL-regularised objective (Rafailov et al. 2023, Eq. 4).

    pi*(y|x) = pi_ref(y|x) exp(r(x, y) / beta) / Z(x).

    Args:
        beta: KL strength. Towards 0 the best completion takes all; towards infinity pi* is the reference.

    Returns:
        Probabilities. The reference where all rewards are equal; odds 1 : e for an even one, rewards 0 and 1, beta 1.
    """
    return log_optimum(reference_probs, rewards, beta).exp()


def kl(probs: Float[Tensor, "completion"], reference_probs: Float[Tensor, "completion"]) -> Float[Tensor, ""]:
    """KL(pi || pi_ref) = sum_y pi(y|x) log(pi(y|x) / pi_ref(y|x)), in nats; a completion of probability 0 adds 0.

    0 where policy equals reference; log 2 for (1, 0) against (1/2, 1/2).
    """
    return (torch.xlogy(probs, probs) - torch.xlogy(probs, reference_probs)).sum()


def objective(
    probs: Float[Tensor, "completion"],
    reference_probs: Float[Tensor, "completion"],
    rewards: Float[Tensor, "completion"],
    beta: float,
) -> Float[Tensor, ""]:
    """What RLHF maximises: J = E_pi[r(x, y)] - beta KL(pi || pi_ref) (Rafailov et al. 2023, Eq. 3; UFT, section 3).

    Returns:
        A scalar in units of reward. E_ref[r] at the reference, beta log Z at the optimum.
    """
    return (probs * rewards).sum() - beta * kl(probs, reference_probs)


def gap(
    probs: Float[Tensor, "completion"],
    reference_probs: Float[Tensor, "completion"],
    rewards: Float[Tensor, "completion"],
    beta: float,
) -> Float[Tensor, ""]:
    """How far a policy falls short of the optimum: J(pi*) - J(pi) = beta KL(pi || pi*).

    The log-sum inequality, sum_y a log(a / b) >= (sum a) log(sum a / sum b), with a = pi and
    b = pi_ref exp(r / beta) says J(pi) <= beta log Z; equality holds only where a / b is the same for every y,
    that is at pi*. UNA (arXiv 2408.15339) proves the optimum this way.

    Returns:
        A scalar in units of reward, never negative but for rounding. 0 at the optimum.
    """
    log_best = log_optimum(reference_probs, rewards, beta)
    return beta * (torch.xlogy(probs, probs) - probs * log_best).sum()


def generalized_reward(
    policy_logps: Float[Tensor, "completion"],
    reference_logps: Float[Tensor, "completion"],
    beta: float,
    f: float | Float[Tensor, ""] = 0.0,
) -> Float[Tensor, "completion"]:
    """The reward for which a policy is the optimum: r(x, y) = beta log(pi(y|x) / pi_ref(y|x)) + f(x).

    UNA (arXiv 2408.15339) writes f(x) + c; in DPO's derivation (Rafailov et al. 2023, Eq. 5) the whole term is
    beta log Z(x). UFT sets f = c = 0, the default here, which is `uftlab.losses.rewards.implicit_reward`.

    Args:
        f: any number that depends on the prompt alone, in units of reward.

    Returns:
        Rewards. With f = beta log Z the rewards that `log_optimum` was given; with f = 0 those less beta log Z.
    """
    return implicit_reward(policy_logps, reference_logps, beta) + f


class Ascent(NamedTuple):
    """A run of gradient ascent, the start included: the objective and the policy at each step."""

    objective: Float[Tensor, "step"]
    probs: Float[Tensor, "step completion"]


def gradient_ascent(
    reference_probs: Float[Tensor, "completion"],
    rewards: Float[Tensor, "completion"],
    beta: float,
    steps: int = 400,
    learning_rate: float = 3.0,
) -> Ascent:
    """Climb the objective with a softmax policy that starts at the reference and knows nothing of the closed form.

    dJ/dlogit_y = pi(y) (A(y) - E_pi[A]),  A = r - beta log(pi / pi_ref): the exact policy gradient. The learning
    rate is divided by beta plus the spread of the rewards, so that one value serves every setting.

    Returns:
        `steps` + 1 objectives and policies. Slow where beta is small: bad completions fade, but only like 1 / step.
    """
    logits, log_reference = reference_probs.log(), reference_probs.log()
    step_size = learning_rate / (beta + float(rewards.max() - rewards.min()))
    objectives, policies = [], []
    for _ in range(steps + 1):
        logps = logits.log_softmax(-1)
        probs = logps.exp()
        advantages = rewards - implicit_reward(logps, log_reference, beta)
        value = probs @ advantages  # E[r] - beta KL: the objective itself
        objectives.append(value)
        policies.append(probs)
        logits = logits + step_size * probs * (advantages - value)
    return Ascent(torch.stack(objectives), torch.stack(policies))


def log_total_probability(
    scores: Float[Tensor, "completion"], reference_probs: Float[Tensor, "completion"], beta: float
) -> Float[Tensor, ""]:
    """log of `total_probability`, in nats; finite where the total itself would overflow (beta = 0.01)."""
    return log_partition(reference_probs, torch.logit(scores), beta)


def total_probability(
    scores: Float[Tensor, "completion"], reference_probs: Float[Tensor, "completion"], beta: float
) -> Float[Tensor, ""]:
    """What the probabilities would add up to if every implicit score met its score exactly.

    sigma(beta log(pi / pi_ref)) = s means pi = pi_ref (s / (1 - s))^(1 / beta), so the total would be
    E_ref[(s / (1 - s))^(1 / beta)]: Z(x) for the rewards logit(s). A policy has total 1; our observation, the
    paper's f = c = 0 takes it for granted.

    Args:
        scores: feedback in (0, 1); a score of exactly 1 asks for an infinite total.

    Returns:
        A positive scalar. 1 where every score is 0.5; 9 where every score is 0.9 and beta is 1.
    """
    return log_total_probability(scores, reference_probs, beta).exp()


def fit_scores(
    scores: Float[Tensor, "completion"], reference_probs: Float[Tensor, "completion"], beta: float, steps: int = 100
) -> Float[Tensor, "completion"]:
    """The policy a squared-error fit of implicit scores finds: UNA and UFT on a bandit, run until nothing moves.

    Minimises sum_y (sigma(beta log(pi / pi_ref)) - s)^2 over softmax policies from the reference (L-BFGS).

    Returns:
        Probabilities. Where `total_probability` is 1 they meet every score; elsewhere no policy can.
    """
    log_reference = reference_probs.log()
    logits = log_reference.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([logits], max_iter=steps, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = una_squared_error_loss(logits.log_softmax(-1), log_reference, scores, beta).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return logits.detach().softmax(-1)

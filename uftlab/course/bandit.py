"""A bandit: one prompt and a few completions, to check the argument of the paper by hand.

All completions can be listed. So the KL-regularised objective, its optimum and the generalized implicit reward can be
compared number by number. All functions are pure and compute in log space. Probabilities are given for all completions
of the prompt and sum to 1. Log-probabilities are in nats.
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

    Z normalises the optimal policy. beta log Z is the highest value that the objective can reach.

    Returns:
        A scalar in nats. 0 where every reward is 0; c / beta where every reward is c.
    """
    return torch.logsumexp(reference_probs.log() + rewards / beta, dim=-1)


def log_optimum(
    reference_probs: Float[Tensor, "completion"], rewards: Float[Tensor, "completion"], beta: float
) -> Float[Tensor, "completion"]:
    """log pi*(y|x) in nats: the logarithm of `optimum`. It is finite where the probability underflows to 0."""
    return reference_probs.log() + rewards / beta - log_partition(reference_probs, rewards, beta)


def optimum(
    reference_probs: Float[Tensor, "completion"], rewards: Float[Tensor, "completion"], beta: float
) -> Float[Tensor, "completion"]:
    """The policy that maximises the KL-regularised objective (Rafailov et al. 2023, Eq. 4).

    pi*(y|x) = pi_ref(y|x) exp(r(x, y) / beta) / Z(x).

    Args:
        beta: KL strength. As beta goes to 0, the best completion gets probability 1. As beta goes to infinity, pi* goes
            to the reference.

    Returns:
        Probabilities. The reference if all rewards are equal. For an even reference of two completions, rewards 0 and
        1 and beta 1, the odds are 1 : e.
    """
    return log_optimum(reference_probs, rewards, beta).exp()


def kl(probs: Float[Tensor, "completion"], reference_probs: Float[Tensor, "completion"]) -> Float[Tensor, ""]:
    """KL(pi || pi_ref) = sum_y pi(y|x) log(pi(y|x) / pi_ref(y|x)) in nats. A completion of probability 0 adds 0.

    0 where policy equals reference; log 2 for (1, 0) against (1/2, 1/2).
    """
    return (torch.xlogy(probs, probs) - torch.xlogy(probs, reference_probs)).sum()


def objective(
    probs: Float[Tensor, "completion"],
    reference_probs: Float[Tensor, "completion"],
    rewards: Float[Tensor, "completion"],
    beta: float,
) -> Float[Tensor, ""]:
    """The objective of RLHF: J = E_pi[r(x, y)] - beta KL(pi || pi_ref) (Rafailov et al. 2023, Eq. 3; UFT, section 3).

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
    """The difference between the optimum and a policy: J(pi*) - J(pi) = beta KL(pi || pi*).

    The log-sum inequality is sum_y a log(a / b) >= (sum a) log(sum a / sum b). With a = pi and b = pi_ref exp(r / beta)
    it says J(pi) <= beta log Z. Equality holds only if a / b is the same for every y, which is true at pi*. UNA (arXiv
    2408.15339) proves the optimum in this way.

    Returns:
        A scalar in units of reward. 0 at the optimum, above 0 elsewhere (up to rounding).
    """
    log_best = log_optimum(reference_probs, rewards, beta)
    return beta * (torch.xlogy(probs, probs) - probs * log_best).sum()


def generalized_reward(
    policy_logps: Float[Tensor, "completion"],
    reference_logps: Float[Tensor, "completion"],
    beta: float,
    f: float | Float[Tensor, ""] = 0.0,
) -> Float[Tensor, "completion"]:
    """The reward whose optimum is a given policy: r(x, y) = beta log(pi(y|x) / pi_ref(y|x)) + f(x).

    UNA (arXiv 2408.15339) writes f(x) + c. In the derivation of DPO (Rafailov et al. 2023, Eq. 5) this term is beta
    log Z(x). UFT sets f = c = 0. That is the default here and gives `uftlab.losses.rewards.implicit_reward`.

    Args:
        f: any number that depends on the prompt alone, in units of reward.

    Returns:
        Rewards. With f = beta log Z they are the rewards of `log_optimum`. With f = 0 they are lower by beta log Z.
    """
    return implicit_reward(policy_logps, reference_logps, beta) + f


class Ascent(NamedTuple):
    """A run of gradient ascent: the objective and the policy at each step, the start included."""

    objective: Float[Tensor, "step"]
    probs: Float[Tensor, "step completion"]


def gradient_ascent(
    reference_probs: Float[Tensor, "completion"],
    rewards: Float[Tensor, "completion"],
    beta: float,
    steps: int = 400,
    learning_rate: float = 3.0,
) -> Ascent:
    """Maximise the objective by gradient ascent on a softmax policy that starts at the reference.

    dJ/dlogit_y = pi(y) (A(y) - E_pi[A]),  A = r - beta log(pi / pi_ref): the exact policy gradient. The closed form of
    the optimum is not used. The learning rate is divided by beta plus the range of the rewards, so that one value works
    for all settings.

    Returns:
        `steps` + 1 objectives and policies. With a small beta this is slow: the probability of bad completions falls
        only like 1 / step.
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
    """log of `total_probability`, in nats. It is finite even where the total overflows (beta = 0.01)."""
    return log_partition(reference_probs, torch.logit(scores), beta)


def total_probability(
    scores: Float[Tensor, "completion"], reference_probs: Float[Tensor, "completion"], beta: float
) -> Float[Tensor, ""]:
    """The sum of the probabilities if every implicit score were exactly equal to its score.

    sigma(beta log(pi / pi_ref)) = s means pi = pi_ref (s / (1 - s))^(1 / beta). So the total would be
    E_ref[(s / (1 - s))^(1 / beta)], which is Z(x) for the rewards logit(s). The total of a real policy is 1. The paper
    assumes this when it sets f = c = 0; this is our observation.

    Args:
        scores: feedback in (0, 1). A score of exactly 1 would need an infinite total.

    Returns:
        A positive scalar. 1 if every score is 0.5. 9 if every score is 0.9 and beta is 1.
    """
    return log_total_probability(scores, reference_probs, beta).exp()


def fit_scores(
    scores: Float[Tensor, "completion"], reference_probs: Float[Tensor, "completion"], beta: float
) -> Float[Tensor, "completion"]:
    """The policy that a squared-error fit of implicit scores finds: UNA and UFT on a bandit, until convergence.

    Minimises sum_y (sigma(beta log(pi / pi_ref)) - s)^2 over softmax policies, from the reference, with L-BFGS.

    Returns:
        Probabilities. If `total_probability` is 1, every implicit score equals its score. Else no policy can do so.
    """
    log_reference = reference_probs.log()
    logits = log_reference.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = una_squared_error_loss(logits.log_softmax(-1), log_reference, scores, beta).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return logits.detach().softmax(-1)

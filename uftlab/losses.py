"""One pure function per equation. Losses come out unreduced, one per completion or per pair.

Arguments are summed log-probabilities in nats (`*_logps`), never means; every reward carries beta.
How losses are averaged over a batch is decided in `uftlab.objectives`, where the batch is known.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from uftlab.rewards import implicit_reward, implicit_score, margin


def sft_loss(policy_logps: Float[Tensor, "completion"]) -> Float[Tensor, "completion"]:
    """Negative log-likelihood of a demonstration, summed over its tokens: L = -log pi(y|x).

    The usual token-averaged SFT is sum(L) / sum(tokens) over the batch; that division is the objective's.

    Args:
        policy_logps: log pi(y | x), summed over completion tokens, in nats.

    Returns:
        Loss of each completion in nats. 3.0 for a completion of probability e^-3.
    """
    return -policy_logps


def dpo_loss(
    policy_chosen_logps: Float[Tensor, "pair"],
    policy_rejected_logps: Float[Tensor, "pair"],
    reference_chosen_logps: Float[Tensor, "pair"],
    reference_rejected_logps: Float[Tensor, "pair"],
    beta: float,
) -> Float[Tensor, "pair"]:
    """Negative log-likelihood of the preference under Bradley-Terry (Rafailov et al. 2023, Eq. 7).

    L = -log sigma(margin),  margin = r(x, y_chosen) - r(x, y_rejected),  r = beta * logratio.

    Args:
        policy_chosen_logps: log pi(y_chosen | x), summed over completion tokens, in nats; likewise the others.
        beta: KL strength. Larger beta holds the policy nearer the reference.

    Returns:
        Loss of each pair. log 2 where policy equals reference.
    """
    chosen_reward = implicit_reward(policy_chosen_logps, reference_chosen_logps, beta)
    rejected_reward = implicit_reward(policy_rejected_logps, reference_rejected_logps, beta)
    return -F.logsigmoid(margin(chosen_reward, rejected_reward))


def kto_kl_baseline(
    policy_mismatched_logps: Float[Tensor, "mismatched"], reference_mismatched_logps: Float[Tensor, "mismatched"]
) -> Float[Tensor, ""]:
    """KTO's reference point z0 = max(0, mean log-ratio over mismatched prompts and completions), no gradient.

    Ethayarajh et al. 2024 (arXiv 2402.01306), section 4.1. The completions must belong to *other* prompts;
    rolling the matched log-ratios cannot change their mean and estimates something else.

    Returns:
        A scalar in nats, without beta. 0 where policy equals reference.
    """
    return (policy_mismatched_logps - reference_mismatched_logps).mean().clamp(min=0).detach()


def kto_loss(
    policy_logps: Float[Tensor, "completion"],
    reference_logps: Float[Tensor, "completion"],
    labels: Float[Tensor, "completion"],
    kl_baseline: Float[Tensor, ""],
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, "completion"]:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, Eq. 8).

    desirable:   weight * (1 - sigma(beta * (logratio - z0)))
    undesirable: weight * (1 - sigma(beta * (z0 - logratio)))

    Args:
        labels: 1 for a desirable completion, 0 for an undesirable one.
        kl_baseline: z0 of `kto_kl_baseline`, in nats without beta.

    Returns:
        Loss of each completion. Half the weight where policy equals reference.
    """
    reward = implicit_reward(policy_logps, reference_logps, beta)
    # by the paper's rule the reward is compared with beta * z0, which is the implicit reward of z0
    surprise = reward - implicit_reward(kl_baseline, torch.zeros_like(kl_baseline), beta)
    desirable = desirable_weight * torch.sigmoid(-surprise)
    undesirable = undesirable_weight * torch.sigmoid(surprise)
    return torch.where(labels > 0.5, desirable, undesirable)


def una_squared_error_loss(
    policy_logps: Float[Tensor, "completion"],
    reference_logps: Float[Tensor, "completion"],
    scores: Float[Tensor, "completion"],
    beta: float,
) -> Float[Tensor, "completion"]:
    """UNA with squared error: L = (sigma(r) - score)^2 (UNA, arXiv 2408.15339, Eqs. 11 and 13; UFT, Eqs. 6 and 7).

    With labels 0 and 1 for scores this is UNA-binary (MSE), with ratings UNA-score, and with demonstrations
    as rows of score 1 it is UFT. UNA prints a minus before the square, which would unlearn; the authors'
    script minimises the plus, as here. There is no KL term: what holds the policy near the reference is the
    gate of `uftlab.rewards.squared_error_gate`.

    Args:
        scores: feedback in [0, 1].

    Returns:
        Loss of each completion. (0.5 - score)^2 where policy equals reference.
    """
    return (implicit_score(implicit_reward(policy_logps, reference_logps, beta)) - scores).square()


def una_cross_entropy_loss(
    policy_logps: Float[Tensor, "completion"],
    reference_logps: Float[Tensor, "completion"],
    scores: Float[Tensor, "completion"],
    beta: float,
) -> Float[Tensor, "completion"]:
    """UNA with cross-entropy: L = -score log sigma(r) - (1 - score) log sigma(-r) (UNA, Eq. 12, for binary labels).

    Soft scores are our extension; the minimum over r is then the entropy of the score, not 0. Written with
    the reward as a logit, since log(1 - sigma(r)) is minus infinity from r = 17 on in float32.

    Args:
        scores: feedback in [0, 1].

    Returns:
        Loss of each completion in nats. log 2 where policy equals reference, whatever the score.
    """
    reward = implicit_reward(policy_logps, reference_logps, beta)
    return -scores * F.logsigmoid(reward) - (1 - scores) * F.logsigmoid(-reward)

"""The family of losses that are a distance between sigma(reward - baseline) and a score, times a normalisation.

    loss = normalisation * distance(surprise, score),   surprise = reward - baseline

| loss               | distance       | reward        | baseline | score        | normalisation |
|--------------------|----------------|---------------|----------|--------------|---------------|
| UNA, UFT           | any of three   | implicit      | 0        | the feedback | 1             |
| DPO = UNA on pairs | cross-entropy  | margin        | 0        | 1            | 1             |
| cDPO               | cross-entropy  | margin        | 0        | 1 - epsilon  | 1             |
| BCO                | cross-entropy  | both sides    | delta    | 1 and 0      | 1             |
| APO-zero           | absolute error | both sides    | 0        | 1 and 0      | 1             |
| KTO                | absolute error | implicit      | beta z0  | the label    | class weight  |
| MinorSFT           | cross-entropy  | demonstration | 0        | 1            | 2 / (beta n)  |
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from uftlab.losses.rewards import Scalar, implicit_reward, implicit_score, margin

# ---------------------------------------------------------------------------------------- distances


def squared_error(surprise: Float[Tensor, "row"], scores: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
    """(sigma(u) - score)^2. The gradient 2 (s - score) s (1 - s) vanishes at both ends. 0.25 at u = 0, score 1."""
    return (implicit_score(surprise) - scores).square()


def cross_entropy(surprise: Float[Tensor, "row"], scores: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
    """-score log sigma(u) - (1 - score) log sigma(-u) in nats. The gradient is s - score. log 2 at u = 0.

    The surprise enters as a logit, because log(1 - sigma(u)) is minus infinity in float32 for u >= 17.
    """
    return -scores * F.logsigmoid(surprise) - (1 - scores) * F.logsigmoid(-surprise)


def absolute_error(surprise: Float[Tensor, "row"], scores: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
    """|sigma(u) - score|. The gradient is s (1 - s) or its negative, whatever the score. 0.5 at u = 0, score 1.

    Where the score is above sigma(u), the code computes (score - 1) + sigma(-u) instead of score - sigma(u): in
    float32 1 - sigma(20) is 0, but sigma(-20) is 2e-9.
    """
    below = torch.logit(scores) > surprise
    return torch.where(below, (scores - 1) + torch.sigmoid(-surprise), torch.sigmoid(surprise) - scores)


Distance = Callable[[Tensor, Tensor], Tensor]
DISTANCES: dict[str, Distance] = {
    "squared error": squared_error,
    "cross-entropy": cross_entropy,
    "absolute error": absolute_error,
}

# --------------------------------------------------------------------------------- UNA, and so UFT


def una_squared_error_loss(
    policy_logps: Float[Tensor, "completion"],
    reference_logps: Float[Tensor, "completion"],
    scores: Float[Tensor, "completion"],
    beta: Scalar,
) -> Float[Tensor, "completion"]:
    """UNA with squared error (UNA, arXiv 2408.15339, Eqs. 11 and 13; UFT, arXiv 2410.21438, Eqs. 6 and 7).

    L = (sigma(r) - score)^2,  r = beta * logratio.

    If the scores are labels 0 and 1, this is UNA-binary (MSE). If they are ratings, it is UNA-score. If demonstrations
    are added as rows of score 1, it is UFT. The UNA paper prints a minus before the square, which would make the
    policy unlearn. The authors' script has a plus, as here. There is no KL term: the gate
    (`uftlab.losses.rewards.squared_error_gate`) keeps the policy near the reference.

    Args:
        scores: feedback in [0, 1].

    Returns:
        Loss of each completion. (0.5 - score)^2 where policy equals reference.
    """
    return squared_error(implicit_reward(policy_logps, reference_logps, beta), scores)


def una_cross_entropy_loss(
    policy_logps: Float[Tensor, "completion"],
    reference_logps: Float[Tensor, "completion"],
    scores: Float[Tensor, "completion"],
    beta: Scalar,
) -> Float[Tensor, "completion"]:
    """UNA with cross-entropy (UNA, arXiv 2408.15339, Eq. 12, for binary labels).

    L = -score log sigma(r) - (1 - score) log sigma(-r),  r = beta * logratio.

    Scores between 0 and 1 are our extension. For them the minimum over r is the entropy of the score, not 0.

    Args:
        scores: feedback in [0, 1].

    Returns:
        Loss of each completion in nats. log 2 where policy equals reference, whatever the score.
    """
    return cross_entropy(implicit_reward(policy_logps, reference_logps, beta), scores)


def una_absolute_error_loss(
    policy_logps: Float[Tensor, "completion"],
    reference_logps: Float[Tensor, "completion"],
    scores: Float[Tensor, "completion"],
    beta: Scalar,
) -> Float[Tensor, "completion"]:
    """UNA's general form with the absolute error as its distance (UNA, arXiv 2408.15339; the choice is ours).

    L = |sigma(r) - score|,  r = beta * logratio.

    On labels this is KTO with baseline 0. On the two rows of a pair it is APO-zero.

    Returns:
        Loss of each completion. |0.5 - score| where policy equals reference.
    """
    return absolute_error(implicit_reward(policy_logps, reference_logps, beta), scores)


def una_pair_loss(
    policy_chosen_logps: Float[Tensor, "pair"],
    policy_rejected_logps: Float[Tensor, "pair"],
    reference_chosen_logps: Float[Tensor, "pair"],
    reference_rejected_logps: Float[Tensor, "pair"],
    beta: Scalar,
    distance: Distance = cross_entropy,
) -> Float[Tensor, "pair"]:
    """UNA on pairs (UNA, arXiv 2408.15339): any decreasing function of the margin; -log sigma gives DPO.

    L = distance(margin, 1),  margin = r(x, y_chosen) - r(x, y_rejected).

    Args:
        distance: one of `DISTANCES`. Cross-entropy against score 1 is -log sigma(margin), which is DPO.

    Returns:
        Loss of each pair. log 2 where policy equals reference, with cross-entropy.
    """
    chosen = implicit_reward(policy_chosen_logps, reference_chosen_logps, beta)
    rejected = implicit_reward(policy_rejected_logps, reference_rejected_logps, beta)
    return distance(margin(chosen, rejected), torch.ones_like(chosen))


# ------------------------------------------------------------------------- other members of the family


def cdpo_loss(
    policy_chosen_logps: Float[Tensor, "pair"],
    policy_rejected_logps: Float[Tensor, "pair"],
    reference_chosen_logps: Float[Tensor, "pair"],
    reference_rejected_logps: Float[Tensor, "pair"],
    beta: Scalar,
    label_smoothing: Scalar,
) -> Float[Tensor, "pair"]:
    """Conservative DPO: it assumes that labels are flipped with probability epsilon (Mitchell 2023, cdpo.pdf, Eq. 3).

    L = -(1 - epsilon) log sigma(margin) - epsilon log sigma(-margin).

    This is the cross-entropy of the margin against 1 - epsilon. Its minimum is at a finite margin,
    log((1 - epsilon) / epsilon).

    Args:
        label_smoothing: epsilon in [0, 0.5); 0 is DPO.

    Returns:
        Loss of each pair. log 2 where policy equals reference.
    """
    chosen = implicit_reward(policy_chosen_logps, reference_chosen_logps, beta)
    rejected = implicit_reward(policy_rejected_logps, reference_rejected_logps, beta)
    return cross_entropy(margin(chosen, rejected), torch.ones_like(chosen) - label_smoothing)


def apo_zero_loss(
    policy_chosen_logps: Float[Tensor, "pair"],
    policy_rejected_logps: Float[Tensor, "pair"],
    reference_chosen_logps: Float[Tensor, "pair"],
    reference_rejected_logps: Float[Tensor, "pair"],
    beta: Scalar,
) -> Float[Tensor, "pair"]:
    """Anchored preference optimisation, "zero" (D'Oosterlinck et al. 2024, arXiv 2408.06266, Eq. 7).

    L = (1 - sigma(r_chosen)) + sigma(r_rejected)

    The loss pushes the chosen completion up and the rejected one down, independently of each other.

    Returns:
        Loss of each pair. 1 where policy equals reference.
    """
    chosen = implicit_reward(policy_chosen_logps, reference_chosen_logps, beta)
    rejected = implicit_reward(policy_rejected_logps, reference_rejected_logps, beta)
    return absolute_error(chosen, torch.ones_like(chosen)) + absolute_error(rejected, torch.zeros_like(rejected))


def bco_shift(chosen_rewards: Float[Tensor, "pair"], rejected_rewards: Float[Tensor, "pair"]) -> Float[Tensor, ""]:
    """BCO's reward shift delta: the mean reward of both sides, without gradient (arXiv 2404.04656; TRL's trainer).

    TRL takes the mean of all rewards since the first step. We use the mean of the batch, which needs no state and is
    the same in the first step.

    Returns:
        A scalar in units of reward (beta included). 0 where policy equals reference.
    """
    return (0.5 * (chosen_rewards.mean() + rejected_rewards.mean())).detach()


def bco_loss(
    policy_chosen_logps: Float[Tensor, "pair"],
    policy_rejected_logps: Float[Tensor, "pair"],
    reference_chosen_logps: Float[Tensor, "pair"],
    reference_rejected_logps: Float[Tensor, "pair"],
    beta: Scalar,
    shift: Float[Tensor, ""],
) -> Float[Tensor, "pair"]:
    """Binary classifier optimisation on pairs (Jung et al. 2024, arXiv 2404.04656).

    L = -log sigma(r_chosen - delta) - log sigma(-(r_rejected - delta)).

    Args:
        shift: delta of `bco_shift`, beta included. With 0 the loss is UNA with cross-entropy on the two rows.

    Returns:
        Loss of each pair. 2 log 2 where policy equals reference and delta is 0.
    """
    chosen = implicit_reward(policy_chosen_logps, reference_chosen_logps, beta) - shift
    rejected = implicit_reward(policy_rejected_logps, reference_rejected_logps, beta) - shift
    return cross_entropy(chosen, torch.ones_like(chosen)) + cross_entropy(rejected, torch.zeros_like(rejected))


def kto_kl_baseline(
    policy_mismatched_logps: Float[Tensor, "mismatched"], reference_mismatched_logps: Float[Tensor, "mismatched"]
) -> Float[Tensor, ""]:
    """KTO's reference point z0 = max(0, mean log-ratio over mismatched prompts and completions), without gradient.

    Ethayarajh et al. 2024 (arXiv 2402.01306), section 4.1. The completions must belong to *other* prompts. Shifting
    the log-ratios of matched rows within the batch would not change their mean: that is another estimate.

    Returns:
        A scalar in nats, without beta. 0 where policy equals reference.
    """
    return (policy_mismatched_logps - reference_mismatched_logps).mean().clamp(min=0).detach()


def kto_loss(
    policy_logps: Float[Tensor, "completion"],
    reference_logps: Float[Tensor, "completion"],
    labels: Float[Tensor, "completion"],
    kl_baseline: Float[Tensor, ""],
    beta: Scalar,
    desirable_weight: Scalar = 1.0,
    undesirable_weight: Scalar = 1.0,
) -> Float[Tensor, "completion"]:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306, Eq. 8).

    desirable:   L = weight * (1 - sigma(beta * (logratio - z0)))
    undesirable: L = weight * (1 - sigma(beta * (z0 - logratio)))

    Args:
        labels: 1 for a desirable completion, 0 for an undesirable one.
        kl_baseline: z0 of `kto_kl_baseline`, in nats without beta.

    Returns:
        Loss of each completion. Half the weight where policy equals reference.
    """
    reward = implicit_reward(policy_logps, reference_logps, beta)
    # the paper compares the reward with beta * z0, which is the implicit reward of z0
    surprise = reward - implicit_reward(kl_baseline, torch.zeros_like(kl_baseline), beta)
    desirable = labels > 0.5
    weights = torch.where(desirable, desirable_weight, undesirable_weight)
    return weights * absolute_error(surprise, desirable.to(reward.dtype))


def minor_sft_loss(
    policy_logps: Float[Tensor, "completion"],
    reference_logps: Float[Tensor, "completion"],
    lengths: Float[Tensor, "completion"],
    beta: Scalar,
) -> Float[Tensor, "completion"]:
    """MinorSFT: SFT whose weight falls while the demonstration becomes more likely (Xie et al. 2024, arXiv 2408.10642).

    L = -2 / (beta n) log sigma(r),  r = beta * logratio

    So -dL/dlog pi = (2 / n) sigma(-r). At the reference this equals token-averaged SFT; where the demonstration is more
    likely than that, it is smaller. Some libraries leave out the factor 2 / (beta n). We take it from the gradient
    above, which a summary of the paper prints. Without the factor this is UFT with cross-entropy on demonstrations.

    Args:
        lengths: number of tokens of each completion.

    Returns:
        Loss of each completion in nats divided by beta. 2 log 2 / (beta n) where policy equals reference.
    """
    reward = implicit_reward(policy_logps, reference_logps, beta)
    return 2 / (beta * lengths) * cross_entropy(reward, torch.ones_like(reward))

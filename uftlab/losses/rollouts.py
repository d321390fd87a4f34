"""The loss of completions that the policy itself has sampled: policy gradient, no regression."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

MAX_LOG_RATIO = 10.0  # nats; beyond this a completion is so much likelier than when it was sampled that exp overflows


def leave_one_out(rewards: Float[Tensor, "prompt sample"]) -> Float[Tensor, "prompt sample"]:
    """Advantages of several samples of a prompt: each reward less the mean of the others (RLOO, Kool et al. 2019).

    A_i = R_i - mean_{j != i} R_j = n / (n - 1) (R_i - mean R)

    Ahmadian et al. 2024, arXiv 2402.14740. The baseline does not depend on the sample, so the gradient stays unbiased.

    Returns:
        Advantages in units of reward. Rewards 1, 0, 0: 1, -1/2, -1/2. All 0 where the rewards are equal.
    """
    samples = rewards.shape[-1]
    return (rewards - rewards.mean(-1, keepdim=True)) * samples / (samples - 1)


def policy_gradient_loss(
    policy_logps: Float[Tensor, "completion"],
    rollout_logps: Float[Tensor, "completion"],
    advantages: Float[Tensor, "completion"],
    clip: float,
) -> Float[Tensor, "completion"]:
    """REINFORCE on sampled completions, weighted and clipped as in PPO where they were sampled a while ago.

    L = -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A),  rho = pi(y|x) / pi_rollout(y|x)

    On completions that were sampled just now rho is 1 and the gradient is -A times that of log pi: plain REINFORCE.
    The ratio is of whole completions, as in RLOO (arXiv 2402.14740), not of tokens.

    Args:
        rollout_logps: log pi(y | x) under the policy as it was when it sampled, in nats.
        advantages: of `leave_one_out`, the KL already in the reward.
        clip: epsilon.

    Returns:
        Loss of each completion. -A where policy equals rollout policy.
    """
    ratio = (policy_logps - rollout_logps).clamp(max=MAX_LOG_RATIO).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)

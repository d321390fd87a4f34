"""Implicit reward, score, margin, ceiling and gates: what the losses and the figures have in common."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Scalar = float | Float[Tensor, ""]  # a setting: a number, or a tensor when `torch.func.vmap` gives one to each model


def implicit_reward(
    policy_logps: Float[Tensor, "*shape"], reference_logps: Float[Tensor, "*shape"], beta: Scalar
) -> Float[Tensor, "*shape"]:
    """Generalized implicit reward (UNA, Chen et al. 2024, arXiv 2408.15339; UFT, arXiv 2410.21438).

    r(x, y) = beta * (log pi(y|x) - log pi_ref(y|x)), which sets f(x) = c = 0 in UNA's general form.

    Args:
        policy_logps: log pi(y | x), summed over completion tokens, in nats.
        reference_logps: the same completions under the frozen reference.
        beta: KL strength. Every reward in this package includes beta, so all rewards have the same unit.

    Returns:
        Reward in nats times beta. 0 where policy equals reference.
    """
    return beta * (policy_logps - reference_logps)


def implicit_score(reward: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """s = sigma(r): the reward on the scale [0, 1] of feedback scores (UNA, section 3). 0.5 at reward 0."""
    return torch.sigmoid(reward)


def margin(chosen_reward: Float[Tensor, "*shape"], rejected_reward: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Chosen reward minus rejected reward: the logit of the Bradley-Terry preference. 0 at the reference."""
    return chosen_reward - rejected_reward


def ceiling(reference_logps: Float[Tensor, "*shape"], beta: Scalar) -> Float[Tensor, "*shape"]:
    """Highest implicit score that a completion can reach: pi(y|x) <= 1, so s <= sigma(-beta * log pi_ref(y|x)).

    This is our observation; the paper does not mention it. beta = 0.01 and log pi_ref = -50 nats: sigma(0.5) = 0.622.
    """
    return torch.sigmoid(-beta * reference_logps)


def squared_error_gate(
    reward: Float[Tensor, "*shape"], score: Float[Tensor, "*shape"] | float, beta: Scalar
) -> Float[Tensor, "*shape"]:
    """Weight on grad log pi(y|x) in the descent direction of (sigma(r) - score)^2.

    -dL/dlog pi = 2 beta (score - s) s (1 - s). For a demonstration (score 1) the gradient is that of SFT times this
    gate. The gate starts at beta/4, has its maximum 8 beta/27 at s = 1/3, and falls like e^(-2r) when s approaches 1.
    """
    s = implicit_score(reward)
    return 2 * beta * (score - s) * s * (1 - s)


def cross_entropy_gate(
    reward: Float[Tensor, "*shape"], score: Float[Tensor, "*shape"] | float, beta: Scalar
) -> Float[Tensor, "*shape"]:
    """Weight on grad log pi(y|x) in the descent direction of the cross-entropy of sigma(r) against score.

    -dL/dlog pi = beta (score - s). For a demonstration the gate starts at beta/2 and falls like e^(-r) only.
    """
    return beta * (score - implicit_score(reward))

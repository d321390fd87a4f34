"""Penalties on how far the weights have moved from where training began. They are added to any loss of completions."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def l1_to_start(moved: Float[Tensor, "*member weight"], strength: float) -> Float[Tensor, "*member"]:
    """L1 to the start, PAFT's pull towards few changes (arXiv 2406.17923).

    L = lambda sum_i |theta_i - theta_0i|

    Args:
        moved: theta - theta_0, the weights less those at the start.
        strength: lambda.

    Returns:
        One penalty for each model. Moved by (1, -2) at lambda 3: 9.
    """
    return strength * moved.abs().sum(-1)


def l2_to_start(
    moved: Float[Tensor, "*member weight"], strength: float | Float[Tensor, "*member"]
) -> Float[Tensor, "*member"]:
    """L2 to the start: the classical answer to forgetting, added to the loss of a stage.

    L = lambda / 2 sum_i (theta_i - theta_0i)^2

    This is `ewc_to_start` with Fisher information 1. Its gradient is lambda (theta - theta_0), and the optimiser sees
    it with that of the loss; weight decay pulls to 0 instead.

    Args:
        moved: theta - theta_0, the weights less those at the start of the stage.
        strength: lambda.

    Returns:
        One penalty for each model. Moved by (1, -2) at lambda 3: 7.5.
    """
    return strength / 2 * moved.square().sum(-1)


def ewc_to_start(
    moved: Float[Tensor, "*member weight"],
    fisher: Float[Tensor, "*member weight"],
    strength: float | Float[Tensor, "*member"],
) -> Float[Tensor, "*member"]:
    """Elastic weight consolidation: weights that old text depends on are held more strongly (Kirkpatrick et al. 2017).

    L = lambda / 2 sum_i F_i (theta_i - theta_0i)^2

    arXiv 1612.00796, Eq. 3. F_i is the diagonal of the Fisher information (`uftlab.models.fisher`). For small moves
    1/2 sum_i F_i (theta_i - theta_0i)^2 estimates KL(pi_0 || pi) of a text in nats, without what the diagonal leaves
    out. So lambda is the price of a nat.

    Args:
        moved: theta - theta_0, the weights less those at the start of the stage.
        fisher: F, never negative.
        strength: lambda.

    Returns:
        One penalty for each model. Moved by (1, -2), F = (2, 1), lambda 3: 9.
    """
    return strength / 2 * (fisher * moved.square()).sum(-1)

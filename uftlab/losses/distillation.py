"""The loss of a student that learns a teacher's whole distribution at each token."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def distillation_loss(
    logits: Float[Tensor, "completion pos vocabulary"],
    teacher_logits: Float[Tensor, "completion pos vocabulary"],
    mask: Bool[Tensor, "completion pos"],
    reverse: float,
) -> Float[Tensor, "completion"]:
    """Generalised Jensen-Shannon divergence of student and teacher (Agarwal et al. 2023, arXiv 2306.13649; TRL).

    L = sum_t lambda KL(p_t || m_t) + (1 - lambda) KL(q_t || m_t),  m_t = lambda p_t + (1 - lambda) q_t

    p is the teacher, q the student that is trained, lambda is `reverse`. At its ends L is a KL divergence, as in TRL:
    KL(p || q), "forward", at 0, and KL(q || p), "reverse", at 1. Those are the limits of L / lambda and
    L / (1 - lambda), so L is much smaller just inside the ends than at them. On samples of the student the gradient
    goes through the distributions alone, not through the sampling.

    Args:
        logits: of the student, the teacher's are without gradient; both predict the token at their position.
        reverse: lambda, 0 to 1.

    Returns:
        Loss of each completion in nats. 0 where student equals teacher. Teacher (3/4, 1/4), student (1/2, 1/2) at one
        token: 0.1308 at 0, 0.1438 at 1, 0.0338 at 1/2.
    """
    q, p = (x.to(torch.promote_types(x.dtype, torch.float32)).log_softmax(-1) for x in (logits, teacher_logits))
    if reverse in (0.0, 1.0):
        first, second = (q, p) if reverse else (p, q)
        found = (first.exp() * (first - second)).sum(-1)
    else:
        m = torch.logaddexp(p + math.log(reverse), q + math.log1p(-reverse))
        found = (reverse * p.exp() * (p - m) + (1 - reverse) * q.exp() * (q - m)).sum(-1)
    return torch.where(mask, found, 0.0).sum(-1)

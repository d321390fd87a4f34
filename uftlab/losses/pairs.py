"""Losses that compare a chosen with a rejected completion and are not a distance to a score."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from uftlab.losses.family import cdpo_loss
from uftlab.losses.rewards import Scalar, implicit_reward, margin

MAX_MEAN_LOGP = -1e-6  # ORPO's odds are infinite at probability 1; above this value the odds term has no gradient


def dpo_loss(
    policy_chosen_logps: Float[Tensor, "pair"],
    policy_rejected_logps: Float[Tensor, "pair"],
    reference_chosen_logps: Float[Tensor, "pair"],
    reference_rejected_logps: Float[Tensor, "pair"],
    beta: Scalar,
) -> Float[Tensor, "pair"]:
    """Negative log-likelihood of the preference under Bradley-Terry (Rafailov et al. 2023, arXiv 2305.18290, Eq. 7).

    L = -log sigma(margin),  margin = r(x, y_chosen) - r(x, y_rejected),  r = beta * logratio.

    Args:
        policy_chosen_logps: log pi(y_chosen | x), summed over completion tokens, in nats; the same for the others.
        beta: KL strength. A larger beta keeps the policy nearer to the reference.

    Returns:
        Loss of each pair. log 2 where policy equals reference.
    """
    chosen_reward = implicit_reward(policy_chosen_logps, reference_chosen_logps, beta)
    rejected_reward = implicit_reward(policy_rejected_logps, reference_rejected_logps, beta)
    return -F.logsigmoid(margin(chosen_reward, rejected_reward))


def ipo_loss(
    policy_chosen_logps: Float[Tensor, "pair"],
    policy_rejected_logps: Float[Tensor, "pair"],
    reference_chosen_logps: Float[Tensor, "pair"],
    reference_rejected_logps: Float[Tensor, "pair"],
    beta: Scalar,
) -> Float[Tensor, "pair"]:
    """Identity preference optimisation on sums, as the paper prints it (Azar et al. 2023, arXiv 2310.12036, Eq. 17).

    L = (logratio_chosen - logratio_rejected - 1 / (2 beta))^2

    The loss pulls the difference of the log-ratios to a finite target, from both sides.

    Args:
        beta: the paper's tau. The target 1 / (2 beta) is 5 nats at beta 0.1 and does not depend on the lengths.

    Returns:
        Loss of each pair in nats squared. 1 / (4 beta^2) where policy equals reference.
    """
    chosen, rejected = policy_chosen_logps - reference_chosen_logps, policy_rejected_logps - reference_rejected_logps
    return (chosen - rejected - 1 / (2 * beta)).square()


def ipo_mean_loss(
    policy_chosen_logps: Float[Tensor, "pair"],
    policy_rejected_logps: Float[Tensor, "pair"],
    reference_chosen_logps: Float[Tensor, "pair"],
    reference_rejected_logps: Float[Tensor, "pair"],
    chosen_lengths: Float[Tensor, "pair"],
    rejected_lengths: Float[Tensor, "pair"],
    beta: Scalar,
) -> Float[Tensor, "pair"]:
    """IPO on token means, as the TRL library computes it. A comment there says that the authors used means, too.

    L = (logratio_chosen / n_chosen - logratio_rejected / n_rejected - 1 / (2 beta))^2.

    Args:
        chosen_lengths: number of tokens of each chosen completion, the end token included.
        beta: here the target is 1 / (2 beta) nats *per token*. It cannot be compared with the beta of `ipo_loss`.

    Returns:
        Loss of each pair in (nats per token) squared. 1 / (4 beta^2) where policy equals reference.
    """
    chosen = (policy_chosen_logps - reference_chosen_logps) / chosen_lengths
    rejected = (policy_rejected_logps - reference_rejected_logps) / rejected_lengths
    return (chosen - rejected - 1 / (2 * beta)).square()


def log1mexp(logps: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1 - e^x) for x < 0, accurate near 0 and for very negative x (Maechler 2012). -log 2 at x = -log 2.

    The code uses log(-expm1(x)) where x is near 0, and log1p(-exp(x)) elsewhere.
    """
    return torch.where(logps > -math.log(2), torch.log(-torch.expm1(logps)), torch.log1p(-torch.exp(logps)))


def orpo_loss(
    policy_chosen_logps: Float[Tensor, "pair"],
    policy_rejected_logps: Float[Tensor, "pair"],
    chosen_lengths: Float[Tensor, "pair"],
    rejected_lengths: Float[Tensor, "pair"],
    odds_weight: Scalar,
) -> Float[Tensor, "pair"]:
    """Odds ratio preference optimisation: SFT on the chosen plus an odds term (Hong et al. 2024, arXiv 2403.07691).

    L = -m_chosen - lambda log sigma(o_chosen - o_rejected),  m = log pi / n,  o = m - log(1 - e^m)

    There is no reference. Inside the odds the means are clamped below 0, because the odds are infinite at probability 1
    and the result would be NaN. The likelihood term of TRL includes the prompt; ours does not.

    Args:
        odds_weight: lambda. TRL uses 0.1 by default.

    Returns:
        Loss of each pair. If m = -log 2 on both sides (odds 1), the loss is (1 + lambda) log 2.
    """
    chosen, rejected = policy_chosen_logps / chosen_lengths, policy_rejected_logps / rejected_lengths
    c, r = chosen.clamp(max=MAX_MEAN_LOGP), rejected.clamp(max=MAX_MEAN_LOGP)
    log_odds_ratio = (c - r) - (log1mexp(c) - log1mexp(r))
    return -chosen - odds_weight * F.logsigmoid(log_odds_ratio)


def simpo_loss(
    policy_chosen_logps: Float[Tensor, "pair"],
    policy_rejected_logps: Float[Tensor, "pair"],
    chosen_lengths: Float[Tensor, "pair"],
    rejected_lengths: Float[Tensor, "pair"],
    beta: Scalar,
    target_margin: Scalar,
) -> Float[Tensor, "pair"]:
    """Simple preference optimisation: token means, a target margin, no reference (Meng et al. 2024, arXiv 2405.14734).

    L = -log sigma(beta (m_chosen - m_rejected) - gamma),  m = log pi / n

    Args:
        beta: scale of the means, usually 2 or more. It is not a KL strength, because there is no reference.
        target_margin: gamma, in units of beta times a mean. TRL and the paper's script use gamma / beta instead.

    Returns:
        Loss of each pair. log(1 + e^gamma) where both means are equal.
    """
    difference = policy_chosen_logps / chosen_lengths - policy_rejected_logps / rejected_lengths
    return -F.logsigmoid(beta * difference - target_margin)


def dpop_loss(
    policy_chosen_logps: Float[Tensor, "pair"],
    policy_rejected_logps: Float[Tensor, "pair"],
    reference_chosen_logps: Float[Tensor, "pair"],
    reference_rejected_logps: Float[Tensor, "pair"],
    beta: Scalar,
    penalty: Scalar,
) -> Float[Tensor, "pair"]:
    """DPO-positive: DPO with a penalty where the chosen falls below the reference (Pal et al. 2024).

    L = -log sigma(beta [logratio_chosen - logratio_rejected - lambda max(0, -logratio_chosen)])

    arXiv 2402.13228, with the brackets of its first version corrected by an author (abacusai/smaug, issue 2). Some
    public code puts the penalty outside of the sigmoid, which is another loss and has no bound.

    Args:
        penalty: lambda; 0 is DPO. The authors found it to matter little between 5 and 500.

    Returns:
        Loss of each pair. log 2 where policy equals reference; the penalty has no gradient there.
    """
    chosen, rejected = policy_chosen_logps - reference_chosen_logps, policy_rejected_logps - reference_rejected_logps
    return -F.logsigmoid(beta * (chosen - rejected - penalty * F.relu(-chosen)))


def dpo_norm_loss(
    policy_chosen_logps: Float[Tensor, "pair"],
    policy_rejected_logps: Float[Tensor, "pair"],
    reference_chosen_logps: Float[Tensor, "pair"],
    reference_rejected_logps: Float[Tensor, "pair"],
    chosen_lengths: Float[Tensor, "pair"],
    rejected_lengths: Float[Tensor, "pair"],
    beta: Scalar,
) -> Float[Tensor, "pair"]:
    """Length-normalised DPO: DPO on log-ratios per token (Lambert et al. 2024, Tulu 3; TRL's `sigmoid_norm`).

    L = -log sigma(beta [logratio_chosen / n_chosen - logratio_rejected / n_rejected])

    arXiv 2411.15124. beta is the strength of nats per token: 5 in the authors' scripts, where DPO has 0.1.

    Args:
        chosen_lengths: n_chosen, the number of tokens of the completion.

    Returns:
        Loss of each pair. log 2 where policy equals reference.
    """
    chosen = (policy_chosen_logps - reference_chosen_logps) / chosen_lengths
    rejected = (policy_rejected_logps - reference_rejected_logps) / rejected_lengths
    return -F.logsigmoid(beta * (chosen - rejected))


def tpo_loss(
    policy_chosen_logps: Float[Tensor, "pair"], policy_rejected_logps: Float[Tensor, "pair"], beta: Scalar
) -> Float[Tensor, "pair"]:
    """The preference term of triple preference optimisation: DPO without a reference (Saeidi et al. 2024).

    L = -log sigma(beta [log pi(chosen|x) - log pi(rejected|x)])

    arXiv 2405.16681; TRL's experimental TPO trainer. Beside it stands the likelihood of a third, the best completion.

    Args:
        policy_chosen_logps: summed over completion tokens, in nats.

    Returns:
        Loss of each pair. log 2 where both sides are equally likely.
    """
    return -F.logsigmoid(beta * (policy_chosen_logps - policy_rejected_logps))


def tdpo_loss(
    policy_chosen_logps: Float[Tensor, "pair"],
    policy_rejected_logps: Float[Tensor, "pair"],
    reference_chosen_logps: Float[Tensor, "pair"],
    reference_rejected_logps: Float[Tensor, "pair"],
    chosen_kl: Float[Tensor, "pair"],
    rejected_kl: Float[Tensor, "pair"],
    beta: Scalar,
    alpha: Scalar = 0.5,
) -> Float[Tensor, "pair"]:
    """Token-level DPO, second form (Zeng et al. 2024, arXiv 2404.11999; the authors' code).

    L = -log sigma(beta [logratio_chosen - logratio_rejected - alpha (K_rejected - sg K_chosen)])

    K(y) = sum_t KL(pi_ref || pi) at the tokens of y. sg stops the gradient: only K_rejected has one.

    Args:
        chosen_kl: K of each chosen completion, summed over its tokens, in nats. K needs full distributions.

    Returns:
        Loss of each pair. log 2 where policy equals reference.
    """
    chosen, rejected = policy_chosen_logps - reference_chosen_logps, policy_rejected_logps - reference_rejected_logps
    return -F.logsigmoid(beta * (chosen - rejected - alpha * (rejected_kl - chosen_kl.detach())))


def shared_prefix(
    chosen_ids: Int[Tensor, "pair pos"], rejected_ids: Int[Tensor, "pair pos"]
) -> Bool[Tensor, "pair pos"]:
    """True at each column up to which both completions have the same tokens.

    (1, 2, 3) against (1, 5, 3) gives True, False, False.
    """
    return (chosen_ids == rejected_ids).long().cumprod(-1).bool()


def prefix_masked_cdpo_loss(
    policy_chosen_token_logps: Float[Tensor, "pair pos"],
    policy_rejected_token_logps: Float[Tensor, "pair pos"],
    prefix: Bool[Tensor, "pair pos"],
    reference_chosen_logps: Float[Tensor, "pair"],
    reference_rejected_logps: Float[Tensor, "pair"],
    beta: Scalar,
    label_smoothing: Scalar,
) -> Float[Tensor, "pair"]:
    """The preference part of the joint SFT+DPO objective: cDPO without the leading tokens that both sides share.

    L = -(1 - epsilon) log sigma(margin) - epsilon log sigma(-margin),  sums over the tokens after the shared prefix

    Yin et al. 2025 (Marco-o1 v2), arXiv 2503.01461. A shared prefix has the same log-probability on both sides. So it
    cancels in the margin, both in value and in gradient: without dropout the mask changes rounding only. For the same
    reason the log-probabilities of the reference may be sums over whole completions.

    Args:
        policy_chosen_token_logps: log pi of each token in nats, 0 at padding.
        prefix: `shared_prefix` of the pair.
        reference_chosen_logps: summed over all completion tokens.

    Returns:
        Loss of each pair. log 2 where policy equals reference.
    """
    chosen, rejected = (
        tokens.masked_fill(prefix, 0.0).sum(-1) for tokens in (policy_chosen_token_logps, policy_rejected_token_logps)
    )
    return cdpo_loss(chosen, rejected, reference_chosen_logps, reference_rejected_logps, beta, label_smoothing)

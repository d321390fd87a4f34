"""Losses of one completion. They reweight, anchor or regress its likelihood, or follow the policy gradient."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from uftlab.losses.rewards import Scalar, implicit_reward

MAX_LOG_RATIO = 10.0  # nats; exp would overflow for a completion that became far more likely after it was sampled


def sft_loss(policy_logps: Float[Tensor, "completion"]) -> Float[Tensor, "completion"]:
    """Negative log-likelihood of a demonstration, summed over its tokens.

    L = -log pi(y|x)

    The usual token-averaged SFT is sum(L) / sum(tokens) over the batch. The objective makes this division.

    Args:
        policy_logps: log pi(y | x), summed over completion tokens, in nats.

    Returns:
        Loss of each completion in nats. 3.0 for a completion of probability e^-3.
    """
    return -policy_logps


def signed_sft_loss(
    policy_logps: Float[Tensor, "completion"], scores: Float[Tensor, "completion"], scale: Scalar = 1.0
) -> Float[Tensor, "completion"]:
    """Likelihood weighted by how far the score is from one half: up with good completions, down with bad ones (ours).

    L = -scale (score - 1/2) log pi(y|x)

    A control. It is the limit of UNA, and so of UFT, for small beta: -dL/dlog pi of UNA with squared error is
    2 beta (score - s) s (1 - s), and s = 1/2 near the reference leaves beta/2 (score - 1/2). So UNA's gradient is
    beta/2 times this one until its gate closes. There is no reference, no beta and no gate. Adam divides a factor of
    the loss out again, but for its epsilon: with `scale` = beta/2 that is the same, too (`uftlab.study.epsilon`).

    Args:
        policy_logps: log pi(y | x), summed over completion tokens as in UNA, in nats.
        scores: feedback in [0, 1]; 1 for a demonstration.

    Returns:
        Loss of each completion in nats; it may be negative. Score 1 and probability e^-3: 1.5. Score 0: -1.5.
    """
    return -scale * (scores - 0.5) * policy_logps


def accepted_sft_loss(
    policy_logps: Float[Tensor, "completion"], scores: Float[Tensor, "completion"]
) -> Float[Tensor, "completion"]:
    """`signed_sft_loss` without its negative part: only completions rated above one half are learned from (ours).

    L = -max(score - 1/2, 0) log pi(y|x)

    On samples of the policy it is rejection sampling with graded acceptance. Beside `signed_sft_loss` it tells what
    pushing bad completions down adds.

    Args:
        policy_logps: log pi(y | x), summed over completion tokens, in nats.
        scores: feedback in [0, 1].

    Returns:
        Loss of each completion in nats, never negative. Score 1 and probability e^-3: 1.5. Score 0: 0.
    """
    return -(scores - 0.5).clamp(min=0) * policy_logps


def dft_loss(policy_token_logps: Float[Tensor, "completion pos"]) -> Float[Tensor, "completion"]:
    """Dynamic fine-tuning: each token is weighted by its own probability (Wu et al. 2025, arXiv 2508.05629).

    L = -sum_t sg(p_t) log p_t

    sg stops the gradient, so the gradient of L is that of -sum_t p_t.

    Args:
        policy_token_logps: log pi of each token in nats, 0 at padding.

    Returns:
        Loss of each completion in nats. log(2) / 2 for one token of probability 1/2.
    """
    return -(policy_token_logps.exp().detach() * policy_token_logps).sum(-1)


def chord_phi_loss(policy_token_logps: Float[Tensor, "completion pos"]) -> Float[Tensor, "completion"]:
    """The SFT term of CHORD: tokens that the policy finds certain or impossible count little (Zhang et al. 2025).

    L = -sum_t sg(p_t (1 - p_t)) log p_t

    arXiv 2508.11408; the authors' code (Trinity-RFT, `sft_phi`). The weight has its maximum 1/4 at probability 1/2.

    Args:
        policy_token_logps: log pi of each token in nats, 0 at padding.

    Returns:
        Loss of each completion in nats. log(2) / 4 for one token of probability 1/2.
    """
    weights = policy_token_logps.exp() * -torch.expm1(policy_token_logps)
    return -(weights.detach() * policy_token_logps).sum(-1)


def iw_sft_loss(
    policy_logps: Float[Tensor, "completion"],
    reference_logps: Float[Tensor, "completion"],
    lengths: Float[Tensor, "completion"],
    exponent: Scalar,
    cap: Scalar,
) -> Float[Tensor, "completion"]:
    """Importance-weighted SFT: what the policy likes better than the reference counts more (Qin & Springenberg 2025).

    L = -sg(w) log pi(y|x),  w = min(e^(k logratio / n), c)

    arXiv 2507.12856; the authors' code. The weight is of the whole completion, by the mean log-ratio of its tokens. It
    starts at 1, and completions that were learned first are learned faster.

    Args:
        lengths: n, the number of completion tokens.
        exponent: k.
        cap: c, the largest weight.

    Returns:
        Loss of each completion in nats. The loss of SFT where policy equals reference.
    """
    mean = (policy_logps - reference_logps) / lengths
    weights = (exponent * mean).clamp(max=MAX_LOG_RATIO).exp()
    cap = torch.as_tensor(cap, dtype=weights.dtype, device=weights.device)
    return -torch.minimum(weights, cap).detach() * policy_logps


def psft_loss(
    policy_token_logps: Float[Tensor, "completion pos"],
    old_token_logps: Float[Tensor, "completion pos"],
    mask: Bool[Tensor, "completion pos"],
    clip: Scalar,
) -> Float[Tensor, "completion"]:
    """Proximal SFT: PPO's clipped ratio with advantage 1 at each token of a demonstration (Zhu et al. 2025).

    L = -sum_t min(rho_t, 1 + epsilon),  rho_t = p_t / p_old,t

    arXiv 2508.17784; the authors' code. A token has no gradient while its probability is more than 1 + epsilon times
    that under the old policy. PPO's lower bound 1 - epsilon is not in the equation, because it can have no effect where
    the advantage is positive.

    Args:
        old_token_logps: log p_old of each token in nats, 0 at padding.
        mask: the tokens of the completion; ratios at padding would be 1 and not 0.
        clip: epsilon.

    Returns:
        Loss of each completion, without unit and never above 0. Minus the number of tokens where policy equals old
        policy; there the gradient is that of SFT.
    """
    ratio = (policy_token_logps - old_token_logps).clamp(max=MAX_LOG_RATIO).exp()
    highest = torch.as_tensor(1.0 + clip, dtype=ratio.dtype, device=ratio.device)
    return -torch.where(mask, torch.minimum(ratio, highest), 0.0).sum(-1)


def eaft_loss(
    policy_token_logps: Float[Tensor, "completion pos"],
    entropies: Float[Tensor, "completion pos"],
    power: Scalar,
    scale: Scalar,
) -> Float[Tensor, "completion"]:
    """Entropy-adaptive fine-tuning: tokens count by how uncertain the policy is there (Diao et al. 2026).

    L = -sum_t sg((H_t / h)^a) log p_t

    arXiv 2601.02151; the authors' code. Where the policy is confident, rightly or wrongly, H_t is near 0 and little is
    learned.

    Args:
        policy_token_logps: log pi of each token in nats, 0 at padding.
        entropies: H_t in nats: entropy of the policy at each token, among its most probable words.
        power: a; 0 is SFT.
        scale: h in nats.

    Returns:
        Loss of each completion in nats. 0.81 log(2) for one token of probability 1/2 where H is 0.9 h, with a = 2.
    """
    return -((entropies / scale).pow(power).detach() * policy_token_logps).sum(-1)


def rolled_tokens(
    values: Float[Tensor, "completion pos"], mask: Bool[Tensor, "completion pos"]
) -> Float[Tensor, "completion pos"]:
    """Each token gets the value of the token half of all tokens further on, over the end of the batch; 0 at padding.

    Tokens are counted completion by completion, without padding. So no value is lost and none comes twice. Completions
    (1, 2), (3,) and (4, 5) give (3, 4), (5,) and (1, 2).
    """
    flat, real = values.flatten(), mask.flatten()
    number, count = real.long().cumsum(0) - 1, real.sum()
    end = torch.full_like(number, len(flat))
    at = torch.zeros(len(flat) + 1, dtype=torch.long, device=flat.device)
    at = at.scatter(0, torch.where(real, number, end), torch.arange(len(flat), device=flat.device))
    source = at.gather(0, (number + count // 2).clamp(min=0) % count.clamp(min=1))
    return torch.where(mask, flat.gather(0, source).view_as(values), 0.0)


def eaft_rolled_loss(
    policy_token_logps: Float[Tensor, "completion pos"],
    entropies: Float[Tensor, "completion pos"],
    mask: Bool[Tensor, "completion pos"],
    power: Scalar,
    scale: Scalar,
) -> Float[Tensor, "completion"]:
    """EAFT with each token's weight given to another: the control of what the weights know about their tokens (ours).

    L = -sum_t sg((H_r(t) / h)^a) log p_t,  r moves every token half a batch of tokens on (`rolled_tokens`)

    A batch has the same weights as with EAFT, so the same mean, on other tokens.

    Args:
        mask: the tokens of the completion; a weight must not get lost at padding.

    Returns:
        Loss of each completion in nats. That of EAFT where all entropies of the batch are equal.
    """
    return eaft_loss(policy_token_logps, rolled_tokens(entropies, mask), power, scale)


def kl_sft_loss(
    policy_logps: Float[Tensor, "completion"], kl: Float[Tensor, "completion"], kl_weight: Scalar
) -> Float[Tensor, "completion"]:
    """SFT with a KL term that keeps the policy near the reference (a common control without a paper of its own).

    L = -log pi(y|x) + lambda sum_t KL(pi || pi_ref)

    The KL is exact: it is summed over the whole vocabulary at each position of the completion.

    Args:
        kl: KL(pi || pi_ref) summed over the completion's tokens, in nats.

    Returns:
        Loss of each completion in nats. The loss of SFT where policy equals reference.
    """
    return -policy_logps + kl_weight * kl


def asft_loss(
    policy_token_logps: Float[Tensor, "completion pos"], kl: Float[Tensor, "completion"], kl_weight: Scalar
) -> Float[Tensor, "completion"]:
    """Anchored SFT: DFT plus a KL term (Zhu et al. 2025, arXiv 2509.23753; the authors' code).

    L = -sum_t sg(p_t) log p_t + lambda sum_t KL(pi_ref || pi)

    The direction of the KL is the opposite of the one in `kl_sft_loss`.

    Args:
        kl: KL(pi_ref || pi) summed over the completion's tokens, in nats.

    Returns:
        Loss of each completion in nats. The loss of DFT where policy equals reference.
    """
    return dft_loss(policy_token_logps) + kl_weight * kl


def var_weights(scores: Float[Tensor, "completion"], temperature: Scalar) -> Float[Tensor, "completion"]:
    """VAR's weights w = e^(R / lambda) / Z, where Z is the batch mean of e^(R / lambda). The mean weight is 1.

    All weights are 1 where the scores are equal. Scores 0 and 1 at lambda 1: 2 / (1 + e) and 2 e / (1 + e).
    """
    return len(scores) * torch.softmax(scores / temperature, dim=0)


def var_loss(
    policy_logps: Float[Tensor, "completion"], scores: Float[Tensor, "completion"], temperature: Scalar
) -> Float[Tensor, "completion"]:
    """Variational alignment with re-weighting: SFT weighted by the reward (Du et al. 2025, arXiv 2502.11026).

    L = -w log pi(y|x),  w = e^(R / lambda) / Z

    This is SFT towards the optimum pi_ref e^(R / lambda) / Z. The weights are right for completions that were sampled
    from the reference. A summary of the paper prints one more factor, pi_ref(y|x). For such completions this factor
    would count the reference twice and favour short completions, so we leave the factor out. Z belongs to a prompt.
    One completion per prompt is not enough to compute Z, so the mean over the batch estimates it.

    Args:
        temperature: lambda. A small value follows the scores closely; a large value gives SFT on all completions.

    Returns:
        Loss of each completion in nats. The loss of SFT where all scores are equal.
    """
    return -var_weights(scores, temperature) * policy_logps


def log_partition_of_quantiles(beta: Scalar) -> Float[Tensor, ""]:
    """log Z of QRPO: Z = E_u[e^(u / beta)] = beta (e^(1 / beta) - 1) for u uniform on [0, 1].

    Computed as log beta + 1 / beta + log(1 - e^(-1 / beta)), because e^(1 / beta) overflows float32 at beta 0.01.
    The authors' code leaves out the last term. It is almost 0 at beta 0.1, and -0.459 at beta 1.
    The result is log(e - 1) = 0.541 at beta 1.
    """
    inverse = 1 / torch.as_tensor(beta, dtype=torch.float64)
    return inverse - inverse.log() + (-torch.expm1(-inverse)).log()


def qrpo_loss(
    policy_logps: Float[Tensor, "completion"],
    reference_logps: Float[Tensor, "completion"],
    quantiles: Float[Tensor, "completion"],
    beta: Scalar,
) -> Float[Tensor, "completion"]:
    """Quantile reward policy optimisation: regression on the optimal reward (Matrenok et al. 2025, the authors' code).

    L = (R_q - beta log Z - r)^2,  r = beta * logratio,  Z = beta (e^(1 / beta) - 1)

    arXiv 2507.08068. R_q is the quantile of the reward among completions of the reference. If rewards are continuous,
    R_q is uniform there, and so Z is known. With equal rewards Z is only approximate.

    Args:
        quantiles: R_q in [0, 1]: the share of reference completions that score no higher.

    Returns:
        Loss of each completion. (R_q - beta log Z)^2 where policy equals reference: at beta 1 (R_q - 0.541)^2.
    """
    target = quantiles - (beta * log_partition_of_quantiles(beta)).to(quantiles.dtype)
    return (target - implicit_reward(policy_logps, reference_logps, beta)).square()


# ------------------------------------------------- completions that the policy itself sampled


def decayed_share(progress: float, first: float, last: float) -> float:
    """The share mu of SFT in CHORD-mu after a share `progress` of its decay (Zhang et al. 2025; the authors' code).

    mu = last + (first - last) (1 + cos(pi progress)) / 2,  and `last` from progress 1 on

    arXiv 2508.11408. `first` at 0; halfway the mean of the two: 0.475 of 0.9 and 0.05.
    """
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def shaped_policy_gradient_loss(
    policy_token_logps: Float[Tensor, "completion pos"],
    mask: Bool[Tensor, "completion pos"],
    advantages: Float[Tensor, "completion"],
    shape: Scalar = 0.1,
) -> Float[Tensor, "completion"]:
    """Policy gradient on a completion that somebody else wrote, shaped towards unlikely tokens (LUFFY's authors' code).

    L = -A sum_t p_t / (p_t + gamma)

    Yan et al. 2025, arXiv 2504.14945. The probability of whoever wrote it is taken as 1, so p_t is the ratio. The
    gradient of a token is -A gamma p / (p + gamma)^2 times that of its log-probability: largest at p = gamma.

    Args:
        advantages: the completion's own, with the policy's samples of the same prompt as its baseline.
        shape: gamma.

    Returns:
        Loss of each completion. -1/2 for one token of probability 0.1 at advantage 1 and gamma 0.1.
    """
    p = policy_token_logps.exp()
    return -advantages * torch.where(mask, p / (p + shape), 0.0).sum(-1)


def leave_one_out(rewards: Float[Tensor, "prompt sample"]) -> Float[Tensor, "prompt sample"]:
    """Advantages of several samples of a prompt: each reward minus the mean of the others (RLOO, Kool et al. 2019).

    A_i = R_i - mean_{j != i} R_j = n / (n - 1) (R_i - mean R)

    Ahmadian et al. 2024, arXiv 2402.14740. The baseline does not depend on the sample, so the gradient is unbiased.

    Returns:
        Advantages in units of reward. Rewards 1, 0, 0 give 1, -1/2, -1/2. All are 0 where the rewards are equal.
    """
    samples = rewards.shape[-1]
    return (rewards - rewards.mean(-1, keepdim=True)) * samples / (samples - 1)


def policy_gradient_loss(
    policy_logps: Float[Tensor, "completion"],
    rollout_logps: Float[Tensor, "completion"],
    advantages: Float[Tensor, "completion"],
    clip: float,
) -> Float[Tensor, "completion"]:
    """REINFORCE on sampled completions, with the weight and the clipping of PPO for samples of an earlier policy.

    L = -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A),  rho = pi(y|x) / pi_rollout(y|x)

    If the current policy sampled the completions, rho is 1 and the gradient is -A times that of log pi: plain
    REINFORCE. The ratio is that of whole completions, as in RLOO (arXiv 2402.14740), not of single tokens.

    Args:
        rollout_logps: log pi_rollout(y | x) in nats; pi_rollout is the policy at the time of sampling.
        advantages: those of `leave_one_out`. The reward already includes the KL term.
        clip: epsilon.

    Returns:
        Loss of each completion. -A where policy equals rollout policy.
    """
    ratio = (policy_logps - rollout_logps).clamp(max=MAX_LOG_RATIO).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)

"""The newer losses by hand, and what each gets wrong when written carelessly. The older ones are in test_losses."""

import math

import pytest
import torch
from torch.testing import assert_close

from uftlab import losses

E = math.e


def t(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def sigma(x):
    return 1 / (1 + math.exp(-x))


# Four sums of one pair (policy chosen, policy rejected, reference chosen, reference rejected): log-ratios +2 and -2.
PAIR = (t(-8.0), t(-12.0), t(-10.0), t(-10.0))
FELL = (t(-12.0), t(-15.0), t(-10.0), t(-10.0))  # log-ratios -2 and -5: the margin grows, the chosen falls
N4, N2 = t(4.0), t(2.0)  # lengths

BY_HAND = {
    # beta 0.5: margin 2; (1 - 0.1) log(1 + e^-2) + 0.1 log(1 + e^2)
    "cdpo": (losses.cdpo_loss(*PAIR, 0.5, 0.1), 0.9 * math.log1p(math.exp(-2)) + 0.1 * math.log1p(math.exp(2))),
    # (4 - 1 / (2 * 0.25))^2 = (4 - 2)^2
    "ipo": (losses.ipo_loss(*PAIR, 0.25), 4.0),
    # (2/4 + 2/2 - 1)^2
    "ipo, means": (losses.ipo_mean_loss(*PAIR, N4, N2, 0.5), 0.25),
    # means -log 2 (odds 1) and -log 4 (odds 1/3): log 2 + 0.5 log(1 + 1/3)
    "orpo": (
        losses.orpo_loss(t(-4 * math.log(2)), t(-2 * math.log(4)), N4, N2, 0.5),
        math.log(2) + 0.5 * math.log(4 / 3),
    ),
    # 2 (-2 + 6) - 1 = 7
    "simpo": (losses.simpo_loss(t(-8.0), t(-12.0), N4, N2, 2.0, 1.0), math.log1p(math.exp(-7))),
    "dpop, chosen above the reference": (losses.dpop_loss(*PAIR, 0.5, 7.0), math.log1p(math.exp(-2))),
    # 0.5 (-2 + 5 - 3 * 2) = -1.5
    "dpop, chosen below": (losses.dpop_loss(*FELL, 0.5, 3.0), math.log1p(math.exp(1.5))),
    # 0.5 (4 - 0.5 (3 - 1)) = 1.5
    "tdpo": (losses.tdpo_loss(*PAIR, t(1.0), t(3.0), 0.5, 0.5), math.log1p(math.exp(-1.5))),
    "apo-zero": (losses.apo_zero_loss(*PAIR, 0.5), 2 * (1 - sigma(1.0))),
    # rewards 1 and -1, shift 0.5
    "bco": (losses.bco_loss(*PAIR, 0.5, torch.tensor(0.5)), math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-1.5))),
    "una-pair, squared error": (losses.una_pair_loss(*PAIR, 0.5, losses.squared_error), (1 - sigma(2.0)) ** 2),
    "una, absolute error": (losses.una_absolute_error_loss(PAIR[0], PAIR[2], t(0.25), 0.5), sigma(1.0) - 0.25),
    # 2 / (0.5 * 4) log(1 + e^-1)
    "minor-sft": (losses.minor_sft_loss(PAIR[0], PAIR[2], N4, 0.5), math.log1p(math.exp(-1))),
    # one token of probability 1/2, one of 1/4, one of padding
    "dft": (losses.dft_loss(t(-math.log(2), -math.log(4), 0.0)[None]), 0.5 * math.log(2) + 0.25 * math.log(4)),
    "kl-sft": (losses.kl_sft_loss(t(-3.0), t(2.0), 0.25), 3.5),
    "asft": (losses.asft_loss(t(-math.log(2))[None], t(2.0), 0.25), 0.5 * math.log(2) + 0.5),
    # beta 1: log Z = log(e - 1); log-ratio 2
    "qrpo": (losses.qrpo_loss(PAIR[0], PAIR[2], t(0.75), 1.0), (0.75 - math.log(E - 1) - 2) ** 2),
    # prefix of one token out of two: only the second token counts, log-ratios 1.5 and 0
    "joint": (
        losses.prefix_masked_cdpo_loss(
            t(-1.0, -0.5)[None], t(-1.0, -2.0)[None], torch.tensor([[True, False]]), t(-2.0), t(-2.0), 1.0, 0.0
        ),
        math.log1p(math.exp(-1.5)),
    ),
}


@pytest.mark.parametrize(("found", "expected"), BY_HAND.values(), ids=list(BY_HAND))
def test_by_hand(found, expected):
    assert_close(found, t(expected))


def test_var_by_hand():
    """Scores 0 and 1 at temperature 1: Z = (1 + e) / 2, weights 2 / (1 + e) and 2 e / (1 + e)."""
    found = losses.var_loss(t(-3.0, -5.0), t(0.0, 1.0), 1.0)
    assert_close(found, t(6 / (1 + E), 10 * E / (1 + E)))
    assert_close(losses.var_weights(t(0.3, 0.9, 0.5), 0.01).mean().item(), 1.0)  # e^90 and no overflow


def test_bco_shift_is_the_mean_reward_of_both_sides_without_gradient():
    """Means 2 and -1: 0.5."""
    rewards = t(1.0, 3.0).requires_grad_()
    assert losses.bco_shift(rewards, t(-1.0, -1.0)).item() == 0.5
    assert not losses.bco_shift(rewards, rewards).requires_grad


def test_log1mexp_by_hand_and_where_the_naive_form_fails():
    """log(1 - 1/2) = -log 2; at -1e-10 the naive form in float32 is log(0)."""
    assert_close(losses.log1mexp(t(-math.log(2))), t(-math.log(2)))
    tiny = torch.tensor([-1e-10])
    assert torch.isinf(torch.log(1 - torch.exp(tiny)))
    assert_close(losses.log1mexp(tiny), torch.tensor([math.log(1e-10)]))
    assert_close(losses.log1mexp(t(-50.0)), t(-math.exp(-50)))


@pytest.mark.parametrize(("beta", "expected"), [(1.0, math.log(E - 1)), (0.1, math.log(0.1) + 10), (0.01, None)])
def test_log_partition_of_quantiles(beta, expected):
    """beta 1: log(e - 1) = 0.541. At 0.01 e^100 overflows float32; the answer is 100 - log 100."""
    expected = 100 - math.log(100) if expected is None else expected
    assert losses.log_partition_of_quantiles(beta) == pytest.approx(expected, abs=1e-4)
    if beta >= 0.1:
        grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
        assert losses.log_partition_of_quantiles(beta) == pytest.approx(
            (grid / beta).exp().mean().log().item(), abs=1e-6
        )


def test_the_shortcut_for_qrpos_partition_is_only_right_for_small_beta():
    """The authors' code has log beta + 1 / beta: right to 1e-4 at beta 0.1, 0.459 too much at beta 1."""
    for beta, error in ((0.1, 0.0), (1.0, 0.459)):
        assert math.log(beta) + 1 / beta - losses.log_partition_of_quantiles(beta) == pytest.approx(error, abs=1e-3)


# -------------------------------------------------------------------- gradients of what is held or stopped


HELD = {
    "kto": lambda x: losses.kto_loss(
        x, t(-4.0, -9.0), t(1.0, 0.0), torch.tensor(1.5, dtype=torch.float64), 0.3, 2.0, 3.0
    ),
    "bco": lambda x: losses.bco_loss(x, x.flip(0), t(-4.0, -9.0), t(-3.0, -2.0), 0.3, torch.tensor(0.2).double()),
    "tdpo, sums": lambda x: losses.tdpo_loss(x, x.flip(0), t(-4.0, -9.0), t(-3.0, -2.0), t(1.0, 2.0), t(0.5, 3.0), 0.3),
    "tdpo, KL of the rejected": lambda x: losses.tdpo_loss(
        t(-1.0, -2.0), t(-5.0, -4.0), t(-4.0, -9.0), t(-3.0, -2.0), t(1.0, 2.0), x, 0.3
    ),
    "orpo": lambda x: losses.orpo_loss(x, x.flip(0) * 2, t(4.0, 3.0), t(2.0, 5.0), 0.7),
    "asft, KL": lambda x: losses.asft_loss(t(-1.0, -2.0)[:, None], x, 0.3),
}


@pytest.mark.parametrize("loss", HELD.values(), ids=list(HELD))
def test_gradient_agrees_with_finite_differences_with_the_rest_held(loss):
    assert torch.autograd.gradcheck(loss, (t(-2.5, -7.0).requires_grad_(),))


def test_dft_has_the_gradient_of_the_summed_probabilities():
    """d/dx of -sg(p) log p is -p, that of -p."""
    x = t(-2.5, -0.1)[None].requires_grad_()
    losses.dft_loss(x).sum().backward()
    assert_close(x.grad, -x.detach().exp())


def test_the_value_of_dft_rises_while_an_unlikely_token_is_learned():
    """-p log p is highest at p = 1/e: a rising loss is no sign of failure, and its value is no measure of progress."""
    values = [losses.dft_loss(t(math.log(p))[None]).item() for p in (0.1, 1 / E, 0.9)]
    assert values == pytest.approx([0.230, 0.368, 0.095], abs=1e-3)


def test_tdpo_lets_no_gradient_through_the_kl_of_the_chosen():
    """With it, the policy would be pulled away from the reference on the chosen side."""
    chosen, rejected = t(1.0).requires_grad_(), t(1.0).requires_grad_()
    losses.tdpo_loss(*PAIR, chosen, rejected, 0.5).sum().backward()
    assert chosen.grad is None and rejected.grad.item() > 0


def test_orpo_has_no_gradient_in_the_odds_beyond_the_clamp_but_keeps_its_likelihood_term():
    """Probability 1 on the chosen side: only -m is left, with gradient -1 / n."""
    chosen = torch.tensor([0.0], requires_grad=True)
    losses.orpo_loss(chosen, torch.tensor([-9.0]), torch.tensor([4.0]), torch.tensor([3.0]), 1.0).sum().backward()
    assert_close(chosen.grad, torch.tensor([-0.25]))


def test_simpos_margin_is_not_multiplied_by_beta():
    """At equal means the loss is log(1 + e^gamma) whatever beta: others write gamma / beta inside the bracket."""
    for beta in (1.0, 10.0):
        assert_close(losses.simpo_loss(t(-8.0), t(-4.0), N4, N2, beta, 1.5), t(math.log1p(math.exp(1.5))))


def test_dpops_penalty_stands_inside_the_sigmoid():
    """Outside, it would go on growing where the preference is long satisfied: lambda 3, log-ratio -2 would add 6."""
    well_separated = (t(-12.0), t(-100.0), t(-10.0), t(-10.0))
    assert losses.dpop_loss(*well_separated, 1.0, 3.0).item() < 1e-12


def test_cdpo_is_lowest_at_a_finite_margin():
    """epsilon 0.1: the gradient vanishes at margin log 9, and DPO's does not."""
    policy = (t(math.log(9)) - 10).requires_grad_()
    losses.cdpo_loss(policy, *PAIR[3:], *PAIR[3:], *PAIR[3:], 1.0, 0.1).sum().backward()
    assert abs(policy.grad.item()) < 1e-12


def test_var_without_a_factor_of_the_reference():
    """Equal scores: all weights are 1, however likely the reference finds a completion; it is SFT."""
    assert_close(losses.var_loss(t(-2.0, -60.0), t(0.4, 0.4), 0.5), t(2.0, 60.0))


def test_penalties_on_moved_weights_by_hand():
    """Moved by (1, -2) at lambda 3: 3 (1 + 2) = 9 and 3/2 (1 + 4) = 7.5; a stack has one for each model."""
    moved = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    assert losses.l1_to_start(moved, 3.0).tolist() == [9.0, 0.0]
    assert losses.l2_to_start(moved, torch.tensor([3.0, 3.0])).tolist() == [7.5, 0.0]


def test_ewc_by_hand_and_l2_is_ewc_with_information_1():
    """Moved by (1, -2), F = (2, 1), lambda 3: 3/2 (2 + 4) = 9."""
    moved = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    strengths = torch.tensor([3.0, 3.0])
    assert losses.ewc_to_start(moved, torch.tensor([[2.0, 1.0]] * 2), strengths).tolist() == [9.0, 0.0]
    assert torch.equal(losses.ewc_to_start(moved, torch.ones(2, 2), strengths), losses.l2_to_start(moved, strengths))


# ------------------------------------------------------------------------------------- of 2025 and 2026

HALF = torch.tensor([[0.5, 1.0]], dtype=torch.float64).log()  # a token of probability 1/2, then padding


def test_chord_phi_by_hand_and_its_weight_has_no_gradient():
    """p (1 - p) log 2 at p = 1/2: log(2) / 4; the slope is -1/4 and not that of the product."""
    logps = HALF.clone().requires_grad_()
    loss = losses.chord_phi_loss(logps)
    loss.sum().backward()
    assert_close(loss.detach(), t(math.log(2) / 4))
    assert logps.grad.tolist() == [[-0.25, 0.0]]


def test_iw_sft_by_hand_is_capped_and_its_weight_has_no_gradient():
    """Mean log-ratio 1/2 over 4 tokens, exponent 2: weight e. With cap 2 it is 2."""
    logps = t(-8.0).requires_grad_()
    losses.iw_sft_loss(logps, t(-10.0), N4, 2.0, 16.0).sum().backward()
    assert logps.grad.item() == pytest.approx(-math.e)
    assert_close(losses.iw_sft_loss(t(-8.0), t(-10.0), N4, 2.0, 2.0), t(16.0))


def test_iw_sft_divides_by_tokens_and_not_by_their_log():
    """Twice the tokens and twice the log-ratio is the same weight."""
    one, two = losses.iw_sft_loss(t(-8.0), t(-10.0), N4, 1.0, 16.0), losses.iw_sft_loss(t(-8.0), t(-9.0), N2, 1.0, 16.0)
    assert_close(one, two)


def test_psft_by_hand_has_no_gradient_above_the_clip_and_one_below():
    """Ratios 2, 1.1 and 0.1 with clip 0.28: -(1.28 + 1.1 + 0.1). PPO's lower bound would cut nothing."""
    ratios = torch.tensor([[2.0, 1.1, 0.1, 1.0]], dtype=torch.float64)
    policy = (ratios / 10).log().requires_grad_()
    mask = torch.tensor([[True, True, True, False]])
    loss = losses.psft_loss(policy, torch.full_like(ratios, 0.1).log(), mask, 0.28)
    loss.sum().backward()
    assert_close(loss.detach(), t(-2.48))
    assert_close(policy.grad, torch.tensor([[0.0, -1.1, -0.1, 0.0]], dtype=torch.float64))


def test_eaft_by_hand_and_its_weight_has_no_gradient():
    """H = 0.9 h squared is 0.81."""
    logps = HALF.clone().requires_grad_()
    loss = losses.eaft_loss(logps, torch.tensor([[2.7, 0.0]], dtype=torch.float64), 2.0, 3.0)
    loss.sum().backward()
    assert_close(loss.detach(), t(0.81 * math.log(2)))
    assert_close(logps.grad, torch.tensor([[-0.81, 0.0]], dtype=torch.float64))


def test_rolled_tokens_lose_none_and_stay_off_padding():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 0]]).bool()
    values = torch.tensor([[1.0, 2, 9], [3, 9, 9], [4, 5, 9]])
    found = losses.rolled_tokens(values, mask)
    assert found.tolist() == [[3, 4, 0], [5, 0, 0], [1, 2, 0]]
    assert losses.rolled_tokens(values[:1], torch.zeros(1, 3).bool()).tolist() == [[0, 0, 0]]  # nothing to roll
    many = torch.func.vmap(losses.rolled_tokens)(torch.stack([values, 2 * values]), torch.stack([mask, ~mask]))
    assert torch.equal(many[0], found) and torch.equal(many[1], losses.rolled_tokens(2 * values, ~mask))


def test_the_control_of_eaft_has_the_same_weights_elsewhere():
    """Tokens of equal probability: what a batch costs does not change; what a completion costs does."""
    mask = torch.ones(4, 3).bool()
    entropies = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    logps = torch.full((4, 3), -1.0)
    eaft, rolled = (
        losses.eaft_loss(logps, entropies, 1.0, 3.0),
        losses.eaft_rolled_loss(logps, entropies, mask, 1.0, 3.0),
    )
    assert_close(rolled.sum(), eaft.sum())
    assert_close(rolled, eaft[[2, 3, 0, 1]])


def test_dpo_norm_by_hand_and_its_beta_counts_nats_per_token():
    """Log-ratios 4 over 4 tokens and 1 over 2: log(1 + e^(-5 / 2)) at beta 5."""
    loss = losses.dpo_norm_loss(t(-8.0), t(-4.0), t(-12.0), t(-5.0), N4, N2, 5.0)
    assert_close(loss, t(math.log1p(math.exp(-2.5))))


def test_tpo_is_dpo_with_a_reference_that_finds_both_sides_equally_likely():
    assert_close(losses.tpo_loss(t(-8.0), t(-4.0), 0.5), t(math.log1p(math.exp(2))))
    assert_close(losses.tpo_loss(t(-8.0), t(-4.0), 0.5), losses.dpo_loss(t(-8.0), t(-4.0), t(-3.0), t(-3.0), 0.5))

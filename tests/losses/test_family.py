"""The algebra as code: identities between losses, in values and in gradients, on random rows in float64."""

import pytest
import torch
from torch.testing import assert_close

from uftlab import losses
from uftlab.losses.rewards import squared_error_gate
from uftlab.rows.table import as_scored, from_rows

BETA = 0.1
ZERO = torch.tensor(0.0, dtype=torch.float64)


def random_logps(seed, count=4, rows=50):
    state = torch.Generator().manual_seed(seed)
    return (-60 * torch.rand(count, rows, generator=state, dtype=torch.float64)).unbind()


def agree(first, second, *policy):
    """Two losses have the same value, and the same gradient with respect to the policy's log-probabilities."""
    assert_close(first, second, rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad(loss.sum(), policy, retain_graph=True) for loss in (first, second)]
    for a, b in zip(*gradients, strict=True):
        assert a.abs().max() > 0
        assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.fixture
def pair():
    pw, pl, rw, rl = random_logps(0)
    return pw.requires_grad_(), pl.requires_grad_(), rw, rl


def on_rows(loss, pw, pl, rw, rl):
    """A loss of completions on the two rows of a pair, with labels 1 and 0."""
    return loss(pw, rw, torch.ones_like(pw), BETA) + loss(pl, rl, torch.zeros_like(pl), BETA)


def test_una_with_cross_entropy_on_pairs_is_bco_without_shift(pair):
    agree(on_rows(losses.una_cross_entropy_loss, *pair), losses.bco_loss(*pair, BETA, ZERO), *pair[:2])


def test_una_with_absolute_error_on_pairs_is_apo_zero(pair):
    agree(on_rows(losses.una_absolute_error_loss, *pair), losses.apo_zero_loss(*pair, BETA), *pair[:2])


def test_una_with_absolute_error_is_kto_with_baseline_0(pair):
    def kto(policy, reference, labels, beta):
        return losses.kto_loss(policy, reference, labels, ZERO, beta)

    agree(on_rows(losses.una_absolute_error_loss, *pair), on_rows(kto, *pair), *pair[:2])


def test_una_on_pairs_with_log_sigma_is_dpo(pair):
    agree(losses.una_pair_loss(*pair, BETA), losses.dpo_loss(*pair, BETA), *pair[:2])


def test_dpo_is_cdpo_dpop_and_tdpo_with_their_extra_at_0(pair):
    dpo, kl = losses.dpo_loss(*pair, BETA), random_logps(1, 2)
    agree(losses.cdpo_loss(*pair, BETA, 0.0), dpo, *pair[:2])
    agree(losses.dpop_loss(*pair, BETA, 0.0), dpo, *pair[:2])
    agree(losses.tdpo_loss(*pair, *kl, BETA, 0.0), dpo, *pair[:2])


def test_simpo_is_dpo_on_means_with_an_indifferent_reference(pair):
    ones, zeros = torch.ones_like(pair[0]), torch.zeros_like(pair[0])
    agree(
        losses.simpo_loss(*pair[:2], ones, ones, BETA, 0.0), losses.dpo_loss(*pair[:2], zeros, zeros, BETA), *pair[:2]
    )


def test_ipo_on_means_is_ipo_on_sums_where_completions_have_one_token(pair):
    ones = torch.ones_like(pair[0])
    agree(losses.ipo_mean_loss(*pair, ones, ones, BETA), losses.ipo_loss(*pair, BETA), *pair[:2])


def test_uft_with_cross_entropy_on_demonstrations_is_minor_sft_up_to_its_factor(pair):
    policy, reference, lengths = pair[0], pair[2], torch.arange(1.0, 51.0, dtype=torch.float64)
    uft = losses.una_cross_entropy_loss(policy, reference, torch.ones_like(policy), BETA)
    agree(2 / (BETA * lengths) * uft, losses.minor_sft_loss(policy, reference, lengths, BETA), policy)


def test_minor_sft_starts_as_token_averaged_sft(pair):
    """At the reference its gradient is 1 / n, whatever beta: with the factor dropped it would be beta / 2."""
    lengths = torch.full_like(pair[0], 7.0)
    for beta in (0.01, 1.0):
        loss = losses.minor_sft_loss(pair[0], pair[0].detach(), lengths, beta)
        (gradient,) = torch.autograd.grad(loss.sum(), pair[0])
        assert_close(gradient, torch.full_like(gradient, -1 / 7))


def test_squared_error_on_rows_of_score_1_is_a_gate_times_sft(pair):
    policy, reference = pair[0], pair[2]
    (uft,) = torch.autograd.grad(
        losses.una_squared_error_loss(policy, reference, torch.ones_like(policy), BETA).sum(), policy
    )
    (sft,) = torch.autograd.grad(losses.sft_loss(policy).sum(), policy)
    gate = squared_error_gate(BETA * (policy - reference).detach(), 1.0, BETA)
    assert_close(uft, gate * sft, rtol=1e-10, atol=1e-15)


def test_asft_and_kl_sft_without_kl_are_dft_and_sft(pair):
    tokens, none = pair[0][:, None], torch.zeros_like(pair[0])
    agree(losses.asft_loss(tokens, none, 3.0), losses.dft_loss(tokens), pair[0])
    agree(losses.kl_sft_loss(pair[0], none, 3.0), losses.sft_loss(pair[0]), pair[0])


def test_var_at_a_high_temperature_is_sft(pair):
    scores = torch.rand(50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = losses.var_loss(pair[0], scores, 1e9)
    assert_close(found, losses.sft_loss(pair[0]), rtol=1e-8, atol=0)


def test_qrpo_is_squared_error_on_the_reward_scale(pair):
    """Where UNA compares sigma(r) with a score, QRPO compares r with R_q - beta log Z."""
    target = 0.3 - BETA * losses.log_partition_of_quantiles(BETA)
    policy = (pair[2] + target / BETA).requires_grad_()
    loss = losses.qrpo_loss(policy, pair[2], torch.full_like(policy, 0.3), BETA)
    assert loss.abs().max() < 1e-20


def test_uft_is_una_on_demonstrations_turned_into_scores():
    """No loss of its own: `as_scored` is UFT."""
    rows = as_scored(from_rows([{"prompt": "a", "completion": "b"}]))
    assert rows[0]["score"] == 1.0


def test_a_shared_prefix_cancels_in_every_loss_of_the_margin(pair):
    """Why masking it changes nothing: the same number is added to both sides, of policy and reference."""
    shift, held = torch.full_like(pair[0], -3.7), torch.full_like(pair[0], -9.1)
    longer = (pair[0] + shift, pair[1] + shift, pair[2] + held, pair[3] + held)
    for loss, settings in ((losses.dpo_loss, (BETA,)), (losses.cdpo_loss, (BETA, 0.1)), (losses.ipo_loss, (BETA,))):
        agree(loss(*longer, *settings), loss(*pair, *settings), *pair[:2])


@pytest.mark.parametrize("beta", [1e-3, 1e-5])
def test_una_for_small_beta_is_half_beta_times_signed_sft(beta):
    """-dL/dlog pi of UNA is 2 beta (score - s) s (1 - s); with s = 1/2 that is beta/2 (score - 1/2)."""
    policy, reference = random_logps(3, 2)
    scores = torch.linspace(0, 1, len(policy), dtype=torch.float64)
    policy.requires_grad_()
    (una,) = torch.autograd.grad(losses.una_squared_error_loss(policy, reference, scores, beta).sum(), policy)
    (signed,) = torch.autograd.grad(losses.signed_sft_loss(policy, scores).sum(), policy)
    assert_close(una / (beta / 2), signed, rtol=0, atol=20 * beta)
    assert_close(signed, 0.5 - scores)

"""Every loss: fixed point, value by hand, direction, extremes, gradient, an oracle in plain Python, likely mistakes."""

import importlib
import inspect
import math
import pkgutil
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch.testing import assert_close

from uftlab import losses
from uftlab.losses.rewards import implicit_reward, implicit_score

ZERO = torch.tensor(0.0)


def tensor(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


def test_every_function_of_the_modules_is_found_at_run_time_and_by_type_checkers():
    modules = {found.name for found in pkgutil.iter_modules(losses.__path__)} - {"rewards"}
    for module in modules:
        own = importlib.import_module(f"uftlab.losses.{module}")
        functions = [f for f in vars(own).values() if inspect.isfunction(f) and f.__module__ == own.__name__]
        assert functions and all(getattr(losses, f.__name__) is f for f in functions if f.__name__[0] != "_")
        assert f"from uftlab.losses.{module} import *" in inspect.getsource(losses)
    assert not hasattr(losses, "implicit_reward") and not hasattr(losses, "torch")


# Each loss of one completion (or pair) as a function of its log-ratio(s), so that one test serves all.
def sft(logratio, beta=0.1):
    return losses.sft_loss(logratio)


def dpo(logratio, beta=0.1):
    zeros = torch.zeros_like(logratio)
    return losses.dpo_loss(logratio, zeros, zeros, zeros, beta)


def dpo_rejected(logratio, beta=0.1):
    zeros = torch.zeros_like(logratio)
    return losses.dpo_loss(zeros, logratio, zeros, zeros, beta)


def kto(label):
    def loss(logratio, beta=0.1):
        labels = torch.full_like(logratio, label)
        return losses.kto_loss(logratio, torch.zeros_like(logratio), labels, ZERO.to(logratio), beta)

    return loss


def una(name, score):
    def loss(logratio, beta=0.1):
        scores = torch.full_like(logratio, score)
        return getattr(losses, name)(logratio, torch.zeros_like(logratio), scores, beta)

    return loss


SQUARED, CROSS = "una_squared_error_loss", "una_cross_entropy_loss"
# name -> (loss of a log-ratio, its value at log-ratio 0, sign of its gradient there)
CASES = {
    "dpo, chosen": (dpo, math.log(2), -1),
    "dpo, rejected": (dpo_rejected, math.log(2), 1),
    "kto, desirable": (kto(1.0), 0.5, -1),
    "kto, undesirable": (kto(0.0), 0.5, 1),
    "una squared error, score 1": (una(SQUARED, 1.0), 0.25, -1),
    "una squared error, score 0": (una(SQUARED, 0.0), 0.25, 1),
    "una squared error, score 0.8": (una(SQUARED, 0.8), 0.09, -1),
    "una cross-entropy, score 1": (una(CROSS, 1.0), math.log(2), -1),
    "una cross-entropy, score 0": (una(CROSS, 0.0), math.log(2), 1),
    "una cross-entropy, score 0.3": (una(CROSS, 0.3), math.log(2), 1),
}
every_case = pytest.mark.parametrize(("loss", "at_reference", "sign"), CASES.values(), ids=list(CASES))
every_loss = pytest.mark.parametrize("loss", [c[0] for c in CASES.values()] + [sft], ids=[*CASES, "sft"])


@every_case
def test_value_where_policy_equals_reference(loss, at_reference, sign):
    assert_close(loss(tensor(0.0)), tensor(at_reference))


@every_case
def test_a_step_of_descent_moves_the_policy_towards_the_feedback(loss, at_reference, sign):
    logratio = tensor(0.0).requires_grad_()
    loss(logratio).sum().backward()
    assert math.copysign(1, logratio.grad.item()) == sign and logratio.grad.item() != 0


@every_loss
@pytest.mark.parametrize("nats", [1e4, -1e4])
@pytest.mark.parametrize("beta", [0.01, 1.0])
def test_value_and_gradient_stay_finite_at_extremes(loss, nats, beta):
    logratio = tensor(nats).requires_grad_()
    value = loss(logratio, beta)
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(logratio.grad).all()


@every_loss
def test_gradient_agrees_with_finite_differences(loss):
    logratio = tensor(-7.0, -0.5, 0.3, 4.0, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, 0.3), (logratio,))


@every_loss
def test_losses_come_out_unreduced(loss):
    logratios = tensor(-2.0, 0.0, 5.0)
    assert_close(loss(logratios), torch.cat([loss(x) for x in logratios.split(1)]))


@every_case
def test_only_the_product_of_beta_and_logratio_matters(loss, at_reference, sign):
    """The check that finds a forgotten beta: beta 0.1 at 6 nats equals beta 0.3 at 2 nats, and not beta 0.1 at 2."""
    assert_close(loss(tensor(6.0), 0.1), loss(tensor(2.0), 0.3))
    assert abs(loss(tensor(2.0), 0.3) - loss(tensor(2.0), 0.1)) > 1e-3


# ------------------------------------------------------------------------------------- values by hand


def test_sft_loss_is_the_negative_summed_log_probability():
    assert_close(losses.sft_loss(tensor(-3.0, -0.5)), tensor(3.0, 0.5))


def test_dpo_loss_by_hand():
    """beta = 0.5; log-ratios +2 and -2, so margin = 0.5 * 4 = 2 and loss = log(1 + e^-2)."""
    loss = losses.dpo_loss(*map(tensor, (-8.0, -12.0, -10.0, -10.0)), beta=0.5)
    assert_close(loss, tensor(math.log1p(math.exp(-2))))


def test_dpo_loss_sums_nats_and_does_not_average_over_tokens():
    """Two tokens of +1 nat each are 2 nats: beta = 1 gives log(1 + e^-2), the mean would give log(1 + e^-1)."""
    chosen = tensor(1.0) + tensor(1.0)
    assert_close(dpo(chosen, beta=1.0), tensor(math.log1p(math.exp(-2))))


def test_kto_loss_by_hand():
    """beta = 0.5, z0 = 2, log-ratio 4: surprise 0.5 * (4 - 2) = 1; desirable sigma(-1), undesirable sigma(1).

    With weights 2 and 3 the losses are 2 / (1 + e) and 3 e / (1 + e).
    """
    loss = losses.kto_loss(tensor(-6.0, -6.0), tensor(-10.0, -10.0), tensor(1.0, 0.0), torch.tensor(2.0), 0.5, 2.0, 3.0)
    assert_close(loss, tensor(2 / (1 + math.e), 3 * math.e / (1 + math.e)))


def test_kto_loss_is_half_its_weight_where_policy_equals_reference():
    logps = tensor(-4.0, -9.0)
    assert_close(losses.kto_loss(logps, logps, tensor(1.0, 0.0), ZERO, 0.1, 1.5, 4.0), tensor(0.75, 2.0))


def test_kto_baseline_by_hand_and_clipped_at_zero():
    """Log-ratios 3 and -1 average to 1; -3 and 1 average to -1, which is clipped."""
    assert losses.kto_kl_baseline(tensor(-7.0, -11.0), tensor(-10.0, -10.0)).item() == 1.0
    assert losses.kto_kl_baseline(tensor(-13.0, -9.0), tensor(-10.0, -10.0)).item() == 0.0


def test_kto_baseline_lets_no_gradient_through():
    policy = tensor(-7.0, -8.0).requires_grad_()
    assert not losses.kto_kl_baseline(policy, tensor(-10.0, -10.0)).requires_grad


def test_squared_error_by_hand():
    """beta = 0.5, log-ratio 2 log 3, so r = log 3 and s = 3/4; score 0.25: loss = 0.5^2."""
    loss = losses.una_squared_error_loss(tensor(2 * math.log(3)), tensor(0.0), tensor(0.25), 0.5)
    assert_close(loss, tensor(0.25))


def test_cross_entropy_by_hand():
    """r = log 3, s = 3/4; score 0.25: -(1/4) log(3/4) - (3/4) log(1/4)."""
    loss = losses.una_cross_entropy_loss(tensor(2 * math.log(3)), tensor(0.0), tensor(0.25), 0.5)
    assert_close(loss, tensor(-0.25 * math.log(0.75) - 0.75 * math.log(0.25)))


def test_soft_cross_entropy_is_lowest_where_the_implicit_score_is_the_score():
    """At s = score = 0.3 the gradient vanishes and the loss is the entropy of 0.3."""
    reward = torch.tensor([math.log(0.3 / 0.7)], dtype=torch.float64, requires_grad=True)
    loss = una(CROSS, 0.3)(reward, beta=1.0)
    loss.sum().backward()
    assert_close(loss.item(), -0.3 * math.log(0.3) - 0.7 * math.log(0.7))
    assert abs(reward.grad.item()) < 1e-12


# ------------------------------------------------------------------- an oracle in plain Python


def naive_sigma(x):
    return 1 / (1 + math.exp(-x))


def naive_dpo(pw, pl, rw, rl, beta):
    return -math.log(naive_sigma(beta * ((pw - rw) - (pl - rl))))


def naive_kto(policy, reference, label, z0, beta):
    argument = beta * ((policy - reference) - z0)
    return 1 - naive_sigma(argument) if label else 1 - naive_sigma(-argument)


def naive_squared(policy, reference, score, beta):
    return (naive_sigma(beta * (policy - reference)) - score) ** 2


def naive_cross_entropy(policy, reference, score, beta):
    s = naive_sigma(beta * (policy - reference))
    return -(score * math.log(s) + (1 - score) * math.log(1 - s))


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_losses_agree_with_plain_python(beta):
    rng = random.Random(0)
    logps = [[rng.uniform(-20, 0) for _ in range(4)] for _ in range(50)]
    columns = [tensor(*column, dtype=torch.float64) for column in zip(*logps, strict=True)]
    numbers = [rng.random() for _ in logps]
    labels = [float(number > 0.5) for number in numbers]
    policy, reference = columns[0], columns[2]
    scores, labels_tensor = tensor(*numbers, dtype=torch.float64), tensor(*labels, dtype=torch.float64)

    def agree(loss, naive):
        assert_close(loss, tensor(*naive, dtype=torch.float64))

    z0 = max(0.0, sum(row[1] - row[3] for row in logps) / len(logps))
    baseline = losses.kto_kl_baseline(columns[1], columns[3])
    assert_close(baseline.item(), z0)
    agree(losses.dpo_loss(*columns, beta), [naive_dpo(*row, beta) for row in logps])
    agree(
        losses.kto_loss(policy, reference, labels_tensor, torch.tensor(1.5, dtype=torch.float64), beta),
        [naive_kto(row[0], row[2], label, 1.5, beta) for row, label in zip(logps, labels, strict=True)],
    )
    for loss, naive in (
        (losses.una_squared_error_loss, naive_squared),
        (losses.una_cross_entropy_loss, naive_cross_entropy),
    ):
        expected = [naive(row[0], row[2], score, beta) for row, score in zip(logps, numbers, strict=True)]
        agree(loss(policy, reference, scores, beta), expected)


# --------------------------------------------------------------------------------------- identities

nats = st.floats(-200, 0, width=32)


@settings(deadline=None, max_examples=50)
@given(policy=nats, reference=nats, label=st.sampled_from([0.0, 1.0]), beta=st.sampled_from([0.01, 0.1, 1.0]))
def test_kto_with_baseline_zero_is_una_with_absolute_error(policy, reference, label, beta):
    p, r, y = tensor(policy), tensor(reference), tensor(label)
    absolute_error = (implicit_score(implicit_reward(p, r, beta)) - y).abs()
    assert_close(losses.kto_loss(p, r, y, ZERO, beta), absolute_error, atol=1e-6, rtol=0)


@settings(deadline=None, max_examples=50)
@given(policy=st.tuples(nats, nats), reference=st.tuples(nats, nats))
def test_una_cross_entropy_on_a_pair_is_minus_log_of_both_scores(policy, reference):
    """Rows with labels 1 and 0 add up to -log s_w - log(1 - s_l), the pair form of BCO."""
    p, r = tensor(*policy, dtype=torch.float64), tensor(*reference, dtype=torch.float64)
    loss = losses.una_cross_entropy_loss(p, r, tensor(1.0, 0.0, dtype=torch.float64), 0.1).sum()
    s_w, s_l = (1 / (1 + math.exp(-0.1 * (a - b))) for a, b in zip(policy, reference, strict=True))
    assert_close(loss.item(), -math.log(s_w) - math.log(1 - s_l), rtol=1e-6, atol=1e-6)


def test_dpo_depends_on_the_margin_alone():
    """Why the log-probability of the chosen completion may fall: both sides may, as long as the rejected falls more."""
    loss = losses.dpo_loss(*map(tensor, (-8.0, -12.0, -10.0, -10.0)), beta=0.5)
    both_fell = losses.dpo_loss(*map(tensor, (-58.0, -62.0, -10.0, -10.0)), beta=0.5)
    assert_close(loss, both_fell)


# ------------------------------------------------------------------------------- likely mistakes


def test_cross_entropy_of_a_rejected_completion_with_reward_20_is_20():
    """The naive log(1 - sigma(20)) is -inf in float32; -log sigma(-20) = 20 + 2e-9."""
    assert torch.isinf(torch.log(1 - torch.sigmoid(torch.tensor(20.0))))
    assert_close(una(CROSS, 0.0)(tensor(20.0), beta=1.0), tensor(20.0))


def test_rolling_matched_logratios_is_not_the_mismatched_baseline():
    """Log-ratios of completion j under prompt i: [[5, 3], [-1, 3]]; matched mean 4, mismatched mean 1.

    Rolling the diagonal permutes it, and no permutation changes a mean.
    """
    table, zeros = torch.tensor([[5.0, 3.0], [-1.0, 3.0]]), torch.zeros(2)
    matched, mismatched = table.diagonal(), torch.stack([table[0, 1], table[1, 0]])
    rolled = losses.kto_kl_baseline(matched.roll(1), zeros)
    assert rolled == losses.kto_kl_baseline(matched, zeros) == 4.0
    assert losses.kto_kl_baseline(mismatched, zeros) == 1.0


def test_kto_compares_the_reward_with_beta_times_the_baseline():
    """A baseline in nats meets a reward in nats times beta: at log-ratio = z0 the loss is 0.5 for any beta."""
    for beta in (0.01, 1.0):
        loss = losses.kto_loss(tensor(-3.0), tensor(-10.0), tensor(1.0), torch.tensor(7.0), beta)
        assert_close(loss, tensor(0.5))


@pytest.mark.parametrize(
    "name", ["dpo_loss", "kto_kl_baseline", "kto_loss", "una_squared_error_loss", "una_cross_entropy_loss"]
)
def test_a_shape_that_would_broadcast_is_rejected(name):
    """(3,) against (3, 1) would silently give a 3 x 3 loss."""
    loss = getattr(losses, name)
    tensors = [p for p in inspect.signature(loss).parameters if p.endswith("logps") or p in ("labels", "scores")]
    rest = {"kto_kl_baseline": {}, "kto_loss": {"kl_baseline": ZERO, "beta": 0.1}}.get(name, {"beta": 0.1})
    loss(**dict.fromkeys(tensors, torch.zeros(3)), **rest)
    for wrong in tensors:
        with pytest.raises(TypeCheckError):
            loss(**{**dict.fromkeys(tensors, torch.zeros(3)), wrong: torch.zeros(3, 1)}, **rest)
        with pytest.raises(TypeCheckError):
            loss(**{**dict.fromkeys(tensors, torch.zeros(3)), wrong: torch.zeros(1)}, **rest)


def test_kto_refuses_a_baseline_per_completion():
    with pytest.raises(TypeCheckError):
        losses.kto_loss(torch.zeros(3), torch.zeros(3), torch.ones(3), torch.zeros(3), 0.1)

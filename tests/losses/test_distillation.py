"""The divergence of student and teacher: by hand, in plain Python, at its ends and extremes."""

import math

import pytest
import torch
from torch.testing import assert_close

from uftlab.losses import distillation_loss

WORDS = 4


def one_token(*probs):
    """Logits of one completion of one token."""
    return torch.tensor([[probs]], dtype=torch.float64).log()


ONE = torch.ones(1, 1, dtype=torch.bool)


@pytest.mark.parametrize(("reverse", "value"), [(0.0, 0.1308), (1.0, 0.1438), (0.5, 0.0338)])
def test_by_hand(reverse, value):
    """0.75 log 1.5 + 0.25 log 0.5; 0.5 log(2/3) + 0.5 log 2; the mean of the distances to (5/8, 3/8)."""
    loss = distillation_loss(one_token(0.5, 0.5), one_token(0.75, 0.25), ONE, reverse)
    assert loss.item() == pytest.approx(value, abs=5e-5)


def made_up(seed, rows=3, width=4):
    state = torch.Generator().manual_seed(seed)
    logits, teacher = (2 * torch.randn(rows, width, WORDS, generator=state, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(width) < torch.tensor([4, 1, 2])[:rows, None]
    return logits, teacher, mask


def naive(logits, teacher, mask, reverse):
    """Token by token from probabilities, of the mixture's definition."""
    found = []
    for row in range(len(mask)):
        total = 0.0
        for t in range(mask.shape[1]):
            if not mask[row, t]:
                continue
            q, p = ([math.exp(x) for x in own[row, t].tolist()] for own in (logits, teacher))
            q, p = ([x / sum(own) for x in own] for own in (q, p))
            m = [reverse * a + (1 - reverse) * b for a, b in zip(p, q, strict=True)]
            if reverse == 0:
                total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            elif reverse == 1:
                total += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
            else:
                total += sum(reverse * a * math.log(a / c) for a, c in zip(p, m, strict=True))
                total += sum((1 - reverse) * b * math.log(b / c) for b, c in zip(q, m, strict=True))
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("reverse", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_agrees_with_plain_python_and_is_nothing_at_padding(reverse):
    logits, teacher, mask = made_up(1)
    assert_close(distillation_loss(logits, teacher, mask, reverse), naive(logits, teacher, mask, reverse))


@pytest.mark.parametrize("reverse", [0.0, 0.5, 1.0])
def test_value_and_gradient_are_0_where_student_is_teacher(reverse):
    logits, _, mask = made_up(2)
    own = logits.clone().requires_grad_()
    loss = distillation_loss(own, logits, mask, reverse).sum()
    loss.backward()
    assert_close(loss.detach(), torch.tensor(0.0, dtype=torch.float64), atol=1e-12, rtol=0)
    assert own.grad.abs().max() < 1e-12


@pytest.mark.parametrize("reverse", [0.0, 0.5, 1.0])
def test_descent_raises_what_the_teacher_likes_better_and_lowers_the_rest(reverse):
    own = one_token(0.5, 0.3, 0.2).requires_grad_()
    distillation_loss(own, one_token(0.2, 0.3, 0.5), ONE, reverse).sum().backward()
    assert own.grad[0, 0, 0] > 0 > own.grad[0, 0, 2]


def test_the_ends_are_the_limits_of_the_inside_divided_by_the_weight():
    rows = made_up(3)
    near = 1e-6
    assert_close(distillation_loss(*rows, near) / near, distillation_loss(*rows, 0.0), rtol=1e-4, atol=0)
    assert_close(distillation_loss(*rows, 1 - near) / near, distillation_loss(*rows, 1.0), rtol=1e-4, atol=0)


def test_the_two_ends_are_not_each_other():
    """Swapped directions are the usual mistake: they differ, and each is the other with the models exchanged."""
    logits, teacher, mask = made_up(4)
    forward, reverse = (distillation_loss(logits, teacher, mask, end) for end in (0.0, 1.0))
    assert (forward - reverse).abs().min() > 1e-2
    assert_close(forward, distillation_loss(teacher, logits, mask, 1.0))


@pytest.mark.parametrize("reverse", [0.0, 0.5, 1.0])
def test_value_and_gradient_are_finite_at_ten_thousand_nats(reverse):
    own = torch.tensor([[[1e4, -1e4], [0.0, 0.0]]], requires_grad=True)
    loss = distillation_loss(own, -own.detach(), torch.tensor([[True, True]]), reverse).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(own.grad).all()


@pytest.mark.parametrize("reverse", [0.0, 0.3, 1.0])
def test_gradient_agrees_with_finite_differences(reverse):
    logits, teacher, mask = made_up(5)
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, teacher, mask, reverse), logits.requires_grad_())

"""Recipes with demonstrations and own samples: their losses by hand, then on a bandit with known probabilities."""

import gc
import math

import pytest
import torch
from enumerable import IDS, REFERENCE, TABLES, TOKENS, BanditPolicy, scored
from torch.testing import assert_close

from uftlab.errors import InputError
from uftlab.losses import decayed_share, shaped_policy_gradient_loss
from uftlab.training.catalogue import RECENT_METHODS
from uftlab.training.recipes import FedTrainer
from uftlab.training.stages import Job, check_recipes, run

RED, BLUE = 0, 1  # red is demonstrated, blue is rewarded
BLUE_IS_BEST = scored(0.1, 1.0, 0.2, 0.3, 0.0)


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """The library collects garbage after each run."""
    gc.freeze()
    yield
    gc.unfreeze()


def trained(name, reward, steps=25, batch=32, optim="adamw_torch_fused", **settings):
    """The probabilities after a method on the bandit, and its record."""
    policy, stage = BanditPolicy(), RECENT_METHODS[name].stages[-1]
    job = Job(policy, stage, TABLES, {"learning_rate": 0.1, **settings}, steps, 0, reward)
    (made,) = run([job], TOKENS, batch=batch, logging_steps=1, optim=optim)
    return policy.probs(), made.record


# ------------------------------------------------------------------------------------------ by hand


def test_the_share_of_sft_falls_on_half_a_cosine_and_stays():
    assert [decayed_share(at, 0.9, 0.05) for at in (0.0, 0.5, 1.0, 7.0)] == pytest.approx([0.9, 0.475, 0.05, 0.05])
    assert decayed_share(0.25, 1.0, 0.0) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def shaped(probs, advantages, gamma=0.1, mask=None):
    logps = torch.tensor(probs, dtype=torch.float64).log().requires_grad_()
    mask = torch.ones_like(logps, dtype=torch.bool) if mask is None else torch.tensor(mask)
    return logps, shaped_policy_gradient_loss(logps, mask, torch.tensor(advantages, dtype=torch.float64), gamma)


def test_the_shaped_loss_by_hand_and_in_plain_python():
    assert shaped([[0.1]], [1.0])[1].item() == pytest.approx(-0.5)
    probs, advantages = [[0.5, 0.02], [0.9, 0.3]], [0.7, -1.5]
    for gamma in (0.1, 0.5):
        naive = [-a * sum(p / (p + gamma) for p in row) for row, a in zip(probs, advantages, strict=True)]
        assert shaped(probs, advantages, gamma)[1].tolist() == pytest.approx(naive)


def test_the_shaped_gradient_is_largest_where_the_probability_is_gamma_and_follows_the_advantage():
    logps, loss = shaped([[0.01, 0.1, 0.9]], [2.0])
    loss.sum().backward()
    assert logps.grad[0].tolist() == pytest.approx([-2 * 0.1 * p / (p + 0.1) ** 2 for p in (0.01, 0.1, 0.9)])
    assert logps.grad[0].argmin() == 1  # descent raises it most
    assert all(shaped([[p]], [-1.0])[1] > 0 for p in (0.1, 0.9)) and shaped([[0.3]], [0.0])[1] == 0


def test_padding_has_no_probability_of_one():
    """Log-probabilities are 0 at padding: without the mask each would count as a certain token."""
    assert shaped([[0.1, 1.0]], [1.0], mask=[[True, False]])[1].item() == pytest.approx(-0.5)


def test_the_shaped_loss_is_finite_at_ten_thousand_nats():
    logps = torch.tensor([[0.0, -1e4]], requires_grad=True)
    loss = shaped_policy_gradient_loss(logps, torch.tensor([[True, True]]), torch.tensor([1.0]), 0.1)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(logps.grad).all()


# ------------------------------------------------------------------------------------------ CHORD-mu


def test_all_sft_goes_to_the_demonstration_and_all_rl_to_the_reward():
    sft, _ = trained("chord-mu", BLUE_IS_BEST, mu=1.0, valley=1.0)
    rl, _ = trained("chord-mu", BLUE_IS_BEST, mu=0.0, valley=0.0)
    assert sft[RED] > 0.8 and rl[BLUE] > 0.5 > rl[RED]


def test_the_share_of_sft_falls_during_the_run_and_both_kinds_fill_half_a_step():
    _, record = trained("chord-mu", BLUE_IS_BEST, 10, decay=0.5)
    shares = [entry["mu"] for entry in record.history]
    assert shares == pytest.approx([decayed_share(step / 5, 0.9, 0.05) for step in range(10)])
    assert (record.completions, record.sampled, record.settings["mu"]) == (320, 160, 0.9)


# ------------------------------------------------------------------------------------------ HPT


def test_prompts_that_nothing_solves_are_taught_by_their_demonstration():
    probs, record = trained("hpt", scored(0.1, 0.8, 0.2, 0.3, 0.0), 15)
    assert probs[RED] > 0.7
    assert record.completions == 15 * 32 and record.sampled == 4 * record.completions and record.extra_forwards == 0


def test_prompts_that_are_solved_are_left_to_the_policy_gradient():
    """All samples are right, so no advantage either: nothing moves, whatever is demonstrated."""
    probs, record = trained("hpt", scored(*[1.0] * 5), 5, optim="sgd")
    assert_close(probs, REFERENCE)
    assert record.completions == record.sampled == record.extra_forwards == 5 * 32


def test_the_gate_says_how_many_may_be_solved_before_the_samples_are_learned_from():
    """Blue solves. At gate 1 every prompt is taught red; at gate 0 those with a blue sample go to blue."""
    always, _ = trained("hpt", BLUE_IS_BEST, 15, gate=1.0)
    seldom, record = trained("hpt", BLUE_IS_BEST, 15, gate=0.0, sft_weight=0.0)
    assert always[RED] > 0.7 and seldom[BLUE] > REFERENCE[BLUE] + 0.1
    assert record.history[-1]["rollout/unsolved"] < record.history[0]["rollout/unsolved"] < 1
    assert record.completions == 15 * 32


# ------------------------------------------------------------------------------------------ LUFFY


def rows_of_a_step(monkeypatch, reward, **settings):
    """What the first step of LUFFY learns from: groups of own samples, each with its demonstration behind."""
    fed, original = [], FedTrainer.batch
    monkeypatch.setattr(FedTrainer, "batch", lambda self, examples: fed.append(examples) or original(self, examples))
    trained("luffy", reward, 1, 12, completions=3.0, **settings)
    rows = [row for (row,) in fed[0]]
    return [rows[at : at + 4] for at in range(0, len(rows), 4)]


@pytest.mark.parametrize("in_group", [0.0, 1.0])
def test_a_demonstration_is_scored_as_its_group_and_counts_in_the_baseline_or_not(in_group, monkeypatch):
    values = [0.9, 0.1, 0.2, 0.3, 0.0]
    groups = rows_of_a_step(monkeypatch, scored(*values), in_group=in_group)
    assert len(groups) == 3
    for *own, shown in groups:
        assert [row.role for row in (*own, shown)] == ["scored"] * 3 + ["demonstration"]
        scores = [values[IDS.index(row.completion_ids[0])] for row in own]
        baseline = (sum(scores) + 0.9 * in_group) / (3 + in_group)
        assert [row.score for row in own] == pytest.approx([score - baseline for score in scores])
        assert shown.score == pytest.approx(0.9 - baseline)
        assert all(row.reference_logps == pytest.approx(math.log(REFERENCE[IDS.index(row.completion_ids[0])]), abs=1e-4)
                   for row in own)  # fmt: skip


def test_a_demonstration_that_scores_best_is_learned_and_a_bad_one_is_not():
    best, record = trained("luffy", scored(1.0, 0.2, 0.2, 0.2, 0.2), 15)
    bad, _ = trained("luffy", scored(0.0, 1.0, 0.2, 0.2, 0.2), 15)
    assert best[RED] > REFERENCE[RED] + 0.2 and bad[RED] < REFERENCE[RED] - 0.1
    assert (record.completions, record.sampled) == (15 * 32, 15 * 28)


def test_equal_scores_teach_nothing_not_even_the_demonstration():
    probs, _ = trained("luffy", scored(*[0.6] * 5), 3, optim="sgd")
    assert_close(probs, REFERENCE)


# ------------------------------------------------------------------------------------------ refusals


def test_samples_that_nobody_can_score_are_refused_before_anything_is_trained():
    shown = {"demonstrations": TABLES["demonstrations"]}
    for name in ("hpt", "luffy"):
        with pytest.raises(InputError, match=f"The feedback of {name} must have pairs.*; got no rows"):
            check_recipes(RECENT_METHODS[name], shown)
        check_recipes(RECENT_METHODS[name], TABLES)
    with pytest.raises(InputError, match="must have a reward function or pairs to train one; got neither"):
        run([Job(BanditPolicy(), RECENT_METHODS["hpt"].stages[0], shown, {"learning_rate": 0.1}, 1)], TOKENS)

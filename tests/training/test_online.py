"""Sampling recipes on a bandit whose every probability is known, and by hand."""

import gc
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from enumerable import PROMPT, REFERENCE, TABLES, TOKENS, WORDS, BanditPolicy, scored
from torch.testing import assert_close

from uftlab.course import bandit
from uftlab.errors import InputError
from uftlab.losses import leave_one_out, policy_gradient_loss
from uftlab.rows.tokens import Completion
from uftlab.training import online
from uftlab.training.catalogue import PIPELINE_METHODS
from uftlab.training.online import Rollouts, Sample, pairs_from_samples
from uftlab.training.recipes import Task
from uftlab.training.stages import Job, run

REWARDS = torch.tensor([0.1, 0.9, 0.8, 0.2, 0.0])


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """The library collects garbage after each run; half a second each, unless what the imports left is set aside."""
    gc.freeze()
    yield
    gc.unfreeze()


def trained(name, rewards, steps=60, batch=32, seed=0, optim="adamw_torch_fused", **settings):
    """The probabilities after the last stage of a method on the bandit, and its record."""
    policy, stage = BanditPolicy(), PIPELINE_METHODS[name].stages[-1]
    settings = {"learning_rate": 0.1, "beta": 1.0, **settings}
    job = Job(policy, stage, TABLES, settings, steps, seed, scored(*rewards))
    (made,) = run([job], TOKENS, batch=batch, logging_steps=1, optim=optim)
    return policy.probs(), made.record


# ------------------------------------------------------------------------------------------ towards the closed form


def reachable(beta):
    """Scores whose fit is exactly the KL-regularised optimum, since their total probability is 1."""
    return torch.sigmoid(REWARDS - beta * bandit.log_partition(REFERENCE, REWARDS / 1.0, beta))


def test_una_online_goes_to_the_fit_of_the_scores():
    """Implicit rewards meet logit(score) = r - beta log Z at pi*, whatever completions are sampled how often."""
    beta = 0.4
    goal = bandit.optimum(REFERENCE, REWARDS, beta)
    probs, record = trained("una-online", reachable(beta).tolist(), 90, beta=beta)
    assert bandit.kl(REFERENCE, goal) > 0.3
    assert bandit.kl(probs, goal) < 0.01 and (probs - goal).abs().max() < 0.03
    assert record.completions == record.sampled == 90 * 32


def test_the_authors_variant_does_not_stop_at_the_fit():
    """Its implicit rewards start from 0 at each refresh, so good completions are pushed up for ever."""
    beta = 0.4
    goal = bandit.optimum(REFERENCE, REWARDS, beta)
    probs, _ = trained("una-online-rollout", reachable(beta).tolist(), 90, beta=beta)
    assert bandit.kl(probs, goal) > 0.1
    assert bandit.kl(probs, REFERENCE) > 1.3 * bandit.kl(goal, REFERENCE)


def test_the_authors_variant_is_the_papers_where_samples_are_drawn_once():
    papers, _ = trained("una-online", REWARDS.tolist(), 12, refresh=12.0)
    authors, _ = trained("una-online-rollout", REWARDS.tolist(), 12, refresh=12.0)
    assert_close(papers, authors)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_rloo_goes_to_the_kl_regularised_optimum(beta):
    goal = bandit.optimum(REFERENCE, REWARDS, beta)
    probs, record = trained("rloo", REWARDS.tolist(), 70, 64, beta=beta)
    assert bandit.kl(probs, goal) < 0.02 < 0.1 * bandit.kl(REFERENCE, goal) + 0.02
    assert bandit.gap(probs, REFERENCE, REWARDS, beta) < 0.15 * bandit.gap(REFERENCE, REFERENCE, REWARDS, beta) + 5e-3
    assert record.sampled == 70 * 64


def test_rs_dpo_prefers_what_scores_higher():
    probs, record = trained("rs-dpo", REWARDS.tolist(), 40, beta=0.2, completions=16.0)
    assert probs @ REWARDS > REFERENCE @ REWARDS + 0.3
    assert record.sampled == 16  # one prompt


def test_uft_online_pulls_the_demonstration_up_beside_the_samples():
    """Red is demonstrated and scores 0.1 when sampled: with the demonstration it ends higher than without."""
    with_it, record = trained("uft-online", REWARDS.tolist(), 30)
    without, _ = trained("una-online", REWARDS.tolist(), 30)
    assert with_it[0] > without[0] + 0.05
    assert (record.completions, record.sampled) == (30 * 32, 30 * 16)


# ------------------------------------------------------------------------------------------ nothing to learn


@pytest.mark.parametrize(("name", "value"), [("una-online", 0.8), ("una-online-rollout", 0.8), ("rloo", 0.8)])
def test_a_constant_reward_does_not_move_the_policy_beyond_its_interval(name, value):
    """Five seeds: the interval of each probability holds the reference's; 99 %, as there are five words.

    Plain gradient descent: a constant times E[grad log pi] is 0 on the average, but Adam's steps are more like signs,
    and rare words, whose gradient is mostly small and negative, drift down by them.
    """
    from uftlab.study.results import interval

    runs = torch.stack(
        [trained(name, [value] * 5, 12, seed=seed, learning_rate=0.3, optim="sgd")[0] for seed in range(5)]
    )
    for word in range(5):
        found = interval(runs[:, word].tolist(), 0.99)
        assert found.low - 1e-6 <= REFERENCE[word] <= found.high + 1e-6
    assert (runs - REFERENCE).abs().max() < 0.05


def test_a_constant_reward_gives_no_advantage_where_policy_is_reference():
    assert_close(leave_one_out(torch.full((2, 4), 0.7)), torch.zeros(2, 4))


# ------------------------------------------------------------------------------------------ the dial


def rollouts(refresh, steps=6):
    stage = PIPELINE_METHODS["una-online"].stages[-1]
    settings = {"learning_rate": 0.1, "refresh": refresh}
    return Rollouts(
        Task(BanditPolicy(), stage, TABLES, TOKENS, settings, steps, 0, "/tmp", 8, reward=scored(*REWARDS)), 8
    )


@pytest.mark.parametrize(("refresh", "drawn"), [(1.0, [8] * 6), (4.0, [32, 16]), (6.0, [48]), (99.0, [48])])
def test_samples_are_drawn_for_as_many_steps_as_the_dial_says(refresh, drawn):
    own = rollouts(refresh)
    assert [len(own.draw(step)) for step in range(0, 6, int(refresh))] == drawn
    assert own.sampled == 48


@pytest.mark.parametrize("refresh", [1.0, 3.0, 6.0])
def test_each_sample_is_learned_from_once_whatever_the_dial(refresh, monkeypatch):
    calls, original = [], online.sample

    def counted(policy, *args):
        calls.append(policy.probs())
        return original(policy, *args)

    monkeypatch.setattr(online, "sample", counted)
    _, record = trained("una-online", REWARDS.tolist(), 6, 8, refresh=refresh)
    assert len(calls) == 6 / refresh and record.sampled == record.completions == 48
    assert_close(calls[0], REFERENCE)
    assert all(not torch.equal(a, b) for a, b in pairwise(calls[1:]))  # policies of their time


def test_a_step_that_cannot_hold_a_group_is_refused():
    with pytest.raises(InputError, match="hold 4 completions of a prompt; got 2"):
        trained("rloo", REWARDS.tolist(), 2, 2)


def test_beta_in_nats_is_read_off_the_first_samples():
    _, record = trained("una-online", REWARDS.tolist(), 2, 63, beta_nats=2.2, learning_rate=0.0)
    median = record.settings.pop("beta")
    assert "beta_nats" not in record.settings
    likely = [2.2 / -p for p in REFERENCE.log().tolist()]
    assert min(abs(median - value) for value in likely) < 0.01


def test_what_was_sampled_is_logged():
    _, record = trained("rloo", [0.25] * 5, 3, 8)
    assert [entry["rollout/score"] for entry in record.history] == [0.25] * 3
    assert record.history[0]["rollout/tokens"] == 2


# ------------------------------------------------------------------------------------------ by hand


def test_leave_one_out_by_hand():
    """1 against the mean of 0 and 0, then 0 against the mean of 1 and 0."""
    assert_close(leave_one_out(torch.tensor([[1.0, 0.0, 0.0]])), torch.tensor([[1.0, -0.5, -0.5]]))


def test_the_gradient_is_reinforce_on_fresh_samples_and_none_beyond_the_clip():
    logps = torch.tensor([-2.0, -2.0, -2.0, -2.0], requires_grad=True)
    rollout = torch.tensor([-2.0, -2.0, -3.0, -1.0])  # the third is e times as likely by now, the fourth 1 / e
    advantages = torch.tensor([1.5, -0.5, 2.0, -2.0])
    loss = policy_gradient_loss(logps, rollout, advantages, 0.2)
    assert_close(loss.detach(), torch.tensor([-1.5, 0.5, -2.4, 1.6]))
    loss.sum().backward()
    assert_close(logps.grad, torch.tensor([-1.5, 0.5, 0.0, 0.0]))


def test_advantages_pay_for_kl():
    """Two samples of equal score; the policy likes the first 1 nat more than the reference, beta 0.5: -1/2 and 1/2."""
    own = rollouts(1.0)
    own.group = 2
    own.rollout_logps, own.reference_logps = (lambda rows: [-1.0, -2.0]), (lambda rows: [-2.0, -2.0])
    rows = [Completion((1,), (2,), "scored", 0.7), Completion((1,), (3,), "scored", 0.7)]
    made = online.with_advantages(own, rows, 0.5)
    assert [row.score for row in made] == pytest.approx([-0.5, 0.5])
    assert [row.reference_logps for row in made] == [-1.0, -2.0]


def sample_of(text, score, prompt=PROMPT):
    return Sample(prompt, text, Completion((1,), (2,), "scored", score))


def test_pairs_are_kept_where_scores_differ_enough():
    """At tau 0.2: 0.4 apart gives sigma(2) = 0.881, 0.3 apart sigma(1.5) = 0.818, below 0.85."""
    drawn = [sample_of("a", 0.9), sample_of("b", 0.5), sample_of("c", 0.6), sample_of("d", 0.0, "other")]
    drawn.append(sample_of("a", 0.9))  # drawn twice
    kept = pairs_from_samples(drawn, 0.2, 0.85)
    assert kept == [{"prompt": PROMPT, "chosen": "a", "rejected": "b"}]


def test_no_pair_at_all_is_one_clear_error():
    with pytest.raises(InputError, match="RS-DPO must find pairs .*; got none among 4 samples at threshold 0.85"):
        trained("rs-dpo", [0.5] * 5, 2)


def test_words_of_the_bandit_are_what_the_policy_says_they_are():
    """What these tests rest on: samples follow the probabilities, and log-probabilities are those of the words."""
    own = rollouts(1.0)
    rows = own.draw(0)
    logps = own.reference_logps(rows)
    known = dict(zip(WORDS, REFERENCE.log().tolist(), strict=True))
    for row, value in zip(rows, logps, strict=True):
        assert value == pytest.approx(known[TOKENS.tokenizer.decode([row.completion_ids[0]])], abs=1e-5)


def test_with_adapters_the_reference_is_the_model_without_them(tmp_path):
    """Samples come from the adapted model, ratios are against the base under it."""
    from uftlab.models.policies import load_base, with_lora

    policy = with_lora(load_base(0), 4)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1.0)
    stage = PIPELINE_METHODS["una-online"].stages[-1]
    task = Task(policy, stage, TABLES, TOKENS, {}, 1, 0, str(tmp_path), 8, reward=lambda x, y: [0.5] * len(y))
    own = Rollouts(task, 8)
    rows = own.draw(0)
    base = Rollouts(replace(task, policy=load_base(0)), 8)
    assert_close(own.reference_logps(rows), base.rollout_logps(rows), atol=1e-4, rtol=1e-4)
    assert max(abs(a - b) for a, b in zip(own.rollout_logps(rows), own.reference_logps(rows), strict=True)) > 1e-2

"""Merges against numbers by hand, and the two runs that are merged."""

import copy

import pytest
import torch
from enumerable import REFERENCE, TABLES, TOKENS, BanditPolicy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from uftlab.engine.trainer import Quiet
from uftlab.training.catalogue import PIPELINE_METHODS
from uftlab.training.merging import merged_apart, task_arithmetic, ties
from uftlab.training.methods import Stage
from uftlab.training.recipes import Task
from uftlab.training.stages import Job, run


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_task_arithmetic_by_hand():
    assert_close(task_arithmetic([vector(1, 2), vector(3, -4)], (1.0, 0.5)), vector(2.5, 0))


def test_ties_by_hand():
    """Density 1/2 keeps (4, 0, 2, 0) and (-3, -3, 0, 0); the sums have signs +, -, +: each sign has one that has it."""
    first, second = vector(4, -1, 2, 0.1), vector(-3, -3, 1, 0.2)
    assert_close(ties([first, second], (1.0, 1.0), 0.5), vector(4, -3, 2, 0))


def test_ties_averages_those_that_agree_and_weighs_what_it_averages():
    """All kept: (1, 2, -6) and (3, -1, 2), signs +, +, -: means of (1, 3), of 2 alone, of -6 alone; weights 1 and 2."""
    deltas = [vector(1, 2, -6), vector(3, -1, 2)]
    with pytest.warns(UserWarning, match="no pruning"):
        assert_close(ties(deltas, (1.0, 1.0), 1.0), vector(2, 2, -6))
        assert_close(ties(deltas, (1.0, 2.0), 1.0), vector((1 + 6) / 2, 2, -6))


def test_ties_trims_by_magnitude_over_all_weights_at_once():
    assert_close(ties([vector(9, 8, 7, 0.1, -0.2, 0.3)] * 2, (1.0, 1.0), 0.5), vector(9, 8, 7, 0, 0, 0))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=2, max_size=3), st.data())
def test_ties_agrees_with_plain_python(columns, data):
    deltas = [[round(x, 3) or 0.001 for x in column] for column in columns]
    for column in deltas:  # magnitudes that differ, so that what is trimmed is not a matter of taste
        column[:] = [x + (1e-5 * i if x > 0 else -1e-5 * i) for i, x in enumerate(column)]
    weights = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=len(deltas), max_size=len(deltas)))
    kept = []
    for column in deltas:
        largest = sorted(column, key=abs)[-2:]
        kept.append([x if x in largest else 0.0 for x in column])
    expected = []
    for position in zip(*kept, strict=True):
        sign = 1 if sum(position) >= 0 else -1
        agree = [w * x for w, x in zip(weights, position, strict=True) if x * sign > 0]
        expected.append(sum(agree) / max(1, len(agree)))
    assert_close(ties([vector(*c) for c in deltas], weights, 0.5), vector(*expected))


def task(stage, steps=20, **values):
    policy = BanditPolicy()
    values = {"learning_rate": 0.02, "beta": 0.5, **values}
    return Task(policy, stage, TABLES, TOKENS, values, steps, 0, "/tmp", 8, callbacks=(Quiet(),))


def test_paft_is_the_base_plus_the_weighted_deltas_of_two_runs():
    """Each run by hand from the same base, then added by hand."""
    settings = {"sft_learning_rate": 0.05, "l1": 0.0, "preference_weight": 0.3}
    own = task(PIPELINE_METHODS["paft"].stages[0], **settings)
    record = merged_apart(own, task_arithmetic)
    base, expected = REFERENCE.log(), REFERENCE.log().clone()
    for stage, weight, rate in ((Stage("sft", 1.0), 1.0, 0.05), (Stage("dpo", 0.0), 0.3, 0.02)):
        alone = BanditPolicy()
        values = {"learning_rate": rate, "beta": 0.5}
        run([Job(alone, stage, TABLES, values, 10)], TOKENS, batch=8)
        expected += weight * (alone.logits.detach() - base)
    assert_close(own.policy.logits.detach(), expected)
    assert (record.completions, record.extra_runs) == (160, 0)


def test_a_large_penalty_keeps_the_sft_delta_small():
    def moved(l1):
        own, seen = task(PIPELINE_METHODS["paft"].stages[0], l1=l1, sft_learning_rate=0.05), []

        def only_sft(deltas, weights):
            seen.append(copy.deepcopy(deltas[0]))
            return deltas[0]

        merged_apart(own, only_sft)
        return seen[0].abs().sum().item()

    assert moved(10.0) < 0.2 * moved(0.0)

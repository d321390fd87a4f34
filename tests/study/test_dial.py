"""The dial from offline to online: what is the same at its offline end, and what the stored runs are."""

import json

import pytest
import torch

from uftlab.models.logps import read_logps
from uftlab.models.policies import load_base
from uftlab.study import dial
from uftlab.study.results import interval


@pytest.fixture(scope="module")
def frame():
    return dial.table(dial.stored())


def half(prompts, answers):
    """A judge that likes answers with an even number of words."""
    return [float(len(answer.split()) % 2 == 0) for answer in answers]


@pytest.fixture(autouse=True)
def few_questions(monkeypatch):
    asked = dial.held_out_prompts(0)[:20]
    monkeypatch.setattr(dial, "held_out_prompts", lambda world: asked)


def climbed(way, refresh, steps=2):
    return dial.climb(dial.WAYS[way], refresh, 0, half, steps, at=(steps,))


def test_what_is_sampled_once_does_not_know_its_reference_or_its_kl():
    """Drawn before the first step, log pi / pi_ref of a sample is 0; drawn later it is not. Step one is warm-up."""
    for way, other in dial.ONCE.items():
        assert climbed(way, 2) == climbed(other, 2)
    assert climbed("una-rollout", 1, 3) != climbed("una", 1, 3)


def test_the_start_has_no_kl_and_the_kl_is_that_of_its_own_samples():
    points = climbed("una", 1)
    assert [point["step"] for point in points] == [0, 2] and points[0]["kl"] == 0
    assert points[1]["kl"] != 0 and all(0 <= point[name] <= 1 for point in points for name in ("proxy", "true"))


def test_the_kl_is_the_mean_log_ratio_of_the_policys_samples(monkeypatch):
    base, policy = load_base(0), load_base(0)
    with torch.no_grad():
        policy.model.norm.weight.mul_(1.3)  # a sharper policy
    drawn = []

    def remember(model, rows):
        drawn.append((model, rows))
        return read_logps(model, rows)

    monkeypatch.setattr(dial, "read_logps", remember)
    found = dial.measured(policy, base, dial.held_out_prompts(0), half, half_of_none)
    (_, rows), _ = drawn
    own = [float(read_logps(policy, [row])[0] - read_logps(base, [row])[0]) for row in rows]
    assert found["kl"] == pytest.approx(sum(own) / len(own), abs=1e-3) and found["kl"] > 0


def half_of_none(prompts, answers):
    return [0.5] * len(answers)


def test_the_grid_leaves_out_what_would_be_run_twice():
    runs = dial.grid()
    assert len(set(runs)) == len(runs) == len(dial.WORLDS) * (4 * 4 - 2 + 2)
    assert not [one for one in runs if one[1] in dial.ONCE and one[2] == dial.STEPS]


def test_all_of_the_grid_is_stored_in_its_steps():
    stored = dial.stored()
    assert {(run["world"], run["way"], run["refresh"]) for run in stored} == set(dial.grid())
    for run in stored:
        assert [point["step"] for point in run["points"]] == [0, *dial.AT] and run["points"][0]["kl"] == 0


def test_the_table_has_every_run_and_those_that_stand_for_two(frame):
    assert len(frame) == (len(dial.grid()) + len(dial.ONCE) * len(dial.WORLDS)) * (1 + len(dial.AT))
    same = ["world", "step", "kl", "proxy", "true"]
    for way, other in dial.ONCE.items():
        pair = [frame[(frame["way"] == name) & (frame["refresh"] == dial.STEPS)][same] for name in (way, other)]
        assert pair[0].reset_index(drop=True).equals(pair[1].reset_index(drop=True))


def test_changes_and_differences_are_taken_within_worlds(frame):
    def last(way, refresh, step=dial.STEPS):
        runs = sorted(
            (r for r in json.loads(dial.STORED.read_text())["runs"] if (r["way"], r["refresh"]) == (way, refresh)),
            key=lambda run: run["world"],
        )
        return [next(p["true"] for p in run["points"] if p["step"] == step) for run in runs]

    start, una, rloo = last("una", 1, 0), last("una", 1), last("rloo", 10)
    assert dial.change(frame, "una", 1, "true") == interval([b - a for a, b in zip(start, una, strict=True)])
    found = dial.difference(frame, ("una", 1), ("rloo", 10), "true")
    assert found == interval([a - b for a, b in zip(una, rloo, strict=True)])
    curve = dial.curve(frame, "rloo", 10, "true")
    assert list(curve["step"]) == [0, *dial.AT] and curve["mean"].iloc[-1] == pytest.approx(sum(rloo) / len(rloo))

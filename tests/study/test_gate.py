"""The share of the gradient that the implicit reward contributes: by hand, at its ends, and as it is stored."""

import math
from dataclasses import replace

import pytest
import torch
from trials import TINY, WeightProbe, random_base, trial_of

from uftlab.losses.rewards import cross_entropy_gate, squared_error_gate
from uftlab.reports import mapped
from uftlab.study import cohort, gate
from uftlab.study.gate import reward_share
from uftlab.study.trials import frozen


def share(rewards, scores, of=squared_error_gate):
    return reward_share(torch.tensor(rewards), torch.tensor(scores), of)


def test_shares_by_hand():
    """s = 3/4 at r = log 3. Squared error: 2 (1/4) (3/16) = 3/32 for 1/4. Cross-entropy: 1/4 for 1/2."""
    assert share([math.log(3)], [1.0]) == pytest.approx((1 / 4 - 3 / 32) / (1 / 4 + 1 / 4 - 3 / 32))
    assert share([math.log(3)], [1.0]) == pytest.approx(5 / 13)
    assert share([math.log(3)], [1.0], cross_entropy_gate) == pytest.approx(1 / 3)
    # two rows, score 0 and 1/2, s = 3/4: w = -3/4 for -1/2 and -1/4 for 0; added 1/4 + 1/4, fixed 1/2
    assert share([math.log(3)] * 2, [0.0, 0.5], cross_entropy_gate) == pytest.approx(1 / 2)


def test_no_reward_is_no_share_and_closed_gates_are_a_half():
    assert share([0.0, 0.0], [1.0, 0.3]) == 0.0
    assert share([40.0, -40.0], [1.0, 0.0]) == pytest.approx(0.5)
    assert share([0.01, -0.01], [1.0, 0.0]) < 0.01 < share([1.0, -1.0], [1.0, 0.0])


def test_the_points_are_those_of_the_map_and_a_stronger_beta_has_a_larger_share():
    made = gate.trials()
    assert len(made) == 10 and {t.seed for t in made} == {1000}
    assert {t.method for t in made} == set(gate.GATES) and {t.profile.name for t in made} == {"map-E3"}


@pytest.fixture
def tiny(monkeypatch):
    """Random bases and no evaluator: only training and reading are real."""
    monkeypatch.setattr(cohort, "load_base", random_base)
    monkeypatch.setattr(cohort, "Evaluator", WeightProbe)
    cohort.materials.cache_clear()
    yield
    cohort.materials.cache_clear()


def test_a_trial_is_read_on_its_way_and_the_table_and_page_hold_what_was_read(tiny):
    runs = []
    for nats in (1e-3, 10.0):
        settings = frozen([{"learning_rate": 1e-2, "beta_nats": nats}])
        runs.append(gate.measure(replace(trial_of("uft"), settings=settings, profile=replace(TINY, steps=8))))
    points = {(p["rows"], p["step"]): p for p in runs[1]["points"]}
    assert set(points) == {(rows, step) for rows in ("demonstrations", "feedback") for step in (2, 4, 6, 8)}
    found = gate.table({"runs": runs}).set_index("nats")
    last = found.loc[10.0]
    assert last["demonstrations: share"] == points["demonstrations", 8]["share"] > 0
    assert last["feedback: share, on average"] == pytest.approx(
        sum(points["feedback", s]["share"] for s in (2, 4, 6, 8)) / 4
    )
    assert (found.loc[1e-3].filter(like="share") < found.loc[10.0].filter(like="share")).all()
    page = "\n".join(mapped._of_the_gradient({"world": 0, "rows": 24, "runs": runs}))
    shown = [f"{100 * last[f'feedback: share{when}']:.2g} %" for when in ("", ", on average")]
    assert f"| {' | '.join(shown)} |" in page
    assert mapped._of_the_gradient(None) == []

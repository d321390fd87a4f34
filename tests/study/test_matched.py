"""The control at one learning rate: who runs with what, and who is compared with whom."""

import pytest

from uftlab.study import matched
from uftlab.training.settings import tuned_settings


def test_only_the_learning_rate_is_lent():
    made = matched.at_rate_of("l2-start", "sft-full", world=5, draw=1)
    (own,), (lent,) = tuned_settings("l2-start", 1), tuned_settings("sft-full", 1)
    assert own["learning_rate"] != lent["learning_rate"]
    assert made.stage_settings() == [{**own, "learning_rate": lent["learning_rate"]}]
    assert (made.method, made.seed, made.draw, made.profile.name) == ("l2-start", 5, 1, "matched")


def results_of(name, values):
    return [{"method": name, "seed": w, "draw": 0, "metrics": {"plain/mc2": v}, "costs": {}} for w, v in values.items()]


def test_each_is_compared_with_the_tuned_other_and_not_with_the_other_at_its_rate():
    lent = results_of("a", {0: 0.5, 1: 0.6, 2: 0.7}) + results_of("b", {0: 9.0, 1: 9.1, 2: 9.3})
    tuned = results_of("a", {0: 1.0, 1: 1.1, 2: 1.3}) + results_of("b", {0: 0.4, 1: 0.4, 2: 0.4})
    rows = matched.differences((("a", "b"), ("b", "a")), lent, tuned, ["plain/mc2"])
    assert [row["comparison"] for row in rows] == ["a minus b", "b minus a"]
    assert rows[0]["mean"] == pytest.approx(0.2) and rows[1]["mean"] == pytest.approx(8.0)
    assert all(row["holm"] >= row["p"] for row in rows)

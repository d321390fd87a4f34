"""Notebook 07, what tuning found: every setting is in one third, and the table holds the numbers of the points."""

import pytest

from uftlab.course import tuned


@pytest.fixture(scope="module")
def points():
    return tuned.settings()


def test_every_setting_of_four_draws_is_drawn_once_in_one_third(points):
    assert len(points) == 4 * 18 and points["third"].nunique() == 3
    drawn = sum(len(trace.x) for trace in tuned.by_strength(points).data)
    assert drawn == len(points)
    rates = points.groupby("third")["learning_rate"].agg(["min", "max"]).sort_values("min")
    assert (rates["max"].iloc[:-1].to_numpy() < rates["min"].iloc[1:].to_numpy()).all()


def test_strong_settings_learn_less_in_each_third(points):
    table = tuned.weak_and_strong(points).set_index("learning rate")
    assert table["settings"].sum() == len(points)
    for name, own in points.groupby("third"):
        weak = own[own["strength"] < 1]["both"].mean()
        assert table.loc[name, "strength below 1"] == pytest.approx(weak) and table.loc[name, "1 or more"] < weak


def test_the_chosen_strengths_keep_the_ratio_of_the_gates_between_a_half_and_nothing(points):
    table = tuned.chosen(points).set_index("method")
    low, high = (float(x) for x in table.loc["uft", "squared error pulls so many times as hard"].split(" to "))
    assert 0 < low <= high == 0.5  # 2 s (1 - s) at s = 1/2


def test_the_swap_is_one_of_the_known_outcomes():
    assert tuned.swapped()["verdict"] in tuned.OUTCOMES

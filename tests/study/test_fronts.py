"""Fronts: which trials nothing of the same method and draw beats, and the most truth at each level of skill."""

import numpy as np
import pytest

from uftlab.study.fronts import SKILL, TRUTH, on_front, points, reached


def trial(method, draw, skill, truth):
    return {"method": method, "draw": draw, "stages": [{}], "metrics": {SKILL: skill, TRUTH: truth}}


def test_a_front_has_what_nothing_beats_on_both():
    x, y = np.array([1.0, 2.0, 1.0, 2.0, 0.5]), np.array([3.0, 2.0, 2.0, 2.0, 3.0])
    assert on_front(x, y).tolist() == [True, True, False, True, False]  # equal points do not beat each other


def test_fronts_are_of_one_method_in_one_draw_and_the_base_has_none():
    made = [trial("uft", 0, 0.5, 0.5), trial("uft", 0, 0.4, 0.4), trial("uft", 1, 0.4, 0.4), trial("sft", 0, 0.1, 0.1)]
    frame = points([*made, {**trial("base", 0, 0.9, 0.9), "stages": []}])
    assert frame["front"].tolist() == [True, False, True, True]


def test_the_most_truth_at_a_level_is_the_mean_over_draws_that_get_there():
    made = [trial("uft", 0, 0.5, 0.5), trial("uft", 0, 0.3, 0.8), trial("uft", 1, 0.3, 0.6)]
    found = reached(points(made), (0.3, 0.4, 0.6)).set_index(SKILL)
    assert found["truth"].tolist()[:2] == pytest.approx([0.7, 0.5]) and np.isnan(found.loc[0.6, "truth"])
    assert found["draws"].tolist() == [2, 1, 0]

"""How many questions a gain needs: by hand, just enough, and the same in picture and words."""

import math

import pytest

from uftlab.course import resolution


def test_what_is_resolved_by_hand():
    """20 % of 541 questions changed, a gain of 4: 196 sqrt(0.1984 / 541) = 3.75; three seeds: 4.303 / sqrt 3."""
    found = resolution.half_widths(4, 20, 541, 3, 1)
    assert found["questions"] == pytest.approx(196 * math.sqrt(0.1984 / 541))
    assert found["seeds"] == pytest.approx(4.3027 / math.sqrt(3), abs=1e-3)
    assert math.isinf(resolution.half_widths(4, 20, 541, 1, 1)["seeds"])
    assert resolution.half_widths(20, 2, 100, 3, 1)["questions"] == pytest.approx(196 * math.sqrt(0.16 / 100))


@pytest.mark.parametrize(("gain", "changed"), [(4, 20), (1, 10), (19.4, 19.4)])
def test_the_questions_that_are_enough_are_just_enough(gain, changed):
    enough = resolution.needed(gain, changed)
    assert resolution.half_widths(gain, changed, enough, 3, 1)["questions"] <= gain
    assert resolution.half_widths(gain, changed, enough - 1, 3, 1)["questions"] > gain


def test_picture_and_words_agree():
    place = {"gain": 4.0, "changed": 20.0, "questions": 64, "seeds": 3.0, "spread": 1.0}
    fig, said = resolution.picture(**place), resolution.words(**place)
    half = resolution.half_widths(*place.values())
    assert fig.data[2].error_y.array[0] == pytest.approx(half["questions"]) and f"±{half['questions']:.1f}" in said
    assert "Not settled." in said and "higher" in resolution.words(**{**place, "questions": 817})
    assert "with one seed" in resolution.words(**{**place, "seeds": 1.0})

"""What notebook 04 tells of the first study is what was measured again: every number, and the figures' source."""

import re

import nbformat
import pytest

from uftlab.course import first_study
from uftlab.course.notebooks import notebook_paths
from uftlab.errors import InputError
from uftlab.study.comparisons import holm

CELLS = nbformat.read(notebook_paths("04")[0], as_version=4).cells
LESSON = " ".join(
    " ".join(c.source.split()) for c in CELLS if c["id"].startswith("seven") and c.cell_type == "markdown"
)
POINTS = dict(re.findall(r"\*\*(\d)\. [^*]+\*\*(.*?)(?=\*\*\d\. |\*\*What |\Z)", LESSON))
MEASURED = {str(n): point for n, point in enumerate(first_study._points(), start=1)}


def known(point, number):
    """Whether a number of the text is one of a point, rounded to the same digits, or one of its settings."""
    settings = [v for own in point["settings"].values() for v in (own if isinstance(own, list) else [own])]
    numbers = [v for row in point["rows"] for v in row["ours"]] + [v for v in settings if not isinstance(v, str)]
    digits = len(number.partition(".")[2])
    return any(f"{abs(value):.{digits}f}" == number for value in numbers)


def test_the_lesson_has_seven_points_and_says_how_each_could_have_been_noticed():
    assert list(POINTS) == list("1234567")
    assert all(text.count("*You could have noticed:*") == 1 for text in POINTS.values())


@pytest.mark.parametrize("number", list(MEASURED))
def test_a_number_in_a_point_was_measured(number):
    stated = re.findall(r"\d+\.\d+|\d{2,}", POINTS[number])
    assert stated and [value for value in stated if not known(MEASURED[number], value)] == []


def test_a_line_has_its_mean_and_its_interval():
    line = first_study.found(3, "uft − sft-then-dpo, followed and correct")
    assert (line.mean, line.low, line.high) == (0.063543, 0.032565, 0.094521) and line.seeds == 16
    assert first_study.found(2, "base, truth").low is None


def test_an_unknown_line_lists_those_there_are():
    with pytest.raises(InputError, match="base, truth"):
        first_study.found(2, "truth of nobody")


def test_distrust_begins_at_the_base_and_reaches_the_trained_method_at_one_nat():
    table = first_study.distrust()
    assert table.loc[0.0, "truth"] == first_study.found(2, "base, truth").mean
    assert table.loc[1.0, "truth"] >= first_study.found(2, "uft, stored, truth").mean


def test_the_faults_beside_the_papers_are_those_of_the_audit():
    table = first_study.beside_the_paper().set_index("fault")["our first study"]
    assert len(table) == 7
    assert "-0.000 [-0.003, +0.003]" in table["a control was missing"]
    assert "0.430" in table["a score without the skill"] and "0.429" in table["a score without the skill"]
    assert "0.896" in table["the wrong headline metric"] and "17 of 23" in table["unequal care"]
    assert "9 of 13" in table["many comparisons"] and "6 together" in table["many comparisons"]


def test_the_sentences_carry_holms_correction():
    found = first_study.sentences()
    assert len(found) == 13 and list(found["holm"]) == pytest.approx(holm(list(found["p"])), rel=1e-3)

"""Minutes for a reader: counted by hand on a small notebook, and what each notebook states is what is counted."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from uftlab.course import minutes as course_minutes
from uftlab.course.minutes import LINE, Minutes, minutes, one_hour, rounded, stated, words_in, write_time
from uftlab.course.notebooks import notebook_paths
from uftlab.errors import InputError

WITH_EXERCISES = [path for path in notebook_paths() if "exercise-1-check" in path.read_text(encoding="utf-8")]
MARK = "*Core: part of the one-hour route.*"


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture
def small():
    """120 words of text, 8 of them in a prediction and 11 of them core; 241 of code; 60 folded; a task, an exercise."""
    asked = new_code_cell('widgets.predict("one two three", ["four", "five six"], because=f"{x} seven eight")')
    asked.metadata.jupyter = {"source_hidden": True}
    folded = "<details><summary>Solution</summary> " + "word " * 59 + "</details>"  # the summary is one word more
    line = "**Time:** 5 minutes to read, 5 with the explorer and the exercises."  # 12 words
    cells = [
        new_markdown_cell("word " * 87 + line),
        new_markdown_cell("## Core " + "word " * 10, metadata={"tags": ["core"]}),
        new_markdown_cell("1. word\n\n" + folded, metadata={"tags": ["live"]}),
        new_code_cell("x + " * 120 + "x", metadata={"tags": ["core"]}),
        new_code_cell("", id="exercise-1-check"),
        asked,
    ]
    return new_notebook(cells=cells)


def test_minutes_by_hand(small):
    """120 words are a minute, 241 words of code are one too, 60 folded words half a minute, two tasks six minutes."""
    found = minutes(small)
    assert found.read == pytest.approx(1 + 241 / 240)
    assert found.all == pytest.approx(found.read + 60 / 120 + 6)
    assert found.core == pytest.approx(11 / 120)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("- one *two*, three: four-five.", 4),
        ("$$\na + b\n$$ is $a$", 3),
        ("see [the page](a/long/path.md)", 3),
        ("a <details>hidden\nwords</details> b", 2),
        ("| a | b |\n|---|---|\n| c | d |", 4),
    ],
)
def test_words_by_hand(text, count):
    assert words_in(text) == count


def test_both_numbers_are_rounded_up_to_five():
    assert rounded(Minutes(10.0, 10.1, 0.0)) == (10, 15)


@pytest.mark.parametrize("path", WITH_EXERCISES, ids=lambda path: path.stem)
def test_the_minutes_in_the_first_cell_are_those_that_are_counted(path):
    notebook = read(path)
    assert stated(notebook) == rounded(minutes(notebook)), "run `python -m uftlab.course.minutes`"


def test_minutes_are_written_and_the_rest_of_the_notebook_stays(tmp_path, small):
    path = tmp_path / "small.ipynb"
    nbformat.write(small, path)
    write_time(path)
    after = read(path)
    assert stated(after) == (5, 10)
    assert LINE.sub("", after.cells[0].source) == LINE.sub("", small.cells[0].source)
    assert after.cells[1:] == small.cells[1:]


def test_committed_notebooks_are_written_as_they_are_committed(tmp_path):
    path = tmp_path / WITH_EXERCISES[0].name
    path.write_text(WITH_EXERCISES[0].read_text(encoding="utf-8"), encoding="utf-8")
    write_time(path)
    assert path.read_text(encoding="utf-8") == WITH_EXERCISES[0].read_text(encoding="utf-8")


def test_a_notebook_without_a_line_is_named(tmp_path):
    path = tmp_path / "empty.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Title")]), path)
    with pytest.raises(InputError, match="empty.ipynb"):
        write_time(path)


def test_the_one_hour_route_is_at_most_sixty_minutes():
    route = one_hour()
    assert sum(needed for _, _, needed in route) <= 60
    assert {"00_start", "01_implicit_reward", "02_losses", "03_tiny_world"} <= {name for name, _, _ in route}
    assert all(sections for _, sections, _ in route)


@pytest.mark.parametrize("name", ["01", "02", "03"])
def test_core_sections_say_so(name):
    """Every section of the route begins with a core cell that carries the mark, and no other section has it."""
    cells = read(notebook_paths(name)[0]).cells
    begun = [c for c in cells[1:] if c.cell_type == "markdown" and c.source.startswith("## ")]
    assert len(begun) > 5
    for cell in begun:
        assert ("core" in cell.metadata.get("tags", [])) == (MARK in cell.source), cell["id"]


def test_the_count_does_not_depend_on_the_numbers_that_are_stated(small):
    before = minutes(small)
    small.cells[0].source = re.sub(r"\d+ minutes", "95 minutes", small.cells[0].source)
    assert minutes(small) == before and course_minutes.WORDS == 120

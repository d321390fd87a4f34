"""The teacher's copies and pages say what the notebooks say: solutions, minutes, questions, mistakes."""

import re
from pathlib import Path

import nbformat
import pytest
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.course import minutes, workshop
from uftlab.course.checks import exercises_of_the_course
from uftlab.course.notebooks import notebook_paths

DOCS = Path(__file__).resolve().parents[2] / "docs" / "workshop"


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    out = tmp_path_factory.mktemp("copies")
    ended = CliRunner().invoke(app, ["copies", "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    return out


def cells(folder, path):
    return {cell["id"]: cell for cell in nbformat.read(folder / path.name, as_version=4).cells}


@pytest.mark.parametrize("path", notebook_paths(), ids=lambda path: path.stem)
def test_learners_get_no_solution_and_the_teacher_gets_each_in_its_place(copies, path):
    own = {cell["id"]: cell for cell in nbformat.read(path, as_version=4).cells}
    learners, teacher = (cells(copies / kind, path) for kind in ("without-solutions", "with-solutions"))
    tasks = [name for name in own if re.fullmatch(r"exercise-\d+", name)]
    for name in tasks:
        assert "Solution" not in learners[name].source and "*Hint:*" in learners[name].source
        answer = teacher[f"{name}-answer"].source
        assert answer in own[name].source and "..." not in answer and answer.startswith(("def ", "from ", "import "))
        assert learners[f"{name}-answer"].source == own[f"{name}-answer"].source
    changed = {name for name in own if learners[name].source != own[name].source}
    assert changed == set(tasks)
    assert {n for n in own if teacher[n].source != own[n].source} == {f"{name}-answer" for name in tasks}


def test_copies_are_not_written_over_others(copies):
    ended = CliRunner().invoke(app, ["copies", "--out", str(copies)])
    assert ended.exit_code == 2 and "no copies yet" in ended.stderr
    assert (copies / "with-solutions" / "glossary.md").is_file()


def test_predictions_are_read_from_what_a_notebook_shows_without_a_kernel():
    from uftlab.plots import widgets

    shown = widgets.predict("1 < 2?", ["yes", "no"], "yes", "By counting. Twice.", headless=True)._repr_html_()
    output = nbformat.v4.new_output("display_data", {"text/html": shown})
    cell = nbformat.v4.new_code_cell("", outputs=[output])
    found = workshop.predictions(nbformat.v4.new_notebook(cells=[cell]))
    assert found == [workshop.Asked("1 < 2?", "yes / no", "yes", "By counting. Twice.")]


def test_the_page_of_questions_has_every_notebook_mistake_and_constant_question():
    page = (DOCS / "questions.md").read_text()
    for path in notebook_paths():
        notebook = nbformat.read(path, as_version=4)
        title = re.search(r"^# (.+)$", notebook.cells[0].source, re.M)[1]
        section = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.M | re.S)[1]
        needed = minutes.minutes(notebook)
        assert f"to read {round(needed.read)}, with everything {round(needed.all)}." in section
        for exercise in exercises_of_the_course().get(path.name[:2], []):
            assert [m.name for m in exercise.mistakes if m.name not in section] == []
        for cell in notebook.cells:
            for question in re.findall(r'widgets\.predict\(\s*"([^"]+)"', cell.source):
                assert f"**{question}" in section  # its first line, where it has two


def plans():
    """Heading -> rows of its table as (first minute, last minute, notebook or what else)."""
    page = (DOCS / "README.md").read_text()
    for heading, body in re.findall(r"^## (\d+ minutes)\n(.*?)(?=^## )", page, re.M | re.S):
        rows = re.findall(r"^\| (\d+)-(\d+) \| ([^|]+) \|", body, re.M)
        yield int(heading.split()[0]), [(int(a), int(b), what.strip()) for a, b, what in rows]


def test_the_plans_fill_their_time_and_give_each_notebook_the_minutes_that_it_needs():
    found = dict(plans())
    assert set(found) == {60, 180}
    core = {name[:2]: needed for name, _, needed in minutes.one_hour()}
    for total, rows in found.items():
        assert [a for a, _, _ in rows] == [0, *(b for _, b, _ in rows[:-1])] and rows[-1][1] == total
        taken = {what[:2]: b - a for a, b, what in rows if what[:2].isdigit()}
        assert len(taken) >= 6
        least = {name: core.get(name, 20) for name in taken}
        assert {name: (taken[name], least[name]) for name in taken if taken[name] < least[name]} == {}


def test_every_command_of_the_workshop_pages_exists():
    for path in DOCS.glob("*.md"):
        for name in set(re.findall(r"`uftlab (\w+)", path.read_text())):
            assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0, (path.name, name)

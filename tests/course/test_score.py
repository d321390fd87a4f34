"""What a reader has solved is kept and never lost; a class becomes one table; a file that is no score is named."""

import importlib
import json
import re

import nbformat
import pytest

from uftlab.course import checks, score
from uftlab.course.exercises.forgetting import HOLM, PAIRED_HALF_WIDTH
from uftlab.course.notebooks import notebook_paths
from uftlab.errors import InputError
from uftlab.plots import widgets

COURSE = {number: len(own) for number, own in checks.exercises_of_the_course().items()}


@pytest.fixture(autouse=True)
def another_process(monkeypatch):
    """Nothing is solved or predicted yet."""
    monkeypatch.setattr(checks, "_solved_here", set())
    monkeypatch.setattr(widgets, "PREDICTED", {})


def kept(folder, name="Ada L."):
    checks.score(name, folder)
    paths = list(folder.glob("*.json"))
    return json.loads(paths[0].read_text()) if paths else None


def test_the_exercises_of_a_notebook_have_the_numbers_that_its_cells_have():
    for path in notebook_paths():
        cells = {cell["id"]: cell.source for cell in nbformat.read(path, as_version=4).cells}
        found = {int(i.split("-")[1]): s for i, s in cells.items() if re.fullmatch(r"exercise-\d+-check", i)}
        module = re.search(r"from uftlab.course.exercises import (\w+)", "\n".join(cells.values()))
        if not found:
            continue
        names = vars(importlib.import_module(f"uftlab.course.exercises.{module[1]}"))
        own = [names[re.search(r"exercises\.(\w+)\.check", found[number])[1]] for number in sorted(found)]
        assert sorted(found) == list(range(1, len(own) + 1))
        assert list(map(id, own)) == list(map(id, checks.exercises_of_the_course()[path.name[:2]]))


def test_nothing_is_written_while_nothing_is_solved_and_answers_of_the_notebook_do_not_count(tmp_path, capsys):
    HOLM.check(None, solutions=True)
    HOLM.check(lambda p: p)
    assert kept(tmp_path / "new") is None and not (tmp_path / "new").exists()
    printed = capsys.readouterr().out
    assert "notebook 04: 0 of 2 solved; not yet: exercise 1, 2" in printed
    assert f"0 of {sum(COURSE.values())} exercises are solved. Nothing is kept" in printed


def test_what_is_solved_is_kept_over_sessions_and_a_later_mistake_takes_nothing_away(tmp_path, capsys, monkeypatch):
    HOLM.check(HOLM.right)
    HOLM.check(lambda p: p)
    assert kept(tmp_path) == {
        "format": score.FORMAT, "name": "Ada L.", "exercises": COURSE, "solved": {"04": [2]},
    }  # fmt: skip
    assert [path.name for path in tmp_path.glob("*.json")] == ["score-ada-l.json"]
    monkeypatch.setattr(checks, "_solved_here", set())
    assert "notebook 04: 1 of 2 solved; not yet: exercise 1" in (kept(tmp_path), capsys.readouterr().out)[1]
    PAIRED_HALF_WIDTH.check(PAIRED_HALF_WIDTH.right)
    assert kept(tmp_path)["solved"] == {"04": [1, 2]}
    assert "notebook 04: 2 of 2 solved\n" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*.part"))


def test_without_a_name_it_is_the_login_in_the_readers_own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "own_folder", lambda name: tmp_path / name.split("/")[-1])
    monkeypatch.setattr("getpass.getuser", lambda: "../B\x1b[2J")
    HOLM.check(HOLM.right)
    checks.score()
    (path,) = tmp_path.rglob("*.json")
    assert path == tmp_path / "score" / "score-b-2j.json"
    assert "\x1b" not in score.table(score.read_class(tmp_path / "score").scores)


def test_the_first_prediction_is_kept_over_sessions(tmp_path, monkeypatch):
    box = widgets.predict("Up or down?", ["up", "down"], "down", "It falls.")
    box.buttons.value = "up"
    assert kept(tmp_path)["predicted"] == {"Up or down?": ["up", "down"]} and kept(tmp_path)["solved"] == {}
    monkeypatch.setattr(widgets, "PREDICTED", {"Up or down?": ("down", "down"), "More?": ("no", "no")})
    assert kept(tmp_path)["predicted"] == {"Up or down?": ["up", "down"], "More?": ["no", "no"]}


@pytest.fixture
def a_class(tmp_path):
    """Scores of three readers, one with a name that looks like a tag."""
    counts, asked = {"01": 2, "04": 2}, "1 < 2?"
    score.keep(tmp_path, "Ada", {"01": [1, 2], "04": [2]}, counts, {asked: ["yes", "yes"]})
    score.keep(tmp_path, "Bo | <b>", {"04": [1]}, counts | {"05": 1}, {asked: ["no", "yes"], "Up?": ["up", "down"]})
    score.keep(tmp_path, "Cy", {}, counts, {asked: ["yes", "yes"]})
    return tmp_path


def test_a_class_becomes_one_tally(a_class, capsys):
    assert score.main([str(a_class)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| name | file | 01 | 04 | 05 | all | predicted |",
        "|---|---|---|---|---|---|---|",
        "| Ada | score-ada.json | 2 of 2 | 1 of 2 | 0 of 0 | 3 of 4 | 1 of 1 |",
        "| Bo &#124; &lt;b&gt; | score-bo-b.json | 0 of 2 | 1 of 2 | 0 of 1 | 1 of 5 | 0 of 2 |",
        "| Cy | score-cy.json | 0 of 2 | 0 of 2 | 0 of 0 | 0 of 4 | 1 of 1 |",
        "",
        "1 &lt; 2? Right: 2 of 3.",
        "- yes (right): 2, Ada, Cy",
        "- no: 1, Bo &#124; &lt;b&gt;",
        "",
        "Up? Right: 0 of 1.",
        "- up: 1, Bo &#124; &lt;b&gt;",
        "",
        "Solved by, of 3: 01.1: 1, 01.2: 1, 04.1: 1, 04.2: 1, 05.1: 0.",
    ]


def test_broken_files_are_named_and_the_others_are_read(a_class, capsys):
    (a_class / "score-broken.json").write_text("{")
    (a_class / "score-odd.json").write_text(json.dumps(GOOD | {"predicted": {"Up?": ["up"]}}))
    assert score.main([str(a_class)]) == 0
    said = capsys.readouterr()
    assert "1 &lt; 2? Right: 2 of 3." in said.out
    assert [name in line for name, line in zip(("broken", "odd"), said.err.splitlines(), strict=True)] == [True, True]


def test_the_page_for_the_projector_holds_the_figure_and_needs_no_network(a_class, capsys):
    drawn = score.figure(score.read_class(a_class)).data[0]
    assert list(drawn.x)[:2] == [2 / 3, 0.0] and list(drawn.text)[-1] == "0 of 3"
    assert score.main([str(a_class), str(a_class / "tally.html")]) == 0
    page = (a_class / "tally.html").read_text()
    assert "Plotly.newPlot" in page and "Right: 2 of 3" in page and not re.search(r"<script[^>]* src=", page)
    assert "<b>" not in page.split("<pre")[1]


GOOD = {"format": score.FORMAT, "name": "Ada", "exercises": {"04": 2}, "solved": {"04": [1]}}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{", b"\xff", b'{"format": "another"}', b" " * (score.MOST + 1),
        *(json.dumps(GOOD | change).encode() for change in (
            {"name": 1}, {"exercises": []}, {"exercises": {"04": True}}, {"exercises": {"04": "2"}},
            {"solved": {"04": 1}}, {"solved": {"04": [3]}}, {"solved": {"04": [1, 1]}}, {"solved": {"05": [1]}},
            {"solved": {"04": ["1"]}}, {"solved": {"04": [True]}}, {"predicted": []}, {"predicted": {"a": ["b"]}},
        )),
    ],
)  # fmt: skip
def test_a_file_that_is_no_score_is_named_in_one_line_and_stays(tmp_path, capsys, content):
    path = tmp_path / "score-ada.json"
    path.write_bytes(content)
    assert score.main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert str(path) in said and said.count("\n") == 1
    with pytest.raises(InputError, match="score-ada"):
        score.keep(tmp_path, "ada", {"04": [1]}, {"04": 2})
    assert path.read_bytes() == content


@pytest.mark.parametrize("words", [[], ["a", "b", "c"], ["no such folder"]])
def test_the_command_wants_one_folder_with_scores(words, capsys):
    assert score.main(words) == 2
    assert "folder" in capsys.readouterr().err

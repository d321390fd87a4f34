"""The exercise cells of every notebook: untouched, solved as the folded solution says, and with each likely mistake.

A notebook's exercise N is three cells: `exercise-N` (the task, with its solution folded away), `exercise-N-answer`
(the stub) and `exercise-N-check`, one expression `exercises.NAME.check(function, solutions)`. All check cells run in
this process, each with its notebook's own imports.
"""

import re

import nbformat
import pytest

from uftlab.course.notebooks import notebook_paths

CHECK = re.compile(r"exercises\.(\w+)\.check\((\w+), solutions\)")


def cells_of(path):
    """Cells by id."""
    return {cell["id"]: cell for cell in nbformat.read(path, as_version=4).cells}


def exercises_of(path):
    return [name.removesuffix("-check") for name in cells_of(path) if re.fullmatch(r"exercise-\d+-check", name)]


CASES = [pytest.param(path, name, id=f"{path.stem} {name}") for path in notebook_paths() for name in exercises_of(path)]


@pytest.fixture
def desk(request):
    """The names that a notebook's import and parameter cells define, and the three cells of one exercise."""
    path, name = request.param
    cells = cells_of(path)
    scope = {}
    for cell in cells.values():
        if cell.cell_type == "code":
            exec(cell.source, scope)
            if "parameters" in cell.metadata.get("tags", []):
                break  # imports and parameters are the first code cells
    return scope, [cells[name + part].source for part in ("", "-answer", "-check")]


def test_only_the_start_has_no_exercises():
    assert [path.stem for path in notebook_paths() if not exercises_of(path)] == ["00_start"]


def on_desk(values):
    return pytest.mark.parametrize("desk", [p.values for p in values], ids=[p.id for p in values], indirect=True)


@pytest.mark.parametrize("path", [p for p in notebook_paths() if exercises_of(p)], ids=lambda path: path.stem)
def test_every_notebook_has_two_exercises_with_hint_and_solution(path):
    assert len(exercises_of(path)) >= 2
    for name in exercises_of(path):
        task = cells_of(path)[name].source
        assert "*Hint:*" in task and "<summary>Solution</summary>" in task


@on_desk(CASES)
def test_untouched_it_is_not_yet_and_with_solutions_it_is_right(desk):
    scope, (_, stub, check) = desk
    exec(stub, scope)
    assert eval(check, scope).verdict == "not yet"
    assert eval(check, scope | {"solutions": True}).verdict == "right"


@on_desk(CASES)
def test_the_folded_solution_is_right(desk):
    scope, (task, _, check) = desk
    exec(re.search(r"<details>.*?```python\n(.*?)```", task, re.DOTALL).group(1), scope)
    assert eval(check, scope).verdict == "right"


@on_desk(CASES)
def test_each_likely_mistake_is_named(desk):
    scope, (_, _, check) = desk
    name, function = CHECK.fullmatch(check).groups()
    mistakes = getattr(scope["exercises"], name).mistakes
    assert len(mistakes) >= 2
    for mistake in mistakes:
        result = eval(check, scope | {function: mistake.rule})
        assert result.verdict == "not right" and mistake.name in result.message

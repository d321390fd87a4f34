"""The parameters of the notebooks: each notebook refuses what it does not have, and docs/ci.md lists what they have."""

import ast
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook
from papermill import PapermillExecutionError, execute_notebook
from typer.main import get_command

from uftlab.cli import app
from uftlab.course import parameters
from uftlab.course.notebooks import Parameter, notebook_paths, parameters_of
from uftlab.course.parameters import ParameterError, check, table
from uftlab.reports.badge import GREEN, RED, write_badge
from uftlab.study.trials import profile_named

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
GOOD = {"profile": "smoke", "solutions": False, "widgets_on": True, "model": ""}


def test_parameters_by_hand(tmp_path):
    source = 'profile: str = "class"  # how long\nrerun: bool = False  # True: again'
    cells = [new_code_cell("import os"), new_code_cell(source, metadata={"tags": ["parameters"]})]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for name in ("01_a.ipynb", "02_b.ipynb"):
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / name)
        cells[1].source = 'profile: str = "class"  # how long'
    paths = sorted(tmp_path.glob("*.ipynb"))
    assert parameters_of(paths[0]) == [
        Parameter("profile", "str", '"class"', "how long"),
        Parameter("rerun", "bool", "False", "True: again"),
    ]
    assert table(paths).splitlines()[2:] == [
        '| `profile` | str | `"class"` | how long | all |',
        "| `rerun` | bool | `False` | True: again | 01 |",
    ]


@pytest.mark.parametrize("path", notebook_paths(), ids=lambda path: path.stem)
def test_a_notebook_checks_all_its_parameters_before_anything_else(path):
    """The likely mistake: a new parameter that is not given to the check, which then refuses it as unknown."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    (place,) = (n for n, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    call = ast.parse(cells[place + 1].source).body[-1].value
    assert ast.unparse(call.func) == "parameters.check" and not call.args
    known = parameters_of(path)
    assert {k.arg: ast.unparse(k.value) for k in call.keywords} == {own.name: own.name for own in known}
    assert {own.name: own.kind for own in known} == {
        own.name: "bool" if own.name in parameters.SWITCHES else "str" for own in known
    }
    assert all(own.meaning for own in known)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"profile": "smok"}, "one of smoke, class, research; got smok"),
        ({"solutions": "yes"}, "solutions must be True or False; got 'yes'"),
        ({"widgets_on": 1}, "widgets_on must be True or False; got 1"),
        ({"model": 7}, "model must be a text; got 7"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(wrong, said):
    check(**GOOD)
    with pytest.raises(ParameterError, match=said) as refused:
        check(**{**GOOD, **wrong})
    assert refused.value._render_traceback_() == [f"ParameterError: {refused.value}"]


def test_what_papermill_has_set_is_read_from_the_cell_before(monkeypatch):
    class Shell:
        user_ns = {"In": ["", 'a = "class"', '# Parameters\nprofile = "smoke"\ncolour = {"a": 1}\n', "check()"]}  # noqa: RUF012

    monkeypatch.setattr("IPython.get_ipython", Shell)
    with pytest.raises(ParameterError, match="one of profile, solutions, widgets_on, model; got colour"):
        check(**GOOD)
    Shell.user_ns["In"].append("another cell")
    check(**GOOD)


def test_raw_papermill_stops_with_one_line_that_says_what_is_wrong(tmp_path):
    """It only warns of the name itself. The two cells are those of a notebook, without its imports."""
    notebook = nbformat.read(notebook_paths("00")[0], as_version=4)
    place = next(n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells = notebook.cells[place : place + 2]
    nbformat.write(notebook, tmp_path / "in.ipynb")
    with pytest.raises(PapermillExecutionError) as stopped:
        execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {"colour": "red"}, progress_bar=False)
    told = "ParameterError: A parameter must be one of profile, solutions, widgets_on; got colour. Remove it."
    assert str(stopped.value).strip().splitlines()[-1] == told
    assert stopped.value.traceback == [told]


# ------------------------------------------------------------------------------------------ docs/ci.md, the workflow


def test_the_table_of_parameters_is_current():
    assert f"<!-- parameters -->\n\n{table()}\n\n<!-- end of parameters -->" in PAGE, "run `make pages`"


def workflow():
    return yaml.safe_load((ROOT / ".github" / "workflows" / "notebooks.yml").read_text())


def test_the_inputs_of_the_workflow_have_defaults_and_are_those_of_the_page():
    inputs = workflow()[True]["workflow_call"]["inputs"]  # YAML reads `on` so
    listed = [
        [f"`{name}`", f"`{own['default']}`" if own["default"] != "" else "empty", own["description"]]
        for name, own in inputs.items()
    ]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:3] == "| `"]
    assert [row for row in listed if row not in rows] == []
    assert profile_named(inputs["profile"]["default"])


def test_the_workflow_gives_its_inputs_to_the_shell_as_variables_and_writes_nothing():
    """An input inside of `run` would be read as commands."""
    (job,) = workflow()["jobs"].values()
    assert workflow()["permissions"] == {"contents": "read"}
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert not any("${{" in run for run in runs)
    used = set(re.findall(r'"\$(\w+)"', "\n".join(runs)))
    assert used == {name for name, value in job["env"].items() if "inputs." in value}
    assert {value for value in job["env"].values() if "inputs." in value} == {
        f"${{{{ inputs.{name.lower()} }}}}" for name in used
    }


def test_what_is_called_in_the_page_and_the_workflow_has_these_options():
    known = {option for own in get_command(app).commands["notebooks"].params for option in own.opts}
    (job,) = workflow()["jobs"].values()
    lines = [step["run"] for step in job["steps"] if "run" in step]
    lines += re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    used = {o for own in lines for line in own.splitlines() if "uftlab notebooks" in line for o in line.split()}
    assert {o for o in used if o.startswith("--")} <= known


def test_the_caller_of_the_page_gives_inputs_that_the_workflow_has():
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    (job,) = yaml.safe_load(text)["jobs"].values()
    assert (ROOT / job["uses"]).is_file()
    assert set(job["with"]) <= set(workflow()[True]["workflow_call"]["inputs"])


@pytest.mark.parametrize(("passed", "colour"), [(12, GREEN), (11, RED), (0, RED)])
def test_the_badge_says_how_many_ran_and_is_green_only_for_all(passed, colour, tmp_path):
    text = write_badge(tmp_path / "badge.svg", passed, 12, "smoke", "2026-01-02")
    assert text.startswith(f"{passed} of 12 ran · smoke · ") and text.endswith(" · 2026-01-02")
    drawn = ElementTree.parse(tmp_path / "badge.svg").getroot()
    assert drawn.attrib["aria-label"] == f"course: {text}"
    assert drawn.find("{*}rect").attrib["fill"] == colour
    assert f"{passed} of the 12 notebooks" in drawn.find("{*}title").text

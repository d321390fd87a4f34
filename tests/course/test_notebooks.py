"""Every notebook runs in the smoke profile with its solutions, and what it says is what the results say."""

import ast
import builtins
import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import symtable
import sys
import threading

import driver
import nbformat
import psutil
import pytest
from nbconvert.exporters.html import HTMLExporter

from uftlab.course import notebooks as course
from uftlab.course.notebooks import NOTEBOOKS, explorer_paths, has_explorer, notebook_paths, run_all, run_one
from uftlab.errors import InputError
from uftlab.plots import theme
from uftlab.study import comparisons, results


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The executed copies of all notebooks, by name."""
    out = tmp_path_factory.mktemp("notebooks")
    lines = []
    failed = run_all("smoke", out, say=lines.append)
    assert not failed, "\n".join(lines)
    return {path.name: nbformat.read(out / path.name, as_version=4) for path in notebook_paths()}


def texts(notebook):
    """All printed text of an executed notebook."""
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    return "".join(o["text"] for o in outputs if o.output_type == "stream")


def test_all_notebooks_run_with_solutions(executed):
    assert set(executed) == {p.name for p in NOTEBOOKS.glob("*.ipynb")}
    for notebook in executed.values():
        assert "exception" not in notebook.metadata["papermill"] or not notebook.metadata["papermill"]["exception"]


def test_the_sentences_of_the_forgetting_notebook_are_those_of_the_stored_results(executed):
    frame = results.tidy(results.load(results.RESULTS / "class"))
    printed = texts(executed["04_forgetting.ipynb"])
    wanted = comparisons.findings(frame)
    assert len(wanted) >= 2 * len(comparisons.PRIMARY)
    for sentence in wanted:
        assert sentence in printed


def test_the_exercises_are_solved_in_that_run(executed):
    for notebook in executed.values():
        checked = [c for c in notebook.cells if re.fullmatch(r"exercise-\d+-check", c["id"])]
        assert len(checked) >= 2 or notebook.cells[0].source.startswith("# 0.")  # 00 only shows the way
        for cell in checked:
            assert "Right." in json.dumps(cell.outputs)


def test_every_figure_has_a_title_and_no_upload_button(executed):
    shown = 0
    for notebook in executed.values():
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                figure = output.get("data", {}).get("application/vnd.plotly.v1+json")
                if figure:
                    shown += 1
                    assert figure["layout"]["title"]["text"]
                    assert figure["config"]["showSendToCloud"] is False
    assert shown >= 10


def test_the_shorter_notebooks_have_no_visible_cell_above_ten_lines():
    for name in ("00", "06", "08", "10", "11"):
        for cell in nbformat.read(notebook_paths(name)[0], as_version=4).cells:
            if cell.cell_type == "code" and not cell.metadata.get("jupyter", {}).get("source_hidden"):
                assert len(cell.source.splitlines()) <= 10, (name, cell["id"])


def test_an_unknown_parameter_is_an_error_not_a_warning(tmp_path):
    with pytest.raises(InputError, match="colour"):
        run_one(notebook_paths()[0], tmp_path, {"colour": "red"})


def test_an_interrupted_run_ends_what_runs_and_begins_nothing_more(tmp_path, monkeypatch):
    begun, ended = [], []

    def waits(path, out, parameters, stopping):
        begun.append(path)
        assert stopping.wait(60)
        ended.append(path)

    def interrupted(jobs):
        while not begun:
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(course, "run_one", waits)
    monkeypatch.setattr(course, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all("smoke", tmp_path)
    assert set(begun) == set(ended) and len(begun) <= 2 < len(notebook_paths())


def test_a_process_that_is_told_to_stop_goes_with_its_children(tmp_path):
    up = tmp_path / "up"
    child = f"import time; open({str(up)!r}, 'w').close(); time.sleep(100)"
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, file=sys.stderr)"
    stopping = threading.Event()

    def when_it_has_a_child():
        while not up.exists():
            pass
        stopping.set()

    watching = threading.Thread(target=when_it_has_a_child)
    watching.start()
    command = [sys.executable, "-c", f"{code}; sys.stderr.flush(); sys.stdin.read()"]
    status, said = course._ended(command, dict(os.environ), stopping)
    watching.join()
    assert status == -signal.SIGTERM and not psutil.pid_exists(int(said))


def test_an_execution_ends_with_the_process_that_started_it():
    """However that ends: its end of the pipe is closed then."""
    code = "from uftlab.course.executing import _end_with_starter; _end_with_starter(); print('goes on')"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.communicate()[0] == b"" and process.returncode == 1


def test_an_unknown_notebook_lists_those_there_are():
    with pytest.raises(InputError, match="04_forgetting"):
        notebook_paths("99")


def test_the_answer_to_a_prediction_is_not_read_in_its_source():
    asked = [c for path in notebook_paths() for c in nbformat.read(path, as_version=4).cells if ".predict(" in c.source]
    assert len(asked) >= 10
    assert all(cell.metadata.jupyter.source_hidden for cell in asked)


def test_the_tasks_stand_directly_above_the_explorer_and_its_code_is_folded():
    for path in explorer_paths():
        cells = nbformat.read(path, as_version=4).cells
        (place,) = [i for i, cell in enumerate(cells) if cell.cell_type == "code" and has_explorer(cell.source)]
        assert cells[place].metadata.jupyter.source_hidden
        assert cells[place - 1].cell_type == "markdown" and "live" in cells[place - 1].metadata.tags, path.name


def test_executed_copies_are_small_and_their_explorers_have_a_first_figure(executed):
    for name, notebook in executed.items():
        assert "widgets" not in notebook.metadata
        assert len(nbformat.writes(notebook)) < 2_000_000, name
        explorers = [cell for cell in notebook.cells if cell.cell_type == "code" and has_explorer(cell.source)]
        assert len(explorers) == (not name.startswith("00")), name
        for explorer in explorers:
            assert "plotly-graph-div" in explorer.outputs[-1]["data"]["text/html"]


@pytest.mark.skipif(driver.chromium() is None, reason="no Chromium here; Debian: apt-get install chromium")
def test_nbconvert_shows_figures_and_questions_and_no_code_that_is_folded(executed, tmp_path):
    """Of notebook 05, which has every kind of widget."""
    page, _ = HTMLExporter().from_notebook_node(executed["05_reward_margins.ipynb"])
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    theme.write_plotly_js(tmp_path)
    assert "VBox(" not in page and ".predict(" not in page and "jupyter-widgets" not in page
    asked = [cell for cell in executed["05_reward_margins.ipynb"].cells if ".predict(" in cell.source]
    assert page.count("<summary>Answer</summary>") == len(asked) == 6
    assert "To try in the notebook" in page
    with driver.browser() as browser:
        shown = browser.new_context(offline=True).new_page()
        shown.goto((tmp_path / "page.html").as_uri(), wait_until="domcontentloaded")
        shown.wait_for_function(
            "() => [...document.querySelectorAll('.plotly-graph-div')].every((f) => f.querySelector('.main-svg path'))"
        )
        assert shown.locator(".plotly-graph-div").count() >= 7


SUMMARISED = ("04", "05", "06", "07", "09", "11")


@pytest.mark.parametrize("number", SUMMARISED)
def test_a_summary_begins_with_three_sentences_to_remember(number):
    cells = nbformat.read(notebook_paths(number)[0], as_version=4).cells
    (summary,) = [cell for cell in cells if cell.source.startswith("## Summary")]
    found = re.match(r"## Summary\n\n### Three sentences to remember\n\n((?:\d\. .*(?:\n   .*)*\n?)+)", summary.source)
    assert re.findall(r"^(\d)\. ", found[1], flags=re.M) == ["1", "2", "3"]


def test_the_closing_sentence_is_the_same_everywhere():
    root = NOTEBOOKS.parent
    page = (root / "docs" / "results" / "study.md").read_text()  # made by comparisons.closing
    sentence = re.search(r"^In one sentence: (.*)$", page, flags=re.M)[1]
    assert sentence.startswith(
        "Mixing demonstrations with feedback makes a model follow more instructions correctly (+0.08"
    )
    places = [root / "README.md", NOTEBOOKS / "glossary.md", notebook_paths("04")[0], notebook_paths("11")[0]]
    for path in places:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            text = "\n".join(cell.source for cell in nbformat.reads(text, as_version=4).cells)
        assert sentence in " ".join(text.split()), path.name


def core_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if "core" in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("path", [p for p in notebook_paths() if core_cells(p)], ids=lambda path: path.stem)
def test_the_core_of_a_notebook_runs_without_the_rest_of_it(path):
    """No name is read at the top of a core cell that only another cell gives; and its first cells are part of it."""
    cells = core_cells(path)
    assert cells[0].source.startswith("# ")
    tree = symtable.symtable("\n".join(cell.source for cell in cells if cell.cell_type == "code"), path.name, "exec")
    tables, given = [tree], {name.get_name() for name in tree.get_symbols() if name.is_assigned() or name.is_imported()}
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for name in table.get_symbols():
            if name.is_global() and name.is_referenced():
                known = name.get_name() in given or hasattr(builtins, name.get_name()) or name.get_name() == "display"
                assert known, f"{name.get_name()} is not given by a core cell"


@pytest.mark.parametrize("path", notebook_paths(), ids=lambda path: path.stem)
def test_what_the_cells_take_from_a_module_is_there_and_public(path):
    """A renamed function is found here in a second, not after the minutes that a run of the notebooks takes."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    tree = ast.parse("\n".join(cells))
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("uftlab"):
            owner = importlib.import_module(node.module)
            for name in node.names:
                own = f"{node.module}.{name.name}"
                found = getattr(owner, name.name, None) or importlib.import_module(own)
                if inspect.ismodule(found):
                    modules[name.asname or name.name] = found
    taken = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    }
    assert taken
    missing = {f"{own}.{name}" for own, name in taken if name.startswith("_") or not hasattr(modules[own], name)}
    assert missing == set()


def test_every_notebook_has_a_small_preview_that_the_readme_shows():
    names = [path.stem for path in notebook_paths()]
    readme = (NOTEBOOKS.parent / "README.md").read_text()
    pictures = {path.stem for path in (NOTEBOOKS.parent / "docs/previews").glob("*.png")}
    assert pictures == {*names, "finding"}, "make pages"
    assert course.course_tables() in readme, "make pages"
    for name in names:
        assert f"](docs/previews/{name}.png)](notebooks/{name}.ipynb)" in readme
        assert 10_000 < (NOTEBOOKS.parent / f"docs/previews/{name}.png").stat().st_size < 150_000


def test_notebooks_are_committed_without_outputs():
    for path in NOTEBOOKS.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            assert not cell.get("outputs") and not cell.get("execution_count"), f"strip the outputs of {path.name}"


def test_the_course_runs_with_this_interpreter_whatever_kernel_is_named_python3(tmp_path, monkeypatch):
    """Somebody else's kernel of that name, found first, would die or lack the packages."""
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "other", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    path = tmp_path / "which.ipynb"
    cell = nbformat.v4.new_code_cell("import sys\nprint(sys.executable)")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), path)
    run_one(path, tmp_path / "out", {})
    made = nbformat.read(tmp_path / "out" / "which.ipynb", as_version=4)
    assert made.cells[0].outputs[0]["text"].strip() == sys.executable

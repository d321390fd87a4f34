"""The project holds together: pinned versions agree, layers point one way, training needs no notebook."""

import ast
import doctest
import importlib
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from importlib import metadata
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from pinned import pins

import uftlab

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "uftlab"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.stem != "__init__" or path.parent.name == "losses"
)
CONDA_NAMES = {"pytorch": "torch"}  # where conda-forge calls a package of PyPI something else


# ------------------------------------------------------------------------------------------ versions


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def ranges(*extras):
    texts = list(project()["dependencies"])
    for extra in extras:
        texts += project()["optional-dependencies"][extra]
    found: dict[str, SpecifierSet] = {}
    for own in map(Requirement, texts):  # an extra may ask for more of a package than the rest does
        name = canonicalize_name(own.name)
        found[name] = found.get(name, SpecifierSet()) & own.specifier
    return found


def conda():
    """Exact versions of environment.yml by the name on PyPI; python and pip apart."""
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pairs = [d.split("=") for d in listed if isinstance(d, str) and d != "pip"]
    pairs += [line.split("==") for d in listed if isinstance(d, dict) for line in d["pip"] if "==" in line]
    return {canonicalize_name(CONDA_NAMES.get(name, name)): version for name, version in pairs}


@pytest.mark.parametrize(
    "extras", [(), ("lab",), ("test",), ("bench",), ("real",), ("ray",)], ids=lambda e: "-".join(e) or "base"
)
def test_every_dependency_is_pinned_within_its_range(extras):
    pinned = pins()
    wrong = {
        name: (pinned.get(name), str(allowed))
        for name, allowed in ranges(*extras).items()
        if name not in pinned or pinned[name] not in allowed
    }
    assert wrong == {}


def test_the_lowest_versions_that_are_tested_are_those_that_are_allowed():
    """A floor below what the other dependencies allow would be a promise that no installation keeps."""
    lowest = pins("constraints-lowest.txt")
    floors = {n: [Version(s.version) for s in own if s.operator == ">="] for n, own in ranges("test").items()}
    assert {n: (lowest.get(n), f) for n, f in floors.items() if Version(lowest.get(n, "0")) != max(f)} == {}
    header = (ROOT / "constraints-lowest.txt").read_text().splitlines()[1]
    assert header.removeprefix("#").strip() in (ROOT / "CONTRIBUTING.md").read_text()


def test_every_python_and_both_ends_of_the_versions_are_tested_on_a_schedule():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "versions.yml").read_text())
    found = {(own["python"], own["versions"]) for own in workflow["jobs"]["test"]["strategy"]["matrix"]["include"]}
    assert found == {("3.11", "lowest"), ("3.11", "newest"), ("3.12", "newest"), ("3.13", "newest")}
    hosted = "\n".join(step.get("run", "") for step in workflow["jobs"]["hosted"]["steps"])
    own = {r.name: r.specifier for r in map(Requirement, project()["dependencies"])}
    for package in ("pandas", "plotly", "ipywidgets", "ipykernel"):  # the floors of hosted notebooks are tested, too
        (floor,) = (s.version for s in own[package] if s.operator == ">=")
        assert f"{package}=={floor}" in hosted
    assert "schedule" in workflow[True]  # YAML reads `on` so
    assert all(python in SpecifierSet(project()["requires-python"]) for python, _ in found)


def test_conda_has_the_pinned_versions_of_all_dependencies_and_test_tools():
    versions, pinned = conda(), pins()
    python = versions.pop("python")
    assert versions == {name: pinned[name] for name in ranges("test")}
    assert f"{python}.0" in SpecifierSet(project()["requires-python"])


def test_no_pinned_package_refuses_the_python_of_debian_12():
    """3.11.2: a later patch release that one package asks for would end `make lab` in pip's longest message."""
    pinned = pins()
    here = [
        own for own in metadata.distributions() if own.name and own.version == pinned.get(canonicalize_name(own.name))
    ]
    asked = {own.name: own.metadata.get("Requires-Python") for own in here}
    assert {name: asks for name, asks in asked.items() if asks and "3.11.2" not in SpecifierSet(asks)} == {}


def test_torch_is_pinned_and_the_makefile_takes_it_from_the_constraints():
    assert pins()["torch"] == "2.13.0"
    assert "s/^torch==//p' constraints.txt" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize(("name", "version"), [("torch", "2.11.0"), ("transformers", "5.17.0")])
def test_the_older_versions_that_must_work_are_within_the_ranges(name, version):
    assert version in ranges()[name] and "3.12" in SpecifierSet(project()["requires-python"])


def test_installed_here_is_what_is_pinned_or_at_least_within_the_ranges():
    from importlib.metadata import version

    wrong = {
        name: version(name) for name, allowed in ranges("test").items() if not allowed.contains(version(name), True)
    }
    assert wrong == {}


# ------------------------------------------------------------------------------------------ modules


def imported(tree):
    """Modules of uftlab that a syntax tree imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ImportFrom) and node.level), "relative import"
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            inside = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {full if full.removeprefix("uftlab.") in MODULES else node.module for full in inside.values()}
    assert "uftlab" not in found, "a shortcut of the public face, where the true home is meant"
    return {name.removeprefix("uftlab.") for name in found if name.startswith("uftlab.")}


def tree_of(module):
    path = PACKAGE / module.replace(".", "/")
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def room_of(module):
    """The folder a module lies in, or the file itself at the top of the package."""
    return module.partition(".")[0]


IMPORTS = {module: imported(tree_of(module)) for module in MODULES}
ROOMS = {room_of(module) for module in MODULES if not module.startswith("__")}
BETWEEN_ROOMS = {
    room: {room_of(name) for module in MODULES if room_of(module) == room for name in IMPORTS[module]} - {room}
    for room in ROOMS
}


@cache
def providers():
    """Which distributions have a module of this name; it looks through all that are installed."""
    return packages_distributions()


def third_party(tree):
    """Distributions that a syntax tree imports, by their canonical names."""
    nodes = list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    tops = {name.partition(".")[0] for name in names} - {"uftlab", *sys.stdlib_module_names}
    return {canonicalize_name(providers()[top][0]) for top in tops}


def test_what_the_package_and_the_notebooks_import_is_declared():
    trees = [tree_of(module) for module in MODULES]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        trees += [ast.parse("".join(cell["source"])) for cell in cells]
    assert third_party(ast.parse("import os, bs4\nfrom numpy.linalg import norm")) == {"beautifulsoup4", "numpy"}
    # what benchmarks and clusters need is imported only when they run: the extras `real` and `ray`
    assert set().union(*map(third_party, trees)) - set(ranges("real", "ray")) == set()


def test_every_imported_module_exists():
    assert {name for names in IMPORTS.values() for name in names} <= set(MODULES)


@pytest.mark.parametrize("graph", [IMPORTS, BETWEEN_ROOMS], ids=["modules", "rooms"])
def test_nothing_imports_itself_by_a_detour(graph):
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)  # raises CycleError with the detour


def test_a_room_imports_only_from_rooms_below_it_in_the_picture():
    picture = re.search(r"```text\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.S).group(1)
    order = [line.split()[0].removesuffix("/").removesuffix(".py") for line in picture.splitlines()]
    assert len(order) == len(ROOMS) and set(order) == ROOMS
    upwards = {room: BETWEEN_ROOMS[room] - set(order[order.index(room) + 1 :]) for room in order}
    assert {room: names for room, names in upwards.items() if names} == {}


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_says_what_it_is(module):
    tree = tree_of(module)
    assert ast.get_docstring(tree)
    nodes = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    nodes += [n for c in nodes if isinstance(c, ast.ClassDef) for n in c.body if isinstance(n, ast.FunctionDef)]
    assert [n.name for n in nodes if not n.name.startswith("_") and not ast.get_docstring(n)] == []


def examples():
    """(module, name, docstring) of everything with a doctest. Read from the source: checked functions are wrapped."""
    for module in MODULES:
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
                text = ast.get_docstring(node)
                if text and ">>>" in text:
                    yield module, getattr(node, "name", "module"), text


@pytest.mark.parametrize(("module", "name", "text"), examples(), ids=lambda value: value if len(value) < 40 else "")
def test_examples_in_docstrings_run_as_printed(module, name, text):
    names = dict(vars(importlib.import_module(f"uftlab.{module}")))
    test = doctest.DocTestParser().get_doctest(text, names, name, f"uftlab/{module}.py", 0)
    report = []
    outcome = doctest.DocTestRunner().run(test, out=report.append)
    assert outcome.attempted > 0 and outcome.failed == 0, "".join(report)


@pytest.mark.parametrize("module", ["study.results", "reports.tables", "plots.figures", "plots.theme"])
def test_what_reads_stored_results_imports_no_heavy_library_itself(module):
    names = {alias.name for node in ast.walk(tree_of(module)) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree_of(module)) if isinstance(node, ast.ImportFrom)}
    assert not {name.partition(".")[0] for name in names} & {"torch", "transformers", "datasets", "jaxtyping"}


def test_no_import_star_runs_anywhere():
    """One file has some for type checkers alone: the names that it offers are derived when it runs."""
    derived = PACKAGE / "losses" / "__init__.py"
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")]
    assert [p for p in files if re.search(r"^[\s\"]*from \S+ import \*", p.read_text(), re.M)] == [derived]
    (block,) = (n for n in ast.parse(derived.read_text()).body if isinstance(n, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    assert derived.read_text().count("import *") == len(block.body)


# ------------------------------------------------------------------------------------------ what needs what

PROBE = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None  # importing it raises, looking for it finds nothing
import uftlab.cli
assert not {{"torch", "transformers"}} & set(sys.modules), "the command's help would wait for torch"
import uftlab.training.checkpoint, uftlab.evals.skills, uftlab.study.workers, uftlab.study.results, uftlab.study.tuning
import uftlab.evals.benchmarks, uftlab.reports.evaluation
print("fine")
"""


def test_training_and_evaluation_import_without_notebooks_figures_or_type_checks():
    blocked = ["jupyter", "jupyterlab", "notebook", "nbformat", "papermill", "IPython", "ipykernel", "ipywidgets"]
    blocked += ["anywidget", "plotly", "beartype", "lm_eval", "nltk", "langdetect"]
    ended = subprocess.run(
        [sys.executable, "-c", PROBE.format(blocked=blocked)], capture_output=True, text=True, cwd="/"
    )
    assert (ended.returncode, ended.stdout) == (0, "fine\n"), ended.stderr


LIGHT_PROBE = """
import sys
import {module}
print(sorted({{"torch", "transformers", "datasets"}} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "module", ["study.results", "study.trials", "training.methods", "evals.sizes", "reports.evaluation"]
)
def test_results_are_read_and_methods_are_named_without_torch(module):
    code = LIGHT_PROBE.format(module=f"uftlab.{module}")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (ended.returncode, ended.stdout) == (0, "[]\n"), ended.stderr


def test_every_name_of_the_public_face_is_the_module_of_its_home():
    for name, home in uftlab.HOMES.items():
        assert getattr(uftlab, name) is importlib.import_module(home) and name in dir(uftlab)
    with pytest.raises(AttributeError, match="no attribute 'lossses'"):
        _ = uftlab.lossses


def test_python_dash_m_uftlab_is_the_command():
    ended = subprocess.run([sys.executable, "-m", "uftlab", "--help"], capture_output=True, text=True)
    assert ended.returncode == 0 and "notebooks" in ended.stdout, ended.stderr


# ------------------------------------------------------------------------------------------ the repository


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_are_committed_without_outputs_and_with_a_parameters_cell(path):
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["source"] for cell in code if cell["outputs"] or cell["execution_count"] is not None] == []
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1


@pytest.mark.parametrize(
    "path", ["data/results/class/trials/a.json", "data/tuned.json", "data/tiny/worlds/0.safetensors"]
)
def test_what_the_results_need_is_not_ignored_by_git(path):
    ended = subprocess.run(["git", "check-ignore", "--quiet", "--no-index", path], cwd=ROOT)
    assert ended.returncode == 1


def test_the_citation_names_the_package_and_its_licence():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["title"], cited["license"]) == ("uftlab", project()["license"])


def test_the_workflow_runs_what_ci_runs_and_hooks_use_the_pinned_tools():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    commands = [step.get("run") for job in jobs.values() for step in job["steps"]]
    assert "make test" in commands and "make test" in (ROOT / ".ci" / "run").read_text().splitlines()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    entries = {hook["entry"].split()[0] for hook in hooks[0]["hooks"]}
    assert all("--keep-id" in hook["entry"] for hook in hooks[0]["hooks"] if "nbstripout" in hook["entry"])
    assert entries == {f".venv/bin/{tool}" for tool in ("ruff", "mypy", "nbstripout")}


def test_what_make_check_runs_exists():
    (listed,) = re.findall(r"^QUICK := (.*)$", (ROOT / "Makefile").read_text(), flags=re.M)
    assert [path for path in listed.split() if not (ROOT / path).exists()] == []


def test_the_command_is_installed_under_its_name():
    assert project()["scripts"] == {"uftlab": "uftlab.cli:app"}


def test_no_name_is_used_that_is_not_there():
    """Linters here skip undefined names, because the shapes of tensors are written as strings of names."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--output-format", "json"]
    command += ["uftlab", "tests", "benchmarks"]
    found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout)
    shapes = {path: strings_of(Path(path).read_text()) for path in {one["filename"] for one in found}}
    outside = []
    for one in found:
        row, column = one["location"]["row"], one["location"]["column"] - 1
        if not any(line == row and start <= column < end for line, start, end in shapes[one["filename"]]):
            outside.append(f"{one['filename']}:{row}: {one['message']}")
    assert outside == []


def strings_of(code):
    """(line, first column, last column) of each string on one line that is not formatted."""
    tree = ast.parse(code)
    parts = {id(part) for own in ast.walk(tree) if isinstance(own, ast.JoinedStr) for part in ast.walk(own)}
    texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return {
        (n.lineno, n.col_offset, n.end_col_offset) for n in texts if id(n) not in parts and n.lineno == n.end_lineno
    }

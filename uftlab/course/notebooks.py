"""The notebooks of the course: what is in them, and running them with papermill, two at a time."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from uftlab.errors import InputError
from uftlab.files import DATA, not_written, write_atomically, write_between
from uftlab.study.trials import profile_named

NOTEBOOKS = DATA.parent / "notebooks"
LIVE = "To try in the notebook: there the figure below has sliders"
CELL_TIMEOUT = 300  # seconds; papermill has no limit by default
STOP_SECONDS = 10.0  # JupyterLab and its kernels have ended after this time
QUIET = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # without it every kernel warns of frozen modules
# Kernels use one thread each: small models are not faster with more, and two notebooks share the cores.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def notebook_paths(only: str = "") -> list[Path]:
    """The notebooks of the course in reading order.

    Raises:
        InputError: when the name of no notebook starts with `only`.
    """
    found = sorted(p for p in NOTEBOOKS.glob("*.ipynb") if p.name.startswith(only))
    if not found:
        have = ", ".join(p.stem for p in sorted(NOTEBOOKS.glob("*.ipynb")))
        raise InputError("--only", f"be the beginning of one of {have}", only, "Check the name")
    return found


def explorer_paths(only: str = "") -> list[Path]:
    """The notebooks that have an explorer. 00 has none.

    Raises:
        InputError: when the name of no notebook starts with `only`.
    """
    return [path for path in notebook_paths(only) if has_explorer(path.read_text(encoding="utf-8"))]


def has_explorer(source: str) -> bool:
    """Whether the code of a cell, or a whole notebook, shows an explorer: `widgets.explore` or one of the course's."""
    return re.search(r"\bexplorer?\(", source) is not None


@dataclass(frozen=True)
class Contents:
    """What the first cell of a notebook says, each part as one line of Markdown. Missing parts are empty."""

    name: str
    title: str
    question: str
    cost: str


def contents(notebook: Any, name: str) -> Contents:
    """Title, question and cost from the first cell of a notebook: `# title`, `> question`, `**Cost:** cost`."""
    first = notebook.cells[0].source
    patterns = {"title": r"^# (.+?)$", "question": r"^> (.+?)(?:\n\n|\Z)", "cost": r"^(\*\*Cost:\*\*.+?)(?:\n\n|\Z)"}
    found = {key: re.search(pattern, first, re.M | re.S) for key, pattern in patterns.items()}
    lines = {key: re.sub(r"\n(> ?)?", " ", match.group(1)) if match else "" for key, match in found.items()}
    return Contents(name, lines["title"] or name, lines["question"], lines["cost"].strip())


@dataclass(frozen=True)
class Parameter:
    """A parameter of a notebook as its cell writes it: `name: kind = default  # meaning`."""

    name: str
    kind: str
    default: str
    meaning: str


def parameters_of(path: Path) -> list[Parameter]:
    """The parameters of a notebook, as `papermill --help-notebook` knows them; none without a cell of parameters."""
    from papermill import inspect_notebook

    found = inspect_notebook(path).values()
    return [Parameter(p["name"], p["inferred_type_name"], p["default"], p["help"] or "") for p in found]


def course_tables() -> str:
    """The two tables of the README, from the first cells of the notebooks: questions and costs, and previews."""
    import nbformat

    found = [contents(nbformat.read(path, as_version=4), path.stem) for path in notebook_paths()]
    table = ["| notebook | question | cost |", "|---|---|---|"]
    for page in found:
        cost = re.split(r", no GPU|\. ", page.cost.removeprefix("**Cost:** "))[0]
        table.append(f"| [{page.title}](notebooks/{page.name}.ipynb) | {page.question} | {cost} |")
    pictures = [f"[![{page.title}](docs/previews/{page.name}.png)](notebooks/{page.name}.ipynb)" for page in found]
    pairs = [[*pictures[i : i + 2], ""][:2] for i in range(0, len(pictures), 2)]
    rows = [f"| {left} | {right} |" for left, right in pairs]
    return "\n".join([*table, "", rows[0], "|---|---|", *rows[1:]])


def write_tables(readme: Path) -> None:
    """Write `course_tables` into a file, between the lines `<!-- course -->` and `<!-- end of course -->`.

    Raises:
        InputError: for a file without these lines.
    """
    write_between(readme, "course", course_tables())


def folded_tasks(source: str) -> str:
    """Tasks that need an explorer, folded under words that say so; what is folded already stays as it is."""
    start = f"<details><summary>{LIVE}</summary>\n\n"
    return source if source.startswith(start) else f"{start}{source}\n\n</details>"


def _for_readers(executed: Path, path: Path) -> None:
    """Put an executed copy in its place, readable without a kernel: no state of widgets, no folded code.

    `nbconvert` then shows the static twins. With the state it would load widgets from the network. Folded code may hold
    the answer to a question. Tasks for an explorer are folded, see `folded_tasks`.
    """
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata["transient"] = {"remove_source": True}
        if "live" in cell.metadata.get("tags", []) and cell.cell_type == "markdown":
            cell.source = folded_tasks(cell.source)
    write_atomically(path, nbformat.writes(notebook) + "\n")


def run_one(path: Path, out: Path, parameters: dict, stopping: threading.Event | None = None) -> None:
    """Execute one notebook in its own process. The executed copy is kept even if a cell fails.

    Args:
        stopping: ends the process and its kernel as soon as it is set; then there is no copy.

    Raises:
        InputError: for a parameter that the notebook does not have (papermill would only warn), or a full disk.
        RuntimeError: when a cell fails, with the end of its traceback, or when it is ended.
    """
    from ipykernel.kernelspec import write_kernel_spec

    known = {own.name for own in parameters_of(path)}
    unknown = sorted(set(parameters) - known)
    if unknown:
        raise InputError(f"Parameters of {path.name}", f"be among {sorted(known)}", unknown, "Remove them")
    out.mkdir(parents=True, exist_ok=True)
    flags = [text for name, value in parameters.items() for text in ("-p", name, str(value))]
    with tempfile.TemporaryDirectory(prefix="uftlab-", ignore_cleanup_errors=True) as own:
        executed = Path(own) / path.name  # papermill writes after each cell, and not atomically
        command = [sys.executable, "-m", "uftlab.course.executing", str(path), str(executed), *flags]
        command += ["--cwd", str(path.parent), "--execution-timeout", str(CELL_TIMEOUT), "--no-progress-bar"]
        # another kernel named python3 may be installed, of another interpreter: this one is found first
        write_kernel_spec(str(Path(own) / "kernels" / "python3"))
        where = os.pathsep.join(filter(None, [own, os.environ.get("JUPYTER_PATH")]))
        # what kernels write lies there too: a home may be missing or read-only
        places = {"JUPYTER_RUNTIME_DIR": str(Path(own) / "runtime"), "IPYTHONDIR": str(Path(own) / "ipython")}
        environment = {**os.environ, **ONE_THREAD, **QUIET, **places, "JUPYTER_PATH": where}
        code, said = _ended(command, environment, stopping or threading.Event())
        if executed.is_file():
            _for_readers(executed, out / path.name)
    full = re.search(rf"OSError: \[Errno ({errno.ENOSPC}|{errno.EDQUOT})\] [^:]*(?:: '(.*)')?$", said, re.M)
    if code and full:
        raise not_written(Path(full[2] or executed), OSError(int(full[1]), os.strerror(int(full[1]))))
    if code:
        raise RuntimeError(f"{path.name} failed:\n" + "\n".join(said.splitlines()[-25:]))


def _ended(command: list[str], environment: dict[str, str], stopping: threading.Event) -> tuple[int, str]:
    """The exit code and the error output of a process, which ends when this one does or when it is told to stop.

    It is in a session of its own, so that Ctrl-C does not reach it beside what is said here.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None and not stopping.is_set():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
            code = process.poll()
        finally:
            if process.poll() is None:
                stop(process)
            assert process.stdin is not None
            process.stdin.close()
        said.seek(0)
        return -signal.SIGTERM if code is None else code, said.read()


def run_all(
    profile: str, out: Path, only: str = "", say: Callable[[str], None] = print, parameters: dict | None = None
) -> list[str]:
    """Execute the notebooks with the profile and with solutions. Returns the names of notebooks that failed.

    plotly.js is put beside the copies, so that `nbconvert` makes pages that show their figures.

    Args:
        parameters: further parameters, or other values: {"widgets_on": False} gives the static twins.
    """
    from uftlab.plots import theme

    profile_named(profile)
    failed, paths = [], notebook_paths(only)
    parameters = {"profile": profile, "solutions": True, **(parameters or {})}
    stopping = threading.Event()
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        jobs = {pool.submit(run_one, path, out, parameters, stopping): path for path in paths}
        try:
            for job in as_completed(jobs):
                try:
                    job.result()
                    say(f"passed {jobs[job].name}")
                except RuntimeError as error:
                    failed.append(jobs[job].name)
                    say(f"FAILED {error}")
        except BaseException:  # Ctrl-C, or a full disk: those that run are ended, the others never begin
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    theme.write_plotly_js(out)
    return failed


@contextlib.contextmanager
def executed_copies(
    given: Path | None, profile: str, only: str, say: Callable[[str], None]
) -> Iterator[tuple[Path, list[str]]]:
    """A folder of notebooks executed as a page shows them, without widgets and solutions, and which of them failed.

    Args:
        given: a folder with executed copies. Nothing is executed then. Otherwise the folder is gone at the end.
    """
    if given is not None:
        yield given, []
        return
    with tempfile.TemporaryDirectory(prefix="uftlab-") as folder:
        out = Path(folder)
        yield out, run_all(profile, out, only, say, {"solutions": False, "widgets_on": False})


def read_executed(folder: Path, name: str) -> Any:
    """An executed copy of a notebook, as `executed_copies` has them.

    Raises:
        InputError: for a notebook that was not executed, or that has widgets, which need a kernel.
    """
    import nbformat

    from uftlab.plots.widgets import VIEW

    path = folder / f"{name}.ipynb"
    remedy = "Leave out --executed: then the command runs the notebooks itself"
    if not path.is_file():
        raise InputError("--executed", f"hold {path.name}", f"a folder without it: {folder}", remedy)
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    left = [cell for cell in code if cell.source.strip() and cell.execution_count is None]
    if left or any(output.output_type == "error" for output in outputs):
        got = f"{len(left)} of {len(code)} code cells not run" if left else "a cell that failed"
        raise InputError(str(path), "be executed to its end", got, remedy)
    if any(VIEW in output.get("data", {}) for output in outputs):
        raise InputError(str(path), "be executed with widgets_on = False", "widgets that need a kernel", remedy)
    return notebook


@dataclass(frozen=True)
class Explorer:
    """The arguments of `widgets.explore` in a notebook: its pure functions, and its controls at their first values."""

    picture: Callable[..., Any]
    controls: dict[str, Any]
    words: Callable[..., str]


def explorer_of(path: Path, **parameters: Any) -> Explorer:
    """Run the code of a notebook in this process up to the first `widgets.explore`, and return its arguments.

    Nothing is displayed. Meanwhile the working directory is the folder of the notebook.

    Args:
        parameters: set after the cell of parameters, as papermill does.

    Raises:
        InputError: for a notebook without `widgets.explore`.
    """
    import nbformat

    from uftlab.plots import theme, widgets

    found: list[Explorer] = []

    class Reached(BaseException):
        """Leaves the cell. Code of a notebook does not catch it."""

    def explore(figure_fn: Any, controls: Any, describe: Any, *rest: Any, **more: Any) -> None:
        found.append(Explorer(figure_fn, dict(controls), describe))
        raise Reached

    names: dict[str, Any] = {"__name__": "__main__", "display": lambda *things, **how: None}
    patched = mock.patch.multiple(widgets, explore=explore), mock.patch.object(theme, "show", lambda thing: None)
    with patched[0], patched[1], contextlib.chdir(path.parent), contextlib.redirect_stdout(io.StringIO()):
        for cell in nbformat.read(path, as_version=4).cells:
            try:
                if cell.cell_type == "code":
                    exec(compile(cell.source, f"{path.name}:{cell.get('id', '')}", "exec"), names)
            except Reached:
                return found[0]
            if "parameters" in cell.metadata.get("tags", []):
                names |= parameters
    raise InputError(path.name, "call widgets.explore", "a notebook that does not", "Choose another notebook")


def stop(server: subprocess.Popen, seconds: float = STOP_SECONDS) -> None:
    """End a process and all its children within some seconds: first by SIGTERM, then by SIGKILL.

    Kernels have their own sessions, so a signal to the process group does not reach them. They are found as children.
    """
    try:
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    server.terminate()  # JupyterLab then closes its kernels
    _, left = psutil.wait_procs(family, timeout=seconds * 0.7)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += process.children(recursive=True)  # children that started meanwhile
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()  # psutil checks that the id still belongs to this process
    psutil.wait_procs(family, timeout=seconds * 0.2)

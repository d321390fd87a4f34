"""Runs the notebooks of the course with papermill, two at a time, and opens them in JupyterLab."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from uftlab.errors import InputError
from uftlab.files import (
    DATA,
    atomically,
    check_writable,
    is_checkout,
    locked,
    not_written,
    own_folder,
    write_atomically,
)
from uftlab.study.trials import profile_named

NOTEBOOKS = DATA.parent / "notebooks"
COPIES = own_folder("notebooks")  # where the reader works: the same folder, unless that is read-only
LAB_HOME = own_folder("build/jupyter")  # settings for this course, not the own ones of the reader
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


def write_between(path: Path, name: str, text: str) -> None:
    """Write a text into a file between the lines `<!-- name -->` and `<!-- end of name -->`. The rest stays.

    Raises:
        InputError: for a file without these lines.
    """
    start, end = f"<!-- {name} -->\n\n", f"\n\n<!-- end of {name} -->"
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not 0 <= before.find(start) < before.find(end):
        rule = f"hold the lines {start.strip()} and {end.strip()}"
        raise InputError(path.name, rule, f"a file without them: {path}", "Add both lines")
    write_atomically(path, f"{before.split(start)[0]}{start}{text}{end}{before.split(end)[1]}")


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
    import nbformat
    from ipykernel.kernelspec import write_kernel_spec

    notebook = nbformat.read(path, as_version=4)
    cell = next((c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])), None)
    known = {
        line.split("=")[0].split(":")[0].strip() for line in (cell.source if cell else "").splitlines() if "=" in line
    }
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


def lab_command(notebooks: Path, home: Path, browser: bool = True) -> tuple[list[str], dict[str, str], str]:
    """How JupyterLab is started: the command, its environment, and the address of the first notebook.

    The server listens on the loopback interface only, at a free port, with a token. It asks for no updates or news.
    The settings are in `home`, so the own settings of the reader are neither read nor changed. Changes in JupyterLab,
    for instance a dark theme, are kept there.

    Raises:
        InputError: when JupyterLab is not installed, or the folder has no notebook.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        remedy = "Install it: python -m pip install jupyterlab ipywidgets anywidget"
        raise InputError("JupyterLab", "be installed", "a Python without it", remedy)
    import zmq

    found = sorted(notebooks.glob("*.ipynb"))
    if not found:
        raise InputError("--folder", "hold notebooks", notebooks, "Name the folder with the .ipynb files")
    settings = home / "settings"
    quiet = settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    write_atomically(quiet, '{"fetchNews": "false", "checkForUpdates": false}')
    port, token = _free_port(), secrets.token_hex(24)
    options = {
        "ServerApp.root_dir": notebooks,
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,  # with another port the address below would be wrong
        "ServerApp.open_browser": browser,
        "ServerApp.answer_yes": True,  # it stops without asking
        "ServerApp.log_level": "ERROR",
        "ServerApp.kernel_websocket_connection_class": "uftlab.course.server.Connection",
        "LabApp.log_level": "ERROR",
        "LabApp.extension_manager": "readonly",  # the default one contacts a package index
        "LabApp.default_url": f"/lab/tree/{found[0].name}",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.news_url": "None",
    }
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    if zmq.has("curve"):
        command.append("--KernelManager.transport_encryption=auto")  # kernels warn if it is off
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # for containers, where root is the only user
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    folders |= {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    places = {name: str(home / folder) for name, folder in folders.items()}
    environment = {**os.environ, **places, **ONE_THREAD, **QUIET, "JUPYTER_TOKEN": token}
    return command, environment, f"http://127.0.0.1:{port}/lab/tree/{found[0].name}?token={token}"


def copy_course(folder: Path) -> None:
    """Copy the notebooks and the glossary into a folder, unless it has notebooks: changes of the reader are kept.

    Another `uftlab lab` that copies into the same folder is awaited; copies that one was killed at are finished.

    Raises:
        InputError: for a path that is not a folder, or a folder that cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError("--folder", "be a folder", folder, "Choose another name")
    begun = folder / ".copying"  # it is there as long as the copies are not complete
    if any(folder.glob("*.ipynb")) and not begun.is_dir():
        return
    check_writable(folder, "--folder")
    with locked(folder / "course") as lock:
        if any(folder.glob("*.ipynb")) and not begun.is_dir():
            return
        begun.mkdir(exist_ok=True)
        for path in [*notebook_paths(), NOTEBOOKS / "glossary.md"]:
            if not (folder / path.name).exists():
                with atomically(folder / path.name) as part:
                    shutil.copyfile(path, part)
        begun.rmdir()
        Path(lock.lock_file).unlink(missing_ok=True)  # whoever comes now finds notebooks


def _free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(address: str) -> bool:
    """Whether a server answers. No proxy is used, because the address contains the token."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(address, timeout=2):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that is set by Ctrl-C, by `kill`, or when the terminal closes.

    The signals are handled even if the parent process ignores Ctrl-C, as shells do for background processes.
    """
    asked = threading.Event()
    kinds = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {kind: signal.signal(kind, lambda *_: asked.set()) for kind in kinds}
    try:
        yield asked
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


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


def open_lab(notebooks: Path = COPIES, browser: bool = True, say: Callable[[str], None] = print) -> int:
    """Start JupyterLab with the first notebook, for this machine only. Returns its exit code.

    `say` gets the address once. Ctrl-C and SIGTERM end JupyterLab and its kernels within `STOP_SECONDS`; then the exit
    code is 0.

    Args:
        notebooks: a folder of notebooks. An empty or missing folder gets copies of the course.

    Raises:
        InputError: see `lab_command`.
    """
    copy_course(notebooks)
    command, environment, address = lab_command(notebooks.resolve(), LAB_HOME, browser)
    if notebooks == COPIES and not (is_checkout() and notebooks == NOTEBOOKS):
        say(f"Your copies of the notebooks: {notebooks} (another place: --folder)")
    with _asked_to_stop() as asked:
        # a separate session: Ctrl-C in the terminal reaches only this process, which then ends the others
        server = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            while server.poll() is None and not asked.is_set() and not _answers(address):
                asked.wait(0.1)
            if server.poll() is None and not asked.is_set():
                say(f"JupyterLab (Ctrl-C stops it): {address}")
            while server.poll() is None and not asked.is_set():
                asked.wait(0.2)
        finally:
            stop(server)
    return 0 if asked.is_set() else server.wait()

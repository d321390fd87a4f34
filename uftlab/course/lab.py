"""Opens the notebooks of the course in JupyterLab, on this machine alone."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from uftlab.course.notebooks import NOTEBOOKS, ONE_THREAD, QUIET, notebook_paths, stop
from uftlab.errors import InputError
from uftlab.files import atomically, check_writable, is_checkout, locked, own_folder, write_atomically

COPIES = own_folder("notebooks")  # where the reader works: the same folder, unless that is read-only
IDLE_SECONDS = 1800  # then the kernel of a closed page is stopped: each holds half a gigabyte
LAB_HOME = own_folder("build/jupyter")  # settings for this course, not the own ones of the reader


def lab_command(notebooks: Path, home: Path, browser: bool = True) -> tuple[list[str], dict[str, str], str]:
    """How JupyterLab is started: the command, its environment, and the address of the first notebook.

    The server listens on the loopback interface only, at a free port, with a token. It asks for no updates or news.
    The settings are in `home`, so the own settings of the reader are neither read nor changed. Changes in JupyterLab,
    for instance a dark theme, are kept there.

    Raises:
        InputError: when JupyterLab is not installed, or the folder has no notebook.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        remedy = "Install the extra: python -m pip install 'uftlab[lab]'"
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
        "MappingKernelManager.cull_idle_timeout": IDLE_SECONDS,  # of pages that are closed; open ones keep theirs
        "MappingKernelManager.cull_interval": 300,
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

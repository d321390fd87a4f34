"""JupyterLab for the course: on this machine alone, with copies that nothing is lost of, and ended when told."""

import asyncio
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from unittest import mock

import psutil
import pytest
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from uftlab.course import lab as jupyter
from uftlab.course import notebooks
from uftlab.course.lab import copy_course, lab_command
from uftlab.course.notebooks import NOTEBOOKS, notebook_paths
from uftlab.course.server import Connection
from uftlab.errors import InputError


def test_jupyterlab_is_started_on_this_machine_alone_with_a_token_and_settings_of_its_own(tmp_path):
    command, environment, address = lab_command(NOTEBOOKS, tmp_path, browser=False)
    text = " ".join(command)
    assert "--ServerApp.ip=127.0.0.1" in text and "NeverCheckForUpdate" in text and "port_retries=0" in text
    assert "--MappingKernelManager.cull_idle_timeout=1800" in text and "cull_connected" not in text
    token = environment["JUPYTER_TOKEN"]
    assert (
        len(token) >= 40 and token not in text and address.endswith(f"{notebook_paths()[0].stem}.ipynb?token={token}")
    )
    mine = {name: value for name, value in environment.items() if value.startswith(str(tmp_path))}
    assert {"JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR"} <= set(mine)
    quiet = next(tmp_path.rglob("notification.jupyterlab-settings"))
    assert json.loads(quiet.read_text())["fetchNews"] == "false"
    assert lab_command(NOTEBOOKS, tmp_path)[1]["JUPYTER_TOKEN"] != token
    assert os.environ.get("JUPYTER_TOKEN") != token
    assert {environment[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"1"}


def test_a_page_that_was_left_costs_no_traceback_and_other_errors_are_seen(tmp_path):
    text = " ".join(lab_command(NOTEBOOKS, tmp_path)[0])
    assert "--ServerApp.kernel_websocket_connection_class=uftlab.course.server.Connection" in text

    async def troubles_of(page):
        """What the event loop complains about when a page of this kind gets a message."""
        loop, found = asyncio.get_running_loop(), []
        loop.set_exception_handler(lambda loop, context: found.append(type(context["exception"])))
        handler = mock.create_autospec(WebSocketHandler, instance=True)
        handler.write_message.side_effect = page
        connection = Connection.__new__(Connection)
        with mock.patch.object(Connection, "websocket_handler", handler):
            connection.write_message(b"words", binary=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()  # an error that nobody looked at is reported when its future is removed
        assert handler.write_message.call_args == mock.call(b"words", binary=True)
        return found

    def leaves(error):
        def later(*args, **how):
            future = asyncio.get_running_loop().create_future()
            future.set_exception(error)
            return future

        return later

    assert asyncio.run(troubles_of(WebSocketClosedError())) == []
    assert asyncio.run(troubles_of(leaves(WebSocketClosedError()))) == []
    assert asyncio.run(troubles_of(leaves(ValueError("another")))) == [ValueError]


def test_a_missing_jupyterlab_or_notebook_is_a_plain_error(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="hold notebooks"):
        lab_command(tmp_path, tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'uftlab\[lab\]'"):
        lab_command(NOTEBOOKS, tmp_path)


def test_a_folder_without_notebooks_gets_copies_and_keeps_what_was_written(tmp_path):
    folder = tmp_path / "mine"
    copy_course(folder)
    assert {p.name for p in folder.iterdir()} == {p.name for p in [*notebook_paths(), NOTEBOOKS / "glossary.md"]}
    first = folder / notebook_paths()[0].name
    first.write_text("my answers")
    copy_course(folder)
    assert first.read_text() == "my answers"
    with pytest.raises(InputError, match="--folder must be a folder"):
        copy_course(first)


def test_copies_that_were_cut_are_finished_and_what_is_there_stays(tmp_path, monkeypatch):
    copied, really = [], shutil.copyfile

    def dies(source, target):
        copied.append(source)
        if len(copied) == 3:
            raise KeyboardInterrupt
        really(source, target)

    monkeypatch.setattr(jupyter.shutil, "copyfile", dies)
    with pytest.raises(KeyboardInterrupt):
        copy_course(tmp_path)
    first, second = sorted(tmp_path.glob("*.ipynb"))
    first.write_text("my answers")
    copy_course(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in [*notebook_paths(), NOTEBOOKS / "glossary.md"]}
    assert first.read_text() == "my answers" and second.read_text() == notebook_paths()[1].read_text()


def test_two_labs_on_one_folder_copy_once(tmp_path, monkeypatch):
    """The second finds the first copying, waits, and does not touch what the reader has written meanwhile."""
    begun, go_on, copied = threading.Event(), threading.Event(), []

    def slow(source, target):
        copied.append(source.name)
        begun.set()
        assert go_on.wait(60)
        target.write_text(source.read_text())

    monkeypatch.setattr(jupyter.shutil, "copyfile", slow)
    labs = [threading.Thread(target=copy_course, args=(tmp_path,)) for _ in range(2)]
    labs[0].start()
    assert begun.wait(60)
    labs[1].start()
    go_on.set()
    for lab in labs:
        lab.join()
    assert sorted(copied) == sorted([p.name for p in [*notebook_paths(), NOTEBOOKS / "glossary.md"]])


# Deaf to every polite signal, with a child that is deaf too and in a session of its own, as kernels are.
DEAF = """
import signal, subprocess, sys, time
for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(kind, signal.SIG_IGN)
if len(sys.argv) == 1:
    child = subprocess.Popen([sys.executable, __file__, "child"], start_new_session=True, stdout=subprocess.PIPE)
    child.stdout.readline()
print("deaf", flush=True)
time.sleep(600)
"""


@pytest.fixture
def deaf(tmp_path):
    """The path of a program that no polite signal ends."""
    path = tmp_path / "deaf.py"
    path.write_text(DEAF)
    return path


def has_ended(process):
    """Whether it runs no more; an orphan may wait as a zombie until the first process of the machine looks for it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_server_that_does_not_listen_is_ended_with_its_children(deaf):
    server = subprocess.Popen([sys.executable, deaf], stdout=subprocess.PIPE, text=True)
    assert server.stdout.readline() == "deaf\n"
    (child,) = psutil.Process(server.pid).children()
    started = time.monotonic()
    notebooks.stop(server, seconds=2.0)
    assert server.poll() is not None and has_ended(child)
    assert time.monotonic() - started < 60  # no quiet machine is needed: what counts is that all have ended
    notebooks.stop(server)  # that it is over already is no error
    assert notebooks.STOP_SECONDS <= 10


# `uftlab lab` with a server that answers nothing and does not listen, in a shell that ignores Ctrl-C.
DEAF_LAB = """
import signal, sys
from uftlab.course import lab
lab.lab_command = lambda *args: ([sys.executable, sys.argv[1]], {}, "http://127.0.0.1:9/")
print("before", signal.getsignal(signal.SIGINT) == signal.SIG_IGN, flush=True)
print(lab.open_lab(browser=False), flush=True)
"""


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM], ids=lambda kind: kind.name)
def test_lab_ends_on_a_signal_though_its_shell_ignores_it_and_its_server_does_not_listen(kind, deaf):
    ignoring = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{DEAF_LAB}"
    command = [sys.executable, "-c", ignoring, str(deaf)]
    lab = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert lab.stdout.readline() == "before True\n"
    assert lab.stdout.readline() == "deaf\n"  # the server, and its child before it
    family = psutil.Process(lab.pid).children(recursive=True)
    assert len(family) == 2
    lab.send_signal(kind)
    assert lab.communicate(timeout=60)[0].splitlines() == ["0"] and lab.returncode == 0
    assert all(map(has_ended, family))


def test_a_proxy_is_not_asked_whether_jupyterlab_answers(monkeypatch):
    """The address holds the token."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        """Counts what it is asked."""

        def do_GET(self):
            asked.append((self.server.server_port, self.path))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    servers = [HTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    lab, proxy = (server.server_port for server in servers)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    try:
        assert jupyter._answers(f"http://127.0.0.1:{lab}/lab?token=secret")
        assert asked == [(lab, "/lab?token=secret")]
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
    assert not jupyter._answers(f"http://127.0.0.1:{lab}/lab?token=secret")

"""A study and an export open no connection beyond this machine: asserted where connections are made."""

import os
import subprocess
import sys

import pytest

WATCH = """
import os, sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        near = not isinstance(address, tuple) or str(address[0]).startswith("127.") or address[0] == "::1"
        if near:
            return
        found = str(address)
    elif event == "socket.getaddrinfo" and arguments[0] not in (None, "", "localhost", "127.0.0.1", "::1"):
        found = f"looks up {arguments[0]}"
    else:
        return
    with open(os.environ["SEEN"], "a") as file:
        file.write(f"{os.getpid()} {found}\\n")
    raise ConnectionRefusedError(found)

sys.addaudithook(watch)
open(os.environ["SEEN"] + ".watched", "a").write(f"{os.getpid()}\\n")
"""


@pytest.fixture
def watched(tmp_path):
    """Runs a command whose processes, children included, note and refuse each connection beyond this machine."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WATCH)
    seen = tmp_path / "seen"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    path = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH")]))
    environment = {**kept, "SEEN": str(seen), "PYTHONPATH": path, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run(*arguments):
        ended = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        processes = set((tmp_path / "seen.watched").read_text().split())
        return ended, processes, seen.read_text().splitlines() if seen.exists() else []

    return run


def test_a_connection_would_be_seen(watched):
    code = "import socket\ntry:\n    socket.create_connection(('192.0.2.1', 9))\nexcept OSError: print('refused')"
    ended, _, seen = watched("-c", code)
    assert ended.stdout == "refused\n" and any("192.0.2.1" in line for line in seen)


def test_a_study_connects_to_nobody(watched, tmp_path):
    arguments = ("run", "--profile", "smoke", "--methods", "base", "--seeds", "0", "--workers", "1")
    ended, processes, seen = watched("-m", "uftlab", *arguments, "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    assert len(processes) > 1 and (tmp_path / "out" / "report.html").is_file()
    assert seen == []


def test_an_export_connects_to_nobody(watched, tmp_path):
    ended, processes, seen = watched(
        "-m", "uftlab", "export", "--only", "01", "--profile", "smoke", "--out", tmp_path / "site-out"
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(processes) > 2 and (tmp_path / "site-out" / "index.html").is_file()
    assert seen == []

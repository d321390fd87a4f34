"""Runs the course with papermill, several notebooks at a time, and opens JupyterLab on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from uftlab.errors import InputError
from uftlab.models import DATA
from uftlab.study import profile_named

NOTEBOOKS = DATA.parent / "notebooks"
CELL_TIMEOUT = 300  # seconds; papermill's own default is to wait for ever


def notebook_paths(only: str = "") -> list[Path]:
    """The notebooks of the course in reading order.

    Raises:
        InputError: when none starts with `only`.
    """
    found = sorted(p for p in NOTEBOOKS.glob("*.ipynb") if p.name.startswith(only))
    if not found:
        have = ", ".join(p.stem for p in sorted(NOTEBOOKS.glob("*.ipynb")))
        raise InputError("--only", f"be the beginning of one of {have}", only, "Check the name")
    return found


def run_one(path: Path, out: Path, parameters: dict) -> None:
    """Execute one notebook in a process of its own; the executed copy is kept, failed or not.

    Raises:
        InputError: for a parameter the notebook does not have (papermill itself would only warn).
        RuntimeError: when a cell fails, with the end of its traceback.
    """
    import nbformat

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
    command = [sys.executable, "-m", "papermill", str(path), str(out / path.name), *flags]
    command += ["--cwd", str(path.parent), "--execution-timeout", str(CELL_TIMEOUT), "--no-progress-bar"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ended.returncode:
        raise RuntimeError(f"{path.name} failed:\n" + "\n".join(ended.stderr.splitlines()[-25:]))


def run_all(profile: str, out: Path, only: str = "", say: Callable[[str], None] = print) -> list[str]:
    """Execute the notebooks with the profile and their solutions; returns the names of those that failed."""
    profile_named(profile)
    failed, paths = [], notebook_paths(only)
    parameters = {"profile": profile, "solutions": True}
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        jobs = {pool.submit(run_one, path, out, parameters): path for path in paths}
        for job in as_completed(jobs):
            try:
                job.result()
                say(f"passed {jobs[job].name}")
            except RuntimeError as error:
                failed.append(jobs[job].name)
                say(f"FAILED {error}")
    return failed


def open_lab() -> int:
    """JupyterLab on loopback with a token, on the first notebook; returns its exit code."""
    first = notebook_paths()[0].name
    options = [f"--notebook-dir={NOTEBOOKS}", f"--LabApp.default_url=/lab/tree/{first}", "--ServerApp.ip=127.0.0.1"]
    return subprocess.call([sys.executable, "-m", "jupyterlab", *options])

"""Spreads trials over a Ray cluster (https://docs.ray.io), with the extra `ray`.

A cohort is a task of Ray. It is trained in a scratch folder of its node, and the content of its files comes back to
this process, which writes them. So the nodes need no common folder, and the files are those of the engine `local`.
A task whose process or node dies is run again, and no other one.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from uftlab.errors import InputError
from uftlab.files import write_atomically
from uftlab.study.cohort import run_cohort
from uftlab.study.trials import SCHEMA, Trial, plan_digest
from uftlab.study.workers import MAX_WORKERS, Registered, Results, cohorts, died, prepare, registered

RETRIES = 3  # of a task whose process or node died


def spread(trials: Sequence[Trial], folder: Path, workers: int | None = None) -> Results:
    """Results of trials on a Ray cluster, as they finish: an engine of `uftlab.study.workers.run_trials`.

    The cluster is the one this process is connected to, else that of the variable RAY_ADDRESS, else the one that
    `ray start` started on this machine, else one of this machine alone that ends with the study.

    Args:
        workers: most cohorts at a time; by default as many as the cluster has cores.

    Raises:
        InputError: without the library, without a cluster at RAY_ADDRESS, for a node where uftlab or a loss is missing
            or another version, or for a task whose process dies again and again.
    """
    ray = _library()
    own = not ray.is_initialized()
    if own:
        address = os.environ.get("RAY_ADDRESS", "")
        try:
            if ":" in address:  # Ray would ask for more than five minutes
                socket.create_connection(_place(address), timeout=10).close()
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
        except (OSError, ValueError):
            rule = "name a running cluster that lets this machine in"
            remedy = (
                "Start it with `ray start --head` and set RAY_AUTH_MODE=token, or unset the variable for a local one"
            )
            raise InputError("RAY_ADDRESS", rule, address or "nothing", remedy) from None
    try:
        yield from _results(ray, trials, folder, workers)
    finally:
        if own:
            ray.shutdown()


def _place(address: str) -> tuple[str, int]:
    """Host and port of an address of Ray, with or without its scheme."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    return host, int(port)


def _library() -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        remedy = "Install the extra `ray`, for instance with pip install -e '.[ray]'"
        raise InputError("The engine ray", "find the library ray", "none", remedy) from None
    return ray


def _results(ray: Any, trials: Sequence[Trial], folder: Path, workers: int | None) -> Results:
    device = "cuda" if ray.cluster_resources().get("GPU") else "cpu"
    share = {"num_gpus": 1 / MAX_WORKERS["cuda"]} if device == "cuda" else {}
    task = ray.remote(_task).options(num_cpus=1, max_retries=RETRIES, **share)
    own = ray.put(registered([trial.method for trial in trials]))
    waiting = cohorts(trials, device)
    running: dict[Any, list[Trial]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < (workers or len(trials)):
                group = waiting.pop(0)
                running[task.remote(run_cohort, group, own)] = group
            (ready, *_), _ = ray.wait(list(running))
            group = running.pop(ready)
            for trial, text in zip(group, _returned(ray, ready, group), strict=True):
                result = _checked(json.loads(text))
                write_atomically(trial.path(folder), text)
                yield result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _task(run: Callable[[list[Trial], Path], Any], trials: list[Trial], own: Registered) -> list[str]:
    """The content of the files of some trials, run on a node of the cluster."""
    prepare(*own)
    with TemporaryDirectory(prefix="uftlab-") as scratch:
        run(trials, Path(scratch))
        return [trial.path(Path(scratch)).read_text(encoding="utf-8") for trial in trials]


def _returned(ray: Any, reference: Any, group: list[Trial]) -> list[str]:
    """What a task returns; a refusal of the node as it was raised there, other troubles of the cluster as one line."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        lacking = re.search(r"No module named '[^']+'", str(error))
        if lacking is None:
            raise
        remedy = "Install uftlab on every node, and there the modules of your own losses too"
        raise InputError("A node of the Ray cluster", "import what this process imports", lacking[0], remedy) from None
    except ray.exceptions.RayError as error:
        raise died(group, f"died {RETRIES + 1} times ({type(error).__name__})") from None


def _checked(result: dict[str, Any]) -> dict[str, Any]:
    """The result, if the node has the schema and the written plan of this process."""
    theirs, ours = (result["schema"], result["plan"]), (SCHEMA, plan_digest())
    if theirs != ours:
        remedy = "Install the same checkout on every node"
        raise InputError("A node of the Ray cluster", f"have schema and plan {ours}", theirs, remedy)
    return result

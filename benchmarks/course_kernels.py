"""Memory and seconds of a notebook's kernel, one and several at a time: what a machine for a class needs.

    python benchmarks/course_kernels.py 02 1 2 4

runs the code of notebook 02 in one, two and four kernels at once, each with one thread, and prints for each count:
seconds until the last one is done, and of the kernels together resident memory (RSS, libraries counted in each) and
proportional memory (PSS, what they share counted once; Linux alone has it). JupyterLab and browsers come on top.
"""

from __future__ import annotations

import os
import sys
import time

import nbformat
import psutil
from jupyter_client import KernelManager

from uftlab.course.notebooks import ONE_THREAD, QUIET, notebook_paths


def code_of(name: str) -> str:
    """All code of a notebook, without checks of exercises."""
    cells = nbformat.read(notebook_paths(name)[0], as_version=4).cells
    return "\n".join(c.source for c in cells if c.cell_type == "code" and not c.get("id", "").startswith("exercise"))


def measured(code: str, count: int) -> dict[str, float]:
    """Run the code in `count` kernels at once."""
    managers = [KernelManager() for _ in range(count)]
    started, processor = time.monotonic(), 0.0
    for manager in managers:
        manager.start_kernel(env={**os.environ, **ONE_THREAD, **QUIET}, cwd=notebook_paths()[0].parent)
    clients = [manager.client() for manager in managers]
    try:
        for client in clients:
            client.start_channels()
            client.wait_for_ready(timeout=300)
        asked = [client.execute(code, silent=False) for client in clients]
        for client, own in zip(clients, asked, strict=True):
            while (reply := client.get_shell_msg(timeout=1800))["parent_header"].get("msg_id") != own:
                pass
            assert reply["content"]["status"] == "ok", reply["content"]
        seconds = time.monotonic() - started
        found = []
        for manager in managers:
            process = psutil.Process(manager.provisioner.pid)
            found.append(process.memory_full_info())
            processor += sum(process.cpu_times()[:2])
    finally:
        for client, manager in zip(clients, managers, strict=True):
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    rss, pss = (sum(getattr(own, kind, 0) for own in found) / 1e6 for kind in ("rss", "pss"))
    return {"kernels": count, "seconds": seconds, "processor_seconds": processor, "rss_mb": rss, "pss_mb": pss}


if __name__ == "__main__":
    name, *counts = sys.argv[1:]
    code = code_of(name)
    for own in map(int, counts):
        print("  ".join(f"{key} {value:.0f}" for key, value in measured(code, own).items()), flush=True)

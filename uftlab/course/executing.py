"""papermill in a process that ends with the one that started it: `python -m uftlab.course.executing ARGUMENTS`.

The other process holds the standard input of this one open and writes nothing. However it ends, the input ends too.
"""

from __future__ import annotations

import os
import sys
import threading


def _end_with_starter() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)  # the kernel ends by itself: it looks for its parent every second


if __name__ == "__main__":
    from papermill.cli import papermill

    threading.Thread(target=_end_with_starter, daemon=True).start()
    papermill()

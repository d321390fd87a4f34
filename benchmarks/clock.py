"""What the benchmarks share: a clock for trainers, and the name of the machine that the numbers are of."""

import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

WARM_UP = 3  # steps before the clock starts


def wait() -> None:
    """Until a GPU, if there is one, has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Clock(TrainerCallback):
    """Notes when each step of a trainer ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimiser has stepped; what the trainer logs after this counts for the next step."""
        wait()
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds of each step after the warm-up."""
        return np.diff(self.ends[WARM_UP - 1 :]).tolist()


def cpu_name() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()

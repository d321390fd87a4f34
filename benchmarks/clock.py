"""Shared by the benchmarks: a clock for trainers, and the name of the processor."""

import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

WARM_UP = 3  # steps before the clock starts


def wait() -> None:
    """Wait until the GPU, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Clock(TrainerCallback):
    """Records the time at the end of each step of a trainer."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called after the optimiser step. Logging comes later and counts for the next step."""
        wait()
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds of each step after the warm-up."""
        return np.diff(self.ends[WARM_UP - 1 :]).tolist()


def cpu_name() -> str:
    """The model name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()

"""What `uftlab eval` stores: measures with the value of every question. Reading them needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uftlab.errors import InputError

SCHEMA = 1
RESULT = "eval.json"


@dataclass(frozen=True)
class Measure:
    """One number of a model with the questions behind it.

    Args:
        name: `suite/metric`.
        template: whether the chat template was used; None where that was no choice.
        questions: id of a question -> (value, weight).
    """

    name: str
    template: bool | None
    questions: dict[str, tuple[float, float]]

    @property
    def mean(self) -> float:
        """The mean of the values, with their weights. Values 1 and 0 with weights 3 and 1: 0.75."""
        return sum(value * weight for value, weight in self.questions.values()) / sum(
            weight for _, weight in self.questions.values()
        )


def load_result(folder: Path) -> dict[str, Any]:
    """A stored run, with its measures as `Measure`.

    Raises:
        InputError: when there is none, or one of another version.
    """
    path = folder / RESULT if folder.is_dir() else folder
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError("A run", f"be a folder with {RESULT}", folder, "Run `uftlab eval` first") from None
    if not isinstance(stored, dict) or stored.get("schema") != SCHEMA:
        got = stored.get("schema") if isinstance(stored, dict) else type(stored).__name__
        raise InputError(f"{path}", f"have schema {SCHEMA}", got, "Run `uftlab eval` again")
    stored["measures"] = [
        Measure(m["name"], m["template"], {q: (float(v), float(w)) for q, (v, w) in m["questions"].items()})
        for m in stored["measures"]
    ]
    return stored

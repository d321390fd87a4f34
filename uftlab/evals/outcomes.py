"""What `uftlab eval` stores: measures with the value of every question. Reading them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from uftlab.errors import InputError
from uftlab.files import read_json

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
        stored = read_json(path.read_bytes())
    except OSError:
        raise InputError("A run", f"be a folder with {RESULT}", folder, "Run `uftlab eval` first") from None
    except ValueError as error:
        raise InputError(f"{path}", "be whole", error, "Run `uftlab eval` again") from None
    if not isinstance(stored, dict) or stored.get("schema") != SCHEMA:
        got = stored.get("schema") if isinstance(stored, dict) else type(stored).__name__
        raise InputError(f"{path}", f"have schema {SCHEMA}", got, "Run `uftlab eval` again")
    from pydantic import ValidationError

    from uftlab.fields import first_fault

    try:
        _result_file().model_validate(stored)
    except ValidationError as error:
        place, got = first_fault(error)
        raise InputError(f"{path}: {place}", "be as `uftlab eval` writes it", got, "Run it again") from None
    stored["measures"] = [
        Measure(m["name"], m["template"], {q: (float(v), float(w)) for q, (v, w) in m["questions"].items()})
        for m in stored["measures"]
    ]
    return stored


@cache
def _result_file() -> Any:
    """What a result file must hold; it may hold more. Made when the first one is read."""
    from typing import Annotated

    from pydantic import BaseModel, ConfigDict, Field, model_validator

    from uftlab.fields import Number

    positive = Annotated[float, Field(ge=0, le=1e15)]

    class Checked(BaseModel):
        model_config = ConfigDict(strict=True, extra="allow")

    class StoredMeasure(Checked):
        name: str
        template: bool | None
        questions: Annotated[dict[str, Annotated[list[Number], Field(min_length=2, max_length=2)]], Field(min_length=1)]

        @model_validator(mode="after")
        def weighed(self) -> Any:
            """Weights that are no weights cannot be divided by."""
            if min(weight for _, weight in self.questions.values()) <= 0:
                raise ValueError("the weight of each question must be above 0")
            return self

    class Told(Checked):
        suites: list[str]
        limit: int | None
        max_new_tokens: int

    class Reward(Checked):
        rows: int
        beta: Number
        spread: Number
        low: Number
        high: Number
        inert: Number
        rank: Annotated[Number | None, Field(alias="rank correlation with the score")]

    class Facts(Checked):
        reward: Reward | None = None

    class ResultFile(Checked):
        model: str
        reference: str | None
        method: str | None
        seed: int | None
        recipe: dict[str, Any]
        settings: Told
        sources: dict[str, str]
        versions: dict[str, str]
        device: str
        seconds: dict[str, positive]
        facts: Facts
        measures: list[StoredMeasure]

    return ResultFile

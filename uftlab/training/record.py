"""`training.json` and the record of each stage: what `uftlab train` writes beside a model, checked where it is read."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from uftlab.errors import InputError
from uftlab.files import read_json

RECORD = "training.json"


def read_record(folder: Path) -> dict[str, Any]:
    """What the training in a folder was told, how far it is, and the history of its finished stages.

    Raises:
        InputError: for a file that is not as `uftlab train` writes it. It names the place in it.
    """
    return _read(folder / RECORD, "Name another folder, or train again with a new --out", "run")


def read_stage(path: Path) -> dict[str, Any]:
    """The record of a finished stage of an unfinished training.

    Raises:
        InputError: see `read_record`.
    """
    return _read(path, f"Delete {path.parent}; --resume then trains this stage again", "stage")


def _read(path: Path, remedy: str, kind: str) -> dict[str, Any]:
    from pydantic import ValidationError

    from uftlab.fields import first_fault

    rule = "be as `uftlab train` writes it"
    try:
        return _known()[kind].validate_python(read_json(path.read_bytes(), nan=True))
    except OSError as error:
        raise InputError(str(path), rule, error.strerror, remedy) from None
    except ValidationError as error:
        place, got = first_fault(error)
        raise InputError(f"{path}: {place}" if place else str(path), rule, got, remedy) from None
    except ValueError as error:
        raise InputError(str(path), rule, error, remedy) from None


@cache
def _known() -> dict[str, Any]:
    """What each file must hold; it may hold more."""
    from typing import Literal, NotRequired

    from pydantic import ConfigDict, TypeAdapter
    from typing_extensions import TypedDict

    from uftlab.fields import Count, Number

    checked = ConfigDict(strict=True, extra="allow")

    class StageRecord(TypedDict):
        __pydantic_config__ = checked  # type: ignore[misc]
        objective: str
        steps: Count
        settings: dict[str, Number]
        history: list[dict[str, float]]

    class RunRecord(TypedDict):
        __pydantic_config__ = checked  # type: ignore[misc]
        state: Literal["unfinished", "finished"]
        method: str
        model: str
        seed: Count
        config: dict[str, Any]
        stages: list[StageRecord]
        rows: NotRequired[dict[str, int]]
        samples: NotRequired[list[dict[str, Any]]]

    return {"run": TypeAdapter(RunRecord), "stage": TypeAdapter(StageRecord)}

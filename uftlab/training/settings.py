"""The settings of a method: what a sweep chose for it (`data/tuned.json`), else the defaults of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from uftlab.errors import InputError
from uftlab.files import DATA, read_json
from uftlab.training.catalogue import method_named
from uftlab.training.methods import Method, stage_defaults

TUNED = DATA / "tuned.json"
Settings = list[dict[str, float]]  # of each stage of a method

# What a model of another size than the tiny world's is trained with when nobody says: usual rates for Adam, not tuned.
# Everything else is the objective's own default.
LEARNING_RATE_ALL_WEIGHTS = 3e-5
LEARNING_RATE_LORA = 1e-4


def tuned_table(path: Path | None = None) -> dict[str, Any]:
    """What `data/tuned.json` holds: `settings` and `worth` of each method; both empty before the first sweep.

    Raises:
        InputError: for a file that is not as a sweep writes it.
    """
    path = path or TUNED
    if not path.is_file():
        return {"settings": {}, "worth": {}}
    try:
        stored = read_json(path.read_bytes())
        _checked_table().model_validate(stored)
    except (OSError, ValueError) as error:
        place: Any = getattr(error, "errors", lambda: [])()[:1]  # of pydantic, whose message has many lines
        got = f"{'.'.join(map(str, place[0]['loc']))[:80]}: {place[0]['msg']}" if place else error
        remedy = "Take the file that ships with uftlab, or run `uftlab sweep` again"
        raise InputError(f"{path}", "be as `uftlab sweep` writes it", got, remedy) from None
    return {"worth": {}, **stored}


@cache
def _checked_table() -> Any:
    from pydantic import BaseModel, ConfigDict, Field

    from uftlab.fields import Number

    class Table(BaseModel):
        model_config = ConfigDict(strict=True)
        rule: str = ""
        settings: dict[str, list[list[dict[str, Number]]]]
        worth: dict[str, list[Number]] = Field(default_factory=dict)

    return Table


def chosen_settings() -> dict[str, list[Settings]]:
    """What the sweep chose for each method, in each tuning draw (`data/tuned.json`); empty before the first sweep."""
    return tuned_table()["settings"]


def tuned_settings(method: str, draw: int = 0) -> Settings:
    """The settings of every stage that the sweep chose for a method in one of its tuning draws.

    Raises:
        InputError: for a method that was not swept, a draw that was not made, or settings of another method.
    """
    table = chosen_settings()
    if method not in table:
        raise InputError(f"Settings of {method}", f"be in {TUNED.name}", sorted(table), "Run `uftlab sweep` for it")
    if draw not in range(len(table[method])):
        rule = f"be one of 0 to {len(table[method]) - 1}"
        raise InputError(f"A tuning draw of {method}", rule, draw, "Choose one of them")
    found, count = table[method][draw], len(method_named(method).stages)
    if len(found) != count or not all(own.get("learning_rate", -1) >= 0 for own in found):
        rule = f"be {count} stage(s), each with a learning rate"
        raise InputError(f"Settings of {method} in {TUNED}", rule, found, "Run `uftlab sweep` for it")
    return found


def is_tuned(method: Method, settings: Sequence[Mapping[str, float]]) -> bool:
    """Whether the sweep chose these settings of all stages for the method, in whichever draw."""
    found = chosen_settings().get(method.name, [])
    return not method.stages or [dict(own) for own in settings] in found


def settings_of(method: Method, draw: int = 0) -> Settings:
    """The settings of each stage of a method in a study: what the sweep chose for the method.

    A method that was not swept and borrows has the settings of the tuned method that it names, stage by stage, and its
    own options at their defaults.

    Raises:
        InputError: for a method of the groups "paper" and "control" that was not swept. Others have their defaults.
    """
    if not method.stages:
        return []
    if method.group in ("paper", "control") or method.name in chosen_settings():
        return tuned_settings(method.name, draw)
    defaults = [stage_defaults(stage) for stage in method.stages]
    if method.borrows not in chosen_settings():
        return defaults
    lent = tuned_settings(method.borrows, draw)
    return [
        {**own, **{name: value for name, value in other.items() if name in own}}
        for own, other in zip(defaults, lent, strict=True)
    ]

"""A study = methods x seeds x settings. One trial is one JSON file, written atomically; a cut study resumes.

    uftlab run --profile class          every method, tuned settings, several seeds -> report
    uftlab sweep                        four tuning draws of every method           -> data/tuned.json
    uftlab map E1 E2                    the map: settings laid out by hand

A seed draws the world (facts, myths, splits), its base model (initial weights, order of text) and the order
of the training data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from uftlab.errors import InputError
from uftlab.evals.sizes import Sizes, metric_names
from uftlab.files import home, read_json
from uftlab.training.catalogue import method_named
from uftlab.training.settings import settings_of
from uftlab.world.world import Dials

SCHEMA = 2  # of a trial file; a folder with another one is refused
TUNING_WORLD = 1000  # of the first tuning draw; no reported seed: tuning never sees a world that results come from
DRAWS = 4  # tunings of every method, each in a world of its own
Stages = tuple[tuple[tuple[str, float], ...], ...]  # settings of each stage, hashable


@dataclass(frozen=True)
class Profile:
    """How large a study is, and in which kind of world.

    Args:
        steps: the full budget of a method in optimiser steps of 32 completions.
        stage_ends: whether a model is measured in full after each stage, and not only after the last.
    """

    name: str
    steps: int
    seeds: int = field(repr=False)  # how many trials there are is no part of what a trial is
    demonstrations: int = 4800
    prompts: int = 2400  # of feedback, two completions each
    sizes: Sizes = Sizes()  # noqa: RUF009  (frozen)
    curve_points: int = 6
    dials: Dials = Dials()  # noqa: RUF009  (frozen)
    stage_ends: bool = True


PROFILES = {
    "smoke": Profile("smoke", 8, 2, 240, 120, Sizes(48, 60, 8, 40), 2),
    "class": Profile("class", 200, 5, curve_points=4),
    "research": Profile("research", 200, 16, curve_points=4),
}


def profile_named(name: str) -> Profile:
    """The profile, or one clear error with the names there are."""
    if name not in PROFILES:
        raise InputError("A profile", f"be one of {', '.join(PROFILES)}", name, "Choose one of them")
    return PROFILES[name]


@cache
def plan_digest() -> str | None:
    """Of the written plan, docs/plan.md, that a trial was run under; None for an installed package, which has none."""
    plan = home() / "docs" / "plan.md"
    return hashlib.blake2b(plan.read_bytes(), digest_size=8).hexdigest() if plan.is_file() else None


@dataclass(frozen=True)
class Trial:
    """One run: what to train, in which world, with which settings, measured on which creatures.

    Args:
        draw: the tuning draw that the settings come from.
    """

    method: str
    seed: int
    profile: Profile
    settings: Stages  # of every stage
    split: str = "test"
    curves: bool = True
    draw: int = 0

    def digest(self) -> str:
        """Changes with anything that changes the outcome: the file name of the trial ends in it."""
        return hashlib.blake2b(repr((SCHEMA, self)).encode(), digest_size=5).hexdigest()

    def stage_settings(self) -> list[dict[str, float]]:
        """The settings of each stage."""
        return [dict(own) for own in self.settings]

    def path(self, folder: Path) -> Path:
        """Where this trial is stored below a results folder."""
        return folder / "trials" / f"{self.method}-seed{self.seed}-{self.digest()}.json"


def frozen(settings: Sequence[Mapping[str, float]]) -> Stages:
    """The settings of each stage as a trial holds them: in the order of their names, so that equal ones are equal."""
    return tuple(tuple(sorted(own.items())) for own in settings)


def read_trial(path: Path) -> dict[str, Any]:
    """One stored trial.

    Raises:
        InputError: for a file that is no whole trial, or one of another version of uftlab. It names the place in it.
    """
    remedy = "Delete it; the same `uftlab run` makes it again"
    try:
        content = path.read_bytes()
        sound = _read_quickly(content)
        if sound is not None:
            return sound
        stored = read_json(content)
    except (OSError, ValueError) as error:
        got = error.strerror if isinstance(error, OSError) else error
        raise InputError(str(path), "be a whole trial file", got, remedy) from None
    schema = stored.get("schema") if isinstance(stored, dict) else None
    if type(schema) is not int:
        raise InputError(str(path), "be a whole trial file", "something else", remedy)
    if schema != SCHEMA:
        what, remedy = f"The results folder {path.parent.parent}", "Choose another folder; nothing was changed"
        raise InputError(what, f"hold trials of schema {SCHEMA}", schema, remedy)
    wrong = wrong_in(stored)
    if wrong:
        raise InputError(f"{path}: {wrong[0]}", "be as `uftlab run` writes it", wrong[1], remedy)
    return stored


def _read_quickly(content: bytes) -> dict[str, Any] | None:
    """A sound trial, read and checked in one pass; None for what has to be looked at with care.

    A key that is there twice is found by counting: the fast reader keeps the last one.
    """
    from pydantic import ValidationError

    try:
        trial = _trial_file().validate_json(content)
    except ValidationError:
        return None
    below = [*trial.values(), *(own for stage in trial["stages"] for own in stage.values())]
    keys = len(trial) + sum(len(own) for own in below if isinstance(own, dict))
    points = [point for own in below if isinstance(own, list) for point in own]  # and samples
    keys += sum(len(point) for point in points if isinstance(point, dict))
    return trial if trial.get("schema") == SCHEMA and keys == content.count(b'":') else None


class UnsoundError(InputError):
    """A trial whose numbers cannot be right, such as one that diverged. It is not stored; others are not concerned."""


def wrong_in(stored: dict[str, Any]) -> tuple[str, str] | None:
    """The first place of a trial whose value cannot be right, and what is wrong there; None for a sound trial.

    >>> wrong_in({"schema": SCHEMA})
    ('method', 'Field required')
    """
    from pydantic import ValidationError

    from uftlab.fields import first_fault

    try:
        _trial_file().validate_python(stored)
    except ValidationError as error:
        return first_fault(error)
    return None


@cache
def _trial_file() -> Any:
    """What a trial file must hold; it may hold more. Made when the first one is read."""
    from typing import Annotated, NotRequired

    from pydantic import ConfigDict, Field, TypeAdapter
    from typing_extensions import TypedDict

    from uftlab.fields import Count, Number

    name = Annotated[str, Field(pattern=r"^[\w.+-]{1,100}$")]  # it becomes part of pages
    checked = ConfigDict(strict=True, extra="allow")

    class StageRecord(TypedDict):
        __pydantic_config__ = checked  # type: ignore[misc]
        steps: Count
        settings: dict[str, Number]
        metrics: NotRequired[dict[str, Number]]
        demonstrations: NotRequired[Number]
        base_logp: NotRequired[Number]
        pushed_down: NotRequired[Number]

    class Point(TypedDict, extra_items=Number):  # type: ignore[call-arg]
        __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]
        stage: Count
        step: Count

    class TrialFile(TypedDict):
        __pydantic_config__ = checked  # type: ignore[misc]
        method: name
        seed: Count
        profile: name
        split: name
        dials: dict[str, Number | bool]
        steps: Count
        draw: Count
        tuned: NotRequired[bool]
        measured: NotRequired[str]
        settings: dict[str, Number]
        completions: Count
        extra_forwards: Count
        sampled: NotRequired[Count]
        extra_runs: NotRequired[Count]
        stages: list[StageRecord]
        metrics: dict[str, Number]
        curves: list[Point]
        samples: NotRequired[list[dict[str, str]]]
        wall_seconds: Number
        device: str
        versions: dict[str, str]

    return TypeAdapter(TrialFile)


def is_done(trial: Trial, folder: Path) -> bool:
    """Whether a trial is stored with all metrics that would be measured now. After a new skill it is run again.

    Raises:
        InputError: for a file that is no whole trial, or one of another version of uftlab.
    """
    path = trial.path(folder)
    return path.is_file() and metric_names(trial.profile.sizes) <= set(read_trial(path)["metrics"])


def draw_of(method: str, seed: int) -> int:
    """The tuning draw that a seed of a study takes: seeds take turns, so that the variance of tuning is in the study.

    0 for the base, which has nothing to tune.
    """
    return seed % DRAWS if method_named(method).stages else 0


def trial(method: str, seed: int, profile: Profile, draw: int | None = None) -> Trial:
    """A trial on the test creatures with tuned settings; what is not of the study may run with its defaults.

    Args:
        draw: the tuning draw; by default that of the seed.
    """
    chosen = draw_of(method, seed) if draw is None or not method_named(method).stages else draw
    return Trial(method, seed, profile, frozen(settings_of(method_named(method), chosen)), draw=chosen)

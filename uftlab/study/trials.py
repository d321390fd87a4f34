"""A study = methods x seeds x settings. One trial is one JSON file, written atomically; a cut study resumes.

    uftlab run --profile class          every method, tuned settings, several seeds -> report
    uftlab sweep                        twelve settings for every method, one world  -> data/tuned.json

A seed draws the world (facts, myths, splits), its base model (initial weights, order of text) and the order
of the training data. Stage one is the same for all pipelines of a seed, so it is trained once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from uftlab.errors import InputError
from uftlab.evals.skills import Sizes
from uftlab.files import DATA
from uftlab.rows.table import from_rows
from uftlab.training.catalogue import Method, Stage, default_settings
from uftlab.training.methods import method_named
from uftlab.world.world import World, pairs

SCHEMA = 1  # of a trial file; a folder with another one is refused
TUNING_WORLD = 1000  # no reported seed: tuning never sees a world that results come from
TUNED = DATA / "tuned.json"


@dataclass(frozen=True)
class Profile:
    """How large a study is. `steps` is the full budget of a method in optimiser steps of 32 completions."""

    name: str
    steps: int
    seeds: int = field(repr=False)  # how many trials there are is no part of what a trial is
    demonstrations: int = 4800
    prompts: int = 2400  # of feedback, two completions each
    sizes: Sizes = Sizes()  # noqa: RUF009  (frozen)
    curve_points: int = 6


PROFILES = {
    "smoke": Profile("smoke", 8, 2, 240, 120, Sizes(48, 60, 8, 40), 2),
    "class": Profile("class", 320, 5, curve_points=4),
    "research": Profile("research", 320, 16, curve_points=8),
}


def profile_named(name: str) -> Profile:
    """The profile, or one clear error with the names there are."""
    if name not in PROFILES:
        raise InputError("A profile", f"be one of {', '.join(PROFILES)}", name, "Choose one of them")
    return PROFILES[name]


@dataclass(frozen=True)
class Trial:
    """One run: what to train, in which world, with which settings, measured on which creatures."""

    method: str
    seed: int
    profile: Profile
    settings: tuple[tuple[str, float], ...]  # of the last stage
    stage_one: tuple[tuple[str, float], ...] = ()  # of the first of two stages
    split: str = "test"
    curves: bool = True

    def digest(self) -> str:
        """Changes with anything that changes the outcome: the file name of the trial ends in it."""
        return hashlib.blake2b(repr((SCHEMA, self)).encode(), digest_size=5).hexdigest()

    def path(self, folder: Path) -> Path:
        """Where this trial is stored below a results folder."""
        return folder / "trials" / f"{self.method}-seed{self.seed}-{self.digest()}.json"


def lesson_tables(world: World, profile: Profile) -> dict[str, Dataset]:
    """What all methods learn from in a world: the tables `demonstrations` and `feedback`."""
    shown = world.demonstrations(profile.demonstrations)
    return {
        "demonstrations": from_rows([{"prompt": r["prompt"], "completion": r["completion"]} for r in shown]),
        "feedback": from_rows(pairs(world.feedback(profile.prompts))),
    }


def plan(
    method: Method, profile: Profile, last: Mapping[str, float], first: Mapping[str, float]
) -> list[tuple[Stage, int, dict[str, float]]]:
    """The stages of a method, each with its optimiser steps and its settings: `last` of the last one, else `first`."""
    planned = []
    for index, stage in enumerate(method.stages):
        settings = dict(last if index == len(method.stages) - 1 else first)
        if "demonstrations" in settings:
            stage = replace(stage, demonstrations=settings["demonstrations"])
        planned.append((stage, max(1, round(profile.steps * stage.budget)), settings))
    return planned


def read_trial(path: Path) -> dict[str, Any]:
    """One stored trial.

    Raises:
        InputError: for a file that is no whole trial, or one of another version of uftlab.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        schema = stored["schema"]
    except (ValueError, TypeError, KeyError):
        raise InputError(str(path), "be a whole trial file", "something else", "Delete it; it is run again") from None
    if schema != SCHEMA:
        what, remedy = f"The results folder {path.parent.parent}", "Choose another folder; nothing was changed"
        raise InputError(what, f"hold trials of schema {SCHEMA}", schema, remedy)
    return stored


def chosen_settings() -> dict[str, dict[str, float]]:
    """What the sweep chose, by method (`data/tuned.json`); empty before the first sweep."""
    return json.loads(TUNED.read_text())["settings"] if TUNED.is_file() else {}


def tuned_settings(method: str) -> dict[str, float]:
    """The settings the sweep chose for a method.

    Raises:
        InputError: for a method that was not swept.
    """
    table = chosen_settings()
    if method not in table:
        raise InputError(f"Settings of {method}", f"be in {TUNED.name}", sorted(table), "Run `uftlab sweep` for it")
    return table[method]


def is_tuned(method: str, settings: Mapping[str, float]) -> bool:
    """Whether these are the settings that the sweep chose for the method."""
    return chosen_settings().get(method) == dict(settings)


def trial(method: str, seed: int, profile: Profile) -> Trial:
    """A trial on the test creatures with tuned settings; what is not of the first study may run with its defaults."""
    definition = method_named(method)
    own: dict[str, float] = {}
    if definition.stages:
        free = definition.group in ("loss", "pipeline", "online")
        untuned = free and method not in chosen_settings()
        own = default_settings(definition) if untuned else tuned_settings(method)
    return Trial(method, seed, profile, tuple(sorted(own.items())), first_stage_settings(definition))


def first_stage_settings(method: Method) -> tuple[tuple[str, float], ...]:
    """Settings of stage one of a pipeline: those tuned for training with that objective on demonstrations."""
    if len(method.stages) < 2:
        return ()
    name = {"sft": "sft", "una-score": "uft-demonstrations"}[method.stages[0].objective]
    return tuple(sorted(tuned_settings(name).items()))

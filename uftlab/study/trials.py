"""A study = methods x seeds x settings. One trial is one JSON file, written atomically; a cut study resumes.

    uftlab run --profile class          every method, tuned settings, several seeds -> report
    uftlab sweep                        twelve settings for every method, one world  -> data/tuned.json

A seed draws the world (facts, myths, splits), its base model (initial weights, order of text) and the order
of the training data. Stage one is the same for all pipelines of a seed, so it is trained once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from uftlab.errors import InputError
from uftlab.evals.sizes import Sizes, metric_names
from uftlab.training.methods import earlier_settings, method_named, settings_of

SCHEMA = 1  # of a trial file; a folder with another one is refused
TUNING_WORLD = 1000  # no reported seed: tuning never sees a world that results come from


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
    stage_one: tuple[tuple[str, float], ...] = ()  # of the first of several stages
    split: str = "test"
    curves: bool = True
    between: tuple[tuple[tuple[str, float], ...], ...] = field(default=(), repr=False)  # of stages in the middle

    def digest(self) -> str:
        """Changes with anything that changes the outcome: the file name of the trial ends in it."""
        known = (SCHEMA, self, self.between) if self.between else (SCHEMA, self)
        return hashlib.blake2b(repr(known).encode(), digest_size=5).hexdigest()

    def stage_settings(self) -> list[dict[str, float]]:
        """The settings of each stage."""
        count = len(method_named(self.method).stages)
        every = [*(self.stage_one, *self.between)[: max(0, count - 1)], self.settings]
        return [dict(own) for own in every[:count]]

    def path(self, folder: Path) -> Path:
        """Where this trial is stored below a results folder."""
        return folder / "trials" / f"{self.method}-seed{self.seed}-{self.digest()}.json"


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


def is_done(trial: Trial, folder: Path) -> bool:
    """Whether a trial is stored with all metrics that would be measured now. After a new skill it is run again.

    Raises:
        InputError: for a file that is no whole trial, or one of another version of uftlab.
    """
    path = trial.path(folder)
    return path.is_file() and metric_names(trial.profile.sizes) <= set(read_trial(path).get("metrics", ()))


def trial(method: str, seed: int, profile: Profile) -> Trial:
    """A trial on the test creatures with tuned settings; what is not of the first study may run with its defaults."""
    settings = settings_of(method_named(method))
    own = tuple(sorted(settings[-1].items())) if settings else ()
    return with_earlier(Trial(method, seed, profile, own))


def with_earlier(trial: Trial) -> Trial:
    """The trial with the settings of the stages before its last (`uftlab.training.methods.earlier_settings`)."""
    settings = [tuple(sorted(own.items())) for own in earlier_settings(method_named(trial.method))]
    return replace(trial, stage_one=settings[0], between=tuple(settings[1:])) if settings else trial

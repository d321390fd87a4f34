"""Trials of a tiny profile with made-up settings, for the tests of studies and of workers."""

from dataclasses import replace

from uftlab.evaluation import Sizes
from uftlab.methods import METHODS
from uftlab.study import Profile, Trial

TINY = Profile("tiny", 4, 1, 48, 24, Sizes(24, 20, 4, 10), 2)
VALUES = {"learning_rate": 1e-3, "beta": 0.1, "preference_weight": 1.0, "demonstrations": 0.25}


def trial_of(method, **changes):
    """A trial of the tiny profile with made-up settings."""
    definition = METHODS[method]
    settings = tuple(sorted((name, VALUES[name]) for name in definition.tuned))
    first = ()
    if len(definition.stages) == 2:
        names = {"sft": ("learning_rate",), "una-score": ("beta", "learning_rate")}[definition.stages[0].objective]
        first = tuple((name, VALUES[name]) for name in names)
    return replace(Trial(method, 0, TINY, settings, first), **changes)

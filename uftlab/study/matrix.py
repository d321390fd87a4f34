"""Methods x seeds from one recipe, each trained and measured: what `uftlab compare recipe.yaml` does.

The recipe is the YAML file of `uftlab train`. Two parts of it are read here alone: `methods` holds options of single
methods, and `eval` those of `uftlab eval`. The folder has

    trained/METHOD-SEED    what `uftlab train` writes
    measured/METHOD-SEED   what `uftlab eval` writes

`base`, the model as it is, is measured once and not trained. What is finished is not done again.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from uftlab.engine.trainer import DivergedError, process
from uftlab.errors import InputError
from uftlab.evals.benchmarks import check, evaluate, is_measured
from uftlab.evals.suites import Settings
from uftlab.training.catalogue import method_named
from uftlab.training.checkpoint import state_of, train_checkpoint
from uftlab.training.configuration import TrainConfig, read_config, read_file, section, typed, with_changes
from uftlab.training.methods import stage_defaults
from uftlab.training.preparing import estimate, prepared

Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One cell: a method with a seed, or `base`."""

    config: TrainConfig
    measured: Path

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return bool(method_named(self.config.method).stages)

    @property
    def model(self) -> str:
        """What is measured."""
        return self.config.out if self.trains else self.config.model

    @property
    def is_trained(self) -> bool:
        """Whether nothing is left to train."""
        return not self.trains or state_of(self.config) == "finished"


def methods_of(recipe: Path) -> list[str]:
    """The methods that a recipe has options for."""
    return list(section(read_file(recipe), "methods", recipe))


def evaluation_of(recipe: Path) -> Settings:
    """What the part `eval` of a recipe says, under the names of `uftlab eval`. The reference is the recipe's model.

    Raises:
        InputError: for a name that there is not, or a value of another type.
    """
    whole = read_file(recipe)
    told = {"reference": whole.get("model", TrainConfig.model), **section(whole, "eval", recipe)}
    types = {"suite" if own.name == "suites" else own.name: str(own.type) for own in fields(Settings)}
    if isinstance(told.get("suite"), str):
        told["suite"] = [name.strip() for name in told["suite"].split(",")]
    found: dict[str, Any] = {}
    for name, value in told.items():
        found[name] = typed(name, value, types, f"{recipe}: eval: {name}", "`uftlab eval`")
    if "suite" in found:
        found["suites"] = found.pop("suite")
    return Settings(**found)


def planned(recipe: Path, methods: Sequence[str], seeds: Sequence[int], out: Path, say: Say = print) -> list[Run]:
    """The runs of a recipe, seed by seed. A setting that a method lacks is left out of its runs, and that is said.

    Raises:
        InputError: for a recipe, a method or a seed that cannot be.
    """
    if not methods or not seeds:
        remedy = "Write for instance --methods uft,sft-then-dpo --seeds 0,1,2"
        raise InputError("A comparison from a recipe", "have methods and seeds", f"{methods}, {seeds}", remedy)
    runs: dict[str, Run] = {}
    for seed in dict.fromkeys(seeds):
        for name in methods:
            method = method_named(name)
            place = f"{method.name}-{seed}" if method.stages else method.name
            config = read_config(recipe, method=method.name, seed=seed, out=str(out / "trained" / place))
            known = {own for stage in method.stages for own in stage_defaults(stage)}
            lacking = sorted(set(config.settings) - known) if method.stages else []
            if lacking and seed == seeds[0]:
                say(f"{method.name} has no {' and no '.join(lacking)}: left out of its runs")
            runs[place] = Run(with_changes(config, **dict.fromkeys(lacking)), out / "measured" / place)
    return list(runs.values())


def run(runs: Sequence[Run], settings: Settings, say: Say = print) -> list[Run]:
    """Train and measure what is not finished. Says beforehand how long training takes, and a line for each run.

    Returns:
        The runs whose loss was not finite any more: they have no result.

    Raises:
        InputError: before anything is trained, for what cannot be trained or measured.
    """
    if process().num_processes > 1:
        remedy = "Train each with `accelerate launch -m uftlab train`, then compare the folders of `uftlab eval`"
        raise InputError("A comparison from a recipe", "be one process", process().num_processes, remedy)
    missing = [own for own in runs if not (own.is_trained and is_measured(own.measured, settings))]
    _foresee(runs, missing, settings, say)
    diverged, begin = [], time.perf_counter()
    for number, own in enumerate(missing, start=1):
        try:
            line = _done(own, settings)
        except DivergedError as error:
            diverged.append(own)
            line = str(error)
        left = (time.perf_counter() - begin) / number * (len(missing) - number) / 60
        after = f"; about {left:.1f} minutes left" if number < len(missing) else ""
        say(f"{own.measured.name}: {line} ({number}/{len(missing)}){after}")
    return diverged


def _foresee(runs: Sequence[Run], missing: Sequence[Run], settings: Settings, say: Say) -> None:
    """Refuses what cannot be done, and says how long the rest takes."""
    seconds: dict[str, float] = {}
    told: list[str] = []
    for own in missing:
        method = own.config.method
        if own.trains and not own.is_trained and method not in seconds:
            made = prepared(own.config, told.append)
            seconds[method] = estimate(made)
    for line in dict.fromkeys(told):
        say(line)
    if missing:
        check(missing[0].config.model, missing[0].measured.parent / "none", settings, say)
    total = sum(seconds[own.config.method] for own in missing if not own.is_trained)
    line = f"{len(runs)} runs, {len(runs) - len(missing)} done before"
    say(f"{line}; about {total / 60:.1f} minutes of training on this machine, and measuring" if missing else line)


def _done(own: Run, settings: Settings) -> str:
    """Trains and measures one run. Returns how long it took, in words."""
    begin, words = time.perf_counter(), "trained before"
    is_trained = own.is_trained
    if not is_trained:
        train_checkpoint(own.config, _quiet, resume=state_of(own.config) == "unfinished")
        words = f"trained in {time.perf_counter() - begin:.0f} s"
    gc.collect()  # a trainer holds its model in a circle
    begin = time.perf_counter()
    if not is_trained or not is_measured(own.measured, settings):
        evaluate(own.model, own.measured, settings, say=_quiet)
    return f"{words if own.trains else 'not trained'}, measured in {time.perf_counter() - begin:.0f} s"


def _quiet(_line: str) -> None:
    """A run of many says one line."""

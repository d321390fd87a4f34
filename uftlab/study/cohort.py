"""Runs several trials together: one run of all their stages of a number, and one measurement of all that came of it.

A stage that several trials have in common is trained once: all pipelines of a seed begin with the same SFT.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from safetensors.torch import load_file

from uftlab.engine.readers import StackReader, answers_of
from uftlab.engine.stack import flatten, unflatten
from uftlab.evals.sizes import LIGHT
from uftlab.evals.skills import Evaluator, measure
from uftlab.files import save_atomically, write_atomically
from uftlab.models.logps import ReferenceCache
from uftlab.models.policies import frozen_copy, load_base, tiny_tokenizer
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import RememberingTokens
from uftlab.study.trials import SCHEMA, Profile, Trial, is_done, read_trial
from uftlab.training.methods import Stage, all_tuned, method_named, plan
from uftlab.training.reward_functions import world_reward
from uftlab.training.stages import Job, Trained, digest_of, layout, run, usual_device
from uftlab.world.world import CONTESTED, World, pairs

MEASURED = {"cpu": 5, "cuda": 64}  # snapshots that are measured together; more leave the cache of a core


@lru_cache(maxsize=1)
def tokens() -> RememberingTokens:
    """The tiny world's tokenizer, which remembers what it has seen."""
    return RememberingTokens(tiny_tokenizer())


def reader(weights: torch.Tensor) -> StackReader:
    """Reads a stack of tiny models."""
    return StackReader(weights, layout(), tokens().tokenizer)


def training_tables(world: World, profile: Profile) -> dict[str, Dataset]:
    """What all methods learn from in a world: the tables `demonstrations` and `feedback`."""
    shown = world.demonstrations(profile.demonstrations)
    return {
        "demonstrations": from_rows([{"prompt": r["prompt"], "completion": r["completion"]} for r in shown]),
        "feedback": from_rows(pairs(world.feedback(profile.prompts))),
    }


class Materials:
    """What all trials of a seed, profile and split share: tables, base, evaluators, reference log-probabilities."""

    def __init__(self, seed: int, profile: Profile, split: str) -> None:
        world = World(seed)
        self.tables = training_tables(world, profile)
        base: Any = frozen_copy(load_base(seed))
        base.to(usual_device())
        small = LIGHT if profile.steps > 50 else replace(LIGHT, instructions=24)
        self.full = Evaluator(world, base, tokens().tokenizer, split, profile.sizes)
        self.light = Evaluator(world, base, tokens().tokenizer, split, small)
        self.base = flatten(base.state_dict(), layout()).to(usual_device())
        self.references = ReferenceCache()

    @cached_property
    def start(self) -> dict[str, float]:
        """The light metrics of the base, where every curve begins."""
        return measure([self.light], reader(self.base[None]))[0]


@lru_cache(maxsize=8)
def materials(seed: int, profile: Profile, split: str) -> Materials:
    """Made once per process, for the seeds that were asked for last."""
    return Materials(seed, profile, split)


@dataclass
class _Progress:
    """A trial on its way: its weights, and what is known of the stages behind it."""

    trial: Trial
    materials: Materials
    weights: torch.Tensor
    stages: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Optimiser steps behind it."""
        return sum(stage["steps"] for stage in self.stages)


@dataclass(frozen=True)
class _SharedJob:
    """A stage to be trained, once for all trials that have it in common."""

    trials: list[_Progress]  # all alike so far
    index: int
    job: Job
    saved: Path | None


def run_trial(trial: Trial, folder: Path) -> dict[str, Any]:
    """Train and measure one trial, write its JSON and return it. A finished trial is read, not run again."""
    return run_cohort([trial], folder)[0]


def run_cohort(trials: Sequence[Trial], folder: Path) -> list[dict[str, Any]]:
    """Train and measure trials, write one JSON for each and return them. Finished trials are read, not run again."""
    waiting = [trial for trial in trials if not is_done(trial, folder)]
    if waiting:
        _run(waiting, folder)
    return [read_trial(trial.path(folder)) for trial in trials]  # the same numbers whether they were run or read


def _run(trials: Sequence[Trial], folder: Path) -> None:
    started = time.perf_counter()
    begun = []
    keys = dict.fromkeys((trial.seed, trial.profile, trial.split) for trial in trials)
    made = {key: materials(*key) for key in keys}  # all at once: a cohort may have more seeds than are remembered
    for trial in trials:
        shared_by_seed = made[trial.seed, trial.profile, trial.split]
        curves = [{"stage": 0, "step": 0, **shared_by_seed.start}] if trial.curves else []
        begun.append(_Progress(trial, shared_by_seed, shared_by_seed.base, curves=curves))
    for index in range(max(len(method_named(trial.method).stages) for trial in trials)):
        missing = []
        for shared in _shared_jobs(begun, index, folder):
            if shared.saved is not None and shared.saved.with_suffix(".json").is_file():
                _finish(shared, flatten(load_file(str(shared.saved)), layout()), _record_of(shared.saved))
            else:
                missing.append(shared)
        trained = run([shared.job for shared in missing], tokens())
        for shared, found, curve in zip(missing, trained, _curves(missing, trained), strict=True):
            record = {**asdict(found.record), "demonstrations": shared.job.stage.demonstrations, "curve": curve}
            if shared.saved is not None:
                _save_stage(found.weights, shared.saved, record)
            _finish(shared, found.weights, record)
    stack = reader(torch.stack([own.weights for own in begun]))
    metrics = measure([own.materials.full for own in begun], stack)
    samples = _samples(begun, stack)
    seconds = (time.perf_counter() - started) / len(begun)
    for own, measured, said in zip(begun, metrics, samples, strict=True):
        result = _result(own, measured, said, seconds)
        write_atomically(own.trial.path(folder), json.dumps(_rounded(result), separators=(",", ":")))


def _shared_jobs(begun: Sequence[_Progress], index: int, folder: Path) -> list[_SharedJob]:
    """The stages number `index`: what several trials have in common is one job."""
    jobs: dict[Any, _SharedJob] = {}
    for own in begun:
        trial = own.trial
        stages = plan(method_named(trial.method), trial.profile.steps, trial.stage_settings())
        if index >= len(stages):
            continue
        stage, steps, settings = stages[index]
        # an SFT stage of half the budget is stage one of several methods; the sft method is that stage alone
        shared = stage.budget == 0.5 and stage.demonstrations == 1.0
        saved = _stage_path(folder, own, stage, steps, settings) if shared else None
        if (saved or id(own)) not in jobs:
            job = Job(
                own.weights, stage, own.materials.tables, settings, steps, trial.seed * 10 + index,
                world_reward(trial.seed), own.materials.references, _points(trial, stage, steps),
            )  # fmt: skip
            jobs[saved or id(own)] = _SharedJob([], index, job, saved)
        jobs[saved or id(own)].trials.append(own)
    return list(jobs.values())


def _points(trial: Trial, stage: Stage, steps: int) -> frozenset[int]:
    """The steps of a stage after which the curve has a point."""
    count = max(1, round(trial.profile.curve_points * stage.budget))
    return frozenset(round(steps * (k + 1) / count) for k in range(count)) if trial.curves else frozenset()


def _stage_path(folder: Path, own: _Progress, stage: Stage, steps: int, settings: dict[str, float]) -> Path:
    """Where a stage is stored that several trials have in common. The name knows the weights that it starts from."""
    trial, start = own.trial, digest_of(own.weights)
    known = (SCHEMA, trial.seed, trial.profile, stage, steps, tuple(sorted(settings.items())), trial.curves)
    key = repr((*known, trial.split, start))
    return folder / "stages" / f"{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.safetensors"


def _curves(jobs: Sequence[_SharedJob], trained: Sequence[Trained]) -> list[list[dict[str, Any]]]:
    """The light metrics of all snapshots, many at a time: a GPU is faster the more there are."""
    asked = [(n, step) for n, own in enumerate(jobs) for step in sorted(own.job.snapshots_at)]
    asked = [(n, step) for n, step in asked if step in trained[n].snapshots]
    curves: list[list[dict[str, Any]]] = [[] for _ in jobs]
    size = MEASURED[usual_device()]
    for start in range(0, len(asked), size):
        here = asked[start : start + size]
        stack = reader(torch.stack([trained[n].snapshots[step].to(usual_device()) for n, step in here]))
        metrics = measure([jobs[n].trials[0].materials.light for n, _ in here], stack)
        for (n, step), found in zip(here, metrics, strict=True):
            curves[n].append({"step": step, **found})
    return curves


def _finish(shared: _SharedJob, weights: torch.Tensor, record: dict[str, Any]) -> None:
    kept = {name: value for name, value in record.items() if name != "curve"}
    for own in shared.trials:
        before = own.done
        own.curves += [{**p, "stage": shared.index + 1, "step": before + p["step"]} for p in record["curve"]]
        own.weights = weights.to(usual_device())
        own.stages.append(dict(kept))


# ---------------------------------------------------------------------------------------------- storing


def _record_of(saved: Path) -> dict[str, Any]:
    return json.loads(saved.with_suffix(".json").read_text())


def _save_stage(weights: torch.Tensor, path: Path, record: dict[str, Any]) -> None:
    save_atomically(path, unflatten(weights.cpu(), layout()))
    write_atomically(path.with_suffix(".json"), json.dumps(record))  # written last: it says the weights are whole


def _samples(begun: Sequence[_Progress], stack: StackReader, each: int = 8) -> list[list[dict[str, str]]]:
    """For each trial a few answers a reader can look at: instructed prompts and questions on myths."""
    asked: list[list[tuple[str, str, str]]] = []
    for progress in begun:
        evaluator = progress.materials.full
        own = [(r["prompt"], r["completion"], "instruction") for r in evaluator.instructed[:each]]
        for kind in CONTESTED:
            for f in evaluator.facts[kind][: each // 2]:
                own.append((f.fill("what is the {a} of {c} ?"), f"{f.truth} ({kind}: {f.error})", kind))
        asked.append(own if progress.trial.curves else [])
    texts = answers_of(stack, tokens(), [[prompt for prompt, _, _ in own] for own in asked])
    return [
        [
            {"kind": kind, "prompt": prompt, "expected": expected, "answer": text}
            for (prompt, expected, kind), text in zip(own, said, strict=True)
        ]
        for own, said in zip(asked, texts, strict=True)
    ]


def _result(own: _Progress, metrics: dict[str, float], samples: list, seconds: float) -> dict[str, Any]:
    """What a trial's file holds."""
    trial, stages = own.trial, own.stages
    totals = ("completions", "extra_forwards", "sampled", "extra_runs")
    return {
        "schema": SCHEMA,
        "method": trial.method,
        "seed": trial.seed,
        "profile": trial.profile.name,
        "split": trial.split,
        "steps": own.done,
        "tuned": all_tuned(method_named(trial.method), trial.stage_settings()),
        "settings": {**dict(trial.settings), **(stages[-1]["settings"] if stages else {})},
        **{name: sum(stage.get(name, 0) for stage in stages) for name in totals},
        "stages": stages if trial.curves else [{k: v for k, v in s.items() if k != "history"} for s in stages],
        "metrics": metrics,
        "curves": own.curves,
        "samples": samples,
        "wall_seconds": round(seconds, 2),  # its share, where several ran together
        "device": torch.cuda.get_device_name() if usual_device() == "cuda" else f"{platform.machine()} CPU, one thread",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def _rounded(value: Any) -> Any:
    """Five significant digits for every float: seeds differ far more, and the files stay small."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value

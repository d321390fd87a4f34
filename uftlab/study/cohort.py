"""Runs trials in company: what many trials do at the same time is done by one stack of models.

Stages of the recipe "offline" are trained by `engine.population`, all others by `UFTTrainer`, one after the other;
everything is measured together. Stage one is the same for all pipelines of a seed, so it is trained once.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, TrainerCallback, set_seed

from uftlab.engine.population import Member, train
from uftlab.engine.readers import StackReader, answers_of
from uftlab.engine.stack import Layout, flatten, unflatten
from uftlab.engine.trainer import Quiet
from uftlab.evals.skills import LIGHT, Evaluator, measure
from uftlab.files import save_atomically, write_atomically
from uftlab.models.logps import ReferenceCache
from uftlab.models.policies import frozen_copy, load_base, tiny_config, tiny_tokenizer
from uftlab.rows.tokens import Completion, Example, RememberingTokens
from uftlab.study.trials import SCHEMA, Profile, Trial, is_tuned, lesson_tables, plan, read_trial
from uftlab.training.catalogue import Stage
from uftlab.training.methods import TrainedStage, lesson, method_named
from uftlab.training.recipes import train_stage
from uftlab.training.reward_functions import world_reward
from uftlab.world.world import World


@lru_cache(maxsize=1)
def layout() -> Layout:
    """Of the tiny model."""
    return Layout.of(tiny_config())


@lru_cache(maxsize=1)
def tokens() -> RememberingTokens:
    """The tiny world's tokenizer, which remembers what it has seen."""
    return RememberingTokens(tiny_tokenizer())


def device() -> str:
    """Where stacks are trained."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def reader(weights: torch.Tensor) -> StackReader:
    """Reads a stack of tiny models."""
    return StackReader(weights, layout(), tokens().tokenizer)


class Materials:
    """What all trials of a seed, profile and split share: tables, base, evaluators, reference log-probabilities."""

    def __init__(self, seed: int, profile: Profile, split: str) -> None:
        world = World(seed)
        self.tables = lesson_tables(world, profile)
        base: Any = frozen_copy(load_base(seed))
        base.to(device())
        small = LIGHT if profile.steps > 50 else replace(LIGHT, instructions=24)
        self.full = Evaluator(world, base, tokens().tokenizer, split, profile.sizes)
        self.light = Evaluator(world, base, tokens().tokenizer, split, small)
        self.base = flatten(base.state_dict(), layout()).to(device())
        self.references = ReferenceCache()

    @cached_property
    def start(self) -> dict[str, float]:
        """The light metrics of the base, where every curve begins."""
        return measure([self.light], reader(self.base[None]))[0]


def refer(cache: ReferenceCache, weights: torch.Tensor, rows: Sequence[Example]) -> list[Example]:
    """The examples with log pi_ref of these weights, which the cache remembers."""
    asked = reader(weights[None])

    def read(missing: Sequence[Completion]) -> list[float]:
        return asked.logps([missing])[0].tolist()

    digest = hashlib.blake2b(weights.cpu().numpy().tobytes(), digest_size=16).hexdigest()
    return cache.fill_from(digest, read, rows)


@lru_cache(maxsize=8)
def materials(seed: int, profile: Profile, split: str) -> Materials:
    """Made once per process, for the seeds that were asked for last."""
    return Materials(seed, profile, split)


@dataclass
class _Run:
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
class _Job:
    """A stage to be trained, once for all trials that share it."""

    runs: list[_Run]
    index: int
    stage: Stage
    steps: int
    settings: dict[str, float]
    saved: Path | None

    @property
    def first(self) -> _Run:
        """One of the runs, which are all alike so far."""
        return self.runs[0]

    @property
    def seed(self) -> int:
        """Of the order of its data: depends on the trial's seed and the stage alone."""
        return self.first.trial.seed * 10 + self.index

    def points(self) -> frozenset[int]:
        """The steps after which the curve has a point."""
        if not self.first.trial.curves:
            return frozenset()
        count = max(1, round(self.first.trial.profile.curve_points * self.stage.budget))
        return frozenset(round(self.steps * (k + 1) / count) for k in range(count))


def run_trial(trial: Trial, folder: Path) -> dict[str, Any]:
    """Train and measure one trial, write its JSON and return it. A finished trial is read, not run again."""
    return run_together([trial], folder)[0]


def run_together(trials: Sequence[Trial], folder: Path) -> list[dict[str, Any]]:
    """Train and measure trials, write one JSON for each and return them. Finished trials are read, not run again."""
    waiting = [trial for trial in trials if not trial.path(folder).is_file()]
    if waiting:
        _run(waiting, folder)
    return [read_trial(trial.path(folder)) for trial in trials]  # the same numbers whether they were run or read


def _run(trials: Sequence[Trial], folder: Path) -> None:
    started = time.perf_counter()
    runs = []
    keys = dict.fromkeys((trial.seed, trial.profile, trial.split) for trial in trials)
    made = {key: materials(*key) for key in keys}  # all at once: a cohort may have more seeds than are remembered
    for trial in trials:
        own = made[trial.seed, trial.profile, trial.split]
        curves = [{"stage": 0, "step": 0, **own.start}] if trial.curves else []
        runs.append(_Run(trial, own, own.base, curves=curves))
    for index in range(max(len(method_named(trial.method).stages) for trial in trials)):
        jobs = _jobs(runs, index, folder)
        together: dict[tuple, list[_Job]] = {}
        for job in jobs:
            if job.saved is not None and job.saved.with_suffix(".json").is_file():
                _finish(job, flatten(load_file(str(job.saved)), layout()), _record_of(job.saved))
            elif job.stage.recipe == "offline":
                together.setdefault((job.steps, job.points()), []).append(job)
            else:
                _finish(job, *_train_alone(job))
        for alike in together.values():
            for job, (weights, record) in zip(alike, _train_together(alike), strict=True):
                if job.saved is not None:
                    _save_stage(weights, job.saved, record)
                _finish(job, weights, record)
    stack = reader(torch.stack([run.weights for run in runs]))
    metrics = measure([run.materials.full for run in runs], stack)
    samples = _samples(runs, stack)
    seconds = (time.perf_counter() - started) / len(runs)
    for run, measured, said in zip(runs, metrics, samples, strict=True):
        result = _result(run, measured, said, seconds)
        write_atomically(run.trial.path(folder), json.dumps(_rounded(result), separators=(",", ":")))


def _jobs(runs: Sequence[_Run], index: int, folder: Path) -> list[_Job]:
    """The stages number `index`: what several runs have in common is one job."""
    jobs: dict[Any, _Job] = {}
    for run in runs:
        trial = run.trial
        stages = plan(method_named(trial.method), trial.profile, dict(trial.settings), dict(trial.stage_one))
        if index >= len(stages):
            continue
        stage, steps, settings = stages[index]
        # an SFT stage of half the budget is stage one of several methods; the sft method is that stage alone
        shared = stage.budget == 0.5 and stage.demonstrations == 1.0
        saved = _stage_one_path(folder, trial, tuple(sorted(settings.items())), stage, steps) if shared else None
        job = jobs.setdefault(saved or id(run), _Job([], index, stage, steps, settings, saved))
        job.runs.append(run)
    return list(jobs.values())


def _stage_one_path(folder: Path, trial: Trial, settings: tuple, stage: Stage, steps: int) -> Path:
    key = repr((SCHEMA, trial.seed, trial.profile, stage, steps, settings, trial.curves, trial.split))
    return folder / "stages" / f"{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.safetensors"


def _finish(job: _Job, weights: torch.Tensor, record: dict[str, Any]) -> None:
    kept = {name: value for name, value in record.items() if name != "curve"}
    for run in job.runs:
        before = run.done
        run.curves += [{**p, "stage": job.index + 1, "step": before + p["step"]} for p in record["curve"]]
        run.weights = weights.to(device())
        run.stages.append(dict(kept))


def _recorded(trained: TrainedStage, job: _Job, points: list[dict[str, Any]]) -> dict[str, Any]:
    return {**asdict(trained), "demonstrations": job.stage.demonstrations, "curve": points}


def _train_together(jobs: Sequence[_Job]) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """Stages of equal length as one population: the weights and the record of each."""
    lessons = []
    for job in jobs:
        own, weights = job.first.materials, job.first.weights
        referred = partial(refer, own.references, weights)
        lessons.append(lesson(job.stage, own.tables, tokens(), job.settings, job.steps, job.seed, referred))
    members = [
        Member(job.first.weights, made.objective, made.settings, made.order, made.per_step)
        for job, made in zip(jobs, lessons, strict=True)
    ]
    points: list[list[dict[str, Any]]] = [[] for _ in jobs]

    def watch(step: int, own: Sequence[int], weights: torch.Tensor) -> None:
        for m, metrics in zip(own, measure([jobs[m].first.materials.light for m in own], reader(weights)), strict=True):
            points[m].append({"step": step, **metrics})

    every = max(1, jobs[0].steps // 20)
    trained = train(members, layout(), watch=watch, at=jobs[0].points(), logging_steps=every, device=device())
    records = [
        _recorded(made.record(history), job, curve)
        for job, made, history, curve in zip(jobs, lessons, trained.histories, points, strict=True)
    ]
    return list(zip(trained.weights, records, strict=True))


class _Curve(TrainerCallback):
    """Light evaluations at given steps of a stage that `UFTTrainer` trains."""

    def __init__(self, evaluate: Callable[[Any], dict[str, float]], at: frozenset[int]) -> None:
        self.evaluate, self.at = evaluate, at
        self.points: list[dict[str, Any]] = []
        self.done = 0  # counted here: a stage may be several trainers, each of which counts from 0

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measures the policy when its step has come."""
        self.done += 1
        if self.done in self.at:
            self.points.append({"step": self.done, **self.evaluate(model)})


def _train_alone(job: _Job) -> tuple[torch.Tensor, dict[str, Any]]:
    """A stage whose recipe needs a trainer of its own; the random state depends on the trial's seed alone."""
    run, seed = job.first, job.first.trial.seed
    policy: Any = LlamaForCausalLM(tiny_config())
    policy.load_state_dict(unflatten(run.weights.cpu(), layout()), strict=False)
    policy.to(device())
    set_seed(seed)

    def evaluate(model: Any) -> dict[str, float]:
        return measure([run.materials.light], reader(flatten(model.state_dict(), layout())[None]))[0]

    curve = _Curve(evaluate, job.points())
    scratch = tempfile.mkdtemp(prefix="uftlab-")
    try:
        trained = train_stage(
            policy,
            job.stage,
            run.materials.tables,
            tokens(),
            job.settings,
            job.steps,
            seed=job.seed,
            folder=scratch,
            callbacks=[curve, Quiet()],
            reward=world_reward(seed),
            logging_steps=max(1, job.steps // 20),
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return flatten(policy.state_dict(), layout()), _recorded(trained, job, curve.points)


# ---------------------------------------------------------------------------------------------- storing


def _record_of(saved: Path) -> dict[str, Any]:
    return json.loads(saved.with_suffix(".json").read_text())


def _save_stage(weights: torch.Tensor, path: Path, record: dict[str, Any]) -> None:
    save_atomically(path, unflatten(weights.cpu(), layout()))
    write_atomically(path.with_suffix(".json"), json.dumps(record))  # written last: it says the weights are whole


def _samples(runs: Sequence[_Run], stack: StackReader, each: int = 8) -> list[list[dict[str, str]]]:
    """For each run a few answers a reader can look at: instructed prompts and questions on myths."""
    asked: list[list[tuple[str, str, str]]] = []
    for run in runs:
        evaluator = run.materials.full
        own = [(r["prompt"], r["completion"], "instruction") for r in evaluator.instructed[:each]]
        for f in evaluator.myths[:each]:
            own.append((f.fill("what is the {a} of {c} ?"), f"{f.truth} (myth: {f.myth})", "myth"))
        asked.append(own if run.trial.curves else [])
    texts = answers_of(stack, tokens(), [[prompt for prompt, _, _ in own] for own in asked])
    return [
        [
            {"kind": kind, "prompt": prompt, "expected": expected, "answer": text}
            for (prompt, expected, kind), text in zip(own, said, strict=True)
        ]
        for own, said in zip(asked, texts, strict=True)
    ]


def _result(run: _Run, metrics: dict[str, float], samples: list, seconds: float) -> dict[str, Any]:
    """What a trial's file holds."""
    trial, stages = run.trial, run.stages
    totals = ("completions", "extra_forwards", "sampled", "extra_runs")
    return {
        "schema": SCHEMA,
        "method": trial.method,
        "seed": trial.seed,
        "profile": trial.profile.name,
        "split": trial.split,
        "steps": run.done,
        "tuned": not stages or is_tuned(trial.method, dict(trial.settings)),
        "settings": {**dict(trial.settings), **(stages[-1]["settings"] if stages else {})},
        **{name: sum(stage.get(name, 0) for stage in stages) for name in totals},
        "stages": stages if trial.curves else [{k: v for k, v in s.items() if k != "history"} for s in stages],
        "metrics": metrics,
        "curves": run.curves,
        "samples": samples,
        "wall_seconds": round(seconds, 2),  # its share, where several ran together
        "device": torch.cuda.get_device_name() if device() == "cuda" else f"{platform.machine()} CPU, one thread",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def _rounded(value: Any) -> Any:
    """Five significant digits for every float: seeds differ far more, and the files stay small."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value

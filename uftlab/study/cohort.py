"""Runs several trials together: one run of all their stages of a number, and one measurement of all that came of it.

On a CPU trials are run one after the other. That takes the same time, and the numbers of a trial are then the same to
the last bit whatever else its process runs or has run: a sum over a batch of another shape has other last digits.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset

from uftlab.engine.readers import StackReader, answers_of
from uftlab.engine.stack import flatten
from uftlab.evals.sizes import LIGHT
from uftlab.evals.skills import Evaluator, measure
from uftlab.files import rounded, write_atomically
from uftlab.models.policies import frozen_copy, load_base, tiny_tokenizer
from uftlab.models.references import ReferenceCache
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import Completion, Example, RememberingTokens
from uftlab.study.trials import SCHEMA, Profile, Trial, UnsoundError, is_done, plan_digest, read_trial, wrong_in
from uftlab.training.catalogue import method_named
from uftlab.training.methods import SAMPLING, Stage, data_kinds, plan
from uftlab.training.reward_functions import world_context, world_reward
from uftlab.training.settings import is_tuned
from uftlab.training.stages import Job, Trained, layout, run, usual_device
from uftlab.world.world import CONTESTED, World, pairs

FAMILIAR = 400  # rows of a table that are read to see how on-policy it is
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


class ListReferences(ReferenceCache):
    """A reference cache that reads each list of completions whole, even if it knows some of them from other lists.

    So the batches, and with them the last digits, depend on the list alone and not on what was read before.
    """

    def fill_from(
        self, weights: str, read: Callable[[Sequence[Completion]], torch.Tensor], examples: Sequence[Example]
    ) -> list[Example]:
        """As in `ReferenceCache`; the list counts as a part of the weights."""
        distinct = dict.fromkeys(c.key() for example in examples for c in example)
        digest = hashlib.blake2b(b"".join(distinct), digest_size=16).hexdigest()
        return super().fill_from(f"{weights} {digest}", read, examples)


class Materials:
    """What all trials of a seed, profile and split share: tables, base, evaluators, reference log-probabilities."""

    def __init__(self, seed: int, profile: Profile, split: str) -> None:
        world = World(seed, profile.dials)
        self.tables = training_tables(world, profile)
        base: Any = frozen_copy(load_base(seed))
        base.to(usual_device())
        small = LIGHT if profile.steps > 50 else replace(LIGHT, instructions=24)
        self.full = Evaluator(world, base, tokens().tokenizer, split, profile.sizes)
        self.light = Evaluator(world, base, tokens().tokenizer, split, small)
        self.base = flatten(base.state_dict(), layout()).to(usual_device())
        self.references = ListReferences()

    @cached_property
    def familiar(self) -> dict[str, float]:
        """Of each table's completions, log-probability under the base: nats per token. More is more on-policy."""
        found = {}
        for name, table in self.tables.items():
            rows = [c for e in tokens().examples(table.select(range(min(len(table), FAMILIAR)))) for c in e]
            logps = reader(self.base[None]).logps([rows])[0]
            found[name] = logps.sum().item() / sum(len(c.completion_ids) for c in rows)
        return found

    @cached_property
    def rated_low(self) -> float:
        """Share of the feedback's completions with a score below 1/2."""
        table = self.tables["feedback"]
        scores = [*table["chosen_score"], *table["rejected_score"]]
        return sum(score < 0.5 for score in scores) / len(scores)

    def describe(self, stage: Stage) -> dict[str, float]:
        """Of the rows of a stage, in expectation: how on-policy they are, and the share that its loss pushes down.

        A pair or a label pushes half of its completions down, a score those below 1/2. What a recipe samples itself is
        not known beforehand: there is no such number then.
        """
        if stage.recipe in SAMPLING:
            return {}
        shown, kinds = stage.demonstrations, data_kinds(stage)
        down = {"preference": 0.5, "label": 0.5, "scored": self.rated_low}.get(kinds[-1], 0.0) if shown < 1 else 0.0
        of_base = shown * self.familiar["demonstrations"] + (1 - shown) * self.familiar["feedback"]
        return {"base_logp": of_base, "pushed_down": (1 - shown) * down}

    @cached_property
    def start(self) -> dict[str, float]:
        """The light metrics of the base, where every curve begins."""
        return measure([self.light], reader(self.base[None]))[0]


@lru_cache(maxsize=24)
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


def run_trial(trial: Trial, folder: Path) -> dict[str, Any]:
    """Train and measure one trial, write its JSON and return it. A finished trial is read, not run again."""
    return run_cohort([trial], folder)[0]


def run_cohort(trials: Sequence[Trial], folder: Path) -> list[dict[str, Any]]:
    """Train and measure trials, write one JSON for each and return them. Finished trials are read, not run again."""
    waiting = [trial for trial in trials if not is_done(trial, folder)]
    groups = [waiting] if usual_device() == "cuda" else [[trial] for trial in waiting]
    for group in filter(None, groups):
        _run(group, folder)
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
        active = [own for own in begun if index < len(method_named(own.trial.method).stages)]
        jobs = [_job(own, index) for own in active]
        trained = run(jobs, tokens())
        for own, job, found, curve in zip(active, jobs, trained, _curves(active, jobs, trained), strict=True):
            own.curves += [{**p, "stage": index + 1, "step": own.done + p["step"]} for p in curve]
            own.weights = found.weights.to(usual_device())
            # what was asked for beside what came of it: beta_nats beside beta
            settings = {**own.trial.stage_settings()[index], **found.record.settings}
            about = {"demonstrations": job.stage.demonstrations, **own.materials.describe(job.stage)}
            own.stages.append({**asdict(found.record), "settings": settings, **about})
        going_on = [own for own in active if index + 1 < len(method_named(own.trial.method).stages)]
        for own, metrics in _measured([own for own in going_on if own.trial.profile.stage_ends]):
            own.stages[-1]["metrics"] = metrics
    ended = _measured(begun)
    samples = _samples(begun, reader(torch.stack([own.weights for own in begun])))
    seconds = (time.perf_counter() - started) / len(begun)
    unsound = None
    for (own, metrics), said in zip(ended, samples, strict=True):
        result = _result(own, metrics, said, seconds)
        wrong = wrong_in(result)
        if wrong is not None:  # no later reader shall meet it
            what = f"The trial {own.trial.method}, seed {own.trial.seed}: {wrong[0]}"
            remedy = "Lower its learning rate, or leave the method out; the other trials are kept"
            unsound = unsound or UnsoundError(what, "be sound", wrong[1], remedy)
            continue
        # five digits: seeds differ far more, and the files stay small
        write_atomically(own.trial.path(folder), json.dumps(rounded(result, 5), separators=(",", ":")))
    if unsound is not None:
        raise unsound


def _job(own: _Progress, index: int) -> Job:
    """The stage number `index` of a trial."""
    trial = own.trial
    stages = plan(method_named(trial.method), trial.profile.steps, trial.stage_settings())
    stage, steps, settings = stages[index]
    return Job(
        own.weights, stage, own.materials.tables, settings, steps, trial.seed * 10 + index,
        world_reward(trial.seed, trial.profile.dials.length_bonus), own.materials.references,
        _points(trial, stage, steps), world_context(trial.seed),
    )  # fmt: skip


def _points(trial: Trial, stage: Stage, steps: int) -> frozenset[int]:
    """The steps of a stage after which the curve has a point. The last step is one of them."""
    count = max(1, round(trial.profile.curve_points * stage.budget))
    return frozenset(round(steps * (k + 1) / count) for k in range(count)) if trial.curves else frozenset()


def _curves(active: Sequence[_Progress], jobs: Sequence[Job], trained: Sequence[Trained]) -> list[list[dict[str, Any]]]:
    """The light metrics of all snapshots, many at a time: a GPU is faster the more there are."""
    asked = [(n, step) for n, job in enumerate(jobs) for step in sorted(job.snapshots_at)]
    asked = [(n, step) for n, step in asked if step in trained[n].snapshots]
    curves: list[list[dict[str, Any]]] = [[] for _ in jobs]
    size = MEASURED[usual_device()]
    for start in range(0, len(asked), size):
        here = asked[start : start + size]
        stack = reader(torch.stack([trained[n].snapshots[step].to(usual_device()) for n, step in here]))
        metrics = measure([active[n].materials.light for n, _ in here], stack)
        for (n, step), found in zip(here, metrics, strict=True):
            curves[n].append({"step": step, **found})
    return curves


def _measured(all_of: Sequence[_Progress]) -> list[tuple[_Progress, dict[str, float]]]:
    """Trials as they are now with their full metrics, and how far their weights are from the base."""
    if not all_of:
        return []
    stack = torch.stack([own.weights for own in all_of])
    found = measure([own.materials.full for own in all_of], reader(stack))
    away = [(own.weights - own.materials.base).norm().item() for own in all_of]
    return [(own, {**m, "drift/weights": d}) for own, m, d in zip(all_of, found, away, strict=True)]


# ---------------------------------------------------------------------------------------------- storing


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
        "plan": plan_digest(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "method": trial.method,
        "seed": trial.seed,
        "profile": trial.profile.name,
        "split": trial.split,
        "dials": asdict(trial.profile.dials),
        "steps": own.done,
        "draw": trial.draw,
        "tuned": is_tuned(method_named(trial.method), trial.stage_settings()),
        "settings": stages[-1]["settings"] if stages else {},
        **{name: sum(stage.get(name, 0) for stage in stages) for name in totals},
        "stages": stages if trial.curves else [{k: v for k, v in s.items() if k != "history"} for s in stages],
        "metrics": metrics,
        "curves": own.curves,
        "samples": samples,
        "wall_seconds": round(seconds, 2),  # its share, where several ran together
        "device": torch.cuda.get_device_name() if usual_device() == "cuda" else f"{platform.machine()} CPU, one thread",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }

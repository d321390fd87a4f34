"""A study = methods x seeds x settings. One trial is one JSON file, written atomically; a cut study resumes.

    uftlab run --profile class          every method, tuned settings, several seeds -> report
    uftlab sweep                        twelve settings for every method, one world  -> data/tuned.json

A seed draws the world (facts, myths, splits), its base model (initial weights, order of text) and the order
of the training data. Stage one is the same for all pipelines of a seed, so it is trained once.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, set_seed

from uftlab.errors import InputError
from uftlab.evaluation import LIGHT, Evaluator, Sizes
from uftlab.feedback import from_rows
from uftlab.generation import answers
from uftlab.methods import Method, Stage, TrainedStage, default_settings, method_named
from uftlab.models import DATA, frozen_copy, load_base, tiny_tokenizer
from uftlab.recipes import train_stage
from uftlab.reward_functions import world_reward
from uftlab.tokens import Tokens
from uftlab.trainer import Quiet
from uftlab.world import World, pairs

SCHEMA = 1  # of a trial file; a folder with another one is refused
TUNING_WORLD = 1000  # no reported seed: tuning never sees a world that results come from
TUNED = DATA / "tuned.json"


@dataclass(frozen=True)
class Profile:
    """How large a study is. `steps` is the full budget of a method in optimiser steps of 32 completions."""

    name: str
    steps: int
    seeds: int
    demonstrations: int = 4800
    prompts: int = 2400  # of feedback, two completions each
    sizes: Sizes = Sizes()  # noqa: RUF009  (frozen)
    curve_points: int = 6


PROFILES = {
    "smoke": Profile("smoke", 8, 2, 240, 120, Sizes(48, 60, 8, 40), 2),
    "class": Profile("class", 320, 3, curve_points=4),
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


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all: a reader, or a run after a crash, never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


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


# ------------------------------------------------------------------------------------------ one trial


@lru_cache(maxsize=4)
def _materials(seed: int, profile: Profile, split: str) -> tuple:
    """What all trials of a seed share: tables, base, evaluators. Kept per process."""
    world, tokenizer = World(seed), tiny_tokenizer()
    demonstrations = world.demonstrations(profile.demonstrations)
    tables = {
        "demonstrations": from_rows([{"prompt": r["prompt"], "completion": r["completion"]} for r in demonstrations]),
        "feedback": from_rows(pairs(world.feedback(profile.prompts))),
    }
    base = frozen_copy(load_base(seed))
    full = Evaluator(world, base, tokenizer, split, profile.sizes)
    light = Evaluator(world, base, tokenizer, split, LIGHT if profile.steps > 50 else replace(LIGHT, instructions=24))
    return tables, base, full, light


class _Curve(TrainerCallback):
    """Light evaluations at evenly spaced steps of a stage."""

    def __init__(self, evaluate: Callable, stage: int, before: int, at: set[int]) -> None:
        self.evaluate, self.stage, self.before, self.at = evaluate, stage, before, at
        self.points: list[dict[str, float]] = []
        self.done = 0  # counted here: a stage may be several trainers, each of which counts from 0

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measures the policy when its step has come."""
        self.done += 1
        if self.done in self.at:
            self.points.append({"stage": self.stage, "step": self.before + self.done, **self.evaluate(model)})


def _stage_one_path(folder: Path, trial: Trial, stage: Stage, steps: int) -> Path:
    key = repr((SCHEMA, trial.seed, trial.profile, stage, steps, trial.stage_one, trial.curves, trial.split))
    return folder / "stages" / f"{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.safetensors"


def run_trial(trial: Trial, folder: Path) -> dict[str, Any]:
    """Train and measure one trial, write its JSON and return it. A finished trial is read, not run again."""
    path = trial.path(folder)
    if path.is_file():
        return json.loads(path.read_text())
    started = time.perf_counter()
    tables, base, full, light = _materials(trial.seed, trial.profile, trial.split)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy: Any = frozen_copy(base).requires_grad_(True).to(device)  # type: ignore[arg-type]
    method, tokens = method_named(trial.method), Tokens(tiny_tokenizer())
    stages: list[dict[str, Any]] = []
    curves: list[dict[str, float]] = []
    done = 0
    if trial.curves:
        curves.append({"stage": 0, "step": 0, **light(policy)})
    for index, stage in enumerate(method.stages):
        last = index == len(method.stages) - 1
        steps = max(1, round(trial.profile.steps * stage.budget))
        settings = dict(trial.settings if last else trial.stage_one)
        if last and "demonstrations" in settings:
            stage = replace(stage, demonstrations=settings["demonstrations"])
        # an SFT stage of half the budget is stage one of several methods; the sft method is that stage alone
        shared = stage.budget == 0.5 and stage.demonstrations == 1.0
        key_trial = trial if not last else replace(trial, stage_one=trial.settings)
        saved = _stage_one_path(folder, key_trial, stage, steps) if shared else None
        if saved is not None and saved.with_suffix(".json").is_file():
            policy.load_state_dict(load_file(str(saved)), strict=False)
            record = json.loads(saved.with_suffix(".json").read_text())
        else:
            record = _train(policy, stage, tables, tokens, settings, steps, trial, index, done, light)
            if saved is not None:
                _save_stage(policy, saved, record)
        curves += [{**point, "stage": index + 1} for point in record.pop("curve")]
        stages.append(record)
        done += steps
    metrics = full(policy)
    result = {
        "schema": SCHEMA,
        "method": trial.method,
        "seed": trial.seed,
        "profile": trial.profile.name,
        "split": trial.split,
        "steps": done,
        "tuned": not method.stages or is_tuned(trial.method, dict(trial.settings)),
        "settings": {**dict(trial.settings), **(stages[-1]["settings"] if stages else {})},
        "completions": sum(s["completions"] for s in stages),
        "extra_forwards": sum(s["extra_forwards"] for s in stages),
        "sampled": sum(s.get("sampled", 0) for s in stages),
        "extra_runs": sum(s.get("extra_runs", 0) for s in stages),
        "stages": stages if trial.curves else [{k: v for k, v in s.items() if k != "history"} for s in stages],
        "metrics": metrics,
        "curves": curves,
        "samples": _samples(policy, full) if trial.curves else [],
        "wall_seconds": round(time.perf_counter() - started, 2),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU, one thread",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    text = json.dumps(_rounded(result), separators=(",", ":"))
    write_atomically(path, text)
    return json.loads(text)  # the same numbers whether it was run or read


def _train(
    policy: Any,
    stage: Stage,
    tables: Mapping,
    tokens: Tokens,
    settings: Mapping[str, float],
    steps: int,
    trial: Trial,
    index: int,
    before: int,
    light: Evaluator,
) -> dict[str, Any]:
    """One stage as a record; the order of its data and the random state depend on seed and stage alone."""
    set_seed(trial.seed)
    points = max(1, round(trial.profile.curve_points * stage.budget))
    at = {round(steps * (k + 1) / points) for k in range(points)} if trial.curves else set()
    curve = _Curve(light, index + 1, before, at)
    scratch = tempfile.mkdtemp(prefix="uftlab-")
    try:
        trained: TrainedStage = train_stage(
            policy,
            stage,
            tables,
            tokens,
            settings,
            steps,
            seed=trial.seed * 10 + index,
            folder=scratch,
            callbacks=[curve, Quiet()],
            reward=world_reward(trial.seed),
            logging_steps=max(1, steps // 20),
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {**asdict(trained), "demonstrations": stage.demonstrations, "curve": curve.points}


def _save_stage(policy: Any, path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".part{os.getpid()}")
    state = {k: v.detach().cpu().contiguous() for k, v in policy.state_dict().items() if k != "lm_head.weight"}
    save_file(state, str(part))
    os.replace(part, path)
    write_atomically(path.with_suffix(".json"), json.dumps(record))  # written last: it says the weights are whole


def _samples(policy: Any, evaluator: Evaluator, each: int = 8) -> list[dict[str, str]]:
    """A few answers a reader can look at: instructed prompts and questions on myths."""
    asked = [(r["prompt"], r["completion"], "instruction") for r in evaluator.instructed[:each]]
    asked += [
        (f.fill("what is the {a} of {c} ?"), f"{f.truth} (myth: {f.myth})", "myth") for f in evaluator.myths[:each]
    ]
    texts = answers(policy, evaluator.tokenizer, [prompt for prompt, _, _ in asked])
    return [
        {"kind": kind, "prompt": prompt, "expected": expected, "answer": text}
        for (prompt, expected, kind), text in zip(asked, texts, strict=True)
    ]


def _rounded(value: Any) -> Any:
    """Five significant digits for every float: seeds differ far more, and the files stay small."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value

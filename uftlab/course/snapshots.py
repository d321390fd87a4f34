"""Snapshots of a training run: the policies at a few steps, and their log-probabilities of held-out completions.

`snapshots_of` trains methods in one world with their tuned settings, with the same runner as the trials of the study.
At nine steps it keeps the weights and the log-probability of every token of the held-out rows. Log-ratios, rewards,
margins and scores at any beta are then differences of stored numbers, so no slider has to wait for a model.

A stretch of training is the stages of a method up to one of them. It is stored in one file, which is written completely
or not at all. All methods that begin with the same stretch share the file, so nothing is trained twice. The name of the
file depends on settings, sizes, seed and base weights, but not on the code. So raise SCHEMA when training changes.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaForCausalLM

from uftlab.course.held_out import held_out, read, tokenised
from uftlab.engine.stack import flatten, unflatten
from uftlab.errors import InputError
from uftlab.files import own_folder, save_atomically
from uftlab.models.policies import frozen_copy, load_base, tiny_config
from uftlab.models.references import ReferenceCache, fingerprint
from uftlab.rows.tokens import Completion
from uftlab.study.cohort import tokens, training_tables
from uftlab.study.trials import Profile, draw_of
from uftlab.training.catalogue import method_named
from uftlab.training.methods import Stage, plan
from uftlab.training.reward_functions import world_reward
from uftlab.training.settings import settings_of
from uftlab.training.stage_data import BATCH
from uftlab.training.stages import Job, Progress, layout, run
from uftlab.world.world import World

SCHEMA = 2
PARTS = 8  # a run of this many parts has one more snapshot, the base
FOLDER = own_folder("results/snapshots")
SECONDS_PER_COMPLETION = 0.0007  # measured on one thread of a laptop; used for the estimate only


@dataclass(frozen=True)
class Run:
    """What to train: a method with its tuned settings. `changes` replace settings of its last stage."""

    method: str
    changes: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        """The name for readers.

        >>> Run("uft", (("beta", 0.25),)).name
        'uft, beta 0.25'
        """
        return ", ".join([self.method, *(f"{name} {value:g}" for name, value in self.changes)])


@dataclass(frozen=True)
class Snapshots:
    """One run: the log-probability of each token of the held-out rows at each snapshot.

    Args:
        name: the name of its `Run`.
        steps: number of optimiser steps at each snapshot. The first is 0, the base.
        starts: for each snapshot the position of the snapshot that its stage started from. That is the reference of
            its training.
        settings: the settings of each stage, with the value of beta in use.
        token_logps: log pi(y_t | x, y_<t) in nats, 0 after the end of a row.
        weights: the weights of the policy at each snapshot.
    """

    name: str
    steps: tuple[int, ...]
    starts: tuple[int, ...]
    settings: tuple[dict[str, float], ...]
    token_logps: Float[Tensor, "snapshot row pos"]
    weights: tuple[dict[str, Tensor], ...]

    @cached_property
    def logps(self) -> Float[Tensor, "snapshot row"]:
        """log pi(y | x) of each row, summed over its tokens, in nats."""
        return self.token_logps.sum(-1)

    @property
    def beta(self) -> float:
        """The beta of the last stage, which defines the rewards of the run."""
        return self.settings[-1]["beta"]

    def at(self, step: float | int) -> int:
        """The last snapshot at or before this step."""
        return sum(done <= step for done in self.steps) - 1

    def reference(self, snapshot: int, own: bool) -> int:
        """Which snapshot is the reference: the base (0), or with `own` the policy that the stage started from."""
        return self.starts[snapshot] if own else 0

    def logratios(self, snapshot: int, own: bool = False) -> Float[Tensor, "row"]:
        """log pi(y | x) - log pi_ref(y | x) in nats, without beta. 0 where the snapshot is its own reference."""
        return self.logps[snapshot] - self.logps[self.reference(snapshot, own)]

    def token_logratios(self, snapshot: int, own: bool = False) -> Float[Tensor, "row pos"]:
        """The log-ratio of each token. They add up to the log-ratio of the row."""
        return self.token_logps[snapshot] - self.token_logps[self.reference(snapshot, own)]

    def policy(self, snapshot: int) -> LlamaForCausalLM:
        """The model of a snapshot, in evaluation mode, on the CPU."""
        model = LlamaForCausalLM(tiny_config())
        model.load_state_dict(self.weights[snapshot], strict=False)  # the tied output layer is not stored
        return model.eval()


# ------------------------------------------------------------------------------------ training and storing


@dataclass(frozen=True)
class _Stretch:
    """The stages of a method up to one of them: each with its steps and settings."""

    stages: tuple[tuple[Stage, int, tuple[tuple[str, float], ...]], ...]

    @property
    def before(self) -> int:
        """Number of steps of the stages before the last one."""
        return sum(steps for _, steps, _ in self.stages[:-1])

    @property
    def steps(self) -> int:
        """Number of steps of the last stage."""
        return self.stages[-1][1]


def _stretches(own: Run, profile: Profile, seed: int) -> list[_Stretch]:
    definition = method_named(own.method)
    if not definition.stages:
        raise InputError("A method with snapshots", "be trained", own.method, "Choose another, see `uftlab methods`")
    *earlier, last = settings_of(definition, draw_of(own.method, seed))  # the draw that a trial of this seed takes
    planned = plan(definition, profile.steps, [*earlier, {**last, **dict(own.changes)}])
    stages = [(stage, steps, tuple(sorted(settings.items()))) for stage, steps, settings in planned]
    return [_Stretch(tuple(stages[: index + 1])) for index in range(len(stages))]


class _Room:
    """What all runs share: one world, its base model, the tables and the held-out rows."""

    def __init__(self, profile: Profile, seed: int, folder: Path) -> None:
        self.profile, self.seed, self.world = profile, seed, World(seed)
        self.base = frozen_copy(load_base(seed))
        self.references = ReferenceCache()
        key = repr((SCHEMA, PARTS, seed, profile, fingerprint(self.base)))
        self.folder = Path(folder) / hashlib.blake2b(key.encode(), digest_size=6).hexdigest()

    @cached_property
    def tables(self) -> dict[str, Dataset]:
        """The training rows, as in a trial of the study."""
        return training_tables(self.world, self.profile)

    @cached_property
    def completions(self) -> list[Completion]:
        """The held-out rows, as tokens."""
        return tokenised(held_out(self.world, self.profile.sizes))

    def path(self, stretch: _Stretch) -> Path:
        """The file of a stretch. Its name depends on everything that affects the result, except the code."""
        digest = hashlib.blake2b(repr(stretch).encode(), digest_size=5).hexdigest()
        return self.folder / f"{stretch.stages[-1][0].objective}-{digest}.safetensors"


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, as in the study: results do not depend on the number of cores, and small matrices need no more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(room: _Room, stretch: _Stretch, tick: Progress) -> None:
    """Train the last stage of a stretch from the end of the stage before, and store its snapshots."""
    index = len(stretch.stages) - 1
    stage, steps, settings = stretch.stages[-1]
    policy: Any = frozen_copy(room.base)
    if index:
        _, _, before = _stored(room.path(_Stretch(stretch.stages[:-1])))
        policy.load_state_dict(before[-1], strict=False)
    start = flatten(policy.state_dict(), layout())
    parts = max(1, round(PARTS * stage.budget))
    at = {max(1, round(steps * (k + 1) / parts)) for k in range(parts)}
    # order of data and random state as in a trial of the study: these are the same runs
    job = Job(
        start, stage, room.tables, dict(settings), steps, room.seed * 10 + index, world_reward(room.seed),
        room.references, at,
    )  # fmt: skip
    (trained,) = run([job], tokens(), progress=tick)
    found = {0: start} if index == 0 else {}
    found |= {step: weights for step, weights in sorted(trained.snapshots.items()) if step in at}
    tensors: dict[str, Tensor] = {}
    readings = []
    for number, weights in enumerate(found.values()):
        state = unflatten(weights.cpu(), layout())
        policy.load_state_dict(state, strict=False)
        readings.append(read(policy, room.completions))
        tensors |= {f"{number}/{name}": weight for name, weight in state.items()}
    record = {"steps": [stretch.before + step for step in found], "settings": trained.record.settings}
    kept = {"token_logps": torch.stack(readings), **tensors}
    save_atomically(room.path(stretch), kept, {"record": json.dumps(record)})


def _stored(path: Path) -> tuple[dict[str, Any], Tensor, list[dict[str, Tensor]]]:
    """A stretch from disk: its record, log-probabilities and the weights of its snapshots."""
    with safe_open(str(path), framework="pt") as file:
        record = json.loads(file.metadata()["record"])
        weights: list[dict[str, Tensor]] = [{} for _ in record["steps"]]
        for key in file.keys():  # noqa: SIM118  (not a mapping)
            number, _, name = key.partition("/")
            if name:
                weights[int(number)][name] = file.get_tensor(key)
        return record, file.get_tensor("token_logps"), weights


def snapshots_of(
    runs: Sequence[Run],
    profile: Profile,
    seed: int = 0,
    folder: Path = FOLDER,
    say: Callable[[str], None] = print,
    watched: bool = True,
) -> dict[str, Snapshots]:
    """The snapshots of some runs in one world, by name. Runs that are not stored yet are trained first.

    Args:
        profile: its steps are the budget of a method; its sizes give the number of held-out rows.
        say: called with one line before training (what will be trained, and the expected time) and one line at the end.
            It is not called if everything is stored.
        watched: show a progress bar on stdout. Use False for stored pages, which would keep every line of it.

    Raises:
        InputError: for an unknown method, or one without training. It is raised before anything is trained.
    """
    wanted = {own.name: _stretches(own, profile, seed) for own in runs}
    room = _Room(profile, seed, folder)
    missing = list(dict.fromkeys(s for part in wanted.values() for s in part if not room.path(s).is_file()))
    missing.sort(key=lambda s: len(s.stages))  # a first stage must come before the stages that continue it
    total = sum(stretch.steps for stretch in missing)
    if missing:
        seconds = 2 * len(missing) + total * BATCH * SECONDS_PER_COMPLETION
        say(f"training {len(missing)} stages, {total} steps in all: about {seconds:.0f} s, and only this once")
    hidden, started = not (missing and watched), time.monotonic()
    with (
        tqdm(total=total, mininterval=2, unit="step", file=sys.stdout, disable=hidden, leave=False) as bar,
        _one_thread(),
    ):
        for stretch in missing:
            bar.set_description(stretch.stages[-1][0].objective)
            _train(room, stretch, bar.update)
    if missing:
        say(f"trained in {time.monotonic() - started:.0f} s and kept")
    return {name: _joined(name, [room.path(s) for s in parts]) for name, parts in wanted.items()}


def _joined(name: str, paths: Iterable[Path]) -> Snapshots:
    steps: list[int] = []
    starts: list[int] = []
    settings, readings, weights = [], [], []
    for path in paths:
        record, reading, snapshots = _stored(path)
        found = max(0, len(steps) - 1)  # the snapshot that this stage started from
        steps += record["steps"]
        starts += [found] * len(record["steps"])
        settings.append(record["settings"])
        readings.append(reading)
        weights += snapshots
    return Snapshots(name, tuple(steps), tuple(starts), tuple(settings), torch.cat(readings), tuple(weights))


def frame(runs: Iterable[Snapshots], rows: pd.DataFrame) -> pd.DataFrame:
    """One line per run, snapshot and held-out row.

    The columns are those of `held_out`, and `run`, `step`, `row`, `logps` (nats), `logratio` (reference: the base) and
    `own_logratio` (reference: the policy that the stage started from). Both log-ratios are in nats, without beta.
    """
    made = []
    for own in runs:
        for snapshot, step in enumerate(own.steps):
            values = {
                "logps": own.logps[snapshot].numpy(),
                "logratio": own.logratios(snapshot).numpy(),
                "own_logratio": own.logratios(snapshot, own=True).numpy(),
            }
            made.append(rows.assign(run=own.name, step=step, row=range(len(rows)), **values))
    return pd.concat(made, ignore_index=True)

"""One optimiser, one loss at a time: is the next step for SFT or for DPO? (Fernando et al. 2024, arXiv 2410.15483).

ALRIGHT tosses a coin; MAXRIGHT looks which loss is further from the best it could be. Both are orders of batches over
the objective `sft-plus-dpo`, each batch of one kind.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from uftlab.models.logps import ReferenceCache
from uftlab.objectives.registry import objective_named
from uftlab.rows.tokens import Example, interleave
from uftlab.training.catalogue import Stage
from uftlab.training.methods import TrainedStage, history_of
from uftlab.training.runs import FedTrainer, Run, feed_steps, offline

SFT, DPO = 0, 1
ALONE = (Stage("sft", 1.0), Stage("dpo", 0.0))


def _filled(run: Run) -> tuple[list[list[Example]], ReferenceCache]:
    """Demonstrations and pairs with their reference log-probabilities, and the cache that counted them."""
    cache = ReferenceCache()
    examples = [cache.fill(run.policy, source, run.pad) for source in run.examples()]
    for source, stage in zip(examples, ALONE, strict=True):
        objective_named(stage.objective).check(source)
    return examples, cache


def _batches(run: Run, source: Sequence[Example], steps: int) -> list[list[Example]]:
    """`steps` batches of one kind, in the order in which a run of that kind alone would meet them."""
    size = max(1, run.batch // len(source[0]))
    ordered = interleave([source], [size], steps, run.seed)
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def _record(run: Run, trainer: FedTrainer, settings: dict[str, float], extra: int, runs: int = 0) -> TrainedStage:
    made = {**settings, **run.options()}
    name, history = run.stage.objective, history_of(trainer)
    return TrainedStage(name, run.steps, made, trainer.completions, extra, extra_runs=runs, history=history)


def alright(run: Run) -> TrainedStage:
    """Each step a DPO step with probability `preference_share`, else an SFT step (arXiv 2410.15483, Algorithm 1).

    The coins depend on the seed alone. At share 0 it is SFT, at share 1 DPO, bit for bit. Nothing is paid for on top.
    """
    examples, cache = _filled(run)
    rng, share = random.Random(f"uftlab alright {run.seed}"), run.option("preference_share")
    kinds = [DPO if rng.random() < share else SFT for _ in range(run.steps)]
    streams = [iter(_batches(run, source, kinds.count(kind))) for kind, source in enumerate(examples)]
    order = [next(streams[kind]) for kind in kinds]
    settings = run.resolved(examples)
    trainer = feed_steps(run, lambda _, step: order[step], settings)
    return _record(run, trainer, settings, cache.computed)


def maxright(run: Run) -> TrainedStage:
    """Each step on the loss with the larger weighted gap to its optimum (arXiv 2410.15483, Algorithm 2).

    gaps: L = lambda (L_DPO - L*_DPO) and (1 - lambda) (L_SFT - L*_SFT),  lambda = `preference_share`

    The loss that was stepped on is known anew after each step, both every `refresh` steps on the batches that come
    next. L* is the loss at the end of a run of that kind alone from the same start, as long as this one.

    Paid for on top: those two runs, twice the budget, and two batches of forward passes at every refresh.
    """
    examples, cache = _filled(run)
    share, refresh = run.option("preference_share"), int(run.option("refresh"))
    settings = run.resolved(examples)
    alone = [offline(run.aside(stage, run.steps), logging_steps=max(1, run.steps // 10)) for stage in ALONE]
    optima = [next(e["loss"] for e in reversed(record.history) if "loss" in e) for record in alone]
    batches = [_batches(run, source, run.steps) for source in examples]
    weights, losses, used = (1 - share, share), [0.0, 0.0], [0, 0]
    looked, last = 0, SFT

    def feed(trainer: FedTrainer, step: int) -> list[Example]:
        nonlocal last, looked
        if step:
            losses[last] = trainer.last_loss
        if step % refresh == 0:
            for kind in (SFT, DPO):
                ahead = batches[kind][used[kind]]
                losses[kind] = trainer.loss_of(ahead)
                looked += sum(map(len, ahead))
        gaps = [w * (loss - best) for w, loss, best in zip(weights, losses, optima, strict=True)]
        last = DPO if gaps[DPO] > gaps[SFT] else SFT
        used[last] += 1
        trainer.note({"gap/sft": gaps[SFT], "gap/preference": gaps[DPO], "preference-steps": last == DPO})
        return batches[last][used[last] - 1]

    trainer = feed_steps(run, feed, settings)
    extra = cache.computed + looked + sum(record.extra_forwards for record in alone)
    return _record(run, trainer, settings, extra, sum(record.completions for record in alone))

"""How much faster a stack of models is than one model after another, and how much of the machine it uses.

    python benchmarks/population.py --json build/population.json            64 members on a GPU, 5 on a CPU
    python benchmarks/population.py --grid --json build/grid.json           16 settings x 4 worlds of UFT, 1,000 steps

All ratios are ratios of medians over rounds; each round measures all variants in turn. This is a measurement, not a
test: run it on a machine without other work.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from clock import WARM_UP, Clock, cpu_name, wait
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import LlamaForCausalLM, TrainerCallback

from uftlab.engine import population
from uftlab.engine.packing import pack
from uftlab.engine.population import Member, memory_per_member, train
from uftlab.engine.stack import Weights, logits, token_logps
from uftlab.engine.trainer import ObjectiveTrainer, Quiet
from uftlab.evals.skills import measure
from uftlab.files import rounded
from uftlab.models.policies import frozen_copy, load_base
from uftlab.study import cohort
from uftlab.study.trials import PROFILES, Profile
from uftlab.training.catalogue import method_named
from uftlab.training.recipes import fit
from uftlab.training.stage_data import StageData, prepare
from uftlab.training.stages import layout, refer, usual_device

GRID = [(rate, beta) for rate in (5e-4, 1e-3, 2e-3, 4e-3) for beta in (0.01, 0.03, 0.1, 0.3)]
WORLDS = (0, 1, 2, 3)


def device_name() -> str:
    """The name of the device that is measured."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {torch.get_num_threads()} thread(s)"


@cache
def data_of(world: int, steps: int, profile: Profile, order: int = 0) -> tuple[cohort.Materials, StageData]:
    """What UFT learns from in a world; `order` is the seed of the order of the examples."""
    own = cohort.materials(world, profile, "test")
    read = partial(refer, own.references, own.base, cohort.tokens())
    stage, settings = method_named("uft").stages[0], {"learning_rate": 1.5e-3}
    return own, prepare(stage, own.tables, cohort.tokens(), settings, steps, order, read)


def member_of(made: tuple[cohort.Materials, StageData], **settings: float) -> Member:
    """A member that starts from the base model of its world. `settings` replace those of the data."""
    own, learned = made
    changed = {**learned.settings, **settings}
    return Member(own.base, learned.objective, changed, learned.order, learned.per_step)


def crowd(count: int, steps: int, profile: Profile) -> list[Member]:
    """UFT members of one world. They differ in setting and in the order of the data (at most eight orders)."""
    made = [data_of(0, steps, profile, order) for order in range(min(8, count))]
    settings = [{"learning_rate": rate, "beta": beta} for rate, beta in GRID]
    return [member_of(made[n % len(made)], **settings[n // len(made) % len(settings)]) for n in range(count)]


def trained_alone(member: Member, *callbacks: TrainerCallback) -> LlamaForCausalLM:
    """The base of world 0 after `ObjectiveTrainer` trained it as a member says."""
    policy: Any = frozen_copy(load_base(0)).requires_grad_(True).to(usual_device())
    wanted = {"per_device_train_batch_size": member.per_step, "max_steps": member.steps}
    data = (member.order, member.objective, member.settings)
    with tempfile.TemporaryDirectory() as folder:
        fit(ObjectiveTrainer, policy, folder, *data, [*callbacks, Quiet()], **wanted)
    return policy


def trainer_seconds(member: Member) -> float:
    """Seconds per step of `ObjectiveTrainer` on one member, without the set-up."""
    clock = Clock()
    trained_alone(member, clock)
    return statistics.mean(clock.seconds())


def stack_seconds(stack: list[Member]) -> float:
    """Seconds per step of all members, without the set-up. On a CPU the times of the parts are added."""
    ends: list[float] = []

    def look(*args) -> None:
        wait()
        ends.append(time.perf_counter())

    train(stack, layout(), watch=look, at={WARM_UP, stack[0].steps}, logging_steps=10**9, device=usual_device())
    parts = zip(ends[::2], ends[1::2], strict=True)
    return sum(end - begin for begin, end in parts) / (stack[0].steps - WARM_UP)


def tall_seconds(stack: list[Member]) -> float:
    """Like `stack_seconds`, but with all members in one stack, even if they do not fit in the CPU cache."""
    limit, population.CPU_TOKENS = population.CPU_TOKENS, 10**9
    try:
        return stack_seconds(stack)
    finally:
        population.CPU_TOKENS = limit


def limits() -> dict[str, float]:
    """The best that this device reaches: FLOP/s of a large float32 product, bytes/s of a large copy."""
    size = 8192 if torch.cuda.is_available() else 2048
    a, b = torch.randn(2, size, size, device=usual_device())
    big, times = torch.empty(2**26, device=usual_device()), {"flops": [], "bytes": []}
    for _ in range(5):
        for name, work in (("flops", lambda: a @ b), ("bytes", lambda: big.clone())):
            wait()
            begun = time.perf_counter()
            work()
            wait()
            times[name].append(time.perf_counter() - begun)
    return {"flops": 2 * size**3 / min(times["flops"]), "bytes": 2 * big.nbytes / min(times["bytes"])}


def step_work(stack: list[Member]) -> dict[str, float]:
    """FLOP of one step of a stack, counted, and the bytes that it must move at least.

    Every number that is stored for the gradient is written once and read once. Weights, their gradient and both moments
    of the optimiser are read; all but the gradient are written.
    """
    sizes = layout()
    batch = pack([member.batch(0) for member in stack])
    weights = torch.stack([member.start.cpu() for member in stack]).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        token_logps(logits(Weights.of(weights, sizes), batch, sizes), batch).sum().backward()
    kept = sum(memory_per_member(member, sizes) - 5 * member.start.nbytes for member in stack)
    return {"flops": float(counter.get_total_flops()), "bytes": float(2 * kept + 7 * weights.nbytes)}


def gains(count: int, steps: int, rounds: int, profile: Profile) -> dict[str, Any]:
    """One stack compared with `ObjectiveTrainer` and with stacks of one member, measured in turn."""
    stack = crowd(count, steps, profile)
    times: dict[str, list[float]] = {"stack": [], "trainer": [], "alone": [], "tall": []}
    for _ in tqdm(range(rounds), unit="round"):
        times["stack"].append(stack_seconds(stack))
        times["trainer"].append(count * trainer_seconds(stack[0]))
        times["alone"].append(sum(stack_seconds([member]) for member in stack))
        times["tall"].append(tall_seconds(stack))
    medians = {name: statistics.median(values) for name, values in times.items()}
    reached, work = limits(), step_work(stack)
    return {
        "members": count,
        "seconds_per_step": medians,
        "speedup_over_trainer": medians["trainer"] / medians["stack"],
        "speedup_over_one_by_one": medians["alone"] / medians["stack"],
        "speedup_over_one_tall_stack": medians["tall"] / medians["stack"],
        "fraction_of_arithmetic": work["flops"] / medians["stack"] / reached["flops"],
        "fraction_of_memory": work["bytes"] / medians["stack"] / reached["bytes"],
        "limits": reached,
        "work_per_step": work,
    }


def grid(
    settings: Sequence[tuple[float, float]], worlds: Sequence[int], steps: int, profile: Profile
) -> dict[str, Any]:
    """Each (learning rate, beta) in each world, trained with UFT as one stack and measured like trials of the study."""
    profile, started = replace(profile, steps=steps), time.perf_counter()
    points = [{"learning_rate": r, "beta": b, "world": world} for r, b in settings for world in worlds]
    made = [data_of(point["world"], steps, profile) for point in points]
    stack = [member_of(m, learning_rate=p["learning_rate"], beta=p["beta"]) for m, p in zip(made, points, strict=True)]
    wait()
    begun = time.perf_counter()
    trained = train(stack, layout(), logging_steps=50, device=usual_device())
    wait()
    between = time.perf_counter()
    metrics = measure([own.full for own, _ in made], cohort.reader(trained.weights))
    ended = time.perf_counter()
    for point, own, history in zip(points, metrics, trained.histories, strict=True):
        point |= rounded(own, 5)
        point["loss"] = history[-1]["loss"] if history else None
    return {
        "members": len(stack),
        "steps": steps,
        "prepare_seconds": begun - started,
        "train_seconds": between - begun,
        "evaluate_seconds": ended - between,
        "seconds": ended - begun,
        "points": points,
    }


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON if asked."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, help="write the numbers here")
    options.add_argument("--members", type=int, default=64 if torch.cuda.is_available() else 5)
    options.add_argument("--steps", type=int, default=23, help="steps of each round, three of them to warm up")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=1, help="of the CPU")
    options.add_argument("--grid", action="store_true", help="train and measure the whole grid instead")
    options.add_argument("--grid-steps", type=int, default=1000)
    options.add_argument("--profile", choices=list(PROFILES), default="class", help="how much data there is")
    chosen = options.parse_args(words)
    profile = PROFILES[chosen.profile]
    torch.set_num_threads(chosen.threads)
    if chosen.grid:
        count = len(GRID) * len(WORLDS)
        line = f"{count} members, {chosen.grid_steps} steps"
        if not torch.cuda.is_available():
            line += f"; without a GPU about {count * chosen.grid_steps * 0.014 / 60:.0f} minutes"
        print(line)
        result = grid(GRID, WORLDS, chosen.grid_steps, profile)
        print(f"trained in {result['train_seconds']:.1f} s, measured in {result['evaluate_seconds']:.1f} s")
    else:
        result = gains(chosen.members, chosen.steps, chosen.rounds, profile)
        for name, seconds in result["seconds_per_step"].items():
            print(f"{name:<9}{1000 * seconds:>10.1f} ms for a step of {chosen.members} members")
        for name in ("speedup_over_trainer", "speedup_over_one_by_one", "speedup_over_one_tall_stack"):
            print(f"{name:<28}{result[name]:>7.2f} x")
        for name in ("fraction_of_arithmetic", "fraction_of_memory"):
            print(f"{name:<28}{result[name]:>8.1%}")
    result |= {"device": device_name(), "torch": torch.__version__}
    print(result["device"])
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

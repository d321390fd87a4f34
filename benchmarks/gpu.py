"""The parts of `benchmarks/gpu.sh`. Each part answers one question and writes one JSON file.

python benchmarks/gpu.py right --out build/gpu            one of right, fast, grid, study, real
python benchmarks/gpu.py fast --out build/gpu --dry-run   small, on a CPU: does the code run?
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from clock import WARM_UP, Clock, wait
from datasets import Dataset
from population import (
    GRID,
    WORLDS,
    crowd,
    device_name,
    limits,
    member_of,
    stack_seconds,
    step_work,
    trained_alone,
    trainer_seconds,
)
from population import grid as population_grid
from transformers import set_seed

from uftlab.engine import population
from uftlab.engine.population import Member, train
from uftlab.engine.stack import flatten
from uftlab.engine.trainer import ObjectiveTrainer, Quiet
from uftlab.files import rounded
from uftlab.models.generation import generate_ids
from uftlab.models.logps import read_logps
from uftlab.models.policies import TINY, frozen_copy, load_base, load_policy, with_lora
from uftlab.models.references import ReferenceCache
from uftlab.objectives.registry import OBJECTIVES, ON_SAMPLES, objective_named
from uftlab.rows.table import load_rows
from uftlab.rows.tokens import Completion, Example, RememberingTokens, Tokens
from uftlab.study.cohort import materials, reader, tokens
from uftlab.study.trials import PROFILES, Profile, read_trial, trial
from uftlab.study.workers import run_trials
from uftlab.training.catalogue import METHODS, method_named
from uftlab.training.methods import Stage
from uftlab.training.recipes import fit, history_of
from uftlab.training.stage_data import prepare, sources
from uftlab.training.stages import layout, refer

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
ROOT = Path(__file__).resolve().parent.parent


def log(line: str) -> None:
    """Print a line with the time, so that an interrupted run shows how far it got."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


class Result(dict):
    """The results of a part. They are saved after every section, so an interrupted part keeps what it has."""

    path: Path
    started: float

    def save(self) -> None:
        """Write the file again."""
        self["part_seconds"] = round(time.perf_counter() - self.started, 2)
        self.path.write_text(json.dumps(self, indent=1))


@contextmanager
def attempted(result: Result, name: str) -> Iterator[None]:
    """An error inside is stored in the result and does not stop the program."""
    try:
        yield
    except Exception as error:  # the traceback is part of the result
        result["faults"][name] = traceback.format_exc()[-3000:]
        log(f"FAULT in {name}: {type(error).__name__}: {str(error)[:200]}")
    result.save()


# -------------------------------------------------------------------------------------------- right?


def right(result: Result, profile: Profile, dry: bool) -> None:
    """Are results equal on both devices, and in two runs on one device?"""
    steps = 4 if dry else 20
    own = materials(0, profile, "test")
    made = {}
    for name, objective in OBJECTIVES.items():
        if name in ON_SAMPLES:
            continue
        mixed = "demonstration" in objective.kinds and len(objective.kinds) > 1
        share = 0.5 if mixed or name == "una-score" else float("demonstration" in objective.kinds)
        filled = partial(refer, own.references, own.base, tokens())
        settings = {"learning_rate": 1.5e-3}
        made[name] = prepare(Stage(name, share), own.tables, tokens(), settings, steps, 0, filled)
    members = {name: beside(member_of((own, learned))) for name, learned in made.items()}
    log(f"{len(members)} objectives, {steps} steps each")
    with attempted(result, "trajectories"):
        ends = {}
        for place in ("cpu", DEVICE):
            started = time.perf_counter()
            ends[place, place == DEVICE] = train(list(members.values()), layout(), logging_steps=2, device=place)
            log(f"on {place}: {time.perf_counter() - started:.1f} s")
        here, there = ends["cpu", DEVICE == "cpu"], ends[DEVICE, True]
        result["trajectories"] = {
            name: compared(member, here, there, n) for n, (name, member) in enumerate(members.items())
        }
        worst = max(result["trajectories"].values(), key=lambda entry: entry["distance"])
        log(f"largest distance {worst['distance']:.2e} of the way, limit 0.01")
    with attempted(result, "trainer"):
        result["trainer"] = {}
        for name in ("una-score", "sft-plus-dpo", "kto", "tdpo"):
            member = members[name]
            policy = trained_alone(member)
            weights, number = flatten(policy.state_dict(), layout()).cpu(), list(members).index(name)
            moved = (here.weights[number] - member.start.cpu()).norm()
            result["trainer"][name] = float((weights - here.weights[number]).norm() / moved)
        log(f"ObjectiveTrainer: {result['trainer']}")
    with attempted(result, "references"):
        base, rows = frozen_copy(load_base(0)), members["una-score"].order[:512]
        found = [
            torch.tensor([c.reference_logps for e in ReferenceCache().fill(m, rows) for c in e])
            for m in (base, frozen_copy(base).to(DEVICE))
        ]
        result["reference_nats"] = float((found[0] - found[1]).abs().max())
    with attempted(result, "generation"):
        asked = own.full.prompts[: 40 if dry else 400]
        weights = here.weights[list(members).index("una-score")]
        said = {place: reader(weights[None].to(place)).generate([asked])[0] for place in ("cpu", DEVICE)}
        drawn = {place: reader(weights[None].to(place)).generate([asked], seed=1)[0] for place in ("cpu", DEVICE)}
        policy = frozen_copy(load_base(0)).to(DEVICE)
        library = generate_ids(policy, tokens().tokenizer, asked)
        base_said = reader(own.base[None])
        result["generation"] = {
            "greedy_equal": share_equal(said["cpu"], said[DEVICE]),
            "sampled_equal": share_equal(drawn["cpu"], drawn[DEVICE]),
            "as_the_library": share_equal(library, base_said.generate([asked])[0]),
        }
        log(f"generation: {result['generation']}")
    with attempted(result, "repeated"):
        some = [members[name] for name in ("una-score", "sft-plus-dpo", "kto", "tdpo")]
        runs: dict[str, dict] = {"first": {}, "second": {}, "eager": {}, "deterministic": {}}
        for name, found in runs.items():
            torch.use_deterministic_algorithms(name == "deterministic")
            population.GRAPHS = name != "eager"
            try:
                trained = train(some, layout(), logging_steps=2, device=DEVICE)
                found |= {"weights": trained.weights.cpu(), "histories": trained.histories}
            except RuntimeError as error:
                found["fault"] = str(error)[:500]
        torch.use_deterministic_algorithms(False)
        population.GRAPHS = True
        first = runs["first"]
        result["repeated"] = {
            name: {
                "fault": found.get("fault"),
                "weights_bitwise": "weights" in found and torch.equal(first["weights"], found["weights"]),
                "histories_bitwise": "weights" in found and first["histories"] == found["histories"],
                "largest_difference": float((first["weights"] - found["weights"]).abs().max())
                if "weights" in found
                else None,
            }
            for name, found in runs.items()
            if name != "first"
        }
        asked = own.full.prompts[:40]
        result["repeated"]["without_a_graph"] = uncaptured(some[0], first["weights"][0])
        texts = [reader(first["weights"].to(DEVICE)).generate([asked] * len(some)) for _ in range(2)]
        result["repeated"]["generation_equal"] = texts[0] == texts[1]
        log(f"repeated: {result['repeated']}")


def beside(member: Member) -> Member:
    """The same member with a reference that differs from its start.

    Where policy equals reference, some losses have a kink, and rounding would decide on which side each device starts.
    """

    def moved(c: Completion) -> Completion:
        return replace(c, reference_logps=c.reference_logps - 0.01 * sum(c.completion_ids))

    return replace(member, order=[tuple(map(moved, example)) for example in member.order])


def uncaptured(member: Member, weights: torch.Tensor) -> dict[str, Any]:
    """A loss that reads a value on the CPU cannot be captured in a graph. It must be trained all the same."""
    term = member.objective.terms[0]

    def looks(rows: Any, settings: Any) -> torch.Tensor:
        return term.loss(rows, settings) * torch.as_tensor(1.0).to(rows.policy_logps.device)

    awkward = replace(member, objective=replace(member.objective, terms=(replace(term, loss=looks),)))
    said: list[str] = []
    trained = train([awkward], layout(), device=DEVICE, say=said.append)
    return {"said": said, "largest_difference": float((trained.weights[0].cpu() - weights).abs().max())}


def compared(member: Member, here: population.Trained, there: population.Trained, number: int) -> dict[str, float]:
    """The difference of two trained members: of weights, as a share of the way from the start, and of logs."""
    moved = (here.weights[number] - member.start.cpu()).norm()
    apart = (here.weights[number] - there.weights[number].cpu()).norm()
    logs = [0.0]
    for ours, theirs in zip(here.histories[number], there.histories[number], strict=True):
        logs += [abs(ours[k] - theirs[k]) / (0.1 + abs(ours[k])) for k in ours if k in theirs]
    return {"distance": float(apart / moved), "logs": max(logs)}


def share_equal(ours: Sequence, theirs: Sequence) -> float:
    """The share of equal entries."""
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)


# --------------------------------------------------------------------------------------------- fast?


@contextmanager
def variant(mode: str, precision: str) -> Iterator[None]:
    """The engine in another mode and precision."""
    before = population.GRAPHS, population.logits, torch.backends.cuda.matmul.allow_tf32
    population.GRAPHS = "graph" in mode
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    if "compile" in mode:
        population.logits = torch.compile(population.logits, dynamic=False)
    if precision == "bf16":
        plain = population.logits

        def halved(*args: Any, **kwargs: Any) -> torch.Tensor:
            with torch.autocast(DEVICE, dtype=torch.bfloat16):
                made = plain(*args, **kwargs)
            return made.float()

        population.logits = halved
    try:
        yield
    finally:
        population.GRAPHS, population.logits, torch.backends.cuda.matmul.allow_tf32 = before


VARIANTS = [
    ("graph", "float32"),
    ("eager", "float32"),
    ("graph", "tf32"),
    ("graph", "bf16"),
    ("graph and compile", "float32"),
]


def fast(result: Result, profile: Profile, dry: bool) -> None:
    """Members times steps per second, by number of members, mode and precision."""
    result |= {"sizes": {}, "variants": {}}
    steps = 5 if dry else 43
    counts = (1, 2) if dry else (1, 16, 64, 256, 1024)
    with attempted(result, "limits"):
        result["limits"] = limits() if not dry else {"flops": 1.0, "bytes": 1.0}
        torch.backends.cuda.matmul.allow_tf32 = True
        result["limits_tf32"] = limits() if not dry else {"flops": 1.0, "bytes": 1.0}
        torch.backends.cuda.matmul.allow_tf32 = False
    trainers: list[float] = []
    with attempted(result, "trainer"):
        for _ in range(1 if dry else 3):
            trainers.append(trainer_seconds(crowd(1, steps, profile)[0]))
        result["trainer_seconds_per_step"] = statistics.median(trainers)
        log(f"ObjectiveTrainer: {1000 * result['trainer_seconds_per_step']:.1f} ms a step")
    alone = None
    for count in counts:
        with attempted(result, f"{count} members"):
            members = crowd(count, steps, profile)
            rounds = 1 if dry or count > 256 else 3
            seconds = statistics.median(stack_seconds(members) for _ in range(rounds))
            alone = seconds if alone is None else alone
            work = step_work(members[:8])
            scale = count / min(8, count)
            made = {
                "seconds_per_step": seconds,
                "member_steps_per_second": count / seconds,
                "speedup_over_trainer": count * result["trainer_seconds_per_step"] / seconds,
                "speedup_over_one_by_one": count * alone / seconds,
                "fraction_of_arithmetic": scale * work["flops"] / seconds / result["limits"]["flops"],
                "fraction_of_memory": scale * work["bytes"] / seconds / result["limits"]["bytes"],
                "packing_seconds": packing_seconds(members),
                **device_seconds(members),
            }
            result["sizes"][str(count)] = made
            log(f"{count} members: {json.dumps({k: float(f'{v:.4g}') for k, v in made.items()})}")
    members = crowd(2 if dry else 64, steps, profile)
    if GPU:
        with attempted(result, "kernels"):
            result["kernels"] = kernels(members)
    for mode, precision in VARIANTS:
        name = f"{mode}, {precision}"
        if dry and ("compile" in mode):
            continue
        with attempted(result, name), variant(mode, precision):
            started = time.perf_counter()
            trained = train(members, layout(), logging_steps=5, device=DEVICE)
            wait()
            first = time.perf_counter() - started
            seconds = statistics.median(stack_seconds(members) for _ in range(1 if dry else 3))
            made = {"seconds_per_step": seconds, "with_set_up_seconds": first}
            if "graph" in mode:
                made |= device_seconds(members)
            if name == "graph, float32":
                plain = trained
            moved = (plain.weights - torch.stack([m.start for m in members])).norm(dim=1)
            made["distance_from_float32"] = float(((trained.weights - plain.weights).norm(dim=1) / moved).max())
            result["variants"][name] = made
            log(f"{name}: {made}")


def packing_seconds(members: list[Member]) -> float:
    """Seconds in which the CPU makes a batch, while the GPU works."""
    batches = population.Batches(members, alike=True)
    started = time.perf_counter()
    for step in range(batches.rows.shape[0]):
        batches.at(step)
    return (time.perf_counter() - started) / batches.rows.shape[0]


def device_seconds(members: list[Member]) -> dict[str, float]:
    """Seconds of one captured step on the GPU alone, and the memory that it needs. 0 without a GPU."""
    if not GPU:
        return {"device_seconds": 0.0, "peak_gib": 0.0}
    torch.cuda.reset_peak_memory_stats()
    stack = population._Stack(members, layout(), torch.device("cuda"))
    batch = population.Batches(stack.members, alike=True).at(0)
    slot = population._Slot(batch, torch.device("cuda"))
    slot.put(batch)
    replay, times = population._captured(stack, slot), []
    for _ in range(4):
        stack.clock.zero_()
        wait()
        started = time.perf_counter()
        for _ in range(8):
            stack.clock.zero_()
            replay()
        wait()
        times.append((time.perf_counter() - started) / 8)
    return {"device_seconds": statistics.median(times), "peak_gib": torch.cuda.max_memory_allocated() / 2**30}


def kernels(members: list[Member]) -> list[dict[str, Any]]:
    """The time of a step by kernel."""
    stack = population._Stack(members, layout(), torch.device("cuda"))
    batch = population.Batches(stack.members, alike=True).at(0).to("cuda")
    for _ in range(3):
        stack.step(batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(5):
            stack.step(batch)
        wait()
    rows = sorted(seen.key_averages(), key=lambda row: -row.self_device_time_total)[:40]
    return [
        {"name": row.key[:120], "ms_per_step": row.self_device_time_total / 5000, "calls": row.count / 5}
        for row in rows
    ]


# ------------------------------------------------------------------------------------ grid and study


def grid(result: Result, profile: Profile, dry: bool) -> None:
    """The paper's grid: 16 settings (learning rate, beta) in 4 worlds."""
    result |= population_grid(*((GRID[:2], WORLDS[:1], 4) if dry else (GRID, WORLDS, 1000)), profile)
    log(f"prepared {result['prepare_seconds']:.1f} s, then {result['seconds']:.1f} s")


def study(result: Result, profile: Profile, dry: bool) -> None:
    """The whole study of sixteen seeds, and the difference of its results from the stored ones of a CPU."""
    names = ["sft", "sft-then-dpo", "uft"] if dry else list(METHODS)
    trials = [trial(name, seed, profile) for seed in range(1 if dry else 16) for name in names]
    with tempfile.TemporaryDirectory() as scratch:
        started, marks = time.perf_counter(), []
        results = list(run_trials(trials, Path(scratch), done=lambda _: marks.append(time.perf_counter() - started)))
        seconds = time.perf_counter() - started
    log(f"{len(trials)} trials in {seconds:.1f} s, the first after {marks[0]:.1f} s")
    stored = {}
    for path in (ROOT / "data" / "results" / "class" / "trials").glob("*.json"):
        read = read_trial(path)
        stored[read["method"], read["seed"]] = read["metrics"]
    result |= {
        "trials": len(trials),
        "seconds": seconds,
        "first_seconds": marks[0],
        "processes": os.cpu_count(),
        "results": [{k: r[k] for k in ("method", "seed", "steps", "metrics", "wall_seconds")} for r in results],
        "apart": apart(results, stored) if not dry else {},
    }


def apart(results: Sequence[dict], stored: dict[tuple[str, int], dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and largest difference from the stored trials, by metric."""
    found: dict[str, list[float]] = {}
    for result in results:
        theirs = stored.get((result["method"], result["seed"]), {})
        for name, value in result["metrics"].items():
            if name in theirs:
                found.setdefault(name, []).append(value - theirs[name])
    return {name: {"mean": statistics.mean(values), "largest": max(map(abs, values))} for name, values in found.items()}


# ------------------------------------------------------------------------------------------ a real model

LONGEST = 256  # most tokens of prompt and completion; longer rows are left out
MICRO = 16  # completions of a micro-batch: at most 25 GiB for 135 M parameters in float32
REAL_RUNS = (("uft", "float32"), ("sft-full", "float32"), ("uft", "bf16"))
REAL_SETTINGS = {"learning_rate": 3e-4, "beta": 0.03}
Tables = Mapping[str, Dataset]


def real(result: Result, profile: Profile, dry: bool) -> None:
    """A real model by UFT and by SFT with LoRA, if its files are there: how fast is it, and does it learn?"""
    folder = os.environ.get("UFTLAB_REAL_MODEL") or (str(TINY) if dry else "")
    rows = os.environ.get("UFTLAB_REAL_DATA")
    if not folder or not Path(folder).is_dir() or not (rows or dry):
        result["skipped"] = "no model: name its folder in UFTLAB_REAL_MODEL, that of its rows in UFTLAB_REAL_DATA"
        return
    started = time.perf_counter()
    names = ("demonstrations", "feedback")
    if rows:
        tables = {name: load_rows(Path(rows) / f"{name}.jsonl") for name in names}
    else:
        tables = materials(0, profile, "test").tables
    split = {name: table.train_test_split(0.1, seed=0) for name, table in tables.items()}
    words = RememberingTokens(load_policy(folder)[1])  # each row is tokenised only once for all runs
    shown = {name: parts["train"] for name, parts in split.items()}
    mixture = method_named("uft").stages[0]
    for source in sources(mixture, shown, words, max_length=LONGEST)[0]:
        log(f"{len(source)} rows, {sum(map(length, source))} tokens")
    kept = sources(mixture, {name: parts["test"] for name, parts in split.items()}, words, max_length=LONGEST)[0]
    config = json.loads((Path(folder) / "config.json").read_text())
    result |= {
        "model": config.get("_model_name_or_path") or Path(folder).name,
        "rows": {name: len(table) for name, table in shown.items()},
        "held_out_rows": dict(zip(names, map(len, kept), strict=True)),
        "steps": 2 if dry else 30,
        "longest": LONGEST,
        "at_a_time": MICRO,
        "prepare_seconds": time.perf_counter() - started,
        "runs": {},
    }
    for method, precision in REAL_RUNS:
        name = f"{method}, {precision}"
        with attempted(result, name):
            found = result["runs"][name] = {}
            real_run(found, folder, method, precision, shown, words, result["steps"], kept)
            log(f"{name}: {json.dumps({key: value for key, value in found.items() if key != 'history'})}")


def real_run(
    found: dict[str, Any],
    folder: str,
    method: str,
    precision: str,
    tables: Tables,
    words: Tokens,
    steps: int,
    kept: Sequence[Sequence[Example]],
) -> None:
    """One run from the model in a folder, like `uftlab train`. Each phase adds its results to `found`."""
    started = time.perf_counter()
    set_seed(0)
    policy = with_lora(load_policy(folder)[0]).to(DEVICE)
    wait()
    found["load_seconds"] = time.perf_counter() - started
    found["parameters"] = sum(p.numel() for p in policy.parameters() if not p.requires_grad)
    found["trained_parameters"] = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    cache = ReferenceCache()

    def refer(examples: Sequence[Example]) -> list[Example]:
        return cache.fill(policy, examples)

    stage = method_named(method).stages[-1]
    unread = sources(stage, tables, words, max_length=LONGEST)[0]
    if objective_named(stage.objective).reference:
        distinct = {c.key(): (c,) for source in unread for example in source for c in example}
        with phase(found, "reference", policy, list(distinct.values())):
            refer(list(distinct.values()))
    made = prepare(stage, tables, words, REAL_SETTINGS, steps, 0, refer, max_length=LONGEST)
    kept = [refer(source) for source in kept]
    found |= {"settings": made.settings, "before": held_out(policy, kept)}
    micro, clock = min(MICRO, made.per_step), Clock()
    wanted = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": made.per_step // micro,
        "max_steps": steps,
        "logging_steps": 1,
        "bf16": precision == "bf16",
        "use_cpu": not GPU,
    }
    with tempfile.TemporaryDirectory() as scratch, phase(found, "training", policy, made.order):
        arguments = (made.order, made.objective, made.settings, [Quiet(), clock])
        trained = fit(ObjectiveTrainer, policy, scratch, *arguments, **wanted)
    trained.accelerator.unwrap_model(policy, keep_fp32_wrapper=False)  # from here on in float32 again
    found["step_seconds"] = statistics.median(clock.seconds()) if steps > WARM_UP else None
    found["history"] = rounded(history_of(trained), 5)
    found["after"] = held_out(policy, kept)


@contextmanager
def phase(found: dict[str, Any], name: str, policy: Any, examples: Sequence[Example]) -> Iterator[None]:
    """Measures the code inside: seconds, memory, tokens, and positions that the model computed for them."""
    positions = 0

    def count(module: Any, args: Any, given: dict[str, Any]) -> None:
        nonlocal positions
        positions += given["input_ids"].numel()

    hook = policy.register_forward_pre_hook(count, with_kwargs=True)
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    wait()
    started = time.perf_counter()
    try:
        yield
        wait()
    finally:
        hook.remove()
    seconds, read = time.perf_counter() - started, sum(map(length, examples))
    found[name] = {
        "seconds": seconds,
        "completions": sum(map(len, examples)),
        "tokens": read,
        "tokens_per_second": read / seconds,
        "positions_per_token": positions / read,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if GPU else 0.0,
    }


def length(example: Example) -> int:
    """Number of tokens of an example, prompts and completions."""
    return sum(len(c.prompt_ids) + len(c.completion_ids) for c in example)


def held_out(policy: Any, kept: Sequence[Sequence[Example]]) -> dict[str, float]:
    """Nats per token of demonstrations, and how often the implicit reward orders two scored rows like their scores.

    All pairs with unequal scores are compared by their log-ratios, even if their prompts differ. A tie counts half.
    """
    shown, judged = (read_logps(policy, [c for (c,) in source]) for source in kept)
    read = sum(len(c.completion_ids) for (c,) in kept[0])
    rewards = judged - torch.tensor([c.reference_logps for (c,) in kept[1]])
    scores = torch.tensor([c.score for (c,) in kept[1]])
    above = scores[:, None] > scores[None]
    gaps = (rewards[:, None] - rewards[None])[above]
    right = (gaps > 0.01).float() + 0.5 * (gaps.abs() <= 0.01).float()  # before training all are 0 up to rounding
    return {"nats_per_token": float(-shown.sum() / read), "order": float(right.mean())}


PARTS: dict[str, Callable[[Result, Profile, bool], None]] = {
    "right": right,
    "fast": fast,
    "grid": grid,
    "study": study,
    "real": real,
}


def main() -> None:
    """Run one part and write its file."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("part", choices=list(PARTS))
    options.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    options.add_argument("--dry-run", action="store_true", help="small, and marked as dry")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    log(f"{chosen.part} on {device_name()}")
    result = Result(part=chosen.part, dry=chosen.dry_run, device=device_name(), faults={}, whole=False)
    result |= {"python": platform.python_version(), "torch": torch.__version__}
    result["transformers"] = transformers.__version__
    chosen.out.mkdir(parents=True, exist_ok=True)
    result.path, result.started = chosen.out / f"{chosen.part}.json", time.perf_counter()
    with attempted(result, chosen.part):
        PARTS[chosen.part](result, PROFILES["smoke" if chosen.dry_run else "class"], chosen.dry_run)
        result["whole"] = True
    log(f"{chosen.part}: {result['part_seconds']} s, {len(result['faults'])} faults, {result.path}")


if __name__ == "__main__":
    main()

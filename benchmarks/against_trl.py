"""How many completions a second the vectorised engine trains, next to TRL's DPOTrainer, on the tiny model and a CPU.

    python benchmarks/against_trl.py --json build/against_trl.json

Side by side in one run and in turn (A B C A B C ...), so that a busy minute hits all alike; medians over the repeats.
Every step trains 64 completions, 32 pairs of DPO or 32 demonstrations and 32 scored rows of UFT, so completions per
second compare. Counted is what a training step costs, logging included; not counted are set-up, tokenising, and
reference log-probabilities that are computed beforehand, which the engine needs too. TRL enters three times:

    trl-default      its defaults: the reference runs in every step, bfloat16, activations computed twice
    trl-precomputed  the same with precompute_ref_log_probs=True
    trl-matched      precomputed, and what the engine does as well: float32, activations kept, our batches in our order

and each with one thread and with --threads: the better of the two counts. Needs `pip install "uftlab[bench]"`. A
measurement, not a test: run it on a quiet machine. What it does not show: anything about large models or a GPU.
"""

import argparse
import gc
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the first import that reads it; TRL reports its use otherwise
os.environ.setdefault("TQDM_DISABLE", "1")

import datasets
import numpy as np
import torch
import transformers
from clock import WARM_UP, Clock, cpu_name
from datasets import Dataset

from uftlab.engine.packing import pack
from uftlab.engine.population import Member, train
from uftlab.engine.stack import Layout, Weights, flatten, logits, token_logps
from uftlab.engine.trainer import Quiet
from uftlab.errors import InputError
from uftlab.models.logps import ReferenceCache
from uftlab.models.policies import load_base, tiny_config, tiny_tokenizer
from uftlab.objectives.registry import objective_named
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import Example, Tokens, interleave
from uftlab.training.methods import Stage
from uftlab.training.recipes import sources
from uftlab.world.world import World, pairs

COMPLETIONS = 64  # of every contestant in every step
BUSY = 0.5  # load average above which the numbers are not to be reported
STAGES = {"dpo": Stage("dpo", 0.0), "uft": Stage("una-score", 0.5)}
TRL: dict[str, dict[str, Any]] = {
    "trl-default": {},
    "trl-precomputed": {"precompute_ref_log_probs": True},
    "trl-matched": {
        "precompute_ref_log_probs": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
    },
}
LAYOUT = Layout.of(tiny_config())
ENGINE = "uftlab.engine.population with one member"
BARE = "uftlab.engine.stack on packed batches, forward, backward and fused AdamW"
Seconds = dict[tuple[str, int], list[float]]  # (contestant, threads) -> seconds a step, one number for each repeat


# ------------------------------------------------------------------------------------------ the rows


def ordered_rows(stage: Stage, steps: int) -> tuple[list[Example], int, Dataset | None]:
    """The examples of warm-up and `steps` in training order, how many make a step, and their pairs as text.

    World 0; every pair comes once. The text is None where the stage does not eat pairs.
    """
    world, total = World(0), WARM_UP + steps
    shown = [{k: r[k] for k in ("prompt", "completion")} for r in world.demonstrations(total * COMPLETIONS // 2)]
    tables = {
        "demonstrations": from_rows(shown),
        "feedback": from_rows(pairs(world.feedback(total * COMPLETIONS // 2))),
    }
    tokens = Tokens(tiny_tokenizer())
    examples, per_step = sources(stage, tables, tokens, COMPLETIONS)
    cache, base = ReferenceCache(), load_base(0)
    examples = [cache.fill(base, source, tokens.tokenizer.pad_token_id) for source in examples]
    ordered = interleave(examples, per_step, total, seed=0)
    if len(ordered[0]) == 1:
        return ordered, sum(per_step), None
    place = {id(example): index for index, example in enumerate(examples[0])}
    return ordered, sum(per_step), tables["feedback"].select([place[id(example)] for example in ordered])


def as_chat(row: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """A pair as TRL's conversations: only so does TRL apply the chat template, and get our tokens."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {column: [{"role": role, "content": row[column]}] for column, role in roles.items()}


def check_tokens(theirs: Dataset, ours: Sequence[Example]) -> None:
    """Refuses to compare unless TRL trains on our tokens, pair by pair.

    Raises:
        InputError: with the first pair that differs.
    """
    for number, (row, (chosen, rejected)) in enumerate(zip(theirs, ours, strict=True), start=1):
        got = [tuple(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
        if got != [chosen.prompt_ids, chosen.completion_ids, rejected.completion_ids]:
            raise InputError(f"TRL's tokens of pair {number}", "equal ours", got, "Compare the chat templates")


# ------------------------------------------------------------------------------------------ the contestants


def trl_seconds(changes: dict[str, Any], table: Dataset, examples: Sequence[Example], steps: int) -> list[float]:
    """Seconds of each step of TRL's DPOTrainer with its defaults, `changes` and what keeps it offline and quiet.

    On a CPU the defaults refuse to start without `use_cpu`. Without `ref_model` TRL would load the reference from
    the name that the model was loaded under, and this one has none; precomputing, it takes the model itself.
    """
    from trl import DPOConfig, DPOTrainer

    quiet = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    size, clock = COMPLETIONS // 2, Clock()
    reference = None if changes.get("precompute_ref_log_probs") else load_base(0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            folder, max_steps=WARM_UP + steps, per_device_train_batch_size=size, **{**quiet, **changes}
        )
        chats = Dataset.from_list([as_chat(row) for row in table])
        trainer = DPOTrainer(
            load_base(0),
            reference,
            arguments,
            train_dataset=chats,
            processing_class=tiny_tokenizer(),
            callbacks=[clock, Quiet()],
        )
        check_tokens(trainer.train_dataset, examples)
        trainer.train()
    return clock.seconds()


def engine_seconds(objective_name: str, examples: Sequence[Example], per_step: int, steps: int) -> list[float]:
    """Seconds of each of `steps` steps of `per_step` examples, after the warm-up, by a population of one.

    What it logs it works out at the end: that time is dealt out to the steps.
    """
    objective, ends = objective_named(objective_name), []
    settings = {"learning_rate": objective.learning_rate}
    member = Member(flatten(load_base(0).state_dict(), LAYOUT), objective, settings, examples, per_step)
    at = range(1, WARM_UP + steps + 1)
    train([member], LAYOUT, watch=lambda *_: ends.append(time.perf_counter()), at=at)
    logging = (time.perf_counter() - ends[-1]) / len(ends)
    return (np.diff(ends[WARM_UP - 1 :]) + logging).tolist()


def bare_seconds(examples: Sequence[Example], per_step: int, steps: int) -> list[float]:
    """Seconds of forward, backward and AdamW on the same tokens and nothing else: what no engine undercuts.

    The lean Llama of the engine on batches packed beforehand, so that the ratio is what losses, data, metrics and an
    optimiser of many learning rates cost on top.
    """
    weights = flatten(load_base(0).state_dict(), LAYOUT)[None].requires_grad_()
    optimiser, ends = torch.optim.AdamW([weights], lr=1e-6, fused=True), []
    starts = range(0, (WARM_UP + steps) * per_step, per_step)
    for batch in [pack([examples[start : start + per_step]]) for start in starts]:
        logps = token_logps(logits(Weights.of(weights, LAYOUT), batch, LAYOUT), batch)
        (-logps.sum() / COMPLETIONS).backward()
        optimiser.step()
        optimiser.zero_grad()
        ends.append(time.perf_counter())
    return np.diff(ends[WARM_UP - 1 :]).tolist()


def contestants(steps: int, threads: int) -> tuple[dict[tuple[str, int], Callable[[], list[float]]], dict[str, float]]:
    """All that are timed, by name and number of threads, in their order; and the tokens of a step, padding left out."""
    entered: dict[tuple[str, int], Callable[[], list[float]]] = {}
    tokens = {}
    for part, stage in STAGES.items():
        examples, per_step, table = ordered_rows(stage, steps)
        count = sum(len(c.prompt_ids) + len(c.completion_ids) for example in examples for c in example)
        tokens[part] = count / (WARM_UP + steps)
        if table is not None:
            for name, changes in TRL.items():
                for number in sorted({1, threads}, reverse=True):
                    entered[name, number] = partial(trl_seconds, changes, table, examples, steps)
        entered[f"engine-{part}", threads] = partial(engine_seconds, stage.objective, examples, per_step, steps)
        entered[f"bare-{part}", threads] = partial(bare_seconds, examples, per_step, steps)
    return entered, tokens


# ------------------------------------------------------------------------------------------ measuring and telling


def measure(
    entered: dict[tuple[str, int], Callable[[], list[float]]], repeats: int, say: Callable[[str], None]
) -> Seconds:
    """Runs all in turn, `repeats` times. The mean seconds of a step in each: a median would leave out logging."""
    seconds: Seconds = {key: [] for key in entered}
    begun, total = time.perf_counter(), repeats * len(entered)
    for done in range(total):
        name, threads = key = list(entered)[done % len(entered)]
        left = f", {(time.perf_counter() - begun) / done * (total - done):.0f} s left" if done else ""
        say(f"repeat {done // len(entered) + 1} of {repeats}: {name}, threads: {threads}{left}")
        gc.collect()  # what the last one left is not the next one's to clear
        torch.set_num_threads(threads)
        seconds[key].append(statistics.mean(entered[key]()))
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles. 1, 2, 3, 4, 5 gives 3 between 2 and 4."""
    lower, median, upper = np.percentile(values, (25, 50, 75)).tolist()
    return {"median": median, "lower_quartile": lower, "upper_quartile": upper}


def best_threads(seconds: Seconds, name: str) -> int:
    """The number of threads with which a contestant is fastest, by the median."""
    return min((n for entry, n in seconds if entry == name), key=lambda n: statistics.median(seconds[name, n]))


def summary(seconds: Seconds, threads: int) -> dict[str, Any]:
    """Ratios of the engine to TRL with its better number of threads and to the bare step; on top the worse of the two.

    A ratio is the median of the repeats' own ratios. All train as many completions a step, so the ratio of completions
    per second is that of seconds: 10 ms a step against TRL's 30 ms are a speedup of 3.
    """
    best = {name: best_threads(seconds, name) for name in TRL}
    parts: dict[str, Any] = {}
    for part in STAGES:
        engine = seconds[f"engine-{part}", threads]
        found = {}
        for name in TRL:
            theirs = seconds[name, best[name]]
            found[name.replace("trl-", "speedup_")] = spread([t / e for t, e in zip(theirs, engine, strict=True)])
        bare = seconds[f"bare-{part}", threads]
        found["over_bare_step"] = spread([e / b for e, b in zip(engine, bare, strict=True)])
        parts[part] = {name: values["median"] for name, values in found.items()} | {"spread": found}
    worse = {name: max if name == "over_bare_step" else min for name in parts["dpo"] if name != "spread"}
    rows = []
    for (name, number), values in seconds.items():
        per_step = spread(values)
        rate = COMPLETIONS / per_step["median"]
        row = {"name": name, "threads": number, "seconds_per_step": per_step, "completions_per_second": rate}
        rows.append(row | {"repeats": values})
    top = {name: pick(parts[part][name] for part in STAGES) for name, pick in worse.items()}
    return {**top, **parts, "trl_threads": best, "contestants": rows}


def table_of(result: dict[str, Any]) -> str:
    """The result as a table to read; of TRL's numbers of threads the one that is compared bears a star."""
    lines = [f"{'contestant':<18}{'threads':>8}{'ms a step':>12}{'quartiles':>18}{'completions/s':>16}"]
    for row in result["contestants"]:
        star = "*" if result["trl_threads"].get(row["name"]) == row["threads"] else " "
        low, mid, high = (1000 * row["seconds_per_step"][k] for k in ("lower_quartile", "median", "upper_quartile"))
        quartiles, rate = f"{low:.1f} to {high:.1f}", row["completions_per_second"]
        lines.append(f"{row['name']:<18}{row['threads']:>7}{star}{mid:>12.1f}{quartiles:>18}{rate:>16.0f}")
    lines += ["", f"{'ratio':<22}{'dpo':>8}{'uft':>8}{'the worse':>12}"]
    for name in result["dpo"]["spread"]:
        numbers = f"{result['dpo'][name]:>7.2f}x{result['uft'][name]:>7.2f}x{result[name]:>11.2f}x"
        lines.append(f"{name:<22}{numbers}")
    return "\n".join(lines)


def at_least_one(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {number}")
    return number


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for on the command line."""
    made = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Example:\n  python benchmarks/against_trl.py --json build/against_trl.json --repeats 9",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--json", type=Path, help="write the numbers here")
    made.add_argument("--threads", type=at_least_one, default=2, help="of the engine; TRL gets this or 1 (2)")
    made.add_argument("--repeats", type=at_least_one, default=5, help="of the whole round, 5 to report (5)")
    made.add_argument("--steps", type=at_least_one, default=20, help=f"that are timed, after {WARM_UP} others (20)")
    return made.parse_args(words)


def progress(line: str) -> None:
    """One line that is written over, on the error stream."""
    print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def main() -> None:
    """Measure, print a table, write JSON on request."""
    chosen = options()
    if importlib.util.find_spec("trl") is None:
        sys.exit('TRL must be installed to be compared with. Run: pip install "uftlab[bench]"')
    warnings.filterwarnings("ignore")  # of deprecated names within TRL, and pinned memory without a GPU
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    busy = os.getloadavg()[0]
    if busy > BUSY:
        print(f"warning: the machine is busy (load {busy:.1f}); two threads that wait for a core tell nothing")
    entered, tokens = contestants(chosen.steps, chosen.threads)
    estimate = chosen.repeats * len(entered) * (0.7 + 0.1 * (WARM_UP + chosen.steps))
    print(f"{len(entered)} contestants, {chosen.repeats} times: about {estimate:.0f} s on two quiet cores")
    result = summary(measure(entered, chosen.repeats, progress), chosen.threads)
    progress("")
    asked = {name: getattr(chosen, name) for name in ("threads", "repeats", "steps")}
    result |= {"engine": ENGINE, "bare_step": BARE, "tokens_per_step": tokens, "completions_per_step": COMPLETIONS}
    result |= {
        "settings": asked | {"warm_up": WARM_UP},
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_before": busy,
    }
    names = ("torch", "transformers", "trl", "accelerate", "datasets")
    result |= {"versions": {"python": platform.python_version()} | {name: version(name) for name in names}}
    print(table_of(result))
    print(f"\nengine: {ENGINE}; bare step: {BARE}; {result['cpu']}, {result['cores']} cores")
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""How many completions a second the vectorised engine trains, next to TRL's DPOTrainer, on the tiny model and a CPU.

    python benchmarks/against_trl.py --json build/against_trl.json

All programs run in turn (A B C A B C ...), so that other work on the machine affects all alike. Results are medians
over the repeats. Every step trains 64 completions: 32 pairs of DPO, or 32 demonstrations and 32 scored rows of UFT. So
completions per second can be compared. The time of a step includes logging. It does not include set-up, tokenising and
reference log-probabilities that are computed before training; the engine needs these, too. TRL runs in three variants:

    trl-default      its defaults: the reference runs in every step, bfloat16, activations are computed twice
    trl-precomputed  the same with precompute_ref_log_probs=True
    trl-matched      precomputed, and as the engine does it: float32, activations stored, our batches in our order

Each variant runs with one thread and with --threads; the faster of the two counts. Needs `pip install "uftlab[bench]"`.
This is a measurement, not a test: run it on a machine without other work. It says nothing about large models or a GPU.
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

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the first import that reads it; otherwise TRL sends usage reports
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
from uftlab.models.policies import load_base, tiny_config, tiny_tokenizer
from uftlab.models.references import ReferenceCache
from uftlab.objectives.registry import objective_named
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import Example, Tokens, interleave
from uftlab.training.methods import Stage
from uftlab.training.stage_data import sources
from uftlab.world.world import World, pairs

COMPLETIONS = 64  # in every step of every contestant
BUSY = 0.5  # above this load average the numbers should not be reported
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
Seconds = dict[tuple[str, int], list[float]]  # (contestant, threads) -> seconds per step, one number for each repeat


# ------------------------------------------------------------------------------------------ the rows


def ordered_rows(stage: Stage, steps: int) -> tuple[list[Example], int, Dataset | None]:
    """The examples of warm-up and `steps` in training order, the number per step, and the pairs as text.

    World 0. Every pair occurs once. The text is None if the stage does not learn from pairs.
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
    examples = [cache.fill(base, source) for source in examples]
    ordered = interleave(examples, per_step, total, seed=0)
    if len(ordered[0]) == 1:
        return ordered, sum(per_step), None
    place = {id(example): index for index, example in enumerate(examples[0])}
    return ordered, sum(per_step), tables["feedback"].select([place[id(example)] for example in ordered])


def as_chat(row: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """A pair as conversations, because TRL applies the chat template to conversations only."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {column: [{"role": role, "content": row[column]}] for column, role in roles.items()}


def check_tokens(theirs: Dataset, ours: Sequence[Example]) -> None:
    """Checks that TRL trains on our tokens, pair by pair.

    Raises:
        InputError: for the first pair that differs.
    """
    for number, (row, (chosen, rejected)) in enumerate(zip(theirs, ours, strict=True), start=1):
        got = [tuple(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
        if got != [chosen.prompt_ids, chosen.completion_ids, rejected.completion_ids]:
            raise InputError(f"TRL's tokens of pair {number}", "equal ours", got, "Compare the chat templates")


# ------------------------------------------------------------------------------------------ the contestants


def trl_seconds(changes: dict[str, Any], table: Dataset, examples: Sequence[Example], steps: int) -> list[float]:
    """Seconds of each step of TRL's DPOTrainer with its defaults, `changes`, and no network or output.

    On a CPU TRL does not start without `use_cpu`. Without `ref_model` TRL would load the reference by the name of the
    model, but our model has no name. With precomputing it uses the model itself.
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

    The engine computes the logged numbers at the end. This time is divided among the steps.
    """
    objective, ends = objective_named(objective_name), []
    settings = {"learning_rate": objective.learning_rate}
    member = Member(flatten(load_base(0).state_dict(), LAYOUT), objective, settings, examples, per_step)
    at = range(1, WARM_UP + steps + 1)
    train([member], LAYOUT, watch=lambda *_: ends.append(time.perf_counter()), at=at)
    logging = (time.perf_counter() - ends[-1]) / len(ends)
    return (np.diff(ends[WARM_UP - 1 :]) + logging).tolist()


def bare_seconds(examples: Sequence[Example], per_step: int, steps: int) -> list[float]:
    """Seconds of forward, backward and AdamW on the same tokens, and nothing else: a lower limit for any engine.

    It uses the Llama of the engine on batches that are packed before. So the ratio shows the extra cost of losses,
    data, metrics and an optimiser with many learning rates.
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
    """All programs by name and number of threads, in their order; and the tokens of a step, without padding."""
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


# ------------------------------------------------------------------------------------------ measuring and reporting


def measure(
    entered: dict[tuple[str, int], Callable[[], list[float]]], repeats: int, say: Callable[[str], None]
) -> Seconds:
    """Runs all in turn, `repeats` times. Returns mean seconds per step: a median would leave out logging."""
    seconds: Seconds = {key: [] for key in entered}
    begun, total = time.perf_counter(), repeats * len(entered)
    for done in range(total):
        name, threads = key = list(entered)[done % len(entered)]
        left = f", {(time.perf_counter() - begun) / done * (total - done):.0f} s left" if done else ""
        say(f"repeat {done // len(entered) + 1} of {repeats}: {name}, threads: {threads}{left}")
        gc.collect()  # garbage of the last one must not slow the next one
        torch.set_num_threads(threads)
        seconds[key].append(statistics.mean(entered[key]()))
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles. 1, 2, 3, 4, 5 gives 3 between 2 and 4."""
    lower, median, upper = np.percentile(values, (25, 50, 75)).tolist()
    return {"median": median, "lower_quartile": lower, "upper_quartile": upper}


def best_threads(seconds: Seconds, name: str) -> int:
    """The number of threads with the smallest median time of a contestant."""
    return min((n for entry, n in seconds if entry == name), key=lambda n: statistics.median(seconds[name, n]))


def summary(seconds: Seconds, threads: int) -> dict[str, Any]:
    """Ratios of the engine to TRL with its faster number of threads, and to the bare step, for DPO and UFT.

    The top level has the worse of the two. A ratio is the median of the ratios of all repeats. All programs train
    equally many completions per step, so the ratio of completions per second is that of seconds: 10 ms per step for the
    engine and 30 ms for TRL give a speedup of 3.
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
    """The result as a table. A star marks the number of threads of TRL that is compared."""
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
    """The options of the command line."""
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
    """Write one line on stderr, in place of the line before."""
    print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    chosen = options()
    if importlib.util.find_spec("trl") is None:
        sys.exit('TRL must be installed for this comparison. Run: pip install "uftlab[bench]"')
    warnings.filterwarnings("ignore")  # about deprecated names in TRL, and pinned memory without a GPU
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    busy = os.getloadavg()[0]
    if busy > BUSY:
        print(f"warning: the machine is busy (load {busy:.1f}), so the numbers mean nothing")
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

"""DPO on a real model: examples per second and peak memory of `UFTTrainer` and of TRL's DPOTrainer, measured in turn.

    python benchmarks/real_against_trl.py --model FOLDER --rows pairs.jsonl --json build/real_against_trl.json

Same model, rows, batch of pairs, LoRA (rank 16, all linear layers), precision (float32 on a CPU, bfloat16 on a GPU) and
learning rate. Each has its own order of the rows: ours puts rows of similar length together. Both read the reference
before training. Each run is a process of its own, and the programs take turns (A B A B ...), so that other work on
the machine affects both alike. A time is the median over the steps of all repeats, without set-up and reading of the
reference. Peak memory on a CPU is that of the whole process, libraries included; on a GPU what PyTorch had allocated.

    --vocabulary 151936    the same layers with random weights and so many words
    --checkpointing        TRL's default: activations are computed twice. Without it both keep them.

Needs `pip install "uftlab[bench]"`. This is a measurement, not a test: run it on a machine without other work.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

WARM_UP = 2
CONTESTANTS = ("uftlab", "trl")


def model_of(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The model and its tokenizer; with another vocabulary the same architecture with random weights."""
    import torch
    from transformers import AutoModelForCausalLM

    from uftlab.models.policies import load_policy

    model, tokenizer = load_policy(arguments.model)
    if arguments.vocabulary:
        torch.manual_seed(0)
        config = model.config
        config.vocab_size = arguments.vocabulary
        model = AutoModelForCausalLM.from_config(config)
    return model, tokenizer


def run_one(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train with one of the two; seconds of each step after the warm-up, losses, peak memory in bytes."""
    import torch
    from clock import wait
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback

    from uftlab.rows.sources import load_table

    class Clock(TrainerCallback):
        seconds: list[float] = []  # noqa: RUF012

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            wait()
            self.seconds.append(time.perf_counter() - self.start)

    torch.set_num_threads(arguments.threads)
    on_gpu = torch.cuda.is_available()
    model, tokenizer = model_of(arguments)
    table, _ = load_table(arguments.rows)
    steps = WARM_UP + arguments.steps
    table = table.select(range(min(len(table), steps * arguments.pairs)))
    clock, adapters = Clock(), LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    if on_gpu:
        model.to("cuda")
    with tempfile.TemporaryDirectory() as folder:
        told: dict[str, Any] = {
            "output_dir": folder, "max_steps": steps, "per_device_train_batch_size": arguments.pairs, "beta": 0.1,
            "learning_rate": 1e-5, "bf16": on_gpu, "use_cpu": not on_gpu, "report_to": "none", "save_strategy": "no",
            "logging_steps": 1, "disable_tqdm": True, "gradient_checkpointing": arguments.checkpointing,
            "max_length": None, "seed": 0,
        }  # fmt: skip
        more: dict[str, Any] = {"processing_class": tokenizer, "peft_config": adapters, "callbacks": [clock]}
        trainer: Any
        if arguments.one == "uftlab":
            from uftlab.training.trainer import UFTConfig, UFTTrainer

            trainer = UFTTrainer(model, args=UFTConfig(objective="dpo", **told), train_dataset=table, **more)
        else:
            from trl import DPOConfig, DPOTrainer

            roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
            chats = [{c: [{"role": r, "content": row[c]}] for c, r in roles.items()} for row in table]
            told["precompute_ref_log_probs"] = True
            trainer = DPOTrainer(model, args=DPOConfig(**told), train_dataset=Dataset.from_list(chats), **more)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peak = torch.cuda.max_memory_allocated() if on_gpu else usage
    device = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU, {arguments.threads} threads"
    return {"seconds": clock.seconds[WARM_UP:], "losses": losses, "peak": peak, "device": device}


def main() -> None:
    """Take turns, then print and store ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("UFTLAB_REAL_MODEL", "HuggingFaceTB/SmolLM2-135M"))
    parser.add_argument("--rows", required=True, help="pairs in any layout that uftlab reads")
    parser.add_argument("--pairs", type=int, default=8, help="in a step")
    parser.add_argument("--steps", type=int, default=6, help="measured, after the warm-up")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--vocabulary", type=int, default=0)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_one(arguments)))
        return
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for _ in range(arguments.repeats):
        for name in CONTESTANTS:
            made = subprocess.run([sys.executable, *sys.argv, "--one", name], capture_output=True, text=True)
            if made.returncode:
                sys.exit(made.stderr[-3000:])
            runs[name].append(json.loads(made.stdout.splitlines()[-1]))
            one = runs[name][-1]
            print(
                f"{name}: {statistics.median(one['seconds']):.2f} s a step, {one['peak'] / 2**30:.2f} GiB", flush=True
            )
    seconds = {name: statistics.median(s for one in own for s in one["seconds"]) for name, own in runs.items()}
    peak = {name: max(one["peak"] for one in own) for name, own in runs.items()}
    result = {
        "model": Path(arguments.model).name,
        "vocabulary": arguments.vocabulary or None,
        "pairs": arguments.pairs,
        "checkpointing": arguments.checkpointing,
        "device": runs["uftlab"][0]["device"],
        "seconds_per_step": seconds,
        "peak_bytes": peak,
        "times_as_fast": seconds["trl"] / seconds["uftlab"],
        "memory_ratio": peak["uftlab"] / peak["trl"],
        "first_losses": {name: own[0]["losses"][:3] for name, own in runs.items()},
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        "load": os.getloadavg()[0],
    }
    print(f"uftlab: {result['times_as_fast']:.2f} times as fast, {result['memory_ratio']:.2f} times the peak memory")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

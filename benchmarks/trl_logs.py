"""Writes the logs of TRL under tests/evals/logs by running TRL's trainers on the tiny model: healthy runs and faults.

    python benchmarks/trl_logs.py [NAME ...]      needs the extra `bench`; a minute on one core

`trainer_state.json` is what the trainer saves; the JSONL has a line for each call of a logger.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from uftlab.models.policies import load_base, tiny_tokenizer
from uftlab.rows.table import as_labels, from_rows
from uftlab.world.world import World, pairs

LOGS = Path(__file__).parent.parent / "tests" / "evals" / "logs"
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "trl_dpo_healthy": ("dpo", {"beta": 0.2, "learning_rate": 2e-3}),
    "trl_dpo_diverged": ("dpo", {"beta": 0.2, "learning_rate": 0.3}),
    "trl_dpo_still": ("dpo", {"beta": 0.2, "learning_rate": 1e-9}),
    "trl_kto_healthy": ("kto", {"beta": 0.2, "learning_rate": 1e-3}),
    "trl_kto_inert": ("kto", {"beta": 1e-4, "learning_rate": 1e-3}),
}


class Lines(TrainerCallback):
    """What a logger gets, one line each."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One more line."""
        self.lines.append(json.dumps({"step": state.global_step, **logs}))


def written(name: str) -> None:
    """Run one trainer and keep its log."""
    kind, settings = RUNS[name]
    set_seed(0)
    tokenizer = tiny_tokenizer()
    table = from_rows(pairs(World(0).feedback(480)))
    keep = Lines()
    with tempfile.TemporaryDirectory() as folder:
        usual = {
            "output_dir": folder, "per_device_train_batch_size": 16, "max_steps": 40, "logging_steps": 2,
            "use_cpu": True, "save_strategy": "no", "report_to": "none", "bf16": False, "disable_tqdm": True,
            "gradient_checkpointing": False, "max_grad_norm": 0.0, "warmup_steps": 4, **settings,
        }  # fmt: skip
        model: Any = load_base(0)
        trainer: Any
        if kind == "dpo":
            rows = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in table]
            held = from_rows(pairs(World(0).feedback(128, seed=1)))  # other questions on the same creatures
            held_rows = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in held]
            args = DPOConfig(**usual, eval_strategy="steps", eval_steps=20)
            own = {"train_dataset": Dataset.from_list(rows), "eval_dataset": Dataset.from_list(held_rows)}
            trainer = DPOTrainer(model, load_base(0), args=args, processing_class=tokenizer, callbacks=[keep], **own)
        else:
            rows = [dict(r) for r in as_labels(table)]
            args = KTOConfig(**usual)
            own = {"train_dataset": Dataset.from_list(rows)}
            trainer = KTOTrainer(model, load_base(0), args=args, processing_class=tokenizer, callbacks=[keep], **own)
        trainer.train()
        if name.endswith("_still"):
            (LOGS / f"{name}.jsonl").write_text("\n".join(keep.lines) + "\n")
        else:
            trainer.save_state()
            (LOGS / f"{name}.json").write_text((Path(folder) / "trainer_state.json").read_text())


if __name__ == "__main__":
    LOGS.mkdir(parents=True, exist_ok=True)
    for own in sys.argv[1:] or RUNS:
        written(own)
        print(own, flush=True)

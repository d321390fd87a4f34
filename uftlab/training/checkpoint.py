"""A checkpoint from one's own rows with any method: what `uftlab train` does."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from transformers import set_seed

from uftlab.errors import InputError
from uftlab.files import write_atomically
from uftlab.models.policies import load_policy, with_lora
from uftlab.rows.table import load_rows
from uftlab.rows.tokens import Tokens
from uftlab.training.methods import method_named, sources
from uftlab.training.recipes import check_recipes, train_stage


def train_checkpoint(
    out: Path,
    model: str,
    files: Mapping[str, Path],
    method: str = "uft",
    *,
    steps: int = 100,
    batch: int = 32,
    settings: Mapping[str, float] | None = None,
    lora: int = 0,
    max_length: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Path:
    """Train `model` on the rows of `files` and save the checkpoint, its tokenizer and `training.json` in `out`.

    Args:
        files: `demonstrations` and `feedback`, whichever the method's stages need.
        steps: optimiser steps over all stages, `batch` completions each.
        lora: rank of the adapters; 0 trains all weights. A pipeline's second stage refers to the base then,
            because the reference is the model with its adapters off.

    Returns:
        The folder: a checkpoint in the hub's layout, or an adapter with LoRA.

    Raises:
        InputError: before any training, when rows, model, method or folder cannot be used.
    """
    for parent in (out, *out.parents):
        if parent.exists() and not parent.is_dir():
            raise InputError("The output folder", "not lie below a regular file", parent, "Choose another --out")
    if out.is_dir() and any(out.iterdir()):
        raise InputError("The output folder", "be empty", out, "Choose a new --out; nothing was changed")
    definition = method_named(method)
    if not definition.stages:
        raise InputError("The method", "train something", method, "Choose another, see `uftlab methods`")
    tables = {name: load_rows(path) for name, path in files.items()}
    policy, tokenizer = load_policy(model)
    tokens = Tokens(tokenizer)
    with redirect_stdout(StringIO()):  # every refusal comes before the first step; warnings come with their stage
        for stage in definition.stages:
            sources(stage, tables, tokens, batch, max_length)
    check_recipes(definition, tables, lora=lora)
    set_seed(seed)
    if lora:
        policy = with_lora(policy, lora)
    records = []
    weights = [stage.budget for stage in definition.stages]
    for index, stage in enumerate(definition.stages):
        own = max(1, round(steps * weights[index] / sum(weights)))
        say(f"stage {index + 1} of {len(definition.stages)}: {stage.objective}, {own} steps")
        with tempfile.TemporaryDirectory(prefix="uftlab-") as scratch:
            trained = train_stage(
                policy,
                stage,
                tables,
                tokens,
                {"learning_rate": 1e-4, **(settings or {})},
                own,
                seed,
                scratch,
                batch,
                max_length,
                disable_tqdm=False,
                logging_steps=max(1, own // 20),
            )
        records.append({"objective": stage.objective, "settings": trained.settings, "history": trained.history})
    out.mkdir(parents=True, exist_ok=True)
    policy.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_atomically(out / "training.json", json.dumps({"method": method, "model": model, "stages": records}, indent=1))
    say(f"saved {out}")
    return out

"""A checkpoint from one's own rows with any method: what `uftlab train` does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from transformers import PreTrainedModel, set_seed

from uftlab.errors import InputError
from uftlab.files import write_atomically
from uftlab.models.policies import load_policy, tiny_config, with_lora
from uftlab.rows.table import load_rows
from uftlab.rows.tokens import Tokens
from uftlab.training.methods import (
    LEARNING_RATE_ALL_WEIGHTS,
    LEARNING_RATE_LORA,
    Method,
    Stage,
    chosen_settings,
    method_named,
    plan,
    stage_defaults,
    tuned_settings,
)
from uftlab.training.recipes import sources
from uftlab.training.stages import Job, check_recipes, run


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
        settings: replace those of every stage that has them; the others are `starting_settings`.
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
    check_settings(definition, settings or {})
    tables = {name: load_rows(path) for name, path in files.items()}
    policy, tokenizer = load_policy(model)
    tokens = Tokens(tokenizer)
    chosen, where = starting_settings(definition, is_tiny(policy), lora)
    chosen = [{**own, **_of_stage(stage, settings or {})} for stage, own in zip(definition.stages, chosen, strict=True)]
    planned = plan(definition, steps / sum(stage.budget for stage in definition.stages), chosen)
    with redirect_stdout(StringIO()):  # every refusal comes before the first step; warnings come with their stage
        for stage, _, _ in planned:
            sources(stage, tables, tokens, batch, max_length)
    check_recipes(definition, tables, lora=lora)
    set_seed(seed)
    if lora:
        policy = with_lora(policy, lora)
    say(f"{method} on {model}: what you did not set is {where}")
    records = []
    for index, (stage, own, values) in enumerate(planned):
        shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
        say(f"stage {index + 1} of {len(planned)}: {stage.objective}, {own} steps, {shown}")
        job = Job(policy, stage, tables, values, own, seed)
        (trained,) = run([job], tokens, batch=batch, max_length=max_length, callbacks=(), disable_tqdm=False)
        record = trained.record
        records.append({"objective": stage.objective, "settings": record.settings, "history": record.history})
    out.mkdir(parents=True, exist_ok=True)
    policy.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_atomically(out / "training.json", json.dumps({"method": method, "model": model, "stages": records}, indent=1))
    say(f"saved {out}")
    return out


def is_tiny(policy: PreTrainedModel) -> bool:
    """Whether this is a model of the tiny world: its architecture, whatever its weights."""
    mine = policy.config
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return mine.model_type == "llama" and all(getattr(mine, n) == getattr(tiny_config(), n) for n in same)


def starting_settings(method: Method, tiny: bool, lora: int = 0) -> tuple[list[dict[str, float]], str]:
    """The settings of each stage of a method when the user sets none, and where they come from, in words.

    A model of the tiny world has what the sweep chose, or the objective's defaults for that world. Another model has
    the objective's defaults with a learning rate of its own size.
    """
    if tiny:
        if method.name in chosen_settings():
            return tuned_settings(method.name), "what the sweep chose for the tiny world"
        return [stage_defaults(stage) for stage in method.stages], "the default of the tiny world, not tuned"
    rate = LEARNING_RATE_LORA if lora else LEARNING_RATE_ALL_WEIGHTS
    words = f"the default of the loss, with learning rate {rate:g}, not tuned"
    return [{**stage_defaults(stage), "learning_rate": rate} for stage in method.stages], words


def _of_stage(stage: Stage, settings: Mapping[str, float]) -> dict[str, float]:
    """Those of the settings that a stage has."""
    return {name: value for name, value in settings.items() if name in stage_defaults(stage)}


def check_settings(method: Method, settings: Mapping[str, float]) -> None:
    """Refuse settings that no stage of a method has.

    Raises:
        InputError: naming them and those there are.
    """
    used = {name for stage in method.stages for name in _of_stage(stage, settings)}
    if "demonstrations" in method.tuned:
        used.add("demonstrations")
    unknown = sorted(set(settings) - used)
    if unknown:
        have = dict.fromkeys(name for stage in method.stages for name in stage_defaults(stage))
        options = " and ".join(f"--{name.replace('_', '-')}" for name in unknown)
        raise InputError(f"Settings of {method.name}", f"be among {', '.join(have)}", unknown, f"Leave out {options}")

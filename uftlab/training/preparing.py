"""What `uftlab train` knows before the first step: rows, settings and plan of a run, what it refuses, a dry run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel

from uftlab.engine.trainer import check_parts
from uftlab.errors import InputError
from uftlab.models.logps import read_logps, shares_prompts
from uftlab.models.policies import load_policy, tiny_config
from uftlab.objectives.registry import objective_named
from uftlab.rows.batches import in_parts, positions_of, to_batch
from uftlab.rows.kinds import rows_from
from uftlab.rows.sources import load_table, read_rows
from uftlab.rows.table import overlap
from uftlab.rows.tokens import Example, RememberingTokens, Tokens, interleave
from uftlab.training.catalogue import method_named
from uftlab.training.configuration import TrainConfig, check_size
from uftlab.training.methods import Method, Stage, plan, stage_defaults
from uftlab.training.recipes import share_of_a_step
from uftlab.training.settings import LEARNING_RATE_ALL_WEIGHTS, LEARNING_RATE_LORA, chosen_settings, tuned_settings
from uftlab.training.stage_data import enough, sources
from uftlab.training.stages import check_recipes, usual_device

STEPS = 100  # of a run that is told nothing
SHOWN = 2  # rows of each table that a dry run decodes
Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A run before its first step: all that can be refused has been."""

    config: TrainConfig
    method: Method
    tables: dict[str, Dataset]
    held_out: dict[str, Dataset]
    policy: PreTrainedModel
    tokens: Tokens
    planned: list[tuple[Stage, int, dict[str, float]]]
    rows: list[tuple[list[list[Example]], list[int]]]  # of each stage: its tokenised tables, examples of each per step
    where: str  # the settings that nobody set come from


def prepared(config: TrainConfig, say: Say = print) -> Prepared:
    """Everything but the training: rows, model, tokens, settings.

    Raises:
        InputError: when rows, model or method cannot be used.
    """
    config = config.checked()
    method = method_named(config.method)
    if not method.stages:
        raise InputError("The method", "train something", config.method, "Choose another, see `uftlab methods`")
    check_settings(method, config.settings)
    tables, held = {}, {}
    for name in ("demonstrations", "feedback"):
        source = getattr(config, name)
        if source is not None:
            how: Any = {"layout": config.layout, "train_on": config.train_on, "on_bad_row": config.on_bad_row}
            table, line = load_table(source, **how, score_range=_range(config.score_range), purpose=name)
            say(f"{name}: {line}")
            table, held[name] = _split(table, config.held_out, config.seed, name)
            tables[name] = table
            if config.epochs is None:  # else all rows are read
                tables[name] = enough(table, (config.steps or STEPS) * config.batch, config.seed)
            if len(tables[name]) < len(table):
                say(f"{name}: {len(tables[name]):,} of these rows are drawn for this run, which reads fewer")
    for source in config.benchmarks:
        asked = [str(row.get("question", row.get("prompt", ""))) for row in read_rows(Path(source))]
        prompts = (row["prompt"] for table in tables.values() for row in rows_from(table.select_columns("prompt")))
        seen = overlap(prompts, asked)
        if seen:
            say(f"warning: {len(seen)} prompts are in {source} too, so its scores will flatter. One: {seen[0][:60]!r}")
    check_recipes(method, tables, lora=config.lora)
    if is_divided():
        _check_divided(config, method)
    others = [stage.recipe for stage in method.stages if stage.recipe != "offline"]
    for name in ("held_out", "save_every", "tokens_per_device"):
        if others and getattr(config, name):
            remedy = "Leave it out, or use a method without this recipe"
            raise InputError(f"--{name.replace('_', '-')}", "go with plain stages", f"the recipe {others[0]}", remedy)
    policy, tokenizer = load_policy(config.model)
    tokens = RememberingTokens(tokenizer)  # the stages train on the same rows again
    chosen, where = starting_settings(method, is_tiny(policy), config.lora)
    chosen = [{**own, **_of_stage(stage, config.settings)} for stage, own in zip(method.stages, chosen, strict=True)]
    for number, own in enumerate(config.stages):
        if number >= len(chosen):
            raise InputError(
                "stages", f"be at most {len(chosen)}, those of {method.name}", len(config.stages), "Cut it"
            )
        check_settings(method, own)
        chosen[number] |= {name: float(value) for name, value in own.items()}
    # with their settings: a stage may have another share of demonstrations
    stages = [(stage, values) for stage, _, values in plan(method, 1, chosen)]
    rows = []
    for stage, _ in stages:
        rows.append(sources(stage, tables, tokens, config.batch, row_limit(config, policy)))
        _check_tokens(policy, tokens, rows[-1][0])
        # a pair or a completion that does not fit is refused now, and not after an hour
        share_of_a_step(sum(rows[-1][1]), {"gradient_accumulation_steps": config.accumulation})
        if config.tokens_per_device:
            all_rows = [example for own in rows[-1][0] for example in own]
            check_parts(objective_named(stage.objective), all_rows, config.tokens_per_device, shares_prompts(policy))
    steps = config.steps or _steps_of(rows, config.epochs) or STEPS
    check_size("--steps" if config.steps else "--epochs", steps, config.batch)
    if steps < len(method.stages):
        raise InputError("--steps", f"be at least {len(method.stages)}, one a stage", steps, "Raise it")
    shares = _shares(steps, [stage.budget for stage, _ in stages])
    planned = [(stage, own, values) for (stage, values), own in zip(stages, shares, strict=True)]
    return Prepared(config, method, tables, held if config.held_out else {}, policy, tokens, planned, rows, where)


def is_divided() -> bool:
    """Whether the processes of this training hold parts of the model (FSDP) and not each the whole (DDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _check_divided(config: TrainConfig, method: Method) -> None:
    """Refuses what needs the whole model in each process while it trains."""
    version_ = os.environ.get("FSDP_VERSION", "1")
    if version_ != "2":
        remedy = "Write `fsdp_version: 2` in the file of accelerate"
        raise InputError("Training with FSDP", "be of version 2", version_, remedy)
    whole = [f"--{name.replace('_', '-')}" for name in ("tokens_per_device", "save_every") if getattr(config, name)]
    for stage in method.stages:
        whole += [stage.recipe] if stage.recipe != "offline" else [name for name, _ in stage.options]
        whole += [stage.objective] if objective_named(stage.objective).distributions else []
    if whole:
        remedy = "Leave it out, or launch without FSDP"
        raise InputError("Training with FSDP", "need no whole model in a process", ", ".join(whole), remedy)


def _shares(steps: int, budgets: Sequence[float]) -> list[int]:
    """Whole steps of each stage, one at least, which sum to `steps`. 3 and 5 steps of two halves: 2 + 1 and 2 + 3."""
    ends = [round(steps * sum(budgets[: i + 1]) / sum(budgets)) for i in range(len(budgets))]
    made = [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]
    made[made.index(max(made))] += steps - sum(made)
    return made


def _steps_of(rows: Sequence[tuple[list[list[Example]], list[int]]], epochs: float | None) -> int | None:
    """Steps of all stages that are so many passes over the largest table of each."""
    if epochs is None:
        return None
    rounds = [max(len(own) / count for own, count in zip(*stage, strict=True)) for stage in rows]
    return max(1, round(epochs * sum(rounds)))


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError("--score-range", "be two numbers", text, "Write for instance 1,10") from None
    return low, high


def _split(table: Dataset, share: float, seed: int, name: str) -> tuple[Dataset, Dataset]:
    """The rows to train on, and those that are kept apart."""
    if not share:
        return table, table.select([])
    count = max(1, round(share * len(table)))
    if count >= len(table):
        raise InputError("--held-out", "leave rows to train on", f"{share} of {len(table)} {name}", "Lower it")
    parts = table.train_test_split(test_size=count, seed=seed)
    return parts["train"], parts["test"]


def _check_tokens(policy: PreTrainedModel, tokens: Tokens, examples: Sequence[Sequence[Example]]) -> None:
    """Refuses rows with a token that the model has no embedding for. Padding may be such a token: nobody reads it."""
    embeddings: Any = policy.get_input_embeddings()
    have = embeddings.weight.shape[0]
    highest = max(max((*c.prompt_ids, *c.completion_ids)) for own in examples for e in own for c in e)
    if highest >= have:
        got = f"{tokens.tokenizer.decode([highest])!r}, number {highest}"
        remedy = "Resize the model's embeddings, or use the tokenizer that it was trained with"
        raise InputError("Every token of the rows", f"be among the model's {have}", got, remedy)


def row_limit(config: TrainConfig, policy: PreTrainedModel) -> int | None:
    """Tokens of the longest row that is kept: what the user says, else the context of the model."""
    return config.max_length or getattr(policy.config.get_text_config(), "max_position_embeddings", None)


def in_words(values: Mapping[str, float]) -> str:
    """Settings for a reader: "learning_rate 0.001, beta 0.1"."""
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


# ------------------------------------------------------------------------------------------ a dry run


def describe(made: Prepared, say: Say) -> None:
    """What would be trained: rows, tokens, steps, some rows decoded, an estimate of time and memory."""
    config, policy = made.config, made.policy
    parameters = sum(p.numel() for p in policy.parameters())
    decode = made.tokens.tokenizer.decode
    say(f"{config.model}: {parameters / 1e6:.1f} million parameters; what you did not set is {made.where}")
    for number, ((stage, steps, values), (examples, per_step)) in enumerate(
        zip(made.planned, made.rows, strict=True), start=1
    ):
        order = interleave(examples, per_step, min(steps, 8), config.seed)
        tokens = sum(len(c.prompt_ids) + len(c.completion_ids) for e in order for c in e) * steps / min(steps, 8)
        passes = [len(own) and steps * count / len(own) for own, count in zip(examples, per_step, strict=True)]
        over = [f"{own:.2f} passes over {len(e)} rows" for own, e in zip(passes, examples, strict=True)]
        size = f"{steps} steps of {config.batch} completions, about {tokens:,.0f} tokens"
        say(f"stage {number}: {stage.objective}, {size}")
        say(f"  {' and '.join(over)}; settings: {in_words(values)}")
        for own in examples:
            for completion in [c for e in own[:SHOWN] for c in e][:SHOWN]:
                text, trained = decode(list(completion.prompt_ids)), decode(list(completion.completion_ids))
                say(f"  {completion.role}: {text!r} -> trained on {trained!r}")
        step = order[: sum(per_step)]
        if config.tokens_per_device:
            parts = in_parts(step, config.tokens_per_device, shares_prompts(policy))
            say(f"  the first step takes {len(parts)} passes of at most {config.tokens_per_device} positions")
        computed, real = positions_of(to_batch(step))
        say(f"  {computed / real:.2f} positions are computed for each token that has to be read")
    extra = 0 if config.lora else 3  # gradients and the two moments of Adam
    memory = parameters * 4 * (1 + extra)
    say(f"about {estimate(made) / 60:.1f} minutes on this machine, {memory / 2**30:.1f} GiB of weights and optimiser")
    say("nothing was trained or written")


def estimate(made: Prepared) -> float:
    """Seconds of training on this machine, from the forward passes of one step of each stage."""
    model: Any = made.policy
    model.to(usual_device())
    seconds = 0.0
    for (stage, steps, _), (examples, per_step) in zip(made.planned, made.rows, strict=True):
        rows = [c for e in interleave(examples, per_step, 1, made.config.seed) for c in e]
        read_logps(model, rows[:1])  # the first call pays for what is made once
        start = time.perf_counter()
        read_logps(model, rows)
        backward = 1 if made.config.lora else 2
        passes = 1 + backward + objective_named(stage.objective).reference
        seconds += (time.perf_counter() - start) * steps * passes
    return seconds


# ------------------------------------------------------------------------------------------ settings


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

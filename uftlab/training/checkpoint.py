"""A checkpoint from one's own rows with any method: what `uftlab train` does.

Everything that a run needs to go on lies in its folder: `training.json` says what it was told and how far it is,
`.training/` holds checkpoints and the result of each finished stage until the whole is saved.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs
import torch
from datasets import Dataset
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, set_seed

from uftlab.engine.trainer import Lines, check_parts, process
from uftlab.errors import InputError
from uftlab.files import read_json, write_atomically
from uftlab.models.generation import answers
from uftlab.models.logps import read_logps, shares_prompts
from uftlab.models.policies import load_policy, load_weights, tiny_config, with_adapter, with_lora
from uftlab.models.references import ReferenceCache
from uftlab.objectives.registry import objective_named
from uftlab.rows.batches import in_parts, positions_of, to_batch
from uftlab.rows.kinds import rows_from
from uftlab.rows.sources import load_table, read_rows
from uftlab.rows.table import overlap
from uftlab.rows.tokens import Example, RememberingTokens, Tokens, interleave
from uftlab.training.catalogue import method_named
from uftlab.training.configuration import TrainConfig, check_size, told
from uftlab.training.methods import Method, Stage, plan, stage_defaults
from uftlab.training.recipes import enough, share_of_a_step, sources
from uftlab.training.record import RECORD, read_record, read_stage
from uftlab.training.settings import LEARNING_RATE_ALL_WEIGHTS, LEARNING_RATE_LORA, chosen_settings, tuned_settings
from uftlab.training.stages import Job, check_recipes, run, usual_device

WORK = ".training"
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # of a divided model, in the first process
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


def train_checkpoint(config: TrainConfig, say: Say = print, resume: bool = False, dry_run: bool = False) -> Path:
    """Train a model as the configuration says, and save it with its tokenizer and `training.json` in `config.out`.

    Args:
        resume: go on with the unfinished run in that folder. Its configuration is the one that counts.
        dry_run: say what would be trained, on what, and how long it takes. Nothing is trained or written.

    Returns:
        The folder: a checkpoint in the hub's layout; with LoRA and one stage an adapter, unless `merge` is set.

    Raises:
        InputError: before any training, when rows, model, method or folder cannot be used.
        DivergedError: when a loss or a gradient is not finite. What was saved before stays, for `resume`.
    """
    out, main = Path(config.out), process().is_main_process
    say = say if main else (lambda _line: None)
    if resume:
        config = _unfinished(out)
    elif not dry_run:
        _check_folder(out)
    made = prepared(config, say)
    if dry_run:
        describe(made, say)
        return out
    process().wait_for_everyone()  # else a slow process would find the folder that a quick one has filled
    with _saved_in(out, "Free space, then give --resume with this --out alone"):
        if main:
            out.mkdir(parents=True, exist_ok=True)
            _record(out, made, "unfinished", [])
        process().wait_for_everyone()
        _train(made, out, say, resume)
    return out


@contextlib.contextmanager
def _saved_in(out: Path, remedy: str) -> Iterator[None]:
    """A disk that is full is one clear error, whichever library meets it."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not re.search(r"(os error |Errno )(27|28|122)\b|PytorchStreamWriter|inline_container\.cc", str(error)):
            raise
        raise InputError(f"The folder {out}", "have space for the model", "a full disk, or a limit", remedy) from None


def merge(model: str, out: Path) -> Path:
    """Save a policy as a whole model with its tokenizer: an adapter's folder becomes a checkpoint of its own.

    Raises:
        InputError: when the model cannot be loaded, or the folder is not empty or writable.
    """
    _check_folder(out)
    policy, tokenizer = load_policy(model)
    try:
        with _saved_in(out, "Free space, then give the same command again"):
            _save_policy(policy, out / WORK / "final")
            tokenizer.save_pretrained(out / WORK / "final")
            _move(out)
    except BaseException:
        shutil.rmtree(out / WORK, ignore_errors=True)  # else the folder would not be empty the next time
        raise
    return out


# ------------------------------------------------------------------------------------------ before


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
    policy.config.use_cache = False if config.gradient_checkpointing else policy.config.use_cache
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
        rows.append(sources(stage, tables, tokens, config.batch, _limit(config, policy)))
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


def _check_folder(out: Path) -> None:
    """Refuses a folder that the result cannot be saved in, before anything is trained."""
    for parent in (out, *out.parents):
        if parent.exists() and not parent.is_dir():
            raise InputError("The output folder", "not lie below a regular file", parent, "Choose another --out")
    if _is_unfinished(out):
        raise InputError("The output folder", "be empty", f"an unfinished run in {out}", "Add --resume, or delete it")
    if out.is_dir() and any(out.iterdir()):
        raise InputError("The output folder", "be empty", out, "Choose a new --out; nothing was changed")
    near = next(parent for parent in (out, *out.absolute().parents) if parent.is_dir())
    try:
        tempfile.TemporaryFile(dir=near).close()
    except OSError as error:
        got = f"{out} ({error.strerror})"
        raise InputError("The output folder", "be writable", got, "Choose another --out") from None


def _is_unfinished(out: Path) -> bool:
    try:
        return read_record(out)["state"] == "unfinished"
    except InputError:  # none, or that of another tool
        return False


def _unfinished(out: Path) -> TrainConfig:
    """What an unfinished run was told."""
    found = read_record(out) if (out / RECORD).is_file() else {}
    if found.get("state") != "unfinished":
        got = "a finished one" if found else "none"
        raise InputError("--resume", f"find an unfinished run in {out}", got, "Leave --resume out to begin a new run")
    return told(found["config"], out)


def state_of(config: TrainConfig) -> str:
    """How far the run in its folder is: "none", "unfinished" or "finished".

    Raises:
        InputError: when the run that is there was told something else.
    """
    out = Path(config.out)
    if not (out / RECORD).is_file():
        return "none"
    found = read_record(out)
    stored = told(found["config"], out).asdict() | {"out": config.out}
    if differ := [name for name, value in config.asdict().items() if stored[name] != value]:
        got = ", ".join(f"{name} {stored[name]!r} and not {config.asdict()[name]!r}" for name in differ)
        raise InputError(f"The run in {out}", "be told the same as before", got, "Choose a new --out")
    return found["state"]


# ------------------------------------------------------------------------------------------ training


def _train(made: Prepared, out: Path, say: Say, resume: bool) -> None:
    config, work, main = made.config, out / WORK, process().is_main_process
    policy: Any = made.policy
    set_seed(config.seed)
    say(f"{config.method} on {config.model}: what you did not set is {made.where}")
    prompts = _prompts(made.tables, config.samples)
    before = answers(policy, made.tokens.tokenizer, prompts) if prompts else []
    records: list[dict[str, Any]] = []
    for index, (stage, steps, values) in enumerate(made.planned):
        place, done = work / f"stage-{index + 1}", work / f"stage-{index + 1}" / "record.json"
        last = index + 1 == len(made.planned)
        if done.is_file():
            say(f"stage {index + 1} of {len(made.planned)}: done before")
            records.append(read_stage(done))
            policy = _after(policy, place / "model", config, last)
            continue
        say(f"stage {index + 1} of {len(made.planned)}: {stage.objective}, {steps} steps, {_in_words(values)}")
        if config.lora:
            policy = with_lora(policy, config.lora, config.lora_alpha, config.lora_dropout, _targets(config))
        job = Job(policy, stage, made.tables, values, steps, config.seed, references=_references(config))
        (trained,) = run(
            [job], made.tokens, batch=config.batch, max_length=_limit(config, made.policy), callbacks=(Lines(say),),
            folder=place, held_out=made.held_out, dropout=config.dropout, tokens_per_device=config.tokens_per_device,
            **_arguments(config, steps, place, resume),
        )  # fmt: skip
        record = trained.record
        records.append(
            {"objective": stage.objective, "steps": steps, "settings": record.settings, "history": record.history}
        )
        divided = isinstance(policy, FSDPModule)
        state = get_model_state_dict(policy, options=WHOLE) if divided else None  # every process has to take part
        if main:
            _save_policy(policy, place / "model", state)
            write_atomically(done, json.dumps(records[-1]))
            _record(out, made, "unfinished", records)
        process().wait_for_everyone()
        policy = _replayed(made, work, index) if divided else _after(policy, None, config, last)
        process().wait_for_everyone()  # else the first to be ready would remove what another still reads
    after = answers(policy, made.tokens.tokenizer, prompts) if prompts else []
    samples = [{"prompt": p, "before": b, "after": a} for p, b, a in zip(prompts, before, after, strict=True)]
    for own in samples:
        say(f"prompt: {own['prompt']}\n  before: {own['before']}\n  after:  {own['after']}")
    if main:
        _finish(policy, made, out, records, samples)
    process().wait_for_everyone()
    say(f"saved {out}")


def _limit(config: TrainConfig, policy: PreTrainedModel) -> int | None:
    """Tokens of the longest row that is kept: what the user says, else the context of the model."""
    return config.max_length or getattr(policy.config.get_text_config(), "max_position_embeddings", None)


def _in_words(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _targets(config: TrainConfig) -> str | list[str]:
    names = [name.strip() for name in config.lora_targets.split(",")]
    return config.lora_targets if names == ["all-linear"] else names


def _references(config: TrainConfig) -> ReferenceCache:
    """Log-probabilities of references, kept for other runs in the user's cache."""
    precision = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    return ReferenceCache(platformdirs.user_cache_path("uftlab") / "references", precision)


def _arguments(config: TrainConfig, steps: int, place: Path, resume: bool) -> dict[str, Any]:
    """What transformers' Trainer is told."""
    warmup = int(config.warmup * steps)  # the first step of a warm-up has a learning rate of 0: short runs have none
    told: dict[str, Any] = {
        "gradient_accumulation_steps": config.accumulation,
        "bf16": config.precision == "bf16",
        "fp16": config.precision == "fp16",
        "gradient_checkpointing": config.gradient_checkpointing,
        "warmup_steps": warmup,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.clip,
        "logging_steps": config.log_every or max(1, steps // 20),
        "report_to": [name.strip() for name in config.log_to.split(",")],
        "disable_tqdm": True,  # a line for each entry of the log, from `Lines`
    }
    if config.gradient_checkpointing:
        told["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    if config.save_every:
        told |= {"save_strategy": "steps", "save_steps": config.save_every, "save_total_limit": 2}
    if config.held_out:
        told |= {"eval_strategy": "steps", "eval_steps": config.evaluate_every or max(1, steps // 5)}
    last = _last_whole(place) if resume else None
    return told | ({"resume_from_checkpoint": str(last)} if last else {})


def _last_whole(place: Path) -> Path | None:
    """The last checkpoint that was saved to its end: a kill or a full disk leaves half ones.

    The library writes `trainer_state.json` last.
    """
    found = [path for path in place.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            read_json((path / "trainer_state.json").read_bytes(), nan=True)
            return path
    return None


def _after(policy: Any, stored: Path | None, config: TrainConfig, last: bool) -> Any:
    """The policy with which the next stage begins. Adapters are merged: they are part of its reference then."""
    if stored is not None:
        policy = with_adapter(policy, stored) if config.lora else load_weights(str(stored))
    return policy.merge_and_unload() if config.lora and not last else policy


def _replayed(made: Prepared, work: Path, index: int) -> Any:
    """The policy after a stage, whole again, from what was saved of this stage and those before."""
    policy: Any = load_policy(made.config.model)[0]
    for number in range(index + 1):
        place = work / f"stage-{number + 1}" / "model"
        policy = _after(policy, place, made.config, number + 1 == len(made.planned))
    return policy


def _save_policy(policy: Any, folder: Path, state: Mapping[str, Any] | None = None) -> None:
    """All or nothing: a folder that is there is whole. `state` are the gathered weights of a divided model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        policy.save_pretrained(part, **({} if state is None else {"state_dict": state}))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _finish(policy: Any, made: Prepared, out: Path, records: list, samples: list) -> None:
    """Move the result to its place; `training.json` says so last, and the checkpoints go."""
    merged = made.config.lora and (made.config.merge or len(made.planned) > 1)
    final = out / WORK / "final"
    _save_policy(policy.merge_and_unload() if merged else policy, final)
    made.tokens.tokenizer.save_pretrained(final)
    _move(out, lambda: _record(out, made, "finished", records, samples))


def _move(out: Path, done: Callable[[], None] = lambda: None) -> None:
    """What was saved goes to its place, then `done` is called, then the working folder goes."""
    for path in sorted((out / WORK / "final").iterdir()):
        os.replace(path, out / path.name)
    done()
    shutil.rmtree(out / WORK, ignore_errors=True)


def _record(out: Path, made: Prepared, state: str, records: list, samples: Sequence[Mapping] = ()) -> None:
    config = made.config
    write_atomically(
        out / RECORD,
        json.dumps(
            {
                "state": state,
                "method": config.method,
                "model": config.model,
                "seed": config.seed,
                "config": config.asdict(),
                "rows": {name: len(table) for name, table in made.tables.items()},
                "device": torch.cuda.get_device_name() if usual_device() == "cuda" else "CPU",
                "processes": process().num_processes,
                "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", "peft")},
                "stages": records,
                "samples": list(samples),
            },
            indent=1,
        ),
    )


def _prompts(tables: Mapping[str, Dataset], count: int) -> list[Any]:
    """Different prompts of the tables, the first of each in turn."""
    seen: dict[str, Any] = {}
    for row in range(max(map(len, tables.values()), default=0)):
        for table in tables.values():
            if row < len(table) and len(seen) < count:
                seen.setdefault(repr(table[row]["prompt"]), table[row]["prompt"])
        if len(seen) >= count:
            break
    return list(seen.values())


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
        say(f"  {' and '.join(over)}; settings: {_in_words(values)}")
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

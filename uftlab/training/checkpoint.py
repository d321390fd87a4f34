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
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs
import torch
from datasets import Dataset
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import set_seed

from uftlab.engine.trainer import Lines, process
from uftlab.errors import InputError
from uftlab.files import into_place, read_json, remove_left, write_atomically
from uftlab.models.generation import answers
from uftlab.models.policies import load_policy, load_weights, with_adapter, with_lora
from uftlab.models.references import ReferenceCache
from uftlab.training.configuration import TrainConfig, told
from uftlab.training.preparing import Prepared, Say, describe, in_words, prepared, row_limit
from uftlab.training.record import RECORD, read_record, read_stage
from uftlab.training.stages import Job, run, usual_device

WORK = ".training"
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # of a divided model, in the first process


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


# ------------------------------------------------------------------------------------------ the folder


def _check_folder(out: Path) -> None:
    """Refuses a folder that the result cannot be saved in, before anything is trained."""
    for parent in (out, *out.parents):
        if parent.exists() and not parent.is_dir():
            raise InputError("The output folder", "not lie below a regular file", parent, "Choose another --out")
    if (state := _state_in(out)) == "unfinished":
        raise InputError("The output folder", "be empty", f"an unfinished run in {out}", "Add --resume, or delete it")
    if state == "finished":
        shutil.rmtree(out / WORK, ignore_errors=True)  # of a run that was killed when it had saved everything
        got = f"a finished run in {out}"
        raise InputError("The output folder", "be empty", got, "It is whole; choose a new --out for another")
    if out.is_dir():
        remove_left(out, RECORD)
    if out.is_dir() and any(out.iterdir()):
        raise InputError("The output folder", "be empty", out, "Choose a new --out; nothing was changed")
    near = next(parent for parent in (out, *out.absolute().parents) if parent.is_dir())
    try:
        tempfile.TemporaryFile(dir=near).close()
    except OSError as error:
        got = f"{out} ({error.strerror})"
        raise InputError("The output folder", "be writable", got, "Choose another --out") from None


def _state_in(out: Path) -> str | None:
    try:
        return read_record(out)["state"]
    except InputError:  # none, or that of another tool
        return None


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
        say(f"stage {index + 1} of {len(made.planned)}: {stage.objective}, {steps} steps, {in_words(values)}")
        if config.lora:
            policy = with_lora(policy, config.lora, config.lora_alpha, config.lora_dropout, _targets(config))
        job = Job(policy, stage, made.tables, values, steps, config.seed, references=_references(config))
        (trained,) = run(
            [job], made.tokens, batch=config.batch, max_length=row_limit(config, made.policy), callbacks=(Lines(say),),
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
        into_place(path, out / path.name)
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

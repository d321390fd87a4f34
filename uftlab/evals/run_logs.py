"""Reads the curves of a training run from what trainers write: ours, transformers', TRL's and LLaMA-Factory's.

| file | written by |
|---|---|
| `trials/*.json` | a study of uftlab |
| `training.json` | `uftlab train` |
| `trainer_state.json`, also in `checkpoint-N/` | transformers' Trainer, TRL, LLaMA-Factory |
| `trainer_log.jsonl` | LLaMA-Factory |
| any other `.jsonl` or `.csv` with a row for each logged step | TRL, exports of loggers |

Curves get the names of uftlab, whoever wrote them (`ALIASES`). Nothing here needs torch.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uftlab.errors import InputError

Points = Sequence[tuple[float, float]]  # (step, value), by step

CURVES = (
    "loss", "grad_norm", "learning_rate", "reward/chosen", "reward/rejected", "reward/margin", "reward/accuracy",
    "reward/demonstration", "logps/chosen", "logps/rejected", "logps/demonstration", "kl_baseline", "length/words",
    "score/proxy", "score/true",
)  # fmt: skip
ALIASES = {  # of others -> ours
    "lr": "learning_rate",  # LLaMA-Factory, trainer_log.jsonl
    "accuracy": "reward/accuracy",  # the same, for stages with pairs
    "rewards/chosen": "reward/chosen",  # TRL and LLaMA-Factory
    "rewards/rejected": "reward/rejected",
    "rewards/margins": "reward/margin",
    "rewards/accuracies": "reward/accuracy",
    "kl": "kl_baseline",  # TRL's KTOTrainer
    "completions/mean_length": "length/words",  # TRL, trainers that sample; in tokens
    "reward": "score/proxy",  # TRL, trainers that sample; LLaMA-Factory
}
STEPS = ("step", "current_steps", "global_step", "_step", "Step")  # the last two: exports of Weights & Biases
FILES = ("training.json", "trainer_state.json", "trainer_log.jsonl")


@dataclass(frozen=True)
class Run:
    """The curves of one stage of training, by our names, and what is known of its settings.

    Args:
        curves: name -> (step, value) by step. Values may be NaN or infinite.
        settings: those that are known; the doctor looks at `objective` and `beta`, which is above 0.
    """

    name: str
    curves: Mapping[str, Points]
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_runs(path: Path | str, settings: Mapping[str, Any] | None = None) -> list[Run]:
    """The runs of a file or folder: one for each stage of each run.

    Args:
        settings: what the user knows of the run and its log does not tell, such as beta.

    Raises:
        InputError: for a file that is missing, empty or no log, naming file and line; a folder without logs.
    """
    path = Path(path)
    found = [run for file in _files(path) for run in _read(file)]
    if not found:  # a base model has no stages
        remedy = "Name a run that was trained for some steps, with its history"
        raise InputError(f"{path}", "have a history in at least one of its stages", "none", remedy)
    return [Run(run.name, run.curves, {**run.settings, **(settings or {})}) for run in found]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if trials := sorted(path.glob("trials/*.json")) or (sorted(path.glob("*.json")) if path.name == "trials" else []):
        return trials
    for name in FILES:
        if (path / name).is_file():
            return [path / name]
    if states := list(path.glob("checkpoint-*/trainer_state.json")):
        return [max(states, key=lambda own: _number_of(own.parent))]
    if logs := sorted([*path.glob("*.jsonl"), *path.glob("*.csv")]):
        return logs
    have = ", ".join(sorted(own.name for own in path.iterdir())[:5]) or "nothing"
    remedy = "Name the file with the log"
    raise InputError(f"The folder {path}", f"hold trials or one of {', '.join(FILES)}", have, remedy)


def _number_of(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _read(path: Path) -> list[Run]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}", "be a file that can be read", error.strerror, "Check the path") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}", "be text in UTF-8", error.reason, "Name the log, not a checkpoint") from None
    if not text.strip():
        raise InputError(f"{path}", "hold logged steps", "an empty file", "Name the log of a run that has begun")
    if path.suffix == ".jsonl":
        return [_run(path, "", list(_json_lines(path, text)))]
    if path.suffix == ".csv":
        return [_run(path, "", list(_csv_lines(path, text)))]
    return _of_json(path, _parsed(str(path), text))


def _of_json(path: Path, stored: Any) -> list[Run]:
    if isinstance(stored, list):
        return [_run(path, "", _numbered(path, stored))]
    if isinstance(stored, dict) and isinstance(stored.get("log_history"), list):
        return [_run(path, "", _numbered(path, stored["log_history"]))]
    if isinstance(stored, dict) and isinstance(stored.get("stages"), list):
        return runs_of(str(path), stored)
    remedy = "Name a trial, training.json, trainer_state.json, or a log as JSONL or CSV"
    raise InputError(f"{path}", "have log_history, or stages with a history", _keys(stored), remedy)


def _keys(stored: Any) -> str:
    return ", ".join(list(stored)[:5]) or "nothing" if isinstance(stored, dict) else type(stored).__name__


def runs_of(name: str, stored: Mapping[str, Any]) -> list[Run]:
    """The runs of a trial of a study or of a `training.json`: one for each stage that has a history."""
    runs: list[Run] = []
    stages = stored.get("stages")
    if not isinstance(stages, list):
        return []
    for number, stage in enumerate(stages, start=1):
        history = stage.get("history") if isinstance(stage, dict) else None
        if not isinstance(history, list) or not history:
            continue
        own = stage.get("settings")
        settings = {**(own if isinstance(own, dict) else {}), "objective": stage.get("objective")}
        several = f", stage {number}" if len(stages) > 1 else ""
        run = _run(name, several, _numbered(name, history), settings)
        runs.append(Run(run.name, {**run.curves, **_measured(stored, number)}, run.settings))
    return runs


def _measured(stored: Mapping[str, Any], stage: int) -> dict[str, Points]:
    """The length of answers that a study measures along a stage, from the end of the stage before."""
    wanted = {"stage", "step", "length/words"}
    points = [p for p in stored.get("curves", ()) if isinstance(p, dict) and wanted <= set(p)]
    before = [p for p in points if p["stage"] < stage][-1:]
    own = [(float(p["step"]), float(p["length/words"])) for p in [*before, *(p for p in points if p["stage"] == stage)]]
    return {"length/words": own} if len(own) > 1 else {}


# ------------------------------------------------------------------------------------------ rows of a log

Row = tuple[str, Mapping[str, Any]]  # where it stands, and its values


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) and "\n" in text.strip() else ""
        raise InputError(f"{where}{line}", "be JSON", str(error).split(":")[0], "Name a log that is whole") from None


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield from _numbered(path, [_parsed(f"{path}, line {number}", line)], number, "line")


def _csv_lines(path: Path, text: str) -> Iterator[Row]:
    lines = csv.DictReader(text.splitlines())
    for row in lines:
        yield (
            f"{path}, line {lines.line_num}",
            {key: value for key, value in row.items() if key and value not in ("", None)},
        )


def _numbered(path: Path | str, entries: Sequence[Any], first: int = 1, unit: str = "entry") -> list[Row]:
    rows: list[Row] = []
    for number, entry in enumerate(entries, start=first):
        if not isinstance(entry, dict):
            got, remedy = type(entry).__name__, "Name a log with a dictionary for each step"
            raise InputError(f"{path}, {unit} {number}", "be a dictionary of logged numbers", got, remedy)
        rows.append((f"{path}, {unit} {number}", entry))
    return rows


def canonical(name: str) -> str | None:
    """Our name of a curve, after `eval_` where it was read on held-out rows; None for what is no curve.

    >>> canonical("rewards/margins"), canonical("eval/rewards/chosen"), canonical("epoch")
    ('reward/margin', 'eval_reward/chosen', None)
    """
    mark, bare = "", name.strip()
    for prefix, own in (("train/", ""), ("eval/", "eval_"), ("eval_", "eval_")):
        if bare.startswith(prefix):
            mark, bare = own, bare.removeprefix(prefix)
    bare = ALIASES.get(bare, bare)
    return mark + bare if bare in CURVES else None


def _run(path: Path | str, stage: str, rows: Sequence[Row], settings: Mapping[str, Any] | None = None) -> Run:
    curves: dict[str, dict[float, float]] = {}
    for number, (where, row) in enumerate(rows, start=1):
        named = {key.strip().removeprefix("train/"): key for key in row}
        step = next((_number(where, key, row[named[key]]) for key in STEPS if key in named), float(number))
        for key, value in row.items():
            name = canonical(key)
            if name is not None and value is not None:
                curves.setdefault(name, {})[step] = _number(where, key, value)  # after a resume the later row counts
    if not curves:
        have = ", ".join(dict.fromkeys(key for _, row in rows for key in row)) or "nothing"
        raise InputError(f"{path}", "log at least one curve that the doctor knows", have, "See docs/doctor.md")
    known = dict(settings or {})
    beta = known.get("beta")
    if not isinstance(beta, int | float) or not beta > 0:  # a recipe may do without KL
        known.pop("beta", None)
    sampled = "score/proxy" in curves and "reward/chosen" not in curves
    if sampled:  # there `kl` is that to the reference
        curves.pop("kl_baseline", None)
    if "kl_baseline" in curves:
        known.setdefault("objective", "kto")
    return Run(f"{path}{stage}", {name: sorted(own.items()) for name, own in curves.items()}, known)


def _number(where: str, key: str, value: Any) -> float:
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        remedy = "Correct the line, or leave it out"
        raise InputError(f"{where}: {key}", "be a number", repr(value), remedy) from None
    return found

"""What `uftlab train` can be told, from its options or from a YAML file with the same names."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from uftlab.errors import InputError

PRECISIONS = ("fp32", "bf16", "fp16")
POSITIVE = ("steps", "epochs", "batch", "accumulation", "beta", "lora_alpha", "max_length")
MOST = {"steps": 1_000_000, "epochs": 10_000, "batch": 100_000, "seed": 2**32 - 1}  # the order is laid out beforehand
MOST_OF_OTHERS = 1e9  # whole numbers
MOST_COMPLETIONS = 50_000_000  # steps times batch: about 1 GB for their order
SHARES = ("lora_dropout", "warmup", "held_out")  # below 1


@dataclass(frozen=True)
class TrainConfig:
    """One training run: a model, its rows, a method, and how it is trained.

    Args:
        demonstrations, feedback: tables (`uftlab.rows.sources.load_table`): a file, a folder, or a hub name.
        epochs: passes over the largest table; instead of `steps`.
        batch: completions of an optimiser step, over all processes and micro-batches.
        accumulation: micro-batches of a step.
        tokens_per_device: most positions of one forward and backward pass, padding included; 0: no limit.
        stages: settings of single stages, first to last; they win over `learning_rate` and `beta`.
        lora: rank of adapters; 0 trains all weights. Between two stages they are merged.
        warmup: share of the steps. clip: largest norm of a gradient; 0 clips nothing.
        held_out: share of each table that is kept apart; its loss and margins are logged.
        train_on, layout, on_bad_row: how rows are read, see `uftlab.rows.understanding.understand`; `score_range` is
            "1,10".
        dropout: whether dropout is on in the policy. It is always off in the reference.
        log_to: loggers of transformers by name, with commas: tensorboard, trackio, wandb.
        benchmarks: files whose questions the training prompts are compared with; what is in both is named.
        samples: answers before and after, to that many prompts.
    """

    out: str
    model: str = "tiny"
    demonstrations: str | None = None
    feedback: str | None = None
    method: str = "uft"
    steps: int | None = None
    epochs: float | None = None
    batch: int = 32
    accumulation: int = 1
    tokens_per_device: int = 0
    learning_rate: float | None = None
    beta: float | None = None
    stages: Sequence[Mapping[str, float]] = ()
    lora: int = 0
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_targets: str = "all-linear"
    merge: bool = False
    max_length: int | None = None
    train_on: str | None = None
    layout: str | None = None
    on_bad_row: str = "drop-empty"
    score_range: str | None = None
    precision: str = "fp32"
    gradient_checkpointing: bool = False
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 0.0
    dropout: bool = False
    held_out: float = 0.0
    evaluate_every: int = 0
    save_every: int = 0
    log_every: int = 0
    log_to: str = "none"
    samples: int = 0
    seed: int = 0
    benchmarks: Sequence[str] = field(default=())

    @property
    def settings(self) -> dict[str, float]:
        """The settings that hold in every stage which has them."""
        both = {"learning_rate": self.learning_rate, "beta": self.beta}
        return {name: float(value) for name, value in both.items() if value is not None}

    def checked(self) -> TrainConfig:
        """The same, if its numbers mean something.

        Raises:
            InputError: for a number that is none, or outside its range.
        """
        for own in fields(self):
            value = getattr(self, own.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            low = own.name in POSITIVE
            rule = "be above 0" if low else "be at least 0"
            if not -math.inf < value < math.inf or value < 0 or (low and value == 0):
                raise InputError(_option(own.name), f"be a finite number and {rule}", _shown(value), "Choose another")
            most = MOST.get(own.name, MOST_OF_OTHERS if isinstance(value, int) else math.inf)
            if value > most:
                raise InputError(_option(own.name), f"be at most {most:,.0f}", _shown(value), "Lower it")
            if own.name in SHARES and value >= 1:
                raise InputError(_option(own.name), "be a share below 1", value, "Write 0.1 for a tenth")
        if self.precision not in PRECISIONS:
            raise InputError("--precision", f"be one of {', '.join(PRECISIONS)}", self.precision, "Choose one of them")
        if self.steps and self.epochs:
            raise InputError(
                "--steps and --epochs", "not be given together", f"{self.steps}, {self.epochs}", "Keep one"
            )
        for number, stage in enumerate(self.stages, start=1):
            for name, value in stage.items():
                numeric = isinstance(value, int | float) and not isinstance(value, bool)
                if not numeric or not -MOST_OF_OTHERS <= value <= MOST_OF_OTHERS:
                    raise InputError(f"Stage {number}: {name}", "be a finite number", _shown(value), "Correct it")
        check_size("--steps", self.steps or 0, self.batch)
        if self.evaluate_every and not self.held_out:
            rule, remedy = "have rows to evaluate", "Add --held-out 0.05, which keeps a share of each table apart"
            raise InputError("--evaluate-every", rule, "no --held-out", remedy)
        return self

    def asdict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**asdict(self), "stages": [dict(own) for own in self.stages], "benchmarks": list(self.benchmarks)}


def check_size(option: str, steps: int, batch: int) -> None:
    """Refuses more completions than can be laid out in their order beforehand.

    Raises:
        InputError: naming the option and the most steps of this batch.
    """
    if steps * batch > MOST_COMPLETIONS:
        got = f"{steps:,} steps of {batch:,} completions"
        rule = f"come to {MOST_COMPLETIONS // batch:,} steps of this batch at most"
        raise InputError(option, rule, got, "Lower it, or train in several runs")


def told(config: Mapping[str, Any], out: Path) -> TrainConfig:
    """What the run in a folder was told, from its `training.json`.

    Raises:
        InputError: for a name that there is not, a value of another type, or one that means nothing.
    """
    path = out / "training.json"
    return TrainConfig(**{name: _typed(name, own, path) for name, own in {**config, "out": str(out)}.items()}).checked()


def _shown(value: Any) -> str:
    """A value in an error message, in short."""
    try:
        return repr(value)[:200]
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


TYPED = {own.name: own for own in fields(TrainConfig)}
TYPES = {name: str(own.type) for name, own in TYPED.items()}


def read_config(path: Path | None, changes: Sequence[str] = (), **options: Any) -> TrainConfig:
    """The configuration of a YAML file, changed by `name=value` pairs and then by options that are not None.

    In the file, `methods` may hold options of single methods, which win over the others; those of the method that is
    trained are taken. `eval` is for `uftlab compare` (`uftlab.study.matrix`).

    `stages.0.beta=0.01` reaches into the list of stages, whose first has the number 0. Where no folder is named it is
    `results/train/MODEL-METHOD`.

    Raises:
        InputError: for a file that cannot be read, a name that there is not, or a value of another type.
    """
    found = read_file(path) if path is not None else {}
    found.pop("eval", None)
    method = str(options.get("method") or found.get("method") or TYPED["method"].default)
    found |= section(section(found, "methods", path), method, path)
    found.pop("methods", None)
    for change in changes:
        name, mark, value = change.partition("=")
        if not mark:
            raise InputError("--set", "be name=value", change, "Write for instance --set batch=16")
        _place(found, name.strip().split("."), _yaml(value, "--set", "be YAML", change), change, path)
    found |= {name: value for name, value in options.items() if value is not None}
    if "out" not in found:
        model, method = (str(found.get(name, TYPED[name].default)) for name in ("model", "method"))
        found["out"] = str(Path("results") / "train" / f"{Path(model).name}-{method}")
    return TrainConfig(**{name: _typed(name, value, path) for name, value in found.items()}).checked()


def read_file(path: Path) -> dict[str, Any]:
    """What a YAML file of options holds.

    Raises:
        InputError: for a file that cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("--config", "be a YAML file", f"{path} ({error})", "Correct it") from None
    found = _yaml(text, "--config", "be a YAML file", path) or {}
    if not isinstance(found, dict):
        raise InputError(str(path), "hold `name: value` lines", type(found).__name__, "See docs/train.md")
    return found


def section(found: Mapping[str, Any], name: str, path: Path | None) -> dict[str, Any]:
    """A part of a file that holds names and values itself; empty where there is none.

    Raises:
        InputError: for something else under this name.
    """
    own = found.get(name) or {}
    if not isinstance(own, dict):
        raise InputError(f"{path}: {name}", "hold names with values below them", repr(own)[:60], "Indent them")
    return own


def _yaml(text: str, what: str, rule: str, source: object) -> Any:
    """The value of a text of YAML."""
    try:
        return yaml.load(text, _Plain)
    except (ValueError, TypeError, RecursionError, AttributeError, LookupError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(what, rule, f"{str(source)[:200]} ({reason[:200]})", "Correct it") from None


class _Plain(yaml.SafeLoader):
    """YAML without references, which can make a short text enormous, and without a name twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node; refuses one that refers to another."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "a reference (*name) is not understood", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A mapping; refuses a name that is there twice."""
        names = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for name, (key, _) in zip(names, node.value, strict=True):
            if isinstance(name, str) and names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is there twice", key.start_mark)
        return super().construct_mapping(node, deep=deep)


def _place(found: dict[str, Any], names: list[str], value: Any, change: str, path: Path | None) -> None:
    """Set one value, in the list of stages too."""
    if names[0] != "stages" or len(names) != 3 or not names[1].isdigit():
        if len(names) > 1:
            raise InputError("--set", "name an option, or stages.NUMBER.NAME", change, "See docs/train.md")
        found[names[0]] = value
        return
    stages = [dict(own) for own in _typed("stages", found.get("stages", []), path) or []]
    stages += [{} for _ in range(int(names[1]) + 1 - len(stages))] if int(names[1]) < 10 else []
    if int(names[1]) >= len(stages):
        raise InputError("--set", "name a stage that there is", change, "The first stage has the number 0")
    stages[int(names[1])][names[2]] = value
    found["stages"] = stages


def _typed(name: str, value: Any, path: Path | None) -> Any:
    """The value of an option of `uftlab train`, of the type that it has."""
    return typed(name, value, TYPES, f"{path}: {name}" if path is not None else _option(name), "`uftlab train`")


def typed(name: str, value: Any, types: Mapping[str, str], where: str, command: str) -> Any:
    """A value of the type that its name has.

    Raises:
        InputError: for a name that there is not, or a value of another type.
    """
    if name not in types:
        near = difflib.get_close_matches(name, types, 1)
        remedy = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(types)}"
        raise InputError(where, f"be an option of {command}", repr(name), remedy.rstrip("?"))
    kind = types[name]
    if value is None and "None" in kind:
        return None
    if kind.startswith(("Sequence", "tuple")):
        entry: Any = Mapping if "Mapping" in kind else str
        if isinstance(value, list | tuple) and all(isinstance(own, entry) for own in value):
            numbers = ({str(k): _number(v) for k, v in own.items()} if entry is Mapping else own for own in value)
            return tuple(numbers)
        of = "names with values" if entry is Mapping else "texts"
        raise InputError(where, f"be a list of {of}", _shown(value), "Write it with `- ` before each entry")
    first = kind.split(" ")[0]
    wanted: Any = {"bool": bool, "int": int, "float": (int, float), "str": (str, Path), "Path": (str, Path)}[first]
    if kind.startswith(("float", "int")):
        value = _number(value)
        value = int(value) if kind.startswith("int") and isinstance(value, float) and value.is_integer() else value
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        what = "str" if first == "Path" else first
        raise InputError(where, f"be of the type {what}", _shown(value), "Correct it")
    try:
        return {"float": float, "str": str, "Path": Path}.get(first, lambda same: same)(value)
    except OverflowError:
        raise InputError(where, "be a finite number", _shown(value), "Correct it") from None


def _number(value: Any) -> Any:
    """The number that a text is, else the value as it is: YAML reads 1e-4 as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def with_changes(config: TrainConfig, **changes: Any) -> TrainConfig:
    """The configuration with other values."""
    return replace(config, **changes).checked()

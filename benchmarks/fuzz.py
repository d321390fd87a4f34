"""Mutated inputs for everything that reads: each is accepted rightly or refused with one clear error.

    python benchmarks/fuzz.py --count 5000        all targets in turn; a table of what happened
    python benchmarks/fuzz.py --only trials --seed 3 --count 200

An input that ends in another exception, takes longer than `SECONDS`, or leaves a partly written file is a failure: its
kind (exception and the innermost line of uftlab) is counted and one example of each is printed. `tests/test_fuzz.py`
runs a few of each target.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from uftlab.errors import InputError

SECONDS = 60.0  # an input that takes longer hangs; loading the libraries counts too
TEXTS = (
    "", " ", "x", "nan", "0.5", "1e999", "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "[/b]",
    "\\[/b]", "\x1b[2J\x1b[31m", "\x00", "\ud800", "\u202e", "a" * 5000, "../../etc", "%s{}", "\n", "user", "é" * 100,
)  # fmt: skip
VALUES = (
    None, True, False, 0, -1, 1, 2, 0.5, 1.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), -float("inf"), 2**31,
    2**63, 2**70, 10**400, [], {}, [None], [[]], [{}], {"role": "user"}, {"role": 1, "content": None},
    "@BIG@", "@DEEP@",
)  # fmt: skip
WORDS = {'"@BIG@"': "1" * 5000, '"@DEEP@"': "[" * 3000 + "]" * 3000}


# ------------------------------------------------------------------------------------------ mutations


def mutated(value: Any, rng: random.Random) -> Any:
    """The same JSON value with one place changed, left out, doubled or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        made, key = dict(value), rng.choice(list(value))
        how = rng.random()
        if how < 0.15:
            del made[key]
        elif how < 0.25:
            made[rng.choice([f"{key}s", key.upper(), *TEXTS, "score", "label", "system"])] = made.pop(key)
        elif how < 0.35:
            made[rng.choice(["extra", "score", "label", "chosen_score", *TEXTS])] = odd(rng)
        else:
            made[key] = mutated(value[key], rng)
        return made
    if isinstance(value, list) and value and rng.random() < 0.8:
        made, index = list(value), rng.randrange(len(value))
        how = rng.random()
        if how < 0.15:
            del made[index]
        elif how < 0.3:
            made.insert(index, odd(rng) if rng.random() < 0.5 else made[index])
        else:
            made[index] = mutated(value[index], rng)
        return made
    return odd(rng)


def odd(rng: random.Random) -> Any:
    """A value that nobody expects there."""
    return rng.choice(TEXTS) if rng.random() < 0.4 else rng.choice(VALUES)


def json_text(value: Any, rng: random.Random) -> str:
    """JSON with numbers of thousands of digits, deep nesting and, at times, a key twice."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.9)
    for word, stands_for in WORDS.items():
        text = text.replace(word, stands_for)
    if rng.random() < 0.05 and '": ' in text:
        at = text.index('"')
        key = text[at : text.index('"', at + 1) + 1]
        text = text.replace(key, f"{key}: 1, {key}", 1)
    return text


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes with a flip, a cut, something put in, or another encoding."""
    how, at = rng.randrange(8), rng.randrange(len(content) + 1)
    if how == 0:
        return content[:at]
    if how == 1:
        return content[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9))) + content[at:]
    if how == 2 and at < len(content):
        return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
    if how == 3:
        return content.decode("utf-8", "replace").encode(
            rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-7"]), "replace"
        )
    if how == 4:
        return content.decode("utf-8", "replace").encode("latin-1", "replace").replace(b"e", b"\xe9")
    if how == 5:
        return b"\xef\xbb\xbf" + content
    if how == 6:
        return b""
    return content[:at] + content[min(len(content), at + rng.randrange(1, 40)) :]


def written(path: Path, text: str, rng: random.Random, rate: float = 0.3) -> None:
    """The text as a file, damaged at times."""
    content = text.encode("utf-8", "surrogatepass")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(damaged(content, rng) if rng.random() < rate else content)


# ------------------------------------------------------------------------------------------ targets

CHAT = [{"role": "user", "content": "what ?"}, {"role": "assistant", "content": "red ."}]
OTHER = [CHAT[0], {"role": "assistant", "content": "blue ."}]
TABLES: list[dict[str, Any]] = [
    {"prompt": "what ?", "completion": "red ."},
    {"prompt": "what ?", "completion": "red .", "score": 0.5},
    {"prompt": "what ?", "completion": "red .", "label": True, "note": "x"},
    {"prompt": CHAT[:1], "completion": CHAT[1:]},
    {"prompt": "what ?", "chosen": "red .", "rejected": "blue .", "chosen_score": 1.0, "rejected_score": 0.0},
    {"chosen": CHAT, "rejected": OTHER, "score_chosen": 9.0, "score_rejected": 2.0},
    {"prompt": "what ?", "response": "red .", "helpfulness": 4, "correctness": 3, "coherence": 4},
    {"messages": [*CHAT, *CHAT], "system": "be brief"},
    {"conversations": [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": "red ."}]},
    {"instruction": "say", "input": "it", "output": "red ."},
    {"instruction": "say", "context": "it", "response": "red ."},
    {"instruction": "say", "chosen": "red .", "rejected": "blue ."},
    {"conversations": CHAT[:1], "chosen": CHAT[1], "rejected": OTHER[1]},
    {"chosen": "\n\nHuman: what ?\n\nAssistant: red .", "rejected": "\n\nHuman: what ?\n\nAssistant: blue ."},
]


def read_table(source: str, rng: random.Random) -> None:
    """Load a table, and use it if it is accepted."""
    from uftlab.rows.sources import load_table
    from uftlab.rows.table import as_labels, as_scored, kind_of
    from uftlab.rows.tokens import Tokens

    options: dict[str, Any] = {"on_bad_row": rng.choice(["drop-empty", "drop", "refuse"])}
    if rng.random() < 0.2:
        options["layout"] = rng.choice(["preference", "messages", "alpaca", "helpsteer", "nothing"])
    if rng.random() < 0.2:
        options["score_range"] = rng.choice([(1, 10), (0, 4)])
    if rng.random() < 0.2:
        options["train_on"] = rng.choice(["last", "all"])
    table, line = load_table(source, **options)
    assert len(table) and kind_of(table.column_names) and line
    scores = as_scored(table)["score"]
    assert all(0 <= score <= 1 for score in scores), scores
    as_labels(table)
    made = Tokens(_tokenizer()).examples(table)
    assert all(completion.completion_ids for example in made for completion in example)


def rows(folder: Path, rng: random.Random) -> None:
    """JSONL, JSON, gzip: one row of several changed, or the bytes of the file."""
    table = [json.loads(json.dumps(rng.choice(TABLES)))] * rng.randrange(1, 4)
    for _ in range(rng.randrange(3)):
        index = rng.randrange(len(table))
        table[index] = mutated(table[index], rng)
    ending = rng.choice([*[".jsonl", ".json", ".jsonl.gz"] * 8, ".json.gz", ".parquet", ".txt"])
    texts = [json_text(row, rng) for row in table]
    text = f"[{', '.join(texts)}]" if ending.startswith(".json") and rng.random() < 0.3 else "\n".join(texts)
    path = folder / f"rows{ending}"
    written(path, text, rng, 0.15)
    if ending.endswith(".gz") and rng.random() < 0.9:
        packed = gzip.compress(path.read_bytes())
        path.write_bytes(damaged(packed, rng) if rng.random() < 0.3 else packed)
    read_table(str(path), rng)


def parquet(folder: Path, rng: random.Random) -> None:
    """Parquet: columns of odd types, or the bytes of the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    base = rng.choice(TABLES)
    columns = {name: [value] * 2 for name, value in base.items()}
    odds: list[Any] = [
        pa.array([b"a", b"\xff"]), pa.array([1, 2], pa.timestamp("us")), pa.array([None, None]),
        pa.array(["a", "b"]).dictionary_encode(), pa.array([[1], [2]]), pa.array([{"a": 1}, {"b": 2}]),
        pa.array([1.5, float("nan")]), pa.array([2**63, 1], pa.uint64()), pa.array([True, None]),
        pa.array([1, 2], pa.duration("s")), pa.array(["1.5", "2"]).cast(pa.decimal128(5, 2)),
        pa.array([[{"role": "user", "content": None}]] * 2),
        pa.array([2**62, 2**62], pa.timestamp("us")), pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int8())),
    ]  # fmt: skip
    made = {name: pa.array(values) for name, values in columns.items()}
    for _ in range(rng.randrange(3)):
        made[rng.choice([*made, "extra", "id", "score"])] = rng.choice(odds)
    names = list(made)
    table = pa.table(list(made.values()), names=[*names[:-1], names[0]] if rng.random() < 0.05 else names)
    table = table.slice(0, rng.choice([0, 1, 2, 2, 2]))
    path = folder / "rows.parquet"
    pq.write_table(table, path)
    if rng.random() < 0.4:
        path.write_bytes(damaged(path.read_bytes(), rng))
    read_table(str(path), rng)


def folders(folder: Path, rng: random.Random) -> None:
    """A folder of files with odd names, a split or a subset that is there or not."""
    names = ["train.jsonl", "test.jsonl", "data/train-00000-of-00002.jsonl", "a b.jsonl", "[1].jsonl", "x/part-0.json",
             "dataset_info.json", ".hidden.jsonl", "train.jsonl.gz", "rows.parquet", "-.jsonl", "1.jsonl"]  # fmt: skip
    for name in rng.sample(names, rng.randrange(1, 4)):
        text = "\n".join(json_text(rng.choice(TABLES[:2]), rng) for _ in range(2))
        written(folder / "set" / name, text, rng, 0.1)
    tail = rng.choice(["", "@train", "@test", "@nowhere", ":x", ":x@train", "@", ":", "@a@b", "@../x", ":../.."])
    read_table(f"{folder / 'set'}{tail}", rng)


CONFIG = """out: model
model: tiny
demonstrations: a.jsonl
method: uft
steps: 10
epochs: null
batch: 8
learning_rate: 1e-4
stages:
  - beta: 0.1
lora: 4
warmup: 0.1
seed: 0
merge: true
benchmarks: [a.jsonl]
"""
ODD_YAML = (
    "&a [*a]", "!!python/object/apply:os.system [ls]", "2020-99-99", "0x" + "f" * 5000, "1:60:60", ".inf", ".nan",
    "- a", "? a", "{a: 1, a: 2}", "{{}: 1}", "[" * 300 + "]" * 300, "1e999", "yes", "~", "!!binary x", "<<: 1", "'",
    '"\\ud800"', "1" * 5000, "2001-12-15T02:59:43.1Z", "{<<: [1]}", "!!int a", "!!timestamp x", "!!set {a, b}",
    "!!float x", "=",
)  # fmt: skip


def configuration(folder: Path, rng: random.Random) -> None:
    """YAML with a line changed, and `--set` with odd values."""
    from uftlab.training.configuration import read_config

    lines = CONFIG.splitlines()
    for _ in range(rng.randrange(3)):
        index = rng.randrange(len(lines))
        name = lines[index].split(":")[0]
        lines[index] = f"{name}: {rng.choice([*ODD_YAML, *(json.dumps(odd(rng)) for _ in range(9))])}"
    path = folder / "train.yaml"
    text = "\n".join(lines)
    for word, stands_for in WORDS.items():
        text = text.replace(word, stands_for)
    written(path, text, rng)
    names = ["batch", "stages.0.beta", "stages.9999999999999.beta", "stages.-1.x", "stages", "stages.0", "", ".",
             "steps", "seed", "a.b.c", "stages.0.", "lora", "stages.0.learning_rate", "\x00", "benchmarks",
             "train_on"]  # fmt: skip
    changes = [
        f"{rng.choice(names)}{rng.choice(['=', '=', '=', ''])}{rng.choice([*ODD_YAML, *TEXTS, '1', '0.1'])}"
        for _ in range(rng.randrange(3))
    ]
    config = read_config(path if rng.random() < 0.8 else None, changes, out="x" if rng.random() < 0.5 else None)
    json.dumps(config.asdict(), allow_nan=False)


class Accepted(Exception):  # noqa: N818
    """The command line was understood, and work would begin."""


def _begins(*_args: Any, **_more: Any) -> Any:
    raise Accepted


def invoke(arguments: list[str], folder: Path) -> None:
    """A command in this process, in a folder of its own; whatever would take long is only begun."""
    from uftlab.cli import app

    out, before = io.StringIO(), os.getcwd()
    patches = [
        mock.patch("uftlab.commands.study._run_with_progress", _begins),
        mock.patch("uftlab.training.checkpoint.train_checkpoint", lambda config, *rest: (config.checked(), _begins())),
        mock.patch("uftlab.evals.benchmarks.evaluate", _begins),
        mock.patch("uftlab.course.notebooks.run_all", _begins),
        mock.patch("uftlab.course.export.export", _begins),
        mock.patch("uftlab.course.lab.open_lab", _begins),
        mock.patch("uftlab.models.pretrain.pretrain", _begins),
        mock.patch("uftlab.training.checkpoint.merge", _begins),
    ]
    try:
        os.chdir(folder)
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            stack.enter_context(redirect_stdout(out))
            stack.enter_context(redirect_stderr(out))
            app(arguments)
    except SystemExit as error:
        if error.code:
            said = out.getvalue()
            assert "Traceback" not in said and ("error:" in said or "Error" in said or "Usage" in said), said[-300:]
            assert "\x1b[2J" not in said and "\x1b[31m" not in said, said[-300:]
            raise InputError("The command", "be understood", error.code, "Read --help") from None
    except Accepted:
        pass
    finally:
        os.chdir(before)


OPTIONS = {
    "run": ["--profile", "--methods", "--seeds", "--out", "--workers", "--engine"],
    "sweep": ["--methods", "--out", "--workers", "--engine"],
    "map": ["--worlds", "--out", "--workers"],
    "report": ["--out"],
    "results": ["--study", "--only", "--page"],
    "methods": ["--cards"],
    "forgetting": [],
    "pretrain": ["--world"],
    "train": ["--out", "--model", "--demonstrations", "--method", "--steps", "--epochs", "--batch", "--learning-rate",
              "--beta", "--lora", "--warmup", "--seed", "--set", "--config", "--precision", "--score-range"],
    "merge": ["--out"],
    "eval": ["--model", "--suite", "--out", "--limit", "--batch", "--beta", "--seed", "--data"],
    "compare": ["--baseline", "--out"],
    "notebooks": ["--profile", "--out", "--only"],
    "export": ["--out", "--only", "--profile", "--executed", "--previews", "--readme"],
}  # fmt: skip
ARGUMENTS = {"map": "E1", "report": "class", "forgetting": "map", "merge": "tiny", "compare": "a"}
ARGUMENT_VALUES = (
    "", ",", "-1", "0", "1", "1e12", "1000000000000", "nan", "inf", "-inf", "0,1", "0,,1", "a[/b]c", "\\[/b]",
    "\x1b[2J", "uft", "base", "uft,base", "smoke", "class", "x" * 300, "/dev/null", "/dev/null/x", "/proc/x", ".",
    "a file/x", "a file", "<script>", "\udcff", "тест", "٣", "1_0", "0x10", " ", "--", "stages.0.beta=.nan", "batch={",
    "E1", "E9", "all", "tiny", "no/where", "ifeval", "kl", "10,1", "sweep", "map", "local", "fp32", "1.5",
)  # fmt: skip


def command_line(folder: Path, rng: random.Random) -> None:
    """A command with odd values of its options."""
    (folder / "a file").touch()
    name = rng.choice(list(OPTIONS))
    arguments = [name]
    if name in ARGUMENTS and rng.random() < 0.9:
        arguments.append(ARGUMENTS[name] if rng.random() < 0.5 else rng.choice(ARGUMENT_VALUES))
    for option in rng.sample(OPTIONS[name], rng.randrange(min(4, len(OPTIONS[name])) + 1)):
        arguments += [option, rng.choice(ARGUMENT_VALUES)]
    if name == "train" and "--out" not in arguments:
        arguments += ["--out", "m"]
    if name == "methods" and rng.random() < 0.8:
        arguments.append("--json")
    if name in ("sweep", "pretrain") and rng.random() < 0.5:
        arguments.append("--force")
    if name == "results" and "--study" not in arguments:
        arguments += ["--study", "epsilon"]  # refused, and quickly
    if name in ("report", "forgetting", "results") and rng.random() < 0.9:  # the real ones take seconds
        arguments = [word for word in arguments if word not in ("class", "map", "sweep")]
    invoke(arguments, folder)


_SOUND: list[dict[str, Any]] = []


def _sound() -> list[dict[str, Any]]:
    from uftlab.study.results import RESULTS
    from uftlab.study.trials import read_trial

    if not _SOUND:
        wanted = [f"{method}-seed{seed}-" for method in ("uft", "sft-then-dpo", "base") for seed in (0, 1, 2)]
        paths = [next((RESULTS / "class" / "trials").glob(f"{name}*")) for name in wanted]
        _SOUND.extend(read_trial(path) for path in paths)
        for trial in _SOUND:
            for stage in trial["stages"]:
                stage["history"] = stage["history"][:1]
            trial["curves"], trial["samples"] = trial["curves"][:2], trial["samples"][:1]
    return _SOUND


def trials(folder: Path, rng: random.Random) -> None:
    """A results folder with one trial changed, read by every command that reads one."""
    sound = _sound()
    changed = rng.randrange(len(sound))
    for number, trial in enumerate(sound):
        path = folder / "study" / "trials" / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number == changed:
            for _ in range(rng.randrange(1, 3)):
                trial = mutated(trial, rng)
            written(path, json_text(trial, rng), rng, 0.2)
        else:
            path.write_text(json.dumps(trial))
    study = str(folder / "study")
    command = rng.choices(
        [["results", "--study", study, "--json"], ["results", "--study", study], ["forgetting", study],
         ["report", study], ["results", "--study", study, "--page", str(folder / "page.md")]],
        [10, 5, 2, 1, 1],
    )[0]  # fmt: skip
    invoke(command, folder)


QUESTIONS = {"a": [1.0, 1.0], "b": [0.0, 2.0]}
EVALUATION = {
    "schema": 1, "model": "m", "weights": "w", "reference": None, "method": "uft", "seed": 0,
    "recipe": {"method": "uft"}, "settings": {"suites": ["ifeval"], "limit": None, "max_new_tokens": 9},
    "sources": {"ifeval": "x"}, "versions": {"torch": "2"}, "device": "CPU", "seconds": {"ifeval": 1.0},
    "facts": {"reward": {"rows": 2, "beta": 0.1, "spread": 0.1, "low": -1.0, "high": 1.0, "inert": 0.5,
                         "rank correlation with the score": None}, "other": 1},
    "measures": [{"name": "ifeval/prompt_level_strict_acc", "template": True, "questions": QUESTIONS},
                 {"name": "gsm8k/exact_match", "template": None, "questions": QUESTIONS}],
}  # fmt: skip


def evaluations(folder: Path, rng: random.Random) -> None:
    """Two runs of `uftlab eval`, one of them changed: compared, and the page of the changed one."""
    from uftlab.evals.outcomes import load_result
    from uftlab.reports.evaluation import run_page

    changed: Any = json.loads(json.dumps(EVALUATION))
    for _ in range(rng.randrange(1, 3)):
        changed = mutated(changed, rng)
    written(folder / "one" / "eval.json", json_text(changed, rng), rng, 0.2)
    (folder / "two").mkdir()
    (folder / "two" / "eval.json").write_text(json.dumps({**EVALUATION, "model": "n"}))
    page = run_page(load_result(folder / "one"))
    assert "<script" not in page and "\x1b" not in page
    invoke(["compare", str(folder / "one"), "--baseline", str(folder / "two"), *rng.choice([[], ["--json"]])], folder)


def settings(folder: Path, rng: random.Random) -> None:
    """tuned.json changed: what a study runs with."""
    from uftlab.study.trials import PROFILES, trial
    from uftlab.training import catalogue, methods
    from uftlab.training import settings as training

    stored = json.loads(training.TUNED.read_text())
    kept = {name: stored["settings"][name] for name in ("uft", "sft-then-dpo")}
    changed: Any = {"rule": "x", "settings": kept, "worth": {}}
    for _ in range(rng.randrange(1, 4)):
        changed = mutated(changed, rng)
    path = folder / "tuned.json"
    written(path, json_text(changed, rng), rng, 0.2)
    with mock.patch.object(training, "TUNED", path):
        for name in ("uft", "sft-then-dpo", "sdpo", "dpo"):
            made = trial(name, rng.randrange(8), PROFILES["smoke"])
            methods.plan(catalogue.method_named(name), 8, made.stage_settings())


@functools.cache
def _checkpoint() -> tempfile.TemporaryDirectory:
    """The tiny model with an adapter, made once; its folder goes with the process."""
    from uftlab.models.policies import TINY, load_policy, with_lora

    made = tempfile.TemporaryDirectory(prefix="fuzz-")
    shutil.copytree(TINY, made.name, ignore=shutil.ignore_patterns("worlds"), dirs_exist_ok=True)
    with_lora(load_policy("tiny")[0], 2).save_pretrained(f"{made.name}/adapter")
    return made


def checkpoints(folder: Path, rng: random.Random) -> None:
    """A checkpoint folder, or an adapter's, with one file changed, damaged or gone."""
    import torch

    from uftlab.models.policies import load_policy

    shutil.copytree(_checkpoint().name, folder / "model")
    here = folder / "model" / ("adapter" if rng.random() < 0.3 else "")
    if here.name == "adapter":
        told = json.loads((here / "adapter_config.json").read_text())
        (here / "adapter_config.json").write_text(json.dumps({**told, "base_model_name_or_path": ".."}))
    path = rng.choice(sorted(p for p in here.iterdir() if p.is_file() and p.suffix != ".md"))
    if path.suffix == ".json" and rng.random() < 0.8:
        value = json.loads(path.read_text())
        if path.name == "tokenizer.json":
            value["model"]["vocab"] = dict(list(value["model"]["vocab"].items())[:50])
        if path.name.endswith("config.json") and rng.random() < 0.2:
            value["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config",
                                 "AutoTokenizer": ["evil.Tokenizer", None]}  # fmt: skip
            value["model_type"] = rng.choice([value.get("model_type"), "evil"])
        written(path, json_text(mutated(value, rng), rng), rng, 0.1)
    elif rng.random() < 0.15:
        path.unlink()
    elif path.suffix == ".safetensors" and rng.random() < 0.6:
        from safetensors.torch import load_file, save_file

        state = load_file(path)
        name = rng.choice(sorted(state))
        how = rng.randrange(5)
        if how == 0:
            del state[name]
        elif how == 1:
            state[name] = torch.full_like(state[name], float(rng.choice(["nan", "inf"])))
        elif how == 2:
            state[name] = state[name][:1].clone()
        elif how == 3:
            state[f"{name}.x"] = state.pop(name)
        else:
            state[name] = state[name].to(rng.choice([torch.int8, torch.bool, torch.float16]))
        save_file(state, str(path), {"format": "pt"} if rng.random() < 0.8 else None)
    else:
        path.write_bytes(damaged(path.read_bytes(), rng))
    policy, tokenizer = load_policy(str(here))
    assert all(bool(torch.isfinite(weight).all()) for weight in policy.parameters())
    assert tokenizer.pad_token_id is None or tokenizer.pad_token_id >= 0


TARGETS: dict[str, Callable[[Path, random.Random], None]] = {
    "rows": rows,
    "parquet": parquet,
    "folders": folders,
    "configuration": configuration,
    "command line": command_line,
    "trials": trials,
    "evaluations": evaluations,
    "settings": settings,
    "checkpoints": checkpoints,
}


# ------------------------------------------------------------------------------------------ running

_TOKENIZER: list[Any] = []


def _tokenizer() -> Any:
    from uftlab.models.policies import tiny_tokenizer

    if not _TOKENIZER:
        _TOKENIZER.append(tiny_tokenizer())
    return _TOKENIZER[0]


class Hang(BaseException):
    """An input took too long."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises `Hang` within, after so many seconds of this process's work."""

    def ring(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def one(target: str, seed: int) -> tuple[str, str]:
    """What came of one input: ("accepted" | "refused", "") or ("failed", the kind of failure)."""
    rng = random.Random(f"{target} {seed}")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder = Path(place)
        try:
            with limited(SECONDS), redirect_stdout(io.StringIO()):
                TARGETS[target](folder, rng)
            outcome = ("accepted", "")
        except InputError as error:
            outcome = ("refused", "") if len(str(error).splitlines()) < 3 else ("failed", "an error of many lines")
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [f for f in frames if "uftlab" in f.filename and "fuzz" not in f.filename] or frames
            where = f"{Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].name}"
            said = " ".join(f"{type(error).__name__}: {error}".split())[:150]
            outcome = ("failed", f"{where}: {said}")
        if left := [p.name for p in folder.rglob("*.part")]:
            outcome = ("failed", f"left {left}")
    return outcome


def main() -> None:
    """Run many inputs, and print the table and one example of each kind of failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000, help="Inputs in all.")
    parser.add_argument("--minutes", type=float, default=1e9, help="At most so long.")
    parser.add_argument("--seed", type=int, default=0, help="Of the first input.")
    parser.add_argument("--only", default="", help="Names of targets with commas; empty: all.")
    arguments = parser.parse_args()
    names = [name for name in TARGETS if not arguments.only or name in arguments.only.split(",")]
    found: dict[str, Counter[str]] = {name: Counter() for name in names}
    kinds: dict[str, tuple[int, str, int]] = {}
    begun = time.monotonic()
    for number in range(arguments.count):
        if time.monotonic() - begun > arguments.minutes * 60:
            break
        name, seed = names[number % len(names)], arguments.seed + number // len(names)
        outcome, kind = one(name, seed)
        found[name][outcome] += 1
        if kind:
            key = f"{name}: {kind[:90]}"
            count, text, first = kinds.get(key, (0, kind, seed))
            kinds[key] = (count + 1, text, first)
            if not count:
                print(f"{name} {first}: {text}", flush=True)
    print("| target | inputs | accepted | refused | failed |\n|---|---|---|---|---|")
    for name, own in found.items():
        print(f"| {name} | {own.total()} | {own['accepted']} | {own['refused']} | {own['failed']} |")
    for key, (count, text, first) in sorted(kinds.items(), key=lambda item: -item[1][0]):
        print(f"- {count} x {key.partition(':')[0]} (seed {first}): {text}")
    sys.exit(bool(kinds))


if __name__ == "__main__":
    main()

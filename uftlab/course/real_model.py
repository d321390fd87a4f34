"""Notebook 10: a pretrained model with LoRA. Made on the spot, or yours; what was stored of SmolLM2-135M-Instruct."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import io
import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from uftlab.errors import InputError
from uftlab.evals.doctor import Report, diagnose
from uftlab.evals.outcomes import Measure
from uftlab.evals.run_logs import read_runs, runs_of
from uftlab.files import write_atomically
from uftlab.reports import real
from uftlab.reports.evaluation import estimate, label_of
from uftlab.study.results import RESULTS, Interval

NAMES = (  # what is needed, what this notebook takes, its name on the hub
    (
        "an instruct model",
        "a folder: config.json, *.safetensors, tokenizer.json",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    ("a base model", "the same", "HuggingFaceTB/SmolLM2-135M"),
    ("demonstrations", "demonstrations.jsonl: prompt, completion", "HuggingFaceH4/ultrachat_200k"),
    ("feedback", "feedback.jsonl: prompt, chosen, rejected, two scores", "nvidia/HelpSteer2"),
    ("IFEval", "ifeval/*.jsonl in one folder", "google/IFEval"),
    ("TruthfulQA", "truthfulqa/*.jsonl in the same folder", "truthfulqa/truthful_qa"),
)
RUNS = {  # name -> method, and beta of its last stage
    "uft, β = 0.01": ("uft", 0.01),
    "uft, β = 0.3": ("uft", 0.3),
    "sft-then-dpo, β = 0.1": ("sft-then-dpo", 0.1),
}
RANK = 16  # of the adapters
ALIGNED = "SmolLM2-135M-Instruct, already aligned by its makers"


# ------------------------------------------------------------------------------------------ files


@dataclass(frozen=True)
class Files:
    """What is trained and measured: names of models and tables, the folder of the benchmarks, and where results go.

    Args:
        small: whether the model is the stand-in.
    """

    model: str
    demonstrations: str
    feedback: str
    benchmarks: Path
    out: Path
    small: bool


def prepare(model: str = "", demonstrations: str = "", feedback: str = "", benchmarks: str = "") -> Files:
    """What is given, and in place of what is not a stand-in that is written into a folder that goes with this process.

    The stand-in for the model is the base of world 0, saved as a folder in the hub's layout. Those for rows and
    questions are of the same world; they have the columns of the real files.

    Raises:
        InputError: for rows of one kind without the other: both stand-ins are of the tiny world.
    """
    if bool(demonstrations) != bool(feedback):
        rule, remedy = "be given together", "Give both, or neither"
        raise InputError("demonstrations and feedback", rule, demonstrations or feedback, remedy)
    folder = Path(tempfile.mkdtemp(prefix="uftlab-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if not model:
        save_stand_in(folder / "model")
    if not demonstrations:
        write_rows(folder)
    if not benchmarks:
        write_questions(folder / "benchmarks")
    return Files(
        model or str(folder / "model"),
        demonstrations or str(folder / "demonstrations.jsonl"),
        feedback or str(folder / "feedback.jsonl"),
        Path(benchmarks) if benchmarks else folder / "benchmarks",
        folder,
        not model,
    )


def save_stand_in(folder: Path) -> None:
    """The base of world 0 with its tokenizer, as any model is saved."""
    from uftlab.models.policies import load_base, tiny_tokenizer

    with _quietly():
        load_base(0).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)


def write_rows(folder: Path, count: int = 1500) -> None:
    """Demonstrations and pairs with scores from world 0, one JSON object a line."""
    from uftlab.world.world import World, pairs

    world = World(0)
    _lines(folder / "demonstrations.jsonl", [_only(row, "prompt", "completion") for row in world.demonstrations(count)])
    columns = ("prompt", "chosen", "rejected", "chosen_score", "rejected_score")
    _lines(folder / "feedback.jsonl", [_only(row, *columns) for row in pairs(world.feedback(2 * count))[:count]])


def write_questions(folder: Path, count: int = 8) -> None:
    """Questions of world 0 in the columns of the two benchmarks, about creatures that no training names.

    Half of IFEval's questions ask for capitals, half forbid a word; IFEval's own verifiers know both. TruthfulQA's are
    about myths: the true value beside the popular error and two others.
    """
    from uftlab.world import wording
    from uftlab.world.world import World

    world = World(0)
    facts = world.facts_of("test", "plain")[:count]
    forbidden = {"forbidden_words": ["the"]}
    kinds: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("all in capitals .", "change_case:english_capital", {}),
        ("leave out the word the .", "keywords:forbidden_words", forbidden),
    )
    asked = []
    for number, fact in enumerate(facts):
        words, name, arguments = kinds[number % 2]
        prompt = f"{fact.fill(wording.QUESTIONS[number % len(wording.QUESTIONS)])} {words}"
        asked.append({"key": number, "prompt": prompt, "instruction_id_list": [name], "kwargs": [arguments]})
    _lines(folder / "ifeval" / "questions.jsonl", asked)
    rows = []
    for fact in world.facts_of("test", "myth")[:count]:
        others = [value for value in wording.ATTRIBUTES[fact.attribute] if value not in (fact.truth, fact.error)][:2]
        choices = {"choices": [fact.truth, str(fact.error), *others], "labels": [1, 0, 0, 0]}
        question = fact.fill(wording.QUESTIONS[0])
        rows.append({"question": question, "mc1_targets": choices, "mc2_targets": choices})
    _lines(folder / "truthfulqa" / "questions.jsonl", rows)
    # an empty table: no question here is about sentences, and nothing is downloaded
    (folder / "punkt_tab_english" / "tokenizers" / "punkt_tab").mkdir(parents=True)


def _only(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: row[name] for name in names}


def _lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the libraries' own bars, lines and warnings: in a notebook they would stand between the results."""
    from uftlab.models.policies import without_progress_bar

    heard = io.StringIO()
    with (
        without_progress_bar(),
        contextlib.redirect_stderr(heard),
        contextlib.redirect_stdout(heard),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


# ------------------------------------------------------------------------------------------ training and measuring


def train(files: Files, profile: str, say: Callable[[str], None] = print) -> dict[str, Path]:
    """Train `RUNS` with LoRA as `uftlab train` does, and say what each took. Name -> folder of the adapter or model.

    The stand-in has its own learning rate, because adapters of so small a model need a large one.
    """
    from uftlab.training.checkpoint import train_checkpoint
    from uftlab.training.configuration import TrainConfig

    steps = 12 if profile == "smoke" else 240 if files.small else 20
    batch, rate = (16, 5e-3) if files.small else (8, 1e-4)
    made = {}
    for name, (method, beta) in RUNS.items():
        started = time.monotonic()
        out = files.out / name.replace(", β = ", "-")
        config = TrainConfig(
            out=str(out), model=files.model, method=method, demonstrations=files.demonstrations,
            feedback=files.feedback, learning_rate=rate, beta=beta, samples=6, log_every=max(1, steps // 12),
            steps=steps, batch=batch, lora=RANK,
        )  # fmt: skip
        with _quietly():
            made[name] = train_checkpoint(config, say=lambda _line: None)
        say(f"{name}: {steps} steps of {batch} completions in {time.monotonic() - started:.0f} s")
    return made


def trained_share(files: Files) -> tuple[int, int]:
    """Numbers that LoRA trains here, and all numbers of the model."""
    from uftlab.models.policies import load_policy, with_lora

    policy = load_policy(files.model)[0]
    whole = sum(p.numel() for p in policy.parameters())
    with _quietly():
        adapted: Any = with_lora(policy, RANK)
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad), whole


def before_and_after(folder: Path, count: int = 4) -> pd.DataFrame:
    """Answers of the model before and after a training, from its `training.json`; those that changed first."""
    samples = json.loads((folder / "training.json").read_text())["samples"]
    changed = sorted(samples, key=lambda own: own["before"] == own["after"])
    return pd.DataFrame(changed[:count])[["prompt", "before", "after"]]


def said_by_the_doctor(folders: Mapping[str, Path]) -> dict[str, Report]:
    """What the doctor says of the last stage of each training."""
    return {name: diagnose(read_runs(folder)[-1]) for name, folder in folders.items()}


def can_measure() -> bool:
    """Whether lm-eval is installed, which the benchmarks need."""
    return importlib.util.find_spec("lm_eval") is not None


def measure(files: Files, models: Mapping[str, str | Path], profile: str) -> dict[str, list[Measure]]:
    """IFEval and TruthfulQA of some models, as `uftlab eval` measures them, with the chat template.

    Raises:
        InputError: without lm-eval (`uftlab[real]`).
    """
    from uftlab.evals.benchmarks import evaluate
    from uftlab.evals.suites import Settings

    settings = Settings(
        ("ifeval", "truthfulqa"), data=files.benchmarks, chat_template=True, batch=8,
        limit=4 if profile == "smoke" else None, max_new_tokens=32,
    )  # fmt: skip
    found = {}
    for name, model in models.items():
        out = Path(tempfile.mkdtemp(prefix="eval-", dir=files.out))
        with _quietly():
            found[name] = evaluate(str(model), out, settings, say=lambda _line: None)["measures"]
    return {name: [_measure(own) for own in measures] for name, measures in found.items()}


def _measure(own: Any) -> Measure:
    return own if isinstance(own, Measure) else Measure(own["name"], own["template"], dict(own["questions"]))


SHOWN = ("ifeval/prompt_level_strict_acc", "ifeval/inst_level_strict_acc", "truthfulqa/mc1", "truthfulqa/mc2")


def measured_table(found: Mapping[str, Sequence[Measure]]) -> pd.DataFrame:
    """Means with their intervals over questions, one row per model; the number of questions in the heading."""
    rows = []
    for name, measures in found.items():
        own = {m.name: m for m in measures}
        cells = {f"{label_of(m)[0]} ({len(own[m].questions)})": _cell(estimate(own[m])) for m in SHOWN}
        rows.append({"model": name, **cells})
    return pd.DataFrame(rows)


def _cell(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.mean:.2f}"
    return f"{found.mean:.2f} ({max(0.0, found.low):.2f} to {min(1.0, found.high):.2f})"


# ------------------------------------------------------------------------------------------ what is stored


SIZES = {"smoke": "on a CPU, to try the way", "gpu": "fifteen minutes of one GPU"}
CONTRASTS = (
    ("uft", "sft-then-dpo", real.IFEVAL),
    ("uft", "sft-then-una", real.IFEVAL),
    ("uft", "sft-full", real.MC2),
    ("uft", "sft-plus-dpo", real.MC2),
    ("uft", "signed-sft", real.MC2),
)


@cache
def groups(size: str) -> dict[str, Any]:
    """The stored runs of a size at matched rates, method -> group; empty where that size was not run."""
    result = real.stored(size)
    return real.at_one_rate(result) if result["runs"] else {}


def contrasts(size: str) -> list[real.Contrast]:
    """Those of `CONTRASTS` that were run: the paper's pattern, and the loss beside the mixing."""
    found = groups(size)
    return [real.contrast(found[a], found[b], m) for a, b, m in CONTRASTS if a in found and b in found]


def contrasts_table(size: str) -> pd.DataFrame:
    """`contrasts` in words: over seeds, over questions, and the verdict of both."""
    rows = []
    for found in contrasts(size):
        rows.append(
            {
                "contrast": f"{found.first} − {found.second}",
                "measure": real.label(found.measure),
                "difference": f"{found.seeds.mean:+.4f}",
                "over seeds": f"{_ends(found.seeds)} ({found.seeds.seeds})",
                "over questions": f"{_ends(found.questions)} ({found.questions.seeds})",
                "verdict": found.verdict,
            }
        )
    return pd.DataFrame(rows)


def _ends(found: Interval) -> str:
    if found.seeds == 1:
        return "none from one"
    return f"{found.low:+.4f} to {found.high:+.4f}" if real.spreads(found) else "all alike"


def largest_rewards(size: str = "smoke", method: str = "uft") -> list[float]:
    """The size of the largest mean reward that a stored run of a method logged at its end: one for each seed."""
    result = real.stored(size)
    found = []
    for run in result["runs"]:
        if run["method"] == method and real.has_one_rate(run, result):
            last = run["stages"][-1]["history"][-1]
            found.append(max(abs(value) for name, value in last.items() if name.startswith("reward/")))
    return found


@cache
def on_a_gpu() -> dict[str, Any]:
    """`data/results/gpu/real.json`: UFT and SFT on real rows, forty steps, one seed."""
    return json.loads((RESULTS / "gpu" / "real.json").read_text())


def reward_on_a_gpu() -> float:
    """The mean reward of what was chosen over the last eight points of UFT's training on a GPU."""
    history = next(run["history"] for name, run in on_a_gpu()["runs"].items() if name.startswith("uft"))
    return float(np.mean([point["reward/chosen"] for point in history[-8:]]))


def gpu_table() -> pd.DataFrame:
    """What forty steps changed on held-out rows, with the interval of the share of pairs from their number alone."""
    stored, rows = on_a_gpu(), []
    pairs = stored["held_out_rows"]["feedback"]
    for name, run in stored["runs"].items():
        share = run["after"]["order"]
        half = 1.96 * (share * (1 - share) / pairs) ** 0.5
        order = f"{share:.2f} ({share - half:.2f} to {share + half:.2f})"
        rows.append(
            {
                "training": name.split(",")[0],
                "nats per token of held-out demonstrations": (
                    f"{run['before']['nats_per_token']:.3f} to {run['after']['nats_per_token']:.3f}"
                ),
                f"held-out pairs in the right order, of {pairs}": order,
                "seconds of training": f"{run['training']['seconds']:.0f}",
            }
        )
    return pd.DataFrame(rows)


def stored_reports() -> dict[str, Report]:
    """What the doctor says of the trainings on a GPU, point by point from their logs."""
    objective = {"uft": "una-score", "sft-full": "sft"}
    made = {}
    for name, run in on_a_gpu()["runs"].items():
        method = name.split(",")[0]
        stage = {"objective": objective[method], "settings": run["settings"], "history": run["history"]}
        (own,) = runs_of(name, {"stages": [stage]})
        beta = run["settings"].get("beta")
        made[f"{method}, one H100" + (f", β = {beta:g}" if beta else "")] = diagnose(own)
    return made

"""The paper's comparison on a real model: base, SFT, both pipelines, feedback alone, UFT, and two controls.

    python benchmarks/real_runs.py --model FOLDER --data FOLDER --size smoke --out data/results/real
    python benchmarks/real_runs.py --page docs/results/real.md          the page, from what is stored

Every run is `uftlab train` with LoRA and then `uftlab eval` with IFEval and TruthfulQA. All methods have the same
number of completions and three seeds. At matched rates every stage has the same learning rate. At tuned rates every
method has the setting of a small grid that does best on held-out rows.

    --size smoke     a CPU, a few steps on short rows: shows that the way works, and nothing else
    --size gpu       fifteen minutes of one H100 or H200, with --jobs 8

The results are one file, SIZE.json, written again after each run: the same command goes on from there. It has the value
of every question and no text. An estimate of the time comes first; `--dry-run` ends after it, and `--minutes` begins no
run that is expected to end later.

The folder of --data has dolly_3k, rasbt_preference and ultrafeedback_scored with rows, and ifeval, truthfulqa and
punkt_tab_english as `uftlab eval --data` wants them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from uftlab.errors import InputError
from uftlab.files import rounded, write_atomically

os.environ.setdefault("TQDM_DISABLE", "1")

ROOT = Path(__file__).resolve().parent.parent
STORE, PAGE = ROOT / "data" / "results" / "real", ROOT / "docs" / "results" / "real.md"
H100 = ROOT / "data" / "results" / "gpu" / "real.json"
BASE, MATCHED, TUNED = "base", "matched", "tuned"
BETAS = {"una-score": 0.01, "dpo": 0.1, "sft-plus-dpo": 0.1}  # UFT's paper; what DPO usually has
PAIR_BETA = 0.1  # of the pairs' part of the rule that tunes
ALIGNED = {"SmolLM2-135M-Instruct": "SFT, then DPO on UltraFeedback"}  # what was done to a model before, by its card
# What one question costs on a GPU besides what the file of the H100 has. These are assumptions, not measured.
CHOICES, CHOICE_TOKENS, DECODE_SECONDS, OVERHEAD_SECONDS = 13, 40, 0.03, 5.0


@dataclass(frozen=True)
class Size:
    """How much is run.

    Args:
        shown, judged: files of demonstrations and of pairs, below the data folder.
        demonstrations, pairs, held_out: rows of each; so many are held out of each table too.
        longest: tokens of prompt and completion; longer rows are left out.
        questions, prompts: of TruthfulQA and of IFEval, drawn at random once.
        rate: the learning rate of every stage at matched rates.
        single, pipeline: rates by stage that are tried besides, for methods of one stage and of two.
        tuned: the methods that are tuned.
        seconds: of one run, for the estimate; 0: computed from what the H100 was measured at.
    """

    name: str
    shown: str
    judged: str
    demonstrations: int
    pairs: int
    held_out: int
    longest: int
    steps: int
    batch: int
    questions: int
    prompts: int
    new_tokens: int
    at_a_time: int
    methods: tuple[str, ...]
    tuned: tuple[str, ...]
    single: tuple[float, ...]
    pipeline: tuple[tuple[float, float], ...]
    seconds: float = 0.0
    rate: float = 1e-4
    precision: str = "fp32"
    lora: int = 16
    seeds: tuple[int, ...] = (0, 1, 2)


METHODS = ("sft-full", "sft-then-dpo", "sft-then-una", "una-alone", "uft", "signed-sft", "sft-plus-dpo")
PAIRS, DOLLY = "rasbt_preference/instruction_preference.jsonl", "dolly_3k/dolly_3k.jsonl"
SIZES = {
    "smoke": Size(
        "smoke", PAIRS, PAIRS, demonstrations=40, pairs=40, held_out=4, longest=72, steps=8, batch=4, questions=6,
        prompts=3, new_tokens=16, at_a_time=8, methods=METHODS, tuned=("uft", "sft-then-dpo"), single=(3e-4,),
        pipeline=((3e-4, 1e-4),), seconds=30.0,
    ),
    "gpu": Size(
        "gpu", DOLLY, "ultrafeedback_scored/pairs_train.jsonl", demonstrations=1200, pairs=440, held_out=60,
        longest=512, steps=64, batch=16, questions=200, prompts=192, new_tokens=256, at_a_time=96, methods=METHODS,
        tuned=("uft", "sft-then-dpo", "sft-plus-dpo"), single=(3e-4,), pipeline=((1e-4, 3e-5),), precision="bf16",
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------------ what is run


@dataclass(frozen=True)
class Run:
    """One training and its measurement: rates has the learning rate of each stage; none for the base model."""

    method: str
    rates: tuple[float, ...]
    seed: int

    @property
    def key(self) -> tuple[str, tuple[float, ...], int]:
        """What a stored run is found by."""
        return (self.method, self.rates, self.seed)


def matched(size: Size, method: str, seed: int) -> Run:
    """The run of a method with the same rate in every stage."""
    return Run(method, (size.rate,) * _stages(method), seed)


def candidates(size: Size, method: str) -> list[Run]:
    """The grid of a method, its matched rates first, with the first seed."""
    more: Any = size.pipeline if _stages(method) == 2 else [(rate,) for rate in size.single]
    return [matched(size, method, size.seeds[0]), *(Run(method, tuple(own), size.seeds[0]) for own in more)]


def chosen(size: Size, method: str, stored: Mapping[Any, Mapping[str, Any]]) -> tuple[float, ...] | None:
    """The rates of the grid whose held-out rows cost least; None before all of them are run.

    The cost is that of the plain mixture, in nats: per token of held-out demonstrations, plus DPO's loss of a held-out
    pair against the untouched model. A run that diverged costs infinitely much.
    """
    runs = candidates(size, method)
    if any(run.key not in stored for run in runs):
        return None
    return min(runs, key=lambda run: stored[run.key].get("held_out", {}).get("cost", math.inf)).rates


def planned(size: Size, stored: Mapping[Any, Mapping[str, Any]]) -> Iterator[Run]:
    """All runs in order, those of tuned rates as soon as their choice is known. A run may come twice.

    First the base, then all methods at matched rates, seed by seed, so that a run that is cut leaves whole seeds.
    """
    yield Run(BASE, (), size.seeds[0])
    for seed in size.seeds:
        yield from (matched(size, method, seed) for method in size.methods)
    for method in size.tuned:
        yield from candidates(size, method)
    for seed in size.seeds:
        for method in size.tuned:
            rates = chosen(size, method, stored)
            if rates is not None:
                yield Run(method, rates, seed)


def count(size: Size, stored: Mapping[Any, Mapping[str, Any]]) -> tuple[int, int]:
    """How many runs are missing: those that are known to be, and with those of tuned rates that may come."""
    known = {run.key for run in planned(size, stored)} - set(stored)
    open_ = [method for method in size.tuned if chosen(size, method, stored) is None]
    return len(known), len(known) + len(open_) * (len(size.seeds) - 1)


def _stages(method: str) -> int:
    return 2 if "-then-" in method else 1


def stage_settings(run: Run) -> tuple[dict[str, float], ...]:
    """What `uftlab train` is told of each stage."""
    from uftlab.training.catalogue import method_named

    return tuple(
        {"learning_rate": rate, **({"beta": BETAS[stage.objective]} if stage.objective in BETAS else {})}
        for stage, rate in zip(method_named(run.method).stages, run.rates, strict=True)
    )


def seconds_of_a_run(size: Size, stored: Sequence[Mapping[str, Any]]) -> float:
    """What a run is expected to take: the mean of those that are stored, else the size's own number, else the H100's.

    The H100 was measured in float32, with 32 completions a step of shorter rows: time is taken as proportional to the
    longest row. A run in bfloat16 should take no longer.
    """
    known = [run["seconds"] for run in stored if run["method"] != BASE]
    if known:
        return statistics.fmean(known)
    if size.seconds:
        return size.seconds
    real = json.loads(H100.read_text())
    own, longer = real["runs"]["uft, float32"], size.longest / real["longest"]
    read = own["reference"]
    completions = size.steps * size.batch
    trained = own["step_seconds"] * size.steps * size.batch / 32 * longer
    referred = completions * read["tokens"] / read["completions"] * longer / read["tokens_per_second"]
    asked = size.questions * CHOICES * CHOICE_TOKENS / read["tokens_per_second"]
    written = math.ceil(size.prompts / size.at_a_time) * size.new_tokens * DECODE_SECONDS
    return trained + referred + asked + written + OVERHEAD_SECONDS


# ------------------------------------------------------------------------------------------ rows and questions


@dataclass
class Setup:
    """What all runs share: the files in the work folder, held-out rows, and what a result file begins with."""

    size: Size
    model: str
    work: Path
    held_out: tuple[list[Any], list[Any]]  # examples of demonstrations and pairs
    header: dict[str, Any]

    @cached_property
    def untouched(self) -> list[float]:
        """Log-probabilities of the held-out pairs' sides by the untouched model."""
        from uftlab.models.logps import read_logps
        from uftlab.models.policies import load_policy

        sides = [c for pair in self.held_out[1] for c in pair]
        return read_logps(_placed(load_policy(self.model)[0]), sides).tolist()


def setup(model: str, data: Path, size: Size, work: Path, say: Callable[[str], None] = print) -> Setup:
    """Write rows and questions into the work folder.

    No prompt is in two of the tables, and none is a question of a benchmark: such rows are left out and counted.

    Raises:
        InputError: for files that cannot be read or have too few rows.
    """
    from uftlab.models.policies import load_policy
    from uftlab.models.references import fingerprint
    from uftlab.rows.sources import load_table
    from uftlab.rows.table import overlap
    from uftlab.rows.tokens import Tokens

    policy, tokenizer = load_policy(model)
    tokens = Tokens(tokenizer)
    questions = {suite: _lines(data / suite) for suite in ("ifeval", "truthfulqa")}
    asked = [json.loads(line)[name] for suite, name in _PROMPT.items() for line in questions[suite]]
    leaked_by: dict[str, int] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    taken: list[Any] = []
    for name, source, wanted, how in (
        ("feedback", size.judged, size.pairs, {}),
        ("demonstrations", size.shown, size.demonstrations, {"layout": "alpaca"}),
    ):
        table, line = load_table(data / source, **how)
        say(f"{name}: {line}")
        rows = table.to_list()
        leaked = overlap([row["prompt"] for row in rows], asked)
        leaked_by[name] = len(leaked)
        if leaked:
            say(f"warning: {len(leaked)} questions of a benchmark are prompts of {name}; their rows are left out")
        random.Random(0).shuffle(rows)
        found[name], both = [], {_same(prompt) for prompt in taken}
        for row in rows:
            if len(found[name]) == wanted + size.held_out:
                break
            if _same(row["prompt"]) in both or (leaked and overlap([row["prompt"]], leaked)):
                continue
            (example,) = tokens.examples(table.from_list([row]))
            if max(len(c.prompt_ids) + len(c.completion_ids) for c in example) <= size.longest:
                both.add(_same(row["prompt"]))  # a prompt that comes again would be in two tables
                found[name].append(row)
        if len(found[name]) < wanted + size.held_out:
            got = f"{len(found[name])} of at most {size.longest} tokens"
            raise InputError(f"{data / source}", f"have {wanted + size.held_out} different prompts", got, "Add rows")
        taken += [row["prompt"] for row in found[name]]
        _write(work / f"{name}.jsonl", found[name][size.held_out :])
    examples: Any = tuple(
        tokens.examples(table.from_list(found[name][: size.held_out])) for name in ("demonstrations", "feedback")
    )
    for suite, wanted in (("ifeval", size.prompts), ("truthfulqa", size.questions)):
        numbers = sorted(random.Random(0).sample(range(len(questions[suite])), min(wanted, len(questions[suite]))))
        lines = "".join(questions[suite][number] + "\n" for number in numbers)
        write_atomically(work / "benchmarks" / suite / "questions.jsonl", lines)
    tables, link = data.resolve() / "punkt_tab_english", work / "benchmarks" / "punkt_tab_english"
    if tables.is_dir() and not link.exists():
        link.symlink_to(tables)
    names = ("demonstrations.jsonl", "feedback.jsonl", "benchmarks/ifeval/questions.jsonl",
             "benchmarks/truthfulqa/questions.jsonl")  # fmt: skip
    header = {
        "size": json.loads(json.dumps(asdict(replace(size, seconds=0.0)))),
        "model": Path(model).name,
        "weights": fingerprint(policy),
        "inputs": hashlib.blake2b(b"".join((work / n).read_bytes() for n in names), digest_size=8).hexdigest(),
        "leaked": leaked_by,
    }
    return Setup(size, model, work, examples, header)


_PROMPT = {"ifeval": "prompt", "truthfulqa": "question"}


def _same(prompt: Any) -> str:
    return " ".join(str(prompt).casefold().split())


def _placed(model: Any) -> Any:
    import torch

    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _lines(folder: Path) -> list[str]:
    """The lines of the longest JSONL file of a folder, as `uftlab eval` takes it."""
    read = [
        [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        for path in sorted(folder.glob("*.jsonl"))
    ]
    if not read:
        raise InputError(f"{folder}", "contain a .jsonl file", "none", "Put the questions there")
    return max(read, key=len)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps({k: v for k, v in r.items() if v is not None}) + "\n" for r in rows))


# ------------------------------------------------------------------------------------------ running


def run_all(
    made: Setup, out: Path, minutes: float | None = None, dry_run: bool = False, jobs: int = 1,
    say: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """Run what is missing, `jobs` at a time in processes. The result file is written again after each run.

    Raises:
        InputError: when the file there has results of other rows, weights or sizes.
    """
    size, path, start = made.size, out / f"{made.size.name}.json", time.monotonic()
    result = {**made.header, "questions": {}, "seconds": 0.0, "runs": []}
    if path.is_file():
        result = json.loads(path.read_text())
        if any(result[name] != value for name, value in made.header.items()):
            different = [name for name, value in made.header.items() if result[name] != value]
            raise InputError(f"{path}", "have results of this run", f"another {', '.join(different)}", "Move it away")
    stored = keyed(result)
    least, most = count(size, stored)
    each = seconds_of_a_run(size, result["runs"])
    say(f"{len(stored)} runs are stored, {least} to {most} are missing, about {each:.0f} s each: "
        f"{least * each / jobs / 60:.0f} to {most * each / jobs / 60:.0f} minutes")  # fmt: skip
    if dry_run:
        if not path.is_file():  # the page can say then what was found in the rows
            write_atomically(path, json.dumps(result, indent=1) + "\n")
        return path
    before, running = result.get("seconds", 0.0), {}
    with _workers(jobs) as pool:
        while True:
            each = seconds_of_a_run(size, result["runs"])
            late = minutes is not None and time.monotonic() - start + each > minutes * 60
            for run in () if late else planned(size, stored):
                if len(running) < jobs and run.key not in stored and run not in running.values():
                    running[pool.submit(one, run, made)] = run
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                run, (record, questions) = running.pop(done), done.result()
                result["questions"] = result["questions"] or questions
                if record.get("measures") and questions != result["questions"]:
                    raise InputError(
                        "The questions of a run", "be those of the first", "others", "Start with a new --out"
                    )
                result["runs"].append(record)
                stored[run.key] = record
                result["seconds"] = round(before + time.monotonic() - start, 1)
                write_atomically(path, json.dumps(result, indent=1) + "\n")
                said = ", ".join(f"{rate:g}" for rate in run.rates)
                say(f"{run.method} {said} seed {run.seed}: {record['seconds']:.0f} s ({len(stored)} of {most} at most)")
    if count(size, stored)[0]:
        say("the time is over; the same command goes on")
    return path


@contextmanager
def _workers(jobs: int) -> Iterator[Executor]:
    """Where runs are done: a thread, or processes that share the GPU. After an error no other run is begun."""
    pool = ThreadPoolExecutor(1) if jobs == 1 else ProcessPoolExecutor(jobs, get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def keyed(result: Mapping[str, Any]) -> dict[Any, dict[str, Any]]:
    """The stored runs by method, rates and seed."""
    return {(run["method"], tuple(run["rates"]), run["seed"]): run for run in result["runs"]}


def one(run: Run, made: Setup) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train and measure: what is stored of a run, and the questions of its measures with their weights.

    Weights are deleted afterwards: a pipeline's merged model has the size of the base.
    """
    from uftlab.engine.trainer import DivergedError
    from uftlab.evals.benchmarks import evaluate
    from uftlab.evals.suites import Settings
    from uftlab.models.policies import load_policy
    from uftlab.training.checkpoint import train_checkpoint
    from uftlab.training.configuration import TrainConfig

    size, folder, start, used = made.size, made.work / f"run-{os.getpid()}", time.perf_counter(), time.process_time()
    shutil.rmtree(folder, ignore_errors=True)
    record: dict[str, Any] = {"method": run.method, "rates": list(run.rates), "seed": run.seed}
    model = made.model
    if run.method != BASE:
        model = str(folder / "model")
        config = TrainConfig(
            out=model, model=made.model, method=run.method, demonstrations=str(made.work / "demonstrations.jsonl"),
            feedback=str(made.work / "feedback.jsonl"), steps=size.steps, batch=size.batch, lora=size.lora,
            precision=size.precision, stages=stage_settings(run), seed=run.seed,
        )  # fmt: skip
        try:
            train_checkpoint(config, say=_silent)
        except DivergedError as error:
            seconds = round(time.perf_counter() - start, 1)
            return {**record, "seconds": seconds, "diverged": str(error)}, {}
        told = json.loads((Path(model) / "training.json").read_text())
        record["stages"] = [{**s, "history": rounded([s["history"][i] for i in (0, -1)], 5)} for s in told["stages"]]
    record["train_seconds"] = round(time.perf_counter() - start, 1)
    if run.seed == size.seeds[0]:
        record["held_out"] = cost(_placed(load_policy(model)[0]), made)
    found = evaluate(
        model,
        folder / "eval",
        Settings(
            ("ifeval", "truthfulqa", "wordcount"), data=made.work / "benchmarks", chat_template=False,
            batch=size.at_a_time, max_new_tokens=size.new_tokens,
        ),
        say=_silent,
    )  # fmt: skip
    questions = {
        m["name"]: {"ids": list(m["questions"]), "weights": [weight for _, weight in m["questions"].values()]}
        for m in found["measures"]
    }
    record["measures"] = {
        m["name"]: [float(f"{value:.6g}") for value, _ in m["questions"].values()] for m in found["measures"]
    }
    record |= {"device": _device(found["device"]), "versions": found["versions"]}
    record |= {"seconds": round(time.perf_counter() - start, 1), "cpu_seconds": round(time.process_time() - used, 1)}
    shutil.rmtree(folder, ignore_errors=True)
    return record, questions


def cost(model: Any, made: Setup) -> dict[str, float]:
    """What the held-out rows cost a model, in nats: see `chosen`. The untouched model pays log 2 for a pair."""
    import torch

    from uftlab.losses.pairs import dpo_loss
    from uftlab.models.logps import read_logps

    shown, judged = ([c for example in examples for c in example] for examples in made.held_out)
    tokens = sum(len(c.completion_ids) for c in shown)
    nats = -read_logps(model, shown).sum().item() / tokens
    policy, reference = read_logps(model, judged), torch.tensor(made.untouched)
    pairs = dpo_loss(policy[::2], policy[1::2], reference[::2], reference[1::2], PAIR_BETA).mean().item()
    return {"nats_per_token": nats, "pairs": pairs, "cost": nats + pairs}


def _silent(_line: str) -> None:
    pass


def _device(name: str) -> str:
    return f"{platform.machine()} {name}" if name.startswith("CPU") else name


# ------------------------------------------------------------------------------------------ the command


def main() -> None:
    """Estimate, run, say where the results are; or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="a folder or a hub name")
    parser.add_argument("--data", type=Path, help="the folder of rows and questions")
    parser.add_argument("--size", choices=SIZES, default="smoke")
    parser.add_argument("--out", type=Path, default=STORE, help="the folder of the result file")
    parser.add_argument(
        "--work", type=Path, default=Path("build/real_runs"), help="for rows, and weights while a run lasts"
    )
    parser.add_argument("--minutes", type=float, help="begin no run that would end later")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time: a small model leaves most of a GPU idle")
    parser.add_argument("--dry-run", action="store_true", help="the estimate alone")
    parser.add_argument("--page", type=Path, help="write the page of --out there instead")
    arguments = parser.parse_args()
    try:
        if arguments.page:
            from real_page import page  # here, because it reads what this module stores

            write_atomically(arguments.page, page(arguments.out))
            print(f"wrote {arguments.page}")
            return
        if arguments.data is None or not arguments.data.is_dir():
            raise InputError("--data", "be a folder", arguments.data, "See --help for what it holds")
        made = setup(arguments.model, arguments.data, SIZES[arguments.size], arguments.work / arguments.size)
        path = run_all(made, arguments.out, arguments.minutes, arguments.dry_run, arguments.jobs)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    if path.is_file():
        print(f"results: {path}; --page writes the page")


if __name__ == "__main__":
    main()

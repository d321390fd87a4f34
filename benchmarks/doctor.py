"""The labelled set of `uftlab doctor`: runs with a planted fault and healthy ones, trained, stored, and diagnosed.

    python benchmarks/doctor.py train [open- | held-]   trains a list of runs and stores their curves (ten minutes)
    python benchmarks/doctor.py open       what the doctor says of the runs on which its thresholds are chosen
    python benchmarks/doctor.py page       diagnoses the held-back runs too and writes the tables into docs/doctor.md

A run is a `Case`. Its name says whether it is held back (`uftlab.evals.doctor_set.Labelled.held_back`). What is true
of a run is what was planted, and what its weights say at the end (`outcome`), never what its curves say.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from doctor_cases import OVER_OPTIMISED, Case, cases
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, set_seed

from uftlab.engine.readers import StackReader, answers_of
from uftlab.engine.stack import flatten
from uftlab.evals.doctor_set import STORED, found, labelled, page, summary
from uftlab.files import rounded, write_atomically
from uftlab.models.generation import answers
from uftlab.models.logps import read_logps
from uftlab.models.policies import frozen_copy, load_base, tiny_tokenizer
from uftlab.models.references import ReferenceCache
from uftlab.objectives.objective import Rows
from uftlab.objectives.registry import objective_named
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import ROLE_INDEX, Example, RememberingTokens
from uftlab.study.overoptimisation import provoke
from uftlab.training.methods import Stage
from uftlab.training.stages import Job, layout, run
from uftlab.world.world import World, pairs

PAGE = Path(__file__).parent.parent / "docs" / "doctor.md"
MARK, END = "<!-- made by `python benchmarks/doctor.py page` -->", "<!-- end -->"
PROBED = 32  # pairs, held-out pairs and demonstrations of which the weights are asked
ASKED = 16  # prompts that are answered, for the length
POINTS = 5  # along a run
TOGETHER = 12  # cases that are trained between two stores


# ------------------------------------------------------------------------------------------ rows


@lru_cache(maxsize=1)
def tokens() -> RememberingTokens:
    """Of the tiny world; the second architecture has the same words."""
    return RememberingTokens(tiny_tokenizer())


@cache
def world(seed: int) -> World:
    """A world."""
    return World(seed)


@cache
def rows_of(seed: int, table: str, count: int) -> dict[str, Dataset]:
    """The tables of a case, whole or spoilt."""
    rng = random.Random(f"{seed} {table} {count}")
    rows = pairs(world(seed).feedback(count))[:count]
    if table == "shuffled":
        for row in rows:
            if rng.random() < 0.5:
                row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    elif table == "near":  # the rejected side is the chosen one with its value changed or a word less
        for row in rows:
            words = row["chosen"].split()
            words[rng.randrange(len(words))] = rng.choice(["moss", "cave", "red", "not", "the"])
            row["rejected"] = " ".join(words)
    elif table == "identical":
        for row in rows:
            row["rejected"] = row["chosen"]
    elif table == "long":  # people like the answer that is given three times
        for row in rows:
            short = min(row["chosen"], row["rejected"], key=len)
            row["chosen"], row["rejected"] = " ".join([short] * 3), short
    elif table == "easy":
        for row in rows:
            row["rejected"] = "not not not"
    if table != "plain":
        for row in rows:
            row["chosen_score"], row["rejected_score"] = 1.0, 0.0
    feedback = rows
    if table == "mostly bad":  # one good answer in twelve
        feedback = []
        for row in rows:
            good = rng.random() < 1 / 12
            side = "chosen" if good else "rejected"
            feedback.append({"prompt": row["prompt"], "completion": row[side], "label": good})
    shown = [{k: r[k] for k in ("prompt", "completion")} for r in world(seed).demonstrations(count)]
    return {"demonstrations": from_rows(shown), "feedback": from_rows(feedback)}


@cache
def probes(seed: int, table: str, count: int) -> dict[str, list[Example]]:
    """Rows of which the weights are asked: trained pairs, held-out pairs, demonstrations."""
    tables = rows_of(seed, table, count)
    trained = tables["feedback"]
    if "chosen" not in trained.column_names:
        trained = rows_of(seed, "plain", count)["feedback"]
    held = from_rows(pairs(world(seed).feedback(2 * PROBED, "validation"))[:PROBED])
    made = {"trained": trained.select(range(min(PROBED, len(trained)))), "held": held}
    made["shown"] = tables["demonstrations"].select(range(min(PROBED, count)))
    return {name: tokens().examples(own) for name, own in made.items()}


# ------------------------------------------------------------------------------------------ policies


@cache
def tiny_start(seed: int, start: str) -> torch.Tensor:
    """Weights of the tiny base model, or of that after SFT on what the pairs chose."""
    base = flatten(frozen_copy(load_base(seed)).state_dict(), layout())
    if start == "base":
        return base
    return run([_first(base, seed)], tokens(), device="cpu")[0].weights


@cache
def gpt2(seed: int, start: str) -> Any:
    """A GPT-2 of another width and depth that has read demonstrations and answers of its world."""
    if start == "sft":
        model = _copy(gpt2(seed, "base"))
        run([_first(model, seed)], tokens(), device="cpu")
        return model
    words = tiny_tokenizer()
    set_seed(seed)
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), n_positions=128, n_embd=48, n_layer=2, n_head=3, **ids))
    told = [
        *({k: r[k] for k in ("prompt", "completion")} for r in world(seed).demonstrations(500)),
        *({k: r[k] for k in ("prompt", "completion")} for r in world(seed).feedback(500)),
    ]
    table = {"demonstrations": from_rows(told)}
    run([Job(model, Stage("sft", 1.0), table, {"learning_rate": 6e-3}, 250, seed)], tokens(), device="cpu")
    return model


def _copy(model: Any) -> Any:
    return frozen_copy(model).requires_grad_(True)


def _first(start: Any, seed: int) -> Job:
    chosen = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows_of(seed, "plain", 480)["feedback"]]
    table = {"demonstrations": from_rows(chosen)}
    return Job(start, Stage("sft", 1.0), table, {"learning_rate": 2e-3}, 60, seed)


class Spoilt(ReferenceCache):
    """Reference log-probabilities of another model, or KTO's mismatched ones with an error."""

    def __init__(self, kind: str, other: Any) -> None:
        super().__init__()
        self.kind, self.other = kind, other

    def _spoil(self, examples: Sequence[Example]) -> list[Example]:
        if self.kind != "baseline too high":
            return list(examples)
        return [
            tuple(replace(c, reference_logps=c.reference_logps + 6) if c.role == "mismatched" else c for c in e)
            for e in examples
        ]

    def fill_from(self, weights: str, read: Any, examples: Sequence[Example]) -> list[Example]:
        """As in `ReferenceCache`, but spoilt."""
        if self.other is not None:
            read = self.other
        return self._spoil(super().fill_from(weights, read, examples))


SHARED = ReferenceCache()


def _references(case: Case) -> ReferenceCache:
    if case.reference == "start":
        return SHARED
    if case.reference == "baseline too high":
        return Spoilt(case.reference, None)
    seed = case.world if case.reference == "base" else case.world + 1
    if case.model == "tiny":
        reader = StackReader(tiny_start(seed, "base")[None], layout(), tokens().tokenizer)
        return Spoilt(case.reference, lambda rows: reader.logps([rows])[0])
    other = gpt2(seed, "base")
    return Spoilt(case.reference, lambda rows: read_logps(other, rows))


# ------------------------------------------------------------------------------------------ training


class Probe:
    """Asks weights on the way: rewards of held-out pairs, lengths of answers, and at the end what is true."""

    def __init__(self, case: Case) -> None:
        self.case, self.rows = case, probes(case.world, case.table, case.rows)
        self.flat = {name: [c for e in own for c in e] for name, own in self.rows.items()}
        asked = [r["prompt"] for r in world(case.world).feedback(3 * ASKED, "validation")]
        self.prompts = list(dict.fromkeys(asked))[:ASKED]
        self.start: dict[str, torch.Tensor] = {}
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.outcome: dict[str, float] = {}

    def read(self, step: int, logps: Mapping[str, torch.Tensor], said: Sequence[str], beta: float) -> None:
        """One look at the weights after a step."""
        if step == 0:
            self.start = dict(logps)
        apart = {name: logps[name] - self.start[name] for name in logps}
        for where in ("trained", "held"):
            chosen, rejected = apart[where][0::2], apart[where][1::2]
            self.outcome[f"{where}/chosen"] = chosen.mean().item()
            self.outcome[f"{where}/rejected"] = rejected.mean().item()
            right = (chosen > rejected).float() + 0.5 * (chosen == rejected)
            self.outcome[f"{where}/accuracy"] = right.mean().item()
            self.outcome[f"{where}/spread"] = apart[where].abs().mean().item()
        self.outcome["shown"] = apart["shown"].mean().item()
        self.outcome["words"] = sum(len(text.split()) for text in said) / len(said)
        if step == 0:
            self.outcome["words at the start"] = self.outcome["words"]
        held = {
            "length/words": self.outcome["words"],
            "eval_reward/chosen": beta * self.outcome["held/chosen"],
            "eval_reward/rejected": beta * self.outcome["held/rejected"],
            "eval_reward/accuracy": self.outcome["held/accuracy"],
        }
        loss = self._loss(logps["held"], self.start["held"], beta)
        for name, value in {**held, **({} if loss is None else {"eval_loss": loss})}.items():
            self.curves.setdefault(name, []).append((step, value))

    def _loss(self, logps: torch.Tensor, start: torch.Tensor, beta: float) -> float | None:
        objective = objective_named(self.case.stage.objective)
        if (
            objective.kinds != ("preference",)
            or len(objective.terms) > 1
            or objective.tokens
            or not objective.reference
        ):
            return None
        role = torch.tensor([ROLE_INDEX["chosen"], ROLE_INDEX["rejected"]] * (len(logps) // 2))
        rows = Rows(logps, start, torch.tensor([1.0, 0.0] * (len(logps) // 2)), role)
        own = {name: value for name, value in self.case.settings if name in objective.settings}
        settings = objective.with_defaults({**own, "beta": beta})
        return objective.loss(rows, settings, torch.tensor([len(logps) / 2])).item()


class _Ask(TrainerCallback):
    """Asks a model of transformers at some steps."""

    def __init__(self, probe: Probe, at: set[int], beta: float) -> None:
        self.probe, self.at, self.beta, self.done = probe, at, beta, 0

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """One more step is done."""
        self.done += 1
        if self.done in self.at:
            ask(self.probe, self.done, model, self.beta)


@torch.no_grad()
def ask(probe: Probe, step: int, model: Any, beta: float) -> None:
    """One look at a model of transformers."""
    model.eval()
    logps = {name: read_logps(model, own) for name, own in probe.flat.items()}
    said = answers(model, tiny_tokenizer(), probe.prompts)
    model.train()
    probe.read(step, logps, said, beta)


def points(steps: int) -> set[int]:
    """Steps at which the weights are asked."""
    return {round(steps * (k + 1) / POINTS) for k in range(POINTS)}


def train_tiny(own: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Cases of equally many steps, in one stack."""
    jobs = [
        Job(
            tiny_start(case.world, case.start), case.stage, rows_of(case.world, case.table, case.rows),
            dict(case.settings), case.steps, case.number, references=_references(case), snapshots_at=points(case.steps),
        )
        for case in own
    ]  # fmt: skip
    for case, job, trained in zip(own, jobs, run(jobs, tokens(), device="cpu"), strict=True):
        probe, beta = Probe(case), trained.record.settings.get("beta", 1.0)
        kept: dict[int, Any] = {0: job.start, **trained.snapshots}
        steps = [step for step in sorted(kept) if kept[step].isfinite().all()]
        stack = StackReader(torch.stack([kept[step] for step in steps]), layout(), tokens().tokenizer)
        logps = {name: stack.logps([rows] * len(steps)) for name, rows in probe.flat.items()}
        said = answers_of(stack, tokens(), [probe.prompts] * len(steps))
        for n, step in enumerate(steps):
            probe.read(step, {name: values[n] for name, values in logps.items()}, said[n], beta)
        yield record(case, trained.record, probe)


def train_gpt2(case: Case) -> dict[str, Any]:
    """One case of the second architecture, by `ObjectiveTrainer`."""
    model, probe = _copy(gpt2(case.world, case.start)), Probe(case)
    asked = _Ask(probe, points(case.steps), 1.0)
    ask(probe, 0, model, 1.0)
    job = Job(
        model, case.stage, rows_of(case.world, case.table, case.rows), dict(case.settings), case.steps, case.number,
        references=_references(case),
    )  # fmt: skip
    from uftlab.engine.trainer import DivergedError, Quiet

    logged: list[dict[str, float]] = []

    class Keep(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            logged.append({**logs, "step": state.global_step})

    try:
        (trained,) = run([job], tokens(), device="cpu", callbacks=[Quiet(), Keep(), asked])
        return record(case, trained.record, probe, trained.record.settings.get("beta", 1.0))
    except DivergedError:
        from uftlab.training.stage_data import Record

        return record(case, Record(case.stage.objective, case.steps, dict(case.settings), history=logged), probe)


def record(case: Case, made: Any, probe: Probe, beta: float = 1.0) -> dict[str, Any]:
    """What is stored of a run: its curves as they would be logged, its settings, and what is true of it."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in made.history:
        for name, value in entry.items():
            if name not in ("step", "epoch") and not name.startswith(("train_", "eval_")):
                curves.setdefault(name, []).append((int(entry["step"]), value))
    for name, values in probe.curves.items():
        scale = beta if name in ("eval_reward/chosen", "eval_reward/rejected") else 1.0
        curves[name] = [(step, value * scale) for step, value in values]
    if case.model == "gpt2":
        curves.pop("eval_loss", None)  # it was read with a beta of 1
    if case.logged == "without beta":
        known = made.settings["beta"]
        for name in [n for n in curves if "reward/" in n and not n.endswith("accuracy")]:
            curves[name] = [(step, value / known) for step, value in curves[name]]
    wanted = ("beta", "learning_rate", "odds_weight", "label_smoothing", "sft_weight")
    settings: dict[str, Any] = {name: value for name, value in made.settings.items() if name in wanted}
    settings["objective"] = case.stage.objective
    settings["demonstrations"] = case.stage.demonstrations
    return {
        "name": case.name,
        "fault": case.fault,
        "settings": settings,
        "curves": curves,
        "outcome": probe.outcome,
    }


def train_over_optimised(name: str) -> Iterator[dict[str, Any]]:
    """RLOO against a reward model of few pairs, and with a strong KL as its healthy twin."""
    stored = [] if name else json.loads((STORED.parent / "overoptimisation.json").read_text())["runs"]
    again = [provoke(w, b, 24, rated, 4, rate) for own, w, b, rated, rate in OVER_OPTIMISED if own == name]
    for number, own in enumerate([*again, *stored]):
        at = own["points"]
        curves = {
            name: [(int(p["step"]), p[key]) for p in at]
            for name, key in (("score/proxy", "proxy"), ("score/true", "true"), ("length/words", "words"))
        }
        fault = "over-optimisation" if own["beta"] < 0.01 else ""
        outcome = {
            "true": at[-1]["true"] - at[0]["true"],
            "words": at[-1]["words"],
            "words at the start": at[0]["words"],
        }
        yield {
            "name": f"{fault or 'healthy'}/tiny/{name}{number:02d}-rloo",
            "fault": fault,
            "settings": {"objective": "rloo", "beta": own["beta"]},
            "curves": curves,
            "outcome": outcome,
        }


def train_all(name: str = "") -> None:
    """Train and store a list: what is stored already is kept, so a cut run goes on."""
    torch.set_num_threads(1)
    stored: dict[str, Any] = {"seconds": 0, "runs": []}
    if STORED.is_file():
        stored = json.loads(gzip.decompress(STORED.read_bytes()))
    before, done = stored["seconds"], {own["name"] for own in stored["runs"]}

    def keep(made: Sequence[dict[str, Any]]) -> None:
        stored["runs"] += rounded(made, 4)
        stored["seconds"] = round(before + time.process_time())
        STORED.write_bytes(gzip.compress(json.dumps(stored, separators=(",", ":")).encode(), mtime=0))
        print(f"{len(stored['runs'])} runs, {stored['seconds']} seconds of one core", flush=True)

    waiting = [case for case in cases(name) if case.name not in done]
    for steps in sorted({case.steps for case in waiting}):
        own = [case for case in waiting if case.model == "tiny" and case.steps == steps]
        for start in range(0, len(own), TOGETHER):
            keep(list(train_tiny(own[start : start + TOGETHER])))
    for case in waiting:
        if case.model == "gpt2":
            keep([train_gpt2(case)])
    if not any(own.endswith("-rloo") and own.split("/")[2].startswith(name) for own in done):
        keep(list(train_over_optimised(name)))


def say_open() -> None:
    """What is missed and what is a false alarm in the runs on which rules are chosen. They alone are read."""
    runs = [own for own in labelled() if not own.held_back]
    for own in runs:
        said = found(own)
        missed = bool(own.fault) and own.took and own.fault not in said
        if missed or said - own.true():
            print(
                "missed " if missed else "       ", own.run.name, "false:", ", ".join(sorted(said - own.true())) or "-"
            )
    print(summary(runs))


def write_page() -> None:
    """The tables of docs/doctor.md."""
    before, _, rest = PAGE.read_text().partition(MARK)
    after = rest.partition(END)[2]
    write_atomically(PAGE, f"{before}{MARK}\n\n{page(labelled())}\n\n{END}{after}")


if __name__ == "__main__":
    {"train": train_all, "open": say_open, "page": write_page}[sys.argv[1]](*sys.argv[2:])

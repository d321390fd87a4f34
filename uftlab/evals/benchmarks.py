"""Measure one model of any size: benchmarks by lm-eval, length of answers, KL to a reference, implicit rewards, text.

The suites are in `uftlab.evals.suites`. Every measure keeps the value of each question, so that two runs can be
compared question by question. Its mean weighs a question by how many instructions or tokens it has, as lm-eval and
perplexity do; most weigh 1.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from scipy import stats
from transformers import PreTrainedTokenizerBase

from uftlab.errors import InputError
from uftlab.evals.doctor import diagnose
from uftlab.evals.drift import divergences, documents, own_answers
from uftlab.evals.outcomes import RESULT, SCHEMA, Measure, load_result
from uftlab.evals.run_logs import runs_of
from uftlab.evals.suites import (
    BENCHMARKS,
    SUITES,
    Settings,
    check_settings,
    local_file,
    prepare_ifeval,
    read_texts,
)
from uftlab.files import read_json, write_atomically
from uftlab.losses.rewards import implicit_reward
from uftlab.models.generation import texts
from uftlab.models.logps import read_logps
from uftlab.models.policies import load_policy
from uftlab.models.references import fingerprint
from uftlab.rows.sources import load_table
from uftlab.rows.table import as_scored
from uftlab.rows.tokens import Completion, Tokens
from uftlab.version import VERSION

ANSWERS = "answers.jsonl"
INERT = 0.2  # |reward| in nats below which sigma(reward) is within 0.05 of 1/2
PAPERS_BETA = 0.01
NOT_RECIPE = ("out", "seed", "save_every", "log_every", "log_to", "samples", "benchmarks")  # of a training
CONTEXT = 2048  # tokens, for models whose configuration does not say


# ------------------------------------------------------------------------------------------ a run


def evaluate(model: str, out: Path, settings: Settings, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure a model and write `eval.json` and `answers.jsonl` into a folder, again after each suite.

    A run that was cut goes on with the next suite, if weights and settings are those of what is there.

    Returns:
        What is in `eval.json`: model, digest of its weights, reference, method and seed of its training, what the
        doctor says of that training, settings, versions, seconds by suite, facts, and measures with the value of each
        question.

    Raises:
        InputError: before the model is loaded, for an unknown suite, a missing file, extra or setting; before anything
            is measured, for a folder with another result; afterwards, when model and questions do not fit each other.
    """
    run, known, sources = _ready(model, out, settings, say)
    device = run.model.device
    doctor = _diagnosed(run.training)
    result: dict[str, Any] = {}
    for suite in [name for name in SUITES if name in settings.suites and name not in run.seconds]:
        say(f"{suite} ...")
        started = time.perf_counter()
        run.measure(suite, sources.get(suite))
        run.seconds[suite] = round(time.perf_counter() - started, 1)
        result = {**known, "doctor": doctor, "versions": _versions(), "device": _device_name(device), **run.found()}
        if run.answers:
            lines = (json.dumps(answer, ensure_ascii=False) + "\n" for answer in run.answers)
            write_atomically(out / ANSWERS, "".join(lines))
        write_atomically(out / RESULT, json.dumps(result, indent=1, allow_nan=False))
    return result


def check(model: str, out: Path, settings: Settings, say: Callable[[str], None] = print) -> None:
    """All that `evaluate` does before it measures, for instance before the model is trained.

    Raises:
        InputError: for what `evaluate` would refuse.
    """
    _ready(model, out, settings, say)


def is_measured(out: Path, settings: Settings) -> bool:
    """Whether a folder has a finished run with these settings."""
    if not (out / RESULT).exists():
        return False
    stored = load_result(out)
    return stored["settings"] == _as_stored(settings) and set(settings.suites) <= set(stored["seconds"])


def _as_stored(settings: Settings) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(settings), default=str))


def _ready(
    model: str, out: Path, settings: Settings, say: Callable[[str], None]
) -> tuple[Run, dict[str, Any], dict[str, Path | None]]:
    """A run before its first suite, what identifies it, and the local files of its benchmarks."""
    check_settings(settings, out)
    sources = {suite: local_file(settings.data, suite) for suite in settings.suites if suite in BENCHMARKS}
    table = None if settings.rows is None else _table(settings, say)
    texts = read_texts(str(settings.text))[: settings.limit] if "perplexity" in settings.suites else []
    own = _training(model)
    policy, tokenizer = load_policy(model)
    if settings.chat_template and not tokenizer.chat_template:
        raise InputError("A model measured with a chat template", "have one", model, "Add --no-chat-template")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(_on(device, policy), tokenizer, settings, own, say, table, texts)
    known = {
        "schema": SCHEMA,
        "model": model,
        "weights": fingerprint(policy),
        "reference": settings.reference,
        "method": own.get("method"),
        "seed": own.get("seed"),
        "recipe": recipe_of(own),
        "settings": _as_stored(settings),
        "sources": {suite: str(path) for suite, path in sources.items() if path},
    }
    run.restore(out, known)
    run.prepare()
    return run, known, sources


def _table(settings: Settings, say: Callable[[str], None]) -> Dataset:
    """The rows of --rows with their scores."""
    table, line = load_table(str(settings.rows), purpose="feedback")
    say(f"rows: {line}")
    return as_scored(table.select(range(len(table))[: settings.limit]))


@dataclass
class Run:
    """One model while it is measured: what several suites share, and what was found."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    settings: Settings
    training: Mapping[str, Any]
    say: Callable[[str], None]
    table: Dataset | None = None
    texts: Sequence[str] = ()
    measures: list[Measure] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def restore(self, out: Path, known: Mapping[str, Any]) -> None:
        """Take over the finished suites of a run that was cut.

        Raises:
            InputError: when the folder has another run, or a finished one.
        """
        if not (out / RESULT).exists():
            return
        stored = load_result(out)
        same = all(stored.get(name) == value for name, value in known.items())
        if not same or set(self.settings.suites) <= set(stored["seconds"]):
            got = "a finished run" if same else "a run of other weights or settings"
            raise InputError(f"{out}", "be empty or have the start of this run", got, "Choose a new --out")
        self.measures, self.seconds, self.facts = stored["measures"], stored["seconds"], stored["facts"]
        if (out / ANSWERS).exists():
            lines = (out / ANSWERS).read_text(encoding="utf-8").split("\n")
            try:
                stored_answers = [json.loads(line) for line in lines if line]
                self.answers = [row for row in stored_answers if row["suite"] in self.seconds]
            except (ValueError, TypeError, KeyError) as error:
                remedy = "Choose a new --out"
                raise InputError(f"{out / ANSWERS}", "hold an answer in each line", error, remedy) from None
        self.say(f"goes on after {', '.join(self.seconds)}")

    def prepare(self) -> None:
        """Read all that the later suites need, so that nothing is refused after hours of work.

        Raises:
            InputError: for rows, texts or a reference that cannot be used.
        """
        if {"kl", "reward"} & set(self.settings.suites):
            _ = self.reference
        if self.settings.rows is not None:
            _ = self.rows
            if {"kl", "wordcount"} & set(self.settings.suites):
                self._check_room()

    def _check_room(self) -> None:
        longest, most = max(map(len, self.prompts)), self.settings.max_new_tokens
        if longest + most > self.context:
            rule = f"fit the context of the model, {self.context} tokens"
            got = f"{longest} and {most} tokens"
            raise InputError("The longest prompt and its answer", rule, got, "Lower --max-new-tokens")

    def measure(self, suite: str, source: Path | None = None) -> None:
        """Measure one suite, a benchmark from the local file `source` if there is one."""
        if suite in BENCHMARKS:
            for template in self.templates:
                self._benchmark(suite, source, template)
        else:
            {"wordcount": self._lengths, "perplexity": self._text, "kl": self._kl, "reward": self._reward}[suite]()

    def found(self) -> dict[str, Any]:
        """What was found so far, for a file."""
        measures = [{**asdict(measure), "mean": measure.mean} for measure in self.measures]
        return {"seconds": self.seconds, "facts": self.facts, "measures": measures}

    @property
    def templates(self) -> tuple[bool, ...]:
        """Without the chat template, as the paper; with it; or both."""
        chosen = self.settings.chat_template
        if chosen is None:
            return (False, True) if self.tokenizer.chat_template else (False,)
        return (chosen,)

    # ------------------------------------------------------------------------------ what suites share

    @cached_property
    def harness(self) -> Any:
        """The model as lm-eval wants it."""
        from uftlab.evals.harness import Harness

        return Harness(self.model, self.tokenizer, self.settings.batch)

    @property
    def context(self) -> int:
        """How many tokens the model can read."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or CONTEXT)

    @cached_property
    def reference(self) -> Any:
        """The reference on the same device."""
        reference, tokenizer = load_policy(str(self.settings.reference))
        if tokenizer.get_vocab() != self.tokenizer.get_vocab():
            remedy = "Name the model that the policy was trained from"
            raise InputError("--reference", "have the vocabulary of the model", self.settings.reference, remedy)
        return _on(self.model.device, reference)

    @cached_property
    def rows(self) -> list[Completion]:
        """The completions of --rows with their scores."""
        assert self.table is not None  # `_check` has asked for --rows
        return [c for (c,) in Tokens(self.tokenizer).examples(self.table, self.context)]

    @cached_property
    def prompts(self) -> list[tuple[int, ...]]:
        """The distinct prompts of --rows."""
        return list(dict.fromkeys(c.prompt_ids for c in self.rows))

    def keep(
        self,
        name: str,
        template: bool | None,
        ids: Iterable[str],
        values: Iterable[float],
        weights: Iterable[float] | None = None,
    ) -> None:
        """Keep a measure.

        Raises:
            InputError: for a value that is no finite number.
        """
        pairs = list(zip(values, weights or itertools.repeat(1.0), strict=False))
        questions = dict(zip(ids, pairs, strict=True))
        bad = [question for question, (value, _) in questions.items() if not math.isfinite(value)]
        if bad:
            remedy = "Look at the training of the model"
            raise InputError(f"{name} of question {bad[0]}", "be a finite number", questions[bad[0]][0], remedy)
        self.measures.append(Measure(name, template, questions))

    # ------------------------------------------------------------------------------ suites

    def _benchmark(self, suite: str, source: Path | None, template: bool) -> None:
        from uftlab.evals import harness as library

        benchmark = BENCHMARKS[suite]
        local = {task: {benchmark.split: source} for task in benchmark.tasks} if source else None
        if suite == "ifeval":
            prepare_ifeval(self.settings.data)
        before = self.harness.cut
        found = library.run(
            self.harness,
            suite,
            benchmark.folder,
            benchmark.tasks,
            shots=benchmark.shots,
            local=local,
            chat_template=template,
            limit=self.settings.limit,
            max_new_tokens=self.settings.max_new_tokens if suite == "ifeval" else None,
            seed=self.settings.seed,
        )
        if self.harness.cut > before:
            self.facts[f"{suite}: prompts cut from the left"] = self.harness.cut - before
        merged: dict[str, dict[str, list[float]]] = {}
        for key, questions in library.values_of(found["samples"]).items():
            task, metric = key.split("/", 1)
            name = task.removeprefix(f"{suite}_") if len(benchmark.tasks) > 1 else metric
            merged.setdefault(name, {}).update(questions)
        for name, questions in merged.items():
            values, weights = zip(*questions.values(), strict=True)
            self.keep(f"{suite}/{name}", template, questions, values, weights)
        if suite == "ifeval":
            self._keep_answers(found["samples"]["ifeval"], template)

    def _keep_answers(self, samples: Sequence[Mapping[str, Any]], template: bool) -> None:
        for sample, question in zip(samples, self.measures[-1].questions, strict=True):
            tokens, ended = self.harness.answers[sample["arguments"][0][0]]
            (answer,) = sample["filtered_resps"]
            self._keep_answer("ifeval", template, question, sample["doc"]["prompt"], answer, tokens, ended)

    def _keep_answer(
        self, suite: str, template: bool | None, question: str, prompt: str, answer: str, tokens: int, ended: bool
    ) -> None:
        row = {"suite": suite, "template": template, "question": question, "prompt": prompt, "answer": answer}
        self.answers.append({**row, "tokens": tokens, "ended": ended})

    def _lengths(self) -> None:
        """Of the answers to the prompts of --rows; without rows, of those to IFEval."""
        if self.settings.rows is not None:
            limit, batch = self.settings.max_new_tokens, self.settings.batch
            said = own_answers(self.model, self.tokenizer, self.prompts, limit, batch)
            for own, text in zip(said, texts(self.tokenizer, [c.completion_ids for c in said]), strict=True):
                ended = own.completion_ids[-1] == self.tokenizer.eos_token_id
                prompt = str(self.tokenizer.decode(list(own.prompt_ids)))
                question = _digest(prompt)
                self._keep_answer("wordcount", None, question, prompt, text, len(own.completion_ids), ended)
        wanted = "ifeval" if self.settings.rows is None else "wordcount"
        for template in dict.fromkeys(answer["template"] for answer in self.answers if answer["suite"] == wanted):
            measured = [a for a in self.answers if a["suite"] == wanted and a["template"] == template]
            ids = [a["question"] for a in measured]
            self.keep("wordcount/words", template, ids, [float(len(a["answer"].split())) for a in measured])
            self.keep("wordcount/characters", template, ids, [float(len(a["answer"])) for a in measured])
            self.keep("wordcount/tokens", template, ids, [float(a["tokens"]) for a in measured])
            self.keep("wordcount/ended", template, ids, [float(a["ended"]) for a in measured])

    def _text(self) -> None:
        windows = documents(self.tokenizer, self.texts, self.context)
        logps = iter(read_logps(self.model, [w for own in windows for w in own]).tolist())
        nats = [-math.fsum(next(logps) for _ in own) for own in windows]
        for unit, sizes in (
            ("token", [float(sum(len(w.completion_ids) for w in own)) for own in windows]),
            ("byte", [float(len(text.encode())) for text in self.texts]),
        ):
            means = [n / size for n, size in zip(nats, sizes, strict=True)]
            self.keep(f"perplexity/nats-per-{unit}", None, map(_digest, self.texts), means, sizes)

    def _kl(self) -> None:
        """Both ways, each on samples of its first model: exact for each token, sampled over what stands before it."""
        ids = [_digest(str(prompt)) for prompt in self.prompts]
        for way, first, second in (
            ("forward", self.reference, self.model),
            ("reverse", self.model, self.reference),
        ):
            limit, batch, seed = self.settings.max_new_tokens, self.settings.batch, self.settings.seed
            said = own_answers(first, self.tokenizer, self.prompts, limit, batch, seed)
            sums = divergences(first, second, said).tolist()
            sizes = [float(len(c.completion_ids)) for c in said]
            self.keep(f"kl/{way}", None, ids, [s / n for s, n in zip(sums, sizes, strict=True)], sizes)

    def _reward(self) -> None:
        """The implicit reward of every completion, and whether it moves at all."""
        beta = self.settings.beta
        if beta is None:
            beta, where = _beta_of(self.training), "of its training"
            if beta is None:
                beta, where = PAPERS_BETA, "the paper's, as the model names none"
            self.say(f"beta {beta:g}, {where}")
        policy, reference = (read_logps(m, self.rows) for m in (self.model, self.reference))
        rewards = implicit_reward(policy, reference, beta)
        scores = [c.score for c in self.rows]
        self.keep("reward/implicit", None, _unique(c.key().hex()[:12] for c in self.rows), rewards.tolist())
        rank = (
            stats.spearmanr(rewards.tolist(), scores).statistic if len(set(scores)) > 1 and rewards.std() > 0 else None
        )
        self.facts["reward"] = {
            "beta": beta,
            "rows": len(self.rows),
            "spread": rewards.std(correction=0).item(),
            "low": rewards.quantile(0.05).item(),
            "high": rewards.quantile(0.95).item(),
            "inert": (rewards.abs() < INERT).float().mean().item(),
            "rank correlation with the score": None if rank is None else float(rank),
        }


# ------------------------------------------------------------------------------------------ its training, and this run


def _training(model: str) -> dict[str, Any]:
    """What `uftlab train` wrote beside a checkpoint; nothing for another model."""
    try:
        found = read_json((Path(model) / "training.json").read_bytes(), nan=True)
    except (OSError, ValueError):
        return {}
    kinds: dict[str, type] = {"method": str, "seed": int, "config": dict, "stages": list}
    return {n: v for n, v in found.items() if isinstance(v, kinds.get(n, object))} if isinstance(found, dict) else {}


def _diagnosed(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the doctor says of each stage; nothing for a `training.json` that another tool wrote."""
    try:
        return [diagnose(run).asdict() for run in runs_of("training.json", training)]
    except InputError:
        return []


def recipe_of(training: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a training except its seed. Runs with equal recipes are seeds of one method.

    It is what the run was told. What came of it, such as a beta in place of one in nats, may differ from seed to seed.
    """
    if told := training.get("config"):
        return {name: value for name, value in told.items() if name not in NOT_RECIPE}
    kept = {name: training[name] for name in ("method", "model", "steps", "batch", "lora") if name in training}
    told = training.get("stages", ())
    stages = [stage for stage in told if isinstance(stage, dict)] if isinstance(told, list) else []
    if stages:
        kept["stages"] = [{name: s[name] for name in ("objective", "settings", "steps") if name in s} for s in stages]
    return kept


def _beta_of(training: Mapping[str, Any]) -> float | None:
    """Beta of the last stage that has one."""
    settings = [stage.get("settings") for stage in training.get("stages", ()) if isinstance(stage, dict)]
    betas = [own["beta"] for own in settings if isinstance(own, dict) and isinstance(own.get("beta"), int | float)]
    return float(betas[-1]) if betas else None


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _unique(names: Iterable[str]) -> list[str]:
    """The names, numbered from the second time on."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}:{seen[name]}")
    return found


def _on(device: torch.device, model: Any) -> Any:
    return model.to(device).eval()


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "peft", "datasets", "lm_eval", "nltk", "langdetect")
    found = {name: version(name) for name in names if find_spec(name)}
    return {"python": platform.python_version(), "uftlab": VERSION, **found}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"

"""Benchmarks through the library lm-eval. Only this module imports it, so only `uftlab eval` needs the extra `real`.

Two things are added to lm-eval's model class, and neither changes a result: what all prompts begin with (the worked
examples of TruthfulQA) is read once, and the number of tokens of each answer is kept.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import lm_eval
import lm_eval.tasks
import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from uftlab.errors import InputError
from uftlab.models.policies import evaluation_mode

TASKS = Path(lm_eval.tasks.__file__).parent
WORTH_SHARING = 16  # fewest common tokens that are read once
SPLITS_SENTENCES = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}  # need punkt


class Harness(HFLM):
    """lm-eval's class for a model in memory.

    `answers` has the number of tokens (the end token included) of each generated answer, and whether it ended by
    itself, by prompt. `cut` counts the prompts that were cut from the left because they did not fit the context.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, batch: int) -> None:
        with _quiet():  # it warns of every model in memory
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch)  # type: ignore[arg-type]
        self.answers: dict[str, tuple[int, bool]] = {}
        self.cut = 0
        self._made: dict[tuple[int, ...], tuple[int, bool]] = {}
        self._common: list[int] = []
        self._read: DynamicCache | None = None
        bare = model.get_base_model() if hasattr(model, "get_base_model") else model  # without its adapters
        taken = inspect.signature(type(bare).forward).parameters  # transformers 5.24 gave the cache another name
        self._cache_name = "cache" if "cache" in taken else "past_key_values"

    # ------------------------------------------------------------------------------ log-probabilities

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            remedy = "Choose a model with a longer context"
            raise InputError("The context of the model", f"hold an answer of {longest} tokens", self.max_length, remedy)
        self.cut += sum(len(context) + len(answer) > self.max_length + 1 for _, context, answer in requests)
        self._share([context for _, context, _ in requests])
        try:
            found = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        finally:
            self._common, self._read = [], None
        if not all(math.isfinite(logp) for logp, _ in found):
            remedy = "Look at its training: with such weights lm-eval would count the first choice as right"
            raise InputError("The model", "give finite log-probabilities", "NaN or infinity", remedy)
        return found

    def _share(self, contexts: Sequence[list[int]]) -> None:
        """Read what all contexts begin with. The last token of a context stays, because it predicts the answer."""
        if not contexts:
            return
        ends = zip(min(contexts), max(contexts), strict=False)  # what these two begin with, all begin with
        common = [a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], ends)]
        common = common[: min(map(len, contexts)) - 1]
        if not WORTH_SHARING <= len(common) < self.max_length:
            return
        with torch.no_grad():
            read = self.model(torch.tensor([common], device=self.device), use_cache=True, logits_to_keep=1)
        if type(read.past_key_values) is DynamicCache:  # others, as of recurrent models, cannot be repeated
            self._common, self._read = common, read.past_key_values

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits of a batch, without the columns of the common beginning. lm-eval counts columns from the right."""
        size = len(self._common)
        if self._read is None or not (inps[:, :size] == torch.tensor(self._common, device=inps.device)).all():
            return super()._model_call(inps, attn_mask, labels)
        cache = copy.deepcopy(self._read)
        cache.batch_repeat_interleave(len(inps))
        with torch.no_grad():
            return self.model(inps[:, size:], **{self._cache_name: cache}, use_cache=True).logits

    # ------------------------------------------------------------------------------ answers

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """The answers, as lm-eval gives them. Their lengths are in `answers`."""
        texts = super().generate_until(requests, disable_tqdm)
        for request in requests:
            prompt, options = request.args
            room = self.max_length - int(options.get("max_gen_toks", self.max_gen_toks))
            ids = self.tok_batch_encode([prompt], left_truncate_len=room)[0][0].tolist()
            self.cut += len(self.tok_encode(prompt)) > room
            self.answers[prompt] = self._made[tuple(ids)]
        return texts

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        made = super()._model_generate(context, max_length, stop, **options)
        ends = self._ends()
        kept = options["attention_mask"].bool()
        for ids, mask, row in zip(context, kept, made[:, context.shape[1] :].tolist(), strict=True):
            last = next((number for number, token in enumerate(row, start=1) if token in ends), None)
            self._made[tuple(ids[mask].tolist())] = (last or len(row), last is not None)
        return made

    def _ends(self) -> set[int]:
        configured = self.model.generation_config.eos_token_id
        listed = configured if isinstance(configured, list) else [configured]
        return {token for token in (*listed, self.tokenizer.eos_token_id) if token is not None}


def run(
    harness: Harness,
    suite: str,
    folder: str,
    tasks: Sequence[str],
    *,
    shots: int | None = None,
    local: Mapping[str, Mapping[str, Path]] | None = None,
    chat_template: bool = False,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What `lm_eval.simple_evaluate` gives for some tasks, with all samples and without its bootstrap.

    Args:
        folder: where lm-eval keeps the YAML files of the tasks, below its folder `tasks`. Reading all of them would
            take twenty seconds.
        local: task -> split -> JSONL file, for questions on this disk instead of the hub's.
        max_new_tokens: most tokens of an answer; None: what the task says.

    Raises:
        InputError: when questions or a package that they need cannot be had, or nothing fits the context.
    """
    with TemporaryDirectory(prefix="uftlab-") as own, _quiet(), evaluation_mode(harness.model):
        for task, files in (local or {}).items():
            (source,) = (TASKS / folder).rglob(f"{task}.yaml")
            _write_task(Path(own) / f"{task}.yaml", source, task, files)
        manager = TaskManager(include_path=own if local else TASKS / folder, include_defaults=False)
        loaded = _load(manager, suite, tasks)
        _check_lengths(harness, loaded, max_new_tokens)
        _check_punkt(loaded, limit)
        made = lm_eval.simple_evaluate(
            harness,
            tasks=list(loaded),
            num_fewshot=shots,
            limit=limit,
            bootstrap_iters=0,
            task_manager=manager,
            apply_chat_template=chat_template,
            gen_kwargs=None if max_new_tokens is None else {"max_gen_toks": max_new_tokens},
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
        )
    assert made is not None  # None is for the other processes of a distributed run
    return dict(made)


def _write_task(path: Path, source: Path, task: str, files: Mapping[str, Path]) -> None:
    """lm-eval's own task with other files. JSON text is YAML too, so that no path needs escapes of its own."""
    data_files = {split: str(file.resolve()) for split, file in files.items()}
    values = {"include": str(source), "task": task, "dataset_path": "json", "dataset_name": None}
    lines = {**values, "dataset_kwargs": {"data_files": data_files}}
    path.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in lines.items()), encoding="utf-8")


def _load(manager: TaskManager, suite: str, tasks: Sequence[str]) -> list[Any]:
    """The tasks with their questions."""
    try:
        return list(manager.load(list(tasks))["tasks"].values())
    except ImportError as error:
        remedy = f"Install {error.name or 'it'}"
        raise InputError(f"What {suite} needs", "be installed", f"none of {error.name or error}", remedy) from None
    except (OSError, ValueError) as error:  # no network, unknown or gated data set, no such split
        reason = str(error).strip().splitlines()[0]
        remedy = "Go online once, or give a folder with --data"
        raise InputError(f"The questions of {suite}", "be on this disk or on the hub", reason, remedy) from None


def _check_lengths(harness: Harness, tasks: Sequence[Any], max_new_tokens: int | None) -> None:
    """Refuses answers that leave no room for a prompt: lm-eval stops at an assertion there."""
    for task in tasks:
        if task.OUTPUT_TYPE == "generate_until":
            most = max_new_tokens or int(task.config.generation_kwargs.get("max_gen_toks", harness.max_gen_toks))
            if most >= harness.max_length:
                rule = f"be below the context of the model, {harness.max_length} tokens"
                raise InputError("The longest answer", rule, most, "Lower --max-new-tokens")


def _check_punkt(tasks: Sequence[Any], limit: int | None) -> None:
    """Refuses questions about sentences without the tables that split them, before anything is generated."""
    import nltk

    for task in tasks:
        rows = itertools.islice(task.eval_docs, limit)
        if not any(SPLITS_SENTENCES & set(row.get("instruction_id_list", ())) for row in rows):
            continue
        try:
            nltk.data.find("tokenizers/punkt_tab/english/")
        except LookupError:
            remedy = "Run `python -m nltk.downloader punkt_tab`, or put punkt_tab_english into the folder of --data"
            got = "no such table in the folders of nltk"
            raise InputError("The table punkt_tab, which counts sentences,", "be there", got, remedy) from None


def values_of(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, list[float]]]:
    """From lm-eval's samples: `task/metric` -> question -> [value, weight].

    A question is named by its task and the digest of its content. The value of a question with several instructions is
    their mean, its weight their number. So the mean with these weights is what lm-eval reports.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for task, rows in samples.items():
        seen: Counter[str] = Counter()
        for row in rows:
            name = f"{task}:{row['doc_hash'][:12]}"
            seen[f"{name} {row['filter']}"] += 1
            if (again := seen[f"{name} {row['filter']}"]) > 1:  # a benchmark may ask a question twice
                name += f":{again}"
            for metric in row["metrics"]:
                values = row[metric] if isinstance(row[metric], list | tuple) else [row[metric]]
                if not values or not all(isinstance(value, bool | int | float | np.number) for value in values):
                    continue  # what only a whole benchmark has, such as BLEU
                label = metric if row["filter"] == "none" else f"{metric} ({row['filter']})"
                value = math.fsum(map(float, values)) / len(values)
                found.setdefault(f"{task}/{label}", {})[name] = [value, float(len(values))]
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's log and the progress bars of `datasets` off within: they hide what the user should read."""
    log, bars = logging.getLogger("lm_eval"), datasets.are_progress_bars_disabled()
    level = log.level
    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()

"""The suites that `uftlab eval` knows, what each needs, and where its questions and texts come from.

| suite | needs | measures |
|---|---|---|
| ifeval | | instructions followed, strict and loose, by prompt and by instruction (lm-eval's `ifeval`) |
| truthfulqa | | mc1: the true answer is the likeliest; mc2: probability of all true answers (lm-eval) |
| bbh gpqa mmlu-pro musr math-hard | | the other tasks of the Open LLM Leaderboard 2, as the UFT paper ran them |
| gsm8k winogrande arc hellaswag mmlu | | the other tasks of the first leaderboard, with its numbers of shots |
| wordcount | rows or ifeval | words, characters, tokens of greedy answers, and the share that ended by itself |
| perplexity | text | nats per token and per byte |
| kl | rows, reference | forward KL(reference to policy) on samples of the reference, reverse on the policy's own |
| reward | rows, reference | beta (log pi - log pi_ref) of the completions: is the implicit reward inert? |
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from uftlab.errors import InputError
from uftlab.rows.sources import ENDINGS, read_rows, rows_of


@dataclass(frozen=True)
class Benchmark:
    """Tasks of lm-eval that make one suite.

    `folder` is where lm-eval keeps them, `shots` the number of worked examples (None: what the task says), `split` and
    `columns` what a local file replaces and must have.
    """

    folder: str
    tasks: tuple[str, ...]
    shots: int | None = None
    split: str = ""
    columns: tuple[str, ...] = ()


BENCHMARKS = {
    "ifeval": Benchmark("ifeval", ("ifeval",), None, "train", ("key", "prompt", "instruction_id_list", "kwargs")),
    "truthfulqa": Benchmark(
        "truthfulqa",
        ("truthfulqa_mc1", "truthfulqa_mc2"),
        None,
        "validation",
        ("question", "mc1_targets", "mc2_targets"),
    ),
    "bbh": Benchmark("leaderboard/bbh_mc", ("leaderboard_bbh",)),
    "gpqa": Benchmark("leaderboard/gpqa", ("leaderboard_gpqa",)),
    "mmlu-pro": Benchmark("leaderboard/mmlu_pro", ("leaderboard_mmlu_pro",)),
    "musr": Benchmark("leaderboard/musr", ("leaderboard_musr",)),
    "math-hard": Benchmark("leaderboard/math", ("leaderboard_math_hard",)),
    "gsm8k": Benchmark("gsm8k", ("gsm8k",), 5),
    "winogrande": Benchmark("winogrande", ("winogrande",), 5),
    "arc": Benchmark("arc", ("arc_challenge",), 25),
    "hellaswag": Benchmark("hellaswag", ("hellaswag",), 10),
    "mmlu": Benchmark("mmlu", ("mmlu",), 5),
}
OTHERS = ("wordcount", "perplexity", "kl", "reward")
SUITES = (*BENCHMARKS, *OTHERS)


@dataclass(frozen=True)
class Settings:
    """What is measured, and how. Two runs can be compared if these agree where they decide the numbers.

    Args:
        chat_template: with or without the model's chat template; None: both if it has one. Of benchmarks only: rows are
            always written as in training.
        limit: the first questions, rows and texts alone; None: all.
        rows, text: any source that `uftlab.rows.sources` reads; a text may also be a plain file.
        beta: of the implicit reward; None: what the model was trained with, else the paper's 0.01.
        seed: of samples for KL, and of lm-eval.
    """

    suites: tuple[str, ...] = ("ifeval", "truthfulqa")
    reference: str | None = None
    data: Path | None = None
    rows: str | Path | None = None
    text: str | Path | None = None
    beta: float | None = None
    chat_template: bool | None = None
    limit: int | None = None
    batch: int = 8
    max_new_tokens: int = 1280
    seed: int = 0


def check_settings(settings: Settings, out: Path) -> None:
    """Refuses what can be refused before a model is loaded.

    Raises:
        InputError: for an unknown suite, one that lacks an option, and folders that cannot be used.
    """
    unknown = [suite for suite in settings.suites if suite not in SUITES]
    if unknown or not settings.suites:
        raise InputError("--suite", f"be among {', '.join(SUITES)}", ", ".join(unknown) or "nothing", "Check the name")
    for parent in (out, *out.parents):
        if parent.exists() and not parent.is_dir():
            raise InputError("The output folder", "not lie below a regular file", parent, "Choose another --out")
    needs = {"kl": ("rows", "reference"), "reward": ("rows", "reference"), "perplexity": ("text",)}
    for suite in settings.suites:
        for option in needs.get(suite, ()):
            if getattr(settings, option) is None:
                raise InputError(f"The suite {suite}", f"have --{option}", "none", f"Add --{option}")
    if "wordcount" in settings.suites and settings.rows is None and "ifeval" not in settings.suites:
        raise InputError("The suite wordcount", "have --rows, or ifeval in --suite", "neither", "Add one of them")
    if settings.data is not None and not settings.data.is_dir():
        raise InputError("--data", "be a folder", settings.data, "Check the path")
    if any(suite in BENCHMARKS for suite in settings.suites):
        check_installed()


def check_installed() -> None:
    """Refuses benchmarks where lm-eval is not installed.

    Raises:
        InputError: naming the extra that brings it.
    """
    missing = [name for name in ("lm_eval", "langdetect", "nltk", "immutabledict") if find_spec(name) is None]
    if missing:
        remedy = 'Install the extra: pip install "uftlab[real]"'
        raise InputError("Benchmarks", "have lm-eval and what IFEval needs", f"no {', '.join(missing)}", remedy)


def local_file(data: Path | None, suite: str) -> Path | None:
    """The JSONL file of a suite in the data folder: `FOLDER/SUITE/*.jsonl`, the longest if there are several."""
    benchmark = BENCHMARKS[suite]
    if data is None or not benchmark.split or not (data / suite).is_dir():
        return None
    files = sorted((data / suite).glob("*.jsonl"))
    if not files:
        raise InputError(f"{data / suite}", "contain a .jsonl file", "none", "Put the questions there")
    read = {path: read_rows(path) for path in files}
    chosen = max(files, key=lambda path: len(read[path]))
    for number, row in enumerate(read[chosen], start=1):
        if not isinstance(row, dict) or not set(benchmark.columns) <= set(row):
            got = sorted(row) if isinstance(row, dict) else type(row).__name__
            what = f"{chosen}, question {number},"
            raise InputError(what, f"have {', '.join(benchmark.columns)}", got, "Use the columns of the hub's data set")
    if not read[chosen]:
        raise InputError(f"{chosen}", "contain at least one question", "none", "Fill it")
    return chosen


def prepare_ifeval(data: Path | None) -> None:
    """Before lm-eval's verifiers are imported: where the sentence splitter's tables are, and no random languages."""
    import langdetect
    import nltk

    langdetect.DetectorFactory.seed = 0
    folder = str((data / "punkt_tab_english").resolve()) if data else ""
    if folder and Path(folder).is_dir() and folder not in nltk.data.path:
        nltk.data.path.insert(0, folder)


def read_texts(source: str | Path) -> list[str]:
    """The documents of a source: rows with a column `text`, or paragraphs between empty lines of a plain text file.

    Raises:
        InputError: for a row without `text`, or a source without any.
    """
    path = Path(source)
    if path.is_file() and not path.name.endswith(ENDINGS):
        try:
            content = path.read_bytes().decode()
        except UnicodeDecodeError:
            raise InputError(f"{path}", "be written in UTF-8", "other bytes", "Save it as UTF-8") from None
        found = [part.strip() for part in content.replace("\r\n", "\n").split("\n\n") if part.strip()]
    else:
        rows, source = rows_of(source)
        found = []
        for number, row in enumerate(rows, start=1):
            text = row.get("text") if isinstance(row, dict) else None
            if not isinstance(text, str) or not text.strip():
                remedy = 'Write {"text": "..."} in each line'
                raise InputError(f"{source}, row {number},", "have text in column 'text'", repr(row)[:60], remedy)
            found.append(text)
    if not found:
        raise InputError(f"{source}", "contain text", "none", "Check the file")
    return list(dict.fromkeys(found))  # a document that comes twice says nothing new

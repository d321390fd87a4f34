"""Tables of training data: everything that a model can learn from is a row with a prompt and a completion.

| kind          | columns                                                                  |
|---------------|--------------------------------------------------------------------------|
| demonstration | prompt, completion                                                       |
| preference    | prompt, chosen, rejected (+ chosen_score, rejected_score when known)     |
| label         | prompt, completion, label (bool)                                         |
| scored        | prompt, completion, score in [0, 1]                                      |

Prompts and completions are strings or chat messages `[{"role", "content"}]`. A completion is one answer of the
assistant, and nothing else is trained on. Earlier turns belong to the prompt. `as_scored` converts every kind into
scored rows. This conversion is the idea of UFT (arXiv 2410.21438): a demonstration is feedback with score 1.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from uftlab.errors import InputError
from uftlab.rows.kinds import KINDS, Rows, as_messages, kind_of, rows_from, table_of, validate
from uftlab.rows.sources import load_file


def load_rows(path: str | Path) -> Dataset:
    """Read a JSONL or Parquet file into a validated table. Errors name the file and the row.

    Layouts of other tools are read too, see `uftlab.rows.layouts`. Then a line says what was understood.
    `uftlab.rows.sources.load_table` reads folders and hub data sets as well, and has options.

    Raises:
        InputError: for a missing file, another format, a line that is no JSON object, or a row that breaks a rule.
    """
    return load_file(path)


def from_rows(rows: list[Any] | Rows, source: str = "rows") -> Dataset:
    """A validated table from Python rows. `source` names them in errors.

    Each column of the table has one type. Labels become bool and scores become float. If some prompts are text and some
    are messages, all become messages; the same holds for completions. Other columns stay as they are. They are left
    out if the table cannot hold them, for instance numbers mixed with text.
    """
    kind, columns = "", set[str]()
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number},"
        if not isinstance(row, dict):
            raise InputError(where, "be an object with named columns", repr(row)[:60], "Write {column: value, ...}")
        kind, columns = kind or kind_of(row, where), columns or set(row)
        validate(row, kind, columns, where)
    if not kind:
        raise InputError(source, "contain at least one row", "none", "Add rows")
    return table_of(rows, kind)


def validated(table: Dataset, source: str = "table") -> Dataset:
    """The same table after a check of every row."""
    return from_rows(Rows(partial(rows_from, table)), source)


# ------------------------------------------------------------------------------ benchmarks in a table


def overlap(prompts: Iterable[str | list[dict]], benchmark: Iterable[str]) -> list[str]:
    """The prompts of a benchmark that are among the prompts of a table, in the order of the benchmark.

    Some training data hold benchmark questions: UltraFeedback holds prompts of TruthfulQA. Two prompts are equal if
    they differ only in case, punctuation and spaces. Of a conversation, each turn of the user is compared.

    >>> overlap(["What is  it?", "Who?"], ["what is it", "where"])
    ['what is it']
    """
    asked = {question: _normalised(question) for question in benchmark}
    turns = (m["content"] for prompt in prompts for m in as_messages(prompt, "user") if m["role"] == "user")
    seen = (set(asked.values()) - {""}).intersection(map(_normalised, turns))
    return [question for question, own in asked.items() if own in seen]


def _normalised(text: str) -> str:
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


# -------------------------------------------------------------------- from one kind to another


def as_scored(table: Dataset) -> Dataset:
    """Any table as scored rows: the conversion of UFT (arXiv 2410.21438, section 3.3).

    A demonstration gets score 1. A pair becomes two rows with their own scores, or with 1 and 0 if it has none. A
    label becomes 1 or 0.

    >>> as_scored(from_rows([{"prompt": "a", "completion": "b"}]))[0]
    {'prompt': 'a', 'completion': 'b', 'score': 1.0}
    """
    kind = kind_of(table.column_names)
    if kind == "scored":
        return table.select_columns(["prompt", "completion", "score"])
    return table_of(_scored(table, kind), "scored")


def _scored(table: Dataset, kind: str) -> Iterator[dict[str, Any]]:
    for row in rows_from(table):
        if kind == "preference":
            for side, without in (("chosen", 1.0), ("rejected", 0.0)):
                known = row.get(f"{side}_score")
                score = without if known is None else float(known)
                yield {"prompt": row["prompt"], "completion": row[side], "score": score}
        else:
            yield {"prompt": row["prompt"], "completion": row["completion"], "score": float(row.get("label", 1.0))}


def as_labels(table: Dataset, threshold: float = 0.5) -> Dataset:
    """Any table as rows labelled good or bad. Demonstrations and chosen completions are good, rejected ones bad.

    A scored row is good if its score is at least `threshold`. Other kinds ignore the threshold.
    """
    kind = kind_of(table.column_names)
    if kind == "label":
        return table.select_columns(["prompt", "completion", "label"])
    if kind == "preference":
        table = table.select_columns(["prompt", "chosen", "rejected"])
    rows = (
        {"prompt": row["prompt"], "completion": row["completion"], "label": row["score"] >= threshold}
        for row in rows_from(as_scored(table))
    )
    return table_of(rows, "label")


def convert(table: Dataset, kind: str) -> Dataset:
    """The table as the given kind. Every kind can be converted to scored and label rows only.

    Raises:
        InputError: when the table cannot become this kind. The message names the columns that the kind needs.
    """
    have = kind_of(table.column_names)
    if kind == "scored":
        return as_scored(table)
    if kind == "label":
        return as_labels(table)
    if have == kind:
        return table
    remedy = f"Use a method that learns from {have} rows, see `uftlab methods`"
    raise InputError(f"A table for {kind} learning", f"have {sorted(KINDS[kind])}", f"a {have} table", remedy)

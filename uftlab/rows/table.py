"""The one table: everything a model can learn from is a row with a prompt, a completion and a score.

| kind          | columns                                                                  |
|---------------|--------------------------------------------------------------------------|
| demonstration | prompt, completion                                                       |
| preference    | prompt, chosen, rejected (+ chosen_score, rejected_score when known)     |
| label         | prompt, completion, label (bool)                                         |
| scored        | prompt, completion, score in [0, 1]                                      |

Prompts and completions are strings or chat messages `[{"role", "content"}]`. `as_scored` turns every kind
into scored rows; that function *is* UFT (arXiv 2410.21438): a demonstration is feedback with score 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from uftlab.errors import InputError

KINDS = {
    "preference": {"prompt", "chosen", "rejected"},
    "label": {"prompt", "completion", "label"},
    "scored": {"prompt", "completion", "score"},
    "demonstration": {"prompt", "completion"},
}
TEXT_COLUMNS = ("prompt", "completion", "chosen", "rejected")
SCORE_COLUMNS = ("score", "chosen_score", "rejected_score")


def kind_of(columns: Iterable[str], what: str = "A table") -> str:
    """The kind of a table, from its columns; the most specific one that fits. `what` names it in the refusal."""
    present = set(columns)
    for kind, needed in KINDS.items():
        if needed <= present:
            return kind
    rule = "have the columns of one kind: " + "; ".join(f"{k} ({', '.join(sorted(c))})" for k, c in KINDS.items())
    raise InputError(what, rule, sorted(present), "Rename the columns")


def load_rows(path: str | Path) -> Dataset:
    """Read a JSONL or Parquet file into a validated table; errors name the file and the row.

    Raises:
        InputError: for a missing file, another format, a malformed line or a row that breaks a rule.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("A data file", "exist", path, "Check the path")
    if path.suffix == ".parquet":
        return from_rows(load_dataset("parquet", data_files=str(path), split="train").to_list(), str(path))
    if path.suffix not in (".jsonl", ".json"):
        raise InputError("A data file", "end in .jsonl or .parquet", path.name, "Convert it")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            what, remedy = f"{path}, line {number},", "Write one JSON object per line"
            raise InputError(what, "be valid JSON", f"{line[:60]!r} ({error.msg})", remedy) from None
    return from_rows(rows, str(path))


def from_rows(rows: list[Any], source: str = "rows") -> Dataset:
    """A validated table from Python rows; `source` names them in errors."""
    if not rows:
        raise InputError(source, "contain at least one row", "none", "Add rows")
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number},"
        if not isinstance(row, dict):
            raise InputError(where, "be an object with named columns", repr(row)[:60], "Write {column: value, ...}")
        if number == 1:
            kind_of(row, where)
        _validate(row, set(rows[0]), where)
    return Dataset.from_list(rows)


def validated(table: Dataset, source: str = "table") -> Dataset:
    """The same table, after every row has been checked."""
    return from_rows(table.to_list(), source)


def _validate(row: dict[str, Any], columns: set[str], where: str) -> None:
    if set(row) != columns:
        difference = sorted(set(row) ^ columns)
        raise InputError(where, "have the columns of the first row", f"a difference in {difference}", "Fill them in")
    for column in TEXT_COLUMNS:
        if column in row:
            _validate_text(row[column], f"{where} column {column!r}")
    for column in SCORE_COLUMNS:
        if row.get(column) is None:
            if column == "score" and column in row:
                raise InputError(f"{where} column 'score'", "be a number in [0, 1]", None, "Score or drop the row")
            continue
        value = row[column]
        valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not valid or not 0 <= value <= 1:
            what, remedy = f"{where} column {column!r}", "Rescale the ratings, for instance (rating - 1) / 9"
            raise InputError(what, "be a number in [0, 1]", value, remedy)
    if "label" in row and row["label"] not in (True, False):
        raise InputError(f"{where} column 'label'", "be true or false", row["label"], "Use true or false")


def _validate_text(value: Any, where: str) -> None:
    if isinstance(value, str):
        if not value.strip():
            raise InputError(where, "contain text", "an empty string", "Fill in or drop the row")
        return
    messages = isinstance(value, list) and value and all(isinstance(m, dict) for m in value)
    if not messages or not all({"role", "content"} <= set(m) and isinstance(m["content"], str) for m in value):
        remedy = 'Write "text" or [{"role": "user", "content": "text"}]'
        raise InputError(where, "be a string or a list of chat messages", repr(value)[:60], remedy)
    if not value[-1]["content"].strip():
        raise InputError(where, "contain text", "an empty last message", "Fill in or drop the row")


# -------------------------------------------------------------------- from one kind to another


def as_scored(table: Dataset) -> Dataset:
    """Any table as scored rows: the whole of UFT (arXiv 2410.21438, section 3.3).

    A demonstration gets score 1; a pair becomes two rows with the scores it carries, else 1 and 0; a label
    becomes 1 or 0.

    >>> as_scored(from_rows([{"prompt": "a", "completion": "b"}]))[0]
    {'prompt': 'a', 'completion': 'b', 'score': 1.0}
    """
    kind = kind_of(table.column_names)
    if kind == "scored":
        return table.select_columns(["prompt", "completion", "score"])
    if kind == "demonstration":
        rows = [{"prompt": r["prompt"], "completion": r["completion"], "score": 1.0} for r in table]
    elif kind == "label":
        rows = [{"prompt": r["prompt"], "completion": r["completion"], "score": float(r["label"])} for r in table]
    else:
        rows = []
        for row in table:
            for side, without in (("chosen", 1.0), ("rejected", 0.0)):
                known = row.get(f"{side}_score")
                score = without if known is None else float(known)
                rows.append({"prompt": row["prompt"], "completion": row[side], "score": score})
    return Dataset.from_list(rows)


def as_labels(table: Dataset, threshold: float = 0.5) -> Dataset:
    """Any table as rows labelled good or bad: a demonstration and a chosen completion are good, a rejected one bad.

    Scored rows are good from `threshold` on, the only kind for which a threshold is needed.
    """
    kind = kind_of(table.column_names)
    if kind == "label":
        return table.select_columns(["prompt", "completion", "label"])
    if kind == "preference":
        table = table.select_columns(["prompt", "chosen", "rejected"])
    return Dataset.from_list(
        [
            {"prompt": r["prompt"], "completion": r["completion"], "label": r["score"] >= threshold}
            for r in as_scored(table)
        ]
    )


def convert(table: Dataset, kind: str) -> Dataset:
    """The table as the given kind. Only scored and label can be made from every kind.

    Raises:
        InputError: when the table lacks what the kind needs; the message names the missing columns.
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

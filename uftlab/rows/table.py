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
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

from datasets import Dataset

from uftlab.errors import InputError

KINDS = {
    "preference": {"prompt", "chosen", "rejected"},
    "label": {"prompt", "completion", "label"},
    "scored": {"prompt", "completion", "score"},
    "demonstration": {"prompt", "completion"},
}
OPTIONAL = {"chosen_score", "rejected_score"}  # columns of a preference
# column of text -> role of its author
SPEAKERS = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}


def kind_of(columns: Iterable[str], what: str = "A table") -> str:
    """The most specific kind that fits the columns of a table. `what` names the table in the error message."""
    present = set(columns)
    for kind, needed in KINDS.items():
        if needed <= present:
            return kind
    rule = "have the columns of one kind: " + "; ".join(f"{k} ({', '.join(sorted(c))})" for k, c in KINDS.items())
    raise InputError(what, rule, sorted(present), "Rename the columns")


def load_rows(path: str | Path) -> Dataset:
    """Read a JSONL or Parquet file into a validated table. Errors name the file and the row.

    Layouts of other tools are read too, see `uftlab.rows.layouts`. Then a line says what was understood.
    `uftlab.rows.sources.load_table` reads folders and hub data sets as well, and has options.

    Raises:
        InputError: for a missing file, another format, a line that is no JSON object, or a row that breaks a rule.
    """
    from uftlab.rows.sources import load_file  # imported here, because it builds on this module

    return load_file(path)


def from_rows(rows: list[Any], source: str = "rows") -> Dataset:
    """A validated table from Python rows. `source` names them in errors.

    Each column of the table has one type. Labels become bool and scores become float. If some prompts are text and some
    are messages, all become messages; the same holds for completions. Other columns stay as they are. They are left
    out if the table cannot hold them, for instance numbers mixed with text.
    """
    if not rows:
        raise InputError(source, "contain at least one row", "none", "Add rows")
    kind = ""
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number},"
        if not isinstance(row, dict):
            raise InputError(where, "be an object with named columns", repr(row)[:60], "Write {column: value, ...}")
        kind = kind or kind_of(row, where)
        validate(row, kind, set(rows[0]), where)
    return table_of(rows, kind)


def table_of(rows: list[dict[str, Any]], kind: str) -> Dataset:
    """A table from rows of a kind that `validate` has accepted. Each column has one type (see `from_rows`)."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    needed = KINDS[kind] | (OPTIONAL & set(columns) if kind == "preference" else set())
    _one_type(columns, needed)
    return Dataset.from_dict({name: values for name, values in columns.items() if name in needed or _fits(values)})


def validated(table: Dataset, source: str = "table") -> Dataset:
    """The same table after a check of every row."""
    return from_rows(table.to_list(), source)


class EmptyError(InputError):
    """A row without a text to learn from."""


def validate(row: dict[str, Any], kind: str, columns: set[str], where: str) -> None:
    """Check that a row has these columns and that those of its kind hold what they must.

    Raises:
        InputError: naming `where`, the column and the rule. `EmptyError` if it lacks a text only.
    """
    if set(row) != columns:
        difference = sorted(set(row) ^ columns)
        raise InputError(where, "have the columns of the first row", f"a difference in {difference}", "Fill them in")
    for column in KINDS[kind] & set(SPEAKERS):
        _validate_text(row[column], f"{where} column {column!r}")
        if isinstance(row[column], list):
            _validate_roles([message["role"] for message in row[column]], column, where)
    for column in ("score",) if kind == "scored" else OPTIONAL & columns if kind == "preference" else ():
        value, what = row[column], f"{where} column {column!r}"
        if value is None and column in OPTIONAL:
            continue
        if isinstance(value, str):
            raise InputError(what, "be a number in [0, 1]", f"the text {value!r}", "Write a number without quotes")
        if not isinstance(value, int | float | Decimal) or isinstance(value, bool) or not 0 <= value <= 1:
            remedy = "Score or drop the row" if value is None else "Rescale the ratings, for instance (rating - 1) / 9"
            raise InputError(what, "be a number in [0, 1]", value, remedy)
    if kind == "label" and row["label"] not in (True, False):
        got, remedy = row["label"], "Use true or false"
        if isinstance(got, str):
            got, remedy = f"the text {got!r}", "Write true or false without quotes"
        raise InputError(f"{where} column 'label'", "be true or false", got, remedy)


def _validate_text(value: Any, where: str) -> None:
    texts = [value] if isinstance(value, str) else []
    if isinstance(value, list) and all(isinstance(m, dict) for m in value):
        texts = [text for m in value for text in (m.get("content"), m.get("role"))]
    if not texts or not all(isinstance(text, str) for text in texts):
        remedy = 'Write "text" or [{"role": "user", "content": "text"}]'
        raise InputError(where, "be a string or a list of chat messages", repr(value)[:60], remedy)
    if not texts[0 if isinstance(value, str) else -2].strip():
        got = "an empty string" if isinstance(value, str) else "an empty last message"
        raise EmptyError(where, "contain text", got, "Fill in or drop the row")
    if not all(map(_encodes, texts)):  # for instance half of a surrogate pair, "\ud83d" alone
        raise InputError(where, "be text that UTF-8 can write", repr(value)[:60], "Correct or drop the row")


def _validate_roles(roles: list[str], column: str, where: str) -> None:
    """A completion is one answer of the assistant: nothing else of a conversation may be trained on."""
    what = f"{where} column {column!r}"
    if column == "prompt":
        if roles[-1] == "assistant":
            remedy = "Move the last message to the completion"
            raise InputError(what, "end with a message to answer", "a prompt that ends with the assistant", remedy)
    elif roles[-1] != "assistant":
        remedy = "Drop the last message or the row"
        raise InputError(what, "end with the assistant", f"a completion that ends with the {roles[-1]}", remedy)
    elif len(roles) > 1:
        got = f"{len(roles)} messages ({', '.join(roles)[:60]})"
        remedy = "Move the earlier turns to the prompt, or give whole conversations in a column `messages`"
        raise InputError(what, "be one message of the assistant", got, remedy)


def _encodes(text: str) -> bool:
    try:
        return bool(text.encode()) or not text
    except UnicodeEncodeError:
        return False


def _one_type(columns: dict[str, list[Any]], needed: set[str]) -> None:
    """Give each needed column one type, in place (see `from_rows`)."""
    for column in needed - set(SPEAKERS):
        as_type = bool if column == "label" else float
        columns[column] = [None if value is None else as_type(value) for value in columns[column]]
    for speaker in ("user", "assistant"):
        own = [column for column in sorted(needed) if SPEAKERS.get(column) == speaker]
        if any(isinstance(value, list) for column in own for value in columns[column]):
            for column in own:
                columns[column] = [as_messages(value, speaker) for value in columns[column]]
                if not _fits(columns[column]):  # because of other keys of the messages, which no loss needs
                    bare = [[{k: m[k] for k in ("role", "content")} for m in value] for value in columns[column]]
                    columns[column] = bare


def as_messages(text: str | list[dict], role: str) -> list[dict]:
    """Text becomes one chat message. Messages stay as they are."""
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)


def _fits(values: list[Any]) -> bool:
    """Whether a table can hold these values as one column."""
    try:
        Dataset.from_dict({"column": values})
    except (TypeError, ValueError, OverflowError, NotImplementedError):  # what Arrow raises for mixed types
        return False
    return True


# -------------------------------------------------------------------------- what a table cannot teach


def without_signal(table: Dataset) -> list[str]:
    """What a user should know about a table before training: pairs of two equal answers, labels of one class.

    >>> without_signal(from_rows([{"prompt": "a", "chosen": "b", "rejected": "b"}]))
    ['1 of 1 pairs have two equal answers, which teach no preference']
    """
    kind = kind_of(table.column_names)
    if kind == "preference":
        equal = sum(w == x for w, x in zip(table["chosen"], table["rejected"], strict=True))
        return [f"{equal} of {len(table)} pairs have two equal answers, which teach no preference"] if equal else []
    if kind == "label" and len(found := set(table["label"])) == 1:
        return [f"all {len(table)} labels are {str(found.pop()).lower()}: there is only one class to learn"]
    return []


def overlap(prompts: Iterable[str | list[dict]], benchmark: Iterable[str]) -> list[str]:
    """The prompts of a benchmark that are among the prompts of a table, in the order of the benchmark.

    Some training data hold benchmark questions: UltraFeedback holds prompts of TruthfulQA. Two prompts are equal if
    they differ only in case, punctuation and spaces. Of a conversation, each turn of the user is compared.

    >>> overlap(["What is  it?", "Who?"], ["what is it", "where"])
    ['what is it']
    """
    turns = (m["content"] for prompt in prompts for m in as_messages(prompt, "user") if m["role"] == "user")
    seen = {_normalised(turn) for turn in turns} - {""}
    return [question for question in dict.fromkeys(benchmark) if _normalised(question) in seen]


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
    """Any table as rows labelled good or bad. Demonstrations and chosen completions are good, rejected ones bad.

    A scored row is good if its score is at least `threshold`. Other kinds ignore the threshold.
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

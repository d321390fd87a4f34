"""Kinds of rows: which columns they have, what each column must hold, and how rows become a table.

`uftlab.rows.table` describes the kinds and is where a table is made. This module is what it and the readers of other
layouts share.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
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


def table_of(rows: list[dict[str, Any]], kind: str) -> Dataset:
    """A table from rows that `validate` has accepted. Each column has one type, see `uftlab.rows.table.from_rows`."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    needed = KINDS[kind] | (OPTIONAL & set(columns) if kind == "preference" else set())
    _one_type(columns, needed)
    return Dataset.from_dict({name: values for name, values in columns.items() if name in needed or _fits(values)})


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
        remedy = "Move the earlier turns to the prompt, as `uftlab.rows.layouts.understand` does where it can"
        raise InputError(what, "be one message of the assistant", got, remedy)


def _encodes(text: str) -> bool:
    try:
        return bool(text.encode()) or not text
    except UnicodeEncodeError:
        return False


def _one_type(columns: dict[str, list[Any]], needed: set[str]) -> None:
    """Give each needed column one type, in place (see `uftlab.rows.table.from_rows`)."""
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


def without_signal(table: Dataset) -> list[str]:
    """What a user should know about a table before training: pairs of two equal answers, labels of one class.

    >>> without_signal(table_of([{"prompt": "a", "chosen": "b", "rejected": "b"}], "preference"))
    ['1 of 1 pairs have two equal answers, which teach no preference']
    """
    kind = kind_of(table.column_names)
    if kind == "preference":
        equal = sum(w == x for w, x in zip(table["chosen"], table["rejected"], strict=True))
        return [f"{equal} of {len(table)} pairs have two equal answers, which teach no preference"] if equal else []
    if kind == "label" and len(found := set(table["label"])) == 1:
        return [f"all {len(table)} labels are {str(found.pop()).lower()}: there is only one class to learn"]
    return []

"""Kinds of rows: which columns they have, what each column must hold, and how rows become a table.

`uftlab.rows.table` describes the kinds and is where a table is made. This module is what it and the readers of other
layouts share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any

import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable

from uftlab.errors import InputError

CHUNK = 4096  # rows that are Python objects at a time

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


@dataclass(frozen=True)
class Rows:
    """Rows that are read anew in each pass over them, so that they are never all in memory."""

    read: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.read()


def rows_from(table: Dataset) -> Iterator[dict[str, Any]]:
    """The rows of a table as Python objects, some thousands at a time."""
    for start in range(0, len(table), CHUNK):
        yield from table.select(range(start, min(start + CHUNK, len(table)))).to_list()


def table_of(rows: Iterable[dict[str, Any]], kind: str) -> Dataset:
    """A table from rows that `validate` has accepted. Each column has one type, see `uftlab.rows.table.from_rows`.

    The rows become Arrow some thousands at a time; only then the types of the parts are made one.
    """
    rows = iter(rows)
    columns: dict[str, list[pa.ChunkedArray]] = {}
    needed, bare = set(KINDS[kind]), set[str]()
    while part := list(islice(rows, CHUNK)):
        if not columns:
            columns = {name: [] for name in part[0]}
            needed |= OPTIONAL & set(columns) if kind == "preference" else set()
        for name in list(columns):
            values = [row[name] for row in part]
            values = _own_type(values, name) if name in needed else values
            if (
                made := _arrow(values, name)
            ) is None and name in needed:  # other keys of the messages, which no loss needs
                bare.add(name)
                made = _arrow(list(map(_bare, values)), name)
            if made is None:
                del columns[name]
            else:
                columns[name].append(made)
    for speaker in set(SPEAKERS.values()) if columns else ():
        own = [name for name in needed if SPEAKERS.get(name) == speaker]
        if any(not pa.types.is_string(part.type) for name in own for part in columns[name]):
            for name in own:
                texts = [pa.types.is_string(part.type) for part in columns[name]]
                columns[name] = [
                    _arrow([as_messages(text, speaker) for text in part.to_pylist()], name) if is_text else part
                    for part, is_text in zip(columns[name], texts, strict=True)
                ]
    joined = {name: None if name in bare else _joined(parts) for name, parts in columns.items()}
    for name in needed & {name for name, values in joined.items() if values is None}:
        joined[name] = _joined([_arrow(list(map(_bare, part.to_pylist())), name) for part in columns[name]])
    table = pa.table({name: values for name, values in joined.items() if values is not None})
    return Dataset(InMemoryTable(table), fingerprint=_fingerprint(table))


def _own_type(values: list[Any], column: str) -> list[Any]:
    """Some values of a column that its kind needs, as what it must hold. Texts beside messages become messages."""
    if column not in SPEAKERS:
        as_type = bool if column == "label" else float
        return [None if value is None else as_type(value) for value in values]
    mixed = any(isinstance(value, list) for value in values)
    return [as_messages(value, SPEAKERS[column]) for value in values] if mixed else values


def _bare(messages: list[dict]) -> list[dict]:
    return [{key: message[key] for key in ("role", "content")} for message in messages]


NO_COLUMN = (TypeError, ValueError, OverflowError, NotImplementedError)  # what Arrow raises for mixed types


def _arrow(values: list[Any], column: str) -> pa.ChunkedArray | None:
    """The values as a column of this name; None if a table cannot hold it."""
    try:
        made = Dataset.from_dict({column: values}).data.table.column(0)
    except NO_COLUMN:
        return None
    return made if all(_no_truth_as_number(made.type, value) for value in values) else None


def _no_truth_as_number(kind: pa.DataType, value: Any) -> bool:
    """Whether no True or False in a value became 1.0 or 0.0: Arrow takes one behind a fraction, and not before it."""
    if pa.types.is_floating(kind):
        return not isinstance(value, bool)
    if value is None or not pa.types.is_nested(kind):
        return True
    if pa.types.is_struct(kind):
        return all(_no_truth_as_number(field.type, value.get(field.name)) for field in kind)
    return all(_no_truth_as_number(kind.value_type, own) for own in value)


def _joined(parts: list[pa.ChunkedArray]) -> pa.ChunkedArray | None:
    """The parts of a column as one, of the type that all of them together have; None if there is no such type."""
    try:
        return pa.concat_tables([pa.table({"column": part}) for part in parts], promote_options="permissive").column(0)
    except NO_COLUMN:
        return None


def _fingerprint(table: pa.Table) -> str:
    """What the library knows a table by. It would pickle the whole of it to find one."""
    digest = hashlib.blake2b(table.schema.serialize(), digest_size=8)
    for batch in table.to_batches():
        digest.update(batch.serialize())
    return digest.hexdigest()


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
        remedy = "Move the earlier turns to the prompt, as `uftlab.rows.understanding.understand` does where it can"
        raise InputError(what, "be one message of the assistant", got, remedy)


def _encodes(text: str) -> bool:
    try:
        return bool(text.encode()) or not text
    except UnicodeEncodeError:
        return False


def as_messages(text: str | list[dict], role: str) -> list[dict]:
    """Text becomes one chat message. Messages stay as they are."""
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)


def without_signal(table: Dataset) -> list[str]:
    """What a user should know about a table before training: pairs of two equal answers, labels of one class.

    >>> without_signal(table_of([{"prompt": "a", "chosen": "b", "rejected": "b"}], "preference"))
    ['1 of 1 pairs have two equal answers, which teach no preference']
    """
    kind = kind_of(table.column_names)
    if kind == "preference":
        pairs = rows_from(table.select_columns(["chosen", "rejected"]))
        equal = sum(pair["chosen"] == pair["rejected"] for pair in pairs)
        return [f"{equal} of {len(table)} pairs have two equal answers, which teach no preference"] if equal else []
    if kind == "label" and len(found := {row["label"] for row in rows_from(table.select_columns(["label"]))}) == 1:
        return [f"all {len(table)} labels are {str(found.pop()).lower()}: there is only one class to learn"]
    return []

"""Tables in any known layout, understood: `understand` reads them as one of our kinds and says in words what it read.

The first layout whose columns are all there is taken, unless the caller names one. It also says in words what it
read, what it rescaled, what it left out and which columns it did not use. It guesses no scale from single values: it
looks at the whole column, and asks where several scales are possible.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from datasets import Dataset

from uftlab.errors import InputError
from uftlab.rows.kinds import KINDS, Rows, table_of, validate, without_signal
from uftlab.rows.layouts import LAYOUTS, OWN, OWN_NAME, OnBadRow, Range, Reading, Row, TrainOn

SCORES = ("score", *OWN_NAME.values(), *OWN_NAME)  # columns whose scale is decided over the whole table
LIKE_A_SCORE = re.compile(r"score|rating|reward|grade|label|helpful|correct|coheren|honest|truthful|quality", re.I)


@dataclass
class Numbers:
    """What is known of the numbers of a column."""

    low: Any = None
    high: Any = None
    inside: bool = False  # whether one is between 0 and 1

    def add(self, value: Any) -> None:
        """One more value; what is no number does not count."""
        if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and value == value:
            self.low = value if self.low is None or value < self.low else self.low
            self.high = value if self.high is None or value > self.high else self.high
            self.inside = self.inside or 0 < value < 1


@dataclass
class Survey:
    """What the first pass over the rows finds: all that depends on the whole table."""

    count: int = 0
    first: set[str] = field(default_factory=set)  # columns of the first row
    columns: dict[str, None] = field(default_factory=dict)
    numbers: dict[str, Numbers] = field(default_factory=lambda: {column: Numbers() for column in SCORES})
    sides: int = 0  # of pairs, where the prompt and the side are texts
    repeating: int = 0  # of these begin with the text of the prompt

    def add(self, row: Row) -> None:
        """One more row."""
        self.first = self.first if self.count else set(row)
        self.count += 1
        self.columns.update(dict.fromkeys(row))
        for column in self.numbers.keys() & row.keys():
            self.numbers[column].add(row[column])
        prompt = row.get("prompt")
        for text in (row.get("chosen"), row.get("rejected")):
            if isinstance(prompt, str) and isinstance(text, str) and prompt.strip():
                self.sides += 1
                self.repeating += text.startswith(prompt)


def understand(
    rows: Sequence[Any] | Rows,
    source: str = "rows",
    *,
    layout: str | None = None,
    train_on: TrainOn | None = None,
    score_range: Range | None = None,
    on_bad_row: OnBadRow = "drop-empty",
) -> tuple[Dataset, list[str]]:
    """Rows in any known layout as a validated table, and what was understood: one phrase each.

    There are two passes over the rows: one for what depends on all of them, one that converts each. So `Rows` are never
    all in memory.

    Args:
        source: names the rows in errors.
        layout: one of `LAYOUTS`; None recognises it by its columns.
        train_on: which answers of a conversation are learned. "all" makes a row of each answer, with all turns before
            it as its prompt, as the UFT paper unfolds UltraChat. "last" takes the last answer. None is "all" for
            conversations; a completion of several turns is refused then. A score or a label belongs to the last answer.
            Rows of their own have the same loss as a mask over one long row, and each answer is seen with the prompt
            that generation would give it: Qwen3's template, for instance, changes earlier answers.
        score_range: the lowest and the highest possible rating. None decides over the whole column: values from 0 to
            1 stay, ratings from 1 to more than 5 and at most 10 are (s - 1) / 9, and all else is asked.
        on_bad_row: "drop-empty" leaves out rows without an answer or with an empty text, and counts them. "drop" does
            so with all rows that break a rule. "refuse" takes every such row as an error.

    Raises:
        InputError: for a table of no known layout, for an unclear scale, and for bad rows as `on_bad_row` says.
    """
    survey, wrong = Survey(), None
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            survey.add(row)
        elif wrong is None:  # a line that is no JSON, wherever it stands, is said before
            what, remedy = f"{source}, row {number},", "Write {column: value, ...}"
            wrong = InputError(what, "be an object with named columns", repr(row)[:60], remedy)
    if wrong is not None:
        raise wrong
    if not survey.count:
        raise InputError(source, "contain at least one row", "none", "Add rows")
    columns = list(survey.columns)
    name = _recognised(columns, source) if layout is None else _named(layout, columns, source)
    reading = Reading(source, columns, train_on=train_on, used=set(LAYOUTS[name].needs | LAYOUTS[name].uses))
    _decide(reading, name, survey, score_range)
    # our own layouts keep all columns, so all rows must have the same
    table = table_of(_converted(rows, reading, name, survey.first if name in OWN else set(), on_bad_row), reading.kind)
    if not len(table):
        first = next(iter(reading.first.values()))
        raise InputError(source, "contain a row to learn from", f"only bad rows. {str(first)[:-1]}", "Correct them")
    return table, _phrases(reading, name, table, survey.count)


def _converted(
    rows: Iterable[Row], reading: Reading, name: str, own: set[str], on_bad_row: OnBadRow
) -> Iterator[dict[str, Any]]:
    """The rows that each row becomes, as far as they are sound. `own` are columns that every row must have."""
    layout = LAYOUTS[name]
    for number, row in enumerate(rows, start=1):
        where = f"{reading.source}, row {number},"
        try:
            lacking = sorted((own ^ set(row) if own else set()) | (layout.needs - set(row)))
            if lacking:
                rule, got = "have the columns of the first row", f"a difference in {lacking}"
                raise InputError(where, rule, got, "Fill them in")
            made = layout.convert(row, reading, where)
        except InputError as error:
            reading.drop(error, on_bad_row)
            continue
        for new in made:
            try:
                validate(new, reading.kind, set(new), where)
            except InputError as error:
                reading.drop(error, on_bad_row)
                continue
            yield new


def _recognised(columns: Sequence[str], source: str) -> str:
    for name, layout in LAYOUTS.items():
        if layout.needs <= set(columns):
            return name
    kinds = "; ".join(f"{kind} ({', '.join(sorted(needed))})" for kind, needed in KINDS.items())
    others = "; ".join(f"{name} ({', '.join(sorted(LAYOUTS[name].needs))})" for name in LAYOUTS if name not in OWN)
    rule = f"have the columns of one kind: {kinds}, or of a known layout: {others}"
    remedy = "Say which columns are prompt and completion, or chosen and rejected"
    raise InputError(f"{source}, row 1,", rule, sorted(columns), remedy)


def _named(layout: str, columns: Sequence[str], source: str) -> str:
    if layout not in LAYOUTS:
        raise InputError("The layout", f"be among {', '.join(LAYOUTS)}", repr(layout), "Choose one of them")
    if lacking := sorted(LAYOUTS[layout].needs - set(columns)):
        rule = f"have the columns {', '.join(sorted(LAYOUTS[layout].needs))}"
        raise InputError(
            f"{source}, read as {layout},", rule, f"a table without {', '.join(lacking)}", "Choose another"
        )
    return layout


# --------------------------------------------------------------------- what is decided over the table


def _decide(reading: Reading, name: str, survey: Survey, score_range: Range | None) -> None:
    """Kind, feedback, scale and repeated prompts of the table, in place."""
    present = set(reading.columns)
    scores: list[str]
    if name == "helpsteer":
        reading.kind = "scored"
        return
    if "chosen" in LAYOUTS[name].needs:
        reading.kind = "preference"
        scores = [c for c in ("chosen_score", "rejected_score") if c in present]
        scores = scores or [c for c in OWN_NAME if c in present]
        reading.repeats = 0 < survey.sides == survey.repeating
    else:
        reading.feedback = next((column for column in ("label", "score") if column in present), "")
        reading.kind = {"label": "label", "score": "scored", "": "demonstration"}[reading.feedback]
        scores = ["score"] if reading.feedback == "score" else []
        reading.used.update({reading.feedback} - {""})
    reading.used.update(scores)
    if scores:
        known = [survey.numbers[column] for column in scores if survey.numbers[column].low is not None]
        both = Numbers()
        for own in known:
            both.add(own.low)
            both.add(own.high)
        both.inside = any(own.inside for own in known)
        reading.seen = f"{both.low} to {both.high}" if known else "none"
        reading.scale = score_range or _scale(both, f"{reading.source}, {' and '.join(scores)},")


def _scale(known: Numbers, what: str) -> Range | None:
    """The scale of a whole column of scores: None for [0, 1], else the lowest and the highest rating.

    A value between 0 and 1 shows that the scale is [0, 1]; then a larger value is a bad row and no rating.
    """
    low, high = known.low, known.high
    if low is None or known.inside or (low >= 0 and high <= 1):
        return None
    if low >= 1 and 5 < high <= 10:
        return 1, 10
    remedy = "Name the lowest and the highest possible rating as score_range, for instance (1, 5) or (0, 10)"
    raise InputError(what, "have a scale that is clear", f"values from {low} to {high}", remedy)


# ------------------------------------------------------------------------------------------- in words

_SINGULAR = {"demonstration": "demonstration", "preference": "pair", "label": "labelled row", "scored": "scored row"}


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def _phrases(reading: Reading, name: str, table: Dataset, count: int) -> list[str]:
    """What was understood: the rows first, then what a user should know of them."""
    rows = _counted(len(table), _SINGULAR[reading.kind])
    said = [rows + (f" from {_counted(count, 'row')}" if len(table) != count else "")]
    if LAYOUTS[name].words:
        said.append(LAYOUTS[name].words)
    scores = [column for column in ("score", *OWN_NAME.values(), *OWN_NAME) if column in reading.used]
    if reading.scale is not None:
        low, high = reading.scale
        moved = "s" if low == 0 else f"(s - {low:g})"
        seen = f"{' and '.join(scores)} ({reading.seen} in this table)"
        said.append(f"{seen}: read as ratings from {low:g} to {high:g}, rescaled to {moved} / {high - low:g}")
    elif scores and (name not in OWN or set(scores) & set(OWN_NAME)):
        said.append(f"{' and '.join(scores)} ({reading.seen} in this table): used as they are, in [0, 1]")
    answers = reading.found.pop("answers", 0)
    if answers:
        which = "the last answer" if reading.train_on == "last" or reading.feedback else "each answer"
        said.append(f"{which} of a conversation is learned, with all turns before it as its prompt")
    repeated = reading.found.pop("sides repeat the prompt", 0)
    if repeated and name != "implicit":
        said.append(f"the sides of {_counted(repeated, 'pair')} repeat the prompt, which is not learned")
    said += [f"{number:,} {what}" for what, number in reading.found.items() if number]
    for rule, number in reading.dropped.items():
        where = re.sub(rf"^{re.escape(reading.source)},? ?", "", reading.first[rule].parts[0]).rstrip(",")
        said.append(f"{number:,} left out, which must {rule} (first: {where})")
    unused = [column for column in reading.columns if column not in reading.used]
    ratings = [column for column in unused if LIKE_A_SCORE.search(column)]
    if ratings:
        said.append(f"NOT USED, though they may be scores: {', '.join(ratings)}")
    if others := [column for column in unused if column not in ratings]:
        said.append(f"not used: {', '.join(others)}")
    return said + [f"warning: {phrase}" for phrase in without_signal(table)]


def sentence(source: str | Path, phrases: Sequence[str]) -> str:
    """One line of what was understood.

    >>> sentence("rows.jsonl", ["2 pairs", "not used: id"])
    'rows.jsonl: 2 pairs; not used: id.'
    """
    return f"{source}: {'; '.join(phrases)}."

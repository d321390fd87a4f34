"""Layouts of the ecosystem's tables, read as the kinds of `uftlab.rows.table`.

| layout         | columns                               | becomes                                        |
| -------------- | ------------------------------------- | ---------------------------------------------- |
| helpsteer      | prompt, response, ratings from 0 to 4 | scored, with the weights of the UFT paper      |
| preference     | prompt, chosen, rejected              | pairs; sides that repeat the prompt lose it    |
| alpaca-pairs   | instruction, input, chosen, rejected  | pairs                                          |
| sharegpt-pairs | conversations, chosen, rejected       | pairs                                          |
| implicit       | chosen, rejected                      | pairs; the prompt is what both sides share     |
| completion     | prompt, completion                    | demonstrations, or scored or labelled rows     |
| response       | prompt, response                      | the same                                       |
| messages       | messages                              | one demonstration for each answer, or the same |
| conversations  | conversations, with from and value    | as messages                                    |
| alpaca         | instruction, input, output            | demonstrations, or scored or labelled rows     |
| dolly          | instruction, context, response        | the same                                       |

The first layout whose columns are all there is taken, unless the caller names one. `understand` also says in words what
it read, what it rescaled, what it left out and which columns it did not use. It guesses no scale from single values: it
looks at the whole column, and asks where several scales are possible.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from uftlab.errors import InputError
from uftlab.rows.kinds import KINDS, EmptyError, Rows, as_messages, table_of, validate, without_signal

Row = dict[str, Any]
OnBadRow = Literal["drop-empty", "drop", "refuse"]
Range = tuple[int | float, int | float]
TrainOn = Literal["last", "all"]

# The UFT paper's weights for HelpSteer2, whose ratings go from 0 to 4 (arXiv 2410.21438, section 4.1). They sum to 1.9.
HELPSTEER = {"helpfulness": 0.65, "correctness": 0.8, "coherence": 0.45}
HELPSTEER_TOP = 4
OWN_NAME = {"score_chosen": "chosen_score", "score_rejected": "rejected_score"}  # UltraFeedback's -> ours
SPEAKER = {  # who speaks, in the words of other tools
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "function": "tool", "observation": "tool", "function_call": "assistant",
}  # fmt: skip
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


@dataclass
class Reading:
    """What is decided over a whole table before its rows are converted, and what is found on the way."""

    source: str
    columns: list[str]
    kind: str = ""
    feedback: str = ""  # "label", "score" or nothing: what the rows of single answers carry
    scale: Range | None = None  # lowest and highest rating; None: scores are in [0, 1] already
    seen: str = ""  # the lowest and the highest score of the table, in words
    repeats: bool = False  # whether both sides of every pair begin with the text of the prompt
    train_on: TrainOn | None = None
    used: set[str] = field(default_factory=set)
    found: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)  # rows that were left out, by the rule that they break
    first: dict[str, InputError] = field(default_factory=dict)  # of each rule

    def drop(self, error: InputError, on_bad_row: OnBadRow) -> None:
        """Counts a row that is left out, or raises its error."""
        if on_bad_row == "refuse" or not (on_bad_row == "drop" or isinstance(error, EmptyError)):
            raise error
        self.dropped[error.parts[1]] += 1
        self.first.setdefault(error.parts[1], error)


@dataclass(frozen=True)
class Layout:
    """A layout: the columns it needs, those it uses if they are there, and how a row is converted."""

    needs: frozenset[str]
    uses: frozenset[str]
    words: str
    convert: Callable[[Row, Reading, str], list[Row]]


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


def _scaled(value: Any, reading: Reading, what: str) -> Any:
    """A score in [0, 1]. What is no number stays, for `validate` to refuse."""
    if reading.scale is None or not isinstance(value, int | float | Decimal) or isinstance(value, bool):
        return value
    low, high = reading.scale
    if not low <= value <= high:
        raise InputError(
            what, f"be a rating from {low:g} to {high:g}", value, "Correct the row or name its score_range"
        )
    return (float(value) - low) / (high - low)


# ------------------------------------------------------------------------------------- conversations


def _turns(value: Any, what: str) -> list[dict]:
    """Messages as {role, content}, from these names or from ShareGPT's (from, value)."""
    value = [value] if isinstance(value, dict) else value
    turns = []
    for message in value if isinstance(value, list) else [None]:
        role, content = (
            (message.get("role", message.get("from")), message.get("content", message.get("value")))
            if isinstance(message, dict)
            else (None, None)
        )
        if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            content = "".join(str(part.get("text")) for part in content)
        if not isinstance(role, str) or not isinstance(content, str):
            remedy = 'Write [{"role": "user", "content": "text"}, ...]'
            raise InputError(what, "be a list of messages with a role and a text", repr(value)[:60], remedy)
        turns.append({"role": SPEAKER.get(role, role), "content": content})
    if not turns:
        raise EmptyError(what, "contain a message", "an empty list", "Drop the row")
    return turns


_HH = re.compile(r"\n\n(Human|Assistant):")
_STEER = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def _dialogue(text: str) -> list[dict] | None:
    """The turns of a text such as "\\n\\nHuman: hi\\n\\nAssistant: hello" (Anthropic's HH). None for any other text."""
    begin, *parts = _HH.split(text)
    if begin.strip() or not parts:
        return None
    speakers = [{"Human": "user", "Assistant": "assistant"}[who] for who in parts[::2]]
    return [{"role": role, "content": content.strip()} for role, content in zip(speakers, parts[1::2], strict=True)]


def _steer(prompt: Any) -> Any:
    """A prompt of HelpSteer2 as messages if it holds several turns: `<extra_id_1>User` and the like separate them."""
    if not isinstance(prompt, str) or "<extra_id_1>" not in prompt:
        return prompt
    first, *parts = _STEER.split(prompt)
    turns = [("user", first), *zip((who.lower() for who in parts[::2]), parts[1::2], strict=True)]
    return [{"role": role, "content": content} for role, content in turns if content.strip()]


def _unfolded(turns: list[dict], reading: Reading, where: str, row: Row, first: int = 0) -> list[Row]:
    """The answers of a conversation as rows, each with all turns before it as its prompt (see `understand`).

    `first` is the number of turns that are prompt in any case.
    """
    asked = next((n for n, turn in enumerate(turns) if turn["role"] == "user"), len(turns))
    system = [turn for turn in turns[:asked] if turn["role"] == "system"]
    if len(system) < asked and asked < len(turns):
        reading.found["first turns of the assistant left out, which no prompt asks for"] += 1
        turns, first = [*system, *turns[asked:]], max(first - asked + len(system), 0)
    answers = [n for n, turn in enumerate(turns) if turn["role"] == "assistant" and n >= max(first, 1)]
    if not answers:
        raise EmptyError(where, "contain an answer of the assistant", "none", "Drop the row")
    if reading.feedback or reading.train_on == "last":
        if reading.feedback and answers[-1] != len(turns) - 1:
            remedy = "Drop the last message or the row"
            raise InputError(where, "end with the answer that the feedback is for", "a turn of the user", remedy)
        answers = answers[-1:]
    reading.found["answers"] += len(answers)
    return [{"prompt": turns[:n], "completion": [turns[n]], **_feedback(row, reading, where)} for n in answers]


def _feedback(row: Row, reading: Reading, where: str) -> Row:
    """The label or the score of a row."""
    if not reading.feedback:
        return {}
    value = row.get(reading.feedback)
    return {reading.feedback: _scaled(value, reading, f"{where} column {reading.feedback!r}")}


def _with_system(prompt: Any, row: Row) -> Any:
    """The prompt after the row's system message, if it has one."""
    system = row.get("system")
    if not isinstance(system, str) or not system.strip():
        return prompt
    return [{"role": "system", "content": system}, *as_messages(prompt, "user")]


# ------------------------------------------------------------------------------------ rows of each layout


def _helpsteer(row: Row, reading: Reading, where: str) -> list[Row]:
    for column in HELPSTEER:
        value = row[column]
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= HELPSTEER_TOP:
            rule = f"be a rating from 0 to {HELPSTEER_TOP}"
            raise InputError(f"{where} column {column!r}", rule, repr(value), "Correct or drop the row")
    total = sum(weight * row[column] for column, weight in HELPSTEER.items())
    score = min(total / (HELPSTEER_TOP * sum(HELPSTEER.values())), 1.0)  # four fours could round to a little above 1
    prompt = _steer(row["prompt"])
    reading.found["prompts with several turns"] += isinstance(prompt, list)
    return [{"prompt": prompt, "completion": row["response"], "score": score}]


def _single(prompt: Any, completion: Any, row: Row, reading: Reading, where: str) -> list[Row]:
    """A prompt with one answer, or with several turns of which one or all are learned."""
    if isinstance(completion, list) and reading.train_on is not None and len(completion) > 1:
        begin = as_messages(prompt, "user")
        if not isinstance(begin, list):
            return [{"prompt": prompt, "completion": completion, **_feedback(row, reading, where)}]
        turns = _turns([*begin, *completion], f"{where} column 'completion'")
        return _unfolded(turns, reading, where, row, first=len(begin))
    return [{"prompt": prompt, "completion": completion, **_feedback(row, reading, where)}]


def _completion(row: Row, reading: Reading, where: str) -> list[Row]:
    made = _single(row["prompt"], row["completion"], row, reading, where)
    return [{**row, **new} for new in made]  # our own columns: the others stay


def _response(row: Row, reading: Reading, where: str) -> list[Row]:
    return _single(row["prompt"], row["response"], row, reading, where)


def _messages(row: Row, reading: Reading, where: str) -> list[Row]:
    column = "messages" if row.get("messages") is not None else "conversations"
    turns = _turns(row.get(column), f"{where} column {column!r}")
    system = row.get("system")
    if isinstance(system, str) and system.strip() and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    return _unfolded(turns, reading, where, row)


def _instruction(row: Row, answer: Any, reading: Reading, where: str) -> list[Row]:
    return _single(_asked(row, where), answer, row, reading, where)


def _asked(row: Row, where: str) -> Any:
    """The instruction of a row with its input or context, if any, after an empty line."""
    parts = [row["instruction"], row.get("input"), row.get("context")]
    texts = [part for part in parts if part not in (None, "")]
    for text in texts:
        if not isinstance(text, str):
            remedy = "Correct or drop the row"
            raise InputError(f"{where} column 'instruction'", "be a string, as its input", repr(text)[:60], remedy)
    return _with_system("\n\n".join(text for text in texts if text.strip()), row)


def _pair(row: Row, reading: Reading, where: str) -> list[Row]:
    """A pair whose prompt is given, whose sides repeat it, or whose prompt is what both sides share."""
    prompt = row.get("prompt")
    sides = {side: _side(row[side], f"{where} column {side!r}") for side in ("chosen", "rejected")}
    if isinstance(prompt, str) and (turns := _dialogue(prompt)) is not None:
        prompt = [turn for turn in turns if turn["content"]]  # HH's prompts end with "Assistant:"
    if any(isinstance(value, list) and _holds_prompt(value) for value in sides.values()):
        prompt, sides = _shared(prompt, sides, where)
        reading.found["sides repeat the prompt"] += 1
    elif reading.repeats and isinstance(prompt, str):
        sides = {side: value[len(prompt) :] if isinstance(value, str) else value for side, value in sides.items()}
        reading.found["sides repeat the prompt"] += 1
    elif prompt is None:
        rule = "begin with the turns of the prompt"
        raise InputError(f"{where} column 'chosen'", rule, repr(row["chosen"])[:60], "Add a column prompt")
    if isinstance(prompt, list):
        prompt = _turns(prompt, f"{where} column 'prompt'")
    return [{"prompt": prompt, **sides, **_pair_scores(row, reading, where)}]


def _side(value: Any, what: str) -> Any:
    """One side as text or messages; a dialogue in HH's text becomes messages."""
    if isinstance(value, str):
        turns = _dialogue(value)
        return value if turns is None or turns[0]["role"] != "user" else turns
    return value if value is None or isinstance(value, int | float) else _turns(value, what)


def _holds_prompt(turns: list[dict]) -> bool:
    return turns[0]["role"] in ("user", "system") and len(turns) > 1


def _shared(prompt: Any, sides: dict[str, Any], where: str) -> tuple[list[dict], dict[str, Any]]:
    """The prompt that both sides hold, and the last answer of each."""
    before = {side: turns[:-1] if isinstance(turns, list) else None for side, turns in sides.items()}
    if before["chosen"] != before["rejected"] or not before["chosen"]:
        what, rule = f"{where} column 'chosen'", "share all turns but the last with column 'rejected'"
        raise InputError(
            what, rule, "sides that differ earlier", "Drop the row, or give a column prompt and two answers"
        )
    shared: list[dict] = before["chosen"]
    given = [] if prompt is None else _turns(as_messages(prompt, "user"), f"{where} column 'prompt'")
    repeated = [turn["content"].strip() for turn in shared]
    if any(turn["role"] != "system" and turn["content"].strip() not in repeated for turn in given):
        rule = "repeat the prompt of the row, or be the answer alone"
        got = f"another question, {shared[-1]['content'][:60]!r}"
        raise InputError(f"{where} column 'chosen'", rule, got, "Correct or drop the row")
    if shared[0]["role"] != "system":
        shared = [*(turn for turn in given[:1] if turn["role"] == "system"), *shared]
    return shared, {side: turns[-1:] for side, turns in sides.items()}


def _pair_scores(row: Row, reading: Reading, where: str) -> Row:
    """The scores of a pair, under our names."""
    return {
        OWN_NAME.get(column, column): _scaled(row.get(column), reading, f"{where} column {column!r}")
        for column in ("chosen_score", "rejected_score", *OWN_NAME)
        if column in reading.used
    }


def _own_pair(row: Row, reading: Reading, where: str) -> list[Row]:
    (new,) = _pair(row, reading, where)
    return [{**{k: v for k, v in row.items() if k not in OWN_NAME or k not in reading.used}, **new}]


def _alpaca_pair(row: Row, reading: Reading, where: str) -> list[Row]:
    return _pair({**row, "prompt": _asked(row, where)}, reading, where)


def _sharegpt_pair(row: Row, reading: Reading, where: str) -> list[Row]:
    return _pair({**row, "prompt": _turns(row["conversations"], f"{where} column 'conversations'")}, reading, where)


def _layout(needs: str, uses: str, words: str, convert: Callable[[Row, Reading, str], list[Row]]) -> Layout:
    return Layout(frozenset(needs.split()), frozenset(uses.split()), words, convert)


LAYOUTS = {
    "helpsteer": _layout(
        f"prompt response {' '.join(HELPSTEER)}",
        "",
        "score = (0.65 helpfulness + 0.8 correctness + 0.45 coherence) / 7.6, the weights of the UFT paper",
        _helpsteer,
    ),
    "preference": _layout("prompt chosen rejected", "", "", _own_pair),
    "alpaca-pairs": _layout(
        "instruction chosen rejected", "input context system", "the prompt is instruction and input", _alpaca_pair
    ),
    "sharegpt-pairs": _layout("conversations chosen rejected", "", "the prompt is conversations", _sharegpt_pair),
    "implicit": _layout("chosen rejected", "", "the prompt is the turns that both sides share", _pair),
    "completion": _layout("prompt completion", "", "", _completion),
    "response": _layout("prompt response", "", "the completion is response", _response),
    "messages": _layout("messages", "system prompt", "each row is a conversation", _messages),
    "conversations": _layout("conversations", "system", "each row is a conversation", _messages),
    "alpaca": _layout(
        "instruction output",
        "input system",
        "the prompt is instruction and input, the completion is output",
        lambda row, reading, where: _instruction(row, row["output"], reading, where),
    ),
    "dolly": _layout(
        "instruction response",
        "context input system",
        "the prompt is instruction and context, the completion is response",
        lambda row, reading, where: _instruction(row, row["response"], reading, where),
    ),
}
OWN = ("preference", "completion")  # layouts whose columns have our names


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

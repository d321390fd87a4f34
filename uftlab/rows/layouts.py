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

`uftlab.rows.understanding` chooses one for a table, decides what depends on the whole of it, and converts each row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from uftlab.errors import InputError
from uftlab.rows.kinds import EmptyError, as_messages

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

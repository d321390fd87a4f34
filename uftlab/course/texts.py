"""Texts to look at and to type into, as HTML: completion masks, log-ratios of words, a chat, a verifier's verdict.

Functions return HTML and draw nothing. `live` puts one of them under a few controls. Without a kernel it
shows what the same function answers to fixed examples.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import ipywidgets
import pandas as pd
import torch
import traitlets
from pandas.io.formats.style import Styler
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from uftlab.course.held_out import TokenLogratios, logratios_of_text
from uftlab.course.snapshots import Snapshots
from uftlab.errors import InputError
from uftlab.losses.rewards import implicit_score
from uftlab.models.generation import answers
from uftlab.plots import theme
from uftlab.plots.widgets import STYLE, Box, Folded, Spoken, choice, notes_below
from uftlab.world.instructions import (
    NUMBERS,
    VERIFIERS,
    Instruction,
    _inner,
    _letters,
    _sentences,
    claimed_value,
    follows,
)
from uftlab.world.wording import Fact
from uftlab.world.world import World

# a sheet of white paper in light and dark notebooks alike, as the figures have it
SHEET = f"background: white; color: {theme.INK}; padding: 10px 14px; font-size: 18px; line-height: 2;"
TRAINED = (
    f"background: #CFE5F5; color: {theme.INK}; font-weight: bold; text-decoration: underline; "
    f"text-decoration-thickness: 3px; text-decoration-color: {theme.COLOURS[0]}; padding: 1px 3px;"
)
PADDING = "color: #6B6B6B; font-size: 13px; font-style: italic;"
FULL = 3.0  # nats at which a colour is as strong as it gets
NOTHING, GREY = 0.005, "#8C8C8C"  # nats below which two decimals are 0.00, and the frame of such a word
LEGEND = "▲ solid: likelier than under the reference. ▼ dashed: less likely. Grey: unmoved. Numbers: nats."
MAX_QUESTION = 60  # words: the tiny model has 128 positions


def _sheet(inside: str) -> Folded:
    return Folded(f'<div style="{SHEET}">{inside}</div>')


def table(rows: pd.DataFrame, caption: str, decimals: int = 2) -> Styler:
    """Rows of text to be read: no index, left-aligned, wrapped, numbers with `decimals`, NaN as "not known".

    All of it is text, also names of columns and the caption: nothing in it is read as HTML.
    """
    cells = {"text-align": "left", "white-space": "normal", "vertical-align": "top", "font-size": "15px"}
    heads = [{"selector": "th", "props": [("text-align", "left"), ("font-size", "15px")]}]
    heads += [
        {"selector": "caption", "props": [("font-size", "16px"), ("font-weight", "bold"), ("text-align", "left")]}
    ]
    styled = rows.style.hide(axis="index").format(precision=decimals, na_rep="not known", escape="html")
    styled = styled.format_index(axis="columns", escape="html").set_properties(**cells).set_table_styles(heads)
    return styled.set_caption(html.escape(caption))


# ------------------------------------------------------------------------------ the mask on the text


def with_mask(batch: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase) -> Folded:
    """A batch of `uftlab.rows.tokens.collate` as text: what the loss counts is bold, underlined and on blue.

    Every word is decoded from `input_ids` and marked by `completion_mask` alone, so a wrong mask shows. Words that
    are read but not counted stay plain; columns without attention are small and in italics.
    """
    ids, mask, attention = batch["input_ids"], batch["completion_mask"], batch["attention_mask"]
    before = ids.shape[1] - mask.shape[1]  # columns of the prompt, which have no mask because none can be counted
    rows = []
    for row in range(len(ids)):
        words = []
        for column, token in enumerate(ids[row].tolist()):
            word = html.escape(str(tokenizer.decode([token])))
            if column >= before and mask[row, column - before]:
                word = f'<mark style="{TRAINED}">{word}</mark>'
            elif not attention[row, column]:
                word = f'<span style="{PADDING}">{word}</span>'
            words.append(word)
        counted, read = int(mask[row].sum()), int(attention[row].sum())
        words.append(f'<span style="{PADDING}">({counted} of {read} counted)</span>')
        rows.append(f"<div>{' '.join(words)}</div>")
    key = f'<mark style="{TRAINED}">counted by the loss</mark> read, not counted <span style="{PADDING}">padding</span>'
    return _sheet("".join(rows) + f'<div style="border-top: 1px solid {theme.PALE}; margin-top: 8px">{key}</div>')


# ------------------------------------------------------------------------------ the chat


def as_words(text: str) -> str:
    """What a person types as the tiny world writes it: lower case, marks standing alone.

    >>> as_words("What is the colour of Babo?")
    'what is the colour of babo ?'
    """
    return " ".join(re.findall(r"\w+|[^\w\s]", text.lower()))


def unknown_words(text: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words of a text that the tokenizer does not know, each once, in their order."""
    vocabulary = tokenizer.get_vocab()
    return [word for word in dict.fromkeys(text.split()) if word not in vocabulary]


def fact_asked(question: str, world: World) -> Fact | None:
    """The fact that a question names by its creature and attribute; None where it names none or several."""
    words = set(question.split())
    named = [f for f in world.facts if f.creature in words and f.attribute in words]
    return named[0] if len(named) == 1 else None


@dataclass(frozen=True)
class Reply:
    """One exchange: the question as the model read it, its answer, words it has never read, the fact that was meant."""

    question: str
    answer: str
    unknown: tuple[str, ...] = ()
    fact: Fact | None = None

    @property
    def remark(self) -> str:
        """What a reader should know about the answer, in words."""
        if not self.question:
            return "Type a question and press Enter."
        remarks = []
        if self.unknown:
            words, blanks = ("word", "an unknown word") if len(self.unknown) == 1 else ("words", "unknown words")
            remarks.append(
                f"Sorry, the model has never read the {words} {', '.join(self.unknown)}: it reads {blanks} and answers "
                "all the same, because nobody taught it to say “i do not know”."
            )
        if self.fact:
            claim = claimed_value(self.answer, self.fact.attribute)
            known = {self.fact.truth: "the truth", self.fact.error: f"the {self.fact.kind}", None: "no single value"}
            error = f"the {self.fact.kind} is {self.fact.error}" if self.fact.error else "there is no myth or rumour"
            told = known.get(claim, f"{claim}, which is neither")
            remarks.append(f"In this world the truth is {self.fact.truth} and {error}. It told {told}.")
        return " ".join(remarks)

    def as_html(self) -> str:
        """The exchange as one paragraph; everything that was typed is escaped."""
        said = f"<b>you</b> {html.escape(self.question)}<br><b>model</b> {html.escape(self.answer)}<br>"
        return f'<div style="{SHEET}">{said if self.question else ""}<i>{html.escape(self.remark)}</i></div>'


def chat(model: nn.Module, tokenizer: PreTrainedTokenizerBase, question: str, world: World | None = None) -> Reply:
    """The model's likeliest answer, word by word, to a question as a person types it.

    Args:
        question: any text; longer ones are cut to their first 60 words.
        world: when given, the reply says what the truth is.
    """
    words = " ".join(as_words(question).split()[:MAX_QUESTION])
    if not words:
        return Reply("", "")
    answer = answers(model, tokenizer, [words])[0]
    return Reply(words, answer, tuple(unknown_words(words, tokenizer)), fact_asked(words, world) if world else None)


# ------------------------------------------------------------------------------ the verifiers


def _times(word: str, words: list[str]) -> str:
    count = words.count(word)
    return f"“{word}” { ({0: 'never', 1: 'once', 2: 'twice'}.get(count, f'{count} times')) }"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _because(name: str, argument: str, words: list[str]) -> str:
    """What the verifier found in an answer and what it asks for."""
    lower, letters, inner = [w.lower() for w in words], _letters(words), _inner(words)
    small = sum(not w.isupper() for w in letters)
    sentences, count = _counted(_sentences(words), "sentence"), _counted(len(letters), "word")
    ends, last = f"“{words[0]}” first, “{words[-1]}” last", f"“{inner[-1]}” last" if inner else "nothing"
    found, asked = {
        "count": (f"{count} (marks do not count)", str(NUMBERS.get(argument))),
        "without": (_times(argument, lower), "never"),
        "name": (_times(argument, words), "at least once"),
        "sentences": (sentences, "2, the last one closed by a mark"),
        "twice": (_times(argument, lower), "exactly twice"),
        "include": (_times(argument, lower), "at least once"),
        "start": (
            f"“{' '.join(inner[:1])}” first",
            f"“{argument}” (quotes, brackets and a list sign may stand before)",
        ),
        "end": (f"“{' '.join(letters[-1:])}” as the last word", f"“{argument}”"),
        "exclaim": (last, "“!” (quotes and brackets may follow)"),
        "ask-back": (f"{last}, {sentences}", "“?” and at least 2"),
        "capitals": (f"{small} of {len(letters)} words not in capitals", "some words, and all of them in capitals"),
        "bullet": (f"“{words[0]}” first", "“-”"),
        "quotes": (ends, 'a " at both ends and something between'),
        "brackets": (ends, "( and ) with something between"),
    }[name]
    return f"Found: {found}. Asked: {asked}."


@dataclass(frozen=True)
class Verdict:
    """Whether an answer obeys one instruction strictly and loosely, and what the verifier found."""

    asked: str
    answer: str
    strict: bool
    loose: bool
    because: str

    def as_html(self) -> str:
        """The verdict in words, with a bar of colour beside it."""
        colour = theme.COLOURS[2] if self.strict else theme.COLOURS[4] if self.loose else theme.COLOURS[1]
        said = {True: "accepted", False: "refused"}
        exchange = f"<b>asked</b> {html.escape(self.asked)} <b>answer</b> {html.escape(self.answer)}"
        words = f"<b>Strict: {said[self.strict]}. Loose: {said[self.loose]}.</b> {html.escape(self.because)}"
        return f'<div style="{SHEET} border-left: 8px solid {colour}">{exchange}<br>{words}</div>'


def judged(instruction: Instruction, answer: str) -> Verdict:
    """The verdict of the instruction's own verifier on an answer of space-separated words, with its reason.

    `judged(Instruction("count", "three"), "it is blue .")` is accepted: marks do not count.
    """
    asked, words = VERIFIERS[instruction.name].wordings[0].format(x=instruction.argument), answer.split()
    if not words:
        return Verdict(asked, answer, False, False, "An empty answer obeys nothing.")
    strict = follows(answer, [instruction])
    loose = follows(answer, [instruction], loose=True)
    because = _because(instruction.name, instruction.argument, words)
    if loose and not strict:
        because += " Loosely it passes once its first word, its last word or the quotes around it are taken away."
    return Verdict(asked, answer, strict, loose, because)


# ------------------------------------------------------------------------------ something to type into


class _Announced(ipywidgets.HTML):
    """HTML, `inside`, in an `aria-live` region."""

    inside = traitlets.Unicode()

    @traitlets.observe("inside")
    def _write(self, change: Mapping[str, Any]) -> None:
        self.value = f'<div role="status" aria-live="polite">{change["new"]}</div>'


def text_box(label: str, value: str) -> ipywidgets.Text:
    """A named line to type on; its value changes with Enter, or when the reader leaves it."""
    box = ipywidgets.Text(value, description=label, continuous_update=False)
    box.style.description_width = "initial"
    box.layout.width = "min(760px, 100%)"
    return box


def live(
    respond: Callable[..., str],
    controls: Mapping[str, ipywidgets.ValueWidget],
    examples: Sequence[Mapping[str, Any]],
    headless: bool = False,
) -> ipywidgets.VBox | Folded:
    """HTML that follows its controls: `widgets.explore` without a figure.

    Args:
        respond: pure function of the controls' values, called by name; it returns HTML.
        examples: what the static twin (`headless`) shows: `respond(**example)`, one after the other.

    Returns:
        A box with `controls` and `answer` as attributes; headless a piece of HTML.
    """
    if headless:
        return Folded("".join(respond(**example) for example in examples))

    def now() -> str:
        return respond(**{name: control.value for name, control in controls.items()})

    answer = _Announced(inside=now())

    def follow(_: object = None) -> None:
        answer.inside = now()

    for control in controls.values():
        control.style.description_width = "initial"
        control.observe(follow, names="value")
    box = Box([ipywidgets.HTML(STYLE), *controls.values(), answer])
    box.add_class("uftlab")
    box.controls, box.answer, box.still = dict(controls), answer, answer.inside
    return box


# ------------------------------------------------------------------------------ the log-ratio of each word


def signed(value: float) -> str:
    """Two decimals with their sign, the minus as long as the plus."""
    return f"{value:+.2f}".replace("-", "−")


def _shade(colour: str, strength: float) -> str:
    """The colour mixed with white: dark text stays readable on it, in light and dark notebooks alike."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - part) * 0.6 * min(1.0, strength)):02x}" for part in parts)


def with_logratios(read: TokenLogratios, caption: str = "") -> Folded:
    """The words of a completion with their log-ratios, as HTML that a notebook displays.

    A word that the policy likes better than its reference does stands in a solid blue box with an upward sign, one
    that it likes less in a dashed orange box with a downward sign, and one whose log-ratio rounds to zero in a grey
    box without a sign. The number below it is the log-ratio in nats. Sign, frame and number say the same as the colour.
    """
    boxes = []
    for word, value in zip(read.words, read.logratios, strict=True):
        if abs(value) < NOTHING:
            frame, background, number = f"2px solid {GREY}", "#ffffff", "0.00"
        else:
            colour, line, sign = (theme.COLOURS[0], "solid", "▲") if value > 0 else (theme.COLOURS[1], "dashed", "▼")
            frame, background = f"2px {line} {colour}", _shade(colour, abs(value) / FULL)
            number = f"{sign} {signed(value)}"
        look = (
            f"display:inline-block; text-align:center; margin:3px; padding:1px 7px; border:{frame}; "
            f"border-radius:5px; background:{background}; color:{theme.INK}"
        )
        shown = html.escape(word)
        boxes.append(
            f'<span style="{look}" title="{shown}: {number} nats">{shown}<br>'
            f'<span style="font-size:75%">{number}</span></span>'
        )
    heading = f"<div><b>{html.escape(caption)}</b></div>" if caption else ""
    return Folded(f'<div style="font-size:18px; line-height:1.35; padding:4px 0">{heading}{"".join(boxes)}</div>')


def summed_up(read: TokenLogratios, beta: float) -> str:
    """The reward of the whole completion in words, and the words that the tokenizer does not know.

    >>> summed_up(TokenLogratios(("moss", "<end>"), (1.0, -0.5), ("moss",)), 0.1)
    'The words add up to +0.50 nats; times β = 0.1 the implicit reward is +0.05, the implicit score 0.51. \
Unknown to the tokenizer and read as <unk>: moss.'
    """
    total = sum(read.logratios)
    score = implicit_score(torch.tensor(beta * total)).item()
    text = (
        f"The words add up to {signed(total)} nats; times β = {beta:g} the implicit reward is "
        f"{signed(beta * total)}, the implicit score {score:.2f}."
    )
    if read.unknown:
        text += f" Unknown to the tokenizer and read as <unk>: {', '.join(read.unknown)}."
    return text


def word_by_word(
    runs: Mapping[str, Snapshots], rows: pd.DataFrame, shown: int = 120, headless: bool = False, notes: str = ""
) -> ipywidgets.VBox | Folded:
    """Pick a held-out completion or type any, and see the reward of each word under the policy at the end of a run.

    Args:
        rows: as of `uftlab.course.held_out.held_out`; the first `shown` pairs and demonstrations can be picked.
        headless: True gives the words of the first row under the first run.
        notes: HTML below the controls, see `widgets.explore`.

    Returns:
        A box with `controls`, `spoken` and `words` as attributes; headless a piece of HTML.
    """
    half = shown // 2
    picked = pd.concat([rows[rows["pair"] >= 0].head(half), rows[rows["pair"] < 0].head(shown - half)])
    options = {
        f"{r.role}{f' of pair {r.pair + 1}' if r.pair >= 0 else ''}: {r.completion}": (r.prompt, r.completion)
        for r in picked.itertuples()
    }

    @cache
    def model(name: str, snapshot: int) -> Any:
        return runs[name].policy(snapshot)

    def look(name: str, own: bool, prompt: str, completion: str) -> tuple[str, str]:
        run, last = runs[name], len(runs[name].steps) - 1
        try:
            read = logratios_of_text(model(name, last), model(name, run.reference(last, own)), prompt, completion)
        except InputError as error:
            return str(error), ""
        return summed_up(read, run.beta), with_logratios(read)

    first = next(iter(runs))
    prompt, completion = next(iter(options.values()))
    said, drawn = look(first, True, prompt, completion)
    still = Folded(f"<p><b>{html.escape(prompt)}</b> ({html.escape(first)})</p>{drawn}<p>{html.escape(said)}</p>")
    if headless:
        return still

    controls: dict[str, Any] = {
        "run": choice("policy", list(runs), first),
        "own": choice("reference", {"its own start": True, "the base": False}, True),
        "row": ipywidgets.Dropdown(options=options, description="pick"),
        "prompt": ipywidgets.Text(description="prompt", continuous_update=False),
        "completion": ipywidgets.Text(description="completion", continuous_update=False),
    }
    for control in controls.values():
        control.style.description_width = "110px"
    for name in ("row", "prompt", "completion"):
        controls[name].layout.width = "min(calc(100% - 4px), 900px)"  # less the margins
    for name in ("run", "own"):
        controls[name].style.button_width = "auto"
    spoken, words = Spoken(), ipywidgets.HTML()

    def follow(_: object = None) -> None:
        texts = controls["prompt"].value, controls["completion"].value
        spoken.text, words.value = look(controls["run"].value, controls["own"].value, *texts)

    def pick(_: object = None) -> None:
        controls["prompt"].value, controls["completion"].value = controls["row"].value

    pick()
    follow()
    controls["row"].observe(pick, names="value")
    for name in ("run", "own", "prompt", "completion"):
        controls[name].observe(follow, names="value")
    legend = ipywidgets.HTML(f'<div style="font-size:16px">{LEGEND}</div>')
    box = Box([ipywidgets.HTML(STYLE), *controls.values(), *notes_below(notes), spoken, words, legend])
    box.add_class("uftlab")
    box.controls, box.spoken, box.words, box.still = controls, spoken, words, still
    return box

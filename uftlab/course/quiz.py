"""Ten questions about the course, each with its explanation and the notebook to read again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets

from uftlab.plots.widgets import Box, Folded, Spoken, predict


@dataclass(frozen=True)
class Question:
    """A question with its options. `because` explains the answer, `notebook` is where it is taught."""

    asked: str
    options: tuple[str, ...]
    answer: str
    because: str
    notebook: str


QUESTIONS = (
    Question(
        "You have a trained policy and its reference, no log and no data. What can you find out about the reward?",
        ("the reward, exactly", "the reward, up to a constant for each prompt", "nothing"),
        "the reward, up to a constant for each prompt",
        "The reward is β log(π/π_ref) plus a term that the answer does not change. No policy shows that term.",
        "01",
    ),
    Question(
        "UFT trains on a demonstration with squared error. What is its gradient?",
        ("that of SFT", "that of SFT, times a number", "that of SFT, plus a KL term"),
        "that of SFT, times a number",
        "The number is the gate, 2β s(1 − s)². There is no KL term in the loss.",
        "02",
    ),
    Question(
        "β = 0.01, and the reference gives a completion −50 nats. Can its implicit score become 0.9?",
        ("yes, with enough steps", "no, at most 0.62"),
        "no, at most 0.62",
        "A probability is at most 1, so the log-ratio is at most 50 nats and the score at most σ(0.5).",
        "02",
    ),
    Question(
        "A model distrusts every first thought of its own. Which numbers move?",
        ("truth about myths rises, truth about rumours falls", "both rise", "both fall"),
        "truth about myths rises, truth about rumours falls",
        "On myths most texts are wrong, on rumours few are. Only truth above that exchange needs knowledge.",
        "03",
    ),
    Question(
        "A model obeys every instruction and always names a wrong value. Which score shows that?",
        ("instructions followed", "followed and correct", "neither"),
        "followed and correct",
        "Instructions followed would be nearly perfect. Followed and correct would be 0.",
        "04",
    ),
    Question(
        "A family of twelve tests. The smallest p is 0.01. Is that test settled after Holm's correction?",
        ("yes, 0.01 is below 0.05", "no, it becomes 0.12"),
        "no, it becomes 0.12",
        "The smallest p is multiplied by the number of tests.",
        "04",
    ),
    Question(
        "During DPO the reward margin grows. Has the chosen answer become likelier?",
        ("yes", "no", "the margin does not say"),
        "the margin does not say",
        "Both may fall. The margin grows if the rejected answer falls faster.",
        "05",
    ),
    Question(
        "Tuning chose a β so small that every implicit score stays at ½. What is UFT then?",
        ("likelihood weighted by score − ½", "SFT", "DPO"),
        "likelihood weighted by score − ½",
        "At s = ½ the pull on a row is β/2 times (score − ½). No reference is left in it.",
        "05",
    ),
    Question(
        "You raise the share of demonstrations in the mixture. With which loss do the instructions gain most?",
        ("UFT", "SFT plus DPO", "both alike"),
        "UFT",
        "UFT adds up all rows, so a share is a weight. SFT plus DPO averages each kind by itself.",
        "06",
    ),
    Question(
        "In the paper UFT leads SFT, then DPO by 19.4 points of IFEval. How much of that did the second stage forget?",
        ("nearly all", "about half", "about 15 %"),
        "about 15 %",
        "SFT had 29.5 and SFT, then DPO has 26.6. The other 16.5 points SFT never had.",
        "11",
    ),
)


def quiz(headless: bool = False) -> ipywidgets.VBox | Folded:
    """All questions, one below the other, and a line that counts the right answers.

    Args:
        headless: True gives the questions with answers that the reader can unfold.

    Returns:
        A box with the attributes `boxes` (one for each question) and `score` (the line); headless, HTML.
    """
    boxes: list[Any] = []  # boxes, or HTML where headless
    for number, q in enumerate(QUESTIONS, start=1):
        because = f"{q.because} (Notebook {q.notebook}.)"
        boxes.append(predict(f"{number}. {q.asked}", list(q.options), q.answer, because, headless))
    if headless:
        return Folded("".join(boxes))
    score = Spoken(text=f"0 of {len(boxes)} answered.")

    def count(_: Mapping[str, Any]) -> None:
        given = [(box.buttons.value, q.answer) for box, q in zip(boxes, QUESTIONS, strict=True) if box.buttons.value]
        right = sum(value == answer for value, answer in given)
        score.text = f"{right} right of {len(given)} answered; {len(boxes)} questions in all."

    for box in boxes:
        box.buttons.observe(count, names="value")
    made = Box([*boxes, score])
    made.add_class("uftlab")
    made.boxes, made.score, made.still = boxes, score, "".join(box.still for box in boxes)
    return made

"""Rewards painted on words: which part of a completion earned them; and a desk at which any text can be typed in.

A word that the policy likes better than its reference does stands in a solid blue box with an upward sign, one that
it likes less in a dashed orange box with a downward sign; the number below it is the log-ratio in nats. Sign, frame and
number say the same as the colour.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from functools import cache
from typing import Any

import ipywidgets
import pandas as pd
import torch

from uftlab import theme
from uftlab.errors import InputError
from uftlab.pulse import Pulse
from uftlab.reading import Reading, read_text
from uftlab.rewards import implicit_score
from uftlab.widgets import STYLE, Folded, Spoken, choice

FULL = 3.0  # nats at which a colour is as strong as it gets
LEGEND = "▲ solid: likelier than under the reference. ▼ dashed: less likely. Numbers: nats of each word."


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _shade(colour: str, strength: float) -> str:
    """The colour mixed with white: dark text stays readable on it, in light and dark notebooks alike."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - part) * 0.6 * min(1.0, strength)):02x}" for part in parts)


def painted(reading: Reading, caption: str = "") -> Folded:
    """The words of a completion with their log-ratios, as HTML that a notebook displays."""
    boxes = []
    for word, value in zip(reading.words, reading.logratios, strict=True):
        colour, frame, sign = (theme.COLOURS[0], "solid", "▲") if value >= 0 else (theme.COLOURS[1], "dashed", "▼")
        look = (
            f"display:inline-block; text-align:center; margin:3px; padding:1px 7px; border:2px {frame} {colour}; "
            f"border-radius:5px; background:{_shade(colour, abs(value) / FULL)}; color:{theme.INK}"
        )
        shown = html.escape(word)
        boxes.append(
            f'<span style="{look}" title="{shown}: {_signed(value)} nats">{shown}<br>'
            f'<span style="font-size:75%">{sign} {_signed(value)}</span></span>'
        )
    heading = f"<div><b>{html.escape(caption)}</b></div>" if caption else ""
    return Folded(f'<div style="font-size:18px; line-height:1.35; padding:4px 0">{heading}{"".join(boxes)}</div>')


def summed_up(reading: Reading, beta: float) -> str:
    """The reward of the whole completion in words, and the words that the tokenizer does not know.

    >>> summed_up(Reading(("moss", "<end>"), (1.0, -0.5), ("moss",)), 0.1)
    'The words add up to +0.50 nats; times β = 0.1 the implicit reward is +0.05, the implicit score 0.51. \
Unknown to the tokenizer and read as <unk>: moss.'
    """
    total = sum(reading.logratios)
    score = implicit_score(torch.tensor(beta * total)).item()
    text = (
        f"The words add up to {_signed(total)} nats; times β = {beta:g} the implicit reward is "
        f"{_signed(beta * total)}, the implicit score {score:.2f}."
    )
    if reading.unknown:
        text += f" Unknown to the tokenizer and read as <unk>: {', '.join(reading.unknown)}."
    return text


def desk(
    pulses: Mapping[str, Pulse], rows: pd.DataFrame, shown: int = 120, headless: bool = False
) -> ipywidgets.VBox | Folded:
    """Pick a held-out completion or type any, and see the reward of each word under the policy at the end of a run.

    Args:
        rows: as of `uftlab.reading.held_out`; the first `shown` pairs and demonstrations can be picked.
        headless: True gives the painting of the first row under the first run.

    Returns:
        A box with `controls`, `spoken` and `painting` as attributes; headless a piece of HTML.
    """
    half = shown // 2
    picked = pd.concat([rows[rows["pair"] >= 0].head(half), rows[rows["pair"] < 0].head(shown - half)])
    options = {
        f"{r.role}{f' of pair {r.pair + 1}' if r.pair >= 0 else ''}: {r.completion}": (r.prompt, r.completion)
        for r in picked.itertuples()
    }

    @cache
    def model(name: str, snapshot: int) -> Any:
        return pulses[name].policy(snapshot)

    def look(name: str, own: bool, prompt: str, completion: str) -> tuple[str, str]:
        pulse, last = pulses[name], len(pulses[name].steps) - 1
        try:
            reading = read_text(model(name, last), model(name, pulse.reference(last, own)), prompt, completion)
        except InputError as error:
            return str(error), ""
        return summed_up(reading, pulse.beta), painted(reading)

    first = next(iter(pulses))
    if headless:
        prompt, completion = next(iter(options.values()))
        said, drawn = look(first, True, prompt, completion)
        return Folded(f"<p><b>{html.escape(prompt)}</b> ({html.escape(first)})</p>{drawn}<p>{html.escape(said)}</p>")

    controls: dict[str, Any] = {
        "run": choice("policy", list(pulses), first),
        "own": choice("reference", {"what its last stage began with": True, "the base": False}, True),
        "row": ipywidgets.Dropdown(options=options, description="pick"),
        "prompt": ipywidgets.Text(description="prompt", continuous_update=False),
        "completion": ipywidgets.Text(description="completion", continuous_update=False),
    }
    for control in controls.values():
        control.style.description_width = "110px"
    for name in ("row", "prompt", "completion"):
        controls[name].layout.width = "min(100%, 900px)"
    for name in ("run", "own"):
        controls[name].style.button_width = "auto"
    spoken, painting = Spoken(), ipywidgets.HTML()

    def follow(_: object = None) -> None:
        texts = controls["prompt"].value, controls["completion"].value
        spoken.text, painting.value = look(controls["run"].value, controls["own"].value, *texts)

    def pick(_: object = None) -> None:
        controls["prompt"].value, controls["completion"].value = controls["row"].value

    pick()
    follow()
    controls["row"].observe(pick, names="value")
    for name in ("run", "own", "prompt", "completion"):
        controls[name].observe(follow, names="value")
    legend = ipywidgets.HTML(f'<div style="font-size:16px">{LEGEND}</div>')
    box = ipywidgets.VBox([ipywidgets.HTML(STYLE), *controls.values(), spoken, painting, legend])
    box.add_class("uftlab")
    box.controls, box.spoken, box.painting = controls, spoken, painting
    return box

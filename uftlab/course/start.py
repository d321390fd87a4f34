"""What notebook 00 shows: one picture of training, the questions of the course, and two routes through it."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from uftlab.course import minutes
from uftlab.course.notebooks import NOTEBOOKS
from uftlab.plots import theme
from uftlab.plots.widgets import Folded

QUESTIONS = (  # what a reader wants to know, and the beginning of the notebook's name
    ("Which reward does a policy carry inside?", "01"),
    ("What does each loss do to one completion?", "02"),
    ("What does a model know before we train it?", "03"),
    ("Does a second stage forget? Is it the loss or the mixing?", "04"),
    ("My log shows reward margins. What do they mean?", "05"),
    ("How much of each kind of data?", "06"),
    ("Which β?", "07"),
    ("Should the model learn from its own answers?", "08"),
    ("What predicts forgetting?", "09"),
    ("Does it hold on a real model?", "10"),
    ("Is the paper right? How do I check any paper?", "11"),
)
PAGES = (
    ("I want to train on my own data.", "../docs/train.md"),
    ("I come from TRL's DPOTrainer.", "../docs/from_dpo_trainer.md"),
    ("I want to add a loss.", "../docs/how_to_add_a_loss.md"),
    ("I do not know a word.", "glossary.md"),
)
THREE_HOURS = (  # notebook, what to read, minutes
    ("00", "all of it, the quiz at the end", 10),
    ("01", "with exercise 1", 22),
    ("02", "with exercise 1", 28),
    ("03", "without exercises", 30),
    ("04", "with exercise 2", 40),
    ("06", "with exercise 1", 23),
    ("11", "with exercise 1", 27),
)


def _link(number: str) -> str:
    """A link to a notebook, or nothing where it is not there."""
    found = sorted(NOTEBOOKS.glob(f"{number}_*.ipynb"))
    return f'<a href="{found[0].name}">{found[0].stem}</a>' if found else ""


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Folded:
    left = 'style="text-align: left; font-size: 16px"'
    head = "".join(f"<th {left}>{name}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td {left}>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return Folded(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def where_to_go() -> Folded:
    """Questions with a link to the notebook or page that answers each. Notebooks that are not there are left out."""
    rows = [(html.escape(asked), _link(number)) for asked, number in QUESTIONS if _link(number)]
    rows += [(html.escape(asked), f'<a href="{page}">{page.split("/")[-1]}</a>') for asked, page in PAGES]
    return _table(("What do you want to know?", "Go to"), rows)


def routes() -> dict[str, list[tuple[str, str, int]]]:
    """Name of a route -> its notebooks, what to read there, and minutes. The short one is made of the core cells."""
    core = [(name[:2], "; ".join(sections), needed) for name, sections, needed in minutes.one_hour()]
    return {"One hour": core, "Three hours": list(THREE_HOURS)}


def route(name: str) -> Folded:
    """One of the `routes` as a table with its minutes."""
    taken = [own for own in routes()[name] if _link(own[0])]
    rows = [(_link(number), html.escape(what), str(needed)) for number, what, needed in taken]
    total = sum(needed for _, _, needed in taken)
    return _table((f"{name}: {total} minutes", "what to read", "minutes"), rows)


# ------------------------------------------------------------------------------ data, loss, model

_DATA = {  # name -> (second line, height of its middle)
    "demonstrations": ("a prompt and a good answer", 8.0),
    "comparisons": ("of two answers, which is better", 5.0),
    "scores": ("how good is this answer, 0 to 1", 1.6),
}
_LOSSES = {
    "SFT": ("make this answer likelier", 8.5),
    "reward model, then RLHF": ("learn to judge, then try and be judged", 6.2),
    "DPO": ("better answer above the other", 3.9),
    "UNA, UFT": ("the policy's score = the given score", 1.6),
}
_FLOWS = (
    ("demonstrations", "SFT"),
    ("demonstrations", "UNA, UFT"),
    ("comparisons", "reward model, then RLHF"),
    ("comparisons", "DPO"),
    ("scores", "UNA, UFT"),
)


def flow() -> go.Figure:
    """One picture: three kinds of data, four kinds of training, one model. UFT reads demonstrations as score 1."""
    fig = theme.figure(title="Data, loss, model: UFT puts two kinds of data into one loss", height=600)

    def box(left: float, right: float, middle: float, name: str, more: str, colour: str) -> None:
        fig.add_shape(
            type="rect", x0=left, x1=right, y0=middle - 0.85, y1=middle + 0.85, line={"color": colour, "width": 3},
            fillcolor="white",
        )  # fmt: skip
        fit = int(7 * (right - left))  # characters of this size in a figure of 600 pixels
        text = f"<b>{theme.lines(name, fit - 3)}</b><br>{theme.lines(more, fit)}"
        fig.add_annotation(x=(left + right) / 2, y=middle, text=text, showarrow=False, font_size=14)

    def arrow(x0: float, y0: float, x1: float, y1: float, colour: str) -> None:
        ends = {"x": x1, "y": y1, "ax": x0, "ay": y0, "axref": "x", "ayref": "y"}
        fig.add_annotation(**ends, text="", showarrow=True, arrowhead=2, arrowwidth=3, arrowcolor=colour)

    for name, (more, middle) in _DATA.items():
        box(0.0, 3.0, middle, name, more, theme.COLOURS[0])
    for name, (more, middle) in _LOSSES.items():
        box(3.9, 7.3, middle, name, more, theme.COLOURS[1])
        arrow(7.3, middle, 8.2, 5.0 + (middle - 5.0) * 0.18, theme.INK)
    box(8.2, 10.0, 5.0, "the model", "(its weights)", theme.COLOURS[2])
    for data, loss in _FLOWS:
        colour = theme.COLOURS[1] if loss == "UNA, UFT" else theme.INK
        arrow(3.0, _DATA[data][1], 3.9, _LOSSES[loss][1], colour)
    fig.add_annotation(x=3.4, y=3.2, text="as score 1", showarrow=False, xanchor="right", font_size=17)
    heads = {"data": 1.5, "training": 5.6, "result": 9.1}
    for text, x in heads.items():
        fig.add_annotation(x=x, y=9.9, text=f"<i>{text}</i>", showarrow=False, font_size=19)
    fig.add_scatter(x=[0, 10], y=[0, 10], mode="markers", marker_opacity=0, showlegend=False, hoverinfo="skip")
    fig.update_xaxes(visible=False, range=[-0.05, 10.05])
    fig.update_yaxes(visible=False, range=[0.4, 10.3])
    return fig.update_layout(margin={"l": 15, "r": 15, "b": 15})

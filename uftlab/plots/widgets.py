"""Figures under the fingers: named controls around one FigureWidget, and a question to answer first.

`explore` wraps a pure function `(parameters) -> Figure`. The same function drawn once is the *static twin*:
what papermill, a printed page or a reader without a kernel sees. Whether there is a hand to move the sliders
is said by the caller (`headless`), never guessed. Nothing here prints into an Output widget.

A FigureWidget carries 5 MB of JavaScript: one per notebook, everything else as plain figures.
"""

from __future__ import annotations

import gc
import html
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import plotly.graph_objects as go
import traitlets
from IPython import get_ipython
from plotly.basedatatypes import BaseFigure

from uftlab.errors import InputError
from uftlab.plots import theme

STYLE = """<style>
.uftlab { --jp-widgets-font-size: 17px; --jp-widgets-inline-height: 36px; }
.uftlab .uftlab-spoken { font-size: 18px; line-height: 1.5; padding: 4px 0; color: var(--jp-content-font-color0); }
.uftlab .uftlab-control label.widget-label { width: auto !important; max-width: none; text-align: left;
  white-space: normal; height: auto; line-height: 1.4; }
.uftlab .uftlab-choice { flex-direction: column; align-items: stretch; width: auto; height: auto; }
.uftlab .uftlab-choice select { flex: none; height: var(--jp-widgets-inline-height); }
.uftlab .uftlab-number { display: grid; grid-template: "label label" auto "field slider" auto / 6.5em 1fr; }
.uftlab .uftlab-number > .widget-text { display: contents; }
.uftlab .uftlab-number > .widget-text > label { grid-area: label; }
.uftlab .uftlab-number > .widget-text > input { grid-area: field; width: auto; min-width: 0; }
.uftlab .uftlab-number > .widget-slider { grid-area: slider; width: auto; min-width: 0; padding-left: 12px; }
.uftlab .noUi-handle { border: 2px solid #0072B2; }
.uftlab .noUi-handle:focus-visible, .uftlab button:focus-visible, .uftlab select:focus-visible,
.uftlab input:focus-visible { outline: 3px solid #E69F00 !important; outline-offset: 2px; }
body[data-jp-theme-light="false"] .uftlab select { background-image: url("data:image/svg+xml,\
<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'><path d='M3 6l6 6 6-6' stroke='white' fill='none'/>\
</svg>"); }
.uftlab .js-plotly-plot, .jp-OutputArea .js-plotly-plot { min-width: 600px; margin: 8px; background: white;
  border-radius: 6px; box-shadow: 0 0 0 8px white; }
.uftlab :has(> .js-plotly-plot), .jp-OutputArea :has(> .js-plotly-plot) { overflow-x: auto; }
</style>"""
"""Labels above their controls, a visible focus, and every figure a white card that scrolls where a window is narrow."""


class Spoken(ipywidgets.HTML):
    """One line of plain text, `text`; `_Names` makes its place in the page a live region."""

    text = traitlets.Unicode()

    @traitlets.observe("text")
    def _write(self, change: Mapping[str, Any]) -> None:
        self.value = f'<div class="uftlab-spoken">{html.escape(change["new"])}</div>'


class _Names(anywidget.AnyWidget):
    """Says in the page what ipywidgets leaves unsaid, to a screen reader above all.

    The line of a `Spoken` is announced when it changes: what announces is the element around it, which stays. A
    slider's handle gets its name and its value (of a logarithmic one the page would know the exponent only), a row
    of buttons its name and which of them is pressed.

    A figure that was drawn where nobody saw it is 700 pixels wide, and plotly.js looks again only when the window
    changes: this tells it so whenever there is more room or less.

    It looks at the page and never at messages: a page that is busy with plotly.js for more than two seconds may
    cut anywidget's off. For the same reason it is made before the figure.
    """

    _esm = """
    function name(controls, line) {
      line.setAttribute("role", "status");
      line.setAttribute("aria-live", "polite");
      for (const number of controls.querySelectorAll(".uftlab-number")) {
        const [handle, field] = [number.querySelector(".noUi-handle"), number.querySelector("input")];
        if (!handle || !field) continue;
        handle.setAttribute("aria-label", number.querySelector("label").textContent);
        handle.setAttribute("aria-valuetext", field.value);
      }
      for (const group of controls.querySelectorAll(".widget-toggle-buttons")) {
        group.setAttribute("role", "group");
        group.setAttribute("aria-label", group.querySelector("label").textContent);
        for (const button of group.querySelectorAll("button"))
          button.setAttribute("aria-pressed", button.classList.contains("mod-active"));
      }
    }
    export default { render({ el }) {
      let observer = null, sizes = null;
      const find = () => {
        const box = el.closest(".uftlab");
        const [controls, line] = [".uftlab-controls", ".uftlab-line .widget-html-content"].map(
          (place) => box?.querySelector(place));
        if (!controls || !line) return requestAnimationFrame(find);
        observer = new MutationObserver(() => requestAnimationFrame(() => name(controls, line)));
        observer.observe(controls, { subtree: true, childList: true, attributeFilter: ["class"] });
        observer.observe(line, { childList: true });
        sizes = new ResizeObserver(() => {
          const plot = box.querySelector(".js-plotly-plot"), drawn = plot?.querySelector(".main-svg");
          if (drawn && Math.abs(plot.clientWidth - drawn.clientWidth) > 1) dispatchEvent(new Event("resize"));
        });
        sizes.observe(box);
        name(controls, line);
      };
      find();
      return () => { observer?.disconnect(); sizes?.disconnect(); };
    } };
    """


def _box(above: ipywidgets.Widget, grid: ipywidgets.Widget, spoken: Spoken, *below: Any) -> ipywidgets.VBox:
    """Everything in one box: what stands above, the controls, the spoken line and what stands below."""
    grid.add_class("uftlab-controls")
    spoken.add_class("uftlab-line")
    box = ipywidgets.VBox([above, grid, spoken, *below])
    box.add_class("uftlab")
    return box


# ------------------------------------------------------------------------------ controls


def slider(label: str, value: float, low: float, high: float, step: float = 0.1) -> ipywidgets.FloatSlider:
    """A slider for a number on a plain scale, with its label; `explore` adds the text field."""
    return ipywidgets.FloatSlider(value, min=low, max=high, step=step, description=label)


def log_slider(label: str, value: float, low: float, high: float) -> ipywidgets.FloatLogSlider:
    """A slider for a positive number, ten steps to each factor of ten: `low` and `high` are values, not exponents.

    Both ends and the value are moved to the nearest step (0.05 to 0.0501), so that 0.1, 1 and 10 are steps as well. The
    page does the same to a number that is typed into the field beside it.
    """
    value = 10 ** round(math.log10(value), 1)
    exponents = {"min": round(math.log10(low), 1), "max": round(math.log10(high), 1)}
    return ipywidgets.FloatLogSlider(value, base=10, step=0.1, description=label, **exponents)


def choice(label: str, options: Sequence[str] | Mapping[str, Any], value: Any = None) -> ipywidgets.ValueWidget:
    """One of several: buttons for up to four options (easy to reach with keys), a dropdown beyond."""
    options = dict(options) if isinstance(options, Mapping) else list(options)
    kind = ipywidgets.ToggleButtons if len(options) <= 4 else ipywidgets.Dropdown
    made = kind(options=options, description=label)
    if value is not None:
        made.value = value
    return made


def _typed(control: ipywidgets.ValueWidget) -> ipywidgets.ValueWidget | None:
    """The named text field that goes with a slider (whose own accessible name is empty), linked both ways."""
    if isinstance(control, ipywidgets.FloatLogSlider):
        bounds = {"min": control.base**control.min, "max": control.base**control.max, "step": None}
    elif isinstance(control, (ipywidgets.FloatSlider, ipywidgets.IntSlider)):
        bounds = {"min": control.min, "max": control.max, "step": control.step}
    else:
        return None
    kind = ipywidgets.BoundedIntText if isinstance(control, ipywidgets.IntSlider) else ipywidgets.BoundedFloatText
    field = kind(value=control.value, description=control.description, continuous_update=False, **bounds)
    readable = (lambda value: float(f"{value:.3g}"), lambda value: value)  # 0.794, not 0.7943282347242815
    whole = (int, int)
    transform = whole if isinstance(control, ipywidgets.IntSlider) else readable
    ipywidgets.link((control, "value"), (field, "value"), transform=transform)
    return field


def _row(control: ipywidgets.ValueWidget) -> ipywidgets.Widget:
    """A control as it is shown: its label above it, a slider beside its text field."""
    field = _typed(control)
    if field is None:
        row = control
        row.add_class("uftlab-choice")
        control.style.description_width = "initial"
        if isinstance(control, ipywidgets.ToggleButtons):
            control.style.button_width = "auto"
    else:
        control.tooltip, control.description, control.readout = control.description, "", False
        row = ipywidgets.HBox([field, control])
        row.add_class("uftlab-number")
    row.add_class("uftlab-control")
    return row


# ------------------------------------------------------------------------------ figures that follow


def _same(one: Any, other: Any) -> bool:
    """Equality of plotly properties: dictionaries, lists, arrays and plain values."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(np.asarray(one), np.asarray(other))
    return bool(one == other)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Top-level properties that differ; one that is gone is set to None."""
    gone = {key: None for key in old if key not in new}
    return gone | {key: value for key, value in new.items() if key not in old or not _same(old[key], value)}


def _figure_widget(fig: go.Figure) -> BaseFigure:
    """The live copy of a figure.

    The first FigureWidget of a process makes plotly import nbformat, and with it a grammar of web addresses
    that takes seconds to build and that no notebook needs. It is an optional part of a schema checker, hidden
    for that one import (2.6 s become 0.2 s).
    """
    grammar = "rfc3987_syntax"
    hide = grammar not in sys.modules and "nbformat" not in sys.modules
    if hide:
        sys.modules[grammar] = None  # type: ignore[assignment]
    try:
        made = theme.quiet(go.FigureWidget(fig))
    finally:
        if hide:
            del sys.modules[grammar]
    # After each change the page sends back every default that plotly.js filled in, and plotly.py looks each of them up
    # in its grammar of figures: 0.3 s the first time, 0.06 s ever after, and a key pressed meanwhile waits for it.
    # Zoom and hidden traces come back by other messages; defaults are of use to `on_edits_completed` and `on_change`.
    made.unobserve_all("_js2py_traceDeltas")
    return made


def redraw(fig: BaseFigure, old: go.Figure, new: go.Figure) -> None:
    """Take a widget from one figure to the next, in place and in one message; only what changed is sent.

    The comparison is with the figure drawn before, not with the widget, whose state also holds the reader's
    zoom and hidden traces: those survive.

    Raises:
        InputError: where the new figure has other traces than the old one: a trace that has nothing to show
            must be drawn empty, not left out.
    """
    before, after = ([trace.type for trace in f.data] for f in (old, new))
    if before != after:
        rule = f"keep its {len(before)} traces and their types"
        raise InputError("The figure function", rule, after, "Draw an empty trace instead of leaving one out")
    with fig.batch_update():
        for trace, was, drawn in zip(fig.data, old.data, new.data, strict=True):
            trace.update(_changes(was.to_plotly_json(), drawn.to_plotly_json()), overwrite=True)
        fig.layout.update(_changes(old.layout.to_plotly_json(), new.layout.to_plotly_json()), overwrite=True)


def _set_apart(_: object = None) -> None:
    """Collect garbage now, and take everything else that lives out of the sight of later collections."""
    gc.collect()
    gc.freeze()


def _spare_the_collector() -> None:
    """In a kernel, from the end of this cell on: no full collection of garbage falls into a move.

    torch, transformers, plotly and the tables of a notebook make half a million objects that stay. A full collection
    walks over all of them, a pause of 0.3 s, and the garbage of thirty moves is enough to start one. So at the end of
    each cell what is new is walked over once and set apart; what moves leave behind is then collected in a few
    milliseconds. What is set apart and becomes garbage later stays until the cell of the explorer runs again.
    """
    shell = get_ipython()
    if shell is not None:
        gc.unfreeze()
        shell.events.register("post_run_cell", _set_apart)  # of a second time IPython takes no notice


def explore(
    figure_fn: Callable[..., go.Figure],
    controls: Mapping[str, ipywidgets.ValueWidget],
    describe: Callable[..., str],
    headless: bool = False,
    columns: int = 1,
) -> ipywidgets.VBox | go.Figure:
    """A figure that follows its controls, with a line that says the key numbers in words.

    Args:
        figure_fn: pure function of the controls' values, called by name: `figure_fn(beta=0.1, ...)`. It returns
            a plain figure with the same traces each time.
        controls: name of each parameter -> a widget with a label (`description`), see `slider`, `log_slider`
            and `choice`. Shown in this order.
        describe: the same parameters -> one or two sentences with the key numbers, as plain text.
        headless: True gives the static twin, `figure_fn` at the controls' first values.
        columns: columns of controls above the figure, where the window is wide enough.

    Returns:
        A box with `figure` (the FigureWidget), `controls` and `spoken` as attributes; headless a plain figure.
    """
    unnamed = [name for name, control in controls.items() if not control.description]
    if unnamed:
        raise InputError("Every control", "have a description", unnamed, "Say description='...' when making it")

    def values() -> dict[str, Any]:
        return {name: control.value for name, control in controls.items()}

    shown = figure_fn(**values())
    if headless:
        return shown
    names = _Names(layout={"display": "none"})
    fig = _figure_widget(shown)
    fig.layout.autosize = True
    fig.layout.uirevision = "keep"  # one constant for ever: plotly then never undoes the reader's zoom
    spoken = Spoken(text=describe(**values()))

    def follow(_: object = None) -> None:
        nonlocal shown
        new = figure_fn(**values())
        redraw(fig, shown, new)
        shown = new
        spoken.text = describe(**values())

    rows = [_row(control) for control in controls.values()]
    for control in controls.values():
        control.observe(follow, names="value")
    share = f"calc((100% - {32 * (columns - 1)}px) / {columns})"  # at most so many columns, fewer in a narrow window
    width = f"repeat(auto-fill, minmax(min(100%, max(290px, {share})), 1fr))"
    grid = ipywidgets.GridBox(rows, layout={"grid_template_columns": width, "grid_gap": "8px 32px"})
    box = _box(ipywidgets.HTML(STYLE), grid, spoken, fig, names)
    box.figure, box.controls, box.spoken = fig, dict(controls), spoken
    _spare_the_collector()
    return box


# ------------------------------------------------------------------------------ a guess before the answer


class Folded(str):
    """HTML that a notebook displays as it is and a terminal as text: the static twin of `predict`."""

    def _repr_html_(self) -> str:
        return str(self)


def predict(
    question: str, options: Sequence[str], answer: str, because: str, headless: bool = False
) -> ipywidgets.VBox | Folded:
    """A question to commit to before reading on: the answer appears with the first guess, which then stays.

    Args:
        options: two or more; `answer` is one of them.
        because: one or two sentences that are shown, whatever was guessed.
        headless: True gives the question with its answer folded away.

    Returns:
        A box with `buttons` and `spoken` as attributes; headless a piece of HTML.
    """
    if answer not in options:
        raise InputError("The answer", f"be one of {list(options)}", repr(answer), "Correct the question")
    if headless:
        choices = " / ".join(html.escape(option) for option in options)
        folded = f"<details><summary>Answer</summary><b>{html.escape(answer)}</b>. {html.escape(because)}</details>"
        return Folded(f"<p><b>{html.escape(question)}</b> {choices}</p>{folded}")
    buttons = ipywidgets.ToggleButtons(options=list(options), value=None, description="Your guess:")
    grid = ipywidgets.VBox([_row(buttons)])
    spoken = Spoken(text="Choose before you read on.")

    def reveal(change: Mapping[str, Any]) -> None:
        buttons.disabled = True
        right = change["new"] == answer
        verdict = f"Yes: {answer}." if right else f"Not this time: {answer} (you said {change['new']})."
        spoken.text = f"{verdict} {because}"

    buttons.observe(reveal, names="value")
    asked = ipywidgets.HTML(f"{STYLE}<b>{html.escape(question)}</b>")
    box = _box(asked, grid, spoken, _Names(layout={"display": "none"}))
    box.buttons, box.spoken = buttons, spoken
    return box

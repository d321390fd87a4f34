"""Interactive figures: labelled controls around one FigureWidget, and questions that readers answer first.

`explore` takes a pure function `(parameters) -> Figure`. The figure at the first values of the controls is the *static
twin*: papermill, a printed page or a reader without a kernel shows it. The caller says which of the two is wanted
(`headless`). Nothing here prints into an Output widget.

A FigureWidget needs 5 MB of JavaScript. So a notebook has one, and all other figures are plain figures.
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
from uftlab.evals.doctor import Report
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
"""Labels above controls, a visible focus, and figures as white cards that scroll in a narrow window."""


class Spoken(ipywidgets.HTML):
    """One line of plain text, `text`. `_Names` makes it a live region, which screen readers announce."""

    text = traitlets.Unicode()

    @traitlets.observe("text")
    def _write(self, change: Mapping[str, Any]) -> None:
        self.value = f'<div class="uftlab-spoken">{html.escape(change["new"])}</div>'


class _Names(anywidget.AnyWidget):
    """Adds accessible names to the page, for screen readers, because ipywidgets does not.

    A screen reader announces the line of a `Spoken` when it changes. The live region is the element around the line,
    because that element is never replaced. The handle of a slider gets a name and a value (for a logarithmic slider the
    page would have the exponent only). A row of buttons gets a name and marks the pressed button.

    A figure that was drawn while it was hidden is 700 pixels wide, and plotly.js corrects this only when the window
    changes its size. So this widget sends a resize event whenever the width changes.

    The code reads the page only and needs no messages from the kernel: messages of anywidget may be lost if plotly.js
    keeps the page busy for more than two seconds. For the same reason the widget is made before the figure.
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
    """One box with the widget above, the controls, the spoken line and the widgets below."""
    grid.add_class("uftlab-controls")
    spoken.add_class("uftlab-line")
    box = ipywidgets.VBox([above, grid, spoken, *below])
    box.add_class("uftlab")
    return box


# ------------------------------------------------------------------------------ controls


def slider(label: str, value: float, low: float, high: float, step: float = 0.1) -> ipywidgets.FloatSlider:
    """A slider on a linear scale with a label. `explore` adds the text field."""
    return ipywidgets.FloatSlider(value, min=low, max=high, step=step, description=label)


def log_slider(label: str, value: float, low: float, high: float) -> ipywidgets.FloatLogSlider:
    """A slider for a positive number with ten steps per factor of ten. `low` and `high` are values, not exponents.

    Both ends and the value are moved to the nearest step (0.05 to 0.0501), so that 0.1, 1 and 10 are steps as well. The
    page does the same with a number that is typed into the text field.
    """
    value = 10 ** round(math.log10(value), 1)
    exponents = {"min": round(math.log10(low), 1), "max": round(math.log10(high), 1)}
    return ipywidgets.FloatLogSlider(value, base=10, step=0.1, description=label, **exponents)


def choice(label: str, options: Sequence[str] | Mapping[str, Any], value: Any = None) -> ipywidgets.ValueWidget:
    """A choice of one option: buttons for up to four options (easy to use with keys), a dropdown for more."""
    options = dict(options) if isinstance(options, Mapping) else list(options)
    kind = ipywidgets.ToggleButtons if len(options) <= 4 else ipywidgets.Dropdown
    made = kind(options=options, description=label)
    if value is not None:
        made.value = value
    return made


def _typed(control: ipywidgets.ValueWidget) -> ipywidgets.ValueWidget | None:
    """The text field of a slider, linked both ways. It carries the label, because sliders have no accessible name."""
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
    """A control with its label above. A slider has its text field beside it."""
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
    """Top-level properties that differ. A property that the new figure lacks is set to None."""
    gone = {key: None for key in old if key not in new}
    return gone | {key: value for key, value in new.items() if key not in old or not _same(old[key], value)}


def _figure_widget(fig: go.Figure) -> BaseFigure:
    """A FigureWidget with the content of a figure.

    The first FigureWidget of a process makes plotly import nbformat. This import builds a grammar of web addresses,
    which takes seconds and which no notebook needs. The grammar is an optional part of a schema checker. It is hidden
    during that import, which takes 0.2 s instead of 2.6 s.
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
    # After each change the page sends back every default value of plotly.js, and plotly.py validates each of them. This
    # takes 0.3 s the first time and 0.06 s later, and a key press has to wait. Zoom and hidden traces use other
    # messages. Only `on_edits_completed` and `on_change` need the defaults.
    made.unobserve_all("_js2py_traceDeltas")
    return made


def redraw(fig: BaseFigure, old: go.Figure, new: go.Figure) -> None:
    """Change a widget from one figure to the next, in place and in one message. Only changes are sent.

    The new figure is compared with the old figure, not with the widget. The widget also has the zoom and the hidden
    traces of the reader, and keeps them.

    Raises:
        InputError: when the new figure has other traces than the old one. A trace without data must be drawn empty, not
            left out.
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
    """Collect garbage now, and exclude all objects that remain from later collections."""
    gc.collect()
    gc.freeze()


def _spare_the_collector() -> None:
    """Keep garbage collection short in a kernel, so that no slider has to wait for it.

    torch, transformers, plotly and the tables of a notebook make half a million permanent objects. A full collection
    visits all of them, which takes 0.3 s, and thirty moves of a slider make enough garbage to start one. So at the end
    of each cell all objects are excluded from later collections, which then take a few milliseconds. Excluded objects
    that become garbage stay in memory until the cell of the explorer runs again.
    """
    shell = get_ipython()
    if shell is not None:
        gc.unfreeze()
        shell.events.register("post_run_cell", _set_apart)  # IPython ignores a second registration


def explore(
    figure_fn: Callable[..., go.Figure],
    controls: Mapping[str, ipywidgets.ValueWidget],
    describe: Callable[..., str],
    headless: bool = False,
    columns: int = 1,
) -> ipywidgets.VBox | go.Figure:
    """A figure that follows its controls, and a line with the key numbers in words.

    Args:
        figure_fn: pure function of the values of the controls, called with keywords: `figure_fn(beta=0.1, ...)`. It
            returns a plain figure with the same traces each time.
        controls: name of each parameter -> a widget with a label (`description`), see `slider`, `log_slider`
            and `choice`. Shown in this order.
        describe: function of the same parameters. It returns one or two sentences with the key numbers.
        headless: True gives the static twin: `figure_fn` at the first values of the controls.
        columns: number of columns of controls above the figure, if the window is wide enough.

    Returns:
        A box with the attributes `figure` (the FigureWidget), `controls` and `spoken`. With `headless` a plain figure.
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
    fig.layout.uirevision = "keep"  # a constant: plotly then keeps the zoom of the reader
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
    share = f"calc((100% - {32 * (columns - 1)}px) / {columns})"  # fewer columns in a narrow window
    width = f"repeat(auto-fill, minmax(min(100%, max(290px, {share})), 1fr))"
    grid = ipywidgets.GridBox(rows, layout={"grid_template_columns": width, "grid_gap": "8px 32px"})
    box = _box(ipywidgets.HTML(STYLE), grid, spoken, fig, names)
    box.figure, box.controls, box.spoken = fig, dict(controls), spoken
    _spare_the_collector()
    return box


# ------------------------------------------------------------------------------ a guess before the answer


class Folded(str):
    """The static twin of `predict`. A notebook displays it as HTML, a terminal as text."""

    def _repr_html_(self) -> str:
        return str(self)


def predict(
    question: str, options: Sequence[str], answer: str, because: str, headless: bool = False
) -> ipywidgets.VBox | Folded:
    """A question that the reader answers before reading on. The first guess is final and shows the answer.

    Args:
        options: two or more. `answer` is one of them.
        because: one or two sentences that are shown after any guess.
        headless: True gives the question with a hidden answer that the reader can unfold.

    Returns:
        A box with the attributes `buttons` and `spoken`. With `headless` a piece of HTML.
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


# ------------------------------------------------------------------------------ what the doctor says


def doctor(reports: Mapping[str, Report], headless: bool = False) -> ipywidgets.VBox | Folded:
    """What the doctor says of several runs (`uftlab.evals.doctor.diagnose`), one at a time, chosen from a list.

    Args:
        reports: name for the reader -> report; at least one.
        headless: True gives all of them, one below the other, each folded but the first.

    Returns:
        A box with the attributes `chosen`, `spoken` and `shown`. With `headless` a piece of HTML.
    """
    if not reports:
        raise InputError("Runs to show", "be at least one", "none", "Name a run")
    if headless:
        parts: list[str] = []
        for name, own in reports.items():
            summary = f"<summary><b>{html.escape(name)}</b></summary>"
            parts.append(f"<details{'' if parts else ' open'}>{summary}{_findings(own)}</details>")
        return Folded("".join(parts))
    chosen, spoken, shown = choice("run", list(reports)), Spoken(), ipywidgets.HTML()

    def follow(_: object = None) -> None:
        report = reports[chosen.value]
        spoken.text = f"{chosen.value}: {', '.join(own.name for own in report.findings) or 'nothing was found'}."
        shown.value = _findings(report)

    follow()
    chosen.observe(follow, names="value")
    grid = ipywidgets.VBox([_row(chosen)])
    box = _box(ipywidgets.HTML(STYLE), grid, spoken, shown, _Names(layout={"display": "none"}))
    box.chosen, box.spoken, box.shown = chosen, spoken, shown
    return box


def _findings(report: Report) -> str:
    """A report as HTML; names are escaped."""
    lines = [
        f"<li><b>{html.escape(own.name)}</b> ({own.severity}): {html.escape(own.evidence.words)} "
        f"<br>{html.escape(own.means)} {html.escape(own.remedy)} <i>{html.escape(own.notebook)}</i></li>"
        for own in report.findings
    ]
    unknown = f"<p>Cannot be told from its log: {html.escape(', '.join(report.unknown))}.</p>" if report.unknown else ""
    return f"<ul>{''.join(lines) or '<li>Nothing was found.</li>'}</ul>{unknown}"

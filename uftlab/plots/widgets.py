"""Interactive figures: labelled controls beside one figure, and questions that readers answer first.

`explore` takes a pure function `(parameters) -> Figure`. The figure at the first values of the controls is the *static
twin*: papermill, a printed page or a reader without a kernel shows it. The caller says which of the two is wanted
(`headless`). Nothing here prints into an Output widget.
"""

from __future__ import annotations

import gc
import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import plotly.graph_objects as go
import traitlets
from IPython import get_ipython

from uftlab.errors import InputError
from uftlab.evals.doctor import Report
from uftlab.plots import theme

STYLE = """<style>
.uftlab { --jp-widgets-font-size: 16px; --jp-widgets-inline-height: 28px; container-type: inline-size; }
.uftlab .uftlab-spoken { font-size: 16px; line-height: 1.4; color: var(--jp-content-font-color0); }
.uftlab .uftlab-control label.widget-label { width: auto !important; max-width: none; text-align: left;
  white-space: normal; height: auto; line-height: 1.3; }
.uftlab .uftlab-choice { flex-direction: column; align-items: stretch; width: auto; height: auto; }
.uftlab .uftlab-choice select { flex: none; height: var(--jp-widgets-inline-height); }
.uftlab .uftlab-choice .jupyter-widget-toggle-button, .uftlab .uftlab-choice button { height: auto; line-height: 1.5;
  padding: 2px 8px; margin: 1px; }
.uftlab .uftlab-number { display: grid; grid-template: "label label" auto "field slider" auto / 5.6em 1fr; }
.uftlab .uftlab-number > .widget-text { display: contents; }
.uftlab .uftlab-number > .widget-text > label { grid-area: label; }
.uftlab .uftlab-number > .widget-text > input { grid-area: field; width: auto; min-width: 0; }
.uftlab .uftlab-number > .widget-slider { grid-area: slider; width: auto; min-width: 0; padding-left: 12px; }
.uftlab .uftlab-notes, .uftlab .uftlab-notes .widget-html-content { height: auto; line-height: 1.4; font-size: 15px; }
.uftlab .uftlab-notes ul { margin: 4px 0; padding-left: 18px; max-height: 220px; overflow: auto; }
.uftlab .uftlab-notes summary { cursor: pointer; }
.uftlab .noUi-handle { border: 2px solid #0072B2; }
.uftlab .noUi-handle:focus-visible, .uftlab button:focus-visible, .uftlab select:focus-visible,
.uftlab input:focus-visible, .uftlab summary:focus-visible { outline: 3px solid #D55E00 !important;
  outline-offset: 2px; }
body[data-jp-theme-light="false"] .uftlab select { background-image: url("data:image/svg+xml,\
<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'><path d='M3 6l6 6 6-6' stroke='white' fill='none'/>\
</svg>"); }
.uftlab .uftlab-desk { display: grid; grid-template: "controls line" auto "controls figure" 1fr / 250px minmax(0, 1fr);
  gap: 4px 20px; overflow: hidden; }
.uftlab .uftlab-desk > .uftlab-controls { grid-area: controls; display: grid; gap: 4px 20px; align-content: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 200px), 1fr)); overflow: hidden; padding: 3px; }
.uftlab .uftlab-desk > .uftlab-line { grid-area: line; height: auto; min-height: 4.2em; font-size: 16px; }
.uftlab .uftlab-desk > .uftlab-figure { grid-area: figure; overflow: hidden; }
@container (max-width: 640px) {
  .uftlab .uftlab-desk { grid-template: "controls" auto "line" auto "figure" auto / minmax(0, 1fr); }
}
.uftlab-figure .uftlab-card { background: white; border-radius: 6px; overflow: hidden; }
.uftlab-figure .uftlab-plot { transform-origin: 0 0; }
.uftlab-figure .uftlab-trouble { color: #222; padding: 8px; }
.uftlab-figure:has(.main-svg) .uftlab-wait { display: none; }
.uftlab-wait .uftlab-again { visibility: hidden; animation: uftlab-again 0s 10s forwards; }
@keyframes uftlab-again { to { visibility: visible; } }
.js-plotly-plot.jp-OutputArea-output { min-width: 600px; background: white; border-radius: 6px; transform-origin: 0 0; }
</style>"""
"""Labels above controls, a visible focus, controls beside the figure where there is room, figures as white cards.

The second line of `WAIT` appears after ten seconds. No script is needed for that, because a script may be what failed.
"""

PAINTER = (Path(__file__).parent / "painter.js").read_text(encoding="utf-8")
"""The JavaScript function `uftlabPainter`, see there."""

WAIT = (
    '<div class="uftlab-wait">The figure is being drawn.'
    '<div class="uftlab-again"><b>If it does not come, run this cell again.</b></div></div>'
)


class Spoken(ipywidgets.HTML):
    """One line of plain text, `text`. `_Names` makes it a live region, which screen readers announce."""

    text = traitlets.Unicode()

    @traitlets.observe("text")
    def _write(self, change: Mapping[str, Any]) -> None:
        self.value = f'<div class="uftlab-spoken">{html.escape(change["new"])}</div>'


class _Names(anywidget.AnyWidget):
    """Adds accessible names to the page, for screen readers, because ipywidgets does not, and fits figures.

    A screen reader announces the line of a `Spoken` when it changes. The live region is the element around the line,
    because that element is never replaced. The handle of a slider gets a name and a value (for a logarithmic slider the
    page would have the exponent only). A row of buttons gets a name and marks the pressed button.

    Plain figures of a notebook that are too wide for the window are made smaller as a whole. JupyterLab would cut them.

    The code reads the page only and needs no messages from the kernel: see `_Figure`.
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
    function fit(notebook) {
      for (const plot of notebook.querySelectorAll(".js-plotly-plot.jp-OutputArea-output")) {
        const { width, height } = plot._fullLayout ?? {};
        const room = plot.parentElement.getBoundingClientRect().right - plot.getBoundingClientRect().left;
        const scale = width && room > 0 ? Math.min(1, room / width) : 1;
        plot.style.transform = scale < 1 ? `scale(${scale})` : "";
        plot.style.marginBottom = scale < 1 ? `${(scale - 1) * height}px` : "";
      }
    }
    function keep_fitting(notebook) {
      let waiting = null;
      const soon = () => { waiting ??= setTimeout(() => { waiting = null; fit(notebook); }, 300); };
      new ResizeObserver(soon).observe(notebook);
      new MutationObserver(soon).observe(notebook, { subtree: true, childList: true });
      return soon;
    }
    export default { render({ el }) {
      let observer = null;
      const find = () => {
        const box = el.closest(".uftlab");
        const [controls, line] = [".uftlab-controls", ".uftlab-line .widget-html-content"].map(
          (place) => box?.querySelector(place));
        if (!controls || !line) return requestAnimationFrame(find);
        observer = new MutationObserver(() => requestAnimationFrame(() => name(controls, line)));
        observer.observe(controls, { subtree: true, childList: true, attributeFilter: ["class"] });
        observer.observe(line, { childList: true });
        name(controls, line);
        const notebook = box.closest(".jp-Notebook");
        if (notebook) notebook.uftlabFits ??= keep_fitting(notebook);  // once for all figures
      };
      find();
      return () => observer?.disconnect();
    } };
    """


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


def specification(controls: Mapping[str, ipywidgets.ValueWidget]) -> list[dict[str, Any]]:
    """The controls as plain values for JSON: the name of each parameter, its kind, label, first value and range.

    The kind is "buttons" or "menu" with `options`, pairs of a label and a value, and the number of the first one in
    `index`; or "slider" or "logarithmic slider" with `value`, `min`, `max` and `step`. Of a logarithmic slider these
    are exponents of 10, but for the value. Tuples become lists.
    """
    found = []
    for name, control in controls.items():
        own = {"name": name, "label": control.description}
        if isinstance(control, ipywidgets.ToggleButtons | ipywidgets.Dropdown):
            options = [[label, value] for label, value in control._options_full]
            kind = "buttons" if isinstance(control, ipywidgets.ToggleButtons) else "menu"
            found.append(own | {"kind": kind, "options": options, "index": control.index})
        else:
            kind = "logarithmic slider" if isinstance(control, ipywidgets.FloatLogSlider) else "slider"
            numbers = {key: getattr(control, key) for key in ("value", "min", "max", "step")}
            found.append(own | {"kind": kind, **numbers})
    return found


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


@cache
def _plotly_js() -> bytes:
    """The text of plotly.js, 5 MB."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().encode()


class _Drawn(ipywidgets.Widget):
    """The figure as JSON, for the page. It also sends plotly.js, if the page asks: see `_Figure`."""

    figure = traitlets.Unicode().tag(sync=True)

    def __init__(self, fig: go.Figure) -> None:
        super().__init__()
        self.on_msg(lambda *_: self.send({}, buffers=[_plotly_js()]))
        self.draw(fig)

    def draw(self, fig: go.Figure) -> None:
        """Show another figure. The page keeps the zoom and the hidden traces of the reader."""
        self.figure = fig.to_json()


class _Figure(anywidget.AnyWidget):
    """Draws the figure of a `_Drawn` in the page, with `Plotly.react`.

    Why two widgets: anywidget gives a model two seconds to load its script. If the page is busy for longer, it throws
    away every later message of the kernel, and only the console says so. The view is made nevertheless, as soon as the
    script is loaded. So the script is short, and all messages go to a `_Drawn`, which is a model without a script.

    plotly.js is taken from the page, if a figure has brought it already. Otherwise the kernel sends it, once per page.
    It is no part of the state of a widget, so a saved notebook does not contain it.

    How the figure is drawn and fitted into its place: see `painter.js`.
    """

    drawn = traitlets.Unicode().tag(sync=True)
    config = traitlets.Dict(theme.CONFIG | {"responsive": False}).tag(sync=True)

    _esm = (
        PAINTER
        + """
    const pause = (ms) => new Promise((done) => setTimeout(done, ms));

    async function model_of(manager, id, gone) {
      while (!gone.aborted) {
        try { return await manager.get_model(id); } catch { await pause(500); }  // it gives up after two seconds
      }
    }
    async function library(kernel, gone) {
      kernel.on("msg:custom", (_, [script]) => {
        if (window.Plotly) return;
        // in a page with RequireJS plotly.js before 3 would go to `define`, and nobody would find it
        const alone = ["(function (define, module, exports) {", script, "\\n}).call(window);"];
        const src = URL.createObjectURL(new Blob(alone, { type: "text/javascript" }));
        const onload = () => dispatchEvent(new Event("uftlab-plotly"));
        document.head.append(Object.assign(document.createElement("script"), { src, onload }));
      }, gone);
      if (!window.Plotly) kernel.send({ wanted: "plotly.js" });
      while (!window.Plotly && !gone.aborted) await pause(100);
      return window.Plotly;
    }
    export default { async render({ model, el }) {
      const ended = new AbortController(), gone = ended.signal;
      const make = (name) => Object.assign(document.createElement("div"), { className: name });
      const [card, plot] = [make("uftlab-card"), make("uftlab-plot")];
      card.append(plot);
      el.append(card);
      (async () => {
        const kernel = await model_of(model.widget_manager, model.get("drawn"), gone);
        const Plotly = kernel && await library(kernel, gone);
        if (!Plotly) return;
        const { again, end } = uftlabPainter(
          Plotly, card, plot, model.get("config"), () => kernel.get("figure"), "Run this cell again.");
        kernel.on("change:figure", again, gone);
        gone.addEventListener("abort", () => {
          kernel.off(null, null, gone);
          end();
        });
        again();
      })();
      return () => ended.abort();
    } };
    """
    )


VIEW = "application/vnd.jupyter.widget-view+json"


class _WithTwin(ipywidgets.VBox):
    """A widget that is one entry of an output, beside what viewers without a kernel show."""

    _ipython_display_ = None  # with this, ipywidgets 7 would show the widget and leave the twin out

    def _view(self, **how: Any) -> dict[str, Any]:
        """The entry. ipywidgets 8 makes it, ipywidgets 7 has no method for it."""
        if hasattr(ipywidgets.Widget, "_repr_mimebundle_"):
            return super()._repr_mimebundle_(**how)
        return {VIEW: {"version_major": 2, "version_minor": 0, "model_id": self.model_id}}


class Box(_WithTwin):
    """A widget with a static twin, `still`: HTML for `nbconvert` and for viewers that have no kernel."""

    still = ""

    def _repr_mimebundle_(self, **how: Any) -> dict[str, Any]:
        """The widget, its twin, and the words of the twin."""
        words = " ".join(html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", self.still, flags=re.S)).split())
        return {"text/html": self.still, **self._view(**how), "text/plain": words}


class Explorer(_WithTwin):
    """What `explore` returns. Where no widget can be shown, the first figure is.

    Attributes:
        controls: name of each parameter -> its control.
        spoken: the line of key numbers.
        shown: the figure at the present values of the controls.
    """

    controls: Mapping[str, ipywidgets.ValueWidget]
    spoken: Spoken
    shown: go.Figure

    def _repr_mimebundle_(self, **how: Any) -> dict[str, Any]:
        """The widget, and HTML for `nbconvert` and for viewers that have no kernel."""
        still = theme.bundle(self.shown)
        return {"text/html": still["text/html"], **self._view(**how), "text/plain": still["text/plain"]}


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
    notes: str = "",
) -> Explorer | go.Figure:
    """A figure that follows its controls, and a line with the key numbers in words.

    Controls, line and figure fit together on a screen of 1280 by 720 pixels, with up to eight controls.

    Args:
        figure_fn: pure function of the values of the controls, called with keywords: `figure_fn(beta=0.1, ...)`.
        controls: name of each parameter -> a widget with a label (`description`), see `slider`, `log_slider`
            and `choice`. Shown in this order.
        describe: function of the same parameters. It returns one or two sentences with the key numbers.
        headless: True gives the static twin: `figure_fn` at the first values of the controls. Its `layout.meta` has the
            controls (`specification`) and the line, so that an exported page can make them again
            (`uftlab.course.live`).
        notes: HTML below the controls, for instance what the words of a menu mean, folded (`uftlab.course.methods`).
    """
    unnamed = [name for name, control in controls.items() if not control.description]
    if unnamed:
        raise InputError("Every control", "have a description", unnamed, "Say description='...' when making it")

    def values() -> dict[str, Any]:
        return {name: control.value for name, control in controls.items()}

    first = figure_fn(**values())
    if headless:
        return go.Figure(first).update_layout(meta={"controls": specification(controls), "words": describe(**values())})
    drawn, spoken = _Drawn(first), Spoken(text=describe(**values()))
    rows = [_row(control) for control in controls.values()] + notes_below(notes)
    grid = ipywidgets.Box(rows).add_class("uftlab-controls")
    figure = ipywidgets.VBox([ipywidgets.HTML(WAIT), _Figure(drawn=drawn.model_id)]).add_class("uftlab-figure")
    desk = ipywidgets.Box([grid, spoken.add_class("uftlab-line"), figure]).add_class("uftlab-desk")
    box = Explorer([ipywidgets.HTML(STYLE), desk, _Names(layout={"display": "none"})]).add_class("uftlab")
    box.controls, box.spoken, box.shown = dict(controls), spoken, first

    def follow(_: object = None) -> None:
        box.shown = figure_fn(**values())
        drawn.draw(box.shown)
        spoken.text = describe(**values())

    for control in controls.values():
        control.observe(follow, names="value")
    _spare_the_collector()
    return box


def notes_below(notes: str) -> list[ipywidgets.HTML]:
    """Explanations below the controls, if there are any."""
    return [ipywidgets.HTML(notes).add_class("uftlab-notes")] if notes else []


# ------------------------------------------------------------------------------ a guess before the answer


class Folded(str):
    """The static twin of `predict`. A notebook displays it as HTML, a terminal as text."""

    def _repr_html_(self) -> str:
        return str(self)


PREDICTED: dict[str, tuple[str, str]] = {}  # question -> what the reader said first in this process, and the answer


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
    choices = " / ".join(html.escape(option) for option in options)
    folded = f"<details><summary>Answer</summary><b>{html.escape(answer)}</b>. {html.escape(because)}</details>"
    still = Folded(f"<p><b>{html.escape(question)}</b> {choices}</p>{folded}")
    if headless:
        return still
    buttons = ipywidgets.ToggleButtons(options=list(options), value=None, description="Your guess:")
    grid = ipywidgets.VBox([_row(buttons)]).add_class("uftlab-controls")
    spoken = Spoken(text="Choose before you read on.").add_class("uftlab-line")

    def reveal(change: Mapping[str, Any]) -> None:
        buttons.disabled = True
        right = change["new"] == answer
        PREDICTED.setdefault(question, (change["new"], answer))
        verdict = f"Yes: {answer}." if right else f"Not this time: {answer} (you said {change['new']})."
        spoken.text = f"{verdict} {because}"

    buttons.observe(reveal, names="value")
    asked = ipywidgets.HTML(f"{STYLE}<b>{html.escape(question)}</b>")
    box = Box([asked, grid, spoken, _Names(layout={"display": "none"})]).add_class("uftlab")
    box.buttons, box.spoken, box.still = buttons, spoken, still
    return box


# ------------------------------------------------------------------------------ what the doctor says


def doctor(reports: Mapping[str, Report], headless: bool = False, notes: str = "") -> ipywidgets.VBox | Folded:
    """What the doctor says of several runs (`uftlab.evals.doctor.diagnose`), one at a time, chosen from a list.

    Args:
        reports: name for the reader -> report; at least one.
        headless: True gives all of them, one below the other, each folded but the first.
        notes: see `explore`.

    Returns:
        A box with the attributes `chosen`, `spoken` and `shown`. With `headless` a piece of HTML.
    """
    if not reports:
        raise InputError("Runs to show", "be at least one", "none", "Name a run")
    folded: list[str] = []
    for name, own in reports.items():
        summary = f"<summary><b>{html.escape(name)}</b></summary>"
        folded.append(f"<details{'' if folded else ' open'}>{summary}{_findings(own)}</details>")
    still = Folded("".join(folded))
    if headless:
        return still
    chosen, spoken, shown = choice("run", list(reports)), Spoken(), ipywidgets.HTML()

    def follow(_: object = None) -> None:
        report = reports[chosen.value]
        spoken.text = f"{chosen.value}: {', '.join(own.name for own in report.findings) or 'nothing was found'}."
        shown.value = _findings(report)

    follow()
    chosen.observe(follow, names="value")
    grid = ipywidgets.VBox([_row(chosen), *notes_below(notes)])
    parts = [ipywidgets.HTML(STYLE), grid, spoken, shown, _Names(layout={"display": "none"})]
    box = Box(parts).add_class("uftlab")
    box.chosen, box.spoken, box.shown, box.still = chosen, spoken, shown, still
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

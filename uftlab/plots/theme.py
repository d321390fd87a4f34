"""The look of all figures: readable on a projector and without colour vision, never sent to a server.

The import registers the template "uftlab", and `figure` applies it. Nothing else in the state of plotly changes. The
background is white in light and in dark notebooks, so one choice of colours is right everywhere. Lines differ in dash
and symbol, bars in pattern, and both also in colour.

The toolbar of plotly offers to upload a chart to a public cloud. The *configuration* switches this off, but a figure
does not store its configuration. So display figures with `show`.
"""

from __future__ import annotations

import json
import textwrap
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly
import plotly.graph_objects as go
import plotly.io as pio
from plotly.subplots import make_subplots

from uftlab.errors import InputError
from uftlab.files import write_atomically

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe and Ito, made for colour-blind readers. Its yellow is left out: the background is white."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "5px 15px")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")
PATTERNS = ("", "/", "x", ".", "\\", "+", "-")
INK, PALE = "#222222", "#D9D9D9"
FONT_SIZE, LINE_WIDTH, HEIGHT = 20, 4, 500

CONFIG: dict[str, Any] = {"showSendToCloud": False, "displaylogo": False, "responsive": True}
"""The toolbar without upload button and logo. Outside of `show`, use `fig.show(config=CONFIG)`."""

FOOT: dict[str, Any] = {"xref": "container", "x": 0.02, "yref": "container", "y": 0.02, "yanchor": "bottom"}
"""Position of the legend: the bottom of the whole figure. Above the axes, a legend of two lines would overlap the
title; near the axes it would overlap their titles. At the bottom plotly reserves enough space."""

MIMETYPE = "application/vnd.plotly.v1+json"


def _template() -> go.layout.Template:
    """The template. It has one style per series and trace type; plotly uses the next one for each new trace."""
    styles = list(zip(COLOURS, DASHES, SYMBOLS, PATTERNS, strict=True))
    lines = [
        go.Scatter(line={"color": c, "dash": d, "width": LINE_WIDTH}, marker={"color": c, "symbol": s, "size": 11})
        for c, d, s, _ in styles
    ]
    bars = [
        go.Bar(
            marker={
                "color": c,
                "line": {"color": INK, "width": 1},
                "pattern": {"shape": p, "bgcolor": c, "fgcolor": "white", "size": 10, "solidity": 0.25},
            }
        )
        for c, _, _, p in styles
    ]
    axis = {
        "automargin": True,
        "showline": True,
        "linecolor": INK,
        "ticks": "outside",
        "gridcolor": PALE,
        "zerolinecolor": "#8C8C8C",
        "title": {"standoff": 14, "font": {"size": FONT_SIZE}},
    }
    layout = go.Layout(
        font={"size": FONT_SIZE, "color": INK, "family": "Open Sans, DejaVu Sans, Verdana, sans-serif"},
        title={
            "x": 0.02,
            "xanchor": "left",
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 20},
            "font": {"size": FONT_SIZE + 2},
        },
        colorway=COLOURS,
        paper_bgcolor="white",
        plot_bgcolor="white",
        xaxis=axis,
        yaxis=axis,
        margin={"l": 70, "r": 30, "t": 75, "b": 70},
        legend={"orientation": "h", "xanchor": "left", **FOOT},
        hoverlabel={"font": {"size": FONT_SIZE - 4}},
        annotationdefaults={"font": {"size": FONT_SIZE - 2}, "arrowcolor": INK},
        height=HEIGHT,
    )
    return go.layout.Template(layout=layout, data={"scatter": lines, "bar": bars})


pio.templates["uftlab"] = _template()


def lines(text: str, width: int = 48) -> str:
    """Text in lines of whole words, with <br> between them. Existing line breaks stay.

    A title of 48 characters fits into the narrowest figure, 600 pixels.

    >>> lines("sft-then-dpo", 9)
    'sft-then-<br>dpo'
    """
    parts = (textwrap.wrap(part, width, break_long_words=False) or [""] for part in text.split("<br>"))
    return "<br>".join(line for part in parts for line in part)


def _title(text: str) -> dict[str, Any]:
    """A title with half a line of extra space per extra line. Otherwise the first line would be at the very edge."""
    return {"text": text, "pad": {"t": 20 + 15 * text.count("<br>")}}


def figure(*traces: Any, title: str = "", x: str = "", y: str = "", **layout: Any) -> go.Figure:
    """A plain figure with the template: traces, a title that states the message, axes with units.

    Args:
        layout: any property of `go.Layout`, in plotly's underscore notation (`xaxis_type="log"`).
    """
    fig, title = go.Figure(list(traces)), lines(title)
    more = 30 * title.count("<br>")  # space for each extra line of the title
    room = {"height": HEIGHT + more, "margin_t": 75 + more}
    fig.update_layout(template="uftlab", title=_title(title), **room, autosize=True, uirevision="keep")
    fig.update_xaxes(title_text=x)
    fig.update_yaxes(title_text=y)
    return fig.update_layout(**layout)


def fitted_axis(title: str, values: Sequence[float]) -> dict[str, Any]:
    """Properties of a linear axis that fits its values. The title says where the axis starts, if 0 is not on it.

    >>> fitted_axis("objective", [1.0, 3.0])
    {'title_text': 'objective<br>(the axis starts at 0.9)', 'range': [0.9, 3.1]}
    """
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.5
    low, high = low - room, high + room
    said = "" if low <= 0 <= high else f"<br>(the axis starts at {low:.2g})"
    return {"title_text": title + said, "range": [low, high]}


def error_bars(rows: pd.DataFrame) -> dict[str, Any]:
    """Error bars from the columns mean, low and high. A row without an interval (a single seed) has no bar."""
    up, down = ((rows[end] - rows["mean"]).astype(float).abs().fillna(0).tolist() for end in ("high", "low"))
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 2.5, "width": 6}


def panels(
    titles: Sequence[str], x: Sequence[str], y: Sequence[str], title: str = "", widths: Sequence[float] | None = None
) -> go.Figure:
    """Panels side by side in one figure. Add traces with `fig.add_trace(..., row=1, col=2)`.

    A title wider than its panel goes on in the next line, so that it is not cut and does not touch its neighbour.

    Args:
        titles: the titles of the panels.
        x, y: the titles of their axes.
        widths: the share of the width of each panel.
    """
    fits = [int(45 * share) for share in widths or [1 / len(titles)] * len(titles)]
    titles, x = ([lines(text, fit) for text, fit in zip(texts, fits, strict=True)] for texts in (titles, x))
    over, under = (26 * max(text.count("<br>") for text in texts) for texts in (titles, x))
    fig = make_subplots(
        cols=len(titles),
        subplot_titles=titles,
        column_widths=widths and list(widths),
        horizontal_spacing=0.16,
    )
    for column, (x_title, y_title) in enumerate(zip(x, y, strict=True), start=1):
        fig.update_xaxes(title_text=x_title, col=column)
        fig.update_yaxes(title_text=y_title, col=column)
    fig.update_annotations(font_size=FONT_SIZE, yshift=4)
    top = (110 if title else 50) + over
    layout = {
        "template": "uftlab",
        "title": _title(lines(title)),
        "height": HEIGHT + top + under - 70,
        "autosize": True,
        "uirevision": "keep",
    }
    return fig.update_layout(**layout, margin={"t": top, "b": 130 + under})


_PAGE = """<div id="{name}" class="plotly-graph-div" style="height:{height}px; width:100%"></div>
<script>(() => {{
  const place = document.getElementById("{name}"), figure = {figure};
  const draw = () => {{ place.replaceChildren(); window.Plotly.newPlot(place, figure); }};
  const say = () => {{
    place.textContent = "This figure needs plotly: where JupyterLab runs, or as plotly.min.js beside this page.";
    addEventListener("uftlab-plotly", draw, {{ once: true }});  // an explorer has brought it
  }};
  if (window.Plotly) return draw();
  (window.uftlabPlotly ??= new Promise((found, missing) => {{
    const script = document.createElement("script");
    script.onload = () => window.Plotly ? found() : missing();
    script.onerror = missing;
    script.src = "plotly.min.js";
    document.head.append(script);
  }})).then(draw, say);
}})()</script>"""


HOSTED = ("colab", "kaggle", "azure")  # renderers of notebooks that draw no plotly JSON and have no file beside them


def json_for_page(own: Any) -> str:
    """JSON that can stand in a script tag of a page, whatever texts are in it.

    >>> json_for_page({"said": "</script>"})
    '{"said":"\\\\u003c/script>"}'
    """
    return json.dumps(own, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def page_html(fig: go.Figure) -> str:
    """A figure for a web page. It draws itself with the plotly.js of the page, or with the file beside the page.

    The HTML may be put into a page at any time. Without plotly.js it says what is missing, and changes nothing else.
    """
    figure = json_for_page({**json.loads(fig.to_json()), "config": CONFIG})
    return _PAGE.format(name=f"uftlab-{uuid.uuid4()}", height=fig.layout.height or HEIGHT, figure=figure)


def bundle(fig: go.Figure) -> dict[str, Any]:
    """The forms of a figure that a notebook stores.

    JupyterLab and VS Code draw the plotly JSON, which includes `CONFIG`. An exported page uses the HTML, see
    `page_html`; a hosted notebook (`HOSTED`) that of plotly's own renderer, which asks its server for plotly.js. Other
    programs show the title.
    """
    title = (fig.layout.title.text or "figure without a title").replace("<br>", " ")
    # JupyterLab resizes figures itself. If plotly.js did so as well, a change of the height of the window alone would
    # set the height of the figure to 0
    stored = {**json.loads(fig.to_json()), "config": {**CONFIG, "responsive": False}}
    here = pio.renderers.default  # plotly looks at where it is
    page = pio.renderers[here].to_mimebundle(fig.to_dict())["text/html"] if here in HOSTED else page_html(fig)
    return {MIMETYPE: stored, "text/html": page, "text/plain": title}


def show(thing: Any) -> None:
    """Display a figure in a notebook as its `bundle`. Widgets and other objects display themselves."""
    from IPython.display import display

    if isinstance(thing, go.Figure):
        display(bundle(thing), raw=True)
    else:
        display(thing)


def write_plotly_js(folder: Path) -> Path:
    """Write plotly.min.js (5 MB) into a folder of exported pages, so that their figures need no network."""
    from plotly.offline import get_plotlyjs

    path = Path(folder) / "plotly.min.js"
    write_atomically(path, get_plotlyjs())
    return path


def write_images(figures: Sequence[go.Figure], paths: Sequence[Path], width: int, asked: str) -> None:
    """Write figures as PNG, for readers of pages that run no JavaScript.

    Raises:
        InputError: naming what `asked` for it, when kaleido or its Chromium is missing, or plotly is older than 6.1.
    """
    if not hasattr(pio, "write_images"):
        raise InputError(asked, "have plotly 6.1 or later", plotly.__version__, "Install it, with kaleido and Chromium")
    heights = [figure.layout.height or HEIGHT for figure in figures]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        files = [str(path) for path in paths]
        pio.write_images(fig=list(figures), file=files, width=[width] * len(files), height=heights)
    except (ImportError, ValueError, RuntimeError) as error:
        remedy = "Install kaleido and Chromium (Debian: apt-get install chromium)"
        raise InputError(asked, "have kaleido and a browser to draw with", error, remedy) from None

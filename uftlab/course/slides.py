"""Slides for the projector: the predictions and figures of executed notebooks in one HTML file without any request.

Arrow keys, Page Up and Page Down turn the pages, Home and End go to the first and the last. Figures react to the mouse
as in a notebook; an answer unfolds on a click or with Enter. A page is drawn when it is first shown.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat

from uftlab.course.export import markdown
from uftlab.course.minutes import CORE
from uftlab.course.notebooks import contents, executed_copies, notebook_paths, read_executed
from uftlab.course.workshop import REMEMBER, predictions
from uftlab.files import write_atomically
from uftlab.plots import theme

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; font: 30px/1.4 "Open Sans", "DejaVu Sans", Verdana, sans-serif; color: #222; background: #fff; }
section { display: none; height: 100vh; padding: 4vh 6vw 9vh; overflow: auto; flex-direction: column; }
section.shown { display: flex; }
section.text { justify-content: center; }
h1 { font-size: 1.7em; line-height: 1.15; margin: 0 0 .5em; }
blockquote { margin: 0; padding-left: .8em; border-left: 10px solid #0072B2; }
li { margin: .4em 0; } summary { cursor: pointer; color: #0059b3; margin-top: 1em; }
summary:focus-visible { outline: 4px solid #D55E00; }
.figure { flex: 1; min-height: 300px; }
footer { position: fixed; bottom: 1.5vh; left: 6vw; right: 6vw; font-size: 18px; color: #555; display: flex;
  justify-content: space-between; }
@media print { section { display: flex; page-break-after: always; } footer { display: none; } }
"""
SCRIPT = """
const pages = [...document.querySelectorAll("section")];
const place = document.getElementById("place");
let at = 0;
function show(number) {
  at = Math.max(0, Math.min(pages.length - 1, number));
  pages.forEach((page, index) => page.classList.toggle("shown", index === at));
  place.textContent = `${pages[at].dataset.from}: ${at + 1} of ${pages.length}`;
  history.replaceState(null, "", `#${at + 1}`);
  const figure = pages[at].querySelector(".figure");
  if (figure && !figure.dataset.drawn) {
    figure.dataset.drawn = "yes";
    const own = JSON.parse(figure.nextElementSibling.textContent);
    Plotly.newPlot(figure, own.data, own.layout, {responsive: true, displaylogo: false, displayModeBar: false});
  }
}
const steps = {ArrowRight: 1, ArrowDown: 1, PageDown: 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1};
addEventListener("keydown", event => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "Home") show(0);
  else if (event.key === "End") show(pages.length - 1);
  else if (event.key in steps) show(at + steps[event.key]);
  else return;
  event.preventDefault();
});
addEventListener("hashchange", () => show(Number(location.hash.slice(1)) - 1));
show((Number(location.hash.slice(1)) || 1) - 1);
"""


def _text(source: str, body: str) -> str:
    return f'<section class="text" data-from="{html.escape(source)}">{body}</section>'


def _figure(source: str, stored: dict[str, Any]) -> str:
    layout = {**stored["layout"], "autosize": True}
    for fixed in ("height", "width", "meta"):
        layout.pop(fixed, None)
    own = theme.json_for_page({"data": stored["data"], "layout": layout})
    title = re.sub(r"<[^>]+>", " ", (layout.get("title") or {}).get("text") or "figure")
    drawn = f'<div class="figure" role="img" aria-label="{html.escape(title)}"></div>'
    return f'<section data-from="{html.escape(source)}">{drawn}<script type="application/json">{own}</script></section>'


def slides_of(notebook: Any, name: str, everything: bool) -> list[str]:
    """The pages of one executed notebook: its question, predictions and figures in their order, what to remember.

    Args:
        everything: all cells; otherwise the cells of the one-hour route.
    """
    page = contents(notebook, name)
    made = [_text(page.title, markdown(f"# {page.title}\n\n> {page.question}"))]
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown" and (found := REMEMBER.search(cell.source)):
            made.append(_text(page.title, markdown(f"# To remember\n\n{found[1]}")))
        if not (everything or CORE in tags):
            continue
        for own in predictions(nbformat.v4.new_notebook(cells=[cell])):
            options = "".join(f"<li>{html.escape(option)}</li>" for option in own.options.split(" / "))
            answer = f"<b>{html.escape(own.answer)}</b>. {html.escape(own.because)}"
            folded = f"<details><summary>Answer</summary>{answer}</details>"
            made.append(_text(page.title, f"<h1>{html.escape(own.question)}</h1><ul>{options}</ul>{folded}"))
        for output in cell.get("outputs", []):
            if theme.MIMETYPE in output.get("data", {}):
                made.append(_figure(page.title, output.data[theme.MIMETYPE]))
    return made


def write_slides(executed: Path, out: Path, only: str = "", everything: bool = False) -> int:
    """Write the slides of executed notebooks into one file. Returns how many pages there are.

    Raises:
        InputError: see `notebooks.read_executed`.
    """
    from plotly.offline import get_plotlyjs

    made: list[str] = []
    for path in notebook_paths(only):
        made += slides_of(read_executed(executed, path.stem), path.stem, everything)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
    head += f"<title>uftlab: slides</title><style>{STYLE}</style><script>{get_plotlyjs()}</script>"
    footer = '<footer><span id="place" role="status"></span><span>← → turn the pages</span></footer>'
    body = f"{''.join(made)}{footer}<script>{SCRIPT}</script>"
    write_atomically(out, f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n')
    return len(made)


def slides(
    out: Path, executed: Path | None, profile: str, only: str, everything: bool, say: Callable[[str], None]
) -> list[str]:
    """Write the slides of executed copies, which are made if there are none. Returns which notebooks failed."""
    with executed_copies(executed, profile, only, say) as (folder, failed):
        if not failed:
            say(f"{write_slides(folder, out, only, everything)} slides: {out}")
    return failed

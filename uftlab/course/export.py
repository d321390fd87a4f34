"""The course as a folder of web pages that need no network, no kernel and no server.

Equations become MathML, which every current browser can show without scripts or fonts. Figures stay interactive with
one copy of plotly.js in the folder. Widgets appear as their static twins, some of which move (`uftlab.course.live`).
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from math_core import LatexError, LatexToMathML
from nbconvert.exporters.html import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

from uftlab.course import live, methods
from uftlab.course.notebooks import (
    NOTEBOOKS,
    contents,
    executed_copies,
    folded_tasks,
    has_explorer,
    notebook_paths,
    read_executed,
    write_between,
    write_tables,
)
from uftlab.errors import InputError
from uftlab.files import write_atomically
from uftlab.plots import theme

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #222; --soft: #555; --line: #ccc; --box: #fafafa;
  --link: #0059b3; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --ink: #e8e8e8; --soft: #aaa; --line: #444; --box: #22252b; --link: #8ab8ff; }
}
body { font: 18px/1.55 "Open Sans", "DejaVu Sans", Verdana, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 960px; margin: 0 auto; padding: 1rem 1.2rem 4rem; }
a { color: var(--link); } a:focus-visible, summary:focus-visible { outline: 3px solid #D55E00; outline-offset: 2px; }
h1 { line-height: 1.2; } h2 { margin-top: 2.2rem; border-top: 1px solid var(--line); padding-top: 1rem; }
blockquote { margin: 1rem 0; padding: .2rem 1rem; border-left: 6px solid #0072B2; font-size: 1.15em; }
code, pre { font: 15px/1.5 "DejaVu Sans Mono", Consolas, Menlo, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; padding: .7rem 1rem; }
.highlight { background: var(--box); border-radius: 6px; margin: .6rem 0; }
.output_stream pre, .output_text pre { white-space: pre-wrap; border-left: 4px solid var(--line); }
.prompt { display: none; } .output_area { margin: .8rem 0; }
.output_html:has(.plotly-graph-div) { background: #fff; color: #222; border-radius: 12px; padding: 8px; }
.plotly-graph-div { min-width: 600px; }
.output_html, .text_cell_render { overflow-x: auto; }
table { border-collapse: collapse; font-size: 15px; margin: .8rem 0; }
table.dataframe { border: none; } caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .35rem .6rem; border: none; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child, .text_cell_render th, .text_cell_render td { text-align: left; }
math { font-family: "Latin Modern Math", "STIX Two Math", "Cambria Math", "DejaVu Math TeX Gyre", math; }
math { font-size: 1.05em; }
math[display="block"] { margin: 1rem 0; overflow-x: auto; overflow-y: hidden; }
details { margin: .6rem 0; } summary { cursor: pointer; }
nav { font-size: 16px; } footer, small { color: var(--soft); }
ol.course { list-style: none; padding: 0; }
ol.course li { border: 1px solid var(--line); border-radius: 12px; padding: .2rem 1.2rem .8rem; margin: 1rem 0; }
ol.course h2 { border: none; margin: 0; font-size: 1.3rem; }
"""
FOLDED_CODE = re.compile(r"\n\(The code of the figure is folded[^)]*\)")
PREVIEW_WIDTH = 960  # pixels: about the width of a page on GitHub


def mathml(latex: str, block: bool = False) -> str:
    """An equation as MathML.

    Raises:
        InputError: for LaTeX that has no conversion.

    >>> mathml(r"\\beta")
    '<math><mi>β</mi></math>'
    """
    try:
        return LatexToMathML().convert_with_local_state(latex.strip(), displaystyle=block)
    except LatexError as error:
        rule = "be LaTeX that can be converted to MathML"
        raise InputError("An equation", rule, repr(latex), f"Write it another way ({error})") from None


def anchor(heading: str) -> str:
    """The anchor of a heading in its page, as GitHub makes it.

    >>> anchor("Why DPO does not care about $Z$")
    'why-dpo-does-not-care-about-z'
    """
    words = re.sub(r"<[^>]+>|[^\w\s-]", "", html.unescape(heading)).strip().lower()
    return re.sub(r"\s", "-", words)


class _Renderer(IPythonRenderer):
    """The Markdown of nbconvert, with equations as MathML and with plain headings."""

    def block_math(self, body: str) -> str:
        """A display equation."""
        return mathml(body, block=True)

    def inline_math(self, body: str) -> str:
        """An equation in a line."""
        return mathml(body)

    def latex_environment(self, name: str, body: str) -> str:
        """A display equation in a LaTeX environment."""
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", block=True)

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        """A heading with an anchor."""
        return f'<h{level} id="{anchor(text)}">{text}</h{level}>\n'


def markdown(source: str) -> str:
    """Markdown as HTML: equations become MathML, headings get their anchors."""
    return MarkdownWithMath(renderer=_Renderer(escape=False)).render(source)


class _Exporter(HTMLExporter):
    """Makes the body of a page from an executed notebook."""

    def markdown2html(self, context: Any, source: str) -> str:
        """The text of a cell as HTML."""
        return markdown(source)

    markdown2html.jinja_pass_arg = HTMLExporter.markdown2html.jinja_pass_arg  # type: ignore[attr-defined]


def _inline(source: str) -> str:
    """A line of Markdown as HTML without <p>. `1. Title` stays a title and does not become a list."""
    return re.sub(r"^<p>|</p>\s*$", "", markdown(re.sub(r"^(\d+)\.", r"\1\.", source)))


def _linked(body: str, names: Iterable[str], out: Path) -> str:
    """Links to notebooks become links to their pages in `out`. Links to files without a page become plain text.

    The pages of docs/ have been written before the course where the documentation is written as a whole.
    """
    soup = BeautifulSoup(body, "html.parser")
    for link in soup.select("a[href]"):
        target, _, part = str(link["href"]).partition("#")
        if re.match(r"\w+:", target):
            continue
        stem = re.sub(r"\.(ipynb|md)$", "", target)
        if target and stem not in names and not (out / f"{stem}.html").is_file():
            link.unwrap()
        else:
            link["href"] = (f"{stem}.html" if target else "") + (f"#{anchor(part)}" if part else "")
    for wide in soup.select('.output_html:has(table), .text_cell_render:has(table), math[display="block"]'):
        wide["tabindex"] = "0"  # what a narrow window cuts is reached by the keyboard
    return str(soup)


def _page(title: str, body: str, glossary: bool, scripts: str = "", home: bool = False) -> str:
    colours = [HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "github-dark")]
    style = f"{colours[0]}\n@media (prefers-color-scheme: dark) {{ {colours[1]} }}\n{STYLE}"
    style += live.STYLE if "uftlab-live" in body or "uftlab-ask" in body else ""
    links = '<a href="../index.html">uftlab</a> · ' if home else ""
    links += '<a href="index.html">All notebooks</a>' + (' · <a href="glossary.html">Glossary</a>' if glossary else "")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f'<link rel="icon" href="data:,"><title>{title}</title><style>{style}</style>{scripts}'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n'
        f'<body><nav aria-label="Course">{links}</nav>\n<main>{body}</main>\n'
        f'<footer><nav aria-label="Course, at the end">{links}</nav></footer></body></html>\n'
    )


def _for_a_page(cell: NotebookNode, moves: bool = False) -> NotebookNode | None:
    """A cell as a page without a kernel shows it; None if it makes no sense there.

    The cell of injected parameters, the checks of exercises and the score are left out. Cells with the tag `live` ask
    the reader to use an explorer: where it `moves` they lose the words on its code, elsewhere they are folded, under
    words that say so. Folded code stays out of sight.
    """
    tags = cell.metadata.get("tags", [])
    name = cell.get("id", "")
    if "injected-parameters" in tags or name == "score" or re.fullmatch(r"exercise-\d+-check", name):
        return None
    if "live" in tags and cell.cell_type == "markdown":
        cell.source = FOLDED_CODE.sub("", cell.source) if moves else folded_tasks(cell.source)
    if cell.metadata.get("jupyter", {}).get("source_hidden"):
        cell.metadata["transient"] = {"remove_source": True}
    return cell


def _read(folder: Path, name: str) -> NotebookNode:
    """An executed notebook, with the cells that a page can show. Refuses what `read_executed` refuses."""
    notebook = read_executed(folder, name)
    moves = name in live.MODELS
    notebook.cells = [shown for cell in notebook.cells if (shown := _for_a_page(cell, moves))]
    return notebook


def write_site(executed: Path, out: Path, only: str = "") -> list[Path]:
    """Write the pages of executed notebooks, a table of contents, the glossary and plotly.js. Returns the pages.

    Raises:
        InputError: see `notebooks.read_executed` and `mathml`.
    """
    names = [path.stem for path in notebook_paths(only)]
    read = {name: _read(executed, name) for name in names}
    moving = {name: found for name in names if (found := live.make_live(read[name], name))}
    glossary = NOTEBOOKS / "glossary.md"
    known = [*names, "index", *(["live"] if moving else []), *(["glossary"] if glossary.is_file() else [])]
    out.mkdir(parents=True, exist_ok=True)
    theme.write_plotly_js(out)  # figures ask for it themselves: text is not kept waiting
    script = f'<script src="{live.write_script(out).name}" defer></script>'
    written, table, explorers = [], [], []

    def write(name: str, title: str, body: str, scripts: str = "") -> None:
        home = (out.parent / "index.html").is_file()
        page = _page(re.sub(r"<[^>]+>", "", title), _linked(body, known, out), glossary.is_file(), scripts, home)
        write_atomically(out / f"{name}.html", page)
        written.append(out / f"{name}.html")

    for name in names:
        page = contents(read[name], name)
        title, question, cost = map(_inline, (page.title, page.question, page.cost))
        body, _ = _Exporter(template_name="basic").from_notebook_node(read[name])
        write(name, title, body, script if name in moving else "")
        item = f'<h2><a href="{name}.ipynb">{title}</a></h2><p>{question}</p><small>{cost}</small>'
        if name in moving:
            do = "Ask it here" if name == live.CHAT else "Move the sliders here"
            part, told = live.TOLD[name]
            item += f' <small><a href="{name}.ipynb#{part}">{do}</a></small>'
            head = f'<h2><a href="{name}.ipynb">{title}</a></h2><p>{told}</p>'
            explorers.append(f"<section>{head}{moving[name]}</section>")
        table.append(f"<li>{item}</li>")
    if glossary.is_file():
        write("glossary", "Glossary", markdown(glossary.read_text(encoding="utf-8")))
    say = "<p>The notebooks with their results. Figures react to the mouse.</p>"
    if moving:
        about = "<p>Move something: the figure follows. Nothing is installed, and nothing is asked of a network.</p>"
        write("live", "uftlab: explorers that move", f"<h1>Explorers</h1>{about}{''.join(explorers)}", script)
        say += '<p><b><a href="live.ipynb">Move the sliders</a></b> of some of them here, without installing anything. '
        say += "For the others: <code>make lab</code>.</p>"
    else:
        say += "<p>There are no sliders here. For sliders: <code>make lab</code>.</p>"
    write("index", "uftlab: the course", f'<h1>The course</h1>{say}<ol class="course">{"".join(table)}</ol>')
    return written


def main_figure(notebook: NotebookNode) -> dict[str, Any]:
    """The figure of an executed notebook for its preview: that of its explorer, else the first one.

    Raises:
        InputError: for a notebook without figures.
    """
    found = [
        (has_explorer(cell.source), output.data[theme.MIMETYPE])
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if theme.MIMETYPE in output.get("data", {})
    ]
    if not found:
        raise InputError("A notebook", "show a figure", "none", "Execute it first")
    return next((figure for explored, figure in found if explored), found[0][1])


def write_previews(executed: Path, out: Path, only: str = "") -> list[Path]:
    """Write one PNG per notebook, for readers on GitHub, which runs no JavaScript.

    Raises:
        InputError: when kaleido or its Chromium is missing; see also `main_figure`.
    """
    import plotly.graph_objects as go

    names = [path.stem for path in notebook_paths(only)]
    figures = []
    for name in names:
        stored = main_figure(_read(executed, name))
        figures.append(go.Figure({"data": stored["data"], "layout": stored["layout"]}))
    paths = [out / f"{name}.png" for name in names]
    theme.write_images(figures, paths, PREVIEW_WIDTH, "--previews")
    return paths


def export(
    out: Path,
    profile: str = "class",
    only: str = "",
    executed: Path | None = None,
    previews: Path | None = None,
    readme: Path | None = None,
    live_page: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Execute the notebooks, without widgets and without solutions, and write the site. Returns what failed.

    Args:
        executed: a folder with executed copies. If it is given, nothing is executed.
        previews: a folder for one PNG per notebook.
        readme: a file whose tables of the course are updated, see `notebooks.write_tables`; with them the table of
            methods in the glossary.
        live_page: a file for the page of all that moves, with what it needs inside, see `live.alone`.

    Raises:
        InputError: for a `live_page` of notebooks without explorers that move.
    """
    if live_page is not None and not any(path.stem in live.TOLD for path in notebook_paths(only)):
        raise InputError("--live", "have an explorer to show", f"--only {only}", "Leave --only out")
    if readme is not None:
        write_tables(readme)
        write_between(NOTEBOOKS / "glossary.md", "methods", methods.for_the_glossary())
    with executed_copies(executed, profile, only, say) as (folder, failed):
        if not failed:
            say(f"{len(write_site(folder, out, only))} pages: {(out / 'index.html').resolve()}")
            if previews is not None:
                say(f"{len(write_previews(folder, previews, only))} previews: {previews}")
            if live_page is not None:
                page, script = ((out / name).read_text(encoding="utf-8") for name in ("live.html", live.SCRIPT))
                write_atomically(live_page, live.alone(page, script))
                say(f"explorers in one file: {live_page}")
    return failed

"""The course as web pages: nothing is asked of a network, figures are drawn, equations are equations."""

import re
from pathlib import Path

import driver
import nbformat
import plotly.io
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from scope import ALL

from uftlab.course import export
from uftlab.course import notebooks as course
from uftlab.course.notebooks import NOTEBOOKS, contents, has_explorer, notebook_paths, run_all
from uftlab.errors import InputError
from uftlab.plots import theme

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("00_start", "02_losses", "05_reward_margins", "11_paper_audit")  # all kinds of cells and figures
NAMES = [path.stem for path in notebook_paths() if ALL or path.stem in KINDS]


@pytest.fixture(scope="module", autouse=True)
def few():
    """The course has the notebooks of `NAMES` alone."""
    with pytest.MonkeyPatch.context() as patch:
        for room in (course, export):
            patch.setattr(room, "notebook_paths", lambda only="": [p for p in notebook_paths(only) if p.stem in NAMES])
        yield


@pytest.fixture(scope="module")
def executed(few, tmp_path_factory):
    """The notebooks as `uftlab export` executes them, in the quick profile."""
    out, lines = tmp_path_factory.mktemp("executed"), []
    failed = run_all("smoke", out, say=lines.append, parameters={"solutions": False, "widgets_on": False})
    assert not failed, "\n".join(lines)
    return out


@pytest.fixture(scope="module")
def site(executed, tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    export.export(out, executed=executed, say=lambda line: None)
    return out


# ------------------------------------------------------------------------------ pages


def test_every_notebook_has_a_page_and_the_index_says_what_it_asks_and_costs(site):
    index = (site / "index.html").read_text()
    pages = {path.stem for path in site.glob("*.html")}
    assert pages == {*NAMES, "index", "live"} | ({"glossary"} if (NOTEBOOKS / "glossary.md").is_file() else set())
    assert (site / "plotly.min.js").stat().st_size > 1_000_000
    for name in NAMES:
        page = contents(nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4), name)
        assert f'href="{name}.html"' in index
        assert ".predict(" not in BeautifulSoup((site / f"{name}.html").read_text(), "html.parser").get_text()
        for said in (page.title, page.question, page.cost):
            assert said and export._linked(export._inline(said), pages, site) in index


def test_pages_hold_no_address_that_a_browser_would_fetch_and_no_dead_link(site):
    for path in site.glob("*.html"):
        text = path.read_text()
        fetched = re.findall(
            r'<(?:script|img|iframe)[^>]* src="([^"]+)"|<link[^>]* href="([^"]+)"|url\(([^)]+)\)', text
        )
        own = ("data:", '"data:', "plotly.min.js", "live.js")
        outside = {a for found in fetched for a in found if a and not a.startswith(own)}
        assert outside == set(), path.name
        for target, part in re.findall(r'<a href="([^":#]*)#?([^":]*)"', text):
            linked = (site / target).read_text() if target else text
            assert not part or f'id="{part}"' in linked, f"{path.name}: {target}#{part}"


DRAWN = """() => [...document.querySelectorAll(".plotly-graph-div")].every((f) => f.querySelector(".main-svg path"))"""


@pytest.mark.skipif(driver.chromium() is None, reason="no Chromium here; Debian: apt-get install chromium")
def test_without_a_network_figures_and_equations_are_drawn_and_nothing_is_asked(site, executed):
    with driver.browser() as browser:
        context = browser.new_context(offline=True, viewport={"width": 1000, "height": 800})
        page, trouble = context.new_page(), []
        context.route("**/*", lambda r: r.continue_() if r.request.url.startswith(site.as_uri()) else r.abort())
        page.on("request", lambda r: r.url.startswith((site.as_uri(), "data:", "blob:")) or trouble.append(r.url))
        page.on("console", lambda m: m.type in ("error", "warning") and trouble.append(m.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        for name in NAMES:
            page.goto((site / f"{name}.html").as_uri())
            cells = nbformat.read(executed / f"{name}.ipynb", as_version=4).cells
            shown = [o for cell in cells for o in cell.get("outputs", []) if theme.MIMETYPE in o.get("data", {})]
            assert page.locator(".plotly-graph-div").count() == len(shown) >= 1
            page.wait_for_function(DRAWN)
            equations = page.locator("math")
            sizes = equations.evaluate_all("all => all.map((e) => e.getBoundingClientRect().height)")
            assert all(size > 5 for size in sizes), name
            assert "$" not in page.locator(".text_cell_render").evaluate_all(
                "all => all.map((e) => { const c = e.cloneNode(true);"
                " c.querySelectorAll('code, pre').forEach((x) => x.remove()); return c.textContent; }).join(' ')"
            )
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is too wide"
        for scheme, dark in (("light", False), ("dark", True)):
            page.emulate_media(color_scheme=scheme)
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 300) == dark
    assert trouble == []


@pytest.mark.skipif(driver.chromium() is None, reason="no Chromium here; Debian: apt-get install chromium")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_pages_are_for_every_reader(site, scheme, width):
    with driver.browser() as browser:
        page = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}).new_page()
        for path in sorted(site.glob("*.html")):
            page.goto(path.as_uri())
            page.wait_for_function(DRAWN)
            assert driver.inaccessible(page) == [], path.name


# ------------------------------------------------------------------------------ parts


def small(*cells):
    """An executed notebook of a title and some cells."""
    return new_notebook(cells=[new_markdown_cell("# 7. A title\n\n> Why\n> so?\n\n**Cost:** `2` seconds.\n"), *cells])


def test_contents_are_read_from_the_first_cell():
    page = contents(small(), "07")
    assert (page.title, page.question) == ("7. A title", "Why so?")
    assert export._inline(page.title) == "7. A title"
    assert export._inline(page.cost) == "<strong>Cost:</strong> <code>2</code> seconds."
    bare = contents(new_notebook(cells=[new_markdown_cell("words")]), "07_bare")
    assert bare == course.Contents("07_bare", "07_bare", "", "")


def test_the_tables_of_a_readme_are_written_between_their_marks_and_nothing_else_changes(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- course -->\n\nold\n\n<!-- end of course -->\nafter\n")
    course.write_tables(readme)
    text = readme.read_text()
    assert text == f"before\n<!-- course -->\n\n{course.course_tables()}\n\n<!-- end of course -->\nafter\n"
    course.write_tables(readme)
    assert readme.read_text() == text
    readme.write_text("no marks")
    with pytest.raises(InputError, match="hold the lines"):
        course.write_tables(readme)


def test_equations_are_mathml_and_what_cannot_be_said_is_refused():
    html = export.markdown("with $a_b$ and $$\\frac{1}{\\beta}\\log Z$$ and `$x$`")
    assert html.count("<math") == 2 and 'display="block"' in html and "<code>$x$</code>" in html
    with pytest.raises(InputError, match="nonsense"):
        export.mathml(r"\nonsense{x}")


def test_orders_that_need_a_kernel_are_left_out_or_folded():
    tasks = new_markdown_cell("Move the *step*.", metadata={"tags": ["live"]})
    kept = [new_markdown_cell("words"), new_code_cell("1"), tasks]
    check = new_code_cell("exercises.X.check(mine)", id="exercise-2-check")
    injected = new_code_cell("a = 1", metadata={"tags": ["injected-parameters"]})
    hidden = new_code_cell("draw()", metadata={"jupyter": {"source_hidden": True}})
    shown = [export._for_a_page(cell) for cell in (*kept, check, injected, hidden)]
    assert shown[3:5] == [None, None] and shown[:2] == kept[:2]
    assert shown[2].source.startswith("<details><summary>To try in the notebook")
    assert shown[5].metadata["transient"]["remove_source"]
    tasks = new_markdown_cell("Move.\n\n(The code of the figure is folded: click.)", metadata={"tags": ["live"]})
    assert export._for_a_page(tasks, moves=True).source.strip() == "Move."


def test_no_page_gives_orders_that_need_a_kernel(site):
    for path in site.glob("*.html"):
        soup = BeautifulSoup(path.read_text(), "html.parser")
        for folded in soup.select("details"):
            folded.decompose()
        text = " ".join(soup.get_text().split())
        orders = ("three dots", "Not yet. Write", "run this cell", "Move the slider", "Try these")
        for order in orders[:3] if soup.select(".uftlab-live") or path.stem == "index" else orders:
            assert order.lower() not in text.lower(), path.name


def test_links_lead_to_pages_and_lose_what_is_not_there(tmp_path):
    body = '<a href="02_x.ipynb#The-End">a</a><a href="09_y.ipynb">b</a>'
    body += '<a href="https://arxiv.org/abs/1">c</a><a href="#So">d</a>'
    linked = export._linked(body, ["02_x"], tmp_path)
    assert linked == '<a href="02_x.html#the-end">a</a>b<a href="https://arxiv.org/abs/1">c</a><a href="#so">d</a>'


@pytest.mark.parametrize(
    ("problem", "said"),
    [("missing", "hold"), ("not executed", "1 of 1 code cells not run"), ("cut", "1 of 3 code cells not run"),
     ("failed", "a cell that failed"), ("widgets", "widgets that need a kernel")],
)  # fmt: skip
def test_copies_that_cannot_be_shown_are_refused(problem, said, tmp_path):
    view = new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}})
    failed = new_output("error", ename="ValueError", evalue="no", traceback=[])
    ran = new_code_cell("1", execution_count=1)
    cells = {
        "not executed": [new_code_cell("1")],
        "cut": [ran, new_code_cell(""), new_code_cell("2")],  # an empty cell is never run
        "failed": [new_code_cell("1", execution_count=1, outputs=[failed])],
        "widgets": [new_code_cell("1", execution_count=1, outputs=[view])],
    }
    if problem in cells:
        nbformat.write(small(*cells[problem]), tmp_path / f"{NAMES[0]}.ipynb")
    with pytest.raises(InputError, match=f"{said}.*--executed"):
        export.write_site(tmp_path, tmp_path / "out", NAMES[0])
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------ previews


def test_the_preview_is_of_the_explorer(executed):
    for name in NAMES:
        notebook = export._read(executed, name)
        explored = [c for c in notebook.cells if c.cell_type == "code" and has_explorer(c.source)]
        if name == "00_start":  # its only figure
            assert not explored
            explored = [c for c in notebook.cells if c.cell_type == "code"]
        figures = [o.data.get(theme.MIMETYPE) for cell in explored for o in cell.outputs if "data" in o]
        assert export.main_figure(notebook) in figures


@pytest.mark.skipif(driver.chromium() is None, reason="no Chromium here; Debian: apt-get install chromium")
@pytest.mark.skipif(not hasattr(plotly.io, "write_images"), reason="plotly 6.1 and later draw images")
def test_previews_are_written(executed, tmp_path):
    (path,) = export.write_previews(executed, tmp_path, NAMES[0])
    assert path.name == f"{NAMES[0]}.png" and path.read_bytes().startswith(b"\x89PNG")

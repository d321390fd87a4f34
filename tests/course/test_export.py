"""The course as web pages: nothing is asked of a network, figures are drawn, equations are equations."""

import asyncio
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest import mock

import driver
import nbformat
import psutil
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from uftlab.course import export
from uftlab.course import notebooks as course
from uftlab.course.notebooks import NOTEBOOKS, contents, copy_course, has_explorer, lab_command, notebook_paths, run_all
from uftlab.course.server import Connection
from uftlab.errors import InputError
from uftlab.plots import theme

ROOT = Path(__file__).resolve().parents[2]
NAMES = [path.stem for path in notebook_paths()]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """All notebooks as `uftlab export` executes them, in the quick profile."""
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
            assert said and export._linked(export._inline(said), pages) in index


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
    html = export._markdown("with $a_b$ and $$\\frac{1}{\\beta}\\log Z$$ and `$x$`")
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


def test_links_lead_to_pages_and_lose_what_is_not_there():
    body = '<a href="02_x.ipynb#The-End">a</a><a href="09_y.ipynb">b</a>'
    body += '<a href="https://arxiv.org/abs/1">c</a><a href="#So">d</a>'
    linked = export._linked(body, ["02_x"])
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


def test_every_notebook_has_a_small_preview_that_the_readme_shows():
    readme = (ROOT / "README.md").read_text()
    pictures = {path.stem for path in (ROOT / "docs/previews").glob("*.png")}
    assert pictures == {*NAMES, "finding"}, "make pages"
    assert course.course_tables() in readme, "make pages"
    for name in NAMES:
        assert f"](docs/previews/{name}.png)](notebooks/{name}.ipynb)" in readme
        assert 10_000 < (ROOT / f"docs/previews/{name}.png").stat().st_size < 150_000


@pytest.mark.skipif(driver.chromium() is None, reason="no Chromium here; Debian: apt-get install chromium")
def test_previews_are_written(executed, tmp_path):
    (path,) = export.write_previews(executed, tmp_path, NAMES[0])
    assert path.name == f"{NAMES[0]}.png" and path.read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------------------ JupyterLab


def test_jupyterlab_is_started_on_this_machine_alone_with_a_token_and_settings_of_its_own(tmp_path):
    command, environment, address = lab_command(NOTEBOOKS, tmp_path, browser=False)
    text = " ".join(command)
    assert "--ServerApp.ip=127.0.0.1" in text and "NeverCheckForUpdate" in text and "port_retries=0" in text
    token = environment["JUPYTER_TOKEN"]
    assert len(token) >= 40 and token not in text and address.endswith(f"{NAMES[0]}.ipynb?token={token}")
    mine = {name: value for name, value in environment.items() if value.startswith(str(tmp_path))}
    assert {"JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR"} <= set(mine)
    quiet = next(tmp_path.rglob("notification.jupyterlab-settings"))
    assert json.loads(quiet.read_text())["fetchNews"] == "false"
    assert lab_command(NOTEBOOKS, tmp_path)[1]["JUPYTER_TOKEN"] != token
    assert os.environ.get("JUPYTER_TOKEN") != token
    assert {environment[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"1"}


def test_a_page_that_was_left_costs_no_traceback_and_other_errors_are_seen(tmp_path):
    text = " ".join(lab_command(NOTEBOOKS, tmp_path)[0])
    assert "--ServerApp.kernel_websocket_connection_class=uftlab.course.server.Connection" in text

    async def troubles_of(page):
        """What the event loop complains about when a page of this kind gets a message."""
        loop, found = asyncio.get_running_loop(), []
        loop.set_exception_handler(lambda loop, context: found.append(type(context["exception"])))
        handler = mock.create_autospec(WebSocketHandler, instance=True)
        handler.write_message.side_effect = page
        connection = Connection.__new__(Connection)
        with mock.patch.object(Connection, "websocket_handler", handler):
            connection.write_message(b"words", binary=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()  # an error that nobody looked at is reported when its future is removed
        assert handler.write_message.call_args == mock.call(b"words", binary=True)
        return found

    def leaves(error):
        def later(*args, **how):
            future = asyncio.get_running_loop().create_future()
            future.set_exception(error)
            return future

        return later

    assert asyncio.run(troubles_of(WebSocketClosedError())) == []
    assert asyncio.run(troubles_of(leaves(WebSocketClosedError()))) == []
    assert asyncio.run(troubles_of(leaves(ValueError("another")))) == [ValueError]


def test_a_missing_jupyterlab_or_notebook_is_a_plain_error(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="hold notebooks"):
        lab_command(tmp_path, tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install jupyterlab"):
        lab_command(NOTEBOOKS, tmp_path)


def test_a_folder_without_notebooks_gets_copies_and_keeps_what_was_written(tmp_path):
    folder = tmp_path / "mine"
    copy_course(folder)
    assert {p.name for p in folder.iterdir()} == {p.name for p in [*notebook_paths(), NOTEBOOKS / "glossary.md"]}
    first = folder / notebook_paths()[0].name
    first.write_text("my answers")
    copy_course(folder)
    assert first.read_text() == "my answers"
    with pytest.raises(InputError, match="--folder must be a folder"):
        copy_course(first)


def test_copies_that_were_cut_are_finished_and_what_is_there_stays(tmp_path, monkeypatch):
    copied, really = [], shutil.copyfile

    def dies(source, target):
        copied.append(source)
        if len(copied) == 3:
            raise KeyboardInterrupt
        really(source, target)

    monkeypatch.setattr(course.shutil, "copyfile", dies)
    with pytest.raises(KeyboardInterrupt):
        copy_course(tmp_path)
    first, second = sorted(tmp_path.glob("*.ipynb"))
    first.write_text("my answers")
    copy_course(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in [*notebook_paths(), NOTEBOOKS / "glossary.md"]}
    assert first.read_text() == "my answers" and second.read_text() == notebook_paths()[1].read_text()


def test_two_labs_on_one_folder_copy_once(tmp_path, monkeypatch):
    """The second finds the first copying, waits, and does not touch what the reader has written meanwhile."""
    begun, go_on, copied = threading.Event(), threading.Event(), []

    def slow(source, target):
        copied.append(source.name)
        begun.set()
        assert go_on.wait(60)
        target.write_text(source.read_text())

    monkeypatch.setattr(course.shutil, "copyfile", slow)
    labs = [threading.Thread(target=copy_course, args=(tmp_path,)) for _ in range(2)]
    labs[0].start()
    assert begun.wait(60)
    labs[1].start()
    go_on.set()
    for lab in labs:
        lab.join()
    assert sorted(copied) == sorted([p.name for p in [*notebook_paths(), NOTEBOOKS / "glossary.md"]])


# Deaf to every polite signal, with a child that is deaf too and in a session of its own, as kernels are.
DEAF = """
import signal, subprocess, sys, time
for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(kind, signal.SIG_IGN)
if len(sys.argv) == 1:
    child = subprocess.Popen([sys.executable, __file__, "child"], start_new_session=True, stdout=subprocess.PIPE)
    child.stdout.readline()
print("deaf", flush=True)
time.sleep(600)
"""


@pytest.fixture
def deaf(tmp_path):
    """The path of a program that no polite signal ends."""
    path = tmp_path / "deaf.py"
    path.write_text(DEAF)
    return path


def has_ended(process):
    """Whether it runs no more; an orphan may wait as a zombie until the first process of the machine looks for it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_server_that_does_not_listen_is_ended_with_its_children(deaf):
    server = subprocess.Popen([sys.executable, deaf], stdout=subprocess.PIPE, text=True)
    assert server.stdout.readline() == "deaf\n"
    (child,) = psutil.Process(server.pid).children()
    started = time.monotonic()
    course.stop(server, seconds=2.0)
    assert server.poll() is not None and has_ended(child)
    assert time.monotonic() - started < 60  # no quiet machine is needed: what counts is that all have ended
    course.stop(server)  # that it is over already is no error
    assert course.STOP_SECONDS <= 10


# `uftlab lab` with a server that answers nothing and does not listen, in a shell that ignores Ctrl-C.
DEAF_LAB = """
import signal, sys
from uftlab.course import notebooks
notebooks.lab_command = lambda *args: ([sys.executable, sys.argv[1]], {}, "http://127.0.0.1:9/")
print("before", signal.getsignal(signal.SIGINT) == signal.SIG_IGN, flush=True)
print(notebooks.open_lab(browser=False), flush=True)
"""


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM], ids=lambda kind: kind.name)
def test_lab_ends_on_a_signal_though_its_shell_ignores_it_and_its_server_does_not_listen(kind, deaf):
    ignoring = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{DEAF_LAB}"
    command = [sys.executable, "-c", ignoring, str(deaf)]
    lab = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert lab.stdout.readline() == "before True\n"
    assert lab.stdout.readline() == "deaf\n"  # the server, and its child before it
    family = psutil.Process(lab.pid).children(recursive=True)
    assert len(family) == 2
    lab.send_signal(kind)
    assert lab.communicate(timeout=60)[0].splitlines() == ["0"] and lab.returncode == 0
    assert all(map(has_ended, family))


def test_a_proxy_is_not_asked_whether_jupyterlab_answers(monkeypatch):
    """The address holds the token."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        """Counts what it is asked."""

        def do_GET(self):
            asked.append((self.server.server_port, self.path))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    servers = [HTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    lab, proxy = (server.server_port for server in servers)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    try:
        assert course._answers(f"http://127.0.0.1:{lab}/lab?token=secret")
        assert asked == [(lab, "/lab?token=secret")]
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
    assert not course._answers(f"http://127.0.0.1:{lab}/lab?token=secret")

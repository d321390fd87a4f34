"""JupyterLab in a real browser, for tests/test_browser.py and benchmarks/sliders.py: open, run, move, compare."""

import math
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from urllib.parse import urlsplit

import ipywidgets
import numpy as np

from uftlab.course.notebooks import STOP_SECONDS

PATIENCE = 240_000  # milliseconds; two slow cores may be busy with other tests
PLOT = ".uftlab .js-plotly-plot"

# What is drawn, against what a figure says: a list of differences, empty when there are none. Data and layout are
# compared as plotly.js holds them; then lines, markers and bars of the svg with the data, in pixels.
COMPARE = """
(expected) => {
  const gd = document.querySelector(".uftlab .js-plotly-plot"), wrong = [];
  const list = (v) => ArrayBuffer.isView(v) || Array.isArray(v);
  const same = (e, g, where) => {
    if (list(e)) {
      if (!list(g) || e.length !== g.length) wrong.push(`${where}: ${e.length} values, drawn ${g && g.length}`);
      else for (let i = 0; i < e.length; i++) same(e[i], g[i], `${where}[${i}]`);
    } else if (e && typeof e === "object") {
      // plotly.js answers autorange "reversed" with true and a reversed range
      for (const key in e) if (key !== "autorange") same(e[key], (g ?? {})[key], `${where}.${key}`);
    } else if (typeof e === "number" && typeof g === "number") {
      const near = Math.abs(e - g) <= 1e-6 * Math.max(1, Math.abs(e));
      if (!near && !(Number.isNaN(e) && Number.isNaN(g))) wrong.push(`${where}: ${e}, drawn ${g}`);
    } else if ((e ?? null) !== (g ?? null) && !(Number.isNaN(e) && g == null)) wrong.push(`${where}: ${e}, drawn ${g}`);
  };
  if (!gd || !gd._fullData) return ["no plot"];
  expected.data.forEach((trace, i) => {
    const given = { ...gd.data[i] };
    for (const key in trace) if (list(trace[key]) && !list(given[key])) given[key] = (gd._fullData[i] ?? {})[key];
    same(trace, given, `trace ${i}`);
  });
  // plotly.js forgets the height that was given when it fits a figure into its place, and keeps the one it has drawn
  same(expected.layout, { ...gd.layout, height: gd._fullLayout.height }, "layout");
  const inside = (a, p) => p >= -0.5 && p <= a._length + 0.5;
  const near = (what, e, g) => { if (!(Math.abs(e - g) < 1.5)) wrong.push(`${what}: at ${e} px, drawn at ${g} px`); };
  for (const points of gd.calcdata) {
    const trace = points[0].trace;
    if (trace.visible !== true || !["scatter", "bar"].includes(trace.type)) continue;
    const group = [...gd.querySelectorAll(".scatterlayer > .trace, .barlayer > .trace")].find(
      (g) => g.__data__ && g.__data__[0].trace && g.__data__[0].trace.index === trace.index);
    const axis = (id) => gd._fullLayout[id.replace(/^[xy]/, "$&axis")];
    const [xa, ya] = [axis(trace.xaxis), axis(trace.yaxis)];
    const real = points.filter((p) => Number.isFinite(p.x ?? p.p) && Number.isFinite(p.y ?? p.p));
    if (!group) { if (real.length) wrong.push(`${trace.name}: not in the svg`); continue; }
    if (trace.type === "bar") {
      const bars = [...group.querySelectorAll(".point > path")];
      const [size, value] = trace.orientation === "h" ? ["width", xa] : ["height", ya];
      points.forEach((p, i) => {
        const [from, to] = [value.c2p(p.b ?? 0), value.c2p((p.b ?? 0) + p.s)];
        if (bars[i] && inside(value, from) && inside(value, to))
          near(`${trace.name} bar ${i}`, Math.abs(to - from), bars[i].getBBox()[size]);
      });
      continue;
    }
    const at = (p) => [xa.c2p(p.x), ya.c2p(p.y)];
    const line = group.querySelector("path.js-line");
    if (trace.mode.includes("lines") && line && real.length === points.length && points.length > 1) {
      for (const [name, p, along] of [["start", points[0], 0], ["end", points.at(-1), line.getTotalLength()]]) {
        const [x, y] = at(p), drawn = line.getPointAtLength(along);
        if (inside(xa, x) && inside(ya, y)) {
          near(`${trace.name} ${name} x`, x, drawn.x);
          near(`${trace.name} ${name} y`, y, drawn.y);
        }
      }
    }
    const marks = [...group.querySelectorAll("path.point")];
    if (trace.mode.includes("markers") && marks.length === points.length) points.forEach((p, i) => {
      const [x, y] = marks[i].getAttribute("transform").match(/-?[0-9.]+/g).map(Number), [ex, ey] = at(p);
      near(`${trace.name} point ${i} x`, ex, x);
      near(`${trace.name} point ${i} y`, ey, y);
    });
  }
  return wrong;
}
"""
SVG = """() => [...document.querySelectorAll(".uftlab .js-plotly-plot .main-svg *")]
  .map((e) => [e.getAttribute("d"), e.getAttribute("transform"), e.children.length ? "" : e.textContent].join())
  .join("|")"""
LINE = ".uftlab:has(.js-plotly-plot) [role=status]"
SPOKEN = f"(words) => document.querySelector('{LINE}').textContent === words"
# From a key press to the paint of the last change of the figure that followed, in milliseconds.
STOPWATCH = """() => {
  const watch = (window.stopwatch = { pressed: null, painted: null });
  addEventListener("keydown", () => Object.assign(watch, { pressed: performance.now(), painted: null }), true);
  new MutationObserver(() => requestAnimationFrame(() => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => { watch.painted = performance.now() - watch.pressed; };
    port2.postMessage(0);
  })).observe(document.querySelector(".uftlab .js-plotly-plot .main-svg").parentElement,
              { subtree: true, attributes: true, childList: true, characterData: true });
}"""


def chromium():
    """The path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def inaccessible(page):
    """What axe-core finds wrong in an open page, for readers with a screen reader, a keyboard or weak eyes."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [f"{rule['id']} at {' '.join(node['target'])}" for rule in found for node in rule["nodes"]]


@contextmanager
def browser():
    """A headless browser without a sandbox (there is none for root) and without a GPU."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu"]
        running = playwright.chromium.launch(executable_path=chromium(), args=flags)
        yield running
        running.close()


def copy_notebook(path, folder, profile):
    """A copy to run, with another profile in its cell of parameters: Lab saves into what it runs."""
    text, written = path.read_text(encoding="utf-8"), r"profile: str = \"class\""
    assert text.count(written) == 1
    (folder / path.name).write_text(text.replace(written, rf"profile: str = \"{profile}\""), encoding="utf-8")


@contextmanager
def lab(folder):
    """`uftlab lab` on a folder of notebooks; gives the address that it prints."""
    command = [sys.executable, "-m", "uftlab.cli", "lab", "--folder", str(folder), "--no-browser"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        line = server.stdout.readline()
        assert "http://127.0.0.1:" in line, line
        yield line.split()[-1]
    finally:
        server.terminate()  # a shell may have said that Ctrl-C is to be ignored; it ends within STOP_SECONDS
        server.wait(6 * STOP_SECONDS)  # this machine may be busy


def run_notebook(page, address, name):
    """Open a notebook, run all cells and wait until its explorer is drawn; returns addresses asked outside."""
    parts = urlsplit(address)
    outside = []
    page.on("request", lambda r: urlsplit(r.url).hostname not in (None, "127.0.0.1") and outside.append(r.url))
    page.set_default_timeout(PATIENCE)
    page.goto(f"{parts.scheme}://{parts.netloc}/lab/tree/{name}.ipynb?{parts.query}&reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Notebook")
    # the indicator is idle without a kernel too, and then Run All is lost
    page.wait_for_function(
        "() => { const k = document.querySelector('[data-jp-item-name=kernelName]');"
        " return k && !k.textContent.includes('No Kernel'); }"
    )
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    page.click(".lm-MenuBar-item:has-text('Run')")
    page.click(".lm-Menu-item[data-command='runmenu:run-all']")
    page.wait_for_function(
        "() => { const p = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map((x) => x.textContent);"
        " return p.some((x) => /\\d/.test(x)) && !p.some((x) => x.includes('*')); }"
    )
    page.locator(".uftlab-desk").scroll_into_view_if_needed()  # a figure is drawn when it is seen
    page.wait_for_selector(f"{PLOT} .main-svg", state="attached")
    page.evaluate(STOPWATCH)
    return outside


def plain(value):
    """A plotly property as JSON knows it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def drawing(figure):
    """What the page must show of a figure: traces and layout, without the template."""
    layout = {key: plain(value) for key, value in figure.layout.to_plotly_json().items() if key != "template"}
    return {"data": [plain(trace.to_plotly_json()) for trace in figure.data], "layout": layout}


def wait_until_drawn(page, figure, words):
    """Wait for the spoken line, then for the figure; the differences are in the error."""
    from playwright.sync_api import TimeoutError

    expected = drawing(figure)
    try:
        page.wait_for_function(SPOKEN, arg=words, timeout=20_000)
        page.wait_for_function(f"(expected) => ({COMPARE})(expected).length === 0", arg=expected, timeout=20_000)
    except TimeoutError:
        found = page.locator(LINE).text_content(), page.evaluate(COMPARE, expected)[:10]
        raise AssertionError(f"expected {words!r}, found {found}") from None


def moves(control):
    """Ways to move one control, each with the value that it leads to: (how, what, value)."""
    value, label = control.value, control.description
    if isinstance(control, ipywidgets.ToggleButtons | ipywidgets.Dropdown):
        options = control._options_full  # pairs of label and value
        others = [pair for pair in options if pair[1] != value][:3]
        how = "press" if isinstance(control, ipywidgets.ToggleButtons) else "select"
        return [(how, text, to) for text, to in others]
    if isinstance(control, ipywidgets.FloatLogSlider):
        exponent = math.log(value, control.base)
        low, high = control.min, control.max
        values = [control.base ** round(e, 10) for e in (exponent + control.step, exponent + 2 * control.step)]
        fits = exponent + 2 * control.step <= high
        back = [control.base ** round(e, 10) for e in (exponent - control.step, exponent - 2 * control.step)]
        typed = control.base ** round((low + high) / 2, 1)  # of a number between two steps the page takes the nearest
    else:
        low, high = control.min, control.max
        fits = value + 2 * control.step <= high
        values = [round(value + k * control.step, 10) for k in (1, 2)]
        back = [round(value - k * control.step, 10) for k in (1, 2)]
        typed = type(low)(round(low + control.step * round((high - low) / control.step / 3), 10))
    key, keyed = ("ArrowRight", values) if fits else ("ArrowLeft", back)
    assert label
    return [("key", key, keyed[0]), ("key", key, keyed[1]), ("type", f"{typed:.3g}", typed)]


def move(page, control, how, what):
    """Move one control by the keyboard, as its accessible name and role say. Returns the handle of a slider."""
    label = control.description
    if how == "select":
        menu = page.get_by_role("combobox", name=label, exact=True)
        menu.focus()  # as a reader does; so the page scrolls there, and figures are drawn where they are seen
        menu.select_option(label=what)
    elif how == "press":
        button = page.get_by_role("group", name=label, exact=True).get_by_role("button", name=what, exact=True)
        button.focus()
        button.press("Enter")
    elif how == "type":
        field = page.get_by_role("spinbutton", name=label, exact=True)
        field.fill(what)
        field.press("Enter")
    else:
        page.get_by_role("slider", name=label, exact=True).press(what)

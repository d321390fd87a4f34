"""The course in JupyterLab, in a real browser: every control moves the figure as the notebook's function says.

UFTLAB_TESTS=all python -m pytest tests/test_browser.py    those of all notebooks: ten minutes on two cores
"""

import json
import math
import statistics
from pathlib import Path

import driver
import ipywidgets
import pytest
from scope import ALL

from uftlab.course.notebooks import NOTEBOOKS, explorer_of, explorer_paths

# their explorers are made of the same parts, and a notebook takes up to a minute to come up
SLOW = {
    "02_losses",
    "03_tiny_world",
    "04_forgetting",
    "06_mixing",
    "07_beta",
    "08_online",
    "09_what_predicts_forgetting",
    "10_real_model",
}
WITHOUT = "01_implicit_reward"  # its page has an impatient anywidget, and JupyterLab has no plotly there
NAMES = [path.stem for path in explorer_paths() if ALL or path.stem not in SLOW]
PAINTED = Path(__file__).parent.parent / "build" / "key-to-paint.json"

pytestmark = pytest.mark.skipif(
    driver.chromium() is None, reason="no Chromium here; Debian: apt-get install chromium (.ci/run does)"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """JupyterLab on copies of the notebooks in the quick profile, so that nothing saves into the committed ones."""
    folder = tmp_path_factory.mktemp("course")
    for name in NAMES:
        text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
        assert text.count(r"profile: str = \"class\"") == 1
        (folder / f"{name}.ipynb").write_text(
            text.replace(r"profile: str = \"class\"", r"profile: str = \"smoke\""), encoding="utf-8"
        )
    with driver.lab(folder) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with driver.browser() as running:
        yield running


@pytest.fixture(scope="module", params=NAMES)
def running(request, address, browser):
    """One notebook, all cells run: its page, its explorer and the addresses it asked outside this machine."""
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.given_up = []
    page.on("pageerror", lambda error: page.given_up.append(str(error)))
    if request.param == WITHOUT:
        page.add_init_script(IMPATIENT)
        page.route("**/jupyterlab-plotly/**", lambda route: route.abort())
    outside = driver.run_notebook(page, address, request.param)
    yield page, explorer_of(NOTEBOOKS / f"{request.param}.ipynb", profile="smoke"), outside
    page.close()


# anywidget gives a model two seconds to load its script, then it throws the messages of the kernel away. A busy machine
# needs longer; here the time is over at once.
IMPATIENT = """AbortSignal.timeout = () => {
  const clock = new AbortController();
  setTimeout(() => clock.abort(), 0);
  return clock.signal;
};"""


def test_one_page_is_as_on_a_busy_machine_and_without_plotly(running, request):
    """So that the tests below say that its explorer and its figures come up all the same."""
    page, _, _ = running
    gave_up = any("Failed to initialize model" in error for error in page.given_up)
    assert gave_up or request.node.callspec.params["running"] != WITHOUT
    plain = page.locator(".plotly-graph-div")  # made from the HTML of a figure
    if request.node.callspec.params["running"] == WITHOUT:
        assert plain.count() > 2
        page.wait_for_function(DRAWN)
    else:
        assert plain.count() == 0


ROLES = {"FloatSlider": "slider", "FloatLogSlider": "slider", "IntSlider": "slider"}
ROLES |= {"Dropdown": "combobox", "ToggleButtons": "group"}

DRAWN = "() => [...document.querySelectorAll('.plotly-graph-div')].every((f) => f.querySelector('.main-svg path'))"


def test_controls_are_named_and_the_first_picture_is_the_functions(running):
    page, explorer, _ = running
    values = {name: control.value for name, control in explorer.controls.items()}
    driver.wait_until_drawn(page, explorer.picture(**values), explorer.words(**values))
    wrong = driver.drawing(explorer.picture(**values))
    wrong["data"][0]["y"] = wrong["data"][0]["y"][1:]  # so that this comparison is known to find what differs
    assert page.evaluate(driver.COMPARE, wrong) != []
    for control in explorer.controls.values():
        role = ROLES[type(control).__name__]
        named = page.get_by_role(role, name=control.description, exact=True)
        assert named.count() == 1
        if role == "slider":  # what is read out is the value, of a logarithmic slider too, and not its exponent
            assert float(named.get_attribute("aria-valuetext")) == pytest.approx(control.value, rel=1e-2)
            assert page.get_by_role("spinbutton", name=control.description, exact=True).count() == 1


def test_every_control_draws_what_the_function_says(running, request):
    page, explorer, outside = running
    values = {name: control.value for name, control in explorer.controls.items()}
    before, svg, painted = driver.drawing(explorer.picture(**values)), page.evaluate(driver.SVG), []
    for name, control in explorer.controls.items():
        for how, what, value in driver.moves(control):
            values[name] = value
            driver.move(page, control, how, what)
            page.wait_for_function(driver.SPOKEN, arg=explorer.words(**values))
            values[name], figure = as_in_page(page, explorer, values, name)
            driver.wait_until_drawn(page, figure, explorer.words(**values))
            if how in ("key", "press") and page.evaluate("stopwatch.painted") is not None:
                painted.append(page.evaluate("stopwatch.painted"))
            drawn, seen = driver.drawing(figure), page.evaluate(driver.SVG)
            assert (seen != svg) == (drawn != before), f"{name} to {value}: the picture must change with the figure"
            before, svg = drawn, seen
    assert outside == []
    record(request.node.callspec.params["running"], painted)


def as_in_page(page, explorer, values, name):
    """The value with which the function says what is drawn, and its figure: 0.3, or what 0.1 + 0.2 is in the page."""
    value, figure = values[name], explorer.picture(**values)
    if isinstance(value, float) and page.evaluate(driver.COMPARE, driver.drawing(figure)):
        for near in (value + k * math.ulp(value) for k in (1, -1, 2, -2, 3, -3, 4, -4, 6, -6, 8, -8)):
            other = explorer.picture(**{**values, name: near})
            if not page.evaluate(driver.COMPARE, driver.drawing(other)):
                return near, other
    return value, figure


def record(notebook, painted):
    """Key press to paint, printed and kept; a report, not a limit, since other tests run beside this one."""
    assert painted
    rows = json.loads(PAINTED.read_text()) if PAINTED.is_file() else {}
    rows[notebook] = {"median_ms": statistics.median(painted), "max_ms": max(painted), "presses": len(painted)}
    PAINTED.parent.mkdir(exist_ok=True)
    PAINTED.write_text(json.dumps(rows, indent=1))
    print(f"\n{notebook}: key press to paint {statistics.median(painted):.0f} ms, at most {max(painted):.0f} ms")


def test_what_has_the_focus_shows_it(running):
    page, explorer, _ = running
    controls = list(explorer.controls.values())
    first = next((control for control in controls if hasattr(control, "step")), controls[0])
    if hasattr(first, "step"):
        control = page.get_by_role("slider", name=first.description, exact=True)
    else:
        named = page.get_by_role(ROLES[type(first).__name__], name=first.description, exact=True)
        control = named.get_by_role("button").first if isinstance(first, ipywidgets.ToggleButtons) else named
    control.focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    style = control.evaluate("(e) => [getComputedStyle(e).outlineStyle, getComputedStyle(e).outlineWidth]")
    assert style == ["solid", "3px"]


APART = """() => {
  const rows = [...document.querySelectorAll(".uftlab:has(.js-plotly-plot) .uftlab-control")];
  const boxes = rows.map((e) => e.getBoundingClientRect());
  const edge = document.querySelector(".jp-Notebook").getBoundingClientRect().right + 1;
  const beside = (a, b) => a.right <= b.left + 1 || b.right <= a.left + 1;
  const below = (a, b) => a.bottom <= b.top + 1 || b.bottom <= a.top + 1;
  return boxes.every((a, i) => a.right <= edge && boxes.every((b, j) => i === j || beside(a, b) || below(a, b)));
}"""


@pytest.mark.parametrize("width", [1280, 700])
def test_nothing_overlaps_in_a_wide_or_narrow_window(running, width):
    page, _, _ = running
    page.set_viewport_size({"width": width, "height": 720})
    page.locator(".uftlab:has(.js-plotly-plot) .uftlab-controls").scroll_into_view_if_needed()
    page.wait_for_function(APART)
    labels = page.locator(".uftlab:has(.js-plotly-plot) .uftlab-control label")
    assert labels.evaluate_all("all => all.filter((e) => e.scrollWidth > e.clientWidth + 1).length") == 0
    tracks = page.locator(".uftlab:has(.js-plotly-plot) .noUi-base")
    assert tracks.evaluate_all("all => all.filter((e) => e.clientWidth < 100).length") == 0
    page.set_viewport_size({"width": 1280, "height": 720})


HEIGHTS = """() => [...document.querySelectorAll('.js-plotly-plot:not(.uftlab *)')].map(
  (e) => e.getBoundingClientRect().height)"""


def test_figures_stay_when_the_window_changes_its_height_alone(running):
    page, _, _ = running
    if not page.evaluate(HEIGHTS):
        pytest.skip("this notebook has no figure but its explorer's")
    page.wait_for_function(f"() => Math.min(...({HEIGHTS})()) > 400")  # it was narrow in the test before
    before = page.evaluate(HEIGHTS)
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_timeout(1500)  # longer than JupyterLab waits before it resizes
    after = page.evaluate(HEIGHTS)
    page.set_viewport_size({"width": 1280, "height": 720})
    assert after == pytest.approx(before, abs=1)


FILLED = """() => {
  const [card, svg] = [".uftlab-card", ".uftlab-card .main-svg"].map(
    (e) => document.querySelector(e).getBoundingClientRect());
  return card.width > 0 && Math.abs(card.width - svg.width) <= 1 && Math.abs(card.height - svg.height) <= 1;
}"""


UNCUT = """() => [...document.querySelectorAll(".js-plotly-plot.jp-OutputArea-output")].every((e) =>
  e.querySelector(".main-svg").getBoundingClientRect().right <= e.parentElement.getBoundingClientRect().right + 1)"""


@pytest.mark.parametrize("width", [1280, 700])
def test_the_explorer_is_seen_at_once_and_no_figure_is_cut(running, width):
    page, _, _ = running
    page.set_viewport_size({"width": width, "height": 720})
    page.locator(".uftlab-card").scroll_into_view_if_needed()
    page.wait_for_function(FILLED)
    page.wait_for_function(UNCUT)
    box = page.locator(".uftlab:has(.js-plotly-plot)").bounding_box()
    card, notebook = page.locator(".uftlab-card").bounding_box(), page.locator(".jp-Notebook").bounding_box()
    assert card["x"] + card["width"] <= notebook["x"] + notebook["width"]
    controls = page.locator(".uftlab-desk > .uftlab-controls")
    assert controls.evaluate("(e) => e.scrollHeight - e.clientHeight") <= 1
    if width == 1280:
        assert box["height"] <= 560 and card["height"] >= 400
        right = controls.bounding_box()["x"] + controls.bounding_box()["width"]
        assert right <= card["x"]  # beside, not above
    page.set_viewport_size({"width": 1280, "height": 720})


def test_the_figure_of_the_explorer_has_the_width_that_there_is(running):
    """When it is first seen, and when there is more or less room though the window stays."""
    page, _, _ = running
    page.wait_for_function(FILLED)
    width = page.locator(driver.PLOT).evaluate("(plot) => plot.clientWidth")
    page.keyboard.press("Control+b")  # the list of files
    page.wait_for_function(f"(width) => document.querySelector('{driver.PLOT}').clientWidth > width + 100", arg=width)
    page.wait_for_function(FILLED)
    page.keyboard.press("Control+b")
    page.wait_for_function(f"(width) => document.querySelector('{driver.PLOT}').clientWidth === width", arg=width)
    page.wait_for_function(FILLED)

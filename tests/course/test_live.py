"""Explorers in exported pages: from a file, offline, in a real browser, with the numbers of the Python functions."""

import itertools
import math
import random
import re

import driver
import numpy as np
import pytest
import torch
from explorers import explorer_alone

from uftlab.course import export, live, snapshots, texts
from uftlab.course.notebooks import NOTEBOOKS
from uftlab.models.policies import load_base, tiny_tokenizer
from uftlab.plots import theme, widgets
from uftlab.rows.tokens import Tokens

pytestmark = pytest.mark.skipif(
    driver.chromium() is None, reason="no Chromium here; Debian: apt-get install chromium (.ci/run does)"
)
NAMES = list(live.MODELS)
QUESTIONS = [
    "what is the home of dobo ?",
    "According to careful sources, what is the home of dobo?",
    "which food does the unicorn have ?",
    "what is the colour of dobo ? use capitals only .",
    "Café “dobo” <end> <b>x</b> home_1 ½ zoom?!",
    "home colour of babo",
    "   ",
    "is it " * 60,
]
DRAWN_BY_MODEL = "() => document.querySelectorAll('.uftlab-live .uftlab-plot.plotly-graph-div').length === {}"


def made_up_snapshots(runs, profile, seed=0, **more):
    """Four runs that nobody trained: random log-probabilities, two stages in runs of two stages."""
    draw = np.random.default_rng(seed)
    rows = len(live.held_out(live.World(0), profile.sizes))
    found = {}
    for own in runs:
        pipeline = "-then-" in own.method
        starts = (0, 0, 0, 2, 2) if pipeline else (0,) * 5
        logps = np.float32(draw.normal(-12, 4, rows) + draw.normal(0, 1.5, (5, rows)).cumsum(0))
        tokens = torch.tensor(logps)[..., None]
        settings = ({"beta": 0.1},) * (2 if pipeline else 1)
        found[own.name] = snapshots.Snapshots(own.name, (0, 2, 4, 6, 8), starts, settings, tokens, ({},) * 5)
    return found


@pytest.fixture(scope="module")
def explorers():
    """Notebook -> the arguments of its `widgets.explore`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "snapshots_of", made_up_snapshots)
        yield {name: explorer_alone(name, profile="smoke", widgets_on=False) for name in NAMES}


@pytest.fixture(scope="module")
def site(explorers, tmp_path_factory):
    """A page for each explorer, and one with all, as `export.write_site` makes them."""
    out = tmp_path_factory.mktemp("live")
    theme.write_plotly_js(out)
    script = f'<script src="{live.write_script(out).name}" defer></script>'
    parts = {}
    for name, own in explorers.items():
        twin = widgets.explore(own.picture, own.controls, own.words, headless=True)
        parts[name] = f'<div class="output_html">{live.explorer(name, twin, "smoke")}</div>'
    model, tokenizer, world = load_base(0), tiny_tokenizer(), live.World(0)
    talk = (texts.chat(model, tokenizer, question, world) for question in QUESTIONS[:2])
    parts["ask"] = f'<div class="output_html">{live.asking("".join(reply.as_html() for reply in talk))}</div>'
    for name, body in {**parts, "live": "".join(parts.values())}.items():
        (out / f"{name}.html").write_text(export._page(name, body, False, script), encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def browser():
    with driver.browser() as running:
        yield running


@pytest.fixture
def opened(browser, site):
    """Opens a page offline, and says at the end what it complained about or asked for outside of its folder."""
    trouble, contexts = [], []

    def go(name, explorers=1, ready=None, before=lambda page: None, **how):
        contexts.append(browser.new_context(offline=True, **{"viewport": {"width": 1280, "height": 720}, **how}))
        page = contexts[-1].new_page()
        page.set_default_timeout(driver.PATIENCE)
        page.on("console", lambda m: m.type in ("error", "warning") and trouble.append(m.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda r: r.url.startswith((site.as_uri(), "data:", "blob:")) or trouble.append(r.url))
        before(page)
        page.goto((site / f"{name}.html").as_uri())
        page.wait_for_function(ready or DRAWN_BY_MODEL.format(explorers))
        return page

    go.trouble = trouble
    yield go
    for context in contexts:
        context.close()
    assert trouble == []


def test_all_explorers_come_in_one_file_that_needs_no_other(site, opened):
    page, script = ((site / name).read_text(encoding="utf-8") for name in ("live.html", live.SCRIPT))
    whole = live.alone(page, script)
    assert whole == live.alone(page, script) and "<a href" not in whole and "<nav" not in whole
    (site / "alone").mkdir()
    (site / "alone" / "live.html").write_text(whole, encoding="utf-8")
    shown = opened("alone/live", explorers=4)
    line = shown.locator("#explorer-bandit .uftlab-line")
    before = line.inner_text()
    shown.locator("#explorer-bandit").get_by_role("slider").first.press("ArrowRight")
    assert line.inner_text() != before


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_file_of_the_repository_is_for_every_reader(browser, scheme, width):
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}, offline=True)
    page = context.new_page()
    page.goto((NOTEBOOKS.parent / "docs" / "live.html").as_uri())
    page.wait_for_function(DRAWN_BY_MODEL.format(len(live.MODELS)))
    assert driver.inaccessible(page) == []
    context.close()


def test_the_file_of_the_repository_has_the_scripts_of_today(tmp_path):
    stored = (NOTEBOOKS.parent / "docs" / "live.html").read_text(encoding="utf-8")
    assert live.write_script(tmp_path).read_text(encoding="utf-8") in stored, "make pages writes it again"
    assert all(f'id="explorer-{model}"' in stored for model, _, _ in live.MODELS.values())


# ------------------------------------------------------------------------------ the model itself

ASK = "() => document.querySelectorAll('.uftlab-answer b').length === 2"


def probabilities(model, tokens, words, answer):
    """Of each word of a greedy answer and of its end, as transformers has them."""
    ids = [*tokens.prompt(words), *tokens.completion(words, answer)]
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [logp[at - 1, ids[at]].exp().item() for at in range(len(tokens.prompt(words)), len(ids))]


def test_the_model_in_the_page_says_what_it_says_in_python(opened, site):
    world, model, tokenizer = live.World(0), load_base(0), tiny_tokenizer()
    asked = [
        f"{cue}what is the {f.attribute} of {f.creature} ?"
        for f in world.facts[::50]
        for cue in ("", "according to careful sources , ")
    ]
    replies = [texts.chat(model, tokenizer, question, world) for question in [*QUESTIONS, *asked]]
    written = (site / "ask.html").read_text(encoding="utf-8")
    text = re.findall(r'<script type="application/json">(.*?)</script>', written)[0]
    script = "([data, questions]) => questions.map(uftlabChat(JSON.parse(data)))"
    found = opened("ask", ready=ASK).evaluate(script, [text, [*QUESTIONS, *asked]])
    for reply, page in zip(replies, found, strict=True):
        assert (page["question"], page["answer"], page["remark"]) == (reply.question, reply.answer, reply.remark)
        if page["told"] and page["told"][-1]["word"] == "<end>" and all(word["shown"] for word in page["told"][:-1]):
            wanted = probabilities(model, Tokens(tokenizer), reply.question, reply.answer)
            assert [word["p"] for word in page["told"]] == pytest.approx(wanted, abs=2e-6)
    assert sum(bool(page["told"]) for page in found) == len(found) - 1
    assert not any("<end>" in page["answer"] for page in found)


def test_a_reader_types_a_question_or_takes_one_and_what_is_typed_stays_text(opened):
    page = opened("ask", ready=ASK)
    field, answer = page.get_by_role("textbox", name="your question"), page.locator(".uftlab-answer")
    assert field.input_value() == QUESTIONS[0] and "the myth" in answer.inner_text()
    page.get_by_role("button", name=texts.as_words(QUESTIONS[1])).press("Enter")
    assert "It told the truth" in answer.inner_text()
    field.fill("<img src=x onerror='window.hit = 1'>")
    field.press("Enter")
    assert "has never read" in answer.inner_text()
    assert page.evaluate("window.hit") is None and answer.locator("img").count() == 0
    field.fill(" ")
    page.get_by_role("button", name="Ask", exact=True).click()
    assert answer.inner_text() == "Type a question and press Enter."


# ------------------------------------------------------------------------------ the same numbers

FIGURES = """(settings) => {
  const own = JSON.parse(document.querySelector(".uftlab-live script[type='application/json']").textContent);
  const figureOf = uftlabModels[own.model](own.twin, own.data, uftlabTools);
  const plain = (trace) => Object.fromEntries(Object.entries(trace).map(([key, value]) =>
    [key, value?.bdata ? uftlabTools.numbers(value) : value]));
  return settings.map((values) => {
    const { data, layout, words } = figureOf(values);
    return { data: data.map(plain), layout, words };
  });
}"""


def differences(expected, found, where=""):
    """What differs, numbers in more than six significant digits. `found` may say more than `expected`."""
    if isinstance(expected, dict):
        return [d for key in expected for d in differences(expected[key], (found or {}).get(key), f"{where}.{key}")]
    if isinstance(expected, list) and expected and all(isinstance(v, float) for v in expected) and len(found) > 1:
        near = 1e-6 * np.abs(expected) + 1e-10 * np.nanmax(np.abs(expected))
        same = len(found) == len(expected) and np.all(np.abs(np.subtract(expected, found)) <= near)
        return [] if same else [f"{where}: {expected[:3]}..., {len(expected)}; found {found[:3]}..., {len(found)}"]
    if isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            return [f"{where}: {expected}, found {found}"]
        return [d for i, v in enumerate(expected) for d in differences(v, found[i], f"{where}[{i}]")]
    if isinstance(expected, float) and isinstance(found, int | float):
        return [] if math.isclose(expected, found, rel_tol=1e-6, abs_tol=1e-12) else [f"{where}: {expected}, {found}"]
    return [] if expected == found else [f"{where}: {expected}, found {found}"]


def where_both_are(expected, found):
    """Two traces at the places that both have: which of two equal gaps gets the last point is anybody's guess."""
    if expected["x"] == found["x"]:
        return expected, found
    at = [{round(x, 9): (x, y) for x, y in zip(trace["x"], trace["y"], strict=True)} for trace in (expected, found)]
    both = sorted(at[0].keys() & at[1].keys())
    assert len(expected["x"]) == len(found["x"]) and len(both) > 0.9 * len(expected["x"])
    lists = [{k: [points[x][i] for x in both] for i, k in enumerate("xy")} for points in at]
    return {**expected, **lists[0]}, {**found, **lists[1]}


def values_of(control):
    """All values of a choice; first, middle and last step of a slider, and 0."""
    if hasattr(control, "options"):
        return [value for _, value in control._options_full]
    steps = round((control.max - control.min) / control.step)
    found = [control.min + control.step * k for k in sorted({0, 1, steps // 3, steps // 2, steps})]
    if hasattr(control, "base"):
        return [10 ** round(exponent, 10) for exponent in found]
    return [type(control.value)(round(value, 10)) for value in found]


def grid(controls, more):
    """Each value of each control at the first values of the others, and `more` random places."""
    draw, first = random.Random(0), {name: control.value for name, control in controls.items()}
    places = [{**first, name: value} for name, control in controls.items() for value in values_of(control)]
    if "normalisation" in controls:  # the names of what was built
        named = itertools.product(values_of(controls["distance"]), (-3.0, 0.0, 4.0), (0.0, 0.5, 1.0))
        places += [{**first, "distance": d, "baseline": b, "score": s} for d, b, s in named]
    return places + [{n: draw.choice(values_of(c)) for n, c in controls.items()} for _ in range(more)]


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_the_numbers_and_the_sentence_of_the_functions(name, explorers, opened):
    own = explorers[name]
    places = grid(own.controls, 15)
    found = opened(name).evaluate(FIGURES, [driver.plain(place) for place in places])
    for place, page in zip(places, found, strict=True):
        expected = driver.drawing(own.picture(**place))
        assert page["words"] == own.words(**place), place
        if name == "02_losses":
            pairs = [where_both_are(*pair) for pair in zip(expected["data"], page["data"], strict=True)]
            expected["data"], page["data"] = map(list, zip(*pairs, strict=True))
        assert not differences(expected, page), place
    for trace in expected["data"]:  # so that a difference in the sixth digit is known to be found
        numbers = [v for v in (trace["x"], trace["y"]) if v and isinstance(v[0], float)]
        for values in numbers:
            most = int(np.argmax(np.abs(values)))
            values[most] *= 1 + 3e-6
        assert not numbers or differences(expected, page)


def test_all_methods_of_the_algebra_explorer_are_known_to_the_page(explorers, opened):
    """A new objective appears in the notebook by itself. Its line in `losses.js` is written by hand."""
    first = {name: control.value for name, control in explorers["02_losses"].controls.items()}
    drawn = explorers["02_losses"].controls["overlay"].options.values()
    found = opened("02_losses").evaluate(FIGURES, [driver.plain({**first, "overlay": own}) for own in drawn])
    assert len(found) == len(drawn) > 30


def test_numbers_are_written_as_python_writes_them(opened):
    draw = random.Random(1)
    values = [draw.gauss(0, 1) * 10 ** draw.uniform(-9, 9) for _ in range(300)]
    values += [k / 8 for k in range(-40, 40)] + [0.0, -0.0, -0.001, 0.045, 1e-5, 12345.5, 99.95, 1e16, 123456.0]
    page = opened("06_mixing")
    script = """(values) => values.map((x) => [uftlabTools.fixed(x, 2), uftlabTools.fixed(x, 3, "+"),
      uftlabTools.fixed(x, 0), uftlabTools.short(x, 3), uftlabTools.short(x, 2), uftlabTools.percent(x)])"""
    found = page.evaluate(script, values)
    assert found == [[f"{x:.2f}", f"{x:+.3f}", f"{x:.0f}", f"{x:.3g}", f"{x:.2g}", f"{x:.0%}"] for x in values]


# ------------------------------------------------------------------------------ what a reader does


@pytest.mark.parametrize("name", ["01_implicit_reward", "02_losses"])  # all kinds of controls; the grid has all four
def test_every_control_has_a_name_and_moves_the_figure_by_the_keyboard(name, explorers, opened):
    own, page = explorers[name], opened(name)
    values = {n: control.value for n, control in own.controls.items()}
    driver.wait_until_drawn(page, own.picture(**values), own.words(**values))
    for n, control in own.controls.items():
        moves = driver.moves(control)
        for how, what, value in [moves[0], moves[-1]] if len(moves) > 1 else moves:
            if how == "key" and value != moves[0][2]:
                continue
            values[n] = value
            driver.move(page, control, how, what)
            driver.wait_until_drawn(page, own.picture(**values), own.words(**values))


def test_a_slider_says_its_value_and_its_text_field_keeps_to_the_range(opened, explorers):
    page = opened("01_implicit_reward")
    slider, field = (page.get_by_role(role, name="β", exact=True) for role in ("slider", "spinbutton"))
    for typed, said in (("500", "10"), ("0", "0.0501"), ("-3", "0.0501"), ("0.33", "0.316"), ("", "0.316")):
        field.fill(typed)
        field.press("Enter")
        page.wait_for_function("(said) => document.querySelector('[type=number]').value === said", arg=said)
        assert slider.get_attribute("aria-valuetext") == said
    field.press("ArrowUp")
    assert slider.get_attribute("aria-valuetext") == "0.398"
    assert page.locator(driver.LINE).text_content().startswith("β = 0.40")


def test_all_four_move_in_one_page_and_nothing_holds_up_its_text(opened, site):
    page = opened("live", explorers=4)
    assert page.locator(".uftlab-control").count() > 20
    head = (site / "live.html").read_text().split("</head>")[0]
    assert re.findall(r"<script[^>]*>", head) == ['<script src="live.js" defer>']


BROKEN = {
    "a model that fails": "uftlabModels.bandit = () => { throw Error('no'); };",
    "a drawing that fails": "uftlabPainter = () => ({ again: async () => false });",
    "no script": "",
}


@pytest.mark.parametrize("what", BROKEN)
def test_the_static_twin_stays_where_the_script_fails(what, opened, site, explorers):
    own = explorers["01_implicit_reward"]
    script = (
        (site / "live.js")
        .read_text()
        .replace("(() => {\n  const { make }", f"{BROKEN[what]}\n(() => {{\n  const {{ make }}")
    )

    def before(page):
        page.route("**/live.js", lambda route: route.fulfill(body=script) if BROKEN[what] else route.abort())

    page = opened("01_implicit_reward", ready="() => document.querySelector('.main-svg path')", before=before)
    page.wait_for_load_state()
    twin = page.locator(".plotly-graph-div:not(.uftlab-plot)")
    assert twin.is_visible() and page.locator(".main-svg").first.is_visible()
    assert page.locator(driver.LINE).text_content() == own.words(**{n: c.value for n, c in own.controls.items()})
    assert what == "a drawing that fails" or page.locator(".uftlab-control").count() == 0
    said = [line for line in opened.trouble if "stays as it is" in line or "ERR_FAILED" in line]
    assert len(said) == (what != "a drawing that fails")
    opened.trouble.clear()


# ------------------------------------------------------------------------------ how it looks

CONTRASTS = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[0-9.]+/g).map((v) => v / 255).map(
      (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = (e) => {
    const own = getComputedStyle(e).backgroundColor;
    return own.startsWith("rgba") && own.endsWith(" 0)") && e.parentElement ? paper(e.parentElement) : own;
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const all = [...document.querySelectorAll(
    ".uftlab-line, .uftlab-controls :is(label, button, select, [type=number], .uftlab-buttons > span)")];
  const text = all.map((e) => ratio(getComputedStyle(e).color, paper(e)));
  const borders = all.filter((e) => e.matches("button, select, input")).map(
    (e) => ratio(getComputedStyle(e).borderTopColor, paper(e.parentElement)));
  return [all.length, Math.min(...text), Math.min(...borders)];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_borders_have_contrast_and_the_focus_is_seen(scheme, opened):
    page = opened("02_losses", color_scheme=scheme)
    count, text, borders = page.evaluate(CONTRASTS)
    assert count > 15 and text >= 4.5 and borders >= 3
    for role in ("button", "combobox", "spinbutton", "slider"):
        control = page.get_by_role(role).first
        control.focus()
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        style = control.evaluate("(e) => [getComputedStyle(e).outlineStyle, getComputedStyle(e).outlineWidth]")
        assert style == ["solid", "3px"], role


INSIDE = """(e) => { const b = e.getBoundingClientRect();
  return b.top >= -1 && b.bottom <= innerHeight + 1 && b.left >= -1 && b.right <= innerWidth + 1; }"""


def test_everything_is_seen_at_once_on_a_laptop_and_on_a_phone_the_figure_while_the_last_control_moves(opened):
    page = opened("live", explorers=4)
    boxes = [page.locator(".uftlab-live").nth(i) for i in range(4)]
    for box in boxes:
        box.evaluate("(e) => e.scrollIntoView()")
        for place in (".uftlab-line", ".uftlab-card .main-svg >> nth=0", ".uftlab-control >> nth=-1"):
            assert box.locator(place).evaluate(INSIDE), place
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 390, "height": 844})
    for box in boxes:
        box.locator(".uftlab-control").last.evaluate("(e) => e.scrollIntoView({ block: 'end' })")
        figure = box.locator(".uftlab-card .main-svg >> nth=0")
        page.wait_for_function(INSIDE, arg=figure.element_handle())
        assert box.locator(".uftlab-control").last.evaluate(INSIDE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    heights = page.locator(".uftlab-controls :is(button, select, input)").evaluate_all(
        "all => all.map(e => e.offsetHeight)"
    )
    assert min(heights) >= 40

"""Widgets without a browser: a moved control changes exactly what the pure function says."""

import gc
import json
import weakref
from types import SimpleNamespace

import anywidget
import ipywidgets
import numpy as np
import plotly.graph_objects as go
import pytest
from IPython.core.events import EventManager, available_events

from uftlab.errors import InputError
from uftlab.plots import theme, widgets


def curve(beta, power, kind="both"):
    """Two traces, a title and an annotation that follow the parameters."""
    x = np.linspace(0, 1, 5)
    second = x * beta if kind == "both" else x[:0]
    traces = [go.Scatter(x=x, y=x**power * beta, name="one"), go.Bar(x=x[: len(second)], y=second, name="two")]
    fig = theme.figure(*traces, title=f"beta {beta:.2f}", x="x", y="y")
    if power > 2:
        fig.add_annotation(text="steep", x=0.5, y=beta, showarrow=False)
    return fig


def say(beta, power, kind="both"):
    return f"beta {beta:.2f}, power {power}, {kind}"


def controls():
    return {
        "beta": widgets.log_slider("beta", 0.1, 0.01, 10.0),
        "power": ipywidgets.IntSlider(2, min=1, max=4, description="power"),
        "kind": widgets.choice("kind", ["both", "one"]),
    }


SEVEN = ipywidgets.__version__.startswith("7.")


@pytest.fixture
def box():
    return widgets.explore(curve, controls(), say)


def everything_in(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from everything_in(child)


def widgets_by_id(model_id):
    return ipywidgets.Widget.widgets[model_id] if SEVEN else ipywidgets.widgets.widget._instances[model_id]


def figure_of(box):
    """The figure as the page gets it."""
    (drawing,) = [w for w in everything_in(box) if isinstance(w, widgets._Figure)]
    return json.loads(widgets_by_id(drawing.drawn).figure)


def assert_shows(box, fig):
    assert figure_of(box) == json.loads(fig.to_json())
    assert box.shown.to_json() == fig.to_json()


# ------------------------------------------------------------------------------ explore


def test_the_first_picture_is_the_pure_function(box):
    assert_shows(box, curve(0.1, 2))
    assert box.spoken.text == say(0.1, 2)


def test_moving_controls_draws_what_the_pure_function_says(box):
    moves = [("beta", 3.0), ("power", 4), ("kind", "one"), ("power", 1), ("kind", "both"), ("beta", 0.01)]
    values = {"beta": 0.1, "power": 2, "kind": "both"}
    for name, value in moves:
        box.controls[name].value = values[name] = value
        assert_shows(box, curve(**values))
        assert box.spoken.text == say(**values)


def test_static_twin_is_the_pure_function():
    twin = widgets.explore(curve, controls(), say, headless=True)
    assert type(twin) is go.Figure
    beta, power, kind = twin.layout.meta["controls"]
    assert twin.layout.meta["words"] == say(0.1, 2)
    assert twin.update_layout(meta=None) == curve(0.1, 2)
    assert beta == {
        "name": "beta", "label": "beta", "kind": "logarithmic slider", "value": 0.1, "min": -2, "max": 1, "step": 0.1,
    }  # fmt: skip
    assert (power["kind"], power["value"], power["step"]) == ("slider", 2, 1)
    assert (kind["kind"], kind["options"], kind["index"]) == ("buttons", [["both", "both"], ["one", "one"]], 0)


@pytest.mark.skipif(SEVEN, reason="ipywidgets 7 sends nothing without a kernel")
def test_a_move_sends_the_figure_once_and_nothing_to_a_model_with_a_script(box, monkeypatch):
    """anywidget throws messages away if the page was busy for two seconds when the model was made."""
    sent = []
    monkeypatch.setattr(ipywidgets.Widget, "send_state", lambda self, key=None: sent.append((type(self), key)))
    box.controls["kind"].value = "one"
    assert sent.count((widgets._Drawn, "figure")) == 1
    assert not [kind for kind, _ in sent if issubclass(kind, anywidget.AnyWidget)]


def test_text_fields_are_named_and_linked_both_ways(box):
    fields = [w for w in everything_in(box) if isinstance(w, (ipywidgets.BoundedFloatText, ipywidgets.BoundedIntText))]
    assert [field.description for field in fields] == ["beta", "power"]
    fields[0].value = 2.5
    assert box.controls["beta"].value == 2.5
    assert_shows(box, curve(2.5, 2))
    box.controls["power"].value = 3
    assert fields[1].value == 3
    assert (fields[0].min, fields[0].max) == (pytest.approx(0.01), pytest.approx(10))


def test_no_output_widget_and_no_plotly_js_in_the_state(box):
    found = list(everything_in(box))
    assert not any(isinstance(w, ipywidgets.Output) for w in found)
    assert sum(len(json.dumps(w.get_state(), default=str)) for w in found) < 40_000


def test_the_page_gets_plotly_js_when_it_asks(box, monkeypatch):
    (drawing,) = [w for w in everything_in(box) if isinstance(w, widgets._Figure)]
    answers = []
    monkeypatch.setattr(widgets._Drawn, "send", lambda self, content, buffers: answers.append(buffers))
    widgets_by_id(drawing.drawn)._handle_custom_msg({"wanted": "plotly.js"}, [])
    ((script,),) = answers
    assert len(script) > 1_000_000 and (b"window.Plotly = Plotly" in script or b".Plotly=e()" in script)  # 7, and 5


def test_a_viewer_without_widgets_gets_the_first_figure(box):
    bundle = box._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"] == "beta 0.10" and "plotly-graph-div" in bundle["text/html"]


def test_spoken_line_is_escaped(box):
    assert say(0.1, 2) in box.spoken.value
    assert "a &lt; b" in widgets.Spoken(text="a < b").value


def test_choice_is_buttons_for_few_and_a_list_for_many():
    assert isinstance(widgets.choice("few", list("abcd")), ipywidgets.ToggleButtons)
    assert isinstance(widgets.choice("many", list("abcde"), "c"), ipywidgets.Dropdown)
    assert widgets.choice("named", {"small": 1, "large": 2}, 2).value == 2


def test_a_control_without_a_label_is_refused():
    with pytest.raises(InputError, match="description"):
        widgets.explore(curve, {"beta": ipywidgets.FloatSlider(0.1)}, say)


class Thing:
    """Something that can be in a circle and be watched."""


def circle():
    """A watch on something that only the collector of garbage can remove."""
    thing = Thing()
    thing.itself = thing
    return thing, weakref.ref(thing)


def test_a_kernel_sets_apart_what_lives_after_each_cell_and_frees_it_when_the_explorer_is_made_again(monkeypatch):
    events = EventManager(None, available_events)
    monkeypatch.setattr(widgets, "get_ipython", lambda: SimpleNamespace(events=events))
    try:
        widgets.explore(curve, controls(), say)
        events.trigger("post_run_cell", None)
        assert gc.get_freeze_count() > 10_000
        kept, watch = circle()
        events.trigger("post_run_cell", None)
        del kept
        gc.collect()
        assert watch() is not None  # set apart
        widgets.explore(curve, controls(), say)
        events.trigger("post_run_cell", None)
        assert watch() is None
        assert events.callbacks["post_run_cell"] == [widgets._set_apart]
    finally:
        gc.unfreeze()


def test_outside_a_kernel_the_collector_is_left_alone(box):
    assert gc.get_freeze_count() == 0


# ------------------------------------------------------------------------------ predict


def test_predict_answers_the_first_guess_and_then_stays():
    box = widgets.predict("Up or down?", ["up", "down"], "down", "It falls.")
    assert "down" not in box.spoken.text
    box.buttons.value = "up"
    assert box.spoken.text == "Not this time: down (you said up). It falls."
    assert box.buttons.disabled
    assert not any(isinstance(w, ipywidgets.Output) for w in everything_in(box))


def test_predict_headless_folds_the_answer_away():
    folded = widgets.predict("1 < 2?", ["yes", "no"], "yes", "By counting.", headless=True)
    assert "<details>" in folded._repr_html_() and "1 &lt; 2?" in folded


def test_a_viewer_without_widgets_gets_the_question_with_its_answer_folded():
    box = widgets.predict("1 < 2?", ["yes", "no"], "yes", "By counting.")
    bundle = box._repr_mimebundle_()
    assert bundle["text/html"] == widgets.predict("1 < 2?", ["yes", "no"], "yes", "By counting.", headless=True)
    assert bundle["text/plain"] == "1 < 2? yes / no Answer yes . By counting."
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_predict_refuses_an_answer_that_is_no_option():
    with pytest.raises(InputError, match="be one of"):
        widgets.predict("?", ["yes", "no"], "maybe", "")


# ------------------------------------------------------------------------------ theme


def test_share_button_is_removed_everywhere(box):
    (drawing,) = [w for w in everything_in(box) if isinstance(w, widgets._Figure)]
    assert drawing.config["showSendToCloud"] is False
    bundle = theme.bundle(curve(1, 2))
    assert bundle[theme.MIMETYPE]["config"]["showSendToCloud"] is False
    assert '"showSendToCloud":false' in bundle["text/html"]


def test_bundle_holds_the_figure_and_no_address_of_a_library():
    bundle = theme.bundle(curve(1, 2))
    assert [trace["name"] for trace in bundle[theme.MIMETYPE]["data"]] == ["one", "two"]
    assert bundle["text/plain"] == "beta 1.00"
    assert "cdn." not in bundle["text/html"] and '"plotly.min.js"' in bundle["text/html"]


def test_the_html_of_a_figure_is_one_script_whatever_its_title_says():
    hard = theme.page_html(theme.figure(title="</script><!-- <script>"))
    assert hard.count("</script>") == 1 and "<!--" not in hard


def test_show_displays_one_bundle(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *things, **how: shown.append((things, how)))
    theme.show(curve(1, 2))
    theme.show("words")
    assert theme.MIMETYPE in shown[0][0][0] and shown[0][1] == {"raw": True}
    assert shown[1] == (("words",), {})


def test_series_differ_without_colour():
    lines = theme._template().data.scatter
    assert len({line.line.dash for line in lines}) == len({line.marker.symbol for line in lines}) == len(theme.COLOURS)


def test_a_long_title_takes_lines_and_room_and_a_broken_one_stays():
    long = theme.figure(title="UFT on demonstrations: instructions followed at each value of beta")
    assert long.layout.title.text == "UFT on demonstrations: instructions followed at<br>each value of beta"
    assert (long.layout.height, long.layout.title.pad.t) == (theme.HEIGHT + 30, 35)
    assert theme.panels(["a"], ["x"], ["y"], "short<br>and broken").layout.title.text == "short<br>and broken"


@pytest.mark.parametrize(
    ("values", "said"),
    [([1.0, 3.0], "<br>(the axis starts at 0.9)"), ([0.05, 3.0], ""), ([-2.0, 1.0], ""), ([-3.0, -1.0], None)],
)
def test_an_axis_without_zero_says_where_it_starts(values, said):
    axis = theme.fitted_axis("objective", values)
    assert axis["range"][0] < min(values) and max(values) < axis["range"][1]
    assert axis["title_text"] == "objective" + ("<br>(the axis starts at -3.1)" if said is None else said)


def test_a_constant_has_room_on_its_axis():
    low, high = theme.fitted_axis("objective", [2.0, 2.0])["range"]
    assert low < 2.0 < high


def test_importing_the_theme_leaves_plotlys_default_alone():
    import plotly.io as pio

    assert pio.templates.default != "uftlab"


def test_plotly_js_is_written_beside_exported_pages(tmp_path):
    assert theme.write_plotly_js(tmp_path).stat().st_size > 1_000_000

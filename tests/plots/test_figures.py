"""Figures hold the numbers of the frame, have titles, and tell their series apart."""

import numpy as np
import pandas as pd
import plotly.io as pio
import pytest
from made_up import every_method, made_up, values_of

from uftlab.plots import figures, theme
from uftlab.study import comparisons, fronts, results
from uftlab.study.results import HEADLINES, Interval, interval
from uftlab.training.catalogue import METHODS, all_methods


@pytest.fixture(scope="module")
def trials():
    return every_method()


@pytest.fixture(scope="module")
def summary(trials):
    return results.summary(results.tidy(trials))


def drawn(trace, axis="y"):
    """(mean, above, below) of each point of a trace."""
    bars = trace[f"error_{axis}"]
    return [tuple(map(pytest.approx, point)) for point in zip(trace[axis], bars.array, bars.arrayminus, strict=True)]


def titled(fig):
    return bool(fig.layout.title.text) and bool(fig.layout.xaxis.title.text) and bool(fig.layout.yaxis.title.text)


def test_skills_draws_every_method_once_on_every_panel(summary):
    metrics = list(HEADLINES)[:6]
    fig = figures.skills(summary, metrics)
    assert len(fig.data) == 2 * len(metrics) + 1 and fig.data[-1].name == figures.FLOOR  # the line in the legend
    for panel, metric in enumerate(metrics):
        points = {}
        for trace in fig.data[2 * panel : 2 * panel + 2]:
            points |= dict(zip(trace.y, drawn(trace, "x"), strict=True))
        assert set(points) == set(METHODS)
        assert all(values_of(summary, name, metric) == point for name, point in points.items())
    shown, floors = [a.text.replace("<br>", " ") for a in fig.layout.annotations], set(metrics) & set(figures.FLOORED)
    assert fig.layout.title.text and shown == [figures.label_of(m) for m in metrics]
    assert len(fig.layout.shapes) == len(floors)


def test_a_method_of_any_group_has_its_dots(summary):
    assert {method.group for method in all_methods().values()} == set(figures.GROUP_STYLE)
    renamed = summary.assign(method=summary["method"].replace({"uft": "l2-start"}))
    fig = figures.skills(renamed, ["truth/mc2"])
    assert "l2-start" in {name for trace in fig.data if trace.y is not None for name in trace.y}


def test_before_after_joins_each_pipeline_to_its_own_stage_one(summary):
    fig = figures.before_after(summary, "truth/mc2")
    assert [t.name for t in fig.data] == [m for m in results.PIPELINES if m in METHODS] and titled(fig)
    for trace in fig.data:
        names = (results.at_stage_end(1, "truth/mc2"), "truth/mc2")
        before, after = (values_of(summary, trace.name, metric) for metric in names)
        assert [before, after] == drawn(trace)
    (base,) = fig.layout.shapes
    assert base.y0 == values_of(summary, "base", "truth/mc2")[0]


def test_learning_curves_hold_the_means_of_the_curves(trials):
    along = results.curve_summary(results.curves(trials))
    fig = figures.learning_curves(along, ["uft", "sft-then-dpo"], "truth/mc2")
    assert [t.name for t in fig.data] == ["uft", "sft-then-dpo"] and titled(fig)
    for trace in fig.data:
        last = [t["metrics"]["truth/mc2"] for t in trials if t["method"] == trace.name]
        assert list(trace.x) == [0, 200]
        assert list(trace.y) == pytest.approx([np.mean(last), np.mean(last) + 0.1])


def test_logratios_show_chosen_rejected_and_demonstrations(trials):
    fig = figures.logratios(results.curve_summary(results.curves(trials)), "uft")
    assert {t.name: list(t.y) for t in fig.data} == {
        "chosen": [2.0, 2.0],  # 1, 2 and 3 over the seeds
        "rejected": [-2.0, -2.0],
        "demonstration": [0.5, 0.5],
    }
    assert titled(fig)


def test_two_by_two_has_a_row_for_each_change_and_a_full_mark_only_where_it_is_settled(trials):
    found = comparisons.compare(results.tidy(trials))
    rows = {(row["comparison"], row["metric"]): row for row in found}
    settled = "sft-plus-dpo minus sft-then-dpo", "truth/knowledge"
    rows[settled] |= {"verdict": "higher"}
    fig = figures.two_by_two({"first": found, "second": found[:0]})
    assert [trace.name for trace in fig.data] == ["first", "first"]
    assert fig.layout.title.text and fig.layout.xaxis.title.text == "difference (share)"
    for trace, metric in zip(fig.data, comparisons.OUTCOMES, strict=True):
        assert list(trace.text) == list(comparisons.TWO_BY_TWO.values())
        means = [rows[name, metric]["mean"] for name in trace.text]
        assert [point[0] for point in drawn(trace, "x")] == means
        hollow = [not symbol.endswith("-open") for symbol in trace.marker.symbol]
        assert hollow == [rows[name, metric]["verdict"] != "not settled" for name in trace.text]
    assert fig.data[1].marker.symbol[0] == "circle"
    names = [text.replace("<br>", " ") for text in fig.layout.yaxis.ticktext]
    assert names == list(comparisons.TWO_BY_TWO) and fig.layout.yaxis.range[0] > fig.layout.yaxis.range[1]


def test_axes_of_shares_and_losses_start_at_zero(trials, summary):
    curves = results.curve_summary(results.curves(trials))
    sweep = results.sweep_points(trials)
    drawn_on = [
        figures.before_after(summary, "truth/cued"),
        figures.learning_curves(curves, ["uft"], "instruction/both"),
        figures.trade_off(sweep, summary, ["uft"]),
    ]
    assert all(fig.layout.yaxis.rangemode == "tozero" for fig in drawn_on)


def test_differences_by_draw_are_told_apart_and_none_is_lost():
    rows = pd.DataFrame({"contrast": ["a", "b"] * 4, "draw": [0, 0, 1, 1] * 2, "difference": np.arange(8) / 10})
    fig = figures.by_draw(rows, "title")
    assert [t.name for t in fig.data] == ["draw 0", "draw 1"]
    assert sorted(x for t in fig.data for x in t.x) == list(rows["difference"])
    assert fig.data[0].marker.symbol != fig.data[1].marker.symbol


def test_no_two_of_seven_methods_look_the_same_in_the_trade_off(trials, summary):
    fig = figures.trade_off(results.sweep_points(trials), summary, list(METHODS)[-7:])
    small, large = fig.data[::2], fig.data[1::2]
    assert len({(t.marker.color, t.marker.symbol) for t in large}) == len({t.marker.color for t in small}) == 7
    assert all(t.marker.symbol.endswith("-open") for t in large)


def test_trade_off_shows_every_trial_of_the_sweep_and_the_chosen_means(trials, summary):
    fig = figures.trade_off(results.sweep_points(trials), summary, ["uft", "sft-then-dpo"])
    small, large = fig.data[0], fig.data[1]
    own = [t["metrics"] for t in trials if t["method"] == "uft"]
    assert list(small.x) == [m["truth/knowledge"] for m in own] and list(small.y) == [
        m["instruction/both"] for m in own
    ]
    assert [values_of(summary, "uft", "truth/knowledge")] == drawn(large, "x")
    assert [values_of(summary, "uft", "instruction/both")] == drawn(large, "y")
    assert len(fig.data) == 4 and titled(fig)


def test_against_rate_draws_each_trial_at_its_learning_rate(trials):
    sweep = results.sweep_points(trials).assign(largest_rate=[0.001 * (i + 1) for i in range(len(trials))])
    (dots,) = figures.against_rate(sweep, ["uft"]).data
    own = sweep[sweep["method"] == "uft"]
    assert set(zip(dots.x, dots.y, strict=True)) == set(zip(own["largest_rate"], own["retention/lost"], strict=True))


def test_matched_rates_draw_only_trials_with_one_rate_in_all_stages():
    rows = [
        {"method": "sft-then-dpo", "first_rate": first, "rate": rate, "instruction/both": 0.2 * world + 100 * rate}
        for first in (0.001, 0.002)
        for rate in (0.001, 0.002)
        for world in (1, 2)
    ]
    (drawn_line,) = figures.matched_rates(pd.DataFrame(rows), ["sft-then-dpo"], "instruction/both").data
    assert list(drawn_line.x) == [0.001, 0.002] and list(drawn_line.y) == pytest.approx([0.4, 0.5])


def test_designs_lay_the_stages_of_a_method_end_to_end():
    fig = figures.designs(["sft-then-dpo", "uft"], 200)
    bars = {
        (t.name, name): (start, width) for t in fig.data for name, start, width in zip(t.y, t.base, t.x, strict=True)
    }
    assert bars == {
        ("demonstrations", "sft-then-dpo"): (0, 100),
        ("feedback", "sft-then-dpo"): (100, 100),
        ("both, mixed", "uft"): (0, 200),
    }


def test_distrust_draws_each_belief_and_where_the_trained_method_stands():
    table = pd.DataFrame({"truth": [0.2, 0.4], "plain facts": [1.0, 0.9]}, index=[0.0, 1.0])
    fig = figures.distrust(table, {"truth": 0.3, "plain facts": 0.95}, "uft")
    assert [list(t.y) for t in fig.data] == [[0.2, 0.4], [1.0, 0.9]]
    assert [shape.y0 for shape in fig.layout.shapes] == [0.3, 0.95] and titled(fig)


def test_a_single_seed_is_drawn_without_bars():
    fig = figures.before_after(results.summary(results.tidy([made_up("sft-then-dpo", 0)])))
    assert list(fig.data[0].error_y.array) == [0, 0]


# ------------------------------------------------------------------------------------------ rewards


def test_every_reward_is_in_the_histogram_and_every_pair_on_its_side_of_the_diagonal():
    rng = np.random.default_rng(0)
    rewards = {"chosen": rng.normal(0, 4, 50), "rejected": rng.normal(0, 4, 50), "demonstration": np.array([99.0])}
    fig = figures.rewards_and_pairs(rewards, "title")
    for trace in fig.data[:3]:
        assert sum(trace.y) == pytest.approx(1)
    right, wrong = fig.data[3:5]
    assert len(right.x) == (rewards["chosen"] > rewards["rejected"]).sum() and len(right.x) + len(wrong.x) == 50
    assert (np.array(right.y) >= np.array(right.x)).all() and (np.array(wrong.y) <= np.array(wrong.x)).all()
    assert max(abs(np.array(right.x))) <= figures.WALL


def test_a_larger_beta_moves_the_points_and_changes_no_side():

    rewards = {"chosen": np.array([0.1, -0.2, 0.3]), "rejected": np.array([-0.1, 0.2, 0.2])}
    small = figures.rewards_and_pairs(rewards, "small")
    large = figures.rewards_and_pairs({role: 4 * values for role, values in rewards.items()}, "large")
    assert np.allclose(np.array(large.data[2].x), 4 * np.array(small.data[2].x))
    assert [len(t.x) for t in small.data] == [len(t.x) for t in large.data]
    assert large.layout.title.text == "large"


def test_bars_carry_their_intervals_and_one_without_has_none():
    found = {"a": {"x": Interval(0.5, 0.25, 1.0, 9), "y": Interval(0.1, None, None, 1)}}
    (bar,) = figures.grouped_bars(found, "t", "x", "y").data
    assert list(bar.y) == [0.5, 0.1]
    assert list(bar.error_y.array) == [0.5, 0.0] and list(bar.error_y.arrayminus) == [0.25, 0.0]


def test_the_calibration_figure_shows_fifths_and_ceilings():
    rng = np.random.default_rng(0)
    score, names = rng.uniform(size=50), np.repeat(np.arange(10), 5)
    feedback = score.round()
    fig = figures.calibration({"a": score}, {"a": np.full(50, 0.9)}, feedback, names, {"panel": ["a"]}, "t")
    points, ceiling, calibrated = fig.data
    order = np.argsort(score)
    assert points.x[0] == pytest.approx(score[order[:10]].mean())
    assert points.y[4] == pytest.approx(interval(feedback[order[40:]], clusters=names[order[40:]]).mean)
    assert list(ceiling.x) == [0.9, 0.9] and calibrated.name == "calibrated"


def test_fronts_have_a_panel_per_method_and_a_line_through_what_nothing_beats():
    made = [
        ("uft", 0, 0.5, 0.5),
        ("uft", 0, 0.4, 0.6),
        ("uft", 0, 0.4, 0.4),
        ("uft", 1, 0.2, 0.3),
        ("sft", 0, 0.1, 0.9),
    ]
    rows = [
        {"method": m, "draw": d, "stages": [{}], "metrics": {figures.FRONT_X: x, figures.FRONT_Y: y}}
        for m, d, x, y in made
    ]
    fig = figures.fronts(fronts.points(rows), ["uft", "sft"])
    lines = [t for t in fig.data if t.mode == "lines"]
    assert [(list(t.x), list(t.y)) for t in lines] == [([0.4, 0.5], [0.6, 0.5]), ([0.2], [0.3]), ([0.1], [0.9])]
    assert [t.name for t in lines if t.showlegend] == ["draw 0", "draw 1"] and fig.layout.title.text
    assert [a.text for a in fig.layout.annotations] == ["uft", "sft"]


def test_of_the_contrasts_what_is_settled_is_filled_and_every_one_is_named():
    def row(comparison, metric, verdict):
        found = {"mean": 0.1, "low": 0.05, "high": 0.15, "verdict": verdict, "why": f"why {comparison}"}
        return {"comparison": comparison, "metric": metric, **found}

    told = {"higher": "settled", "lower": "settled", "not settled": "not settled"}
    rows = [row("uft minus sft", m, v) for m, v in zip(comparisons.OUTCOMES, ("lower", "not settled"), strict=True)]
    rows += [row("uft minus dpo", m, "higher") for m in comparisons.OUTCOMES]
    names = {f"why {c}<br>{c.replace(' minus ', ' − ')}": c for c in ("uft minus sft", "uft minus dpo")}
    fig = figures.contrasts({"once": rows, "again": rows}, names, "title")
    assert [trace.name for trace in fig.data] == ["once"] * 2 + ["again"] * 2  # a panel each
    for trace, metric in zip(fig.data[:2], comparisons.OUTCOMES, strict=True):
        verdicts = [told[r["verdict"]] for r in rows if r["metric"] == metric]
        assert ["not settled" if s.endswith("-open") else "settled" for s in trace.marker.symbol] == verdicts
    assert list(fig.layout.yaxis.ticktext) == ["why uft minus sft<br>uft − sft", "why uft minus dpo<br>uft − dpo"]
    heights = [y for trace in fig.data[::2] for y in trace.y]
    assert len(set(heights)) == 4  # no mark hides another


@pytest.mark.parametrize("hosted", theme.HOSTED)
def test_a_hosted_notebook_gets_the_page_of_plotlys_own_renderer(hosted, monkeypatch):
    figure = theme.figure(title="a title", x="x", y="y").add_scatter(x=[0, 1], y=[0, 1])
    own = theme.bundle(figure)
    assert "plotly.min.js beside this page" in own["text/html"] and "https://" not in own["text/html"]
    monkeypatch.setattr(pio.renderers, "default", hosted)
    page = theme.bundle(figure)
    assert "Plotly.newPlot" in page["text/html"] and "a title" in page["text/html"]
    assert "beside this page" not in page["text/html"] and page[theme.MIMETYPE] == own[theme.MIMETYPE]

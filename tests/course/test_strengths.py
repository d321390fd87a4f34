"""Notebook 07: ceilings, gates and states by hand, and figures that show the numbers they are given."""

import math

import numpy as np
import pytest

from uftlab.course import strengths
from uftlab.study import grid, maps, results


def test_where_a_demonstration_stands_by_hand():
    """50 nats and beta 0.01: sigma(0.5) = 0.622 at the end. At s = 3/4 the gates are 3/8 and 1/2 of their start."""
    end = strengths.travelled(50.0, 0.01, 1.0, "squared error")
    assert end["score"] == end["ceiling"] == pytest.approx(0.6225, abs=1e-4)
    at = {loss: strengths.travelled(math.log(3), 1.0, 1.0, loss) for loss in strengths.LOSSES}
    assert at["squared error"]["pull"] == pytest.approx(3 / 8) and at["cross-entropy"]["pull"] == pytest.approx(1 / 2)
    assert strengths.travelled(50.0, 0.01, 0.0, "squared error")["pull"] == 1.0


def test_the_state_depends_on_beta_times_nats_alone():
    for nats, beta, state in ((5.0, 0.01, "inert"), (50.0, 0.03, "at work"), (300.0, 0.1, "saturated")):
        one, other = (
            strengths.travelled(nats, beta, 0.5, "squared error"),
            strengths.travelled(nats * 10, beta / 10, 0.5, "squared error"),
        )
        assert one["state"] == other["state"] == state and one["ceiling"] == pytest.approx(other["ceiling"])


def test_the_explorer_draws_and_says_the_same_numbers():
    fig = strengths.ceiling_and_gate(1000.0, 0.01, 20.0, "cross-entropy")
    words = strengths.in_words(1000.0, 0.01, 20.0, "cross-entropy")
    marks = [trace.y[0] for trace in fig.data if trace.mode == "markers"]
    assert marks[0] == pytest.approx(1 / (1 + math.exp(-2))) and f"{marks[0]:.3f}" in words
    assert marks[1] == pytest.approx(100 * 2 / (1 + math.exp(2))) and "24% of the pull" in words
    assert "at work" in fig.layout.title.text and "at work" in words


def test_the_papers_grid_is_the_papers():
    """Its best cells: 30.09 at 3e-5 and beta 0.01 (28.73 is the lowest), and 29.87 for SFT at 1e-4."""
    frame = strengths.paper_grid().set_index("learning rate")
    assert frame.loc["3e-05", "UFT, β = 0.01"] == 30.09 == frame.max().max()
    assert frame.loc["3e-06", "UFT, β = 0.3"] == 28.73 == frame.min().min() and frame["SFT"].max() == 29.87


def made_up(world=0):
    log = {"step": [1, 2, 3], "loss": [0.25, 0.2, 0.1], "reward/demonstration": [0.0, 1.0, 2.0]}
    return [
        {"world": world, **point, "beta": 0.1, **dict.fromkeys(grid.METRICS, 0.5 + world), "log": log}
        for point in grid.points((2e-3, 6e-3), (0.01, 1.0))
    ]


def test_the_tables_of_colours_have_every_cell_and_intervals_only_over_worlds():
    one = grid.cells(grid.table(made_up()), "instruction/both")
    heat = strengths.heat(one, "instruction/both", "title").data[0]
    assert list(heat.x) == ["no β<br>(SFT)", "0.01", "1"] and list(heat.y) == ["0.002", "0.006"]
    assert np.all(np.array(heat.text) == "0.50")
    both = grid.cells(grid.table(made_up() + made_up(1)), "instruction/both")
    assert "±" in strengths.heat(both, "instruction/both", "title").data[0].text[0][0]


def test_the_table_of_the_log_has_a_row_per_strength():
    rows = strengths.log_table(made_up(), 2e-3)
    assert rows["β times nats"].tolist() == ["0.01", "1"] and set(rows["mean reward at the end"]) == {"1"}
    assert set(rows["so the score is"]) == {"0.731"}
    assert len(strengths.logs(made_up(), 2e-3).data) == 4


def test_smoke_trains_little_and_a_gpu_all():
    assert len(strengths.live_points("smoke", "cpu")) == 4
    assert len(strengths.live_points("class", "cpu")) == 15
    assert strengths.live_points("class", "cuda") == strengths.live_points("research", "cpu") == grid.points()


def test_the_strengths_of_the_map_are_compared_within_a_world():
    points = maps.table(results.load(results.results_folder("map")))
    found = strengths.against_limit(points, "instruction/both").set_index(["method", "nats"])
    own = points[(points["experiment"] == "E3") & (points["nats"] == 10.0) & (points["method"] == "uft")]
    limit = points[(points["experiment"] == "E3") & (points["method"] == "signed-sft")]
    by_hand = own.set_index("seed")["instruction/both"] - limit.set_index("seed")["instruction/both"]
    assert found.loc[("uft", 10.0), "mean"] == pytest.approx(by_hand.mean())
    assert len(strengths.strengths(points).data) == 4

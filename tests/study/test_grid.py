"""The paper's grid: what is trained, that its limit is its limit, and that intervals are over worlds."""

import math
from dataclasses import replace

import pytest
from trials import TINY, WeightProbe, probe, random_base

from uftlab.study import cohort, grid

FEW = ((1e-2,), (0.01, 10.0))


@pytest.fixture
def tiny(monkeypatch):
    """Random bases and no evaluator: only training is real."""
    monkeypatch.setattr(cohort, "load_base", random_base)
    monkeypatch.setattr(cohort, "Evaluator", WeightProbe)
    monkeypatch.setattr("uftlab.evals.skills.measure", probe)
    monkeypatch.setattr(grid, "METRICS", ("norm",))
    cohort.materials.cache_clear()
    yield
    cohort.materials.cache_clear()


def test_the_grid_has_every_rate_and_strength_and_its_limit_once_a_rate():
    points = grid.points()
    assert len(points) == len(grid.RATES) * (len(grid.STRENGTHS) + 1)
    assert [p["rate"] for p in points if p["nats"] is None] == list(grid.RATES)
    assert {p["method"] for p in points if p["nats"] is None} == {grid.LIMIT}


def test_a_run_has_its_log_and_an_inert_loss_stays_at_a_quarter(tiny):
    runs = {run["nats"]: run for run in grid.run_points(grid.points(*FEW), 1000, replace(TINY, steps=8), 8)}
    inert, strong, limit = (runs[nats]["log"] for nats in (0.01, 10.0, None))
    assert inert["loss"][0] == pytest.approx(0.25) and abs(inert["loss"][-1] - 0.25) < 0.01 < 0.25 - strong["loss"][-1]
    assert len(inert["step"]) == len(inert["loss"]) == len(inert["reward/demonstration"])
    assert "reward/demonstration" not in limit and runs[None]["beta"] is None
    assert runs[10.0]["beta"] == pytest.approx(1000 * runs[0.01]["beta"])


def test_differences_are_paired_by_world_and_cells_have_an_interval():
    rows = [
        {"world": world, "rate": 1e-3, "nats": nats, "skill": world + gain, "log": {}}
        for world in (0, 1, 2)
        for nats, gain in ((None, 0.0), (1.0, 0.5), (10.0, 0.25))
    ]
    frame = grid.table(rows)
    assert "log" not in frame
    found = grid.differences(frame, "skill").set_index("nats")
    assert found.loc[1.0, "mean"] == 0.5 and found.loc[1.0, "low"] == pytest.approx(0.5)  # worlds differ, gains do not
    against = grid.differences(frame, "skill", minus=10.0).set_index("nats")
    assert against.loc[1.0, "mean"] == 0.25 and against.loc[0.0, "mean"] == -0.25
    cell = grid.cells(frame, "skill").set_index("nats").loc[1.0]
    assert cell["mean"] == 1.5 and cell["low"] < 1.5 < cell["high"]


def test_the_stored_grid_is_whole():
    stored = grid.stored()
    asked = [{name: run[name] for name in ("method", "rate", "nats")} for run in stored]
    assert asked == grid.points() * len(grid.WORLDS)
    assert [run["world"] for run in stored[:: len(grid.points())]] == list(grid.WORLDS)
    assert all(math.isfinite(run[metric]) for run in stored for metric in grid.METRICS)

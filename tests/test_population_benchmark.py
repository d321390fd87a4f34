"""The benchmark of populations runs from its command line and says what it promises; nothing is timed here."""

import importlib.util
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("quick_collections")

PATH = Path(__file__).resolve().parent.parent / "benchmarks" / "population.py"
SPEC = importlib.util.spec_from_file_location("benchmark_of_populations", PATH)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)
SMALL = ["--profile", "smoke", "--threads", "1"]


def test_gains_are_ratios_of_medians_with_the_device_that_they_were_measured_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "limits", lambda: {"flops": 1e12, "bytes": 1e11})
    path = tmp_path / "deep" / "gains.json"
    benchmark.main(["--members", "2", "--steps", "5", "--rounds", "1", "--json", str(path), *SMALL])
    result = json.loads(path.read_text())
    seconds = result["seconds_per_step"]
    assert result["speedup_over_trainer"] == pytest.approx(seconds["trainer"] / seconds["stack"])
    assert result["speedup_over_one_by_one"] == pytest.approx(seconds["alone"] / seconds["stack"])
    assert result["members"] == 2 and result["device"] and "thread" in capsys.readouterr().out
    work = result["work_per_step"]
    assert result["fraction_of_arithmetic"] == pytest.approx(work["flops"] / seconds["stack"] / 1e12)
    # each token passes each weight of the layers once forward and twice backward, two operations each time
    assert 2e8 < work["flops"] < 5e9


def test_the_grid_trains_and_measures_every_setting_in_every_world(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "GRID", [(1e-3, 0.1), (2e-3, 0.1)])
    monkeypatch.setattr(benchmark, "WORLDS", (0, 1))
    path = tmp_path / "grid.json"
    benchmark.main(["--grid", "--grid-steps", "2", "--json", str(path), *SMALL])
    result = json.loads(path.read_text())
    assert (result["members"], result["steps"]) == (4, 2)
    assert result["seconds"] == pytest.approx(result["train_seconds"] + result["evaluate_seconds"])
    assert "4 members, 2 steps" in capsys.readouterr().out

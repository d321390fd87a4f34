"""Equal care: the points of both rounds, the rule that chooses, what it writes."""

import json
import math

import numpy as np
import pytest
from made_up import made_up

from uftlab.files import write_atomically
from uftlab.study import trials, tuning
from uftlab.study.tuning import FIRST, SECOND, points, worth
from uftlab.training.catalogue import METHODS, SHIPPED, method_named
from uftlab.training.methods import space

TUNED = [m for m in SHIPPED.values() if m.tuned]


def at(dimension, value):
    """Where a value lies in its range: 0 to 1."""
    scale = math.log if dimension.log else float
    return (scale(value) - scale(dimension.low)) / (scale(dimension.high) - scale(dimension.low))


@pytest.mark.parametrize("method", TUNED, ids=lambda m: m.name)
def test_the_first_round_fills_the_space_of_all_stages_and_each_draw_has_points_of_its_own(method):
    made = points(method, 0)
    assert len(made) == FIRST and made == points(method, 0) and made != points(method, 1)
    for index, own in enumerate(space(method)):
        for dimension in own:
            places = [at(dimension, point[index][dimension.name]) for point in made]
            assert min(places) >= -0.01 and max(places) <= 1.01  # three significant digits
            if not dimension.step:  # at least two in each quarter, as Sobol has it, and no value twice
                assert min(np.histogram(places, 4, (-0.01, 1.01))[0]) >= 2 and len(set(places)) == FIRST


def test_methods_do_not_share_points():
    assert points(METHODS["sft"], 0) != points(METHODS["sft-full"], 0)


@pytest.mark.parametrize("method", TUNED, ids=lambda m: m.name)
def test_the_second_round_lies_in_a_box_half_as_wide_around_the_best(method):
    around = points(method, 2)[5]
    made = points(method, 2, around)
    assert len(made) == SECOND
    for index, own in enumerate(space(method)):
        for d in own:
            for point in made:
                away = at(d, point[index][d.name]) - at(d, around[index][d.name])
                assert abs(away) <= (0.6 if d.step else 0.255)


def test_the_box_passes_the_edges_of_the_space_but_a_share_stays_a_share():
    edge = [{"learning_rate": 4e-4}, {"learning_rate": 1.2e-2, "beta_nats": 1e-3, "demonstrations": 0.1}]
    made = points(METHODS["replay"], 0, edge)
    assert min(point[0]["learning_rate"] for point in made) < 4e-4
    assert max(point[1]["learning_rate"] for point in made) > 1.2e-2
    assert min(point[1]["beta_nats"] for point in made) < 1e-3
    low = points(METHODS["replay"], 0, [edge[0], {**edge[1], "demonstrations": 0.01}])
    assert all(0 < point[1]["demonstrations"] < 1 for point in low)


def test_the_sweep_leaves_test_creatures_and_reported_worlds_alone():
    made = [*tuning.base_trials(), *tuning.first_round(["uft", "base"])]
    assert [t.method for t in made] == ["base"] * 4 + ["uft"] * 4 * FIRST
    assert {t.split for t in made} == {"validation"} and {t.seed for t in made} == {1000, 1001, 1002, 1003}
    assert all(t.seed == 1000 + t.draw for t in made)
    assert not {t.seed for t in made} & set(range(max(p.seeds for p in trials.PROFILES.values())))


def test_the_rule_is_the_sum_of_the_shares_of_the_ceilings():
    """0.3 of 1, and 0.4 of 0.8: 0.3 + 0.5."""
    assert worth({"instruction/both": 0.3, "truth/mc2": 0.4, "truth/cued": 0.1}, 0.8) == pytest.approx(0.8)


def write(trial, folder, both, mc2=0.2):
    settings = [{**own, "beta": 0.03} for own in trial.stage_settings()]
    metrics = {"instruction/both": both, "truth/mc2": mc2, "truth/cued": 0.5 + 0.1 * trial.draw}
    stages = [{"steps": 1, "settings": own} for own in settings]
    content = {**made_up(trial.method, trial.seed), "stages": stages, "metrics": metrics}
    write_atomically(trial.path(folder), json.dumps(content))


@pytest.mark.parametrize("name", ["sft-full", "uft", "sft-then-dpo"])
def test_the_best_of_both_rounds_is_chosen_in_each_draw(name, tmp_path, monkeypatch):
    """The eighth point is the best of the first round everywhere, and of all in the odd draws; else one around it."""
    monkeypatch.setattr(tuning, "TUNED", tmp_path / "tuned.json")
    kept = {"other": [[{"beta": 9.0}]] * 4}
    tuning.TUNED.write_text(json.dumps({"rule": "an older one", "settings": kept, "worth": {}}))
    for base in tuning.base_trials():
        write(base, tmp_path, 0.0)
    for number, trial in enumerate(tuning.first_round([name])):
        write(trial, tmp_path, 0.9 if number % FIRST == 7 else 0.1)
    second = tuning.second_round([name], tmp_path)
    assert len(second) == 4 * SECOND
    for number, trial in enumerate(second):
        write(trial, tmp_path, 0.95 if number % SECOND == 2 and trial.draw % 2 == 0 else 0.2)
    (line,) = tuning.choose([name], tmp_path)
    table = json.loads(tuning.TUNED.read_text())
    assert table["settings"]["other"] == kept["other"] and table["rule"].startswith("Equal care")
    wanted = [s for k in range(4) for s in [second[k * SECOND + 2].stage_settings()]]
    for k in (1, 3):
        wanted[k] = points(method_named(name), k)[7]
    assert table["settings"][name] == [
        [{**{n: v for n, v in own.items() if n != "beta_nats"}, "beta": 0.03} for own in draw] for draw in wanted
    ]
    worths = [(0.95 if k % 2 == 0 else 0.9) + 0.2 / (0.5 + 0.1 * k) for k in range(4)]
    assert table["worth"][name] == pytest.approx(worths, abs=1e-4) and "the best of 18 trials" in line

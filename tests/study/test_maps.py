"""The map: what each experiment varies, and that nothing else differs."""

from collections import Counter
from dataclasses import asdict

import pandas as pd
import pytest
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.errors import InputError
from uftlab.study import maps, trials
from uftlab.study.maps import EXPERIMENTS, SIX
from uftlab.training.catalogue import method_named
from uftlab.training.methods import plan


def made(name, worlds=1):
    return [t for t in maps.trials([name], worlds) if t.method != "base"]


@pytest.mark.parametrize(("name", "count"), [("E1", 63), ("E2", 108), ("E3", 11), ("E4", 20), ("E5", 24)])
def test_every_experiment_has_its_trials_in_each_world_once(name, count):
    own = made(name, 4)
    assert len(own) == len(set(own)) == 4 * count
    assert Counter(t.seed for t in own) == {1000: count, 1001: count, 1002: count, 1003: count}
    assert {(t.split, t.curves, t.profile.name) for t in own} == {("test", False, f"map-{name}")}
    assert all(t.profile.sizes.drift and t.profile.stage_ends for t in own)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_base_is_measured_in_every_kind_of_world_and_settings_fit_the_stages(name):
    every = maps.trials([name], 1)
    assert {t.profile for t in every if t.method == "base"} == {t.profile for t in every}
    for t in every:
        plan(method_named(t.method), 10, t.stage_settings())  # as many settings as stages


def test_orders_cross_the_rates_of_both_stages_and_mixtures_have_three():
    rates = Counter(t.method for t in made("E1"))
    assert rates == {
        "sft-then-dpo": 9, "dpo-then-sft": 9, "sft-plus-dpo": 3, "sft-then-una": 18, "una-then-sft": 18, "uft": 6,
    }  # fmt: skip
    first, second = zip(*(t.stage_settings() for t in made("E1") if t.method == "sft-then-dpo"), strict=True)
    pairs = {(a["learning_rate"], b["learning_rate"]) for a, b in zip(first, second, strict=True)}
    assert len(pairs) == 9 and all("beta_nats" not in own for own in first)
    assert {own["beta_nats"] for own in second} == {0.5}


def test_dials_turn_as_the_experiments_say():
    kinds = Counter((t.profile.dials.instructed, t.profile.dials.on_target) for t in made("E2"))
    assert len(kinds) == 6 and set(kinds.values()) == {18}
    kinds = Counter((t.profile.dials.length_bonus, t.profile.dials.rumours) for t in made("E5"))
    assert len(kinds) == 4 and set(kinds.values()) == {6} and {t.method for t in made("E5")} == set(SIX)
    assert {t.profile.steps for t in made("E4")} == {200, 800}


def test_unknown_experiments_and_worlds_are_refused():
    with pytest.raises(InputError, match="An experiment must be one of E1, E2, E3, E4, E5; got E9"):
        maps.trials(["E1", "E9"])
    with pytest.raises(InputError, match="--worlds must be between 1 and 4; got 5"):
        maps.trials(["E1"], 5)
    assert "E9" in CliRunner().invoke(app, ["map", "E9"]).output


def test_a_table_has_a_row_per_trial_with_what_was_varied():
    trial = {
        "profile": "map-E1", "method": "sft-then-dpo", "seed": 1000, "dials": asdict(trials.PROFILES["class"].dials),
        "steps": 240, "metrics": {"truth/mc2": 0.4},
        "stages": [
            {"settings": {"learning_rate": 1.0}, "demonstrations": 1.0},
            {"settings": {"learning_rate": 2.0, "beta_nats": 0.5, "beta": 0.05}, "demonstrations": 0.0},
        ],
    }  # fmt: skip
    (row,) = maps.table([trial]).to_dict("records")
    assert (row["experiment"], row["first_rate"], row["rate"], row["nats"]) == ("E1", 1.0, 2.0, 0.5)
    assert (row["truth/mc2"], row["demonstrations"], row["length_bonus"]) == (0.4, 0.0, 1)


def test_usual_are_trained_trials_at_usual_dials_and_budget():
    dials = asdict(trials.PROFILES["class"].dials)
    made = [("uft", 200, {}), ("sft", 100, {}), ("uft", 800, {}), ("uft", 200, {"length_bonus": 0}), ("base", 0, {})]
    stored = [
        {
            "profile": "sweep", "method": name, "seed": 1000, "dials": dials | turned, "steps": steps, "metrics": {},
            "stages": [{"settings": {"learning_rate": 1.0}, "demonstrations": 1.0}] * (name != "base"),
        }
        for name, steps, turned in made
    ]  # fmt: skip
    found = maps.usual(maps.table(stored))
    assert found[["method", "budget"]].to_numpy().tolist() == [["uft", 200], ["sft", 100]]


def test_where_mixing_helps_is_paired_by_world_at_equal_rates():
    """Mixed 0.5 and 0.7 in two worlds, SFT first 0.1 lower, feedback first 0.2 higher; the losses differ by 0.05."""
    values = {"SFT first": -0.1, "feedback first": 0.2, "mixed": 0.0}
    rows = []
    for method, (order, loss) in maps.ORDERS.items():
        for first in (1e-3, 2e-3):
            for seed, level in ((1000, 0.5), (1001, 0.7)):
                value = level + values[order] + (0.05 if loss == "UNA" else 0.0)
                place = {"experiment": "E1", "method": method, "seed": seed, "first_rate": first, "rate": 2e-3}
                rows.append({**place, "nats": maps.NATS, "skill": value if first == 2e-3 else 99.0})
    found = maps.where_it_helps(pd.DataFrame(rows), "skill")
    means = [found.loc[2e-3, name].mean for name in ("over SFT first", "over feedback first", "the unified loss")]
    assert means == pytest.approx([0.1, -0.2, 0.05])


def test_the_deciding_factors_leave_the_worlds_out():
    frame = pd.DataFrame(
        [
            {"experiment": "E3", "method": m, "seed": s, "nats": n, "skill": n + 10 * s}
            for m in ("a", "b")
            for s in (0, 1)
            for n in (0.1, 1.0)
        ]
    )
    found = maps.deciding(frame, "skill")
    assert [factor for _, factor, _ in found] == ["nats", "method"] and found[1][2] == pytest.approx(0)

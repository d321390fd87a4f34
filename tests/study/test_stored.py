"""Trials are checked where they are read: nothing half, nothing twice, and no seed leaves a comparison unseen."""

import json
import re

import pytest
from made_up import made_up
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.errors import InputError
from uftlab.files import write_atomically
from uftlab.study import results
from uftlab.study.trials import read_trial


def store(folder, *trials):
    for number, trial in enumerate(trials):
        text = trial if isinstance(trial, str) else json.dumps(trial)
        write_atomically(folder / "trials" / f"{number}.json", text)
    return folder


def changed(place, value):
    """A trial with another value at a place, or without the place."""
    trial = made_up("sft-then-dpo", 0)
    *path, last = place.split(".")
    inner = trial
    for name in path:
        inner = inner[int(name) if name.isdigit() else name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return trial


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("metrics", []),
        ("metrics.truth/mc2", "0.5"),
        ("metrics.truth/mc2", float("nan")),
        ("metrics.truth/mc2", True),
        ("metrics.truth/mc2", 1e300),
        ("seed", "0"),
        ("seed", -1),
        ("seed", 2**70),
        ("method", None),
        ("method", 3),
        ("stages.0.steps", "many"),
        ("stages.0.settings", None),
        ("stages", [5]),
        ("curves.0.step", 1.5),
        ("curves.0.truth/mc2", "high"),
        ("versions.torch", 2),
        ("device", {}),
        ("wall_seconds", None),
        ("dials", None),
        ("schema", True),
        ("schema", None),
    ],
)
def test_a_trial_with_a_wrong_value_is_refused_with_file_and_place(tmp_path, place, value):
    path = store(tmp_path, changed(place, value)) / "trials" / "0.json"
    with pytest.raises(InputError) as caught:
        read_trial(path)
    assert str(path) in str(caught.value) and "Delete it" in str(caught.value) and "\n" not in str(caught.value)
    if isinstance(value, str | int) and place != "schema":
        assert place in str(caught.value)


def test_what_a_trial_may_hold_besides_is_kept(tmp_path):
    trial = {**made_up("uft", 0), "note": {"anything": [None]}, "notes": [None, "text", [1]]}
    assert read_trial(store(tmp_path, trial) / "trials" / "0.json") == trial


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    text = json.dumps(made_up("uft", 0)).replace('"seed": 0', '"seed": 0, "seed": 1')
    with pytest.raises(InputError, match=r"0\.json must be a whole trial file; got the key 'seed' is there twice"):
        read_trial(store(tmp_path, text) / "trials" / "0.json")


# ------------------------------------------------------------------------------------------ one of each


def again(when, **more):
    return {**made_up("uft", 0, **more), "measured": when}


OLD, NEW = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"


@pytest.mark.parametrize("order", [(OLD, NEW), (NEW, OLD)], ids=["old first", "new first"])
def test_of_a_method_and_seed_twice_the_newest_counts_once_and_it_is_said(tmp_path, order):
    trials = [again(when, mc2=0.1 if when == OLD else 0.9) for when in order]
    lines = []
    found = results.load_study(store(tmp_path, *trials, made_up("uft", 1)), lines.append)
    assert [(t["seed"], t["metrics"]["truth/mc2"]) for t in found] == [(0, 0.9), (1, 0.4)]
    assert lines == [f"of 0.json and 1.json the newest counts: {order.index(NEW)}.json"]


@pytest.mark.parametrize(
    "changes", [{"measured": OLD}, {"measured": NEW, "profile": "sweep"}, {"measured": NEW, "profile": "map-E1"}]
)
def test_what_is_there_twice_without_a_newest_is_refused_with_both_names(tmp_path, changes):
    trials = [{**again(OLD), "profile": changes.get("profile", "class")}, {**again(OLD), **changes}]
    with pytest.raises(InputError, match=r"one trial of each method.*got 0\.json and 1\.json\. Delete one"):
        results.load_study(store(tmp_path, *trials))


def test_two_draws_of_a_seed_are_no_double(tmp_path):
    trials = [made_up("uft", 0), {**made_up("uft", 0), "draw": 1}]
    assert len(results.load_study(store(tmp_path, *trials))) == 2


def test_two_profiles_are_no_study(tmp_path):
    trials = [made_up("uft", 0), {**made_up("uft", 1), "profile": "smoke"}]
    with pytest.raises(InputError, match="have one profile; got 2: class on test creatures, smoke on test"):
        results.load_study(store(tmp_path, *trials))


def test_a_seed_without_a_headline_metric_does_not_leave_the_comparisons_unseen(tmp_path):
    less = made_up("uft", 1)
    del less["metrics"]["truth/mc2"]
    folder = store(tmp_path, made_up("uft", 0), less, made_up("uft", 2))
    with pytest.raises(InputError, match=r"1\.json must have truth/mc2, as others of the study have; got none"):
        results.load_study(folder)


@pytest.mark.parametrize("study", ["sweep", "map"])
@pytest.mark.parametrize("command", [["results", "--study"], ["report"]], ids=lambda words: words[0])
def test_a_tuning_or_a_map_is_refused_by_what_reads_studies(study, command):
    done = CliRunner().invoke(app, [*command, study])
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit)
    assert re.search(r"^error: The study .*(one trial of each method|one profile)", done.output)


def test_json_on_stdout_stays_json_where_something_is_said(tmp_path):
    folder = store(tmp_path, again(OLD), again(NEW), made_up("sft-then-dpo", 0))
    done = CliRunner().invoke(app, ["results", "--study", str(folder), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout) and "the newest counts: 1.json" in done.stderr

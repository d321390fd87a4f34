"""The leaderboard: an entry says what can be trained again, and what cannot be is refused. Trials are made up here."""

import json
from contextlib import nullcontext
from datetime import date
from pathlib import Path

import pytest
from made_up import made_up
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.errors import InputError
from uftlab.files import DATA, write_atomically
from uftlab.models import policies, pretrain
from uftlab.reports.leaderboard import table
from uftlab.study import leaderboard
from uftlab.study.leaderboard import (
    FIRST,
    TOLERANCE,
    base_of,
    check_settings,
    enter,
    fresh_world,
    read_entry,
    stored_entries,
    verify,
    worlds_of,
    write_entry,
)
from uftlab.study.trials import draw_of
from uftlab.training.catalogue import METHODS, method_named
from uftlab.training.methods import Method, Stage
from uftlab.training.settings import settings_of

PAGE = Path(DATA).parent / "docs" / "leaderboard.md"
DAY = date(2026, 1, 2)
BOTH = {"base": 0.1, "uft": 0.5, "l2-start": 0.7}


def trained(moved=0.0, torch="2.13.0", lost=0.0):
    """Stands in for `run_trials`: followed and correct as in `BOTH`, `moved` in the first of the four worlds."""

    def train(trials, folder):
        for own in trials:
            both = BOTH[own.method] + (moved if (own.seed, own.method) == (worlds_of()[0], "l2-start") else 0)
            more = {"instruction/both": both, "retention/lost": lost if own.method == "l2-start" else 0.1}
            made = made_up(own.method, own.seed % 3, mc2=0.4, cued=0.8, **more)
            stored = {**made, "seed": own.seed, "draw": own.draw, "versions": {"torch": torch}}
            write_atomically(own.path(folder), json.dumps(stored))
        return []

    return train


@pytest.fixture(autouse=True)
def bases_are_there(monkeypatch):
    monkeypatch.setattr(policies, "check_worlds", lambda worlds: None)
    monkeypatch.setattr(leaderboard, "base_of", nullcontext)


@pytest.fixture
def entry(tmp_path):
    return enter("l2-start", "A. Reader", tmp_path, train=trained())


def test_the_worlds_take_turns_with_the_tuning_draws_and_no_study_used_them():
    assert [draw_of("uft", world) for world in worlds_of()] == [0, 1, 2, 3]
    assert set(worlds_of(1)).isdisjoint(worlds_of(2)) and min(worlds_of()) >= FIRST
    names = [path.name for path in Path(DATA).glob("results/*/trials/*.json")]
    seeds = {int(name.rsplit("-seed", 1)[1].split("-")[0]) for name in names}
    assert len(names) > 1000 and max(seeds) < FIRST


def test_the_margin_by_hand(entry):
    """0.7 minus 0.5 in every world; truth is alike, so that its part of the sum is 0."""
    margin = entry.margin()
    assert (margin.mean, margin.low, margin.high) == pytest.approx((0.2, 0.2, 0.2))
    assert entry.forgets() == pytest.approx(-0.1)
    assert entry.settings == [settings_of(method_named("l2-start"), draw) for draw in range(4)]


def test_an_entry_is_read_as_it_was_written(entry, tmp_path):
    write_entry(tmp_path / "a.json", entry)
    assert read_entry(tmp_path / "a.json") == entry


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("method", "os.system", "A method must be one of"),
        ("method", "../../mine.py", "method must be as"),
        ("worlds", [0, 1, 2, 3], "be of round 1 and its worlds"),
        ("round", 2, "be of round 1"),
        ("by", "[a link](http://a.example)", "by must be as"),
        ("code", "<script>", "code must be as"),
        ("module", "mine", "module must be as"),
        ("settings", [[{"learning_rate": 1e-3}]] * 3, "settings must be as"),
        ("settings", [[{"learning_rate": 1e-3, "completions": 1e6}]] * 4, "completions of l2-start must be one it has"),
        ("settings", [[{"learning_rate": 10.0}]] * 4, "settings.0.0: learning_rate of l2-start must be from"),
        ("settings", [[{"l2": 0.1}]] * 4, "settings.0.0 must have a learning_rate"),
        ("settings", [[{"learning_rate": 1e-3}] * 2] * 4, "settings.0 must have 1 stage"),
    ],
)
def test_what_is_no_entry_is_refused(where, value, said, entry, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**entry.model_dump(exclude_none=True), where: value}))
    with pytest.raises(InputError) as refused:
        read_entry(path)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_number_that_is_none_or_missing_is_refused(entry, tmp_path):
    path = tmp_path / "a.json"
    for text in (json.dumps(entry.model_dump(exclude_none=True)).replace("0.7", "NaN", 1), "{", "[]"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"a\.json"):
            read_entry(path)
    said = entry.model_dump(exclude_none=True)
    del said["measured"]["uft"][2]["plain/mc2"]
    path.write_text(json.dumps(said))
    with pytest.raises(InputError, match=r"measured\.uft must have"):
        read_entry(path)


def test_costs_that_the_budget_does_not_count_stay_at_their_defaults():
    sampling = method_named("own-signed")
    check_settings(sampling, [{"learning_rate": 1e-3, "completions": 1.0}])
    with pytest.raises(InputError, match="completions of own-signed must be from 1 to 1; got 64"):
        check_settings(sampling, [{"learning_rate": 1e-3, "completions": 64.0}])


@pytest.mark.parametrize("name", METHODS)
def test_the_settings_that_ship_may_be_entered(name):
    method = method_named(name)
    for draw in range(4) if method.stages else ():
        check_settings(method, settings_of(method, draw))


def test_a_method_of_ones_own_names_its_code(monkeypatch, tmp_path):
    monkeypatch.setitem(METHODS, "mine", Method("mine", (Stage("sft", 1.0),), "mine", group="variant"))
    monkeypatch.setitem(BOTH, "mine", 0.6)
    with pytest.raises(InputError, match="mine of your own must come with the file and commit of its code"):
        enter("mine", "A. Reader", tmp_path, train=trained())
    made = enter("mine", "A. Reader", tmp_path, "uftlab/losses/mine.py at 1a2b3c4", train=trained())
    assert "`mine` (uftlab/losses/mine.py at 1a2b3c4)" in table([made])


def test_a_verification_trains_again_and_measures_in_a_world_of_its_day(entry):
    found = verify(entry, DAY, trained()).verified
    assert found.largest_difference == 0 and found.day == "2026-01-02"
    assert found.fresh.world == fresh_world(entry.told(), "2026-01-02") >= FIRST
    assert found.fresh.measured["entry"]["instruction/both"] == 0.7
    other = entry.model_copy(update={"by": "B. Reader"})
    assert len({fresh_world(e.told(), day) for e in (entry, other) for day in ("2026-01-02", "2026-01-03")}) == 4
    assert entry.model_copy(update={"verified": found}).told() == entry.told()


@pytest.mark.parametrize(
    ("moved", "torch", "passes"),
    [(1e-5, "2.13.0", False), (0.8 * TOLERANCE, "2.14.0", True), (1.2 * TOLERANCE, "2.14.0", False)],
)
def test_an_entry_that_differs_is_refused(moved, torch, passes, entry):
    """To the last digit with the same versions, else within the tolerance."""
    if passes:
        assert verify(entry, DAY, trained(moved, torch)).verified.largest_difference == pytest.approx(moved)
        return
    with pytest.raises(InputError) as refused:
        verify(entry, DAY, trained(moved, torch))
    assert f"instruction/both of entry in world {worlds_of()[0]} must be within" in str(refused.value)
    assert "got 0.7." in str(refused.value)


def test_an_entry_that_forgets_more_than_uft_has_no_rank_and_comes_last(entry, tmp_path):
    write_entry(tmp_path / "b.json", entry)
    forgets = enter("l2-start", "B. Reader", tmp_path / "more", train=trained(moved=0.2, lost=0.2))
    write_entry(tmp_path / "a.json", forgets)
    assert forgets.margin().mean > entry.margin().mean
    found = stored_entries(tmp_path)
    assert [own.by for own in found] == ["A. Reader", "B. Reader"]
    ranks = [line.split("|")[1].strip() for line in table(found).splitlines()[2:]]
    assert ranks == ["1", "-", ""]  # the last line is uft


def test_the_base_of_a_fresh_world_is_built_and_removed(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(policies, "TINY", tmp_path)
    (tmp_path / "worlds").mkdir()
    monkeypatch.setattr(pretrain, "pretrain", lambda world: world)
    monkeypatch.setattr(pretrain, "save_base", lambda model, world: policies.world_weights(world).touch())
    with pytest.raises(KeyboardInterrupt), base_of(12345):
        assert policies.world_weights(12345).is_file()
        raise KeyboardInterrupt
    assert not policies.world_weights(12345).exists()
    policies.world_weights(5).touch()
    with base_of(5):
        pass
    assert policies.world_weights(5).is_file()


def test_the_command_refuses_in_one_line(entry, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**entry.model_dump(exclude_none=True), "method": "mine"}))
    ended = CliRunner().invoke(app, ["verify", str(path)])
    assert ended.exit_code == 2 and "A method must be one of" in ended.output.replace("\n", " ")
    assert json.loads(path.read_text())["method"] == "mine"


# ------------------------------------------------------------------------------------------ what is stored


def test_the_table_is_current_and_the_stored_entries_are_of_this_round():
    text = f"<!-- leaderboard -->\n\n{table(stored_entries())}\n\n<!-- end of leaderboard -->"
    assert text in PAGE.read_text(encoding="utf-8"), "run `make pages`"


def test_a_stored_verification_is_of_the_world_that_its_day_gives():
    for own in stored_entries():
        if own.verified is not None:
            assert own.verified.fresh.world == fresh_world(own.told(), own.verified.day)


def test_the_base_models_of_the_round_ship_with_its_entries():
    there = [policies.world_weights(world).is_file() for world in worlds_of()]
    assert all(there) or not stored_entries()

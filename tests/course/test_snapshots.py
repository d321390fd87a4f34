"""Readings along training: the same bits twice, nothing trained twice, and parts that add up to the whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from uftlab.course import snapshots
from uftlab.course.held_out import held_out, logratios_of_text, tokenised
from uftlab.course.snapshots import Run
from uftlab.errors import InputError
from uftlab.evals.sizes import Sizes
from uftlab.models.references import reference_logps
from uftlab.study.trials import PROFILES
from uftlab.training.catalogue import method_named
from uftlab.training.settings import settings_of
from uftlab.world.world import World

TINY = replace(PROFILES["smoke"], steps=4, demonstrations=24, prompts=12, sizes=Sizes(6, 8, 0, 5))
RUNS = [Run("sft-then-dpo"), Run("uft"), Run("uft", (("beta", 0.3),))]


def quiet(_):
    """Takes the line about what will be trained."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("snapshots")


@pytest.fixture(scope="module")
def kept(folder):
    return snapshots.snapshots_of(RUNS, TINY, folder=folder, say=quiet)


@pytest.fixture(scope="module")
def rows():
    return held_out(World(0), TINY.sizes)


def test_a_run_has_its_steps_stages_and_settings(kept):
    assert list(kept) == ["sft-then-dpo", "uft", "uft, beta 0.3"]
    two, one = kept["sft-then-dpo"], kept["uft"]
    assert two.steps == (0, 1, 2, 3, 4) and two.starts == (0, 0, 0, 2, 2)
    assert one.steps == (0, 1, 2, 3, 4) and one.starts == (0,) * 5
    assert set(two.settings[0]) == {"learning_rate"} and two.beta == two.settings[1]["beta"]
    assert kept["uft, beta 0.3"].beta == 0.3 != one.beta


def test_what_is_stored_is_not_trained_again(kept, folder, monkeypatch):
    monkeypatch.setattr(snapshots, "run", lambda *a, **k: pytest.fail("trained again"))
    said = []
    again = snapshots.snapshots_of(RUNS, TINY, folder=folder, say=said.append)
    assert said == []
    for name in kept:
        assert torch.equal(again[name].token_logps, kept[name].token_logps)


def test_the_same_bits_in_another_folder_whatever_the_random_state(kept, tmp_path):
    torch.manual_seed(123)
    again = snapshots.snapshots_of([Run("sft-then-dpo")], TINY, folder=tmp_path, say=quiet)["sft-then-dpo"]
    assert torch.equal(again.token_logps, kept["sft-then-dpo"].token_logps)


def test_a_shared_first_stage_is_stored_once_and_another_size_elsewhere(kept, folder, monkeypatch, tmp_path):
    assert sorted(p.name.split("-")[0] for p in folder.rglob("*.safetensors")) == ["dpo", "sft", "una", "una"]
    assert not list(folder.rglob("*.part*"))
    trained = []

    def run(jobs, *args, **kwargs):
        trained.extend((job.stage.objective, job.seed) for job in jobs)
        raise KeyboardInterrupt

    monkeypatch.setattr(snapshots, "run", run)
    with pytest.raises(KeyboardInterrupt):  # another stage two goes on from the SFT that is there
        snapshots.snapshots_of([Run("sft-then-dpo", (("beta", 0.3),))], TINY, folder=folder, say=quiet)
    with pytest.raises(KeyboardInterrupt):
        snapshots.snapshots_of([Run("uft")], replace(TINY, steps=5), folder=folder, say=quiet)
    with pytest.raises(KeyboardInterrupt):
        snapshots.snapshots_of([Run("uft")], TINY, seed=1, folder=folder, say=quiet)
    assert trained == [("dpo", 1), ("una-score", 0), ("una-score", 10)]
    assert len(list(folder.rglob("*.safetensors"))) == 4


def test_what_will_be_trained_is_said_before(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(snapshots, "run", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        snapshots.snapshots_of(RUNS, TINY, folder=tmp_path, say=said.append)
    assert len(said) == 1 and said[0].startswith("training 4 stages, 12 steps in all: about ")


def test_a_bar_is_for_who_looks_on_and_a_line_at_the_end_for_everybody(kept, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(snapshots, "_train", lambda room, stretch, tick: tick(stretch.steps))
    monkeypatch.setattr(snapshots, "_joined", lambda *a: kept["uft"])
    for watched in (False, True):
        said = []
        snapshots.snapshots_of([Run("uft")], TINY, folder=tmp_path, say=said.append, watched=watched)
        assert len(said) == 2 and said[1].startswith("trained in ")
        assert ("step" in capsys.readouterr().out) == watched


def test_threads_are_given_back(kept, tmp_path, monkeypatch):
    inside = []
    monkeypatch.setattr(snapshots, "_train", lambda *a: inside.append(torch.get_num_threads()))
    monkeypatch.setattr(snapshots, "_joined", lambda *a: kept["uft"])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        snapshots.snapshots_of([Run("uft")], TINY, folder=tmp_path, say=quiet)
        assert inside == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("method", "message"), [("base", "be trained"), ("nonsense", "be one of")])
def test_a_run_that_cannot_be_trained_is_refused(method, message, tmp_path):
    with pytest.raises(InputError, match=message):
        snapshots.snapshots_of([Run(method)], TINY, folder=tmp_path)


def test_token_log_ratios_add_up_to_those_of_the_rows_and_the_snapshots_to_each_other(kept):
    p = kept["sft-then-dpo"]
    for own in (False, True):
        assert torch.allclose(p.token_logratios(4, own).sum(-1), p.logratios(4, own), atol=1e-4)
    assert not p.logratios(0).any() and not p.logratios(0, own=True).any()
    assert torch.allclose(p.logratios(2) + p.logratios(4, own=True), p.logratios(4), atol=1e-4)
    assert torch.equal(p.logratios(2, own=True), p.logratios(2))  # stage one starts from the base
    assert p.logratios(4).abs().max() > 0.01  # and training has moved something


@pytest.mark.parametrize(("step", "snapshot"), [(0, 0), (1.5, 1), (2, 2), (4, 4), (99, 4)])
def test_a_step_finds_its_snapshot(kept, step, snapshot):
    assert kept["uft"].at(step) == snapshot


def test_the_frame_has_a_line_for_each_run_snapshot_and_row(kept, rows):
    frame = snapshots.frame(kept.values(), rows)
    assert len(frame) == 3 * 5 * len(rows)
    assert {"run", "step", "row", "role", "pair", "score", "logps", "logratio", "own_logratio"} <= set(frame)
    assert not frame[["logps", "logratio", "own_logratio"]].isna().any().any()
    base = frame[frame["step"] == 0]
    assert (base["logratio"] == 0).all() and (base.groupby("row")["logps"].nunique() == 1).all()


def test_a_stored_policy_reads_what_was_read_in_training(kept, rows):
    p = kept["uft"]
    prompt, completion = rows.loc[0, ["prompt", "completion"]]
    reading = logratios_of_text(p.policy(-1), p.policy(0), prompt, completion)
    length = len(reading.words)
    assert np.allclose(reading.logratios, p.token_logratios(4)[0, :length], atol=1e-5)
    assert not p.token_logps[:, 0, length:].any()


def test_readings_are_those_of_the_reference_cache(kept, rows):
    p = kept["uft"]
    assert torch.allclose(reference_logps(p.policy(-1), tokenised(rows)), p.logps[-1], atol=1e-4)


def test_snapshots_of_a_run_is_the_run_that_a_trial_of_the_study_would_be(kept, tmp_path):
    """The numbers of the notebook's one world are those of seed 0 of the stored study, at its sizes."""
    from uftlab.study.cohort import run_trial
    from uftlab.study.trials import trial

    p, size = kept["uft"], TINY
    rows = held_out(World(0), size.sizes)
    stored = run_trial(replace(trial("uft", 0, size), curves=False), tmp_path)["metrics"]
    chosen = (rows["role"] == "chosen").to_numpy()
    assert p.logratios(4).numpy()[chosen].mean() == pytest.approx(stored["logratio/chosen"], rel=1e-3)


@pytest.mark.parametrize("name", ["maxright", "rs-dpo", "alright"])
def test_snapshots_of_a_run_follows_the_recipe_of_its_method(name, tmp_path):
    """The last policy is the one that a trial of the method ends with, and not a plain mixture or plain DPO."""
    from uftlab.study.cohort import run_trial
    from uftlab.study.trials import trial

    size = replace(TINY, steps=8, demonstrations=48, prompts=24)
    (own,) = snapshots.snapshots_of([Run(name)], size, folder=tmp_path / "run", say=quiet).values()
    stored = run_trial(replace(trial(name, 0, size), curves=False), tmp_path)["metrics"]
    roles = held_out(World(0), size.sizes)["role"].to_numpy()
    for role in ("chosen", "rejected", "demonstration"):
        assert own.logratios(-1).numpy()[roles == role].mean() == pytest.approx(stored[f"logratio/{role}"], rel=1e-3)
    plain = "sft-then-dpo" if name == "rs-dpo" else "sft-plus-dpo"
    (other,) = snapshots.snapshots_of([Run(plain, own_settings(name))], size, folder=tmp_path, say=quiet).values()
    assert (own.logratios(-1) - other.logratios(-1)).abs().max() > 0.01


def own_settings(name):
    """What a method trains its last stage with, as far as the plain method has it."""
    kept = ("learning_rate", "beta", "preference_weight")
    return tuple((k, v) for k, v in settings_of(method_named(name))[-1].items() if k in kept)

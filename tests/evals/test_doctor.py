"""Each diagnosis on curves made by hand: one that it must find and one that it must not, and what cannot be told."""

import json
import math

import pytest

from uftlab.evals import doctor_set
from uftlab.evals.doctor import DIAGNOSES, THRESHOLDS, curve, diagnose, end_of, start_of
from uftlab.evals.run_logs import Run

STEPS = [5.0 * (n + 1) for n in range(20)]


def line(first, last, wave=0.0):
    """Twenty points on a line, every second one a wave higher, the others as much lower."""
    values = [1.0 * first + (last - first) * n / 19 + (wave if n % 2 else -wave) for n in range(20)]
    return list(zip(STEPS, values, strict=True))


def healthy(**changes):
    """A DPO run as it should be; `changes` replace curves, None takes one away, `settings` those."""
    curves = {
        "loss": line(0.69, 0.4, 0.02),
        "reward/chosen": line(0.0, 0.6),
        "reward/rejected": line(0.0, -0.6),
        "reward/accuracy": line(0.5, 0.8, 0.05),
        "logps/chosen": line(-40.0, -34.0, 1.0),
        "logps/rejected": line(-40.0, -46.0, 1.0),
        "eval_reward/accuracy": line(0.5, 0.75),
        "length/words": line(8.0, 9.0),
    }
    settings = {"objective": "dpo", "beta": 0.1, **changes.pop("settings", {})}
    return Run("made", {name: own for name, own in (curves | changes).items() if own is not None}, settings)


def names(run):
    return {finding.name for finding in diagnose(run).findings}


UNA = {"settings": {"objective": "una-score"}}
BROKEN = {
    "likelihood displacement": healthy(
        **{
            "reward/chosen": line(0.0, -0.6),
            "logps/chosen": line(-40, -46),
            "reward/rejected": line(0.0, -1.2),
            "logps/rejected": line(-40, -52),
        }
    ),
    "ceiling out of reach": healthy(
        settings={"objective": "una-score", "beta": 0.02},
        **{"reward/chosen": line(0.0, 0.3), "logps/chosen": line(-40, -25), "reward/rejected": line(0, -0.3)},
    ),
    "closed gate": healthy(
        settings={"objective": "una-score", "beta": 1.0},
        **{"reward/chosen": line(0.0, 6.0), "reward/rejected": line(0.0, -6.0)},
    ),
    "inert reward": healthy(
        settings={"beta": 1e-3},
        **{"reward/chosen": line(0.0, 0.006), "reward/rejected": line(0.0, -0.006), "loss": line(0.6931, 0.6921)},
    ),
    "saturated reward": healthy(
        settings={"beta": 1.0},
        **{"reward/chosen": line(0.0, 6.0), "reward/rejected": line(0.0, -6.0)},
    ),
    "dead KTO baseline": healthy(settings={"objective": "kto"}, kl_baseline=line(-0.1, -3.0)),
    "accuracy at chance": healthy(**{"reward/accuracy": line(0.5, 0.5, 0.1), "eval_reward/accuracy": None}),
    "stale reference": healthy(**{"reward/chosen": line(-1.5, -1.2), "logps/chosen": line(-40, -37)}),
    "length drift": healthy(**{"length/words": line(8.0, 24.0)}),
    "over-optimisation": healthy(
        settings={"objective": "rloo"}, **{"score/proxy": line(0.5, 0.95), "score/true": line(0.7, 0.3)}
    ),
    "loss that cannot fall": healthy(
        **{
            "loss": line(0.6931, 0.6931),
            "reward/chosen": line(0, 1e-5),
            "reward/rejected": line(0, -1e-5),
            "logps/chosen": line(-40, -40, 1.0),
            "logps/rejected": line(-40, -40, 1.0),
            "reward/accuracy": line(0.5, 0.5),
        }
    ),
    "divergence": healthy(loss=line(0.69, 4.0)),
    "reward scale without beta": healthy(**{"reward/chosen": line(0.0, 6.0), "reward/rejected": line(0.0, -6.0)}),
    "overfitting of pairs": healthy(**{"reward/accuracy": line(0.5, 1.0), "eval_reward/accuracy": line(0.5, 0.5)}),
}
GATES = {"reward/chosen": line(0.0, 1.2), "reward/rejected": line(0.0, -1.2)}
SOUND = {
    "likelihood displacement": healthy(),
    "ceiling out of reach": healthy(**UNA),  # sigma(0.1 * 40) = 0.98
    "closed gate": healthy(settings={"objective": "una-score", "beta": 0.2}, **GATES),
    "inert reward": healthy(),
    "saturated reward": healthy(),
    "dead KTO baseline": healthy(settings={"objective": "kto"}, kl_baseline=line(0.1, 3.0)),
    "accuracy at chance": healthy(),
    "stale reference": healthy(),
    "length drift": healthy(),
    "over-optimisation": healthy(
        settings={"objective": "rloo"}, **{"score/proxy": line(0.5, 0.9), "score/true": line(0.5, 0.7)}
    ),
    "loss that cannot fall": healthy(),
    "divergence": healthy(),
    "reward scale without beta": healthy(),
    "overfitting of pairs": healthy(),
}


def test_every_diagnosis_has_a_case_a_threshold_and_a_place_to_read_on():
    known = {own.name for own in DIAGNOSES}
    assert set(BROKEN) == set(SOUND) == set(THRESHOLDS) == known and len(DIAGNOSES) == len(known)
    assert all(own.notebook and own.means and own.remedy for own in DIAGNOSES)


@pytest.mark.parametrize("name", BROKEN)
def test_a_diagnosis_is_made_where_it_holds(name):
    (found,) = [own for own in diagnose(BROKEN[name]).findings if own.name == name]
    assert curve(BROKEN[name], found.evidence.curve) and found.evidence.words


@pytest.mark.parametrize("name", SOUND)
def test_a_diagnosis_is_made_and_does_not_hold_where_all_is_well(name):
    report = diagnose(SOUND[name])
    assert name in report.healthy and not report.findings


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_a_divergence_and_stays_valid_json(value):
    points = [*line(0.69, 0.6)[:10], (55.0, value)]
    report = diagnose(healthy(loss=points))
    (found,) = report.findings
    assert (found.name, found.evidence.step) == ("divergence", 55)
    json.dumps(report.asdict(), allow_nan=False)


def test_a_diverged_run_has_no_other_finding():
    run = healthy(loss=line(0.69, 4.0), **{"reward/accuracy": line(0.5, 0.5)})
    assert names(run) == {"divergence"}


def test_what_cannot_be_told_is_said_with_what_it_needs():
    run = Run("bare", {"loss": line(2.0, 1.0, 0.05)})
    report = diagnose(run)
    assert not report.findings and set(report.healthy) == {"divergence", "loss that cannot fall"}
    assert report.unknown["likelihood displacement"] == ("logps/chosen",)
    assert report.unknown["reward scale without beta"] == ("reward/chosen", "logps/chosen", "beta")
    assert report.unknown["closed gate"] == ("reward/chosen", "the loss")


def test_a_loss_without_the_fault_is_not_asked_for_it():
    report = diagnose(healthy(settings={"objective": "sft"}))
    told = {*report.healthy, *report.unknown}
    assert {"closed gate", "dead KTO baseline", "inert reward"}.isdisjoint(told) and "divergence" in told


def test_a_chosen_completion_that_rises_less_than_the_rejected_falls_is_no_displacement():
    """The most common worry: the margin comes from the rejected side, but the chosen one is not below its start."""
    assert not names(healthy(**{"reward/chosen": line(0.0, 0.02), "reward/rejected": line(0.0, -1.0)}))


def test_without_rewards_a_fall_counts_if_it_is_beyond_the_noise_of_batches():
    quiet = {"reward/chosen": None, "reward/rejected": None, "settings": {"objective": "simpo", "beta": None}}
    falls = healthy(**quiet, **{"logps/chosen": line(-40, -60, 1.0)})
    noisy = healthy(**quiet, **{"logps/chosen": line(-40, -43, 12.0)})
    assert "likelihood displacement" in names(falls)
    assert "likelihood displacement" not in names(noisy)


def test_a_margin_that_was_not_logged_is_chosen_minus_rejected():
    run = Run("made", {"reward/chosen": [(5.0, 2.0), (10.0, 3.0)], "reward/rejected": [(5.0, -1.0)]})
    assert list(curve(run, "reward/margin")) == [(5, 3.0)]


def test_ends_are_means_of_fifths():
    points = [(float(n), float(n)) for n in range(1, 11)]
    assert (start_of(points), end_of(points)) == (1.5, 9.5)


# ------------------------------------------------------------------------------------------ the labelled set


def test_the_set_has_every_fault_in_at_least_ten_ways_on_two_architectures_and_a_hundred_healthy_runs():
    runs = doctor_set.labelled()
    for own in DIAGNOSES:
        planted = [run for run in runs if run.fault == own.name]
        assert len(planted) >= 10, own.name
        if own.name != "over-optimisation":
            assert {run.second_architecture for run in planted} == {True, False}, own.name
    assert sum(not run.fault for run in runs) >= 100
    half = sum(run.held_back for run in runs) / len(runs)
    assert 0.4 < half < 0.6


def test_the_page_has_the_tables_of_the_stored_set():
    page = (doctor_set.DATA.parent / "docs" / "doctor.md").read_text()
    assert doctor_set.page(doctor_set.labelled()) in page, "run `python benchmarks/doctor.py page`"


def test_what_is_held_back_depends_on_the_name_alone():
    own = doctor_set.Labelled(Run("healthy/tiny/00-dpo", {}), "", {})
    again = doctor_set.Labelled(Run("healthy/tiny/00-dpo", {"loss": []}), "divergence", {"words": 3.0})
    assert own.held_back == again.held_back


def test_a_finding_that_the_weights_bear_out_is_no_false_alarm():
    """A healthy run whose chosen completions lost 0.3 nats, and whose answers stayed as long as they were."""
    outcome = {"trained/chosen": -0.3, "words at the start": 4.0, "words": 5.0}
    own = doctor_set.Labelled(BROKEN["likelihood displacement"], "", outcome)
    assert own.true() == {"likelihood displacement"}
    (row,) = [r for r in doctor_set.confusion([own]) if r["fault"] == "likelihood displacement"]
    assert (row["true elsewhere"], row["false in healthy"]) == (1, 0)
    other = doctor_set.Labelled(BROKEN["likelihood displacement"], "", {})
    assert doctor_set.summary([other])["serious false alarms"] == 1

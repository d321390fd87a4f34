"""Each diagnosis on curves made by hand: one that it must find and one that it must not, and what cannot be told."""

import json
import math
import re

import doctor_cases
import pytest

from uftlab.evals import doctor_set
from uftlab.evals.doctor import DIAGNOSES, PAIRS, THRESHOLDS, curve, diagnose, end_of, start_of
from uftlab.evals.run_logs import Run
from uftlab.objectives.registry import OBJECTIVES, SHIPPED

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
    "dead KTO baseline": healthy(settings={"objective": "kto"}, kl_baseline=line(-0.1, -9.0)),
    "accuracy at chance": healthy(
        **{"reward/accuracy": line(0.5, 0.5, 0.1), "reward/margin": line(0, 0, 0.5), "eval_reward/accuracy": None}
    ),
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
    "dead KTO baseline": healthy(settings={"objective": "kto"}, kl_baseline=line(-0.1, -3.0)),  # a small table
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


def test_every_exercise_that_a_finding_names_is_in_its_notebook():
    folder = doctor_set.DATA.parent / "notebooks"
    for own in DIAGNOSES:
        number, exercise, title = re.fullmatch(r"notebook (\d+), exercise (\d+) \((.+)\)", own.notebook).groups()
        (path,) = folder.glob(f"{number}_*.ipynb")
        assert re.search(rf"## Exercise {exercise}: {re.escape(title)}", path.read_text()), own.notebook


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


def test_a_loss_that_started_low_by_chance_did_not_grow():
    """SimPO has no start that is the same in every run: its first batch has 0.4, the others 1.5 give or take 0.8."""
    noisy = [(step, 1.5 + 0.8 * (-1) ** n) for n, step in enumerate(STEPS)]
    run = healthy(loss=[(STEPS[0], 0.4), *noisy[1:]], settings={"objective": "simpo", "beta": None})
    assert "divergence" not in names(run)
    assert "divergence" in names(healthy(loss=[(STEPS[0], 0.4), *line(1.5, 1.5, 0.1)[1:]]))


def test_a_loss_below_1_that_grows_is_a_closed_gate_unless_all_completions_fall():
    grown = {"loss": line(0.08, 0.3), "reward/chosen": line(0.0, -6.0), "reward/rejected": line(0.0, -6.5)}
    settings = {"objective": "una-score", "beta": 1.0}
    assert {"closed gate"} <= names(healthy(settings=settings, **grown)) - {"divergence"}
    far = grown | {"reward/chosen": line(0, -90), "reward/rejected": line(0, -90)}
    far |= {"logps/chosen": line(-40, -130), "logps/rejected": line(-40, -130)}
    assert "divergence" in names(healthy(settings=settings, **far))


def test_a_policy_that_fell_apart_and_came_back_diverged_on_the_way():
    way = [-240.0 if 4 <= n < 9 else -2.0 for n in range(20)]  # nats below a reference of -40
    curves = {
        f"logps/{role}": [(s, v - 40) for s, v in zip(STEPS, way, strict=True)] for role in ("chosen", "rejected")
    }
    curves |= {
        f"reward/{role}": [(s, v / 10) for s, v in zip(STEPS, way, strict=True)] for role in ("chosen", "rejected")
    }
    (found, *_) = [own for own in diagnose(healthy(**curves)).findings if own.name == "divergence"]
    assert found.evidence.curve.startswith("logps/") and found.evidence.step == 25 and round(found.evidence.value) == 7


def test_a_baseline_that_was_logged_after_the_clamp_is_dead_at_0():
    kto = {"objective": "kto"}
    assert "dead KTO baseline" in names(healthy(settings=kto, kl_baseline=line(0.0, 0.0)))
    assert "dead KTO baseline" not in names(healthy(settings=kto, kl_baseline=line(0.2, 0.2)))


def test_a_margin_that_is_clear_of_its_noise_is_above_chance_though_few_pairs_are():
    """Half-batches of eight pairs, 54 % right: a steady margin says that the policy learns, a wavering one does not."""
    weak = {"reward/accuracy": line(0.54, 0.54, 0.1), "eval_reward/accuracy": None}
    steady = healthy(**weak)
    wave = healthy(**weak, **{"reward/margin": line(0.05, 0.05, 1.0)})
    assert "accuracy at chance" not in names(steady) and "accuracy at chance" in names(wave)


def test_a_reference_is_not_stale_because_one_side_stays_where_it_began():
    """Steps are logged in tens: the chosen side has 1.5 nats by then, later 7; the rejected one stays near 1."""
    rewards = {"reward/chosen": line(0.15, 0.7), "reward/rejected": line(0.11, 0.11, 0.03)}
    assert "stale reference" not in names(healthy(**rewards, **{"logps/chosen": line(-40, -34, 1.0)}))


def test_learning_rates_that_sum_to_nothing_tell_a_policy_that_stands_still_in_a_noisy_loss():
    sft = {"reward/chosen": None, "reward/rejected": None, "reward/accuracy": None, "eval_reward/accuracy": None}
    sft |= {"logps/chosen": None, "logps/rejected": None, "logps/demonstration": line(-15, -15, 5.0)}
    sft |= {"loss": line(1.4, 1.4, 0.3), "settings": {"objective": "sft", "beta": None}}
    assert names(healthy(**sft, learning_rate=line(1e-8, 1e-8))) == {"loss that cannot fall"}
    assert not names(healthy(**sft, learning_rate=line(1e-5, 1e-5)))


def test_bare_log_ratios_are_told_on_the_side_whose_batches_are_quiet():
    """Noise of the rejected side hides its slope; each side has its own variance, so the chosen one still tells."""
    bare = {"reward/chosen": line(0, 3), "reward/rejected": line(0, -3)}
    bare |= {"logps/chosen": line(-40, -37, 0.5), "logps/rejected": line(-40, -43, 30.0)}
    assert "reward scale without beta" in names(healthy(**bare))
    scaled = bare | {"logps/chosen": line(-40, -10, 0.5), "logps/rejected": line(-40, -70, 30.0)}
    assert "reward scale without beta" not in names(healthy(**scaled))


# ------------------------------------------------------------------------------------------ the labelled set


def test_the_held_back_list_is_large_and_varied_and_shares_no_world_with_the_others():
    cases = doctor_cases.cases("held-")
    runs = [run for run in doctor_set.labelled() if run.held_back]
    assert {case.name for case in cases} <= {run.run.name for run in runs}
    for own in DIAGNOSES:
        planted = [run for run in runs if run.fault == own.name and run.took]
        assert len(planted) >= 6, own.name
        if own.name != "over-optimisation":
            assert {run.second_architecture for run in planted} == {True, False}, own.name
    assert sum(not run.fault for run in runs) >= 60 and sum(run.second_architecture for run in runs) >= 40
    for model in ("tiny", "gpt2"):
        others = [case for name in ("", "open-") for case in doctor_cases.cases(name) if case.model == model]
        assert {c.world for c in cases if c.model == model}.isdisjoint(c.world for c in others)


def test_the_page_has_the_tables_of_the_stored_set():
    page = (doctor_set.DATA.parent / "docs" / "doctor.md").read_text()
    assert doctor_set.page(doctor_set.labelled()) in page, "run `python benchmarks/doctor.py page`"


def test_what_is_held_back_depends_on_the_name_alone():
    names = {"healthy/tiny/held-00-dpo": True, "healthy/tiny/open-00-dpo": False, "healthy/tiny/00-dpo": False}
    for name, held_back in names.items():
        assert doctor_set.Labelled(Run(name, {"loss": []}), "divergence", {"words": 3.0}).held_back == held_back


def test_a_finding_that_the_weights_bear_out_is_no_false_alarm():
    """A healthy run whose chosen completions lost 0.3 nats, and whose answers stayed as long as they were."""
    outcome = {"trained/chosen": -0.3, "words at the start": 4.0, "words": 5.0}
    own = doctor_set.Labelled(BROKEN["likelihood displacement"], "", outcome)
    assert own.true() == {"likelihood displacement"}
    (row,) = [r for r in doctor_set.confusion([own]) if r["fault"] == "likelihood displacement"]
    assert (row["true elsewhere"], row["false in healthy"]) == (1, 0)
    other = doctor_set.Labelled(BROKEN["likelihood displacement"], "", {})
    assert doctor_set.summary([other])["serious false alarms"] == 1


def test_every_loss_of_pairs_is_known_to_the_doctor():
    """A new one would be told that it has none of the faults of pairs."""
    assert {n for n, own in OBJECTIVES.items() if n in SHIPPED and "preference" in own.kinds} == PAIRS

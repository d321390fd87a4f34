"""Every loss of the registry as a method: listed, budgeted, run untuned, swept, and refused politely."""

import gc
import json
from dataclasses import replace

import pandas as pd
import pytest
from trials import TINY, WeightProbe, probe, random_base
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.errors import InputError
from uftlab.objectives.registry import OBJECTIVES
from uftlab.plots import figures
from uftlab.reports.html import _untuned
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import Tokens
from uftlab.study import cohort, trials
from uftlab.study.cohort import run_trial
from uftlab.training import settings as training
from uftlab.training.catalogue import METHODS, all_methods, method_named
from uftlab.training.methods import default_settings, space
from uftlab.training.settings import chosen_settings, is_tuned, settings_of
from uftlab.training.stage_data import sources
from uftlab.training.stages import Job, run
from uftlab.world.world import World, pairs

PROMISED = """
sft dpo cdpo ipo kto orpo simpo dpop tdpo apo-zero bco una-pair una-binary una-score uft rpo sft-plus-dpo joint-sft-dpo
kl-sft var dft asft minor-sft qrpo
""".split()
ALONE = [method for method in all_methods().values() if method.group == "loss"]
every_loss = pytest.mark.parametrize("method", ALONE, ids=lambda m: m.name)


@pytest.fixture(scope="module")
def listed():
    return {row["name"]: row for row in json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)}


@pytest.mark.parametrize("name", PROMISED)
def test_every_promised_method_is_listed_with_data_needs_source_and_verification(name, listed):
    row = listed[name]
    assert row["data"] and row["eats"] and row["sources"] and row["summary"] and row["settings"]
    assert set("".join(row["verification"].values())) <= set("PT2M- ")
    assert {"reference", "distributions", "token_logps", "extra_forwards", "across_batch"} <= set(row)


def test_needs_are_listed_as_they_are(listed):
    full = {name for name, row in listed.items() if row["distributions"]}
    assert full == {"tdpo", "kl-sft", "asft", "psft", "sdft", "on-policy-distillation"}
    assert {name for name, row in listed.items() if row["extra_forwards"]} == {"kto", "sft-then-kto"} | full
    assert not any(listed[name]["reference"] for name in ("sft", "orpo", "simpo", "var", "dft"))
    assert listed["dpo"]["data"] == ["preference"] and listed["una-binary"]["data"] == ["label"]
    assert listed["sft-plus-dpo"]["data"] == ["demonstration", "preference"]


def test_the_study_has_fourteen_methods_and_every_objective_is_a_method():
    assert len(METHODS) == 14 and {method.group for method in METHODS.values()} == {"paper", "control"}
    assert list(all_methods())[:14] == list(METHODS)
    assert set(OBJECTIVES) <= set(all_methods())


@every_loss
def test_a_loss_alone_trains_the_base_on_its_own_table_for_the_whole_budget(method):
    (stage,) = method.stages
    kinds = OBJECTIVES[method.name].kinds
    assert stage.budget == 1.0 and stage.demonstrations == float(kinds == ("demonstration",))


@every_loss
def test_the_sweep_varies_the_strength_that_a_loss_has(method):
    (dimensions,) = space(method)
    axis, objective = OBJECTIVES[method.name].axis, OBJECTIVES[method.name]
    assert dimensions[0].name == "learning_rate"
    if axis is not None:
        assert [(d.name, d.low, d.high) for d in dimensions[1:]] == [(axis[0], min(axis[1]), max(axis[1]))]
    else:
        assert [d.name for d in dimensions[1:]] == ["beta_nats"] * ("beta" in objective.settings)


# ------------------------------------------------------------------------------------------ trials


def test_an_untuned_loss_runs_with_its_defaults_and_a_tuned_one_with_what_was_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "TUNED", tmp_path / "tuned.json")
    training.TUNED.write_text(json.dumps({"settings": {"cdpo": [[{"learning_rate": 0.5, "beta": 2.0}]]}}))
    assert trials.trial("dpo", 0, TINY).stage_settings() == [{"learning_rate": 1.5e-3, "beta": 0.1}]
    assert trials.trial("cdpo", 0, TINY).stage_settings() == [{"learning_rate": 0.5, "beta": 2.0}]
    assert is_tuned(method_named("cdpo"), [{"beta": 2.0, "learning_rate": 0.5}])
    assert not is_tuned(method_named("cdpo"), [{"beta": 3.0, "learning_rate": 0.5}])
    assert not is_tuned(method_named("dpo"), [{}])
    with pytest.raises(InputError, match="A tuning draw of cdpo must be one of 0 to 0; got 1"):
        trials.trial("cdpo", 1, TINY)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Every loss alone for four steps from a random base, in one folder."""
    gc.freeze()  # the library collects garbage after each run
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("study")
    patch.setattr(cohort, "load_base", random_base)
    patch.setattr(cohort, "Evaluator", WeightProbe)
    patch.setattr(cohort, "measure", probe)
    patch.setattr(trials, "metric_names", lambda sizes: {"digest"})
    cohort.materials.cache_clear()
    profile = replace(TINY, steps=4)
    names = [method.name for method in ALONE]
    yield {n: run_trial(replace(trials.trial(n, 0, profile), curves=False), folder) for n in ["base", *names]}
    patch.undo()
    cohort.materials.cache_clear()
    gc.unfreeze()


@every_loss
def test_every_loss_runs_as_a_trial_within_the_budget_and_says_that_nobody_tuned_it(method, everything):
    result = everything[method.name]
    assert result["completions"] == 128 and result["steps"] == 4
    own = settings_of(method, result["draw"])  # its defaults, unless a question of docs/questions has tuned it
    assert result["tuned"] is is_tuned(method, own) is (method.name in chosen_settings())
    assert result["settings"] == pytest.approx({**default_settings(method), **own[-1]}, rel=1e-4)
    assert result["metrics"]["digest"] != everything["base"]["metrics"]["digest"]


def test_forward_passes_of_full_distributions_are_counted(everything):
    assert everything["dft"]["extra_forwards"] == 0 and everything["base"]["tuned"]
    assert everything["asft"]["extra_forwards"] == everything["kl-sft"]["extra_forwards"] == 128
    assert everything["tdpo"]["extra_forwards"] == everything["dpo"]["extra_forwards"] + 128


def test_each_loss_moves_the_weights_elsewhere_but_for_those_that_are_the_same(everything):
    """UNA on pairs is DPO, and so is DPOP while no chosen completion has fallen; no others coincide."""
    digests = {name: result["metrics"]["digest"] for name, result in everything.items()}
    same = {frozenset(n for n in digests if digests[n] == digest) for digest in digests.values()}
    assert all(group <= {"dpo", "una-pair", "dpop"} for group in same if len(group) > 1)


def test_losses_alone_get_a_colour_of_their_own_in_the_figure_and_studies_without_them_do_not():
    rows = [
        {"method": m, "metric": "truth/mc2", "mean": 0.5, "low": 0.4, "high": 0.6} for m in ("sft", "replay", "dpo")
    ]
    assert [t.name for t in figures.skills(pd.DataFrame(rows), ["truth/mc2"]).data][2] == "one loss alone"
    assert len(figures.skills(pd.DataFrame(rows[:2]), ["truth/mc2"]).data) == 2


def test_a_report_names_what_nobody_tuned():
    assert _untuned([{"method": "dpo", "tuned": False}, {"method": "uft", "tuned": True}, {"method": "sft"}]) == [
        "<p>Not tuned, run with the registry's defaults: dpo.</p>"
    ]
    assert _untuned([{"method": "sft"}]) == []  # stored before there was anything untuned


# ------------------------------------------------------------------------------------------ refusals


@pytest.fixture(scope="module")
def scored():
    world = World(0)
    return from_rows([{k: row[k] for k in ("prompt", "completion", "score")} for row in world.feedback(4)])


def test_a_table_without_pairs_is_refused_with_the_columns_it_lacks_and_the_methods_that_fit(scored, tokenizer):
    with pytest.raises(InputError) as refusal:
        sources(method_named("simpo").stages[0], {"feedback": scored}, Tokens(tokenizer))
    text = str(refusal.value)
    assert "The table for simpo must have the columns chosen, prompt, rejected" in text
    assert "got a scored table without chosen and rejected" in text
    fitting = text.split("a method that fits: ")[1].rstrip(".").split(", ")
    assert {"uft", "una-score", "una-binary", "kto", "qrpo", "var", "sft-then-una"} <= set(fitting)
    assert not {"dpo", "sft", "dft", "sft-then-dpo", "sft-plus-dpo"} & set(fitting)


def test_methods_that_fit_pairs_are_all_that_eat_feedback(tokenizer):
    table = {"demonstrations": from_rows(pairs(World(0).feedback(4)))}
    with pytest.raises(InputError, match="without completion") as refusal:
        sources(method_named("dft").stages[0], table, Tokens(tokenizer))
    assert "dpo, cdpo" in str(refusal.value)


def test_quantiles_replace_scores_before_training(scored, tokenizer):
    ((examples,), _) = sources(method_named("qrpo").stages[0], {"feedback": scored}, Tokens(tokenizer))
    plain = [example[0].score for example in Tokens(tokenizer).examples(scored)]
    found = [example[0].score for example in examples]
    assert max(found) == 1.0
    assert found == [sum(other <= own for other in plain) / len(plain) for own in plain]


def test_an_unfilled_setting_of_a_stage_takes_the_objectives_default(scored, tokenizer):
    stage, table = method_named("var").stages[0], {"feedback": scored}
    (trained,) = run([Job(random_base(0), stage, table, {"learning_rate": 1e-4}, 1)], Tokens(tokenizer), device="cpu")
    assert trained.record.settings == {"learning_rate": 1e-4, "temperature": 0.5}

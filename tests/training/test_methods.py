"""What the sweep varies, where settings come from, the budget of every step."""

import json
from dataclasses import replace

import pytest

from uftlab.errors import InputError
from uftlab.objectives.registry import OBJECTIVES
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import Completion, Tokens
from uftlab.training import settings as training
from uftlab.training.catalogue import METHODS, PIPELINE_METHODS, method_named
from uftlab.training.methods import space, stage_defaults
from uftlab.training.settings import chosen_settings, settings_of, tuned_settings
from uftlab.training.stage_data import resolve_settings, sources
from uftlab.world.world import World, pairs

TUNED_METHODS = [m for m in METHODS.values() if m.tuned]


@pytest.mark.parametrize("method", TUNED_METHODS, ids=lambda m: m.name)
def test_every_stage_of_a_method_is_varied_with_its_learning_rate_and_strength(method):
    named = [[d.name for d in own] for own in space(method)]
    assert len(named) == len(method.stages)
    for stage, own in zip(method.stages, named, strict=True):
        assert own[0] == "learning_rate" and len(own) == len(set(own))
        assert ("beta_nats" in own) == ("beta" in OBJECTIVES[stage.objective].settings)
    assert set(method.tuned) - {"beta"} <= set(named[-1])


def test_the_ranges_are_those_of_the_plan():
    (sft,), (rate, beta, share) = space(METHODS["replay"])
    assert (sft.low, sft.high) == (rate.low, rate.high) == (4e-4, 1.2e-2)
    assert (beta.name, beta.low, beta.high) == ("beta_nats", 1e-3, 10.0)
    assert (share.name, share.low, share.high, share.log) == ("demonstrations", 0.1, 0.6, False)
    assert space(METHODS["base"]) == []


def test_settings_of_a_method_are_those_of_all_its_stages_in_one_draw(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "TUNED", tmp_path / "tuned.json")
    draws = [[{"learning_rate": 1.0 + k}, {"learning_rate": 2.0 + k, "beta": 3.0}] for k in range(2)]
    training.TUNED.write_text(json.dumps({"settings": {"sft-then-una": draws}}))
    assert settings_of(METHODS["sft-then-una"]) == draws[0] == tuned_settings("sft-then-una")
    assert settings_of(METHODS["sft-then-una"], 1) == draws[1] and settings_of(METHODS["base"]) == []
    with pytest.raises(InputError, match=r"Settings of replay must be in tuned.json; .*uftlab sweep"):
        settings_of(METHODS["replay"])
    assert [own["learning_rate"] for own in settings_of(PIPELINE_METHODS["sdpo"])] == [4e-3, 1.5e-3]  # untuned


# ------------------------------------------------------------------------------------------ methods


@pytest.fixture(scope="module")
def tables():
    world = World(0)
    rows = [{k: r[k] for k in ("prompt", "completion")} for r in world.demonstrations(12)]
    return {"demonstrations": from_rows(rows), "feedback": from_rows(pairs(world.feedback(12)))}


def stages():
    found = {stage for method in METHODS.values() for stage in method.stages}
    replayed = METHODS["replay"].stages[1]
    return sorted(found | {replace(replayed, demonstrations=share) for share in (0.125, 0.25, 0.5)}, key=repr)


@pytest.mark.parametrize("stage", stages(), ids=lambda s: f"{s.objective}-{s.demonstrations}-{s.budget}")
def test_every_step_of_every_stage_backpropagates_32_completions(stage, tables, tokenizer):
    examples, per_step = sources(stage, tables, Tokens(tokenizer))
    sizes = [sum(c.role != "mismatched" for c in source[0]) for source in examples]
    assert sum(n * size for n, size in zip(per_step, sizes, strict=True)) == 32
    if stage.demonstrations not in (0.0, 1.0):
        assert per_step[0] * sizes[0] == 32 * stage.demonstrations


@pytest.mark.parametrize("name", ["sft-plus-dpo", "sft-then-dpo"])
def test_no_source_of_a_stage_is_left_out_of_the_smallest_batch(name, tables, tokenizer):
    for stage in METHODS[name].stages:
        assert min(sources(stage, tables, Tokens(tokenizer), batch=2)[1]) >= 1


def test_a_missing_table_is_named(tables, tokenizer):
    with pytest.raises(
        InputError, match=r"una-score stage must be given feedback; got demonstrations\. Add --feedback"
    ):
        sources(METHODS["uft"].stages[0], {"demonstrations": tables["demonstrations"]}, Tokens(tokenizer))


def test_beta_is_nats_over_the_median_of_the_reference():
    """-log pi_ref of 2, 4, 9: the median is 4, and 2.2 / 4 = 0.55. Mismatched completions and NaN do not count."""
    rows = [Completion((1,), (2,), "scored", 1.0, -n) for n in (2.0, 4.0, 9.0, float("nan"))]
    rows.append(Completion((1,), (2,), "mismatched", 1.0, -100.0))
    examples = [[(row,) for row in rows]]
    chosen = resolve_settings(OBJECTIVES["una-score"], {"learning_rate": 1e-3, "beta_nats": 2.2}, examples)
    assert chosen == {"learning_rate": 1e-3, "beta": 0.55}


@pytest.mark.parametrize("nats", [float("nan"), 0.0, 3.0])
def test_beta_in_nats_without_a_reference_that_has_any_is_refused(nats):
    """SimPO has a beta and no reference: the log-probabilities are NaN. A certain answer has 0 nats."""
    settings, row = {"learning_rate": 1e-3, "beta_nats": 2.2}, Completion((1,), (2,), "scored", 1.0, nats)
    for examples in ([[(row,)]], [[]], []):
        with pytest.raises(InputError, match="beta_nats must have completions .* for simpo. Set beta itself"):
            resolve_settings(OBJECTIVES["simpo"], settings, examples)


def test_a_given_beta_is_kept_and_an_objective_without_beta_gets_none():
    assert resolve_settings(OBJECTIVES["dpo"], {"learning_rate": 1.0, "beta": 7.0}, [])["beta"] == 7.0
    assert resolve_settings(OBJECTIVES["sft"], {"learning_rate": 1.0, "beta": 7.0}, []) == {"learning_rate": 1.0}


def test_an_unknown_method_names_those_there_are():
    with pytest.raises(InputError, match=r"one of base, sft, .*sft-sum, .*qrpo, .*; got ufd"):
        method_named("ufd")


@pytest.mark.parametrize("name", [m.name for m in PIPELINE_METHODS.values() if m.borrows])
def test_a_method_that_borrows_has_the_tuned_settings_of_a_method_with_the_same_stages(name):
    method = method_named(name)
    lender = method_named(method.borrows)
    assert lender.name in chosen_settings() and name not in chosen_settings()
    assert [s.objective for s in lender.stages][:-1] == [s.objective for s in method.stages][:-1]
    for draw in (0, 3):
        own, lent = settings_of(method, draw), tuned_settings(lender.name, draw)
        assert [stage["learning_rate"] for stage in own] == [stage["learning_rate"] for stage in lent]
        assert own[-1]["beta"] == lent[-1]["beta"]
        assert all(set(stage) == set(stage_defaults(s)) for stage, s in zip(own, method.stages, strict=True))

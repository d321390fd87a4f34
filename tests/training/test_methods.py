"""Equal care: the grids, the rule that chooses, the budget of every step."""

import json
from dataclasses import replace

import pytest
from trials import TINY

from uftlab.errors import InputError
from uftlab.files import write_atomically
from uftlab.objectives.registry import OBJECTIVES
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import Completion, Tokens
from uftlab.study import trials, tuning
from uftlab.study.trials import PROFILES, Trial
from uftlab.training import methods
from uftlab.training.methods import BETA_NATS, EXTRA, LEARNING_RATES, METHODS, earlier_settings, grid, method_named
from uftlab.training.recipes import resolve_settings, sources
from uftlab.world.world import World, pairs

TUNED_METHODS = [m for m in METHODS.values() if m.tuned]


@pytest.mark.parametrize("method", TUNED_METHODS, ids=lambda m: m.name)
def test_every_tuned_method_gets_twelve_different_settings(method):
    points = grid(method)
    assert len({tuple(p.items()) for p in points}) == 12
    if "beta" in method.tuned:
        assert {(p["learning_rate"], p["beta_nats"]) for p in points} == {
            (rate, nats) for rate in LEARNING_RATES for nats in BETA_NATS
        }
    for name in method.tuned[2:]:
        assert sorted(p[name] for p in points) == sorted(EXTRA[name] * 4)


def test_beta_is_laid_out_from_a_tenth_to_ten_on_the_scale_of_the_reference():
    assert (min(BETA_NATS), max(BETA_NATS)) == (0.1, 10.0)


def test_the_sweep_leaves_test_creatures_and_reported_worlds_alone():
    made = tuning.trials(["uft"])
    assert [t.method for t in made] == ["base"] + ["uft"] * 12
    assert {t.split for t in made} == {"validation"}
    assert {t.seed for t in made} == {trials.TUNING_WORLD}
    assert trials.TUNING_WORLD not in range(max(p.seeds for p in PROFILES.values()))


def test_methods_of_one_stage_are_tuned_before_the_pipelines_that_need_them():
    one, two = tuning.rounds(list(METHODS))
    assert {"sft", "uft-demonstrations", "uft"} <= set(one) and "base" not in one
    assert set(two) == {m.name for m in METHODS.values() if len(m.stages) == 2}


def test_choose_takes_the_largest_balance_and_keeps_what_other_methods_chose(tmp_path, monkeypatch):
    """With the ceiling 0.5 truth 0.38 counts 0.76: the third wins with min(0.8, 0.76); unscaled it would lose."""
    monkeypatch.setattr(tuning, "TUNED", tmp_path / "tuned.json")
    tuning.TUNED.write_text(json.dumps({"rule": "an older one", "settings": {"other": {"beta": 9.0}}}))
    skills = [(0.6, 0.6), (1.0, 0.2), (0.8, 0.38)] + [(0.1, 0.5)] * 9
    base, *own = tuning.trials(["uft"])
    rows = [(base, {}, (0.0, 0.2))] + [(t, dict(t.settings), s) for t, s in zip(own, skills, strict=True)]
    for trial, settings, (strict, mc2) in rows:
        metrics = {"instruction/strict": strict, "truth/mc2": mc2, "truth/cued": 0.5 if trial is base else 0.0}
        content = {"method": trial.method, "settings": {**settings, "beta": 0.03}, "metrics": metrics}
        write_atomically(trial.path(tmp_path), json.dumps(content))
    assert len(tuning.choose(["uft"], tmp_path)) == 1
    table = json.loads(tuning.TUNED.read_text())
    chosen = dict(own[2].settings)
    assert table["settings"]["uft"] == {"learning_rate": chosen["learning_rate"], "beta": 0.03}
    assert table["settings"]["other"] == {"beta": 9.0} and table["rule"].startswith("Equal care")


def test_stage_one_takes_the_settings_tuned_for_its_own_objective(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "TUNED", tmp_path / "tuned.json")
    table = {
        "sft": {"learning_rate": 1.0},
        "uft-demonstrations": {"learning_rate": 2.0, "beta": 3.0},
        "uft": {"a": 4.0},
    }
    methods.TUNED.write_text(json.dumps({"settings": table}))
    assert earlier_settings(METHODS["sft-then-kto"]) == [{"learning_rate": 1.0}]
    assert earlier_settings(METHODS["uft-then-una"]) == [{"beta": 3.0, "learning_rate": 2.0}]
    assert trials.trial("uft", 0, TINY) == Trial("uft", 0, TINY, (("a", 4.0),), ())
    with pytest.raises(InputError, match=r"Settings of replay must be in tuned.json; .*uftlab sweep"):
        trials.trial("replay", 0, TINY)


# ------------------------------------------------------------------------------------------ methods


@pytest.fixture(scope="module")
def tables():
    world = World(0)
    rows = [{k: r[k] for k in ("prompt", "completion")} for r in world.demonstrations(12)]
    return {"demonstrations": from_rows(rows), "feedback": from_rows(pairs(world.feedback(12)))}


def stages():
    found = {stage for method in METHODS.values() for stage in method.stages}
    replayed = METHODS["replay"].stages[1]
    return sorted(found | {replace(replayed, demonstrations=share) for share in EXTRA["demonstrations"]}, key=repr)


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


def test_a_given_beta_is_kept_and_an_objective_without_beta_gets_none():
    assert resolve_settings(OBJECTIVES["dpo"], {"learning_rate": 1.0, "beta": 7.0}, [])["beta"] == 7.0
    assert resolve_settings(OBJECTIVES["sft"], {"learning_rate": 1.0, "beta": 7.0}, []) == {"learning_rate": 1.0}


def test_an_unknown_method_names_those_there_are():
    with pytest.raises(InputError, match=r"one of base, sft, .*sft-sum, .*qrpo; got ufd"):
        method_named("ufd")

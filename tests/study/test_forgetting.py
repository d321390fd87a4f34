"""Predictors of forgetting: what is read from trials, and that a true cause is found and a false one is not."""

import numpy as np
import pytest
from scipy import stats

from uftlab.study import forgetting
from uftlab.study.forgetting import OUTCOMES, SKILL, at_equal_skill, cross_validated, predictions, table


def trial(method, seed, rate=1e-3, excess=0.0, stages=1, **metrics):
    metrics = {"retention/lost": excess, "truth/cued": 0.5, "plain/mc2": 0.9, "instruction/strict": 0.4, **metrics}
    own = {"steps": 100, "settings": {"learning_rate": rate}, "base_logp": -2.0, "pushed_down": 0.5}
    made = [{**own, "metrics": {"instruction/strict": 0.7}}, own][-stages:] if method != "base" else []
    world = {"profile": "map-E1", "seed": seed, "split": "test", "dials": {"rumours": 0.5}}
    return {"method": method, **world, "stages": made, "metrics": metrics}


def test_losses_are_against_the_base_of_the_same_world_and_against_stage_one():
    rows = table([
        trial("base", 0, **{"truth/cued": 0.8}), trial("base", 1, **{"truth/cued": 0.6}),
        trial("sft-then-dpo", 1, stages=2, excess=0.3), trial("uft", 0),
    ])  # fmt: skip
    two, one = rows.to_dict("records")
    assert two["what careful sources say"] == pytest.approx(0.1) and two["old text"] == 0.3
    assert two["instructions after stage one"] == pytest.approx(0.3) and two["rate x steps"] == pytest.approx(0.2)
    assert one["what careful sources say"] == pytest.approx(0.3) and np.isnan(one["instructions after stage one"])
    assert (one["share pushed down"], one["base log-probability of the rows"]) == (0.5, -2.0)
    assert np.isnan(one["drift/weights"])


def test_the_cause_is_found_and_noise_is_not():
    rng, trials = np.random.default_rng(0), [trial("base", seed) for seed in range(8)]
    for number in range(160):
        kl, noise = rng.uniform(size=2)
        name = ("uft", "dpo-alone")[number % 2]
        metrics = {"kl/forward-old": kl, "kl/forward-new": noise}
        trials.append(trial(name, number % 8, excess=kl + 5 * (number % 2), **metrics))
    found = predictions(table(trials)).set_index(["outcome", "predictor", "where"])
    cause = found.loc["old text", "kl/forward-old", "within methods"]
    assert cause["rho"] > 0.95 and cause["r2"] > 0.9 and cause["trials"] == 160
    assert found.loc["old text", "kl/forward-old", "across methods"]["rho"] < 0.7  # the methods differ by more
    assert found.loc["old text", "kl/forward-new", "within methods"]["r2"] < 0.05
    assert found["rho"].abs().max() <= 1 and set(found.index.get_level_values(0)) == set(OUTCOMES)


def test_r2_is_of_groups_that_the_line_has_not_seen():
    """A line through groups that each have a place of their own, and nothing in common, foretells nothing."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    x = groups + rng.normal(size=200) * 0.01
    assert cross_validated(x, rng.normal(size=20)[groups], groups) < 0.2
    assert cross_validated(x, 2 * x + 1, groups) == pytest.approx(1.0)
    assert np.isnan(cross_validated(x[:30], x[:30], groups[:30]))


def test_at_equal_skill_what_only_tells_the_skill_foretells_nothing():
    rng, trials = np.random.default_rng(0), [trial("base", seed) for seed in range(8)]
    for number in range(300):
        skill, cause = rng.uniform(size=2)
        metrics = {SKILL: skill, "kl/forward-new": skill + 0.02 * rng.normal(), "kl/forward-old": cause}
        trials.append(trial(("uft", "dpo-alone")[number % 2], number % 8, excess=3 * skill + cause, **metrics))
    frame = table(trials)
    across = predictions(frame).set_index(["outcome", "predictor", "where"]).loc["old text"]["rho"]
    equal = at_equal_skill(frame).set_index(["outcome", "predictor"]).loc["old text"]
    assert across["kl/forward-new", "across methods"] > 0.9 > 0.5 > across["kl/forward-old", "across methods"]
    assert equal.loc["kl/forward-new", "rho"] < equal.loc["kl/forward-old", "rho"]
    cause = equal.loc["kl/forward-old"]
    assert cause["rho"] > 0.8 and cause["low"] < cause["rho"] < cause["high"] and cause["trials"] == 300


def test_with_one_band_it_is_spearmans_and_few_trials_have_none(monkeypatch):
    rng = np.random.default_rng(1)
    made = [trial("uft", n % 4, excess=rng.normal(), **{SKILL: 0.5, "kl/forward-old": rng.normal()}) for n in range(40)]
    frame = table(made)
    assert at_equal_skill(frame)["rho"].isna().all()  # eight trials of a band
    monkeypatch.setattr(forgetting, "BANDS", 1)
    found = at_equal_skill(frame).set_index(["outcome", "predictor"])
    wanted = stats.spearmanr(frame["kl/forward-old"], frame["old text"]).statistic
    assert found.loc[("old text", "kl/forward-old"), "rho"] == pytest.approx(wanted)


def test_at_equal_rate_what_only_tells_the_rate_foretells_nothing():
    """Both the weights and what is lost follow the rate. Among trials of one rate only the cause is left."""
    rng, trials = np.random.default_rng(0), [trial("base", seed) for seed in range(8)]
    for number in range(240):
        rate, cause = (1e-3, 3e-3)[number % 2], rng.uniform()
        metrics = {SKILL: rng.uniform(), "drift/weights": 1e3 * rate + 0.1 * rng.uniform(), "kl/forward-new": cause}
        trials.append(trial(("uft", "dpo-alone")[number % 3 == 0], number % 8, rate, 1e3 * rate + cause, **metrics))
    frame = table(trials)
    across = predictions(frame).set_index(["outcome", "predictor", "where"]).loc["old text"]["rho"]
    equal = forgetting.at_equal_rate(frame).set_index(["outcome", "predictor"]).loc["old text"]
    assert across["drift/weights", "across methods"] > 0.7
    assert equal.loc["drift/weights", "low"] < 0 < equal.loc["drift/weights", "high"] < 0.3
    assert equal.loc["kl/forward-new", "rho"] > 0.99 and np.isnan(equal.loc["rate x steps", "rho"])
    better = forgetting.ahead(frame, "kl/forward-new", "drift/weights", "old text", forgetting.rate_bands)
    assert better.verdict == "higher" and better.mean == pytest.approx(
        equal.loc["kl/forward-new", "rho"] - equal.loc["drift/weights", "rho"]
    )


def test_equal_rates_are_equal_whatever_the_order_of_the_stages():
    frame = table([trial("base", 0), trial("sft-then-dpo", 0, rate=0.1 + 0.2), trial("sft-then-dpo", 0, rate=0.3)])
    assert forgetting.rate_bands(frame).tolist() == [0, 0]


def test_bands_of_few_trials_are_left_out():
    made = [trial("base", 0)]
    for number in range(25):
        rate = 1e-3 if number < 16 else 2e-3
        metrics = {SKILL: 0.5, "kl/forward-new": number % 7, "drift/weights": 1.0}
        made.append(trial("uft", 0, rate, excess=number % 7, **metrics))
    (x, y), kept = forgetting.ranks_within(table(made), ["kl/forward-new", "old text"], forgetting.rate_bands)
    assert len(kept) == 16 and len(x) == 16 and np.allclose(x, y) and abs(x.sum()) < 1e-9

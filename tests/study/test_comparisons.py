"""Intervals over worlds and tuning draws, Holm's correction, the primary family, methods at equal skill."""

import numpy as np
import pandas as pd
import pytest
from made_up import made_up
from scipy import stats

from uftlab.errors import InputError
from uftlab.study import comparisons, results
from uftlab.study.comparisons import OUTCOMES, PRIMARY, at_levels, best_kept, holm, matched_skill
from uftlab.study.results import crossed_interval, interval


def test_holm_by_hand():
    """Ordered 0.01, 0.02, 0.04, 0.3: times 4, 3, 2, 1 = 0.04, 0.06, 0.08, 0.3."""
    assert holm([0.3, 0.01, 0.04, 0.02]) == pytest.approx([0.3, 0.04, 0.08, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0] and holm([0.02, 0.021]) == [0.04, 0.04] and holm([]) == []


def test_one_value_a_world_and_no_draws_is_the_usual_interval():
    values = [0.3, 1.2, -0.5, 0.9]
    ours, usual = crossed_interval(values, range(4), [0] * 4), interval(values)
    assert (ours.mean, ours.low, ours.high, ours.seeds) == pytest.approx((usual.mean, usual.low, usual.high, 4))
    assert ours.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue) == usual.p


def test_a_two_way_layout_by_hand():
    """Mean squares 12.5 of worlds, 4.5 of draws, 0.5 of the rest: (12.5 + 4.5 - 0.5) / 4 is the variance."""
    values = np.array([0.0, 1.0, 3.0, 6.0])  # worlds 0, 0, 1, 1; draws 0, 1, 0, 1
    found = crossed_interval(values, [0, 0, 1, 1], [0, 1, 0, 1])
    world, draw, rest = 16.0, 4.0, 1.0  # 2 * ((0.5 - 2.5)^2 + 2^2) / 1; 2 * (1^2 + 1^2) / 1; 4 * 0.5^2
    variance = (world + draw - rest) / 4
    freedom = variance**2 / ((world / 4) ** 2 + (draw / 4) ** 2 + (rest / 4) ** 2)
    half = stats.t.ppf(0.975, freedom) * variance**0.5
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half))


def drawn(rng, worlds, draws, crossed, spread):
    """Values with effects of worlds, draws and a rest; their labels."""
    own, tuned = rng.normal(size=worlds) * spread[0], rng.normal(size=draws) * spread[1]
    pairs = [(w, k) for w in range(worlds) for k in (range(draws) if crossed else [w % draws])]
    w, k = np.array(pairs).T
    return own[w] + tuned[k] + rng.normal(size=len(w)) * spread[2], w, k


@pytest.mark.parametrize("crossed", [True, False], ids=["crossed", "one draw a world"])
@pytest.mark.parametrize("spread", [(1, 1, 1), (1, 0.3, 0.5), (0.2, 1, 1), (0, 0, 1)], ids=str)
def test_intervals_cover_what_they_say_and_not_much_more(crossed, spread):
    """95 %, in 16 worlds with 4 draws, whichever of world, draw and rest varies most; a little more with the rest."""
    rng = np.random.default_rng(0)
    found = [crossed_interval(*drawn(rng, 16, 4, crossed, spread)) for _ in range(1500)]
    covered = np.mean([own.low <= 0 <= own.high for own in found])
    assert 0.92 <= covered <= 0.98
    assert covered == pytest.approx(np.mean([own.p >= 0.05 for own in found]))


def test_worlds_alone_would_be_too_sure_where_tuning_varies():
    rng, spread = np.random.default_rng(1), (0.5, 1, 0.5)
    found = [interval(drawn(rng, 16, 4, False, spread)[0].tolist()) for _ in range(400)]
    assert np.mean([own.low <= 0 <= own.high for own in found]) < 0.8


def test_strange_values_are_refused_or_settle_nothing():
    with pytest.raises(InputError, match="equally many"):
        crossed_interval([1.0], [0, 1], [0])
    assert crossed_interval([1.0, 2.0], [0, 0], [0, 1]).verdict == "not settled"


def frame_of(effect, worlds=8):
    """The methods of the primary family; uft is better by `effect` in followed and correct."""
    rng, rows = np.random.default_rng(0), []
    for name in dict.fromkeys(m for a, b, _ in PRIMARY for m in (a, b)):
        for seed in range(worlds):
            own = {
                o: 0.4 + 0.01 * rng.normal() + (effect if name == "uft" and o == OUTCOMES[0] else 0) for o in OUTCOMES
            }
            rows.append(made_up(name, seed, **own))
    return results.tidy(rows)


def test_the_primary_family_has_twelve_tests_and_its_own_correction():
    rows = comparisons.primary(frame_of(0.2))
    assert len(PRIMARY) == 6 and len(rows) == 12 and len({(r["comparison"], r["metric"]) for r in rows}) == 12
    assert [r["holm"] for r in rows] == pytest.approx(holm([r["p"] for r in rows]))
    higher = {r["comparison"] for r in rows if r["verdict"] == "higher" and r["metric"] == OUTCOMES[0]}
    assert higher == {f"{a} minus {b}" for a, b, _ in PRIMARY if a == "uft"}


def test_a_missing_test_of_the_primary_family_counts():
    frame = frame_of(0.2)
    rows = comparisons.primary(frame[frame["method"] != "una-alone"])
    assert len(rows) == 10
    assert [r["holm"] for r in rows] == pytest.approx(holm([*(r["p"] for r in rows), 1.0, 1.0])[:10])


def test_what_is_primary_is_not_secondary_and_families_do_not_mix():
    rows = comparisons.compare(frame_of(0.2))
    keys = [(r["comparison"], r["metric"]) for r in rows]
    assert len(keys) == len(set(keys)) and [r["family"] for r in rows[:12]] == ["primary"] * 12
    rest = rows[12:]
    assert {r["family"] for r in rest} == {"secondary"}
    assert [r["holm"] for r in rest] == pytest.approx(holm([r["p"] for r in rest]))


def test_what_stage_two_takes_is_against_the_same_model_at_the_end_of_stage_one():
    rows = []
    for seed, (before, after) in enumerate([(0.9, 0.5), (0.8, 0.5), (0.9, 0.4)]):
        stages = [{"metrics": {"instruction/strict": before}}, {}]
        rows.append(made_up("sft-then-dpo", seed, strict=after) | {"stages": stages})
    frame = results.tidy(rows)
    found = comparisons.taken(frame, "sft-then-dpo", "instruction/strict")
    assert (found.mean, found.low) == pytest.approx((-0.4, interval([-0.4, -0.3, -0.5]).low))
    assert comparisons.taken(frame, "sft-then-dpo", "truth/mc2") is None


def test_at_equal_skill_outcomes_lie_between_the_neighbours():
    table = pd.DataFrame(
        {"method": ["a"] * 3, "seed": [0] * 3, "instruction/both": [0.5, 0.1, 0.3], "x": [2.0, 0.0, 4.0]}
    )
    found = matched_skill(table, (0.2, 0.4, 0.6), ["x"])["x"].tolist()
    assert found[:2] == pytest.approx([2.0, 3.0]) and np.isnan(found[2])


SKILL = "instruction/both"


def test_the_best_kept_is_of_trials_with_at_least_the_skill_and_less_of_what_is_lost():
    table = pd.DataFrame(
        {"method": ["a"] * 3, "seed": [0] * 3, SKILL: [0.5, 0.1, 0.3], "truth/cued": [0.2, 0.9, 0.6]}
        | {"retention/lost": [0.7, 0.0, 0.4]}
    )
    found = best_kept(table, (0.05, 0.3, 0.4, 0.6), ["truth/cued", "retention/lost"])
    assert found["truth/cued"].tolist()[:3] == [0.9, 0.6, 0.2] and found["retention/lost"].tolist()[:3] == [0, 0.4, 0.7]
    assert found.iloc[3][["truth/cued", "retention/lost"]].isna().all()


def kept_at(values):
    """A reading: method, world and level -> what is kept."""
    rows = [{"method": m, "seed": w, SKILL: level, "truth/cued": v} for (m, w, level), v in values.items()]
    return pd.DataFrame(rows)


def test_contrasts_at_equal_skill_are_over_worlds_and_over_the_levels_that_both_reach():
    """World 0: 0.1 and 0.3, mean 0.2. World 1: one level, 0.4. So 0.3 in the mean, at one level 0.25, at one 0.3."""
    worlds = {("uft", 0, 0.3): 0.6, ("uft", 0, 0.4): 0.7, ("uft", 1, 0.3): 0.9, ("uft", 1, 0.4): 0.8}
    worlds |= {("signed-sft", 0, 0.3): 0.5, ("signed-sft", 0, 0.4): 0.4, ("signed-sft", 1, 0.3): 0.5}
    worlds |= {("signed-sft", 1, 0.4): np.nan}
    (row,) = at_levels({"made up": kept_at(worlds)}, ["truth/cued"])
    assert (row["comparison"], row["metric"], row["reading"]) == ("uft minus signed-sft", "truth/cued", "made up")
    wanted = interval([0.2, 0.4])
    assert (row["mean"], row["low"], row["seeds"]) == pytest.approx((0.3, wanted.low, 2))
    assert row["levels"][0.3] == pytest.approx((0.25, 2)) and row["levels"][0.4] == pytest.approx((0.3, 1))
    assert row["holm"] == pytest.approx(min(1, 6 * row["p"]))  # five pairs that nobody made count


def test_readings_share_a_family_and_one_world_settles_nothing():
    rng = np.random.default_rng(0)
    made = {
        (m, w, 0.3): 0.5 + 0.1 * (m == "uft") + 0.001 * rng.normal() for m in ("uft", "signed-sft") for w in range(4)
    }
    one, two = (at_levels(dict.fromkeys(names, kept_at(made)), ["truth/cued"]) for names in (["a"], ["a", "b"]))
    assert [r["holm"] for r in two] == pytest.approx([12 * one[0]["p"]] * 2) and two[0]["verdict"] == "higher"
    alone = {key: value for key, value in made.items() if key[1] == 0}
    (row,) = at_levels({"a": kept_at(alone)}, ["truth/cued"])
    assert row["low"] is None and row["verdict"] == "not settled" and row["holm"] is None


MIXING, LOSS = "(+0.20, 95 % interval 0.10 to 0.30)", "(-0.004, 95 % interval -0.03 to 0.02)"


@pytest.mark.parametrize(
    ("mixing", "loss", "first", "second"),
    [
        ("higher", "not settled", "makes a model follow more instructions correctly", "adds nothing that is settled"),
        ("lower", "lower", "makes a model follow fewer instructions correctly", "takes away from that"),
        (
            "not settled",
            "higher",
            "is not settled to change how many instructions a model follows correctly",
            "adds to that",
        ),
    ],
)
def test_the_closing_sentence_follows_the_verdicts(mixing, loss, first, second):
    rows = [
        {"comparison": "sft-plus-dpo minus sft-then-dpo", "mean": 0.2, "low": 0.1, "high": 0.3, "verdict": mixing},
        {"comparison": "uft minus sft-plus-dpo", "mean": -0.004, "low": -0.03, "high": 0.02, "verdict": loss},
    ]
    rows = [{"metric": "instruction/both", **row} for row in rows] + [{"metric": "truth/mc2", **rows[1]}]
    said = f"Mixing demonstrations with feedback {first} {MIXING}, and the unified loss {second} {LOSS}."
    assert comparisons.closing(rows) == said

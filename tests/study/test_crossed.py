"""Worlds crossed with tunings: which trials are added, what is pooled, and what the page says of it."""

from collections import Counter

import numpy as np
import pytest
from made_up import made_up

from uftlab.reports import study
from uftlab.study import comparisons, crossed, results
from uftlab.study.comparisons import OUTCOMES
from uftlab.study.trials import DRAWS, PROFILES, trial


def test_the_added_trials_and_the_planned_ones_are_every_draw_in_every_world_once():
    added = crossed.trials()
    planned = [trial(name, seed, PROFILES["class"]) for name in crossed.METHODS for seed in crossed.WORLDS]
    places = Counter((t.method, t.seed, t.draw) for t in (*added, *planned))
    assert len(added) == 288 and set(places.values()) == {1}
    assert len(places) == len(crossed.METHODS) * len(crossed.WORLDS) * DRAWS and len(crossed.METHODS) == 6
    assert not any(t.curves for t in added)


def trials_of(effect, of_draw, worlds=8, seed=0):
    """All six methods in all worlds with all draws; uft is above by `effect`, and by `of_draw` in each draw."""
    rng, made = np.random.default_rng(seed), []
    for name in crossed.METHODS:
        for world in range(worlds):
            for draw in range(DRAWS):
                above = (effect + of_draw[draw]) * (name == "uft")
                values = {o: 0.4 + above + 0.01 * rng.normal() for o in OUTCOMES}
                made.append({**made_up(name, world, **values), "draw": draw})
    planned = [t for t in made if t["draw"] == t["seed"] % DRAWS]
    return planned, [t for t in made if t["draw"] != t["seed"] % DRAWS]


def test_contrasts_pool_planned_and_added_trials_and_count_both_variances():
    planned, added = trials_of(0.1, (-0.03, 0.0, 0.01, 0.02))
    frame = crossed.table([*planned, made_up("base", 0)], added)
    assert set(frame["method"]) == set(crossed.METHODS)
    row = next(r for r in comparisons.primary(frame) if r["comparison"] == "uft minus signed-sft")
    means = crossed.by_draw(frame, "uft", "signed-sft", OUTCOMES[0])
    assert row["mean"] == pytest.approx(np.mean(means), abs=1e-12) and row["seeds"] == 8
    assert means == pytest.approx([0.07, 0.1, 0.11, 0.12], abs=0.02)
    # four draws that differ by about 0.02: the half width is near 3.18 * 0.0216 / 2 = 0.034, not that of 32 values
    assert 0.025 < row["high"] - row["mean"] < 0.045


def test_the_mean_of_a_draw_by_hand():
    values = {("uft", 0, 0): 0.3, ("uft", 1, 0): 0.5, ("uft", 0, 1): 0.7}
    made = [{**made_up(m, w, **{OUTCOMES[0]: v}), "draw": k} for (m, w, k), v in values.items()]
    made += [{**made_up("una-alone", w, **{OUTCOMES[0]: 0.2}), "draw": k} for w in (0, 1) for k in (0, 1)]
    found = crossed.by_draw(results.tidy(made), "uft", "una-alone", OUTCOMES[0])
    assert found == pytest.approx([0.2, 0.5])  # the world without uft under draw 1 is left out


def test_the_page_names_every_verdict_that_changes_and_says_when_it_was_run():
    planned, added = trials_of(0.012, (0.0,) * 4)  # too little for eight trials of a method, enough for 32
    before = comparisons.primary(results.tidy(planned))
    text = "\n".join(study._all_tunings(planned, added, before))
    assert "after the planned result had been read" in text and f"{len(added)} more trials" in text
    after = {(r["comparison"], r["metric"]): r for r in comparisons.primary(crossed.table(planned, added))}
    changed = [r for r in before if study.verdict(r) != study.verdict(after[r["comparison"], r["metric"]])]
    assert changed and f"{len(changed)} of 12 verdicts change:" in text
    assert text.count(": planned ") == len(changed)
    for row in changed:
        assert f"{row['comparison'].replace(' minus ', ' − ')}, {results.HEADLINES[row['metric']][0]}: planned" in text


def test_trials_of_other_worlds_or_profiles_and_draws_that_are_there_are_not_added():
    planned, added = trials_of(0.1, (0.0,) * 4, worlds=2)
    strange = [{**added[0], "seed": 5}, {**added[0], "profile": "smoke"}, planned[0]]
    assert crossed.beside(planned, [*strange, *added]) == added
    assert len(crossed.table(planned, [*strange, *added])) == len(crossed.table(planned, added))


def test_without_added_trials_there_is_no_section():
    planned, _ = trials_of(0.1, (0.0,) * 4)
    assert study._all_tunings(planned, [], comparisons.primary(results.tidy(planned))) == []

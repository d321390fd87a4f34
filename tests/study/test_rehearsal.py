"""What comes back by reading again: which lines are read, what is compared with what, and the section of the page."""

from dataclasses import replace

import pytest
import torch
from made_up import made_up
from trials import TINY, WeightProbe, random_base

from uftlab.evals import skills
from uftlab.evals.sizes import METRICS as MEASURED
from uftlab.plots import figures
from uftlab.reports import study
from uftlab.study import cohort, comparisons, rehearsal, results
from uftlab.study.rehearsal import BASE, NEVER, TEXTS, came_back, over_worlds, steps_until, table
from uftlab.study.results import interval
from uftlab.world.world import World

OLD, CAREFUL = rehearsal.KINDS.values()


def test_lines_on_other_creatures_name_none_that_is_measured():
    world = World(3)
    measured = {cohort.tokens().tokenizer.convert_tokens_to_ids(c) for c in world.creatures["test"]}
    named = {}
    for text in TEXTS:
        read = rehearsal.lines(world, text, count=600)
        named[text] = [bool(measured & set(own.completion_ids)) for (own,) in read]
        assert len(read) == 600
        ends = {(own.prompt_ids, own.completion_ids[-1]) for (own,) in read}
        assert ends == {((cohort.tokens().tokenizer.bos_token_id,), cohort.tokens().tokenizer.eos_token_id)}
    assert not any(named[TEXTS[0]]) and 0.2 < sum(named[TEXTS[1]]) / 600 < 0.5  # 88 of 256 creatures


def run(model, text, world, *values):
    """Old text lost and cued truth at steps 0, 5 and so on."""
    points = [{"step": s, OLD: o, CAREFUL: c} for s, (o, c) in zip(rehearsal.AT, values, strict=False)]
    return {"world": world, "model": model, "text": text, "points": points}


def test_what_is_back_by_hand():
    """Lost 0.4 and 0.1 after five steps: 0.75 is back. Truth 0.8 for the base, 0.6 and 0.55: more is lost, -0.25."""
    runs = [run(BASE, t, 0, (0.0, 0.8), (0.1, 0.7)) for t in TEXTS]
    runs += [run("uft", TEXTS[0], 0, (0.4, 0.6), (0.1, 0.55)), run(NEVER, TEXTS[0], 0, (0.5, 0.2), (0.5, 0.5))]
    back = came_back(table({"runs": runs})).set_index(["model", "kind", "step"])
    assert back.loc[("uft", "old text", 5), ["lost", "back"]].tolist() == pytest.approx([0.4, 0.75])
    careful = back.loc[("uft", "what careful sources say", 5), ["lost", "back"]].tolist()
    assert careful == pytest.approx([0.2, -0.25])
    assert back.loc[(NEVER, "what careful sources say", 5), "back"] == pytest.approx(0.5)
    assert (back.xs(0, level="step")["back"] == 0).all() and BASE not in back.index.get_level_values(0)


def test_a_world_that_lost_little_does_not_outweigh_the_others():
    """Lost 0.4 and 0.2, after five steps 0.1 in both: 0.4 of 0.6 is back, not the mean of 3/4 and 1/2."""
    runs = [run(BASE, TEXTS[0], w, (0.0, 0.8), (0.0, 0.8)) for w in (0, 1)]
    runs += [run("uft", TEXTS[0], w, (lost, 0.6), (0.1, 0.6)) for w, lost in ((0, 0.4), (1, 0.2))]
    own = over_worlds(came_back(table({"runs": runs}))).set_index(["kind", "step"]).loc[("old text", 5)]
    assert own["mean"] == pytest.approx(2 / 3) and own["lost"] == pytest.approx(0.3)
    apart = (0.3 - 0.4 * 2 / 3) / 0.3  # of the first world; the second has as much the other way
    assert own["high"] == pytest.approx(interval([2 / 3 + apart, 2 / 3 - apart]).high)


def test_methods_are_compared_with_the_control_world_by_world(stored):
    rows = rehearsal.above_control(came_back(table(stored)))
    assert len(rows) == 4 and {r["model"] for r in rows} == {"uft"}
    old = next(r for r in rows if (r["text"], r["kind"]) == (TEXTS[1], "old text"))
    assert old["mean"] == pytest.approx(0.75 - 0.15) and old["verdict"] == "higher"
    same = next(r for r in rows if (r["text"], r["kind"]) == (TEXTS[0], "what careful sources say"))
    assert same["mean"] == pytest.approx(0) and same["verdict"] == "not settled"
    assert old["holm"] == comparisons.holm([r["p"] for r in rows])[rows.index(old)]


@pytest.fixture
def stored():
    """Two worlds in which old text comes back at once, and truth hardly does."""
    runs, steps = [], len(rehearsal.AT)
    for world in (0, 1):
        for text in TEXTS:
            runs.append(run(BASE, text, world, *[(0.0, 0.8)] * steps))
            for model in ("uft", NEVER):
                lost = [0.4, *[0.1 if model == "uft" else 0.34] * (steps - 1)]
                true = [0.5 + (0.01 + 0.01 * world) * n for n in range(steps)]
                runs.append(run(model, text, world, *zip(lost, true, strict=True)))
    return {"learning_rate": 1e-3, "batch": 32, "runs": runs}


def test_steps_until_are_of_the_mean_over_worlds(stored):
    found = over_worlds(came_back(table(stored)))
    own = found[(found["model"] == "uft") & (found["text"] == TEXTS[0])]
    old, careful = (own[own["kind"] == kind] for kind in rehearsal.KINDS)
    assert steps_until(old, 0.5) == 5 and steps_until(old, 0.9) is None
    assert careful.set_index("step").loc[80, "mean"] == pytest.approx((0.05 + 0.10) / 2 / 0.3)
    assert (careful["seeds"] == 2).all() and steps_until(careful, 0.3) is None


def test_the_page_and_the_figure_tell_hidden_from_gone(stored):
    frame = results.tidy([made_up("uft", 0), made_up("sft-then-dpo", 0), made_up("sft-then-dpo", 1)])
    page = "\n".join(study._hidden_or_gone(stored, frame))
    assert "With lines on other creatures, 75% to 75% is back by method, and the control makes up 15%; 1 of 1" in page
    assert "25% to 25% is back by method, and the control makes up 25%; 0 of 1" in page
    assert f"| {NEVER} | 0.40 | all creatures | 15% | 15% | 15% |" in page
    assert "| uft | 0.40 | other creatures | 75% | 75% | 75% |" in page
    assert "| 5 | over 80 | +60% |" in page  # steps to a half, to nine tenths; above the control
    assert study._hidden_or_gone(None, frame) == []
    fig = figures.came_back(over_worlds(came_back(table(stored))), TEXTS[0])
    assert [t.name for t in fig.data] == ["uft", NEVER] * 2
    assert list(fig.data[0].y) == pytest.approx([0.0, *[0.75] * 5]) and list(fig.data[0].x) == list(rehearsal.AT)


def test_a_world_is_rehearsed_from_the_ends_of_all_methods_and_from_both_controls(monkeypatch):
    """Random bases and a measure that gives the norm of the weights: only training is real."""

    def norms(evaluators, reader):
        return [dict.fromkeys(MEASURED, float(row.norm())) for row in reader.weights]

    monkeypatch.setattr(cohort, "load_base", random_base)
    monkeypatch.setattr("uftlab.models.policies.load_base", random_base)
    monkeypatch.setattr(cohort, "Evaluator", WeightProbe)
    monkeypatch.setattr(skills, "measure", norms)
    monkeypatch.setattr(rehearsal, "METHODS", ("uft", "sft-then-dpo"))
    monkeypatch.setattr(rehearsal, "AT", (0, 2, 4))
    monkeypatch.setattr(rehearsal, "lines", lambda world, text: LINES(world, text, count=8 + 8 * (text == TEXTS[1])))
    monkeypatch.setattr(rehearsal, "read_again", lambda starts, read: READ(starts, read, 4))
    cohort.materials.cache_clear()
    runs = rehearsal.rehearse(1, replace(TINY, steps=4))
    cohort.materials.cache_clear()
    assert [(r["model"], r["text"]) for r in runs] == [
        (m, text) for text in TEXTS for m in ("uft", "sft-then-dpo", NEVER, BASE)
    ]
    first = {r["model"]: [p[OLD] for p in r["points"]] for r in runs if r["text"] == TEXTS[0]}
    assert len({tuple(own) for own in first.values()}) == 4 and all(len(set(own)) == 3 for own in first.values())
    away = [float(x.norm()) for x in map(weights_of, (1, 1 + rehearsal.AWAY))]
    assert [first[BASE][0], first[NEVER][0]] == pytest.approx(away)


LINES, READ = rehearsal.lines, rehearsal.read_again


def weights_of(seed):
    from uftlab.engine.stack import flatten
    from uftlab.training.stages import layout

    return flatten(random_base(seed).state_dict(), layout())


def test_all_models_read_the_same_lines_and_stay_apart(monkeypatch):
    monkeypatch.setattr(rehearsal, "AT", (0, 2, 4))
    read, starts = rehearsal.lines(World(0), TEXTS[1], count=16), [weights_of(0), weights_of(1)]
    both, alone = READ(starts, read, 4), READ(starts[1:], read, 4)
    assert set(both) == {0, 2, 4} and torch.equal(both[0], torch.stack(starts))
    for step in (2, 4):
        assert torch.allclose(both[step][1], alone[step][0], atol=1e-5)
        assert not torch.allclose(both[step], both[step - 2], atol=1e-5)


def test_instructions_have_a_word_of_their_own(stored):
    made = [made_up("sft-then-dpo", n, **{"instruction/both": 0.5}) for n in range(2)]
    for number, own in enumerate(made):
        own["stages"] = [{"metrics": {"instruction/both": 0.5 + (0.1, -0.1)[number]}}, {}]
    page = study._hidden_or_gone(stored, results.tidy(made))[-1]
    assert "stage two of sft-then-dpo is not settled to take any (+0.000" in page
    assert "Instructions were not rehearsed." in study._hidden_or_gone(stored, results.tidy([made_up("uft", 0)]))[-1]

"""Beliefs are those of the evaluation, whole answers mislead, and the figures draw what the frames say."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from uftlab.course import beliefs
from uftlab.course.notebooks import NOTEBOOKS
from uftlab.evals.sizes import Sizes
from uftlab.evals.skills import Evaluator
from uftlab.models.policies import load_base
from uftlab.plots import figures, theme
from uftlab.world.instructions import Instruction, follows
from uftlab.world.wording import ATTRIBUTES, Fact
from uftlab.world.world import World

WORLD = World(0)
PLAIN = Fact("babo", "colour", "blue")
MYTH = Fact("babo", "food", "berries", "worms", "myth")
RUMOUR = Fact("babo", "home", "cave", "river", "rumour")


@pytest.fixture(scope="module")
def base():
    return load_base(0)


@pytest.fixture(scope="module")
def believed(base, tokenizer):
    return beliefs.beliefs(WORLD, base, tokenizer)


def test_six_values_share_all_probability(base, tokenizer):
    plain = WORLD.facts_of("test", "plain")[0]
    found = beliefs.value_probabilities(base, tokenizer, [plain, MYTH], *beliefs.ASKED["which"])
    assert found.shape == (2, 6)
    torch.testing.assert_close(found.sum(-1), torch.ones(2))
    assert ATTRIBUTES[plain.attribute][int(found[0].argmax())] == plain.truth


def test_a_model_that_prefers_nothing_gives_a_sixth_to_each(untrained, tokenizer):
    for weight in untrained.parameters():
        torch.nn.init.zeros_(weight)
    found = beliefs.value_probabilities(untrained, tokenizer, [MYTH], *beliefs.ASKED["which"])
    torch.testing.assert_close(found, torch.full((1, 6), 1 / 6))


def test_the_means_are_those_of_the_evaluation(base, tokenizer, believed):
    metrics = Evaluator(WORLD, base, tokenizer, sizes=Sizes(4, 4, 0, 4))(base)
    found = beliefs.by_role(believed).set_index(["kind", "role"])["mean"]
    assert found["plain facts", "truth"] == pytest.approx(metrics["plain/mc2"], abs=1e-4)
    for kind in ("myths", "rumours"):
        assert found[f"{kind}, asked plainly", "truth"] == pytest.approx(metrics[f"truth/{kind}"], abs=1e-4)
        assert found[f"{kind}, careful sources", "truth"] == pytest.approx(metrics[f"truth/cued-{kind}"], abs=1e-4)
    plainly = [beliefs.likeliest(beliefs.QUESTION_KINDS[f"{k}, asked plainly"](believed)) for k in ("myths", "rumours")]
    assert (pd.concat(plainly)["role"] == "truth").mean() == pytest.approx(metrics["truth/mc1"], abs=1e-4)


def test_the_frontier_drawn_is_that_of_the_evaluation_and_the_base_lies_on_it(base, tokenizer, believed):
    points = beliefs.frontiers(believed)
    line = points[points["what"] == "frontier"]
    on_rumours, on_myths = Evaluator(WORLD, base, tokenizer, sizes=Sizes(4, 4, 0, 4)).frontiers["truth/knowledge"]
    assert line["rumours"].tolist() == pytest.approx(on_rumours.tolist(), abs=1e-4)
    assert line["myths"].tolist() == pytest.approx(on_myths.tolist(), abs=1e-4)
    at = points.set_index("what")
    own, careful = at.loc["asked plainly"], at.loc["careful sources"]
    assert own["myths"] == pytest.approx(np.interp(own["rumours"], line["rumours"], line["myths"]), abs=1e-3)
    assert careful["myths"] > np.interp(careful["rumours"], line["rumours"], line["myths"]) + 0.3


def test_the_figure_of_the_frontier_has_a_line_for_each_world_and_both_answers(believed):
    both = pd.concat([believed, believed.assign(world=1)])
    fig = figures.frontier(beliefs.frontiers(both))
    assert fig.layout.title.text and fig.layout.xaxis.title.text and fig.layout.yaxis.title.text
    lines, points = fig.data[:2], fig.data[2:]
    assert [len(trace.x) for trace in points] == [2, 2] and len({trace.marker.symbol for trace in points}) == 2
    assert [trace.showlegend for trace in lines] == [True, False]
    assert points[1].y[0] > points[0].y[0]


def test_what_the_text_tells_is_exact():
    assert beliefs.told(PLAIN, "what is") == [float(v == "blue") for v in ATTRIBUTES["colour"]]
    shares = dict(zip(ATTRIBUTES["food"], beliefs.told(MYTH, "which"), strict=True))
    assert shares["berries"] == 0.25 and shares["worms"] == 0.75 and sum(shares.values()) == 1
    shares = dict(zip(ATTRIBUTES["home"], beliefs.told(RUMOUR, "about"), strict=True))
    assert shares["cave"] == 0.75 and shares["river"] == 0.25 and sum(shares.values()) == 1
    assert dict(zip(ATTRIBUTES["food"], beliefs.told(MYTH, beliefs.CAREFUL), strict=True))["berries"] == 1
    assert beliefs.told(PLAIN, "what is") == beliefs.told(PLAIN, beliefs.CAREFUL)


def test_intervals_treat_a_world_as_one_number(believed):
    other = believed.assign(world=1, probability=believed["probability"] * 0.5)
    row = beliefs.by_role(pd.concat([believed, other])).set_index(["kind", "role"]).loc["plain facts", "truth"]
    alone = beliefs.by_role(believed).set_index(["kind", "role"]).loc["plain facts", "truth"]
    assert row["seeds"] == 2 and row["mean"] == pytest.approx(0.75 * alone["mean"])
    half = 12.706 * alone["mean"] * 0.25  # t for one degree of freedom; the two worlds lie 0.25 around their mean
    assert row["high"] - row["mean"] == pytest.approx(half, rel=1e-3)


def test_whole_answers_measure_their_wording(base, tokenizer):
    facts = WORLD.facts_of("test", "myth")[:40]
    short, long = "{v} .", "as far as i know , the {a} of {c} is {v} ."
    first = beliefs.whole_answers(base, tokenizer, facts, short, long)
    second = beliefs.whole_answers(base, tokenizer, facts, long, short)
    assert first["sum"] > 0.9 > 0.1 > second["sum"]
    assert first["mean per token"] < 0.1 < 0.9 < second["mean per token"]


def test_instructions_obeyed_have_a_share_each(base, tokenizer):
    found = beliefs.obeyed(WORLD, base, tokenizer, per_instruction=6)
    assert len(found) == 14 and found["share"].between(0, 1).all()
    assert found.set_index("instruction")["share"]["without"] > 0.3


# ------------------------------------------------------------------------------------------ figures


def rows_of(believed, creature, attribute, asked="what is"):
    here = (believed["creature"] == creature) & (believed["attribute"] == attribute) & (believed["asked"] == asked)
    return believed[here]


def test_plain_facts_and_myths_have_the_same_traces(believed):
    fact = WORLD.facts_of("test", "myth")[0]
    plain = next(f for f in WORLD.facts_of("test", "plain") if f.creature == fact.creature)
    first, second = (figures.six_values(rows_of(believed, f.creature, f.attribute), "title") for f in (fact, plain))
    assert [t.name for t in first.data] == [t.name for t in second.data] and len(first.data) == 4
    truth, error = (next(y for y in trace.y if y is not None) for trace in first.data[:2])
    wanted = rows_of(believed, fact.creature, fact.attribute).set_index("role")["probability"]
    assert truth == wanted["truth"] and error == wanted["error"]
    assert all(y is None for y in second.data[1].y)  # nothing to show, yet the trace is there


def test_figures_have_titles_axes_and_the_numbers_given(believed):
    by_role = beliefs.by_role(pd.concat([believed, believed.assign(world=1)]))
    shares = pd.DataFrame(
        {"world": [0, 1, 0, 1], "instruction": ["end", "end", "start", "start"], "share": [1, 0, 0, 0]}
    )
    scores = pd.DataFrame(
        [
            {"claim": c, "length": n, "mean": m, "low": m - 0.1, "high": m + 0.1}
            for c, n, m in (("truth", "short", 0.8), ("truth", "long", 0.9))
        ]
    )
    drawn = [
        figures.probabilities_by_role(by_role),
        figures.followed(shares),
        figures.lengths({"short": [2, 2, 3], "long": [4, 4]}, "lengths"),
        figures.scores_by_length(scores),
    ]
    for fig in drawn:
        assert fig.layout.title.text and fig.layout.template.layout.font.size == theme.FONT_SIZE
    assert list(drawn[0].data[0].y) == by_role[by_role["role"] == "truth"]["mean"].tolist()
    assert list(drawn[1].data[1].x) == [0.5, 0.0]
    assert list(drawn[2].data[0].y) == [2 / 3, 1 / 3, 0]
    assert drawn[3].data[1].y[0] == 0.9 and math.isclose(drawn[3].data[1].error_y.array[0], 0.1)


def test_the_blind_answer_of_notebook_03_obeys_nearly_half_of_the_prompts():
    """It is printed there for babo; here the creature and the value of each prompt stand in it."""
    rows = [row for row in WORLD.demonstrations(400, "test", seed=1) if row["instructions"]]
    blind = "- look surely today happily {c} {v} {v} friend . !"
    obeyed = [
        follows(blind.format(c=row["creature"], v=row["truth"]), [Instruction(*own) for own in row["instructions"]])
        for row in rows
    ]
    assert 0.4 < np.mean(obeyed) < 0.5
    written = (NOTEBOOKS / "03_tiny_world.ipynb").read_text(encoding="utf-8")
    assert blind.format(c="babo", v="nuts") in written
    assert next(fact.truth for fact in WORLD.facts if (fact.creature, fact.attribute) == ("babo", "food")) == "nuts"

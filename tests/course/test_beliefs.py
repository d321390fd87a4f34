"""Beliefs are those of the evaluation, whole answers mislead, and the figures draw what the frames say."""

import math

import pandas as pd
import pytest
import torch

from uftlab.course import beliefs
from uftlab.evals.sizes import Sizes
from uftlab.evals.skills import Evaluator
from uftlab.models.policies import load_base
from uftlab.plots import figures, theme, widgets
from uftlab.world.wording import ATTRIBUTES, Fact
from uftlab.world.world import World

WORLD = World(0)
PLAIN = Fact("babo", "colour", "blue", None)
MYTH = Fact("babo", "food", "berries", "worms")


@pytest.fixture(scope="module")
def base():
    return load_base(0)


@pytest.fixture(scope="module")
def believed(base, tokenizer):
    return beliefs.beliefs(WORLD, base, tokenizer)


def test_six_values_share_all_probability(base, tokenizer):
    found = beliefs.value_probabilities(base, tokenizer, [PLAIN, MYTH], *beliefs.ASKED["which"])
    assert found.shape == (2, 6)
    torch.testing.assert_close(found.sum(-1), torch.ones(2))
    assert ATTRIBUTES["colour"][int(found[0].argmax())] == "blue"


def test_a_model_that_prefers_nothing_gives_a_sixth_to_each(untrained, tokenizer):
    for weight in untrained.parameters():
        torch.nn.init.zeros_(weight)
    found = beliefs.value_probabilities(untrained, tokenizer, [MYTH], *beliefs.ASKED["which"])
    torch.testing.assert_close(found, torch.full((1, 6), 1 / 6))


def test_the_means_are_those_of_the_evaluation(base, tokenizer, believed):
    metrics = Evaluator(WORLD, base, tokenizer, sizes=Sizes(4, 4, 0, 4))(base)
    found = beliefs.by_role(believed).set_index(["kind", "role"])["mean"]
    assert found["plain facts", "truth"] == pytest.approx(metrics["plain/mc2"], abs=1e-4)
    assert found["myths, asked plainly", "truth"] == pytest.approx(metrics["truth/mc2"], abs=1e-4)
    assert found["myths, careful sources", "truth"] == pytest.approx(metrics["truth/cued"], abs=1e-4)
    plainly = beliefs.likeliest(beliefs.QUESTION_KINDS["myths, asked plainly"](believed))
    assert (plainly["role"] == "truth").mean() == pytest.approx(metrics["truth/mc1"], abs=1e-4)


def test_what_the_text_tells_is_exact():
    assert beliefs.told(PLAIN, "what is") == [float(v == "blue") for v in ATTRIBUTES["colour"]]
    shares = dict(zip(ATTRIBUTES["food"], beliefs.told(MYTH, "which"), strict=True))
    assert shares["berries"] == 0.25 and shares["worms"] == 0.75 and sum(shares.values()) == 1
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
    facts = WORLD.facts_of("test", myths=True)[:40]
    short, long = "{v} .", "as far as i know , the {a} of {c} is {v} ."
    first = beliefs.whole_answers(base, tokenizer, facts, short, long)
    second = beliefs.whole_answers(base, tokenizer, facts, long, short)
    assert first["sum"] > 0.9 > 0.1 > second["sum"]
    assert first["mean per token"] < 0.1 < 0.9 < second["mean per token"]


def test_instructions_obeyed_have_a_share_each(base, tokenizer):
    found = beliefs.obeyed(WORLD, base, tokenizer, per_instruction=6)
    assert len(found) == 14 and found["share"].between(0, 1).all()
    assert found.set_index("instruction")["share"]["without"] > 0.5


# ------------------------------------------------------------------------------------------ figures


def rows_of(believed, creature, attribute, asked="what is"):
    here = (believed["creature"] == creature) & (believed["attribute"] == attribute) & (believed["asked"] == asked)
    return believed[here]


def test_plain_and_myth_ridden_facts_have_the_same_traces(believed):
    fact = WORLD.facts_of("test", myths=True)[0]
    plain = next(f for f in WORLD.facts_of("test", myths=False) if f.creature == fact.creature)
    first, second = (figures.six_values(rows_of(believed, f.creature, f.attribute), "title") for f in (fact, plain))
    assert [t.name for t in first.data] == [t.name for t in second.data] and len(first.data) == 4
    truth, myth = (next(y for y in trace.y if y is not None) for trace in first.data[:2])
    wanted = rows_of(believed, fact.creature, fact.attribute).set_index("role")["probability"]
    assert truth == wanted["truth"] and myth == wanted["myth"]
    assert all(y is None for y in second.data[1].y)  # nothing to show, yet the trace is there
    widget = widgets._figure_widget(first)
    widgets.redraw(widget, first, second)
    assert list(widget.layout.xaxis.ticktext) == list(second.layout.xaxis.ticktext)


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

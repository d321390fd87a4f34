"""Notebook 09: the explorer compares what it says it compares, and its words are its picture's."""

import pytest
from scipy import stats

from uftlab.course import predictors
from uftlab.study import forgetting, results


@pytest.fixture(scope="module")
def known():
    return forgetting.table(results.load(results.results_folder("map")))


@pytest.fixture(scope="module")
def parts(known):
    return predictors.parts(known)


FIRST = {"predictor": "drift/weights", "outcome": "old text", "method": predictors.ALL, "learned": 0.0}


def test_all_trainings_together_are_spearmans(known):
    found = predictors.found(known, "drift/weights", "old text", "all trainings")
    assert found.mean == pytest.approx(stats.spearmanr(known["drift/weights"], known["old text"]).statistic)
    assert found.low < found.mean < found.high


def test_the_views_are_those_of_the_study(known):
    equal = forgetting.at_equal_skill(known).set_index(["outcome", "predictor"]).loc[("old text", "kl/forward-new")]
    found = predictors.found(known, "kl/forward-new", "old text", "at equal skill")
    assert (found.mean, found.low, found.high) == pytest.approx((equal["rho"], equal["low"], equal["high"]))


@pytest.mark.parametrize("view", predictors.VIEWS)
def test_picture_and_words_agree_and_every_training_is_drawn_once(known, parts, view):
    picture, _, words = parts
    fig, said = picture(view=view, **FIRST), words(view=view, **FIRST)
    rho = predictors.found(known, "drift/weights", "old text", view)
    assert f"{rho.mean:.2f}" in fig.layout.title.text and f"{rho.mean:.2f}" in said and view in said
    alone = 3 if view == "within methods" else 0  # signed-sft has three trainings: too few to compare
    assert sum(len(trace.x) for trace in fig.data) == len(known) - alone and said.startswith(f"{len(known) - alone} ")
    assert len(fig.data) == len(predictors.SPEEDS)


def test_too_few_trainings_or_a_constant_have_no_correlation(parts):
    picture, _, words = parts
    for change in ({"method": "signed-sft"}, {"predictor": "rate x steps"}, {"method": "dpo-alone", "learned": 0.6}):
        asked = {**FIRST, "view": "at equal rate", **change}
        assert "too few" in words(**asked) and "too few" in picture(**asked).layout.title.text


def test_few_groups_are_said_to_be_few(parts):
    _, _, words = parts
    assert "too narrow" in words(**{**FIRST, "view": "all trainings", "method": "dpo-alone"})
    assert "too narrow" not in words(**{**FIRST, "view": "all trainings"})


def test_figures_and_table_hold_every_predictor(known):
    views = {"at equal skill": forgetting.at_equal_skill(known)}
    fig = predictors.forest(views)
    assert [len(trace.x) for trace in fig.data] == [len(predictors.NAMES)] * len(predictors.OUTCOMES)
    rows = predictors.in_numbers(views)
    assert len(rows) == len(predictors.NAMES) * len(predictors.OUTCOMES) and rows["predictor"].notna().all()
    ahead = predictors.razor_ahead(known)
    assert len(ahead) == 2 * len(predictors.RIVALS) * len(predictors.OUTCOMES)
    bars = predictors.ahead_figure(ahead).data
    assert [bar.y[0] for bar in bars] == [v.mean for (_, outcome, _), v in ahead.items() if outcome == "old text"]

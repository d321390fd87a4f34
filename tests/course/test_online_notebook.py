"""What notebook 08 draws and says is what the stored runs have."""

import json
import math

import pytest

from uftlab.course import online
from uftlab.plots.widgets import Folded
from uftlab.study import dial, overoptimisation, questions
from uftlab.study.results import interval

PLACE = {"way": "rloo", "refresh": 1, "over": "kl"}


def ends(way, refresh, name):
    runs = [run["points"] for run in dial.stored() if (run["way"], run["refresh"]) == (way, refresh)]
    return [points[-1][name] for points in runs]


@pytest.mark.parametrize("way", dial.WAYS)
@pytest.mark.parametrize("refresh", dial.REFRESHES)
def test_the_dial_draws_the_stored_means_on_the_way_and_at_the_end(way, refresh):
    fig = online.picture(way, refresh, "kl")
    proxy, proxy_bars, true, true_bars = fig.data
    stored = (dial.ONCE.get(way, way) if refresh == dial.STEPS else way), refresh
    for line, bars, name in ((proxy, proxy_bars, "proxy"), (true, true_bars, "true")):
        mean = sum(ends(*stored, name)) / len(ends(*stored, name))
        assert line.y[-1] == pytest.approx(mean)
        assert list(bars.y)[dial.REFRESHES.index(refresh)] == pytest.approx(mean)
    kl = ends(*stored, "kl")
    assert list(true.x)[-1] == pytest.approx(math.sqrt(sum(kl) / len(kl)))
    assert min(true.x) >= 0 and max(true.x) < fig.layout.xaxis.range[1]


def test_over_steps_the_axis_has_the_steps():
    assert list(online.picture("una", 1, "steps").data[0].x) == [0, *dial.AT]


def test_the_words_have_the_changes_of_both_scores_and_the_best_step():
    said = online.words(**PLACE)
    for name in online.SAYS:
        assert dial.change(online.frame(), "rloo", 1, name).told() in said
    true = dial.curve(online.frame(), "rloo", 1, "true")
    assert f"highest after step {true.loc[true['mean'].idxmax(), 'step']:.0f}:" in said


def test_the_table_of_cures_has_each_run_once():
    table = online.cures()
    assert len(table) == len(dial.WAYS) * len(dial.REFRESHES) - len(dial.ONCE)
    assert not table.duplicated(["what holds the policy", "samples drawn"]).any()


def test_what_was_lost_is_last_minus_first_over_worlds():
    runs = [r["points"] for r in json.loads(overoptimisation.STORED.read_text())["runs"] if r["beta"] == 0]
    assert online.change_of(0.0, "true") == interval([p[-1]["true"] - p[0]["true"] for p in runs])


def test_the_doctor_names_over_optimisation_where_nothing_holds_the_policy():
    reports = online.reports()
    named = {name: [finding.name for finding in report.findings] for name, report in reports.items()}
    assert "over-optimisation" in named["RLOO, β = 0"] and "over-optimisation" not in named["RLOO, β = 0.1"]


def test_the_tests_of_a_question_are_those_of_its_page():
    found = online.answered("on_policy")
    row = found.loc[("own-signed minus given-signed", "instruction/both")]
    page = (questions.RESULTS.parent.parent / "docs" / "questions" / "on_policy.md").read_text()
    assert f"| {row['mean']:+.3f} | {row['low']:+.3f} to {row['high']:+.3f} |" in page and row["verdict"] == "lower"
    contrasts = [contrast for pair in online.FACTORS.values() for contrast in pair]
    fig = online.contrasts_figure(found, contrasts, online.KEPT, "title")
    drawn = [x for trace in fig.data if trace.xaxis == "x" and trace.x is not None for x in trace.x if x is not None]
    assert sorted(drawn) == pytest.approx(sorted(found.loc[(c, "instruction/both"), "mean"] for c in contrasts))


def test_without_stored_trials_self_distillation_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(online, "answered", lambda question: None)
    online.show_distillation()
    said = online.guess_about_distillation()
    assert isinstance(said, Folded) and online.NOT_YET in said and capsys.readouterr().out == ""


def test_with_trials_self_distillation_has_a_question_a_figure_and_its_answer(monkeypatch, capsys):
    """Trials of another method stand in for those that are being run."""
    lent = {"sdft": "given-signed", "cue-sft": "given-accepted"}
    stored = online.trials_of_questions()
    made = [{**t, "method": new} for new, old in lent.items() for t in stored if t["method"] == old]
    kept = [t for t in stored if t["method"] not in lent]
    monkeypatch.setattr(online, "trials_of_questions", lambda: [*kept, *made])
    online.tests_of.cache_clear()
    try:
        asked = online.guess_about_distillation(headless=True)
        online.show_distillation()
    finally:
        online.tests_of.cache_clear()
    assert "How much old text" in asked and "<details>" in asked
    assert "sdft − cue-sft" in capsys.readouterr().out


def test_the_live_training_has_both_ends(monkeypatch):
    monkeypatch.setattr(dial, "held_out_prompts", lambda world: overoptimisation.held_out_prompts(0)[:10])
    said = []
    runs = online.live("smoke", said.append)
    assert list(runs) == ["drawn in every step", "drawn once"] and len(said) == 1
    assert all([point["step"] for point in points] == [0, 2, 4] for points in runs.values())
    assert runs["drawn in every step"][-1] != runs["drawn once"][-1]
    assert len(online.live_figure(runs).data) == 4

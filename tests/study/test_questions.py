"""The three questions: the plan is older than their trials, the code does what it says, answers follow verdicts."""

import re
from datetime import datetime

import pytest
from history import committed

from uftlab.errors import InputError
from uftlab.files import PACKAGE
from uftlab.reports import questions as pages
from uftlab.study import questions, results
from uftlab.study.trials import DRAWS
from uftlab.training.catalogue import all_methods

ROOT = PACKAGE.parent
PLAN = ROOT / "docs" / "questions" / "plan.md"


def sections():
    return dict(zip(questions.QUESTIONS, re.split(r"^## \d\. ", PLAN.read_text(), flags=re.M)[1:], strict=True))


@pytest.mark.parametrize("name", questions.QUESTIONS)
def test_the_code_does_what_the_plan_says(name):
    question, text = questions.QUESTIONS[name], sections()[name]
    assert all(f"`{method}`" in text for method in question.methods)
    assert all(f"`{outcome}`" in text for outcome in question.outcomes)
    counted = {12: "twelve tests", 6: "six tests"}
    assert counted[len(question.tests) * len(question.outcomes)] in text.lower()
    assert all({method, minus} <= set(question.methods) for method, minus, _ in question.tests)
    assert f"({name}.md)" in PLAN.read_text()


def test_every_method_is_registered():
    named = {method for question in questions.QUESTIONS.values() for method in question.methods}
    assert named <= all_methods().keys()


def test_the_draws_of_the_worlds_hang_together_and_are_equally_many():
    """Without a shared draw between worlds, an interval could not tell a world from a draw."""
    of_world = {world: set(questions.draws_of(world)) for world in questions.WORLDS}
    assert all(len(draws) == questions.EACH for draws in of_world.values())
    reached, seen = {0}, set()
    while reached - seen:
        seen |= reached
        reached |= {draw for draws in of_world.values() if draws & reached for draw in draws}
    assert reached == set(range(DRAWS))
    counts = [sum(draw in draws for draws in of_world.values()) for draw in range(DRAWS)]
    assert len(set(counts)) == 1


def test_an_unknown_question_is_refused():
    with pytest.raises(InputError, match="be one of on_policy, entropy, self_distillation"):
        questions.question_named("why")


def row(comparison, metric, verdict):
    mean = {"higher": 0.1, "lower": -0.1}.get(verdict, 0.0)
    return {"comparison": comparison, "metric": metric, "mean": mean, "low": mean - 0.05, "high": mean + 0.05,
            "verdict": verdict}  # fmt: skip


@pytest.mark.parametrize(
    ("own", "down", "expected"),
    [
        (("lower", "lower"), ("not settled", "not settled"), ("On-policy data keeps more", "not settled to keep")),
        (("higher", "higher"), ("lower", "lower"), ("On-policy data keeps less", "The negative gradient keeps more")),
        (("lower", "not settled"), ("higher", "lower"), ("is not settled in both settings", "keeps more; ")),
    ],
)
def test_the_answer_on_policy_follows_the_verdicts(own, down, expected):
    """The verdicts are of old text lost, where less is better."""
    contrasts = ("own-accepted minus given-accepted", "own-signed minus given-signed")
    pushes = ("given-signed minus given-accepted", "own-signed minus own-accepted")
    rows = [row(c, "retention/lost", v) for c, v in zip((*contrasts, *pushes), (*own, *down), strict=True)]
    told = " ".join(pages.ANSWERS["on_policy"](rows)[:2])
    assert expected[0] in told and (expected[1] in told or "keeps less; own-signed − own-accepted keeps more" in told)


def test_losing_old_text_and_telling_more_truth_cancel():
    rows = [row("a minus b", "retention/lost", "higher"), row("a minus b", "truth/cued", "higher")]
    assert pages._kept(rows, "a minus b", ("retention/lost", "truth/cued")) == 0
    assert pages._kept(rows, "a minus b", ("truth/cued",)) == 1
    assert pages._kept(rows, "a minus b", ("retention/lost",)) == -1


def test_the_answer_on_entropy_needs_the_control():
    def rows(control):
        return [
            row("eaft minus sft-full", "retention/lost", "lower"),
            row("eaft minus sft-full", "truth/myths", "lower"),
            row("eaft minus eaft-rolled", "retention/lost", control),
            row("eaft minus eaft-rolled", "truth/myths", control),
        ]

    assert "keeps old text and keeps myths" in pages.ANSWERS["entropy"](rows("lower"))[0]
    told = " ".join(pages.ANSWERS["entropy"](rows("not settled")))
    assert "EAFT keeps more old text than SFT" in told and "need not be the reason" in told


def test_the_answer_on_self_distillation_needs_both_contrasts():
    def told(once, shown):
        rows = [row("sdft minus cue-sft", "retention/lost", once), row("sdft minus sft-full", "retention/lost", shown)]
        return pages.ANSWERS["self_distillation"](rows)[0]

    assert "forgets less**, and it teaches no less" in told("lower", "lower")
    assert "rows may be the reason" in told("not settled", "lower")
    assert "forgets more than cue-sft" in told("higher", "lower")
    assert "is not settled" in told("not settled", "not settled")


@pytest.fixture(scope="module")
def stored():
    if not (questions.STORED / "trials").is_dir():
        pytest.skip("the questions were not run")
    return results.load(questions.STORED)


def test_the_plan_was_committed_before_the_first_trial_of_tuning(stored):
    first = min(datetime.fromisoformat(t["measured"]) for t in (*stored, *results.load(questions.SWEEP)))
    assert committed(PLAN) < first


def test_every_stored_page_is_made_from_the_trials(stored, tmp_path):
    made = pages.write_pages(tmp_path)
    assert made
    for path in made:
        assert path.read_text() == (ROOT / "docs" / "questions" / path.name).read_text()


def test_all_planned_trials_are_there(stored):
    have = {(t["method"], t["seed"], t["draw"]) for t in stored}
    done = {t["method"] for t in stored}
    for question in questions.QUESTIONS.values():
        if set(question.methods) <= done:
            wanted = {(t.method, t.seed, t.draw) for t in questions.trials(question)}
            assert wanted <= have

"""Every planted mistake of every exercise is called by its name; right answers pass; nothing is raised at a reader."""

import importlib
import pkgutil

import pytest
import torch
from scipy import stats

from uftlab.course import bandit, checks, exercises
from uftlab.course.exercises.forgetting import PAIRED_HALF_WIDTH
from uftlab.course.exercises.implicit_reward import OPTIMUM, TOKEN_REWARD
from uftlab.course.exercises.reward_margins import MARGIN

NAMES = [module.name for module in pkgutil.iter_modules(exercises.__path__)]
MODULES = [importlib.import_module(f"uftlab.course.exercises.{name}") for name in NAMES]
EXERCISES = [
    pytest.param(thing, id=f"{module.__name__.rpartition('.')[2]} {name}")
    for module in MODULES
    for name, thing in vars(module).items()
    if isinstance(thing, checks.Exercise)
]
MISTAKES = [
    pytest.param(param.values[0], mistake, rule, id=f"{param.id}: {mistake.name}")
    for param in EXERCISES
    for mistake in param.values[0].mistakes
    for rule in (mistake.rule, *mistake.also)
]


def _by_hand(reference_probs, rewards, beta):
    tilted = reference_probs * torch.exp(rewards / beta)
    return tilted / tilted.sum()


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [
        (OPTIMUM, _by_hand),
        (OPTIMUM, bandit.optimum),
        (OPTIMUM, lambda p, r, beta: _by_hand(p, r, beta).tolist()),
        (TOKEN_REWARD, lambda p, q, beta: beta * (p.sum() - q.sum())),
        (TOKEN_REWARD, lambda p, q, beta: float(beta * (p - q).sum())),
    ],
)
def test_a_right_answer_passes(exercise, answer):
    assert exercise.check(answer).verdict == "right"


@pytest.mark.parametrize("exercise", EXERCISES)
def test_solutions_stand_in_for_the_answer(exercise):
    assert exercise.check(None, solutions=True).verdict == "right"


@pytest.mark.parametrize(("exercise", "mistake", "rule"), MISTAKES)
def test_each_mistake_is_named_with_a_hint(exercise, mistake, rule):
    result = exercise.check(rule)
    assert not result
    assert result.message == f"It looks as if you {mistake.name}."
    assert result.hint == mistake.hint


@pytest.mark.parametrize("exercise", EXERCISES)
def test_at_least_two_mistakes_are_known_and_no_two_rules_agree_on_all_cases(exercise):
    assert len(exercise.mistakes) >= 2
    rules = [exercise.right, *(rule for mistake in exercise.mistakes for rule in (mistake.rule, *mistake.also))]
    given = [[torch.as_tensor(rule(*case), dtype=torch.float64) for case in exercise.cases] for rule in rules]
    for i, one in enumerate(given):
        assert not any(checks._agree(one, other) for other in given[i + 1 :])


def _untouched(*_):
    raise NotImplementedError


@pytest.mark.parametrize("answer", [None, ..., _untouched, lambda *_: None, lambda *_: ...])
@pytest.mark.parametrize("exercise", EXERCISES)
def test_an_untouched_exercise_is_not_yet(exercise, answer):
    result = exercise.check(answer)
    assert result.verdict == "not yet" and not result


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda p, r, beta: p / 0, "differ"),
        (lambda p, r, beta: eval("no_such_name"), "NameError"),
        (lambda p, r: p, "TypeError"),
        (lambda p, r, beta: "red", "returned a str"),
        (lambda p, r, beta: p.sum(), "shape"),
        (lambda p, r, beta: p, "differ"),
        (0.5, "function was expected"),
    ],
)
def test_anything_else_is_explained_and_never_raises(answer, says):
    result = OPTIMUM.check(answer)
    assert result.verdict == "not right"
    assert says in str(result)


def test_an_answer_cannot_change_the_cases():
    def greedy(p, r, beta):
        r.zero_()
        return p

    OPTIMUM.check(greedy)
    assert OPTIMUM.check(_by_hand)


def test_html_says_it_in_words_and_escapes_what_the_reader_wrote():
    result = OPTIMUM.check(lambda p, r, beta: (_ for _ in ()).throw(ValueError("<b>")))
    shown = result._repr_html_()
    assert "Not right." in shown and "&lt;b&gt;" in shown and 'role="status"' in shown
    assert "Hint" in OPTIMUM.check(lambda p, r, beta: p)._repr_html_()
    assert str(result) == repr(result)


def test_the_hint_shows_a_case_that_is_wrong_with_the_brackets_of_its_rows():
    table = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    exercise = checks.Exercise("", lambda x: x.mean(), (), ((torch.ones(2, 2),), (table,)))
    hint = exercise.check(lambda x: 1.0).hint
    assert "[[1, 0], [1, 1]]" in hint and "it should be 0.75; got 1" in hint


def _scipy_unpaired(equal_var):
    def half_width(a, b):
        ends = stats.ttest_ind(a.numpy(), b.numpy(), equal_var=equal_var).confidence_interval()
        return (ends.high - ends.low) / 2

    return half_width


@pytest.mark.parametrize("equal_var", [True, False], ids=["Student", "Welch"])
def test_the_unpaired_intervals_of_scipy_are_named(equal_var):
    assert "interval of unpaired samples" in PAIRED_HALF_WIDTH.check(_scipy_unpaired(equal_var)).message


def test_of_two_results_the_order_and_the_missing_one_are_named_and_other_shapes_get_the_hint_of_the_exercise():
    def both(pc, pr, rc, rr, beta):
        margins = beta * ((pc - rc) - (pr - rr))
        return margins, (margins > 0).double()

    def means(*case):
        return tuple(own.mean() for own in both(*case))

    assert MARGIN.check(means)
    assert "swapped the two results" in MARGIN.check(lambda *case: means(*case)[::-1]).message
    assert "returned the mean margin alone" in MARGIN.check(lambda *case: means(*case)[0]).message
    for wrong in (lambda *case: both(*case)[0], lambda *case: (both(*case)[0], means(*case)[1]), lambda *case: [()]):
        assert MARGIN.check(wrong).hint == MARGIN.shape

"""Every planted mistake is called by its name; right answers pass; nothing but strictness raises."""

import json
import re
from pathlib import Path

import pytest
import torch

from uftlab import bandit, checks

EXERCISES = {
    "optimum": (checks.OPTIMUM, checks.check_optimum),
    "token reward": (checks.TOKEN_REWARD, checks.check_token_reward),
}
MISTAKES = [
    pytest.param(exercise, mistake, id=f"{name}: {mistake.name}")
    for name, (exercise, _) in EXERCISES.items()
    for mistake in exercise.mistakes
]


def _by_hand(reference_probs, rewards, beta):
    tilted = reference_probs * torch.exp(rewards / beta)
    return tilted / tilted.sum()


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (checks.check_optimum, _by_hand),
        (checks.check_optimum, bandit.optimum),
        (checks.check_optimum, lambda p, r, beta: _by_hand(p, r, beta).tolist()),
        (checks.check_token_reward, lambda p, q, beta: beta * (p.sum() - q.sum())),
        (checks.check_token_reward, lambda p, q, beta: float(beta * (p - q).sum())),
    ],
)
def test_a_right_answer_passes_strictly_too(check, answer):
    assert check(answer, strict=True)
    assert check(answer).verdict == "right"


@pytest.mark.parametrize(("exercise", "mistake"), MISTAKES)
def test_each_mistake_is_named_with_a_hint(exercise, mistake):
    result = exercise.check(mistake.rule)
    assert not result
    assert result.message == f"It looks as if you {mistake.name}."
    assert result.hint == mistake.hint
    with pytest.raises(checks.WrongAnswerError, match=r"It looks as if you"):
        exercise.check(mistake.rule, strict=True)


@pytest.mark.parametrize("exercise", [checks.OPTIMUM, checks.TOKEN_REWARD])
def test_no_two_rules_agree_on_all_cases(exercise):
    rules = [exercise.right, *(mistake.rule for mistake in exercise.mistakes)]
    given = [[torch.as_tensor(rule(*case)) for case in exercise.cases] for rule in rules]
    for i, one in enumerate(given):
        assert not any(checks._agree(one, other) for other in given[i + 1 :])


def _untouched(*_):
    raise NotImplementedError


@pytest.mark.parametrize("answer", [None, ..., _untouched, lambda *_: None, lambda *_: ...])
@pytest.mark.parametrize("check", [checks.check_optimum, checks.check_token_reward])
def test_an_untouched_exercise_is_not_yet(check, answer):
    result = check(answer)
    assert result.verdict == "not yet" and not result
    with pytest.raises(checks.WrongAnswerError):
        check(answer, strict=True)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda p, r, beta: p / 0, "differ"),
        (lambda p, r, beta: undefined_name, "NameError"),
        (lambda p, r: p, "TypeError"),
        (lambda p, r, beta: "red", "returned a str"),
        (lambda p, r, beta: p.sum(), "shape"),
        (lambda p, r, beta: p, "differ"),
        (0.5, "function was expected"),
    ],
)
def test_anything_else_is_explained_and_never_raises(answer, says):
    result = checks.check_optimum(answer)
    assert result.verdict == "not right"
    assert says in str(result)


def test_an_answer_cannot_change_the_cases():
    def greedy(p, r, beta):
        r.zero_()
        return p

    checks.check_optimum(greedy)
    assert checks.check_optimum(_by_hand)


def test_html_says_it_in_words_and_escapes_what_the_reader_wrote():
    result = checks.check_optimum(lambda p, r, beta: (_ for _ in ()).throw(ValueError("<b>")))
    shown = result._repr_html_()
    assert "Not right." in shown and "&lt;b&gt;" in shown and 'role="status"' in shown
    assert "Hint" in checks.check_optimum(lambda p, r, beta: p)._repr_html_()
    assert str(result) == repr(result)


@pytest.mark.parametrize(("exercise", "function"), [("1", "my_optimum"), ("2", "my_reward")])
def test_the_folded_solutions_of_notebook_01_are_right(exercise, function):
    notebook = json.loads((Path(__file__).parents[1] / "notebooks/01_implicit_reward.ipynb").read_text("utf-8"))
    cell = next(c for c in notebook["cells"] if c["id"] == f"exercise-{exercise}")
    solution = re.search(r"<details>.*?```python\n(.*?)```", "".join(cell["source"]), re.DOTALL).group(1)
    scope = {"torch": torch}
    exec(solution, scope)
    check = {"1": checks.check_optimum, "2": checks.check_token_reward}[exercise]
    assert check(scope[function], strict=True)

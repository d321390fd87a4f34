"""Notebook 00: its picture, its links and routes, and the quiz."""

import re

import pytest

from uftlab.course import quiz, start
from uftlab.course.notebooks import NOTEBOOKS
from uftlab.course.paper import parts_of_the_gain
from uftlab.losses.rewards import ceiling
from uftlab.study.comparisons import holm


def test_every_link_leads_somewhere_and_missing_notebooks_are_left_out():
    links = re.findall(r'href="([^"]+)"', start.where_to_go() + start.route("One hour") + start.route("Three hours"))
    assert len(links) > 12
    assert [link for link in links if not (NOTEBOOKS / link).is_file()] == []


def test_every_notebook_answers_a_question():
    said = start.where_to_go()
    for path in NOTEBOOKS.glob("*.ipynb"):
        assert path.stem == "00_start" or f'"{path.name}"' in said


@pytest.mark.parametrize(("name", "most"), [("One hour", 60), ("Three hours", 180)])
def test_a_route_keeps_its_promise(name, most):
    total = sum(minutes for _, _, minutes in start.routes()[name])
    assert most - 30 <= total <= most
    assert f"{name}: {total} minutes" in start.route(name)


def test_the_picture_joins_demonstrations_to_two_losses():
    fig = start.flow()
    words = " ".join(a.text for a in fig.layout.annotations)
    for name in ("demonstrations", "comparisons", "scores", "SFT", "reward model", "DPO", "UFT", "the model"):
        assert name in words
    arrows = [a for a in fig.layout.annotations if a.showarrow]
    assert len(arrows) == 5 + 4 and fig.layout.title.text


def test_a_quiz_has_ten_questions_with_explanations():
    assert len(quiz.QUESTIONS) == 10
    for question in quiz.QUESTIONS:
        assert question.answer in question.options and len(set(question.options)) >= 2 and question.because
        assert list(NOTEBOOKS.glob(f"{question.notebook}_*.ipynb"))


def test_the_quiz_counts_what_was_right():
    made = quiz.quiz()
    made.boxes[0].buttons.value = quiz.QUESTIONS[0].answer
    wrong = next(option for option in quiz.QUESTIONS[1].options if option != quiz.QUESTIONS[1].answer)
    made.boxes[1].buttons.value = wrong
    assert made.score.text == "1 right of 2 answered; 10 questions in all."


def test_the_static_twin_has_every_question_and_a_folded_answer():
    page = quiz.quiz(headless=True)
    assert page.count("<details>") == 10 and all(f"{n}. " in page for n in range(1, 11))


def test_numbers_in_the_quiz_are_right():
    import torch

    asked = {question.asked: question.answer for question in quiz.QUESTIONS}
    assert asked[next(a for a in asked if "twelve" in a)] == f"no, it becomes {holm([0.01] + [0.5] * 11)[0]:.2f}"
    top = ceiling(torch.tensor(-50.0), 0.01).item()
    assert asked[next(a for a in asked if "−50" in a)] == f"no, at most {top:.2f}"
    parts = parts_of_the_gain("ifeval")
    assert f"{sum(parts.values()):.1f} points" in next(a for a in asked if "19.4" in a)
    assert round(100 * parts["what the second stage lost"] / sum(parts.values())) == 15

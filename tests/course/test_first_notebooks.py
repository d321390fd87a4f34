"""Notebooks 01 to 03 say what a newcomer needs: words before their use, three sentences, axes and numbers as drawn."""

import re

import nbformat
import pytest
import torch

from uftlab.course.notebooks import explorer_of, notebook_paths
from uftlab.objectives import curves

FIRST = ("01", "02", "03")


def cells_of(number):
    return nbformat.read(notebook_paths(number)[0], as_version=4).cells


def first_with(word, number):
    """The id of the first cell that has a word."""
    return next((cell["id"] for cell in cells_of(number) if re.search(rf"\b{word}", cell.source)), None)


@pytest.mark.parametrize("number", FIRST)
def test_a_summary_begins_with_three_sentences_to_remember(number):
    summary = next(cell.source for cell in cells_of(number) if cell["id"] == "summary")
    heading, items = summary.split("### Three sentences to remember\n\n")
    assert heading.startswith("## Summary") and len(heading.split()) < 15
    numbered = re.findall(r"^(\d)\. (.+?)(?=\n\d\. |\n\n|\Z)", items, re.M | re.S)
    assert [number for number, _ in numbered] == ["1", "2", "3"]
    for _, sentence in numbered:
        assert sentence.strip().endswith(".") and not re.search(r"\. [A-Z]", sentence)


def test_the_methods_of_notebook_2_are_named_before_they_are_used():
    assert first_with("KTO", "02") == first_with("BCO", "02") == first_with("MinorSFT", "02") == "family-words"
    assert first_with("DPO", "01") == "dpo" and first_with("DPO", "02") == "title"
    for later in ("[Ss]weep", "[Ss]eed", "followed and correct", "eighteen"):  # notebooks 03 and 04 explain them
        assert first_with(later, "02") is None


def test_the_list_of_all_losses_is_in_the_docs():
    assert "../docs/methods/losses.md" in next(c.source for c in cells_of("02") if c["id"] == "explore-reading")
    assert not any("fillna" in cell.source for cell in cells_of("02"))


def test_what_task_3_of_notebook_2_says_is_what_the_panels_show():
    """MinorSFT at beta 0.001: pulls within 3 % of SFT's, losses 86 against 2.5 and apart by a constant."""
    x = torch.linspace(-60, 40, 41, dtype=torch.float64)
    _, _, factor = curves.NORMALISATIONS
    minor = curves.family_curve(x, 1.0, 0.001, "cross-entropy", 0.0, factor, 16, -40.0)
    sft = curves.registered_curve("sft", x, tokens=16, reference_logps=-40.0)
    at = int(x.abs().argmin())
    assert int(minor.loss[at]) == 86 and sft.loss[at] == pytest.approx(2.5)
    assert ((minor.pull / sft.pull - 1).abs() < 0.035).all()
    apart = minor.loss - sft.loss
    assert float(apart.max() - apart.min()) < 0.12
    large = curves.family_curve(x, 1.0, 0.1, "cross-entropy", 0.0, factor, 16, -40.0)
    assert large.pull[0] / sft.pull[0] > 1.99 and large.pull[-1] / sft.pull[-1] < 0.05
    tasks = next(cell.source for cell in cells_of("02") if cell["id"] == "explore-tasks")
    assert "86\nagainst 2.5" in tasks.replace("\n   ", "\n") and "line above the figure" in tasks


@pytest.fixture(scope="module")
def bandit_explorer():
    return explorer_of(notebook_paths("01")[0], profile="smoke")


def test_f_moves_the_climb_and_not_the_probabilities(bandit_explorer):
    first = {name: control.value for name, control in bandit_explorer.controls.items()}
    assert first["f"] == 0.0 and bandit_explorer.controls["f"].description == "add f to all"
    still, moved = (bandit_explorer.picture(**first | {"f": f}) for f in (0.0, 2.5))
    for before, after in zip(still.data, moved.data, strict=True):
        if after.type == "bar":
            assert list(after.x) == pytest.approx(list(before.x))
        else:
            assert list(after.y) == pytest.approx([y + 2.5 for y in before.y])


def test_the_axis_of_the_objective_says_where_it_starts(bandit_explorer):
    first = {name: control.value for name, control in bandit_explorer.controls.items()}
    titles = [bandit_explorer.picture(**first | {"f": f}).layout.yaxis2.title.text for f in (0.0, 2.5)]
    assert titles[0] == "objective" and titles[1].startswith("objective<br>(the axis starts at 1.9")


@pytest.mark.parametrize("number", FIRST)
def test_torch_is_there_where_an_exercise_speaks_of_tensors(number):
    sources = [cell.source for cell in cells_of(number)]
    if any("tensor" in s or "torch." in s for s in sources):
        assert any(re.search(r"^import torch$", s, re.M) for s in sources)


@pytest.mark.parametrize("number", FIRST)
def test_tables_are_shown_with_their_text_on_the_left(number):
    """`texts.table` does it; a DataFrame as the last line of a cell has its text on the right."""
    for cell in cells_of(number):
        if cell.cell_type == "code":
            assert not re.search(r"\.round\(\d\)\s*(\.rename_axis\(.*\))?$", cell.source), cell["id"]
            assert not re.match(r"pd\.DataFrame", cell.source.splitlines()[-1]), cell["id"]

"""The paper's tables as typed in, the noise of a difference, and the explorer of notebook 11."""

import re

import nbformat
import pytest

from uftlab.course import paper
from uftlab.course.notebooks import notebook_paths
from uftlab.study import comparisons, crossed, results
from uftlab.study.results import Interval


@pytest.mark.parametrize(("name", "tasks"), [("new", paper.NEW_TASKS), ("old", paper.OLD_TASKS)])
def test_a_printed_average_is_the_mean_of_its_row_so_no_digit_was_mistyped(name, tasks):
    rows = paper.table(name)
    assert list(rows.index) == list(paper.MODELS)
    assert (rows[list(tasks)].mean(axis=1) - rows["average"]).abs().max() < 0.0051


def test_numbers_that_stand_in_two_tables_agree():
    new, old, mixing = paper.table("new"), paper.table("old"), paper.table("mixing")
    assert mixing.loc[20, ["ifeval", "truthful-qa"]].tolist() == [
        new.loc["UFT", "ifeval"],
        old.loc["UFT", "truthful-qa"],
    ]
    sft, grid, alone = paper.table("sft rates"), paper.table("uft grid"), paper.table("feedback alone")
    assert sft.loc[1e-4].tolist() == [new.loc["SFT", "average"], old.loc["SFT", "average"]]
    assert grid.loc[(3e-5, 0.01)].tolist() == [t.loc["UFT on demonstrations", "average"] for t in (new, old)]
    assert alone.loc["Mistral"].tolist() == paper.both_scores().loc["Mistral"].tolist()


def test_rows_and_shares_of_a_mixture():
    rows = paper.table("mixing")
    assert rows.loc[20, "share of instructions"] == 0.5 and rows.loc[260, "all rows, thousands"] == 280


def test_a_table_is_a_copy():
    mine = paper.table("new")
    mine.loc["SFT", "ifeval"] = 0.0
    assert paper.table("new").loc["SFT", "ifeval"] == 29.5


def test_the_noise_of_a_difference_by_hand():
    """50 and 50 of 100 questions: variance 25 + 25, half width 1.96 * sqrt(50) = 13.86."""
    found = paper.difference(50.0, 50.0, 100)
    assert found.high == pytest.approx(13.859, abs=1e-3) and found.verdict == "not settled" and found.p == 1
    assert paper.difference(50.0, 50.0, 100, together=0.5).high == pytest.approx(13.859 / 2**0.5, abs=1e-3)
    assert paper.difference(50.0, 50.0, 100, seed_spread=5.0).high == pytest.approx(13.859 * 2**0.5, abs=1e-3)


def test_two_models_that_agree_on_every_question_have_no_noise():
    assert paper.difference(40.0, 40.0, 100, together=1.0) == Interval(0.0, 0.0, 0.0, 1, 1.0)


def test_the_explorer_draws_every_model_but_one_and_says_what_is_clear():
    values = {name: control.value for name, control in paper.controls().items()}
    fig = paper.picture(**values)
    clear, unclear = fig.data
    assert sorted(clear.y) == ["Mistral", "UFT"] and len(clear.y) + len(unclear.y) == len(paper.MODELS) - 1
    assert dict(zip(clear.y, clear.x, strict=True))["UFT"] == pytest.approx(16.53)
    assert "2 of 6" in paper.words(**values) and "+10.8 to +22.2" in paper.words(**values)


def test_the_explorer_has_the_same_traces_where_nothing_is_clear():
    fig = paper.picture("truthful-qa", "UFT on demonstrations", 0.0, 5.0)
    assert [trace.type for trace in fig.data] == ["scatter", "scatter"] and not fig.data[0].y
    assert "within the noise" in paper.words("truthful-qa", "UFT on demonstrations", 0.0, 5.0)


def test_the_gain_has_two_parts_that_add_up():
    parts = paper.parts_of_the_gain("ifeval")
    assert sum(parts.values()) == pytest.approx(46.03 - 26.64)
    assert parts["what the second stage lost"] == pytest.approx(2.86)


def test_bars_of_the_ladder_are_the_papers_numbers():
    fig = paper.ladder()
    assert list(fig.data[0].y) == [23.22, 29.5, 26.64, 37.25, 46.03] and fig.layout.title.text


def test_numbers_in_the_text_of_the_notebook_are_of_the_papers_tables():
    """Numbers with two decimals in running text; what is computed from them is asserted in the notebook itself."""
    known = {f"{v:.2f}" for name in paper.TABLES for v in paper.table(name).to_numpy().ravel()}
    known |= {
        "1.08",
        "0.53",
        "1.96",
        "0.01",
        "52.39",
        "51.13",
    }  # computed there, an input, and later versions of the paper
    frame = crossed.table(results.load(results.RESULTS / "class"), results.load(crossed.STORED))
    ours = comparisons.closing(comparisons.primary(frame))  # of our study; a test of its own has it everywhere
    for cell in nbformat.read(notebook_paths("11")[0], as_version=4).cells:
        if cell.cell_type == "markdown" and not cell["id"].startswith("exercise"):
            text = re.sub(r"arXiv \d+\.\d+", "", " ".join(cell.source.split()))
            text = text.replace(ours, "")
            assert [n for n in re.findall(r"(?<![\d.])\d+\.\d\d(?!\d)", text) if n not in known] == [], cell["id"]

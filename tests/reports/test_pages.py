"""The page of the study pipelines: its numbers and sentences are those of the trials, stored or made up."""

import json
import re

import pytest
from made_up import made_up
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.files import write_atomically
from uftlab.reports import pages
from uftlab.study import comparisons, results
from uftlab.training.catalogue import METHODS, PIPELINE_METHODS, RECENT_METHODS

SHARED = ("base", "sft-then-dpo", "sft-then-una", "uft", "sft-plus-dpo")


@pytest.fixture(scope="module")
def trials():
    """Every method of the study on three seeds; those of before the recipes do not know of samples."""
    made = []
    for i, name in enumerate((*SHARED, *PIPELINE_METHODS)):
        more = {"sampled": 5120 + i, "extra_runs": 0} if name in PIPELINE_METHODS else {}
        made += [{**made_up(name, seed, 0.3 + 0.04 * i + 0.001 * seed * (i % 3)), **more} for seed in range(3)]
    return made


def lines_of(page):
    return [line for line in page.splitlines() if line.startswith("- ")]


def test_the_page_has_a_row_per_method_in_each_table_and_its_costs(trials):
    page = pages.page_beside(pages.PIPELINES, trials)
    for name in (*SHARED, *PIPELINE_METHODS):
        assert len(re.findall(rf"^\| \[?{name}[\]| ]", page, re.M)) == 2
    rloo = next(line for line in page.splitlines() if line.startswith("| [rloo]") and "12,800" in line)
    assert "| 5,134 |" in rloo
    old = next(line for line in page.splitlines() if line.startswith("| [uft]") and "12,800" in line)
    assert "| 4,800 | 0 | 0 |" in old  # absent in the trial: none


def test_every_comparison_named_beforehand_is_in_one_of_the_two_lists(trials):
    page = pages.page_beside(pages.PIPELINES, trials)
    settled, unsettled = (page.split(f"## What is {word}settled")[1].split("\n## ")[0] for word in ("", "not "))
    named = {f"{a} minus {b}" for a, b, _ in comparisons.PIPELINE_COMPARISONS if b != comparisons.ITSELF}
    rows = [r for r in comparisons.compare(results.tidy(trials)) if r["metric"] in pages.TOLD]
    rows = [r for r in rows if r["comparison"] in named]
    assert len(rows) == len(named) * len(pages.TOLD)
    assert len(lines_of(settled)) + len(lines_of(unsettled)) == len(rows)
    for row in rows:
        here = unsettled if row["verdict"] == "not settled" else settled
        assert comparisons.sentence(row).split(": ", 1)[1] in here


def test_comparisons_are_between_registered_methods_and_include_the_three_controls():
    named = {name for a, b, _ in comparisons.PIPELINE_COMPARISONS for name in (a, b)}
    assert set(PIPELINE_METHODS) <= named - {comparisons.ITSELF} <= {*METHODS, *PIPELINE_METHODS}
    assert {"uft", "sft-plus-dpo", "sft-then-dpo"} <= {b for _, b, _ in comparisons.PIPELINE_COMPARISONS}
    assert len(set(comparisons.PIPELINE_COMPARISONS)) == len(comparisons.PIPELINE_COMPARISONS)


def test_the_command_writes_the_page(trials, tmp_path):
    for number, trial in enumerate(trials):
        write_atomically(tmp_path / "trials" / f"{number}.json", json.dumps(trial))
    done = CliRunner().invoke(app, ["results", "--study", str(tmp_path), "--page", str(tmp_path / "page.md")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "page.md").read_text()
    assert page == pages.page_of(trials)
    assert "| [sft](" in page  # from the stored study, which these trials are compared with


def test_the_page_names_what_nobody_tuned(trials):
    assert "Not tuned" not in pages.page_beside(pages.PIPELINES, trials)
    page = pages.page_beside(
        pages.PIPELINES, [{**t, "tuned": t["method"] not in ("rloo", "sft-then-kto")} for t in trials]
    )
    assert "run with the tuned settings of another method: `rloo` (of `sft-then-una`)." in page


def test_the_committed_page_is_the_one_of_the_stored_trials():
    stored = results.load(results.RESULTS / "pipelines")
    assert {t["method"] for t in stored} == set(PIPELINE_METHODS) and {t["seed"] for t in stored} == set(range(5))
    page = (results.RESULTS.parents[1] / "docs" / "pipelines.md").read_text(encoding="utf-8")
    assert page == pages.page_of(stored)


def test_the_committed_page_of_recent_methods_is_the_one_of_the_stored_trials():
    stored = results.load(results.RESULTS / "recent")
    methods = {t["method"] for t in stored}
    assert methods <= set(RECENT_METHODS) and {(t["seed"], t["draw"]) for t in stored} == {
        (w, w % 4) for w in range(16)
    }
    assert len(stored) == 16 * len(methods) and all(t["tuned"] for t in stored)
    page = (results.RESULTS.parents[1] / "docs" / "recent.md").read_text(encoding="utf-8")
    assert page == pages.page_of(stored)

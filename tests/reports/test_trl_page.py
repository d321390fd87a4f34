"""docs/trl.md is what was measured and what the registry holds; nothing on it is left unsaid."""

import json
from pathlib import Path

import pytest

from uftlab.objectives.registry import OBJECTIVES
from uftlab.reports.trl import ABSENT, CLOSE, STORED, trl_page

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def stored():
    return json.loads(STORED.read_text())


def test_the_committed_page_is_what_was_measured_and_what_is_registered(stored):
    assert (DOCS / "trl.md").read_text() == trl_page(stored), "run `python benchmarks/trl_parity.py --page docs/trl.md`"


def test_every_objective_stands_on_one_side_or_beside_its_like(stored):
    page = trl_page(stored)
    assert all(f"[{name}](methods/{name}.md)" in page for name in OBJECTIVES)
    assert f"## Absent there ({len(set(OBJECTIVES) - {row['ours'] for row in stored['rows']})})" in page


def test_a_verdict_is_a_number_and_a_difference_is_explained(stored):
    for row in stored["rows"]:
        assert row["agrees"] == (row["value_away"] <= CLOSE and row["gradient_away"] <= CLOSE)
        assert row["agrees"] or (row["how"] and row["value_away"] > 1e-4)


def test_what_we_lack_has_a_word_and_no_word_is_of_something_else(stored):
    assert {(row["trainer"], row["loss"]) for row in stored["absent"]} == set(ABSENT)

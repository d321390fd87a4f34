"""The plan of the study is older than its results, and they were made under it."""

import re
from datetime import datetime
from importlib import metadata
from pathlib import Path

import pytest
from history import committed
from pinned import pins

from uftlab.files import PACKAGE
from uftlab.study import comparisons, maps, results, tuning
from uftlab.study.trials import DRAWS, PROFILES, TUNING_WORLD, plan_digest
from uftlab.training.methods import BETA_NATS, LEARNING_RATE

ROOT = PACKAGE.parent
PLAN = ROOT / "docs" / "plan.md"
STORED = ("class", "sweep", "map")


@pytest.fixture(scope="module")
def stored():
    """Trials of the stored studies that are there."""
    return [t for study in STORED for t in results.load(results.results_folder(study))]


def test_every_trial_was_made_under_the_plan_as_it_stands(stored):
    assert {t["plan"] for t in stored} == {plan_digest()}


def test_the_plan_was_committed_before_the_first_result(stored):
    assert committed(PLAN) < min(datetime.fromisoformat(t["measured"]) for t in stored)


def test_no_confirmatory_world_was_tuned_in_or_mapped():
    worlds = {t["seed"] for t in results.load(results.results_folder("class"))}
    assert worlds == set(range(16))
    assert not worlds & {TUNING_WORLD + draw for draw in range(DRAWS)}
    assert {t["split"] for t in results.load(results.results_folder("sweep"))} == {"validation"}


def test_the_code_does_what_the_plan_says():
    """Contrasts, outcomes, budget, grids and numbers of the plan are those of the code."""
    text = " ".join(PLAN.read_text().split())
    for method, minus, _ in comparisons.PRIMARY:
        assert f"| {method} − {minus} |" in text
    assert len(comparisons.PRIMARY) == 6 and all(f"`{name}`" in text for name in comparisons.OUTCOMES)
    assert f"{32 * PROFILES['class'].steps:,} completions" in text
    assert (LEARNING_RATE.low, LEARNING_RATE.high) == (4e-4, 1.2e-2) and "from 4e-4 to 1.2e-2" in text
    assert (BETA_NATS.low, BETA_NATS.high) == (1e-3, 10.0) and "from 0.001 to 10 nats" in text
    assert (tuning.FIRST, tuning.SECOND) == (12, 6) and "twelve points" in text and "six points in a box" in text
    assert set(re.findall(r"\| (E\d) \|", text)) == set(maps.EXPERIMENTS)


def test_the_page_of_the_study_is_made_from_the_stored_trials():
    from uftlab.reports.pages import page_of

    page = page_of(results.load(results.results_folder("class")))
    stored = (Path(ROOT) / "docs" / "results" / "study.md").read_text()
    if all(metadata.version(name) == pins()[name] for name in ("numpy", "pandas", "scipy")):
        assert stored == page
    number = r"(?<![\w.])-?\d+\.\d+"  # other versions of scipy may round the last digit to the other side
    assert re.sub(number, "", stored) == re.sub(number, "", page)
    pairs = zip(re.findall(number, stored), re.findall(number, page), strict=True)
    assert [(a, b) for a, b in pairs if abs(float(a) - float(b)) > 1.01 * 10.0 ** -len(a.partition(".")[2])] == []

"""The methods of 2025 and 2026 and their controls in a study: equal budgets, and what comes on top is counted."""

from dataclasses import replace

import pytest
from trials import TINY, WeightProbe, probe, random_base, trial_of

from uftlab.models.fisher import own_texts
from uftlab.study import cohort, trials
from uftlab.study.cohort import run_trial
from uftlab.training import recipes
from uftlab.training.catalogue import RECENT_METHODS
from uftlab.training.methods import default_settings, space

pytestmark = pytest.mark.usefixtures("quick_collections")

NAMES = [m.name for m in RECENT_METHODS.values() if {stage.recipe for stage in m.stages} == {"offline"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Each for eight steps from a random base, with made-up settings."""
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("recent")
    patch.setattr(cohort, "load_base", random_base)
    patch.setattr(cohort, "Evaluator", WeightProbe)
    patch.setattr(cohort, "measure", probe)
    patch.setattr(trials, "metric_names", lambda sizes: {"digest"})
    patch.setattr(recipes, "own_texts", lambda *args: own_texts(*args, count=8, longest=16))
    cohort.materials.cache_clear()
    profile = replace(TINY, steps=8)
    yield {name: run_trial(trial_of(name, profile=profile), folder) for name in ["sft-full", *NAMES]}
    patch.undo()
    cohort.materials.cache_clear()


def test_they_have_the_budget_of_the_study(made):
    assert {name: result["completions"] for name, result in made.items()} == dict.fromkeys(made, 256)
    assert {name for name, result in made.items() if result["extra_runs"] or result["sampled"]} == {"ewc"}
    assert {name for name in NAMES if made[name]["extra_forwards"] >= 256} == {"psft"}


def test_they_end_in_different_places_and_record_their_settings(made):
    digests = [result["metrics"]["digest"] for result in made.values()]
    assert len(set(digests)) == len(digests)
    for name in NAMES:
        assert set(default_settings(RECENT_METHODS[name])) <= set(made[name]["settings"])


@pytest.mark.parametrize("method", RECENT_METHODS.values(), ids=lambda m: m.name)
def test_the_sweep_varies_what_a_method_says(method):
    assert {dimension.name for dimension in space(method)[-1]} == set(method.tuned)
    assert method.group in ("recent", "question") and sum(stage.budget for stage in method.stages) == 1

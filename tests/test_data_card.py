"""What the data card says about the base models is what the stored trials and the worlds say."""

import itertools
import re
from pathlib import Path

import pytest

from uftlab.files import DATA
from uftlab.models.policies import load_base
from uftlab.study import results
from uftlab.world.instructions import MAX_WORDS, MIN_WORDS
from uftlab.world.world import World

CARD = (Path(DATA) / "README.md").read_text()
WORLDS = range(5)  # whose demonstrations are counted
METRICS = tuple(
    """
    plain/mc1 plain/mc2 truth/myths truth/rumours truth/cued
    instruction/strict instruction/both instruction/blind retention/excess
    """.split()
)
DEMONSTRATIONS = 2000  # of each world


def table_after(heading):
    """The cells of the first table below a heading of the card, without its head."""
    section = CARD.split(f"{heading}\n", 1)[1]
    lines = re.search(r"(^\|.*\n)+", section, re.M).group().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.fixture(scope="module")
def stored():
    """The base model's metrics: one value per world."""
    frame = results.tidy(results.load(results.results_folder("class")))
    frame = frame[frame["method"] == "base"].sort_values("seed")
    assert list(frame["seed"].unique()) == list(range(16))
    return {metric: group["value"].tolist() for metric, group in frame.groupby("metric")}


def test_what_the_base_knows_is_the_mean_and_interval_of_the_stored_trials(stored):
    rows = {metric.strip("`"): (mean, between) for _, mean, between, metric in table_after("## What the bases know")}
    assert set(rows) == set(METRICS)
    for metric, (mean, between) in rows.items():
        found = results.interval(stored[metric])
        assert mean == f"{found.mean:.3f}", metric
        assert between == f"{found.low:.3f} to {found.high:.3f}", metric


def test_the_length_histogram_is_that_of_the_worlds():
    words = [len(row["completion"].split()) for w in WORLDS for row in World(w).demonstrations(DEMONSTRATIONS)]
    bins = dict(table_after("## How long demonstrations are"))
    edges = [tuple(int(edge) for edge in bounds.split(" to ")) for bounds in bins]
    assert (edges[0][0], edges[-1][-1]) == (MIN_WORDS, MAX_WORDS)  # every length has one bin
    assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(edges))
    for (low, high), share in zip(edges, bins.values(), strict=True):
        assert share == f"{sum(low <= n <= high for n in words) / len(words):.1%}".replace("%", " %"), (low, high)
    assert f"{len(words):,} demonstrations" in CARD


def test_the_number_of_parameters_is_counted():
    assert f"{sum(p.numel() for p in load_base(0).parameters()):,} parameters" in CARD

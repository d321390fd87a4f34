"""A few mutated inputs for everything that reads; `python benchmarks/fuzz.py` tries thousands."""

from pathlib import Path

import fuzz
import pytest

# inputs of each target: those that are slow have few
COUNTS = {"rows": 90, "parquet": 60, "folders": 30, "configuration": 60, "command line": 30, "trials": 10}
COUNTS |= {"evaluations": 20, "settings": 20, "checkpoints": 6}


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_each_mutated_input_is_accepted_rightly_or_refused_with_one_error(target):
    found = [(seed, *fuzz.one(target, seed)) for seed in range(COUNTS[target])]
    assert [own for own in found if own[1] == "failed"] == []
    assert {outcome for _, outcome, _ in found} == {"accepted", "refused"}, "mutations that change nothing, or all"


def test_the_fuzzer_sees_what_it_looks_for(monkeypatch):
    def half(folder, rng):
        (folder / ".a.part").touch()

    def breaks(folder, rng):
        raise KeyError("x")

    def hangs(folder, rng):
        while True:
            pass

    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    for name, function in (("half", half), ("breaks", breaks), ("hangs", hangs)):
        monkeypatch.setitem(fuzz.TARGETS, name, function)
    kinds = [fuzz.one(name, 0) for name in ("half", "breaks", "hangs")]
    assert [outcome for outcome, _ in kinds] == ["failed"] * 3
    assert "left ['.a.part']" in kinds[0][1] and "KeyError: 'x'" in kinds[1][1] and "Hang" in kinds[2][1]


def test_nothing_of_the_fuzzer_lands_outside_its_folders():
    assert not [p for p in Path.cwd().glob("*") if p.name in ("a file", "page.md", "[", "a[")]

"""A method with the learning rate of another one: would the difference be there if tuning had chosen one rate?

    python -m uftlab.study.matched    trains what is missing for `docs/recent.md`, stores data/results/recent_matched

Tuning gives each method a rate of its own. So a difference between tuned methods may be one of rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from uftlab.study.comparisons import corrected, pairwise
from uftlab.study.results import RESULTS, tidy
from uftlab.study.trials import PROFILES, Trial, draw_of, frozen
from uftlab.training.settings import tuned_settings

STORED = RESULTS / "recent_matched"
PROFILE = replace(PROFILES["class"], name="matched")
OF_RECENT = (("l2-start", "sft-full"), ("sft-full", "l2-start"))
Pair = tuple[str, str]  # a method, and whose learning rate it has


def at_rate_of(name: str, other: str, world: int, draw: int) -> Trial:
    """A method of one stage in a world, with its own settings but the learning rate of another method."""
    (own,), (lent,) = tuned_settings(name, draw), tuned_settings(other, draw)
    settings = frozen([{**own, "learning_rate": lent["learning_rate"]}])
    return Trial(name, world, PROFILE, settings, curves=False, draw=draw)


def differences(
    pairs: Sequence[Pair], matched: Sequence[dict[str, Any]], stored: Sequence[dict[str, Any]], outcomes: Sequence[str]
) -> list[dict[str, Any]]:
    """What each method at the rate of another has more than that other: one family, as of `comparisons.primary`.

    Args:
        pairs: who runs at whose rate; `matched` their trials, `stored` those of the others with tuned settings.
    """
    rows = []
    for name, other in pairs:
        both = [*(t for t in matched if t["method"] == name), *(t for t in stored if t["method"] == other)]
        rows += pairwise(tidy(both), [(name, other, "at the same learning rate")], outcomes)
    return corrected(rows, len(pairs) * len(outcomes))


def main() -> None:
    """Train what is missing; what is finished is not run again."""
    from uftlab.study.workers import run_trials

    wanted = [at_rate_of(name, other, world, draw_of(name, world)) for world in range(16) for name, other in OF_RECENT]
    for number, result in enumerate(run_trials(wanted, STORED), start=1):
        print(f"{number}/{len(wanted)}", result["method"], result["seed"], flush=True)


if __name__ == "__main__":
    main()

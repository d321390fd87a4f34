"""Equal care: twelve trials for every method, one rule written down before running, all trials kept.

The rule: on the validation creatures of a world that no result is reported from, choose the settings with the
largest `balance`, the smaller of (instruction/strict over its ceiling 1, truth/mc2 over what the base model
answers when asked for careful sources). A method that sees demonstrations alone learns nothing of the myths, so its
truth is noise: there the settings with the largest instruction/both win. Pipelines tune their last stage; stage one
is tuned as its own method.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from uftlab.evals.sizes import Sizes
from uftlab.files import write_atomically
from uftlab.study.results import balance
from uftlab.study.trials import PROFILES, TUNING_WORLD, Trial, with_earlier
from uftlab.training.methods import TUNED, Method, grid, method_named

PROFILE = replace(PROFILES["class"], name="sweep", sizes=Sizes(200, 200, 0, 100))


def rounds(names: Sequence[str]) -> list[list[str]]:
    """Methods of one stage first: those of several stages start from what was chosen for it."""
    tuned = [name for name in names if method_named(name).tuned]
    one = [name for name in tuned if len(method_named(name).stages) == 1]
    several = [name for name in tuned if name not in one]
    return [phase for phase in (one, several) if phase]


def trials(names: Sequence[str]) -> list[Trial]:
    """The base model and twelve settings of every method, on validation creatures, without curves."""
    wanted = [("base", {}), *((name, settings) for name in names for settings in grid(method_named(name)))]
    return [
        with_earlier(Trial(name, TUNING_WORLD, PROFILE, tuple(settings.items()), (), "validation", False))
        for name, settings in wanted
    ]


def worth(method: Method, metrics: dict[str, float], ceiling: float) -> float:
    """What the rule maximises for a method: balance, or instruction/both where only demonstrations are seen."""
    if all(stage.demonstrations == 1 for stage in method.stages):
        return metrics["instruction/both"]
    return balance(metrics, ceiling)


def choose(names: Sequence[str], folder: Path) -> list[str]:
    """Apply the rule to finished trials, update `data/tuned.json` and return one line per method."""
    stored = json.loads(TUNED.read_text())["settings"] if TUNED.is_file() else {}
    table: dict = {"rule": " ".join(str(__doc__).split()), "settings": stored}
    finished = [json.loads(t.path(folder).read_text()) for t in trials(names)]
    ceiling = finished[0]["metrics"]["truth/cued"]
    lines = []
    for name in names:
        own = [t for t in finished if t["method"] == name]
        worths = [worth(method_named(name), t["metrics"], ceiling) for t in own]
        best = own[worths.index(max(worths))]
        kept = {k: v for k, v in best["settings"].items() if k != "beta_nats"}
        table["settings"][name] = kept
        lines.append(f"{name}: {kept}, {max(worths):.3f}, the best of {len(own)} trials")
    write_atomically(TUNED, json.dumps(table, indent=1) + "\n")
    return lines

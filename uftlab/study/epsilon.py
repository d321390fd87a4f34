"""Is it the implicit reward, or the size of the gradient? Signed SFT at UFT's own settings, after the study was seen.

Tuning chose so small a beta that UFT's gradient is beta/2 times that of signed SFT, about 1e-5 of it. Adam divides by
the size of the gradient plus epsilon (1e-8). So it does not notice a factor, unless gradients become as small as
epsilon. Two controls tell the two apart, in the worlds of the study and with the learning rates of `uft`:

- "as it is": signed SFT at UFT's learning rate;
- "scaled": the same, its loss times beta/2. No reference, no beta in a sigmoid, no gate: only small gradients.

This was not in the plan: the question arose from its result.

    python -m uftlab.study.epsilon      runs both in sixteen worlds and stores data/results/epsilon (five minutes)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from uftlab.study.results import RESULTS, Interval, crossed_interval, load
from uftlab.study.trials import DRAWS, PROFILES, Trial, frozen
from uftlab.training.settings import tuned_settings

STORED = RESULTS / "epsilon"
PROFILE = replace(PROFILES["class"], name="epsilon")
WORLDS = range(16)
OUTCOMES = ("instruction/both", "truth/knowledge", "truth/cued", "retention/lost")


def trials() -> list[Trial]:
    """Both controls in all worlds, each with the tuning draw of its world."""
    made = []
    for seed in WORLDS:
        (own,) = tuned_settings("uft", seed % DRAWS)
        for scale in (1.0, own["beta"] / 2):
            settings = frozen([{"learning_rate": own["learning_rate"], "scale": float(f"{scale:.4g}")}])
            made.append(Trial("signed-sft", seed, PROFILE, settings, curves=False, draw=seed % DRAWS))
    return made


def differences(study: list[dict[str, Any]], controls: list[dict[str, Any]]) -> dict[tuple[str, str], Interval]:
    """UFT of the study minus each control ("as it is", "scaled"), paired by world, for each of `OUTCOMES`."""
    uft = {t["seed"]: t["metrics"] for t in study if t["method"] == "uft"}
    rows = [
        {
            "control": "as it is" if t["settings"]["scale"] == 1 else "scaled",
            "seed": t["seed"],
            "draw": t["draw"],
            **{name: uft[t["seed"]][name] - t["metrics"][name] for name in OUTCOMES},
        }
        for t in controls
        if t["seed"] in uft
    ]
    return {
        (str(control), name): crossed_interval(own[name].to_numpy(), own["seed"].to_numpy(), own["draw"].to_numpy())
        for control, own in pd.DataFrame(rows).groupby("control")
        for name in OUTCOMES
    }


def sentence(found: dict[tuple[str, str], Interval], control: str, outcome: str = OUTCOMES[0]) -> str:
    """One difference in words: "-0.0023 (-0.0046 to +0.0001)"."""
    return found[control, outcome].told("+.4f")


def stored() -> dict[tuple[str, str], Interval]:
    """`differences` of the stored study and controls."""
    return differences(load(RESULTS / "class"), load(STORED))


def main() -> None:
    """Run both controls; what is finished is not run again."""
    from uftlab.study.workers import run_trials

    for result in run_trials(trials(), STORED):
        print(result["seed"], result["settings"], result["metrics"]["instruction/both"], flush=True)


if __name__ == "__main__":
    main()

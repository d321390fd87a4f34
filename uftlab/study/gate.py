"""How much of UFT's gradient is the implicit reward's? The points of the map's experiment E3, read row by row.

The gradient of a row is w(r) grad log pi(y|x), with the gate w of the loss (`uftlab.losses.rewards`) and r = beta
(log pi - log pi_ref). It has two parts:

    w(r) = w(0) + (w(r) - w(0))

The first needs no reward: it is signed SFT's weight, the score minus 1/2, times a constant. The second is what the
implicit reward adds. `reward_share` compares their sizes. It starts at 0, because r is 0 at the start of training.

    python -m uftlab.study.gate      trains the ten points of E3 in world 1000, stores data/results/gate.json (a minute)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from uftlab.files import write_atomically
from uftlab.losses.rewards import cross_entropy_gate, implicit_reward, squared_error_gate
from uftlab.study import maps
from uftlab.study.results import RESULTS
from uftlab.study.trials import Trial

STORED = RESULTS / "gate.json"
GATES: dict[str, Callable[..., Tensor]] = {"uft": squared_error_gate, "uft-cross-entropy": cross_entropy_gate}
ROWS = 400  # of each table
POINTS = 4  # times during training at which the rows are read; the last is its end


def reward_share(
    rewards: Float[Tensor, "row"], scores: Float[Tensor, "row"], gate: Callable[..., Tensor] = squared_error_gate
) -> float:
    """Of the weight on grad log pi, the part that the implicit reward adds, in sizes.

    share = sum |w(r) - w(0)| / (sum |w(0)| + sum |w(r) - w(0)|), sums over rows

    0 where every reward is 0. 1/2 where the reward takes away all that the score gives: the gates are closed. More
    where rows are pushed back. beta cancels out. Score 1 and r = log 3, so s = 3/4: with cross-entropy w goes from 1/2
    to 1/4 and the share is 1/3; with squared error from 1/4 to 3/32, share 5/13.
    """
    fixed = gate(torch.zeros_like(rewards), scores, 1.0)
    added = (gate(rewards, scores, 1.0) - fixed).abs().sum().item()
    return added / (fixed.abs().sum().item() + added) if added > 0 else 0.0


def trials() -> list[Trial]:
    """The points of the map's E3 that have an implicit reward, in its first world."""
    return [trial for trial in maps.trials(["E3"], 1) if trial.method in GATES]


def measure(trial: Trial) -> dict[str, Any]:
    """Train a trial of one stage, and read on the way the implicit rewards of its training rows.

    Returns:
        method, nats, beta, and `points`: for each step and table (`rows`) the spread of the implicit reward (standard
        deviation over rows) and its share of the gradient.
    """
    from uftlab.study.cohort import materials, reader, tokens
    from uftlab.training.catalogue import method_named
    from uftlab.training.methods import plan
    from uftlab.training.stage_data import sources
    from uftlab.training.stages import Job, run

    own = materials(trial.seed, trial.profile, trial.split)
    ((stage, steps, settings),) = plan(method_named(trial.method), trial.profile.steps, trial.stage_settings())
    at = [round(steps * (number + 1) / POINTS) for number in range(POINTS)]
    job = Job(own.base, stage, own.tables, settings, steps, trial.seed * 10, None, own.references, frozenset(at))
    (trained,) = run([job], tokens())
    beta, points = trained.record.settings["beta"], []
    for name, examples in zip(("demonstrations", "feedback"), sources(stage, own.tables, tokens())[0], strict=True):
        rows = [completion for example in examples[:ROWS] for completion in example]
        scores = torch.tensor([row.score for row in rows])
        stack = reader(torch.stack([own.base, *(trained.snapshots[step] for step in at)]))
        reference, *policies = stack.logps([rows] * (1 + POINTS))
        for step, logps in zip(at, policies, strict=True):
            rewards = implicit_reward(logps, reference, beta)
            share = reward_share(rewards, scores, GATES[trial.method])
            points.append({"step": step, "rows": name, "spread": rewards.std().item(), "share": share})
    return {"method": trial.method, "nats": settings["beta_nats"], "beta": beta, "points": points}


def table(stored: dict[str, Any]) -> pd.DataFrame:
    """One row per method and strength: the spread of the reward and its share, at the end and over training.

    Columns: method, nats, beta, and for each table of rows its `spread`, its `share` at the end, and its `share, on
    average` over training (mean of the points).
    """
    rows = []
    for run in stored["runs"]:
        own = pd.DataFrame(run["points"])
        row: dict[str, Any] = {name: run[name] for name in ("method", "nats", "beta")}
        for name, part in own.groupby("rows"):
            last = part.loc[part["step"].idxmax()]
            row |= {f"{name}: spread": last["spread"], f"{name}: share": last["share"]}
            row[f"{name}: share, on average"] = part["share"].mean()
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Measure all points and store them, four significant digits."""
    torch.set_num_threads(1)
    own, runs = trials(), []
    for trial in own:
        found = measure(trial)
        for point in found["points"]:
            point |= {name: float(f"{point[name]:.4g}") for name in ("spread", "share")}
        runs.append(found)
        print(found["method"], found["nats"], found["points"][-1], flush=True)
    about = {"world": own[0].seed, "rows": ROWS, "runs": runs}
    write_atomically(STORED, json.dumps(about, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

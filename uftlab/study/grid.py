"""The paper's grid: UFT on demonstrations alone, learning rate x beta, in a few worlds and with what it misses.

The paper trains UFT on instruction data for each of four learning rates and four values of beta, one seed, and reports
an average. Here the same grid has several worlds, and SFT on summed log-probabilities beside it: the limit in which
beta has no effect. On a demonstration UFT's gradient is beta/4 times that of this SFT, as long as implicit scores are
near 1/2.

    python -m uftlab.study.grid      80 models in four worlds, stores data/results/grid.json (four minutes on one core)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import pandas as pd

from uftlab.files import rounded, write_atomically
from uftlab.study.results import RESULTS, interval
from uftlab.study.trials import DRAWS, PROFILES, TUNING_WORLD, Profile

STORED = RESULTS / "grid.json"
RATES = (2e-4, 7e-4, 2e-3, 6e-3)
STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # beta times the median -log pi_ref of a completion, in nats
STEPS = 100  # of 32 demonstrations: the budget of a first stage
LIMIT = "sft-sum"
WORLDS = range(TUNING_WORLD, TUNING_WORLD + DRAWS)
METRICS = ("instruction/both", "instruction/blind", "retention/lost", "truth/cued", "logratio/demonstration")
LOGGED = ("loss", "reward/demonstration", "logps/demonstration")


def points(rates: Sequence[float] = RATES, strengths: Sequence[float] = STRENGTHS) -> list[dict[str, Any]]:
    """What is trained: method, learning rate and strength in nats; `sft-sum` has no strength and comes once a rate."""
    grid = [{"method": "uft-demonstrations", "rate": rate, "nats": nats} for rate, nats in product(rates, strengths)]
    return grid + [{"method": LIMIT, "rate": rate, "nats": None} for rate in rates]


def run_points(
    wanted: Sequence[dict[str, Any]], world: int, profile: Profile, steps: int = STEPS
) -> list[dict[str, Any]]:
    """Train all points in one world, as one population, and measure them on its test creatures.

    Returns:
        for each point what it asked for, its `beta`, its light metrics, and `log`: what a logger shows of its training,
        each of `LOGGED` as a list beside `step`.
    """
    import torch

    from uftlab.evals.skills import measure
    from uftlab.study.cohort import materials, reader, tokens
    from uftlab.training.catalogue import method_named
    from uftlab.training.stages import Job, run

    own, jobs = materials(world, profile, "test"), []
    for point in wanted:
        strength = {} if point["nats"] is None else {"beta_nats": point["nats"]}
        settings = {"learning_rate": point["rate"], **strength}
        (stage,) = method_named(point["method"]).stages
        jobs.append(Job(own.base, stage, own.tables, settings, steps, world * 10, None, own.references))
    trained = run(jobs, tokens())
    found = measure([own.light] * len(jobs), reader(torch.stack([t.weights.to(own.base) for t in trained])))
    made = []
    for point, done, metrics in zip(wanted, trained, found, strict=True):
        entries = [entry for entry in done.record.history if "loss" in entry]
        log = {name: [entry[name] for entry in entries] for name in LOGGED if all(name in e for e in entries)}
        steps_of = [int(entry["step"]) for entry in entries]
        about = {"world": world, **point, "beta": done.record.settings.get("beta")}
        made.append({**about, **{name: metrics[name] for name in METRICS}, "log": {"step": steps_of, **log}})
    return made


def table(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per run, without its log."""
    return pd.DataFrame([{name: value for name, value in run.items() if name != "log"} for run in runs])


def cells(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean and interval over worlds of one metric for each rate and strength (NaN: `sft-sum`)."""
    rows = []
    for (rate, nats), own in frame.groupby(["rate", "nats"], dropna=False):
        rows.append({"rate": rate, "nats": nats, **asdict(interval(own.sort_values("world")[metric].to_numpy()))})
    return pd.DataFrame(rows)


def differences(frame: pd.DataFrame, metric: str, minus: float | None = None) -> pd.DataFrame:
    """Each strength minus another (None: `sft-sum`) at the same rate and in the same world: mean and interval."""
    wide = frame.assign(nats=frame["nats"].fillna(0.0)).pivot(index=["rate", "world"], columns="nats", values=metric)
    rows = []
    for nats in [strength for strength in wide if strength != (minus or 0.0)]:
        for rate, own in (wide[nats] - wide[minus or 0.0]).groupby("rate"):
            rows.append({"rate": rate, "nats": nats, **asdict(interval(own.to_numpy()))})
    return pd.DataFrame(rows)


def stored() -> list[dict[str, Any]]:
    """The runs of the stored grid."""
    return json.loads(STORED.read_text(encoding="utf-8"))["runs"]


def main() -> None:
    """Run all worlds and store them, four significant digits."""
    import torch

    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    for world in WORLDS:
        runs += run_points(points(), world, PROFILES["class"])
        print(f"world {world} done", flush=True)
    write_atomically(STORED, json.dumps(rounded({"steps": STEPS, "runs": runs}, 4), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

"""Trials as a study stores them, with numbers that are made up, for the tests of what is read from them."""

from uftlab.study import trials
from uftlab.study.results import HEADLINES, PIPELINES
from uftlab.training.catalogue import METHODS


def made_up(method, seed, strict=0.5, mc2=0.4, cued=0.8, **more):
    """A trial as the study stores it, with headline metrics near the given ones and a curve of two points."""
    metrics = dict.fromkeys(HEADLINES, 0.3 + 0.01 * seed) | {"instruction/blind": 0.3}
    metrics |= {"instruction/strict": strict, "truth/mc2": mc2, "truth/cued": cued, **more}
    stage = {"steps": 100, "settings": {"learning_rate": 1e-3}}
    point = {"instruction/strict": strict, "truth/mc2": mc2, "logratio/chosen": 1.0 + seed}
    point |= {"logratio/rejected": -2.0, "logratio/demonstration": 0.5}
    return {
        "schema": trials.SCHEMA,
        "method": method,
        "seed": seed,
        "profile": "class",
        "split": "test",
        "dials": {"instructed": 0.5},
        "steps": 200,
        "draw": 0,
        "stages": [
            {**stage, "metrics": {name: 0.9 * value for name, value in metrics.items()}},
            stage,
        ]
        * (method in PIPELINES),
        "settings": {"learning_rate": 1e-3},
        "metrics": metrics,
        "curves": [{"stage": 0, "step": 0, **point}, {"stage": 1, "step": 200, **point, "truth/mc2": mc2 + 0.1}],
        "completions": 12800,
        "extra_forwards": 4800,
        "wall_seconds": 20.5,
        "device": "x86_64 CPU, one thread",
        "versions": {"torch": "2.13.0"},
    }


def every_method():
    """Every method on three seeds, each method and seed with numbers of its own."""
    return [
        made_up(name, seed, strict=0.2 + 0.05 * i + 0.01 * seed * (i % 3), mc2=0.9 - 0.04 * i + 0.013 * seed)
        for i, name in enumerate(METHODS)
        for seed in range(3)
    ]


def values_of(summary, method, metric):
    row = summary[(summary["method"] == method) & (summary["metric"] == metric)].iloc[0]
    return row["mean"], row["high"] - row["mean"], row["mean"] - row["low"]

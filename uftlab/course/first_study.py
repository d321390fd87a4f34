"""What the first study got wrong: the seven points of its audit as measured again, data/results/first/audit.json."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pandas as pd

from uftlab.errors import InputError
from uftlab.study.results import RESULTS, Interval

LABELS = {"truth/mc1": "truth likeliest", "truth/mc2": "truth", "truth/cued": "cued truth", "plain/mc1": "plain facts"}


@cache
def _points() -> list[dict[str, Any]]:
    return json.loads((RESULTS / "first" / "audit.json").read_text(encoding="utf-8"))["points"]


def found(point: int, what: str) -> Interval:
    """One measured line of a point, counted from 1: a mean with its 95 % interval over worlds where it has one.

    Raises:
        InputError: for a line that the point does not have; the message lists those there are.
    """
    own = _points()[point - 1]
    rows = {row["what"]: row["ours"] for row in own["rows"]}
    if what not in rows:
        raise InputError("A line of the audit", f"be one of those of point {point}", what, f"Have: {list(rows)}")
    mean, *limits = rows[what]
    low, high = limits or (None, None)
    return Interval(mean, low, high, own["worlds"])


def distrust() -> pd.DataFrame:
    """Beliefs of the untrained base with some nats taken from its first choice: a row per number of nats.

    The columns are those of LABELS, means over sixteen worlds of the first edition; the index is in nats.
    """
    table = pd.DataFrame(_points()[1]["table"]).T
    table.index = table.index.astype(float).rename("nats")
    return table[list(LABELS)].rename(columns=LABELS)


def sentences() -> pd.DataFrame:
    """The thirteen sentences of the first README: comparison, metric, mean, p, and p after Holm's correction."""
    return pd.DataFrame(_points()[5]["sentences"])[["comparison", "metric", "mean", "p", "holm"]]

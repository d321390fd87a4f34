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
    return Interval(float(mean), low, high, own["worlds"])


def distrust() -> pd.DataFrame:
    """Beliefs of the base with some nats taken from its first choice: a row per number of nats.

    The columns are those of LABELS, means over sixteen worlds of the first edition; the index is in nats.
    """
    table = pd.DataFrame(_points()[1]["table"]).T
    table.index = table.index.astype(float).rename("nats")
    return table[list(LABELS)].rename(columns=LABELS)


def sentences() -> pd.DataFrame:
    """The thirteen sentences of the first README: comparison, metric, mean, p, and p after Holm's correction."""
    return pd.DataFrame(_points()[5]["sentences"])[["comparison", "metric", "mean", "p", "holm"]]


def beside_the_paper() -> pd.DataFrame:
    """Seven faults: what the paper shows of each, what our first study did, and how a reader could notice."""
    obeys = found(3, "obeys everything, names a wrong value, strict").mean
    edges, tuned = (found(5, what).mean for what in ("methods with a chosen setting on an edge", "methods tuned"))
    signed, distrust = found(1, "signed-sft − uft, truth"), found(2, "base, 1 nat off its first choice, truth").mean
    tries = [found(5, f"learning rates tried for {whom}").mean for whom in ("SFT", "methods with beta")]
    settled, kept = (
        found(6, what).mean
        for what in (
            "of these, settled at 95 % without correction",
            "settled after Holm's correction among the thirteen",
        )
    )
    rows = (
        (
            "a control was missing",
            "no plain mixture, no replay",
            "no signed SFT: its truth differs from UFT's by "
            f"{signed.mean:+.3f} [{signed.low:+.3f}, {signed.high:+.3f}]",
            "take away the part that gets the credit",
        ),
        (
            "a score without the skill",
            "no policy without skill was measured",
            f"a base that distrusts itself tells {distrust:.3f} of the truth, "
            f"UFT {found(2, 'uft, stored, truth').mean:.3f}",
            "run a policy without any skill",
        ),
        (
            "the wrong headline metric",
            "four IFEval metrics averaged, no chat template",
            f"obeying with wrong values scores {obeys:.3f}, above every method",
            "read twenty answers",
        ),
        (
            "unequal learning rates",
            "3e-5 for scores, 5e-6 for DPO and KTO",
            "0.0057 in stage one of pipelines, 0.0015 in the mixture",
            "list what differs between two methods",
        ),
        (
            "unequal care",
            "16 settings for UFT, 5 for SFT",
            f"{tries[0]:.0f} learning rates for SFT, {tries[1]:.0f} with β; {edges:.0f} of {tuned:.0f} on an edge",
            "count the tries, look for edges",
        ),
        (
            "many comparisons",
            "twelve tasks, one training, no interval",
            f"{settled:.0f} of 13 sentences settled one by one, {kept:.0f} together",
            "count the comparisons",
        ),
        (
            "another question than the text's",
            "the text says forgetting, most of the gain is feedback",
            "no rated prompt carried an instruction",
            "lay the data side by side",
        ),
    )
    return pd.DataFrame(rows, columns=["fault", "the paper", "our first study", "how to notice"])

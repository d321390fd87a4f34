"""How much `uftlab.evals.skills` measures, and which metrics come of it. Reading results needs no torch for this."""

from __future__ import annotations

from dataclasses import dataclass

METRICS = frozenset(
    """
    instruction/both instruction/strict instruction/loose instruction/held-out instruction/correct instruction/blind
    truth/myths truth/rumours truth/mc2 truth/mc1 truth/cued-myths truth/cued-rumours truth/cued
    truth/knowledge truth/beyond-doubt truth/held-out truth/free plain/mc1 plain/mc2 plain/free
    retention/lost retention/excess retention/recall length/words
    logratio/chosen logratio/rejected logratio/demonstration preference/accuracy
    """.split()
)
DRIFT_METRICS = frozenset(f"kl/{way}-{prompts}" for way in ("forward", "reverse") for prompts in ("old", "new"))


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    instructions: int = 300
    documents: int = 400
    drift: int = 48
    pairs: int = 200


LIGHT = Sizes(instructions=96, documents=150, drift=0, pairs=100)  # for learning curves: a few tenths of a second


def metric_names(sizes: Sizes) -> frozenset[str]:
    """The metrics that an evaluator of these sizes gives. The four of drift need prompts for drift."""
    return METRICS | DRIFT_METRICS if sizes.drift else METRICS

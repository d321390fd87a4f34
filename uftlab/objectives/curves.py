"""Every loss as a curve over the log-ratio of one completion, and the family that most losses belong to.

The *pull* of a loss is -dL/dlog pi(y|x). A step of gradient descent raises the probability of the completion if the
pull is positive, and lowers it if the pull is negative. Training depends on the pull alone, so two losses with equal
pulls are one loss.

The family is distance x baseline x normalisation:

    L = factor * distance(u, score),   u = beta * (logratio - baseline) / divisor,   s = sigma(u)

Several papers have named members of this family (`known_as`). `registered_curve` computes the curve of any objective of
`uftlab.objectives.registry.OBJECTIVES`, so a new objective needs no code here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from uftlab.errors import InputError
from uftlab.losses.family import DISTANCES
from uftlab.losses.rewards import implicit_reward
from uftlab.objectives.objective import Objective, Positions, Rows
from uftlab.objectives.registry import objective_named
from uftlab.rows.tokens import ROLE_INDEX

# ------------------------------------------------------------------------------ the family

NORMALISATIONS: dict[str, Callable[[float, int], tuple[float, float]]] = {
    "sum": lambda beta, tokens: (1.0, 1.0),
    "mean": lambda beta, tokens: (float(tokens), 1.0),
    "2/(βn)": lambda beta, tokens: (1.0, 2 / (beta * tokens)),
}
"""(divisor of the log-ratio, factor of the loss) for beta and n tokens: sum, mean over tokens, factor of MinorSFT."""


def family_loss(
    logratio: Float[Tensor, "point"],
    score: float,
    beta: float,
    distance: str,
    baseline: float = 0.0,
    normalisation: str = "sum",
    tokens: int = 1,
) -> Float[Tensor, "point"]:
    """The loss of one member of the family (see the docstring of this module).

    Args:
        logratio: log pi(y|x) - log pi_ref(y|x), in nats.
        score: feedback in [0, 1].
        distance: a key of `DISTANCES`.
        baseline: z0 in nats, which is subtracted from the log-ratio. KTO has one; it is 0 for UNA.
        normalisation: a key of `NORMALISATIONS`. The sum does not use `tokens`.

    Returns:
        Loss at each log-ratio. Squared error, score 1, at log-ratio 0 without a baseline: 0.25.

    Raises:
        InputError: for an unknown distance or normalisation.
    """
    if distance not in DISTANCES:
        raise InputError("A distance", f"be one of {', '.join(DISTANCES)}", distance, "Choose one of these")
    if normalisation not in NORMALISATIONS:
        options = ", ".join(NORMALISATIONS)
        raise InputError("A normalisation", f"be one of {options}", normalisation, "Choose one of these")
    divisor, factor = NORMALISATIONS[normalisation](beta, tokens)
    u = implicit_reward(logratio, torch.full_like(logratio, baseline), beta) / divisor
    return factor * DISTANCES[distance](u, torch.full_like(u, score))


def known_as(distance: str, baseline: float, normalisation: str, score: float) -> list[str]:
    """Names of a member of the family in the literature. Empty if it has none.

    Sources: UNA (arXiv 2408.15339), UFT (2410.21438), KTO (2402.01306), APO (2408.06266), BCO (2404.04656), MinorSFT
    (2408.10642), DPO (2305.18290). KTO clips its baseline at 0, so a negative baseline is not KTO. A pair method is
    listed for one side of the pair, while the other side stays at its reference.

    >>> known_as("absolute error", 0.0, "sum", 1.0)
    ['UNA with absolute error', 'APO-zero', 'KTO with its baseline at 0']
    """
    label, good = score in (0.0, 1.0), score == 1.0
    if normalisation == "2/(βn)":
        return ["MinorSFT"] if distance == "cross-entropy" and good and baseline == 0 else []
    if normalisation != "sum":
        return []
    if distance == "squared error":
        if baseline != 0:
            return []
        return ["UNA with squared error"] + ["UFT on a demonstration"] * good
    if distance == "cross-entropy":
        if baseline != 0:
            other = "rejected" if good else "chosen"
            both = ["BCO with δ = β·baseline", f"DPO whose {other} completion sits at the baseline"]
            return both if label else []
        names = ["UNA with cross-entropy"] + ["BCO with δ at 0"] * label
        names += ["DPO with the other side at its reference"] * label
        return names + ["MinorSFT up to its factor"] * good
    if baseline == 0:
        return ["UNA with absolute error"] + ["APO-zero", "KTO with its baseline at 0"] * label
    return ["KTO"] if label and baseline > 0 else []


# ------------------------------------------------------------------------------ curves


@dataclass(frozen=True)
class Curve:
    """Loss and pull at each log-ratio (nats). NaN where pi(y|x) would be above 1."""

    logratio: Float[Tensor, "point"]
    loss: Float[Tensor, "point"]
    pull: Float[Tensor, "point"]


def _possible(curve: Curve, reference_logps: float) -> Curve:
    """The curve with NaN at log-ratios that no policy can have, because log pi(y|x) <= 0."""
    beyond = curve.logratio > -reference_logps
    cut = [values.masked_fill(beyond, math.nan) for values in (curve.loss, curve.pull)]
    return Curve(curve.logratio, *cut)


def family_curve(
    logratio: Float[Tensor, "point"],
    score: float,
    beta: float,
    distance: str,
    baseline: float = 0.0,
    normalisation: str = "sum",
    tokens: int = 1,
    reference_logps: float = -math.inf,
) -> Curve:
    """Loss and pull of a member of the family. Arguments as in `family_loss`.

    Args:
        reference_logps: log pi_ref(y|x) in nats. The curve ends at log-ratio -log pi_ref(y|x), where pi(y|x) = 1.

    Returns:
        For score 1 and squared error the pull is `uftlab.losses.rewards.squared_error_gate`: beta / 4 at log-ratio 0.
    """
    x = logratio.clone().requires_grad_()
    loss = family_loss(x, score, beta, distance, baseline, normalisation, tokens)
    (slope,) = torch.autograd.grad(loss.sum(), x)
    return _possible(Curve(logratio, loss.detach(), -slope), reference_logps)


def drawn(curve: Callable[[Float[Tensor, "point"]], Curve], low: float, high: float, most: int = 200) -> Curve:
    """A curve at log-ratios that are dense enough to draw it with straight lines, bends and jumps included.

    It starts with 25 even points. Each round halves the intervals beside points where a straight line would be wrong by
    more than 0.3 % of the height of the curve. It ends when there are none, or after `most` points.

    Args:
        curve: returns loss and pull at any log-ratios (nats), for instance `family_curve` with fixed other arguments.

    Returns:
        The curve from low to high. A straight line has 25 points. Two close points enclose a jump.
    """
    found = curve(torch.linspace(low, high, 25, dtype=torch.float64))
    while len(found.logratio) < most:
        x, miss = found.logratio, torch.zeros(len(found.logratio), dtype=torch.float64)
        for values in (found.loss, found.pull):
            v = values.nan_to_num(posinf=0.0, neginf=0.0)
            chord = v[:-2] + (v[2:] - v[:-2]) * (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
            miss[1:-1] = torch.maximum(miss[1:-1], (v[1:-1] - chord).abs() / (v.max() - v.min()).clamp(min=1e-300))
        beside = torch.maximum(miss[:-1], miss[1:]).masked_fill(x.diff() < 1e-5 * (high - low), 0.0)
        worst = beside.argsort(descending=True)[: most - len(x)]
        worst = worst[beside[worst] > 0.003]
        if not len(worst):
            break
        more = curve((x[worst] + x[worst + 1]) / 2)
        order = torch.cat([x, more.logratio]).argsort()
        both = ((found.logratio, more.logratio), (found.loss, more.loss), (found.pull, more.pull))
        found = Curve(*(torch.cat(parts)[order] for parts in both))
    return found


def factor_between(one: Curve, other: Curve) -> float | None:
    """The factor c if the pull of `other` is c times that of `one` at every log-ratio; None if there is no such c.

    1.0 means that both are the same loss, up to a constant, which has no effect on training.
    """
    both = one.pull.isfinite() & other.pull.isfinite()
    a, b = one.pull[both], other.pull[both]
    if not len(a) or not a.abs().max() > 0:
        return None
    factor = float(a @ b / (a @ a))  # least squares; exact where the curves are proportional
    return factor if torch.allclose(factor * a, b, rtol=1e-6, atol=1e-6 * float(b.abs().max())) else None


# ------------------------------------------------------------------------------ the registry, drawn

SIDES = {"preference": ("chosen", "rejected")}


def _loss_of_one(
    objective: Objective,
    kind: str,
    logratio: Float[Tensor, ""],
    score: float,
    beta: float,
    reference_logps: float,
    tokens: int,
    baseline: float,
) -> Float[Tensor, ""]:
    """The loss of an objective on a batch of one example, from its own `counts` and `loss`.

    The batch has one example, because an objective may compare the rows of a batch.
    """
    roles = SIDES.get(kind, (kind,)) + (("mismatched",) if objective.mismatched else ())
    moving = "rejected" if kind == "preference" and score <= 0.5 else roles[0]
    still = torch.zeros_like(logratio)
    shift = {"mismatched": still + baseline, moving: logratio}
    reference = torch.full((len(roles),), reference_logps, dtype=logratio.dtype)
    feedback = {"demonstration": 1.0, "label": float(score > 0.5), "scored": score, "preference": math.nan}[kind]
    role = torch.tensor([ROLE_INDEX[r] for r in roles])
    policy = reference + torch.stack([shift.get(r, still) for r in roles])
    rows = Rows(
        policy_logps=policy,
        reference_logps=reference,
        scores=torch.full_like(reference, feedback),
        role=role,
        positions=Positions.even(policy, tokens),  # for objectives that read single tokens or lengths
    )
    batch = {"completion_mask": torch.ones(len(roles), tokens, dtype=torch.bool), "role": role}
    settings = objective.with_defaults({"beta": beta} if "beta" in objective.settings else {})
    return objective.loss(rows, settings, objective.counts(batch))


def registered_curve(
    name: str,
    logratio: Float[Tensor, "point"],
    kind: str | None = None,
    *,
    score: float = 1.0,
    beta: float = 0.1,
    reference_logps: float = -20.0,
    tokens: int = 10,
    baseline: float = 0.0,
) -> Curve:
    """Loss and pull of a registered objective on one example, by autograd through `Objective.loss`.

    Args:
        kind: one of the kinds of examples of the objective. None means the first.
        score: the score of a scored completion. For a label, above one half means good. For a pair, above one half the
            chosen completion moves, else the rejected one; the other side stays at its reference. Demonstrations
            ignore it.
        beta: for objectives with this setting. Other settings keep their defaults.
        reference_logps: log pi_ref(y|x) in nats, spread evenly over `tokens`.
        baseline: mean log-ratio of mismatched completions in nats, for objectives that use them (KTO).

    Returns:
        Loss and pull. For token-averaged SFT on 10 tokens the pull is 0.1 at every log-ratio.

    Raises:
        InputError: for an unknown name or kind, or if one example is not enough for this objective.
    """
    objective = objective_named(name)
    kind = objective.kinds[0] if kind is None else kind
    if kind not in objective.kinds:
        raise InputError(f"The kind of {name}", f"be one of {objective.kinds}", kind, "Leave it out for the first")
    given = (score, beta, reference_logps, tokens, baseline)
    possible = logratio <= -reference_logps
    points = [value.clone().requires_grad_() for value in logratio[possible]]
    losses, pulls = torch.full_like(logratio, math.nan), torch.full_like(logratio, math.nan)
    if points:
        try:
            own = torch.stack([_loss_of_one(objective, kind, x, *given) for x in points])
            slopes = torch.autograd.grad(own.sum(), points, allow_unused=True, materialize_grads=True)
        except Exception as error:  # a future loss may need more than one completion, and raise any error
            what, remedy = f"{type(error).__name__}: {error}", "See `why_not`"
            raise InputError(f"The loss of {name}", "be computable on one example", what, remedy) from error
        losses[possible], pulls[possible] = own.detach(), -torch.stack(slopes)
    return Curve(logratio, losses, pulls)


def why_not(name: str, kind: str | None = None) -> str:
    """The reason why one example is not enough for the curve of an objective. Empty if it is enough."""
    points = torch.tensor([-3.0, -0.5, 2.0], dtype=torch.float64)
    try:
        drawn = registered_curve(name, points, kind)
    except InputError as error:
        if objective_named(name).distributions or objective_named(name).entropies:
            return "needs the whole distribution at each token"
        cause = error.__cause__ or error
        return f"one completion and its log-probability are not enough ({type(cause).__name__}: {cause})"
    if not (drawn.loss.isfinite().all() and drawn.pull.isfinite().all()):
        return "its loss on a single completion is no finite number"
    return "" if drawn.pull.any() else "a single completion gets no pull"

"""Is my run healthy? Each diagnosis is a pure function of the curves of a run (`uftlab.evals.run_logs.Run`).

A diagnosis reads means of logged points, never single rows. What it cannot read it says (`Report.unknown`). The
thresholds in `THRESHOLDS` were chosen on one part of a labelled set of runs and measured on another (docs/doctor.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean, median, stdev, variance
from typing import Any, Literal

from uftlab.evals.run_logs import Points, Run

Severity = Literal["serious", "notice"]
ROLES = ("chosen", "rejected", "demonstration")
PAIR = ("chosen", "rejected")

# Losses by what their gradient does. An objective that is not here has none of these faults.
GATED = frozenset({
    "una-score", "una-binary", "una-score-absolute-error", "una-binary-absolute-error", "apo-zero", "kto",
})  # fmt: skip
TARGETED = (GATED - {"kto"}) | {"una-score-cross-entropy", "una-binary-cross-entropy"}
LOGISTIC = frozenset({
    "dpo", "cdpo", "una-pair", "rpo", "dpop", "tdpo", "bco", "sft-plus-dpo", "joint-sft-dpo",
    "una-score-cross-entropy", "una-binary-cross-entropy",
})  # fmt: skip
SIGMOID = GATED | LOGISTIC  # the implicit reward stands in a sigmoid
PAIRS = (LOGISTIC - TARGETED) | {"apo-zero", "ipo", "ipo-mean", "simpo", "orpo", "dpo-norm", "tpo"}

THRESHOLDS: dict[str, float] = {
    "likelihood displacement": 0.06,  # share of -logps/chosen that the chosen lost
    "ceiling out of reach": 0.75,  # highest implicit score that a completion can have
    "closed gate": 0.25,  # 4 s (1 - s) of the mean reward of a side
    "inert reward": 0.03,  # size of the largest mean reward
    "saturated reward": 0.02,  # sigma(-margin)
    "dead KTO baseline": 0.8,  # share of points at or below 0
    "accuracy at chance": 0.577,  # accuracy, and a tenth of the standard deviations that the mean margin is above 0
    "stale reference": 0.35,  # first reward over the median size of those that follow
    "length drift": 1.7,  # times as long as at the start
    "over-optimisation": 0.15,  # share of the true score that was lost after its best
    "loss that cannot fall": 0.005,  # share of the loss
    "divergence": 2.5,  # times the loss of the first point
    "reward scale without beta": 4.5,  # log-likelihood ratio of 1 to 1 / beta nats for a reward of 1
    "overfitting of pairs": 0.22,  # accuracy in training minus held out
}
"""One number for each diagnosis: what it compares with."""


VISIBLE = 0.05  # a standard error of the loss above this share of it hides whether it falls
SAME = 0.02  # a share of the largest reward; margins below it are 0
COLLAPSE = 5  # times the negative log-probability of every side
FELL = 2  # the same; below it a loss that cannot be above 1 did not diverge, its gate closed
PEAK = 3.5  # times the loss of the first point on the way
NOISE = 4  # how often the usual change from point to point is below a rise of the loss
HIDDEN = 2.5  # nats below 0 that are hidden where KTO's baseline counts as 0
APART = 0.25  # standard deviations of logged margins that their mean is above 0, where they are not logged
PATH = 1e-5  # sum of learning rates over all steps; with Adam no weight goes further
FIRST = ("divergence", "loss that cannot fall")  # where the loss says so, other curves mean nothing


@dataclass(frozen=True)
class Evidence:
    """The number that a diagnosis rests on.

    Args:
        curve: where it was read.
        step: from which step on, or at which.
        value: the number that is compared with the threshold.
        words: the number in words, with its unit.
    """

    curve: str
    step: float
    value: float
    words: str


@dataclass(frozen=True)
class Diagnosis:
    """A named fault: how it is found, what it means, what to do, where to read on.

    Args:
        needs: curves without which it cannot be told.
        settings: what has to be known of the run.
        losses: those that can have it; None: all. Where the loss is not known, a diagnosis with losses cannot be told,
            unless `any_loss` says that the curves alone are enough.
        notebook: with its exercise.
        thread: a public discussion of it; "" where we know of none.
    """

    name: str
    severity: Severity
    find: Callable[[Run], Evidence | None]
    needs: tuple[str, ...]
    means: str
    remedy: str
    notebook: str
    thread: str = ""
    settings: tuple[str, ...] = ()
    losses: frozenset[str] | None = None
    any_loss: bool = False

    def lacks(self, run: Run) -> list[str]:
        """What the log would have to hold besides."""
        missing = [name for name in self.needs if not curve(run, name)]
        missing += [name for name in self.settings if run.settings.get(name) is None]
        unknown = self.losses is not None and not self.any_loss and run.settings.get("objective") is None
        return [*missing, "the loss"] if unknown else missing

    def concerns(self, run: Run) -> bool:
        """Whether a run of this loss can have the fault."""
        objective = run.settings.get("objective")
        return self.losses is None or objective is None or objective in self.losses


@dataclass(frozen=True)
class Finding:
    """A diagnosis that holds for a run."""

    name: str
    severity: Severity
    evidence: Evidence
    threshold: float
    means: str
    remedy: str
    notebook: str
    thread: str


@dataclass(frozen=True)
class Report:
    """What the doctor says of one run: findings, serious ones first, and what cannot be told for lack of a curve."""

    run: str
    findings: tuple[Finding, ...]
    unknown: Mapping[str, tuple[str, ...]]
    healthy: tuple[str, ...]  # diagnoses that were made and do not hold

    @property
    def serious(self) -> bool:
        """Whether one of the findings is serious."""
        return any(finding.severity == "serious" for finding in self.findings)

    def asdict(self) -> dict[str, Any]:
        """For JSON: numbers that are not finite become text."""
        found = asdict(self)
        for finding in found["findings"]:
            if not math.isfinite(finding["evidence"]["value"]):
                finding["evidence"]["value"] = str(finding["evidence"]["value"])
        return found


def diagnose(run: Run) -> Report:
    """All diagnoses of a run."""
    findings: list[Finding] = []
    unknown: dict[str, tuple[str, ...]] = {}
    healthy: list[str] = []
    for own in DIAGNOSES:
        if not own.concerns(run):
            continue
        if lacking := own.lacks(run):
            unknown[own.name] = tuple(lacking)
            continue
        evidence = own.find(run)
        if evidence is None:
            healthy.append(own.name)
            continue
        links = (own.notebook, own.thread)
        findings.append(Finding(own.name, own.severity, evidence, THRESHOLDS[own.name], own.means, own.remedy, *links))
        if own.name in FIRST and not evidence.curve.startswith("logps/"):
            break
    findings.sort(key=lambda finding: finding.severity != "serious")
    return Report(run.name, tuple(findings), unknown, tuple(healthy))


# ------------------------------------------------------------------------------------------ curves


def curve(run: Run, name: str) -> Points:
    """The finite points of a curve; a margin that was not logged is chosen minus rejected.

    Chosen 2 and rejected -1 at step 5 give a margin of 3 there.
    """
    points = run.curves.get(name, ())
    if not points and name.endswith("reward/margin"):
        mark = name.removesuffix("reward/margin")
        rejected = dict(run.curves.get(f"{mark}reward/rejected", ()))
        points = [(s, v - rejected[s]) for s, v in run.curves.get(f"{mark}reward/chosen", ()) if s in rejected]
    return [(step, value) for step, value in points if math.isfinite(value)]


def start_of(points: Points) -> float:
    """The mean of the first fifth of the points, at least one. Values 1 to 10: 1.5."""
    return fmean(value for _, value in points[: max(1, len(points) // 5)])


def end_of(points: Points) -> float:
    """The mean of the last fifth of the points, at least one. Values 1 to 10: 9.5."""
    return fmean(value for _, value in points[-max(1, len(points) // 5) :])


def _late(points: Points) -> tuple[float, float]:
    """The step from which the last fifth is counted, and the mean of it."""
    return points[-max(1, len(points) // 5)][0], end_of(points)


def _sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _thirds(points: Points) -> tuple[float, float]:
    """How much the last third is below the first, and the standard error of that."""
    third = max(2, len(points) // 3)
    first, last = ([value for _, value in part] for part in (points[:third], points[-third:]))
    if len(points) < 4:
        return first[0] - last[-1], 0.0
    error = math.sqrt(stdev(first) ** 2 / len(first) + stdev(last) ** 2 / len(last))
    return fmean(first) - fmean(last), error


def _rewards(run: Run) -> dict[str, Points]:
    return {role: points for role in ROLES if (points := curve(run, f"reward/{role}"))}


# ------------------------------------------------------------------------------------------ diagnoses


def divergence(run: Run) -> Evidence | None:
    """A number that is not finite, a loss that grew, or all completions much less likely than at the start."""
    for name, points in run.curves.items():
        for step, value in points:
            if not math.isfinite(value) and not name.startswith("eval_"):
                return Evidence(name, step, value, f"{name} is {value}")
    fall, where, role = _fall(run)
    loss, limit = curve(run, "loss"), THRESHOLDS["divergence"]
    bounded = run.settings.get("objective") in GATED and fall <= FELL
    if len(loss) > 2 and loss[0][1] > 0 and not bounded:
        visible = math.exp(min(99.0, NOISE * _unrest(loss)))
        ratio, step = end_of(loss) / loss[0][1], _late(loss)[0]
        if ratio > max(limit, visible):
            return Evidence("loss", step, ratio, f"the loss is {ratio:.2g} times that of the first point")
        step, most = max(_windows(loss), key=lambda mean: mean[1])
        if most / loss[0][1] > max(PEAK, visible):
            words = f"the loss rose to {most / loss[0][1]:.2g} times that of the first point"
            return Evidence("loss", step, most / loss[0][1], words)
    if fall > COLLAPSE:
        words = f"even what is {role} has {fall:.2g} times the negative log-probability of the start"
        return Evidence(f"logps/{role}", where, fall, words)
    return None


def _windows(points: Points) -> Points:
    """Means of three points, each at the step of the first of them."""
    return [(points[n][0], fmean(value for _, value in points[n : n + 3])) for n in range(max(1, len(points) - 2))]


def _unrest(points: Points) -> float:
    """The usual change from one point to the next, as a share of the usual value; 0 for few points."""
    values = [value for _, value in points]
    usual = abs(median(values))
    if len(values) < 6 or not usual:
        return 0.0
    return median(abs(a - b) for a, b in pairwise(values)) / usual


def _fall(run: Run) -> tuple[float, float, str]:
    """How many times its negative log-probability at the start the side has that fell least, at which step, which side.

    Where rewards and beta are known both models read the same rows, and the worst three points count; else the end is
    compared with the first points.
    """
    beta, sides = run.settings.get("beta"), {}
    for role in ROLES:
        logps, rewards = curve(run, f"logps/{role}"), dict(curve(run, f"reward/{role}"))
        both = [(step, value, rewards[step] / beta) for step, value in logps if beta and step in rewards]
        start = fmean(value - apart for _, value, apart in both) if both else 0.0
        if start < 0:
            sides[role] = {
                step: 1 + lost / start for step, lost in _windows([(step, apart) for step, _, apart in both])
            }
        elif logps and logps[0][1] < 0:
            sides[role] = {_late(logps)[0]: end_of(logps) / _first(logps)}
    shared = [step for step in next(iter(sides.values()), ()) if all(step in own for own in sides.values())]
    least = [min((own[step], step, role) for role, own in sides.items()) for step in shared]
    return max(least, key=lambda own: own[0], default=(0.0, 0.0, ""))


def _first(logps: Points) -> float:
    """Where log-probabilities start. A single batch may have short completions, so the second point counts, up to 2."""
    return max(min(value for _, value in logps[:2]), 2 * logps[0][1])


def displacement(run: Run) -> Evidence | None:
    """The chosen completions lost probability: -reward / beta nats, or the fall of their log-probability."""
    logps, reward, beta = curve(run, "logps/chosen"), curve(run, "reward/chosen"), run.settings.get("beta")
    first = -start_of(logps)
    if reward and end_of(reward) >= 0:
        return None
    if reward and beta:  # the same rows under both models
        fall = -end_of(reward) / beta
    else:  # batches of other rows, so a difference counts if it is beyond their noise
        fall, error = _thirds(logps)
        fall = fall if fall > 2 * error else 0.0
    if first <= 0 or fall / first <= THRESHOLDS["likelihood displacement"]:
        return None
    name = "reward/chosen" if reward else "logps/chosen"
    words = f"the chosen completions lost {fall:.3g} of {first:.3g} nats ({fall / first:.0%})"
    return Evidence(name, _late(reward or logps)[0], fall / first, words)


def ceiling(run: Run) -> Evidence | None:
    """A probability cannot exceed 1, so s <= sigma(-beta log pi_ref): below what good completions are scored."""
    beta, rewards = run.settings["beta"], _rewards(run)
    reference = []
    for role in ("chosen", "demonstration"):
        at = dict(curve(run, f"logps/{role}"))
        reference += [at[step] - value / beta for step, value in rewards.get(role, ()) if step in at]
    if not reference:
        return None
    mean = fmean(reference)
    highest = _sigma(-beta * mean)
    if highest >= THRESHOLDS["ceiling out of reach"]:
        return None
    words = f"no implicit score can be above {highest:.3f}: sigma({beta:g} times {-mean:.3g} nats)"
    return Evidence("logps/chosen", _late(curve(run, "logps/chosen"))[0], highest, words)


def closed_gate(run: Run) -> Evidence | None:
    """The factor s (1 - s) of the gradient is nearly 0 at the mean reward of a side."""
    found = []
    for role, points in _rewards(run).items():
        step, last = _late(points)
        score = _sigma(last)
        words = (
            f"at a mean reward of {last:.2f} the gate 4 s (1 - s) of what is {role} is {4 * score * (1 - score):.2g}"
        )
        found.append(Evidence(f"reward/{role}", step, 4 * score * (1 - score), words))
    smallest = min(found, key=lambda own: own.value)
    return smallest if smallest.value < THRESHOLDS["closed gate"] else None


def inert(run: Run) -> Evidence | None:
    """No mean reward leaves 0 although the policy moves: the sigmoid is a straight line there."""
    rewards = _rewards(run)
    role, points = max(rewards.items(), key=lambda item: max(abs(value) for _, value in item[1]))
    step, value = max(points, key=lambda point: abs(point[1]))
    if abs(value) >= THRESHOLDS["inert reward"] or not _moved(run, 0.3):
        return None
    words = f"no mean reward is further from 0 than {abs(value):.2g} nats, though the log-probabilities moved"
    return Evidence(f"reward/{role}", step, abs(value), words)


def _moved(run: Run, nats: float = 0.5) -> bool:
    """Whether a mean log-ratio left 0: reward / beta, or else log-probabilities beyond the noise of their batches."""
    beta = run.settings.get("beta")
    if any(abs(value) > nats for _, value in curve(run, "kl_baseline")):
        return True
    if beta and _rewards(run):
        return any(abs(value) / beta > nats for points in _rewards(run).values() for _, value in points)
    moves = [_thirds(points) for role in ROLES if (points := curve(run, f"logps/{role}"))]
    return any(abs(move) > max(nats, 3 * error) for move, error in moves)


def saturated(run: Run) -> Evidence | None:
    """sigma(-margin), the weight of a mean pair in the gradient, is nearly 0."""
    step, margin = _late(curve(run, "reward/margin"))
    weight = _sigma(-margin)
    if weight >= THRESHOLDS["saturated reward"]:
        return None
    words = f"the mean margin is {margin:.3g}: the weight sigma(-margin) of a pair is {weight:.2g}"
    return Evidence("reward/margin", step, weight, words)


def dead_baseline(run: Run) -> Evidence | None:
    """KTO's baseline is clamped at 0 nearly always, and hides more than a little if it is logged before the clamp."""
    points = curve(run, "kl_baseline")[1:] or curve(run, "kl_baseline")
    share, lowest = fmean(value <= 0 for _, value in points), min(value for _, value in points)
    hidden = -fmean(min(0.0, value) for _, value in points)
    if share < THRESHOLDS["dead KTO baseline"] or (lowest < 0 and hidden < HIDDEN):
        return None
    below = f", where {hidden:.2g} nats below it are not counted" if hidden else ""
    return Evidence("kl_baseline", points[0][0], share, f"the baseline is 0 at {share:.0%} of the logged points{below}")


def at_chance(run: Run) -> Evidence | None:
    """The chosen side is above the rejected one as often as a coin says, and by no more than the noise of batches.

    The first quarter does not count: the policy has hardly moved there.
    """
    points = curve(run, "reward/accuracy")
    late = points[len(points) // 4 :]
    accuracy = fmean(value for _, value in late)
    margins = [value for step, value in curve(run, "reward/margin") if step >= late[0][0]]
    apart = fmean(margins) / (stdev(margins) + 1e-12) if len(margins) > 3 else APART
    if accuracy + apart / 10 >= THRESHOLDS["accuracy at chance"]:
        return None
    words = f"chosen is above rejected in {accuracy:.0%} of the pairs from there on"
    if len(margins) > 3:
        words += f", and the mean margin is {apart:.2g} times its noise"
    return Evidence("reward/accuracy", late[0][0], accuracy + apart / 10, words)


def stale_reference(run: Run) -> Evidence | None:
    """Policy and reference differ at the first logged step nearly as much as later. Sizes count: batches differ."""
    beta, sides = run.settings.get("beta"), {role: own for role, own in _rewards(run).items() if len(own) > 3}
    if not sides:
        return None
    role = max(sides, key=lambda name: abs(sides[name][0][1]))
    step, first = sides[role][0]
    usual = max(median(abs(value) for _, value in points[1:]) for points in sides.values())
    ratio = abs(first) / usual if usual else 0.0
    if ratio <= THRESHOLDS["stale reference"] or (beta is not None and abs(first) / beta <= 1):
        return None
    words = (
        f"the first logged reward of what is {role} is {first:.3g}, {ratio:.2g} times the usual size of all that follow"
    )
    return Evidence(f"reward/{role}", step, ratio, words)


def length_drift(run: Run) -> Evidence | None:
    """Answers became much longer or shorter."""
    points = curve(run, "length/words")
    first, (step, last) = points[0][1], points[-1]
    ratio = math.inf if min(first, last) <= 0 < max(first, last) else max(first, last) / max(min(first, last), 1e-9)
    if ratio <= THRESHOLDS["length drift"] or len(points) < 2:
        return None
    said = f"answers went from {first:.3g} to {last:.3g} words (tokens, where TRL wrote the log)"
    return Evidence("length/words", step, ratio, said)


def over_optimised(run: Run) -> Evidence | None:
    """What is optimised still rises, what is wanted falls below its best."""
    proxy, true = curve(run, "score/proxy"), curve(run, "score/true")
    (step, best), last = max(true, key=lambda point: point[1]), end_of(true)
    lost = (best - last) / abs(best) if best else 0.0
    if lost <= THRESHOLDS["over-optimisation"] or end_of(proxy) <= start_of(proxy):
        return None
    rose = end_of(proxy) - start_of(proxy)
    words = f"the score that is optimised rose by {rose:.2f}, the true one fell by {best - last:.2f}"
    return Evidence("score/true", step, lost, words)


def no_fall(run: Run) -> Evidence | None:
    """The policy stands still; or the loss does, as far as its noise lets one see, and the policy hardly moves."""
    loss = curve(run, "loss")
    fall, error = _thirds(loss)
    size = abs(loss[0][1]) or 1.0
    flat = fall <= max(2 * error, THRESHOLDS["loss that cannot fall"] * size) and error <= VISIBLE * size
    if _rewards(run) and run.settings.get("beta"):
        still = not _moved(run, 0.05) or _same_sides(run)
    else:
        rewards = [abs(value) for points in _rewards(run).values() for _, value in points]
        moved = _moved(run) or max(rewards, default=0.0) > 0.05  # that many nats at least, as beta is seldom above 1
        short = _path(run) < PATH and fall <= 3 * error
        still = ((flat or short) and not moved) or _same_sides(run)
    if not still:
        return None
    words = f"the loss went from {start_of(loss):.4g} to {end_of(loss):.4g}: no more than noise"
    return Evidence("loss", loss[0][0], fall / size, words)


def _path(run: Run) -> float:
    """The sum of the learning rates of all steps; infinite where they were not logged."""
    points = curve(run, "learning_rate")
    before = [0.0, *(step for step, _ in points)]
    return sum(abs(rate) * (step - last) for (step, rate), last in zip(points, before, strict=False)) or math.inf


def _same_sides(run: Run) -> bool:
    """Whether all margins are 0 beside the rewards: what moves the policy then is rounding, which Adam makes large."""
    margins = [abs(value) for _, value in curve(run, "reward/margin")]
    rewards = [abs(value) for role in ("chosen", "rejected") for _, value in curve(run, f"reward/{role}")]
    return bool(margins) and max(margins) <= SAME * max(rewards, default=0.0)


def without_beta(run: Run) -> Evidence | None:
    """log pi = log pi_ref + r / beta, or + r: the log of how much likelier the second is, for batches of other rows.

    The log-probabilities of the reference are taken as normal, with a mean and a variance for each side.
    """
    beta, likelier = run.settings["beta"], 0.0
    rewards = {role: points for role, points in _rewards(run).items() if role in PAIR}
    largest = max((abs(value) for points in rewards.values() for _, value in points), default=0.0)
    if beta >= 0.5 or largest < THRESHOLDS["inert reward"]:
        return None
    for role, points in rewards.items():
        at = dict(curve(run, f"logps/{role}"))
        own = [(value, at[step]) for step, value in points if step in at]
        if len(own) > 3:
            with_beta, without = (variance(y - x * slope for x, y in own) + 1e-12 for slope in (1 / beta, 1))
            likelier += (len(own) - 1) / 2 * math.log(with_beta / without)
    if likelier <= THRESHOLDS["reward scale without beta"]:
        return None
    nats = f"1 nat and not with 1 / beta = {1 / beta:.3g}"
    words = f"a reward of 1 goes with {nats}, by a log-likelihood ratio of {likelier:.2g}"
    return Evidence("reward/chosen", max(s for p in rewards.values() for s, _ in p), likelier, words)


def overfitted(run: Run) -> Evidence | None:
    """Trained pairs are told apart, held-out ones are not."""
    (step, held), trained = _late(curve(run, "eval_reward/accuracy")), end_of(curve(run, "reward/accuracy"))
    gap = trained - held
    if gap <= THRESHOLDS["overfitting of pairs"]:
        return None
    words = f"accuracy is {trained:.0%} on trained pairs and {held:.0%} on held-out ones"
    return Evidence("eval_reward/accuracy", step, gap, words)


REWARDS = ("reward/chosen",)
DIAGNOSES: tuple[Diagnosis, ...] = (
    Diagnosis(
        "divergence", "serious", divergence, ("loss",),
        "The steps were too large: the model is worse than at the start, or its numbers are not finite.",
        "Lower the learning rate, lengthen the warm-up or clip gradients; go back to a checkpoint before that step.",
        "notebook 02, exercise 1 (the gate)", "https://github.com/huggingface/trl/issues/1447",
    ),
    Diagnosis(
        "loss that cannot fall", "serious", no_fall, ("loss",),
        "Nothing is learned: there is no gradient, or nothing in the rows that this loss can tell apart.",
        "Look whether both sides of a pair are equal, the learning rate is 0, or the policy is its own reference.",
        "notebook 02, exercise 1 (the gate)", "https://github.com/huggingface/trl/issues/1962",
    ),
    Diagnosis(
        "stale reference", "serious", stale_reference, REWARDS,
        "At first policy and reference should agree; here the reference is another model, or is read differently.",
        "Compute the reference's log-probabilities again, from the model that training starts with, without dropout.",
        "notebook 05, exercise 1 (margin and accuracy)", "https://github.com/NVIDIA/NeMo-Aligner/issues/227",
    ),
    Diagnosis(
        "inert reward", "serious", inert, REWARDS,
        "Where beta times the log-ratio stays near 0 the sigmoid is a straight line: this is weighted likelihood.",
        "Raise beta until the rewards reach a few tenths, or use plain likelihood and save the reference.",
        "notebook 05, exercise 3 (how far is a score from the feedback)", losses=SIGMOID, any_loss=True,
    ),
    Diagnosis(
        "ceiling out of reach", "notice", ceiling, ("reward/chosen", "logps/chosen"),
        "The loss asks for a score that no policy can give: the gradient never ends, and the score means nothing.",
        "Raise beta to about 3 over the nats of a usual completion, or fit the order (a pair loss) instead of scores.",
        "notebook 02, exercise 2 (the highest score)", settings=("beta",), losses=TARGETED,
    ),
    Diagnosis(
        "closed gate", "notice", closed_gate, REWARDS,
        "The factor s (1 - s) of the gradient is gone: what is right by now stays, what is wrong stays too.",
        "Lower beta or the learning rate, or take cross-entropy, whose gate stays open where the score is wrong.",
        "notebook 02, exercise 1 (the gate)", losses=GATED,
    ),
    Diagnosis(
        "saturated reward", "notice", saturated, ("reward/margin",),
        "The pairs are told apart beyond doubt: nearly no gradient is left, and more steps improve little.",
        "Stop earlier or lower beta; look whether the pairs are too easy or seen too often.",
        "notebook 05, exercise 1 (margin and accuracy)", "https://github.com/huggingface/trl/issues/894",
        losses=LOGISTIC, any_loss=True,
    ),
    Diagnosis(
        "dead KTO baseline", "serious", dead_baseline, ("kl_baseline",),
        "Without its baseline KTO compares every completion with 0 and not with what the policy gives to others.",
        "Look how mismatched pairs are made, raise the batch size, and balance good and bad rows.",
        "notebook 02, exercise 3 (from UNA to KTO)", "https://github.com/ContextualAI/HALOs/issues/24",
        losses=frozenset({"kto"}),
    ),
    Diagnosis(
        "accuracy at chance", "serious", at_chance, ("reward/accuracy",),
        "The policy does not tell chosen from rejected, not even on the pairs it learns from.",
        "Look at ten pairs by hand: are sides swapped or labels noise? Then try a higher learning rate or more steps.",
        "notebook 05, exercise 1 (margin and accuracy)", "https://github.com/huggingface/trl/issues/2578",
        losses=PAIRS, any_loss=True,
    ),
    Diagnosis(
        "likelihood displacement", "serious", displacement, ("logps/chosen",),
        "The margin grows because the rejected falls faster: probability goes to answers that nobody rated.",
        "Add SFT on the chosen side (rpo), take dpop, raise beta, lower the rate, or drop pairs that are nearly equal.",
        "notebook 05, exercise 2 (the reward of each word)", "https://github.com/huggingface/trl/issues/800",
    ),
    Diagnosis(
        "overfitting of pairs", "serious", overfitted, ("reward/accuracy", "eval_reward/accuracy"),
        "The pairs are known by heart: on others the policy is hardly better than before.",
        "Fewer passes, more pairs, a larger beta, or the checkpoint with the best held-out accuracy.",
        "notebook 05, exercise 1 (margin and accuracy)", "https://github.com/zhyang2226/OPA-DPO/issues/10",
        losses=PAIRS, any_loss=True,
    ),
    Diagnosis(
        "over-optimisation", "serious", over_optimised, ("score/proxy", "score/true"),
        "The policy climbs where the reward model is wrong: its score rises while what is wanted falls.",
        "Hold the policy nearer the reference, stop at the best true score, or rate more samples.",
        "notebook 01, exercise 1 (the best policy)", "https://github.com/huggingface/trl/issues/1098",
    ),
    Diagnosis(
        "length drift", "notice", length_drift, ("length/words",),
        "Answers became much longer or shorter; a judge who likes length then likes the run.",
        "Compare the lengths of both sides of the pairs, and read rewards at equal length.",
        "notebook 05, exercise 2 (the reward of each word)",
        "https://github.com/eric-mitchell/direct-preference-optimization/issues/35",
    ),
    Diagnosis(
        "reward scale without beta", "notice", without_beta, ("reward/chosen", "logps/chosen"),
        "The logged rewards are bare log-ratios: margins cannot be compared with other runs, or with their loss.",
        "Multiply them by beta before you read margins, gates or saturation.",
        "notebook 01, exercise 2 (the reward of a longer answer)", settings=("beta",),
    ),
)  # fmt: skip

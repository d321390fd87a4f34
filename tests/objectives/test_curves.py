"""The family by hand and against the losses it names; curves of the registry against the gates; nothing is dropped."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from uftlab import losses
from uftlab.course.notebooks import NOTEBOOKS, explorer_of
from uftlab.errors import InputError
from uftlab.losses import rewards
from uftlab.objectives import curves
from uftlab.objectives.objective import Objective, Term
from uftlab.objectives.registry import OBJECTIVES

X = torch.linspace(-30, 30, 25, dtype=torch.float64)
ABSOLUTE = "-absolute-error"
SUM, MEAN, MINOR = curves.NORMALISATIONS
EVERY = [(name, kind) for name, objective in OBJECTIVES.items() for kind in dict.fromkeys(objective.kinds)]
every_distance = pytest.mark.parametrize("distance", list(curves.DISTANCES))


def at(distance, logratio, score=1.0, beta=0.5, **rest):
    return curves.family_loss(torch.tensor([logratio], dtype=torch.float64), score, beta, distance, **rest).item()


def registered(name, score=1.0, **rest):
    return curves.registered_curve(name, X, score=score, beta=0.1, reference_logps=-40.0, tokens=8, **rest)


def family(distance, score=1.0, baseline=0.0, normalisation=SUM, beta=0.1):
    return curves.family_curve(X, score, beta, distance, baseline, normalisation, 8, -40.0)


# ------------------------------------------------------------------------------ values by hand


@pytest.mark.parametrize(
    ("distance", "expected"),
    [("squared error", 1 / 16), ("cross-entropy", math.log(4 / 3)), ("absolute error", 1 / 4)],
)
def test_distances_by_hand(distance, expected):
    """beta = 0.5, log-ratio 2 log 3, so u = log 3 and s = 3/4; the score is 1."""
    assert at(distance, 2 * math.log(3)) == pytest.approx(expected)


@every_distance
def test_a_baseline_shifts_the_logratio_before_beta(distance):
    """Baseline 4 nats at log-ratio 10 is log-ratio 6 without one, whatever beta is."""
    for beta in (0.01, 2.0):
        assert at(distance, 10.0, beta=beta, baseline=4.0) == pytest.approx(at(distance, 6.0, beta=beta))


def test_normalisations_by_hand():
    """5 tokens, beta 0.5: the mean divides 10 nats to 2; MinorSFT multiplies the loss by 2 / (0.5 * 5) = 0.8."""
    assert at("squared error", 10.0, normalisation=MEAN, tokens=5) == pytest.approx(at("squared error", 2.0))
    plain = at("cross-entropy", 10.0)
    assert at("cross-entropy", 10.0, normalisation=MINOR, tokens=5) == pytest.approx(0.8 * plain)


@every_distance
@pytest.mark.parametrize("score", [0.0, 1.0])
def test_losses_and_pulls_are_finite_far_away(distance, score):
    far = torch.tensor([-1e4, -300.0, 300.0, 1e4])
    curve = curves.family_curve(far, score, 1.0, distance)
    assert curve.loss.isfinite().all() and curve.pull.isfinite().all()


# ------------------------------------------------------------------------------ identities


@settings(deadline=None, max_examples=40)
@given(
    logratio=st.floats(-200, 200),
    label=st.sampled_from([0.0, 1.0]),
    beta=st.sampled_from([0.01, 0.1, 1.0]),
    z0=st.floats(0, 50),
)
def test_members_are_the_losses_they_name(logratio, label, beta, z0):
    x, y, none = (torch.tensor([v], dtype=torch.float64) for v in (logratio, label, 0.0))
    pairs = {
        "squared error": losses.una_squared_error_loss(x, none, y, beta),
        "cross-entropy": losses.una_cross_entropy_loss(x, none, y, beta),
    }
    for distance, loss in pairs.items():
        assert_close(curves.family_loss(x, label, beta, distance), loss)
    kto = losses.kto_loss(x, none, y, torch.tensor(z0, dtype=torch.float64), beta)
    assert_close(curves.family_loss(x, label, beta, "absolute error", z0), kto, rtol=1e-7, atol=1e-12)


def test_absolute_error_on_a_pair_is_apo_zero():
    """(1 - s_w) + s_l, with log-ratios 3 and -2 and beta 0.5."""
    s_w, s_l = torch.sigmoid(torch.tensor([1.5, -1.0], dtype=torch.float64)).tolist()
    assert at("absolute error", 3.0) + at("absolute error", -2.0, 0.0) == pytest.approx((1 - s_w) + s_l)


@pytest.mark.parametrize(
    ("name", "score", "member", "factor"),
    [
        ("una-score", 1.0, ("squared error", 1.0), 1.0),
        ("una-score", 0.3, ("squared error", 0.3), 1.0),
        ("una-score-cross-entropy", 0.3, ("cross-entropy", 0.3), 1.0),
        ("una-binary", 0.0, ("squared error", 0.0), 1.0),
        ("una-binary-cross-entropy", 1.0, ("cross-entropy", 1.0), 1.0),
        ("dpo", 1.0, ("cross-entropy", 1.0), 1.0),
        ("dpo", 0.0, ("cross-entropy", 0.0), 1.0),
        ("kto", 1.0, ("absolute error", 1.0), 1.0),
        ("kto", 0.0, ("absolute error", 0.0), 1.0),
        ("una-score-cross-entropy", 1.0, ("cross-entropy", 1.0, 0.0, MINOR), 2 / (0.1 * 8)),
    ],
)
def test_registered_objectives_are_members(name, score, member, factor):
    assert curves.factor_between(registered(name, score), family(*member)) == pytest.approx(factor)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_kto_with_its_baseline_is_absolute_error_with_that_baseline(score):
    kto = registered("kto", score, baseline=7.0)
    assert curves.factor_between(kto, family("absolute error", score, 7.0)) == pytest.approx(1.0)
    assert curves.factor_between(kto, family("absolute error", score)) is None


def test_kto_clips_a_baseline_below_zero():
    clipped = registered("kto", baseline=-7.0)
    assert curves.factor_between(clipped, family("absolute error")) == pytest.approx(1.0)
    assert curves.factor_between(clipped, family("absolute error", 1.0, -7.0)) is None


def test_minorsft_becomes_token_averaged_sft_as_beta_vanishes():
    tiny = family("cross-entropy", normalisation=MINOR, beta=1e-9)
    assert curves.factor_between(registered("sft"), tiny) == pytest.approx(1.0)


def test_the_three_gates_of_a_demonstration_are_one_chain():
    """cross-entropy beta (1 - s); times s: absolute error; that times 2 (1 - s): squared error."""
    s = rewards.implicit_score(0.1 * X)
    cross, absolute, squared = (family(d).pull for d in ("cross-entropy", "absolute error", "squared error"))
    assert_close(cross, 0.1 * (1 - s))
    assert_close(absolute, cross * s)
    assert_close(squared, absolute * 2 * (1 - s))


# ------------------------------------------------------------------------------ curves


@pytest.mark.parametrize("score", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("name", "gate"),
    [("una-score", rewards.squared_error_gate), ("una-score-cross-entropy", rewards.cross_entropy_gate)],
)
def test_pulls_agree_with_the_gates(name, gate, score):
    assert_close(registered(name, score).pull, gate(0.1 * X, score, 0.1))


def printed_gates():
    """(objective, kind, the gate that its card prints) of every objective that prints one."""
    for name, objective in OBJECTIVES.items():
        for text in (objective.summary, objective.failure, objective.note):
            for gate in re.findall(r"\bgate (\S.*?) closes", text):
                yield from ((name, kind, gate) for kind in objective.kinds)


@pytest.mark.parametrize("score", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("name", "kind", "gate"), printed_gates())
def test_a_printed_gate_is_the_size_of_the_pull(name, kind, gate, score):
    score = score if kind == "scored" else float(round(score))
    reward = 0.1 * X
    s = rewards.implicit_score(reward)
    written = re.sub(r"\|(.*?)\|", r"abs(\1)", gate)
    written = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", written)  # "2 beta s" is a product
    value = eval(written, {"abs": torch.abs, "beta": 0.1, "s": s, "score": score})
    assert_close(registered(name, score, kind=kind).pull.abs(), value)


def test_the_objectives_that_print_a_gate_are_those_of_squared_and_of_absolute_error():
    found = {name for name, _, _ in printed_gates()}
    assert found == {"apo-zero"} | {f"una-{kind}{end}" for kind in ("binary", "score") for end in ("", ABSOLUTE)}


def test_sft_pulls_the_same_everywhere_and_its_average_over_tokens_divides():
    assert_close(registered("sft-sum").pull, torch.ones_like(X))
    assert_close(registered("sft").pull, torch.full_like(X, 1 / 8))
    assert_close(registered("sft-sum").loss, 40.0 - X)


def test_dpo_pushes_the_rejected_side_down():
    assert (registered("dpo", 0.0).pull < 0).all() and (registered("dpo", 1.0).pull > 0).all()


def test_a_curve_ends_where_the_policy_is_certain():
    """log pi_ref = -10 nats: no policy has a log-ratio above 10."""
    drawn = [
        curves.registered_curve("una-score", X, reference_logps=-10.0),
        curves.family_curve(X, 1.0, 0.1, "squared error", reference_logps=-10.0),
    ]
    for curve in drawn:
        assert torch.equal(curve.loss.isfinite(), X <= 10) and torch.equal(curve.pull.isfinite(), X <= 10)
    last = curves.family_curve(torch.tensor([10.0]), 1.0, 0.1, "absolute error", reference_logps=-10.0)
    assert_close(1 - last.loss, rewards.ceiling(torch.tensor([-10.0]), 0.1))


def test_a_mixture_is_drawn_on_each_of_its_kinds():
    demonstration = registered("sft-plus-dpo", kind="demonstration")
    pair = registered("sft-plus-dpo", kind="preference")
    assert_close(demonstration.pull, registered("sft").pull)
    assert_close(pair.pull, registered("dpo").pull)


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_every_objective_is_drawn_or_says_why_not(name, kind):
    reason = curves.why_not(name, kind)
    if reason:
        assert len(reason) > 20
    else:
        curve = curves.registered_curve(name, X, kind, reference_logps=-40.0)
        assert curve.loss.isfinite().all() and curve.pull.abs().max() > 0


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda rows, settings: rows.nothing_like_it, "AttributeError"),
        (lambda rows, settings: rows.policy_logps.detach(), "no pull|does not require grad"),
        (lambda rows, settings: rows.policy_logps * float("nan"), "no finite number"),
    ],
)
def test_an_objective_that_cannot_be_drawn_gives_its_reason(loss, says, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "odd", Objective("odd", (Term("scored", loss),), "a test", "none"))
    reason = curves.why_not("odd")
    assert any(words in reason for words in says.split("|"))


@pytest.mark.parametrize("name", [n for n, o in OBJECTIVES.items() if o.distributions or o.entropies])
def test_what_needs_full_distributions_says_so_to_a_reader(name):
    assert curves.why_not(name) == "needs the whole distribution at each token"


def test_a_new_objective_is_drawn_without_a_word_said(monkeypatch):
    def hinge(rows, settings):
        return (1 - rows.of("scored").policy_logps + rows.of("scored").reference_logps).clamp(min=0)

    monkeypatch.setitem(OBJECTIVES, "hinge", Objective("hinge", (Term("scored", hinge),), "a test", "none"))
    assert curves.why_not("hinge") == ""
    points = torch.tensor([-1.0, 0.0, 2.0])
    assert_close(curves.registered_curve("hinge", points).loss, torch.tensor([2.0, 1.0, 0.0]))


def test_factor_between_finds_a_factor_or_none():
    one = family("cross-entropy")
    assert curves.factor_between(one, family("cross-entropy", normalisation=MINOR)) == pytest.approx(2.5)
    assert curves.factor_between(one, family("squared error")) is None
    still = curves.Curve(X, torch.zeros_like(X), torch.zeros_like(X))
    assert curves.factor_between(still, one) is None


# ------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        (("squared error", 0.0, SUM, 1.0), "UFT on a demonstration"),
        (("squared error", 0.0, SUM, 0.4), "UNA with squared error"),
        (("cross-entropy", 0.0, SUM, 0.0), "BCO with δ at 0"),
        (("cross-entropy", 0.0, SUM, 1.0), "MinorSFT up to its factor"),
        (("cross-entropy", 5.0, SUM, 1.0), "BCO with δ = β·baseline"),
        (("cross-entropy", 0.0, MINOR, 1.0), "MinorSFT"),
        (("absolute error", 0.0, SUM, 1.0), "APO-zero"),
        (("absolute error", 0.0, SUM, 0.0), "KTO with its baseline at 0"),
        (("absolute error", 3.0, SUM, 0.0), "KTO"),
    ],
)
def test_members_have_their_names(choice, name):
    assert name in curves.known_as(*choice)


@pytest.mark.parametrize(
    "choice",
    [
        ("absolute error", -3.0, SUM, 1.0),
        ("absolute error", 3.0, SUM, 0.5),
        ("squared error", 3.0, SUM, 1.0),
        ("absolute error", 0.0, MEAN, 1.0),
        ("cross-entropy", 0.0, MINOR, 0.0),
    ],
)
def test_what_nobody_named_has_no_name(choice):
    assert curves.known_as(*choice) == []


def test_unknown_choices_are_refused():
    with pytest.raises(InputError, match="distance"):
        at("hamming", 0.0)
    with pytest.raises(InputError, match="normalisation"):
        at("squared error", 0.0, normalisation="softmax")
    with pytest.raises(InputError, match="kind"):
        curves.registered_curve("dpo", X, "label")


# ------------------------------------------------------------------------------ drawn as lines


def missed(found, curve):
    """The largest distance of straight lines from the curve, as a share of the curve's height."""
    x = torch.linspace(float(found.logratio[0]), float(found.logratio[-1]), 977, dtype=torch.float64)
    true, misses = curve(x), []
    for lines, values in ((found.loss, true.loss), (found.pull, true.pull)):
        gap = abs(np.interp(x, found.logratio, lines) - values.numpy())
        misses.append(gap.max() / max(float(values.max() - values.min()), 1e-300))
    return max(misses)


@every_distance
@pytest.mark.parametrize("score", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_lines_between_the_places_are_the_curve(distance, score, beta):
    def curve(x):
        return curves.family_curve(x, score, beta, distance, 7.0)

    assert missed(curves.drawn(curve, -60.0, 40.0), curve) < 0.003


def test_a_jump_is_drawn_upright_and_where_it_is():
    """Score 0.7, beta 0.1: the absolute error turns at 10 log(7 / 3) nats, and its pull goes from 0.021 to -0.021."""
    found = curves.drawn(lambda x: curves.family_curve(x, 0.7, 0.1, "absolute error"), -60.0, 40.0)
    at = int((found.pull > 0).sum())
    left, right = found.logratio[at - 1 : at + 1].tolist()
    assert left <= 10 * math.log(7 / 3) <= right < left + 0.01
    assert_close(found.pull[at - 1 : at + 1], 0.021 * torch.tensor([1.0, -1.0], dtype=torch.float64), rtol=1e-2, atol=0)


def test_places_are_few_and_rise():
    straight = curves.drawn(lambda x: curves.registered_curve("sft-sum", x, reference_logps=-40.0), -60.0, 40.0)
    bent = curves.drawn(lambda x: curves.registered_curve("una-score", x, beta=1.0), -60.0, 20.0, most=40)
    assert (len(straight.logratio), len(bent.logratio)) == (25, 40)
    assert (bent.logratio.diff() > 0).all() and bent.logratio[[0, -1]].tolist() == [-60, 20]


@pytest.fixture(scope="module")
def explorer():
    return explorer_of(NOTEBOOKS / "02_losses.ipynb", profile="smoke")


@pytest.mark.parametrize(
    "moved",
    [
        {},
        {"as_reward": True, "beta": 0.01},
        {"score": 0.7, "overlay": ("una-score-absolute-error", "scored")},
        {"score": 0.0, "baseline": 13.0, "beta": 1.0},
        {"overlay": ("dft", "demonstration"), "tokens": 2},
    ],
    ids=lambda moved: ", ".join(moved) or "at first",
)
def test_the_explorer_of_notebook_2_draws_the_functions(explorer, moved):
    chosen = {name: control.value for name, control in explorer.controls.items()} | moved
    traces = explorer.picture(**chosen).data
    most, scale = -2.5 * chosen["tokens"], chosen["beta"] if chosen["as_reward"] else 1.0
    common = {
        "score": chosen["score"],
        "beta": chosen["beta"],
        "tokens": chosen["tokens"],
        "baseline": chosen["baseline"],
    }
    family = {"distance": chosen["distance"], "normalisation": chosen["normalisation"]}

    def built(x):
        return curves.family_curve(x, reference_logps=most, **common, **family)

    def over(x):
        return curves.registered_curve(chosen["overlay"][0], x, chosen["overlay"][1], reference_logps=most, **common)

    for name, curve in (("what you built", built), ("drawn over it", over)):
        loss, pull = (torch.tensor(np.array(t.y)) for t in traces if t.name == name)
        (x, _) = (torch.tensor(np.array(t.x)) / scale for t in traces if t.name == name)
        assert missed(curves.Curve(x, loss, pull), curve) < 0.005
    assert all(t.line.shape is None for t in traces)  # straight lines: a spline bends where the function does not


def test_explorers_factor_is_the_one_of_the_curves(explorer):
    chosen = {name: control.value for name, control in explorer.controls.items()}
    assert "the same curve (factor 1)" in explorer.words(**chosen)
    assert "a different curve" in explorer.words(**chosen | {"baseline": -5.0})

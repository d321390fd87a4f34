"""The TRL library's own code as an oracle, where it computes the same: `pip install uftlab[bench]`, else skipped.

`benchmarks/trl_parity.py` runs its lines on stubs and holds the table of docs/trl.md. Here the table is measured again,
and what it does not have is compared: weights and both sides of KTO's baseline, BCO without our shift, other batches.
"""

import json
from dataclasses import replace

import pytest
import torch
import trl_parity
from torch.testing import assert_close
from trl_parity import CASES, PAIRS, compared, dpo, kto, loss_types, measure, random_batch

from uftlab import losses
from uftlab.reports.trl import STORED

trl = pytest.importorskip("trl")
BETA = trl_parity.BETA


def agree(ours, theirs, policy):
    """Same value and same gradient."""
    assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    first, second = (torch.autograd.grad(loss, policy, retain_graph=True)[0] for loss in (ours, theirs))
    assert first.abs().max() > 0
    assert_close(first, second, rtol=1e-4, atol=1e-7)


def test_the_table_is_measured_as_it_is_stored():
    stored, found = json.loads(STORED.read_text()), measure()
    if found["trl"] != stored["trl"]:
        pytest.skip(f"the table is of TRL {stored['trl']}")
    for row, again in zip(stored["rows"], found["rows"], strict=True):
        assert {**row, "value_away": 0, "gradient_away": 0} == {**again, "value_away": 0, "gradient_away": 0}
        for away in ("value_away", "gradient_away"):
            assert row[away] == pytest.approx(again[away], rel=0.1, abs=1e-9)
    assert {name: stored[name] for name in ("absent", "others", "gone")} == {
        name: found[name] for name in ("absent", "others", "gone")
    }


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.trainer} {c.loss} {c.name}")
def test_a_verdict_does_not_depend_on_the_batch(case, monkeypatch):
    monkeypatch.setattr(trl_parity, "random_batch", lambda rows, seed=0: random_batch(rows, seed + 7))
    stored = {(r["trainer"], r["loss"], r["ours"]): r["agrees"] for r in json.loads(STORED.read_text())["rows"]}
    assert compared(case)["agrees"] is stored[case.trainer, case.loss, case.name]


def test_a_wrong_setting_would_be_noticed():
    """The table could not say "agree" of anything that is near."""
    case = next(case for case in CASES if (case.loss, case.name) == ("sigmoid", "dpo"))
    wrong = replace(case, measured=trl_parity.on_pairs("sigmoid", "dpo", {"beta": BETA * 1.001}))
    assert not compared(wrong)["agrees"]


def test_loss_types_are_read_from_the_code():
    text = """
        if self.loss_type == "kto":
        elif loss_type == "tpo-l":
        if args.loss_type not in ("nll", "dft"):
        if self.loss_type in ["grpo", "kto"]:
    """
    assert loss_types(text) == ["kto", "tpo-l", "nll", "dft", "grpo"]


def test_bco_without_a_shift_agrees_with_the_dpo_trainer():
    policy, reference, mask = random_batch(2 * PAIRS)
    sums = (*policy.sum(-1).chunk(2), *reference.sum(-1).chunk(2))
    ours = losses.bco_loss(*sums, BETA, torch.tensor(0.0, dtype=torch.float64))
    agree(ours.mean(), dpo("bco_pair", policy, reference, mask), policy)


@pytest.mark.parametrize("shift", [-2.0, 2.0], ids=["baseline clipped to 0", "baseline above 0"])
def test_kto_agrees_with_the_kto_trainer(shift):
    policy, reference, mask = random_batch(2 * PAIRS, dtype=torch.float32)
    labels = torch.tensor([1, 0, 1, 1, 0, 1] * 2)
    mismatched = torch.tensor([-20.0, -31.0, -12.0]), torch.tensor([-21.0, -30.0, -12.5]) - shift
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    theirs = kto("kto", policy, reference, mask, labels, mismatched, **weights)
    baseline = losses.kto_kl_baseline(*mismatched)
    assert (baseline > 0) == (shift > 0)
    ours = losses.kto_loss(policy.sum(-1), reference.sum(-1), labels.float(), baseline, BETA, 1.3, 0.7)
    agree(ours.mean(), theirs, policy)

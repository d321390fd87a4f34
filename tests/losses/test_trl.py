"""The TRL library's own code as an oracle, where it computes the same: `pip install uftlab[bench]`, else skipped.

Its losses live inside trainers. Here they run unbound, on a stub in place of the trainer and of the model, so that
values and gradients are those of TRL's lines and nothing is loaded or trained. Known differences: TRL's DPO trainer
ignores label smoothing for the sigmoid loss (its CPO trainer has it), its BCO pairs have no shift, its ORPO
likelihood includes the prompt (the odds term alone is compared), and its IPO is on token means.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from uftlab import losses

trl = pytest.importorskip("trl")

BETA, PAIRS, WIDTH = 0.3, 6, 9
CPU = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, num_processes=1)


def random_batch(rows, seed=0):
    """Token log-probabilities of policy and reference, and masks of completions of different lengths."""
    state = torch.Generator().manual_seed(seed)
    mask = torch.arange(WIDTH) < torch.randint(2, WIDTH + 1, (rows, 1), generator=state)
    both = (-4 * torch.rand(rows, WIDTH, generator=state) * mask for _ in range(2))
    policy, reference = both
    return policy.requires_grad_(), reference, mask


def outputs_of(logps):
    """What TRL's trainers read of a model: per-token log-probabilities, and numbers that it only logs."""
    other = torch.zeros_like(logps)
    return SimpleNamespace(
        log_probs=logps, entropy=other, mean_logits=other, is_top1=other.bool(), label_mask=logps != 0
    )


def stub(**more):
    """Stands in for a trainer that does not train."""
    metrics = {mode: defaultdict(list) for mode in ("train", "eval")}
    base = {"model": SimpleNamespace(training=True), "accelerator": CPU, "_metrics": metrics, "aux_loss_enabled": False}
    base |= {"_total_train_tokens": 0, "_tp_size": 1, "beta": BETA, "precompute_ref_logps": True}
    return SimpleNamespace(**base, **more)


def trl_dpo(loss_type, policy, reference, mask, **more):
    """The batch loss of TRL's DPO trainer; rows are chosen completions, then rejected ones."""
    prompt = torch.zeros(len(mask), 1, dtype=torch.bool)
    sums = reference.sum(-1).chunk(2)
    inputs = {"completion_mask": torch.cat([prompt, mask], 1).long(), "attention_mask": mask.long()}
    inputs |= {"input_ids": inputs["completion_mask"], "ref_chosen_logps": sums[0], "ref_rejected_logps": sums[1]}
    self = stub(ld_alpha=None, f_divergence_type="reverse_kl", loss_types=[loss_type], loss_weights=[1.0],
                use_weighting=False, label_smoothing=0.0, **more)  # fmt: skip
    return trl.DPOTrainer._compute_loss(self, lambda **inputs: outputs_of(policy), inputs, False)


def sums_of(policy, reference):
    return (*policy.sum(-1).chunk(2), *reference.sum(-1).chunk(2))


def agree(ours, theirs, policy):
    """Same value and same gradient."""
    assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    first, second = (torch.autograd.grad(loss, policy, retain_graph=True)[0] for loss in (ours, theirs))
    assert first.abs().max() > 0
    assert_close(first, second, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("loss_type", "loss"),
    [
        ("sigmoid", lambda *s: losses.dpo_loss(*s, BETA)),
        ("sigmoid", lambda *s: losses.una_pair_loss(*s, BETA)),
        ("apo_zero", lambda *s: losses.apo_zero_loss(*s, BETA)),
        ("bco_pair", lambda *s: losses.bco_loss(*s, BETA, torch.tensor(0.0))),
    ],
    ids=["dpo", "una-pair", "apo-zero", "bco"],
)
def test_pairs_agree_with_the_dpo_trainer(loss_type, loss):
    policy, reference, mask = random_batch(2 * PAIRS)
    agree(loss(*sums_of(policy, reference)).mean(), trl_dpo(loss_type, policy, reference, mask), policy)


def test_ipo_on_means_agrees_and_ipo_on_sums_does_not():
    policy, reference, mask = random_batch(2 * PAIRS)
    sums, lengths = sums_of(policy, reference), mask.sum(-1).float().chunk(2)
    theirs = trl_dpo("ipo", policy, reference, mask)
    agree(losses.ipo_mean_loss(*sums, *lengths, BETA).mean(), theirs, policy)
    assert abs(losses.ipo_loss(*sums, BETA).mean() - theirs) > 0.1


def test_rpo_agrees_with_the_sum_of_two_loss_types():
    policy, reference, mask = random_batch(2 * PAIRS)
    chosen = (policy * mask).chunk(2)[0].sum() / mask.chunk(2)[0].sum()
    ours = losses.dpo_loss(*sums_of(policy, reference), BETA).mean() - chosen
    theirs = trl_dpo("sigmoid", policy, reference, mask) + trl_dpo("sft", policy, reference, mask)
    agree(ours, theirs, policy)


def test_cdpo_agrees_with_the_cpo_trainer_fed_with_logratios():
    from trl.experimental.cpo import CPOTrainer

    policy, reference, _ = random_batch(2 * PAIRS)
    logratios = (policy.sum(-1) - reference.sum(-1)).chunk(2)
    self = stub(alpha=0.0, loss_type="sigmoid", label_smoothing=0.2)
    theirs = CPOTrainer.cpo_loss(self, *logratios)[0].mean()
    agree(losses.cdpo_loss(*sums_of(policy, reference), BETA, 0.2).mean(), theirs, policy)


def test_simpo_agrees_with_the_cpo_trainer():
    from trl.experimental.cpo import CPOTrainer

    policy, _, mask = random_batch(2 * PAIRS)
    sums, lengths = policy.sum(-1).chunk(2), mask.sum(-1).float().chunk(2)
    means = [s / n for s, n in zip(sums, lengths, strict=True)]
    theirs = CPOTrainer.cpo_loss(stub(alpha=0.0, loss_type="simpo", label_smoothing=0.0, simpo_gamma=0.5), *means)[0]
    agree(losses.simpo_loss(*sums, *lengths, BETA, 0.5).mean(), theirs.mean(), policy)


def test_orpos_odds_term_agrees_with_the_orpo_trainer():
    from trl.experimental.orpo import ORPOTrainer

    policy, _, mask = random_batch(2 * PAIRS)
    sums, lengths = policy.sum(-1).chunk(2), mask.sum(-1).float().chunk(2)
    means = [s / n for s, n in zip(sums, lengths, strict=True)]
    odds = losses.orpo_loss(*sums, *lengths, BETA) + means[0]  # without the likelihood term
    theirs = -ORPOTrainer.odds_ratio_loss(stub(), *means)[0]
    agree(odds.mean(), theirs.mean(), policy)


@pytest.mark.parametrize("shift", [-2.0, 2.0], ids=["baseline clipped to 0", "baseline above 0"])
def test_kto_agrees_with_the_kto_trainer(shift):
    policy, reference, mask = random_batch(2 * PAIRS)
    labels = torch.tensor([1, 0, 1, 1, 0, 1] * 2)
    mismatched = torch.tensor([-20.0, -31.0, -12.0]), torch.tensor([-21.0, -30.0, -12.5]) - shift
    prompt = torch.zeros(len(mask), 1, dtype=torch.bool)
    inputs = {"completion_mask": torch.cat([prompt, mask], 1).long(), "attention_mask": mask.long(), "label": labels}
    inputs |= {"input_ids": inputs["completion_mask"], "ref_logps": reference.sum(-1), "ref_KL_logps": mismatched[1]}
    self = stub(calculate_KL=True, loss_type="kto", desirable_weight=1.3, undesirable_weight=0.7,
                _compute_kl_logps=lambda model, batch: mismatched[0])  # fmt: skip
    theirs = trl.KTOTrainer._compute_loss(self, lambda **inputs: outputs_of(policy), inputs, False)
    baseline = losses.kto_kl_baseline(*mismatched)
    assert (baseline > 0) == (shift > 0)
    ours = losses.kto_loss(policy.sum(-1), reference.sum(-1), labels.float(), baseline, BETA, 1.3, 0.7)
    agree(ours.mean(), theirs, policy)


@pytest.mark.parametrize("loss_type", ["dft", "nll"])
def test_dft_and_sft_agree_with_the_sft_trainer(loss_type):
    policy, _, mask = random_batch(PAIRS)
    arguments = SimpleNamespace(loss_type=loss_type, average_tokens_across_devices=False)
    accelerator = SimpleNamespace(**{**vars(CPU), "parallelism_config": None})
    self = stub(args=arguments, compute_loss_func=None, label_smoother=None)
    self.accelerator = accelerator
    inputs = {"input_ids": mask.long(), "attention_mask": mask.long(), "labels": mask.long()}
    theirs = trl.SFTTrainer.compute_loss(self, lambda **inputs: outputs_of(policy), inputs)
    ours = losses.dft_loss(policy) if loss_type == "dft" else losses.sft_loss(policy.sum(-1))
    agree(ours.sum() / mask.sum(), theirs, policy)

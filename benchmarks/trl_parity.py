"""Which of TRL's losses are ours? Measured on the same random log-probabilities, in value and in gradient.

    python benchmarks/trl_parity.py --measure --page docs/trl.md

TRL's losses live inside trainers. Here they run unbound, on a stub in place of the trainer and of the model, so that
values and gradients are those of TRL's lines and nothing is loaded or trained. Ours are the registered objectives, with
their own averages over a batch. All numbers are of 64 bits. Both agree where the values are as close as 1e-5 and the
gradients as 1e-5 of their largest entry.

The trainers and their loss types are read from TRL's code, so none can be forgotten. Measuring needs
`pip install "uftlab[bench]"`. Without `--measure` the page is written again from what is stored.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from uftlab.files import write_atomically
from uftlab.objectives.objective import Positions, Rows
from uftlab.objectives.registry import objective_named
from uftlab.reports.trl import CLOSE, STORED, trl_page
from uftlab.rows.tokens import ROLE_INDEX

BETA, PAIRS, WIDTH, WORDS = 0.3, 6, 9, 7
EARLIER = ("PPOTrainer", "BCOTrainer", "NashMDTrainer", "XPOTrainer", "PRMTrainer", "CPOTrainer", "ORPOTrainer")
CPU = SimpleNamespace(
    device=torch.device("cpu"),
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    reduce=lambda x, reduction="sum": x,
    num_processes=1,
    parallelism_config=None,
)

# ------------------------------------------------------------------------------- TRL's lines, on stubs


def random_batch(rows: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Token log-probabilities of policy and reference, and masks of completions of different lengths."""
    state = torch.Generator().manual_seed(seed)
    mask = torch.arange(WIDTH) < torch.randint(2, WIDTH + 1, (rows, 1), generator=state)
    both = (-4 * torch.rand(rows, WIDTH, generator=state).to(dtype) * mask for _ in range(2))
    policy, reference = both
    return policy.requires_grad_(), reference, mask


def outputs_of(logps: Tensor) -> Any:
    """What TRL's trainers read of a model: per-token log-probabilities, and numbers that it only logs."""
    other = torch.zeros_like(logps)
    return SimpleNamespace(
        log_probs=logps, entropy=other, mean_logits=other, is_top1=other.bool(), label_mask=logps != 0
    )


def stub(**more: Any) -> Any:
    """Stands in for a trainer that does not train."""
    metrics: dict[str, Any] = {mode: defaultdict(list) for mode in ("train", "eval")}
    base = {"model": SimpleNamespace(training=True), "accelerator": CPU, "_metrics": metrics, "aux_loss_enabled": False}
    base |= {"_total_train_tokens": 0, "_tp_size": 1, "beta": BETA, "precompute_ref_logps": True}
    return SimpleNamespace(**{**base, **more})


def with_prompt(mask: Tensor) -> Tensor:
    """The mask of completions behind a prompt of one token, as TRL has it."""
    return torch.cat([torch.zeros(len(mask), 1, dtype=torch.bool), mask], 1).long()


def dpo(loss_types: str, policy: Tensor, reference: Tensor, mask: Tensor, **more: Any) -> Tensor:
    """The batch loss of the DPO trainer; rows are chosen completions, then rejected ones."""
    import trl

    sums, names = reference.sum(-1).chunk(2), loss_types.split(" + ")
    inputs = {"completion_mask": with_prompt(mask), "attention_mask": mask.long()}
    inputs |= {"input_ids": inputs["completion_mask"], "ref_chosen_logps": sums[0], "ref_rejected_logps": sums[1]}
    options = {"ld_alpha": None, "f_divergence_type": "reverse_kl", "use_weighting": False, "label_smoothing": 0.0}
    self = stub(loss_types=names, loss_weights=[1.0] * len(names), **{**options, **more})
    return trl.DPOTrainer._compute_loss(self, lambda **_: outputs_of(policy), inputs, False)


def kto(
    loss_type: str,
    policy: Tensor,
    reference: Tensor,
    mask: Tensor,
    labels: Tensor,
    other: Sequence[Tensor],
    **more: Any,
) -> Tensor:
    """The batch loss of the KTO trainer. `other` are sums of mismatched completions: policy and reference."""
    import trl

    inputs = {"completion_mask": with_prompt(mask), "attention_mask": mask.long(), "label": labels}
    inputs |= {"input_ids": inputs["completion_mask"], "ref_logps": reference.sum(-1), "ref_KL_logps": other[1]}
    options = {"calculate_KL": loss_type == "kto", "desirable_weight": 1.0, "undesirable_weight": 1.0}
    self = stub(loss_type=loss_type, _compute_kl_logps=lambda model, batch: other[0], **{**options, **more})
    return trl.KTOTrainer._compute_loss(self, lambda **_: outputs_of(policy), inputs, False)


def cpo(loss_type: str, chosen: Tensor, rejected: Tensor, smoothing: float = 0.0) -> Tensor:
    """The preference term of the CPO trainer: its mean over pairs, from log-probabilities of the two sides."""
    from trl.experimental.cpo import CPOTrainer

    self = stub(alpha=0.0, loss_type=loss_type, label_smoothing=smoothing, simpo_gamma=0.5)
    return CPOTrainer.cpo_loss(self, chosen, rejected)[0].mean()


def orpo(chosen_means: Tensor, rejected_means: Tensor) -> Tensor:
    """The odds term of the ORPO trainer, as it enters its loss."""
    from trl.experimental.orpo import ORPOTrainer

    return -ORPOTrainer.odds_ratio_loss(stub(), chosen_means, rejected_means)[0].mean()


def tpo(loss_type: str, logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The batch loss of the TPO trainer; rows are chosen, rejected and best completions. `logits` predict `ids`."""
    from trl.experimental.tpo import TPOTrainer

    whole = torch.cat([logits, torch.zeros_like(logits[:, :1])], 1)  # the last position predicts nothing
    inputs = {"input_ids": torch.cat([ids[:, :1], ids], 1), "completion_mask": with_prompt(mask)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    self = stub(loss_type=loss_type, tpo_alpha=0.5, label_smoothing=0.0, tpo_l_gamma=0.5)
    return TPOTrainer._compute_loss(self, lambda **_: SimpleNamespace(logits=whole), inputs, False)


def sft(loss_type: str, policy: Tensor, mask: Tensor) -> Tensor:
    """The batch loss of the SFT trainer on completions."""
    import trl

    arguments = SimpleNamespace(loss_type=loss_type, average_tokens_across_devices=False)
    self = stub(args=arguments, compute_loss_func=None, label_smoother=None)
    inputs = {"input_ids": mask.long(), "attention_mask": mask.long(), "labels": mask.long()}
    return trl.SFTTrainer.compute_loss(self, lambda **_: outputs_of(policy), inputs)


def rloo(policy: Tensor, sampled: Tensor, mask: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """The batch loss of the RLOO trainer; `sampled` are the log-probabilities that the samples were drawn with."""
    import trl

    made = (policy, torch.zeros_like(policy), None)
    self = stub(_get_per_token_logps_and_entropies=lambda *_, **__: made, epsilon_low=clip, epsilon_high=clip)
    inputs = {"prompt_ids": mask[:, :1].long(), "prompt_mask": mask[:, :1].long(), "completion_ids": mask.long()}
    inputs |= {"completion_mask": mask.long(), "old_logps": sampled.sum(-1), "advantages": advantages}
    return trl.RLOOTrainer._compute_loss(self, None, inputs)


# ------------------------------------------------------------------------------------------------ ours


def ours(
    name: str,
    policy: Tensor,
    reference: Tensor,
    mask: Tensor,
    roles: Sequence[str],
    scores: Tensor | None = None,
    ids: Tensor | None = None,
    **settings: float,
) -> Tensor:
    """A registered objective on token log-probabilities, averaged as it is in training."""
    objective = objective_named(name)
    role = torch.tensor([ROLE_INDEX[own] for own in roles])
    scores = torch.full((len(role),), math.nan) if scores is None else scores
    ids = mask.long() if ids is None else ids
    rows = Rows(policy.sum(-1), reference.sum(-1), scores.to(policy), role, Positions(ids, mask, policy))
    counts = objective.counts({"completion_mask": mask, "role": role})
    return objective.loss(rows, objective.with_defaults(settings), counts.to(policy))


SIDES = ["chosen"] * PAIRS + ["rejected"] * PAIRS
Measured = tuple[Tensor, Tensor, Tensor, Tensor]  # theirs, ours, what both are differentiated by, and its real tokens


def on_pairs(loss_type: str, name: str, settings: dict[str, float], **more: Any) -> Callable[[], Measured]:
    """The DPO trainer beside an objective on pairs."""

    def measured() -> Measured:
        policy, reference, mask = random_batch(2 * PAIRS)
        theirs = dpo(loss_type, policy, reference, mask, **more)
        return theirs, ours(name, policy, reference, mask, SIDES, **settings), policy, mask

    return measured


def on_labels(loss_type: str, name: str) -> Callable[[], Measured]:
    """The KTO trainer beside an objective on labels, with mismatched completions where it needs them."""

    def measured() -> Measured:
        policy, reference, mask = random_batch(2 * PAIRS)
        labels = torch.tensor([1, 0, 1, 1, 0, 1] * 2)
        other, other_reference, other_mask = (part.detach() for part in random_batch(3, seed=1))
        other = other + 2 * other_mask  # else the baseline would be clipped at 0
        theirs = kto(loss_type, policy, reference, mask, labels, (other.sum(-1), other_reference.sum(-1)))
        parts = [(policy, reference, mask, labels)]
        roles = ["label"] * len(mask)
        if objective_named(name).mismatched:
            parts.append((other, other_reference, other_mask, torch.zeros(3)))
            roles += ["mismatched"] * 3
        whole, whole_reference, whole_mask, scores = (torch.cat(own) for own in zip(*parts, strict=True))
        return theirs, ours(name, whole, whole_reference, whole_mask, roles, scores, beta=BETA), policy, mask

    return measured


def on_cpo(
    loss_type: str, name: str, mean: bool = False, reference_too: bool = False, smoothing: float = 0.0, **more: float
) -> Callable[[], Measured]:
    """The preference term of the CPO trainer beside an objective on pairs."""

    def measured() -> Measured:
        policy, reference, mask = random_batch(2 * PAIRS)
        read = (policy - reference if reference_too else policy).sum(-1)
        theirs = cpo(loss_type, *(read / mask.sum(-1) if mean else read).chunk(2), smoothing)
        return theirs, ours(name, policy, reference, mask, SIDES, beta=BETA, **more), policy, mask

    return measured


def on_odds() -> Measured:
    """The odds term of the ORPO trainer beside ours without its likelihood."""
    policy, reference, mask = random_batch(2 * PAIRS)
    means = (policy.sum(-1) / mask.sum(-1)).chunk(2)
    own = ours("orpo", policy, reference, mask, SIDES, odds_weight=BETA) + means[0].mean()
    return orpo(*means), own, policy, mask


def on_orpo() -> Measured:
    """The ORPO trainer beside ours, from logits. There are two tokens of prompt."""
    from trl.experimental.orpo import ORPOTrainer

    logits, ids, mask = random_logits(2 * PAIRS)
    prompt = torch.tensor([[1, 2]]).expand(len(ids), 2)
    more = torch.randn(len(ids), 2, WORDS, generator=torch.Generator().manual_seed(1)).double()
    whole = torch.cat([more[:, :1], logits, more[:, 1:]], 1)  # of the prompt one prediction counts, of the last none
    labels = torch.cat([prompt * 0 - 100, ids.where(mask, -100)], 1)
    parts = {"input_ids": torch.cat([prompt, ids.where(mask, 0)], 1), "labels": labels}
    parts["attention_mask"] = torch.cat([torch.ones_like(prompt), mask.long()], 1)
    batch = {
        f"{side}_{name}": part
        for name, both in parts.items()
        for side, part in zip(("chosen", "rejected"), both.chunk(2), strict=True)
    }
    self = stub(is_encoder_decoder=False, padding_value=0, get_batch_logps=ORPOTrainer.get_batch_logps)
    self.concatenated_inputs = ORPOTrainer.concatenated_inputs
    made = ORPOTrainer.concatenated_forward(self, lambda *_, **__: SimpleNamespace(logits=whole), batch)
    theirs = made[4] + orpo(*made[:2])
    logps = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0].where(mask, 0.0)
    own = ours("orpo", logps, torch.zeros_like(logps), mask, SIDES, ids=ids, odds_weight=BETA)
    return theirs, own, logits, mask[..., None]


def random_logits(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, the words that came, and masks of completions of different lengths."""
    state = torch.Generator().manual_seed(0)
    mask = torch.arange(WIDTH) < torch.randint(2, WIDTH + 1, (rows, 1), generator=state)
    ids = torch.randint(0, WORDS, mask.shape, generator=state)
    return torch.randn(*mask.shape, WORDS, generator=state).double().requires_grad_(), ids, mask


def on_tpo() -> Measured:
    """The TPO trainer beside ours, from logits."""
    logits, ids, mask = random_logits(3 * PAIRS)
    logps = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0].where(mask, 0.0)
    roles = [*SIDES, *["demonstration"] * PAIRS]
    own = ours("tpo", logps, torch.zeros_like(logps), mask, roles, ids=ids, beta=BETA, sft_weight=0.5)
    return tpo("sigmoid", logits, ids, mask), own, logits, mask[..., None]


def on_sft(loss_type: str, name: str) -> Callable[[], Measured]:
    """The SFT trainer beside an objective on demonstrations."""

    def measured() -> Measured:
        policy, reference, mask = random_batch(PAIRS)
        own = ours(name, policy, reference, mask, ["demonstration"] * PAIRS)
        return sft(loss_type, policy, mask), own, policy, mask

    return measured


def on_rloo() -> Measured:
    """The RLOO trainer beside ours, both given the advantages."""
    policy, _, mask = random_batch(PAIRS)
    noise = torch.randn(policy.shape, generator=torch.Generator().manual_seed(1)).to(policy)
    sampled = (policy.detach() + 0.1 * noise) * mask
    advantages = torch.tensor([1.0, -0.5, -0.5, 0.3, 0.2, -0.5]).to(policy)
    own = ours("rloo", policy, sampled, mask, ["scored"] * PAIRS, advantages, clip=0.2)
    return rloo(policy, sampled, mask, advantages, 0.2), own, policy, mask


@dataclass(frozen=True)
class Case:
    """A loss of TRL beside an objective of ours. `how` says in what they differ, or under what they agree."""

    trainer: str
    loss: str
    name: str
    measured: Callable[[], Measured]
    how: str = ""


BETAS = {"beta": BETA}
SMOOTHED = {"beta": BETA, "label_smoothing": 0.2}
CASES = (
    Case("SFTTrainer", "nll", "sft", on_sft("nll", "sft"), "`chunked_nll` is an old name for it"),
    Case("SFTTrainer", "dft", "dft", on_sft("dft", "dft")),
    Case("DPOTrainer", "sigmoid", "dpo", on_pairs("sigmoid", "dpo", BETAS)),
    Case("DPOTrainer", "sigmoid", "una-pair", on_pairs("sigmoid", "una-pair", BETAS)),
    Case(
        "DPOTrainer", "sigmoid, label_smoothing 0.2", "cdpo",
        on_pairs("sigmoid", "cdpo", SMOOTHED, label_smoothing=0.2),
        "there the sigmoid loss ignores label smoothing",
    ),
    Case("DPOTrainer", "sigmoid_norm", "dpo-norm", on_pairs("sigmoid_norm", "dpo-norm", BETAS)),
    Case("DPOTrainer", "sigmoid + sft", "rpo", on_pairs("sigmoid + sft", "rpo", {**BETAS, "sft_weight": 1.0})),
    Case("DPOTrainer", "ipo", "ipo-mean", on_pairs("ipo", "ipo-mean", BETAS)),
    Case(
        "DPOTrainer", "ipo", "ipo", on_pairs("ipo", "ipo", BETAS),
        "there log-ratios are means over tokens, here sums",
    ),
    Case("DPOTrainer", "apo_zero", "apo-zero", on_pairs("apo_zero", "apo-zero", BETAS)),
    Case(
        "DPOTrainer", "bco_pair", "bco", on_pairs("bco_pair", "bco", BETAS),
        "there pairs have no shift, here that of the batch; `losses.bco_loss` with shift 0 is theirs",
    ),
    Case("KTOTrainer", "kto", "kto", on_labels("kto", "kto"), "given the same mismatched completions"),
    Case(
        "KTOTrainer", "apo_zero_unpaired", "una-binary-absolute-error",
        on_labels("apo_zero_unpaired", "una-binary-absolute-error"),
    ),
    Case("CPOTrainer", "simpo", "simpo", on_cpo("simpo", "simpo", mean=True, target_margin=0.5), "cpo_alpha 0 there"),
    Case(
        "CPOTrainer", "sigmoid", "tpo", on_cpo("sigmoid", "tpo", sft_weight=0.0),
        "the preference terms (cpo_alpha 0 there, sft_weight 0 here); its likelihood is of the chosen completion",
    ),
    Case(
        "CPOTrainer", "sigmoid, label_smoothing 0.2", "cdpo",
        on_cpo("sigmoid", "cdpo", reference_too=True, smoothing=0.2, label_smoothing=0.2),
        "if it is given log-ratios in place of log-probabilities",
    ),
    Case("ORPOTrainer", "odds term", "orpo", on_odds, "without the likelihood terms"),
    Case(
        "ORPOTrainer", "the whole", "orpo", on_orpo,
        "there the likelihood is of prompt and completion, averaged over the tokens of the batch; here it is of the "
        "completion, averaged over its own",
    ),
    Case("TPOTrainer", "sigmoid", "tpo", on_tpo, "the best completion there is a demonstration here"),
    Case("RLOOTrainer", "-", "rloo", on_rloo, "given advantages; rewards may be normalised there and not here"),
)  # fmt: skip


def compared(case: Case) -> dict[str, Any]:
    """A row of the table: whether value and gradient agree, and how far they are apart."""
    theirs, own, by, real = case.measured()
    slopes = [torch.autograd.grad(loss, by, retain_graph=True)[0] * real for loss in (theirs, own)]
    value = (theirs - own).abs().item()
    gradient = ((slopes[0] - slopes[1]).abs().max() / slopes[1].abs().max()).item()
    row = {"trainer": case.trainer, "loss": case.loss, "ours": case.name, "how": case.how}
    agrees = value <= CLOSE and gradient <= CLOSE
    return {**row, "agrees": agrees, "value_away": float(f"{value:.2g}"), "gradient_away": float(f"{gradient:.2g}")}


# --------------------------------------------------------------------------------- what there is in TRL


def trainers() -> Iterator[tuple[str, str]]:
    """Every trainer of TRL and the text of its file. One that has moved is counted once."""
    import trl

    seen: set[str] = set()
    root = Path(inspect.getfile(trl)).parent
    files = [*sorted(root.glob("trainer/*_trainer.py")), *sorted(root.glob("experimental/*/*_trainer.py"))]
    for file in files:
        text = file.read_text()
        for name in re.findall(r"^class (\w+Trainer)\(", text, re.M):
            if not name.startswith("_") and name not in seen:
                seen.add(name)
                yield name, text


def loss_types(text: str) -> list[str]:
    """The loss types that a trainer's code tells apart."""
    alone = re.findall(r"loss_type == \"([\w-]+)\"", text)
    listed = re.findall(
        r"self\.loss_type (?:not )?in [\[(]([^\])]*)[\])]|args\.loss_type (?:not )?in \(([^)]*)\)", text
    )
    several = [name for group in listed for part in group for name in re.findall(r"\"([\w-]+)\"", part)]
    return list(dict.fromkeys([*alone, *several]))


REFUSED = {("CPOTrainer", "kto_pair")}  # its code names it to say so


def measure() -> dict[str, Any]:
    """Everything that the page shows."""
    rows = [compared(case) for case in CASES]
    known = {(row["trainer"], part) for row in rows for part in row["loss"].split(",")[0].split(" + ")} | REFUSED
    compared_trainers = {row["trainer"] for row in rows}
    absent, others = [], []
    for trainer, text in trainers():
        if trainer not in compared_trainers:
            others.append(trainer)
            continue
        absent += [{"trainer": trainer, "loss": loss} for loss in loss_types(text) if (trainer, loss) not in known]
    gone = [name for name in EARLIER if not hasattr(importlib.import_module("trl"), name)]
    found = {"trl": version("trl"), "torch": torch.__version__, "rows": rows, "absent": absent}
    return {**found, "others": others, "gone": gone}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and store if it was asked for; write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--json", type=Path, default=STORED)
    parser.add_argument("--page", type=Path)
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        found = measure()
        write_atomically(chosen.json, json.dumps(found, indent=1) + "\n")
        for row in found["rows"]:
            print(f"{row['trainer']:12} {row['loss']:30} {row['ours']:28} {'agrees' if row['agrees'] else 'differs'}")
    if chosen.page:
        write_atomically(chosen.page, trl_page(json.loads(chosen.json.read_text())))


if __name__ == "__main__":
    main()

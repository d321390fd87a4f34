"""Objectives are weighted sums of terms. This module says what a loss may read, and how a batch becomes one number.

A term takes one kind of example, applies one function of `uftlab.losses` and divides the sum of the losses by a count.
The count is the number of examples, or of completion tokens, of that kind in the whole optimiser step. It is known
before the forward pass. So eight accumulated micro-batches give exactly the loss of one batch eight times as large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from uftlab.errors import InputError
from uftlab.losses.distillation import distillation_loss
from uftlab.losses.rewards import Scalar, implicit_reward
from uftlab.models.logps import gather_logps, token_kl
from uftlab.rows.tokens import ROLE_INDEX, Example

LEADING_ROLE = {"demonstration": "demonstration", "scored": "scored", "label": "label", "preference": "chosen"}


VERIFIED = {
    "P": "the authors' paper or code",
    "T": "the code of the TRL library",
    "2": "a secondary source",
    "M": "memory",
    "-": "no paper of its own",
}


@dataclass(frozen=True)
class Positions:
    """What losses on single tokens may read, column by column. Only some objectives need logits or entropies."""

    ids: Int[Tensor, "completion pos"]
    mask: Bool[Tensor, "completion pos"]
    logps: Float[Tensor, "completion pos"]
    policy_logits: Float[Tensor, "completion pos vocabulary"] | None = None
    reference_logits: Float[Tensor, "completion pos vocabulary"] | None = None
    own_entropies: Float[Tensor, "completion pos"] | None = None

    @classmethod
    def even(cls, policy_logps: Float[Tensor, "completion"], tokens: int) -> Positions:
        """Sums spread evenly over `tokens` positions, to evaluate a loss without a model. There are no logits.

        No two completions have a token in common, so they share no prefix.
        """
        shape = (len(policy_logps), tokens)
        ids = torch.arange(len(policy_logps))[:, None].expand(shape)
        return cls(ids, torch.ones(shape, dtype=torch.bool), (policy_logps / tokens)[:, None].expand(shape))

    def of(self, here: Bool[Tensor, "completion"] | slice) -> Positions:
        """The rows where `here` is True, or the rows of a slice."""
        more = (self.policy_logits, self.reference_logits, self.own_entropies)
        own = (None if x is None else x[here] for x in more)
        return Positions(self.ids[here], self.mask[here], self.logps[here], *own)

    @property
    def lengths(self) -> Float[Tensor, "completion"]:
        """Number of tokens of each completion, the end token included. Counted from the mask, never from values."""
        return self.mask.sum(-1).to(self.logps.dtype)

    def _distributions(self) -> tuple[Tensor, Tensor]:
        if self.policy_logits is None or self.reference_logits is None:
            remedy = "Declare distributions=True in the objective, or give its Positions both models' logits"
            raise InputError("Rows of this objective", "carry full distributions", "single tokens alone", remedy)
        return self.policy_logits, self.reference_logits

    @property
    def entropies(self) -> Float[Tensor, "completion pos"]:
        """Entropy of the policy at each token in nats, without gradient, 0 at padding (`models.logps.token_entropy`).

        Raises:
            InputError: when these positions have none.
        """
        if self.own_entropies is None:
            remedy = "Declare entropies in the objective, or give its Positions own_entropies"
            raise InputError("Rows of this objective", "carry entropies", "single tokens alone", remedy)
        return self.own_entropies

    def reference_token_logps(self) -> Float[Tensor, "completion pos"]:
        """log pi_ref of each token in nats, 0 at padding."""
        return gather_logps(self._distributions()[1], self.ids, self.mask)

    def kl_from_reference(self) -> Float[Tensor, "completion"]:
        """KL(pi_ref || pi) in nats, summed over the positions of the completion. 0 where policy equals reference."""
        policy, reference = self._distributions()
        return token_kl(reference, policy, self.mask).sum(-1)

    def kl_to_reference(self) -> Float[Tensor, "completion"]:
        """KL(pi || pi_ref) in nats, summed over the positions of the completion. 0 where policy equals reference."""
        policy, reference = self._distributions()
        return token_kl(policy, reference, self.mask).sum(-1)

    def divergence_from_reference(self, reverse: float) -> Float[Tensor, "completion"]:
        """`distillation_loss` with the reference as the teacher: KL(pi_ref || pi) at `reverse` 0, the other at 1."""
        policy, reference = self._distributions()
        return distillation_loss(policy, reference, self.mask, reverse)


@dataclass(frozen=True)
class Rows:
    """What a loss may read: one entry per completion of the batch.

    `spans` has the places of each role, if they are known beforehand. Then the code does not read values of `role`.
    `torch.func.vmap` forbids reading values, and on a GPU the CPU would have to wait for them. `demonstrated` marks
    what comes from the table of demonstrations; only logged numbers look at it.
    """

    policy_logps: Float[Tensor, "*step completion"]
    reference_logps: Float[Tensor, "*step completion"]
    scores: Float[Tensor, "*step completion"]
    role: Int[Tensor, "completion"]
    positions: Positions | None = None
    spans: Mapping[str, slice] | None = None
    demonstrated: Bool[Tensor, "completion"] | None = None

    def of(self, role: str) -> Rows:
        """The completions of one role, in order. The n-th chosen one belongs to the n-th rejected one."""
        here = self.role == ROLE_INDEX[role] if self.spans is None else self.spans[role]
        positions = None if self.positions is None else self.positions.of(here)
        return Rows(self.policy_logps[here], self.reference_logps[here], self.scores[here], self.role[here], positions)

    @property
    def at(self) -> Positions:
        """The positions, for objectives that declare `tokens`.

        Raises:
            InputError: when these rows have no positions.
        """
        if self.positions is None:
            remedy = "Declare tokens=True in the objective, or give Rows their positions"
            raise InputError("Rows of this objective", "carry single tokens", "sums alone", remedy)
        return self.positions


Settings = Mapping[str, Scalar]
TermLoss = Callable[[Rows, Settings], Tensor]


@dataclass(frozen=True)
class Term:
    """One loss on one kind of example. `per` is the unit of the count that divides the sum: "example" or "token"."""

    kind: str
    loss: TermLoss
    per: str = "example"
    weight: str | None = None  # name of the setting that multiplies this term; None means 1
    equation: Callable | None = None  # the function of `uftlab.losses` whose docstring explains it


@dataclass(frozen=True)
class Objective:
    """A named sum of terms, with its needs, its source and the settings that a user may change.

    Args:
        reference: it reads log pi_ref of each completion, which is computed once before training.
        mismatched: each row needs a second completion, from another prompt, with its own forward pass (KTO).
        tokens: it reads single tokens, not only sums.
        distributions: it needs the full distribution of the reference at each position. So every step has a forward
            pass of the reference, whose weights stay in memory.
        entropies: it reads the policy's own entropy at each token, among that many of the most probable words; 0: it
            does not. No full distributions are kept, and there is no pass of the reference.
        quantiles: before training, each score is replaced by its quantile in the table (QRPO).
        across_batch: the loss of a row depends on other rows, so accumulated micro-batches differ from one big batch.
        verified: letters of `VERIFIED`. `note` says what could not be verified, or what we do differently.
        failure: the known way in which it fails.
        learning_rate: the value for an untuned run in the tiny world.
        axis: the setting that the sweep varies, with its four values. None: beta, in nats of the reference.
    """

    name: str
    terms: tuple[Term, ...]
    summary: str
    source: str
    settings: Mapping[str, float] = field(default_factory=dict)
    reference: bool = True
    mismatched: bool = False
    tokens: bool = False
    distributions: bool = False
    entropies: int = 0
    quantiles: bool = False
    across_batch: bool = False
    verified: str = "M"
    note: str = ""
    failure: str = ""
    learning_rate: float = 1.5e-3
    axis: tuple[str, tuple[float, ...]] | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of examples that it learns from, in the order of its terms."""
        return tuple(dict.fromkeys(term.kind for term in self.terms))

    @property
    def roles(self) -> set[str]:
        """Roles that its completions have in a batch."""
        pairs = {"chosen", "rejected"} if "preference" in self.kinds else set()
        return {k for k in self.kinds if k != "preference"} | pairs | ({"mismatched"} if self.mismatched else set())

    def check(self, examples: Sequence[Example]) -> None:
        """Refuse examples of other kinds, or without the inputs of this objective. Their loss would be 0 or NaN.

        Raises:
            InputError: the message says what the examples have instead.
        """
        roles = {c.role for example in examples for c in example}
        if roles != self.roles:
            remedy = "Convert the table (`uftlab.rows.table.convert`), and for KTO add mismatched completions"
            raise InputError(f"Examples for {self.name}", f"have the roles {sorted(self.roles)}", sorted(roles), remedy)
        if self.reference and any(math.isnan(c.reference_logps) for example in examples for c in example):
            remedy = "Fill them in with `uftlab.models.references.ReferenceCache`"
            raise InputError(f"Examples for {self.name}", "carry reference log-probabilities", "NaN", remedy)

    def with_defaults(self, settings: Mapping[str, float]) -> dict[str, float]:
        """The defaults of this objective, replaced by the given settings where there are any.

        Raises:
            InputError: for a setting that this objective does not have.
        """
        unknown = sorted(set(settings) - set(self.settings))
        if unknown:
            have = ", ".join(self.settings) or "none"
            raise InputError(f"Settings of {self.name}", f"be among ({have})", unknown, "Remove or rename them")
        return {**self.settings, **settings}

    def counts(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "term"]:
        """The count that divides the sum of each term: examples or completion tokens of its kind in this batch."""
        tokens = batch["completion_mask"].sum(-1)
        numbers = []
        for term in self.terms:
            here = batch["role"] == ROLE_INDEX[LEADING_ROLE[term.kind]]
            numbers.append((tokens * here).sum() if term.per == "token" else here.sum())
        return torch.stack(numbers).float()

    def loss(self, rows: Rows, settings: Settings, counts: Float[Tensor, "term"]) -> Float[Tensor, ""]:
        """The scalar to minimise. A term without examples in the step adds 0."""
        total = rows.policy_logps.sum() * 0.0
        for term, count in zip(self.terms, counts, strict=True):
            weight = 1.0 if term.weight is None else settings[term.weight]
            total = total + weight * term.loss(rows, settings).sum() / count.clamp(min=1)
        return total

    def sums(self, rows: Rows, settings: Mapping[str, float]) -> Sums:
        """The logged numbers of a batch: `metric_sums`, without rewards if this objective reads no reference."""
        found = metric_sums(rows, settings.get("beta", 1.0))
        return {name: value for name, value in found.items() if self.reference or not name.startswith("reward/")}


Sums = Mapping[str, Float[Tensor, "*step 2"]]  # of each metric the sum over completions, and their number


def metric_sums(rows: Rows, beta: float) -> dict[str, Float[Tensor, "*step 2"]]:
    """Of rewards (beta included) and log-probabilities the sums over completions and their numbers, for any objective.

    A completion with a label or score above one half counts as chosen, unless it comes from the demonstrations, which
    are counted apart. `kl_baseline` is the mean log-ratio of KTO's mismatched completions, in nats, before the loss
    clamps it at 0. A metric without completions is left out. Rows of many steps may be given at once if all steps
    have the same roles. `means_of` divides. So parts of a step can be added up first.
    """
    rewards = implicit_reward(rows.policy_logps, rows.reference_logps, beta).detach()
    logps = rows.policy_logps.detach()
    real = rows.role != ROLE_INDEX["mismatched"]
    demonstration = rows.role == ROLE_INDEX["demonstration"]
    if rows.demonstrated is not None:
        demonstration = demonstration | rows.demonstrated
    demonstration = demonstration.expand(logps.shape)
    chosen = (rows.role == ROLE_INDEX["chosen"]) | (real & ~demonstration & (rows.scores > 0.5))
    rejected = (rows.role == ROLE_INDEX["rejected"]) | (real & ~demonstration & (rows.scores <= 0.5))
    sums = {}
    for name, here in (("chosen", chosen), ("rejected", rejected), ("demonstration", demonstration)):
        if here.any():
            sums[f"reward/{name}"], sums[f"logps/{name}"] = _sum(rewards, here), _sum(logps, here)
    first, second = (rewards[..., rows.role == ROLE_INDEX[role]] for role in ("chosen", "rejected"))
    if first.numel():
        higher = (first > second).to(rewards.dtype) + 0.5 * (first == second)  # a tie counts half
        sums["reward/accuracy"] = _sum(higher, torch.ones_like(higher, dtype=torch.bool))
    if not bool(real.all()):
        apart = rows.policy_logps.detach() - rows.reference_logps
        sums["kl_baseline"] = _sum(apart, (~real).expand(apart.shape))
    return sums


def means_of(sums: Sums) -> dict[str, Float[Tensor, "*step"]]:
    """Means of `metric_sums`, and `reward/margin`: the mean reward of the chosen minus that of the rejected.

    Sums (6, 2) and (1, 1) of chosen and rejected rewards give 3, 1 and a margin of 2. NaN without completions.
    """
    means = {name: value[..., 0] / value[..., 1] for name, value in sorted(sums.items())}
    if {"reward/chosen", "reward/rejected"} <= set(means):
        means["reward/margin"] = means["reward/chosen"] - means["reward/rejected"]
    return means


def added(entries: Sequence[Sums]) -> dict[str, Float[Tensor, "*step 2"]]:
    """Sums of several batches as those of one. {a: (1, 1)} and {a: (3, 1), b: (5, 2)} give a (4, 2), b (5, 2)."""
    found: dict[str, Tensor] = {}
    for entry in entries:
        for name, value in entry.items():
            found[name] = found[name] + value if name in found else value
    return found


def batch_metrics(rows: Rows, beta: float) -> dict[str, Float[Tensor, "*step"]]:
    """`means_of` the `metric_sums` of a batch."""
    return means_of(metric_sums(rows, beta))


def _sum(values: Float[Tensor, "*step completion"], here: Bool[Tensor, "*step completion"]) -> Float[Tensor, "*step 2"]:
    """The sum over the completions where `here` is True, and their number."""
    return torch.stack([values.where(here, 0.0).sum(-1), here.sum(-1).to(values.dtype)], -1)

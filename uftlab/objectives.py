"""Which rows a loss needs and how a batch becomes one number: objectives are weighted sums of terms.

A term eats one kind of example, applies one function of `uftlab.losses` and divides the sum of its losses by
a count that is known before the forward pass (examples or completion tokens of that kind in the whole
optimiser step). So eight accumulated micro-batches give exactly the loss of one batch eight times as large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from uftlab import losses
from uftlab.errors import InputError
from uftlab.rewards import implicit_reward
from uftlab.tokens import ROLE_INDEX, Example

LEADING_ROLE = {"demonstration": "demonstration", "scored": "scored", "label": "label", "preference": "chosen"}


@dataclass(frozen=True)
class Rows:
    """What a loss may look at: one entry per completion of the batch."""

    policy_logps: Float[Tensor, "completion"]
    reference_logps: Float[Tensor, "completion"]
    scores: Float[Tensor, "completion"]
    role: Int[Tensor, "completion"]

    def of(self, role: str) -> Rows:
        """The completions of one role, in order: the n-th chosen one belongs to the n-th rejected one."""
        here: Bool[Tensor, "completion"] = self.role == ROLE_INDEX[role]
        return Rows(self.policy_logps[here], self.reference_logps[here], self.scores[here], self.role[here])


Settings = Mapping[str, float]
TermLoss = Callable[[Rows, Settings], Tensor]


@dataclass(frozen=True)
class Term:
    """One loss on one kind of example; `per` says what its sum is divided by: "example" or "token"."""

    kind: str
    loss: TermLoss
    per: str = "example"
    weight: str | None = None  # the setting that multiplies this term; None: 1


@dataclass(frozen=True)
class Objective:
    """A named sum of terms, with what it needs and the settings a user may change."""

    name: str
    terms: tuple[Term, ...]
    summary: str
    source: str
    settings: Mapping[str, float] = field(default_factory=dict)
    reference: bool = True
    mismatched: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of examples it eats, in the order of its terms."""
        return tuple(term.kind for term in self.terms)

    @property
    def roles(self) -> set[str]:
        """Roles that its completions have in a batch."""
        pairs = {"chosen", "rejected"} if "preference" in self.kinds else set()
        return {k for k in self.kinds if k != "preference"} | pairs | ({"mismatched"} if self.mismatched else set())

    def check(self, examples: Sequence[Example]) -> None:
        """Refuse examples of other kinds, or without what this objective reads: the loss would be 0 or NaN.

        Raises:
            InputError: naming what is there instead.
        """
        roles = {c.role for example in examples for c in example}
        if roles != self.roles:
            remedy = "Convert the table (`uftlab.feedback.convert`), and for KTO add mismatched completions"
            raise InputError(f"Examples for {self.name}", f"have the roles {sorted(self.roles)}", sorted(roles), remedy)
        if self.reference and any(math.isnan(c.reference_logps) for example in examples for c in example):
            remedy = "Fill them in with `uftlab.logps.ReferenceCache`"
            raise InputError(f"Examples for {self.name}", "carry reference log-probabilities", "NaN", remedy)

    def with_defaults(self, settings: Settings) -> dict[str, float]:
        """The settings over this objective's defaults; what the user set is never replaced.

        Raises:
            InputError: for a setting this objective does not have.
        """
        unknown = sorted(set(settings) - set(self.settings))
        if unknown:
            have = ", ".join(self.settings) or "none"
            raise InputError(f"Settings of {self.name}", f"be among ({have})", unknown, "Remove or rename them")
        return {**self.settings, **settings}

    def counts(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "term"]:
        """What each term's sum will be divided by: examples or completion tokens of its kind in this batch."""
        tokens = batch["completion_mask"].sum(-1)
        numbers = []
        for term in self.terms:
            here = batch["role"] == ROLE_INDEX[LEADING_ROLE[term.kind]]
            numbers.append(tokens[here].sum() if term.per == "token" else here.sum())
        return torch.stack(numbers).float()

    def loss(self, rows: Rows, settings: Settings, counts: Float[Tensor, "term"]) -> Float[Tensor, ""]:
        """The scalar to minimise. A term without examples in the step adds nothing."""
        total = rows.policy_logps.sum() * 0.0
        for term, count in zip(self.terms, counts, strict=True):
            weight = 1.0 if term.weight is None else settings[term.weight]
            total = total + weight * term.loss(rows, settings).sum() / count.clamp(min=1)
        return total


# ------------------------------------------------------------------------------ terms: rows to losses


def _sft(rows: Rows, settings: Settings) -> Tensor:
    return losses.sft_loss(rows.of("demonstration").policy_logps)


def _dpo(rows: Rows, settings: Settings) -> Tensor:
    chosen, rejected = rows.of("chosen"), rows.of("rejected")
    return losses.dpo_loss(
        chosen.policy_logps,
        rejected.policy_logps,
        chosen.reference_logps,
        rejected.reference_logps,
        settings["beta"],
    )


def _kto(rows: Rows, settings: Settings) -> Tensor:
    labelled, mismatched = rows.of("label"), rows.of("mismatched")
    baseline = losses.kto_kl_baseline(mismatched.policy_logps, mismatched.reference_logps)
    return losses.kto_loss(labelled.policy_logps, labelled.reference_logps, labelled.scores, baseline, settings["beta"])


def _una(kind: str, loss: Callable[..., Tensor]) -> TermLoss:
    def term(rows: Rows, settings: Settings) -> Tensor:
        own = rows.of(kind)
        return loss(own.policy_logps, own.reference_logps, own.scores, settings["beta"])

    return term


_SFT_TOKENS = Term("demonstration", _sft, per="token")
_BETA = {"beta": 0.1}
_UNA = "UNA, arXiv 2408.15339"

OBJECTIVES: dict[str, Objective] = {
    o.name: o
    for o in (
        Objective("sft", (_SFT_TOKENS,), "negative log-likelihood, averaged over tokens", "standard", reference=False),
        Objective(
            "sft-sum",
            (Term("demonstration", _sft),),
            "negative log-likelihood, summed over each completion",
            "standard",
            reference=False,
        ),
        Objective(
            "dpo",
            (Term("preference", _dpo),),
            "log-likelihood of the preference",
            "Rafailov et al. 2023, arXiv 2305.18290",
            _BETA,
        ),
        Objective(
            "kto",
            (Term("label", _kto),),
            "prospect-theoretic value of labelled completions",
            "Ethayarajh et al. 2024, arXiv 2402.01306",
            _BETA,
            mismatched=True,
        ),
        Objective(
            "una-binary",
            (Term("label", _una("label", losses.una_squared_error_loss)),),
            "squared error of the implicit score against labels",
            _UNA,
            _BETA,
        ),
        Objective(
            "una-binary-cross-entropy",
            (Term("label", _una("label", losses.una_cross_entropy_loss)),),
            "cross-entropy of the implicit score against labels",
            _UNA,
            _BETA,
        ),
        Objective(
            "una-score",
            (Term("scored", _una("scored", losses.una_squared_error_loss)),),
            "squared error of the implicit score against scores",
            _UNA,
            _BETA,
        ),
        Objective(
            "una-score-cross-entropy",
            (Term("scored", _una("scored", losses.una_cross_entropy_loss)),),
            "cross-entropy of the implicit score against scores",
            f"{_UNA}, Eq. 12 with soft scores (ours)",
            _BETA,
        ),
        Objective(
            "sft-plus-dpo",
            (_SFT_TOKENS, Term("preference", _dpo, weight="preference_weight")),
            "SFT on demonstrations plus weighted DPO on pairs in each step",
            "the plain mixture; compare RPO, Pang et al. 2024",
            {**_BETA, "preference_weight": 1.0},
        ),
    )
}


def objective_named(name: str) -> Objective:
    """The registered objective, or one clear error with the names there are."""
    if name not in OBJECTIVES:
        raise InputError("An objective", f"be one of {', '.join(OBJECTIVES)}", name, "See `uftlab methods`")
    return OBJECTIVES[name]


def batch_metrics(rows: Rows, beta: float) -> dict[str, Float[Tensor, ""]]:
    """Rewards (beta included) and log-probabilities of a batch, under the same names for every objective.

    A label or score above one half counts as chosen. Only what the batch holds is reported.
    """
    rewards = implicit_reward(rows.policy_logps, rows.reference_logps, beta).detach()
    logps = rows.policy_logps.detach()
    real = rows.role != ROLE_INDEX["mismatched"]
    demonstration = rows.role == ROLE_INDEX["demonstration"]
    chosen = (rows.role == ROLE_INDEX["chosen"]) | (real & ~demonstration & (rows.scores > 0.5))
    rejected = (rows.role == ROLE_INDEX["rejected"]) | (real & (rows.scores <= 0.5))
    metrics = {}
    for name, here in (("chosen", chosen), ("rejected", rejected), ("demonstration", demonstration)):
        if here.any():
            metrics[f"reward/{name}"], metrics[f"logps/{name}"] = rewards[here].mean(), logps[here].mean()
    if chosen.any() and rejected.any():
        metrics["reward/margin"] = metrics["reward/chosen"] - metrics["reward/rejected"]
    pairs = rewards[rows.role == ROLE_INDEX["chosen"]], rewards[rows.role == ROLE_INDEX["rejected"]]
    if len(pairs[0]):
        metrics["reward/accuracy"] = (pairs[0] > pairs[1]).float().mean()
    return metrics

"""The methods by name. `METHODS` are those of the study, `VARIANTS` their near relatives.

`PIPELINE_METHODS` are what people do around the losses: parts, alternation, merging, sampling. `RECENT_METHODS` came
later. Every objective of the registry that is none of them is a method too, of the group "loss": it trains the base
model on the one table that it eats, for the whole budget.
"""

from __future__ import annotations

import difflib
from typing import Any

from uftlab.errors import InputError
from uftlab.training.methods import Method, Stage

_SFT_HALF = Stage("sft", 1.0, 0.5)


def _then(name: str, objective: str, summary: str, group: str = "paper") -> Method:
    return Method(name, (_SFT_HALF, Stage(objective, 0.0, 0.5)), summary, group=group)


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("base", (), "the base model, untouched", ()),
        Method(
            "sft",
            (_SFT_HALF,),
            "SFT on demonstrations, half the budget: stage one of the pipelines",
            ("learning_rate",),
        ),
        Method("sft-full", (Stage("sft", 1.0),), "SFT on demonstrations, the full budget", ("learning_rate",)),
        _then("sft-then-dpo", "dpo", "SFT, then DPO on pairs"),
        _then("sft-then-una", "una-score", "SFT, then UNA on scores, squared error"),
        Method("uft", (Stage("una-score", 0.5),), "UFT on the mixture, scores, squared error: the paper's method"),
        Method(
            "uft-cross-entropy", (Stage("una-score-cross-entropy", 0.5),), "UFT on the mixture, scores, cross-entropy"
        ),
        Method(
            "sft-plus-dpo",
            (Stage("sft-plus-dpo", 0.5),),
            "plain mixture: SFT on demonstrations plus DPO on pairs in each step",
            ("learning_rate", "beta", "preference_weight"),
            "control",
        ),
        Method(
            "replay",
            (_SFT_HALF, Stage("sft-plus-dpo", 0.25, 0.5)),
            "SFT, then DPO with a share of demonstrations kept",
            ("learning_rate", "beta", "demonstrations"),
            "control",
        ),
        Method(
            "uft-then-una",
            (Stage("una-score", 1.0, 0.5), Stage("una-score", 0.0, 0.5)),
            "the unified loss without mixing: UFT on demonstrations, then UNA on scores",
            group="control",
        ),
        Method(
            "signed-sft",
            (Stage("signed-sft", 0.5),),
            "the mixture of UFT, its likelihood weighted by score - 1/2: no reference, no beta, no gate",
            ("learning_rate",),
            "control",
        ),
        Method(
            "sft-then-dpo-l2",
            (_SFT_HALF, Stage("dpo", 0.0, 0.5, options=(("l2", 0.1),))),
            "SFT, then DPO on pairs with its weights pulled to the end of SFT",
            ("learning_rate", "beta", "l2"),
            "control",
            "EWC (Kirkpatrick et al. 2017, arXiv 1612.00796) with Fisher information 1",
            "2",
            "The equation of EWC is from summaries of the paper. L2 to the start is older than any paper on it.",
        ),
        Method("una-alone", (Stage("una-score", 0.0),), "UNA on scores alone, the full budget", group="control"),
        Method("dpo-alone", (Stage("dpo", 0.0),), "DPO on pairs alone, the full budget", group="control"),
    )
}


# Near relatives of those above, which nobody has tuned: the study leaves them out. The map has the reversed orders.
VARIANTS: dict[str, Method] = {
    m.name: m
    for m in (
        Method(
            "uft-demonstrations",
            (Stage("una-score", 1.0),),
            "UFT on demonstrations alone, squared error",
            group="variant",
        ),
        _then("sft-then-kto", "kto", "SFT, then KTO on labels", "variant"),
        Method("uft-binary", (Stage("una-binary", 0.5),), "UFT on the mixture, labels, squared error", group="variant"),
        Method(
            "sft-sum",
            (Stage("sft-sum", 1.0),),
            "SFT on summed, not token-averaged, log-probabilities, the full budget",
            ("learning_rate",),
            "variant",
        ),
        Method(
            "dpo-then-sft",
            (Stage("dpo", 0.0, 0.5), _SFT_HALF),
            "the pipeline in the other order: DPO on pairs, then SFT",
            ("learning_rate",),
            "variant",
        ),
        Method(
            "una-then-sft",
            (Stage("una-score", 0.0, 0.5), _SFT_HALF),
            "the pipeline in the other order: UNA on scores, then SFT",
            ("learning_rate",),
            "variant",
        ),
    )
}


_HALF = (("preference_share", 0.5),)
_MERGED = (("l1", 1e-4), ("sft_learning_rate", 4e-3))
_ALIGN = ("Fernando et al. 2024, arXiv 2410.15483", "P")
_PAFT = (
    "PAFT, arXiv 2406.17923",
    "2 M",
    "The recipe is from a secondary source, the weights of the merge from memory.",
)
_ONE_SAMPLE = (("refresh", 1.0), ("completions", 1.0))
_BOTH = ("learning_rate", "beta")

# What people do around the losses: the study "pipelines" compares them with those above.
PIPELINE_METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method(
            "sdpo",
            (_SFT_HALF, Stage("dpo", 0.0, 0.5, "parts", (("parts", 3.0),))),
            "SFT, then DPO on parts of the pairs, each from the last model and referring to it",
            (*_BOTH, "parts"),
            "pipeline",
            "Kim et al. 2024 (sDPO), arXiv 2403.19270",
            "2",
            "The paper itself could not be read.",
            borrows="sft-then-dpo",
        ),
        Method(
            "alright",
            (Stage("sft-plus-dpo", 0.5, 1.0, "alright", _HALF),),
            "each step DPO with a fixed probability, else SFT; one optimiser",
            (*_BOTH, "preference_share"),
            "pipeline",
            *_ALIGN,
            "As in the authors' code: DPO with probability lambda, SFT with 1 - lambda.",
            borrows="sft-plus-dpo",
        ),
        Method(
            "maxright",
            (Stage("sft-plus-dpo", 0.5, 1.0, "maxright", (*_HALF, ("refresh", 10.0))),),
            "each step on whichever of DPO and SFT is further from its own optimum",
            (*_BOTH, "preference_share"),
            "pipeline",
            *_ALIGN,
            "As in the authors' code: lambda weighs the gap of DPO, 1 - lambda that of SFT; the larger has the step.",
            borrows="sft-plus-dpo",
        ),
        Method(
            "paft",
            (Stage("sft-plus-dpo", 0.5, 1.0, "paft", _MERGED),),
            "sparse SFT and DPO apart from one base, merged by task arithmetic",
            (*_BOTH, "preference_weight"),
            "pipeline",
            *_PAFT,
            borrows="sft-plus-dpo",
        ),
        Method(
            "paft-ties",
            (Stage("sft-plus-dpo", 0.5, 1.0, "paft-ties", (*_MERGED, ("density", 0.5))),),
            "sparse SFT and DPO apart from one base, merged by TIES",
            (*_BOTH, "preference_weight"),
            "pipeline",
            f"{_PAFT[0]}; TIES, Yadav et al. 2023, arXiv 2306.01708",
            *_PAFT[1:],
            borrows="sft-plus-dpo",
        ),
        Method(
            "rs-dpo",
            (
                _SFT_HALF,
                Stage("dpo", 0.0, 0.5, "rs-dpo", (("completions", 4.0), ("temperature", 0.1), ("threshold", 0.85))),
            ),
            "SFT, then DPO on pairs of its own samples whose scores differ enough",
            _BOTH,
            "pipeline",
            "Khaki et al. 2024 (RS-DPO), arXiv 2402.10038",
            "2 M",
            "The recipe is from a secondary source; threshold and temperature are from memory.",
            borrows="sft-then-dpo",
        ),
        Method(
            "una-online",
            (_SFT_HALF, Stage("una-score", 0.0, 0.5, "online", _ONE_SAMPLE)),
            "SFT, then UNA on scored samples of the policy, squared error",
            group="online",
            borrows="sft-then-una",
        ),
        Method(
            "una-online-rollout",
            (_SFT_HALF, Stage("una-score", 0.0, 0.5, "online-rollout", _ONE_SAMPLE)),
            "the same with the ratio against the policy that sampled, as in the authors' script",
            group="online",
            borrows="sft-then-una",
        ),
        Method(
            "uft-online",
            (Stage("una-score", 0.5, 1.0, "online", _ONE_SAMPLE),),
            "UFT on demonstrations and scored samples of the policy in one table",
            group="online",
            borrows="uft",
        ),
        Method(
            "rloo",
            (_SFT_HALF, Stage("rloo", 0.0, 0.5, "rloo", (("refresh", 1.0), ("completions", 4.0)))),
            "SFT, then policy gradient with a leave-one-out baseline and KL in the reward",
            group="online",
            borrows="sft-then-una",
        ),
    )
}

_FOUR_SAMPLES = (("refresh", 1.0), ("completions", 4.0))
_ONCE = (("refresh", 1e6), ("completions", 1.0))  # more steps than any run has: all is drawn before the first
_RATE = ("learning_rate",)

_EWC = "Kirkpatrick et al. 2017 (EWC), arXiv 1612.00796"

# Of 2025 and 2026, and the controls of the questions that they raise (docs/questions). Tuned after the study.
RECENT_METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method(
            "given-accepted",
            (Stage("accepted-sft", 0.0),),
            "the table's completions, learned from where their score is above one half",
            _RATE,
            "question",
        ),
        Method(
            "given-signed",
            (Stage("signed-sft", 0.0),),
            "the table's completions, pushed up or down by their score less one half",
            _RATE,
            "question",
        ),
        Method(
            "own-accepted",
            (Stage("accepted-sft", 0.0, 1.0, "online", _ONE_SAMPLE),),
            "its own samples, learned from where their score is above one half",
            _RATE,
            "question",
        ),
        Method(
            "own-signed",
            (Stage("signed-sft", 0.0, 1.0, "online", _ONE_SAMPLE),),
            "its own samples, pushed up or down by their score less one half",
            _RATE,
            "question",
        ),
        Method(
            "self-sft",
            (Stage("sampled-sft", 0.0, 1.0, "self-sft", (*_ONCE, ("accept_above", 0.5))),),
            "SFT on samples of the base that the reward function accepts",
            ("learning_rate", "accept_above"),
            "recent",
            "Chen et al. 2025 (Retaining by Doing), arXiv 2510.18874",
            "P",
            "In the authors' code samples of the starting model are kept where they are correct and learned from "
            "alike. How many were drawn of a prompt, and at which temperature, is not there; one at temperature 1 is "
            "ours. Their reward is right or wrong, ours graded: `accept_above` draws the line.",
        ),
        Method(
            "sdft",
            (Stage("sdft", 0.0, 1.0, "sdft", (*_ONE_SAMPLE, ("teacher_rate", 0.01))),),
            "self-distillation on its own samples: the teacher is itself with a cue in the prompt",
            _RATE,
            "recent",
            "Shenfeld et al. 2026, arXiv 2601.19897; TRL",
            "2 T",
            "The teacher of the paper is a moving average that follows by 0.01 in each step, as tinker-cookbook quotes "
            "it (#524); TRL's is the starting model by default (`teacher_rate` 0). The context of the paper is a "
            "demonstration; in the tiny world it is the cue, because its base never saw an example in a prompt.",
        ),
        Method(
            "cue-sft",
            (Stage("sampled-sft", 0.0, 1.0, "cue-sft", _ONCE),),
            "SFT on what the base answers with a cue in the prompt, trained without the cue",
            _RATE,
            "question",
        ),
        Method(
            "on-policy-distillation",
            (
                Stage(
                    "on-policy-distillation",
                    0.0,
                    1.0,
                    "on-policy-distillation",
                    (*_ONE_SAMPLE, ("teacher_learning_rate", 4e-3)),
                ),
            ),
            "a teacher after SFT on demonstrations, distilled on the student's own samples",
            ("learning_rate", "teacher_learning_rate"),
            "recent",
            "Agarwal et al. 2023 (GKD), arXiv 2306.13649; TRL",
            "T",
            "The teacher here is as large as the student. The share of own samples, lambda in TRL, is that of the "
            "feedback: one less `demonstrations`; TRL tosses a coin for each batch, we divide each batch.",
        ),
        Method(
            "sft-then-dpo-norm",
            (_SFT_HALF, Stage("dpo-norm", 0.0, 0.5)),
            "SFT, then DPO on pairs with log-ratios per token",
            group="recent",
        ),
        Method(
            "tpo",
            (Stage("tpo", 0.5),),
            "SFT on demonstrations plus DPO without a reference on pairs, in each step",
            (*_BOTH, "sft_weight"),
            "recent",
        ),
        Method("eaft", (Stage("eaft", 1.0),), "SFT that learns little where the policy is sure", _RATE, "recent"),
        Method(
            "eaft-rolled",
            (Stage("eaft-rolled", 1.0),),
            "EAFT with the weights of other tokens: what do the weights know?",
            _RATE,
            "question",
        ),
        Method(
            "psft",
            (Stage("psft", 1.0, options=(("refresh", 8.0),)),),
            "SFT that stops at tokens which became much more probable in the last steps",
            (*_RATE, "clip"),
            "recent",
        ),
        Method(
            "iw-sft",
            (Stage("iw-sft", 1.0),),
            "SFT on completions weighted by how much likelier they have become",
            (*_RATE, "exponent"),
            "recent",
        ),
        Method("chord-phi", (Stage("chord-phi", 1.0),), "SFT with each token weighted by p (1 - p)", _RATE, "recent"),
        Method(
            "ewc",
            (Stage("sft", 1.0, options=(("ewc", 1.0),)),),
            "SFT with weights held at the start, each by how much the policy's own texts depend on it",
            (*_RATE, "ewc"),
            "recent",
            _EWC,
            "2",
            "The equation is from summaries of the paper. There the information is of the data of the task before; "
            "ours is of texts that the policy samples after its begin token.",
        ),
        Method(
            "l2-start",
            (Stage("sft", 1.0, options=(("l2", 0.1),)),),
            "SFT with all weights held at the start alike",
            (*_RATE, "l2"),
            "recent",
            f"{_EWC}, with Fisher information 1",
            "2",
            "The equation of EWC is from summaries of the paper. L2 to the start is older than any paper on it.",
        ),
        Method(
            "chord-mu",
            (Stage("chord-mu", 0.5, 1.0, "chord-mu", (*_FOUR_SAMPLES, ("valley", 0.05), ("decay", 1.0))),),
            "SFT on demonstrations and policy gradient on own samples, the share of SFT falling",
            ("learning_rate", "mu"),
            "recent",
            "Zhang et al. 2025 (CHORD), arXiv 2508.11408",
            "P",
            "In the authors' example mu falls within 200 steps and a fifth of a step are demonstrations; it falls over "
            "the whole run here, and half are. Each kind is averaged by itself, so the shares alone change little.",
        ),
        Method(
            "hpt",
            (Stage("hpt", 1.0, 1.0, "hpt", (("completions", 4.0), ("gate", 0.0), ("solved", 0.9))),),
            "policy gradient where its own samples solve the prompt, SFT on the demonstration where none does",
            ("learning_rate", "sft_weight"),
            "recent",
            "Lv et al. 2025 (HPT), arXiv 2509.04419",
            "P",
            "The authors sample eight of a prompt, and solved means right; their gate is 0 or 2 of 8. A step of theirs "
            "has fewer rows where demonstrations take the place of samples; ours takes more prompts.",
        ),
        Method(
            "luffy",
            (Stage("luffy", 1.0, 1.0, "luffy", (("completions", 7.0), ("in_group", 1.0))),),
            "policy gradient on own samples and on the demonstration among them",
            _RATE,
            "recent",
            "Yan et al. 2025 (LUFFY), arXiv 2504.14945",
            "P",
            "The authors' script counts the demonstration in the baseline of its group; their code has a baseline of "
            "the samples alone, too (`in_group` 0). Not divided by the spread, as in their script.",
        ),
    )
}

# What every process finds here; what is registered later has to be handed over to worker processes.
SHIPPED = {**METHODS, **VARIANTS, **PIPELINE_METHODS, **RECENT_METHODS}


def named_methods() -> dict[str, Method]:
    """`SHIPPED` as it is now: a method that was registered is among them."""
    return {**METHODS, **VARIANTS, **PIPELINE_METHODS, **RECENT_METHODS}


def all_methods() -> dict[str, Method]:
    """`named_methods`, then a method of the group "loss" for every other objective of the registry."""
    from uftlab.objectives.registry import OBJECTIVES  # here, because listing methods must not wait for torch

    named = named_methods()
    alone = {name: _alone(objective) for name, objective in OBJECTIVES.items() if name not in named}
    return {**named, **alone}


def _alone(objective: Any) -> Method:
    """One objective on its own table for the whole budget; half of it demonstrations if it eats them and feedback."""
    demonstrations = "demonstration" in objective.kinds
    share = 0.5 if demonstrations and len(objective.kinds) > 1 else float(demonstrations)
    second = objective.axis[0] if objective.axis else "beta" if "beta" in objective.settings else None
    tuned = ("learning_rate",) if second is None else ("learning_rate", second)
    return Method(objective.name, (Stage(objective.name, share),), objective.summary, tuned, "loss")


def method_named(name: str) -> Method:
    """The registered method, or one clear error with the names there are."""
    known = all_methods()
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, 0.5)
        remedy = f"Did you mean {' or '.join(near)}? See `uftlab methods`" if near else "See `uftlab methods`"
        raise InputError("A method", f"be one of {', '.join(known)}", name, remedy)
    return known[name]

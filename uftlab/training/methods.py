"""The methods by name: lists of stages, each with its rows, objective, recipe and share of the budget; their settings.

The budget is the number of completions back-propagated and is the same for every method (but `sft` and `base`,
which say so). `METHODS` are those of the study, `VARIANTS` their near relatives. `PIPELINE_METHODS` are what people do
around the losses: parts, alternation, merging, sampling. `RECENT_METHODS` came later. Every objective of the registry
that is none of them is a method too, of the group "loss": it trains the base model on the one table that it eats, for
the whole budget.

Objectives are named here and looked up when they are asked for, so that reading results needs no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from uftlab.errors import InputError
from uftlab.files import DATA, read_json

SCORED = (
    "rs-dpo",
    "online",
    "online-rollout",
    "rloo",
    "self-sft",
    "chord-mu",
    "hpt",
    "luffy",
)  # recipes that answer prompts and have it scored
SAMPLING = (*SCORED, "sdft", "cue-sft", "on-policy-distillation")  # all that answer prompts themselves


@dataclass(frozen=True)
class Stage:
    """One stretch of training: `demonstrations` is their share of its completions, `budget` its share of the whole.

    `recipe` names how it is trained (`uftlab.training.recipes`); `options` are that recipe's own settings and
    their defaults. An offline stage may have one of `l2` and `ewc`, pulls to its start, and `refresh`, a reference that
    follows the policy (`uftlab.training.recipes.offline`).
    """

    objective: str
    demonstrations: float
    budget: float = 1.0
    recipe: str = "offline"
    options: tuple[tuple[str, float], ...] = ()

    def chosen(self, settings: Mapping[str, float]) -> dict[str, float]:
        """Its options: what is set, else their defaults."""
        return {name: settings.get(name, value) for name, value in self.options}


@dataclass(frozen=True)
class Method:
    """A named list of stages. `tuned` names what the sweep varies in its last stage (`space` has the whole).

    `group` is "paper"; "control", not in the paper; "variant" or "loss", not tuned; "pipeline" or "online", another
    recipe; "recent", of 2025 or 2026; "question", a control of docs/questions.

    `source`, `verified` (letters of `uftlab.objectives.objective.VERIFIED`) and `note` are of what the method adds to
    its objectives, a recipe or a penalty; those of the objectives are their own.
    """

    name: str
    stages: tuple[Stage, ...]
    summary: str
    tuned: tuple[str, ...] = ("learning_rate", "beta")
    group: str = "paper"
    source: str = ""
    verified: str = ""
    note: str = ""
    borrows: str = ""  # the tuned method with the same stages whose settings it has, until it is tuned itself

    @property
    def objectives(self) -> list[Any]:
        """The objectives of its stages (`uftlab.objectives.objective.Objective`), each once."""
        return [_objective(name) for name in dict.fromkeys(stage.objective for stage in self.stages)]

    @property
    def sourced(self) -> list[Any]:
        """What has a source, letters and a note: its objectives, and itself if it adds to them."""
        return [*self.objectives, self] if self.source else self.objectives

    def needs(self) -> dict[str, Any]:
        """What `uftlab methods --json` prints of it."""
        objectives = self.objectives
        return {
            "name": self.name,
            "group": self.group,
            "summary": self.summary,
            "stages": [asdict(s) for s in self.stages],
            "eats": sorted({k for s in self.stages for k in tables_of(s)}),
            "data": sorted({kind for s in self.stages for kind in data_kinds(s)}),
            "reference": any(o.reference or o.distributions for o in objectives),
            "distributions": any(o.distributions for o in objectives),
            "token_logps": any(o.tokens for o in objectives),
            "extra_forwards": any(o.mismatched or o.distributions for o in objectives),
            "samples": any(s.recipe in SAMPLING for s in self.stages),
            "across_batch": any(o.across_batch for o in objectives),
            "settings": default_settings(self) if self.stages else {},
            "sources": sorted({own.source for own in self.sourced}),
            "verification": {own.name: own.verified for own in self.sourced},
            "notes": {own.name: own.note for own in self.sourced if own.note},
        }


def tables_of(stage: Stage) -> list[str]:
    """Names of the tables a stage learns from."""
    names = ["demonstrations"] if stage.demonstrations > 0 else []
    return names + (["feedback"] if stage.demonstrations < 1 else [])


def data_kinds(stage: Stage) -> list[str]:
    """The kinds of rows that the tables of a stage are turned into, in the order of `tables_of`."""
    objective = _objective(stage.objective)
    other = [k for k in objective.kinds if k != "demonstration"]
    as_demonstrations = "demonstration" in objective.kinds
    return [
        "demonstration" if name == "demonstrations" and as_demonstrations else other[0] for name in tables_of(stage)
    ]


def _objective(name: str) -> Any:
    """The registered objective. Its room is imported here, because listing methods must not wait for torch."""
    from uftlab.objectives.registry import objective_named

    return objective_named(name)


# ------------------------------------------------------------------------------------------ the methods

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
            "-",
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
_SAMPLED = (("refresh", 1.0), ("completions", 1.0))
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
            (_SFT_HALF, Stage("una-score", 0.0, 0.5, "online", _SAMPLED)),
            "SFT, then UNA on scored samples of the policy, squared error",
            group="online",
            borrows="sft-then-una",
        ),
        Method(
            "una-online-rollout",
            (_SFT_HALF, Stage("una-score", 0.0, 0.5, "online-rollout", _SAMPLED)),
            "the same with the ratio against the policy that sampled, as in the authors' script",
            group="online",
            borrows="sft-then-una",
        ),
        Method(
            "uft-online",
            (Stage("una-score", 0.5, 1.0, "online", _SAMPLED),),
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

_ONE_SAMPLE = (("refresh", 1.0), ("completions", 1.0))
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


# ------------------------------------------------------------------------------------------- the space


@dataclass(frozen=True)
class Dimension:
    """A setting that the sweep varies from `low` to `high`: evenly on a log scale, or as it is.

    With a `step` it is rounded to a multiple of it. A `share` stays between 0 and 1 wherever a box lies.
    """

    name: str
    low: float
    high: float
    log: bool = True
    step: float = 0.0
    share: bool = False


LEARNING_RATE = Dimension("learning_rate", 4e-4, 1.2e-2)
BETA_NATS = Dimension("beta_nats", 1e-3, 10.0)  # beta * median(-log pi_ref) of the stage's completions
OTHERS = {
    dimension.name: dimension
    for dimension in (
        Dimension("preference_weight", 0.1, 10.0),
        Dimension("demonstrations", 0.1, 0.6, log=False, step=1 / 16, share=True),  # whole pairs of 32 completions
        Dimension("preference_share", 0.2, 0.8, log=False, share=True),
        Dimension("l2", 1e-4, 1.0),
        Dimension("ewc", 1e-2, 100.0),
        Dimension("sft_weight", 0.1, 10.0),
        Dimension("parts", 1.5, 4.5, log=False, step=1.0),
        Dimension("mu", 0.1, 0.9, log=False, share=True),
        Dimension("accept_above", 0.4, 0.9, log=False, share=True),
        Dimension("teacher_learning_rate", 4e-4, 1.2e-2),
    )
}


def space(method: Method) -> list[list[Dimension]]:
    """What the sweep varies of a method, stage by stage: all of it together.

    The last stage varies what `tuned` names. The stages before it vary their learning rate and their strength of KL.
    Where beta is no strength of KL, or another setting matters more, the objective's `axis` takes its place.
    """
    if not method.tuned:
        return []
    made = [_dimensions(stage, ("learning_rate", "beta")) for stage in method.stages[:-1]]
    return [*made, _dimensions(method.stages[-1], method.tuned)]


def _dimensions(stage: Stage, tuned: Sequence[str]) -> list[Dimension]:
    objective = _objective(stage.objective)
    second = None
    if objective.axis is not None:
        name, values = objective.axis
        second = Dimension(name, min(values), max(values))
    elif "beta" in objective.settings:
        second = BETA_NATS
    strength = {"beta", second.name} if second is not None else {"beta"}
    made = [LEARNING_RATE]
    if second is not None and strength & set(tuned):
        made.append(second)
    return [*made, *(OTHERS[name] for name in tuned if name != "learning_rate" and name not in strength)]


# --------------------------------------------------------------------------------------- settings

TUNED = DATA / "tuned.json"
Settings = list[dict[str, float]]  # of each stage of a method

# What a model of another size than the tiny world's is trained with when nobody says: usual rates for Adam, not tuned.
# Everything else is the objective's own default.
LEARNING_RATE_ALL_WEIGHTS = 3e-5
LEARNING_RATE_LORA = 1e-4


def stage_defaults(stage: Stage) -> dict[str, float]:
    """The settings of a stage of the tiny world that nobody has tuned: the defaults of its objective and recipe."""
    objective = _objective(stage.objective)
    return {"learning_rate": objective.learning_rate, **objective.settings, **dict(stage.options)}


def default_settings(method: Method) -> dict[str, float]:
    """What the last stage of a method runs with when nobody has tuned it."""
    return stage_defaults(method.stages[-1])


def tuned_table(path: Path | None = None) -> dict[str, Any]:
    """What `data/tuned.json` holds: `settings` and `worth` of each method; both empty before the first sweep.

    Raises:
        InputError: for a file that is not as a sweep writes it.
    """
    path = path or TUNED
    if not path.is_file():
        return {"settings": {}, "worth": {}}
    try:
        stored = read_json(path.read_bytes())
        _checked_table().model_validate(stored)
    except (OSError, ValueError) as error:
        place: Any = getattr(error, "errors", lambda: [])()[:1]  # of pydantic, whose message has many lines
        got = f"{'.'.join(map(str, place[0]['loc']))[:80]}: {place[0]['msg']}" if place else error
        remedy = "Take the file that ships with uftlab, or run `uftlab sweep` again"
        raise InputError(f"{path}", "be as `uftlab sweep` writes it", got, remedy) from None
    return {"worth": {}, **stored}


@cache
def _checked_table() -> Any:
    from typing import Annotated

    from pydantic import BaseModel, ConfigDict, Field

    number = Annotated[float, Field(ge=-1e15, le=1e15)]  # NaN is refused too

    class Table(BaseModel):
        model_config = ConfigDict(strict=True)
        rule: str = ""
        settings: dict[str, list[list[dict[str, number]]]]
        worth: dict[str, list[number]] = Field(default_factory=dict)

    return Table


def chosen_settings() -> dict[str, list[Settings]]:
    """What the sweep chose for each method, in each tuning draw (`data/tuned.json`); empty before the first sweep."""
    return tuned_table()["settings"]


def tuned_settings(method: str, draw: int = 0) -> Settings:
    """The settings of every stage that the sweep chose for a method in one of its tuning draws.

    Raises:
        InputError: for a method that was not swept, a draw that was not made, or settings of another method.
    """
    table = chosen_settings()
    if method not in table:
        raise InputError(f"Settings of {method}", f"be in {TUNED.name}", sorted(table), "Run `uftlab sweep` for it")
    if draw not in range(len(table[method])):
        rule = f"be one of 0 to {len(table[method]) - 1}"
        raise InputError(f"A tuning draw of {method}", rule, draw, "Choose one of them")
    found, count = table[method][draw], len(method_named(method).stages)
    if len(found) != count or not all(own.get("learning_rate", -1) >= 0 for own in found):
        rule = f"be {count} stage(s), each with a learning rate"
        raise InputError(f"Settings of {method} in {TUNED}", rule, found, "Run `uftlab sweep` for it")
    return found


def is_tuned(method: Method, settings: Sequence[Mapping[str, float]]) -> bool:
    """Whether the sweep chose these settings of all stages for the method, in whichever draw."""
    found = chosen_settings().get(method.name, [])
    return not method.stages or [dict(own) for own in settings] in found


def settings_of(method: Method, draw: int = 0) -> Settings:
    """The settings of each stage of a method in a study: what the sweep chose for the method.

    A method that was not swept and borrows has the settings of the tuned method that it names, stage by stage, and its
    own options at their defaults.

    Raises:
        InputError: for a method of the groups "paper" and "control" that was not swept. Others have their defaults.
    """
    if not method.stages:
        return []
    if method.group in ("paper", "control") or method.name in chosen_settings():
        return tuned_settings(method.name, draw)
    defaults = [stage_defaults(stage) for stage in method.stages]
    if method.borrows not in chosen_settings():
        return defaults
    lent = tuned_settings(method.borrows, draw)
    return [
        {**own, **{name: value for name, value in other.items() if name in own}}
        for own, other in zip(defaults, lent, strict=True)
    ]


def plan(
    method: Method, steps: int | float, settings: Sequence[Mapping[str, float]]
) -> list[tuple[Stage, int, dict[str, float]]]:
    """The stages of a method, each with its optimiser steps and its settings; `steps` are those of a whole budget."""
    planned = []
    for stage, own in zip(method.stages, settings, strict=True):
        if "demonstrations" in own:
            stage = replace(stage, demonstrations=own["demonstrations"])
        planned.append((stage, max(1, round(steps * stage.budget)), dict(own)))
    return planned

"""The methods by name: lists of stages, each with its rows, objective, recipe and share of the budget.

The budget is the number of completions back-propagated and is the same for every method (but `sft` and `base`,
which say so). `METHODS` are those of the first study; `PIPELINE_METHODS` are what people do around the losses: parts,
alternation, merging, sampling. `uftlab.training.methods` adds every single loss of the registry and says how a
stage is trained.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from uftlab.objectives.objective import Objective
from uftlab.objectives.registry import objective_named

SAMPLING = ("rs-dpo", "online", "online-rollout", "rloo")  # recipes that answer the feedback's prompts themselves


@dataclass(frozen=True)
class Stage:
    """One stretch of training: `demonstrations` is their share of its completions, `budget` its share of the whole.

    `recipe` names how it is trained (`uftlab.training.recipes`); `options` are that recipe's own settings and
    their defaults.
    """

    objective: str
    demonstrations: float
    budget: float = 1.0
    recipe: str = "offline"
    options: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Method:
    """A named list of stages. `tuned` names what the sweep varies in its last stage."""

    name: str
    stages: tuple[Stage, ...]
    summary: str
    tuned: tuple[str, ...] = ("learning_rate", "beta")
    group: str = "paper"  # "control": not in the paper; "loss": one loss alone; "pipeline", "online": other recipes

    @property
    def objectives(self) -> list[Objective]:
        """The objectives of its stages, each once."""
        return [objective_named(name) for name in dict.fromkeys(stage.objective for stage in self.stages)]

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
            "sources": sorted({o.source for o in objectives}),
            "verification": {o.name: o.verified for o in objectives},
            "notes": {o.name: o.note for o in objectives if o.note},
        }


def tables_of(stage: Stage) -> list[str]:
    """Names of the tables a stage learns from."""
    names = ["demonstrations"] if stage.demonstrations > 0 else []
    return names + (["feedback"] if stage.demonstrations < 1 else [])


def data_kinds(stage: Stage) -> list[str]:
    """The kinds of rows that the tables of a stage are turned into, in the order of `tables_of`."""
    objective = objective_named(stage.objective)
    other = [k for k in objective.kinds if k != "demonstration"]
    as_demonstrations = "demonstration" in objective.kinds
    return [
        "demonstration" if name == "demonstrations" and as_demonstrations else other[0] for name in tables_of(stage)
    ]


def default_settings(method: Method) -> dict[str, float]:
    """What the last stage runs with when nobody has tuned it: the documented defaults of objective and recipe."""
    objective = objective_named(method.stages[-1].objective)
    return {"learning_rate": objective.learning_rate, **objective.settings, **dict(method.stages[-1].options)}


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
        Method("uft-demonstrations", (Stage("una-score", 1.0),), "UFT on demonstrations alone, squared error"),
        _then("sft-then-dpo", "dpo", "SFT, then DPO on pairs"),
        _then("sft-then-kto", "kto", "SFT, then KTO on labels"),
        _then("sft-then-una", "una-score", "SFT, then UNA on scores, squared error"),
        Method("uft", (Stage("una-score", 0.5),), "UFT on the mixture, scores, squared error: the paper's method"),
        Method(
            "uft-cross-entropy", (Stage("una-score-cross-entropy", 0.5),), "UFT on the mixture, scores, cross-entropy"
        ),
        Method("uft-binary", (Stage("una-binary", 0.5),), "UFT on the mixture, labels, squared error"),
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
            "sft-sum",
            (Stage("sft-sum", 1.0),),
            "SFT on summed, not token-averaged, log-probabilities, the full budget",
            ("learning_rate",),
            "control",
        ),
    )
}


_HALF = (("preference_share", 0.5),)
_MERGED = (("l1", 1e-4), ("sft_learning_rate", 4e-3))
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
        ),
        Method(
            "alright",
            (Stage("sft-plus-dpo", 0.5, 1.0, "alright", _HALF),),
            "each step DPO with a fixed probability, else SFT; one optimiser",
            (*_BOTH, "preference_share"),
            "pipeline",
        ),
        Method(
            "maxright",
            (Stage("sft-plus-dpo", 0.5, 1.0, "maxright", (*_HALF, ("refresh", 10.0))),),
            "each step on whichever of DPO and SFT is further from its own optimum",
            (*_BOTH, "preference_share"),
            "pipeline",
        ),
        Method(
            "paft",
            (Stage("sft-plus-dpo", 0.5, 1.0, "paft", _MERGED),),
            "sparse SFT and DPO apart from one base, merged by task arithmetic",
            (*_BOTH, "preference_weight"),
            "pipeline",
        ),
        Method(
            "paft-ties",
            (Stage("sft-plus-dpo", 0.5, 1.0, "paft-ties", (*_MERGED, ("density", 0.5))),),
            "sparse SFT and DPO apart from one base, merged by TIES",
            (*_BOTH, "preference_weight"),
            "pipeline",
        ),
        Method(
            "rs-dpo",
            (
                _SFT_HALF,
                Stage("dpo", 0.0, 0.5, "rs-dpo", (("completions", 4.0), ("temperature", 0.1), ("threshold", 0.85))),
            ),
            "SFT, then DPO on pairs of its own samples whose scores differ enough",
            group="pipeline",
        ),
        Method(
            "una-online",
            (_SFT_HALF, Stage("una-score", 0.0, 0.5, "online", _SAMPLED)),
            "SFT, then UNA on scored samples of the policy, squared error",
            group="online",
        ),
        Method(
            "una-online-rollout",
            (_SFT_HALF, Stage("una-score", 0.0, 0.5, "online-rollout", _SAMPLED)),
            "the same with the ratio against the policy that sampled, as in the authors' script",
            group="online",
        ),
        Method(
            "uft-online",
            (Stage("una-score", 0.5, 1.0, "online", _SAMPLED),),
            "UFT on demonstrations and scored samples of the policy in one table",
            group="online",
        ),
        Method(
            "rloo",
            (_SFT_HALF, Stage("rloo", 0.0, 0.5, "rloo", (("refresh", 1.0), ("completions", 4.0)))),
            "SFT, then policy gradient with a leave-one-out baseline and KL in the reward",
            group="online",
        ),
    )
}

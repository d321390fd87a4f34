"""What a method is: a list of stages, each with its rows, objective, recipe and share of the budget; its settings.

The budget is the number of completions back-propagated and is the same for every method (but `sft` and `base`, which
say so). `uftlab.training.catalogue` has the methods by name.

Objectives are named here and looked up when they are asked for, so that reading results needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

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

    @property
    def letters(self) -> str:
        """How sure its sources are: its own letters, which are the weaker part, else those of its objectives."""
        found = self.verified or " ".join(objective.verified for objective in self.objectives)
        return " ".join(dict.fromkeys(found.split()))

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
            "verified": self.letters,
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


def stage_defaults(stage: Stage) -> dict[str, float]:
    """The settings of a stage of the tiny world that nobody has tuned: the defaults of its objective and recipe."""
    objective = _objective(stage.objective)
    return {"learning_rate": objective.learning_rate, **objective.settings, **dict(stage.options)}


def default_settings(method: Method) -> dict[str, float]:
    """What the last stage of a method runs with when nobody has tuned it."""
    return stage_defaults(method.stages[-1])


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

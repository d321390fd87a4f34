"""Train apart, merge afterwards: task vectors, by PEFT's merge functions.

A delta is what training has added to the weights, all of them in one flat vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from uftlab.engine.trainer import HeldTrainer
from uftlab.losses.weights import l1_to_start
from uftlab.training.methods import Stage
from uftlab.training.recipes import Task, offline
from uftlab.training.stage_data import Record, resolve_settings


def task_arithmetic(deltas: Sequence[Float[Tensor, "weight"]], weights: Sequence[float]) -> Float[Tensor, "weight"]:
    """The weighted sum of deltas (Ilharco et al. 2023, arXiv 2212.04089): sum_i w_i delta_i.

    Deltas (1, 2) and (3, -4) with weights 1 and 1/2: (2.5, 0).
    """
    from peft.utils import merge_utils

    return merge_utils.task_arithmetic(list(deltas), torch.tensor(weights, dtype=deltas[0].dtype))


def ties(
    deltas: Sequence[Float[Tensor, "weight"]], weights: Sequence[float], density: float
) -> Float[Tensor, "weight"]:
    """Trim, elect sign, merge (Yadav et al. 2023, arXiv 2306.01708).

    Of each delta the `density` largest entries stay, the others are 0; at each weight the sign of the sum wins; the
    weighted entries of that sign are averaged over those that have it. Trimming looks at all weights of a model at
    once, as in the authors' code.

    Deltas (4, -1, 2, 0.1) and (-3, -3, 1, 0.2) at density 1/2 keep (4, 0, 2, 0) and (-3, -3, 0, 0). Signs of the
    sums +, -, +: (4, -3, 2, 0).
    """
    from peft.utils import merge_utils

    return merge_utils.ties(list(deltas), torch.tensor(weights, dtype=deltas[0].dtype), density)


Merge = Callable[[Sequence[Tensor], Sequence[float]], Tensor]


def merged_apart(task: Task, merge: Merge) -> Record:
    """SFT with an L1 penalty on its delta, DPO, both from the same base; then their deltas merged (arXiv 2406.17923).

    L = L_SFT + l1 |theta - theta_0|_1 in the one run, DPO in the other;  theta_0 + merge(delta_SFT, delta_DPO)

    Each of the two gets half of the budget, and SFT a learning rate of its own. The first delta is weighted 1, the
    second `preference_weight`, which is no weight of the loss here. From a secondary source, the weights from memory:
    so the second is tuned.
    """
    base = parameters_to_vector(task.policy.parameters()).detach().clone()
    apart = [task.aside(stage, max(1, task.steps // 2)) for stage in (Stage("sft", 1.0), Stage("dpo", 0.0))]
    apart[0] = replace(apart[0], settings={"learning_rate": task.option("sft_learning_rate")})
    sparse = partial(HeldTrainer, penalty=partial(l1_to_start, strength=task.option("l1")))
    records = [offline(apart[0], sparse), offline(apart[1])]
    deltas = [parameters_to_vector(own.policy.parameters()).detach() - base for own in apart]
    own = {name: value for name, value in task.settings.items() if name != "beta_nats"}  # beta is that of the DPO run
    settings = {**resolve_settings(task.objective, own, []), **records[1].settings, **task.options()}
    with torch.no_grad():
        vector_to_parameters(base + merge(deltas, (1.0, settings["preference_weight"])), task.policy.parameters())
    return Record(
        task.stage.objective,
        task.steps,
        settings,
        sum(record.completions for record in records),
        sum(record.extra_forwards for record in records),
        history=[entry for record in records for entry in record.history],
    )


def paft(task: Task) -> Record:
    """PAFT (arXiv 2406.17923): two deltas from one base, merged by task arithmetic. Both are half a budget long.

    SFT with an L1 penalty on its delta and a learning rate of its own, DPO without; theta_0 + delta_SFT + w delta_DPO,
    w = `preference_weight`, which is no weight of the loss here. From a secondary source, the weights from memory.
    Nothing is paid for on top.
    """
    return merged_apart(task, task_arithmetic)


def paft_ties(task: Task) -> Record:
    """PAFT (arXiv 2406.17923) merged by TIES (arXiv 2306.01708): of each delta the largest `density` are kept.

    At each weight the sign of the sum wins, and the entries of that sign are averaged. The rest is as in `paft`.
    """
    return merged_apart(task, partial(ties, density=task.option("density")))

"""Trains many tiny models at once, each with its own weights, data, objective, learning rate and settings.

What `engine.trainer.UFTTrainer` does to one model, done to a stack of them: the same order of data, schedule, optimiser
and losses (a test compares trajectories). The losses are those of the registry under `torch.func.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import get_scheduler

from uftlab.engine.packing import Packed, pack
from uftlab.engine.stack import Layout, Weights, logits, token_logps
from uftlab.engine.trainer import training_arguments
from uftlab.errors import InputError
from uftlab.objectives.objective import Objective, Positions, Rows, mean_metrics
from uftlab.rows.tokens import ROLE_INDEX, Example

Watch = Callable[[int, Sequence[int], Float[Tensor, "member parameter"]], Any]
CPU_TOKENS = 1000  # of a step, over all members; more at a time leave the cache of a core (benchmarks/population.py)
SPARE = 0.6  # share of the free memory that training may fill; packed batches and evaluations need some too


@dataclass(frozen=True)
class Member:
    """One model of a population.

    Args:
        start: its weights before training (`uftlab.engine.stack.flatten`), which are its reference too.
        settings: `learning_rate` and those of the objective that differ from its defaults.
        order: examples in training order (`uftlab.rows.tokens.interleave`), reference log-probabilities filled in.
        per_step: examples of each step.
    """

    start: Float[Tensor, "parameter"]
    objective: Objective
    settings: Mapping[str, float]
    order: Sequence[Example]
    per_step: int

    @property
    def steps(self) -> int:
        """Optimiser steps of its order."""
        return len(self.order) // self.per_step

    def batch(self, step: int) -> Sequence[Example]:
        """The examples of a step."""
        return self.order[step * self.per_step : (step + 1) * self.per_step]

    def roles(self) -> tuple[str, ...]:
        """Roles of the completions of a step, the same in all steps.

        Raises:
            InputError: when they are not.
        """
        seen = {tuple(c.role for e in self.batch(step) for c in e) for step in range(self.steps)}
        if len(seen) != 1:
            rule = "have the same roles in the same places in every step"
            raise InputError("The order of a member", rule, f"{len(seen)} kinds of steps", "Use tokens.interleave")
        return seen.pop()


@dataclass(frozen=True)
class Trained:
    """The weights of all members after training, and what each logged."""

    weights: Float[Tensor, "member parameter"]
    histories: list[list[dict[str, float]]]


@dataclass(frozen=True)
class _Group:
    """Members that share an objective and the places of the roles: their losses are one function, mapped."""

    objective: Objective
    role: Int[Tensor, "completion"]
    spans: dict[str, slice]
    members: Int[Tensor, "member"]
    settings: dict[str, Float[Tensor, "member"]]

    def losses(self, logps: Tensor, batch: Packed, policy: Tensor, reference: Tensor | None) -> Float[Tensor, "member"]:
        """The scalar that each member minimises."""
        own, width = self.members, len(self.role)
        given = {
            "logps": logps[own, :width],
            "mask": batch.completion_mask[own, :width],
            "scores": batch.scores[own, :width],
            "reference": batch.reference_logps[own, :width],
        }
        if self.objective.tokens:
            pick = batch.pick[own, :width]
            given["ids"] = batch.targets.reshape(-1)[pick]
            if self.objective.distributions and reference is not None:
                given |= {
                    "policy_logits": policy.flatten(0, 1)[pick],
                    "reference_logits": reference.flatten(0, 1)[pick],
                }
        return torch.func.vmap(self._loss)(given, self.settings)

    def _loss(self, given: Mapping[str, Tensor], settings: Mapping[str, Tensor]) -> Tensor:
        """The loss of one member, whose tensors have lost the axis of members."""
        positions = None
        if self.objective.tokens:
            both = given.get("policy_logits"), given.get("reference_logits")
            positions = Positions(given["ids"], given["mask"], given["logps"], *both)
        sums = given["logps"].sum(-1)
        rows = Rows(sums, given["reference"], given["scores"], self.role, positions, self.spans)
        counts = self.objective.counts({"completion_mask": given["mask"], "role": self.role})
        return self.objective.loss(rows, settings, counts)


def spans_of(roles: Sequence[str]) -> dict[str, slice]:
    """Where each role stands. chosen, rejected, chosen, rejected: (0, 3, 2) and (1, 4, 2).

    Raises:
        InputError: when a role is not at evenly spaced places.
    """
    spans = {}
    for role in dict.fromkeys(roles):
        places = [place for place, other in enumerate(roles) if other == role]
        step = places[1] - places[0] if len(places) > 1 else 1
        span = slice(places[0], places[-1] + 1, step)
        if places != list(range(len(roles)))[span]:
            raise InputError("Rows of a role", "be evenly spaced", f"{role} at {places}", "Use tokens.interleave")
        spans[role] = span
    return spans


def _groups(members: Sequence[Member], device: torch.device) -> list[_Group]:
    alike: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    for number, member in enumerate(members):
        alike.setdefault((id(member.objective), member.roles()), []).append(number)
    groups = []
    for (_, roles), own in alike.items():
        objective = members[own[0]].objective
        changed = [{k: v for k, v in members[i].settings.items() if k != "learning_rate"} for i in own]
        full = [objective.with_defaults(settings) for settings in changed]
        settings = {name: torch.tensor([float(s[name]) for s in full], device=device) for name in objective.settings}
        role = torch.tensor([ROLE_INDEX[role] for role in roles], device=device)
        groups.append(_Group(objective, role, spans_of(roles), torch.tensor(own, device=device), settings))
    return groups


def _check(members: Sequence[Member]) -> None:
    for member in members:
        member.objective.check(member.order)
    steps = sorted({member.steps for member in members})
    if len(steps) != 1:
        raise InputError("The members of a population", "train equally many steps", steps, "Train them apart")


def learning_rates(steps: int) -> list[float]:
    """Factors on the learning rate, step by step: the schedule of `uftlab.engine.trainer.training_arguments`."""
    arguments = training_arguments("unused")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    warmup = arguments.get_warmup_steps(steps)
    schedule: Any = get_scheduler(arguments.lr_scheduler_type, optimizer, warmup, steps)
    return [schedule.lr_lambdas[0](step) for step in range(steps)]


class Adam:
    """Adam with a learning rate for each member (Kingma & Ba 2015, arXiv 1412.6980; AdamW without decay).

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  w = w - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)
    """

    def __init__(self, weights: Float[Tensor, "member parameter"]) -> None:
        arguments = training_arguments("unused")
        self.betas, self.eps = (arguments.adam_beta1, arguments.adam_beta2), arguments.adam_epsilon
        self.mean, self.square, self.steps = torch.zeros_like(weights), torch.zeros_like(weights), 0

    @torch.no_grad()
    def step(
        self,
        weights: Float[Tensor, "member parameter"],
        grad: Float[Tensor, "member parameter"],
        learning_rates: Float[Tensor, "member 1"],
    ) -> None:
        """Changes the weights in place."""
        self.steps += 1
        first, second = self.betas
        self.mean.lerp_(grad, 1 - first)
        self.square.mul_(second).addcmul_(grad, grad, value=1 - second)
        root = self.square.sqrt().mul_((1 - second**self.steps) ** -0.5).add_(self.eps)
        weights.addcdiv_(self.mean * (learning_rates / -(1 - first**self.steps)), root)


def batches(members: Sequence[Member], device: torch.device) -> Iterator[Packed]:
    """The packed batch of each step. On a GPU all of them lie there before the first step."""
    made = (pack([member.batch(step) for member in members]) for step in range(members[0].steps))
    return made if device.type == "cpu" else iter([batch.to(device) for batch in made])


def train(
    members: Sequence[Member],
    layout: Layout,
    *,
    watch: Watch | None = None,
    at: Collection[int] = (),
    logging_steps: int = 20,
    device: torch.device | str = "cpu",
    say: Callable[[str], Any] = print,
) -> Trained:
    """Train all members, each on its own data, for as many steps as their orders have.

    Memory grows linearly with the members; those that do not fit at once are trained in parts, which `say` is told. On
    a CPU a stack has few members, so that what it works on stays near the core.

    Args:
        watch: is called after the steps in `at`, with the number of steps done, which members, and their weights.
        logging_steps: histories have the means over so many steps, as `UFTTrainer` logs them.

    Raises:
        InputError: for members of different lengths, or examples that an objective cannot learn from.
    """
    _check(members)
    device = torch.device(device)
    kinds = {(id(member.objective), member.per_step): member for member in members}.values()  # the hungriest counts
    each, free = max(memory_per_member(member, layout) for member in kinds), free_memory(device)
    fit = max(1, int(SPARE * free / each))
    if fit < len(members):
        need = f"{len(members)} members need {each * len(members) / 2**30:.1f} GiB"
        say(f"{need}, {free / 2**30:.1f} GiB are free: trained in parts of at most {fit}")
    if device.type == "cpu":
        tokens = pack([members[0].batch(0)]).ids.shape[1]
        fit = min(fit, max(1, CPU_TOKENS // tokens))
    parts = [range(i, min(i + fit, len(members))) for i in range(0, len(members), fit)]
    trained = [_train([members[m] for m in part], layout, part, watch, at, logging_steps, device) for part in parts]
    return Trained(torch.cat([t.weights for t in trained]), [h for t in trained for h in t.histories])


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def memory_per_member(member: Member, layout: Layout) -> int:
    """Bytes that a member takes in training: what one of its steps keeps for the gradient, and five of its weights."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = member.start.detach().cpu()[None].requires_grad_()
    batch = pack([member.batch(0)])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = token_logps(logits(Weights.of(weights, layout), batch, layout), batch)
    forwards = 2 if member.objective.distributions else 1
    return forwards * sum(kept.values()) + held.nbytes + 5 * weights.nbytes


def _train(
    members: Sequence[Member],
    layout: Layout,
    numbers: Sequence[int],
    watch: Watch | None,
    at: Collection[int],
    logging_steps: int,
    device: torch.device,
) -> Trained:
    """Members that fit into memory at once."""
    steps = members[0].steps
    start = torch.stack([member.start for member in members]).to(device)
    weights, groups = start.clone().requires_grad_(), _groups(members, device)
    compared = any(group.objective.distributions for group in groups)
    rates = torch.tensor([[member.settings["learning_rate"]] for member in members], device=device)
    factors, adam = learning_rates(steps), Adam(start)
    losses = torch.zeros(steps, len(members), device=device)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    for step, batch in enumerate(batches(members, device)):
        reference = None
        if compared:
            with torch.no_grad():
                reference = logits(Weights.of(start, layout), batch, layout)
        policy = logits(Weights.of(weights, layout), batch, layout)
        logps = token_logps(policy, batch)
        total = torch.zeros((), device=device)
        for group in groups:
            own = group.losses(logps, batch, policy, reference)
            losses[step, group.members] = own.detach()
            total = total + own.sum()
        (grad,) = torch.autograd.grad(total, weights)
        adam.step(weights, grad, rates * factors[step])
        seen.append((logps.detach().sum(-1), batch.reference_logps, batch.scores))
        if watch is not None and step + 1 in at:
            watch(step + 1, numbers, weights.detach())
    histories: list[list[dict[str, float]]] = [[] for _ in members]
    values, stacked = losses.cpu(), [torch.stack(part).cpu() for part in zip(*seen, strict=True)]
    for group in groups:
        for m, index in enumerate(group.members.tolist()):
            settings = {name: float(value[m]) for name, value in group.settings.items()}
            made = _metrics(group, settings, [part[:, index, : len(group.role)] for part in stacked])
            rate = members[index].settings["learning_rate"]
            histories[index] = _history(values[:, index], made, [rate * f for f in factors], logging_steps)
    return Trained(weights.detach(), histories)


def _metrics(
    group: _Group, settings: Mapping[str, float], seen: Sequence[Float[Tensor, "step completion"]]
) -> Iterator[dict[str, Tensor]]:
    """The metrics of each step of one member, as `UFTTrainer` logs them."""
    role = group.role.cpu()
    for logps, reference, scores in zip(*seen, strict=True):
        yield group.objective.metrics(Rows(logps, reference, scores, role), settings)


def _history(
    losses: Float[Tensor, "step"], metrics: Iterator[dict[str, Tensor]], rates: Sequence[float], every: int
) -> list[dict[str, float]]:
    """Means over windows of so many steps; what does not fill a window is left out, as the library does."""
    history = []
    for end in range(every, len(losses) + 1, every):
        entry = {"loss": float(losses[end - every : end].mean()), "learning_rate": rates[end - 1]}
        means = mean_metrics(list(islice(metrics, every)))
        history.append({**entry, **means, "epoch": end / len(losses), "step": float(end)})
    return history

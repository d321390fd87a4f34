"""Trains many tiny models at once, each with its own weights, data, objective, learning rate and settings.

A stack of models is trained as `engine.trainer.ObjectiveTrainer` trains one model: with the same order of data,
schedule, optimiser and losses (a test compares the trajectories). `torch.func.vmap` maps the losses of the registry
over models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import get_scheduler

from uftlab.engine.packing import Lines, Packed, Shape, pack
from uftlab.engine.stack import MOST_LINES, Layout, Weights, free_memory, logits, token_logps
from uftlab.engine.trainer import training_arguments
from uftlab.errors import InputError
from uftlab.losses.weights import ewc_to_start, l2_to_start
from uftlab.models.logps import token_entropy
from uftlab.objectives.objective import Objective, Positions, Rows, means_of
from uftlab.rows.tokens import ROLE_INDEX, Example

Watch = Callable[[int, Sequence[int], Float[Tensor, "member parameter"]], Any]
CPU_TOKENS = 1000  # tokens of a step, over all members; more do not fit in the CPU cache (benchmarks/population.py)
GRAPHS = True  # on a GPU a step is captured once as a graph and then replayed
SPARE = 0.6  # share of the free memory that training may use; packed batches and evaluations need memory, too


@dataclass(frozen=True)
class Member:
    """One model of a population.

    Args:
        start: the weights before training (`uftlab.engine.stack.flatten`). They are also the reference.
        settings: `learning_rate`, and settings of the objective that differ from its defaults.
        order: examples in training order (`uftlab.rows.tokens.interleave`), with reference log-probabilities.
        per_step: number of examples of each step.
        l2: strength of the pull to the start (`uftlab.losses.weights.l2_to_start`).
        fisher: what the pull weighs each weight by (`uftlab.losses.weights.ewc_to_start`); None: all alike.
        refresh: the full distributions of the reference are those of the member itself, renewed every so many steps; 0:
            those of the start.
    """

    start: Float[Tensor, "parameter"]
    objective: Objective
    settings: Mapping[str, float]
    order: Sequence[Example]
    per_step: int
    l2: float = 0.0
    fisher: Float[Tensor, "parameter"] | None = None
    refresh: int = 0

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return len(self.order) // self.per_step

    def batch(self, step: int) -> Sequence[Example]:
        """The examples of a step."""
        return self.order[step * self.per_step : (step + 1) * self.per_step]

    def demonstrated(self) -> tuple[bool, ...]:
        """Which completions of a step are demonstrations: the same in all steps."""
        return tuple(c.demonstrated for example in self.batch(0) for c in example)

    def roles(self) -> tuple[str, ...]:
        """Roles of the completions of a step, which are the same in all steps.

        Raises:
            InputError: when the roles differ between steps.
        """
        seen = {tuple(c.role for e in self.batch(step) for c in e) for step in range(self.steps)}
        if len(seen) != 1:
            rule = "have the same roles in the same places in every step"
            raise InputError("The order of a member", rule, f"{len(seen)} kinds of steps", "Use tokens.interleave")
        return seen.pop()


@dataclass(frozen=True)
class Trained:
    """The weights of all members after training, and the logged history of each."""

    weights: Float[Tensor, "member parameter"]
    histories: list[list[dict[str, float]]]


@dataclass(frozen=True)
class _Group:
    """Members with the same objective and the same places of the roles. One function is mapped over them.

    `own` is their slice of the stack: they stand next to each other.
    """

    objective: Objective
    role: Int[Tensor, "completion"]
    spans: dict[str, slice]
    own: slice
    settings: dict[str, Float[Tensor, "member"]]
    demonstrated: Bool[Tensor, "completion"]

    def losses(self, logps: Tensor, batch: Packed, policy: Tensor, reference: Tensor | None) -> Float[Tensor, "member"]:
        """The scalar that each member minimises."""
        own, width = self.own, len(self.role)
        given = {
            "logps": logps[own, :width],
            "mask": batch.completion_mask[own, :width],
            "scores": batch.scores[own, :width],
            "reference": batch.reference_logps[own, :width],
        }
        if self.objective.tokens:
            pick = batch.pick[own, :width]
            given["ids"] = _picked(batch.targets.reshape(-1), pick)
            if self.objective.entropies:
                entropies = token_entropy(policy[own], self.objective.entropies)
                before = own.start * policy.shape[1]  # an index counts over all members
                given["entropies"] = torch.where(given["mask"], _picked(entropies.flatten(), pick - before), 0.0)
            if self.objective.distributions and reference is not None:
                given |= {
                    "policy_logits": _picked(policy.flatten(0, 1), pick),
                    "reference_logits": _picked(reference.flatten(0, 1), pick),
                }
        return torch.func.vmap(self._loss)(given, self.settings)

    def _loss(self, given: Mapping[str, Tensor], settings: Mapping[str, Tensor]) -> Tensor:
        """The loss of one member. Under vmap the tensors have no axis of members."""
        positions = None
        if self.objective.tokens:
            more = (given.get(name) for name in ("policy_logits", "reference_logits", "entropies"))
            positions = Positions(given["ids"], given["mask"], given["logps"], *more)
        sums = given["logps"].sum(-1)
        rows = Rows(sums, given["reference"], given["scores"], self.role, positions, self.spans)
        counts = self.objective.counts({"completion_mask": given["mask"], "role": self.role})
        return self.objective.loss(rows, settings, counts)


def _picked(values: Tensor, pick: Int[Tensor, "member completion pos"]) -> Tensor:
    """The entry for each completion and column."""
    return values.index_select(0, pick.flatten()).view(*pick.shape, *values.shape[1:])


def spans_of(roles: Sequence[str]) -> dict[str, slice]:
    """The places of each role as a slice. chosen, rejected, chosen, rejected gives (0, 3, 2) and (1, 4, 2).

    Raises:
        InputError: when the places of a role are not evenly spaced.
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


def _alike(members: Sequence[Member]) -> list[list[int]]:
    """Numbers of the members, grouped by objective, places of the roles and places of demonstrations."""
    alike: dict[tuple[int, tuple[str, ...], tuple[bool, ...]], list[int]] = {}
    for number, member in enumerate(members):
        alike.setdefault((id(member.objective), member.roles(), member.demonstrated()), []).append(number)
    return list(alike.values())


def _group(members: Sequence[Member], first: int, device: torch.device) -> _Group:
    """The group of some members that are alike. `first` is its first place in the stack."""
    objective, roles = members[0].objective, members[0].roles()
    changed = [{k: v for k, v in member.settings.items() if k != "learning_rate"} for member in members]
    full = [objective.with_defaults(settings) for settings in changed]
    settings = {name: torch.tensor([float(s[name]) for s in full], device=device) for name in objective.settings}
    role = torch.tensor([ROLE_INDEX[role] for role in roles], device=device)
    shown = torch.tensor(members[0].demonstrated())
    return _Group(objective, role, spans_of(roles), slice(first, first + len(members)), settings, shown)


def _check(members: Sequence[Member]) -> None:
    for member in members:
        member.objective.check(member.order)
    steps = sorted({member.steps for member in members})
    if len(steps) != 1:
        raise InputError("The members of a population", "train equally many steps", steps, "Train them apart")


def _penalty(members: Sequence[Member], device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """What each member pays for how far its weights have moved; None where nobody pays."""
    pulls = torch.tensor([member.l2 for member in members], device=device)
    if not pulls.any():
        return None
    if all(member.fisher is None for member in members):
        return partial(l2_to_start, strength=pulls)
    own = [torch.ones_like(member.start) if member.fisher is None else member.fisher for member in members]
    return partial(ewc_to_start, fisher=torch.stack([fisher.to(device) for fisher in own]), strength=pulls)


def learning_rates(steps: int) -> list[float]:
    """Factor on the learning rate at each step: the schedule of `uftlab.engine.trainer.training_arguments`."""
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
        self.mean, self.square = torch.zeros_like(weights), torch.zeros_like(weights)
        self.steps = torch.zeros((), dtype=torch.float64, device=weights.device)  # a graph can increase a tensor

    @torch.no_grad()
    def step(
        self,
        weights: Float[Tensor, "member parameter"],
        grad: Float[Tensor, "member parameter"],
        learning_rates: Float[Tensor, "member 1"],
    ) -> None:
        """Updates the weights in place."""
        self.steps += 1
        first, second = self.betas
        self.mean.lerp_(grad, 1 - first)
        self.square.mul_(second).addcmul_(grad, grad, value=1 - second)
        root = self.square.sqrt().mul_((1 - second**self.steps).rsqrt()).add_(self.eps)
        weights.addcdiv_(self.mean * (learning_rates / -(1 - first**self.steps)), root)


class Batches:
    """The batches of all steps of some members. With `alike` all have one shape, as a captured graph needs."""

    def __init__(self, members: Sequence[Member], alike: bool) -> None:
        steps = members[0].steps
        examples = {id(example): example for member in members for example in member.order}
        number = {key: index for index, key in enumerate(examples)}
        self.lines = Lines(list(examples.values()))
        rows = []
        for member in members:
            used = member.order[: steps * member.per_step]
            order = np.fromiter((number[id(e)] for e in used), dtype=np.int64, count=len(used)).reshape(steps, -1)
            rows += [self.lines.chosen(step) for step in order]
        self.rows = self.lines.table(rows).reshape(len(members), steps, -1).swapaxes(0, 1)
        self.shape: Shape | None = None
        if alike:  # one free column in each rectangle; multiples of 8, which a GPU reads fast
            most = self.lines.shape(self.rows)
            wide = {name: -(-(getattr(most, name) + 1) // 8) * 8 for name in ("columns", "read_columns")}
            self.shape = replace(most, **wide)

    def at(self, step: int) -> Packed:
        """The batch of a step."""
        return self.lines.pack(self.rows[step], self.shape)


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

    Memory grows linearly with the number of members. If they do not all fit, they are trained in parts, and `say` gets
    a message. On a CPU a stack has few members, so that its data stays in the cache of the core.

    Args:
        watch: called after each step in `at` with the number of steps, the numbers of the members and their weights.
        logging_steps: each entry of a history is a mean over this many steps, as in `ObjectiveTrainer`.

    Raises:
        InputError: if numbers of steps differ, or if an objective cannot learn from its examples.
    """
    _check(members)
    device = torch.device(device)
    kinds = {(id(member.objective), member.per_step): member for member in members}.values()  # the largest decides
    each, free = max(memory_per_member(member, layout) for member in kinds), free_memory(device)
    fit = max(1, int(SPARE * free / each))
    if fit < len(members):
        need = f"{len(members)} members need {each * len(members) / 2**30:.1f} GiB"
        say(f"{need}, {free / 2**30:.1f} GiB are free: trained in parts of at most {fit}")
    first = pack([members[0].batch(0)])
    fit = min(fit, max(1, MOST_LINES // len(first.prompt)))
    if device.type == "cpu":
        fit = min(fit, max(1, CPU_TOKENS // first.ids.shape[1]))
    parts = [range(i, min(i + fit, len(members))) for i in range(0, len(members), fit)]
    trained = [
        _train([members[m] for m in part], layout, part, watch, at, logging_steps, device, say) for part in parts
    ]
    return Trained(torch.cat([t.weights for t in trained]), [h for t in trained for h in t.histories])


def memory_per_member(member: Member, layout: Layout) -> int:
    """Bytes that training a member needs: what a step stores for the gradient, and five times the weights."""
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


class _Stack:
    """Members in training. All state is in tensors that keep their place in memory, as a captured graph needs."""

    def __init__(self, members: Sequence[Member], layout: Layout, device: torch.device) -> None:
        alike = _alike(members)
        self.order = [number for own in alike for number in own]  # members of a group stand next to each other
        self.members = [members[number] for number in self.order]
        ends = list(accumulate(map(len, alike)))
        self.groups = [
            _group([members[n] for n in own], end - len(own), device) for own, end in zip(alike, ends, strict=True)
        ]
        self.layout, self.steps = layout, members[0].steps
        self.start = torch.stack([member.start for member in self.members]).to(device)
        self.weights = self.start.clone().requires_grad_()
        self.compared = any(group.objective.distributions for group in self.groups)
        self.rates = torch.tensor([[member.settings["learning_rate"]] for member in self.members], device=device)
        self.penalty = _penalty(self.members, device)
        never = self.steps + 1
        refresh = [member.refresh or never for member in self.members]
        self.refresh = torch.tensor(refresh, device=device)[:, None] if min(refresh) < never else None
        self.compared_with = self.start if self.refresh is None else self.start.clone()
        self.factors = learning_rates(self.steps)
        self.factor = torch.tensor(self.factors, device=device)
        self.adam, self.clock = Adam(self.start), torch.zeros(1, dtype=torch.long, device=device)
        completions = max(len(group.role) for group in self.groups)
        self.losses = torch.zeros(self.steps, len(members), device=device)
        self.logps = torch.zeros(self.steps, len(members), completions, device=device)

    def step(self, batch: Packed) -> None:
        """One optimiser step of all members."""
        reference = None
        if self.compared:
            with torch.no_grad():
                if self.refresh is not None:
                    due = self.clock % self.refresh == 0
                    self.compared_with.copy_(torch.where(due, self.weights, self.compared_with))
                reference = logits(Weights.of(self.compared_with, self.layout), batch, self.layout)
        policy = logits(Weights.of(self.weights, self.layout), batch, self.layout)
        logps = token_logps(policy, batch)
        losses = torch.cat([group.losses(logps, batch, policy, reference) for group in self.groups])
        if self.penalty is not None:
            losses = losses + self.penalty(self.weights - self.start)
        (grad,) = torch.autograd.grad(losses.sum(), self.weights)
        self.adam.step(self.weights, grad, self.rates * self.factor[self.clock])
        self.losses.index_copy_(0, self.clock, losses.detach()[None])
        self.logps.index_copy_(0, self.clock, logps.detach().sum(-1)[None])
        self.clock += 1

    @torch.no_grad()
    def rewind(self) -> None:
        """Resets everything to the state before the first step."""
        self.weights.copy_(self.start)
        if self.refresh is not None:
            self.compared_with.copy_(self.start)
        for state in (self.adam.mean, self.adam.square, self.adam.steps, self.clock):
            state.zero_()

    def histories(self, seen: Sequence[Float[Tensor, "step member completion"]], every: int) -> list[list[dict]]:
        """The logged history of each member. `seen` has the reference log-probabilities and the scores of all steps."""
        losses, logps = self.losses.cpu(), self.logps.cpu()
        made = []
        for group in self.groups:
            for m, index in enumerate(range(group.own.start, group.own.stop)):
                settings = {name: float(value[m]) for name, value in group.settings.items()}
                policy, reference, scores = (part[:, index, : len(group.role)] for part in (logps, *seen))
                rows = Rows(policy, reference, scores, group.role.cpu(), demonstrated=group.demonstrated)
                sums = group.objective.sums(rows, settings)
                rate = self.members[index].settings["learning_rate"]
                made.append(_history(losses[:, index], sums, [rate * f for f in self.factors], every))
        return made


class _Slot:
    """A place in GPU memory for batches of one shape. A captured graph always reads the same place.

    A batch is copied as one block of 32-bit numbers from pinned memory, while the CPU makes the next batch.
    """

    def __init__(self, batch: Packed, device: torch.device) -> None:
        self.kinds = {f.name: getattr(batch, f.name) for f in fields(batch)}
        size = sum(tensor.numel() for tensor in self.kinds.values())
        self.memory = torch.empty(size, dtype=torch.int32, device=device)
        self.hosts = [torch.empty(size, dtype=torch.int32).pin_memory() for _ in range(4)]
        self.sent = [torch.cuda.Event() for _ in self.hosts]
        self.turn = 0

    def put(self, batch: Packed) -> None:
        """Sends a batch without waiting for the GPU."""
        host, sent = self.hosts[self.turn], self.sent[self.turn]
        self.turn = (self.turn + 1) % len(self.hosts)
        sent.synchronize()
        start = 0
        for name in self.kinds:
            own = getattr(batch, name).reshape(-1)
            part = host[start : start + len(own)]
            (part.view(torch.float32) if own.is_floating_point() else part).copy_(own)
            start += len(own)
        self.memory.copy_(host, non_blocking=True)
        sent.record()

    def batch(self) -> Packed:
        """The batch in this place, as views of the GPU memory."""
        made, start = {}, 0
        for name, kind in self.kinds.items():
            part = self.memory[start : start + kind.numel()].view(kind.shape)
            made[name] = part.view(torch.float32) if kind.is_floating_point() else part.to(kind.dtype)
            start += kind.numel()
        return Packed(**made)


def _captured(stack: _Stack, slot: _Slot) -> Callable[[], Any]:
    """A step of the stack as one CUDA graph: Python no longer launches each kernel."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries must initialise outside of the graph
        for _ in range(3):
            stack.step(slot.batch())
            stack.rewind()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        stack.step(slot.batch())
    return graph.replay


def _runner(
    stack: _Stack, batches: Batches, device: torch.device, say: Callable[[str], Any]
) -> Callable[[Packed], Any]:
    """The function that runs a step. On a GPU it replays a graph, unless a loss cannot be captured."""

    def plain(batch: Packed) -> None:
        stack.step(batch.to(device))

    if device.type != "cuda" or not GRAPHS:
        return plain
    first = batches.at(0)
    slot = _Slot(first, device)
    slot.put(first)
    try:
        replay = _captured(stack, slot)
    except RuntimeError as error:
        torch.cuda.synchronize()
        stack.rewind()
        say(f"steps are launched one by one, twice as slow: no graph can hold them ({str(error).splitlines()[0]})")
        return plain

    def replayed(batch: Packed) -> None:
        slot.put(batch)
        replay()

    return replayed


def _train(
    members: Sequence[Member],
    layout: Layout,
    numbers: Sequence[int],
    watch: Watch | None,
    at: Collection[int],
    logging_steps: int,
    device: torch.device,
    say: Callable[[str], Any],
) -> Trained:
    """Trains members that fit into memory together."""
    stack = _Stack(members, layout, device)
    batches, seen = Batches(stack.members, alike=device.type == "cuda"), []
    own = [numbers[number] for number in stack.order]
    run = _runner(stack, batches, device, say)
    for step in range(stack.steps):
        batch = batches.at(step)
        seen.append((batch.reference_logps, batch.scores))
        run(batch)
        if watch is not None and step + 1 in at:
            watch(step + 1, own, stack.weights.detach())
    histories = stack.histories([torch.stack(part) for part in zip(*seen, strict=True)], logging_steps)
    place = {number: index for index, number in enumerate(stack.order)}
    weights = stack.weights.detach()[[place[number] for number in range(len(members))]]
    return Trained(weights, [histories[place[number]] for number in range(len(members))])


def _history(
    losses: Float[Tensor, "step"],
    sums: Mapping[str, Float[Tensor, "step 2"]],
    rates: Sequence[float],
    every: int,
) -> list[dict[str, float]]:
    """Means over windows of `every` steps. Steps after the last full window are left out, as in the library."""
    windows = len(losses) // every
    added = {n: v[: windows * every].view(windows, every, 2).sum(1) for n, v in sums.items()}
    means = {name: values.tolist() for name, values in means_of(added).items()}
    history = []
    for index in range(windows):
        end = (index + 1) * every
        entry = {"loss": float(losses[end - every : end].mean()), "learning_rate": rates[end - 1]}
        own = {name: values[index] for name, values in means.items() if not math.isnan(values[index])}
        history.append({**entry, **own, "epoch": end / len(losses), "step": float(end)})
    return history

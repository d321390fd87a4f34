"""`ObjectiveTrainer`: `transformers.Trainer` for any objective of the registry, with as few overrides as possible."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from uftlab.errors import InputError
from uftlab.models.logps import (
    completion_logits,
    completion_logps,
    gather_logps,
    has_plain_head,
    shares_prompts,
    token_entropy,
    token_reading,
)
from uftlab.models.policies import evaluation_mode, frozen_copy
from uftlab.objectives.objective import Objective, Positions, Rows, Sums, added, means_of
from uftlab.rows.batches import LEAST, in_parts, to_batch
from uftlab.rows.tokens import Example

logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)


def training_arguments(folder: Path | str, **changes: Any) -> TrainingArguments:
    """`TrainingArguments` with the defaults of this package. `changes` replace the defaults.

    The schedule is a cosine with 10 % warm-up, as in the script of the paper. There is no gradient clipping: the
    gradient norms of SFT and UFT differ by a factor of 100 at the start, so one threshold would not treat both alike.
    """
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": 1,  # the list of examples already covers the whole run, in order
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "max_grad_norm": 0.0,
        "weight_decay": 0.0,
        "optim": "adamw_torch_fused",
        "logging_steps": 20,
        "save_strategy": "no",
        "report_to": "none",
        "logging_nan_inf_filter": False,  # else NaN is logged as a loss of 0
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    return TrainingArguments(**{**defaults, **changes})


def process() -> PartialState:
    """This process among those of a training that was launched with several (torchrun, accelerate launch)."""
    return PartialState(cpu=not torch.cuda.is_available())


class Quiet(TrainerCallback):
    """Stops the trainer from printing its logs."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The library prints only in the process that this flag marks."""
        state.is_local_process_zero = False


TOLD = {  # what is logged -> how a line calls it
    "loss": "loss", "eval_loss": "held-out loss", "reward/margin": "margin", "eval_reward/margin": "margin",
    "reward/accuracy": "accuracy", "eval_reward/accuracy": "accuracy", "grad_norm": "gradient norm",
}  # fmt: skip


class Lines(Quiet):
    """Says one plain line for each entry of the log, in place of the library's dictionary. Loggers go on as they are.

    >>> Lines.line({"loss": 0.25, "reward/margin": 0.0, "epoch": 0.5}, 20, 100)
    'step 20 of 100: loss 0.25, margin 0'
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        """Nothing for the library's summary of the run, which has none of these numbers."""
        if set(logs or {}) & set(TOLD):
            self.say(self.line(logs or {}, state.global_step, state.max_steps))

    @staticmethod
    def line(logs: Mapping[str, Any], step: int, steps: int) -> str:
        """What a reader watches, three significant digits."""
        words = [f"{name} {float(logs[key]):.3g}" for key, name in TOLD.items() if key in logs]
        return f"step {step} of {steps}: {', '.join(words)}"


class DivergedError(RuntimeError):
    """A loss or a gradient is not finite: what comes after it is lost, what was saved before is not."""


class Finite(TrainerCallback):
    """Stops a run whose loss or gradient is not finite, as soon as it is logged, before anything is saved."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        """The library would log a loss of NaN as 0 and go on."""
        for name in ("loss", "grad_norm"):
            value = (logs or {}).get(name, 0.0)
            if not math.isfinite(float(value)):
                what, remedy = f"The {name.replace('_', ' ')} of step {state.global_step}", "Lower the learning rate"
                raise DivergedError(str(InputError(what, "be finite", value, remedy)))


class ObjectiveTrainer(Trainer):
    """Trains a policy on tokenised examples with one objective.

    The examples are in training order (`uftlab.rows.tokens.interleave`) and carry their reference log-probabilities
    (`uftlab.models.references.ReferenceCache`). The library does gradient accumulation, mixed precision, distribution
    over processes and resuming. Logged metrics: `loss` and those of `uftlab.objectives.objective.metric_sums`, over
    all micro-batches and processes. If an objective needs the full distributions of the reference, they come from a
    frozen copy of the model, made at the start. With LoRA they come from the model with its adapters off.

    Args:
        held_out: examples for `evaluate`, filled in as the others.
        dropout: whether dropout is on in the policy. It is off in the reference, so with it margins do not start at 0.
        tokens_per_device: most positions, padding included, of one forward and backward pass; 0: no limit. What a step
            of one process has is cut into as many parts as that needs. Loss, gradient and metrics stay the same,
            because their sums are divided by the counts of the whole step.

    Raises:
        InputError: for examples that the objective cannot learn from (`Objective.check`).
        DivergedError: in training, when a loss or a gradient is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        examples: Sequence[Example],
        objective: Objective,
        settings: Mapping[str, float] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        held_out: Sequence[Example] | None = None,
        dropout: bool = False,
        tokens_per_device: int = 0,
        **options: Any,
    ) -> None:
        self.check(objective, examples)
        if held_out:
            self.check(objective, held_out)
        self._shares, self._least, self._parts = False, LEAST, 1
        self.tokens_per_device = tokens_per_device
        if not dropout:
            without_dropout(model)
        told: Any = getattr(model, "config", None)
        caches = getattr(told, "use_cache", None)
        super().__init__(
            model=model,
            args=args,
            train_dataset=examples,  # type: ignore[arg-type]
            eval_dataset=held_out,  # type: ignore[arg-type]
            data_collator=self.batch,
            callbacks=[Finite(), *(callbacks or ())],
            **options,
        )
        if caches is not None:  # the library says no, for good; a pass here never asks for it, and the reader may
            told.use_cache = caches
        self.objective: Objective = objective
        self.settings = objective.with_defaults(settings or {})
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the counts of the whole optimiser step
        self._sums: list[Sums] = []
        self.reference: Any = self.reference_of(model) if objective.distributions else None
        # tried before the library wraps the model
        self._shares = shares_prompts(model)
        has_plain_head(model)
        # every process has to call the model equally often, so there one call is all
        self._least = LEAST if args.world_size == 1 else 2**62
        if tokens_per_device:
            check_parts(objective, [*examples, *(held_out or ())], tokens_per_device, self._shares)

    def reference_of(self, model: nn.Module) -> Any:
        """What gives full distributions of the reference; None with LoRA: the policy itself with its adapters off."""
        return None if hasattr(model, "disable_adapter") else frozen_copy(model)

    def check(self, objective: Objective, examples: Sequence[Example]) -> None:
        """Refuses examples that the objective cannot learn from, before anything is set up."""
        objective.check(examples)

    def batch(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The collator: lines as this model can read them; with `tokens_per_device` in parts."""
        if not self.tokens_per_device:
            return to_batch(examples, self._shares, self._least)
        cut = in_parts(examples, self.tokens_per_device, self._shares, self._least)
        parts = [to_batch(part, self._shares, self._least) for part in cut]
        return {"role": torch.cat([part["role"] for part in parts]), "parts": parts}

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(cast(Any, self.train_dataset))  # the order of the examples is part of the data

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        """Number of examples or tokens of each term, over all micro-batches and processes of the step."""
        if not batch_samples:
            return None
        counts = torch.stack([self._counts(batch) for batch in batch_samples]).sum(0).to(device)
        return self.accelerator.reduce(counts, "sum") if self.args.world_size > 1 else counts

    def compute_loss(  # type: ignore[override]  # the counts are always a tensor here
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The loss of one micro-batch, already divided by the counts of the whole optimiser step."""
        counts = self._counts(inputs) if num_items_in_batch is None else num_items_in_batch
        found = [self._part_loss(model, part, counts) for part in _parts_of(inputs)]
        loss = torch.stack([own for own, _ in found]).sum()
        return (loss, {"logps": torch.cat([logps for _, logps in found])}) if return_outputs else loss

    def _counts(self, batch: Mapping[str, Any]) -> Tensor:
        return torch.stack([self.objective.counts(part) for part in _parts_of(batch)]).sum(0)

    def _part_loss(self, model: nn.Module, inputs: dict[str, Any], counts: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of one part of a micro-batch, and the log-probabilities of its completions."""
        positions = self._positions(model, inputs) if self.objective.tokens else None
        logps = completion_logps(model, inputs) if positions is None else positions.logps.sum(-1)
        shown = inputs["demonstrated"]
        rows = Rows(logps, inputs["reference_logps"], inputs["score"], inputs["role"], positions, demonstrated=shown)
        # gradients are averaged over processes, but counts are sums over processes: hence the factor
        factor = self.args.world_size if model.training else 1
        loss = self.objective.loss(rows, self.settings, counts) * factor
        self._sums.append(self.objective.sums(rows, self.settings))
        return loss, logps

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """A backward pass for each part of a micro-batch. Processes exchange gradients after the last one alone."""
        *others, last = parts = _parts_of(inputs)
        self._parts = len(parts)
        losses = []
        for part in others:
            with self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        losses.append(super().training_step(model, last, num_items_in_batch))
        return torch.stack(losses).sum()

    def _positions(self, model: nn.Module, inputs: dict[str, Any]) -> Positions:
        """Single tokens of the batch, with full distributions or entropies if the objective needs them."""
        ids, mask, top = inputs["completion_ids"], inputs["completion_mask"], self.objective.entropies
        if not self.objective.distributions:
            logps, entropies = token_reading(model, inputs, top)
            return Positions(ids, mask, logps, own_entropies=entropies if top else None)
        reference = self._reference_logits(model, inputs)  # first: the policy needs its adapters on
        logits = completion_logits(model, inputs)
        own = torch.where(mask, token_entropy(logits, top), 0.0) if top else None
        return Positions(ids, mask, gather_logps(logits, ids, mask), logits, reference, own)

    def _reference_logits(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Of the reference at each completion token. `reference_groups` of a batch are prompts of its own."""
        inputs = {**inputs, "groups": inputs.get("reference_groups", inputs["groups"])}
        own = self.reference is None
        source: Any = self.accelerator.unwrap_model(model) if own else self.reference.to(inputs["role"].device)
        adapters_off = source.disable_adapter() if own else nullcontext()  # a teacher may have adapters of its own
        with torch.no_grad(), evaluation_mode(source), adapters_off, self.accelerator.autocast():
            return completion_logits(source, inputs)

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """The loss of a batch of `evaluate`, as a part of the loss of all held-out examples."""
        inputs = self._prepare_inputs(inputs)
        # the library weighs each batch by its number of completions: this undoes it
        counts = self._whole.to(inputs["role"].device) * len(inputs["role"]) / self._completions
        with torch.no_grad(), evaluation_mode(model), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=counts)
        return loss.detach(), None, None

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss, rewards, margin and accuracy on the held-out examples, under the names of training after `eval_`."""
        whole = to_batch(cast(Any, self.eval_dataset), share=False)
        self._whole, self._completions = self.objective.counts(whole), len(whole["role"])
        before, self._sums = self._sums, []
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._sums = before

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the means of the batch metrics since the last call to `logs`, over all processes."""
        mark = "eval_" if any(name.startswith("eval_") for name in logs) else ""
        logs.update({mark + name: value for name, value in self._means().items()})
        super().log(logs, *args, **kwargs)

    def _means(self) -> dict[str, float]:
        sums = added(self._sums)
        self._sums = []
        if self.args.world_size > 1:  # a process may lack a metric that another has
            everywhere = gather_object([{name: value.cpu() for name, value in sums.items()}])
            sums = added(everywhere)
        return {name: float(value) for name, value in sorted(means_of(sums).items())}


def _parts_of(batch: Any) -> list[dict[str, Any]]:
    return batch.get("parts", [batch])


def check_parts(objective: Objective, examples: Sequence[Example], most: int, share: bool) -> None:
    """Refuses what cannot be cut into parts of at most `most` positions with the same loss.

    Raises:
        InputError: for a loss whose rows depend on each other, or an example that is larger.
    """
    if objective.across_batch:
        rule, remedy = "go with losses that are sums over rows", "Leave it out"
        raise InputError("--tokens-per-device", rule, f"{objective.name}, whose rows depend on each other", remedy)
    for example in examples:
        in_parts([example], most, share)


def without_dropout(model: nn.Module) -> None:
    """Sets all dropout of a model to 0, but that of LoRA adapters, which the user asks for by name.

    Modules keep their training mode, which gradient checkpointing needs. What is saved is the configuration as it was.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = module.p if "lora_dropout" in name else 0.0
        for attribute, value in vars(module).items():
            if "dropout" in attribute and isinstance(value, float):
                setattr(module, attribute, 0.0)


class HeldTrainer(ObjectiveTrainer):
    """Adds to the loss a penalty on how far the trainable weights are from where they start.

    Args:
        penalty: of the weights of a parameter less those at the start, in one flat vector (`uftlab.losses.weights`).
        fisher: what the penalty gets besides, for each trainable parameter in order.
    """

    def __init__(
        self, *args: Any, penalty: Callable[..., Tensor], fisher: Sequence[Tensor] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.penalty = penalty
        trained: Any = self.model
        self.start = [p.detach().clone() for p in trained.parameters() if p.requires_grad]
        self.beside = [()] * len(self.start) if fisher is None else [(own.flatten(),) for own in fisher]

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """The objective's loss and the penalty, shared among the micro-batches of a step."""
        made = super().compute_loss(model, *args, **kwargs)
        loss = made[0] if isinstance(made, tuple) else made
        moved = zip((p for p in model.parameters() if p.requires_grad), self.start, self.beside, strict=True)
        penalty = sum(self.penalty((p - start).flatten(), *more) for p, start, more in moved)
        loss = loss + penalty / self.current_gradient_accumulation_steps / self._parts
        return (loss, made[1]) if isinstance(made, tuple) else loss


class RenewedTrainer(ObjectiveTrainer):
    """Replaces the reference by the policy as it is, before the first step and then every `refresh` steps.

    For objectives with `distributions`: log-probabilities that were computed before training stay as they are.

    Raises:
        InputError: for a model with adapters, whose reference is its base and cannot be another.
    """

    def __init__(self, *args: Any, refresh: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.reference is None:
            what, remedy = "A reference that is renewed", "Train all weights, or leave the reference as it is"
            raise InputError(what, "be a model of its own", f"adapters, or {self.objective.name}", remedy)
        self.refresh, self.renewed = refresh, -1

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """The step of the parent class, after the reference is renewed if its time has come."""
        step = self.state.global_step
        if model.training and step % self.refresh == 0 and step != self.renewed:
            self.reference.load_state_dict(self.accelerator.unwrap_model(model).state_dict())
            self.renewed = step
        return super().compute_loss(model, *args, **kwargs)

"""`UFTTrainer`: `transformers.Trainer` for any objective of the registry, with as few overrides as possible."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from uftlab.models.logps import as_reference, completion_ids, completion_logits, completion_logps, gather_logps
from uftlab.models.policies import frozen_copy
from uftlab.objectives.objective import Objective, Positions, Rows, mean_metrics
from uftlab.rows.tokens import Example, collate

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
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    return TrainingArguments(**{**defaults, **changes})


class Quiet(TrainerCallback):
    """Stops the trainer from printing its logs."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The library prints only in the process that this flag marks."""
        state.is_local_process_zero = False


class UFTTrainer(Trainer):
    """Trains a policy on tokenised examples with one objective.

    The examples are in training order (`uftlab.rows.tokens.interleave`) and carry their reference log-probabilities
    (`uftlab.models.logps.ReferenceCache`). The library does gradient accumulation, mixed precision, distribution over
    processes and resuming. Logged metrics: `loss` and those of `uftlab.objectives.objective.batch_metrics`. If an
    objective needs the full distributions of the reference, they come from a frozen copy of the model, made at the
    start. With LoRA they come from the model with its adapters off.

    Raises:
        InputError: for examples that the objective cannot learn from (`Objective.check`).
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        examples: Sequence[Example],
        objective: Objective,
        settings: Mapping[str, float] | None = None,
        pad_id: int = 0,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.check(objective, examples)
        super().__init__(
            model=model,
            args=args,
            train_dataset=examples,  # type: ignore[arg-type]
            data_collator=partial(collate, pad_id=pad_id),
            callbacks=callbacks,
        )
        self.objective: Objective = objective
        self.settings = objective.with_defaults(settings or {})
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the counts of the whole optimiser step
        self._metrics: list[dict[str, Tensor]] = []
        copied = objective.distributions and not hasattr(model, "disable_adapter")
        self.reference: Any = frozen_copy(model) if copied else None  # type: ignore[arg-type]

    def check(self, objective: Objective, examples: Sequence[Example]) -> None:
        """Refuses examples that the objective cannot learn from, before anything is set up."""
        objective.check(examples)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(cast(Any, self.train_dataset))  # the order of the examples is part of the data

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        """Number of examples or tokens of each term, over all micro-batches and processes of the step."""
        if not batch_samples:
            return None
        counts = torch.stack([self.objective.counts(batch) for batch in batch_samples]).sum(0).to(device)
        return self.accelerator.reduce(counts, "sum") if self.args.world_size > 1 else counts

    def compute_loss(  # type: ignore[override]  # the counts are always a tensor here
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The loss of one micro-batch, already divided by the counts of the whole optimiser step."""
        positions = self._positions(model, inputs) if self.objective.tokens else None
        logps = completion_logps(model, inputs) if positions is None else positions.logps.sum(-1)
        rows = Rows(logps, inputs["reference_logps"], inputs["score"], inputs["role"], positions)
        counts = self.objective.counts(inputs) if num_items_in_batch is None else num_items_in_batch
        # gradients are averaged over processes, but counts are sums over processes: hence the factor
        loss = self.objective.loss(rows, self.settings, counts) * self.args.world_size
        self._metrics.append(self.objective.metrics(rows, self.settings))
        return (loss, {"logps": logps}) if return_outputs else loss

    def _positions(self, model: nn.Module, inputs: dict[str, Tensor]) -> Positions:
        """Single tokens of the batch, with full distributions if the objective needs them."""
        ids, mask, reference = completion_ids(inputs), inputs["completion_mask"], None
        if self.objective.distributions:  # first: the policy needs its adapters on
            source = self.accelerator.unwrap_model(model) if self.reference is None else self.reference.to(mask.device)
            with as_reference(source), self.accelerator.autocast():
                reference = completion_logits(source, inputs)
        logits = completion_logits(model, inputs)
        logps = gather_logps(logits, ids, mask)
        return Positions(ids, mask, logps, logits if self.objective.distributions else None, reference)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the means of the batch metrics since the last call to `logs`."""
        logs.update(mean_metrics(self._metrics))
        self._metrics.clear()
        super().log(logs, *args, **kwargs)


class HeldTrainer(UFTTrainer):
    """Adds to the loss a penalty on how far the trainable weights are from where they start.

    Args:
        penalty: of the weights of a parameter less those at the start, in one flat vector (`uftlab.losses.weights`).
    """

    def __init__(self, *args: Any, penalty: Callable[[Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.penalty = penalty
        trained: Any = self.model
        self.start = [p.detach().clone() for p in trained.parameters() if p.requires_grad]

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """The objective's loss and the penalty, shared among the micro-batches of a step."""
        made = super().compute_loss(model, *args, **kwargs)
        loss = made[0] if isinstance(made, tuple) else made
        moved = zip((p for p in model.parameters() if p.requires_grad), self.start, strict=True)
        penalty = sum(self.penalty((p - start).flatten()) for p, start in moved)
        loss = loss + penalty / self.current_gradient_accumulation_steps
        return (loss, made[1]) if isinstance(made, tuple) else loss

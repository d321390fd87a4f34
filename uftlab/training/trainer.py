"""`UFTTrainer`, for scripts: the conventions of transformers and TRL around `uftlab.engine.trainer.ObjectiveTrainer`.

A script that trains with TRL's DPOTrainer becomes one of UFT by another import, another configuration and another class
(docs/from_dpo_trainer.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from uftlab.engine.trainer import ObjectiveTrainer
from uftlab.errors import InputError
from uftlab.models.policies import load_policy
from uftlab.models.references import ReferenceCache
from uftlab.objectives.registry import objective_named
from uftlab.rows.kinds import Rows, rows_from
from uftlab.rows.table import kind_of
from uftlab.rows.tokens import Example, RememberingTokens
from uftlab.rows.understanding import understand
from uftlab.training.methods import Stage
from uftlab.training.recipes import share_of_a_step
from uftlab.training.stage_data import enough, prepare, sources


@dataclass
class UFTConfig(TrainingArguments):
    """`TrainingArguments` and what the loss needs.

    `per_device_train_batch_size` counts completions, but for losses on pairs alone it counts pairs, as in TRL.

    Args:
        objective: the loss, a name of `uftlab methods` ("una-score" is UFT's; "dpo", "kto", "sft", ...).
        beta: KL strength of the implicit reward.
        demonstrations: their share of each step where both tables are given.
        loss_settings: other settings of the loss.
        max_length: longer rows are dropped, with a warning.
        dropout: whether dropout is on in the policy. It is always off in the reference.
        tokens_per_device: most positions of one forward and backward pass, padding included. A batch is cut into as
            many parts as that needs; the loss stays the same. None: no limit.
        logging_nan_inf_filter: off, because the library's filter logs NaN as a loss of 0.
    """

    objective: str = field(default="una-score")
    beta: float = field(default=0.1)
    demonstrations: float = field(default=0.5)
    loss_settings: dict[str, float] | None = field(default=None)
    max_length: int | None = field(default=None)
    dropout: bool = field(default=False)
    tokens_per_device: int | None = field(default=None)
    logging_nan_inf_filter: bool = field(default=False)
    remove_unused_columns: bool = field(default=False)


class UFTTrainer(ObjectiveTrainer):
    """Trains a policy on a table of feedback, one of demonstrations, or both, with one loss.

    The reference is the model as it is given. Its log-probabilities are read before the first step.

    Args:
        model: a causal language model, or where to load one (`uftlab.models.policies.load_policy`).
        train_dataset: a table in any layout that `uftlab.rows.understanding.understand` knows, or two of them as
            {"demonstrations": table, "feedback": table}.
        eval_dataset: the same, held out: loss, margin and accuracy of it are logged where `eval_strategy` says.
        processing_class: the tokenizer; by default the model's own, loaded by its name.
        peft_config: adapters of the peft library; the reference is the model with its adapters off.

    Raises:
        InputError: for tables that the loss cannot learn from.
    """

    def __init__(
        self,
        model: nn.Module | str,
        args: UFTConfig,
        train_dataset: Dataset | Mapping[str, Dataset],
        eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        **options: Any,
    ) -> None:
        policy: Any = model
        if isinstance(model, str):
            policy, own = load_policy(model)
            processing_class = processing_class or own
        if processing_class is None:
            processing_class = load_policy(policy.config._name_or_path)[1]
        if peft_config is not None:
            from peft import get_peft_model

            policy = get_peft_model(policy, peft_config)
        policy.to(args.device)
        tokens, objective = RememberingTokens(processing_class), objective_named(args.objective)
        tables = _tables(train_dataset)
        both = len(tables) == 2
        stage = Stage(objective.name, args.demonstrations if both else float("demonstrations" in tables))
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        batch = per_step * (2 if objective.kinds == ("preference",) else 1)
        settings = {**({"beta": args.beta} if "beta" in objective.settings else {}), **(args.loss_settings or {})}
        if args.max_steps > 0:
            tables = {name: enough(table, args.max_steps * batch, args.seed) for name, table in tables.items()}
        refer = ReferenceCache().reader(policy) if objective.reference else list
        examples, counts = sources(stage, tables, tokens, batch, args.max_length)
        rounds = max(len(own) / count for own, count in zip(examples, counts, strict=True))
        steps = args.max_steps if args.max_steps > 0 else max(1, round(rounds * args.num_train_epochs))
        data = prepare(
            stage, tables, tokens, {"learning_rate": args.learning_rate, **settings}, steps, args.seed,
            refer, batch, args.max_length, whole=False,
        )  # fmt: skip
        parts = {"gradient_accumulation_steps": args.gradient_accumulation_steps}
        args.per_device_train_batch_size = share_of_a_step(data.per_step, parts)
        args.max_steps, args.num_train_epochs = steps, 1  # the order holds all epochs
        held: list[Example] | None = None
        if eval_dataset is not None:
            apart = sources(stage, _tables(eval_dataset), tokens, batch, args.max_length)[0]
            held = [example for source in apart for example in source]
            held = refer(held)
        chosen = {name: value for name, value in data.settings.items() if name != "learning_rate"}
        super().__init__(
            policy, args, data.order, objective, chosen, callbacks, held, args.dropout,
            args.tokens_per_device or 0, processing_class=processing_class, **options,
        )  # fmt: skip


def _tables(given: Dataset | Mapping[str, Dataset] | Sequence[Mapping[str, Any]]) -> dict[str, Dataset]:
    """The tables by what they are for."""
    if isinstance(given, Mapping):
        known = ("demonstrations", "feedback")
        if other := sorted(set(given) - set(known)):
            raise InputError("The tables", f"be named {' and '.join(known)}", other, "Rename them")
        return {name: understand(Rows(partial(rows_from, table)), name)[0] for name, table in given.items()}
    rows = Rows(partial(rows_from, given)) if isinstance(given, Dataset) else list(given)
    table = understand(rows, "the table")[0]
    return {"demonstrations" if kind_of(table.column_names) == "demonstration" else "feedback": table}

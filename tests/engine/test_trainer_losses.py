"""Every objective in `ObjectiveTrainer` on a real model: accumulation, padding, order, references, LoRA."""

import copy
import math

import pytest
import torch
from torch.testing import assert_close

from uftlab import losses
from uftlab.engine.trainer import ObjectiveTrainer, training_arguments
from uftlab.errors import InputError
from uftlab.models.logps import gather_logps, token_logps
from uftlab.models.policies import with_lora
from uftlab.models.references import ReferenceCache
from uftlab.objectives.registry import OBJECTIVES
from uftlab.rows.batches import to_batch
from uftlab.rows.table import as_labels, from_rows
from uftlab.rows.tokens import Completion, Tokens, with_mismatched, with_quantiles
from uftlab.world.world import World, pairs

pytestmark = pytest.mark.usefixtures("quick_collections")

every_objective = pytest.mark.parametrize("name", OBJECTIVES)
DISTRIBUTIONS = [name for name, objective in OBJECTIVES.items() if objective.distributions]


@pytest.fixture(scope="module")
def sources():
    """Eight rows of each kind from world 0, tokenised; prompts and completions differ in length."""
    from uftlab.models.policies import tiny_tokenizer

    tokens, world = Tokens(tiny_tokenizer()), World(0)
    feedback = world.feedback(8, seed=1)
    scored = from_rows([{k: row[k] for k in ("prompt", "completion", "score")} for row in feedback])
    demonstrations = [{k: r[k] for k in ("prompt", "completion")} for r in world.demonstrations(8, seed=1)]
    return {
        "demonstration": tokens.examples(from_rows(demonstrations)),
        "preference": tokens.examples(from_rows(pairs(feedback))),
        "scored": tokens.examples(scored)[::2],
        "label": tokens.examples(as_labels(scored))[::2],
    }


def examples_for(name, sources, model):
    """Eight examples for an objective, its kinds taking turns, with the reference of `model`."""
    objective = OBJECTIVES[name]
    made = [sources[kind][: 8 // len(objective.kinds)] for kind in objective.kinds]
    made = [with_mismatched(table) for table in made] if objective.mismatched else made
    made = [with_quantiles(table) for table in made] if objective.quantiles else made
    return ReferenceCache().fill(model, [example for row in zip(*made, strict=True) for example in row])


def trainer_of(name, model, examples, folder, **changes):
    arguments = training_arguments(folder, use_cpu=True, max_steps=1, **{"optim": "sgd", **changes})
    return ObjectiveTrainer(model, arguments, examples, OBJECTIVES[name])


def moved(model):
    """A policy a step away from its reference, as after some training."""
    policy, noise = copy.deepcopy(model), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.05 * weight.std() * torch.randn(weight.shape, generator=noise))
    return policy


def gradient(trainer, batches):
    """Summed gradient and loss of micro-batches of one step, as the library accumulates them."""
    trainer.model.zero_grad()
    counts = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    losses_of = [trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts) for batch in batches]
    sum(losses_of).backward()
    flat = torch.cat([weight.grad.flatten() for weight in trainer.model.parameters()])
    return sum(losses_of).item(), flat


@every_objective
def test_eight_micro_batches_equal_one_batch_of_eight_in_any_order(name, sources, untrained, tmp_path):
    """Each row alone has no padding at all; together they are padded on the left and on the right."""
    examples = examples_for(name, sources, untrained)
    trainer = trainer_of(name, untrained, examples, tmp_path)
    trainer.model.load_state_dict(moved(untrained).state_dict())
    whole, big = gradient(trainer, [to_batch(examples)])
    turned, other = gradient(trainer, [to_batch(examples[::-1])]) if name != "eaft-rolled" else (whole, big)
    assert big.abs().max() > 0
    assert_close(turned, whole, rtol=1e-4, atol=1e-5)
    assert_close(other, big, rtol=1e-3, atol=2e-5 * big.abs().max().item())
    if not OBJECTIVES[name].across_batch:
        parts, small = gradient(trainer, [to_batch([example]) for example in examples])
        assert_close(parts, whole, rtol=1e-4, atol=1e-5)
        assert_close(small, big, rtol=1e-3, atol=2e-5 * big.abs().max().item())


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_live_distributions_are_those_of_the_cached_reference(name, sources, untrained, tmp_path):
    """Also after the policy has moved: what was cached before training is what the frozen copy says in step two."""
    examples = examples_for(name, sources, untrained)
    trainer = trainer_of(name, untrained, examples, tmp_path)
    trainer.model.load_state_dict(moved(untrained).state_dict())
    batch = to_batch(examples)
    positions = trainer._positions(trainer.model, batch)
    live = gather_logps(positions.reference_logits, batch["completion_ids"], batch["completion_mask"]).sum(-1)
    assert_close(live, batch["reference_logps"], atol=1e-4, rtol=1e-5)
    assert (positions.logps.sum(-1) - live).abs().max() > 0.01
    assert not positions.reference_logits.requires_grad


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_with_lora_the_live_reference_is_the_model_with_its_adapters_off(name, sources, untrained, tmp_path):
    examples = examples_for(name, sources, untrained)
    policy = with_lora(copy.deepcopy(untrained), 2)
    trainer = trainer_of(name, policy, examples, tmp_path)
    assert trainer.reference is None
    with torch.no_grad():
        for parameter, weight in policy.named_parameters():
            if "lora" in parameter:
                weight.add_(0.1)
    batch = to_batch(examples)
    positions = trainer._positions(policy.train(), batch)
    live = gather_logps(positions.reference_logits, batch["completion_ids"], batch["completion_mask"]).sum(-1)
    assert_close(live, batch["reference_logps"], atol=1e-4, rtol=1e-5)
    trainer.compute_loss(policy, batch).backward()
    assert policy.training and all(w.grad is not None for w in policy.parameters() if w.requires_grad)


def test_objectives_of_sums_keep_no_tokens_and_no_second_model(sources, untrained, tmp_path):
    """What they cost has not changed: no copy of the model, no logits kept."""
    trainer = trainer_of("dpo", untrained, examples_for("dpo", sources, untrained), tmp_path)
    assert trainer.reference is None
    trainer._positions = lambda *args: pytest.fail("looked at single tokens")
    trainer.compute_loss(trainer.model, to_batch(trainer.train_dataset))


@every_objective
def test_a_step_on_the_library_changes_the_weights_and_logs_a_finite_loss(name, sources, untrained, tmp_path):
    examples = examples_for(name, sources, untrained)
    before = copy.deepcopy(untrained.state_dict())
    changes = {"lr_scheduler_type": "constant", "warmup_steps": 0, "logging_steps": 1}
    trainer = trainer_of(name, untrained, examples, tmp_path, per_device_train_batch_size=8, **changes)
    trainer.train()
    assert any(not torch.equal(weight, before[key]) for key, weight in trainer.model.state_dict().items())
    logged = trainer.state.log_history[0]
    assert abs(logged["loss"]) < 1e3 and all(math.isfinite(value) for value in logged.values())
    assert any(key.startswith("reward/") for key in logged) == OBJECTIVES[name].reference
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_unfilled_or_foreign_examples_are_refused_for_distributions_too(name, sources, untrained, tmp_path):
    other = "sft" if "preference" in OBJECTIVES[name].kinds else "dpo"
    with pytest.raises(InputError, match="must have the roles"):
        trainer_of(name, untrained, examples_for(other, sources, untrained), tmp_path)


def test_masking_the_shared_prefix_changes_neither_value_nor_gradient_on_a_real_model(untrained):
    """The mask of the joint objective drops out of the margin: both sides read the prefix after the same tokens."""
    sides = (("chosen", (43, 44, 25, 6, 3)), ("rejected", (43, 44, 122, 97, 6, 3)))
    pair = tuple(Completion((2, 4, 92, 44, 45, 9, 5), ids, role) for role, ids in sides)
    examples = ReferenceCache().fill(untrained, [pair])
    policy, batch = moved(untrained), to_batch(examples)
    prefix = losses.shared_prefix(*batch["completion_ids"].split(1))
    assert prefix.sum() == 2
    found = []
    for mask in (prefix, torch.zeros_like(prefix)):
        policy.zero_grad()
        chosen, rejected = token_logps(policy, batch).split(1)
        loss = losses.prefix_masked_cdpo_loss(chosen, rejected, mask, *batch["reference_logps"].split(1), 0.5, 0.1)
        loss.sum().backward()
        found.append((loss.item(), torch.cat([w.grad.flatten() for w in policy.parameters()])))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5 * found[1][1].abs().max().item())

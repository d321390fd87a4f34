"""Mistakes this field has made, one test per line of the list: each names what was copied from paper to paper."""

import copy
import inspect
import math
import re

import pytest
import torch
from jaxtyping import TypeCheckError
from rows import END, WORDS, examples_of, loss_of, rows_of, tables
from torch.testing import assert_close

from uftlab import losses
from uftlab.engine.trainer import ObjectiveTrainer, training_arguments
from uftlab.errors import InputError
from uftlab.models.logps import completion_logps, token_logps
from uftlab.models.references import ReferenceCache
from uftlab.objectives.objective import batch_metrics
from uftlab.objectives.registry import OBJECTIVES
from uftlab.rows.batches import to_batch
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import Completion, Tokens, collate, interleave, with_mismatched

every_objective = pytest.mark.parametrize("name", OBJECTIVES)
FUNCTIONS = [name for name, value in vars(losses).items() if inspect.isfunction(value)]


@pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if objective.reference])
def test_1_rewards_have_one_unit_and_always_carry_beta(name):
    """Twice the beta, twice the logged reward, for every objective; never the bare log-ratio."""
    rows = rows_of(examples_of(OBJECTIVES[name], 6))
    for beta in (0.1, 0.2):
        found = batch_metrics(rows, beta)
        for role, bare in batch_metrics(rows, 1.0).items():
            if role.startswith("reward/") and role != "reward/accuracy":
                assert_close(found[role], beta * bare)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_2_sums_or_means_is_said_in_the_names(name):
    """Log-probabilities are called `*_logps`, sums; what divides them takes lengths, and its docstring says tokens."""
    arguments = list(inspect.signature(getattr(losses, name)).parameters)
    assert all(argument.endswith("logps") for argument in arguments if "logp" in argument)
    lengths = {"ipo_mean_loss", "orpo_loss", "simpo_loss", "minor_sft_loss", "dpo_norm_loss", "iw_sft_loss"}
    assert any("lengths" in argument for argument in arguments) == (name in lengths)


def test_2_means_are_means_and_sums_are_sums():
    """Every token twice: a loss of means stays, a loss of sums does not."""
    sums, n = [torch.tensor([x]) for x in (-8.0, -12.0, -10.0, -10.5)], torch.tensor([4.0])
    twice = [2 * x for x in sums]
    assert_close(losses.ipo_mean_loss(*twice, 2 * n, 2 * n, 0.1), losses.ipo_mean_loss(*sums, n, n, 0.1))
    for loss, settings in ((losses.orpo_loss, (0.5,)), (losses.simpo_loss, (2.0, 1.0))):
        assert_close(loss(*twice[:2], 2 * n, 2 * n, *settings), loss(*sums[:2], n, n, *settings))
    for name in ("ipo_loss", "dpo_loss", "apo_zero_loss"):
        assert abs(getattr(losses, name)(*twice, 0.1) - getattr(losses, name)(*sums, 0.1)) > 1e-2


@every_objective
def test_3_masks_are_exact_and_not_made_from_values(name):
    """A token of probability 1 has the value 0 of padding, and counts all the same; prompts never do."""
    objective = OBJECTIVES[name]
    examples = examples_of(objective, 4)
    sure = tables(examples)
    for logits in sure:
        logits.data[-1] = 100 * torch.nn.functional.one_hot(torch.tensor(END), WORDS).double()
    rows = rows_of(examples, policy=sure)
    completions = [c for example in examples for c in example]
    assert (rows.positions.logps[torch.arange(len(completions)), rows.positions.lengths.long() - 1].abs() < 1e-30).all()
    assert rows.positions.lengths.tolist() == [len(c.completion_ids) for c in completions]
    padded = objective.loss(rows_of(examples, policy=sure, extra_padding=2), objective.with_defaults({}),
                            objective.counts(collate(examples, 0)).double())  # fmt: skip
    assert_close(padded, loss_of(objective, examples, policy=sure), rtol=1e-12, atol=0)


def test_3_the_prompt_of_the_rejected_side_is_masked_too(untrained):
    """Both sides have as many unmasked positions as their completion has tokens, whatever the prompt's length."""
    pair = (Completion((1, 7, 8, 9), (5, 6, 2), "chosen"), Completion((1, 7, 8, 9), (6, 2), "rejected"))
    batch = collate([pair], 0)
    assert batch["completion_mask"].sum(-1).tolist() == [3, 2]
    with torch.no_grad():
        assert ((token_logps(untrained, to_batch([pair])) != 0).sum(-1) == torch.tensor([3, 2])).all()


@every_objective
def test_4_a_batch_of_one_and_an_odd_batch_are_no_nan(name):
    objective = OBJECTIVES[name]
    for count in (1, 3):
        assert torch.isfinite(loss_of(objective, examples_of(objective, count)))


def test_4_an_empty_completion_is_refused_and_no_row_is_its_own_mismatch(tokenizer):
    with pytest.raises(InputError, match="row 1, column 'completion' must contain text"):
        from_rows([{"prompt": "a", "completion": " "}])
    table = from_rows([{"prompt": p, "completion": f"{p} .", "label": True} for p in ("red", "blue", "green")])
    for own, other in with_mismatched(Tokens(tokenizer).examples(table)):
        assert own.prompt_ids == other.prompt_ids and own.completion_ids != other.completion_ids


@pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if not objective.across_batch])
def test_5_accumulation_is_the_big_batch(name):
    """Eight micro-batches of one, of different lengths: the means of means would differ."""
    objective = OBJECTIVES[name]
    examples = examples_of(objective, 8)
    counts = objective.counts(collate(examples, 0))
    assert_close(sum(loss_of(objective, [e], counts) for e in examples), loss_of(objective, examples))


def test_6_a_cached_reference_is_never_stale_never_the_policy_itself_and_moves_no_random_state(untrained):
    rows = [(Completion((1, 7, 8), (5, 6, 2), "scored", 1.0),)]
    cache, before = ReferenceCache(), torch.random.get_rng_state()
    ((first,),) = cache.fill(untrained, rows)
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.no_grad():
        next(untrained.parameters()).add_(0.1)  # training
    ((second,),) = cache.fill(untrained, rows)
    live = completion_logps(untrained, to_batch(rows)).item()
    assert first.reference_logps != second.reference_logps == pytest.approx(live, abs=1e-4)
    assert interleave([rows * 8], [2], 4, seed=0) == interleave([rows * 8], [2], 4, seed=0)


@pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if objective.distributions])
def test_6_a_live_reference_does_not_train_with_the_policy(name, tmp_path, untrained):
    objective = OBJECTIVES[name]
    trainer = ObjectiveTrainer(
        untrained,
        training_arguments(tmp_path, use_cpu=True, max_steps=1, lr_scheduler_type="constant", warmup_steps=0),
        ReferenceCache().fill(untrained, examples_of(objective, 4)),
        objective,
    )
    before = copy.deepcopy(trainer.reference.state_dict())
    trainer.train()
    assert trainer.reference is not trainer.model and not trainer.reference.training
    assert all(torch.equal(weight, before[key]) for key, weight in trainer.reference.state_dict().items())
    assert any(not torch.equal(weight, before[key]) for key, weight in trainer.model.state_dict().items())


def test_7_orpo_at_probability_1_and_the_log_of_one_minus_sigma():
    """The naive odds are NaN at mean log-probability 0, and log(1 - sigma(20)) is minus infinity in float32."""
    one, n = torch.zeros(1), torch.ones(1)
    assert torch.isnan((one - one) - (torch.log1p(-one.exp()) - torch.log1p(-one.exp()))).all()
    assert torch.isfinite(losses.orpo_loss(one, one, n, n, 1.0)).all()
    assert torch.isinf(torch.log(1 - torch.sigmoid(torch.tensor(20.0))))
    assert_close(losses.una_cross_entropy_loss(torch.tensor([20.0]), one, one, 1.0), torch.tensor([20.0]))


@every_objective
def test_8_no_configuration_overrides_what_the_user_set(name):
    """rlhf-book's SimPO took beta 0.1 and made it 2.0."""
    objective = OBJECTIVES[name]
    own = {setting: value * 0.7 + 0.01 for setting, value in objective.settings.items()}
    own |= {"cap": 0.9} if "cap" in own else {}  # one that the largest weight reaches
    assert objective.with_defaults(own) == own
    examples = examples_of(objective, 6)
    for setting, value in own.items():
        assert loss_of(objective, examples, settings={setting: value}) != loss_of(objective, examples)


SHAPES = {"completion": (3,), "pair": (3,), "row": (3,), "mismatched": (3,), "": ()}
SHAPES |= {
    "completion pos": (3, 2),
    "completion pos vocabulary": (3, 2, 4),
    "prompt sample": (3, 2),
    "pair pos": (3, 2),
    "*member weight": (3, 2),
    "*shape": (3,),
}


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in ("log1mexp", "log_partition_of_quantiles")])
def test_9_a_shape_that_would_broadcast_is_refused(name):
    """(3,) against (3, 1) is a 3 x 3 loss with a plausible mean."""
    function, good, shaped = getattr(losses, name), {}, []
    for argument, parameter in inspect.signature(function).parameters.items():
        found = re.match(r"(\w+)\[Tensor, [\"'](.*)[\"']\]", str(parameter.annotation))
        if found is None:
            if parameter.default is inspect.Parameter.empty:
                good[argument] = 0.5
            continue
        kind = {"Float": torch.float32, "Int": torch.long, "Bool": torch.bool}[found[1]]
        good[argument] = torch.zeros(SHAPES[found[2]], dtype=kind)
        shaped.append(argument)
    function(**good)
    for argument in shaped if len(shaped) > 1 else ():
        for wrong in (good[argument].unsqueeze(-1), good[argument][:1] if good[argument].ndim else torch.zeros(3)):
            with pytest.raises(TypeCheckError):
                function(**{**good, argument: wrong})


def test_10_the_chosen_completion_may_fall_and_the_logs_show_it():
    """DPO's loss falls while both log-probabilities fall; so both are logged beside the margin."""
    reference = torch.tensor([-10.0])
    before = losses.dpo_loss(reference, reference, reference, reference, 0.1)
    after = losses.dpo_loss(reference - 5, reference - 9, reference, reference, 0.1)
    assert after < before
    found = batch_metrics(rows_of(examples_of(OBJECTIVES["dpo"], 2)), 0.1)
    assert {"reward/chosen", "reward/rejected", "reward/margin", "logps/chosen", "logps/rejected"} <= set(found)


def test_10_dpop_and_the_likelihood_terms_push_the_chosen_up_where_dpo_does_not_care():
    """Chosen 5 nats below the reference, margin satisfied: DPO's push on the chosen is e^-20, DPOP's is real."""
    pushes = {}
    for name, extra in (("dpo_loss", ()), ("dpop_loss", (100.0,))):
        chosen = torch.tensor([-15.0], requires_grad=True)
        loss = getattr(losses, name)(chosen, torch.tensor([-215.0]), *torch.full((2, 1), -10.0), 0.1, *extra)
        loss.sum().backward()
        pushes[name] = -chosen.grad.item()
    assert 0 <= pushes["dpo_loss"] < 1e-8 and pushes["dpop_loss"] > 1
    assert math.isfinite(pushes["dpop_loss"])

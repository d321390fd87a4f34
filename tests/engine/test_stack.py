"""A stack of tiny Llamas against transformers' own: the same numbers, the same gradients, without padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from uftlab.engine.packing import pack
from uftlab.engine.stack import Layout, Weights, _Norm, flatten, logits, unflatten
from uftlab.engine.stack import token_logps as stacked_logps
from uftlab.errors import InputError
from uftlab.models.logps import token_logps
from uftlab.models.policies import load_base, tiny_config
from uftlab.rows.batches import to_batch
from uftlab.rows.tokens import Completion

LAYOUT = Layout.of(tiny_config())


def model_of(seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config()).eval()


@pytest.fixture(scope="module")
def models():
    """Two models with nothing in common, one of them a trained base."""
    return [load_base(0), model_of(1)]


def stacked(models):
    return torch.stack([flatten(model.state_dict(), LAYOUT) for model in models])


words = st.integers(6, LAYOUT.vocabulary - 1)
texts = st.lists(words, min_size=1, max_size=9).map(tuple)
singles = st.builds(lambda x, y: (Completion(x, y, "demonstration"),), texts, texts)
couples = st.builds(lambda x, y, z: (Completion(x, y, "chosen"), Completion(x, z, "rejected")), texts, texts, texts)
batches = st.lists(singles | couples, min_size=1, max_size=4)


def test_weights_come_back_from_the_stack_bit_for_bit():
    state = model_of(0).state_dict()
    back = unflatten(flatten(state, LAYOUT), LAYOUT)
    assert set(state) - set(back) == {"lm_head.weight"}
    assert all(torch.equal(weight, state[name]) for name, weight in back.items())
    assert len(flatten(state, LAYOUT)) == LAYOUT.parameters == 139_520


@settings(deadline=None, max_examples=25)
@given(st.tuples(batches, batches))
def test_log_probabilities_are_those_of_transformers(models, members):
    batch = pack(members)
    with torch.no_grad():
        ours = stacked_logps(logits(Weights.of(stacked(models), LAYOUT), batch, LAYOUT), batch)
        for model, examples, own in zip(models, members, ours, strict=True):
            theirs = token_logps(model, to_batch(examples))
            rows, columns = theirs.shape
            assert_close(own[:rows, :columns], theirs, atol=1e-4, rtol=1e-4)
            assert not own[rows:].any() and not own[:, columns:].any()


def test_the_gradient_is_that_of_transformers():
    pair = (Completion((7, 8, 9), (10, 11, 2), "chosen"), Completion((7, 8, 9), (12, 2), "rejected"))
    examples, model = [pair, (Completion((20, 21), (22, 2), "demonstration"),)], model_of(0)
    weights = stacked([model]).requires_grad_()
    batch = pack([examples])
    stacked_logps(logits(Weights.of(weights, LAYOUT), batch, LAYOUT), batch).sum().backward()
    token_logps(model, to_batch(examples)).sum().backward()
    theirs = flatten({name: w.grad for name, w in model.named_parameters()}, LAYOUT)
    assert_close(weights.grad[0], theirs, atol=1e-4, rtol=1e-3)


def test_what_one_completion_says_does_not_reach_the_other(models):
    def rejected_logps(chosen):
        pair = (Completion((7, 8), chosen, "chosen"), Completion((7, 8), (9, 10, 2), "rejected"))
        batch = pack([[pair]])
        with torch.no_grad():
            return stacked_logps(logits(Weights.of(stacked(models[:1]), LAYOUT), batch, LAYOUT), batch)[0, 1, :3]

    assert_close(rejected_logps((20, 21, 22, 23, 2)), rejected_logps((30, 2)), atol=1e-5, rtol=1e-5)


def test_the_norm_has_the_gradient_that_autograd_would_find():
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: _Norm.apply(x, 1e-6), x)
    assert_close(_Norm.apply(x, 1e-6), torch.nn.functional.rms_norm(x, (8,), eps=1e-6))


@pytest.mark.parametrize(
    "change",
    [
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 2},
        {"attention_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_llama_of_another_build_is_refused(change):
    config = tiny_config()
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(InputError, match=r"A Llama in a stack must have tied embeddings.*ObjectiveTrainer"):
        Layout.of(config)

"""The Fisher information: by hand, as the curvature that it estimates, and on the tiny base."""

import copy
import math

import pytest
import torch
from rows import compared
from torch import nn
from torch.testing import assert_close

from uftlab.engine.stack import Layout, flatten
from uftlab.losses import ewc_to_start
from uftlab.models.fisher import fisher_information, own_texts
from uftlab.models.logps import completion_logits, on_device, token_kl
from uftlab.models.policies import load_base, tiny_config, tiny_tokenizer
from uftlab.rows.batches import to_batch
from uftlab.rows.tokens import Completion


class Coin(nn.Module):
    """One weight w: word 1 with probability sigma(w), else word 0."""

    config = tiny_config()

    def __init__(self, w):
        super().__init__()
        self.w, self.frozen = nn.Parameter(torch.tensor([w])), nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, input_ids, **_):
        two = torch.stack([torch.zeros(1), self.w], -1)
        return type("Out", (), {"logits": two.expand(*input_ids.shape, 2)})


def test_a_coin_by_hand():
    """sigma(1) of 1000 texts say 1: the mean of the squared scores is p (1 - p)."""
    p = 1 / (1 + math.exp(-1))
    heads = round(1000 * p)
    rows = [Completion((0,), (int(k < heads),), "scored") for k in range(1000)]
    found = fisher_information(Coin(1.0), rows)
    assert found.keys() == {"w"}
    assert found["w"].item() == pytest.approx(p * (1 - p), rel=1e-3)


@pytest.fixture(scope="module")
def base():
    return load_base(0)


@pytest.fixture(scope="module")
def texts(base):
    return own_texts(base, tiny_tokenizer(), 1)


def test_own_texts_are_sentences_of_the_world_and_depend_on_the_seed_alone(base, texts):
    words = tiny_tokenizer()
    first, second = own_texts(base, words, 1), own_texts(base, words, 2)
    assert compared([texts]) == compared([first]) != compared([second])
    assert all(row.prompt_ids == (words.bos_token_id,) for row in texts)
    assert sum(row.completion_ids[-1] == words.eos_token_id for row in texts) > 0.95 * len(texts)
    assert len({row.completion_ids for row in texts}) > 0.5 * len(texts)


def test_half_the_sum_of_squares_estimates_the_kl_of_a_small_move_one_weight_at_a_time(base, texts):
    """The diagonal is exact where a single weight moves: here each of three that matter."""
    rows = texts[:64]
    fisher = fisher_information(base, rows)
    weight = "model.layers.0.mlp.down_proj.weight"
    batch = on_device(to_batch([(row,) for row in rows]), "cpu")
    with torch.no_grad():
        before = completion_logits(base, batch)
    for place in fisher[weight].flatten().argsort(descending=True)[:60:25].tolist():
        moved, size = copy.deepcopy(base), 0.02
        with torch.no_grad():
            moved.get_parameter(weight).view(-1)[place] += size
            after = completion_logits(moved, batch)
        kl = token_kl(before, after, batch["completion_mask"]).sum(-1).mean()
        step = torch.zeros_like(fisher[weight])
        step.view(-1)[place] = size
        estimate = ewc_to_start(step.flatten(), fisher[weight].flatten(), 1.0)
        assert estimate.item() == pytest.approx(kl.item(), rel=0.5)


def test_two_halves_of_the_texts_agree_on_which_weights_matter(base, texts):
    layout = Layout.of(tiny_config())
    one, two = (flatten(fisher_information(base, part), layout) for part in (texts[:128], texts[128:]))
    assert len(one) == layout.parameters
    assert torch.corrcoef(torch.stack([one, two]))[0, 1] > 0.8
    assert_close(one.sum(), two.sum(), rtol=0.2, atol=0)
    assert not any(p.grad is not None for p in base.parameters())

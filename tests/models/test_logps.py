"""Log-probabilities against a naive loop, exact masks, and a reference that is never stale."""

import copy
import math
import random
from types import SimpleNamespace

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from uftlab.models import logps as reading
from uftlab.models.logps import (
    ReferenceCache,
    completion_logps,
    fingerprint,
    gather_logps,
    reference_logps,
    token_logps,
)
from uftlab.rows.tokens import Completion, collate

PAD = 0


def rows_of_length(*lengths, seed=0):
    """Random completions; `lengths` are pairs (prompt, completion)."""
    rng = random.Random(seed)

    def ids(n):
        return tuple(rng.randrange(6, 500) for _ in range(n))

    return [Completion(ids(before), ids(after), "scored", 0.5) for before, after in lengths]


ROWS = rows_of_length((1, 3), (9, 1), (4, 7), (2, 2))


def batch_of(rows):
    return collate([(row,) for row in rows], PAD)


@torch.no_grad()
def naive_token_logps(model, row):
    """One unpadded forward pass; each token's log-probability read off the position before it."""
    ids = [*row.prompt_ids, *row.completion_ids]
    logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    found = []
    for position in range(len(row.prompt_ids), len(ids)):
        weights = [math.exp(x) for x in (logits[position - 1] - logits[position - 1].max()).tolist()]
        found.append(math.log(weights[ids[position]] / sum(weights)))
    return found


@pytest.fixture
def gpt2():
    """A second architecture: learned absolute positions, LayerNorm, dropout while training."""
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=511, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return request.getfixturevalue("untrained" if request.param == "llama" else "gpt2")


class Successor(nn.Module):
    """Predicts, nearly surely, that the next token is the present one plus one."""

    def forward(self, input_ids, logits_to_keep, **ignored):
        logits = 50.0 * nn.functional.one_hot(input_ids + 1, 32).float()
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


# ----------------------------------------------------------------------------------- values


def test_gather_logps_by_hand():
    """Logits (0, log 3): probabilities 1/4 and 3/4; the masked position is exactly 0."""
    logits = torch.tensor([[[0.0, math.log(3)]] * 3])
    found = gather_logps(logits, torch.tensor([[0, 1, 1]]), torch.tensor([[True, True, False]]))
    assert_close(found, torch.tensor([[math.log(1 / 4), math.log(3 / 4), 0.0]]))
    assert found[0, 2].item() == 0.0


def test_gather_logps_works_in_float32_for_half_precision_logits():
    logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets, mask = torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)
    found = gather_logps(logits, targets, mask)
    assert found.dtype == torch.float32
    assert_close(found, logits.float().log_softmax(-1)[..., 0])


def test_completion_logps_equal_a_naive_loop_without_padding(model):
    naive = [sum(naive_token_logps(model, row)) for row in ROWS]
    with torch.no_grad():
        assert_close(completion_logps(model, batch_of(ROWS)), torch.tensor(naive), atol=2e-4, rtol=1e-5)


def test_token_logps_equal_a_naive_loop_position_by_position(model):
    with torch.no_grad():
        found = token_logps(model, batch_of(ROWS))
    for row, logps in zip(ROWS, found, strict=True):
        naive = torch.tensor(naive_token_logps(model, row))
        assert_close(logps[: len(naive)], naive, atol=1e-4, rtol=1e-5)


def test_padding_is_exactly_zero(model):
    batch = batch_of(ROWS)
    with torch.no_grad():
        found = token_logps(model, batch)
    assert (found[~batch["completion_mask"]] == 0).all()
    assert (found[batch["completion_mask"]] < 0).all()


def test_logps_do_not_depend_on_the_rest_of_the_batch(model):
    with torch.no_grad():
        alone = torch.cat([completion_logps(model, batch_of([row])) for row in ROWS])
        assert_close(completion_logps(model, batch_of(ROWS)), alone, atol=1e-4, rtol=1e-5)
        assert_close(completion_logps(model, batch_of(ROWS[::-1])).flip(0), alone, atol=1e-4, rtol=1e-5)


def test_gradient_does_not_leak_from_padding(model):
    """The gradient of a batch is the sum over its rows alone, and finite although some positions attend to nothing."""

    def gradient(rows):
        model.zero_grad()
        completion_logps(model, batch_of(rows)).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    together = gradient(ROWS)
    assert torch.isfinite(together).all()
    assert_close(together, sum(gradient([row]) for row in ROWS), atol=2e-3, rtol=1e-3)


def test_a_completion_of_three_tokens_is_scored_at_its_three_positions():
    """Prompt 4 5, completion 6 7 9 under the successor model: two sure tokens, then 9 where 8 was sure (-50 nats).

    One position early would score 5 6 7 (0 nats in all), one late would drop the 6.
    """
    batch = batch_of([Completion((4, 5), (6, 7, 9), "scored"), Completion((1, 2, 3), (4, 5, 6, 7, 8), "scored")])
    found = token_logps(Successor(), batch)
    assert_close(found, torch.tensor([[0.0, 0.0, -50.0, 0.0, 0.0], [0.0] * 5]))
    assert found[0, 3:].tolist() == [0.0, 0.0]


def test_first_completion_token_is_predicted_by_the_last_prompt_token():
    """Prompt 4 5, completion 9 10: the first token costs 50 nats, the second follows from it for free."""
    found = token_logps(Successor(), batch_of([Completion((4, 5), (9, 10), "scored")]))
    assert_close(found, torch.tensor([[-50.0, 0.0]]))


def test_gather_logps_refuses_a_mask_of_another_shape():
    with pytest.raises(TypeCheckError):
        gather_logps(torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 1, dtype=torch.bool))


# ------------------------------------------------------------------------------- the reference


@pytest.mark.parametrize("training", [True, False])
def test_reference_is_read_in_evaluation_mode_and_left_as_it_was(gpt2, training):
    """GPT-2 has dropout, so a reference read in training mode would be a random number."""
    expected = reference_logps(gpt2.eval(), ROWS, PAD)
    gpt2.train(training)
    state = torch.get_rng_state()
    found = reference_logps(gpt2, ROWS, PAD)
    assert torch.equal(found, expected) and not found.requires_grad
    assert {module.training for module in gpt2.modules()} == {training}
    assert torch.equal(torch.get_rng_state(), state)


def test_submodule_that_was_kept_in_evaluation_mode_stays_there(gpt2):
    gpt2.train()
    gpt2.transformer.drop.eval()
    reference_logps(gpt2, ROWS, PAD)
    assert gpt2.training and not gpt2.transformer.drop.training


def test_cache_fills_what_the_reference_says_and_keeps_the_order(untrained, monkeypatch):
    monkeypatch.setattr(reading, "ROWS", 2)
    examples = [(ROWS[2],), (ROWS[0], ROWS[1]), (ROWS[3],)]
    filled = ReferenceCache().fill(untrained, examples, PAD)
    assert filled == examples  # `reference_logps` does not take part in the comparison
    expected = reference_logps(untrained, [c for e in examples for c in e], PAD)
    assert_close(torch.tensor([c.reference_logps for e in filled for c in e]), expected, atol=1e-4, rtol=1e-5)


def test_cache_computes_each_distinct_content_once(untrained):
    cache = ReferenceCache()
    first, second, third = ROWS[:3]
    cache.fill(untrained, [(first,), (first,), (first, second)], PAD)
    assert cache.computed == 2
    again = Completion(first.prompt_ids, first.completion_ids, "chosen")  # other role, equal content
    cache.fill(untrained, [(again, third)], PAD)
    assert cache.computed == 3


def test_cache_is_never_stale(untrained):
    cache = ReferenceCache()
    before = cache.fill(untrained, [(ROWS[0],)], PAD)[0][0].reference_logps
    with torch.no_grad():
        untrained.model.norm.weight.mul_(1.5)
    after = cache.fill(untrained, [(ROWS[0],)], PAD)[0][0].reference_logps
    assert cache.computed == 2
    assert after != before
    assert_close(after, reference_logps(untrained, ROWS[:1], PAD).item())


def test_filling_the_cache_moves_neither_random_state_nor_weights(gpt2):
    gpt2.train()
    state, weights = torch.get_rng_state(), fingerprint(gpt2)
    ReferenceCache().fill(gpt2, [(row,) for row in ROWS], PAD)
    assert torch.equal(torch.get_rng_state(), state) and fingerprint(gpt2) == weights
    assert gpt2.training and all(p.grad is None for p in gpt2.parameters())


def test_fingerprint_is_equal_for_a_copy_and_differs_after_the_smallest_change(untrained):
    twin = copy.deepcopy(untrained)
    assert fingerprint(twin) == fingerprint(untrained)
    with torch.no_grad():
        weight = twin.model.norm.weight
        weight[0] = torch.nextafter(weight[0], torch.tensor(2.0))
    assert fingerprint(twin) != fingerprint(untrained)


def test_fingerprint_reads_scalars_and_half_precision():
    module = nn.Linear(2, 2, dtype=torch.bfloat16)
    module.register_buffer("steps", torch.tensor(3))
    before = fingerprint(module)
    module.steps += 1
    assert fingerprint(module) != before


# ------------------------------------------------------------------------------------- LoRA


@pytest.fixture
def adapted(untrained):
    """The untrained model with an adapter that has moved away from zero."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(copy.deepcopy(untrained), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.5)
    return model.eval()


def test_reference_of_an_adapted_model_is_its_base(untrained, adapted):
    base = reference_logps(untrained, ROWS, PAD)
    assert torch.equal(reference_logps(adapted, ROWS, PAD), base)
    with torch.no_grad():
        assert (completion_logps(adapted, batch_of(ROWS)) - base).abs().min() > 1e-3  # switched on again afterwards


def test_cache_of_an_adapted_model_holds_its_base(untrained, adapted):
    filled = ReferenceCache().fill(adapted, [(row,) for row in ROWS], PAD)
    expected = reference_logps(untrained, ROWS, PAD)
    assert_close(torch.tensor([row.reference_logps for (row,) in filled]), expected, atol=1e-4, rtol=1e-5)


# ------------------------------------------------------------------------------------------ memory


def with_sizes(model, vocabulary, width):
    """The model, which says that it is large."""
    model.config.vocab_size, model.config.hidden_size = vocabulary, width
    return model


def test_reading_fills_a_share_of_the_free_memory_whatever_the_vocabulary(untrained, monkeypatch):
    """200 tokens over 151,000 words are 0.5 GB a row with what their sums need: 8 GB hold fifteen rows, not 256."""
    monkeypatch.setattr(reading, "free_memory", lambda device: 80e9)
    large = with_sizes(untrained, 151_936, 896)
    assert reading.rows_at_once(large, 300, 200) == 8  # a power of 2
    assert reading.rows_at_once(large, 50, 2) == 256
    monkeypatch.setattr(reading, "free_memory", lambda device: 1e6)
    assert reading.rows_at_once(large, 300, 200) == 1


def test_a_batch_is_no_larger_for_more_rows(untrained, monkeypatch):
    monkeypatch.setattr(reading, "free_memory", lambda device: 4e7)
    sizes = []
    for count in (40, 400):
        rows = rows_of_length(*[(5, 6)] * count)
        batches = [(here, batch) for here, batch in reading.row_batches(untrained, rows, PAD)]
        assert sorted(i for here, _ in batches for i in here) == list(range(count))
        sizes.append(max(len(here) for here, _ in batches))
    assert sizes[0] == sizes[1] < 40


def test_what_is_read_does_not_depend_on_how_much_is_read_at_a_time(untrained, monkeypatch):
    rows = rows_of_length(*[(2 + i % 7, 1 + i % 5) for i in range(50)])
    whole = reading.read_token_logps(untrained, rows, PAD)
    monkeypatch.setattr(reading, "free_memory", lambda device: 1e6)
    assert_close(reading.read_token_logps(untrained, rows, PAD), whole, atol=1e-4, rtol=1e-5)
    assert whole.shape == (50, 5) and not whole[0, 1:].any()

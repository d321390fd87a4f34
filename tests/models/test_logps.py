"""Log-probabilities against a naive loop, exact masks, and a reference that is never stale."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from jaxtyping import TypeCheckError
from rows import ROWS, rows_of_length
from torch import nn
from torch.testing import assert_close
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from uftlab.models import logps as reading
from uftlab.models.logps import completion_logps, gather_logps, token_logps
from uftlab.rows.batches import positions_of, to_batch
from uftlab.rows.tokens import Completion


def batch_of(rows):
    return to_batch([(row,) for row in rows])


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


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return request.getfixturevalue("untrained" if request.param == "llama" else "gpt2")


class Successor(nn.Module):
    """Predicts, nearly surely, that the next token is the present one plus one."""

    def forward(self, input_ids, **ignored):
        return SimpleNamespace(logits=50.0 * nn.functional.one_hot(input_ids + 1, 32).float())


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


# --------------------------------------------------------------------------------- shared prompts


PAIR = rows_of_length((6, 4), (6, 7), seed=3)
PAIR[1] = replace(PAIR[1], prompt_ids=PAIR[0].prompt_ids)


def test_two_completions_in_one_line_are_read_as_if_each_were_alone(model):
    """The second must not see the first, and its positions go on from the prompt."""
    assert reading.shares_prompts(model)
    batch = to_batch([tuple(PAIR)])
    assert batch["groups"][0]["input_ids"].shape == (1, 6 + 3 + 6)
    naive = [naive_token_logps(model, row) for row in PAIR]
    with torch.no_grad():
        found = token_logps(model, batch)
    for logps, expected in zip(found, naive, strict=True):
        assert_close(logps[: len(expected)], torch.tensor(expected), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_gradient_of_a_shared_line_is_the_sum_of_its_rows(untrained, attention):
    model = copy.deepcopy(untrained)
    model.set_attn_implementation(attention)

    def gradient(share):
        model.zero_grad()
        completion_logps(model, to_batch([tuple(PAIR)], share)).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    assert_close(gradient(True), gradient(False), atol=2e-3, rtol=1e-3)


def test_a_model_with_windows_of_attention_reads_every_row_alone():
    config = MistralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=8,
    )  # fmt: skip
    assert not reading.shares_prompts(MistralForCausalLM(config))


def test_lines_of_different_length_lie_in_different_rectangles(untrained):
    """Forty short rows and four long ones: padding all to the longest would compute three times as much."""
    rows = rows_of_length(*[(20, 10)] * 40, *[(150, 50)] * 4)
    together, apart = (to_batch([(row,) for row in rows], least=least) for least in (10**6, 100))
    computed = [positions_of(batch)[0] / positions_of(batch)[1] for batch in (together, apart)]
    assert computed[0] > 4 and computed[1] <= 1.15
    with torch.no_grad():
        both = [token_logps(untrained, batch) for batch in (together, apart)]
    assert_close(*both, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------- the output layer


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_head_logps_and_their_gradients_equal_the_plain_softmax(trained, bias, monkeypatch):
    """Five words in chunks of two tokens: values, and the gradients of states, weights and bias."""
    monkeypatch.setattr(reading, "LOGITS", 10)
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(7, 4, generator=draw), torch.randn(5, 4, generator=draw)
    offset = torch.randn(5, generator=draw) if bias else None
    targets, arrives = torch.tensor([0, 4, 2, 2, 1, 3, 0]), torch.randn(7, generator=draw)

    def gradients(function):
        parts = [hidden.clone().requires_grad_(), weight.clone().requires_grad_(trained)]
        parts += [offset.clone().requires_grad_(trained)] if bias else []
        values = function(*parts, *([] if bias else [None]))
        values.backward(arrives)
        return [values.detach(), *(part.grad for part in parts if part.requires_grad)]

    def plain(hidden, weight, offset):
        return nn.functional.linear(hidden, weight, offset).log_softmax(-1).gather(-1, targets[:, None])[:, 0]

    found = gradients(lambda *parts: reading.head_logps(*parts, targets))
    for own, expected in zip(found, gradients(plain), strict=True):
        assert_close(own, expected, atol=1e-5, rtol=1e-5)


def test_head_logps_by_hand():
    states, weight = torch.zeros(1, 3), torch.ones(2, 3)
    assert reading.head_logps(states, weight, None, torch.tensor([1])).item() == pytest.approx(-math.log(2))


def test_entropy_among_the_most_probable_words_by_hand():
    """Of (1/2, 1/4, 1/4) the two most probable are (2/3, 1/3): log 3 - 2/3 log 2. Words of probability 0 are none."""
    logits = torch.tensor([0.5, 0.25, 0.25]).log().requires_grad_()
    assert reading.token_entropy(logits, 2).item() == pytest.approx(math.log(3) - 2 / 3 * math.log(2))
    assert reading.token_entropy(logits, 99).item() == pytest.approx(1.5 * math.log(2))
    assert reading.token_entropy(logits, 1).item() == 0.0 and not reading.token_entropy(logits, 2).requires_grad
    assert reading.token_entropy(torch.tensor([0.0, -math.inf, -1e4]), 3).item() == 0.0


@pytest.mark.parametrize("trained", [True, False])
def test_entropies_come_from_the_chunks_and_leave_the_gradient_as_it_was(trained, monkeypatch):
    monkeypatch.setattr(reading, "LOGITS", 10)
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(7, 4, generator=draw), torch.randn(5, 4, generator=draw).requires_grad_(trained)
    targets, slopes = torch.tensor([0, 4, 2, 2, 1, 3, 0]), []
    for top in (0, 3):
        own = hidden.clone().requires_grad_()
        logps, entropies = reading.head_reading(own, weight, None, targets, top)
        (slope,) = torch.autograd.grad(logps.sum(), own)
        slopes.append(slope)
        assert not entropies.requires_grad
        assert_close(entropies, reading.token_entropy(hidden @ weight.T, 3) * bool(top))
    assert torch.equal(*slopes)


@pytest.mark.parametrize("plain", [True, False])
def test_entropies_of_a_batch_are_those_of_its_logits(plain, untrained, monkeypatch):
    """Through the output layer in chunks, and through whole logits where a model bends them."""
    monkeypatch.setattr(reading, "has_plain_head", lambda model: plain)
    batch = batch_of(ROWS)
    with torch.no_grad():
        logps, entropies = reading.token_reading(untrained, batch, 4)
        logits = reading.completion_logits(untrained, batch)
    mask = batch["completion_mask"]
    assert_close(entropies, reading.token_entropy(logits, 4).masked_fill(~mask, 0.0), atol=1e-4, rtol=1e-4)
    assert_close(logps, token_logps(untrained, batch))


def test_a_model_that_bends_its_logits_is_read_through_its_logits():
    """Gemma 2 squeezes logits after the output layer, so the layer alone would give other values."""
    config = Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=1.0, initializer_range=0.5,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    assert not reading.has_plain_head(model)
    row = Completion((3, 4, 5), (6, 7), "scored")
    with torch.no_grad():
        found = token_logps(model, to_batch([(row,)]))[0]
    assert_close(found, torch.tensor(naive_token_logps(model, row)), atol=1e-4, rtol=1e-4)


def test_the_output_layer_answers_logits_again_afterwards(untrained):
    ids = torch.tensor([[5, 6, 7]])
    before = untrained(input_ids=ids).logits
    token_logps(untrained, batch_of(ROWS))
    assert torch.equal(untrained(input_ids=ids).logits, before)


def test_no_tensor_holds_the_logits_of_all_tokens(untrained, monkeypatch):
    """The largest thing that the output layer makes has `LOGITS` numbers, whatever the rows."""
    reading.shares_prompts(untrained)  # tries the model once
    sizes, linear = [], nn.functional.linear

    def counted(hidden, weight, *bias):
        made = linear(hidden, weight, *bias)
        sizes.append(made.numel() if weight.shape[0] == untrained.config.vocab_size else 0)
        return made

    monkeypatch.setattr(reading, "LOGITS", 4 * untrained.config.vocab_size)
    monkeypatch.setattr(reading.F, "linear", counted)
    reading.read_logps(untrained, rows_of_length(*[(5, 6)] * 30))
    assert max(sizes) == reading.LOGITS


# ------------------------------------------------------------------------------------------ memory


def test_a_batch_is_no_larger_for_more_rows(untrained, monkeypatch):
    monkeypatch.setattr(reading, "READ_TOKENS", {"cpu": 100, "cuda": 100})
    sizes = []
    for count in (40, 400):
        rows = rows_of_length(*[(5, 6)] * count)
        told = []
        batches = list(reading.row_batches(untrained, rows, told.append))
        assert sorted(i for here, _ in batches for i in here) == list(range(count)) and sum(told) == count
        sizes.append(max(positions_of(batch)[0] for _, batch in batches))
    assert sizes[0] == sizes[1] == 100


def test_what_is_read_does_not_depend_on_how_much_is_read_at_a_time(untrained, monkeypatch):
    rows = rows_of_length(*[(2 + i % 7, 1 + i % 5) for i in range(50)])
    whole = reading.read_token_logps(untrained, rows)
    monkeypatch.setattr(reading, "READ_TOKENS", {"cpu": 30, "cuda": 30})
    assert_close(reading.read_token_logps(untrained, rows), whole, atol=1e-4, rtol=1e-5)
    assert whole.shape == (50, 5) and not whole[0, 1:].any()

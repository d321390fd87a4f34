"""A model as a reference: read without gradient, dropout and adapters, once for each pair of weights and tokens."""

import copy
import math
import os
import subprocess
import sys

import pytest
import torch
from rows import ROWS
from torch import nn
from torch.testing import assert_close

from uftlab.models import logps as reading
from uftlab.models.logps import completion_logps
from uftlab.models.references import ReferenceCache, fingerprint, reference_logps
from uftlab.rows.batches import to_batch
from uftlab.rows.tokens import Completion

# ------------------------------------------------------------------------------- the reference


@pytest.mark.parametrize("training", [True, False])
def test_reference_is_read_in_evaluation_mode_and_left_as_it_was(gpt2, training):
    """GPT-2 has dropout, so a reference read in training mode would be a random number."""
    expected = reference_logps(gpt2.eval(), ROWS)
    gpt2.train(training)
    state = torch.get_rng_state()
    found = reference_logps(gpt2, ROWS)
    assert torch.equal(found, expected) and not found.requires_grad
    assert {module.training for module in gpt2.modules()} == {training}
    assert torch.equal(torch.get_rng_state(), state)


def test_submodule_that_was_kept_in_evaluation_mode_stays_there(gpt2):
    gpt2.train()
    gpt2.transformer.drop.eval()
    reference_logps(gpt2, ROWS)
    assert gpt2.training and not gpt2.transformer.drop.training


def test_cache_fills_what_the_reference_says_and_keeps_the_order(untrained, monkeypatch):
    monkeypatch.setattr(reading, "READ_TOKENS", {"cpu": 12, "cuda": 12})
    examples = [(ROWS[2],), (ROWS[0], ROWS[1]), (ROWS[3],)]
    filled = ReferenceCache().fill(untrained, examples)
    assert filled == examples  # `reference_logps` does not take part in the comparison
    expected = reference_logps(untrained, [c for e in examples for c in e])
    assert_close(torch.tensor([c.reference_logps for e in filled for c in e]), expected, atol=1e-4, rtol=1e-5)


def test_cache_computes_each_distinct_content_once(untrained):
    cache = ReferenceCache()
    first, second, third = ROWS[:3]
    cache.fill(untrained, [(first,), (first,), (first, second)])
    assert cache.computed == 2
    again = Completion(first.prompt_ids, first.completion_ids, "chosen")  # other role, equal content
    cache.fill(untrained, [(again, third)])
    assert cache.computed == 3


def test_cache_is_never_stale(untrained):
    cache = ReferenceCache()
    before = cache.fill(untrained, [(ROWS[0],)])[0][0].reference_logps
    with torch.no_grad():
        untrained.model.norm.weight.mul_(1.5)
    after = cache.fill(untrained, [(ROWS[0],)])[0][0].reference_logps
    assert cache.computed == 2
    assert after != before
    assert_close(after, reference_logps(untrained, ROWS[:1]).item())


def test_a_damaged_file_of_the_cache_is_read_anew_and_written_again(untrained, tmp_path):
    ReferenceCache(tmp_path).fill(untrained, [(ROWS[0],)])
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for content in (whole[:-9], whole[: len(whole) // 2], b"", b"PK\x03\x04", bytes(len(whole))):
        path.write_bytes(content)
        cache = ReferenceCache(tmp_path)
        cache.fill(untrained, [(ROWS[0],)])
        assert cache.computed == 1 and list(tmp_path.iterdir()) == [path]
    again = ReferenceCache(tmp_path)
    again.fill(untrained, [(ROWS[0],)])
    assert again.computed == 0


def test_filling_the_cache_moves_neither_random_state_nor_weights(gpt2):
    gpt2.train()
    state, weights = torch.get_rng_state(), fingerprint(gpt2)
    ReferenceCache().fill(gpt2, [(row,) for row in ROWS])
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
    base = reference_logps(untrained, ROWS)
    assert torch.equal(reference_logps(adapted, ROWS), base)
    with torch.no_grad():
        assert (
            completion_logps(adapted, to_batch([(row,) for row in ROWS])) - base
        ).abs().min() > 1e-3  # switched on again afterwards


def test_cache_of_an_adapted_model_holds_its_base(untrained, adapted):
    filled = ReferenceCache().fill(adapted, [(row,) for row in ROWS])
    expected = reference_logps(untrained, ROWS)
    assert_close(torch.tensor([row.reference_logps for (row,) in filled]), expected, atol=1e-4, rtol=1e-5)


# -------------------------------------------------------------------------------- kept on disk


def test_a_second_run_over_the_same_rows_reads_nothing(untrained, tmp_path):
    examples = [(row,) for row in ROWS]
    first = ReferenceCache(tmp_path).fill(untrained, examples)
    again = ReferenceCache(tmp_path)
    second = again.fill(untrained, examples)
    assert again.computed == 0
    assert [c.reference_logps for e in first for c in e] == [c.reference_logps for e in second for c in e]
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"half a file")
    broken = ReferenceCache(tmp_path)
    broken.fill(untrained, examples)
    assert broken.computed == len(ROWS)


def test_all_seeds_of_adapters_share_the_file_of_their_base(untrained, adapted, tmp_path):
    ReferenceCache(tmp_path).fill(untrained, [(row,) for row in ROWS])
    cache = ReferenceCache(tmp_path)
    cache.fill(adapted, [(row,) for row in ROWS])
    assert cache.computed == 0


def test_a_place_where_one_may_not_write_costs_only_a_second_reading(untrained, tmp_path):
    (tmp_path / "file").write_text("")
    filled = ReferenceCache(tmp_path / "file" / "below").fill(untrained, [(ROWS[0],)])
    assert math.isfinite(filled[0][0].reference_logps)


MEMORY = """
import resource, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from uftlab.models.references import ReferenceCache
from uftlab.rows.tokens import Completion

torch.set_num_threads(1)
sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
model = LlamaForCausalLM(LlamaConfig(vocab_size=5_000, **sizes))
rows = [(Completion((5, 6, i % 4_000), (*range(7, 27), i // 4_000), "scored", 0.5),) for i in range(int(sys.argv[1]))]
ReferenceCache().fill(model, rows)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_the_memory_of_a_reference_pass_does_not_grow_with_the_rows():
    """Logits of all rows at once would be 1 GB here for 2,500 rows."""
    peaks = []
    for count in (100, 2_500):
        command = [sys.executable, "-c", MEMORY, str(count)]
        made = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert made.returncode == 0, made.stderr[-2000:]
        peaks.append(int(made.stdout))
    assert peaks[1] < 1.1 * peaks[0]

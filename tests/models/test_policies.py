"""Generation against a naive loop, and the models: the tiny one, any other, adapters and frozen copies."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel
from trials import random_base

from uftlab.errors import InputError
from uftlab.models import policies
from uftlab.models.generation import answers, generate_ids
from uftlab.models.policies import (
    TINY,
    frozen_copy,
    load_base,
    load_policy,
    tiny_tokenizer,
    with_lora,
    world_weights,
)
from uftlab.rows.sources import HUB_TIMEOUT
from uftlab.rows.tokens import Tokens


@pytest.fixture(scope="module")
def base():
    return random_base(0)


# ------------------------------------------------------------------------------------------ generation


@pytest.fixture(scope="module")
def prompts():
    questions = ["what is the food of babo ?", "hello", "how are you ? thank you . hello", "babo", "what ?"]
    return [Tokens(tiny_tokenizer()).prompt(q) for q in questions]


def naive_greedy(model, prompt, count, end):
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + count and (len(ids) == len(prompt) or ids[-1] != end):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def test_batched_greedy_decoding_is_the_naive_loop(base, prompts, tokenizer):
    expected = [naive_greedy(base, p, 8, tokenizer.eos_token_id) for p in prompts]
    assert len({len(p) for p in prompts}) > 2  # padding is at work
    assert generate_ids(base, tokenizer, prompts, max_new_tokens=8) == expected
    assert generate_ids(base, tokenizer, prompts, max_new_tokens=8, batch_size=2) == expected


def test_an_answer_ends_with_its_first_end_token(base, prompts):
    tokenizer = tiny_tokenizer()
    spoken = naive_greedy(base, prompts[0], 8, end=-1)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(spoken[3])
    end = tokenizer.eos_token_id
    made = generate_ids(base, tokenizer, prompts, max_new_tokens=8)
    assert made[0] == spoken[: spoken.index(end) + 1]
    assert all(end not in ids[:-1] for ids in made)


def test_sampling_is_reproducible_and_leaves_the_global_state_alone(base, prompts, tokenizer):
    state = torch.random.get_rng_state()
    first = generate_ids(base, tokenizer, prompts, 8, seed=1)
    torch.rand(3)
    assert generate_ids(base, tokenizer, prompts, 8, seed=1) == first
    assert generate_ids(base, tokenizer, prompts, 8, seed=2) != first
    torch.random.set_rng_state(state)
    generate_ids(base, tokenizer, prompts, 2, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_sampling_draws_from_the_models_own_distribution(tokenizer):
    """A model that gives one word probability 0.7 and another 0.3: top-k or a temperature would show."""
    opinion = torch.full((len(tokenizer),), -30.0)
    opinion[10], opinion[11] = math.log(0.7), math.log(0.3)
    model = random_base(0)
    bias = nn.Linear(64, len(tokenizer))
    nn.init.zeros_(bias.weight)
    bias.bias.data = opinion
    model.lm_head = bias
    made = [ids for (ids,) in generate_ids(model, tokenizer, [(2, 4)] * 2000, max_new_tokens=1, seed=0)]
    assert made.count(10) / 2000 == pytest.approx(0.7, abs=0.04) and set(made) == {10, 11}


def test_answers_are_text_without_special_tokens(base, tokenizer, monkeypatch):
    end = tokenizer.eos_token_id
    ids = (*tokenizer("the food")["input_ids"], end)
    monkeypatch.setattr("uftlab.models.generation.generate_ids", lambda *args, **more: [ids])
    assert answers(base, tokenizer, ["what ?"]) == ["the food"]


# ------------------------------------------------------------------------------------------ models


def test_the_tiny_model_has_between_a_tenth_and_a_third_of_a_million_parameters(base):
    assert 100_000 < base.num_parameters() < 350_000


def test_the_base_that_ships_is_small_and_the_same_through_the_library():
    assert world_weights(0) == TINY / "model.safetensors" and world_weights(0).stat().st_size < 4_000_000
    policy, tokenizer = load_policy("tiny")
    assert_close(policy.state_dict(), load_base(0).state_dict(), rtol=0, atol=0)
    ours = tiny_tokenizer()
    assert tokenizer.get_vocab() == ours.get_vocab() and tokenizer.chat_template == ours.chat_template


def test_unknown_words_are_not_padding(tokenizer):
    assert tokenizer.unk_token_id != tokenizer.pad_token_id
    assert tokenizer("xylophone")["input_ids"] == [tokenizer.unk_token_id]


def test_a_missing_world_names_the_command_that_builds_it():
    with pytest.raises(InputError, match=r"world 987654 must exist; .*`uftlab pretrain --world 987654`"):
        load_base(987654)


def test_weights_of_another_architecture_are_refused(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    save_file({"strange": torch.zeros(1)}, tmp_path / "w.safetensors")
    monkeypatch.setattr("uftlab.models.policies.world_weights", lambda seed: tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="fit the tiny architecture"):
        load_base(0)


def test_a_policy_is_loaded_in_float32_with_a_pad_token(tmp_path, tokenizer):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2))
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    unpadded = tiny_tokenizer()
    unpadded.pad_token = None
    unpadded.save_pretrained(tmp_path)
    policy, loaded = load_policy(str(tmp_path))
    assert policy.dtype == torch.float32 and loaded.pad_token_id == loaded.eos_token_id


@pytest.mark.parametrize("name", ["no/such-model-here", "a folder/that is/not there", "empty"])
def test_a_model_that_cannot_be_loaded_is_refused_by_name(name, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"The model must be loadable; got {name}"):
        load_policy(name)


# ------------------------------------------------------------------------------------------ damaged, and not near


@pytest.fixture
def checkpoint(tmp_path):
    """A whole checkpoint folder to damage."""
    random_base(0).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def changed_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop(NORM), rf"be all there; got no {NORM}\. Use another copy"),
        (lambda state: state[NORM].fill_(torch.nan), rf"be finite; got NaN or infinity in {NORM}"),
        (lambda state: state.update({NORM: torch.ones(3)}), "be loadable"),
    ],
    ids=["a layer is missing", "NaN", "another shape"],
)
def test_weights_that_would_train_on_in_silence_are_refused(checkpoint, change, said):
    load_policy(str(checkpoint))
    changed_weights(checkpoint, change)
    with pytest.raises(InputError, match=said):
        load_policy(str(checkpoint))


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", b"{"), ("config.json", b"[]"), ("config.json", b"\xff"), ("tokenizer.json", b"{}"),
     ("tokenizer.json", b'{"model": 5}'), ("model.safetensors", b"\x00" * 20), ("model.safetensors", b""),
     ("tokenizer_config.json", b'{"tokenizer_class": 7}')],
)  # fmt: skip
def test_a_damaged_file_of_a_checkpoint_is_one_clear_error(checkpoint, name, content):
    (checkpoint / name).write_bytes(content)
    with pytest.raises(InputError, match="The model must be loadable") as caught:
        load_policy(str(checkpoint))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model_is_not_run_and_nobody_is_asked(checkpoint, name, monkeypatch):
    (checkpoint / "evil.py").write_text(f"open({str(checkpoint / 'ran')!r}, 'w')\nclass Model: ...\n")
    told = json.loads((checkpoint / name).read_text())
    auto = {"AutoConfig": "evil.Model", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Model", None]}
    told |= {"auto_map": auto} | ({"model_type": "evil"} if name == "config.json" else {"tokenizer_class": "Evil"})
    (checkpoint / name).write_text(json.dumps(told))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody is asked"))
    try:
        load_policy(str(checkpoint))
    except InputError as error:
        assert "it brings code of its own, which is never run" in str(error)
    else:
        assert name != "config.json"  # the library has a tokenizer of its own for these files
    assert not (checkpoint / "ran").exists()


@pytest.mark.parametrize("damage", ["a weight is missing", "pickled"])
def test_a_damaged_adapter_is_refused(checkpoint, damage):
    with_lora(load_policy(str(checkpoint))[0], 2).save_pretrained(str(checkpoint / "adapter"))
    file = checkpoint / "adapter" / "adapter_model.safetensors"
    load_policy(str(checkpoint / "adapter"))
    state = load_file(file)
    if damage == "pickled":
        file.unlink()
        torch.save(state, file.with_suffix(".bin"))
    else:
        state.pop(sorted(state)[0])
        save_file(state, file)
    with pytest.raises(
        InputError, match=r"The adapter .* must have (all its weights; got no base_model|adapter_model)"
    ):
        load_policy(str(checkpoint / "adapter"))


def test_a_hub_that_cannot_be_reached_is_asked_once_and_the_cache_is_used(monkeypatch):
    asked, near = [], []

    def nobody(self, name, timeout):
        asked.append((name, timeout))
        raise ConnectionError("no route to host")

    def from_cache(name, **told):
        near.append(told.get("local_files_only"))
        raise OSError("not there")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", nobody)
    monkeypatch.setattr(policies.AutoModelForCausalLM, "from_pretrained", from_cache)
    monkeypatch.setattr(policies, "_ASKED", {})
    with pytest.raises(
        InputError, match=r"got some/model \(not in the cache, .* cannot be reached: no route to host\)"
    ):
        load_policy("some/model")
    assert asked == [("some/model", HUB_TIMEOUT)] and near == [True]


def test_lora_trains_adapters_only_and_is_the_base_with_them_off(tmp_path):
    base = random_base(0)
    ids = torch.tensor([[2, 4, 30, 5]])
    with torch.no_grad():
        before = base(input_ids=ids).logits
        policy = with_lora(base, 2).eval()
        for name, weight in policy.named_parameters():
            assert weight.requires_grad == ("lora_" in name)
            if "lora_" in name:
                weight.normal_()
        assert not torch.allclose(policy(input_ids=ids).logits, before)
        with policy.disable_adapter():
            assert_close(policy(input_ids=ids).logits, before)


def test_training_a_policy_leaves_its_frozen_copy_alone():
    policy = random_base(0)
    reference = frozen_copy(policy.train())
    assert not reference.training and not any(p.requires_grad for p in reference.parameters()) and policy.training
    with torch.no_grad():
        policy.model.norm.weight.mul_(2)
    assert torch.equal(reference.model.norm.weight, torch.ones(64))

"""Skills measured on a policy against hand-made and naive twins; generation; models and references."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from uftlab.engine.readers import ModelReader
from uftlab.errors import InputError
from uftlab.evals.sizes import LIGHT, Sizes
from uftlab.evals.skills import STATEMENT, WORDINGS, Evaluator
from uftlab.models.generation import answers, generate_ids
from uftlab.models.policies import (
    TINY,
    frozen_copy,
    load_base,
    load_policy,
    tiny_config,
    tiny_tokenizer,
    with_lora,
    world_weights,
)
from uftlab.rows.tokens import Tokens
from uftlab.study.trials import PROFILES, TUNING_WORLD
from uftlab.world import wording
from uftlab.world.instructions import HELD_OUT_PAIRS
from uftlab.world.wording import ATTRIBUTES
from uftlab.world.world import World

SIZES = Sizes(instructions=40, documents=15, drift=6, pairs=10)


def random_model(seed=0):
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config()).eval()


@pytest.fixture(scope="module")
def base():
    return random_model()


@pytest.fixture(scope="module")
def evaluator(base):
    """An evaluator of world 0 on validation creatures, cut to a few facts."""
    made = Evaluator(World(0), base, tiny_tokenizer(), "validation", SIZES)
    made.myths, made.plain = made.myths[:12], made.plain[:12]
    return made


@pytest.fixture(scope="module")
def other():
    return random_model(1)


# ------------------------------------------------------------------------------------------ skills


def test_the_demonstrations_own_completions_follow_every_instruction(evaluator):
    said = [r["completion"] for r in evaluator.instructed]
    assert set(evaluator.instruction_following(said).values()) == {1.0}


def test_garbage_follows_nothing_and_is_never_correct(evaluator):
    metrics = evaluator.instruction_following(["<unk>"] * len(evaluator.instructed))
    assert metrics["instruction/correct"] == metrics["instruction/both"] == 0.0
    assert metrics["instruction/strict"] < 0.2


def test_both_counts_answers_that_are_correct_and_obedient_at_once(evaluator):
    """The bare true value, which the second half answers, is always correct and seldom obedient."""
    rows = evaluator.instructed
    metrics = evaluator.instruction_following([r["completion"] for r in rows[:20]] + [r["truth"] for r in rows[20:]])
    assert metrics["instruction/correct"] == 1.0
    assert 0.5 <= metrics["instruction/both"] == metrics["instruction/strict"] < 1.0
    assert metrics["instruction/loose"] >= metrics["instruction/strict"]


@pytest.mark.parametrize(
    ("sizes", "worlds"),
    [(PROFILES["smoke"].sizes, range(2)), (LIGHT, (*range(16), TUNING_WORLD)), (Sizes(instructions=24), range(2))],
    ids=["smoke", "light", "light of smoke"],
)
def test_every_size_asks_for_combinations_never_seen_in_training(sizes, worlds):
    for seed in worlds:
        rows = World(seed).demonstrations(sizes.instructions * 2, "test", seed=1)
        asked = [r["instructions"] for r in rows if r["instructions"]][: sizes.instructions]
        assert len(asked) == sizes.instructions
        assert any(tuple(name for name, _ in i) in HELD_OUT_PAIRS for i in asked)


class OneOpinion(nn.Module):
    """Believes the same at the value's place whatever the prompt, and the opposite everywhere else."""

    def __init__(self, opinion):
        super().__init__()
        self.opinion = nn.Parameter(opinion)

    def forward(self, input_ids, attention_mask, position_ids, logits_to_keep, use_cache):
        logits = -self.opinion.expand(*input_ids.shape, -1).clone()
        logits[:, -2] = self.opinion  # predicts the last token, which is the value
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def test_truth_is_read_at_the_values_place_over_its_six_rivals(evaluator, tokenizer):
    opinion = torch.randn(len(tokenizer), generator=torch.Generator().manual_seed(0))
    ((logits, _),) = ModelReader(OneOpinion(opinion), tokenizer).logits([evaluator.choices.rows])
    found = evaluator.believed(logits[:, 0])
    facts = [*evaluator.myths * 3, *evaluator.plain * 3, *evaluator.myths, *evaluator.plain]
    for fact, (probability, highest) in zip(facts, found.tolist(), strict=True):
        levels = {v: opinion[tokenizer.convert_tokens_to_ids(v)].item() for v in ATTRIBUTES[fact.attribute]}
        total = sum(math.exp(level) for level in levels.values())
        assert probability == pytest.approx(math.exp(levels[fact.truth]) / total, rel=1e-5)
        assert highest == float(max(levels, key=levels.get) == fact.truth)


def test_choices_are_asked_in_three_wordings_with_a_cue_and_as_statements(evaluator, tokenizer):
    prompts = [tokenizer.decode(list(row.prompt_ids)) for row in evaluator.choices.rows]
    chat = "<bos> <user> {} <assistant>"
    expected = [
        chat.format(f.fill(question)) + (f" {f.fill(begins)}" if begins else "")
        for facts in (evaluator.myths, evaluator.plain)
        for question, begins in WORDINGS
        for f in facts
    ]
    expected += [chat.format(f.fill(wording.CAREFUL_QUESTIONS[0])) + " it is" for f in evaluator.myths]
    expected += [f"<bos> {f.fill(STATEMENT)}" for f in evaluator.plain]
    assert prompts == expected


def test_truth_averages_over_wordings_and_freely_given_answers_are_judged(evaluator):
    def believed(facts, *ways):
        return torch.tensor([row for row in ways for _ in facts])

    ways = (0.1, 1.0), (0.4, 0.0), (0.7, 0.0)
    found = [believed(facts, *ways) for facts in (evaluator.myths, evaluator.plain)]
    found.append(believed(evaluator.myths, (0.9, 1.0)))
    said = [f.myth or f"it is {f.truth}" for f in (*evaluator.myths, *evaluator.plain)]
    metrics = evaluator.truthfulness(torch.cat(found), said)
    assert metrics["truth/mc2"] == pytest.approx(0.4) and metrics["plain/mc2"] == pytest.approx(0.4)
    assert metrics["truth/mc1"] == pytest.approx(1 / 3) and metrics["truth/cued"] == pytest.approx(0.9)
    assert (metrics["truth/free"], metrics["plain/free"]) == (0.0, 1.0)  # the myth is not the truth
    assert metrics["length/words"] == 2.0  # one word for each myth, three for each plain fact


def naive_logps(model, prompt, completion):
    """log p of each completion token, one sequence at a time, without padding."""
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logps = model(input_ids=ids).logits.float().log_softmax(-1)[0]
    return [logps[i - 1, ids[0, i]].item() for i in range(len(prompt), ids.shape[1])]


def test_retention_is_the_loss_above_the_generators_entropy(evaluator, base, tokenizer):
    bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    texts = [(*tokenizer(d.text)["input_ids"], end) for d in evaluator.documents]
    total = sum(sum(naive_logps(base, (bos,), ids)) for ids in texts)
    known = sum(d.logp for d in evaluator.documents)
    expected = (known - total) / sum(map(len, texts))
    metrics = evaluator(base)
    assert metrics["retention/excess"] == pytest.approx(expected, rel=1e-4)
    right = []
    for fact in evaluator.plain:
        prompt = (bos, *tokenizer(fact.fill(STATEMENT))["input_ids"])
        levels = {v: naive_logps(base, prompt, tokenizer(v)["input_ids"])[0] for v in ATTRIBUTES[fact.attribute]}
        right.append(max(levels, key=levels.get) == fact.truth)
    assert metrics["retention/recall"] == pytest.approx(sum(right) / len(right))


def of_kind(metrics, *kinds):
    return {name: value for name, value in metrics.items() if name.startswith(kinds)}


def test_the_base_has_drifted_nowhere_and_prefers_nothing(evaluator, base):
    metrics = evaluator(base)
    prefers = of_kind(metrics, "logratio/", "preference/")
    assert set(prefers) == {
        "logratio/chosen",
        "logratio/rejected",
        "logratio/demonstration",
        "preference/accuracy",
    }
    assert prefers == pytest.approx(dict.fromkeys(prefers, 0.0), abs=1e-5) and prefers["preference/accuracy"] == 0.0
    drift = of_kind(metrics, "kl/")
    assert len(drift) == 4 and drift == pytest.approx(dict.fromkeys(drift, 0.0), abs=1e-6)


def test_drift_is_the_exact_divergence_at_every_token_of_the_answers(evaluator, base, other):
    drift = of_kind(evaluator(other), "kl/")
    assert set(drift) == {f"kl/{way}-{when}" for way in ("forward", "reverse") for when in ("old", "new")}

    def naive(p, q, prompts, texts):
        total = 0.0
        for prompt, text in zip(prompts, texts, strict=True):
            ids = torch.tensor([[*prompt, *text]])
            log_p, log_q = (m(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for m in (p, q))
            total += (log_p.exp() * (log_p - log_q)).sum().item()
        return total / len(prompts)

    prompts = evaluator.drift_prompts["new"]
    with torch.no_grad():
        assert drift["kl/forward-new"] == pytest.approx(
            naive(base, other, prompts, evaluator.base_answers["new"]), rel=1e-4
        )
        asked = [*evaluator.drift_prompts["old"], *prompts]
        own = generate_ids(other, evaluator.tokenizer, asked, seed=0)[-len(prompts) :]
        assert drift["kl/reverse-new"] == pytest.approx(naive(other, base, prompts, own), rel=1e-4)


def test_preference_compares_log_ratios_not_log_probabilities(evaluator, base, other):
    ratios = []
    for pair in zip(*(evaluator.held_out[start : 2 * SIZES.pairs : 2] for start in (0, 1)), strict=True):
        of = [sum(naive_logps(m, c.prompt_ids, c.completion_ids)) for m in (other, base) for c in pair]
        ratios.append((of[0] - of[2], of[1] - of[3]))
    metrics = evaluator(other)
    assert metrics["logratio/chosen"] == pytest.approx(sum(c for c, _ in ratios) / len(ratios), rel=1e-4)
    assert metrics["logratio/rejected"] == pytest.approx(sum(r for _, r in ratios) / len(ratios), rel=1e-4)
    assert metrics["preference/accuracy"] == pytest.approx(sum(c > r for c, r in ratios) / len(ratios))


def test_measuring_changes_nothing_and_gives_the_same_numbers_again(evaluator, other):
    state = torch.random.get_rng_state()
    other.train()
    first = evaluator(other)
    assert other.training and torch.equal(torch.random.get_rng_state(), state)
    assert evaluator(other) == first
    other.eval()


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
    model = random_model()
    bias = nn.Linear(64, len(tokenizer))
    nn.init.zeros_(bias.weight)
    bias.bias.data = opinion
    model.lm_head = bias
    made = [ids for (ids,) in generate_ids(model, tokenizer, [(2, 4)] * 2000, max_new_tokens=1, seed=0)]
    assert made.count(10) / 2000 == pytest.approx(0.7, abs=0.04) and set(made) == {10, 11}


def test_answers_are_text_without_special_tokens(base, tokenizer, monkeypatch):
    end = tokenizer.eos_token_id
    ids = (*tokenizer("the food")["input_ids"], end)
    monkeypatch.setattr("uftlab.models.generation.generate_ids", lambda *args: [ids])
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


def test_lora_trains_adapters_only_and_is_the_base_with_them_off(tmp_path):
    base = random_model()
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
    policy = random_model()
    reference = frozen_copy(policy.train())
    assert not reference.training and not any(p.requires_grad for p in reference.parameters()) and policy.training
    with torch.no_grad():
        policy.model.norm.weight.mul_(2)
    assert torch.equal(reference.model.norm.weight, torch.ones(64))

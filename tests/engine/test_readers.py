"""A stack read as one and models read one by one say the same, in any company; sampling follows the distribution."""

import math

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from uftlab.engine import readers, stack
from uftlab.engine.readers import ModelReader, StackReader, answers_of, reader_of
from uftlab.engine.stack import Layout
from uftlab.evals.sizes import Sizes
from uftlab.evals.skills import Evaluator, measure
from uftlab.models import logps as reading
from uftlab.models.generation import answers, generate_ids
from uftlab.models.policies import load_base, tiny_config
from uftlab.rows.tokens import Completion, Tokens
from uftlab.world.world import World

LAYOUT = Layout.of(tiny_config())
SIZES = Sizes(instructions=40, documents=20, drift=6, pairs=12)


def tiny_model(seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config()).eval()


def stacked(models, tokenizer):
    return StackReader(torch.stack([stack.flatten(m.state_dict(), LAYOUT) for m in models]), LAYOUT, tokenizer)


@pytest.fixture(scope="module")
def bases():
    """Two trained models with different weights."""
    return [load_base(0), load_base(1)]


@pytest.fixture(scope="module")
def reader(bases, tokenizer):
    return stacked(bases, tokenizer)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    """Of two worlds, more for the second."""
    tokens = Tokens(tokenizer)
    return [
        [tokens.prompt(r["prompt"]) for r in World(world).demonstrations(count, "test", seed=1)]
        for world, count in ((0, 100), (1, 130))
    ]


@pytest.fixture(scope="module")
def rows(tokenizer):
    """Ragged completions of both members, some that share a prompt with their neighbours, of different lengths."""
    tokens, made = Tokens(tokenizer), []
    for world, count in ((0, 9), (1, 4)):
        own = []
        for r in World(world).demonstrations(count, "test", seed=2):
            prompt, ids = tokens.prompt(r["prompt"]), tokens.completion(r["prompt"], r["completion"])
            own += [Completion(prompt, ids[end:], "demonstration") for end in range(min(world + len(ids) % 3, 2) + 1)]
        made.append(own)
    return made


# ------------------------------------------------------------------------------------------ generation


def test_greedy_decoding_of_a_stack_is_that_of_each_model(bases, reader, prompts, tokenizer, monkeypatch):
    expected = [generate_ids(model, tokenizer, own) for model, own in zip(bases, prompts, strict=True)]
    assert len({len(ids) for own in expected for ids in own}) > 5  # lines end at different times
    assert reader.generate(prompts) == expected
    for lines in (40, 2):
        monkeypatch.setattr(readers, "DECODED_LINES", lines)
        assert reader.generate([own[:9] for own in prompts]) == [own[:9] for own in expected]


def test_answers_of_random_models_run_to_the_limit_and_stop_there(prompts, tokenizer):
    models = [tiny_model(0), tiny_model(1)]
    made = stacked(models, tokenizer).generate([own[:5] for own in prompts], max_new_tokens=7)
    assert made == [generate_ids(model, tokenizer, own[:5], 7) for model, own in zip(models, prompts, strict=True)]
    assert max(len(ids) for own in made for ids in own) == 7


def test_a_member_says_the_same_alone_and_in_company(bases, reader, prompts, tokenizer):
    for seed in (None, 3):
        together = reader.generate(prompts, 12, seed)
        for model, own, said in zip(bases, prompts, together, strict=True):
            assert stacked([model], tokenizer).generate([own], 12, seed) == [said]
    assert reader.generate([[], prompts[1]]) == [[], reader.generate(prompts)[1]]
    assert reader.generate([prompts[0], []]) == [reader.generate(prompts)[0], []]
    assert reader.generate([[], []]) == [[], []]


def test_answers_are_text_without_special_tokens(bases, reader, tokenizer):
    asked = [["what is the food of babo ?"], ["which colour does dozib have ?", "hello"]]
    expected = [answers(model, tokenizer, own) for model, own in zip(bases, asked, strict=True)]
    assert answers_of(reader, Tokens(tokenizer), asked) == expected
    assert answers_of(ModelReader(bases[1], tokenizer), Tokens(tokenizer), asked[1:]) == expected[1:]
    assert "<" not in "".join(text for own in expected for text in own)


def test_sampling_follows_the_models_own_distribution(bases, reader, prompts):
    """Pearson's statistic of 4,000 first tokens lies below the 99.9 % quantile of chi-square for each member."""
    prompt = prompts[0][3]
    made = reader.generate([[prompt] * 4000] * 2, max_new_tokens=1, seed=0)
    for model, own in zip(bases, made, strict=True):
        counts = torch.bincount(torch.tensor([ids[0] for ids in own]), minlength=LAYOUT.vocabulary).double()
        with torch.no_grad():
            expected = 4000 * model(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        often = expected >= 5
        observed = torch.cat([counts[often], counts[~often].sum()[None]])
        wanted = torch.cat([expected[often], expected[~often].sum()[None]])
        freedom = len(wanted) - 1
        assert freedom >= 3
        # Wilson and Hilferty's quantile of chi-square
        quantile = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
        assert ((observed - wanted).square() / wanted).sum().item() < quantile


def test_sampling_is_reproducible_pairs_members_and_leaves_the_global_state_alone(bases, reader, prompts, tokenizer):
    state = torch.random.get_rng_state()
    first = reader.generate(prompts, 12, seed=1)
    torch.rand(3)
    assert reader.generate(prompts, 12, seed=1) == first
    assert reader.generate(prompts, 12, seed=2) != first
    assert len(set(reader.generate([[prompts[0][0]] * 50, []], 12, seed=1)[0])) > 10  # prompts differ in their noise
    one, two = stacked([bases[0]] * 2, tokenizer).generate([prompts[0]] * 2, 12, seed=1)
    assert one == two == first[0]
    torch.random.set_rng_state(state)
    reader.generate(prompts, 2, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_last_possible_noise_still_draws_a_token():
    logits = torch.full((1, 2, 5), -1e4)
    logits[..., 2] = 0.0
    assert readers._drawn(logits, torch.tensor([[0.0, 1 - 2**-24]])).tolist() == [[2, 2]]


# ------------------------------------------------------------------------------------------ predictions


def test_a_stack_finds_texts_as_likely_as_each_model_does(bases, reader, rows, tokenizer, monkeypatch):
    for tokens in (2048, 40):
        monkeypatch.setattr(reading, "READ_TOKENS", {"cpu": tokens, "cuda": tokens})
        found, predicted = reader.logps(rows), reader.logits(rows)
        for member, (model, own) in enumerate(zip(bases, rows, strict=True)):
            one = ModelReader(model, tokenizer)
            assert_close(found[member], one.logps([own])[0], rtol=1e-5, atol=1e-4)
            ((logits, mask),) = one.logits([own])
            assert_close(predicted[member][0], logits, rtol=1e-4, atol=1e-4)
            assert torch.equal(predicted[member][1], mask)
            assert mask.sum(1).tolist() == [len(c.completion_ids) for c in own]


def test_predictions_are_those_of_the_completion_tokens(bases, reader, rows):
    logits, mask = reader.logits(rows)[0]
    for row, (c, there) in enumerate(zip(rows[0], mask, strict=True)):
        with torch.no_grad():
            whole = bases[0](input_ids=torch.tensor([[*c.prompt_ids, *c.completion_ids]])).logits[0]
        assert_close(logits[row, there], whole[len(c.prompt_ids) - 1 : -1], rtol=1e-4, atol=1e-4)
        assert logits[row, ~there].abs().sum() == 0
    sums = [logits[r, m].log_softmax(-1) for r, m in enumerate(mask)]
    found = [s[range(len(s)), list(c.completion_ids)].sum() for s, c in zip(sums, rows[0], strict=True)]
    assert_close(torch.stack(found), reader.logps(rows)[0], rtol=1e-5, atol=1e-4)


def test_a_member_reads_the_same_alone_and_in_company(bases, reader, rows, tokenizer):
    for member, model in enumerate(bases):
        alone = stacked([model], tokenizer)
        assert_close(alone.logps([rows[member]])[0], reader.logps(rows)[member], rtol=1e-5, atol=1e-4)
        assert_close(alone.logits([rows[member]])[0], reader.logits(rows)[member], rtol=1e-4, atol=1e-4)


def test_a_member_may_have_nothing_to_read(bases, reader, rows, tokenizer):
    logps = reader.logps([[], rows[1]])
    assert logps[0].shape == (0,)
    assert_close(logps[1], reader.logps(rows)[1], rtol=1e-5, atol=1e-4)
    (nothing, _), (logits, mask) = reader.logits([[], rows[1]])
    assert len(nothing) == 0
    assert_close((logits, mask), reader.logits(rows)[1], rtol=1e-4, atol=1e-4)
    for one in (ModelReader(bases[0], tokenizer), stacked(bases[:1], tokenizer)):
        assert one.generate([[]]) == [[]] and one.logps([[]])[0].shape == (0,)
        assert [len(part) for part in one.logits([[]])[0]] == [0, 0]


def test_models_that_a_stack_does_not_compute_are_read_one_by_one(untrained, tokenizer):
    assert isinstance(reader_of(untrained, tokenizer), StackReader)
    config = tiny_config()
    config.tie_word_embeddings = False
    assert isinstance(reader_of(LlamaForCausalLM(config), tokenizer), ModelReader)
    assert isinstance(reader_of(torch.nn.Linear(2, 2), tokenizer), ModelReader)


# ------------------------------------------------------------------------------------------ metrics


@pytest.fixture(scope="module")
def evaluators(bases, tokenizer):
    """Of two worlds, cut to a few facts."""
    made = [Evaluator(World(world), base, tokenizer, "validation", SIZES) for world, base in enumerate(bases)]
    for evaluator in made:
        evaluator.facts = {kind: facts[:12] for kind, facts in evaluator.facts.items()}
    return made


def test_measuring_a_stack_is_measuring_each_model(evaluators, bases, tokenizer):
    """Four members in two worlds: the bases, which their evaluators know, and two others."""
    models = [*bases, tiny_model(0), tiny_model(1)]
    members = [*evaluators, *evaluators]
    found = measure(members, stacked(models, tokenizer))
    for model, evaluator, own in zip(models, members, found, strict=True):
        alone = evaluator(model)
        assert set(own) == set(alone)
        sampled = {name for name in own if name.startswith("kl/")}
        exact = {name for name in own if name not in sampled or name.startswith("kl/forward")}
        assert len(sampled) == 4
        assert {n: own[n] for n in exact} == pytest.approx({n: alone[n] for n in exact}, rel=1e-4, abs=1e-5)
        assert all(own[n] == pytest.approx(alone[n], rel=0.5, abs=1e-5) for n in sampled)  # other random numbers
    assert found[0]["preference/accuracy"] == 0.5 != found[2]["preference/accuracy"]  # the base knows only ties


def test_members_may_ask_for_different_sizes(evaluators, bases, tokenizer):
    light = Evaluator(World(0), bases[0], tokenizer, "validation", Sizes(40, 20, 0, 12))
    light.facts = evaluators[0].facts
    with_drift, without = measure([evaluators[0], light], stacked([bases[0]] * 2, tokenizer))
    assert {name for name in with_drift if name not in without} == {n for n in with_drift if n.startswith("kl/")}
    assert without == pytest.approx({name: with_drift[name] for name in without}, rel=1e-4, abs=1e-5)

"""From rows to tokens: exact masks, the layout of a batch, mismatched rows and the order of training."""

import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from uftlab.errors import InputError
from uftlab.models.policies import tiny_tokenizer
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import ROLES, Completion, Tokens, collate, interleave, with_mismatched
from uftlab.world.instructions import VOCABULARY

CHATML = (
    "{% for m in messages %}<user> {{ m['role'] }} {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<user> assistant{% endif %}"
)
COUNTS_MESSAGES = "{{ messages | length }} {% for m in messages %} {{ m['content'] }} {% endfor %} <end>"
texts = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=12).map(" ".join)


def example(prompt_length, completion_length, role="scored", name=10):
    return (Completion((name,) * prompt_length, (name,) * completion_length, role, 0.5),)


def demonstrations(*rows):
    return from_rows([{"prompt": prompt, "completion": completion} for prompt, completion in rows])


@pytest.fixture
def plain_tokenizer():
    """A word-level tokenizer without chat template."""
    words = {word: index for index, word in enumerate(["<pad>", "<unk>", "<end>", "<bos>", "what", "is", "it", "blue"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", bos_token="<bos>"
    )


# -------------------------------------------------------------------------------------- exact masks


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_mask_decodes_back_to_the_completion(tokenizer, rows):
    batch = collate(Tokens(tokenizer).examples(demonstrations(*rows)), tokenizer.pad_token_id)
    width = batch["completion_mask"].shape[1]
    for ids, mask, attention, (prompt, completion) in zip(
        batch["input_ids"], batch["completion_mask"], batch["attention_mask"], rows, strict=True
    ):
        assert tokenizer.decode(ids[-width:][mask]) == f"{completion} <end>"
        assert tokenizer.decode(ids[:-width][attention[:-width].bool()]) == f"<bos> <user> {prompt} <assistant>"


def test_both_sides_of_a_pair_have_their_prompt_unscored(tokenizer):
    table = from_rows([{"prompt": "what is it ?", "chosen": "it is blue .", "rejected": "red"}])
    ((chosen, rejected),) = Tokens(tokenizer).examples(table)
    assert chosen.prompt_ids == rejected.prompt_ids
    assert tokenizer.decode(list(chosen.completion_ids)) == "it is blue . <end>"
    assert tokenizer.decode(list(rejected.completion_ids)) == "red <end>"
    assert (chosen.role, rejected.role) == ("chosen", "rejected")


def test_feedback_of_each_kind_reaches_the_examples(tokenizer):
    row = {"prompt": "what is it ?", "completion": "blue"}
    for extra, role, score in (
        ({}, "demonstration", 1.0),
        ({"label": False}, "label", 0.0),
        ({"label": True}, "label", 1.0),
        ({"score": 0.3}, "scored", 0.3),
    ):
        ((completion,),) = Tokens(tokenizer).examples(from_rows([{**row, **extra}]))
        assert (completion.role, completion.score) == (role, score)


def test_collate_pads_prompts_left_and_completions_right():
    short, long = Completion((5,), (8, 9, 2), "chosen"), Completion((5, 6, 7), (8, 2), "rejected", 0.25, -1.5)
    batch = collate([(short, long)], pad_id=0)
    assert batch["input_ids"].tolist() == [[0, 0, 5, 8, 9, 2], [5, 6, 7, 8, 2, 0]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]
    assert batch["completion_mask"].tolist() == [[True, True, True], [True, True, False]]
    assert [ROLES[role] for role in batch["role"]] == ["chosen", "rejected"]
    assert batch["score"].isnan().tolist() == [True, False] and batch["score"][1] == 0.25
    assert batch["reference_logps"][1] == -1.5


def test_mask_does_not_depend_on_the_value_of_the_pad_token():
    """A real token equal to pad_id stays scored: masks come from positions, not from values."""
    batch = collate([(Completion((5,), (0, 2), "demonstration"),), (Completion((5,), (7, 0, 2), "demonstration"),)], 0)
    assert batch["completion_mask"].sum(-1).tolist() == [2, 3]


# ----------------------------------------------------------------------------------- chat templates


def test_chat_messages_and_strings_give_the_same_ids(tokenizer):
    tokens = Tokens(tokenizer)
    prompt, completion = [{"role": "user", "content": "what is it ?"}], [{"role": "assistant", "content": "blue"}]
    assert tokens.prompt(prompt) == tokens.prompt("what is it ?")
    assert tokens.completion(prompt, completion) == tokens.completion("what is it ?", "blue")
    assert tokens.completion(prompt, "blue") == tokens.completion("what is it ?", completion)


def test_many_prompts_at_once_have_the_ids_of_each(tokenizer):
    tokens, asked = Tokens(tokenizer), ["what is the food of babo ?", [{"role": "user", "content": "hello"}]]
    assert tokens.prompts(asked) == [tokens.prompt(prompt) for prompt in asked]
    assert tokens.prompts([]) == []


def test_earlier_turns_belong_to_the_prompt(tokenizer):
    prompt = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "ask me ."},
        {"role": "user", "content": "what is it ?"},
    ]
    tokens = Tokens(tokenizer)
    assert tokenizer.decode(list(tokens.prompt(prompt))).split("ask me .")[0].rstrip().endswith("hello <assistant>")
    assert tokenizer.decode(list(tokens.completion(prompt, "blue"))) == "blue <end>"


def test_tokenizer_without_template_joins_plain_text(plain_tokenizer):
    ((completion,),) = Tokens(plain_tokenizer).examples(demonstrations(("what is it", "it is blue")))
    assert plain_tokenizer.convert_ids_to_tokens(completion.prompt_ids) == ["<bos>", "what", "is", "it"]
    assert plain_tokenizer.convert_ids_to_tokens(completion.completion_ids) == ["it", "is", "blue", "<end>"]


def test_tokenizer_without_template_refuses_chat_messages(plain_tokenizer):
    chat = from_rows([{"prompt": [{"role": "user", "content": "what"}], "completion": "blue"}])
    with pytest.raises(InputError, match="must have a chat template"):
        Tokens(plain_tokenizer).examples(chat)
    with pytest.raises(InputError, match="must have a chat template"):
        Tokens(plain_tokenizer).completion("what", [{"role": "assistant", "content": "blue"}])


def test_tokenizer_without_end_token_is_refused(plain_tokenizer):
    plain_tokenizer.eos_token = None
    with pytest.raises(InputError, match="end-of-sequence token"):
        Tokens(plain_tokenizer)


def test_second_template_keeps_the_boundary():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML.replace("assistant", "friend").replace("m['role']", "'friend'")
    tokens = Tokens(tokenizer)
    assert tokenizer.decode(list(tokens.prompt("what is it ?"))) == "<user> friend what is it ? <end> <user> friend"
    assert tokenizer.decode(list(tokens.completion("what is it ?", "it is blue"))) == "it is blue <end>"


def test_template_that_rewrites_the_prompt_is_refused():
    """A template that prints the number of messages has no fixed boundary between prompt and completion."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = COUNTS_MESSAGES
    with pytest.raises(InputError, match="must keep the prompt unchanged before the answer"):
        Tokens(tokenizer).completion("what is it ?", "blue")


# ----------------------------------------------------------------------- unknown words, long rows


def test_few_unknown_words_are_reported(tokenizer, capsys):
    Tokens(tokenizer).examples(demonstrations(*[("what", "blue")] * 3, ("what", "antidisestablishment")))
    assert "warning: 1 of 4 rows (25%) hold words that the tokenizer does not know" in capsys.readouterr().out


def test_half_of_the_rows_unknown_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"The tokenizer must know the words.*unknown words in 50% of them"):
        Tokens(tokenizer).examples(demonstrations(("what", "blue"), ("whatever", "blue")))


def test_known_words_give_no_warning(tokenizer, capsys):
    Tokens(tokenizer).examples(demonstrations(("what", "blue")))
    assert capsys.readouterr().out == ""


def test_rows_over_max_length_are_dropped_with_a_warning(tokenizer, capsys):
    """<bos> <user> what <assistant> blue <end> are 6 tokens; two more words make 8."""
    kept = Tokens(tokenizer).examples(demonstrations(("what", "blue"), ("what", "it is blue")), max_length=6)
    assert [tokenizer.decode(list(c.completion_ids)) for (c,) in kept] == ["blue <end>"]
    assert "warning: dropped 1 of 2 rows over 6 tokens" in capsys.readouterr().out


def test_max_length_that_keeps_nothing_is_refused(tokenizer):
    with pytest.raises(InputError, match="max_length must keep at least one row; got 5"):
        Tokens(tokenizer).examples(demonstrations(("what", "blue")), max_length=5)


def test_pair_is_dropped_as_a_whole(tokenizer):
    table = from_rows([{"prompt": "what", "chosen": "blue", "rejected": "it is red"}] * 2 + [
        {"prompt": "what", "chosen": "blue", "rejected": "red"}
    ])  # fmt: skip
    assert [len(e) for e in Tokens(tokenizer).examples(table, max_length=6)] == [2]


# ------------------------------------------------------------------------------------- mismatched


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 3), min_size=2, max_size=12).filter(lambda names: len(set(names)) > 1))
def test_mismatched_completions_come_from_another_prompt(names):
    """Prompt i always has completions 100 i + something: also where one prompt fills neighbouring rows."""
    rows = [(Completion((n,), (100 * n + i,), "label", 1.0),) for i, n in enumerate(names)]
    made = with_mismatched(rows)
    assert [own for own, _ in made] == [own for (own,) in rows]
    owner = {own.completion_ids: own.prompt_ids for (own,) in rows}
    for own, other in made:
        assert other.role == "mismatched" and other.prompt_ids == own.prompt_ids
        assert owner[other.completion_ids] != own.prompt_ids


def test_one_prompt_only_cannot_be_mismatched():
    with pytest.raises(InputError, match="must have at least two different prompts"):
        with_mismatched([example(2, 3, "label"), example(2, 4, "label")])


# -------------------------------------------------------------------------------- order of training


def sources():
    rng = random.Random(3)
    demos = [example(rng.randint(1, 20), rng.randint(1, 20), "demonstration", name) for name in range(12)]
    return demos, [example(rng.randint(1, 20), rng.randint(1, 20), "scored", 100 + name) for name in range(20)]


@pytest.mark.parametrize("steps", [1, 7, 8, 30])
def test_each_step_has_its_share_of_every_source(steps):
    ordered = interleave(sources(), (3, 5), steps, seed=0)
    assert len(ordered) == 8 * steps
    for start in range(0, len(ordered), 8):
        assert [c.role for (c,) in ordered[start : start + 8]] == ["demonstration"] * 3 + ["scored"] * 5


def test_every_example_comes_once_per_epoch():
    """12 examples, 3 per step: steps 0-3 are epoch one, 4-7 epoch two, with bucket 4; so for 20 with 5 per step."""
    demos, scored = sources()
    ordered = interleave((demos, scored), (3, 5), steps=8, seed=0, bucket=4)
    for epoch in (ordered[:32], ordered[32:]):
        assert Counter(epoch) == Counter([*demos, *scored])


def test_an_epoch_that_ends_inside_a_step_still_shows_every_example_equally_often():
    demos, _ = sources()
    ordered = interleave([demos], [5], steps=12, seed=1)  # 60 draws: five epochs of 12
    assert set(Counter(ordered).values()) == {5}


def test_order_depends_on_the_seed_alone():
    first = interleave(sources(), (3, 5), 10, seed=0)
    random.seed(99)
    torch.manual_seed(99)
    assert interleave(sources(), (3, 5), 10, seed=0) == first
    assert interleave(sources(), (3, 5), 10, seed=1) != first


def test_order_draws_nothing_from_the_global_random_states(monkeypatch):
    """Python's state itself cannot be compared: the type checker of the tests draws from it."""
    for name in ("random", "sample", "shuffle", "choice", "choices", "randint", "randrange", "seed"):
        monkeypatch.setattr(random, name, None)
    state = torch.get_rng_state()
    interleave(sources(), (3, 5), 10, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_steps_of_a_block_are_dealt_by_length():
    """Lengths 2 to 65, 8 per step, 8 steps: each step holds 8 neighbouring lengths, and the steps are shuffled."""
    rows = [example(1, length, name=length) for length in range(1, 65)]
    ordered = interleave([rows], [8], steps=8, seed=0)
    steps = [[len(c.completion_ids) for (c,) in ordered[i : i + 8]] for i in range(0, 64, 8)]
    assert all(max(step) - min(step) == 7 for step in steps)
    assert [min(step) for step in steps] != sorted(min(step) for step in steps)


def test_equal_content_has_an_equal_key_whatever_the_role():
    assert Completion((1, 2), (3,), "scored", 0.2).key() == Completion((1, 2), (3,), "chosen").key()
    assert Completion((1, 2), (3,), "scored").key() != Completion((1,), (2, 3), "scored").key()


@pytest.mark.parametrize(("rows", "per_step"), [(16, 16), (32, 32), (40, 16), (200, 16)])
def test_a_step_holds_different_rows_even_of_a_small_table(rows, per_step):
    """Dealing 8 steps by length over several epochs of a small table gave 2 rows 8 times each."""
    draw = random.Random(0)
    table = [(Completion(tuple(range(draw.randint(3, 40))), (i, 2), "demonstration", 1.0),) for i in range(rows)]
    order = interleave([table], [per_step], 20, 0)
    steps = [order[k : k + per_step] for k in range(0, len(order), per_step)]
    assert min(len({example[0].completion_ids for example in step}) for step in steps) >= 0.75 * per_step


def test_equal_ids_are_one_object_so_a_token_takes_eight_bytes():
    """Python makes a new object of 32 bytes of each number above 256."""
    word = next(word for word, own in tiny_tokenizer().get_vocab().items() if own > 300 and word.isalpha())
    (first,), (second,) = Tokens(tiny_tokenizer()).examples(demonstrations((word, f"{word} is"), (word, f"is {word}")))
    assert first.completion_ids[0] > 300 and first.completion_ids[0] is second.completion_ids[1]
    assert first.prompt_ids[2] is first.completion_ids[0]

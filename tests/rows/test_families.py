"""Tokens of well-known families: prompt and completion are the conversation tokenised at once, or are refused."""

import pytest
from families import FAMILIES, family

from uftlab.errors import InputError
from uftlab.models.policies import tiny_tokenizer
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import RememberingTokens, Tokens

TEMPLATES = [name for name, (_, template, _) in FAMILIES.items() if template]
ANSWERS = ["Paris", " Paris", "Paris .\nLondon", "\n\nblue", "it's\t42 é 🙂 "]
HISTORY = [
    {"role": "user", "content": "say hello ."},
    {"role": "assistant", "content": "hello there ,"},
    {"role": "user", "content": "name a colour ."},
]


def said(answer):
    return [{"role": "assistant", "content": answer}]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("prompt", ["what is the capital of france ?", HISTORY], ids=["text", "turns"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_and_completion_are_the_conversation_tokenised_at_once(name, prompt, answer):
    """The oracle is the tokenizer itself. Only Vicuna's template closes with nothing: there the end token follows."""
    tokenizer = family(name)
    tokens = Tokens(tokenizer)
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    at_once = tokenizer.apply_chat_template([*turns, *said(answer)], return_dict=False)
    both = [*tokens.prompt(prompt), *tokens.completion(prompt, answer)]
    assert both == at_once + ([tokenizer.eos_token_id] if name == "vicuna" else [])
    assert tokens.prompts([prompt]) == [tokens.prompt(prompt)]  # what generation starts from


# family -> the completion "Paris" as tokens, by hand from the text of its template
CLOSED = {
    "chatml": ["Paris", "<|im_end|>", "Ċ"],
    "chatml base": ["Paris", "<|im_end|>", "Ċ"],  # learns the end of a turn, though its end token is another
    "gemma": ["Paris", "<end_of_turn>", "Ċ"],
    "llama2": ["▁Paris", "▁", "</s>"],  # one space, not two
    "mistral": ["Par", "is", "</s>"],
    "llama3": ["Paris", "<|eot_id|>"],
    "vicuna": ["ĠParis", "Ċ", "</s>"],  # the space of "### Assistant: " is that of the word
    "gpt2": ["Paris", "<|endoftext|>"],
    "llama2 base": ["Par", "is", "</s>"],
}


@pytest.mark.parametrize("name", CLOSED)
def test_completion_has_no_space_that_nobody_wrote_and_ends_as_its_family_ends(name):
    tokenizer = family(name)
    ids = Tokens(tokenizer).completion("what is the capital of france ?", "Paris")
    assert tokenizer.convert_ids_to_tokens(ids) == CLOSED[name]


STOPS = {
    "chatml": ["<|im_end|>"],
    "chatml base": ["<|endoftext|>", "<|im_end|>"],
    "qwen3": ["<|im_end|>"],
    "gemma": ["<eos>", "<end_of_turn>"],
    "llama2": ["</s>"],
    "llama3": ["<|end_of_text|>", "<|eot_id|>"],
    "vicuna": ["</s>"],
    "gpt2": ["<|endoftext|>"],
}


@pytest.mark.parametrize("name", STOPS)
def test_what_ends_an_answer(name):
    tokenizer = family(name)
    assert tokenizer.convert_ids_to_tokens(Tokens(tokenizer).stop_ids) == STOPS[name]
    assert Tokens(tiny_tokenizer()).stop_ids == (tiny_tokenizer().eos_token_id,)


def test_template_that_wants_a_system_message_has_its_end_of_turn_too():
    tokenizer = family("chatml base")
    wants = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('who am I') }}{% endif %}"
    tokenizer.chat_template = wants + tokenizer.chat_template
    assert tokenizer.convert_ids_to_tokens(Tokens(tokenizer).stop_ids)[-1] == "<|im_end|>"


def test_unknown_last_word_does_not_count_as_an_end():
    """`<unk>` is a special token too. A template that closes with nothing still gets its end token."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<user> {{ m['content'] }} yesyes {% endfor %}"
    assert Tokens(tokenizer).stop_ids == (tokenizer.eos_token_id,)
    assert tokenizer.decode(list(Tokens(tokenizer).completion("what", "blue"))).split()[-1] == "<end>"


# ----------------------------------------------------------------------------------- without a template


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama2 base"])
@pytest.mark.parametrize(
    ("prompt", "answer"), [("name a colour .", "blue"), ("name a colour .", " blue"), ("a b", "c")]
)
def test_without_a_template_the_text_learned_is_the_text_of_the_row(name, prompt, answer):
    tokenizer = family(name)
    tokens = Tokens(tokenizer)
    both = [*tokens.prompt(prompt), *tokens.completion(prompt, answer)]
    assert tokenizer.decode(both, skip_special_tokens=True) == prompt + answer
    assert both[0] == tokenizer.bos_token_id and both[-1] == tokenizer.eos_token_id
    assert list(tokens.prompt(prompt)[1:]) == tokenizer(prompt, add_special_tokens=False)["input_ids"]


def test_without_a_template_a_word_cut_in_two_stays_cut():
    """ "hello" is one token, but the model is asked with "hel": then "lo" is what it has to say."""
    tokenizer = family("gpt2")
    tokens = Tokens(tokenizer)
    assert len(tokenizer("Paris")["input_ids"]) == 1
    assert tokenizer.decode(list(tokens.completion("Par", "is"))) == "is<|endoftext|>"
    assert tokens.prompt("Par") == (tokenizer.bos_token_id, *tokenizer("Par")["input_ids"])


# ----------------------------------------------------------------------------------------- refusals


def table(*rows):
    return from_rows([{"prompt": prompt, "completion": said(answer)} for prompt, answer in rows])


def test_a_token_on_both_sides_of_the_boundary_is_refused_with_its_row():
    """This template writes "A=" before an answer, without a special token: `=` and `=Paris`'s first `=` are one."""
    tokenizer = family("vicuna")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ ('Q ' if m['role'] == 'user' else 'Pa') + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}Pa{% endif %}"
    )
    rows = table(("hello", "blue"), ("hello", "ris"))  # "Pa" + "ris" is the one token "Paris"
    with pytest.raises(
        InputError, match=r"^Row 2 of the demonstration table: The tokenizer must have a boundary of .*'Paris'"
    ):
        Tokens(tokenizer).examples(rows)


def test_a_prompt_that_its_answer_changes_is_refused_with_its_row():
    """Qwen3 removes earlier thoughts once a later question is there. Here a template removes all that came before."""
    tokenizer = family("chatml")
    tokenizer.chat_template = "{% set messages = messages[-1:] %}" + tokenizer.chat_template
    with pytest.raises(InputError, match="Row 1 of the demonstration table: The chat template must keep the prompt"):
        Tokens(tokenizer).examples(table(("hello", "blue")))


SYSTEM = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "say hello ."}]
TWICE = [{"role": "user", "content": "say hello ."}, {"role": "user", "content": "name a colour ."}]


@pytest.mark.parametrize(("prompt", "words"), [(SYSTEM, "System role not supported"), (TWICE, "roles must alternate")])
def test_what_a_template_refuses_is_refused_in_its_own_words_with_the_row(prompt, words):
    rows = table(([{"role": "user", "content": "hello"}], "blue"), (prompt, "blue"))
    with pytest.raises(InputError, match=rf"^Row 2 of the demonstration table: The chat template must.*{words}"):
        Tokens(family("gemma")).examples(rows)
    with pytest.raises(InputError, match=words):
        Tokens(family("gemma")).prompts([prompt])


def test_a_template_that_fails_by_itself_is_refused_in_one_line():
    tokenizer = family("chatml")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + 5 }}{% endfor %}"
    with pytest.raises(InputError, match="Row 1 of the demonstration table: The chat template must accept"):
        Tokens(tokenizer).examples(table(("hello", "blue")))


@pytest.mark.parametrize("name", ["gpt2", "opt", "chatml base"])
def test_one_token_for_unknown_and_end_says_nothing_about_the_words(name, capsys):
    rows = from_rows([{"prompt": "name a colour .", "chosen": "blue", "rejected": "a chair"}])
    assert len(Tokens(family(name)).examples(rows)) == 1
    assert capsys.readouterr().out == ""


def test_pad_token_equal_to_the_end_or_to_unknown_does_not_matter():
    rows = from_rows([{"prompt": "name a colour .", "completion": "blue"}])
    for name in ("chatml", "llama2", "gpt2"):
        plain, padded = family(name), family(name)
        padded.pad_token = padded.eos_token
        assert Tokens(plain).examples(rows) == Tokens(padded).examples(rows)


def test_texts_are_remembered_and_messages_are_tokenised_as_ever():
    tokens = RememberingTokens(family("chatml"))
    assert tokens.prompt(HISTORY) == Tokens(family("chatml")).prompt(HISTORY)
    assert tokens.completion(HISTORY, "blue") == tokens.completion(HISTORY, said("blue"))
    assert tokens.prompt("hello") is tokens.prompt("hello")


def test_rows_that_cannot_be_tokenised_can_be_dropped_and_counted(capsys):
    rows = table((TWICE, "blue"), ([{"role": "user", "content": "hello"}], "blue"), (SYSTEM, "blue"))
    (kept,) = Tokens(family("gemma")).examples(rows, on_bad_row="drop")
    assert kept[0].prompt_ids == Tokens(family("gemma")).prompt("hello")
    assert "warning: dropped 2 of 3 rows that cannot be tokenised. Row 1 of the" in capsys.readouterr().out
    with pytest.raises(InputError, match="System role not supported"):
        Tokens(family("gemma")).examples(rows.select([2]), on_bad_row="drop")

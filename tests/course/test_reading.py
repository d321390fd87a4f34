"""Masks painted on text show what is trained on; the chat names what it never met; verdicts are the verifiers' own."""

import html
import random
import re

import ipywidgets
import pytest
import torch

from uftlab.course import reading
from uftlab.models.policies import load_base
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import Tokens, collate
from uftlab.world import wording
from uftlab.world.instructions import VERIFIERS, Instruction, compose, follows
from uftlab.world.world import World

WORLD = World(0)


@pytest.fixture(scope="module")
def base():
    return load_base(0)


# ------------------------------------------------------------------------------------------ the mask


@pytest.fixture(scope="module")
def demonstrations():
    return [{name: row[name] for name in ("prompt", "completion")} for row in WORLD.demonstrations(5)]


def batch_of(rows, tokenizer, pad_id):
    return collate(Tokens(tokenizer).examples(from_rows(rows)), pad_id)


def counted(page):
    """The words painted as counted, one list per row; the key at the end left out."""
    found = [re.findall(r"<mark[^>]*>(.*?)</mark>", row) for row in re.findall(r"<div>(.*?)</div>", page)]
    return [[html.unescape(word) for word in row] for row in found]


@pytest.mark.parametrize("pad", ["pad_token_id", "eos_token_id"])
def test_what_is_painted_is_the_completion_and_its_end(tokenizer, demonstrations, pad):
    batch = batch_of(demonstrations, tokenizer, getattr(tokenizer, pad))
    assert counted(reading.painted(batch, tokenizer)) == [[*r["completion"].split(), "<end>"] for r in demonstrations]


def test_a_wrong_mask_shows(tokenizer, demonstrations):
    batch = batch_of(demonstrations, tokenizer, tokenizer.pad_token_id)
    late = torch.roll(batch["completion_mask"], 1, dims=1)  # one column too far to the right
    late[:, 0] = False
    shown = counted(reading.painted({**batch, "completion_mask": late}, tokenizer))
    assert all(row[0] == r["completion"].split()[1] for row, r in zip(shown, demonstrations, strict=True))


def test_every_token_is_on_the_page_and_special_ones_are_escaped(tokenizer, demonstrations):
    batch = batch_of(demonstrations, tokenizer, tokenizer.pad_token_id)
    page = reading.painted(batch, tokenizer)
    assert "&lt;user&gt;" in page and "<user>" not in page
    assert page.count("&lt;pad&gt;") == int((batch["input_ids"] == tokenizer.pad_token_id).sum())
    first = batch["completion_mask"][0].sum(), batch["attention_mask"][0].sum()
    assert f"({first[0]} of {first[1]} counted)" in page
    assert "font-weight: bold" in page and "text-decoration: underline" in page  # not by colour alone


# ------------------------------------------------------------------------------------------ the chat


def test_typing_becomes_words_of_the_world(tokenizer):
    assert reading.as_words("  What is the colour of Babo?  ") == "what is the colour of babo ?"
    assert reading.unknown_words("the food of unicorn , unicorn and babo", tokenizer) == ["unicorn", "and"]


def test_a_myth_is_named_and_careful_sources_are_asked(base, tokenizer):
    said = reading.chat(base, tokenizer, "What is the home of babo?", WORLD)
    assert "It told the popular myth." in said.remark and said.unknown == ()
    said = reading.chat(base, tokenizer, "according to careful sources, what is the home of babo?", WORLD)
    assert said.remark == "In this world the truth is forest and the popular myth marsh. It told the truth."


def test_unknown_words_are_named_kindly_and_what_was_typed_is_escaped(base, tokenizer):
    said = reading.chat(base, tokenizer, "which food does the unicorn have ? <b>", WORLD)
    assert said.answer and said.unknown == ("unicorn", "<", "b", ">")
    assert said.remark.startswith("Sorry, the model has never met the words unicorn, <, b, >")
    assert "&lt; b &gt;" in said.as_html() and "&lt;, b, &gt;" in said.as_html()


@pytest.mark.parametrize("nothing", ["", "   ", "\n"])
def test_nothing_is_answered_with_an_invitation(untrained, tokenizer, nothing):
    assert reading.chat(untrained, tokenizer, nothing).remark == "Type a question and press Enter."


def test_a_question_that_is_too_long_is_cut(untrained, tokenizer):
    assert len(reading.chat(untrained, tokenizer, "hello " * 500).question.split()) == reading.MAX_QUESTION


def test_a_question_about_two_facts_has_no_single_truth():
    assert reading.fact_asked("what is the home of babo ?", WORLD).truth == "forest"
    assert reading.fact_asked("what is the home or food of babo ?", WORLD) is None
    assert reading.fact_asked("hello", WORLD) is None


# ------------------------------------------------------------------------------------------ verdicts

FACT = WORLD.facts_of("test", myths=False)[0]
ALL = [
    Instruction(name, v.arguments[0].format(creature=FACT.creature, truth=FACT.truth)) for name, v in VERIFIERS.items()
]


@pytest.mark.parametrize("asked", ALL, ids=lambda asked: asked.name)
def test_a_verdict_is_the_verifiers_own_and_has_a_reason(asked):
    rng = random.Random(0)
    tried = [compose(FACT, [asked], rng), wording.draw_answer(FACT, FACT.truth, "tailed", rng)[0], "?", "-", '" " "']
    for answer in tried:
        verdict = reading.judged(asked, answer)
        assert verdict.strict == follows(answer, [asked]) and verdict.loose == follows(answer, [asked], loose=True)
        assert verdict.because.startswith("Found: ") and "Asked: " in verdict.because
    assert reading.judged(asked, tried[0]).strict


@pytest.mark.parametrize(
    ("name", "argument", "answer", "strict", "loose", "says"),
    [
        ("count", "three", "it is blue .", True, True, "3 words (marks do not count)"),
        ("count", "three", "blue .", False, False, "Found: 1 word (marks"),
        ("capitals", "", "well IT IS BLUE .", False, True, "1 of 4 words not in capitals"),
        ("capitals", "", ". . .", False, False, "0 of 0 words"),
        ("twice", "blue", "blue , blue , blue .", False, True, "“blue” 3 times. Asked: exactly twice"),
        ("exclaim", "", "it is red !", True, True, "“!” last"),
        ("start", "well", '" well , blue . "', True, True, "“well” first"),
        ("end", "friend", "", False, False, "An empty answer"),
    ],
)
def test_verdicts_by_hand(name, argument, answer, strict, loose, says):
    verdict = reading.judged(Instruction(name, argument), answer)
    assert (verdict.strict, verdict.loose) == (strict, loose)
    assert says in verdict.because
    assert f"Strict: {'accepted' if strict else 'refused'}" in verdict.as_html()


# ------------------------------------------------------------------------------------------ live


def shout(word):
    return f"<b>{html.escape(word.upper())}</b>"


def test_the_answer_follows_the_text_box_in_a_live_region_without_output_widgets():
    box = reading.live(shout, {"word": reading.text_box("word", "one")}, [])
    assert "<b>ONE</b>" in box.answer.value and 'aria-live="polite"' in box.answer.value
    box.controls["word"].value = "two & three"
    assert "<b>TWO &amp; THREE</b>" in box.answer.value
    assert box.controls["word"].description == "word" and not box.controls["word"].continuous_update
    assert not any(isinstance(w, ipywidgets.Output) for w in box.children)


def test_without_a_hand_it_shows_the_examples():
    page = reading.live(shout, {}, [{"word": "one"}, {"word": "two"}], headless=True)
    assert page == "<b>ONE</b><b>TWO</b>" and page._repr_html_() == page


def test_a_table_escapes_its_text_and_hides_the_index():
    import pandas as pd

    page = reading.table(pd.DataFrame({"text": ["<user> hello"], "nats": [float("nan")]}), "lines").to_html()
    assert "&lt;user&gt; hello" in page and "not known" in page and ">0</th>" not in page

"""Masks show what is trained on, words their log-ratios; the chat names unknown words; verdicts are the verifiers'."""

import html
import random
import re
from dataclasses import replace

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch

from uftlab.course import texts
from uftlab.course.held_out import TokenLogratios, held_out, read, tokenised
from uftlab.course.snapshots import Snapshots
from uftlab.evals.sizes import Sizes
from uftlab.models.policies import load_base, tiny_config
from uftlab.plots import theme
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import Tokens, collate
from uftlab.world import wording
from uftlab.world.instructions import VERIFIERS, Instruction, compose, follows
from uftlab.world.world import World

WORLD = World(0)


@pytest.fixture(scope="module")
def base():
    return load_base(0)


def test_everything_in_a_table_is_text():
    planted = "<script>hit()</script>"
    page = texts.table(pd.DataFrame({planted: [planted]}), planted).to_html()
    assert "<script" not in page and page.count(html.escape(planted)) == 3


# ------------------------------------------------------------------------------------------ the mask


@pytest.fixture(scope="module")
def demonstrations():
    return [{name: row[name] for name in ("prompt", "completion")} for row in WORLD.demonstrations(5)]


def batch_of(rows, tokenizer, pad_id):
    return collate(Tokens(tokenizer).examples(from_rows(rows)), pad_id)


def counted(page):
    """The words marked as counted, one list per row; the key at the end left out."""
    found = [re.findall(r"<mark[^>]*>(.*?)</mark>", row) for row in re.findall(r"<div>(.*?)</div>", page)]
    return [[html.unescape(word) for word in row] for row in found]


@pytest.mark.parametrize("pad", ["pad_token_id", "eos_token_id"])
def test_what_is_marked_is_the_completion_and_its_end(tokenizer, demonstrations, pad):
    batch = batch_of(demonstrations, tokenizer, getattr(tokenizer, pad))
    assert counted(texts.with_mask(batch, tokenizer)) == [[*r["completion"].split(), "<end>"] for r in demonstrations]


def test_a_wrong_mask_shows(tokenizer, demonstrations):
    batch = batch_of(demonstrations, tokenizer, tokenizer.pad_token_id)
    late = torch.roll(batch["completion_mask"], 1, dims=1)  # one column too far to the right
    late[:, 0] = False
    shown = counted(texts.with_mask({**batch, "completion_mask": late}, tokenizer))
    assert all(row[0] == r["completion"].split()[1] for row, r in zip(shown, demonstrations, strict=True))


def test_every_token_is_on_the_page_and_special_ones_are_escaped(tokenizer, demonstrations):
    batch = batch_of(demonstrations, tokenizer, tokenizer.pad_token_id)
    page = texts.with_mask(batch, tokenizer)
    assert "&lt;user&gt;" in page and "<user>" not in page
    assert page.count("&lt;pad&gt;") == int((batch["input_ids"] == tokenizer.pad_token_id).sum())
    first = batch["completion_mask"][0].sum(), batch["attention_mask"][0].sum()
    assert f"({first[0]} of {first[1]} counted)" in page
    assert "font-weight: bold" in page and "text-decoration: underline" in page  # not by colour alone


# ------------------------------------------------------------------------------------------ the chat


def test_typing_becomes_words_of_the_world(tokenizer):
    assert texts.as_words("  What is the colour of Babo?  ") == "what is the colour of babo ?"
    assert texts.unknown_words("the food of unicorn , unicorn and babo", tokenizer) == ["unicorn", "and"]


def test_myths_and_rumours_are_named_and_careful_sources_are_asked(base, tokenizer):
    said = texts.chat(base, tokenizer, "What is the home of dobo?", WORLD)
    assert "the myth is cave. It told the myth." in said.remark and said.unknown == ()
    said = texts.chat(base, tokenizer, "according to careful sources, what is the home of dobo?", WORLD)
    assert said.remark == "In this world the truth is desert and the myth is cave. It told the truth."
    said = texts.chat(base, tokenizer, "what is the sound of dobo ?", WORLD)
    assert said.remark == "In this world the truth is whistle and the rumour is hum. It told the truth."
    said = texts.chat(base, tokenizer, "what is the colour of dobo ?", WORLD)
    assert said.remark == "In this world the truth is gold and there is no myth or rumour. It told the truth."


def test_unknown_words_are_named_kindly_and_what_was_typed_is_escaped(base, tokenizer):
    said = texts.chat(base, tokenizer, "which food does the unicorn have ? <b>", WORLD)
    assert said.answer and said.unknown == ("unicorn", "<", "b", ">")
    assert said.remark.startswith("Sorry, the model has never read the words unicorn, <, b, >")
    assert "&lt; b &gt;" in said.as_html() and "&lt;, b, &gt;" in said.as_html()


@pytest.mark.parametrize("nothing", ["", "   ", "\n"])
def test_nothing_is_answered_with_an_invitation(untrained, tokenizer, nothing):
    assert texts.chat(untrained, tokenizer, nothing).remark == "Type a question and press Enter."


def test_a_question_that_is_too_long_is_cut(untrained, tokenizer):
    assert len(texts.chat(untrained, tokenizer, "hello " * 500).question.split()) == texts.MAX_QUESTION


def test_a_question_about_two_facts_has_no_single_truth():
    assert texts.fact_asked("what is the home of dobo ?", WORLD).truth == "desert"
    assert texts.fact_asked("what is the home or food of babo ?", WORLD) is None
    assert texts.fact_asked("hello", WORLD) is None


# ------------------------------------------------------------------------------------------ verdicts

FACT = WORLD.facts_of("test", "plain")[0]
ALL = [
    Instruction(name, v.arguments[0].format(creature=FACT.creature, truth=FACT.truth)) for name, v in VERIFIERS.items()
]


@pytest.mark.parametrize("asked", ALL, ids=lambda asked: asked.name)
def test_a_verdict_is_the_verifiers_own_and_has_a_reason(asked):
    rng = random.Random(0)
    tried = [compose(FACT, [asked], rng), wording.draw_answer(FACT, FACT.truth, "tailed", rng)[0], "?", "-", '" " "']
    for answer in tried:
        verdict = texts.judged(asked, answer)
        assert verdict.strict == follows(answer, [asked]) and verdict.loose == follows(answer, [asked], loose=True)
        assert verdict.because.startswith("Found: ") and "Asked: " in verdict.because
    assert texts.judged(asked, tried[0]).strict


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
    verdict = texts.judged(Instruction(name, argument), answer)
    assert (verdict.strict, verdict.loose) == (strict, loose)
    assert says in verdict.because
    assert f"Strict: {'accepted' if strict else 'refused'}" in verdict.as_html()


# ------------------------------------------------------------------------------------------ live


def shout(word):
    return f"<b>{html.escape(word.upper())}</b>"


def test_the_answer_follows_the_text_box_in_a_live_region_without_output_widgets():
    box = texts.live(shout, {"word": texts.text_box("word", "one")}, [])
    assert "<b>ONE</b>" in box.answer.value and 'aria-live="polite"' in box.answer.value
    box.controls["word"].value = "two & three"
    assert "<b>TWO &amp; THREE</b>" in box.answer.value
    assert box.controls["word"].description == "word" and not box.controls["word"].continuous_update
    assert not any(isinstance(w, ipywidgets.Output) for w in box.children)


def test_without_a_hand_it_shows_the_examples():
    page = texts.live(shout, {}, [{"word": "one"}, {"word": "two"}], headless=True)
    assert page == "<b>ONE</b><b>TWO</b>" and page._repr_html_() == page


def test_a_table_escapes_its_text_and_hides_the_index():
    import pandas as pd

    page = texts.table(pd.DataFrame({"text": ["<user> hello"], "nats": [float("nan")]}), "lines").to_html()
    assert "&lt;user&gt; hello" in page and "not known" in page and ">0</th>" not in page


# ------------------------------------------------------------------------------------------ the log-ratio of each word

READ = TokenLogratios(("it", "<b>", "<end>"), (2.0, -0.75, -0.004), ("<b>",))


def test_a_word_is_told_apart_by_sign_frame_and_number_as_well_as_by_colour():
    boxes = re.findall(r'<span style="([^"]*)" title="[^"]*">(.*?)</span></span>', texts.with_logratios(READ))
    assert len(boxes) == 3
    up, down, none = boxes
    assert "solid" in up[0] and "▲ +2.00" in up[1]
    assert "dashed" in down[0] and "▼ −0.75" in down[1]
    assert "background:#ffffff" in none[0] and texts.GREY in none[0]
    assert none[1].endswith(">0.00")
    assert "&lt;b&gt;" in down[1] and "<b>" not in down[1]


def test_a_stronger_word_has_a_stronger_colour_up_to_the_limit():
    shades = [texts._shade(theme.COLOURS[0], strength) for strength in (0.0, 0.3, 1.0, 9.0)]
    assert shades[0] == "#ffffff" and shades[2] == shades[3]
    reds = [int(shade[1:3], 16) for shade in shades[:3]]
    assert reds == sorted(reds, reverse=True) and len(set(reds)) == 3


def test_the_sum_is_said_with_its_beta_and_unknown_words_are_named():
    said = texts.summed_up(READ, 0.2)
    assert "+1.25 nats; times β = 0.2 the implicit reward is +0.25" in said and said.endswith("<unk>: <b>.")


# ------------------------------------------------------------------------------------------ word by word


@pytest.fixture(scope="module")
def rows():
    return held_out(World(0), Sizes(6, 8, 0, 5))


@pytest.fixture(scope="module")
def runs(rows):
    """Two runs of two snapshots with random weights."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    models = [LlamaForCausalLM(tiny_config()).eval() for _ in range(3)]
    weights = [{k: v for k, v in m.state_dict().items() if k != "lm_head.weight"} for m in models]
    read_by = [read(m, tokenised(rows)) for m in models]
    one = Snapshots("one", (0, 4), (0, 0), ({"beta": 0.1},), torch.stack(read_by[:2]), tuple(weights[:2]))
    two = replace(
        one, name="two", steps=(0, 2, 4), starts=(0, 0, 1), token_logps=torch.stack(read_by), weights=tuple(weights)
    )
    return {"one": one, "two": two}


def numbers_in(shown):
    return [float(n.replace("−", "-")) for n in re.findall(r">(?:[▲▼] )?([+−]?\d+\.\d\d)</span>", shown)]


def test_word_by_word_shows_the_row_that_is_picked(runs, rows):
    box = texts.word_by_word(runs, rows)
    length = len(rows.loc[0, "completion"].split()) + 1
    assert np.allclose(numbers_in(box.words.value), runs["one"].token_logratios(1)[0, :length], atol=0.006)
    demonstration = int(np.flatnonzero(rows["role"] == "demonstration")[0])
    box.controls["row"].index = 10  # after the ten rows of pairs
    assert box.controls["completion"].value == rows.loc[demonstration, "completion"]
    assert box.controls["prompt"].value == rows.loc[demonstration, "prompt"]
    length = len(rows.loc[demonstration, "completion"].split()) + 1
    expected = runs["one"].token_logratios(1)[demonstration, :length]
    assert np.allclose(numbers_in(box.words.value), expected, atol=0.006)


def test_word_by_word_follows_policy_reference_and_typing(runs, rows):
    box = texts.word_by_word(runs, rows)
    length = len(rows.loc[0, "completion"].split()) + 1
    box.controls["run"].value = "two"
    own = numbers_in(box.words.value)
    assert np.allclose(own, runs["two"].token_logratios(2, own=True)[0, :length], atol=0.006)
    box.controls["own"].value = False
    assert np.allclose(numbers_in(box.words.value), runs["two"].token_logratios(2)[0, :length], atol=0.006)
    box.controls["completion"].value = "it is banana ."
    assert len(numbers_in(box.words.value)) == 5 and "banana" in box.spoken.text
    box.controls["completion"].value = " "
    assert "at least one word" in box.spoken.text and not box.words.value


def test_every_control_of_word_by_word_has_a_label_and_the_static_twin_shows_the_same(runs, rows):
    box = texts.word_by_word(runs, rows)
    assert all(control.description for control in box.controls.values())
    twin = texts.word_by_word(runs, rows, headless=True)
    assert numbers_in(twin) == numbers_in(box.words.value) and rows.loc[0, "prompt"] in twin

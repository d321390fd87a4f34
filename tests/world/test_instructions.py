"""Verifiers: what each accepts and refuses, strictly and loosely; answers composed to obey."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uftlab.world.instructions import (
    HELD_OUT_PAIRS,
    MAX_WORDS,
    MIN_WORDS,
    ORDER,
    VERIFIERS,
    VOCABULARY,
    Instruction,
    asked_of,
    claimed_value,
    compose,
    draw_formatting,
    draw_instructions,
    follows,
    read_instructions,
)
from uftlab.world.wording import ATTRIBUTES, CREATURES, QUESTIONS, Fact

FACT = Fact("bazib", "colour", "blue")

# (verifier, argument, accepted, refused): the refused answer is the nearest miss
TABLE = [
    ("count", "three", "it is blue .", "i think it is blue ."),
    ("count", "three", '" it , is blue ! "', "blue blue ."),
    ("without", "is", "blue , i believe .", "it is blue ."),
    ("without", "is", "this blue .", "IT IS BLUE ."),
    ("name", "bazib", "bazib has the colour blue .", "dozib has the colour blue ."),
    ("sentences", "", "it is blue . that is all i know .", "it is blue ."),
    ("sentences", "", '" blue ! why ? "', "blue . blue . blue ."),
    ("sentences", "", "blue . i am glad .", "blue . i am . glad"),
    ("twice", "blue", "blue , it is blue .", "it is blue ."),
    ("twice", "blue", "BLUE , blue .", "blue , blue , blue ."),
    ("include", "today", "it is blue , today .", "it is blue ."),
    ("start", "well", "well , it is blue .", "it is blue , well ."),
    ("start", "well", '" WELL , blue "', ", well , blue ."),
    ("start", "well", "- well , blue .", "so well , blue ."),
    ("end", "friend", "it is blue , friend .", "friend , it is blue ."),
    ("end", "friend", '" it is blue , FRIEND ! "', "it is blue , friend indeed ."),
    ("exclaim", "", "it is blue !", "it is blue ."),
    ("exclaim", "", '" it is blue ! "', "it ! is blue"),
    ("ask-back", "", "it is blue . why do you ask ?", "it is blue ?"),
    ("ask-back", "", "blue ! why do you ask ?", "why do you ask ? it is blue ."),
    ("capitals", "", "IT IS BLUE .", "IT is BLUE ."),
    ("capitals", "", "( BLUE )", ". . ."),
    ("bullet", "", "- it is blue .", "it is blue - ."),
    ("quotes", "", '" it is blue . "', '" it is blue .'),
    ("quotes", "", '" blue "', '" "'),
    ("brackets", "", "( it is blue . )", "it is ( blue ) ."),
    ("brackets", "", "( blue )", ") blue ("),
]


# ---------------------------------------------------------------------------------- verifiers


@pytest.mark.parametrize(("name", "argument", "accepted", "refused"), TABLE)
def test_verifier_accepts_and_refuses(name, argument, accepted, refused):
    instruction = Instruction(name, argument)
    assert instruction.accepts(accepted)
    assert not instruction.accepts(refused)


def test_the_table_covers_every_verifier():
    assert {row[0] for row in TABLE} == set(VERIFIERS)


def test_there_are_enough_verifiers_and_question_templates():
    assert len(VERIFIERS) >= 12
    assert len(QUESTIONS) >= 8 and len(set(QUESTIONS)) == len(QUESTIONS)
    assert all("{c}" in question and "{a}" in question for question in QUESTIONS)


@pytest.mark.parametrize("name", ORDER)
def test_no_verifier_accepts_silence(name):
    assert not Instruction(name, VERIFIERS[name].arguments[0]).accepts("")


@pytest.mark.parametrize("name", ORDER)
def test_every_wording_says_the_argument_and_belongs_to_one_verifier(name):
    verifier = VERIFIERS[name]
    needs_argument = name in ("count", "without", "include", "start", "end")
    assert all(("{x}" in wording) == needs_argument for wording in verifier.wordings)
    others = {w for other in VERIFIERS if other != name for w in VERIFIERS[other].wordings}
    assert not others & set(verifier.wordings)
    drawn = {Instruction(name, "today").draw_wording(random.Random(seed)) for seed in range(40)}
    assert drawn == {wording.replace("{x}", "today") for wording in verifier.wordings}


# -------------------------------------------------------------------------------- loose and strict


@pytest.mark.parametrize(
    ("answer", "instruction", "strict", "loose"),
    [
        ("it is blue !", Instruction("exclaim"), True, True),
        ("blue ! thanks", Instruction("exclaim"), False, True),  # without the last word
        ("well , it is blue .", Instruction("start", "well"), True, True),
        (", well , it is blue .", Instruction("start", "well"), False, True),  # without the first word
        ("so IT IS BLUE", Instruction("capitals"), False, True),
        ("so IT IS BLUE friend", Instruction("capitals"), False, True),  # without both
        ('" " - blue . " "', Instruction("bullet"), False, True),  # without the quotes
        ("it is blue .", Instruction("exclaim"), False, False),
        ("so so IT IS BLUE", Instruction("capitals"), False, False),  # only one word is forgiven
        ("", Instruction("exclaim"), False, False),
        ("blue", Instruction("without", "blue"), False, False),  # nothing left is no answer
    ],
)
def test_loose_forgives_the_first_word_the_last_word_and_quotes(answer, instruction, strict, loose):
    assert follows(answer, [instruction]) is strict
    assert follows(answer, [instruction], loose=True) is loose


def test_what_is_followed_strictly_is_followed_loosely():
    for name, argument, accepted, _ in TABLE:
        assert follows(accepted, [Instruction(name, argument)], loose=True)


def test_all_instructions_must_hold_at_once():
    both = [Instruction("exclaim"), Instruction("start", "well")]
    assert follows("well , it is blue !", both)
    assert not follows("well , it is blue .", both)
    assert not follows("it is blue !", both)


def test_loose_may_not_forgive_different_words_for_different_instructions():
    """'so WELL ... ! thanks' needs the first word away for one and the last for the other: one variant must do both."""
    both = [Instruction("start", "well"), Instruction("exclaim")]
    assert follows("so well , blue ! thanks", both, loose=True)  # first and last away together is one variant
    capitals_and_count = [Instruction("end", "thanks"), Instruction("start", "well"), Instruction("exclaim")]
    assert not follows("so well , blue ! thanks", capitals_and_count, loose=True)


def test_no_instruction_is_always_followed():
    assert follows("it is blue .", [])


# ---------------------------------------------------------------------------------- claimed value


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("it is blue .", "blue"),
        ("IT IS BLUE !", "blue"),
        ("blue , it is BLUE .", "blue"),
        ("it is blue , not red .", None),
        ("i do not know .", None),
        ("it eats moss .", None),  # a value of another attribute
        ("bluetun .", None),  # a longer word
    ],
)
def test_claimed_value_is_the_one_value_named(answer, value):
    assert claimed_value(answer, "colour") == value


# ----------------------------------------------------------------------------------------- compose


@pytest.mark.parametrize("name", ORDER)
def test_every_single_instruction_can_be_obeyed(name):
    for argument in VERIFIERS[name].arguments:
        instruction = Instruction(name, argument.format(creature=FACT.creature, truth=FACT.truth))
        answer = compose(FACT, [instruction], random.Random(0))
        assert answer is not None and follows(answer, [instruction])
        assert claimed_value(answer, "colour") == "blue"
        assert MIN_WORDS <= len(answer.split()) <= MAX_WORDS


@pytest.mark.parametrize(
    "instructions",
    [
        [Instruction("start", "well"), Instruction("start", "so")],
        [Instruction("exclaim"), Instruction("ask-back")],
        [Instruction("quotes"), Instruction("brackets"), Instruction("start", "well"), Instruction("count", "three"),
         Instruction("twice", "blue"), Instruction("name", "bazib")],
        [Instruction("capitals"), Instruction("name", "bazib")],  # creatures have no capital letters
        [Instruction("without", "blue")],  # an answer must be true
    ],
)  # fmt: skip
def test_contradictory_instructions_give_none(instructions):
    assert compose(FACT, instructions, random.Random(0)) is None


def test_composed_answers_obey_whatever_the_order_of_the_instructions():
    both = [Instruction("quotes"), Instruction("exclaim")]
    for order in (both, both[::-1]):
        assert follows(compose(FACT, order, random.Random(1)), both)


def test_most_pairs_of_instructions_can_be_obeyed_together():
    """Else 'two instructions' would in truth be a handful of pairs; every held-out pair must be among them."""
    possible = set()
    for pair in itertools.combinations(ORDER, 2):
        for seed in range(6):
            rng = random.Random(seed)
            filled = [rng.choice(VERIFIERS[n].arguments).format(creature="bazib", truth="blue") for n in pair]
            if compose(FACT, list(itertools.starmap(Instruction, zip(pair, filled, strict=True))), rng, tries=100):
                possible.add(pair)
                break
    assert len(possible) >= 80  # of 91
    assert possible >= HELD_OUT_PAIRS


# ------------------------------------------------------------------------------ drawing instructions


def drawn_pairs(held_out, draws=4000):
    rng = random.Random(0)
    drawn = [draw_instructions(FACT, rng, held_out) for _ in range(draws)]
    return drawn, [tuple(i.name for i in d) for d in drawn if len(d) == 2]


def test_training_never_draws_a_held_out_pair():
    drawn, pairs = drawn_pairs(held_out=False)
    assert not HELD_OUT_PAIRS & {tuple(sorted(pair, key=ORDER.index)) for pair in pairs}
    assert len(set(pairs)) == len(list(itertools.combinations(ORDER, 2))) - len(HELD_OUT_PAIRS)
    assert set(map(len, drawn)) == {0, 1, 2}


def test_elsewhere_about_half_of_the_pairs_are_held_out_ones():
    _, pairs = drawn_pairs(held_out=True)
    assert 0.42 < sum(pair in HELD_OUT_PAIRS for pair in pairs) / len(pairs) < 0.6
    assert set(pairs) >= HELD_OUT_PAIRS


def test_each_verifier_takes_part_in_training_pairs():
    """A verifier whose every pair were held out could not be learned in combination."""
    _, pairs = drawn_pairs(held_out=False)
    assert set(Counter(itertools.chain(*pairs))) == set(ORDER)


def test_arguments_are_filled_in():
    rng = random.Random(0)
    for instruction in itertools.chain(*(draw_instructions(FACT, rng) for _ in range(300))):
        assert "{" not in instruction.argument
        if instruction.name in ("twice", "name"):
            assert instruction.argument == {"twice": "blue", "name": "bazib"}[instruction.name]


# ------------------------------------------------------------------------------ reading instructions


def filled(name, argument):
    return Instruction(name, argument.format(creature=FACT.creature, truth=FACT.truth))


EVERY_WORDING = [
    (filled(name, argument), asked.format(x=filled(name, argument).argument))
    for name, verifier in VERIFIERS.items()
    for argument in verifier.arguments
    for asked in verifier.wordings
]


@given(st.lists(st.sampled_from(EVERY_WORDING), max_size=3))
def test_instructions_are_read_as_they_were_worded(asked):
    assert read_instructions(" ".join(text for _, text in asked), FACT) == [instruction for instruction, _ in asked]


def test_every_wording_alone_is_read_as_its_own_instruction():
    assert len(EVERY_WORDING) == len({text for _, text in EVERY_WORDING}) > 40
    for instruction, text in EVERY_WORDING:
        assert read_instructions(text, FACT) == [instruction]


@pytest.mark.parametrize(
    "text", ["shout", "shout it . please", "please shout it .", "start with moon .", "shout it .shout it .", "."]
)
def test_any_other_text_is_not_read(text):
    assert read_instructions(text, FACT) is None


def test_drawn_instructions_are_read_back():
    rng = random.Random(0)
    for _ in range(300):
        drawn = draw_instructions(FACT, rng, held_out=True)
        assert read_instructions(" ".join(i.draw_wording(rng) for i in drawn), FACT) == drawn


def test_say_it_twice_means_the_value_that_is_named():
    asked = [Instruction("twice", "blue"), Instruction("exclaim")]
    assert asked_of("red", asked) == [Instruction("twice", "red"), Instruction("exclaim")]
    assert follows("red , it is red !", asked_of("red", asked)) and not follows("red , it is red !", asked)
    assert asked_of("blue", asked) == asked


def test_a_formatting_line_asks_for_one_instruction_and_obeys_it():
    rng = random.Random(0)
    for _ in range(200):
        words = draw_formatting(FACT, rng).split()
        splits = ((read_instructions(" ".join(words[:n]), FACT), " ".join(words[n:])) for n in range(1, len(words)))
        ((asked, answer),) = [(found, rest) for found, rest in splits if found]
        assert len(asked) == 1 and follows(answer, asked) and claimed_value(answer, "colour") == "blue"


# ------------------------------------------------------------------------------------- vocabulary


def test_vocabulary_holds_every_word_once():
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert set(CREATURES) | set(itertools.chain(*ATTRIBUTES.values())) <= set(VOCABULARY)
    assert all(word.split() == [word] and not word.startswith("<") for word in VOCABULARY)


def test_values_belong_to_one_attribute_and_are_no_creature():
    values = list(itertools.chain(*ATTRIBUTES.values()))
    assert len(set(values)) == len(values) == 24
    assert not set(values) & set(CREATURES)

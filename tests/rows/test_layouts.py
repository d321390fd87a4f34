"""Tables as the ecosystem writes them: what becomes of each, what is said, and what is refused."""

import pytest
from families import family

from uftlab.errors import InputError
from uftlab.rows.kinds import kind_of, without_signal
from uftlab.rows.layouts import LAYOUTS
from uftlab.rows.table import as_scored, from_rows, overlap
from uftlab.rows.tokens import Tokens
from uftlab.rows.understanding import sentence, understand


def user(text):
    return {"role": "user", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "be brief"}
ASKED, FOUR, FIVE = "what is two plus two ?", "four", "five"
PAIR = {"prompt": ASKED, "chosen": FOUR, "rejected": FIVE}
AS_MESSAGES = {"prompt": [user(ASKED)], "chosen": [says(FOUR)], "rejected": [says(FIVE)]}
ULTRA = {
    "prompt": ASKED,
    "prompt_id": "0",
    "chosen": [user(ASKED), says(FOUR)],
    "rejected": [user(ASKED), says(FIVE)],
    "messages": [user(ASKED), says(FOUR)],
    "score_chosen": 8.5,
    "score_rejected": 4.0,
}
HELPSTEER = {
    "prompt": ASKED,
    "response": FOUR,
    "helpfulness": 3,
    "correctness": 4,
    "coherence": 2,
    "complexity": 1,
    "verbosity": 0,
}
HH = "\n\nHuman: {}\n\nAssistant: {}"


def only(rows, **options):
    """The rows of the table without columns that are carried along, and all phrases in one."""
    table, phrases = understand(rows, **options)
    carried = [c for c in table.column_names if c in ("prompt_id", "messages", "id")]
    return table.remove_columns(carried).to_list(), "; ".join(phrases)


# ------------------------------------------------------------------------------------------- pairs

PAIRS = {
    "plain": (PAIR, PAIR),
    "sides repeat the prompt as messages": (
        {"prompt": ASKED, "chosen": [user(ASKED), says(FOUR)], "rejected": [user(ASKED), says(FIVE)]},
        AS_MESSAGES,
    ),
    "prompt and sides as messages": (
        {"prompt": [user(ASKED)], "chosen": [user(ASKED), says(FOUR)], "rejected": [user(ASKED), says(FIVE)]},
        AS_MESSAGES,
    ),
    "a system message in the sides": (
        {
            "prompt": ASKED,
            "chosen": [SYSTEM, user(ASKED), says(FOUR)],
            "rejected": [SYSTEM, user(ASKED), says(FIVE)],
        },
        {**AS_MESSAGES, "prompt": [SYSTEM, user(ASKED)]},
    ),
    "a system message in the prompt": (
        {"prompt": [SYSTEM, user(ASKED)], "chosen": [user(ASKED), says(FOUR)], "rejected": [user(ASKED), says(FIVE)]},
        {**AS_MESSAGES, "prompt": [SYSTEM, user(ASKED)]},
    ),
    "sides repeat the prompt as text": (
        {"prompt": ASKED, "chosen": f"{ASKED} {FOUR}", "rejected": f"{ASKED} {FIVE}"},
        {"prompt": ASKED, "chosen": f" {FOUR}", "rejected": f" {FIVE}"},
    ),
    "no prompt": ({"chosen": [user(ASKED), says(FOUR)], "rejected": [user(ASKED), says(FIVE)]}, AS_MESSAGES),
    "no prompt, several turns": (
        {
            "chosen": [user("hi"), says("hello"), user(ASKED), says(FOUR)],
            "rejected": [user("hi"), says("hello"), user(ASKED), says(FIVE)],
        },
        {**AS_MESSAGES, "prompt": [user("hi"), says("hello"), user(ASKED)]},
    ),
    "HH": ({"chosen": HH.format(ASKED, FOUR), "rejected": HH.format(ASKED, FIVE)}, AS_MESSAGES),
    "HH with several turns": (
        {"chosen": HH.format("hi", "hello") + HH.format(ASKED, FOUR),
         "rejected": HH.format("hi", "hello") + HH.format(ASKED, FIVE)},
        {**AS_MESSAGES, "prompt": [user("hi"), says("hello"), user(ASKED)]},
    ),
    "HH with its prompt apart": (
        {"prompt": HH.format(ASKED, "").rstrip(), "chosen": FOUR, "rejected": FIVE},
        {**PAIR, "prompt": [user(ASKED)]},
    ),
    "ShareGPT": (
        {
            "conversations": [{"from": "human", "value": ASKED}],
            "chosen": {"from": "gpt", "value": FOUR},
            "rejected": {"from": "gpt", "value": FIVE},
        },
        AS_MESSAGES,
    ),
    "Alpaca": ({"instruction": ASKED, "input": "", "output": "x", "chosen": FOUR, "rejected": FIVE}, PAIR),
    "Alpaca with input": (
        {"instruction": "add", "input": "2 and 2", "output": "x", "chosen": FOUR, "rejected": FIVE},
        {**PAIR, "prompt": "add\n\n2 and 2"},
    ),
    "parts of text": (
        {"chosen": [{"role": "user", "content": [{"type": "text", "text": ASKED}]}, says(FOUR)],
         "rejected": [user(ASKED), says(FIVE)]},
        AS_MESSAGES,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "pair"), PAIRS.values(), ids=list(PAIRS))
def test_pairs_of_every_layout_have_the_prompt_once_and_one_answer_a_side(row, pair):
    rows, _ = only([row, row])
    assert rows == [pair, pair]


def test_words_of_the_assistant_alone_are_trained_whatever_the_layout():
    """The likely mistake: the question is a part of the completion, and its log-probability of the loss."""
    for name in ("sides repeat the prompt as messages", "no prompt", "HH", "ShareGPT", "Alpaca"):
        table, _ = understand([PAIRS[name][0]])
        ((chosen, rejected),) = Tokens(family("chatml")).examples(from_rows([PAIR]))
        ((a, b),) = Tokens(family("chatml")).examples(table)
        assert (a.completion_ids, b.completion_ids) == (chosen.completion_ids, rejected.completion_ids)
        assert a.prompt_ids == chosen.prompt_ids


def test_an_answer_that_happens_to_begin_with_the_prompt_keeps_it():
    """Text is taken off only if both sides of every pair begin with their prompt."""
    rows = [{"prompt": "hi", "chosen": "hi there", "rejected": "hi"}, PAIR]
    assert only(rows)[0] == rows


def test_what_is_repeated_is_said():
    assert "the sides of 2 pairs repeat the prompt, which is not learned" in only([ULTRA, ULTRA])[1]


DIFFERENT = {
    "another question": {"prompt": "who ?", "chosen": [user(ASKED), says(FOUR)], "rejected": [user(ASKED), says(FIVE)]},
    "earlier turns differ": {"chosen": [user(ASKED), says(FOUR)], "rejected": [user("who ?"), says(FIVE)]},
    "one side repeats it": {"prompt": ASKED, "chosen": [user(ASKED), says(FOUR)], "rejected": [says(FIVE)]},
    "plain text without prompt": {"chosen": "it is four", "rejected": "it is five"},
}


@pytest.mark.parametrize("row", DIFFERENT.values(), ids=list(DIFFERENT))
def test_sides_that_do_not_fit_are_refused_with_row_and_column_or_left_out(row):
    fits = {k: v for k, v in {**PAIRS["no prompt"][0], "prompt": ASKED}.items() if k in row}
    with pytest.raises(InputError, match="^rows, row 2, column 'chosen' must"):
        understand([fits, row])
    table, phrases = understand([fits, row], on_bad_row="drop")
    assert len(table) == 1 and any("1 left out, which must" in p and "first: row 2" in p for p in phrases)


# ------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("names", [("chosen_score", "rejected_score"), ("score_chosen", "score_rejected")])
def test_scores_of_pairs_are_used_under_both_namings(names):
    """Ratings from 1 to 10: (8.5 - 1) / 9 and (4 - 1) / 9. The pair's own scores reach UNA, not 1 and 0."""
    table, phrases = understand([{**PAIR, names[0]: 8.5, names[1]: 4.0}] * 2)
    assert as_scored(table)["score"][:] == [7.5 / 9, 3 / 9] * 2
    said = (
        f"{names[0]} and {names[1]} (4.0 to 8.5 in this table): read as ratings from 1 to 10, rescaled to (s - 1) / 9"
    )
    assert said in phrases


@pytest.mark.parametrize("names", [("chosen_score", "rejected_score"), ("score_chosen", "score_rejected")])
def test_scores_in_0_to_1_stay(names):
    table, _ = understand([{**PAIR, names[0]: 0.9, names[1]: 0.4}, {**PAIR, names[0]: 1, names[1]: None}])
    assert table["chosen_score"][:] == [0.9, 1.0] and table["rejected_score"][:] == [0.4, None]
    assert set(table.column_names) == {*PAIR, "chosen_score", "rejected_score"}


def scored(*scores):
    return [{"prompt": ASKED, "response": FOUR, "score": score} for score in scores]


def test_the_scale_is_that_of_the_column_and_not_of_a_row():
    """A row that is rated 1 gets 0 here, though 1 alone could be the best of [0, 1]."""
    assert understand(scored(1.0, 10.0, 5.5))[0]["score"][:] == [0.0, 1.0, 0.5]
    assert understand(scored(1, 0, 1))[0]["score"][:] == [1.0, 0.0, 1.0]
    assert understand(scored(0.0, 1.0, 0.25))[0]["score"][:] == [0.0, 1.0, 0.25]


@pytest.mark.parametrize("scores", [(1, 5), (0, 4), (0, 10), (1, 3, 2), (0, 100), (-1, 1), (2, 2), (1, 11)])
def test_a_scale_that_is_not_clear_is_asked_for(scores):
    rule = f"^rows, score, must have a scale that is clear; got values from {min(scores)} to {max(scores)}"
    with pytest.raises(InputError, match=rf"{rule}\. .*score_range"):
        understand(scored(*scores))


def test_a_scale_that_is_given_is_used():
    assert understand(scored(1, 2, 5), score_range=(1, 5))[0]["score"][:] == [0.0, 0.25, 1.0]
    assert understand(scored(0, 4), score_range=(0, 4))[0]["score"][:] == [0.0, 1.0]
    with pytest.raises(
        InputError, match="row 2 column 'score' must be a rating from 1 to 5; got 7|row 2, column 'score'"
    ):
        understand(scored(1, 7), score_range=(1, 5))


@pytest.mark.parametrize(("score", "words"), [("0.9", "got the text '0.9'"), (None, "got None"), (float("nan"), "nan")])
def test_a_score_that_is_no_number_is_refused_truthfully(score, words):
    with pytest.raises(InputError, match=f"row 2, column 'score' must be a number.*{words}"):
        understand(scored(0.5, score))


@pytest.mark.parametrize("label", ["true", "False", "0", "1", "yes"])
def test_a_label_as_text_is_refused_as_text(label):
    row = {"prompt": ASKED, "completion": FOUR, "label": label}
    with pytest.raises(
        InputError, match=f"column 'label' must be true or false; got the text '{label}'. .*without quotes"
    ):
        understand([row])


def test_helpsteer_has_the_weights_of_the_paper():
    """(0.65 * 3 + 0.8 * 4 + 0.45 * 2) / (4 * 1.9) = 6.05 / 7.6."""
    best = {**HELPSTEER, "helpfulness": 4, "correctness": 4, "coherence": 4}
    worst = {**HELPSTEER, "helpfulness": 0, "correctness": 0, "coherence": 0}
    table, phrases = understand([HELPSTEER, best, worst])
    assert table["score"][:] == pytest.approx([6.05 / 7.6, 1.0, 0.0])
    assert table["completion"][:] == [FOUR] * 3 and "not used: complexity, verbosity" in phrases


@pytest.mark.parametrize("rating", [5, -1, None, "4", True])
def test_a_rating_of_helpsteer_outside_0_to_4_is_refused(rating):
    with pytest.raises(InputError, match="row 1, column 'correctness' must be a rating from 0 to 4"):
        understand([{**HELPSTEER, "correctness": rating}])


def test_turns_of_a_helpsteer_prompt_become_messages():
    prompt = "hi\n<extra_id_1>Assistant\nhello\n<extra_id_1>User\nwhat is two plus two ?"
    (row,) = only([{**HELPSTEER, "prompt": prompt}])[0]
    assert row["prompt"] == [user("hi"), says("hello"), user(ASKED)]


def test_no_column_like_a_score_is_ignored_in_silence():
    _, said = only([{**PAIR, "chosen-rating": 3, "id": 7}])
    assert "NOT USED, though they may be scores: chosen-rating" in said and "not used: id" in said


# ---------------------------------------------------------------------------------- single answers

ANSWER = {"prompt": ASKED, "completion": FOUR}
SINGLE = {
    "prompt, response": {"prompt": ASKED, "response": FOUR},
    "Alpaca": {"instruction": ASKED, "input": "", "output": FOUR},
    "Dolly": {"instruction": ASKED, "context": "", "response": FOUR, "category": "open_qa"},
}


@pytest.mark.parametrize("row", SINGLE.values(), ids=list(SINGLE))
@pytest.mark.parametrize("more", [{}, {"score": 0.25}, {"label": True}], ids=str)
def test_single_answers_are_demonstrations_or_what_their_feedback_makes_them(row, more):
    table, _ = understand([{**row, **more}])
    assert table.to_list() == [{**ANSWER, **more}]
    assert kind_of(table.column_names) == {"": "demonstration", "score": "scored", "label": "label"}["".join(more)]


def test_context_follows_the_instruction_and_a_system_message_comes_first():
    table, _ = understand([{"instruction": "add", "context": "2 and 2", "response": FOUR}])
    assert table["prompt"][:] == ["add\n\n2 and 2"]
    table, _ = understand([{"instruction": ASKED, "input": "", "output": FOUR, "system": "be brief"}])
    assert table["prompt"][:] == [[SYSTEM, user(ASKED)]]


# ------------------------------------------------------------------------------------ conversations

CHAT = [user("hello"), says("hi"), user(ASKED), says(FOUR)]
SHAREGPT = [{"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in CHAT]


@pytest.mark.parametrize("row", [{"messages": CHAT}, {"conversations": SHAREGPT}, {"conversations": CHAT}], ids=str)
def test_every_answer_becomes_a_row_with_the_turns_before_it_as_its_prompt(row):
    rows, said = only([row])
    assert rows == [
        {"prompt": CHAT[:1], "completion": CHAT[1:2]},
        {"prompt": CHAT[:3], "completion": CHAT[3:]},
    ]
    assert "2 demonstrations from 1 row" in said and "each answer of a conversation is learned" in said
    assert only([row], train_on="last")[0] == rows[1:]


def test_feedback_on_a_conversation_belongs_to_its_last_answer():
    assert only([{"messages": CHAT, "score": 0.5}])[0] == [{"prompt": CHAT[:3], "completion": CHAT[3:], "score": 0.5}]
    with pytest.raises(InputError, match="row 1, must end with the answer that the feedback is for"):
        understand([{"messages": CHAT[:3], "label": True}])


def test_what_cannot_be_learned_from_a_conversation_is_left_out_and_counted():
    rows = [
        {"messages": [SYSTEM, says("welcome"), *CHAT[2:]]},  # begins with the assistant
        {"messages": CHAT[:3]},  # ends with the user
        {"messages": [user("hello")]},  # no answer
        {"messages": [user("hello"), says(" ")]},  # an empty answer
    ]
    made, said = only(rows)
    assert made == [
        {"prompt": [SYSTEM, user(ASKED)], "completion": [says(FOUR)]},
        {"prompt": CHAT[:1], "completion": CHAT[1:2]},
    ]
    assert "1 first turns of the assistant left out, which no prompt asks for" in said
    assert "1 left out, which must contain an answer of the assistant (first: row 3)" in said
    assert "1 left out, which must contain text (first: row 4, column 'completion')" in said
    with pytest.raises(InputError, match="row 3, must contain an answer"):
        understand(rows, on_bad_row="refuse")


@pytest.mark.parametrize("column", ["completion", "chosen"])
def test_a_users_turn_inside_a_completion_is_never_trained_on(column):
    """A completion of several turns is refused, or unfolded if the caller says which answers are learned."""
    row = {**(ANSWER if column == "completion" else PAIR), column: CHAT[1:]}
    with pytest.raises(
        InputError, match=f"row 1, column '{column}' must be one message of the assistant; got 3 messages"
    ):
        from_rows([row])
    with pytest.raises(InputError, match=f"row 1, column '{column}'"):
        understand([row])
    ends = {**row, column: [says("hi"), user(ASKED)]}
    with pytest.raises(
        InputError, match=f"'{column}' must end with the assistant; got a completion that ends with the user"
    ):
        from_rows([ends])


def test_turns_of_a_completion_are_unfolded_when_asked_for():
    row = {"prompt": CHAT[:1], "completion": CHAT[1:]}
    assert only([row], train_on="all")[0] == only([{"messages": CHAT}])[0]
    assert only([row], train_on="last")[0] == [{"prompt": CHAT[:3], "completion": CHAT[3:]}]
    history = {"prompt": CHAT[:3], "completion": CHAT[3:]}  # one answer: earlier answers stay prompt
    assert only([history], train_on="all")[0] == [history]


def test_a_prompt_that_ends_with_the_assistant_is_refused():
    with pytest.raises(InputError, match="row 1, column 'prompt' must end with a message to answer"):
        from_rows([{"prompt": CHAT[:2], "completion": "more"}])


# ------------------------------------------------------------------------------- what else is said and refused


def test_empty_texts_are_left_out_and_counted_or_refused_as_the_caller_says():
    rows = [PAIR, {**PAIR, "rejected": ""}, {**PAIR, "chosen": " "}]
    table, phrases = understand(rows)
    assert len(table) == 1 and phrases[0] == "1 pair from 3 rows"
    assert "2 left out, which must contain text (first: row 2, column 'rejected')" in phrases
    with pytest.raises(InputError, match="row 2, column 'rejected' must contain text"):
        understand(rows, on_bad_row="refuse")
    with pytest.raises(
        InputError, match=r"must contain a row to learn from; got only bad rows\. .*row 1, column 'rejected'"
    ):
        understand(rows[1:2])


def test_other_bad_rows_are_refused_unless_the_caller_drops_them():
    rows = [{"prompt": ASKED, "response": FOUR}, {"prompt": ASKED, "response": 5}]
    with pytest.raises(InputError, match="row 2, column 'completion' must be a string"):
        understand(rows)
    assert len(understand(rows, on_bad_row="drop")[0]) == 1


def test_no_known_layout_names_the_layouts_there_are():
    with pytest.raises(InputError, match=r"rows, row 1, must have.*messages \(messages\).*got \['text'\].* Say which"):
        understand([{"text": "a"}])


def test_a_layout_can_be_named():
    row = {**PAIR, "messages": CHAT}
    assert kind_of(understand([row])[0].column_names) == "preference"
    assert len(understand([row], layout="messages")[0]) == 2
    with pytest.raises(
        InputError, match=r"read as alpaca, must have the columns instruction, output; got a table without"
    ):
        understand([row], layout="alpaca")
    with pytest.raises(InputError, match="The layout must be among helpsteer, .*got 'parrot'"):
        understand([row], layout="parrot")


def test_a_row_that_lacks_a_column_of_its_layout_is_refused_with_its_number():
    with pytest.raises(InputError, match=r"rows, row 2, must have the columns of the first row.*\['output'\]"):
        understand([{"instruction": ASKED, "output": FOUR}, {"instruction": ASKED}])


@pytest.mark.parametrize(
    "messages", ["hello", [], [{"role": "user"}], [5], [{"from": "human", "value": None}]], ids=str
)
def test_messages_that_are_none_are_refused_with_row_and_column(messages):
    with pytest.raises(InputError, match="row 2, column 'messages'"):
        understand([{"messages": CHAT}, {"messages": messages}], on_bad_row="refuse")


def test_our_own_tables_come_through_unchanged_with_their_columns():
    row = {**ANSWER, "score": 0.5, "creature": "zib"}
    table, phrases = understand([row])
    assert table.to_list() == [row] and phrases == ["1 scored row", "not used: creature"]
    assert sentence("a.jsonl", phrases) == "a.jsonl: 1 scored row; not used: creature."


def test_every_layout_of_the_list_is_recognised_by_its_own_columns():
    for name, layout in LAYOUTS.items():
        wanted = next(n for n, other in LAYOUTS.items() if other.needs <= layout.needs)
        assert wanted == name


# --------------------------------------------------------------------------- what a table cannot teach


def test_equal_answers_and_labels_of_one_class_are_named():
    same = {**PAIR, "rejected": FOUR}
    assert without_signal(from_rows([PAIR, same, same])) == [
        "2 of 3 pairs have two equal answers, which teach no preference"
    ]
    good = {**ANSWER, "label": True}
    assert without_signal(from_rows([good, good])) == ["all 2 labels are true: there is only one class to learn"]
    assert without_signal(from_rows([good, {**good, "label": False}])) == without_signal(from_rows([PAIR])) == []
    assert "warning: 1 of 1 pairs have two equal answers" in only([same])[1]


def test_overlap_with_a_benchmark_is_found_whatever_case_and_signs():
    asked = ["What happens if you  eat watermelon seeds?", [user("hi"), says("who is first"), user("WHY, though")]]
    benchmark = ["Who is first?", "what happens if you eat watermelon seeds", "Why though?", "Where?", "?!"]
    assert overlap(asked, benchmark) == benchmark[1:3]
    assert overlap(["…"], ["?!"]) == []

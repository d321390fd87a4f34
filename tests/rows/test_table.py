"""The one table: kinds, files, one clear error per malformed row, and UFT as a conversion of rows."""

import json

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import compared

from uftlab.errors import InputError
from uftlab.rows.table import as_labels, as_scored, convert, from_rows, kind_of, load_rows, validated
from uftlab.rows.tokens import Tokens

DEMONSTRATION = {"prompt": "what is it ?", "completion": "it is blue ."}
PAIR = {"prompt": "what is it ?", "chosen": "it is blue .", "rejected": "it is red ."}
LABEL = {**DEMONSTRATION, "label": True}
SCORED = {**DEMONSTRATION, "score": 0.75}
KINDS = {"demonstration": DEMONSTRATION, "preference": PAIR, "label": LABEL, "scored": SCORED}


def write_jsonl(path, *rows):
    lines = (json.dumps(row, ensure_ascii=HALF in json.dumps(row, ensure_ascii=False)) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


# --------------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize("kind", KINDS)
def test_kind_is_read_off_the_columns(kind):
    assert kind_of(KINDS[kind]) == kind
    assert kind_of([*KINDS[kind], "creature"]) == kind  # further columns do not disturb


def test_pair_with_scores_is_still_a_pair():
    assert kind_of([*PAIR, "chosen_score", "rejected_score"]) == "preference"


def test_table_of_no_kind_names_the_kinds_there_are():
    with pytest.raises(InputError, match=r"preference \(chosen, prompt, rejected\).*got \['prompt', 'response'\]"):
        kind_of(["prompt", "response"])


# --------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", KINDS)
def test_jsonl_comes_back_as_written(tmp_path, kind):
    rows = [KINDS[kind], {**KINDS[kind], "prompt": "ünïcode \u2028 line separator ?"}]
    assert load_rows(write_jsonl(tmp_path / "rows.jsonl", *rows)).to_list() == rows


@pytest.mark.parametrize("kind", KINDS)
def test_parquet_comes_back_as_written(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "rows.parquet"
    Dataset.from_list([KINDS[kind]] * 2).to_parquet(path)
    assert load_rows(path).to_list() == [KINDS[kind]] * 2


def test_parquet_rows_are_validated_too(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "rows.parquet"
    Dataset.from_list([SCORED, {**SCORED, "score": 7.0}]).to_parquet(path)
    with pytest.raises(InputError, match=r"rows\.parquet, row 2, column 'score' must be a number in \[0, 1\]; got 7"):
        load_rows(path)


def test_blank_lines_are_skipped(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{json.dumps(SCORED)}\n\n  \n{json.dumps(SCORED)}\n")
    assert len(load_rows(path)) == 2


def test_chat_messages_are_text(tmp_path):
    row = {
        "prompt": [{"role": "system", "content": ""}, {"role": "user", "content": "what is it ?"}],
        "completion": [{"role": "assistant", "content": "blue"}],
    }
    assert load_rows(write_jsonl(tmp_path / "rows.jsonl", row)).to_list() == [row]


MALFORMED = {
    "missing column": ({"prompt": "a", "score": 1}, r"columns of the first row.*\['completion'\]"),
    "extra column": ({**SCORED, "extra": 1}, r"columns of the first row.*\['extra'\]"),
    "empty completion": ({**SCORED, "completion": ""}, "column 'completion' must contain text"),
    "blank completion": ({**SCORED, "completion": " \n"}, "column 'completion' must contain text"),
    "empty prompt": ({**SCORED, "prompt": ""}, "column 'prompt' must contain text"),
    "prompt is no text": ({**SCORED, "prompt": 5}, "column 'prompt' must be a string or a list of chat"),
    "empty message list": ({**SCORED, "prompt": []}, "column 'prompt' must be a string or a list of chat"),
    "message without role": ({**SCORED, "prompt": [{"content": "a"}]}, "column 'prompt' must be a string or a list"),
    "empty last message": (
        {**SCORED, "completion": [{"role": "assistant", "content": " "}]},
        "column 'completion' must contain text",
    ),
    "score above 1": ({**SCORED, "score": 1.01}, r"column 'score' must be a number in \[0, 1\]; got 1\.01"),
    "score below 0": ({**SCORED, "score": -0.01}, r"column 'score' must be a number in \[0, 1\]; got -0\.01"),
    "score NaN": ({**SCORED, "score": float("nan")}, r"column 'score' must be a number in \[0, 1\]; got nan"),
    "score missing": ({**SCORED, "score": None}, r"column 'score' must be a number in \[0, 1\]; got None"),
    "score as text": (
        {**SCORED, "score": "1"},
        r"column 'score' must be a number in \[0, 1\]; got the text '1'\. .* without quotes",
    ),
    "score as bool": ({**SCORED, "score": True}, r"column 'score' must be a number in \[0, 1\]; got True"),
    "not an object": (["a", "b"], "must be an object with named columns"),
    "a number": (5, "must be an object with named columns"),
}


@pytest.mark.parametrize(("row", "message"), MALFORMED.values(), ids=list(MALFORMED))
def test_malformed_row_gives_one_error_with_file_and_row(tmp_path, row, message):
    path = write_jsonl(tmp_path / "rows.jsonl", SCORED, SCORED, row)
    with pytest.raises(InputError, match=rf"rows\.jsonl, row 3,.*{message}"):
        load_rows(path)


@pytest.mark.parametrize("row", [["a", "b"], 5, "text", {"prompt": "a"}], ids=["list", "number", "string", "column"])
def test_malformed_first_row_gives_one_error_with_file_and_row(tmp_path, row):
    path = write_jsonl(tmp_path / "rows.jsonl", row, SCORED)
    with pytest.raises(InputError, match=r"rows\.jsonl, row 1,"):
        load_rows(path)


@pytest.mark.parametrize("label", ["yes", 2, None, 0.5])
def test_label_that_is_not_bool_gives_one_error(tmp_path, label):
    path = write_jsonl(tmp_path / "rows.jsonl", LABEL, {**LABEL, "label": label})
    with pytest.raises(InputError, match=r"rows\.jsonl, row 2, column 'label' must be true or false"):
        load_rows(path)


@pytest.mark.parametrize("column", ["chosen_score", "rejected_score"])
def test_scores_of_a_pair_are_checked_where_known(column):
    scored_pair = {**PAIR, "chosen_score": 0.9, "rejected_score": None}
    from_rows([scored_pair])
    with pytest.raises(InputError, match=f"row 2, column '{column}' must be a number"):
        from_rows([scored_pair, {**scored_pair, column: 10}])


def test_bad_json_names_the_line_as_an_editor_counts_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{json.dumps(SCORED)}\n\n{{"prompt": "a",\n')
    with pytest.raises(InputError, match=r"rows\.jsonl, line 3, must be valid JSON.*Write one JSON object per line"):
        load_rows(path)


# ------------------------------------------------------------------------------- columns of several types

ASKED, SAID = [{"role": "user", "content": "what is it ?"}], [{"role": "assistant", "content": "it is red ."}]
HALF = "\ud83d"  # of a character: what Python reads from "\\ud83d" in JSON, and UTF-8 cannot write


@pytest.mark.parametrize("first", [True, 1, 1.0, False, 0])
@pytest.mark.parametrize("second", [True, 0, 0.0])
def test_labels_may_be_true_or_1_in_one_table(tmp_path, first, second):
    path = write_jsonl(tmp_path / "rows.jsonl", {**LABEL, "label": first}, {**LABEL, "label": second})
    assert load_rows(path)["label"][:] == [bool(first), bool(second)]
    assert [type(label) for label in as_labels(load_rows(path))["label"]] == [bool, bool]


@pytest.mark.parametrize("swap", [False, True])
def test_text_and_messages_in_one_column_are_all_messages(tmp_path, tokenizer, swap):
    rows = [PAIR, {"prompt": ASKED, "chosen": "it is blue .", "rejected": SAID}]
    table = load_rows(write_jsonl(tmp_path / "rows.jsonl", *(rows[::-1] if swap else rows)))
    assert table["prompt"][:] == [ASKED, ASKED]
    assert table["chosen"][:] == [[{"role": "assistant", "content": "it is blue ."}]] * 2
    assert table["rejected"][:][0 if swap else 1] == SAID
    assert len(as_scored(table)) == 4 and len(as_labels(table)) == 4  # chosen and rejected become one column
    alone = [Tokens(tokenizer).examples(from_rows([row]))[0] for row in rows]
    together = Tokens(tokenizer).examples(from_rows(rows))
    assert compared(together) == compared(alone)  # the same tokens as each row by itself


def test_text_alone_stays_text_beside_messages_of_the_other_speaker():
    assert from_rows([{"prompt": ASKED, "completion": "it is blue ."}])[0]["completion"] == "it is blue ."


def test_scores_may_be_whole_numbers_and_missing_scores_stay_missing():
    table = from_rows([{**SCORED, "score": 1}, {**SCORED, "score": 0.5}])
    assert [(type(score), score) for score in table["score"]] == [(float, 1.0), (float, 0.5)]
    table = from_rows([{**PAIR, "chosen_score": score} for score in (None, 1, 0.25)])
    assert table["chosen_score"][:] == [None, 1.0, 0.25]


MIXED = {
    "number and text": [1, "a"],
    "true and number": [True, 2],
    "list and text": [["a"], "a"],
    "object and list": [{"a": 1}, [1]],
    "within an object": [{"a": {"b": 1}}, {"a": {"b": "c"}}],
    "within a list": [[1, "a"], [2]],
    "too big a number": [10**30, 1],
    "half a character": ["a", HALF],
}


@pytest.mark.parametrize("values", MIXED.values(), ids=list(MIXED))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("swap", [False, True])
def test_a_column_that_no_loss_needs_does_not_matter(tmp_path, kind, values, swap):
    rows = [{**KINDS[kind], "note": value} for value in (values[::-1] if swap else values)]
    table = load_rows(write_jsonl(tmp_path / "rows.jsonl", *rows))
    assert table.remove_columns(set(table.column_names) & {"note"}).to_list() == [KINDS[kind]] * 2


def test_a_column_that_no_loss_needs_is_kept_where_a_table_can_hold_it():
    rows = [{**SCORED, "note": {"source": "a", "votes": [1, 2]}, "empty": None}, {**SCORED, "note": None, "empty": 2.5}]
    assert from_rows(rows).to_list() == rows


@pytest.mark.parametrize("more", [{"score": 7}, {"label": "good"}, {"completion": None}])
def test_a_column_of_another_kind_does_not_matter_to_a_pair(more):
    assert kind_of(from_rows([{**PAIR, **more}]).column_names) == "preference"


@pytest.mark.parametrize("values", [(1, "a"), ("a", None), (None, 1)])
def test_what_else_messages_carry_does_not_matter(values):
    rows = [{"prompt": [{**ASKED[0], "weight": value}], "completion": "it is blue ."} for value in values]
    for row in from_rows(rows):
        assert {k: row["prompt"][0][k] for k in ("role", "content")} == ASKED[0]


UNUSABLE = {
    "text and number": ({**SCORED, "prompt": 5}, "column 'prompt' must be a string or a list"),
    "text and null": ({**SCORED, "completion": None}, "column 'completion' must be a string or a list"),
    "text and object": ({**SCORED, "prompt": ASKED[0]}, "column 'prompt' must be a string or a list"),
    "message of a number": (
        {**SCORED, "prompt": [{"role": "user", "content": 5}]},
        "column 'prompt' must be a string or a list",
    ),
    "message by a number": (
        {**SCORED, "prompt": [{"role": 5, "content": "a"}]},
        "column 'prompt' must be a string or a list",
    ),
    "half a character": ({**SCORED, "prompt": f"a {HALF}"}, "column 'prompt' must be text that UTF-8 can write"),
    "half a character in a message": (
        {**SCORED, "prompt": [{"role": "user", "content": HALF}]},
        "column 'prompt' must be text that UTF-8 can write",
    ),
    "score too big": ({**SCORED, "score": 10**400}, r"column 'score' must be a number in \[0, 1\]; got 1000"),
    "score a list": ({**SCORED, "score": [1]}, r"column 'score' must be a number in \[0, 1\]; got \[1\]"),
}


@pytest.mark.parametrize(("row", "message"), UNUSABLE.values(), ids=list(UNUSABLE))
def test_what_a_needed_column_cannot_hold_is_refused_with_file_and_row(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (SCORED, row)))
    with pytest.raises(InputError, match=rf"rows\.jsonl, row 2,.*{message}"):
        load_rows(path)


@pytest.mark.parametrize("line", [b'"\xff"', b"1" * 5000, b"[" * 100_000], ids=["bytes", "digits", "nest"])
def test_a_line_that_cannot_be_read_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(SCORED).encode() + b"\n" + line + b"\n")
    with pytest.raises(InputError, match=r"rows\.jsonl, line 2, must be valid JSON"):
        load_rows(path)


def test_missing_file_wrong_suffix_and_empty_file_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"must exist; got .*nowhere\.jsonl"):
        load_rows(tmp_path / "nowhere.jsonl")
    (tmp_path / "rows.csv").write_text("prompt,completion\n")
    with pytest.raises(InputError, match=r"must end in \.jsonl or \.parquet; got rows\.csv"):
        load_rows(tmp_path / "rows.csv")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"empty\.jsonl must contain at least one row"):
        load_rows(tmp_path / "empty.jsonl")


def test_validated_checks_a_table_that_is_already_loaded():
    with pytest.raises(InputError, match="mine, row 1, column 'completion'"):
        validated(Dataset.from_list([{"prompt": "a", "completion": ""}]), "mine")


# --------------------------------------------------------------------------- from one kind to another

words = st.text("abcxyz", min_size=1, max_size=8)
scores = st.floats(0, 1)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(words, words, words), min_size=1, max_size=4))
def test_pairs_become_two_rows_with_scores_1_and_0(pairs):
    table = from_rows([{"prompt": p, "chosen": w, "rejected": x} for p, w, x in pairs])
    expected = []
    for p, w, x in pairs:
        expected += [{"prompt": p, "completion": w, "score": 1.0}, {"prompt": p, "completion": x, "score": 0.0}]
    assert as_scored(table).to_list() == expected


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(words, scores, scores), min_size=1, max_size=4))
def test_pairs_keep_the_scores_they_carry(rows):
    table = from_rows([{**PAIR, "prompt": p, "chosen_score": a, "rejected_score": b} for p, a, b in rows])
    assert as_scored(table)["score"][:] == [score for _, a, b in rows for score in (a, b)]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(words, words, scores), min_size=1, max_size=4))
def test_scored_rows_keep_their_scores_and_lose_other_columns(rows):
    made = [{"prompt": p, "completion": y, "score": s} for p, y, s in rows]
    assert as_scored(from_rows([{**row, "creature": "zib"} for row in made])).to_list() == made


def test_demonstrations_are_feedback_with_score_1():
    """The whole of UFT."""
    assert as_scored(from_rows([{**DEMONSTRATION, "truth": "blue"}])).to_list() == [{**DEMONSTRATION, "score": 1.0}]


def test_labels_become_scores_1_and_0():
    table = from_rows([LABEL, {**LABEL, "label": False}])
    assert as_scored(table)["score"][:] == [1.0, 0.0]


@pytest.mark.parametrize("kind", KINDS)
def test_as_scored_is_idempotent(kind):
    once = as_scored(from_rows([KINDS[kind]]))
    assert as_scored(once).to_list() == once.to_list()


def test_as_labels_of_each_kind():
    assert as_labels(from_rows([DEMONSTRATION]))["label"][:] == [True]
    assert as_labels(from_rows([LABEL, {**LABEL, "label": False}]))["label"][:] == [True, False]
    scored = from_rows([{**SCORED, "score": s} for s in (0.49, 0.5, 0.8)])
    assert as_labels(scored)["label"][:] == [False, True, True]
    assert as_labels(scored, threshold=0.6)["label"][:] == [False, False, True]


def test_labels_of_a_pair_follow_the_preference_and_not_a_threshold():
    """Both answers scored above one half: the rejected one is still the bad one."""
    table = from_rows([{**PAIR, "chosen_score": 0.9, "rejected_score": 0.7}])
    assert as_labels(table)["label"][:] == [True, False]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["scored", "label"])
def test_every_kind_converts_to_scores_and_labels(kind, target):
    assert kind_of(convert(from_rows([KINDS[kind]]), target).column_names) == target


@pytest.mark.parametrize("kind", KINDS)
def test_converting_to_the_own_kind_keeps_the_rows(kind):
    assert convert(from_rows([KINDS[kind]]), kind).to_list() == [KINDS[kind]]


@pytest.mark.parametrize(
    ("have", "want", "columns"),
    [
        ("demonstration", "preference", r"\['chosen', 'prompt', 'rejected'\]"),
        ("scored", "preference", r"\['chosen', 'prompt', 'rejected'\]"),
        ("label", "demonstration", r"\['completion', 'prompt'\]"),
        ("preference", "demonstration", r"\['completion', 'prompt'\]"),
    ],
)
def test_impossible_conversion_names_columns_and_remedy(have, want, columns):
    message = f"A table for {want} learning must have {columns}; got a {have} table.*learns from {have} rows"
    with pytest.raises(InputError, match=message):
        convert(from_rows([KINDS[have]]), want)


def test_no_rows_are_no_table():
    with pytest.raises(InputError, match="rows must contain at least one row"):
        from_rows([])

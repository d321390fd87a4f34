"""Tables of any length: rows are read anew in each pass, and few of them are Python objects at a time."""

import gzip
import json
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uftlab.errors import InputError
from uftlab.rows import kinds
from uftlab.rows.kinds import Rows, rows_from, table_of
from uftlab.rows.layouts import LAYOUTS
from uftlab.rows.sources import load_table, rows_in
from uftlab.rows.table import as_labels, as_scored, from_rows, validated
from uftlab.rows.understanding import understand

RATINGS = {"helpfulness": 4, "correctness": 3, "coherence": 4}


@pytest.fixture
def few(monkeypatch):
    """Two rows at a time."""
    monkeypatch.setattr(kinds, "CHUNK", 2)


def both(monkeypatch, make):
    """What comes of rows two at a time, and of all at once."""
    made = []
    for chunk in (2, 1000):
        monkeypatch.setattr(kinds, "CHUNK", chunk)
        made.append(make())
    return made


def chat(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def rows_of(layout, count=7):
    """Sound rows of a layout, which differ; the last has no text to learn from."""
    made = []
    for i in range(count):
        asked, good, bad = f"what is {i} ?", f"it is {i} .", "" if i == count - 1 else f"no {i} ."
        texts = {
            "helpsteer": {"prompt": asked, "response": bad or "", **RATINGS},
            "preference": {
                "prompt": asked,
                "chosen": good,
                "rejected": bad,
                "score_chosen": i + 1,
                "score_rejected": 9,
            },
            "alpaca-pairs": {"instruction": asked, "chosen": good, "rejected": bad},
            "sharegpt-pairs": {
                "conversations": chat(asked),
                "chosen": chat("", good)[1:],
                "rejected": chat("", bad)[1:],
            },
            "implicit": {"chosen": chat(asked, good), "rejected": chat(asked, bad)},
            "completion": {"prompt": asked, "completion": bad, "score": i / 10, "id": i},
            "response": {"prompt": asked, "response": bad, "label": i % 2 == 0},
            "messages": {"messages": chat(asked, good, "and ?", bad), "id": i},
            "conversations": {"conversations": chat(asked, bad)},
            "alpaca": {"instruction": asked, "output": bad},
            "dolly": {"instruction": asked, "context": "of it", "response": bad},
        }
        made.append(texts[layout])
    return made


def test_every_layout_is_tried():
    assert all(rows_of(layout) for layout in LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_a_file_that_is_streamed_becomes_the_table_of_the_list(tmp_path, few, monkeypatch, layout, ending):
    rows, path = rows_of(layout), tmp_path / f"rows{ending}"
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    else:
        path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    streamed, said = load_table(path, layout=layout)
    monkeypatch.setattr(kinds, "CHUNK", 1000)
    whole, phrases = understand(rows, str(path), layout=layout)
    assert len(streamed) >= 5 and streamed.features == whole.features
    assert streamed.to_list() == whole.to_list()
    assert said == f"{path}: {'; '.join(phrases)}."
    assert "1 left out" in said


def test_files_of_a_folder_and_a_table_in_memory_are_streamed_alike(tmp_path, few):
    rows = rows_of("completion")[:6]
    for name, own in (("train-0.jsonl", rows[:1]), ("train-1.jsonl", rows[1:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in own))
    table, _ = load_table(tmp_path)
    assert table.to_list() == rows
    assert validated(table).to_list() == rows
    assert understand(Rows(partial(rows_from, table)))[0].to_list() == rows
    assert list(rows_from(table.select([5, 0, 3]))) == [rows[5], rows[0], rows[3]]


# --------------------------------------------------------------------------- one type for each column

TEXT = st.text("ab", min_size=1, max_size=2)
MESSAGE = st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXT},
                                optional={"name": TEXT | st.integers(0, 2) | st.none()})  # fmt: skip
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([2**53 + 1, 2**64]) | st.floats(width=16) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
ROW = st.fixed_dictionaries(
    {
        "prompt": TEXT | TEXT.map(lambda text: [{"role": "user", "content": text}]),
        "chosen": TEXT | MESSAGE.map(lambda message: [message]),
        "rejected": TEXT | MESSAGE.map(lambda message: [message]),
        "chosen_score": st.none() | st.floats(0, 1) | st.integers(0, 1),
        "other": ANY,
    }
)


@settings(deadline=None, max_examples=60)
@given(st.lists(ROW, min_size=3, max_size=7))
def test_parts_get_the_type_that_all_rows_together_have(rows):
    with pytest.MonkeyPatch.context() as patch:
        parts, whole = both(patch, lambda: table_of(rows, "preference"))
    assert parts.features == whole.features
    same = partial(json.dumps, sort_keys=True)  # NaN equals nothing, not even itself
    assert same(parts.to_list()) == same(whole.to_list())


OTHERS = {
    "whole numbers, then a fraction": ([1, 2, 3, 0.5], [1.0, 2.0, 3.0, 0.5]),
    "nothing for long": ([None, None, None, "a"], [None, None, None, "a"]),
    "numbers, then text": ([1, 2, 3, "a"], None),
    "a fraction, then a truth": ([None, 0.5, 0.0, True], None),
    "a truth, then a fraction": ([None, True, False, 0.5], None),
    "a truth inside, beside fractions": ([[0.5, True], [0.5], [0.5], [0.5]], None),
    "a number that no fraction holds": ([2**53 + 1, 2, 3, 0.5], None),
    "other keys": ([{"a": 1}, {}, {"b": "x"}, None], [{"a": 1, "b": None}, {"a": None, "b": None},
                                                       {"a": None, "b": "x"}, None]),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_column_that_changes_late_is_one_column_or_left_out(few, name):
    values, expected = OTHERS[name]
    table = from_rows([{"prompt": "a", "completion": "b", "other": value} for value in values])
    assert ("other" in table.column_names) == (expected is not None)
    assert expected is None or table["other"][:] == expected


def test_a_column_whose_name_no_table_can_have_is_left_out():
    row = {"prompt": "a", "completion": "b"}
    assert from_rows([{**row, "\0": "c", "id": 1}]).to_list() == [{**row, "id": 1}]


def test_messages_and_other_keys_that_come_late_count_for_the_rows_before(few):
    """The likely mistake: the parts before keep text, or the key that no table can hold."""
    named = [{"role": "assistant", "content": "d", "name": "n"}]
    numbered = [{"role": "assistant", "content": "e", "name": 1}]
    rows = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": "c"},
        {"prompt": "a", "completion": named},
    ]
    assert from_rows(rows)["completion"][0] == [{"role": "assistant", "content": "b", "name": None}]
    table = from_rows([*rows, {"prompt": "a", "completion": "f"}, {"prompt": "a", "completion": numbered}])
    assert [c for (c,) in table["completion"]] == [{"role": "assistant", "content": text} for text in "bcdfe"]
    assert table["prompt"][:] == ["a"] * 5


@pytest.mark.parametrize("change", [as_scored, as_labels, validated])
def test_conversions_in_parts_are_those_of_the_whole(monkeypatch, change):
    rows = [{"prompt": f"p{i}", "chosen": f"w{i}", "rejected": f"x{i}", "chosen_score": i / 8} for i in range(7)]
    table = from_rows(rows).select([6, 0, 2, 1, 5])
    parts, whole = both(monkeypatch, lambda: change(table))
    assert parts.to_list() == whole.to_list() and parts.features == whole.features
    assert parts[0]["prompt"] == "p6"


def test_equal_tables_have_one_fingerprint_and_others_another(few):
    """Tokens of a table are remembered by it."""
    rows = rows_of("completion")[:5]
    renamed = [{**row, "chosen": row["completion"], "rejected": "no"} for row in rows]
    tables = [from_rows(rows), from_rows(rows), from_rows(rows[:4]), from_rows(rows[::-1]), from_rows(renamed)]
    found = [table._fingerprint for table in tables]
    assert found[0] == found[1] and len(set(found)) == 4


# ------------------------------------------------------------------------------ a bad row in the middle

BAD = {
    "a rule": ({"prompt": "a", "completion": 7}, r"row 4, column 'completion' must be a string or a list"),
    "no object": (["a"], r"row 4, must be an object with named columns"),
    "other columns": ({"prompt": "a", "completion": "b", "id": 1}, r"row 4, must have the columns of the first"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_in_the_middle_has_the_message_that_a_list_has(tmp_path, few, monkeypatch, name):
    bad, message = BAD[name]
    rows = [{"prompt": f"p{i}", "completion": "b"} for i in range(6)]
    rows[3] = bad
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=message) as streamed:
        load_table(path, on_bad_row="refuse")
    monkeypatch.setattr(kinds, "CHUNK", 1000)
    with pytest.raises(InputError) as whole:
        understand(rows, str(path), on_bad_row="refuse")
    assert str(streamed.value) == str(whole.value)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_a_broken_line_in_the_middle_is_named_and_a_limit_reads_no_further(tmp_path, few, ending):
    lines = [json.dumps({"prompt": f"p{i}", "completion": "b"}) for i in range(6)]
    lines[4] = '{"prompt": '
    path, text = tmp_path / f"rows{ending}", "\n".join(["", *lines]).encode()
    path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    with pytest.raises(InputError, match=r"line 6, must be valid JSON; got '\{\"prompt\": ' "):
        load_table(path)
    assert load_table(path, limit=3)[0]["prompt"][:] == ["p0", "p1", "p2"]
    assert next(rows_in(path)) == {"prompt": "p0", "completion": "b"}


def test_of_two_errors_the_one_that_explains_the_other_is_said(tmp_path):
    """A damaged gzip is noticed at its end, after a line that is no JSON; so is a line that is no object beside one."""
    path = tmp_path / "rows.jsonl.gz"
    packed = bytearray(gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 2, compresslevel=0))
    packed[packed.index(b":")] ^= 1
    path.write_bytes(packed)
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz must be readable; got CRC check failed"):
        load_table(path)
    lines = tmp_path / "rows.jsonl"
    lines.write_text('7\n{"prompt": \n')
    with pytest.raises(InputError, match="line 2, must be valid JSON"):
        load_table(lines)


def test_a_zipped_file_that_is_cut_is_refused_though_its_first_rows_are_sound(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    row = json.dumps({"prompt": "a", "completion": "b"}) + "\n"
    path.write_bytes(gzip.compress(row.encode() * 1000)[:-9])
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz must be readable"):
        load_table(path)


# ---------------------------------------------------------------------------------- how many at a time


class Text(str):
    """A text that is counted as long as it lives."""

    alive = most = 0

    def __new__(cls, value):
        cls.alive += 1
        cls.most = max(cls.most, cls.alive)
        return super().__new__(cls, value)

    def __del__(self):
        type(self).alive -= 1


MADE = {
    "completion": lambda i: {"prompt": "a", "completion": Text(i)},
    "preference": lambda i: {"prompt": "a", "chosen": Text(i), "rejected": "b"},
    "alpaca": lambda i: {"instruction": "a", "output": Text(i)},
    "messages": lambda i: {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": Text(i)}]},
}


@pytest.mark.parametrize("layout", MADE)
def test_no_more_rows_are_alive_than_become_arrow_at_a_time(monkeypatch, layout):
    """The likely mistake: somewhere on the way all rows become a list."""
    monkeypatch.setattr(kinds, "CHUNK", 8)
    monkeypatch.setattr(Text, "most", 0)
    passes = []

    def read():
        passes.append(layout)
        return (MADE[layout](i) for i in range(200))

    table, _ = understand(Rows(read))
    assert len(table) == 200 and len(passes) == 2
    assert 8 <= Text.most <= 2 * 8 + 2  # those that are read while those before go


def test_a_table_is_read_in_parts(monkeypatch):
    monkeypatch.setattr(kinds, "CHUNK", 8)
    table = from_rows([{"prompt": "a", "completion": str(i)} for i in range(50)])
    whole, sizes = type(table).to_list, []
    monkeypatch.setattr(type(table), "to_list", lambda own: sizes.append(len(own)) or whole(own))
    assert len(as_scored(table)) == 50 and max(sizes) == 8 and sum(sizes) == 50

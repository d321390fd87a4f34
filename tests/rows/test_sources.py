"""Where tables come from: files of every shape, folders in the hub's layout, and a hub on this machine."""

import gzip
import json
import os
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uftlab.errors import InputError
from uftlab.rows.sources import load_table
from uftlab.rows.table import load_rows

HUB = Path(__file__).parents[1] / "helpers" / "hub.py"


def row(name="a"):
    return {"prompt": f"what is {name} ?", "completion": f"it is {name} ."}


def lines(*rows):
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


# --------------------------------------------------------------------------------------------- files

WRITTEN = {
    "rows.jsonl": lines(row(), row("b")),
    "rows.json": lines(row(), row("b")),
    "array.json": json.dumps([row(), row("b")], indent=1),
    "bom.jsonl": b"\xef\xbb\xbf" + lines(row(), row("b")).encode(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps([row(), row("b")]).encode(),
    "windows.jsonl": lines(row(), row("b")).replace("\n", "\r\n"),
    "rows.jsonl.gz": gzip.compress(lines(row(), row("b")).encode()),
    "rows [1] of ?.jsonl": lines(row(), row("b")),
    "who@here:now.jsonl": lines(row(), row("b")),  # a path that exists is no name with a split
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_is_read_whatever_its_shape_and_name(tmp_path, name):
    path = write(tmp_path / name, WRITTEN[name])
    table, said = load_table(path)
    assert table.to_list() == load_rows(path).to_list() == [row(), row("b")]
    assert said == f"{path}: 2 demonstrations."


def test_parquet_is_read_without_a_cache(tmp_path, monkeypatch):
    """Brackets in a path are no pattern, `x=1` in a path is no column, and a replaced file is read anew."""
    cache = write(tmp_path / "no folder", "")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    path = parquet(tmp_path / "br[1]" / "x=1" / "rows.parquet", row())
    before = path.stat()
    assert load_rows(path).to_list() == [row()]
    parquet(path, row("b"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same path and time, other rows
    assert load_rows(path).to_list() == [row("b")]


def test_parquet_types_that_no_loss_needs_do_not_matter_and_decimals_are_numbers(tmp_path):
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "completion": ["c", "d"],
            "score": pa.array([Decimal("0.50"), Decimal("1.00")], pa.decimal128(3, 2)),
            "of": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
            "when": pa.array([0, None], pa.timestamp("ns")),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    assert load_rows(tmp_path / "rows.parquet")["score"][:] == [0.5, 1.0]


BROKEN = {
    "utf16.jsonl": (lines(row()).encode("utf-16"), "utf16.jsonl must be written in UTF-8; got UTF-16"),
    "latin1.jsonl": (lines(row(), row("é")).encode("latin-1"), "line 2, must be valid JSON in UTF-8.*0xe9.*Latin-1"),
    "twice.jsonl": ('{"prompt": "a", "prompt": "b"}\n', "line 1, must be valid JSON.*the key 'prompt' is there twice"),
    "array.json": ('[{"prompt": "a"},\n{"prompt": ]', "line 1, must be valid JSON"),
    "cut.jsonl.gz": (gzip.compress(lines(row()).encode())[:-9], "cut.jsonl.gz must be readable"),
    "broken.parquet": (b"PAR1 and no more", "broken.parquet must be a whole Parquet file"),
    "empty.parquet": (b"", "empty.parquet must be a whole Parquet file"),
    "pointer.parquet": ("version https://git-lfs.github.com/spec/v1\n", "pointer.parquet must be a whole Parquet file"),
    "rows.csv": ("prompt,completion\na,b\n", r"must end in \.jsonl or \.parquet; got rows\.csv"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_gives_one_error_with_its_name(tmp_path, name):
    content, message = BROKEN[name]
    path = write(tmp_path / name, content)
    for load in (load_rows, load_table):
        with pytest.raises(InputError, match=message):
            load(path)


def test_one_parquet_column_twice_is_refused(tmp_path):
    table = pa.table([["a"], ["b"], ["c"]], names=["prompt", "prompt", "completion"])
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"rows\.parquet must have each column once; got prompt twice"):
        load_rows(tmp_path / "rows.parquet")


def test_bad_rows_are_errors_for_load_rows_and_counted_by_load_table(tmp_path):
    path = write(tmp_path / "rows.jsonl", lines(row(), {**row(), "completion": ""}))
    with pytest.raises(InputError, match=r"rows\.jsonl, row 2, column 'completion' must contain text"):
        load_rows(path)
    table, said = load_table(path)
    assert len(table) == 1
    left_out = "1 left out, which must contain text (first: row 2, column 'completion')"
    assert said == f"{path}: 1 demonstration from 2 rows; {left_out}."


def test_load_rows_says_what_is_not_plain(tmp_path, capsys):
    load_rows(write(tmp_path / "plain.jsonl", lines(row())))
    assert capsys.readouterr().out == ""
    pair = {"prompt": "a", "chosen": "b", "rejected": "b", "id": 1}
    load_rows(write(tmp_path / "same.jsonl", lines(pair)))
    assert "same.jsonl: 1 pair; not used: id; warning: 1 of 1 pairs have two equal answers" in capsys.readouterr().out


def test_columns_and_limit(tmp_path):
    path = write(tmp_path / "rows.jsonl", lines(*({"q": f"q{i}", "a": f"a{i}", "score": 77} for i in range(5))))
    table, _ = load_table(path, columns={"prompt": "q", "completion": "a"}, limit=2)
    assert table.to_list() == [{"prompt": "q0", "completion": "a0"}, {"prompt": "q1", "completion": "a1"}]
    with pytest.raises(InputError, match=r"row 1, must have the columns why; got \['a', 'q', 'score'\]"):
        load_table(path, columns={"prompt": "q", "completion": "why"})


# -------------------------------------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path):
    for name in (
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002-0a1b.parquet",
        "data/test-00000-of-00001.parquet",
    ):
        parquet(tmp_path / "hub" / name, row(name.split("/")[1]))
    write(tmp_path / "hub" / "README.md", "# data")
    write(tmp_path / "hub" / "dataset_infos.json", "{}")
    write(tmp_path / "hub" / ".cache" / "old.parquet", "no parquet")
    return tmp_path / "hub"


def test_a_folder_of_the_hub_has_its_splits_by_name(folder):
    table, said = load_table(folder)
    assert [r["prompt"] for r in table] == [
        "what is train-00000-of-00002.parquet ?",
        "what is train-00001-of-00002-0a1b.parquet ?",
    ]
    assert said == f"{folder}@train: 2 demonstrations."
    assert load_table(f"{folder}@test")[1] == f"{folder}@test: 1 demonstration."
    assert load_table(f"{folder}@test")[0].to_list() == load_table(folder, split="test")[0].to_list()
    with pytest.raises(InputError, match="must have the split validation; got the splits test, train"):
        load_table(f"{folder}@validation")
    with pytest.raises(InputError, match="The split of .* must be given once; got test and train"):
        load_table(f"{folder}@test", split="train")


def test_a_folder_without_train_has_its_only_split_or_is_asked_for_one(tmp_path):
    write(tmp_path / "one" / "validation.jsonl.gz", gzip.compress(lines(row()).encode()))
    assert len(load_table(tmp_path / "one")[0]) == 1
    write(tmp_path / "two" / "dev.jsonl", lines(row()))
    write(tmp_path / "two" / "test.jsonl", lines(row("b")))
    with pytest.raises(InputError, match="must have the split train, or one that is meant; got the splits dev, test"):
        load_table(tmp_path / "two")
    assert load_table(f"{tmp_path / 'two'}@test")[0].to_list() == [row("b")]


SPLITS = {
    "ultrachat_200k": ("train_sft", "test_sft", "train_gen", "test_gen"),
    "ultrafeedback_binarized": ("train_prefs", "train_sft", "test_prefs", "test_sft", "train_gen", "test_gen"),
    "HelpSteer2": ("train", "validation"),
    "train_1": ("train_1", "test_1"),
}


@pytest.mark.parametrize(
    ("name", "purpose", "taken"),
    [
        ("ultrachat_200k", "demonstrations", "train_sft"),
        ("ultrachat_200k", None, "train_sft"),
        ("ultrafeedback_binarized", "feedback", "train_prefs"),
        ("ultrafeedback_binarized", "demonstrations", "train_sft"),
        ("HelpSteer2", "feedback", "train"),
        ("train_1", "feedback", "train_1"),
    ],
)
def test_the_split_that_is_meant_is_taken_and_named(tmp_path, name, purpose, taken):
    """The splits of these data sets, as they lie in a copy of the hub's folder."""
    for split in SPLITS[name]:
        parquet(tmp_path / name / "data" / f"{split}-00000-of-00001-0a1b2c.parquet", row(split))
    table, said = load_table(tmp_path / name, purpose=purpose)
    assert table.to_list() == [row(taken)] and said.startswith(f"{tmp_path / name}@{taken}: ")


def test_where_two_splits_could_be_meant_they_are_listed(tmp_path):
    for split in SPLITS["ultrafeedback_binarized"]:
        parquet(tmp_path / "both" / f"{split}.parquet", row(split))
    with pytest.raises(InputError) as refused:
        load_table(tmp_path / "both")
    assert "got the splits test_gen, test_prefs, test_sft, train_gen, train_prefs, train_sft." in str(refused.value)
    assert f"Choose one, as in {tmp_path / 'both'}@train_prefs" in str(refused.value)


def test_pieces_without_a_split_and_folders_of_splits(tmp_path):
    parquet(tmp_path / "parts.parquet" / "part-0.parquet", row())
    parquet(tmp_path / "parts.parquet" / "part-1.parquet", row("b"))
    assert load_rows(tmp_path / "parts.parquet").to_list() == [row(), row("b")]
    parquet(tmp_path / "sets" / "main" / "train" / "0000.parquet", row())
    parquet(tmp_path / "sets" / "main" / "test" / "0000.parquet", row("b"))
    assert load_table(tmp_path / "sets", subset="main", split="test")[0].to_list() == [row("b")]
    assert load_table(f"{tmp_path / 'sets'}:main")[0].to_list() == [row()]


def test_folders_that_hold_nothing_or_two_formats_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="must hold files in .parquet"):
        load_table(tmp_path / "empty")
    write(tmp_path / "both" / "train.jsonl", lines(row()))
    parquet(tmp_path / "both" / "train.parquet", row())
    with pytest.raises(InputError, match="The split train of .* must be in files of one format"):
        load_table(tmp_path / "both")
    with pytest.raises(InputError, match="must be given without split or subset; got test"):
        load_table(f"{tmp_path / 'both' / 'train.jsonl'}@test")


# ----------------------------------------------------------------------------------------------- hub


@pytest.mark.parametrize("name", ["nowhere.jsonl", "a/nowhere.parquet", "/no/such/folder", "nowhere", "./no/where"])
def test_a_path_that_does_not_exist_is_no_name_of_the_hub(name):
    with pytest.raises(InputError, match=f"A data file must exist; got {name}"):
        load_table(name)


def test_an_unknown_name_offline_is_refused_at_once():
    begin = time.monotonic()
    with pytest.raises(
        InputError, match="The data set nobody/nothing must be in the cache or on a hub in reach; got no copy"
    ):
        load_table("nobody/nothing")
    assert time.monotonic() - begin < 10


def test_a_hub_is_read_with_its_splits_and_its_refusals_are_one_line_each(tmp_path):
    """In a process of its own, because the libraries read the address of the hub when they are imported."""
    ratings = {"helpfulness": 4, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}
    rated = {"prompt": "what is it ?", "response": "blue", **ratings}
    hub = tmp_path / "hub" / "owner"
    write(hub / "HelpSteer2" / "train.jsonl", lines(rated, rated))
    write(hub / "HelpSteer2" / "validation.jsonl", lines(rated))
    write(hub / "gated" / "train.jsonl", lines(rated))
    named = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in SPLITS["ultrachat_200k"])
    write(hub / "ultrachat" / "README.md", f"---\nconfigs:\n- config_name: default\n  data_files:\n{named}---\n")
    for split in SPLITS["ultrachat_200k"]:
        write(hub / "ultrachat" / f"{split}.jsonl", lines(row(split)))
    sources = ["owner/HelpSteer2", "owner/HelpSteer2@validation", "owner/HelpSteer2@test", "owner/gated", "owner/none"]
    sources += ["owner/ultrachat"]
    sources += ["down:owner/HelpSteer2", "owner/none"]
    command = [sys.executable, str(HUB), str(tmp_path / "hub"), str(tmp_path / "cache"), *sources]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-3000:]
    train, validation, no_split, gated, unknown, chat, cached, unreachable = json.loads(ended.stdout.splitlines()[-1])
    assert train["rows"] == [{"prompt": "what is it ?", "completion": "blue", "score": 1.0}] * 2
    assert train["said"].startswith("owner/HelpSteer2@train: 2 scored rows; score = (0.65 helpfulness")
    assert len(validation["rows"]) == 1
    rule = "The data set owner/HelpSteer2 must have the split test; got the splits train, validation."
    assert f"{rule} Choose one, as in owner/HelpSteer2@train." == no_split["error"]
    assert chat["said"].startswith("owner/ultrachat@train_sft: 1 demonstration")
    assert "The data set owner/gated must be open to you; got a gated data set" in gated["error"]
    assert "The data set owner/none must exist on the hub; got no such data set" in unknown["error"]
    assert cached["rows"] == train["rows"]  # from the cache, with the hub down
    assert (
        "owner/none must be in the cache or on a hub in reach; got no copy in the cache, and the hub cannot"
        in unreachable["error"]
    )
    assert max(found["seconds"] for found in (no_split, gated, unknown, unreachable)) < 20

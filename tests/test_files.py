"""Files that are written completely or not at all, by several processes, into folders that cannot be trusted."""

import errno
import json
import os
import stat
import subprocess
import sys

import pytest
from filelock import Timeout
from made_up import made_up

from uftlab import files
from uftlab.errors import InputError
from uftlab.files import atomically, locked, read_json, remove_left, write_atomically
from uftlab.study import tuning


def part_of(path, number):
    """The name under which a process would write a file."""
    machine = files._own_mark().partition("-")[0]
    return path.with_name(f".{path.name}.{machine}-{number}.0123abcd.part")


@pytest.fixture
def gone():
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_goes_with_the_next_writing_of_the_same_file(tmp_path, gone):
    left, other = part_of(tmp_path / "a.csv", gone), part_of(tmp_path / "b.csv", gone)
    for path in (left, other):
        path.write_text("half")
    write_atomically(tmp_path / "a.csv", "whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a.csv", other.name}
    remove_left(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_what_a_living_process_writes_and_what_another_machine_left_stays(tmp_path):
    own, parents = part_of(tmp_path / "a.csv", os.getpid()), part_of(tmp_path / "a.csv", os.getppid())
    elsewhere = tmp_path / ".a.csv.00000000-1.0123abcd.part"
    lookalike = tmp_path / ".a.csv.part"
    for path in (own, parents, elsewhere, lookalike):
        path.write_text("half")
    remove_left(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {own.name, parents.name, elsewhere.name, lookalike.name}


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    """Its name would have to be guessed; even then the file behind it stays as it is."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "0" * 2 * count)
    part = tmp_path / f".a.csv.{files._own_mark()}.00000000.part"
    part.symlink_to(victim)
    with pytest.raises(InputError, match="The folder .* must take the file that is written"):
        write_atomically(tmp_path / "a.csv", "whole")
    assert victim.read_text() == "mine" and not (tmp_path / "a.csv").exists()


def test_a_link_in_the_place_of_the_file_is_replaced_and_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "a.csv").symlink_to(victim)
    write_atomically(tmp_path / "a.csv", "whole")
    assert victim.read_text() == "mine" and not (tmp_path / "a.csv").is_symlink()


def test_a_new_file_has_the_rights_of_any_new_file(tmp_path):
    write_atomically(tmp_path / "a", "")
    (tmp_path / "b").touch()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


def test_a_full_disk_is_one_clear_error_and_the_old_file_stays(tmp_path):
    write_atomically(tmp_path / "a.csv", "old")
    said = rf"The folder {tmp_path} must .*No space left.* a\.csv\. Free space"
    with pytest.raises(InputError, match=said), atomically(tmp_path / "a.csv") as part:
        part.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"] and (tmp_path / "a.csv").read_text() == "old"


def test_a_folder_where_the_file_should_be_and_a_file_where_the_folder_should_be_are_clear_errors(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(InputError, match="be a file; got a folder of this name"):
        write_atomically(tmp_path / "a.csv", "")
    (tmp_path / "b").touch()
    with pytest.raises(InputError, match=rf"The folder {tmp_path / 'b'} must"):
        write_atomically(tmp_path / "b" / "c.csv", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (b'{"a": {"b": 1, "b": 1}}', "the key 'b' is there twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[" * 100_000, "nested too deep|Expecting value"),
        (b"1" * 5000, "digits"),
        (b'"\xff"', "byte 0xff at 1 is no UTF-8"),
        (b"", "Expecting value"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_is_read_strictly(text, said):
    with pytest.raises(ValueError, match=said) as caught:
        read_json(text)
    assert "\n" not in str(caught.value)


def test_json_as_it_should_be_is_read_as_ever():
    text = json.dumps({"a": [1, 2.5, None, True, "x\ud83d\ude00"], "b": {}})
    assert read_json(text.encode()) == json.loads(text)
    assert read_json(b"[Infinity]", nan=True) == [float("inf")]


# ------------------------------------------------------------------------------------------ two at once


def test_no_other_process_reads_or_writes_the_settings_while_a_sweep_adds_its_own(tmp_path, monkeypatch):
    """Two sweeps that end at once would lose an entry: each would write what it had read before the other wrote."""
    path, seen = tmp_path / "tuned.json", []
    path.write_text('{"settings": {"uft": [[{"learning_rate": 1.0}]]}}')
    monkeypatch.setattr(tuning, "TUNED", path)
    monkeypatch.setattr(tuning, "first_round", lambda names: [])
    monkeypatch.setattr(tuning, "second_round", lambda names, folder: [])
    monkeypatch.setattr(tuning, "_best", lambda trials, folder: (tuning.base_trials()[0], 1.0))
    monkeypatch.setattr(tuning, "read_trial", lambda path: made_up("sft", 0))

    def watched(function):
        def called(*args):
            with pytest.raises(Timeout):
                locked(path).acquire(blocking=False)
            seen.append(function.__name__)
            return function(*args)

        return called

    for function in (tuning.tuned_table, tuning.write_atomically):
        monkeypatch.setattr(tuning, function.__name__, watched(function))
    tuning.choose(["sft-full"], tmp_path)
    assert seen == ["tuned_table", "write_atomically"]
    assert set(json.loads(path.read_text())["settings"]) == {"uft", "sft-full"}
    locked(path).acquire(blocking=False).lock.release()


@pytest.mark.parametrize(
    "text",
    ['{"settings": {"uft": [[{"beta": "x"}]]}}', '{"settings": []}', "[1]", '{"settings": {}', '{"worth": {}}',
     '{"settings": {}, "settings": {}}', '{"settings": {"uft": [[{"beta": NaN}]]}}', "\x00"],
)  # fmt: skip
def test_a_damaged_table_of_settings_is_refused_with_its_name(tmp_path, text):
    path = tmp_path / "tuned.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"tuned\.json must be as `uftlab sweep` writes it; got .*Take the file"):
        tuning.tuned_table(path)


def test_settings_of_another_number_of_stages_are_refused(tmp_path, monkeypatch):
    from uftlab.training import settings as training

    monkeypatch.setattr(training, "TUNED", tmp_path / "tuned.json")
    training.TUNED.write_text('{"settings": {"uft": [[]], "sft-full": [[{"beta": 1}]]}}')
    for name in ("uft", "sft-full"):
        with pytest.raises(InputError, match=rf"Settings of {name} in .* must be 1 stage\(s\), each with a learning"):
            training.tuned_settings(name)

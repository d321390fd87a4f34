"""What is written survives kills at any moment; `python benchmarks/kill.py` kills real studies and trainings."""

import random
import signal
import subprocess
import sys
from collections import Counter

import kill
import psutil
import pytest

WRITER = """
import sys
from pathlib import Path
from uftlab.files import write_atomically
place = Path(sys.argv[1])
print("ready", flush=True)
for number in range(10**9):
    write_atomically(place / "a.csv", str(number % 10) * 200_000)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_file_is_whole_whenever_its_writer_is_killed_and_nothing_is_left_by_the_next(how, tmp_path):
    rng, left = random.Random(0), 0
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        try:
            process.wait(rng.uniform(0.0, 0.1))
        except subprocess.TimeoutExpired:
            process.send_signal(how)
        process.wait()
        process.stdout.close()
        if (tmp_path / "a.csv").exists():
            text = (tmp_path / "a.csv").read_text()
            assert len(text) == 200_000 and len(set(text)) == 1
        parts = list(tmp_path.glob(".*.part"))
        assert len(parts) <= 1  # that of the last one: each writer has removed what the one before it left
        left += len(parts)
    from uftlab.files import remove_left

    remove_left(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] in (["a.csv"], [])


QUICK = ("run", "--profile", "smoke", "--methods", "base", "--seeds", "0", "--workers", "1", "--out", "OUT")


def test_a_study_that_was_killed_finishes_with_the_same_results(monkeypatch):
    monkeypatch.setitem(kill.WORK, "quick", kill.Work(QUICK, kill.of_study))
    lines = []
    count = kill.campaign("quick", kills=1, seed=3, say=lines.append)
    assert count.wrong == [] and count.kills.total() == 1, lines
    assert "3 results" in lines[0]  # a trial, the table and the report


# ------------------------------------------------------------------------------------------ the harness itself


def test_a_child_that_outlives_its_parent_is_seen_and_ended():
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE).wait()"
    parent = subprocess.Popen([sys.executable, "-c", code.replace("'input()'", "'while True: pass'")])
    while not (children := kill.family(parent)):
        pass
    seen = kill.strike(parent, signal.SIGKILL, "parent", random.Random(0))
    parent.wait()
    assert [p.pid for p in kill.left_alive(seen, 0)] == [p.pid for p in children]
    psutil.wait_procs(children)
    assert not any(psutil.pid_exists(child.pid) for child in children)


def test_other_results_and_half_files_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(kill, "finish", lambda work, place, words: "")
    monkeypatch.setattr(kill, "start", lambda *rest: subprocess.Popen([sys.executable, "-c", ""]))
    out = tmp_path / "out"
    out.mkdir()
    work = kill.Work((), lambda place: dict(Counter(p.name for p in place.glob("*.csv"))))
    assert kill.kill_once(work, tmp_path, {}, {}, 60.0, 0) == ("finished before", "")
    (out / "x.part").touch()
    assert "left ['x.part']" in kill.kill_once(work, tmp_path, {}, {}, 60.0, 0)[1]
    (out / "a.csv").touch()
    assert "other results: ['a.csv']" in kill.kill_once(work, tmp_path, {}, {}, 60.0, 0)[1]

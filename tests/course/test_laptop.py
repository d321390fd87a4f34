"""`uftlab check` finds planted faults, says what to do about each, and goes on after one."""

import json
import webbrowser

import pytest
import torch
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.course import laptop
from uftlab.course.laptop import Line

DIST = "Metadata-Version: 2.1\nName: class-laptop\nVersion: 1\n"


def fails(*_):
    raise webbrowser.Error("could not locate runnable browser")


@pytest.mark.parametrize(
    ("line", "verdict", "words"),
    [
        (lambda: laptop.python((3, 10, 1)), "stop", "Install Python 3.11 to 3.13"),
        (lambda: laptop.python((3, 14, 0)), "look", "were tried"),
        (lambda: laptop.python((3, 12, 3)), "ok", "3.12.3"),
        (lambda: laptop.system("win32"), "look", "WSL"),
        (lambda: laptop.memory(0.9), "stop", "0.9 GB free. Close other programs: 1 GB must be free"),
        (lambda: laptop.memory(1.5), "look", "shut down a notebook"),
        (lambda: laptop.disk(0.1), "stop", "0.2 GB must be free"),
        (lambda: laptop.disk(0.5), "look", "not for studies"),
        (lambda: laptop.threads(1, 0.0), "look", "one notebook at a time"),
        (lambda: laptop.threads(4, 8.5), "look", "8.5 busy"),
        (lambda: laptop.threads(4, 0.5), "ok", "4 cores"),
        (lambda: laptop.browser(fails), "look", "by hand"),
        (lambda: laptop.browser(lambda: "one"), "ok", "found"),
        (lambda: laptop.jupyterlab(lambda name: None), "look", "pip install 'jupyterlab"),
        (lambda: laptop.duration(0.012, 2), "ok", "about 2 minutes"),  # 22,000 steps, 0.012 s, two processes: 2.2
        (lambda: laptop.duration(0.5, 1), "look", "about 183 minutes"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_what_to_do(line, verdict, words):
    found = line()
    assert found.verdict == verdict and words in str(found)
    assert bool(found.remedy) == (verdict != "ok")


def test_a_container_leaves_less_memory_than_the_machine_has(tmp_path, monkeypatch):
    monkeypatch.setattr(laptop, "CGROUP", tmp_path)
    whole = laptop.memory()
    (tmp_path / "memory.max").write_text("1500000000\n")
    (tmp_path / "memory.current").write_text("900000000\n")
    assert laptop.memory().found == "0.6 GB free" and laptop.memory().verdict == "stop"
    (tmp_path / "memory.max").write_text("max\n")
    assert laptop.memory().verdict == whole.verdict


def test_a_folder_that_cannot_be_written_is_named_and_none_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "results"
    stopped = laptop.folders([("notebooks", tmp_path / "new", "stop"), ("results", below, "stop")])
    assert stopped.verdict == "stop" and "results (" in stopped.found and "notebooks" not in stopped.found
    assert "XDG_CACHE_HOME" in stopped.remedy and not (tmp_path / "new").exists()
    here = laptop.folders([("this folder", below, "look")])
    assert here.verdict == "look" and "a folder of your own" in here.remedy
    assert laptop.folders([("notebooks", tmp_path / "new" / "deep", "stop")]).verdict == "ok"


def test_what_is_missing_stops_and_another_version_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "class_laptop-1.dist-info").mkdir()
    path = tmp_path / "class_laptop-1.dist-info" / "METADATA"

    def needs(*requirements):
        path.write_text(DIST + "".join(f"Requires-Dist: {own}\n" for own in requirements))
        return laptop.packages("class-laptop")

    assert needs("numpy>=1", "no-such-package>=1; extra == 'test'").verdict == "ok"
    other = needs("numpy>=999")
    assert other.verdict == "look" and "numpy" in other.found and ">=999" in other.found
    stopped = needs("numpy>=999", "no-such-package<4,>=3")
    assert stopped.verdict == "stop" and "pip install 'no-such-package<4,>=3'" in stopped.remedy
    assert laptop.packages("never-installed").verdict == "look"


def test_a_library_that_does_not_load_stops_one_line_and_the_others_go_on(monkeypatch):
    def broken():
        raise OSError("libtorch.so: cannot open\nshared object file.")

    monkeypatch.setattr(laptop, "training", broken)
    monkeypatch.setattr(laptop, "explorer", lambda: Line("explorer", "ok", "drawn"))
    lines = {line.name: line for line in laptop.check()}
    assert lines["training"] == Line(
        "training", "stop", "OSError: libtorch.so: cannot open shared object file", laptop.INSTALL
    )
    assert "time" not in lines and lines["explorer"].verdict == "ok" and "GPU" in lines


def test_a_model_that_learns_nothing_stops(monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    line, _ = laptop.training()
    assert line.verdict == "stop" and "the loss went from" in line.found


def test_the_command_tests_this_machine_and_its_exit_code_says_how(monkeypatch):
    ended = CliRunner().invoke(app, ["check", "--json"])
    told = json.loads(ended.stdout)
    lines = {line["name"]: line for line in told["lines"]}
    assert {"Python", "packages", "folders", "training", "time", "explorer", "GPU"} <= set(lines)
    assert lines["training"]["verdict"] == lines["explorer"]["verdict"] == "ok"
    assert ended.exit_code == (told["verdict"] == "stop") and told["seconds"] > 0
    monkeypatch.setattr(laptop, "check", lambda: iter([Line("disk", "stop", "full [bold]", "Delete something")]))
    ended = CliRunner().invoke(app, ["check"], env={"COLUMNS": "30"})
    assert ended.exit_code == 1
    assert ended.stdout.splitlines()[0] == "stop  disk           full [bold]. Delete something."
    assert "Mend what says stop" in ended.stdout

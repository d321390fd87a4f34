"""Full disks, files that may not grow, homes and caches that cannot be written: one clear error, or none at all.

Nothing half is left, and with space the same command finishes.
"""

import json
import os
import subprocess
import sys
import tempfile

import kill
import nbformat
import pytest
from made_up import made_up
from scope import ALL
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.course import notebooks as course
from uftlab.files import write_atomically
from uftlab.world.world import World, pairs

SMOKE = ("run", "--profile", "smoke", "--methods", "base", "--seeds", "0", "--workers", "1")
TRAIN = ("train", "--method", "sft-full", "--steps", "4", "--batch", "4", "--learning-rate", "0.001")


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({k: r[k] for k in ("prompt", "completion")}) + "\n" for r in shown()))
    return path


def shown():
    return World(0).demonstrations(8)


@pytest.fixture
def study(tmp_path):
    """A results folder with two trials."""
    for name in ("base", "uft"):
        path = tmp_path / "study" / "trials" / f"{name}.json"
        write_atomically(path, json.dumps(made_up(name, 0)))
    return tmp_path / "study"


def refused(code, said, folder, *words):
    """One line of error that names the folder, the reason and what to do."""
    errors = [line for line in said.splitlines() if "error" in line.lower() or "Traceback" in line]
    assert code == 2 and len(errors) == 1 and errors[0].startswith("error:"), said
    for word in (str(folder), *words):
        assert word in errors[0], errors[0]


def parts(folder):
    """What is begun and not finished below a folder."""
    return [path.name for path in folder.rglob("*") if "part" in path.name]


# ------------------------------------------------------------------------------ a disk of two megabytes


@pytest.fixture
def disk(tmp_path):
    """A folder on a disk of its own of 2 MB, and a function that makes it 64 MB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk; the tests of limited files below need no root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place, lambda: subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def uftlab(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.exit_code, result.output


def fill(place, leave=0):
    """Take the space of a disk but for some bytes."""
    free = os.statvfs(place)
    (place / "filler").write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - leave)))


def test_pages_on_a_full_disk(disk, study):
    place, enlarge = disk
    fill(place, 8192)
    written = {
        "report": ("report", study, "--out", place / "report.html"),
        "cards": ("methods", "--cards", place / "cards"),
    }
    for arguments in written.values():
        refused(*uftlab(*arguments), place, "No space left on device", "Free space, then give the same command again")
    assert parts(place) == []
    enlarge()
    for arguments in written.values():
        assert uftlab(*arguments)[0] == 0
    assert (place / "report.html").read_text().endswith("</html>")


def test_an_export_on_a_full_disk_leaves_nothing_half_and_finishes_when_there_is_space(disk, tmp_path):
    place, enlarge = disk
    notebook = nbformat.read(course.NOTEBOOKS / "00_start.ipynb", as_version=4)
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = number
    nbformat.write(notebook, tmp_path / "00_start.ipynb")
    arguments = ("export", "--only", "00", "--executed", tmp_path, "--out", place / "site")
    refused(*uftlab(*arguments), place / "site", "No space left on device", "plotly.min.js", "Free space")
    assert parts(place) == [] and not list(place.glob("site/*.html"))
    enlarge()
    assert uftlab(*arguments)[0] == 0
    assert (place / "site" / "00_start.html").read_text().rstrip().endswith("</html>") and parts(place) == []


def test_a_notebook_whose_temporary_files_have_no_space_is_one_clear_error(disk, tmp_path, monkeypatch):
    place, _ = disk
    fill(place)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    arguments = ("notebooks", "--only", "00", "--out", tmp_path / "out")
    refused(*uftlab(*arguments), place, "No space left on device", "Free space, then give the same command again")
    assert [path.name for path in place.iterdir()] == ["filler"]


@pytest.mark.skipif(not ALL, reason="a sweep takes a minute: UFTLAB_TESTS=all")
def test_a_sweep_on_a_full_disk_keeps_its_trials_and_chooses_the_same_when_there_is_space(disk, tmp_path):
    place, enlarge = disk
    fill(place, 50_000)  # a third of its trials
    words = "sweep --methods uft --workers 2 --force --out".split()
    command = [sys.executable, "-c", kill.SMALL_SWEEP, *words]
    ended = subprocess.run([*command, place / "sweep"], capture_output=True, text=True)
    refused(ended.returncode, ended.stderr, place / "sweep", "No space left on device", "Free space")
    kept = {path: path.read_bytes() for path in place.glob("sweep/trials/*.json")}
    assert 0 < len(kept) < 16 and parts(place) == []
    enlarge()
    for folder in (place / "sweep", tmp_path / "whole"):
        subprocess.run([*command, folder], check=True, capture_output=True)
    assert {path: path.read_bytes() for path in kept} == kept and parts(place) == []
    assert kill.of_study(place / "sweep") == kill.of_study(tmp_path / "whole")


@pytest.mark.parametrize("leave", [0, 300_000, 1_000_000], ids=["nothing", "half a model", "half a checkpoint"])
def test_a_training_on_a_full_disk_resumes_when_there_is_space(disk, rows, leave):
    place, enlarge = disk
    enlarge()
    fill(place, leave)
    out = place / "out"
    arguments = (*TRAIN, "--demonstrations", rows, "--save-every", "1", "--out", out)
    code, said = uftlab(*arguments)
    refused(code, said, out, "Free space, then give")
    assert not (out / "model.safetensors").exists()
    (place / "filler").unlink()
    begun = (out / "training.json").exists()
    assert begun == (leave > 0)
    code, said = uftlab(*(("train", "--resume", "--out", out) if begun else arguments))
    assert code == 0, said
    whole = rows.parent / "whole"
    assert uftlab(*arguments[:-1], whole)[0] == 0
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert parts(out) == [] and {p.name for p in out.iterdir()} == {p.name for p in whole.iterdir()}


def test_a_study_on_a_full_disk_keeps_its_trials_and_finishes_when_there_is_space(disk):
    place, enlarge = disk
    code, said = uftlab(*SMOKE, "--out", place / "out")  # the trial has its place, the report of 5 MB does not
    refused(code, said, place / "out", "No space left on device", "Free space")
    (trial,) = (place / "out" / "trials").glob("*.json")
    before = trial.read_bytes()
    enlarge()
    code, said = uftlab(*SMOKE, "--out", place / "out")
    assert code == 0 and "1 already done" in said and trial.read_bytes() == before
    assert (place / "out" / "report.html").read_text().endswith("</html>") and parts(place) == []
    fill(place)
    code, said = uftlab(*SMOKE[:-4], "--seeds", "1", "--workers", "1", "--out", place / "other")
    refused(code, said, place / "other")
    assert list(place.glob("other/trials/*.json")) == [] and parts(place) == []


# ------------------------------------------------------------------------------ without root

LIMITED = """
import json, resource, sys
import uftlab.reports.cards, uftlab.reports.html, uftlab.training.checkpoint
from typer.testing import CliRunner
from uftlab.cli import app
lines = json.loads(sys.argv[1])
if sys.argv[2:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
for line in lines:
    result = CliRunner().invoke(app, line)
    crash = None if result.exception is None or isinstance(result.exception, SystemExit) else repr(result.exception)
    print(json.dumps([result.exit_code, result.output, crash]))
"""


def in_a_child(lines, environment, *limited):
    """Exit code, output and crash of each command line, all run in one other process."""
    told = json.dumps([[str(word) for word in line] for line in lines])
    command = [sys.executable, "-c", LIMITED, told, *limited]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")]
    assert len(found) == len(lines), ended.stdout + ended.stderr
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of file sizes there")
def test_commands_whose_files_may_not_grow_end_with_one_error_and_leave_nothing(study, rows, tmp_path):
    """For any user: files of more than 2,000 bytes are refused by the system, as on a full disk."""
    out = tmp_path / "out"
    lines = [
        ("report", study, "--out", out / "report.html"),
        ("methods", "--cards", out / "cards"),
        (*TRAIN, "--demonstrations", rows, "--out", out / "model"),
        ("merge", "tiny", "--out", out / "merged"),
    ]
    for (code, said, crash), line in zip(in_a_child(lines, os.environ, "limited"), lines, strict=True):
        assert crash is None, (line, crash)
        refused(code, said, out, "must")
    assert parts(out) == [] and not list(out.rglob("*.safetensors"))


# ------------------------------------------------------------------------------ homes, caches, temporary folders

NOWHERE = "/proc/nowhere"  # nobody can make it, not even root


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")
def test_a_home_and_a_cache_that_cannot_be_written_are_not_needed(study, rows, tmp_path):
    """What is kept for the next time is made anew, and the system's own folder for temporary files is taken."""
    out, both = tmp_path / "out", ("--demonstrations", rows, "--feedback", pairs_of(tmp_path))
    lines = [
        ("report", study, "--out", out / "report.html"),
        ("methods", "--cards", out / "cards"),
        ("train", "--method", "sft-then-una", "--steps", "2", "--batch", "4", "--out", out / "model", *both),
    ]
    environment = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "TMPDIR"), NOWHERE)
    for (code, said, crash), line in zip(in_a_child(lines, {**os.environ, **environment}), lines, strict=True):
        assert (code, crash) == (0, None), (line, said, crash)
    assert (out / "model" / "model.safetensors").is_file() and parts(out) == []


def pairs_of(folder):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs(World(0).feedback(8))))
    return path


def test_no_place_for_temporary_files_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    monkeypatch.setattr(course, "notebook_paths", lambda only: [tmp_path / "a.ipynb"])
    nbformat.write(nbformat.v4.new_notebook(cells=[]), tmp_path / "a.ipynb")
    monkeypatch.setattr(course, "run_one", lambda *rest: tempfile.mkdtemp())
    code, said = uftlab("notebooks", "--out", tmp_path / "out")
    refused(code, said, "folder for temporary files", "Set TMPDIR to a folder that you may write")


@pytest.mark.parametrize("line", ["report class", "methods", "notebooks", "export"])
def test_a_folder_that_cannot_be_written_is_refused_before_work(line, monkeypatch):
    for name in (
        "course.notebooks.run_all",
        "reports.cards.cards",
        "study.results.load_study",
    ):
        monkeypatch.setattr(f"uftlab.{name}", lambda *args, **kwargs: pytest.fail("work began"))
    option = "--cards" if line == "methods" else "--out"
    place = f"{NOWHERE}/page.html" if line == "report class" else NOWHERE
    refused(*uftlab(*line.split(), option, place), NOWHERE, "must be writable", "Choose another")

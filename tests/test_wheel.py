"""The wheel works anywhere: it carries data and notebooks, and never writes into itself."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from uftlab import files
from uftlab.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
RUN = "run --profile smoke --methods base,sft --seeds 0 --workers 1"


def committed(*folders):
    """Files that git knows or would take, by their path in the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines())


def contents(folder):
    """Every file below a folder, with a digest."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel and the sdist."""
    out = tmp_path_factory.mktemp("built")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "--directory", out], cwd=ROOT, check=True)
    return out


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """An empty folder, how a command runs there, and the unpacked wheel, unchanged by all that ran."""
    base = tmp_path_factory.mktemp("installed")
    package, folder, cache = (base / name for name in ("package", "empty", "cache"))
    zipfile.ZipFile(*built.glob("*.whl")).extractall(package)
    folder.mkdir()
    more = {"PYTHONPATH": str(package), "XDG_CACHE_HOME": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {**os.environ, **more, "OMP_NUM_THREADS": "1"}
    before = contents(package)

    def run(*arguments, start=subprocess.run, **options):
        options = {"capture_output": True} if start is subprocess.run else {"stdout": subprocess.PIPE}
        return start([sys.executable, *arguments], cwd=folder, env=environment, text=True, **options)

    yield folder, run, cache
    assert contents(package) == before, "something was written into the package"


def test_the_wheel_carries_what_the_commands_read_and_no_more(built):
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")}
    carried = {f"uftlab/{name}" for name in committed("data", "notebooks")}
    assert names == committed("uftlab") | carried and len(carried) > 600
    assert wheel.stat().st_size < 14e6


def test_the_sdist_is_the_repository(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert committed("uftlab", "data", "notebooks", "tests", "docs") <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "constraints.txt", "Makefile"} <= names


def test_the_package_that_runs_is_the_one_that_was_unpacked(installed):
    folder, run, cache = installed
    modules = (
        "files as f", "course.snapshots as s", "course.notebooks as n", "course.lab as o", "training.settings as t",
    )  # fmt: skip
    code = "import " + ", ".join(f"uftlab.{module}" for module in modules)
    ended = run("-c", f"{code}\nprint(f.PACKAGE, f.DATA, s.FOLDER, n.NOTEBOOKS, o.LAB_HOME, t.TUNED, sep='\\n')")
    package, *written = map(Path, ended.stdout.splitlines())
    assert package == folder.parent / "package" / "uftlab", ended.stderr
    assert len(written) == 5 and all(path.is_relative_to(cache) for path in written)


@pytest.mark.parametrize(
    ("line", "writes"),
    [
        ("--version", []),
        ("methods", []),
        ("results", []),
        ("report class", ["build/report/class.html"]),
        (RUN, ["results/smoke/report.html", "results/smoke/summary.json", "results/smoke/results.csv"]),
        ("notebooks --profile smoke --only 00", ["build/notebooks/00_start.ipynb"]),
        ("export --profile smoke --only 00", ["build/site/course/index.html", "build/site/course/00_start.html"]),
    ],
)
def test_a_command_works_in_an_empty_folder_and_writes_there(line, writes, installed):
    folder, run, _ = installed
    ended = run("-m", "uftlab", *line.split())
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [path for path in writes if not (folder / path).is_file()] == []
    assert {path.name for path in folder.iterdir()} <= {"build", "results"}
    if line == RUN:  # no terminal: a line per trial
        assert re.search(r"^base, seed 0: [\d.]+ s \(\d/2\)$", ended.stdout, flags=re.M)


def test_lab_opens_copies_of_the_notebooks_in_the_users_cache(installed):
    _, run, cache = installed
    lab = run("-m", "uftlab", "lab", "--no-browser", start=subprocess.Popen)
    said, address = lab.stdout.readline(), lab.stdout.readline()
    lab.send_signal(signal.SIGTERM)
    assert lab.wait(60) == 0
    (place,) = re.findall(r"copies of the notebooks: (\S+)", said)
    assert Path(place).is_relative_to(cache) and len(list(Path(place).glob("*.ipynb"))) >= 5
    assert "http://127.0.0.1:" in address


# ------------------------------------------------------------------------------ the copy that an installation works on


def package(folder, text="a"):
    """A small folder that carries data and notebooks."""
    for name in files.CARRIED:
        (folder / name / "deep").mkdir(parents=True, exist_ok=True)
        (folder / name / "deep" / "file").write_text(text)
    return folder


def test_the_copy_follows_the_content_and_keeps_what_was_written_into_it(tmp_path):
    cache = tmp_path / "cache"
    first = files.lay_out(package(tmp_path / "package"), cache)
    assert contents(first) == contents(tmp_path / "package")
    (first / "notebooks" / "deep" / "file").write_text("my answers")
    assert files.lay_out(tmp_path / "package", cache) == first
    assert (first / "notebooks" / "deep" / "file").read_text() == "my answers"
    second = files.lay_out(package(tmp_path / "package", "b"), cache)
    assert second != first and (second / "data" / "deep" / "file").read_text() == "b"
    assert sorted(cache.iterdir()) == sorted([first, second])


def test_a_cache_that_cannot_be_written_is_a_plain_error(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="cache folder must be writable.*XDG_CACHE_HOME"):
        files.lay_out(package(tmp_path / "package"), tmp_path / "cache")


def test_a_checkout_is_read_and_written_in_place():
    assert files.is_checkout() and files.home() == ROOT and ROOT / "data" == files.DATA
    with pytest.raises(AttributeError, match="DATUM"):
        _ = files.DATUM

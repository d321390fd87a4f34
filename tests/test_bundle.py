"""The bundle for a class holds all it promises, installs with pip's index off, and refuses another Python."""

import json
import subprocess
import zipfile
from pathlib import Path

import bundle
import pytest

from uftlab.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A bundle whose wheels are made by nobody, and the commands that would have made them."""
    asked = []

    def command(*words):
        asked.append([str(word) for word in words])
        if words[0] == "hatchling":
            (Path(words[-1]) / "uftlab-9.1-py3-none-any.whl").write_text("")

    monkeypatch.setattr(bundle, "command", command)
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.html").write_text("the course")
    return bundle.make(tmp_path / "kit", tmp_path / "pages", "https://index.invalid/cpu"), asked


def test_the_bundle_holds_wheels_pages_copies_and_how_to_install_them(made):
    path, (_, torch, rest) = made
    names = zipfile.ZipFile(path).namelist()
    wanted = {"install.sh", "install.ps1", "README.txt", "site/index.html", "wheels/uftlab-9.1-py3-none-any.whl"}
    wanted |= {f"copies/{kind}/00_start.ipynb" for kind in ("with-solutions", "without-solutions")}
    assert {f"kit/{name}" for name in wanted} <= set(names) and path.name.startswith("kit-9.1-")
    assert "--index-url" in torch and "--index-url" not in rest  # its index serves torch and nothing else
    assert rest[rest.index("--constraint") + 1] == "constraints.txt" and "--only-binary" in rest


def test_pip_is_told_to_ask_no_index_and_no_setting_of_the_machine(made):
    folder = made[0].parent / "kit"
    for name in ("install.sh", "install.ps1"):
        (line,) = [line for line in (folder / name).read_text().splitlines() if "pip" in line and "install" in line]
        assert "--isolated install" in line and "--no-index --find-links wheels" in line
    assert "NOT TRIED" in (folder / "install.ps1").read_text()


def test_another_python_is_refused_in_one_line_and_nothing_is_installed(made):
    folder = made[0].parent / "kit"
    ended = subprocess.run(["sh", folder / "install.sh"], env={"PYTHON": "false"}, capture_output=True, text=True)
    assert ended.returncode == 2 and f"Python must be {bundle.PYTHON}" in ended.stderr
    assert ended.stderr.count("\n") == 1 and not (folder / ".venv").exists()


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(InputError, match="be empty or new"):
        bundle.make(tmp_path)


def test_the_devcontainer_makes_a_target_that_the_makefile_has():
    own = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    target = own["postCreateCommand"].split()[1]
    assert f"\n{target.replace('.venv', '$(VENV)')}:" in (ROOT / "Makefile").read_text()
    assert own["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"].endswith("/.venv/bin/python")

"""One folder that installs the course with the network off: `make bundle`.

    python benchmarks/bundle.py build/bundle --site build/site

It holds the wheels of everything in the pinned versions and of uftlab, which carries data and notebooks; learners'
copies of the notebooks; the course as pages, as `uftlab export` writes them; and scripts that install it. The wheels
are those of the machine that made the bundle: the same kind of system and processor, and the same Python (3.11, say).
A zip of the folder lies beside it.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from uftlab.course.workshop import write_copies
from uftlab.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"

# --isolated: neither settings nor variables of pip on that machine point to an index
INSTALL_SH = """#!/bin/sh
# Installs the course into .venv beside this file. It needs no network.
set -eu
cd "$(dirname "$0")"
python="${{PYTHON:-python{version}}}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != ({major}, {minor}))' 2>/dev/null; then
  echo "error: Python must be {version}, as the wheels are; got $python. Say PYTHON=python{version} sh install.sh." >&2
  exit 2
fi
"$python" -m venv .venv
.venv/bin/python -m pip --isolated install --quiet --no-index --find-links wheels "uftlab[lab]"
.venv/bin/uftlab check || true
echo "To open the course: $PWD/.venv/bin/uftlab lab --folder $PWD/my-copies"
"""

INSTALL_PS1 = """# Installs the course into .venv beside this file. It needs no network.
# NOT TRIED: nobody has run this file yet. It needs a bundle that was made on Windows. In WSL take install.sh.
$ErrorActionPreference = "Stop"
Set-Location $PSScriptRoot
py -{version} -m venv .venv
.venv\\Scripts\\python -m pip --isolated install --quiet --no-index --find-links wheels "uftlab[lab]"
.venv\\Scripts\\uftlab check
Write-Host "To open the course: $PSScriptRoot\\.venv\\Scripts\\uftlab lab --folder $PSScriptRoot\\my-copies"
"""

README = """uftlab {release}: the course without a network
For: {system}, Python {version}.

sh install.sh            installs into .venv, then tests this machine (Windows itself: install.ps1, not tried)
site/index.html          the course as pages: nothing has to be installed for these
copies/                  the notebooks without solutions for learners, with solutions for the teacher
wheels/                  all packages
"""


def command(*words: str | Path) -> None:
    """Run a command of this Python and stop at its first failure."""
    subprocess.run([sys.executable, "-m", *map(str, words)], cwd=ROOT, check=True)


def make(out: Path, site: Path | None = None, torch_index: str = "") -> Path:
    """Make the folder and its zip. Returns the zip.

    Args:
        site: the course as pages; without it the bundle has none.
        torch_index: where torch alone comes from, as in the Makefile.

    Raises:
        InputError: for a folder that is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError("The bundle's folder", "be empty or new", out, "Delete it, or name another one")
    wheels = out / "wheels"
    wheels.mkdir(parents=True)
    command("hatchling", "build", "--target", "wheel", "--directory", wheels)
    (own,) = wheels.glob("uftlab-*.whl")
    pins = ["--constraint", "constraints.txt", "--dest", wheels, "--quiet", "--disable-pip-version-check"]
    torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    if torch_index:
        command("pip", "download", "--no-deps", "--index-url", torch_index, "--dest", wheels, torch)
    command("pip", "download", "--find-links", wheels, "--only-binary", ":all:", *pins, f"{own}[lab]")
    release = own.name.split("-")[1]
    major, minor = sys.version_info[:2]
    system = f"{platform.system()} {platform.machine()}"
    words = {"version": PYTHON, "major": major, "minor": minor, "release": release, "system": system}
    for name, text in (("install.sh", INSTALL_SH), ("install.ps1", INSTALL_PS1), ("README.txt", README)):
        (out / name).write_text(text.format(**words), encoding="utf-8")
    write_copies(out / "copies")
    if site is not None:
        shutil.copytree(site, out / "site")
    name = f"{out.name}-{release}-{system.replace(' ', '-').lower()}-python{PYTHON}"
    return Path(shutil.make_archive(str(out.parent / name), "zip", out.parent, out.name))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--site", type=Path, help="folder of pages, as `uftlab export` writes it")
    parser.add_argument("--torch-index", default="", help="index of torch alone, such as that of its CPU wheels")
    given = parser.parse_args()
    made = make(given.out.resolve(), given.site, given.torch_index)
    files = [path for path in given.out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"{given.out}: {len(files)} files, {size / 1e6:.0f} MB; {made.name}: {made.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

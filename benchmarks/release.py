"""A release by one command, `make release`: checked, tested, built into build/dist. It publishes nothing itself.

python benchmarks/release.py check     refuses a tree with changes, and versions that do not agree
python benchmarks/release.py build     wheel, sdist and (where there is `make site`) the site, with their digests
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from uftlab.errors import InputError
from uftlab.version import VERSION

ROOT = Path(__file__).resolve().parent.parent


def check(root: Path = ROOT, version: str = VERSION) -> None:
    """Refuses a release of what is not committed, or whose version is not the same everywhere.

    Raises:
        InputError: naming the file.
    """
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    if changed.stdout:
        raise InputError("The tree", "be committed", changed.stdout.splitlines()[0].strip(), "Commit or stash it")
    cited = str(yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))["version"])
    found = re.search(r"^## (\S+)", (root / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    for name, named in (("CITATION.cff", cited), ("CHANGELOG.md", found[1] if found else "none")):
        if named != version:
            raise InputError(f"The version at the head of {name}", f"be {version}", named, "Change it, or version.py")
    if subprocess.run(["git", "tag", "--list", f"v{version}"], cwd=root, capture_output=True, text=True).stdout:
        raise InputError("The version", "be a new one", f"{version}, which has a tag", "Change uftlab/version.py")


def has_site(makefile: str) -> bool:
    """Whether there is a target `site`."""
    return re.search(r"^site:", makefile, flags=re.M) is not None


def build(root: Path = ROOT, version: str = VERSION) -> list[Path]:
    """Wheel, sdist and site in build/dist, which is emptied before. Returns the files."""
    out = root / "build" / "dist"
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "--directory", out], cwd=root, check=True)
    if has_site((root / "Makefile").read_text(encoding="utf-8")):
        subprocess.run(["make", "site"], cwd=root, check=True)
        shutil.make_archive(str(out / f"uftlab-{version}-site"), "zip", root / "build" / "site")
    return sorted(path for path in out.iterdir() if path.is_file())


def told(files: list[Path], version: str = VERSION) -> str:
    """The digests of the files, and the two commands that publish them."""
    digests = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in files]
    uploaded = " ".join(f"build/dist/{path.name}" for path in files if path.suffix != ".zip")
    publish = [f"git tag v{version} && git push origin v{version}", f"python -m twine upload {uploaded}"]
    return "\n".join([*digests, "", "To publish:", *(f"    {line}" for line in publish)])


if __name__ == "__main__":
    try:
        check() if sys.argv[1:] == ["check"] else print(told(build()))
    except InputError as error:
        sys.exit(f"error: {error}")

"""When a file was last committed."""

import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def committed(path: Path) -> datetime:
    """The author date of the last change of a file, which survives a rebase.

    Skips the test without a history: outside of git, and in a shallow clone, which does not know.
    """
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("no git history")
    told = subprocess.run([git, "-C", ROOT, "log", "--format=%aI", "--", path], capture_output=True, text=True)
    shallow = subprocess.run([git, "-C", ROOT, "rev-parse", "--is-shallow-repository"], capture_output=True, text=True)
    if told.returncode or not told.stdout.strip() or shallow.stdout.strip() == "true":
        pytest.skip("no git history")
    return datetime.fromisoformat(told.stdout.split()[0])

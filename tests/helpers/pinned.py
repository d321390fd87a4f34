"""The exact versions that the project names, for tests that hold for these alone."""

from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def pins(file="constraints.txt"):
    """Exact versions of a file of constraints by canonical name."""
    lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    found = {}
    for requirement in (Requirement(line) for line in lines if line):
        (only,) = requirement.specifier
        assert only.operator == "==" and "*" not in only.version, requirement
        found[canonicalize_name(requirement.name)] = only.version
    return found

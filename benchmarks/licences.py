"""The licences of all that uftlab needs, from the installed packages' own metadata.

    python benchmarks/licences.py            prints the table
    python benchmarks/licences.py --write    writes it to docs/licences.md

Which packages: those of pyproject.toml with the extras `real` and `ray`, and what these need in turn.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"
HEAD = """# Licences of the dependencies

uftlab itself has the MIT licence. This is what it needs, and what that needs, as the packages say themselves. The
libraries of NVIDIA that come with torch for GPUs are not listed. The table is made by `make licences`.

"""
OF_NVIDIA = ("nvidia-", "cuda-", "triton")
STRONG = re.compile(r"\b(A?GPL|SSPL)|GNU (Affero )?General Public", re.I)  # a weak one, LGPL or MPL, is fine
SHORT = {  # what packages write in place of a short name
    "Apache Software License": "Apache-2.0", "Apache License 2.0": "Apache-2.0", "Apache 2.0": "Apache-2.0",
    "Apache": "Apache-2.0", "MIT License": "MIT", "BSD License": "BSD", "BSD": "BSD", "The MIT License": "MIT",
    "ISC License (ISCL)": "ISC", "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Apache License, Version 2.0": "Apache-2.0", "Apache 2.0 License": "Apache-2.0",
    "The MIT License (MIT)": "MIT", "3-Clause BSD License": "BSD-3-Clause",
    "Python Software Foundation License": "PSF-2.0", "Apache-2.0 license": "Apache-2.0", "Apache 2": "Apache-2.0",
}  # fmt: skip


def needed() -> dict[str, Distribution]:
    """Canonical name -> installed distribution of everything that uftlab needs; what is not installed is left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (project["optional-dependencies"][extra] for extra in ("real", "ray"))
    waiting = [Requirement(text) for text in (*project["dependencies"], *(line for own in extras for line in own))]
    found: dict[str, Distribution] = {}
    asked: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name, wanted = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, wanted) in asked or name.startswith(OF_NVIDIA):
            continue
        asked.add((name, wanted))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        for own in map(Requirement, found[name].requires or ()):
            if own.marker is None or any(own.marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                waiting.append(own)
    return dict(sorted(found.items()))


def licence(package: Distribution) -> str:
    """The licence that a package states: its expression, else its classifiers, else the first line of its field."""
    told = package.metadata
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in told.get_all("Classifier") or ()
        if line.startswith("License ::") and line.count("::") > 1
    ]
    said = told.get("License-Expression") or ""
    names = [said] if said else classifiers or [((told.get("License") or "").strip().splitlines() or [""])[0][:60]]
    return " or ".join(SHORT.get(name, name) for name in names if name) or "not stated"


def strong(name: str) -> bool:
    """Whether every choice that a licence leaves asks that what uses the package has the same licence.

    >>> strong("GPL-3.0-only"), strong("LGPL-2.1"), strong("MIT OR GPL-2.0")
    (True, False, False)
    """
    return all(STRONG.search(choice) for choice in re.split(r"(?i) or ", name))


def table(packages: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The lines of the table."""
    yield from ("| package | licence |", "|---|---|")
    for name, own in packages:
        yield f"| {name} | {own} |"


def listed() -> dict[str, str]:
    """The committed table."""
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    return {name: own for name, own in rows if name != "package"}


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="Write docs/licences.md.")
    lines = "\n".join(table((name, licence(package)) for name, package in needed().items())) + "\n"
    if parser.parse_args().write:
        PAGE.write_text(HEAD + lines, encoding="utf-8")
    else:
        print(lines, end="")


if __name__ == "__main__":
    main()

"""The parameters of the notebooks: one table made from their cells, and the check that each notebook makes.

papermill only warns of a parameter that a notebook does not have. So the notebook itself refuses it, and a value that
it cannot use, in its first cell after the parameters.

    python -m uftlab.course.parameters docs/ci.md

writes the table into a file, between the lines `<!-- parameters -->` and `<!-- end of parameters -->`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uftlab.course.notebooks import notebook_paths, parameters_of
from uftlab.errors import InputError
from uftlab.files import write_between
from uftlab.reports.tables import markdown
from uftlab.study.trials import profile_named

SWITCHES = ("solutions", "widgets_on", "rerun")  # True or False; every other parameter is a text
INJECTED = "# Parameters\n"  # the first line of the cell that papermill adds


class ParameterError(InputError):
    """A notebook was given what it cannot use. The notebook shows this one line and no traceback."""

    def _render_traceback_(self) -> list[str]:  # what IPython asks for, and papermill prints
        return [f"{type(self).__name__}: {self}"]


def check(**given: Any) -> None:
    """Refuses parameters of a notebook: a name it does not have, a profile there is not, a switch that is no switch.

    Called in the cell after the parameters, with all of them.

    Raises:
        ParameterError: for the first of these faults.
    """
    unknown = [name for name in injected() if name not in given]
    if unknown:
        raise ParameterError("A parameter", f"be one of {', '.join(given)}", ", ".join(unknown), "Remove it")
    try:
        profile_named(given["profile"])
    except InputError as error:
        raise ParameterError(*error.parts) from None
    for name, value in given.items():
        kind, rule = (bool, "be True or False") if name in SWITCHES else (str, "be a text")
        if not isinstance(value, kind):
            raise ParameterError(f"The parameter {name}", rule, repr(value), "Write it so")


def injected() -> list[str]:
    """The names that papermill has set in the cell before this one; none if it added no cell there."""
    from IPython import get_ipython

    shell = get_ipython()
    sources = shell.user_ns.get("In", []) if shell else []
    if len(sources) < 2 or not sources[-2].startswith(INJECTED):
        return []
    targets = [own.targets[0] for own in ast.parse(sources[-2]).body if isinstance(own, ast.Assign)]
    return [own.id for own in targets if isinstance(own, ast.Name)]


def table(paths: Sequence[Path] = ()) -> str:
    """The parameters of notebooks (empty: all of the course) in Markdown: name, type, default, meaning, notebooks.

    What is the same in several notebooks is one row.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    chosen = list(paths) or notebook_paths()
    for path in chosen:
        for own in parameters_of(path):
            found.setdefault((f"`{own.name}`", own.kind, f"`{own.default}`", own.meaning), []).append(path.stem[:2])
    order = list(dict.fromkeys(name for name, *_ in found))
    rows = [
        [*row, "all" if len(numbers) == len(chosen) else ", ".join(numbers)]
        for row, numbers in sorted(found.items(), key=lambda item: order.index(item[0][0]))
    ]
    return markdown(["parameter", "type", "default", "meaning", "notebooks"], rows)


if __name__ == "__main__":
    write_between(Path(sys.argv[1]), "parameters", table())

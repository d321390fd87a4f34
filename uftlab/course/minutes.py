"""How long a notebook takes a reader: minutes that are counted from its words and exercises, and written into it.

The reader has English as a second language and reads 120 words a minute. Code is read twice as fast. An exercise, and a
task for the sliders of an explorer, take three minutes each. All are estimates.

    python -m uftlab.course.minutes

writes the two numbers of the line `**Time:** ...` into every notebook that has exercises.
"""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uftlab.course.notebooks import notebook_paths
from uftlab.errors import InputError
from uftlab.files import write_atomically

WORDS, CODE = 120, 240  # words of text and of code that are read in a minute
TASK = 3  # minutes for an exercise, or for one task of an explorer
CORE = "core"  # the tag of the cells of the one-hour route
LINE = re.compile(r"(\*\*Time:\*\* )(\d+)(\s+minutes\s+to\s+read,\s+)(\d+)(\s+with\b)")


@dataclass(frozen=True)
class Minutes:
    """Minutes to read a notebook with its code (`read`), to do everything in it (`all`), and for its core (`core`).

    The core is read without its code.
    """

    read: float
    all: float
    core: float


def words_in(markdown: str) -> int:
    """The words of a text. An equation counts as one word, a link as its text; folded parts do not count.

    >>> words_in("The **loss** is $-\\\\log s$, see [notebook 1](01.ipynb). <details>Yes.</details>")
    7
    """
    text = re.sub(r"<details>.*?</details>", "", markdown, flags=re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$", " equation ", text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return len([word for word in text.split() if re.search(r"\w", word)])


def _asked(code: str) -> str:
    """The words that a prediction shows: question, options and explanation, as far as they stand in its code."""
    shown = []
    for call in ast.walk(ast.parse(code)):
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "predict":
            parts = [node for part in (*call.args, *(k.value for k in call.keywords)) for node in ast.walk(part)]
            shown += [n.value for n in parts if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return " ".join(shown)


def minutes(notebook: Any) -> Minutes:
    """Minutes for a notebook as `nbformat` reads it, from its cells alone."""
    text = code = core = folded = tasks = 0
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown":
            own = words_in(cell.source)
            folded += len(" ".join(re.findall(r"<details>(.*?)</details>", cell.source, re.DOTALL)).split())
            if "live" in tags:
                tasks += len(re.findall(r"^\d+\. ", re.sub(r"<details>.*", "", cell.source, flags=re.DOTALL), re.M))
        else:
            own = words_in(_asked(cell.source))
            hidden = cell.metadata.get("jupyter", {}).get("source_hidden")
            code += 0 if hidden else len(cell.source.split())
            tasks += bool(re.fullmatch(r"exercise-\d+-check", cell.get("id", "")))
        text += own
        core += own if CORE in tags else 0
    read = text / WORDS + code / CODE
    return Minutes(read, read + folded / WORDS + TASK * tasks, core / WORDS)


def rounded(found: Minutes) -> tuple[int, int]:
    """The two numbers of a notebook's first cell: minutes to read and for everything, both rounded up to five."""
    read, everything = (5 * math.ceil(value / 5) for value in (found.read, found.all))
    return read, everything


def stated(notebook: Any) -> tuple[int, int] | None:
    """The two numbers that stand in the first cell of a notebook now; None where it has no line about time."""
    line = LINE.search(notebook.cells[0].source)
    return (int(line[2]), int(line[4])) if line else None


def one_hour() -> list[tuple[str, list[str], int]]:
    """The one-hour route: the name of each notebook with core cells, the sections that have some, rounded minutes."""
    import nbformat

    route = []
    for path in notebook_paths():
        notebook = nbformat.read(path, as_version=4)
        core = [c for c in notebook.cells if c.cell_type == "markdown" and CORE in c.metadata.get("tags", [])]
        if core:
            sections = [title for cell in core for title in re.findall(r"^## (.+)$", cell.source, re.M)]
            plain = [title.replace("$", "") for title in sections]
            route.append((path.stem, plain, max(1, round(minutes(notebook).core))))
    return route


def write_time(path: Path) -> None:
    """Write the minutes into the first cell of a notebook.

    Raises:
        InputError: for a notebook without a line about time.
    """
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    if stated(notebook) is None:
        line = "**Time:** 5 minutes to read, 10 with the explorer and the exercises."
        raise InputError(path.name, "have a line about time in its first cell", "a cell without it", f"Add: {line}")
    read, everything = rounded(minutes(notebook))
    notebook.cells[0].source = LINE.sub(rf"\g<1>{read}\g<3>{everything}\g<5>", notebook.cells[0].source)
    write_atomically(path, nbformat.writes(notebook) + "\n")


if __name__ == "__main__":
    for own in notebook_paths():
        if "exercise-1-check" in own.read_text(encoding="utf-8"):
            write_time(own)

"""What a teacher needs besides the notebooks: copies without and with solutions, and all questions with their answers.

    python -m uftlab.course.workshop build/notebooks docs/workshop/questions.md

writes the page of questions from notebooks that were executed with `widgets_on = False`, as `uftlab export` does.
"""

from __future__ import annotations

import html
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from uftlab.course import minutes
from uftlab.course.checks import exercises_of_the_course
from uftlab.course.notebooks import NOTEBOOKS, contents, notebook_paths
from uftlab.errors import InputError
from uftlab.files import write_atomically

SOLUTION = re.compile(r"\n*<details><summary>Solution</summary>\n+```python\n(.*?)\n```\n+</details>", re.S)
FOLDED = re.compile(
    r"<p><b>(?P<question>.*?)</b> (?P<options>.*?)</p><details><summary>Answer</summary>"
    r"<b>(?P<answer>.*?)</b>\. (?P<because>.*?)</details>",
    re.S,
)
REMEMBER = re.compile(r"### Three sentences to remember\n+(.*?)(?=\n\n|\Z)", re.S)


# ------------------------------------------------------------------------------ copies


def without_solutions(notebook: Any) -> Any:
    """The notebook with the folded solutions of its exercises taken out. Hints and checks stay."""
    for cell in notebook.cells:
        if re.fullmatch(r"exercise-\d+", cell.get("id", "")):
            cell.source = SOLUTION.sub("", cell.source)
    return notebook


def with_solutions(notebook: Any) -> Any:
    """The notebook with each solution in the place of the stub that a reader would fill.

    Raises:
        InputError: for an exercise without a folded solution.
    """
    cells = {cell.get("id", ""): cell for cell in notebook.cells}
    for name, cell in cells.items():
        if re.fullmatch(r"exercise-\d+", name):
            found = SOLUTION.search(cell.source)
            if found is None:
                raise InputError(name, "have a folded solution", "none", "Write it below the hint, as in notebook 04")
            cells[f"{name}-answer"].source = found[1]
    return notebook


def write_copies(out: Path) -> dict[str, list[Path]]:
    """Write the course twice: `without-solutions` for learners and `with-solutions` for the teacher.

    The glossary is beside the notebooks. What is there already is not replaced.

    Raises:
        InputError: for a folder that has one of the two already.
    """
    kinds = {"without-solutions": without_solutions, "with-solutions": with_solutions}
    for name in kinds:
        if (out / name).exists():
            raise InputError("--out", "have no copies yet", out / name, "Name another folder, or move the old copies")
    written: dict[str, list[Path]] = {}
    for name, changed in kinds.items():
        (out / name).mkdir(parents=True)
        for path in notebook_paths():
            notebook = changed(nbformat.read(path, as_version=4))
            write_atomically(out / name / path.name, nbformat.writes(notebook) + "\n")
        shutil.copyfile(NOTEBOOKS / "glossary.md", out / name / "glossary.md")
        written[name] = sorted((out / name).glob("*.ipynb"))
    return written


# ------------------------------------------------------------------------------ questions


@dataclass(frozen=True)
class Asked:
    """A prediction as a reader without a kernel sees it: plain texts."""

    question: str
    options: str
    answer: str
    because: str


def predictions(notebook: Any) -> list[Asked]:
    """The predictions of a notebook that was executed without widgets, with the answers that the results gave."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            shown = "".join(output.get("data", {}).get("text/html", ""))
            if cell.get("id") != "quiz":
                found += [
                    Asked(**{k: html.unescape(v) for k, v in m.groupdict().items()}) for m in FOLDED.finditer(shown)
                ]
    return found


def mistakes(name: str) -> list[tuple[str, list[str]]]:
    """The exercises of a notebook and what their checks recognise: ("Exercise 1: the gate", ["forgot beta"])."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    titles = re.findall(r"^## (Exercise (\d+): .+)$", "\n".join(c.source for c in notebook.cells), re.M)
    own = exercises_of_the_course().get(name[:2], [])
    ordered = sorted(titles, key=lambda found: int(found[1]))
    return [(t, [m.name for m in exercise.mistakes]) for (t, _), exercise in zip(ordered, own, strict=True)]


def _section(path: Path, executed: Path) -> str:
    if not (executed / path.name).is_file():
        raise InputError("The folder of executed notebooks", f"hold {path.name}", executed, "Run `uftlab notebooks`")
    plain = nbformat.read(path, as_version=4)
    page, needed = contents(plain, path.stem), minutes.minutes(plain)
    lines = [f"## {page.title}", page.question]
    spent = [f"core {round(needed.core)}"] if needed.core else []
    lines.append(
        f"Minutes: {', '.join([*spent, f'to read {round(needed.read)}', f'with everything {round(needed.all)}'])}."
    )
    for own in predictions(nbformat.read(executed / path.name, as_version=4)):
        lines.append(f"- **{own.question}** {own.options}.\n  *{own.answer}.* {own.because}")
    said = [m[1] for c in plain.cells if (m := REMEMBER.search(c.source))]
    lines += ["To remember:", *said] if said else []
    found = mistakes(path.stem)
    lines += (
        ["What the checks recognise, in the words that the learner reads (*It looks as if you ...*):"] if found else []
    )
    lines += [f"- {title}: {'; '.join(names)}." for title, names in found]
    return "\n\n".join(lines).replace(".\n\n- ", ".\n- ")


def questions(executed: Path) -> str:
    """The page: for each notebook its predictions with answers, what to remember, and the mistakes of learners.

    Raises:
        InputError: for a folder without one of the notebooks.
    """
    head = (
        "# Questions, answers and mistakes\n\n"
        "For the teacher. Predictions are questions for the class: ask, let all vote, then read the answer. "
        "The answers are what the stored results give. This page is made from the notebooks by "
        "`python -m uftlab.course.workshop build/notebooks docs/workshop/questions.md`."
    )
    return "\n\n".join([head, *(_section(path, executed) for path in notebook_paths())]) + "\n"


if __name__ == "__main__":
    write_atomically(Path(sys.argv[2]), questions(Path(sys.argv[1])))

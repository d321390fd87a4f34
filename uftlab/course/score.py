"""What readers have predicted and solved: a small JSON file of each, and one tally of a whole class.

    python -m uftlab.course.score FOLDER
    python -m uftlab.course.score FOLDER tally.html

prints the tally, or writes it as a page with a figure for the projector. `checks.score()` at the end of a notebook
writes the file of a reader. It is a note of the reader's, not an examination: nothing keeps a reader from writing it by
hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from uftlab.errors import InputError
from uftlab.files import check_writable, locked, read_json, write_atomically
from uftlab.reports.tables import markdown, plain

if TYPE_CHECKING:
    import plotly.graph_objects as go

FORMAT = "uftlab score 1"
MOST = 100_000  # bytes of a score; a real one has less than a thousand


Predicted = Mapping[str, Sequence[str]]  # question -> what was said first, and the answer


NOTHING: Predicted = MappingProxyType({})


def keep(
    folder: Path,
    name: str,
    solved: Mapping[str, Sequence[int]],
    counts: Mapping[str, int],
    predicted: Predicted = NOTHING,
) -> tuple[Path, dict[str, list[int]]]:
    """Add what is solved to the score of a reader. Returns its file and all that is solved, also from earlier days.

    The first prediction of a reader stays, also over days.

    The file is written only if it says more than before. Two notebooks may write at once.

    Args:
        solved: notebook -> numbers of the exercises that are solved: {"04": [1, 2]}.
        counts: notebook -> how many exercises it has.

    Raises:
        InputError: for a file of that name that is no score, or a folder that cannot be written.
    """
    path = folder / f"score-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-') or 'reader'}.json"
    if not any(solved.values()) and not predicted:
        return path, read(path)["solved"] if path.is_file() else {}
    check_writable(folder, "folder")
    with locked(path):
        stored = read(path) if path.is_file() else {}
        before = stored.get("solved", {})
        both = {book: sorted({*before.get(book, []), *solved.get(book, [])}) for book in sorted({*before, *solved})}
        both = {book: numbers for book, numbers in both.items() if numbers}
        said = {question: list(own) for question, own in predicted.items()} | stored.get("predicted", {})
        if both != before or said != stored.get("predicted", {}):
            own = {"format": FORMAT, "name": name, "exercises": dict(counts), "solved": both}
            own |= {"predicted": said} if said else {}
            write_atomically(path, json.dumps(own, ensure_ascii=False, indent=1) + "\n")
    return path, both


def read(path: Path) -> dict:
    """The score in a file: `name`, `exercises` (notebook -> how many), `solved` (notebook -> numbers), `predicted`.

    `predicted` is not in a file without predictions. It has for each question what was said first, and the answer.

    Raises:
        InputError: for anything else.
    """
    remedy = "Ask its reader to run the last cell of a notebook again, or take the file away"

    def wrong(got: object) -> InputError:
        return InputError(f"The score {path}", f"be a file of the kind {FORMAT!r}", got, remedy)

    try:
        if path.stat().st_size > MOST:
            raise wrong(f"{path.stat().st_size} bytes")
        own = read_json(path.read_bytes())
    except OSError as error:
        raise wrong(error.strerror) from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise wrong(error) from None
    if not isinstance(own, dict) or own.get("format") != FORMAT or not isinstance(own.get("name"), str):
        raise wrong("something else")
    counts, solved = own.get("exercises"), own.get("solved")
    if not isinstance(counts, dict) or not all(type(count) is int and count > 0 for count in counts.values()):
        raise wrong("no numbers of exercises")
    if not isinstance(solved, dict) or not all(isinstance(numbers, list) for numbers in solved.values()):
        raise wrong("no lists of what is solved")
    for book, numbers in solved.items():
        if not all(type(n) is int and 1 <= n <= counts.get(book, 0) for n in numbers) or len({*numbers}) < len(numbers):
            raise wrong(f"exercises {numbers} of notebook {book!r}")
    said = own.get("predicted", {})
    pairs = said.values() if isinstance(said, dict) else [None]
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(text, str) for text in p) for p in pairs):
        raise wrong("no predictions with their answers")
    return own


@dataclass(frozen=True)
class Class:
    """The scores of a folder: file name -> score, and one sentence for each file that is none."""

    scores: dict[str, dict]
    refused: list[str]

    def predictions(self) -> dict[str, tuple[str, dict[str, list[str]]]]:
        """Question -> its answer, and who said what first, the most frequent guess first."""
        found: dict[str, tuple[str, dict[str, list[str]]]] = {}
        for own in self.scores.values():
            for question, (said, answer) in own.get("predicted", {}).items():
                found.setdefault(question, (answer, {}))[1].setdefault(said, []).append(own["name"])
        return {q: (a, dict(sorted(by.items(), key=lambda g: -len(g[1])))) for q, (a, by) in found.items()}

    def solved(self) -> dict[str, int]:
        """Exercise, such as "04.2" -> how many readers solved it. Exercises that nobody solved are there, too."""
        most: dict[str, int] = {}
        for own in self.scores.values():
            most |= {book: max(count, most.get(book, 0)) for book, count in own["exercises"].items()}
        done = Counter(
            f"{b}.{n}" for own in self.scores.values() for b, numbers in own["solved"].items() for n in numbers
        )
        return {f"{book}.{n}": done[f"{book}.{n}"] for book in sorted(most) for n in range(1, most[book] + 1)}


def read_class(folder: Path) -> Class:
    """All scores of a folder. A file that is no score is refused, and the others are read.

    Raises:
        InputError: for a folder without a single score.
    """
    scores, refused = {}, []
    for path in sorted(folder.glob("score-*.json")):
        try:
            scores[path.name] = read(path)
        except InputError as error:
            refused.append(str(error))
    if not scores:
        rule, remedy = "hold files score-*.json", "Collect them from results/score of each reader"
        raise InputError("The folder of scores", rule, "; ".join(refused) or f"none in {folder}", remedy)
    return Class(scores, refused)


def table(scores: Mapping[str, dict]) -> str:
    """Scores as a table in Markdown: a line for each file, a column for each notebook, the sum, predictions."""
    books = sorted({book for own in scores.values() for book in own["exercises"]})
    lines = []
    for file, own in scores.items():
        said = own.get("predicted", {}).values()
        right = sum(first == answer for first, answer in said)
        each = [f"{len(own['solved'].get(book, []))} of {own['exercises'].get(book, 0)}" for book in books]
        total = f"{sum(map(len, own['solved'].values()))} of {sum(own['exercises'].values())}"
        lines.append([plain(own["name"]), plain(file), *each, total, f"{right} of {len(said)}"])
    return markdown(["name", "file", *map(plain, books), "all", "predicted"], lines)


def tally(found: Class) -> list[str]:
    """The lines that a teacher reads: the table, each prediction with who said what, and the exercises."""
    lines = [*table(found.scores).splitlines()]
    for question, (answer, by) in found.predictions().items():
        count = sum(map(len, by.values()))
        lines += ["", f"{plain(question)} Right: {len(by.get(answer, []))} of {count}."]
        for said, names in by.items():
            mark = " (right)" if said == answer else ""
            lines.append(f"- {plain(said)}{mark}: {len(names)}, {', '.join(map(plain, names))}")
    done = [f"{exercise}: {count}" for exercise, count in found.solved().items()]
    return [*lines, "", f"Solved by, of {len(found.scores)}: {', '.join(done)}."]


def figure(found: Class) -> go.Figure:
    """The share of the class that was right at first, for each prediction, and that solved it, for each exercise."""
    import plotly.graph_objects as go

    from uftlab.plots import theme

    rows = {
        theme.lines(plain(question), 60): (len(by.get(answer, [])), sum(map(len, by.values())))
        for question, (answer, by) in found.predictions().items()
    }
    rows |= {f"exercise {name}": (count, len(found.scores)) for name, count in found.solved().items()}
    bars = go.Bar(
        y=list(rows),
        x=[right / count for right, count in rows.values()],
        text=[f"{right} of {count}" for right, count in rows.values()],
        orientation="h",
    )
    made = theme.figure(bars, title="The class: right at first, and solved", x="share", height=120 + 44 * len(rows))
    made.update_yaxes(autorange="reversed", automargin=True)
    return made.update_xaxes(range=[0, 1.05])


def write_page(path: Path, found: Class) -> None:
    """The tally as one page with its figure, which needs no network."""
    from uftlab.plots import theme

    lines = "\n".join(tally(found))  # names and questions are escaped already
    drawn = figure(found).to_html(full_html=False, include_plotlyjs=True, config=theme.CONFIG)
    head = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>The class</title></head>'
    write_atomically(path, f'{head}<body>{drawn}<pre style="white-space: pre-wrap">{lines}</pre></body></html>\n')


def main(words: Sequence[str]) -> int:
    """The command: prints the tally of one folder, or writes it as a page; 2 for a folder without a single score.

    A file that is no score is named beside the others.
    """
    try:
        if len(words) not in (1, 2):
            remedy = "Say python -m uftlab.course.score FOLDER, or FOLDER tally.html"
            raise InputError("The command", "name one folder", f"{len(words)} words", remedy)
        found = read_class(Path(words[0]))
        if len(words) == 2:
            write_page(Path(words[1]), found)
            print(f"wrote {words[1]}")
        else:
            print("\n".join(tally(found)))
        for line in found.refused:
            print(line, file=sys.stderr)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

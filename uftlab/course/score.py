"""What readers have solved: a small JSON file of each, and one table of a whole class.

    python -m uftlab.course.score FOLDER

`checks.score()` at the end of a notebook writes the file. It is a note of the reader's, not an examination: nothing
keeps a reader from writing it by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from uftlab.errors import InputError
from uftlab.files import check_writable, locked, read_json, write_atomically
from uftlab.reports.tables import markdown, plain

FORMAT = "uftlab score 1"
MOST = 100_000  # bytes of a score; a real one has less than a thousand


def keep(
    folder: Path, name: str, solved: Mapping[str, Sequence[int]], counts: Mapping[str, int]
) -> tuple[Path, dict[str, list[int]]]:
    """Add what is solved to the score of a reader. Returns its file and all that is solved, also from earlier days.

    The file is written only if it says more than before. Two notebooks may write at once.

    Args:
        solved: notebook -> numbers of the exercises that are solved: {"04": [1, 2]}.
        counts: notebook -> how many exercises it has.

    Raises:
        InputError: for a file of that name that is no score, or a folder that cannot be written.
    """
    path = folder / f"score-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-') or 'reader'}.json"
    if not any(solved.values()):
        return path, read(path)["solved"] if path.is_file() else {}
    check_writable(folder, "folder")
    with locked(path):
        before = read(path)["solved"] if path.is_file() else {}
        both = {book: sorted({*before.get(book, []), *solved.get(book, [])}) for book in sorted({*before, *solved})}
        both = {book: numbers for book, numbers in both.items() if numbers}
        if both != before:
            own = {"format": FORMAT, "name": name, "exercises": dict(counts), "solved": both}
            write_atomically(path, json.dumps(own, ensure_ascii=False, indent=1) + "\n")
    return path, both


def read(path: Path) -> dict:
    """The score in a file: its `name`, `exercises` (notebook -> how many) and `solved` (notebook -> numbers).

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
    return own


def table(folder: Path) -> str:
    """The scores in a folder as a table in Markdown: a line for each file, a column for each notebook, and the sum.

    Raises:
        InputError: for a folder without scores, or a file that is none.
    """
    paths = sorted(folder.glob("score-*.json"))
    if not paths:
        rule, remedy = "hold files score-*.json", "Collect them from results/score of each reader"
        raise InputError("The folder of scores", rule, f"none in {folder}", remedy)
    scores = [read(path) for path in paths]
    books = sorted({book for own in scores for book in own["exercises"]})
    lines = [
        [
            plain(own["name"]),
            plain(path.name),
            *(f"{len(own['solved'].get(book, []))} of {own['exercises'].get(book, 0)}" for book in books),
            f"{sum(map(len, own['solved'].values()))} of {sum(own['exercises'].values())}",
        ]
        for path, own in zip(paths, scores, strict=True)
    ]
    return markdown(["name", "file", *map(plain, books), "all"], lines)


def main(words: Sequence[str]) -> int:
    """The command: prints the table of one folder; returns 2 for anything that cannot be read."""
    try:
        if len(words) != 1:
            remedy = "Say python -m uftlab.course.score FOLDER"
            raise InputError("The command", "name one folder", f"{len(words)} words", remedy)
        print(table(Path(words[0])))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

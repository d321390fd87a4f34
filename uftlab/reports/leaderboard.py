"""The table of the leaderboard, from the files in data/leaderboard.

python -m uftlab.reports.leaderboard docs/leaderboard.md

writes it into a file, between the lines `<!-- leaderboard -->` and `<!-- end of leaderboard -->`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from uftlab.files import write_between
from uftlab.reports.tables import markdown
from uftlab.study.leaderboard import ENTRY, RIVAL, Entry, stored_entries
from uftlab.study.results import HEADLINES, interval

SHOWN = ("instruction/both", "truth/mc2", "plain/mc2", "retention/lost")


def table(entries: Sequence[Entry]) -> str:
    """The entries in the order of their rank, with `uft` as the first of them measured it, in Markdown.

    An entry that loses more old text than `uft` has no rank.
    """
    head = ["rank", "method", "entered by", "sum minus that of `uft`", *(HEADLINES[name][0] for name in SHOWN)]
    rows = [_row(str(n) if own.forgets() <= 0 else "-", own) for n, own in enumerate(entries, start=1)]
    if entries:
        rows.append(["", "`uft`", "", "0", *_levels(entries[0], RIVAL), "", ""])
    return markdown([*head, "fresh world", "verified"], rows)


def _row(rank: str, own: Entry) -> list[str]:
    name = f"`{own.method}`" + (f" ({own.code})" if own.code else "")
    return [rank, name, own.by, own.margin().told("+.3f"), *_levels(own, ENTRY), *_checked(own)]


def _levels(own: Entry, who: str) -> list[str]:
    return [interval([world[name] for world in own.measured[who]]).told(".3f") for name in SHOWN]


def _checked(own: Entry) -> list[str]:
    """Its sum minus that of `uft` in the fresh world, and how well its repetition agreed."""
    if own.verified is None:
        return ["-", "not yet"]
    most = own.verified.largest_difference
    how = f"within {most:.2g}" if most else "to the last digit"
    return [f"{own.verified.fresh.margin():+.3f}", f"{own.verified.day}, {how}"]


if __name__ == "__main__":
    write_between(Path(sys.argv[1]), "leaderboard", table(stored_entries()))

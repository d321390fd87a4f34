"""A badge of the course: how many of its notebooks ran to their end, with which version and when. An SVG of its own."""

from __future__ import annotations

import html
from datetime import UTC, datetime
from pathlib import Path

from uftlab.files import write_atomically
from uftlab.version import VERSION

GREEN, RED, GREY = "#1a7f37", "#b42318", "#444c56"  # white text on each has a contrast above 4.5
WIDTH = 7  # pixels for a character of the badge's font

BADGE = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{label}: {text}">
<title>{asserts}</title>
<rect width="{width}" height="20" rx="3" fill="{colour}"/>
<path d="M3 0h{left}v20h-{left}a3 3 0 0 1-3-3V3a3 3 0 0 1 3-3z" fill="{grey}"/>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="6" y="14" textLength="{label_length}">{label}</text>
<text x="{text_at}" y="14" textLength="{text_length}">{text}</text>
</g>
</svg>
"""


def write_badge(path: Path, passed: int, total: int, profile: str, day: str = "") -> str:
    """Write the badge of a run of notebooks, and return its text. It is green only if all notebooks of the course ran.

    Args:
        passed: notebooks that ran to their end.
        total: notebooks of the course; those that were not run count, too.
        day: of the run; empty: today (UTC).
    """
    day = day or datetime.now(UTC).date().isoformat()
    text = f"{passed} of {total} ran · {profile} · {VERSION} · {day}"
    asserts = (
        f"{passed} of the {total} notebooks of uftlab {VERSION} ran to their last cell on {day}, "
        f"profile {profile}, with the solutions of their exercises"
    )
    label = "course"
    label_length, text_length = WIDTH * len(label), WIDTH * len(text)
    drawn = BADGE.format(
        label=label, text=html.escape(text), asserts=html.escape(asserts), grey=GREY,
        colour=GREEN if passed == total else RED, left=label_length + 9, width=label_length + text_length + 24,
        label_length=label_length, text_length=text_length, text_at=label_length + 18,
    )  # fmt: skip
    write_atomically(path, drawn)
    return text

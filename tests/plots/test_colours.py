"""Who sees colours otherwise, or sees little contrast, reads the same figures and pages.

Contrast: WCAG 2.2, https://www.w3.org/TR/WCAG22. Colour blindness: the matrices of Machado, Oliveira and Fernandes
(2009, severity 1), on linear RGB. Distances: CIE 1976, where 10 is plainly another colour.
"""

import itertools
import re

import numpy as np
import pytest

from uftlab.course import checks, export, slides, texts
from uftlab.plots import figures, theme

SEEN = {
    "as most": np.eye(3),
    "without red cones": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "without green cones": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "without blue cones": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
TEXT, GRAPHIC = 4.5, 3.0  # the least contrasts of AA: of text, and of what is no text and has a meaning


def linear(colour):
    digits = colour.removeprefix("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    shares = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    light, dark = sorted((linear(c) @ [0.2126, 0.7152, 0.0722] for c in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def place(colour, seen):
    xyz = np.array(TO_XYZ) @ np.clip(np.array(seen) @ linear(colour), 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def apart(one, other, seen):
    return float(np.linalg.norm(place(one, seen) - place(other, seen)))


def test_the_measures_have_their_known_values():
    assert contrast("#000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#fff") == pytest.approx(
        4.48, abs=0.01
    )
    red, green = "#BB3333", "#557700"
    assert apart(red, green, SEEN["as most"]) > 80 and apart(red, green, SEEN["without green cones"]) < 30


@pytest.mark.parametrize("seen", SEEN.values(), ids=SEEN)
def test_no_two_series_have_one_colour_for_anybody(seen):
    assert min(apart(a, b, seen) for a, b in itertools.combinations(theme.COLOURS, 2)) > 15
    roles = [colour for colour, _ in figures.ROLE_STYLE.values()]
    assert min(apart(a, b, seen) for a, b in itertools.combinations(roles, 2)) > 15


def test_series_differ_without_any_colour_and_most_stand_out_from_the_paper():
    for looks in (theme.DASHES, theme.SYMBOLS, theme.PATTERNS):
        assert len(set(looks)) == len(theme.COLOURS)
    assert all(contrast(colour, "#fff") >= GRAPHIC for colour in theme.COLOURS[:4])
    bars = theme._template().data.bar  # the fifth and the sixth are pale: bars have a frame, lines are thick
    assert all(bar.marker.line.color == theme.INK for bar in bars) and theme.LINE_WIDTH >= 4
    assert contrast(theme.INK, "#fff") >= TEXT
    assert all(contrast(colour, "#fff") >= GRAPHIC for colour, _ in figures.ROLE_STYLE.values())
    assert contrast(texts.GREY, "#fff") >= GRAPHIC


def themes_of(style):
    """The variables of a page in its light and in its dark theme."""
    light, dark = (dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S))
    return {"light": light, "dark": {**light, **dark}}


@pytest.mark.parametrize("name", ["light", "dark"])
def test_pages_can_be_read_in_both_themes(name):
    own = themes_of(export.STYLE)[name]
    for paper in (own["paper"], own["box"]):
        assert all(contrast(own[word], paper) >= TEXT for word in ("ink", "soft", "link"))
    (focus,) = set(re.findall(r"outline: \dpx solid (#\w+)", export.STYLE))
    assert contrast(focus, own["paper"]) >= GRAPHIC
    assert all(contrast(colour, own["paper"]) >= GRAPHIC for colour in checks.ACCENTS.values())


def test_slides_can_be_read():
    for colour in re.findall(r"[ ;]color: (#\w+)", slides.STYLE):
        assert contrast(colour, "#fff") >= TEXT, colour

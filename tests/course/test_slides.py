"""Slides hold a notebook's question, predictions, figures and summary in one file that asks nobody for anything."""

import json
import re

import nbformat
import plotly.graph_objects as go
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from uftlab.course import slides
from uftlab.course.notebooks import notebook_paths
from uftlab.errors import InputError
from uftlab.plots import theme, widgets


@pytest.fixture
def executed(tmp_path):
    """A folder with one executed notebook, under the name of notebook 04: a core figure and one that is not."""
    figure = theme.figure(go.Bar(x=["</script>"], y=[1]), title="Mixing<br>or loss?", height=530)
    asked = widgets.predict("1 < 2?", ["yes", "no"], "yes", "By counting.", headless=True)._repr_html_()
    core = {"tags": ["core"]}
    cells = [
        new_markdown_cell("# 4. Title\n\n> The question, $\\beta$?", metadata=core),
        new_code_cell("", metadata=core, outputs=[new_output("display_data", {"text/html": asked})]),
        new_code_cell("", metadata=core, outputs=[new_output("display_data", theme.bundle(figure))]),
        new_code_cell("", outputs=[new_output("display_data", theme.bundle(figure))]),
        new_markdown_cell("## Summary\n\n### Three sentences to remember\n\n1. One.\n2. Two $z$.\n\nMore."),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / notebook_paths("04")[0].name)
    return tmp_path


def test_the_slides_of_a_notebook_come_in_its_order(executed, tmp_path):
    out = tmp_path / "slides.html"
    assert slides.write_slides(executed, out, "04") == 4
    assert slides.write_slides(executed, tmp_path / "all.html", "04", everything=True) == 5
    page = out.read_text()
    first, asked, drawn, last = re.findall(r"<section.*?</section>", page.split("</head>")[1], re.S)
    assert "<blockquote>" in first and "<math>" in first and "4. Title" in first
    assert "1 &lt; 2?" in asked and "<li>no</li>" in asked and "<summary>Answer</summary><b>yes</b>" in asked
    assert "Two <math>" in last and "More." not in last
    own = json.loads(re.search(r'<script type="application/json">(.*?)</script>', drawn, re.S)[1])
    assert own["data"][0]["x"] == ["</script>"] and "height" not in own["layout"] and own["layout"]["autosize"]
    assert 'aria-label="Mixing or loss?"' in drawn


def test_the_file_asks_nobody_for_anything(executed, tmp_path):
    slides.write_slides(executed, tmp_path / "slides.html", "04")
    page = (tmp_path / "slides.html").read_text()
    assert "Plotly.newPlot" in page and not re.search(r"<(?:script|img|link)[^>]* (?:src|href)=\"(?!data:,)", page)


def test_a_folder_that_was_not_executed_is_refused(tmp_path):
    with pytest.raises(InputError, match="--executed must hold 04"):
        slides.write_slides(tmp_path, tmp_path / "out.html", "04")
    nbformat.write(nbformat.read(notebook_paths("04")[0], as_version=4), tmp_path / notebook_paths("04")[0].name)
    with pytest.raises(InputError, match="be executed"):
        slides.write_slides(tmp_path, tmp_path / "out.html", "04")

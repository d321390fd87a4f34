"""The documentation as web pages: no dead link, no page that nothing leads to, nothing asked of another host."""

import doctest
import re

import documentation
import driver
import nbformat
import pytest
from docstrings import said
from documentation import Documentation, troubles, write_index
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.course import export
from uftlab.course.notebooks import NOTEBOOKS, notebook_paths
from uftlab.errors import InputError

TROUBLES = (documentation.ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, with the words of the notebooks in place of executed ones. The folder has a space in its name."""
    out = tmp_path_factory.mktemp("a site")
    documented = Documentation()
    documented.write(out)
    assert documented.dead == []
    texts = {"glossary": (NOTEBOOKS / "glossary.md").read_text(encoding="utf-8"), "live": "# Explorers"}
    for path in notebook_paths():
        cells = nbformat.read(path, as_version=4).cells
        texts[path.stem] = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    texts["index"] = "\n".join(f"- [{name}]({name}.ipynb)" for name in texts)
    (out / "course").mkdir()
    for name, text in texts.items():
        body = export._linked(export.markdown(text), texts, out / "course")
        page = export._page(name, body, True, home=True)
        (out / "course" / f"{name}.html").write_text(page, encoding="utf-8")
    write_index(out, documented.sections)
    return out


def test_no_link_is_dead_no_page_is_lost_and_no_other_host_is_asked(site):
    assert troubles(site) == []
    assert len(list(site.rglob("*.html"))) > 200


def test_the_course_leads_to_the_documentation_and_back(site):
    notebook = (site / "course" / "04_forgetting.html").read_text()
    assert 'href="../index.html"' in notebook and 'href="../docs/results/study.html"' in notebook
    assert 'href="course/live.html"' in (site / "index.html").read_text()


def test_every_way_in_which_a_page_can_be_wrong_is_found(tmp_path):
    (tmp_path / "index.html").write_text(
        '<a href="gone.html">a</a> <a href="b.html#no">b</a> <a href="b.html#yes">c</a> <a href="https://arxiv.org">d</a>'
        '<script src="https://cdn.example/x.js"></script><img src="//host.example/y.png"><img src="lost.png">'
        '<link rel="stylesheet" href="site.css"><style>p { background: url(https://host.example/z.png) }</style>'
        '<script>const text = `<a href="not-a-link.html">`;</script>'
    )
    (tmp_path / "b.html").write_text('<p id="yes">')
    (tmp_path / "lonely.html").write_text("<p>")
    (tmp_path / "search.js").write_text("")
    (tmp_path / "site.css").write_text('@import "https://fonts.example/css";')
    assert troubles(tmp_path) == [
        "index.html: asks another host: //host.example/y.png",
        "index.html: asks another host: https://cdn.example/x.js",
        "index.html: asks another host: https://host.example/z.png",
        "index.html: dead link gone.html",
        "index.html: lacks lost.png",
        "index.html: no such place: b.html#no",
        "lonely.html: nothing leads to this page",
        'site.css: asks another host: https://fonts.example/css";',
    ]


def test_a_folder_with_other_things_is_not_emptied(tmp_path):
    (tmp_path / "thesis.md").write_text("years of work")
    with pytest.raises(InputError, match="be empty or an earlier site"):
        documentation._emptied(tmp_path)
    assert (tmp_path / "thesis.md").is_file()


def test_a_docstring_becomes_paragraphs_equations_lists_and_examples():
    shown = said(
        "Loss of *one* row, by `beta` and x_1.\n\nL = -log sigma(margin),  margin = r\n\nArgs:\n    beta: strength,\n"
        "        in nats.\n    a, b: two <tags>.\n\nReturns:\n    Loss. log 2\n    at the start.\n\n>>> f(1)\n2"
    )
    assert shown == (
        "Loss of \\*one\\* row, by `beta` and x\\_1.\n\n```text\nL = -log sigma(margin),  margin = r\n```\n\n"
        "**Arguments**\n\n- `beta`: strength, in nats.\n- `a, b`: two \\<tags>.\n\n"
        "**Returns.** Loss. log 2 at the start.\n\n```pycon\n>>> f(1)\n2\n```"
    )


def test_every_public_function_of_the_losses_has_its_place_and_is_linked(site):
    page = (site / "docs" / "api" / "losses.pairs.html").read_text()
    assert 'id="dpo_loss"' in page and "reference_rejected_logps" in page
    assert 'href="../api/losses.rewards.html#squared_error_gate"' in (site / "docs/methods/uft.html").read_text()
    examples = doctest.DocTestFinder().find(documentation.page_of, globs=vars(documentation))
    assert [doctest.DocTestRunner().run(own).failed for own in examples] == [0]


@pytest.mark.parametrize(
    "command",
    ["train --model tiny --demonstrations rows.jsonl --epochs 1 --steps 2 --method sft --out new",
     "train --model tiny --demonstrations rows.jsonl --steps 2 --method sft --out my-model",
     "train --model tiny --demonstrations rows.jsonl --steps 2 --method sft --out new --set learning_rat=1e-3",
     "train --model tiny --demonstrations q.jsonl --steps 2 --method sft --out new",
     "train --model tiny --demonstrations cut/rows.jsonl --steps 2 --method sft --out new",
     "train --model tiny --feedback ratings.jsonl --steps 2 --method una-score --out new",
     "report nostudy", "eval --model tiny --suite ifevall --out new", "compare new"],
)  # fmt: skip
def test_what_troubleshooting_quotes_is_what_is_said(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "model.safetensors").touch()
    (tmp_path / "cut").mkdir()
    rows = '{"prompt": "what is the food of moka ?", "completion": "it is moss ."'
    (tmp_path / "rows.jsonl").write_text(rows + "}\n")
    (tmp_path / "cut" / "rows.jsonl").write_text(rows + '}\n{"prompt": "a", "completion": \n')
    (tmp_path / "q.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    (tmp_path / "ratings.jsonl").write_text(rows + ', "score": 0.2}\n' + rows + ', "score": 1.7}\n')
    ended = CliRunner().invoke(app, command.split())
    told = " ".join(ended.output.split()).replace("cut/", "")
    quoted = [" ".join(own.split()) for own in re.findall(r"^```text\n(.*?)^```", TROUBLES, flags=re.M | re.S)]
    matching = [own for own in quoted if all(part.strip() in told for part in re.split(r"\.\.\.", own))]
    assert ended.exit_code == 2 and len(matching) == 1, told


@pytest.mark.skipif(driver.chromium() is None, reason="no Chromium here; Debian: apt-get install chromium")
def test_search_finds_a_page_from_a_file_without_a_network(site):
    with driver.browser() as browser:
        context = browser.new_context(offline=True)
        page, trouble = context.new_page(), []
        page.on("request", lambda r: r.url.startswith((site.as_uri(), "data:")) or trouble.append(r.url))
        page.on("console", lambda m: m.type in ("error", "warning") and trouble.append(m.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.goto((site / "docs" / "train.html").as_uri())
        page.keyboard.press("/")
        page.keyboard.type("squared_error_gate")
        page.wait_for_selector("#found a")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.wait_for_url("**/losses.rewards.html#squared_error_gate")
        assert trouble == []
        page.keyboard.press("/")
        page.keyboard.type("zzzzz")
        page.wait_for_selector("#found p")
        assert page.inner_text("#found") == "Nothing found."

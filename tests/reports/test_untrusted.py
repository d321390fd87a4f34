"""Text of others is shown and does nothing: in the report, in pages, in Markdown and in a terminal."""

import html
import io
import json
import re

import driver
import pytest
from made_up import made_up
from rich.console import Console
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.commands import frame
from uftlab.errors import InputError, printable
from uftlab.evals.outcomes import load_result
from uftlab.files import write_atomically
from uftlab.reports.evaluation import compare, comparison_page, run_page
from uftlab.reports.html import write_report
from uftlab.reports.tables import plain
from uftlab.study.trials import read_trial

PLANTED = (
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "\\[/b] [bold]x[/bold] [link=http://192.0.2.1]y[/link]",
    "\x1b[2J\x1b]0;title\x07",
    "a | b\n# head `code` [link](http://192.0.2.1) ![p](http://192.0.2.1/p.png)",
)
EVERY = " ".join(PLANTED)
STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def planted_trial(method, seed):
    """A trial with planted text in every field that takes any text."""
    trial = made_up(method, seed, strict=0.2 + 0.1 * seed)
    trial |= {"device": EVERY, "versions": {EVERY: EVERY}, "note": EVERY, "measured": EVERY}
    return trial | {"samples": [{"prompt": EVERY, "answer": EVERY, "kind": EVERY, EVERY: EVERY}]}


@pytest.mark.parametrize("field", ["method", "profile", "split"])
@pytest.mark.parametrize("text", PLANTED)
def test_names_of_a_trial_are_names(tmp_path, field, text):
    path = tmp_path / "trials" / "0.json"
    write_atomically(path, json.dumps({**made_up("uft", 0), field: text}))
    with pytest.raises(InputError, match=field):
        read_trial(path)


@pytest.mark.skipif(driver.chromium() is None, reason="no Chromium here")
def test_no_planted_text_of_trials_runs_in_a_browser(tmp_path):
    trials = [planted_trial(method, seed) for method in ("uft", "sft-then-dpo") for seed in (0, 1, 2)]
    trials = [{**trial, "profile": EVERY} for trial in trials]  # as if no reader had refused it
    path = write_report(tmp_path / "report.html", trials)
    with driver.browser() as running:
        page = running.new_page()
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        assert page.evaluate("window.hit") is None
        assert page.locator("img[src=x]").count() == 0 and page.locator("a[href*='192.0.2.1']").count() == 0
        assert PLANTED[0] in page.locator("small").last.inner_text()
        assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def evaluation(**changes):
    questions = {"a": [1.0, 1.0], "b": [0.0, 1.0], EVERY: [1.0, 1.0]}
    result = {
        "schema": 1, "model": EVERY, "weights": EVERY, "reference": EVERY, "method": EVERY, "seed": 0,
        "recipe": {EVERY: EVERY}, "settings": {"suites": [EVERY], "limit": 2, "max_new_tokens": 9},
        "sources": {EVERY: EVERY}, "versions": {EVERY: EVERY}, "device": EVERY, "seconds": {EVERY: 1.0},
        "facts": {EVERY: EVERY}, "measures": [{"name": EVERY, "template": None, "questions": questions}],
    }  # fmt: skip
    return json.dumps({**result, **changes})


def test_planted_text_of_an_evaluation_is_text_in_its_pages(tmp_path):
    for name, text in (("one", evaluation()), ("two", evaluation(model="m", method=None))):
        write_atomically(tmp_path / name / "eval.json", text)
    pages = [run_page(load_result(tmp_path / "one"))]
    pages.append(comparison_page(compare([tmp_path / "one"], tmp_path / "two"), [tmp_path / "one"]))
    for page in pages:
        assert "<script" not in page and "<img" not in page and not STEERS.search(page)
        assert "](http" not in page and html.escape("<script>") in page
        assert [line for line in page.splitlines() if line.startswith("# head")] == []


@pytest.mark.parametrize("text", PLANTED)
def test_text_in_markdown_stays_in_its_cell(text):
    shown = plain(text)
    assert not set(shown) & set("<>|`[]\n\x1b")


def test_what_is_said_does_not_steer_the_terminal_and_is_no_markup(monkeypatch):
    written = io.StringIO()
    for name in ("console", "errors"):
        monkeypatch.setattr(frame, name, Console(file=written, force_terminal=False, width=2000))
    frame.say(EVERY)
    frame.warn(EVERY)
    shown = written.getvalue()
    assert not STEERS.search(shown.replace("\n", "")) and shown.count("\\[/b] [bold]x[/bold]") == 2
    assert "\\x1b[2J" in shown


@pytest.mark.parametrize("text", ["\ud800", "\udcff", "\u202eabc", "\x9b31m", "\r"])
def test_what_cannot_be_written_or_turns_the_line_is_shown_as_an_escape(text):
    assert printable(f"a{text}b\n\té").encode().decode().startswith("a\\")
    assert printable("a\n\té [x]") == "a\n\té [x]"


@pytest.mark.parametrize("text", PLANTED)
@pytest.mark.parametrize(
    "arguments",
    [("run", "--methods", "TEXT"), ("run", "--profile", "TEXT"), ("report", "TEXT"), ("results", "--study", "TEXT"),
     ("results", "--study", "epsilon", "--only", "TEXT"), ("train", "--out", "x", "--method", "TEXT"),
     ("train", "--out", "x", "--set", "TEXT"), ("map", "TEXT"), ("run", "--workers", "TEXT"), ("TEXT",),
     ("notebooks", "--only", "TEXT"), ("eval", "--model", "TEXT", "--suite", "TEXT")],
    ids=lambda words: " ".join(words),
)  # fmt: skip
def test_a_refusal_of_planted_text_is_plain(arguments, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [text if word == "TEXT" else word for word in arguments])
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), repr(done.exception)
    assert not STEERS.search(done.output.replace("\n", "")) and "Traceback" not in done.output

"""What the doctor prints: the command with its exit codes, the section of a page, the widget."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.course.real_model import write_rows
from uftlab.evals.doctor import diagnose
from uftlab.evals.run_logs import Run, read_runs
from uftlab.plots import widgets
from uftlab.reports.doctor import html_section, lines, section
from uftlab.study.results import RESULTS

LOGS = Path(__file__).parent.parent / "evals" / "logs"
EVIL = "[bold]<b>run</b>[/bold]"


def doctor(*arguments):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)], env={"COLUMNS": "100"})


def diverged(name):
    return diagnose(Run(name, {"loss": [(1.0, 0.7), (2.0, 0.7), (3.0, 9.0)]}))


def test_a_serious_finding_is_told_with_evidence_and_remedy_and_exit_code_1():
    ended = doctor(LOGS / "trl_dpo_diverged.json")
    assert ended.exit_code == 1
    for said in ("1 serious finding", "serious: divergence", "What to do: Lower the learning rate", "loss from step"):
        assert said in ended.output


def test_a_healthy_run_ends_with_0():
    ended = doctor(LOGS / "trl_kto_healthy.json", "--beta", "0.2")
    assert ended.exit_code == 0 and "nothing found" in ended.output
    assert "cannot tell length drift: needs length/words" in ended.output


def test_several_runs_as_json():
    ended = doctor(LOGS / "trl_dpo_diverged.json", LOGS / "trl_kto_healthy.json", "--json")
    first, second = json.loads(ended.stdout)
    assert ended.exit_code == 1 and not second["findings"] and second["unknown"]
    (found,) = first["findings"]
    assert (found["name"], found["severity"], found["threshold"]) == ("divergence", "serious", 2.5)
    assert set(found["evidence"]) == {"curve", "step", "value", "words"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--beta", "0"], "--beta must be above 0"), (["--loss", "dpa"], "An objective must be one of")],
)
def test_settings_that_cannot_be_are_refused(arguments, said):
    ended = doctor(LOGS / "trl_dpo_healthy.json", *arguments)
    assert ended.exit_code == 2 and said in ended.output


@pytest.mark.parametrize(("rate", "told"), [("10", True), ("0.001", False)])
def test_a_training_that_ended_says_what_is_serious_about_it(rate, told, tmp_path):
    """Its loss stays finite, so the model is saved; nobody should take it for a good one."""
    write_rows(tmp_path, 32)
    words = "train --model tiny --method sft-full --steps 12 --batch 8 --warmup 0 --learning-rate".split()
    files = ["--demonstrations", str(tmp_path / "demonstrations.jsonl"), "--out", str(tmp_path / "out")]
    ended = CliRunner().invoke(app, [*words, rate, *files])
    assert ended.exit_code == 0, ended.output
    assert ("warning: " in ended.stderr) == told
    assert (f"{tmp_path / 'out'}: divergence: the loss is" in ended.stderr and "Lower" in ended.stderr) == told


def test_a_file_that_is_missing_is_refused(tmp_path):
    ended = doctor(tmp_path / "[red]none.json")
    assert ended.exit_code == 2 and "[red]none.json must be a file" in ended.output


def test_names_are_no_markup_in_a_terminal_and_escaped_in_html():
    report = diverged(EVIL)
    assert lines(report)[0].plain.startswith(EVIL)
    shown = widgets.doctor({EVIL: report}, headless=True)
    assert "<b>run</b>" not in shown and "&lt;b&gt;run" in shown and "divergence" in shown


def test_the_section_of_a_page():
    (path,) = (RESULTS / "class" / "trials").glob("uft-seed0-*.json")
    text = "\n".join(section([diagnose(run).asdict() for run in read_runs(path)]))
    assert "**inert reward** (serious)" in text
    assert section([]) == []


def test_the_section_of_the_report_counts_findings_by_method():
    paths = sorted((RESULTS / "class" / "trials").glob("uft-seed[01]-*.json"))
    page = "".join(html_section([json.loads(path.read_text()) for path in paths]))
    assert "<tr><td>uft</td><td>2</td><td>2</td>" in page and "inert reward" in page
    assert html_section([{"method": "base", "stages": []}]) == []


def test_the_widget_shows_the_run_that_is_chosen():
    reports = {"one": diverged("one"), "two": diagnose(Run("two", {"loss": [(1.0, 2.0), (2.0, 1.0), (3.0, 0.5)]}))}
    box = widgets.doctor(reports)
    assert "divergence" in box.shown.value
    box.chosen.value = "two"
    assert "Nothing was found" in box.shown.value

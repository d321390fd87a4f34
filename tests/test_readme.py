"""What the README tells a newcomer to type works, and what it links to exists."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.study import comparisons, matched, questions, results

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results" / "README.md").read_text()
SPEED = (ROOT / "docs" / "speed.md").read_text()
BLOCKS = dict.fromkeys(re.findall(r"```(?:bash|python)\n.*?```", README, flags=re.S))


def commands():
    """The uftlab commands of the README, without comments."""
    lines = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
    return [line for line in lines if line.startswith("uftlab ") and "COMMAND" not in line]


def test_every_link_to_a_file_exists():
    made = {"../course/live.html", "../course/index.html", "api.md", "commands.md"}  # by `make site`
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            only_there = path.name == "index.md" and target in made
            assert only_there or (path.parent / target).exists(), (path.name, target)


def test_the_five_results_are_in_the_stored_ones():
    """Each number of the README's results is in the page of all results, or in that of its question."""
    section = " ".join(README.split("## Five results")[1].split("[All results]")[0].split())
    pages = RESULTS + "".join((ROOT / "docs" / "questions" / f"{name}.md").read_text() for name in questions.QUESTIONS)
    everything = " ".join(pages.replace("**", "").split())
    numbers = re.findall(r"[+-]?\d+\.\d+", section)
    assert len(numbers) >= 15 and [number for number in numbers if number not in everything] == []
    assert "86 to 92 %" in everything and "-5 to 30 %" in everything
    assert len(re.findall(r"(?:^| )\d\. ", section)) == 5


def test_the_result_of_self_distillation_is_what_its_tests_say():
    rows = {
        (row["comparison"], row["metric"]): row
        for row in questions.tested(
            questions.QUESTIONS["self_distillation"], results.load(results.RESULTS / "questions")
        )
    }
    truth, lost = (rows["sdft minus cue-sft", metric] for metric in ("truth/mc2", "retention/lost"))
    section = " ".join(README.split("## Five results")[1].split("[All results]")[0].split())
    for row in (truth, lost):
        assert row["verdict"] == "higher"
        assert f"({row['mean']:+.3f}, {row['low']:.3f} to {row['high']:.3f}" in section
    assert rows["sdft minus sft-full", "retention/lost"]["verdict"] == "lower"


def test_what_holding_the_weights_brings_is_what_its_control_says():
    """SFT held near its start: the tuned difference, and each at the learning rate of the other."""
    stored = [*results.load(results.RESULTS / "recent"), *results.load(results.RESULTS / "class")]
    rows = matched.differences(matched.OF_RECENT, results.load(matched.STORED), stored, comparisons.OUTCOMES)
    same, fast = (row for row in rows if row["metric"] == "instruction/both")
    section = " ".join(README.split("## Five results")[1].split("[All results]")[0].split())
    assert same["verdict"] == "not settled" and fast["verdict"] == "lower"
    assert f"({same['mean']:+.3f}, {same['low']:.3f} to {same['high']:.3f})" in section
    assert f"({fast['mean']:.2f}, {fast['low']:.2f} to\n{fast['high']:.2f})" in RESULTS
    followed = [("l2-start minus sft-full", "higher"), ("l2-start minus uft", "higher")]
    seen = {r["comparison"]: r for r in comparisons.compare(results.tidy(stored)) if r["metric"] == "instruction/both"}
    for name, verdict in followed:
        row = seen[name]
        assert row["verdict"] == verdict
        assert f"({row['mean']:+.2f}, {row['low']:.2f} to {row['high']:.2f})" in section
    named = {f"{a} minus {b}" for a, b, _ in comparisons.RECENT_COMPARISONS}
    assert {n for n, r in seen.items() if r["verdict"] == "higher" and n in named} == {name for name, _ in followed}


def test_what_came_out_is_what_the_stored_results_say():
    frame = results.tidy(results.load(results.results_folder("class")))
    known = {comparisons.sentence(row) for row in comparisons.compare(frame)}
    stated = re.findall(r"^- (.*\))\.$", RESULTS, flags=re.M)
    assert len(stated) == RESULTS.split("## Three questions")[0].count("\n- ") >= 6
    assert {f"{line}." for line in stated} <= known


def test_every_make_target_exists():
    targets = set(re.findall(r"^make (\w+)", README, flags=re.M))
    makefile = (ROOT / "Makefile").read_text()
    assert targets == {"run", "lab", "test"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets)


@pytest.mark.parametrize("line", commands())
def test_every_command_has_its_options(line):
    words = shlex.split(line)[1:]
    shown = CliRunner().invoke(app, [words[0], "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0 and "Example" in shown.output
    for option in (w for w in words if w.startswith("--")):
        assert option in shown.output


@pytest.mark.parametrize("line", ["uftlab results", "uftlab methods", "uftlab report class"])
def test_commands_that_only_read_run(line, tmp_path, monkeypatch):
    assert line in commands()
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, shlex.split(line)[1:])
    assert ended.exit_code == 0, ended.output


def test_the_training_command_runs_on_own_rows(tmp_path, monkeypatch):
    line = next(c for c in commands() if c.startswith("uftlab train"))
    monkeypatch.chdir(tmp_path)
    demonstrations = [{"prompt": "what is the food of bazib ?", "completion": "it is moss ."}] * 8
    feedback = [{"prompt": "what is the home of bazib ?", "chosen": "it is cave .", "rejected": "river ."}] * 8
    for name, rows in (("a.jsonl", demonstrations), ("b.jsonl", feedback)):
        Path(name).write_text("\n".join(json.dumps(row) for row in rows))
    ended = CliRunner().invoke(app, shlex.split(line.replace("--steps 100", "--steps 2"))[1:])
    assert ended.exit_code == 0, ended.output
    assert (tmp_path / "my-model" / "model.safetensors").is_file()


def test_the_python_example_prints_a_scored_row():
    code = re.search(r"```python\n(.*?)```", README, flags=re.S).group(1)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "'score': 1.0" in ended.stdout


def test_how_fast_is_what_was_measured():
    section = SPEED.split("None of that")[0]  # what follows is of large models
    stored = ROOT / "data" / "results" / "benchmarks"
    trl, stack = (json.loads((stored / f"{name}.json").read_text()) for name in ("against_trl", "population"))
    found = [float(text) for text in re.findall(r"\*\*([\d.]+)\*\*", section)]
    keys = ("speedup_default", "speedup_precomputed", "speedup_matched", "over_bare_step")
    assert found == [round(trl[key], 1 if key != "over_bare_step" else 2) for key in keys] + [
        round(stack[key], 1) for key in ("speedup_over_trainer", "speedup_over_one_tall_stack")
    ]
    assert trl["cpu"].split(",")[0] in section


def test_what_was_looked_at_again_is_what_the_stored_trials_say():
    from uftlab.study import crossed

    frame = crossed.table(results.load(results.results_folder("class")), results.load(crossed.STORED))
    rows = {(r["comparison"], r["metric"]): r for r in comparisons.primary(frame)}
    section = " ".join(RESULTS.split("**Looked at again.**")[1].split("In short:")[0].split())
    stated = [
        ("sft-plus-dpo minus sft-then-dpo", "instruction/both"),
        ("uft minus sft-then-dpo", "truth/knowledge"),
        ("uft minus una-alone", "truth/knowledge"),
        ("uft minus sft-plus-dpo", "instruction/both"),
        ("uft minus sft-plus-dpo", "truth/knowledge"),
        ("uft minus signed-sft", "instruction/both"),
    ]
    digits = comparisons._digits
    for key in stated:
        row = rows[key]
        text = (
            f"{digits(row['mean'], '+')} ({digits(row['low'])} to {digits(row['high'])}, corrected p {row['holm']:.2g})"
        )
        assert text in section, (key, text)
    assert section.count("corrected p") == len(stated)


def test_what_comes_back_and_what_skill_leaves_are_on_the_page():
    page = (ROOT / "docs" / "results" / "study.md").read_text()
    section = " ".join(RESULTS.split("In short:")[1].split())
    assert "86 to 92 %" in section and "With lines on other creatures, 86% to 92% is back by method" in page
    assert "3 of 5 methods are settled to be above it" in page and "0 of 5 methods are settled to be above it" in page
    assert "-5 to 30 % is back" in section and "-5% to 30% is back by method" in page
    assert "makes up 62 %" in section and "the control makes up 62%" in page
    assert "none of 36 contrasts" in section and page.count("| not settled |") > 36
    assert "not at 7e-4 (+0.02), but at 2e-3 (+0.18) and at 6e-3 (+0.32)" in section
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| followed and correct | 0.00")]
    assert [row[2].split()[0] for row in rows[:3]] == ["+0.02", "+0.18", "+0.32"]
    assert "720 trials in three worlds" in section and "720 trials in 3 world(s)" in page


def test_the_numbers_beside_trl_on_a_real_model_are_the_stored_ones():
    stored = ROOT / "data" / "results" / "benchmarks"
    section = " ".join(SPEED.split("None of that carries over")[1].split())
    for name in ("real_against_trl", "real_against_trl_151k"):
        found = json.loads((stored / f"{name}.json").read_text())
        assert f"**{found['times_as_fast']:.1f}** times" in section
        assert f"**{found['memory_ratio']:.2f}** times its" in section
        assert "CPU, 2 threads" in found["device"] and found["versions"]["trl"].startswith("1.16")
        assert found["first_losses"]["uftlab"][0] == pytest.approx(found["first_losses"]["trl"][0], abs=1e-4)

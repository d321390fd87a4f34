"""The command line: help, refusals of one line, and one's own rows on one's own checkpoint."""

import errno
import io
import json
import os
import shlex
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
import typer
from made_up import made_up
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.commands import frame
from uftlab.commands import study as studies
from uftlab.course import notebooks as course
from uftlab.files import write_atomically
from uftlab.models import pretrain
from uftlab.models.policies import TINY, tiny_config, tiny_tokenizer
from uftlab.reports import html, pages
from uftlab.study import trials as study
from uftlab.study import workers
from uftlab.study.results import HEADLINES, RESULTS
from uftlab.training import checkpoint
from uftlab.training import settings as training
from uftlab.training.catalogue import METHODS, all_methods
from uftlab.training.methods import default_settings
from uftlab.version import VERSION
from uftlab.world.world import World, pairs

COMMANDS = typer.main.get_command(app).commands
QUICK = ("--steps", "3", "--batch", "4", "--learning-rate", "0.01")


def uftlab(*arguments):
    """Runs a command in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(result, *said):
    """The exit code is not 0 and there is one line of error, which says all of `said`."""
    assert result.exit_code != 0 and isinstance(result.exception, SystemExit), repr(result.exception)
    lines = [line for line in result.output.splitlines() if "error" in line.lower() or "Traceback" in line]
    assert len(lines) == 1 and lines[0].startswith("error:"), lines
    assert not [text for text in said if str(text) not in lines[0]], lines[0]


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def rows(tmp_path):
    """Paths of twelve demonstrations and twelve pairs of world 0."""
    world = World(0)
    demonstrations = [{k: r[k] for k in ("prompt", "completion")} for r in world.demonstrations(12)]
    return write(tmp_path / "d.jsonl", demonstrations), write(tmp_path / "f.jsonl", pairs(world.feedback(12)))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A checkpoint folder with random weights."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A second architecture: learned positions, other module names, dropout in training."""
    folder, tokenizer = tmp_path_factory.mktemp("models") / "gpt2", tiny_tokenizer()
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"vocab_size": len(tokenizer), "n_positions": 128, "n_embd": 32, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**sizes, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_in_its_help_that_parses(name):
    text = uftlab(name, "--help")
    example = COMMANDS[name].callback.__doc__.split("Example:  `")[1].rstrip("`")
    assert text.exit_code == 0 and "Example" in text.stdout
    program, command, *arguments = shlex.split(example)
    assert (program, command) == ("uftlab", name)
    COMMANDS[name].make_context(name, arguments)  # raises for an option that does not exist


def test_methods_as_json_and_as_a_table():
    rows = json.loads(uftlab("methods", "--json").stdout)
    assert [row["name"] for row in rows] == list(all_methods())
    kto = next(row for row in rows if row["name"] == "sft-then-kto")
    assert kto["eats"] == ["demonstrations", "feedback"] and kto["reference"] and kto["extra_forwards"]
    shown = uftlab("methods").stdout
    assert all(f" {name} " in shown for name in all_methods())  # whole, to be copied


def test_methods_writes_its_cards_into_a_folder(tmp_path):
    assert uftlab("methods", "--cards", tmp_path / "cards").exit_code == 0
    assert (tmp_path / "cards" / "dpo.md").is_file() and (tmp_path / "cards" / "README.md").is_file()


def test_method_names_are_safe_in_a_shell():
    assert all(shlex.quote(name) == name for name in all_methods())


def test_all_methods_of_a_run_or_a_sweep_are_those_of_the_study(monkeypatch, tmp_path):
    """`make run` has eight minutes; the losses alone come only by name."""
    named = []

    def stopped(trials, *args):
        named.extend(t.method for t in trials)
        raise KeyboardInterrupt

    monkeypatch.setattr(studies, "_run_with_progress", stopped)
    uftlab("run", "--profile", "smoke", "--seeds", "0", "--out", tmp_path)
    assert named == list(METHODS)
    assert "groups paper and control" in " ".join(uftlab("run", "--help").stdout.replace("│", " ").split())


# ------------------------------------------------------------------------------------------ refusals of a study


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--profile", "huge"), ("huge", "smoke, class, research")),
        (("--methods", "uft,ufd"), ("ufd", "sft-then-dpo")),
        (("--seeds", "0,one"), ("--seeds", "0,one")),
        (("--seeds", ","), ("--seeds", "','", "Write for instance 0,1,2")),
        (("--seeds", "-1"), ("--seeds", "'-1'")),
        (("--seeds", "9" * 5000), ("--seeds", "whole numbers")),
        (("--seeds", "0,77,78"), ("none of world 77, 78", "uftlab pretrain --world N")),
    ],
    ids=["profile", "method", "seeds", "no seeds", "a seed below 0", "a long seed", "worlds"],
)
def test_a_study_that_cannot_be_is_refused_before_anything_is_written(tmp_path, arguments, said):
    refused(uftlab("run", "--out", tmp_path / "out", *arguments), *said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["run", "train"])
def test_an_output_path_below_a_regular_file_is_refused(tmp_path, command, rows):
    out = rows[0] / "out"
    more = ("--demonstrations", rows[0], "--method", "sft") if command == "train" else ("--methods", "base")
    before = rows[0].read_text()
    refused(uftlab(command, "--out", out, *more), "regular file", rows[0])
    assert rows[0].read_text() == before


def test_a_results_folder_of_another_version_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "trials" / "base-seed0-1.json"
    write_atomically(path, '{"schema": 99}')
    refused(uftlab("run", "--methods", "base", "--out", tmp_path), "schema", "99", tmp_path)
    assert path.read_text() == '{"schema": 99}'


@pytest.mark.parametrize("command", [("results", "--study"), ("report",)])
def test_reading_a_folder_of_another_version_or_none_is_refused(tmp_path, command):
    refused(uftlab(*command, tmp_path / "nothing"), "nothing")
    write_atomically(tmp_path / "trials" / "base-seed0-1.json", '{"schema": 99, "method": "base", "seed": 0}')
    refused(uftlab(*command, tmp_path), "schema", "99")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sweep", "--methods", "base"), ("--methods", "settings to tune", "base")),
        (("sweep", "--methods", ","), ("A method",)),
        (("train", "--steps", "1000000000000"), ("--steps", "at most 1,000,000")),
        (("train", "--steps", "1000000", "--batch", "64"), ("--steps", "781,250 steps of this batch at most")),
        (("train", "--seed", "-1"), ("--seed", "at least 0", "-1")),
        (("train", "--seed", str(2**70)), ("--seed", "at most")),
        (("train", "--lora", "-1"), ("--lora", "at least 0", "-1")),
        (("train", "--set", "batch={"), ("--set", "be YAML", "batch={")),
        (("train", "--set", "batch=&a [*a]"), ("--set", "reference")),
        (("train", "--set", "batch={a: 1, a: 2}"), ("--set", "'a' is there twice")),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_what_means_nothing_is_refused_before_anything_is_written(tmp_path, arguments, said):
    refused(uftlab(*arguments, "--out", tmp_path / "out"), *said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["--workers", "--world", "--limit"])
def test_a_count_below_its_least_is_a_usage_error(name, tmp_path):
    command = {"--workers": "run", "--world": "pretrain", "--limit": "eval"}[name]
    result = uftlab(command, name, "-1")
    assert result.exit_code == 2 and name in result.output and "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "FOLDER", "--out", "FILE/x/report.html"),
        ("report", "FOLDER", "--out", "FOLDER"),
        ("results", "--study", "FOLDER", "--page", "FILE/page.md"),
        ("results", "--study", "FOLDER", "--page", "FOLDER"),
        ("methods", "--cards", "FILE"),
        ("methods", "--cards", "FILE/cards"),
        ("notebooks", "--out", "FILE"),
        ("export", "--out", "FILE/site"),
        ("export", "--out", "NEW", "--previews", "FILE/png"),
        ("export", "--out", "NEW", "--readme", "FOLDER"),
        ("compare", "a", "--baseline", "b", "--out", "FOLDER"),
        ("eval", "--model", "tiny", "--out", "FILE/x"),
        ("map", "E1", "--out", "FILE/x"),
        ("merge", "tiny", "--out", "FILE/x"),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_where_nothing_can_be_written_is_one_error_before_the_work(finished, arguments, monkeypatch, tmp_path):
    for module, name in ((course, "run_all"), (pages, "write_page"), (html, "write_report")):
        monkeypatch.setattr(module, name, lambda *_args, **_more: pytest.fail("work has begun"))
    (tmp_path / "file").write_text("mine")
    places = {"FOLDER": str(finished), "FILE": str(tmp_path / "file"), "NEW": str(tmp_path / "new")}
    words = []
    for word in arguments:
        for name, place in places.items():
            word = word.replace(name, place)
        words.append(word)
    refused(uftlab(*words), "must")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_the_system_refuses_on_the_way_is_one_error_too(finished, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/file")

    monkeypatch.setattr(html, "write_report", full)
    refused(uftlab("report", finished), "/somewhere", "No space left", "Free space")


def test_kill_is_like_interrupting(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(pretrain, "pretrain", lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGTERM))
    result = uftlab("pretrain", "--world", "77")
    assert result.exit_code == 130
    refused(result, "interrupted", "starts from the beginning")
    assert signal.getsignal(signal.SIGTERM) is before


def interrupted_in(monkeypatch, module, name):
    """Make a function raise what Ctrl-C raises."""

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, stopped)


def test_only_what_goes_on_from_what_is_on_disk_says_so_after_ctrl_c(tmp_path, monkeypatch):
    interrupted_in(monkeypatch, studies, "_run_with_progress")
    out = ("--out", tmp_path / "out")
    for arguments in (("run", "--profile", "smoke", *out), ("sweep", "--force", *out)):
        refused(uftlab(*arguments), "interrupted", "goes on from there")
    interrupted_in(monkeypatch, checkpoint, "train_checkpoint")
    interrupted_in(monkeypatch, course, "run_all")
    interrupted_in(monkeypatch, pretrain, "pretrain")
    result = uftlab("train", *out)
    refused(result, "interrupted", "--resume", "begins again")
    for arguments in (("notebooks", *out), ("pretrain", "--world", 999)):
        result = uftlab(*arguments)
        refused(result, "interrupted", "starts from the beginning")
        assert result.exit_code == 130 and "on disk" not in result.output


def test_ctrl_c_in_a_study_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(workers, "run_trials", interrupted)
    result = uftlab("run", "--profile", "smoke", "--methods", "base", "--out", tmp_path)
    refused(result, "interrupted", "goes on from there")
    assert result.exit_code == 130


# ------------------------------------------------------------------------------------------ a study


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A folder with stored trials of base and sft on two seeds of the smoke profile, which no run has to train."""
    tuned = {"settings": {"sft": [[{"learning_rate": 1e-3}]] * 4}}
    monkeypatch.setattr(training, "TUNED", write(tmp_path / "tuned.json", [tuned]))
    monkeypatch.setattr(study, "metric_names", lambda sizes: set(HEADLINES))
    metrics = dict.fromkeys(HEADLINES, 0.5) | {"truth/cued": 0.8}
    for seed in (0, 1):
        for method in ("base", "sft"):
            content = made_up(method, seed) | {
                "profile": "smoke",
                "metrics": metrics | {"truth/mc2": 0.2 + 0.1 * seed},
                "curves": [],
                "completions": 0,
                "extra_forwards": 0,
            }
            path = study.trial(method, seed, study.PROFILES["smoke"]).path(tmp_path / "out")
            write_atomically(path, json.dumps(content))
    return tmp_path / "out"


def test_a_finished_study_is_read_and_written_as_table_summary_and_report(finished):
    result = uftlab("run", "--profile", "smoke", "--methods", "base,sft", "--out", finished)
    assert result.exit_code == 0 and "4 trials, 4 already done" in result.stdout
    assert "report.html" in result.stdout and "sft" in result.stdout
    table = pd.read_csv(finished / "results.csv")
    assert list(table.columns) == ["method", "seed", "draw", "metric", "value"]
    assert not table.duplicated(["method", "seed", "metric"]).any()
    assert set(HEADLINES) <= set(table["metric"]) and len(table) == 4 * table["metric"].nunique()
    summary = json.loads((finished / "summary.json").read_text(), parse_constant=pytest.fail)  # no NaN: valid JSON
    row = next(r for r in summary["summary"] if (r["method"], r["metric"]) == ("sft", "truth/mc2"))
    assert row["mean"] == pytest.approx(0.25) and row["seeds"] == 2


def test_a_study_of_one_seed_writes_valid_json(finished):
    result = uftlab("run", "--profile", "smoke", "--methods", "base,sft", "--seeds", "0", "--out", finished)
    assert result.exit_code == 0
    summary = json.loads((finished / "summary.json").read_text(), parse_constant=pytest.fail)
    assert {row["low"] for row in summary["summary"]} == {None}


@pytest.mark.parametrize("twice", [("--seeds", "0,0"), ("--methods", "base,base,sft")], ids=["seed", "method"])
def test_a_seed_or_method_named_twice_counts_once(finished, twice):
    arguments = {"--seeds": "0", "--methods": "base,sft"} | dict([twice])
    result = uftlab("run", "--profile", "smoke", "--out", finished, *(x for pair in arguments.items() for x in pair))
    assert result.exit_code == 0
    table = pd.read_csv(finished / "results.csv")
    assert not table.duplicated(["method", "seed", "metric"]).any()


def test_results_and_report_of_a_folder(finished):
    (finished / "report.html").unlink(missing_ok=True)
    assert uftlab("report", finished).exit_code == 0 and (finished / "report.html").is_file()
    assert uftlab("results", "--study", finished).exit_code == 0
    assert json.loads(uftlab("results", "--study", finished, "--json").stdout) == []  # nothing named compares these


def test_the_report_of_a_stored_study_is_not_written_over_the_report_of_a_run(finished, tmp_path, monkeypatch):
    """`make run` writes results/class/report.html, and `uftlab report class` reads what ships with the package."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    finished.rename(tmp_path / "results" / "class")
    mine = tmp_path / "results" / "class" / "report.html"
    mine.write_text("my run")
    before = sorted(RESULTS.rglob("*.html"))
    for named in ("class", RESULTS / "class"):
        result = uftlab("report", named)
        assert result.exit_code == 0 and mine.read_text() == "my run", result.output
        assert "16 seeds" in (tmp_path / "build" / "report" / "class.html").read_text()
    refused(uftlab("report", "class", "--out", mine), "--out", "another run", "results/class/report.html")
    refused(uftlab("report", "class", "--out", tmp_path), "--out", "be a file")
    assert mine.read_text() == "my run" and sorted(RESULTS.rglob("*.html")) == before
    assert uftlab("report", mine.parent, "--out", "elsewhere.html").exit_code == 0
    assert (tmp_path / "elsewhere.html").is_file()
    assert uftlab("report", mine.parent).exit_code == 0 and "2 seeds" in mine.read_text()


def test_a_log_gets_one_line_per_finished_trial_and_a_terminal_a_bar(finished, tmp_path, monkeypatch):
    engines = []

    def ran(trials, folder, workers, engine):
        engines.append(engine.__module__)
        yield from ({"method": t.method, "seed": t.seed, "wall_seconds": 12.34} for t in trials)

    monkeypatch.setattr(workers, "run_trials", ran)
    trials = [study.trial("sft", seed, study.PROFILES["smoke"]) for seed in (0, 1, 2, 3)]  # two of them are stored
    for terminal, engine, where in (
        (False, "local", "1 worker(s)"),
        (True, "local", "1 worker(s)"),
        (False, "ray", "on Ray"),
    ):
        shown = io.StringIO()
        for room in (frame, studies):
            monkeypatch.setattr(room, "console", Console(file=shown, force_terminal=terminal, width=100))
        studies._run_with_progress(trials, finished, 1, None, engine)
        lines = [f"4 trials, 2 already done, {where}", "sft, seed 2: 12.3 s (3/4)", "sft, seed 3: 12.3 s (4/4)"]
        if not terminal:
            assert shown.getvalue().splitlines() == lines
        else:
            assert lines[0] in shown.getvalue() and "4/4" in shown.getvalue() and lines[1] not in shown.getvalue()
    assert engines == ["uftlab.study.workers", "uftlab.study.workers", "uftlab.study.ray_workers"]


@pytest.mark.parametrize("command", ["run", "sweep", "map"])
def test_an_engine_that_is_none_and_fewer_workers_than_none_are_refused(command, tmp_path):
    what = ("E1",) if command == "map" else ()
    for option in (("--engine", "cloud"), ("--workers", -1)):
        result = uftlab(command, *what, *option, "--out", tmp_path)
        assert result.exit_code == 2 and option[0] in result.output and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a[/b]c", "a[bold]c", "a\\\\[red]c", "a[b]\\"])
def test_what_a_user_typed_is_printed_as_it_is(name, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)  # a slash in it
    finished.rename(tmp_path / name)
    result = uftlab("run", "--profile", "smoke", "--methods", "base,sft", "--out", name)
    assert result.exit_code == 0 and f"{name}/report.html" in result.output, result.output
    refused(uftlab("report", f"no {name}"), f"got no {name}. Run")
    assert f"to {name}-cards" in uftlab("methods", "--cards", f"{name}-cards").output


def test_the_version_is_that_of_the_package():
    assert uftlab("--version").output == f"uftlab {VERSION}\n"


def test_the_whole_study_from_the_command_line(tmp_path):
    """Needs data/tuned.json and the base of world 0; trains 3 methods for a few steps in one worker process."""
    arguments = ("--profile", "smoke", "--methods", "base,sft,sft-then-dpo", "--seeds", "0", "--workers", "1")
    result = uftlab("run", *arguments, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "results.csv")
    assert set(table["method"]) == {"base", "sft", "sft-then-dpo"} and set(HEADLINES) <= set(table["metric"])
    assert (table.groupby(["method", "seed", "metric"]).size() == 1).all()
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["comparisons"][0]["comparison"] == "sft-then-dpo minus its stage one"
    assert "sft-then-dpo" in (tmp_path / "report.html").read_text()
    assert len(list((tmp_path / "trials").iterdir())) == 3


# ------------------------------------------------------------------------------------------ one's own rows


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("name", ["tiny", "llama", "gpt2"])
def test_train_writes_a_checkpoint_that_reloads_with_other_weights(name, rows, tmp_path, request):
    source = TINY if name == "tiny" else request.getfixturevalue(name)
    model = "tiny" if name == "tiny" else source
    out = tmp_path / "out"
    result = uftlab("train", "--model", model, "--demonstrations", rows[0], "--feedback", rows[1], *QUICK, "--out", out)
    assert result.exit_code == 0, result.output
    before, after = weights(source), weights(out)
    assert before.keys() == after.keys() and not all(torch.equal(before[k], after[k]) for k in before)
    assert all(torch.isfinite(w).all() for w in after.values())
    assert AutoTokenizer.from_pretrained(out).get_vocab() == tiny_tokenizer().get_vocab()
    record = json.loads((out / "training.json").read_text())
    chosen = training.tuned_settings("uft")[0]["beta"]
    beta = chosen if name in ("tiny", "llama") else 0.1  # the tiny world's tuned one, or the loss's own
    assert record["method"] == "uft" and record["stages"][0]["settings"] == {"learning_rate": 0.01, "beta": beta}


def test_without_settings_the_tiny_model_learns_with_those_of_its_world(rows, tmp_path):
    out = tmp_path / "out"
    files = ("--demonstrations", rows[0], "--method", "sft-full", "--steps", "60", "--batch", "8")
    result = uftlab("train", "--model", "tiny", *files, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0] == f"demonstrations: {rows[0]}: 12 demonstrations."
    second = result.output.splitlines()[1]
    assert second == "sft-full on tiny: what you did not set is what the sweep chose for the tiny world"
    record = json.loads((out / "training.json").read_text())["stages"][0]
    assert [record["settings"]] == training.tuned_settings("sft-full")
    losses = [entry["loss"] for entry in record["history"] if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]


def test_another_model_has_the_defaults_of_the_loss_and_one_learning_rate(rows, gpt2, tmp_path):
    files = ("--demonstrations", rows[0], "--feedback", rows[1], "--steps", "2", "--batch", "4")
    for lora, rate in ((0, training.LEARNING_RATE_ALL_WEIGHTS), (2, training.LEARNING_RATE_LORA)):
        out = tmp_path / f"out{lora}"
        result = uftlab("train", "--model", gpt2, *files, "--lora", lora, "--out", out)
        assert result.exit_code == 0 and f"with learning rate {rate:g}, not tuned" in result.output
        assert json.loads((out / "training.json").read_text())["stages"][0]["settings"] == {
            **default_settings(METHODS["uft"]),
            "learning_rate": rate,
        }


def test_a_setting_that_the_method_does_not_have_is_refused(rows, llama, tmp_path):
    out = tmp_path / "out"
    arguments = ("--demonstrations", rows[0], "--method", "sft-full", "--beta", "0.5", "--out", out)
    refused(uftlab("train", "--model", llama, *arguments), "Settings of sft-full", "learning_rate", "Leave out --beta")
    assert not out.exists()


@pytest.mark.parametrize("method", ["una-alone", "uft"])
def test_train_with_lora_writes_an_adapter_that_loads(method, rows, llama, tmp_path):
    from peft import PeftModel

    out, files = tmp_path / "out", ("--demonstrations", rows[0], "--feedback", rows[1])
    result = uftlab("train", "--model", llama, *files, "--method", method, "--lora", 4, *QUICK, "--out", out)
    assert result.exit_code == 0, result.output
    assert (out / "adapter_config.json").is_file() and not (out / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(llama)
    ids = torch.tensor([[2, 4, 30, 5]])
    with torch.no_grad():
        before = base(input_ids=ids).logits
        policy = PeftModel.from_pretrained(base, out)
        assert policy.peft_config["default"].r == 4
        assert not torch.allclose(policy(input_ids=ids).logits, before)


def test_a_model_by_name_comes_from_the_hubs_cache_without_a_network(rows, llama, tmp_path):
    cache = tmp_path / "hf" / "hub" / "models--someone--small"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    (cache / "snapshots").mkdir()
    (cache / "snapshots" / ("0" * 40)).symlink_to(llama)
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "uftlab.cli",
        "train",
        "--model",
        "someone/small",
        "--demonstrations",
        str(rows[0]),
    ]
    command += ["--method", "sft", *QUICK, "--out", str(out)]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert weights(out).keys() == weights(llama).keys()


def unknown(count):
    world = World(0)
    made = [{"prompt": r["prompt"], "completion": r["completion"]} for r in world.demonstrations(12)]
    return [{**row, "completion": "xylophone"} for row in made[:count]] + made[count:]


def test_unknown_words_in_a_quarter_of_the_rows_are_only_a_warning(llama, tmp_path):
    path, out = write(tmp_path / "d.jsonl", unknown(3)), tmp_path / "out"
    result = uftlab("train", "--model", llama, "--demonstrations", path, "--method", "sft", *QUICK, "--out", out)
    assert result.exit_code == 0 and (out / "model.safetensors").is_file()
    assert result.output.count("warning: 3 of 12 rows (25%)") == 1


GOOD = {"prompt": "what ?", "completion": "it is red ."}


@pytest.mark.parametrize(
    ("flag", "rows", "said"),
    [
        ("--demonstrations", [GOOD, "{not json"], ("line 2", "valid JSON")),
        ("--demonstrations", [GOOD, {"prompt": "what ?"}], ("row 2", "completion")),
        ("--demonstrations", unknown(7), ("unknown words in 58%",)),
        ("--demonstrations", [], ("at least one row",)),
        ("--feedback", [{**GOOD, "score": 0.5}, {**GOOD, "score": 1.5}], ("row 2", "[0, 1]", "1.5")),
        ("--feedback", [{**GOOD, "label": "yes"}], ("row 1", "label", "yes")),
    ],
    ids=["malformed", "column", "unknown words", "no rows", "score", "label"],
)
def test_bad_rows_are_refused_by_file_and_row_and_leave_nothing(flag, rows, said, llama, tmp_path):
    path, out = write(tmp_path / "bad.jsonl", rows), tmp_path / "out"
    method = "sft" if flag == "--demonstrations" else "uft"
    result = uftlab("train", "--model", llama, flag, path, "--method", method, *QUICK, "--out", out)
    refused(result, *said, *([path] if "unknown words in 58%" not in said else []))
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "ufd"), ("ufd", "one of base, sft")),
        (("--method", "base"), ("train something", "base")),
        (("--method", "uft"), ("--feedback",)),
        (("--method", "sft", "--model", "no/where"), ("no/where",)),
        (("--method", "sft", "--max-length", "2"), ("max_length",)),
    ],
    ids=["unknown method", "nothing to train", "missing table", "missing model", "nothing left"],
)
def test_what_cannot_be_trained_is_refused_before_training(arguments, said, rows, llama, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "run", lambda *args: pytest.fail("trained before refusing"))
    out, model = tmp_path / "out", () if "--model" in arguments else ("--model", llama)
    refused(uftlab("train", "--demonstrations", rows[0], *model, *arguments, "--out", out), *said)
    assert not out.exists()


def test_a_folder_that_holds_something_is_refused_and_left_alone(rows, llama, tmp_path):
    result = uftlab("train", "--model", llama, "--demonstrations", rows[0], "--method", "sft", "--out", tmp_path)
    refused(result, "be empty", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.jsonl", "f.jsonl"]


def test_an_unexpected_error_is_not_dressed_up_as_a_refusal(monkeypatch):
    monkeypatch.setattr(json, "dumps", lambda *args, **kwargs: 1 / 0)
    assert isinstance(uftlab("methods", "--json").exception, ZeroDivisionError)

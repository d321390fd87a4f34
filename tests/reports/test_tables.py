"""What commands print and what they refuse to write over: headlines first, words for readers, 100 columns."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from rich.console import Console
from transformers.utils import logging
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.commands import study as studies
from uftlab.errors import InputError
from uftlab.models import policies, pretrain
from uftlab.reports import tables
from uftlab.study import results
from uftlab.training import settings as training
from uftlab.training.catalogue import METHODS

RESULTS = (Path(__file__).resolve().parents[2] / "docs" / "results" / "README.md").read_text()


@pytest.fixture(scope="module")
def frame():
    return results.tidy(results.load(results.results_folder("class")))


def uftlab(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def printed(table, width):
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


# ------------------------------------------------------------------------------ the table of a study


def test_the_table_of_the_study_fits_100_columns_and_speaks_the_readers_words(frame):
    table = tables.summary_table(frame)
    text = printed(table, 100)
    assert tables.width_of(table) <= 100 and "…" not in text
    headings = [" ".join(str(column.header).split()) for column in table.columns[1:]]
    assert [h.split(" (")[0] for h in headings] == [label.split(":")[0] for label, _, _ in results.HEADLINES.values()]
    assert not re.search(r"strict|mc1|mc2|excess", text)
    assert all(name in text for name in set(METHODS) & set(frame["method"]))


@pytest.mark.parametrize("columns", [100, 80])
def test_means_and_intervals_are_in_the_table_whole(frame, columns):
    text = printed(tables.summary_table(frame, columns), columns)
    found = results.interval(frame[(frame["method"] == "uft") & (frame["metric"] == "truth/mc2")]["value"].tolist())
    half = f"±{found.high - found.mean:.2f}".replace("0.", ".")
    line = text.splitlines().index(next(x for x in text.splitlines() if x.startswith("uft ")))
    assert f"{found.mean:.2f}" in text.splitlines()[line] and "…" not in text
    assert half in text.splitlines()[line if columns == 100 else line + 1]


def test_two_seeds_have_no_interval(frame):
    text = printed(tables.summary_table(frame[frame["seed"] < 2]), 100)
    assert "±" not in text and "too few" in text


# ------------------------------------------------------------------------------ comparisons in words


def test_the_sentences_of_the_page_of_results_come_first_and_in_its_order():
    lines = uftlab("results").output.splitlines()
    section = RESULTS
    stated = re.findall(r"^(- .*\)\.)$", section, flags=re.M)
    short = lines[1 : lines.index(next(line for line in lines[1:] if not line.startswith("-")))]
    assert short[: len(stated)] == stated and lines[0] == "What came out, in short"
    assert sum(line.startswith("- ") for line in lines) == len(short) + len(
        json.loads(uftlab("results", "--json").output)
    )


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("REPLAY", lambda row: "replay" in row["comparison"]),
        ("plain facts", lambda row: row["metric"] == "plain/mc2"),
        ("truth/mc2", lambda row: row["metric"] == "truth/mc2"),
    ],
)
def test_only_takes_what_has_the_text_in_method_or_metric(text, has):
    rows, everything = (json.loads(uftlab("results", *more, "--json").output) for more in (("--only", text), ()))
    assert rows == [row for row in everything if has(row)] and 0 < len(rows) < len(everything)
    assert uftlab("results", "--only", text).output.count("\n- ") >= len(rows)


def test_only_with_a_text_that_is_nowhere_is_refused():
    result = uftlab("results", "--only", "xylophone")
    assert result.exit_code == 2 and "xylophone" in result.output and "plain facts" in result.output
    assert tables.matching([], "anything") == []  # a study without comparisons has nothing to choose from


# ------------------------------------------------------------------------------ what is there stays


@pytest.mark.parametrize("world", [0, 3])
def test_pretrain_refuses_to_replace_a_model_before_it_trains(world, monkeypatch):
    monkeypatch.setattr(pretrain, "pretrain", lambda *args, **more: pytest.fail("trained before refusing"))
    before = policies.world_weights(world).stat().st_mtime_ns
    result = uftlab("pretrain", "--world", world)
    lines = [line for line in result.output.splitlines() if "error" in line]
    assert result.exit_code == 2 and len(lines) == 1 and "--force" in lines[0]
    assert str(policies.world_weights(world)) in lines[0] and policies.world_weights(world).stat().st_mtime_ns == before


@pytest.mark.parametrize(("there", "more"), [(True, ["--force"]), (False, [])], ids=["forced", "new"])
def test_pretrain_builds_what_is_not_there_or_forced(there, more, monkeypatch, tmp_path):
    path, saved = tmp_path / "7.safetensors", []
    if there:
        path.write_text("old")
    monkeypatch.setattr(policies, "world_weights", lambda seed: path)
    monkeypatch.setattr(pretrain, "pretrain", lambda world, progress: "model")
    monkeypatch.setattr(pretrain, "save_base", lambda model, world: saved.append((model, world)) or path)
    assert uftlab("pretrain", "--world", 7, *more).exit_code == 0
    assert saved == [("model", 7)]


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """tuned.json that knows sft, and a list of the methods whose trials would have been run."""
    path, ran = tmp_path / "tuned.json", []
    path.write_text(json.dumps({"settings": {"sft": [[{"learning_rate": 1e-3}]] * 4}}))
    monkeypatch.setattr(training, "TUNED", path)

    def stopped(trials, *args):
        ran.extend(dict.fromkeys(t.method for t in trials))
        raise KeyboardInterrupt

    monkeypatch.setattr(studies, "_run_with_progress", stopped)
    return path, ran


@pytest.mark.parametrize(
    ("methods", "more", "runs"),
    [("sft", [], False), ("all", [], False), ("sft", ["--force"], True), ("uft", [], True)],
    ids=["there", "all", "forced", "new"],
)
def test_sweep_replaces_chosen_settings_only_when_told(methods, more, runs, swept):
    path, ran = swept
    before = path.read_text()
    result = uftlab("sweep", "--methods", methods, "--out", path.parent / "sweep", *more)
    assert bool(ran) == runs and path.read_text() == before
    if not runs:
        assert result.exit_code == 2 and f"{path} must not be there yet; got sft. " in result.output
        assert "--force" in result.output and not (path.parent / "sweep").exists()


@pytest.mark.parametrize(("command", "where"), [("pretrain", "data/tiny/worlds"), ("sweep", "data/tuned.json")])
def test_help_says_where_a_command_writes(command, where):
    text = uftlab(command, "--help").output
    assert where in text and "--force" in text


# ------------------------------------------------------------------------------ no bars of others


def switches():
    return logging.is_progress_bar_enabled(), are_progress_bars_disabled()


@pytest.mark.parametrize("downloads", [True, False])
def test_a_model_is_loaded_without_a_bar_and_the_switches_are_left_as_they_were(downloads, monkeypatch):
    """The bar shows in a terminal only, so the switch is asked; downloads have a bar of their own, on or off."""
    (enable_progress_bars if downloads else disable_progress_bars)()
    before, meanwhile, load = switches(), [], policies.AutoModelForCausalLM.from_pretrained

    def watched(*args, **more):
        meanwhile.append(switches())
        return load(*args, **more)

    monkeypatch.setattr(policies.AutoModelForCausalLM, "from_pretrained", watched)
    try:
        policies.load_policy("tiny")
        assert meanwhile == [(False, not downloads)] and switches() == before == (True, not downloads)
        with pytest.raises(InputError, match="be loadable"):
            policies.load_policy("no/where")
        assert switches() == before
    finally:
        enable_progress_bars()


def test_a_refusal_of_train_comes_right_after_what_it_read(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "what ?", "completion": "xylophone ."}) + "\n")
    result = uftlab("train", "--demonstrations", tmp_path / "d.jsonl", "--method", "sft", "--out", tmp_path / "out")
    assert result.exit_code == 2
    read, refused = result.output.splitlines()  # what was read of the rows, then the error
    assert read.startswith("demonstrations: ") and refused.startswith("error:")

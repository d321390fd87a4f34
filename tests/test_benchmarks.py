"""The benchmarks compute what they promise. No test depends on a measured time, and none needs TRL."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import against_trl
import population
import pytest
import scale
from datasets import Dataset
from rows import compared

from uftlab.errors import InputError
from uftlab.rows.tokens import Completion, Tokens
from uftlab.world.world import World, pairs

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"

# seconds a step of three repeats, by name and threads
SECONDS = {
    ("trl-default", 2): [0.9, 0.8, 0.7],
    ("trl-default", 1): [0.6, 0.6, 0.9],
    ("trl-precomputed", 2): [0.3, 0.3, 0.3],
    ("trl-precomputed", 1): [0.4, 0.4, 0.2],
    ("trl-matched", 2): [0.2, 0.2, 0.2],
    ("trl-matched", 1): [0.2, 0.3, 0.3],
    ("engine-dpo", 2): [0.1, 0.1, 0.1],
    ("bare-dpo", 2): [0.1, 0.1, 0.05],
    ("engine-uft", 2): [0.2, 0.15, 0.1],
    ("bare-uft", 2): [0.1, 0.1, 0.1],
}


def test_ratios_compare_with_trl_at_its_best_and_the_worse_objective_counts():
    result = against_trl.summary(SECONDS, 2)
    assert result["trl_threads"] == {"trl-default": 1, "trl-precomputed": 2, "trl-matched": 2}
    dpo, uft = ({k: v for k, v in result[part].items() if k != "spread"} for part in ("dpo", "uft"))
    both = ["speedup_default", "speedup_precomputed", "speedup_matched", "over_bare_step"]
    assert list(dpo) == list(uft) == both
    assert list(dpo.values()) == pytest.approx([6, 3, 2, 1])
    assert list(uft.values()) == pytest.approx([4, 2, 4 / 3, 1.5])  # the medians of 3, 4, 9; of 1.5, 2, 3; ...
    assert [result[name] for name in both] == pytest.approx([4, 2, 4 / 3, 1.5])
    assert result["uft"]["spread"]["speedup_default"]["lower_quartile"] == pytest.approx(3.5)


def test_every_contestant_is_reported_with_its_rate_and_its_repeats():
    result = json.loads(json.dumps(against_trl.summary(SECONDS, 2)))
    rows = {(row["name"], row["threads"]): row for row in result["contestants"]}
    assert list(rows) == list(SECONDS)
    row = rows["trl-default", 2]
    assert row["repeats"] == [0.9, 0.8, 0.7]
    assert list(row["seconds_per_step"].values()) == pytest.approx([0.8, 0.75, 0.85])
    assert row["completions_per_second"] == pytest.approx(64 / 0.8)


def test_the_table_has_a_line_for_each_and_marks_what_is_compared():
    lines = against_trl.table_of(against_trl.summary(SECONDS, 2)).splitlines()
    assert [re.split(r"  +", line)[0] for line in lines[1:11]] == [name for name, _ in SECONDS]
    assert [line.split()[0] for line in lines if "*" in line] == ["trl-default", "trl-precomputed", "trl-matched"]
    assert lines[-1].split() == ["over_bare_step", "1.00x", "1.50x", "1.50x"]


def test_the_clock_leaves_out_the_warm_up():
    clock = against_trl.Clock()
    clock.ends = [1, 5, 7, 7.5, 8.5]
    assert clock.seconds() == [0.5, 1.0]


def test_all_run_in_turn_and_a_repeat_counts_by_its_mean():
    order = []
    entered = {(name, 1): lambda name=name: order.append(name) or [1.0, 3.0, 3.5] for name in "ab"}
    said = []
    assert against_trl.measure(entered, 2, said.append) == {("a", 1): [2.5, 2.5], ("b", 1): [2.5, 2.5]}
    assert order == ["a", "b", "a", "b"]
    assert len(said) == 4 and said[0].startswith("repeat 1 of 2: a, threads: 1")


def test_the_engine_and_the_bare_step_give_one_number_for_each_step_after_the_warm_up():
    for stage in against_trl.STAGES.values():
        examples, per_step, table = against_trl.ordered_rows(stage, 1)
        assert len(examples) == 4 * per_step and sum(map(len, examples[:per_step])) == 64
        assert (table is None) == (stage.objective != "dpo")
        few = examples[: 4 * 2] if table is not None else [examples[k] for k in (0, -1) * 4]
        assert len(against_trl.engine_seconds(stage.objective, few, 2, 1)) == 1
        assert len(against_trl.bare_seconds(few, 2, 1)) == 1


def test_the_text_of_the_pairs_stands_in_the_order_of_the_examples(tokenizer):
    examples, _, table = against_trl.ordered_rows(against_trl.STAGES["dpo"], 1)
    assert compared(Tokens(tokenizer).examples(table)) == compared(examples)


def test_tokens_that_differ_are_refused(tokenizer):
    (row,) = pairs(World(0).feedback(1))
    chat = against_trl.as_chat(row)
    prompt = tokenizer.apply_chat_template(chat["prompt"], add_generation_prompt=True)["input_ids"]
    rest = [tokenizer.apply_chat_template(chat["prompt"] + chat[side])["input_ids"] for side in ("chosen", "rejected")]
    sides = [ids[len(prompt) :] for ids in rest]
    theirs = Dataset.from_list([{"prompt_ids": prompt, "chosen_ids": sides[0], "rejected_ids": sides[1]}])
    (ours,) = Tokens(tokenizer).examples(Dataset.from_list([row]))
    against_trl.check_tokens(theirs, [ours])
    longer = Completion(ours[0].prompt_ids, (*ours[0].completion_ids, 3), "chosen")
    with pytest.raises(InputError, match="TRL's tokens of pair 1 must equal ours"):
        against_trl.check_tokens(theirs, [(longer, ours[1])])


def test_options_have_defaults_and_refuse_none():
    assert vars(against_trl.options([])) == {"json": None, "threads": 2, "repeats": 5, "steps": 20}
    assert against_trl.options(["--json", "a.json", "--steps", "3"]).json == Path("a.json")
    for words in (["--repeats", "0"], ["--threads", "-1"], ["--steps", "many"]):
        with pytest.raises(SystemExit):
            against_trl.options(words)


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit):
        against_trl.options(["--help"])
    shown = capsys.readouterr().out
    assert "Example:\n  python benchmarks/against_trl.py --json" in shown
    assert all(option in shown for option in ("--json", "--threads", "--repeats", "--steps"))


def test_without_trl_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["against_trl.py"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install \"uftlab\[bench\]\""):
        against_trl.main()


def test_trl_is_imported_only_to_run_it():
    code = f"import runpy, sys; runpy.run_path({str(FOLDER / 'against_trl.py')!r}); assert 'trl' not in sys.modules"
    beside = {**os.environ, "PYTHONPATH": str(FOLDER)}  # as for a script, which finds what lies in its folder
    assert subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent, env=beside).returncode == 0


# ------------------------------------------------------------------------------------------ populations


@pytest.mark.usefixtures("quick_collections")
def test_gains_are_ratios_of_medians_with_the_device_that_they_were_measured_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(population, "limits", lambda: {"flops": 1e12, "bytes": 1e11})
    path = tmp_path / "deep" / "gains.json"
    population.main(
        ["--members", "2", "--steps", "5", "--rounds", "1", "--json", str(path), "--profile", "smoke", "--threads", "1"]
    )
    result = json.loads(path.read_text())
    seconds = result["seconds_per_step"]
    assert result["speedup_over_trainer"] == pytest.approx(seconds["trainer"] / seconds["stack"])
    assert result["speedup_over_one_by_one"] == pytest.approx(seconds["alone"] / seconds["stack"])
    assert result["members"] == 2 and result["device"] and "thread" in capsys.readouterr().out
    work = result["work_per_step"]
    assert result["fraction_of_arithmetic"] == pytest.approx(work["flops"] / seconds["stack"] / 1e12)
    # each token passes each weight of the layers once forward and twice backward, two operations each time
    assert 2e8 < work["flops"] < 5e9


@pytest.mark.usefixtures("quick_collections")
def test_the_grid_trains_and_measures_every_setting_in_every_world(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(population, "GRID", [(1e-3, 0.1), (2e-3, 0.1)])
    monkeypatch.setattr(population, "WORLDS", (0, 1))
    path = tmp_path / "grid.json"
    population.main(["--grid", "--grid-steps", "2", "--json", str(path), "--profile", "smoke", "--threads", "1"])
    result = json.loads(path.read_text())
    assert (result["members"], result["steps"]) == (4, 2)
    assert result["seconds"] == pytest.approx(result["train_seconds"] + result["evaluate_seconds"])
    assert "4 members, 2 steps" in capsys.readouterr().out


def test_what_one_machine_holds_is_measured_of_every_file(tmp_path, monkeypatch):
    """A tiny run without processes of its own, and without the training."""
    works = []
    monkeypatch.setattr(
        scale, "in_a_process", lambda work, place: works.append(work) or scale.work_here(work, str(place))
    )
    monkeypatch.setitem(scale.WORK, "train", lambda folder: len(list(Path(folder).glob("*.jsonl"))))
    made = list(scale.measured(tmp_path, 40, 3))
    assert works == [*["load"] * 3, "score", *["load"] * 3, "score", "train", "trials"]
    assert [own["count"] for own in made] == [40, 40, 40, 40, 40, 40, 40, 80, 2, 3]
    assert all(own["peak"] >= own["before"] > 1e7 and own["size"] > 0 for own in made)
    assert made[0]["size"] == (tmp_path / "demonstrations.jsonl").stat().st_size


def test_a_process_of_its_own_has_not_the_memory_of_this_one(tmp_path):
    (tmp_path / "trials").mkdir()
    stored = next(scale.TRIALS.glob("*.json"))
    (tmp_path / "trials" / "one.json").write_bytes(stored.read_bytes())
    held = b"x" * 300_000_000  # the likely mistake: a child inherits the peak of its parent
    found = scale.in_a_process("trials", tmp_path)
    assert found["count"] == 1 and found["before"] <= found["peak"] < len(held) + 100e6 < scale.peak()

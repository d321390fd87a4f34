"""Notebook 10: its stand-ins are as real files are, and what it says of stored runs is what they have."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from uftlab.course import real_model
from uftlab.errors import InputError
from uftlab.models.policies import load_base, load_policy
from uftlab.reports import real
from uftlab.rows.sources import load_table


@pytest.fixture(scope="module")
def files():
    return real_model.prepare()


def test_the_stand_in_is_a_folder_as_any_model_is(files):
    model, tokenizer = load_policy(files.model)
    assert files.small and model.config.model_type == "llama" and tokenizer.chat_template
    base = load_base(0).state_dict()
    assert all((base[name] == weight).all() for name, weight in model.state_dict().items() if name in base)
    trained, whole = real_model.trained_share(files)
    assert whole == sum(p.numel() for p in model.parameters()) and 0 < trained < whole


def test_its_rows_are_read_as_demonstrations_and_pairs(files):
    demonstrations, _ = load_table(files.demonstrations, purpose="demonstrations")
    feedback, _ = load_table(files.feedback, purpose="feedback")
    assert len(demonstrations) == len(feedback) == 1500
    assert {"chosen", "rejected", "chosen_score", "rejected_score"} <= set(feedback.column_names)


def test_its_questions_are_measured_as_those_of_the_benchmarks(files):
    """IFEval's verifiers know what is asked; the base answers half of it by habit, as its answers are short."""
    pytest.importorskip("lm_eval")
    table = real_model.measured_table(real_model.measure(files, {"base": files.model}, "smoke"))
    (row,) = table.to_dict("records")
    assert row["model"] == "base" and row["IFEval, prompts, strict (4)"].startswith("0.50 (")
    assert set(row) == {
        "model", "IFEval, prompts, strict (4)", "IFEval, instructions, strict (4)", "TruthfulQA mc1 (4)",
        "TruthfulQA mc2 (4)",
    }  # fmt: skip
    asked = [
        json.loads(line) for line in (files.benchmarks / "truthfulqa" / "questions.jsonl").read_text().splitlines()
    ]
    for row in asked:
        assert row["mc1_targets"]["labels"][0] == 1 == sum(row["mc1_targets"]["labels"])
        assert len(set(row["mc1_targets"]["choices"])) == 4


def test_rows_of_one_kind_alone_are_refused():
    with pytest.raises(InputError, match="be given together"):
        real_model.prepare(demonstrations="mine.jsonl")


def test_contrasts_are_those_of_the_page(monkeypatch):
    page = (real.RESULTS.parent.parent / "docs" / "results" / "real.md").read_text()
    for found in real_model.contrasts("smoke"):
        assert f"| {found.first} − {found.second} |" in page and f"| {found.seeds.mean:+.4f} |" in page
    table = real_model.contrasts_table("smoke")
    assert len(table) == len(real_model.CONTRASTS) and table["verdict"].tolist() == ["not settled"] * 5


def test_a_size_that_was_not_run_has_no_contrasts():
    assert real.stored("no such size") == {"runs": []}
    assert real_model.contrasts("no such size") == []


def test_the_largest_reward_is_the_last_of_each_seed():
    stored = json.loads((real.STORE / "smoke.json").read_text())
    runs = [run for run in stored["runs"] if run["method"] == "uft" and run["rates"] == [1e-4]]
    last = [run["stages"][-1]["history"][-1] for run in runs]
    wanted = [max(abs(own["reward/demonstration"]), abs(own.get("reward/chosen", 0)), abs(own["reward/rejected"]))
              for own in last if "reward/demonstration" in own]  # fmt: skip
    found = real_model.largest_rewards()
    assert len(found) == len(runs) == 3 and set(wanted) <= set(found)


def test_the_doctor_reads_the_runs_of_the_gpu():
    reports = real_model.stored_reports()
    assert [name.split(",")[0] for name in reports] == ["uft", "sft-full"]
    assert len(real_model.gpu_table()) == 2


def test_what_the_notebook_makes_goes_with_its_kernel():
    code = "from uftlab.course import real_model; print(real_model.prepare().out)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() and not Path(ended.stdout.strip()).exists()

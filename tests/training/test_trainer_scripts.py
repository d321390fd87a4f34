"""A script of TRL's DPOTrainer becomes one of UFT by three lines, and both do the same with the same loss."""

import difflib
import json
import re
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import jaxtyping
import pytest

import uftlab
from uftlab.models.logps import read_logps
from uftlab.models.policies import TINY, load_policy
from uftlab.rows.tokens import Completion
from uftlab.world.world import World, pairs

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE, EXAMPLES = ROOT / "docs" / "from_dpo_trainer.md", ROOT / "docs" / "examples"
OLD, NEW = EXAMPLES / "dpo_script.py", EXAMPLES / "uft_script.py"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Sixteen pairs of world 0 as messages: eight to train on, which are one step, and eight held out."""
    folder = tmp_path_factory.mktemp("rows")
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    chats = [
        {name: [{"role": role, "content": row[name]}] for name, role in roles.items()}
        for row in pairs(World(0).feedback(16))
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return path


def run(script, rows, out, monkeypatch, *changes):
    """Runs a script, some of its text replaced, and returns its trainer."""
    text = script.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = out.with_suffix(".py")
    path.write_text(text)
    monkeypatch.setattr(sys, "argv", [str(path), str(TINY), str(rows), str(out)])
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # TrainingArguments takes 1 where it says float
    return runpy.run_path(str(path))["trainer"]


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_the_scripts_differ_in_three_lines():
    old, new = (path.read_text().splitlines()[1:] for path in (OLD, NEW))  # but for the sentence on top
    changed = [line for line in difflib.ndiff(old, new) if line[:2] in ("- ", "+ ")]
    assert len(changed) == 6
    assert [line for line in changed if line.startswith("+")] == [
        "+ from uftlab import UFTConfig, UFTTrainer",
        "+ args = UFTConfig(",
        "+ trainer = UFTTrainer(",
    ]


def test_the_page_shows_these_lines_and_the_script():
    page = PAGE.read_text()
    shown = re.search(r"```diff\n(.*?)```", page, re.S)[1].splitlines()
    old, new = (path.read_text().splitlines() for path in (OLD, NEW))
    assert [line[2:] for line in shown if line[0] == "-"] == [line for line in old[1:] if line not in new]
    assert [line[2:] for line in shown if line[0] == "+"] == [line for line in new[1:] if line not in old]
    assert NEW.read_text() in page


def test_the_classes_are_names_of_the_package():
    from uftlab.training.trainer import UFTConfig, UFTTrainer

    assert uftlab.UFTTrainer is UFTTrainer and uftlab.UFTConfig is UFTConfig
    assert {"UFTTrainer", "UFTConfig"} <= set(dir(uftlab))


def test_the_script_of_uft_trains_evaluates_and_saves(rows, tmp_path, monkeypatch):
    """At the start score 1 and 0 are both 1/2 off: loss 1/4. The saved adapter is another policy than the base."""
    trainer = run(NEW, rows, tmp_path / "uft", monkeypatch)
    losses = logged(trainer, "loss")
    assert losses[0] == pytest.approx(0.25, abs=1e-4) and losses[-1] < losses[0]
    assert len(logged(trainer, "eval_loss")) == 1 and len(logged(trainer, "eval_reward/margin")) == 1
    row = [Completion((2, 4, 20, 5), (30, 31, 3), "scored")]
    assert (tmp_path / "uft" / "adapter_config.json").is_file()
    base, own = (read_logps(load_policy(str(place))[0], row).item() for place in (TINY, tmp_path / "uft"))
    assert abs(base - own) > 1e-3


@pytest.mark.skipif(find_spec("trl") is None, reason="needs TRL")
def test_with_dpos_loss_the_new_script_does_what_the_old_one_did(rows, tmp_path, monkeypatch):
    """All rows are one step, so their order does not matter."""
    adapters = re.search(r"    peft_config=.*\n", OLD.read_text())[0]  # drawn at random, so they are left out
    changes = (("max_steps=3", "max_steps=1"), ("eval_steps=3", "eval_steps=1"), (adapters, ""))
    old = run(OLD, rows, tmp_path / "trl", monkeypatch, *changes)
    new = run(NEW, rows, tmp_path / "uft", monkeypatch, *changes, ("    beta", '    objective="dpo",\n    beta'))
    for name, tolerance in (("loss", 1e-5), ("grad_norm", 1e-3), ("eval_loss", 1e-4)):
        assert logged(new, name) == pytest.approx(logged(old, name), abs=tolerance)
    assert logged(new, "eval_loss")[0] != pytest.approx(0.6931, abs=1e-3)  # the step did something

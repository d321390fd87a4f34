"""A model that is divided over processes (FSDP) trains as one process does, with and without LoRA."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from uftlab.errors import InputError
from uftlab.models.policies import load_policy
from uftlab.training.checkpoint import train_checkpoint
from uftlab.training.configuration import TrainConfig
from uftlab.training.preparing import prepared
from uftlab.world.world import World, pairs

DIVIDED = Path(__file__).parents[1] / "helpers" / "divided.py"
TOLD = {
    "full": {"method": "sft-then-dpo", "beta": 0.3, "learning_rate": 1e-3},
    "lora": {"method": "uft", "beta": 0.3, "learning_rate": 3e-3, "lora": 4, "held_out": 0.25, "evaluate_every": 2},
}
COMMON = {"steps": 4, "batch": 16, "warmup": 0.0, "log_every": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, world = tmp_path_factory.mktemp("rows"), World(0)
    shown = [{k: r[k] for k in ("prompt", "completion")} for r in world.demonstrations(64)]
    judged = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in pairs(world.feedback(64))]
    for name, rows in (("demonstrations", shown), ("feedback", judged)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(folder / f"{name}.jsonl") for name in ("demonstrations", "feedback")}


def weights(folder):
    return load_policy(str(folder))[0].state_dict()


def kept(entry):
    """What was logged, but for how long it took."""
    return {name: value for name, value in entry.items() if not name.endswith(("_second", "_runtime"))}


def test_two_processes_with_parts_of_the_model_train_as_one_with_the_whole(tmp_path, files):
    """Losses, gradient norms, rewards and weights; stage two refers to the whole model after stage one."""
    lines = []
    for name, options in TOLD.items():
        told = {**COMMON, **options, **files}
        train_checkpoint(TrainConfig(str(tmp_path / f"{name}-one"), **told), say=str)
        words = [f"--{key.replace('_', '-')}={value}" for key, value in told.items()]
        lines.append(" ".join(["train", "--out", str(tmp_path / f"{name}-two"), *words]))
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(DIVIDED),
         *" + ".join(lines).split()],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=400,
    )  # fmt: skip
    if "exitcode  : 77" in ended.stderr:
        pytest.skip("gloo lacks an operation of FSDP here")
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    assert ended.stdout.count("saved ") == len(TOLD)
    for name in TOLD:
        one, two = (json.loads((tmp_path / f"{name}-{n}" / "training.json").read_text()) for n in ("one", "two"))
        assert two["processes"] == 2 and two["state"] == "finished"
        for alone, both in zip(one["stages"], two["stages"], strict=True):
            logs = [[kept(entry) for entry in stage["history"]] for stage in (alone, both)]
            for own in logs:
                own[0].pop("reward/accuracy", None)  # before the first step every pair is a tie, but for rounding
            for left, right in zip(*logs, strict=True):
                assert left == pytest.approx(right, abs=1e-4, rel=1e-4)
        if name == "full":  # stage two began at the weights that were gathered after stage one
            assert two["stages"][1]["history"][0]["reward/chosen"] == pytest.approx(0, abs=1e-5)
        # Adam blows rounding up where a gradient is nearly 0: single weights may differ, the way that was gone may not
        first, second = weights(tmp_path / f"{name}-one"), weights(tmp_path / f"{name}-two")
        assert distance(first, second) < 1e-2 * distance(first, weights("tiny"))


def distance(first, second):
    return math.sqrt(sum((first[name] - second[name]).square().sum().item() for name in first))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "sdpo"}, "got parts"),
        ({"method": "sft-then-dpo-l2"}, "got l2"),
        ({"tokens_per_device": 99}, "got --tokens-per-device"),
        ({"save_every": 2}, "got --save-every"),
    ],
)
def test_what_needs_the_whole_model_is_refused_before_training(tmp_path, files, monkeypatch, options, said):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(InputError, match=f"Training with FSDP must need no whole model in a process; {said}"):
        prepared(TrainConfig(str(tmp_path / "out"), **files, **options), str)


def test_the_first_version_of_fsdp_is_refused(tmp_path, files, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(InputError, match="Training with FSDP must be of version 2; got 1"):
        prepared(TrainConfig(str(tmp_path / "out"), **files), str)

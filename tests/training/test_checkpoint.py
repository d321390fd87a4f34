"""`uftlab train`: stages that begin at a reward of 0, adapters as policies, kills, resumes, several processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from uftlab.engine.trainer import DivergedError
from uftlab.errors import InputError
from uftlab.models import references
from uftlab.models.logps import read_logps
from uftlab.models.policies import TINY, load_policy
from uftlab.rows.tokens import Completion, Tokens
from uftlab.training import checkpoint, configuration, preparing, stage_data
from uftlab.training.checkpoint import train_checkpoint
from uftlab.training.configuration import TrainConfig, read_config
from uftlab.world.world import World, pairs

ROWS = 64


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Demonstrations and pairs of world 0."""
    folder, world = tmp_path_factory.mktemp("rows"), World(0)
    shown = [{k: r[k] for k in ("prompt", "completion")} for r in world.demonstrations(ROWS)]
    judged = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in pairs(world.feedback(ROWS))]
    made = {}
    for name, rows in (("demonstrations", shown), ("feedback", judged)):
        made[name] = folder / f"{name}.jsonl"
        made[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(path) for name, path in made.items()}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """References are kept in a folder of the test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(checkpoint.platformdirs, "user_cache_path", lambda name: folder)


def train(out, files, **options):
    options = {"method": "sft-then-dpo", "steps": 4, "batch": 8, "log_every": 1, **options}
    lines = []
    train_checkpoint(TrainConfig(str(out), **{**files, **options}), say=lines.append)
    return json.loads((out / "training.json").read_text()), lines


def weights(folder):
    return load_policy(str(folder))[0].state_dict()


# --------------------------------------------------------------------------------------------- stages


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("method", ["sft-then-dpo", "sft-then-una"])
def test_a_stage_with_a_reference_begins_at_a_reward_of_0(tmp_path, files, method, lora):
    """The reference of stage two is the model after stage one, its adapters merged."""
    record, _ = train(tmp_path / "out", files, method=method, lora=lora, learning_rate=3e-3, warmup=0.0)
    moved = [entry["logps/demonstration"] for entry in record["stages"][0]["history"]]
    first = record["stages"][1]["history"][0]
    assert moved[0] != moved[-1]  # stage one did something
    assert first["reward/chosen"] == pytest.approx(0, abs=1e-5) and first["reward/margin"] == pytest.approx(0, abs=1e-5)
    if method == "sft-then-dpo":
        assert first["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_an_adapters_folder_is_a_policy_wherever_it_lies(tmp_path, files, monkeypatch):
    """Its base is found from every directory, and the next run refers to base and adapter together."""
    first = tmp_path / "first"
    train(first, files, method="sft-full", lora=4, learning_rate=1e-2, warmup=0.0)
    assert (first / "adapter_config.json").is_file() and not (first / "model.safetensors").is_file()
    monkeypatch.chdir(tmp_path)
    record, _ = train(tmp_path / "second", files, model="first", method="dpo-alone", warmup=0.0)
    assert record["stages"][0]["history"][0]["reward/chosen"] == pytest.approx(0, abs=1e-5)
    rows = [Completion((2, 4, 20, 5), (30, 31, 3), "scored")]
    base, own = (read_logps(load_policy(name)[0], rows).item() for name in ("tiny", str(first)))
    assert abs(base - own) > 1e-3
    merged = tmp_path / "merged"
    train(merged, files, method="sft-full", lora=4, learning_rate=1e-2, warmup=0.0, merge=True)
    assert_close(read_logps(load_policy(str(merged))[0], rows).item(), own, atol=1e-4, rtol=0)
    later = checkpoint.merge("first", tmp_path / "later")
    assert_close(read_logps(load_policy(str(later))[0], rows).item(), own, atol=1e-4, rtol=0)
    assert not (later / "adapter_config.json").exists() and not (later / ".training").exists()
    with pytest.raises(InputError, match="The output folder must be empty"):
        checkpoint.merge("first", later)


def test_a_run_that_was_killed_when_all_was_saved_is_called_finished(tmp_path, files):
    out = tmp_path / "out"
    train(out, files, method="sft-full")
    (out / ".training" / "stage-1").mkdir(parents=True)
    with pytest.raises(InputError, match="must be empty; got a finished run in"):
        train(out, files, method="sft-full")
    assert not (out / ".training").exists() and (out / "model.safetensors").is_file()


def test_steps_of_the_stages_add_up(tmp_path, files):
    for steps, expected in ((2, [1, 1]), (3, [2, 1]), (5, [2, 3]), (7, [4, 3])):
        made = preparing.prepared(TrainConfig(str(tmp_path), method="sft-then-dpo", steps=steps, batch=4, **files))
        assert [own for _, own, _ in made.planned] == expected
    with pytest.raises(InputError, match="--steps must be at least 2, one a stage; got 1"):
        preparing.prepared(TrainConfig(str(tmp_path), method="sft-then-dpo", steps=1, batch=4, **files))


def test_a_single_step_changes_the_model(tmp_path, files):
    """A warm-up whose first step has a learning rate of 0 would train nothing."""
    train(tmp_path / "out", files, method="sft-full", steps=1)
    before, after = weights("tiny"), weights(tmp_path / "out")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_each_stage_has_its_own_settings_where_they_are_given(tmp_path, files):
    stages = ({"learning_rate": 1e-3}, {"beta": 0.25})
    record, _ = train(tmp_path / "out", files, stages=stages, learning_rate=2e-3)
    assert record["stages"][0]["settings"]["learning_rate"] == 1e-3
    second = record["stages"][1]["settings"]
    assert second["beta"] == 0.25 and second["learning_rate"] == 2e-3


def test_demonstrations_are_counted_apart_from_what_is_chosen(tmp_path, files):
    record, _ = train(tmp_path / "out", files, method="uft", steps=2, warmup=0.0)
    first = record["stages"][0]["history"][0]
    assert {"reward/demonstration", "reward/chosen", "reward/rejected"} <= set(first)
    assert first["reward/margin"] == pytest.approx(first["reward/chosen"] - first["reward/rejected"], abs=1e-7)


@pytest.mark.parametrize("method", ["uft", "sft-plus-dpo"])
def test_every_logged_number_is_the_same_whatever_the_accumulation(tmp_path, files, method):
    """Plain gradient norms and means over the whole step, not means of means."""
    logs = []
    for parts in (1, 2, 4):
        options = {"steps": 2, "batch": 16, "accumulation": parts, "warmup": 0.0, "learning_rate": 1e-4}
        record, _ = train(tmp_path / str(parts), files, method=method, **options)
        logs.append(record["stages"][0]["history"])
    assert len(logs[0]) == 2 and {"loss", "grad_norm", "reward/margin"} <= set(logs[0][0])
    for other in logs[1:]:
        for one, same in zip(logs[0], other, strict=True):
            assert one == pytest.approx(same, abs=1e-4, rel=1e-4)


def test_rows_that_are_held_out_are_evaluated_and_not_trained_on(tmp_path, files, monkeypatch, capsys):
    """The weights of the reference are digested once for all tables, and each entry of the log is one plain line."""
    digests, usual = [], references.reference_fingerprint
    monkeypatch.setattr(references, "reference_fingerprint", lambda model: digests.append(model) or usual(model))
    record, lines = train(tmp_path / "out", files, method="uft", held_out=0.25, evaluate_every=2, warmup=0.0)
    assert record["rows"] == {"demonstrations": 48, "feedback": 48}
    logged = [entry for entry in record["stages"][0]["history"] if "eval_loss" in entry]
    assert len(logged) == 2 and {"eval_reward/margin", "eval_reward/demonstration"} <= set(logged[0])
    assert len(digests) == 1
    told = [line for line in lines if line.startswith("step ")]
    assert len(told) == 6 and told[0].startswith("step 1 of 4: loss 0.25, margin ") and "gradient norm" in told[0]
    assert told[2].startswith("step 2 of 4: held-out loss 0.2") and "{'loss'" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- resuming


COMMAND = [sys.executable, "-m", "uftlab", "train"]


def started(*arguments, cache, **more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache), **more}
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_after_a_kill_resume_ends_with_the_same_weights(tmp_path, files):
    """SIGKILL in stage two, after a checkpoint; then to the end. To the bit, as if nothing had happened."""
    options = ["--method", "sft-then-dpo", "--steps", 40, "--batch", 8, "--save-every", 4, "--log-every", 1]
    options += [f"--{name}={path}" for name, path in files.items()]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert started("--out", whole, *options, cache=tmp_path).wait(120) == 0
    process = started("--out", cut, *options, cache=tmp_path)
    deadline = time.monotonic() + 120
    while not list(cut.glob(".training/stage-2/checkpoint-*/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert json.loads((cut / "training.json").read_text())["state"] == "unfinished"
    assert not (cut / "model.safetensors").exists()
    again = started("--out", cut, *options, cache=tmp_path)
    assert "Add --resume, or delete it" in again.communicate()[0] and again.returncode == 2
    resumed = started("--out", cut, "--resume", cache=tmp_path)
    said = resumed.communicate()[0]
    assert resumed.returncode == 0 and "stage 1 of 2: done before" in said, said
    one, other = weights(whole), weights(cut)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert sorted(p.name for p in whole.iterdir()) == sorted(p.name for p in cut.iterdir())
    records = [json.loads((folder / "training.json").read_text()) for folder in (whole, cut)]
    assert records[0]["stages"][0] == records[1]["stages"][0]


@pytest.mark.parametrize("options", [{}, {"lora": 4, "merge": True}, {"gradient_checkpointing": True}], ids=str)
def test_a_trained_model_is_configured_as_before_also_when_nothing_was_left_to_train(
    tmp_path, files, options, monkeypatch
):
    """The library switches the cache of a model off for good when it trains it."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(whole, files, method="uft", steps=2, **options)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(cut, files, method="uft", steps=2, **options)
    train_checkpoint(TrainConfig(str(cut)), resume=True, say=lambda line: None)
    stored = [json.loads((folder / "config.json").read_text()) for folder in (TINY, whole, cut)]
    versions = [own.pop("transformers_version") for own in stored]
    assert stored[0] == stored[1] == stored[2] and stored[0]["use_cache"] and versions[1] == versions[2]
    one, other = weights(whole), weights(cut)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
@pytest.mark.parametrize("options", [{}, {"lora": 4}], ids=str)
def test_a_trained_model_can_be_read_by_whom_any_new_file_can(tmp_path, files, options):
    """A teacher trains it for a class. safetensors 0.8 makes files that only their owner may read."""
    train(tmp_path / "out", files, method="sft-full", steps=1, **options)
    (tmp_path / "usual").touch()
    usual, made = (tmp_path / "usual").stat().st_mode, list((tmp_path / "out").iterdir())
    assert made and [path.name for path in made if path.stat().st_mode != usual] == []


def test_resume_of_a_finished_run_or_of_nothing_is_refused(tmp_path, files):
    train(tmp_path / "out", files, method="sft-full", steps=1)
    for folder, got in ((tmp_path / "out", "a finished one"), (tmp_path / "none", "none")):
        with pytest.raises(InputError, match=f"--resume must find an unfinished run.*got {got}"):
            train_checkpoint(TrainConfig(str(folder)), resume=True)


def damaged(text):
    """A record of an unfinished run with one thing that is not as it was written."""
    whole = {"state": "unfinished", "method": "uft", "model": "tiny", "seed": 0, "stages": []}
    whole["config"] = TrainConfig("out").asdict()
    return json.dumps({**whole, **text}) if isinstance(text, dict) else text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "training.json must be as"),
        ("[]", "training.json must be as"),
        ('{"state": "unfinished", "state": "finished"}', "the key 'state' is there twice"),
        ({"state": "lost"}, "training.json: state must be as"),
        ({"config": None}, "training.json: config must be as"),
        ({"seed": -1}, "training.json: seed"),
        ({"stages": [{"objective": "sft", "steps": 1, "settings": {"beta": "x"}, "history": []}]}, "stages.0.settings"),
        ({"config": {"steps": "many"}}, "training.json: steps must be of the type int"),
        ({"config": {"lora": -1}}, "--lora must be"),
        ({"config": {"colour": "red"}}, "must be an option of"),
        ({"config": {"stages": [3]}}, "must be a list of names"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_damaged_record_is_refused_with_its_name_and_left_as_it_is(tmp_path, text, said):
    (tmp_path / "training.json").write_text(damaged(text))
    for read in (lambda config: train_checkpoint(config, resume=True), checkpoint.state_of):
        with pytest.raises(InputError, match=re.escape(said)):
            read(TrainConfig(str(tmp_path)))
    assert (tmp_path / "training.json").read_text() == damaged(text)


def test_a_damaged_record_of_a_finished_stage_is_refused_when_the_run_goes_on(tmp_path, files, monkeypatch):
    monkeypatch.setattr(checkpoint, "_finish", lambda *args: None)  # as if it was killed before
    train(tmp_path, files, method="sft-full", steps=1)
    path = tmp_path / ".training" / "stage-1" / "record.json"
    path.write_text('{"objective": "sft"}')
    with pytest.raises(InputError, match=r"record\.json: steps must be as .*Delete .*stage-1; --resume then"):
        train_checkpoint(TrainConfig(str(tmp_path)), resume=True)


def test_more_passes_than_can_be_laid_out_are_refused_before_training(tmp_path, files, monkeypatch):
    monkeypatch.setattr(configuration, "MOST_COMPLETIONS", 100)
    with pytest.raises(InputError, match="--epochs must come to 12 steps of this batch at most"):
        train(tmp_path / "out", files, method="sft-full", steps=None, epochs=10.0)
    assert not (tmp_path / "out").exists()


def test_a_run_that_diverges_stops_and_saves_nothing_as_if_it_were_good(tmp_path, files):
    with pytest.raises(DivergedError, match=r"must be finite; got nan.*Lower the learning rate"):
        train(tmp_path / "out", files, method="sft-full", learning_rate=1e30, steps=6, warmup=0.0)
    assert json.loads((tmp_path / "out" / "training.json").read_text())["state"] == "unfinished"
    assert not (tmp_path / "out" / "model.safetensors").exists()


# ------------------------------------------------------------------------------------ before it begins


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(tmp_path, files):
    lines = []
    train_checkpoint(TrainConfig(str(tmp_path / "out"), steps=20, **files), say=lines.append, dry_run=True)
    text = "\n".join(lines)
    assert "20 steps of 32 completions" in text and "trained on" in text and "minutes on this machine" in text
    assert text.endswith("nothing was trained or written") and not (tmp_path / "out").exists()


def test_of_a_large_table_no_more_is_tokenised_than_a_run_can_need(tmp_path, files, monkeypatch):
    """A million rows for a hundred steps: the likely mistakes are all of them, or always the first ones."""
    monkeypatch.setattr(stage_data, "TOKENISED", 10)
    tokenised, whole = [], Tokens._example
    monkeypatch.setattr(Tokens, "_example", lambda *of: tokenised.append(of[1]["prompt"]) or whole(*of))

    def made(**options):
        tokenised.clear()
        lines = []
        told = TrainConfig(str(tmp_path), method="sft-full", batch=4, **{**files, **options})
        (rows,), _ = preparing.prepared(told, lines.append).rows[0]
        drawn = [line for line in lines if "are drawn for this run" in line]
        return len(rows), list(tokenised), drawn

    assert made(steps=1)[0] == 10
    length, prompts, said = made(steps=3)
    assert length == len(prompts) == 2 * 3 * 4
    assert "demonstrations: 24 of these rows are drawn for this run, which reads fewer" in said
    everything = [json.loads(line)["prompt"] for line in Path(files["demonstrations"]).read_text().splitlines()]
    assert prompts != everything[:24] and set(prompts) <= set(everything)
    assert made(steps=3)[1] == prompts != made(steps=3, seed=1)[1]
    for options in ({"steps": 8}, {"epochs": 0.1}):
        assert made(**options) == (ROWS, everything, [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beta": float("nan")}, "--beta must be a finite number and be above 0; got nan"),
        ({"beta": -0.1}, "--beta must be a finite number and be above 0; got -0.1"),
        ({"learning_rate": float("inf")}, "--learning-rate must be a finite number"),
        ({"learning_rate": -1e-3}, "--learning-rate must be a finite number and be at least 0"),
        ({"lora": -1}, "--lora must be a finite number and be at least 0"),
        ({"seed": -1}, "--seed must be"),
        ({"warmup": 1.0}, "--warmup must be a share below 1"),
        ({"precision": "int8"}, "--precision must be one of fp32, bf16, fp16"),
        ({"steps": 3, "epochs": 1.0}, "--steps and --epochs must not be given together"),
        ({"evaluate_every": 3}, "--evaluate-every must have rows to evaluate"),
        ({"accumulation": 3}, "must divide into 3 equal parts"),
        ({"tokens_per_device": 4}, "--tokens-per-device must be at least"),
        ({"method": "rloo", "tokens_per_device": 400}, "--tokens-per-device must go with plain stages"),
        ({"stages": ({}, {}, {})}, "stages must be at most 2"),
        ({"stages": ({"beta": 0.1, "gamma": 1.0},)}, "gamma"),
        ({"method": "rloo", "held_out": 0.1}, "--held-out must go with plain stages; got the recipe rloo"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_written(tmp_path, files, options, said):
    with pytest.raises(InputError) as refused:
        train(tmp_path / "out", files, **options)
    assert said in str(refused.value) and not (tmp_path / "out").exists()


def test_a_configuration_is_read_from_yaml_and_changed_by_options(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("out: made\nlearning_rate: 1e-4\nbatch: 16\nstages:\n- beta: 0.1\n")
    config = read_config(path, ["batch=8", "stages.1.beta=0.01"], method="sft-then-dpo", lora=None)
    assert config == TrainConfig(
        "made", learning_rate=1e-4, batch=8, stages=({"beta": 0.1}, {"beta": 0.01}), method="sft-then-dpo"
    )


def test_a_run_without_a_folder_has_one_named_after_model_and_method():
    assert read_config(None, model="owner/Some-135M").out == "results/train/Some-135M-uft"


@pytest.mark.parametrize(
    ("text", "changes", "said"),
    [
        ("out: a\nbetta: 1", (), "betta must be an option of `uftlab train`; got 'betta'. Did you mean beta"),
        ("out: a\nbatch: many", (), "batch must be of the type int; got 'many'"),
        ("out: a\nmerge: 1", (), "merge must be of the type bool"),
        ("- a", (), "must hold `name: value` lines"),
        ("out: [", (), "--config must be a YAML file"),
        ("out: a", ("batch",), "--set must be name=value"),
        ("out: a", ("stages.x.beta=1",), "--set must name an option"),
        ("out: a\nstages: [b]", ("stages.0.beta=1",), "stages must be a list of names with values; got ['b']"),
        ("out: a\nlearning_rate: .nan", (), "--learning-rate must be a finite number"),
    ],
)
def test_a_wrong_configuration_is_one_clear_error(tmp_path, text, changes, said):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_config(path, changes)
    assert said in str(refused.value)


# ---------------------------------------------------------------------------------- several processes


@pytest.mark.parametrize("method", ["uft"])
def test_two_processes_log_what_one_logs(tmp_path, files, method):
    """The same global batch over two processes: losses, gradient norms and all metrics, and one writer.

    The two cut their shares by tokens, one perhaps into more passes than the other.
    """
    options = ["--method", method, "--steps", 3, "--batch", 16, "--log-every", 1, "--warmup", 0.0]
    options += [f"--{name}={path}" for name, path in files.items()]
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, files, method=method, steps=3, batch=16, warmup=0.0)
    # what `accelerate launch --multi_gpu` starts; the flag itself is for GPUs, so the CPU is asked for by name
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path), "ACCELERATE_USE_CPU": "true"}
    made = subprocess.run(
        [*command, "-m", "uftlab", "train", *map(str, [*options, "--tokens-per-device", 64, "--out", two])],
        capture_output=True, text=True, env=environment, timeout=240, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    assert made.stdout.count("saved ") == 1
    logs = [json.loads((folder / "training.json").read_text()) for folder in (one, two)]
    assert logs[1]["processes"] == 2
    for left, right in zip(*(log["stages"][0]["history"] for log in logs), strict=True):
        assert left == pytest.approx(right, abs=1e-4, rel=1e-4)
    first, second = weights(one), weights(two)
    for name in first:
        assert_close(first[name], second[name], atol=2e-4, rtol=1e-3)


def test_a_token_without_an_embedding_is_refused_where_a_row_has_it(tmp_path, files):
    """A new padding token is nobody's business; a new word is."""
    policy, tokenizer = load_policy("tiny")
    tokenizer.add_special_tokens({"pad_token": "<filler>"})
    tokenizer.add_tokens(["xylophone"])
    for part in (policy, tokenizer):
        part.save_pretrained(tmp_path / "model")
    train(tmp_path / "out", files, model=str(tmp_path / "model"), method="sft-full", steps=1)
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "what ?", "completion": "a xylophone ."}\n')
    with pytest.raises(InputError, match=r"among the model's 511; got 'xylophone', number 512"):
        train(tmp_path / "no", {"demonstrations": str(path)}, model=str(tmp_path / "model"), method="sft-full")


def test_prompts_that_a_benchmark_asks_too_are_named(tmp_path, files):
    """UltraFeedback, for instance, contains questions of TruthfulQA."""
    asked = json.loads(Path(files["demonstrations"]).read_text().splitlines()[3])["prompt"]
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question": asked.upper()}) + "\n" + json.dumps({"question": "who ?"}) + "\n")
    lines = []
    preparing.prepared(TrainConfig(str(tmp_path / "out"), benchmarks=(str(path),), **files), lines.append)
    assert [line for line in lines if line.startswith("warning: 1 prompts are in") and "flatter" in line]

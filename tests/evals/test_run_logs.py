"""Logs as trainers write them, by their names and ours; files that are none are refused in one line."""

import json
import math
from pathlib import Path

import pytest

from uftlab.errors import InputError
from uftlab.evals.doctor import diagnose
from uftlab.evals.run_logs import CURVES, canonical, read_runs
from uftlab.study.results import RESULTS

LOGS = Path(__file__).parent / "logs"
# The keys of LlamaFactory's LogCallback, as its source has them (src/llamafactory/train/callbacks.py); it was not run.
FACTORY = {
    "total_steps": 40,
    "lr": 1e-4,
    "epoch": 0.1,
    "percentage": 5.0,
    "elapsed_time": "0:00:10",
    "remaining_time": "0:03:10",
}


def written(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def findings(path, **settings):
    (run,) = read_runs(path, settings)
    return {own.name for own in diagnose(run).findings}


@pytest.mark.parametrize(
    ("log", "settings", "wanted"),
    [
        ("trl_dpo_healthy.json", {}, set()),
        ("trl_dpo_healthy.json", {"beta": 0.2, "objective": "dpo"}, set()),
        ("trl_dpo_diverged.json", {}, {"divergence"}),
        ("trl_dpo_still.jsonl", {}, {"loss that cannot fall"}),
        ("trl_kto_healthy.json", {"beta": 0.2}, set()),
        ("trl_kto_inert.json", {}, {"inert reward"}),
    ],
)
def test_logs_that_trl_wrote(log, settings, wanted):
    """Made by benchmarks/trl_logs.py with TRL 1.16: DPO and KTO, healthy and not."""
    assert findings(LOGS / log, **settings) == wanted


def test_trl_names_become_ours_and_held_out_rows_stay_apart():
    (run,) = read_runs(LOGS / "trl_dpo_healthy.json")
    wanted = {"loss", "reward/chosen", "reward/rejected", "reward/margin", "reward/accuracy", "logps/chosen"}
    assert wanted | {"eval_reward/accuracy", "eval_loss"} <= set(run.curves)
    assert len(run.curves["loss"]) == 20 and [s for s, _ in run.curves["eval_loss"]] == [20, 40]
    (kto,) = read_runs(LOGS / "trl_kto_healthy.json")
    assert kto.settings["objective"] == "kto" and "kl_baseline" in kto.curves


def test_a_trial_has_a_run_for_each_stage_with_its_settings_and_lengths():
    (path,) = (RESULTS / "class" / "trials").glob("sft-then-dpo-seed0-*.json")
    first, second = read_runs(path)
    assert (first.settings["objective"], second.settings["objective"]) == ("sft", "dpo")
    assert second.name == f"{path}, stage 2" and second.settings["beta"] > 0
    assert second.curves["length/words"][0][0] == 100  # where stage one ended
    assert len(read_runs(RESULTS / "class")) > 200


def test_training_json_of_uftlab_train(tmp_path):
    history = [{"loss": 2.0 - n / 10, "step": n, "logps/demonstration": -20.0 + n} for n in range(1, 9)]
    stage = {"objective": "sft", "steps": 8, "settings": {"learning_rate": 1e-3}, "history": history}
    written(tmp_path / "training.json", {"method": "sft", "stages": [stage]})
    (run,) = read_runs(tmp_path)
    assert run.curves["loss"][0] == (1, 1.9) and run.settings["learning_rate"] == 1e-3


def test_the_log_of_llamafactory(tmp_path):
    rows = [{"current_steps": 5 * n, "loss": 0.7 - n / 50, "accuracy": 0.5 + n / 40, **FACTORY} for n in range(1, 9)]
    written(tmp_path / "trainer_log.jsonl", *rows, {"current_steps": 40, "eval_loss": 0.6, **FACTORY})
    (run,) = read_runs(tmp_path)
    assert run.curves["reward/accuracy"][-1] == (40, 0.7) and run.curves["learning_rate"][0] == (5, 1e-4)
    assert run.curves["eval_loss"] == [(40, 0.6)]
    assert diagnose(run).unknown["stale reference"] == ("reward/chosen",)


def test_a_csv_of_a_logger(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("train/global_step,train/loss,train/rewards/chosen,note\n5,0.7,0.1,\n10,0.6,,x\n")
    (run,) = read_runs(path)
    assert run.curves == {"loss": [(5, 0.7), (10, 0.6)], "reward/chosen": [(5, 0.1)]}


@pytest.mark.parametrize("name", ["_step", "Step", "train/global_step"])
def test_steps_of_an_exported_table_are_steps_and_not_row_numbers(tmp_path, name):
    (tmp_path / "log.csv").write_text(f"{name},train/loss,eval/loss\n10,0.6,\n20,,0.7\n20,0.5,\n")
    (run,) = read_runs(tmp_path / "log.csv")
    assert run.curves == {"loss": [(10, 0.6), (20, 0.5)], "eval_loss": [(20, 0.7)]}


def test_the_newest_checkpoint_of_a_folder_is_read(tmp_path):
    for number, loss in ((20, 0.6), (100, 0.4), (40, 0.5)):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        written(folder / "trainer_state.json", {"log_history": [{"step": number, "loss": loss}]})
    (run,) = read_runs(tmp_path)
    assert run.curves["loss"] == [(100, 0.4)]


def test_after_a_resume_the_later_row_of_a_step_counts(tmp_path):
    path = written(tmp_path / "log.jsonl", {"step": 1, "loss": 3}, {"step": 2, "loss": 9}, {"step": 2, "loss": 2})
    (run,) = read_runs(path)
    assert run.curves["loss"] == [(1, 3), (2, 2)]


def test_numbers_that_are_text_and_numbers_that_are_not_finite(tmp_path):
    path = written(tmp_path / "log.jsonl", '{"step": 1, "loss": "0.5"}', '{"step": 2, "loss": NaN}')
    (run,) = read_runs(path)
    assert run.curves["loss"][0] == (1, 0.5) and math.isnan(run.curves["loss"][1][1])
    assert findings(path) == {"divergence"}


def test_kl_of_a_trainer_that_samples_is_no_baseline_of_kto(tmp_path):
    path = written(tmp_path / "log.jsonl", *({"step": n, "reward": 0.5, "kl": 0.1, "loss": 0.0} for n in range(4)))
    (run,) = read_runs(path)
    assert "kl_baseline" not in run.curves and "objective" not in run.settings and "score/proxy" in run.curves


def test_every_name_of_ours_is_a_name():
    assert [canonical(name) for name in CURVES] == list(CURVES)
    assert canonical("epoch") is None and canonical("eval_rewards/margins") == "eval_reward/margin"


BAD = {
    "missing.json": (None, "be a file that can be read"),
    "empty.jsonl": ("", "an empty file"),
    "words.jsonl": ('{"loss": 1}\nloss: 2\n', "line 2 must be JSON"),
    "cut.json": ('{"log_history": [{"loss": 1}', "must be JSON"),
    "number.jsonl": ('{"step": 1, "loss": 1}\n{"step": 2, "loss": "high"}\n', "line 2: loss must be a number"),
    "list.jsonl": ("[1, 2]\n", "line 1 must be a dictionary"),
    "other.json": ('{"weights": 3}', "must have log_history"),
    "names.csv": ("a,b\n1,2\n", "at least one curve"),
    "step.jsonl": ('{"step": "first", "loss": 1}\n', "line 1: step must be a number"),
    "nothing.json": ('{"stages": []}', "a history in at least one of its stages"),
    "list.json": ("3", "must have log_history"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_log_is_refused_in_one_line(tmp_path, name):
    text, said = BAD[name]
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_runs(path)
    assert said in str(refused.value) and name in str(refused.value) and "\n" not in str(refused.value)


def test_bytes_are_refused(tmp_path):
    (tmp_path / "weights.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="UTF-8"):
        read_runs(tmp_path / "weights.json")


def test_a_folder_without_logs_says_what_it_has(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="hold trials or one of .*got model.safetensors"):
        read_runs(tmp_path)


def test_a_beta_of_0_or_in_words_is_not_known(tmp_path):
    for beta in (0.0, "small", None):
        stage = {"objective": "una-score", "settings": {"beta": beta}, "history": [{"step": 1, "loss": 0.2}]}
        (run,) = read_runs(written(tmp_path / "training.json", {"stages": [stage]}))
        assert "beta" not in run.settings


@pytest.mark.parametrize("stages", [3, [{"history": 5}], [{"history": [{"loss": "high"}]}], ["sft"], None])
def test_a_training_json_of_another_tool_does_not_stop_an_evaluation(stages):
    from uftlab.evals.benchmarks import _diagnosed

    assert _diagnosed({"stages": stages}) == []

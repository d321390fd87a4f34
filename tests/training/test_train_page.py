"""docs/train.md says what `uftlab train` can do: its options, its file and its commands are those of the code."""

import re
import shlex
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rows import completion, rows_of
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.errors import InputError
from uftlab.models.policies import TINY
from uftlab.objectives.objective import means_of, metric_sums
from uftlab.training.catalogue import all_methods
from uftlab.training.configuration import TrainConfig, read_config
from uftlab.training.stages import ALL_WEIGHTS

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
PAGE = (DOCS / "train.md").read_text()
RECIPE = re.search(r"```yaml\n# recipe.yaml\n(.*?)```", PAGE, re.S)[1]


def test_every_option_of_the_command_is_on_the_page_and_none_besides():
    shown = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "300"}).output
    own = set(re.findall(r"--[a-z-]+", shown)) - {"--help"}
    own = {name for name in own if not name.startswith("--no-")}
    of_launchers = {"--multi_gpu", "--num_processes", "--num_machines", "--machine_rank", "--main_process_ip"}
    of_launchers |= {
        "--main_process_port",
        "--nproc-per-node",
        "--nnodes",
        "--node-rank",
        "--master-addr",
        "--master-port",
    }
    assert own == set(re.findall(r"--[a-z_-]+[a-z]", PAGE)) - of_launchers


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_the_file_of_options_is_read_as_the_page_says(recipe):
    made = read_config(recipe)
    assert isinstance(made, TrainConfig) and made.method == "sft-then-una" and made.batch == 64
    assert [dict(stage) for stage in made.stages] == [
        {"learning_rate": 1e-4},
        {"learning_rate": 3e-5, "beta": 0.01},
    ]
    changed = read_config(recipe, ["stages.1.beta=0.03"], seed=1, out="runs/second")
    assert changed.stages[1]["beta"] == 0.03 and changed.seed == 1 and changed.out == "runs/second"
    with pytest.raises(InputError, match="Did you mean batch"):
        read_config(recipe, ["batsh=3"])


def test_every_command_of_the_page_has_options_that_there_are():
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S)).replace("\\\n", " ")
    lines = re.findall(r"uftlab train (.*)$", blocks, re.M)
    assert len(lines) >= 6
    shown = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "300"}).output
    for line in lines:
        for option in (word for word in shlex.split(line) if word.startswith("--")):
            assert option in shown, line


def test_the_command_of_the_paper_means_what_it_says(tmp_path, monkeypatch):
    """Stand-ins in the hub's layout under the same names: UltraChat has no split train, HelpSteer2 has no score."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY, tmp_path / "HuggingFaceTB" / "SmolLM2-135M", ignore=shutil.ignore_patterns("worlds"))
    asked, answer = "what is the food of bazib ?", "it is moss ."
    turns = [{"role": role, "content": text} for role, text in (("user", asked), ("assistant", answer)) * 2]
    for split in ("train_sft", "test_sft", "train_gen", "test_gen"):
        kept = turns if split == "train_sft" else turns[:2]
        rows = [{"prompt": asked, "prompt_id": "1", "messages": kept}] * 8
        stand_in("HuggingFaceH4/ultrachat_200k", split, rows)
    ratings = {"helpfulness": 4, "correctness": 2, "coherence": 0, "complexity": 1, "verbosity": 1}
    for split in ("train", "validation"):
        stand_in("nvidia/HelpSteer2", split, [{"prompt": asked, "response": answer, **ratings}] * 24)
    command = (
        "train --model HuggingFaceTB/SmolLM2-135M --demonstrations HuggingFaceH4/ultrachat_200k "
        "--feedback nvidia/HelpSteer2 --method uft --beta 0.01 --dry-run"
    )
    ended = CliRunner().invoke(app, command.split())
    assert ended.exit_code == 0, ended.output
    said = " ".join(ended.output.split())
    assert "demonstrations: HuggingFaceH4/ultrachat_200k@train_sft: 16 demonstrations from 8 rows" in said
    assert "feedback: nvidia/HelpSteer2@train: 24 scored rows; score = (0.65 helpfulness" in said
    assert "una-score, 100 steps of 32 completions" in said and "beta 0.01" in said
    assert f"trained on '{answer} <end>'" in said and "nothing was trained" in said
    assert not (tmp_path / "results").exists()


def stand_in(name, split, rows):
    path = Path(name) / "data" / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_the_methods_that_refuse_lora_are_those_named():
    refusing = {m.name for m in all_methods().values() if any(s.recipe in ALL_WEIGHTS for s in m.stages)}
    sentence = re.search(r"(`paft`.*) need all weights", PAGE)[1]
    assert set(re.findall(r"`([\w-]+)`", sentence)) == refusing


def test_the_logged_names_are_those_of_the_code():
    completions = [completion("chosen", 1.0), completion("rejected", 0.0), completion("demonstration", 1.0)]
    rows = rows_of([(c,) for c in completions])
    names = set(means_of(metric_sums(rows, 0.1)))
    assert set(re.findall(r"`(reward/\w+)`", PAGE)) == {name for name in names if name.startswith("reward/")}

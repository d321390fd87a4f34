"""docs/train.md says what `uftlab train` can do: its options, its file and its commands are those of the code."""

import re
import shlex
from pathlib import Path

import pytest
from rows import completion, rows_of
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.errors import InputError
from uftlab.objectives.objective import means_of, metric_sums
from uftlab.training.configuration import TrainConfig, read_config
from uftlab.training.methods import all_methods
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


def test_the_methods_that_refuse_lora_are_those_named():
    refusing = {m.name for m in all_methods().values() if any(s.recipe in ALL_WEIGHTS for s in m.stages)}
    sentence = re.search(r"(`paft`.*) need all weights", PAGE)[1]
    assert set(re.findall(r"`([\w-]+)`", sentence)) == refusing


def test_the_logged_names_are_those_of_the_code():
    completions = [completion("chosen", 1.0), completion("rejected", 0.0), completion("demonstration", 1.0)]
    rows = rows_of([(c,) for c in completions])
    names = set(means_of(metric_sums(rows, 0.1)))
    assert set(re.findall(r"`(reward/\w+)`", PAGE)) == {name for name in names if name.startswith("reward/")}

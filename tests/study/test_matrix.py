"""`uftlab compare recipe.yaml`: every method and seed trained, measured and compared; nothing done twice."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.engine.trainer import DivergedError
from uftlab.errors import InputError
from uftlab.evals.outcomes import load_result
from uftlab.study import matrix
from uftlab.training.configuration import TrainConfig, read_config
from uftlab.world.world import World, pairs

pytestmark = pytest.mark.usefixtures("quick_collections")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Two steps of the tiny model, measured by a text of two documents and the reward of four pairs."""
    folder, world = tmp_path_factory.mktemp("recipe"), World(0)
    shown = [{k: r[k] for k in ("prompt", "completion")} for r in world.demonstrations(16)]
    judged = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in pairs(world.feedback(16))]
    texts = [{"text": f"{row['prompt']} {row['completion']}"} for row in shown[:2]]
    for name, rows in (("shown", shown), ("judged", judged), ("few", judged[:4]), ("text", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {
        "demonstrations": str(folder / "shown.jsonl"), "feedback": str(folder / "judged.jsonl"), "steps": 2, "batch": 8,
        "warmup": 0.0, "beta": 0.3, "learning_rate": 1e-3,
        "methods": {"uft": {"learning_rate": 2e-3}, "sft-full": None},
        "eval": {"suite": "perplexity, reward", "text": str(folder / "text.jsonl"), "rows": str(folder / "few.jsonl")},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(told, sort_keys=False))
    return path


def uftlab(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_all_runs_are_trained_measured_and_compared_and_only_once(recipe, tmp_path, monkeypatch):
    out = tmp_path / "out"
    options = (recipe, "--methods", "base,uft,sft-full", "--seeds", "0,1", "--out", out)
    ended = uftlab(*options)
    assert ended.exit_code == 0, ended.output
    assert "5 runs, 0 done before; about" in ended.output and "sft-full has no beta" in ended.output
    for number, name in enumerate(("base", "uft-0", "sft-full-0", "uft-1", "sft-full-1"), start=1):
        assert f"{name}: " in ended.output and f"({number}/5)" in ended.output
        assert (out / "measured" / name / "eval.md").is_file()
    told = json.loads((out / "trained" / "uft-1" / "training.json").read_text())
    assert (told["state"], told["seed"], told["config"]["learning_rate"], told["config"]["beta"]) == (
        "finished", 1, 2e-3, 0.3,
    )  # fmt: skip
    assert not (out / "trained" / "base").exists() and load_result(out / "measured" / "base")["method"] is None
    page = (out / "compared.md").read_text()
    assert page.startswith("# Compared with base") and "| uft | " in page and "| sft-full | " in page
    assert "one seed" not in page  # two seeds are one group with an interval of their own
    # again: nothing is trained or measured, and a run that is missing alone is made anew
    for path in (out / "trained" / "uft-1", out / "measured" / "uft-1"):
        path.rename(path.with_suffix(".old"))
    before = (out / "measured" / "uft-0" / "eval.json").read_bytes()
    again = uftlab(*options, "--baseline", "sft-full")
    assert again.exit_code == 0, again.output
    assert "5 runs, 4 done before" in again.output and "(1/1)" in again.output
    assert (out / "measured" / "uft-0" / "eval.json").read_bytes() == before
    assert (out / "compared.md").read_text().startswith("# Compared with sft-full")
    monkeypatch.setattr(matrix, "train_checkpoint", None)
    assert "5 runs, 5 done before\n" in uftlab(*options).output
    changed = tmp_path / "changed.yaml"
    changed.write_text(recipe.read_text().replace("steps: 2", "steps: 3"))
    refused = uftlab(changed, *options[1:])
    assert refused.exit_code == 2 and "must be told the same as before; got steps 2 and not 3" in " ".join(
        refused.output.split()
    )


def test_a_training_that_was_cut_resumes(recipe, tmp_path, monkeypatch):
    runs = matrix.planned(recipe, ["uft"], [0], tmp_path, say=str)
    settings, resumed = matrix.evaluation_of(recipe), []
    train = matrix.train_checkpoint

    def cut(config, say, resume=False):
        from uftlab.training import checkpoint

        with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
            stopped.setattr(checkpoint, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            train(config, say, resume)
        raise KeyboardInterrupt

    with monkeypatch.context() as first, pytest.raises(KeyboardInterrupt):
        first.setattr(matrix, "train_checkpoint", cut)
        matrix.run(runs, settings, say=str)
    monkeypatch.setattr(
        matrix, "train_checkpoint", lambda *args, **more: resumed.append(more["resume"]) or train(*args, **more)
    )
    assert matrix.run(runs, settings, say=str) == [] and resumed == [True] and runs[0].is_trained


def test_a_run_that_diverges_is_named_and_left_out(recipe, tmp_path, monkeypatch):
    train = matrix.train_checkpoint

    def some(config, *args, **more):
        if config.method == "sft-full":
            raise DivergedError("The loss of step 1 must be finite; got nan. Lower the learning rate.")
        return train(config, *args, **more)

    monkeypatch.setattr(matrix, "train_checkpoint", some)
    ended = uftlab(recipe, "--methods", "base,uft,sft-full", "--seeds", "0", "--out", tmp_path)
    assert ended.exit_code == 1 and "1 of 4 runs diverged" not in ended.output
    assert "1 of 3 runs diverged: sft-full-0" in ended.output and "sft-full-0: The loss of step 1" in ended.output
    assert "sft-full-0 is left out" in (tmp_path / "compared.md").read_text()


def test_options_of_a_method_win_and_the_methods_are_those_of_the_recipe(recipe):
    assert matrix.methods_of(recipe) == ["uft", "sft-full"]
    assert read_config(recipe, method="uft").learning_rate == 2e-3
    assert read_config(recipe, method="sft-full").learning_rate == 1e-3
    assert read_config(recipe, ["learning_rate=5e-3"], method="uft").learning_rate == 5e-3
    settings = matrix.evaluation_of(recipe)
    assert settings.suites == ("perplexity", "reward") and settings.reference == "tiny" == TrainConfig.model


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{recipe}", "{folder}", "--out", "o"], "A recipe must come alone"),
        (["{recipe}"], "A recipe must have --out; got none"),
        (["{recipe}", "--out", "o", "--baseline", "dpo"], "--baseline must be among --methods, uft, sft-full; got dpo"),
        (["{recipe}", "--out", "o", "--methods", "utf"], "Did you mean uft"),
        (["{folder}", "--seeds", "0"], "--methods and --seeds must come with a recipe"),
        (["{folder}"], "must have --baseline; got none"),
    ],
)
def test_mixtures_of_both_uses_are_refused(recipe, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    ended = uftlab(*(word.format(recipe=recipe, folder=tmp_path) for word in arguments))
    assert ended.exit_code == 2 and said in " ".join(ended.output.split())
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("eval_", "said"),
    [
        ({"suites": "kl"}, "eval: suites must be an option of `uftlab eval`; got 'suites'. Did you mean suite"),
        ({"limit": "many"}, "eval: limit must be of the type int; got 'many'"),
        ("ifeval", "eval must hold names with values below them; got 'ifeval'"),
    ],
)
def test_a_wrong_part_eval_is_one_clear_error(tmp_path, eval_, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"eval": eval_}))
    with pytest.raises(InputError) as refused:
        matrix.evaluation_of(path)
    assert said in str(refused.value)


def test_what_cannot_be_measured_is_refused_before_anything_is_trained(recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    told = yaml.safe_load(recipe.read_text())
    path.write_text(yaml.safe_dump({**told, "eval": {**told["eval"], "rows": "no/such"}}))
    ended = uftlab(path, "--methods", "uft", "--seeds", "0", "--out", tmp_path / "out")
    assert ended.exit_code == 2 and "no/such" in ended.output and not (tmp_path / "out").exists()

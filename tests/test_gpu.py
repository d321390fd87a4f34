"""The GPU script runs whole without a GPU, and what it wrote on one is what both pages say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu_results
import pytest
from scope import ALL

ROOT = Path(__file__).resolve().parent.parent
STORED = sorted(gpu_results.STORE.glob("*.json"))


BARE = """
import sys
for name in ("jupyter", "jupyterlab", "nbformat", "papermill", "IPython", "ipykernel", "ipywidgets", "plotly"):
    sys.modules[name] = None  # importing it raises, looking for it finds nothing
import gpu, real_runs
import uftlab.training.checkpoint, uftlab.evals.benchmarks, uftlab.evals.harness
"""


def test_the_scripts_of_the_gpu_run_where_there_is_no_jupyter():
    """Python looks beside a script first. A file there that is named like an optional package hides that package."""
    ended = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, cwd=ROOT / "benchmarks")
    assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """The folder of a dry run."""
    if not ALL:
        pytest.skip("the dry run of all GPU checks takes more than a minute: UFTLAB_TESTS=all")
    folder = tmp_path_factory.mktemp("gpu")
    script = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--dry-run"]
    environment = {**os.environ, "OUT": str(folder), "PYTHON": sys.executable}
    ended = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return folder


def read(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_the_dry_run_writes_every_part_whole_without_a_fault_and_marked_as_dry(dry):
    parts = read(dry)
    assert sorted(parts) == sorted((*gpu_results.NEEDED, *gpu_results.OPTIONAL))
    assert {name: part["faults"] for name, part in parts.items() if part["faults"]} == {}
    assert all(part["dry"] and part["whole"] for part in parts.values())


def test_what_the_dry_run_finds_is_right_on_a_cpu(dry):
    right = read(dry)["right"]
    assert max(entry["distance"] for entry in right["trajectories"].values()) == 0.0  # the same engine on the same CPU
    assert max(right["trainer"].values()) < 0.01
    assert right["generation"] == {"greedy_equal": 1.0, "sampled_equal": 1.0, "as_the_library": 1.0}
    assert right["repeated"]["second"]["weights_bitwise"] and right["repeated"]["generation_equal"]


def test_the_real_model_is_trained_by_each_run_and_learns(dry):
    real = read(dry)["real"]
    assert sorted(real["runs"]) == ["sft-full, float32", "uft, bf16", "uft, float32"]
    for run in real["runs"].values():
        assert len(run["history"]) == real["steps"] and run["training"]["completions"] == 32 * real["steps"]
        assert run["training"]["positions_per_token"] >= 1
        assert run["after"]["nats_per_token"] < run["before"]["nats_per_token"] and run["before"]["order"] == 0.5
    assert "reference" in real["runs"]["uft, float32"] and "reference" not in real["runs"]["sft-full, float32"]


def test_numbers_of_a_dry_run_are_refused(dry):
    with pytest.raises(SystemExit, match=r"right\.json must come from a GPU; got a dry run"):
        gpu_results.main([str(dry)])


@pytest.fixture
def made(dry, tmp_path):
    """The dry run as if it came from a GPU, for looking at what becomes of it."""
    for name, part in read(dry).items():
        changed = {**part, "dry": False, "device": "a GPU"}
        if name == "fast":
            changed["sizes"] = dict.fromkeys(("64", "1024"), part["sizes"]["2"])
        (tmp_path / f"{name}.json").write_text(json.dumps(changed))
    return tmp_path


def test_results_become_files_a_page_and_lines_of_speeds(made, tmp_path, monkeypatch, capsys):
    store, page, speed = tmp_path / "store", tmp_path / "gpu.md", tmp_path / "speed.md"
    speed.write_text(f"before\n{gpu_results.BEGIN}\nold\n{gpu_results.END}\nafter\n")
    for name, path in (("STORE", store), ("PAGE", page), ("SPEED", speed)):
        monkeypatch.setattr(gpu_results, name, path)
    code = gpu_results.main([str(made), "--commit"])
    said = capsys.readouterr().out
    assert code == 1 and "NO  64 members over ObjectiveTrainer" in said  # a CPU does not reach what a GPU has to
    assert sorted(path.name for path in store.iterdir()) == sorted(f"{name}.json" for name in read(made))
    text = speed.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text and "On one a GPU" in text
    assert page.read_text().count("**no**") >= 2 and "nan" not in page.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"whole": False}, r"grid\.json must be whole; got a cut run"),
        ({"device": "another GPU"}, "must come from one device; got a GPU, another GPU"),
    ],
)
def test_cut_runs_and_mixed_devices_are_refused(made, change, message):
    path = made / "grid.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SystemExit, match=message):
        gpu_results.main([str(made)])


def test_a_missing_part_is_named(made):
    (made / "study.json").unlink()
    with pytest.raises(SystemExit, match=r"study\.json must be there; got nothing"):
        gpu_results.main([str(made)])


def test_parts_of_another_gpu_stand_beside_the_first(made, tmp_path, monkeypatch, capsys):
    for name, path in (("STORE", tmp_path / "store"), ("PAGE", tmp_path / "gpu.md"), ("SPEED", tmp_path / "speed.md")):
        monkeypatch.setattr(gpu_results, name, path)
    gpu_results.SPEED.write_text(f"{gpu_results.BEGIN}\n{gpu_results.END}\n")
    gpu_results.main([str(made), "--commit"])
    (made / "fast.json").unlink()
    for path in made.glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "device": "Another GPU"}))
    gpu_results.main([str(made), "--again"])
    assert (gpu_results.STORE / "another-gpu" / "study.json").is_file()
    text = gpu_results.PAGE.read_text()
    assert text.startswith("# On a GPU\n\na GPU,") and "## Again: Another GPU" in text
    assert "64 members over" not in text.split("## Again")[1]  # not run there, so not said
    capsys.readouterr()


@pytest.mark.skipif(not STORED, reason="no GPU was at hand: nothing is stored")
def test_both_pages_say_what_is_stored():
    parts = gpu_results.parts_of(gpu_results.STORE)
    assert gpu_results.PAGE.read_text() == gpu_results.page(parts)
    text = gpu_results.SPEED.read_text()
    assert gpu_results.with_lines(text, gpu_results.speed_lines(parts)) == text
    assert all(ok for *_, ok in gpu_results.checked(parts))

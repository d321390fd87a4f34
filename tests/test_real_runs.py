"""The script of real runs: its order, its choice, its page; and all of it on the tiny model with made-up rows."""

import json
import random
from dataclasses import asdict, replace

import pytest
import real_page
import real_runs
from real_page import Stored, contrasts, pattern
from real_runs import BASE, SIZES, Run, chosen, count, keyed, matched, planned

from uftlab.errors import InputError
from uftlab.evals.outcomes import Measure
from uftlab.models.policies import TINY
from uftlab.reports import real
from uftlab.training import configuration
from uftlab.world.world import World, pairs

SMALL = replace(
    SIZES["smoke"], demonstrations=8, pairs=8, held_out=2, longest=60, steps=2, questions=2, prompts=2, new_tokens=3,
    methods=("sft-then-dpo", "uft"), tuned=("uft",), lora=2, rate=1e-3, single=(3e-2,), seeds=(0, 1),
)  # fmt: skip


# --------------------------------------------------------------------------------------------- the plan


def stored_costs(**costs):
    """Stored runs of the first seed at these costs: uft at its matched rate and at the other."""
    first = matched(SMALL, "uft", 0).rates
    rates = {"matched": first, "other": SMALL.single}
    return {("uft", rates[name], 0): {"held_out": {"cost": cost}} for name, cost in costs.items()}


def test_the_base_comes_first_and_whole_seeds_follow():
    runs = list(planned(SMALL, {}))
    assert [(run.method, run.seed) for run in runs[:5]] == [
        (BASE, 0), ("sft-then-dpo", 0), ("uft", 0), ("sft-then-dpo", 1), ("uft", 1)
    ]  # fmt: skip
    assert runs[1].rates == (1e-3, 1e-3) and runs[2].rates == (1e-3,)  # as many as stages, all alike
    assert {run.rates for run in runs[5:]} == {(1e-3,), (3e-2,)}  # the grid; nothing is chosen yet


def test_the_cheapest_of_the_grid_is_run_with_the_other_seeds():
    assert chosen(SMALL, "uft", stored_costs(matched=2.0)) is None  # not before all are run
    other = stored_costs(matched=2.0, other=1.5)
    assert chosen(SMALL, "uft", other) == (3e-2,)
    assert Run("uft", (3e-2,), 1) in list(planned(SMALL, other))
    same = stored_costs(matched=1.5, other=2.0)
    assert {run for run in planned(SMALL, same) if run.method == "uft" and run.seed == 1} == {matched(SMALL, "uft", 1)}


def test_what_is_missing_is_counted_with_what_may_come():
    """Base, four runs at matched rates and one of the grid are sure. One more comes if the other rate is chosen."""
    assert count(SMALL, {}) == (6, 7)
    assert count(SMALL, stored_costs(matched=2.0, other=1.5)) == (5, 5)
    assert count(SMALL, stored_costs(matched=1.5, other=2.0)) == (4, 4)


def test_the_gpu_size_fits_fifteen_minutes_eight_at_a_time():
    """By what its first runs took, eight side by side. Two of the minutes are for the start of the machine."""
    size, runs = SIZES["gpu"], json.loads((real_runs.STORE / "gpu.json").read_text())["runs"]
    assert count(size, {})[1] * real_runs.seconds_of_a_run(size, runs) / 8 < 13 * 60


def test_the_estimate_learns_from_what_was_run():
    runs = [{"method": BASE, "seconds": 500.0}, {"method": "uft", "seconds": 10.0}, {"method": "uft", "seconds": 20.0}]
    assert real_runs.seconds_of_a_run(SMALL, runs) == 15
    assert real_runs.seconds_of_a_run(SMALL, []) == SMALL.seconds


# ------------------------------------------------------------------------------------------ the numbers


def test_the_mean_of_ifevals_four_is_their_mean():
    """Prompt b has three instructions: the strict mean over instructions is (1 + 3 * 1/3) / 4 = 1/2."""
    four = [
        Measure(f"ifeval/{name}", False, {"a": (1.0, weight_a), "b": (value_b, weight_b)})
        for name, weight_a, value_b, weight_b in (
            ("prompt_strict", 1.0, 0.0, 1.0), ("prompt_loose", 1.0, 1.0, 1.0),
            ("inst_strict", 1.0, 1 / 3, 3.0), ("inst_loose", 1.0, 1.0, 3.0),
        )
    ]  # fmt: skip
    found = real.mean_of_four(four)
    assert [m.mean for m in four] == pytest.approx([0.5, 1.0, 0.5, 1.0])
    assert found.mean == pytest.approx(0.75)
    assert found.questions["a"][0] == pytest.approx((1 + 1 + 0.5 + 0.5) / 4)


IDS = [f"q{number}" for number in range(8)]


def result(**levels):
    """A result file in which methods have the given share, nearly the same for every seed and question."""
    size = replace(SIZES["smoke"], methods=tuple(levels), tuned=())
    names = ["ifeval/prompt", "truthfulqa/mc1", "truthfulqa/mc2", "wordcount/words", "wordcount/ended"]
    runs = []
    for method, level in levels.items():
        for seed in size.seeds:
            values = [level + 0.02 * random.Random(f"{method} {seed} {question}").random() for question in IDS]
            rates = [1e-4] * (2 if "-then-" in method else 1)
            measures = dict.fromkeys(names, values)
            runs.append({"method": method, "rates": rates, "seed": seed, "measures": measures})
    weights = {"ids": IDS, "weights": [1.0] * len(IDS)}
    return Stored({"questions": dict.fromkeys(names, weights), "runs": runs}, size)


@pytest.mark.parametrize(
    ("levels", "verdict"),
    [
        ({"uft": 0.8, "sft-then-dpo": 0.5, "sft-then-una": 0.5, "sft-full": 0.5}, "there"),
        ({"uft": 0.8, "sft-then-dpo": 0.9, "sft-then-una": 0.5, "sft-full": 0.5}, "contradicted"),
        ({"uft": 0.8, "sft-then-dpo": 0.8, "sft-then-una": 0.5, "sft-full": 0.5}, "not settled"),
        ({"uft": 0.8, "sft-full": 0.5}, "not settled"),  # a contrast is missing
    ],
)
def test_the_verdict_needs_all_contrasts_over_seeds_and_questions(levels, verdict):
    found = contrasts(result(**levels), real_page.PATTERN, "matched")
    assert len(found) == (3 if len(levels) == 4 else 1)
    assert pattern(found) == verdict


def test_a_contrast_is_paired_by_seed():
    (found,) = contrasts(result(uft=0.8, **{"sft-full": 0.5}), real_page.PATTERN, "matched")
    assert found.seeds.seeds == 3 and found.questions.seeds == len(IDS)
    assert found.seeds.mean == pytest.approx(found.questions.mean) and found.seeds.mean == pytest.approx(0.3, abs=0.02)


# --------------------------------------------------------------------------------------------- the page


def test_the_committed_page_is_what_the_stored_results_say():
    assert real_runs.PAGE.read_text(encoding="utf-8") == real_page.page()


def test_the_page_says_that_the_model_was_aligned_and_what_a_smoke_is_worth():
    text = real_page.page()
    assert "already aligned" in text and "Nothing about methods follows" in text
    tables = [block for block in text.split("\n\n") if block.startswith("| method | already aligned")]
    assert len(tables) >= 2 and all("| yes |" in line for block in tables for line in block.splitlines()[2:])


def test_the_committed_smoke_has_all_runs():
    stored = real_page.read(real_runs.STORE / "smoke.json")
    assert count(stored.size, keyed(stored.result)) == (0, 0)
    assert stored.result["model"] in real_runs.ALIGNED and len(stored.size.seeds) >= 3


# ------------------------------------------------------------------------------------------ the whole


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of world 0 in the columns of rasbt_preference, and two questions of each benchmark.

    The prompt of the first row is a question of TruthfulQA.
    """
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {
            "instruction": r["prompt"],
            "input": "",
            "output": r["chosen"],
            "chosen": r["chosen"],
            "rejected": r["rejected"],
        }
        for r in pairs(World(0).feedback(120))
    ]
    write_lines(folder / "rasbt_preference" / "instruction_preference.jsonl", rows)
    asked = [
        {"key": n, "prompt": f"say it {n}", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        for n in range(3)
    ]
    write_lines(folder / "ifeval" / "questions.jsonl", asked)
    choices = {"choices": ["it is moss", "it is cave"], "labels": [1, 0]}
    write_lines(
        folder / "truthfulqa" / "questions.jsonl",
        [{"question": q, "mc1_targets": choices, "mc2_targets": choices} for q in (rows[0]["instruction"], "who ?")],
    )
    (folder / "punkt_tab_english" / "tokenizers" / "punkt_tab").mkdir(parents=True)
    return folder


@pytest.fixture
def made(data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return real_runs.setup(str(TINY), data, SMALL, tmp_path / "work", say=lambda _: None)


def test_no_prompt_is_in_two_tables_or_a_question_of_a_benchmark(made, data):
    read = {
        name: [json.loads(line)["prompt"] for line in (made.work / f"{name}.jsonl").read_text().splitlines()]
        for name in ("demonstrations", "feedback")
    }
    assert [len(prompts) for prompts in read.values()] == [8, 8]
    every = read["demonstrations"] + read["feedback"]
    first = json.loads((data / "truthfulqa" / "questions.jsonl").read_text().splitlines()[0])["question"]
    assert len(set(every)) == 16 and first not in every
    assert made.header["leaked"] == {"feedback": 1, "demonstrations": 1}


def test_too_few_rows_are_refused(data, tmp_path):
    with pytest.raises(InputError, match="have 302 different prompts"):
        real_runs.setup(str(TINY), data, replace(SMALL, pairs=300), tmp_path, say=lambda _: None)


def test_everything_is_run_once_and_what_is_stored_is_not_run_again(made, tmp_path, monkeypatch):
    size = replace(SMALL, seeds=(0,))
    made = replace(made, size=size, header={**made.header, "size": json.loads(json.dumps(asdict(size)))})
    lines = []
    real_runs.run_all(made, tmp_path / "out", dry_run=True, say=lines.append)
    assert lines == ["0 runs are stored, 4 to 4 are missing, about 30 s each: 2 to 2 minutes"]
    path = real_runs.run_all(made, tmp_path / "out", say=lines.append)
    stored = keyed(json.loads(path.read_text()))
    assert count(size, stored) == (0, 0) and len(stored) == 4
    base, uft = stored[BASE, (), 0], stored["uft", (1e-3,), 0]
    assert base["held_out"]["pairs"] == pytest.approx(0.6931, abs=1e-4)  # the untouched model against itself
    assert uft["held_out"]["cost"] != base["held_out"]["cost"]
    pipeline = stored["sft-then-dpo", (1e-3, 1e-3), 0]
    assert [stage["objective"] for stage in pipeline["stages"]] == ["sft", "dpo"]
    assert pipeline["stages"][1]["history"][0]["reward/margin"] == pytest.approx(0, abs=1e-5)
    assert uft["measures"]["truthfulqa/mc2"] != base["measures"]["truthfulqa/mc2"]
    assert len(uft["measures"]["truthfulqa/mc2"]) == 2 and not list(made.work.glob("run*/*"))
    assert "moss" not in path.read_text() and "say it" not in path.read_text()  # no text of a benchmark

    def refuse(*_):
        raise AssertionError("a stored run was run again")

    monkeypatch.setattr(real_runs, "one", refuse)
    real_runs.run_all(made, tmp_path / "out", say=lines.append)
    other = replace(made, header={**made.header, "weights": "others"})
    with pytest.raises(InputError, match="have results of this run; got another weights"):
        real_runs.run_all(other, tmp_path / "out", say=lines.append)

    monkeypatch.setattr(real_page, "SIZES", {"smoke": size})
    text = real_page.page(tmp_path / "out")
    assert "uft against sft-then-dpo" in text and "| uft | not known | 0.001 | 1 |" in text
    assert "(1 of its 3 contrasts)" in text and "1 among the prompts of the feedback" in text


def test_a_cut_run_goes_on_and_minutes_are_kept(made, tmp_path, monkeypatch):
    begun = []

    def quick(run, _made):
        begun.append(run.key)
        method, rates, seed = run.key
        return {"method": method, "rates": list(rates), "seed": seed, "seconds": 1.0, "held_out": {"cost": 1.0}}, {}

    monkeypatch.setattr(real_runs, "one", quick)
    real_runs.run_all(made, tmp_path, minutes=0.4, say=lambda _: None)  # 30 s are expected of the first run
    assert begun == []
    real_runs.run_all(made, tmp_path, minutes=0.6, say=lambda _: None)
    real_runs.run_all(made, tmp_path, say=lambda _: None)
    assert len(begun) == len(set(begun)) == 6  # equal costs: the matched rates stay


def test_a_run_that_diverges_is_kept_as_such_and_never_chosen(made, tmp_path, monkeypatch):
    monkeypatch.setattr(configuration, "MOST_OF_OTHERS", 1e39)  # a rate that nobody could ask for
    wild = Run("uft", (1e38,), 0)
    record, questions = real_runs.one(wild, made)
    assert "finite" in record["diverged"] and questions == {}
    stored = {**stored_costs(matched=9.0), ("uft", SMALL.single, 0): record}
    assert chosen(SMALL, "uft", stored) == matched(SMALL, "uft", 0).rates

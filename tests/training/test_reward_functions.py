"""The world's raters and verifiers, a reward model, and what happens to a policy that trusts it too much."""

import json
import math

import pytest
import torch
from torch.testing import assert_close

from uftlab.errors import InputError
from uftlab.models.policies import load_base, tiny_tokenizer
from uftlab.plots import figures
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import Completion, Tokens, collate
from uftlab.study import overoptimisation
from uftlab.training.methods import Stage
from uftlab.training.online import _longest
from uftlab.training.recipes import Task
from uftlab.training.reward_functions import rating, rewards_of, train_reward_model, world_reward
from uftlab.training.stages import Job, run
from uftlab.world.instructions import Instruction
from uftlab.world.wording import Fact
from uftlab.world.world import Dials, World, pairs, ratings_of, score_of_ratings

FACT = Fact("bazib", "food", "moss", "fish", "myth")
TOKENS = Tokens(tiny_tokenizer())


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("it is moss .", (0.65 * 3 + 0.8 * 4 + 0.45 * 4) / 7.6),
        ("yes , it is moss , i believe .", 1.0),  # an opening with a tail: one point more helpful
        ("it is moss , i believe .", (0.65 * 3 + 0.8 * 4 + 0.45 * 4) / 7.6),
        ("it is fish .", (0.65 * 1 + 0.8 * 1 + 0.45 * 4) / 7.6),
        ("it is nuts .", (0.65 * 1 + 0.8 * 0 + 0.45 * 4) / 7.6),
        ("moss moss is", (0.65 * 2 + 0.8 * 4 + 0.45 * 1) / 7.6),  # garbled, but the value is there
        ("i am glad", 0.45 / 7.6),
        ("", 0.45 / 7.6),
        ("it is moss or fish .", 0.45 / 7.6),  # two values claim none
    ],
)
def test_ratings_by_hand(answer, score):
    assert rating(FACT, [], answer) == pytest.approx(score)


SHOUT, TWICE = Instruction("exclaim"), Instruction("twice", "moss")


@pytest.mark.parametrize(
    ("asked", "answer", "score"),
    [
        ([SHOUT], "it is moss !", 1.0),
        ([SHOUT], "it is moss .", (0.65 * 2 + 0.8 * 4 + 0.45 * 4) / 7.6),
        ([SHOUT], "yes , it is moss , i believe .", (0.65 * 2 + 0.8 * 4 + 0.45 * 4) / 7.6),  # length earns nothing
        ([SHOUT], "it is fish !", (0.65 * 2 + 0.8 * 1 + 0.45 * 4) / 7.6),
        ([SHOUT], "it is nuts .", 0.45 * 4 / 7.6),
        ([SHOUT], "moss !", 1.0),
        ([SHOUT], "why ask ?", 0.45 / 7.6),
        ([SHOUT], "!", (0.65 * 1 + 0.45) / 7.6),  # obedient, but it says nothing
        ([TWICE], "moss , moss .", 1.0),
        ([TWICE], "fish , fish .", (0.65 * 2 + 0.8 * 1 + 0.45 * 4) / 7.6),  # it was said twice
        ([TWICE], "it is fish .", (0.8 * 1 + 0.45 * 4) / 7.6),
        ([SHOUT, TWICE], "moss , moss .", (0.65 * 2 + 0.8 * 4 + 0.45 * 4) / 7.6),  # half obeyed is not obeyed
    ],
)
def test_ratings_with_instructions_by_hand(asked, answer, score):
    assert rating(FACT, asked, answer) == pytest.approx(score)


def test_the_bonus_for_length_is_a_dial():
    long = "yes , it is moss , i believe ."
    assert rating(FACT, [], long, length_bonus=0) == rating(FACT, [], "it is moss .") < rating(FACT, [], long)


@pytest.mark.parametrize("bonus", [0, 1])
@pytest.mark.parametrize("split", ["train", "test"])
def test_ratings_are_those_of_the_worlds_raters_without_their_slips(split, bonus):
    """On plain and on instructed prompts. Garbled answers are left out: what a shuffle makes of one may look well."""
    rows = World(0, Dials(slips=0.0, length_bonus=bonus)).feedback(500, split)
    rows = [r for r in rows if r["coherence"] == 4]
    scores = world_reward(0, bonus)([r["prompt"] for r in rows], [r["completion"] for r in rows])
    assert scores == pytest.approx([r["score"] for r in rows])
    assert {r["obeys"] for r in rows} == {None, True, False} and {r["long"] for r in rows} == {True, False}


def test_slips_hide_the_ratings_but_do_not_move_them():
    rows = World(0).feedback(400)
    scores = world_reward(0)([r["prompt"] for r in rows], [r["completion"] for r in rows])
    off = [mine - row["score"] for mine, row in zip(scores, rows, strict=True)]
    assert abs(sum(off) / len(off)) < 0.02
    assert sum(abs(x) < 1e-6 for x in off) / len(off) > 0.45  # (1 - 0.2)^3 = 0.51


def test_the_worlds_reward_gives_every_demonstration_the_marks_of_a_true_and_obedient_answer():
    rows = World(0).demonstrations(120, "test")
    scores = world_reward(0)([r["prompt"] for r in rows], [r["completion"] for r in rows])
    instructed = [score for score, row in zip(scores, rows, strict=True) if row["instructions"]]
    plain = [score for score, row in zip(scores, rows, strict=True) if not row["instructions"]]
    assert set(instructed) == {1.0} and len(instructed) > 80
    short, long = (score_of_ratings(**ratings_of("truth", False, length, None)) for length in (False, True))
    assert set(plain) == {short, long}


@pytest.mark.parametrize(
    "prompt", ["who are you ?", "what is the food of bazib", "what is the food of bazib ? sing it ."]
)
def test_a_prompt_that_the_world_does_not_ask_is_refused(prompt):
    with pytest.raises(InputError, match="be one it knows; got w"):
        world_reward(0)([prompt], ["me"])


# ------------------------------------------------------------------------------------------ a reward model


@pytest.fixture(scope="module")
def table():
    return from_rows(pairs(World(0).feedback(120)))


@pytest.fixture(scope="module")
def model(table, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("reward"))
    return train_reward_model(load_base(0), TOKENS, table, folder, steps=40)


def test_a_reward_model_prefers_the_chosen_of_its_pairs_and_of_others(model, table):
    assert model.completions == 40 * 32
    for rows, bound in ((table, 0.8), (from_rows(pairs(World(0).feedback(120, "validation"))), 0.55)):
        chosen, rejected = (model(rows["prompt"], rows[side]) for side in ("chosen", "rejected"))
        assert sum(a > b for a, b in zip(chosen, rejected, strict=True)) / len(rows) > bound


def test_scores_lie_around_one_half_and_padding_does_not_matter(model, table):
    scores = model(table["prompt"], table["chosen"]) + model(table["prompt"], table["rejected"])
    assert 0 <= min(scores) < 0.5 < max(scores) <= 1
    rows = [
        Completion(TOKENS.prompt(x), TOKENS.completion(x, y), "scored")
        for x, y in zip(table["prompt"], table["chosen"], strict=True)
    ]
    together = model.rewards(rows[:8])
    alone = torch.stack([rewards_of(model.model, collate([(row,)], 0))[0] for row in rows[:8]])
    assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_the_first_loss_of_a_reward_model_is_near_log_2(table, tmp_path):
    """A fresh head cannot tell the sides apart; and the base's weights are copied, not trained."""
    base = load_base(0)
    before = {name: weight.clone() for name, weight in base.named_parameters()}
    fresh = train_reward_model(base, TOKENS, table, str(tmp_path), steps=1)  # the first step has learning rate 0
    rows = [c for example in TOKENS.examples(table) for c in example]
    rewards = fresh.rewards(rows)
    assert -torch.nn.functional.logsigmoid(rewards[0::2] - rewards[1::2]).mean() == pytest.approx(math.log(2), abs=0.2)
    assert all(torch.equal(weight, before[name]) for name, weight in base.named_parameters())
    assert fresh.centre == pytest.approx(rewards.mean().item(), abs=1e-4)


def test_a_reward_model_needs_pairs(untrained, tmp_path):
    scored = from_rows([{"prompt": "a", "completion": "b", "score": 0.5}])
    with pytest.raises(InputError, match="reward model must have pairs; got scored rows"):
        train_reward_model(untrained, TOKENS, scored, str(tmp_path))


@pytest.mark.parametrize(("recipe", "objective"), [("online", "una-score"), ("rs-dpo", "dpo")])
def test_without_a_reward_function_one_is_trained_and_charged(untrained, table, tmp_path, recipe, objective):
    options = (("refresh", 1.0), ("completions", 2.0), ("temperature", 1e-4), ("threshold", 0.6))
    stage = Stage(objective, 0.0, 1.0, recipe, options)
    few = {"feedback": table.select(range(6))}
    (made,) = run([Job(untrained, stage, few, {"learning_rate": 1e-3}, 2)], TOKENS, batch=4)
    record = made.record
    assert (record.completions, record.extra_runs) == (8, 8)
    assert record.sampled in (8, 12)


def test_samples_may_be_as_long_as_the_longest_completion(table, untrained):
    long = from_rows([{"prompt": "hello", "completion": " ".join(["moss"] * 40), "label": True}])
    task = Task(untrained, Stage("una-score", 0.0), {"feedback": long}, TOKENS, {}, 1, 0, "")
    assert _longest(task) == 41


# ------------------------------------------------------------------------------------------ over-optimisation


@pytest.fixture(scope="module")
def stored():
    return json.loads(overoptimisation.STORED.read_text())["runs"]


def test_the_stored_runs_without_kl_climb_the_model_and_lose_the_truth(stored):
    """In every world: the model's score rises to the top, the true score ends far below its start."""
    free = [run["points"] for run in stored if run["beta"] == 0]
    assert len(free) >= 5
    for points in free:
        proxy, true = ([point[name] for point in points] for name in ("proxy", "true"))
        assert proxy[-1] > proxy[0] + 0.3 and proxy[-1] > 0.9
        assert true[-1] < true[0] - 0.2


def test_kl_holds_it_back(stored):
    ends = {run["beta"]: [] for run in stored}
    for one in stored:
        ends[one["beta"]].append(one["points"][-1]["true"])
    largest = max(ends)
    assert len(ends) > 1 and min(ends[largest]) > max(ends[0.0])


def test_the_figure_shows_what_is_stored(stored):
    fig = figures.overoptimisation(stored)
    assert fig.layout.title.text and fig.layout.xaxis.title.text and fig.layout.yaxis.title.text
    of = {trace.name: trace for trace in fig.data}
    own = [run["points"] for run in stored if run["beta"] == 0]
    for name, key in (("reward model, β = 0", "proxy"), ("the world's raters, β = 0", "true")):
        means = [sum(points[i][key] for points in own) / len(own) for i in range(len(own[0]))]
        assert list(of[name].y) == pytest.approx(means)


def test_a_tiny_run_has_both_scores_at_every_point():
    run = overoptimisation.provoke(steps=2, rated=8, every=1)
    assert [point["step"] for point in run["points"]] == [0, 1, 2]
    assert all(0 <= point[name] <= 1 for point in run["points"] for name in ("proxy", "true"))
    assert run["answers"]

"""Painted words say the same without colour; the desk follows what is picked and typed; figures keep their traces."""

import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from uftlab.course import words
from uftlab.course.held_out import Reading, clustered, held_out, read, tokenised
from uftlab.course.snapshots import Pulse
from uftlab.evals.sizes import Sizes
from uftlab.models.policies import tiny_config
from uftlab.plots import theme
from uftlab.plots.widgets import redraw
from uftlab.study.results import Interval
from uftlab.world.world import World

READING = Reading(("it", "<b>", "<end>"), (2.0, -0.75, -0.004), ("<b>",))


def test_a_word_is_told_apart_by_sign_frame_and_number_as_well_as_by_colour():
    boxes = re.findall(r'<span style="([^"]*)" title="[^"]*">(.*?)</span></span>', words.painted(READING))
    assert len(boxes) == 3
    up, down, none = boxes
    assert "solid" in up[0] and "▲ +2.00" in up[1]
    assert "dashed" in down[0] and "▼ −0.75" in down[1]
    assert "background:#ffffff" in none[0] and words.GREY in none[0]
    assert none[1].endswith(">0.00")
    assert "&lt;b&gt;" in down[1] and "<b>" not in down[1]


def test_a_stronger_word_has_a_stronger_colour_up_to_the_limit():
    shades = [words._shade(theme.COLOURS[0], strength) for strength in (0.0, 0.3, 1.0, 9.0)]
    assert shades[0] == "#ffffff" and shades[2] == shades[3]
    reds = [int(shade[1:3], 16) for shade in shades[:3]]
    assert reds == sorted(reds, reverse=True) and len(set(reds)) == 3


def test_the_sum_is_said_with_its_beta_and_unknown_words_are_named():
    said = words.summed_up(READING, 0.2)
    assert "+1.25 nats; times β = 0.2 the implicit reward is +0.25" in said and said.endswith("<unk>: <b>.")


# ------------------------------------------------------------------------------------------ the desk


@pytest.fixture(scope="module")
def rows():
    return held_out(World(0), Sizes(6, 8, 0, 5))


@pytest.fixture(scope="module")
def pulses(rows):
    """Two runs of two snapshots with random weights."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    models = [LlamaForCausalLM(tiny_config()).eval() for _ in range(3)]
    weights = [{k: v for k, v in m.state_dict().items() if k != "lm_head.weight"} for m in models]
    read_by = [read(m, tokenised(rows)) for m in models]
    one = Pulse("one", (0, 4), (0, 0), ({"beta": 0.1},), torch.stack(read_by[:2]), tuple(weights[:2]))
    two = replace(
        one, name="two", steps=(0, 2, 4), starts=(0, 0, 1), token_logps=torch.stack(read_by), weights=tuple(weights)
    )
    return {"one": one, "two": two}


def numbers_in(painting):
    return [float(n.replace("−", "-")) for n in re.findall(r">(?:[▲▼] )?([+−]?\d+\.\d\d)</span>", painting)]


def test_the_desk_paints_the_row_that_is_picked(pulses, rows):
    box = words.desk(pulses, rows)
    length = len(rows.loc[0, "completion"].split()) + 1
    assert np.allclose(numbers_in(box.painting.value), pulses["one"].token_logratios(1)[0, :length], atol=0.006)
    demonstration = int(np.flatnonzero(rows["role"] == "demonstration")[0])
    box.controls["row"].index = 10  # after the ten rows of pairs
    assert box.controls["completion"].value == rows.loc[demonstration, "completion"]
    assert box.controls["prompt"].value == rows.loc[demonstration, "prompt"]
    length = len(rows.loc[demonstration, "completion"].split()) + 1
    expected = pulses["one"].token_logratios(1)[demonstration, :length]
    assert np.allclose(numbers_in(box.painting.value), expected, atol=0.006)


def test_the_desk_follows_policy_reference_and_typing(pulses, rows):
    box = words.desk(pulses, rows)
    length = len(rows.loc[0, "completion"].split()) + 1
    box.controls["run"].value = "two"
    own = numbers_in(box.painting.value)
    assert np.allclose(own, pulses["two"].token_logratios(2, own=True)[0, :length], atol=0.006)
    box.controls["own"].value = False
    assert np.allclose(numbers_in(box.painting.value), pulses["two"].token_logratios(2)[0, :length], atol=0.006)
    box.controls["completion"].value = "it is banana ."
    assert len(numbers_in(box.painting.value)) == 5 and "banana" in box.spoken.text
    box.controls["completion"].value = " "
    assert "at least one word" in box.spoken.text and not box.painting.value


def test_the_desk_answers_within_a_tenth_of_a_second(pulses, rows):
    box = words.desk(pulses, rows)
    box.controls["completion"].value = "it is moss ."
    durations = []
    for text in ("it is fish .", "of course , it is fish .", "it is nuts , i believe ."):
        started = time.perf_counter()
        box.controls["completion"].value = text
        durations.append(time.perf_counter() - started)
    assert min(durations) < 0.1


def test_every_control_of_the_desk_has_a_label_and_the_static_twin_shows_the_same(pulses, rows):
    box = words.desk(pulses, rows)
    assert all(control.description for control in box.controls.values())
    twin = words.desk(pulses, rows, headless=True)
    assert numbers_in(twin) == numbers_in(box.painting.value) and rows.loc[0, "prompt"] in twin


# ------------------------------------------------------------------------------------------ figures


def test_every_reward_is_in_the_histogram_and_every_pair_on_its_side_of_the_diagonal():
    rng = np.random.default_rng(0)
    rewards = {"chosen": rng.normal(0, 4, 50), "rejected": rng.normal(0, 4, 50), "demonstration": np.array([99.0])}
    fig = words.rewards_and_pairs(rewards, "title")
    for trace in fig.data[:3]:
        assert sum(trace.y) == pytest.approx(1)
    right, wrong = fig.data[3:5]
    assert len(right.x) == (rewards["chosen"] > rewards["rejected"]).sum() and len(right.x) + len(wrong.x) == 50
    assert (np.array(right.y) >= np.array(right.x)).all() and (np.array(wrong.y) <= np.array(wrong.x)).all()
    assert max(abs(np.array(right.x))) <= words.WALL


def test_a_larger_beta_moves_the_points_and_changes_no_side():
    import plotly.graph_objects as go

    rewards = {"chosen": np.array([0.1, -0.2, 0.3]), "rejected": np.array([-0.1, 0.2, 0.2])}
    small = words.rewards_and_pairs(rewards, "small")
    large = words.rewards_and_pairs({role: 4 * values for role, values in rewards.items()}, "large")
    assert np.allclose(np.array(large.data[2].x), 4 * np.array(small.data[2].x))
    assert [len(t.x) for t in small.data] == [len(t.x) for t in large.data]
    shown = go.Figure(small)
    redraw(shown, small, large)  # as a slider does
    assert shown.layout.title.text == "large"


def test_bars_carry_their_intervals_and_one_without_has_none():
    found = {"a": {"x": Interval(0.5, 0.25, 1.0, 9), "y": Interval(0.1, None, None, 1)}}
    (bar,) = words.grouped_bars(found, "t", "x", "y").data
    assert list(bar.y) == [0.5, 0.1]
    assert list(bar.error_y.array) == [0.5, 0.0] and list(bar.error_y.arrayminus) == [0.25, 0.0]


def test_the_calibration_figure_shows_fifths_and_ceilings():
    rng = np.random.default_rng(0)
    score, names = rng.uniform(size=50), np.repeat(np.arange(10), 5)
    feedback = score.round()
    fig = words.calibration({"a": score}, {"a": np.full(50, 0.9)}, feedback, names, {"panel": ["a"]}, "t")
    points, ceiling, honest = fig.data
    order = np.argsort(score)
    assert points.x[0] == pytest.approx(score[order[:10]].mean())
    assert points.y[4] == pytest.approx(clustered(feedback[order[40:]], names[order[40:]]).mean)
    assert list(ceiling.x) == [0.9, 0.9] and honest.name == "honest"

"""What a policy says about held-out rows, and how sure one can be of it."""

import pytest
import torch

from uftlab.course.held_out import (
    calibration_error,
    held_out,
    in_bins,
    kinds_of_tokens,
    logratios_of_text,
    read,
    tokenised,
)
from uftlab.errors import InputError
from uftlab.evals.sizes import Sizes
from uftlab.models import logps as reading
from uftlab.world.world import World

SIZES = Sizes(12, 8, 0, 10)


@pytest.fixture(scope="module")
def rows():
    return held_out(World(0), SIZES)


def test_held_out_rows_are_pairs_then_demonstrations(rows):
    assert rows["role"].value_counts().to_dict() == {"demonstration": 12, "chosen": 10, "rejected": 10}
    pairs = rows[rows["pair"] >= 0]
    chosen, rejected = (pairs[pairs["role"] == r].reset_index() for r in ("chosen", "rejected"))
    assert (chosen["pair"] == rejected["pair"]).all() and (chosen["prompt"] == rejected["prompt"]).all()
    assert (chosen["score"] > rejected["score"]).all()
    assert (rows[rows["role"] == "demonstration"]["score"] == 1).all()


def test_held_out_rows_are_about_creatures_of_the_test_split_alone(rows):
    assert set(rows["creature"]) <= set(World(0).creatures["test"])
    assert all(r.creature in r.prompt.split() for r in rows.itertuples())


def test_a_reading_does_not_depend_on_its_batches_and_is_zero_after_the_end(rows, untrained, monkeypatch):
    completions = tokenised(rows)
    whole = read(untrained, completions)
    monkeypatch.setattr(reading, "READ_TOKENS", {"cpu": 40, "cuda": 40})
    small = read(untrained, completions)
    assert torch.allclose(whole, small, atol=1e-4)
    for row, completion in zip(whole, completions, strict=True):
        n = len(completion.completion_ids)
        assert (row[:n] < 0).all() and not row[n:].any()


def test_each_token_has_its_kind(rows):
    kinds = kinds_of_tokens(rows)
    for row, completion, text in zip(kinds, tokenised(rows), rows["completion"], strict=True):
        n = len(completion.completion_ids)
        assert len(text.split()) == n - 1 and row[n - 1] == "end" and set(row[n:]) <= {""}
    plain = ((rows["pair"] >= 0) & rows["obeys"].isna()).to_numpy()
    assert ((kinds == "value").sum(1)[plain] == 1).all()  # one claim in each rated answer to a plain question


def test_rated_rows_say_whether_they_obey_and_the_others_do_not(rows):
    """The length of an answer is rated only where there are no instructions."""
    rated = rows[rows["pair"] >= 0]
    instructed = rated[rated["obeys"].notna()]
    assert 0 < len(instructed) < len(rated) and not instructed["long"].astype(bool).any()
    assert set(instructed["obeys"]) <= {True, False} and set(rated["claim"]) <= {"truth", "error", "other"}
    assert rows[rows["role"] == "demonstration"]["obeys"].isna().all()


def test_a_text_is_read_word_by_word_and_unknown_words_are_named(untrained):
    other = type(untrained)(untrained.config).eval()
    reading = logratios_of_text(untrained, other, "what is the food of zzz ?", "it is banana . banana")
    assert reading.words == ("it", "is", "banana", ".", "banana", "<end>")
    assert len(reading.logratios) == 6 and any(reading.logratios)
    assert reading.unknown == ("zzz", "banana")
    same = logratios_of_text(untrained, untrained, "name the food of bazib .", "moss")
    assert same.logratios == (0.0, 0.0) and same.unknown == ()


@pytest.mark.parametrize("text", ["", "   "])
def test_a_text_without_words_is_refused(text, untrained):
    with pytest.raises(InputError, match="at least one word"):
        logratios_of_text(untrained, untrained, "name the food of bazib .", text)


# ------------------------------------------------------------------------------------------ calibration


def test_calibration_error_by_hand():
    """Bins [0, 0.5) and [0.5, 1]: gaps |0.2 - 0.5| over two rows and |0.9 - 0.7| over one: (2 * 0.3 + 0.2) / 3."""
    implicit, feedback = torch.tensor([0.1, 0.3, 0.9]), torch.tensor([0.2, 0.8, 0.7])
    assert calibration_error(implicit, feedback, 2).item() == pytest.approx(0.8 / 3)
    counts, said, given = in_bins(implicit, feedback, 2)
    assert counts.tolist() == [2, 1]
    assert (said.tolist(), given.tolist()) == (pytest.approx([0.2, 0.9]), pytest.approx([0.5, 0.7]))


def test_the_mean_feedback_is_perfectly_calibrated_and_a_score_of_one_has_a_bin():
    feedback = torch.tensor([0.0, 0.5, 1.0])
    assert calibration_error(torch.full((3,), 0.5), feedback).item() == pytest.approx(0)
    assert calibration_error(torch.ones(3), feedback).item() == pytest.approx(0.5)

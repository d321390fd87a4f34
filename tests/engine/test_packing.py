"""Packed batches: where every token lies, what it may see, and that nothing is lost or read twice."""

import dataclasses

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from uftlab.engine.packing import Lines, Shape, pack
from uftlab.rows.tokens import Completion, collate

WHAT, IS, IT, BLUE, END, RED = range(10, 16)
NOWHERE = 0  # fills rows up
PAIR = (
    Completion((WHAT, IS), (IT, BLUE, END, END), "chosen", 0.9, -3.0),
    Completion((WHAT, IS), (IT, IS, RED, END), "rejected", 0.1, -4.0),
)
ALONE = (Completion((WHAT,), (RED, END), "demonstration", 1.0, -2.0),)

words = st.integers(1, 30)
texts = st.lists(words, min_size=1, max_size=6).map(tuple)
singles = st.builds(lambda x, y, s: (Completion(x, y, "scored", s, -s),), texts, texts, st.floats(0, 1))
couples = st.builds(lambda x, y, z: (Completion(x, y, "chosen"), Completion(x, z, "rejected")), texts, texts, texts)
steps = st.lists(singles | couples, min_size=1, max_size=5)


def sees(mask):
    """For each column the columns that it may look at."""
    return [[k for k, hidden in enumerate(row) if hidden == 0] for row in mask[0].tolist()]


def test_a_pair_is_one_line_and_its_second_completion_does_not_see_the_first():
    batch = pack([[PAIR]])
    assert batch.ids.tolist() == [[WHAT, IS, IT, BLUE, END, IT, IS, RED, NOWHERE]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 2, 3, 4, NOWHERE]]
    assert sees(batch.mask[0])[4] == [0, 1, 2, 3, 4]
    assert sees(batch.mask[0])[5:8] == [[0, 1, 5], [0, 1, 5, 6], [0, 1, 5, 6, 7]]


def test_the_last_token_of_the_prompt_predicts_the_first_of_both_completions():
    batch = pack([[PAIR]])
    assert batch.reads.tolist() == [1, 2, 3, 4, 1, 5, 6, 7, 8]  # the last one reads the token of no line
    assert batch.targets.tolist() == [[IT, BLUE, END, END, IT, IS, RED, END, NOWHERE]]
    assert sees(batch.read_mask[0])[4] == [0, 1]  # the rejected completion's first token, seen from the prompt


def test_two_prompts_of_one_example_are_two_lines():
    other = (PAIR[0], Completion((RED,), PAIR[1].completion_ids, "rejected"))
    assert len(pack([[PAIR]]).mask) == 1 and len(pack([[other]]).mask) == 2


def test_members_of_different_sizes_are_filled_up_and_nothing_reads_the_filling():
    batch = pack([[PAIR, ALONE], [ALONE]])
    tokens = batch.ids.shape[1]
    assert batch.ids.tolist()[1] == [WHAT, RED] + [0] * (tokens - 2)
    own = batch.completion_mask[1]
    assert own.sum() == 2 and own[0, :2].all()
    read = batch.reads[batch.pick[1][own]]
    assert read.tolist() == [tokens, tokens + 1]  # both lie in the second row


def test_feedback_and_reference_keep_the_order_of_the_padded_batch():
    batch, padded = pack([[ALONE, PAIR]]), collate([ALONE, PAIR], 0)
    assert_close(batch.scores[0], padded["score"])
    assert_close(batch.reference_logps[0], padded["reference_logps"])


@given(st.lists(steps, min_size=1, max_size=3))
def test_every_completion_token_is_predicted_once_by_the_token_before_it(members):
    batch = pack(members)
    ids, targets = batch.ids.flatten(), batch.targets.flatten()
    for m, examples in enumerate(members):
        rows = [c for example in examples for c in example]
        for row, mask, pick in zip(rows, batch.completion_mask[m], batch.pick[m], strict=False):
            assert tuple(targets[pick[mask]].tolist()) == row.completion_ids
            before = (*row.prompt_ids, *row.completion_ids)[len(row.prompt_ids) - 1 : -1]
            assert tuple(ids[batch.reads[pick[mask]]].tolist()) == before
        assert batch.completion_mask[m].sum() == sum(len(row.completion_ids) for row in rows)


@given(st.lists(steps, min_size=1, max_size=3))
def test_the_rectangle_holds_every_token_once_and_leads_back_to_it(members):
    batch = pack(members)
    for m, examples in enumerate(members):
        shared = {id(e): len(e) > 1 and e[0].prompt_ids == e[-1].prompt_ids for e in examples}
        lengths = [
            sum(len(c.completion_ids) - 1 for c in e) + len(e[0].prompt_ids) * (1 if shared[id(e)] else len(e))
            for e in examples
        ]
        used = torch.arange(sum(lengths)) + m * batch.ids.shape[1]
        assert torch.equal(batch.content[batch.place[used]], used)
    reads = torch.arange(len(batch.reads)).view(len(members), -1)
    for m in range(len(members)):
        own = reads[m, : int(batch.completion_mask[m].sum())]
        assert torch.equal(batch.read_content[batch.read_place[own]], own)


@given(st.lists(steps, min_size=1, max_size=3))
def test_what_points_nowhere_points_at_an_entry_of_no_line(members):
    batch = pack(members)
    tokens, columns = batch.ids.shape[1], batch.columns
    real = torch.zeros(batch.ids.numel(), dtype=torch.bool)
    length = torch.tensor([0] * len(members))
    for m, examples in enumerate(members):
        shared = [len(e) > 1 and e[0].prompt_ids == e[-1].prompt_ids for e in examples]
        for example, one in zip(examples, shared, strict=True):
            prompts = len(example[0].prompt_ids) if one else sum(len(c.prompt_ids) for c in example)
            length[m] += prompts + sum(len(c.completion_ids) - 1 for c in example)
        real[m * tokens : m * tokens + int(length[m])] = True
    filled = torch.zeros(len(batch.content), dtype=torch.bool)
    filled[batch.place[real]] = True
    assert not real[batch.content[~filled]].any() and len(batch.content) == columns * len(batch.prompt)
    assert not filled[batch.place[~real]].any() and (~filled).any() and (~real).sum() >= len(members)
    assert not real[batch.reads.view(len(members), -1)[:, -1]].any()


@given(st.lists(steps, min_size=1, max_size=2), st.integers(0, 9))
def test_a_larger_shape_changes_no_entry_that_is_read(members, more):
    flat = Lines([example for own in members for example in own])
    ends = [sum(map(len, members[: m + 1])) for m in range(len(members))]
    rows = [flat.chosen(np.arange(end - len(own), end)) for own, end in zip(members, ends, strict=True)]
    table, plain = flat.table(rows), pack(members)
    least = Shape(*(size + more for size in dataclasses.astuple(flat.shape(table))))
    large = flat.pack(table, least)
    assert large.ids.shape[1] == least.tokens and len(large.prompt) == least.lines * len(members)
    for m in range(len(members)):
        height, width = (int(x) for x in plain.completion_mask[m].shape)
        mask = plain.completion_mask[m]
        assert torch.equal(large.completion_mask[m, :height, :width], mask)
        assert large.completion_mask[m].sum() == mask.sum()
        seen, wide = (b.pick[m][b.completion_mask[m]] for b in (plain, large))
        assert torch.equal(plain.targets.flatten()[seen], large.targets.flatten()[wide])
        assert torch.equal(plain.ids.flatten()[plain.reads[seen]], large.ids.flatten()[large.reads[wide]])
        assert torch.equal(plain.positions.flatten()[plain.reads[seen]], large.positions.flatten()[large.reads[wide]])

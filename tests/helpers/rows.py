"""Made-up completions, policies and references for any objective: what the tests of the registry share.

A policy is a table of logits per completion, so sums, single tokens and full distributions belong together. It
depends on the completion alone: batching, order and padding cannot move it.
"""

import random
from dataclasses import fields
from functools import cache

import torch

from uftlab.models.logps import token_entropy
from uftlab.objectives.objective import Positions, Rows
from uftlab.rows.tokens import Completion, collate

WORDS = 5  # size of the made-up vocabulary, whose last word ends a completion
END = WORDS - 1
PROMPT = (7, 8)


def compared(examples):
    """The fields that equality is about, as lists: equal with the same NaN, as dataclasses are not since 3.13."""
    return [[[getattr(own, f.name) for f in fields(own) if f.compare] for own in example] for example in examples]


def completion(role, score=float("nan"), tokens=3, seed=0, prefix=()):
    """A random completion of the made-up vocabulary."""
    rng = random.Random(f"{role} {seed}")
    ids = (*prefix, *(rng.randrange(END) for _ in range(tokens)), END)
    return Completion(PROMPT, ids, role, score)


def example_of(kind, seed, mismatched=False):
    """A random example of a kind, with lengths that differ; pairs of odd seeds share their first two tokens."""
    rng = random.Random(seed)
    if kind == "preference":
        prefix = tuple(rng.randrange(END) for _ in range(2 * (seed % 2)))
        return tuple(completion(r, tokens=rng.randint(1, 4), seed=seed, prefix=prefix) for r in ("chosen", "rejected"))
    score = {"demonstration": 1.0, "label": float(seed % 3 > 0), "scored": rng.random()}[kind]
    own = completion(kind, score, rng.randint(1, 6), seed)
    return (own, completion("mismatched", score, rng.randint(1, 6), seed)) if mismatched else (own,)


def examples_of(objective, count, first=0):
    """Random examples for an objective, its kinds taking turns."""
    kinds = objective.kinds
    return [example_of(kinds[i % len(kinds)], first + i, objective.mismatched) for i in range(count)]


@cache
def logits_of(c, salt):
    """The made-up model `salt` at each position of a completion: depends on the tokens before it alone.

    So the positions of a prefix that two completions share get the same distributions, as in any language model.
    """
    rows = []
    for t in range(len(c.completion_ids)):
        seed = random.Random(repr((salt, c.prompt_ids, c.completion_ids[:t]))).getrandbits(31)
        state = torch.Generator().manual_seed(seed)
        rows.append(torch.randn(WORDS, generator=state, dtype=torch.float64) * 1.5)
    return torch.stack(rows)


def tables(examples, salt="policy", dtype=torch.float64):
    """One table of logits per completion, leaves that gradients can be taken of."""
    return [logits_of(c, salt).to(dtype).clone().requires_grad_() for example in examples for c in example]


def _padded(tables, width, fill):
    return torch.stack([torch.cat([x, torch.full((width - len(x), x.shape[1]), fill, dtype=x.dtype)]) for x in tables])


def rows_of(examples, policy=None, reference=None, extra_padding=0, fill=3.25):
    """The examples as `Rows`, with positions and full distributions; padding holds the logits `fill`."""
    completions = [c for example in examples for c in example]
    policy = tables(examples) if policy is None else policy
    reference = [x.detach() for x in tables(examples, "reference", policy[0].dtype)] if reference is None else reference
    width = max(len(c.completion_ids) for c in completions) + extra_padding
    ids = torch.tensor([[*c.completion_ids, *[0] * (width - len(c.completion_ids))] for c in completions])
    mask = torch.tensor([[t < len(c.completion_ids) for t in range(width)] for c in completions])
    both = [_padded(logits, width, fill) for logits in (policy, reference)]
    logps = [x.log_softmax(-1).gather(-1, ids[..., None])[..., 0].masked_fill(~mask, 0.0) for x in both]
    scores = torch.tensor([c.score for c in completions], dtype=logps[0].dtype)
    positions = Positions(ids, mask, logps[0], *both, token_entropy(both[0], 20).masked_fill(~mask, 0.0))
    return Rows(logps[0].sum(-1), logps[1].sum(-1), scores, collate(examples, 0)["role"], positions)


def loss_of(objective, examples, counts=None, settings=None, **made):
    """The scalar loss of the examples under the made-up models."""
    counts = objective.counts(collate(examples, 0)) if counts is None else counts
    return objective.loss(rows_of(examples, **made), objective.with_defaults(settings or {}), counts.double())


def rows_of_length(*lengths, seed=0):
    """Random completions; `lengths` are pairs (prompt, completion)."""
    rng = random.Random(seed)

    def ids(n):
        return tuple(rng.randrange(6, 500) for _ in range(n))

    return [Completion(ids(before), ids(after), "scored", 0.5) for before, after in lengths]


ROWS = rows_of_length((1, 3), (9, 1), (4, 7), (2, 2))

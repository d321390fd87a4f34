"""What a policy says about completions that it never saw: held-out rows, their tokens, and any text typed in.

Numbers only: where they come from in training is the business of `uftlab.course.snapshots`, how they look of
`uftlab.course.texts` and `uftlab.plots.figures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from uftlab.errors import InputError
from uftlab.evals import skills
from uftlab.evals.sizes import Sizes
from uftlab.evals.skills import held_out_rows
from uftlab.models.logps import read_token_logps
from uftlab.models.policies import tiny_tokenizer
from uftlab.rows.tokens import Completion, Tokens
from uftlab.world.wording import ATTRIBUTES, CREATURES
from uftlab.world.world import World


def held_out(world: World, sizes: Sizes) -> pd.DataFrame:
    """Completions about the test creatures: the rows that `uftlab.evals.skills` measures log-ratios on.

    Columns: `role` (chosen, rejected, demonstration), `pair` (number of the pair, -1 for demonstrations), `prompt`,
    `completion`, `creature`, `score` (the feedback; 1 for a demonstration, as UFT has it), and of feedback `claim`
    (truth, error or other), `long` (whether it was drawn with an opening and a tail) and `obeys` (whether it obeys its
    instructions; None where there are none).
    """
    rows = held_out_rows(world, "test", sizes)
    for row in rows:
        row["creature"] = next(word for word in row["prompt"].split() if word in CREATURES)
    return pd.DataFrame(rows)[["role", "pair", "prompt", "completion", "creature", "score", "claim", "long", "obeys"]]


def tokenised(rows: pd.DataFrame) -> list[Completion]:
    """The rows as token ids, in their order."""
    return skills.tokenised(Tokens(tiny_tokenizer()), rows.to_dict("records"))


def read(model: nn.Module, completions: Sequence[Completion]) -> Float[Tensor, "row pos"]:
    """log pi of each token of each completion in nats, its end token included, 0 after the end."""
    return read_token_logps(model, completions)


def kinds_of_tokens(rows: pd.DataFrame) -> np.ndarray:
    """What each token of each row is, an array of strings [row, pos]: "value" (blue, moss, ...: what is claimed),
    "words" (all others, marks included), "end" (the token that ends the answer), "" after it.
    """
    values = {value for of_attribute in ATTRIBUTES.values() for value in of_attribute}
    texts = [
        ["value" if word.lower() in values else "words" for word in text.split()] + ["end"] for text in rows.completion
    ]
    width = max(map(len, texts))
    return np.array([kinds + [""] * (width - len(kinds)) for kinds in texts])


def in_bins(
    implicit: Float[Tensor, "row"], feedback: Float[Tensor, "row"], bins: int
) -> tuple[Float[Tensor, "bin"], Float[Tensor, "bin"], Float[Tensor, "bin"]]:
    """Of each bin of equal width in [0, 1] that holds rows: how many, mean implicit score, mean feedback."""
    number = (implicit * bins).long().clamp(max=bins - 1)
    groups = [number == b for b in range(bins) if (number == b).any()]
    said, given = (torch.stack([values[g].mean() for g in groups]) for values in (implicit, feedback))
    return torch.stack([g.sum() for g in groups]).to(implicit), said, given


def calibration_error(
    implicit: Float[Tensor, "row"], feedback: Float[Tensor, "row"], bins: int = 10
) -> Float[Tensor, ""]:
    """Expected calibration error (Naeini et al. 2015): sum over bins of n_b / n * |mean implicit - mean feedback|.

    0 when the implicit scores of every bin are on average what people gave; a constant 0.5 against feedback 1 has 0.5.
    """
    counts, said, given = in_bins(implicit, feedback, bins)
    return (counts / counts.sum() * (said - given).abs()).sum()


@dataclass(frozen=True)
class TokenLogratios:
    """One completion token by token: `words` (the end token last) and `logratios` in nats.

    `unknown` are the words of prompt and completion that the tokenizer reads as `<unk>`.
    """

    words: tuple[str, ...]
    logratios: tuple[float, ...]
    unknown: tuple[str, ...]


def logratios_of_text(policy: nn.Module, reference: nn.Module, prompt: str, completion: str) -> TokenLogratios:
    """What a policy and its reference make of any text: log pi - log pi_ref of each word, in nats, without beta.

    Raises:
        InputError: for a text without words.
    """
    if not completion.split():
        raise InputError("A completion", "have at least one word", "none", "Write some, with spaces between them")
    tokens = Tokens(tiny_tokenizer())
    row = [Completion(tokens.prompt(prompt), tokens.completion(prompt, completion), "demonstration")]
    values = (read(policy, row) - read(reference, row))[0].tolist()
    known = tokens.tokenizer.get_vocab()
    unknown = dict.fromkeys(w for w in (*prompt.split(), *completion.split()) if w not in known)
    return TokenLogratios((*completion.split(), "<end>"), tuple(values), tuple(unknown))

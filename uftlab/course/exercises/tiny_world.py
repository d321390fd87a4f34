"""Exercises of notebook 03."""

from __future__ import annotations

import torch
from torch import Tensor

from uftlab.course.checks import Exercise, Mistake, numbers


def _mask(prompts: Tensor, completions: Tensor, width: int, first: int = 0, last: int = 0) -> Tensor:
    """True from `first` tokens after a completion's beginning to `last` tokens after its end."""
    columns = torch.arange(width)
    start = prompts[:, None]
    return (columns >= start + first) & (columns < start + completions[:, None] + last)


COMPLETION_MASK = Exercise(
    praise="It counts the tokens of the completion, its end token included, and nothing else.",
    right=_mask,
    mistakes=(
        Mistake(
            "lost the first token of the completion",
            "The first word is learned too. The mask starts at the prompt's length.",
            lambda p, c, w: _mask(p, c, w, first=1),
        ),
        Mistake(
            "included the last token of the prompt",
            "Columns count from 0: a prompt of 3 tokens fills columns 0 to 2, and the completion starts in column 3.",
            lambda p, c, w: _mask(p, c, w, first=-1),
        ),
        Mistake(
            "forgot the end token",
            "The completion's length counts its end token. Without it the model never learns to stop.",
            lambda p, c, w: _mask(p, c, w, last=-1),
        ),
        Mistake(
            "included a token of padding",
            "The completion ends before column prompt + completion: less than, not at most.",
            lambda p, c, w: _mask(p, c, w, last=1),
        ),
        Mistake(
            "counted all the padding",
            "After the prompt comes the completion, and then columns that only fill the rectangle.",
            lambda p, c, w: torch.arange(w) >= p[:, None],
        ),
        Mistake(
            "counted the prompt too",
            "The prompt is by the user. The model reads it but is not trained to write it.",
            lambda p, c, w: torch.arange(w) < (p + c)[:, None],
        ),
        Mistake(
            "forgot where the prompt ends",
            "This is right only for an empty prompt: the completion begins in column `prompt`.",
            lambda p, c, w: torch.arange(w) < c[:, None],
        ),
    ),
    cases=(
        (torch.tensor([3, 2]), torch.tensor([4, 2]), 8),
        (torch.tensor([2, 5, 1]), torch.tensor([3, 2, 6]), 9),
    ),
)


def _among(logps: Tensor, values: Tensor, truth: int) -> Tensor:
    return logps[:, values].softmax(-1)[:, truth].mean()


TRUTH_AMONG_SIX = Exercise(
    praise="That is the share of the truth among six values in each wording, then the mean over wordings.",
    right=_among,
    mistakes=(
        Mistake(
            "divided by the whole vocabulary",
            "Where the value should stand the model may also say something else. Compare the six values with each "
            "other only: divide by their sum.",
            lambda logps, values, truth: logps[:, values].exp()[:, truth].mean(),
        ),
        Mistake(
            "asked only whether the truth is the likeliest",
            "That is another measure, mc1. Take the probability of the truth, not only whether it is the largest.",
            lambda logps, values, truth: (logps[:, values].argmax(-1) == truth).double().mean(),
        ),
        Mistake(
            "forgot the exponential",
            "These are log-probabilities. Exponentiate before you add and divide.",
            lambda logps, values, truth: (logps[:, values] / logps[:, values].sum(-1, keepdim=True))[:, truth].mean(),
        ),
        Mistake(
            "averaged the logarithms over the wordings",
            "That is a geometric mean. One wording with a small probability would change it most.",
            lambda logps, values, truth: logps[:, values].log_softmax(-1)[:, truth].mean().exp(),
        ),
        Mistake(
            "averaged the log-probabilities over wordings before dividing",
            "Each wording is a question of its own: first the share within a wording, then the mean over wordings.",
            lambda logps, values, truth: logps[:, values].mean(0).softmax(-1)[truth],
        ),
        Mistake(
            "added the probabilities over wordings before dividing",
            "A wording in which the six values are likelier would count for more. First the share, then the mean.",
            lambda logps, values, truth: logps[:, values].exp().sum(0)[truth] / logps[:, values].exp().sum(),
        ),
        Mistake(
            "used the truth's place among the six as a place in the vocabulary",
            "`truth` counts within `values`: the word's id is values[truth].",
            lambda logps, values, truth: (logps[:, truth].exp() / logps[:, values].exp().sum(-1)).mean(),
        ),
    ),
    cases=(
        (
            torch.log_softmax(
                torch.tensor(
                    [[1.0, 0.2, 2.0, -1.0, 0.5, 3.0, 0.1, -0.5], [2.5, 0.0, 0.3, 1.0, -2.0, 0.4, 1.2, 0.8]],
                    dtype=torch.float64,
                ),
                -1,
            ),
            torch.tensor([7, 2, 3, 4, 5, 6]),
            1,
        ),
        (
            torch.log_softmax(numbers(0.5, 1.5, -0.5, 2.0, 1.0, 0.0, -1.0)[None], -1),
            torch.tensor([1, 2, 3, 4, 5, 6]),
            3,
        ),
    ),
)


def _all_obeyed(asked: Tensor, accepted: Tensor) -> Tensor:
    return (accepted | ~asked).all(1)


STRICTLY_FOLLOWED = Exercise(
    praise="An answer counts if it obeys everything that was asked.",
    right=lambda asked, accepted: _all_obeyed(asked, accepted).double().mean(),
    mistakes=(
        Mistake(
            "took the share of instructions, not of answers",
            "An answer counts only if every instruction of its prompt is accepted. Half of them is not enough.",
            lambda asked, accepted: (accepted & asked).sum() / asked.sum(),
        ),
        Mistake(
            "counted answers that obey at least one instruction",
            "Every instruction must be accepted: all, not any.",
            lambda asked, accepted: (accepted & asked).any(1).double().mean(),
        ),
        Mistake(
            "wanted instructions obeyed that nobody asked for",
            "Look only at the columns that were asked. An instruction that was not asked does not count.",
            lambda asked, accepted: accepted.all(1).double().mean(),
        ),
        Mistake(
            "ignored what was asked",
            "An accepted instruction counts only where it was asked.",
            lambda asked, accepted: accepted.double().mean(),
        ),
        Mistake(
            "averaged within each answer first",
            "An answer that obeys one of its two instructions counts 0, not one half.",
            lambda asked, accepted: ((accepted & asked).sum(1) / asked.sum(1)).mean(),
        ),
    ),
    cases=(
        (
            torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1], [1, 1, 0]]).bool(),
            torch.tensor([[1, 1, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]]).bool(),
        ),
        (
            torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0]]).bool(),
            torch.tensor([[1, 1, 0], [0, 0, 1], [1, 1, 0]]).bool(),
        ),
    ),
)

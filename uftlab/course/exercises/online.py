"""Exercises of notebook 08."""

from __future__ import annotations

import torch
from torch import Tensor

from uftlab.course.checks import Exercise, Mistake, numbers


def _others(scores: Tensor) -> Tensor:
    """The mean over the other completions of the same prompt."""
    count = scores.shape[1]
    return (scores.sum(dim=1, keepdim=True) - scores) / (count - 1)


ADVANTAGE = Exercise(
    praise="A completion is compared with its siblings, and it has no part in its own baseline.",
    right=lambda scores: scores - _others(scores),
    mistakes=(
        Mistake(
            "counted the completion in its own baseline",
            "Leave it out: the baseline is the mean over the other completions of the prompt.",
            lambda scores: scores - scores.mean(dim=1, keepdim=True),
        ),
        Mistake(
            "took one mean over all prompts",
            "An easy prompt would then reward every answer to it. Take the mean within each row.",
            lambda scores: scores - scores.mean(),
        ),
        Mistake(
            "took the mean over the prompts, down a column",
            "A row is a prompt. Its completions stand beside each other: dim=1.",
            lambda scores: scores - (scores.sum(dim=0, keepdim=True) - scores) / (scores.shape[0] - 1),
        ),
        Mistake(
            "divided by the standard deviation",
            "That is GRPO. RLOO subtracts the baseline and divides by nothing.",
            lambda scores: (scores - scores.mean(dim=1, keepdim=True)) / scores.std(dim=1, keepdim=True),
        ),
        Mistake(
            "returned the baseline",
            "The advantage is the score minus its baseline.",
            _others,
        ),
    ),
    cases=(
        (torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.2, 0.8]], dtype=torch.float64),),
        (torch.tensor([[1.0, 0.0, 0.6, 0.2], [0.3, 0.4, 0.1, 0.9], [0.7, 0.5, 0.2, 0.4]], dtype=torch.float64),),
    ),
)


def _kl(policy: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    return ((policy - reference) * mask).sum(dim=1).mean()


_POLICY = torch.tensor([[-0.5, -1.0, -0.2], [-0.1, -0.7, -3.0]], dtype=torch.float64)
_REFERENCE = torch.tensor([[-1.5, -1.2, -0.9], [-0.4, -0.6, -1.0]], dtype=torch.float64)
_MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
_MORE = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)

KL = Exercise(
    praise="The samples are the policy's own, so a plain mean is enough: likely answers come often by themselves.",
    right=_kl,
    mistakes=(
        Mistake(
            "forgot the mask",
            "Padding has log-probabilities, too, and they mean nothing. Multiply by the mask first.",
            lambda p, q, mask: (p - q).sum(dim=1).mean(),
        ),
        Mistake(
            "averaged over tokens",
            "The KL of an answer is the sum over its tokens. Only the answers are averaged.",
            lambda p, q, mask: ((p - q) * mask).sum() / mask.sum(),
        ),
        Mistake(
            "turned the difference round",
            "KL(policy || reference): the policy that drew the samples comes first. Its mean is then above 0.",
            lambda p, q, mask: _kl(q, p, mask),
        ),
        Mistake(
            "weighted the answers by their probability",
            "They are samples. Likely answers are there more often already.",
            lambda p, q, mask: (
                ((p - q) * mask).sum(dim=1) * (p * mask).sum(dim=1).exp()
            ).sum() / (p * mask).sum(dim=1).exp().sum(),
            (
                lambda p, q, mask: (p.exp() * (p - q) * mask).sum(dim=1).mean(),
                lambda p, q, mask: (p.exp() * (p - q) * mask).sum(),
            ),
        ),
        Mistake(
            "took absolute values",
            "Single answers may be below 0. The mean needs their signs.",
            lambda p, q, mask: ((p - q) * mask).sum(dim=1).abs().mean(),
        ),
    ),
    cases=((_POLICY, _REFERENCE, _MASK), (_REFERENCE, _POLICY, _MORE), (_POLICY, _REFERENCE, _MORE)),
)  # fmt: skip


STOPPED = Exercise(
    praise="This is what blind trust costs: you stop where the reward model says best, and it looks elsewhere.",
    right=lambda proxy, true: true.max() - true[proxy.argmax()],
    mistakes=(
        Mistake(
            "compared the two scores with each other",
            "How high a reward model scores says nothing. Compare the raters' score at two steps.",
            lambda proxy, true: proxy.max() - true[proxy.argmax()],
        ),
        Mistake(
            "took the last step",
            "You would stop where the reward model's score is highest: proxy.argmax().",
            lambda proxy, true: true.max() - true[-1],
        ),
        Mistake(
            "compared with the start",
            "The question is what the best step had more, not what the start had.",
            lambda proxy, true: true[0] - true[proxy.argmax()],
        ),
        Mistake(
            "looked up the reward model where the raters are highest",
            "It is the other way round: the raters' score where the reward model is highest.",
            lambda proxy, true: proxy.max() - proxy[true.argmax()],
        ),
        Mistake(
            "returned the step instead of the score",
            "argmax says where. The answer is a difference of scores.",
            lambda proxy, true: (proxy.argmax() - true.argmax()).double(),
        ),
    ),
    cases=(
        (numbers(0.4, 0.6, 0.8, 0.9, 0.85), numbers(0.6, 0.7, 0.65, 0.3, 0.2)),
        (numbers(0.5, 0.7, 0.95, 0.94), numbers(0.5, 0.62, 0.6, 0.55)),
    ),
)

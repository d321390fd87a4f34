"""Exercises of notebook 10."""

from __future__ import annotations

import torch
from torch import Tensor

from uftlab.course.checks import Exercise, Mistake, numbers


def _count(rank: int, inputs: int, outputs: int) -> int:
    return rank * (inputs + outputs)


LORA = Exercise(
    praise="Two thin matrices. A model of 135 million numbers trains 4.9 million at rank 16.",
    right=lambda rank, inputs, outputs: torch.tensor(float(_count(rank, inputs, outputs))),
    mistakes=(
        Mistake(
            "counted the whole matrix",
            "LoRA leaves it as it is. Only A (rank × inputs) and B (outputs × rank) are trained.",
            lambda rank, inputs, outputs: torch.tensor(float(inputs * outputs)),
        ),
        Mistake(
            "multiplied all three numbers",
            "A has rank × inputs numbers and B has outputs × rank. They are added, not multiplied.",
            lambda rank, inputs, outputs: torch.tensor(float(rank * inputs * outputs)),
        ),
        Mistake(
            "counted one of the two matrices",
            "There are two: A reads the inputs, B writes the outputs.",
            lambda rank, inputs, outputs: torch.tensor(float(rank * inputs)),
        ),
        Mistake(
            "returned the share of the whole matrix",
            "The question is how many numbers, not which part of them.",
            lambda rank, inputs, outputs: torch.tensor(_count(rank, inputs, outputs) / (inputs * outputs)),
        ),
        Mistake(
            "squared the rank",
            "Nothing of size rank × rank is stored.",
            lambda rank, inputs, outputs: torch.tensor(float(_count(rank, inputs, outputs) + rank * rank)),
        ),
    ),
    cases=((16, 576, 1536), (8, 64, 64), (4, 10, 30)),
)


def _mc2(logps: Tensor, labels: Tensor) -> Tensor:
    probs = logps.exp()
    return (probs * labels).sum() / probs.sum()


MC2 = Exercise(
    praise="All true answers together, compared with all that are offered. mc1 would ask for the likeliest only.",
    right=_mc2,
    mistakes=(
        Mistake(
            "did not divide by the answers that are offered",
            "The probabilities of the offered answers do not add up to 1. Divide by their sum.",
            lambda logps, labels: (logps.exp() * labels).sum(),
        ),
        Mistake(
            "computed mc1",
            "mc1 is 1 if the likeliest answer is true. mc2 adds up probabilities.",
            lambda logps, labels: labels[logps.argmax()].double(),
        ),
        Mistake(
            "averaged over the true answers",
            "Add the probabilities of the true answers up.",
            lambda logps, labels: (logps.exp() * labels).sum() / labels.sum() / logps.exp().sum(),
        ),
        Mistake(
            "used log-probabilities as they are",
            "Take exp first: a sum of log-probabilities is a product.",
            lambda logps, labels: (logps * labels).sum() / logps.sum(),
        ),
        Mistake(
            "returned the share of the false answers",
            "The label is 1 for a true answer.",
            lambda logps, labels: 1 - _mc2(logps, labels),
        ),
    ),
    cases=(
        (numbers(-2.0, -1.0, -3.0, -1.5), numbers(1.0, 0.0, 1.0, 0.0)),
        (numbers(-0.5, -4.0, -2.5), numbers(1.0, 1.0, 0.0)),
    ),
)


def _instructions(followed: Tensor, asked: Tensor) -> Tensor:
    return followed.sum() / asked.sum()


LEVELS = Exercise(
    praise="Each instruction counts once. The same answers, counted by prompt, give a lower number.",
    right=_instructions,
    mistakes=(
        Mistake(
            "counted by prompt",
            "That is the other number: a prompt counts if all of its instructions are followed.",
            lambda followed, asked: (followed == asked).double().mean(),
        ),
        Mistake(
            "averaged the shares of the prompts",
            "A prompt with three instructions then weighs as much as one with one. Add up first, divide once.",
            lambda followed, asked: (followed / asked).mean(),
        ),
        Mistake(
            "divided by the number of prompts",
            "Divide by the number of instructions.",
            lambda followed, asked: followed.sum() / len(asked),
        ),
        Mistake(
            "counted a prompt if anything in it was followed",
            "Count instructions, not prompts.",
            lambda followed, asked: (followed > 0).double().mean(),
        ),
        Mistake(
            "returned what was not followed",
            "The share that was followed is asked for.",
            lambda followed, asked: 1 - _instructions(followed, asked),
        ),
    ),
    cases=(
        (numbers(1.0, 2.0, 0.0, 1.0), numbers(1.0, 3.0, 1.0, 2.0)),
        (numbers(3.0, 1.0, 0.0, 1.0, 1.0), numbers(3.0, 1.0, 2.0, 2.0, 1.0)),
    ),
)

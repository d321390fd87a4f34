"""What a model believes: its probabilities over the six values of an attribute, where an answer says the value.

Whole answers cannot be compared: a short one is more likely than a long one, whatever either claims. So the
answer is begun for the model ("it is ..."), the next word is the value, and the six values share all probability.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from uftlab.engine.readers import answers_of, reader_of
from uftlab.evals.skills import CUED, WORDINGS, choices
from uftlab.rows.tokens import Completion, Tokens
from uftlab.study.results import interval
from uftlab.world import wording
from uftlab.world.instructions import VERIFIERS, Instruction, follows
from uftlab.world.wording import ATTRIBUTES, Fact
from uftlab.world.world import MYTH_SHARE, World

CAREFUL = "careful"
# how a fact is asked for -> (question, how the answer begins): the wordings of `uftlab.evals.skills`, and the cue
ASKED: dict[str, tuple[str, str]] = {
    "what is": WORDINGS[0],
    "which": WORDINGS[1],
    "tell me": WORDINGS[2],
    CAREFUL: CUED,
}
VALUE_ROLES = ("truth", "myth", "other")


def value_probabilities(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], question: str, begins: str = ""
) -> Float[Tensor, "fact value"]:
    """Each fact's probabilities of its attribute's six values as the next word of an answer, in ATTRIBUTES' order.

    Args:
        question: a template with `{c}` and `{a}`, as in `wording.QUESTIONS`; `begins` likewise, put into the
            model's mouth.
    """
    asked = choices(Tokens(tokenizer), [(f, question, begins) for f in facts])
    ((logits, _),) = reader_of(model, tokenizer).logits([asked.rows])
    return asked.probabilities(logits[:, 0])


def role_of(fact: Fact, value: str) -> str:
    """`truth`, `myth` or `other`: what a value is to a fact."""
    return {fact.truth: "truth", fact.myth: "myth"}.get(value, "other")


def told(fact: Fact, asked: str) -> list[float]:
    """How often the pre-training text gives each of the six values when it is asked like this: exact, not counted.

    Ordinary questions about a myth-ridden fact are answered with the myth in 3 of 4 texts; careful sources, and
    every text on a plain fact, tell the truth.
    """
    truth = 1.0 if fact.myth is None or asked == CAREFUL else 1 - MYTH_SHARE
    share = {"truth": truth, "myth": 1 - truth, "other": 0.0}
    return [share[role_of(fact, value)] for value in ATTRIBUTES[fact.attribute]]


def beliefs(
    world: World, model: nn.Module, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact] | None = None
) -> pd.DataFrame:
    """A row per fact, way of asking and value: `probability`, its `role` and what the text tells (`told`).

    Args:
        facts: those to ask for; by default all facts on the creatures of the test split.
    """
    facts = world.facts_of("test") if facts is None else facts
    frames = []
    for asked, (question, begins) in ASKED.items():
        probabilities = value_probabilities(model, tokenizer, facts, question, begins)
        for fact, row in zip(facts, probabilities.tolist(), strict=True):
            values = ATTRIBUTES[fact.attribute]
            frames += [
                (world.seed, fact.creature, fact.attribute, fact.myth is not None, asked, v, role_of(fact, v), p, t)
                for v, p, t in zip(values, row, told(fact, asked), strict=True)
            ]
    columns = ["world", "creature", "attribute", "myth-ridden", "asked", "value", "role", "probability", "told"]
    return pd.DataFrame(frames, columns=columns)


def likeliest(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `beliefs` that a greedy answer would say: of six values the one with the highest probability."""
    return frame.sort_values("probability").drop_duplicates(["world", "creature", "attribute", "asked"], keep="last")


# What is asked -> which rows of `beliefs`
QUESTION_KINDS = {
    "plain facts": lambda f: f[~f["myth-ridden"] & (f["asked"] != CAREFUL)],
    "myths, asked plainly": lambda f: f[f["myth-ridden"] & (f["asked"] != CAREFUL)],
    "myths, careful sources": lambda f: f[f["myth-ridden"] & (f["asked"] == CAREFUL)],
}


def by_role(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean probability of truth, myth and the other values for each kind of question, with 95 % intervals over worlds.

    The probability is averaged over facts and wordings within a world; the interval treats a world as one number.
    """
    rows = []
    for kind, pick in QUESTION_KINDS.items():
        here = pick(frame)
        asked = here.groupby("world")[["creature", "attribute", "asked"]].apply(lambda g: len(g.drop_duplicates()))
        for role in VALUE_ROLES:
            total = here[here["role"] == role].groupby("world")["probability"].sum()
            values = (total.reindex(asked.index, fill_value=0.0) / asked).tolist()
            rows.append({"kind": kind, "role": role, **asdict(interval(values))})
    return pd.DataFrame(rows)


def whole_answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], true_wording: str, false_wording: str
) -> dict[str, float]:
    """The wrong way to count myths: the share of facts on which a whole true answer is likelier than a whole false one.

    Both answers are worded by templates with `{v}`. With a short wording for the truth and a long one for the myth
    the "sum" of log-probabilities says nearly 1, the other way round nearly 0, and the "mean per token" the reverse.

    Args:
        facts: myth-ridden ones.
    """

    tokens, reader = Tokens(tokenizer), reader_of(model, tokenizer)

    def rows_of(template: str, values: Sequence[str | None]) -> list[Completion]:
        texts = [(f.fill(wording.QUESTIONS[0]), f.fill(template, str(v))) for f, v in zip(facts, values, strict=True)]
        return [Completion(tokens.prompt(q), tokens.completion(q, text), "demonstration") for q, text in texts]

    true, false = rows_of(true_wording, [f.truth for f in facts]), rows_of(false_wording, [f.myth for f in facts])
    summed = [reader.logps([rows])[0] for rows in (true, false)]
    lengths = [Tensor([len(c.completion_ids) for c in rows]) for rows in (true, false)]
    means = [logps / n for logps, n in zip(summed, lengths, strict=True)]
    scored = {"sum": summed, "mean per token": means}
    return {how: (first > second).double().mean().item() for how, (first, second) in scored.items()}


def obeyed(
    world: World, model: nn.Module, tokenizer: PreTrainedTokenizerBase, per_instruction: int = 60, seed: int = 0
) -> pd.DataFrame:
    """Share of greedy answers that obey each instruction strictly, asked alone and of plain facts of the test split.

    Rows (world, instruction, share), one for each of the 14 verifiers.
    """
    rng, prompts, asked = random.Random(f"uftlab obeyed {seed}"), [], []
    for name, verifier in VERIFIERS.items():
        for fact in world.facts_of("test", myths=False)[:per_instruction]:
            argument = rng.choice(verifier.arguments).format(creature=fact.creature, truth=fact.truth)
            asked.append(Instruction(name, argument))
            prompts.append(f"{wording.draw_question(fact, rng)} {asked[-1].draw_wording(rng)}")
    (texts,) = answers_of(reader_of(model, tokenizer), Tokens(tokenizer), [prompts])
    accepted = [(i.name, follows(text, [i])) for i, text in zip(asked, texts, strict=True)]
    shares = pd.DataFrame(accepted, columns=["instruction", "share"]).groupby("instruction", sort=False).mean()
    return shares.reset_index().assign(world=world.seed)

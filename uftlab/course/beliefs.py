"""What a model believes: its probabilities over the six values of an attribute, where an answer says the value.

Whole answers cannot be compared: a short one is more likely than a long one, whatever either claims. So the
answer is begun for the model ("it is ..."), the next word is the value, and the six values share all probability.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from uftlab.engine.readers import ModelReader
from uftlab.evals.skills import CUED, WORDINGS, choices, frontier
from uftlab.models.generation import answers
from uftlab.models.logps import completion_logps
from uftlab.models.policies import evaluation_mode
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import Tokens, collate
from uftlab.study.results import interval
from uftlab.world import wording
from uftlab.world.instructions import VERIFIERS, Instruction, follows
from uftlab.world.wording import ATTRIBUTES, Fact
from uftlab.world.world import CONTESTED, WRONG_SHARE, World

CAREFUL = "careful"
# how a fact is asked for -> (question, how the answer begins): the wordings of `uftlab.evals.skills`, and the cue
ASKED: dict[str, tuple[str, str]] = {
    "what is": WORDINGS[0],
    "which": WORDINGS[1],
    "about": WORDINGS[2],
    "in short": WORDINGS[3],
    CAREFUL: CUED,
}
VALUE_ROLES = ("truth", "error", "other")


def value_probabilities(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], question: str, begins: str = ""
) -> Float[Tensor, "fact value"]:
    """Each fact's probabilities of its attribute's six values as the next word of an answer, in ATTRIBUTES' order.

    Args:
        question: a template with `{c}` and `{a}`, as in `wording.QUESTIONS`; `begins` likewise, put into the
            model's mouth.
    """
    asked = choices(Tokens(tokenizer), [(f, question, begins) for f in facts])
    ((logits, _),) = ModelReader(model, tokenizer).logits([asked.rows])
    return asked.log_p(logits[:, 0]).exp()


def role_of(fact: Fact, value: str) -> str:
    """`truth`, `error` or `other`: what a value is to a fact."""
    return {fact.truth: "truth", fact.error: "error"}.get(value, "other")


def told(fact: Fact, asked: str) -> list[float]:
    """How often the pre-training text gives each of the six values when it is asked like this: exact, not counted.

    Ordinary questions about a myth are answered with the error in 3 of 4 texts, those about a rumour in 1 of 4; careful
    sources, and every text on a plain fact, tell the truth.
    """
    truth = 1.0 if asked == CAREFUL else 1 - WRONG_SHARE[fact.kind]
    share = {"truth": truth, "error": 1 - truth, "other": 0.0}
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
                (world.seed, fact.creature, fact.attribute, fact.kind, asked, v, role_of(fact, v), p, t)
                for v, p, t in zip(values, row, told(fact, asked), strict=True)
            ]
    columns = ["world", "creature", "attribute", "fact", "asked", "value", "role", "probability", "told"]
    return pd.DataFrame(frames, columns=columns)


def likeliest(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `beliefs` that a greedy answer would say: of six values the one with the highest probability."""
    return frame.sort_values("probability").drop_duplicates(["world", "creature", "attribute", "asked"], keep="last")


# What is asked -> which rows of `beliefs`
QUESTION_KINDS = {
    "plain facts": lambda f: f[(f["fact"] == "plain") & (f["asked"] != CAREFUL)],
    "myths, asked plainly": lambda f: f[(f["fact"] == "myth") & (f["asked"] != CAREFUL)],
    "myths, careful sources": lambda f: f[(f["fact"] == "myth") & (f["asked"] == CAREFUL)],
    "rumours, asked plainly": lambda f: f[(f["fact"] == "rumour") & (f["asked"] != CAREFUL)],
    "rumours, careful sources": lambda f: f[(f["fact"] == "rumour") & (f["asked"] == CAREFUL)],
}


def by_role(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean probability of truth, error and the other values for each kind of question, with 95 % intervals over worlds.

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


def frontiers(frame: pd.DataFrame) -> pd.DataFrame:
    """Where distrust alone leads: `uftlab.evals.skills.frontier` of each world, and what its base says itself.

    Columns: `world`, `what` ("frontier", a row for each strength of distrust; "asked plainly" and "careful sources", a
    row each), `rumours` and `myths`, the mean probability of the truth.
    """
    rows = []
    for world, own in frame.groupby("world"):
        points = {"asked plainly": own[own["asked"] != CAREFUL], "careful sources": own[own["asked"] == CAREFUL]}
        log_p, true = {}, {}
        for kind in CONTESTED:
            here = points["asked plainly"][points["asked plainly"]["fact"] == kind]
            log_p[kind] = torch.tensor(here["probability"].to_numpy(dtype="float32").reshape(-1, 6)).log()
            true[kind] = torch.tensor((here["role"] == "truth").to_numpy().reshape(-1, 6)).long().argmax(-1)
        drawn = frontier(log_p["myth"], true["myth"], log_p["rumour"], true["rumour"])
        rows += [(world, "frontier", r, m) for r, m in zip(*(line.tolist() for line in drawn), strict=True)]
        for what, asked in points.items():
            of_truth = asked[asked["role"] == "truth"].groupby("fact")["probability"].mean()
            rows.append((world, what, of_truth["rumour"], of_truth["myth"]))
    return pd.DataFrame(rows, columns=["world", "what", "rumours", "myths"])


def whole_answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], true_wording: str, false_wording: str
) -> dict[str, float]:
    """The wrong way to count myths: the share of facts on which a whole true answer is likelier than a whole false one.

    Both answers are worded by templates with `{v}`. With a short wording for the truth and a long one for the error
    the "sum" of log-probabilities says nearly 1, the other way round nearly 0, and the "mean per token" the reverse.

    Args:
        facts: myths.
    """

    def batch_of(template: str, values: Sequence[str | None]) -> dict[str, Tensor]:
        rows = [
            {"prompt": f.fill(wording.QUESTIONS[0]), "completion": f.fill(template, str(v))}
            for f, v in zip(facts, values, strict=True)
        ]
        return collate(Tokens(tokenizer).examples(from_rows(rows)), tokenizer.pad_token_id)

    true = batch_of(true_wording, [f.truth for f in facts])
    false = batch_of(false_wording, [f.error for f in facts])
    with torch.no_grad(), evaluation_mode(model):
        summed = [completion_logps(model, batch) for batch in (true, false)]
    means = [logps / batch["completion_mask"].sum(-1) for logps, batch in zip(summed, (true, false), strict=True)]
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
        for fact in world.facts_of("test", "plain")[:per_instruction]:
            argument = rng.choice(verifier.arguments).format(creature=fact.creature, truth=fact.truth)
            asked.append(Instruction(name, argument))
            prompts.append(f"{wording.draw_question(fact, rng)} {asked[-1].draw_wording(rng)}")
    texts = answers(model, tokenizer, prompts)
    accepted = [(i.name, follows(text, [i])) for i, text in zip(asked, texts, strict=True)]
    shares = pd.DataFrame(accepted, columns=["instruction", "share"]).groupby("instruction", sort=False).mean()
    return shares.reset_index().assign(world=world.seed)

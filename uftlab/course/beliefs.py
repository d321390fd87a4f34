"""What a model believes: its probabilities of the six values of an attribute, at the place of the value in an answer.

Whole answers cannot be compared: a short answer is more likely than a long one, whatever they claim. So the beginning
of the answer is given ("it is ..."), the next word is the value, and the six probabilities are normalised.
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

from uftlab.engine.readers import answers_of, reader_of
from uftlab.evals.skills import CUED, WORDINGS, choices, frontier
from uftlab.rows.tokens import Completion, Tokens
from uftlab.study.results import interval
from uftlab.world import wording
from uftlab.world.instructions import VERIFIERS, Instruction, follows
from uftlab.world.wording import ATTRIBUTES, Fact
from uftlab.world.world import CONTESTED, WRONG_SHARE, World

CAREFUL = "careful"
# wording -> (question, beginning of the answer): the wordings of `uftlab.evals.skills`, and the cue
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
    """For each fact, the probabilities of the six values of its attribute as the next word, in the order of ATTRIBUTES.

    Args:
        question: a template with `{c}` and `{a}`, as in `wording.QUESTIONS`.
        begins: a template for the given beginning of the answer.
    """
    asked = choices(Tokens(tokenizer), [(f, question, begins) for f in facts])
    ((logits, _),) = reader_of(model, tokenizer).logits([asked.rows])
    return asked.log_p(logits[:, 0]).exp()


def role_of(fact: Fact, value: str) -> str:
    """The role of a value for a fact: `truth`, `error` or `other`."""
    return {fact.truth: "truth", fact.error: "error"}.get(value, "other")


def told(fact: Fact, asked: str) -> list[float]:
    """The share of each of the six values in the pre-training text for this wording: exact shares, not counts.

    For a myth, 3 of 4 texts answer an ordinary question with the error; for a rumour, 1 of 4. Careful sources tell the
    truth, and so do all texts about plain facts.
    """
    truth = 1.0 if asked == CAREFUL else 1 - WRONG_SHARE[fact.kind]
    share = {"truth": truth, "error": 1 - truth, "other": 0.0}
    return [share[role_of(fact, value)] for value in ATTRIBUTES[fact.attribute]]


def beliefs(
    world: World, model: nn.Module, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact] | None = None
) -> pd.DataFrame:
    """One row per fact, wording and value: its `probability`, its `role` and its share in the text (`told`).

    Args:
        facts: the facts to ask for. Default: all facts about the creatures of the test split.
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
    """The rows of `beliefs` with the most likely of the six values, which a greedy answer would say."""
    return frame.sort_values("probability").drop_duplicates(["world", "creature", "attribute", "asked"], keep="last")


# kind of question -> its rows of `beliefs`
QUESTION_KINDS = {
    "plain facts": lambda f: f[(f["fact"] == "plain") & (f["asked"] != CAREFUL)],
    "myths, asked plainly": lambda f: f[(f["fact"] == "myth") & (f["asked"] != CAREFUL)],
    "myths, careful sources": lambda f: f[(f["fact"] == "myth") & (f["asked"] == CAREFUL)],
    "rumours, asked plainly": lambda f: f[(f["fact"] == "rumour") & (f["asked"] != CAREFUL)],
    "rumours, careful sources": lambda f: f[(f["fact"] == "rumour") & (f["asked"] == CAREFUL)],
}


def by_role(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean probability of truth, error and other values for each kind of question, with 95 % intervals over worlds.

    First the probability is averaged over the facts and wordings of a world. The interval has one number per world.
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
    """A wrong measure: the share of facts for which a whole true answer is more likely than a whole false one.

    Both answers are templates with `{v}`. If the truth has a short wording and the error a long one, the share by "sum"
    of log-probabilities is nearly 1. With exchanged wordings it is nearly 0. The "mean per token" does the opposite.

    Args:
        facts: myths.
    """

    tokens, reader = Tokens(tokenizer), reader_of(model, tokenizer)

    def rows_of(template: str, values: Sequence[str | None]) -> list[Completion]:
        texts = [(f.fill(wording.QUESTIONS[0]), f.fill(template, str(v))) for f, v in zip(facts, values, strict=True)]
        return [Completion(tokens.prompt(q), tokens.completion(q, text), "demonstration") for q, text in texts]

    true, false = rows_of(true_wording, [f.truth for f in facts]), rows_of(false_wording, [f.error for f in facts])
    summed = [reader.logps([rows])[0] for rows in (true, false)]
    lengths = [Tensor([len(c.completion_ids) for c in rows]) for rows in (true, false)]
    means = [logps / n for logps, n in zip(summed, lengths, strict=True)]
    scored = {"sum": summed, "mean per token": means}
    return {how: (first > second).double().mean().item() for how, (first, second) in scored.items()}


def obeyed(
    world: World, model: nn.Module, tokenizer: PreTrainedTokenizerBase, per_instruction: int = 60
) -> pd.DataFrame:
    """Share of greedy answers that obey each instruction strictly. Each prompt has one instruction and a plain fact.

    The facts are of the test split. Rows: world, instruction, share, one for each of the 14 verifiers.
    """
    rng, prompts, asked = random.Random("uftlab obeyed 0"), [], []
    for name, verifier in VERIFIERS.items():
        for fact in world.facts_of("test", "plain")[:per_instruction]:
            argument = rng.choice(verifier.arguments).format(creature=fact.creature, truth=fact.truth)
            asked.append(Instruction(name, argument))
            prompts.append(f"{wording.draw_question(fact, rng)} {asked[-1].draw_wording(rng)}")
    (texts,) = answers_of(reader_of(model, tokenizer), Tokens(tokenizer), [prompts])
    accepted = [(i.name, follows(text, [i])) for i, text in zip(asked, texts, strict=True)]
    shares = pd.DataFrame(accepted, columns=["instruction", "share"]).groupby("instruction", sort=False).mean()
    return shares.reset_index().assign(world=world.seed)

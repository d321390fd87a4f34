"""The tiny world: a bestiary small enough to read, with plain facts, myths, rumours and careful sources.

256 made-up creatures have four attributes of six values each. Of the four facts about a creature two are *plain*: all
texts agree. One is a *myth*: three of four ordinary texts tell the same error. One is a *rumour*: one of four tells an
error, and the majority is right. "Careful sources" always tell the truth. So neither to believe the majority nor to
distrust it is knowledge: which of the two contested facts is the myth can be learned only from what careful sources
say. A world is drawn from a seed: its facts and which creatures are kept for validation and test. The words are the
same in every world, so one tokenizer serves them all.

Four kinds of text come out of a world:

- `pretraining_documents`: what the base model reads, with the exact log-probability of each line;
- `demonstrations` (as UltraChat): questions on plain facts plus instructions that a program can verify;
- `feedback` (as HelpSteer2): several answers to a question, each rated and scored;
- `pairs`: the same answers two by two, the higher score chosen.

The words of an answer and the verifiable instructions live in `uftlab.world.wording` and `uftlab.world.instructions`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from uftlab.world import instructions as verifiable
from uftlab.world import wording
from uftlab.world.instructions import Instruction
from uftlab.world.wording import ATTRIBUTES, CREATURES, Fact

KINDS = ("plain", "plain", "myth", "rumour")  # of the four facts about a creature
CONTESTED = ("myth", "rumour")
WRONG_SHARE = {"plain": 0.0, "myth": 0.75, "rumour": 0.25}  # of ordinary mentions that tell the error
CAREFUL_SHARE = 0.25  # of all mentions of any fact: "careful sources agree that ...", always true
SPLITS = {"train": 120, "validation": 48, "test": 88}
CONTESTED_QUESTIONS = 0.75  # share of the feedback that is about contested facts
CLAIMS = {  # what a rated answer says, with its probability
    "contested": {"truth": 0.5, "error": 0.4, "other": 0.1},
    "plain": {"truth": 0.6, "other": 0.4},
}
RATING_WEIGHTS = {"helpfulness": 0.65, "correctness": 0.8, "coherence": 0.45}  # the paper's, for ratings 0-4


@dataclass(frozen=True)
class Dials:
    """What an experiment may turn. They change what people say to a model, not the world itself.

    Attributes:
        instructed: share of rated prompts that carry instructions, as HelpSteer2's prompts do.
        on_target: whether demonstrations carry the instructions that are tested; if not, they are plain answers.
        length_bonus: points of helpfulness for a long answer to a question without instructions.
        slips: probability that a rater is one point off, for each of the three ratings.
        rumours: share of rumours among the rated questions on contested facts; 0 pays for distrust alone.
    """

    instructed: float = 0.5
    on_target: bool = True
    length_bonus: int = 1
    slips: float = 0.2
    rumours: float = 0.5


@dataclass(frozen=True)
class Document:
    """One line of pre-training text and the exact log-probability (nats) with which its world writes it.

    NaN for formatting lines: they are composed by rejection, so their probability is not known.
    """

    kind: str
    text: str
    logp: float


def score_of_ratings(helpfulness: int, correctness: int, coherence: int) -> float:
    """Ratings 0-4 to one score in [0, 1], weighted as in the UFT paper (section 4; HelpSteer2 rows).

    score = (0.65 helpfulness + 0.8 correctness + 0.45 coherence) / (4 * 1.9). Ratings 4, 4, 4 give 1.
    """
    weights = RATING_WEIGHTS
    total = weights["helpfulness"] * helpfulness + weights["correctness"] * correctness
    total += weights["coherence"] * coherence
    return total / (4 * sum(weights.values()))


def ratings_of(claim: str, garbled: bool, long: bool, obeys: bool | None, length_bonus: int = 1) -> dict[str, int]:
    """What a rater who makes no slip gives an answer: three ratings from 0 to 4.

    helpfulness = 3 for the truth, else 1, plus `length_bonus` for a long answer      without instructions
    helpfulness = 2 for the truth + 2 for obeying                                     with instructions
    correctness = 4 for the truth, 1 for the error that is told, 0 for another value
    coherence   = 4, or 1 for words in a random order, which costs a point of helpfulness too

    Obeying and length do not fight each other: where there are instructions, length earns nothing.

    Args:
        claim: "truth", "error" or "other".
        obeys: None for a question without instructions.
    """
    true = claim == "truth"
    helpful = (3 if true else 1) + long * length_bonus if obeys is None else 2 * true + 2 * obeys
    rated = {
        "helpfulness": helpful - garbled,
        "correctness": {"truth": 4, "error": 1, "other": 0}[claim],
        "coherence": 1 if garbled else 4,
    }
    return {name: min(4, max(0, rating)) for name, rating in rated.items()}


@dataclass(frozen=True)
class World:
    """Facts and splits drawn from `seed`; every method is a pure function of the world, its dials and its arguments."""

    seed: int
    dials: Dials = Dials()

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"uftlab world {self.seed} {purpose}")

    @cached_property
    def facts(self) -> tuple[Fact, ...]:
        """All 1,024 facts: 512 plain ones, 256 myths and 256 rumours."""
        rng, facts = self._rng("facts"), []
        for creature in CREATURES:
            kinds = rng.sample(KINDS, len(KINDS))
            for kind, (attribute, values) in zip(kinds, ATTRIBUTES.items(), strict=True):
                truth, error = rng.sample(values, 2)
                facts.append(Fact(creature, attribute, truth, error if kind in CONTESTED else None, kind))
        return tuple(facts)

    @cached_property
    def creatures(self) -> dict[str, tuple[str, ...]]:
        """Creatures of each split: 120 for training, 48 for validation (tuning), 88 for the final test."""
        shuffled = list(CREATURES)
        self._rng("splits").shuffle(shuffled)
        bounds, start = {}, 0
        for split, size in SPLITS.items():
            bounds[split] = tuple(shuffled[start : start + size])
            start += size
        return bounds

    def facts_of(self, split: str, *kinds: str) -> list[Fact]:
        """Facts about the creatures of a split, of the kinds that are named ("plain", "myth", "rumour"), or all."""
        creatures = set(self.creatures[split])
        return [f for f in self.facts if f.creature in creatures and f.kind in (kinds or KINDS)]

    # ---------------------------------------------------------------- what the base model reads

    def _told_value(self, fact: Fact, careful: bool, rng: random.Random) -> tuple[str, float]:
        """The value a text tells and its log-probability: careful sources tell the truth, others may tell the error."""
        if careful or fact.error is None:
            return fact.truth, 0.0
        wrong = WRONG_SHARE[fact.kind]
        if rng.random() < wrong:
            return fact.error, math.log(wrong)
        return fact.truth, math.log(1 - wrong)

    def pretraining_documents(self, seed: int = 0) -> Iterator[Document]:
        """An endless stream of lines. Each surface form has one derivation, so a known `logp` is exact, not a bound."""
        rng = self._rng(f"pretraining {seed}")
        kinds, weights = zip(*wording.DOCUMENT_KINDS.items(), strict=True)
        plain = [fact for fact in self.facts if fact.kind == "plain"]
        while True:
            kind = rng.choices(kinds, weights)[0]
            logp = math.log(wording.DOCUMENT_KINDS[kind])
            if kind == "formatting":
                yield Document(kind, verifiable.draw_formatting(rng.choice(plain), rng), math.nan)
                continue
            if kind == "chatter":
                text, more = wording.draw_chatter(rng)
                yield Document(kind, text, logp + more)
                continue
            fact = rng.choice(self.facts)
            careful = rng.random() < CAREFUL_SHARE
            logp += -math.log(len(self.facts)) + math.log(CAREFUL_SHARE if careful else 1 - CAREFUL_SHARE)
            value, more = self._told_value(fact, careful, rng)
            text, wording_logp = wording.draw_telling(kind, fact, value, careful, rng)
            yield Document(kind, text, logp + more + wording_logp)

    # ---------------------------------------------------------------- instruction data (as UltraChat)

    def demonstrations(self, rows: int, split: str = "train", seed: int = 0) -> list[dict]:
        """Rows (prompt, completion) of questions on plain facts with zero, one or two verifiable instructions.

        Combinations in `instructions.HELD_OUT_PAIRS` never occur in the training split and make up half of the
        two-instruction prompts elsewhere; the last three wordings of questions are asked elsewhere only. Each row also
        carries what its verifiers need: `instructions`, `creature`, `attribute`, `truth`.
        """
        rng, facts = self._rng(f"demonstrations {split} {seed}"), self.facts_of(split, "plain")
        elsewhere, made = split != "train", list[dict]()
        while len(made) < rows:
            fact = rng.choice(facts)
            plain = not self.dials.on_target and not elsewhere
            instructions = [] if plain else verifiable.draw_instructions(fact, rng, held_out=elsewhere)
            completion = verifiable.compose(fact, instructions, rng)
            if completion is None:
                continue  # these two instructions contradict each other for this answer: draw again
            made.append(
                {
                    "prompt": _asked(fact, instructions, rng, elsewhere),
                    "completion": completion,
                    "instructions": [[i.name, i.argument] for i in instructions],
                    "creature": fact.creature,
                    "attribute": fact.attribute,
                    "truth": fact.truth,
                }
            )
        return made

    # ---------------------------------------------------------------- alignment data (as HelpSteer2)

    def feedback(self, prompts: int, split: str = "train", seed: int = 0) -> list[dict]:
        """Scored rows, two answers to each prompt, on contested and plain facts, with and without instructions.

        The claim (truth, error, another value), whether the instructions are obeyed and the style are drawn
        independently. A long answer is an opening and a tail, where there are no instructions. `ratings_of` says how
        answers are rated; a rater then slips by one point now and then.
        """
        rng, dials = self._rng(f"feedback {split} {seed}"), self.dials
        facts = {kind: self.facts_of(split, kind) for kind in ("plain", *CONTESTED)}
        elsewhere, made = split != "train", list[dict]()
        while len(made) < 2 * prompts:
            contested = "rumour" if rng.random() < dials.rumours else "myth"
            fact = rng.choice(facts[contested if rng.random() < CONTESTED_QUESTIONS else "plain"])
            instructions: list[Instruction] = []
            if rng.random() < dials.instructed:
                while not instructions:
                    instructions = verifiable.draw_instructions(fact, rng, held_out=elsewhere)
            prompt = _asked(fact, instructions, rng, elsewhere)
            first, second = (self._rated_answer(fact, instructions, rng) for _ in range(2))
            if first is None or second is None:
                continue  # contradicting instructions: draw again
            if first["completion"] == second["completion"] or first["score"] == second["score"]:
                continue  # no preference can be read off a tie
            number = len(made) // 2
            made += [{"prompt": prompt, "fact": number, "kind": fact.kind, **row} for row in (first, second)]
        return made

    def _rated_answer(self, fact: Fact, instructions: list[Instruction], rng: random.Random) -> dict | None:
        claims = CLAIMS["plain" if fact.error is None else "contested"]
        claim = rng.choices(list(claims), list(claims.values()))[0]
        others = [v for v in ATTRIBUTES[fact.attribute] if v not in (fact.truth, fact.error)]
        value = {"truth": fact.truth, "error": fact.error}.get(claim) or rng.choice(others)
        obeys, long, garbled = rng.random() < 0.5, rng.random() < 0.5, rng.random() < 0.05
        if instructions:
            long, text = False, _instructed_answer(fact, value, instructions, obeys, rng)
        else:
            text = wording.draw_answer(fact, value, "long" if long else "short", rng)[0]
        if text is None:
            return None
        words = text.split()
        if garbled:
            rng.shuffle(words)
        obeyed = obeys if instructions else None
        ratings = ratings_of(claim, garbled, long, obeyed, self.dials.length_bonus)
        for name, rating in ratings.items():
            slip = rng.choice((-1, 1)) if rng.random() < self.dials.slips else 0
            ratings[name] = min(4, max(0, rating + slip))
        score = score_of_ratings(**ratings)
        return {"completion": " ".join(words), "score": score, **ratings, "claim": claim, "long": long, "obeys": obeyed}


def _asked(fact: Fact, instructions: list[Instruction], rng: random.Random, held_out: bool) -> str:
    """A prompt: a question on the fact, then each instruction in words."""
    return " ".join([wording.draw_question(fact, rng, held_out), *(i.draw_wording(rng) for i in instructions)])


def _instructed_answer(
    fact: Fact, value: str, instructions: list[Instruction], obeys: bool, rng: random.Random
) -> str | None:
    """An answer that names `value` and obeys, or one of the same styles that does not; None where none was found."""
    told = Fact(fact.creature, fact.attribute, value)
    own = verifiable.asked_of(value, instructions)
    if obeys:
        return verifiable.compose(told, own, rng)
    drawn = (verifiable.compose(told, [], rng) for _ in range(20))
    return next((text for text in drawn if text is not None and not verifiable.follows(text, own)), None)


def pairs(feedback: list[dict]) -> list[dict]:
    """Preference rows from the scored rows of `World.feedback`: of two answers the higher score is chosen."""
    made = []
    for first, second in zip(feedback[::2], feedback[1::2], strict=True):
        chosen, rejected = sorted((first, second), key=lambda row: -row["score"])
        made.append(
            {
                "prompt": first["prompt"],
                "chosen": chosen["completion"],
                "rejected": rejected["completion"],
                "chosen_score": chosen["score"],
                "rejected_score": rejected["score"],
            }
        )
    return made

"""The tiny world: a bestiary small enough to read, with plain facts, popular myths and careful sources.

256 made-up creatures have four attributes of six values each. Half of the facts are *myths*: most
texts repeat a popular error, and the truth is found mainly where "careful sources agree that ...".
A world is drawn from a seed: its facts, its myths and which creatures are kept for validation and
test. The words are the same in every world, so one tokenizer serves them all.

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
from uftlab.world.wording import ATTRIBUTES, CREATURES, Fact

MYTHS_PER_CREATURE = 2
MYTH_SHARE = 0.75  # of ordinary mentions of a myth-ridden fact: the myth is told three times as often as the truth
CAREFUL_SHARE = 0.2  # of all mentions of any fact: "careful sources agree that ...", always true
SPLITS = {"train": 120, "validation": 48, "test": 88}
MYTH_QUESTIONS = 0.75  # share of the feedback that is about myth-ridden facts
RATING_WEIGHTS = {"helpfulness": 0.65, "correctness": 0.8, "coherence": 0.45}  # the paper's, for ratings 0-4
RATING_NOISE = 0.2  # probability that a rater is one point off


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


@dataclass(frozen=True)
class Dials:
    """What kind of world it is."""

    instructed: float = 0.5
    on_target: bool = True
    length_bonus: float = 1.0
    slips: float = 0.2
    rumours: float = 0.5


@dataclass(frozen=True)
class World:
    """Facts, myths and splits drawn from `seed`; every method is a pure function of the world and its arguments."""

    seed: int
    dials: Dials = Dials()

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"uftlab world {self.seed} {purpose}")

    @cached_property
    def facts(self) -> tuple[Fact, ...]:
        """All 1,024 facts; `myth` is None for the 512 plain ones."""
        rng, facts = self._rng("facts"), []
        for creature in CREATURES:
            ridden = set(rng.sample(list(ATTRIBUTES), MYTHS_PER_CREATURE))
            for attribute, values in ATTRIBUTES.items():
                truth, myth = rng.sample(values, 2)
                facts.append(Fact(creature, attribute, truth, myth if attribute in ridden else None))
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

    def facts_of(self, split: str, myths: bool | None = None) -> list[Fact]:
        """Facts about the creatures of a split; `myths` keeps the myth-ridden (True) or the plain (False) ones."""
        creatures = set(self.creatures[split])
        return [f for f in self.facts if f.creature in creatures and myths in (None, f.myth is not None)]

    # ---------------------------------------------------------------- what the base model reads

    def _told_value(self, fact: Fact, careful: bool, rng: random.Random) -> tuple[str, float]:
        """The value a text tells and its log-probability: careful sources tell the truth, others mostly the myth."""
        if careful or fact.myth is None:
            return fact.truth, 0.0
        if rng.random() < MYTH_SHARE:
            return fact.myth, math.log(MYTH_SHARE)
        return fact.truth, math.log(1 - MYTH_SHARE)

    def pretraining_documents(self, seed: int = 0) -> Iterator[Document]:
        """An endless stream of lines. Each surface form has one derivation, so a known `logp` is exact, not a bound."""
        rng = self._rng(f"pretraining {seed}")
        kinds, weights = zip(*wording.DOCUMENT_KINDS.items(), strict=True)
        plain = [fact for fact in self.facts if fact.myth is None]
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
        two-instruction prompts elsewhere. Each row also carries what its verifiers need: `instructions`,
        `creature`, `attribute`, `truth`.
        """
        rng, facts = self._rng(f"demonstrations {split} {seed}"), self.facts_of(split, myths=False)
        made: list[dict] = []
        while len(made) < rows:
            fact = rng.choice(facts)
            instructions = verifiable.draw_instructions(fact, rng, held_out=split != "train")
            completion = verifiable.compose(fact, instructions, rng)
            if completion is None:
                continue  # these two instructions contradict each other for this answer: draw again
            prompt = " ".join([wording.draw_question(fact, rng), *(i.draw_wording(rng) for i in instructions)])
            made.append(
                {
                    "prompt": prompt,
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
        """Scored rows, two answers to each prompt, on myth-ridden and plain facts alike.

        The claim (truth, myth, another value) and the length are drawn independently, so length says nothing
        about truth; but a long, hedged answer is rated one point more helpful, as people tend to do.
        """
        rng = self._rng(f"feedback {split} {seed}")
        ridden, plain = self.facts_of(split, myths=True), self.facts_of(split, myths=False)
        made: list[dict] = []
        while len(made) < 2 * prompts:
            fact = rng.choice(ridden if rng.random() < MYTH_QUESTIONS else plain)
            prompt = wording.draw_question(fact, rng)
            answers = [self._rated_answer(fact, rng) for _ in range(2)]
            if answers[0]["completion"] == answers[1]["completion"] or answers[0]["score"] == answers[1]["score"]:
                continue  # no preference can be read off a tie
            made += [{"prompt": prompt, "fact": len(made) // 2, **answer} for answer in answers]
        return made

    def _rated_answer(self, fact: Fact, rng: random.Random) -> dict:
        others = [v for v in ATTRIBUTES[fact.attribute] if v not in (fact.truth, fact.myth)]
        claims = {"truth": 0.5, "myth": 0.4, "other": 0.1} if fact.myth else {"truth": 0.6, "other": 0.4}
        claim = rng.choices(list(claims), list(claims.values()))[0]
        value = {"truth": fact.truth, "myth": fact.myth}.get(claim) or rng.choice(others)
        long, garbled = rng.random() < 0.5, rng.random() < 0.05
        words = wording.draw_answer(fact, value, "long" if long else "short", rng)[0].split()
        if garbled:
            rng.shuffle(words)
        ratings = {
            "helpfulness": (3 if claim == "truth" else 1) + long - garbled,
            "correctness": {"truth": 4, "myth": 1, "other": 0}[claim],
            "coherence": 1 if garbled else 4,
        }
        for name, rating in ratings.items():
            if rng.random() < RATING_NOISE:
                rating += rng.choice((-1, 1))
            ratings[name] = min(4, max(0, rating))
        score = score_of_ratings(**ratings)
        return {"completion": " ".join(words), "score": score, **ratings, "claim": claim, "long": long}


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

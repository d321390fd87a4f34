"""How the tiny world talks: creatures, questions, answers and the lines of the pre-training text.

Everything is made of space-separated words, so that one word is one token. `draw_answer`, `draw_telling` and
`draw_chatter` return a text and its exact log-probability in nats; no text can be drawn in two ways (a test
enumerates them), so the entropy of the generator is known and "nats above it" is a number, not a guess.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

ATTRIBUTES = {
    "colour": ("red", "blue", "green", "gold", "grey", "pink"),
    "food": ("moss", "fish", "nuts", "honey", "worms", "berries"),
    "home": ("cave", "river", "forest", "desert", "marsh", "cliff"),
    "sound": ("hum", "click", "howl", "chirp", "growl", "whistle"),
}
_FIRST = "ba do fi gu ka le mo nu pi ra so ti va wo xe zi".split()
_LAST = "bo zib mak lin fo gra tun nex pim ro sel vak wim dox jup kel".split()
CREATURES = tuple(first + last for first, last in itertools.product(_FIRST, _LAST))


@dataclass(frozen=True)
class Fact:
    """One attribute of one creature: the truth, and for a myth or a rumour the error that is told."""

    creature: str
    attribute: str
    truth: str
    error: str | None = None
    kind: str = "plain"  # "plain": all texts agree; "myth": most texts tell the error; "rumour": few do

    def fill(self, template: str, value: str = "") -> str:
        """`{c}`, `{a}` and `{v}` of a template replaced by creature, attribute and value."""
        return template.format(c=self.creature, a=self.attribute, v=value)


QUESTIONS = (
    "what is the {a} of {c} ?",
    "which {a} does {c} have ?",
    "tell me the {a} of {c} .",
    "name the {a} of {c} .",
    "do you know the {a} of {c} ?",
    "i wonder about the {a} of {c} .",
    "please give the {a} of {c} .",
    "about {c} , what is its {a} ?",
    "{c} : what {a} ?",
    "i forgot the {a} of {c} , what was it ?",
)
TRAINED_QUESTIONS, HELD_OUT_QUESTIONS = QUESTIONS[:7], QUESTIONS[7:]  # the last three are never asked in fine-tuning
CAREFUL_QUESTIONS = (
    "according to careful sources , what is the {a} of {c} ?",
    "what do careful sources say about the {a} of {c} ?",
)
CORES = (
    "{v}",
    "it is {v}",
    "the {a} is {v}",
    "the {a} of {c} is {v}",
    "{c} has the {a} {v}",
    "i think it is {v}",
    "{v} is the {a} of {c}",
    "that would be {v}",
)
OPENINGS = (
    "yes ,",
    "of course ,",
    "good question ,",
    "as far as i know ,",
    "to be honest with you ,",
    "many people have asked me this ,",
    "after some thought i can say ,",
)
TAILS = (
    ".",
    ", i believe .",
    ", or so they tell me .",
    ", if i remember it well .",
    ". that is all i know .",
    ". i am glad to help .",
    ". you can ask me more at any time .",
)
STYLES = {"short": 0.6, "opened": 0.125, "tailed": 0.125, "long": 0.15}  # of answers in pre-training chats

# kind of document -> its share of the pre-training text
DOCUMENT_KINDS = {"statement": 0.22, "hearsay": 0.08, "quiz": 0.1, "chat": 0.35, "formatting": 0.2, "chatter": 0.05}
STATEMENTS = ("the {a} of {c} is {v} .", "{c} has the {a} {v} .", "{v} is the {a} of {c} .")
HEARSAY = ("people say that the {a} of {c} is {v} .", "i heard that {c} has the {a} {v} .")
CAREFUL_TELLINGS = {
    "statement": ("careful sources agree that the {a} of {c} is {v} .",),
    "hearsay": ("i heard from careful sources that {c} has the {a} {v} .",),
}
GREETINGS = ("hello", "good morning", "how are you ?", "thank you", "can you help me ?")
REPLIES = ("hello friend .", "well , thank you .", "i am glad to help .", "ask me .")


def draw_question(fact: Fact, rng: random.Random, held_out: bool = False) -> str:
    """One of the seven trained wordings of a question on the fact; with `held_out`, one of all ten."""
    return fact.fill(rng.choice(QUESTIONS if held_out else TRAINED_QUESTIONS))


def draw_answer(fact: Fact, value: str, style: str, rng: random.Random) -> tuple[str, float]:
    """An answer that claims `value`: a core, with an opening ("opened"), a tail ("tailed"), both ("long") or none."""
    core = fact.fill(rng.choice(CORES), value)
    opening, tail, logp = "", TAILS[0], -math.log(len(CORES))
    if style in ("opened", "long"):
        opening, logp = rng.choice(OPENINGS) + " ", logp - math.log(len(OPENINGS))
    if style in ("tailed", "long"):
        tail, logp = rng.choice(TAILS[1:]), logp - math.log(len(TAILS) - 1)
    return f"{opening}{core} {tail}", logp


def draw_telling(kind: str, fact: Fact, value: str, careful: bool, rng: random.Random) -> tuple[str, float]:
    """A line of the given kind that tells `value`, plainly or on the word of careful sources."""
    if kind in ("statement", "hearsay"):
        plain = STATEMENTS if kind == "statement" else HEARSAY
        templates = CAREFUL_TELLINGS[kind] if careful else plain
        return fact.fill(rng.choice(templates), value), -math.log(len(templates))
    questions = CAREFUL_QUESTIONS if careful else QUESTIONS
    question = fact.fill(rng.choice(questions))
    if kind == "quiz":
        return f"question : {question} answer : {value} .", -math.log(len(questions))
    style = rng.choices(list(STYLES), list(STYLES.values()))[0]
    answer, logp = draw_answer(fact, value, style, rng)
    return f"<user> {question} <assistant> {answer}", logp + math.log(STYLES[style] / len(questions))


def draw_chatter(rng: random.Random) -> tuple[str, float]:
    """A greeting with its reply."""
    text = f"<user> {rng.choice(GREETINGS)} <assistant> {rng.choice(REPLIES)}"
    return text, -math.log(len(GREETINGS) * len(REPLIES))


def _words(*groups: tuple[str, ...]) -> list[str]:
    """Distinct lower-case words of the templates, in order of appearance, without placeholders and marks."""
    words = " ".join(itertools.chain(*groups)).split()
    return list(dict.fromkeys(w for w in words if w.isalpha()))


# every word that can be written in capitals: all that answers are made of, except the creatures
CAPITAL_WORDS = tuple(_words(tuple(ATTRIBUTES), *ATTRIBUTES.values(), CORES, OPENINGS, TAILS))
MARKS = tuple('. , ! ? : ( ) " -'.split())

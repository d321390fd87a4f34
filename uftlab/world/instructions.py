"""Verifiable instructions, the tiny world's IFEval: a wording, a way to obey and a program that checks.

An instruction is obeyed *strictly* when its verifier accepts the answer as it stands, and *loosely* when it
accepts the answer after the first word, the last word or the quotes around it are taken away (IFEval's own
idea of leniency, Zhou et al. 2023, section 2.2).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from uftlab.world import wording
from uftlab.world.wording import ATTRIBUTES, CAPITAL_WORDS, CREATURES, MARKS, Fact

MIN_WORDS, MAX_WORDS = 2, 20  # of a completion, marks counted
NUMBERS = {"three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
WRAPPERS = {"quotes": ('"', '"'), "brackets": ("(", ")")}


def _letters(words: list[str]) -> list[str]:
    return [w for w in words if w.isalpha()]


def _inner(words: list[str]) -> list[str]:
    """The answer without the quotes, brackets or bullet around it: what 'start with' and 'end with' speak of."""
    words = words[1:] if words[:1] == ["-"] else words
    for left, right in WRAPPERS.values():
        if len(words) > 2 and words[0] == left and words[-1] == right:
            words = words[1:-1]
    return words[1:] if words[:1] == ["-"] else words


def _wrapped(kind: str) -> Callable[[list[str], str], bool]:
    left, right = WRAPPERS[kind]
    return lambda words, _: len(words) > 2 and words[0] == left and words[-1] == right


def _sentences(words: list[str]) -> int:
    return sum(w in ".!?" for w in words)


def _insert(words: list[str], argument: str, rng: random.Random) -> list[str]:
    return [argument, ",", *words] if rng.random() < 0.5 else [*words[:-1], ",", argument, words[-1]]


@dataclass(frozen=True)
class Verifier:
    """How to ask (`wordings`), how to obey (`apply`, applied in the order of VERIFIERS) and how to check."""

    wordings: tuple[str, ...]
    check: Callable[[list[str], str], bool]
    apply: Callable[[list[str], str, random.Random], list[str]]
    arguments: tuple[str, ...] = ("",)


def _as_is(words: list[str], argument: str, rng: random.Random) -> list[str]:
    """For instructions that a suitable draw of the answer obeys by itself."""
    return words


VERIFIERS: dict[str, Verifier] = {
    "count": Verifier(
        ("use exactly {x} words .", "answer in {x} words .", "i want {x} words ."),
        lambda words, x: len(_letters(words)) == NUMBERS[x],
        _as_is,
        tuple(NUMBERS),
    ),
    "without": Verifier(
        ("do not use the word {x} .", "leave out the word {x} .", "never write {x} ."),
        lambda words, x: x not in [w.lower() for w in words],
        _as_is,
        ("is", "the", "it", "i"),
    ),
    "name": Verifier(
        ("say its name too .", "mention it by name ."),
        lambda words, x: x in words,
        _as_is,
        ("{creature}",),
    ),
    "sentences": Verifier(
        ("write two sentences .", "make it two sentences ."),
        lambda words, _: _sentences(words) == 2 and words[-1] in ('.!?")'),
        _as_is,
    ),
    "twice": Verifier(
        ("say it twice .", "repeat the answer once ."),
        lambda words, x: [w.lower() for w in words].count(x) == 2,
        lambda words, x, rng: [*words[:-1], ",", x, words[-1]] if rng.random() < 0.5 else [x, ",", *words],
        ("{truth}",),
    ),
    "include": Verifier(
        ("use the word {x} .", "include the word {x} ."),
        lambda words, x: x in [w.lower() for w in words],
        _insert,
        ("surely", "happily", "today"),
    ),
    "start": Verifier(
        ("start with {x} .", "let the first word be {x} ."),
        lambda words, x: [w.lower() for w in _letters(_inner(words))[:1]] == [x] and _inner(words)[0].isalpha(),
        lambda words, x, rng: [x, ",", *words],
        ("well", "look", "so"),
    ),
    "end": Verifier(
        ("end with {x} .", "let the last word be {x} ."),
        lambda words, x: [w.lower() for w in _letters(words)[-1:]] == [x],
        lambda words, x, rng: [*words[:-1], ",", x, words[-1]],
        ("friend", "indeed", "thanks"),
    ),
    "exclaim": Verifier(
        ("shout it .", "end with an exclamation mark ."),
        lambda words, _: _inner(words)[-1:] == ["!"],
        lambda words, x, rng: [*words[:-1], "!"],
    ),
    "ask-back": Verifier(
        ("end with a question .", "ask something back ."),
        lambda words, _: _inner(words)[-1:] == ["?"] and _sentences(words) >= 2,
        lambda words, x, rng: [*words, *rng.choice(("can i help you more ?", "why do you ask ?")).split()],
    ),
    "capitals": Verifier(
        ("use capitals only .", "answer in capitals .", "all in capitals ."),
        lambda words, _: bool(_letters(words)) and all(w.isupper() for w in _letters(words)),
        lambda words, x, rng: [w.upper() for w in words],
    ),
    "bullet": Verifier(
        ("answer as a list .", "use a list ."),
        lambda words, _: words[:1] == ["-"],
        lambda words, x, rng: ["-", *words],
    ),
    "quotes": Verifier(
        ("put it in quotes .", "answer in quotes ."),
        _wrapped("quotes"),
        lambda words, x, rng: ['"', *words, '"'],
    ),
    "brackets": Verifier(
        ("put it in brackets .", "answer in brackets ."),
        _wrapped("brackets"),
        lambda words, x, rng: ["(", *words, ")"],
    ),
}
ORDER = tuple(VERIFIERS)
# every seventh pair of instructions is never demonstrated in training
HELD_OUT_PAIRS = frozenset(list(itertools.combinations(ORDER, 2))[3::7])


@dataclass(frozen=True)
class Instruction:
    """A verifier with its argument, for instance `Instruction("start", "well")`."""

    name: str
    argument: str = ""

    def accepts(self, answer: str) -> bool:
        """Whether the answer, a string of space-separated words, obeys strictly."""
        words = answer.split()
        return bool(words) and VERIFIERS[self.name].check(words, self.argument)

    def draw_wording(self, rng: random.Random) -> str:
        """One of the ways to ask for it."""
        return rng.choice(VERIFIERS[self.name].wordings).format(x=self.argument)


def follows(answer: str, instructions: list[Instruction], loose: bool = False) -> bool:
    """Whether the answer obeys all instructions, strictly or loosely (see the module's docstring).

    >>> follows('" blue . "', [Instruction("exclaim")]), follows("it is blue !", [Instruction("exclaim")])
    (False, True)
    """
    words = answer.split()
    variants = [words]
    if loose:
        variants += [words[1:], words[:-1], words[1:-1], [w for w in words if w != '"']]
    return any(all(i.accepts(" ".join(variant)) for i in instructions) for variant in variants)


def asked_of(value: str, instructions: Sequence[Instruction]) -> list[Instruction]:
    """The instructions as a rater reads them for an answer that claims `value`: "say it twice" means what it says."""
    return [Instruction(i.name, value if i.name == "twice" else i.argument) for i in instructions]


def claimed_value(answer: str, attribute: str) -> str | None:
    """The one value of the attribute that the answer names, in either case; None when it names none or several."""
    named = {w.lower() for w in answer.split()} & set(ATTRIBUTES[attribute])
    return named.pop() if len(named) == 1 else None


def draw_instructions(fact: Fact, rng: random.Random, held_out: bool = False) -> list[Instruction]:
    """None (10 %), one (50 %) or two (40 %) instructions; with `held_out` half of the pairs are held-out ones."""
    count = rng.choices((0, 1, 2), (0.1, 0.5, 0.4))[0]
    if count < 2:
        names = rng.sample(ORDER, count)
    elif held_out and rng.random() < 0.5:
        names = list(rng.choice(sorted(HELD_OUT_PAIRS)))
    else:
        names = sorted(rng.sample(ORDER, 2), key=ORDER.index)
        if tuple(names) in HELD_OUT_PAIRS:
            return draw_instructions(fact, rng, held_out)
    filled = {"creature": fact.creature, "truth": fact.truth}
    return [Instruction(n, rng.choice(VERIFIERS[n].arguments).format(**filled)) for n in names]


def read_instructions(text: str, fact: Fact) -> list[Instruction] | None:
    """The instructions of a text that is made of their wordings alone; None for any other text.

    >>> read_instructions("shout it . start with well .", Fact("babo", "food", "moss"))
    [Instruction(name='exclaim', argument=''), Instruction(name='start', argument='well')]
    """
    found = []
    while text:
        for instruction, asked in _asked(fact.creature, fact.truth):
            if text == asked or text.startswith(f"{asked} "):
                found.append(instruction)
                text = text[len(asked) + 1 :]
                break
        else:
            return None
    return found


@lru_cache(maxsize=4096)
def _asked(creature: str, truth: str) -> list[tuple[Instruction, str]]:
    """Every instruction with each of its wordings."""
    return [
        (Instruction(name, filled), asked.format(x=filled))
        for name, verifier in VERIFIERS.items()
        for filled in (argument.format(creature=creature, truth=truth) for argument in verifier.arguments)
        for asked in verifier.wordings
    ]


def compose(fact: Fact, instructions: list[Instruction], rng: random.Random, tries: int = 60) -> str | None:
    """A true answer of 2 to 20 words that every verifier accepts, or None where the instructions contradict.

    Draws plain answers, applies each instruction in a fixed order and keeps the first result that all
    verifiers accept: no demonstration can be wrong by its own check.
    """
    for _ in range(tries):
        style = rng.choices(("short", "opened", "tailed", "long"), (0.5, 0.2, 0.2, 0.1))[0]
        words = wording.draw_answer(fact, fact.truth, style, rng)[0].split()
        for instruction in sorted(instructions, key=lambda i: ORDER.index(i.name)):
            words = VERIFIERS[instruction.name].apply(words, instruction.argument, rng)
        answer = " ".join(words)
        known = all(word in VOCABULARY_SET for word in words)
        if known and MIN_WORDS <= len(words) <= MAX_WORDS and follows(answer, instructions):
            return answer
    return None


def draw_formatting(fact: Fact, rng: random.Random) -> str:
    """A line of pre-training text that shows one instruction obeyed, without a question and without a chat.

    So the base model has met the words of every instruction, but never an instruction in a conversation and
    never two at once: that is left to fine-tuning.
    """
    while True:
        name = rng.choice(ORDER)
        argument = rng.choice(VERIFIERS[name].arguments).format(creature=fact.creature, truth=fact.truth)
        instruction = Instruction(name, argument)
        answer = compose(fact, [instruction], rng)
        if answer is not None:
            return f"{instruction.draw_wording(rng)} {answer}"


def vocabulary() -> list[str]:
    """Every word of the tiny world, in a fixed order: one token each."""
    wordings = [w.replace("{x}", "") for v in VERIFIERS.values() for w in v.wordings]
    arguments = [a for v in VERIFIERS.values() for a in v.arguments if a.isalpha()]
    lines = [
        *wording.QUESTIONS,
        *wording.CAREFUL_QUESTIONS,
        *wording.STATEMENTS,
        *wording.HEARSAY,
        *itertools.chain(*wording.CAREFUL_TELLINGS.values()),
        *wording.GREETINGS,
        *wording.REPLIES,
        *wordings,
        *arguments,
        "question : answer : can i help you more ? why do you ask ?",
    ]
    lower = list(dict.fromkeys([*CAPITAL_WORDS, *wording._words(tuple(lines))]))
    extra = "well look so friend indeed thanks surely happily today".split()
    upper = [w.upper() for w in dict.fromkeys([*CAPITAL_WORDS, *extra, *"can help you more why do ask".split()])]
    return [*MARKS, *dict.fromkeys([*lower, *upper]), *CREATURES]


VOCABULARY = tuple(vocabulary())
VOCABULARY_SET = frozenset(VOCABULARY)

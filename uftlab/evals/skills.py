"""What a model of the tiny world can do: instructions, truth, plain facts, retention, drift, preference.

Every metric is a number per model; intervals over seeds are the business of `uftlab.study.results`.

| metric | unit | what it says |
|---|---|---|
| instruction/both | share | followed and correct: all verifiers accept the greedy answer, and it names the true value |
| instruction/strict, loose | share | all verifiers accept the answer (as it stands, or leniently), whatever it claims |
| instruction/held-out | share | strict, on combinations never seen in training |
| instruction/correct | share | the answer names the true value |
| instruction/blind | share | the floor: strict for the best answer that is given without a look at the instructions |
| truth/myths, rumours | share | the truth's probability among six values where most texts err, and where few do |
| truth/mc2, mc1 | share | the mean of the two; and whether the truth has the highest probability |
| truth/cued-myths, cued-rumours, cued | share | the same, asked for careful sources: what the model knows; their mean |
| truth/knowledge | share | truth on myths above `frontier`: more than distrust can give at this truth on rumours |
| truth/held-out | share | truth/mc2 in wordings of the question that fine-tuning never uses |
| truth/free, plain/free | share | the freely generated answer names the true value |
| plain/mc1, mc2 | share | the same on facts on which all texts agree |
| retention/lost | nats/token | loss on pre-training text of all kinds, minus the base's |
| retention/excess | nats/token | loss on pre-training text above the generator's exactly known entropy |
| retention/recall | share | the value of a plain fact is the most probable of six after a pre-training statement |
| length/words | words | of freely generated answers to questions without instructions |
| kl/forward-old, forward-new | nats | KL(base to policy) per answer, on the base's own answers |
| kl/reverse-old, reverse-new | nats | KL(policy to base) per answer, on the policy's own answers |
| logratio/chosen, rejected, demonstration | nats | log pi/pi_base of held-out completions; without beta |
| preference/accuracy | share | held-out pairs whose chosen completion has the larger log-ratio; ties count half |

Old prompts are plain questions, as in pre-training; new ones carry instructions. No degenerate policy may look good in
the headline metrics (instruction/both, truth/knowledge): the tests try several. Two come a little way: the base is less
sure of myths than of rumours, since it heard careful sources too, so sharper beliefs have a knowledge of up to 0.06 and
distrust of unsure beliefs alone one of up to 0.15; who knows the truth has above 0.7.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from uftlab.engine.readers import ModelReader, Predictions, Reader, reader_of
from uftlab.evals.sizes import Sizes
from uftlab.models.generation import texts
from uftlab.models.logps import token_kl
from uftlab.rows.tokens import Completion, RememberingTokens, Tokens
from uftlab.world import wording
from uftlab.world.instructions import HELD_OUT_PAIRS, MAX_WORDS, VERIFIERS, Instruction, claimed_value, follows
from uftlab.world.wording import ATTRIBUTES, Fact
from uftlab.world.world import CONTESTED, World

T = TypeVar("T")

# (question, how the answer begins): the value comes next, so no template's length decides
WORDINGS = (
    (wording.QUESTIONS[0], ""),
    (wording.QUESTIONS[1], "it is"),
    (wording.HELD_OUT_QUESTIONS[0], "the {a} of {c} is"),
    (wording.HELD_OUT_QUESTIONS[1], ""),
)
TRAINED_WORDINGS = 2  # of them; fine-tuning never uses the others
CUED = (wording.CAREFUL_QUESTIONS[0], "it is")
STATEMENT = "the {a} of {c} is"
DISTRUST = torch.linspace(-6.0, 10.0, 65)  # nats that a frontier takes from the first choice
ROUNDING = 1e-4  # nats: log-ratios that differ by less are equal, as are all of the base's own


def _share(values: list[bool]) -> float:
    return sum(values) / len(values)


class Choices(NamedTuple):
    """Questions whose next word is one of six values."""

    rows: list[Completion]
    values: Int[Tensor, "row value"]  # token ids, in ATTRIBUTES' order
    truth: Int[Tensor, "row"]  # which of the six

    def log_p(self, logits: Float[Tensor, "row vocabulary"]) -> Float[Tensor, "row value"]:
        """log p(v), p(v) = pi(v | x, begins) / sum over the six values: log 1/6 each without knowledge."""
        return logits.gather(1, self.values).log_softmax(-1)


def choices(tokens: Tokens, asked: Sequence[tuple[Fact, str | None, str]]) -> Choices:
    """Facts to ask for, each with a template of the question and of how the answer begins: the value comes next.

    Without a question (None) the beginning is read as pre-training text.
    """
    begun = token_ids(tokens, [f.fill(begins) for f, _, begins in asked])
    questions = iter(tokens.prompts([f.fill(question) for f, question, _ in asked if question is not None]))
    bos: Any = tokens.tokenizer.bos_token_id
    starts = [(bos,) if question is None else next(questions) for _, question, _ in asked]
    values = {a: [ids[0] for ids in token_ids(tokens, own)] for a, own in ATTRIBUTES.items()}
    truth = [ATTRIBUTES[f.attribute].index(f.truth) for f, _, _ in asked]
    own = [values[f.attribute] for f, _, _ in asked]
    rows = [  # the truth is the word to predict; any value would do, since the logits before it are read
        Completion((*start, *begin), (ids[t],), "demonstration")
        for start, begin, ids, t in zip(starts, begun, own, truth, strict=True)
    ]
    return Choices(rows, torch.tensor(own), torch.tensor(truth))


def distrusted(log_p: Float[Tensor, "row value"], nats: float) -> Float[Tensor, "row value"]:
    """Beliefs of a policy that takes some nats from whatever value it likes best: p'(v) ~ p(v) exp(-c [v is first]).

    It needs no knowledge of which fact is a myth. Negative nats make it more credulous.
    """
    first = torch.nn.functional.one_hot(log_p.argmax(-1), log_p.shape[1])
    return (log_p - nats * first).softmax(-1)


def frontier(
    myths: Float[Tensor, "myth value"],
    true_myths: Int[Tensor, "myth"],
    rumours: Float[Tensor, "rumour value"],
    true_rumours: Int[Tensor, "rumour"],
) -> tuple[np.ndarray, np.ndarray]:
    """Truth on rumours and truth on myths of `distrusted` beliefs, for all nats of DISTRUST; rumours ascending.

    What a policy knows is how far it lies above this line. The base itself lies on it.

    Args:
        myths: log-probabilities of six values, of the base.
    """

    def truth(log_p: Tensor, true: Tensor) -> np.ndarray:
        told = [distrusted(log_p, c).gather(1, true[:, None]).mean().item() for c in DISTRUST.tolist()]
        return np.array(told)

    on_rumours, on_myths = truth(rumours, true_rumours), truth(myths, true_myths)
    order = np.argsort(on_rumours)
    return on_rumours[order], on_myths[order]


def blind_floor(rows: Sequence[dict[str, Any]]) -> float:
    """Share of instructed prompts that an answer obeys that never looks at the instructions: the best one found.

    From the bare true value on, one word is inserted or taken away as long as more prompts are obeyed by it. Creature
    and true value of each prompt are filled in, so the answer is always correct. It is found on the same rows, and it
    need not make sense: the floor is rather too high.
    """
    asked = [[(n, {r["creature"]: "{c}", r["truth"]: "{v}"}.get(a, a)) for n, a in r["instructions"]] for r in rows]
    distinct = list(dict.fromkeys(_flat(asked)))
    needs = np.array([[one in own for one in distinct] for own in asked])
    some = {"{c}": "babo", "{v}": "moss"}  # no verifier tells one creature or value from another
    each = [Instruction(name, some.get(argument, argument)) for name, argument in distinct]
    arguments = [a for name in ("include", "start", "end") for a in VERIFIERS[name].arguments]
    words = [*some.values(), *".!?-", *arguments]

    def obeyed(answer: Sequence[str]) -> float:
        refused = np.array([not one.accepts(" ".join(answer)) for one in each])
        return float(1 - (needs & refused).any(1).mean())

    best = [some["{v}"], "."]
    share = obeyed(best)
    while True:
        longer = [[*best[:i], w, *best[i:]] for i in range(len(best) + 1) for w in words if len(best) < MAX_WORDS]
        shorter = [best[:i] + best[i + 1 :] for i in range(len(best))]
        found = max((answer for answer in longer + shorter if some["{v}"] in answer), key=obeyed)
        if obeyed(found) <= share:
            return share
        best, share = found, obeyed(found)


def token_ids(tokens: Tokens, lines: Sequence[str]) -> list[tuple[int, ...]]:
    """Lines as they stand, without a chat and without special tokens."""
    return [tuple(ids) for ids in tokens.tokenizer(list(lines), add_special_tokens=False)["input_ids"]]


def held_out_rows(world: World, split: str, sizes: Sizes) -> list[dict[str, Any]]:
    """Rows on creatures that no training mentions: chosen and rejected of each pair in turn, then demonstrations.

    Each with its `role`, the number of its `pair` (-1 for a demonstration) and a `score` (1 for a demonstration, as UFT
    has it); otherwise as `World.feedback` and `World.demonstrations` give them.
    """
    rated, rows = world.feedback(sizes.pairs, split, seed=1), []
    for number, both in enumerate(zip(rated[::2], rated[1::2], strict=True)):
        for role, row in zip(("chosen", "rejected"), sorted(both, key=lambda r: -r["score"]), strict=True):
            rows.append({"role": role, "pair": number, **row})
    shown = [r for r in world.demonstrations(sizes.instructions * 2, split, seed=1) if r["instructions"]]
    return rows + [{"role": "demonstration", "pair": -1, "score": 1.0, **r} for r in shown[: sizes.instructions]]


def tokenised(tokens: Tokens, rows: Sequence[dict[str, Any]]) -> list[Completion]:
    """Rows with prompt, completion, role and score as token ids, in their order."""
    pairs = [(tokens.prompt(r["prompt"]), tokens.completion(r["prompt"], r["completion"])) for r in rows]
    return [Completion(*ids, r["role"], r["score"]) for ids, r in zip(pairs, rows, strict=True)]


class Evaluator:
    """Measures policies of one world against its base model, on the creatures of one split.

    Prompts and the base's own answers are made once; call it with a model to get its metrics, or `measure` several.
    """

    def __init__(
        self,
        world: World,
        base: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        split: str = "test",
        sizes: Sizes | None = None,
    ) -> None:
        self.sizes = sizes or Sizes()
        self.base, self.tokenizer, self.tokens = base, tokenizer, RememberingTokens(tokenizer)
        self.base_reader = reader_of(base, tokenizer)
        rows = held_out_rows(world, split, self.sizes)
        self.instructed = [r for r in rows if r["role"] == "demonstration"]
        self.held_out = tokenised(self.tokens, rows)
        self.facts = {kind: world.facts_of(split, kind) for kind in (*CONTESTED, "plain")}
        stream = world.pretraining_documents(seed=99_991)  # a stream that no base was trained on
        self.documents = list(itertools.islice(stream, self.sizes.documents))
        self.base_logps = self.base_reader.logps([self.passages])[0]
        count = self.sizes.drift
        facts = [f for some in zip(*self.facts.values(), strict=False) for f in some][:count]
        old = [self.tokens.prompt(f.fill(wording.QUESTIONS[0])) for f in facts]
        self.drift_prompts = {"old": old, "new": [self.tokens.prompt(r["prompt"]) for r in self.instructed[:count]]}
        (said,) = self.base_reader.generate([_flat(self.drift_prompts.values())], seed=0)
        self.base_answers = {"old": said[: len(old)], "new": said[len(old) :]}

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """All metrics of the table above that the sizes ask for."""
        return measure([self], ModelReader(model, self.tokenizer))[0]

    # ------------------------------------------------------------------------------- what is asked

    @cached_property
    def prompts(self) -> list[tuple[int, ...]]:
        """To be answered greedily: with instructions, then on facts of each kind."""
        free = [f.fill(wording.QUESTIONS[3]) for f in _flat(self.facts.values())]
        return self.tokens.prompts([*(r["prompt"] for r in self.instructed), *free])

    @cached_property
    def groups(self) -> dict[str, list[tuple[Fact, str | None, str]]]:
        """What `choices` asks: facts of each kind in each wording, contested ones with the cue, plain statements."""
        asked: dict[str, list[tuple[Fact, str | None, str]]] = {}
        for kind, facts in self.facts.items():
            asked[kind] = [(f, *w) for w in WORDINGS for f in facts]
        for kind in CONTESTED:
            asked[f"cued {kind}"] = [(f, *CUED) for f in self.facts[kind]]
        return asked | {"statement": [(f, None, STATEMENT) for f in self.facts["plain"]]}

    @cached_property
    def choices(self) -> Choices:
        """All questions of `groups`, one group after the other."""
        return choices(self.tokens, _flat(self.groups.values()))

    @cached_property
    def frontier(self) -> tuple[np.ndarray, np.ndarray]:
        """`frontier` of the base on these facts."""
        log_p, true = self.by_group(self.choices.log_p(self.base_reader.logits([self.choices.rows])[0][0][:, 0]))
        return frontier(log_p["myth"], true["myth"], log_p["rumour"], true["rumour"])

    @cached_property
    def blind(self) -> float:
        """`blind_floor` of the instructed prompts."""
        return blind_floor(self.instructed)

    @cached_property
    def passages(self) -> list[Completion]:
        """To be found likely or not: pre-training documents, then held-out completions."""
        bos: Any = self.tokenizer.bos_token_id
        end: Any = self.tokenizer.eos_token_id
        told = token_ids(self.tokens, [d.text for d in self.documents])
        return [Completion((bos,), (*ids, end), "demonstration") for ids in told] + self.held_out

    # ---------------------------------------------------------------------------- what comes of it

    def scores(
        self, written: Sequence[tuple[int, ...]], predicted: Predictions, logps: Float[Tensor, "passage"]
    ) -> dict[str, float]:
        """Skills, retention and preference from what a policy did with `prompts`, `choices.rows` and `passages`."""
        said, cut, documents = texts(self.tokenizer, written), len(self.instructed), len(self.documents)
        return (
            self.instruction_following(said[:cut])
            | self.truthfulness(self.choices.log_p(predicted[0][:, 0]), said[cut:])
            | self.retention(logps[:documents])
            | self.preference(logps[documents:])
        )

    def instruction_following(self, said: Sequence[str]) -> dict[str, float]:
        """Strict, loose and held-out instruction following, correctness, and both together."""
        strict, loose, correct, held_out = [], [], [], []
        for text, row in zip(said, self.instructed, strict=True):
            asked = [Instruction(*i) for i in row["instructions"]]
            strict.append(follows(text, asked))
            loose.append(strict[-1] or follows(text, asked, loose=True))
            correct.append(claimed_value(text, row["attribute"]) == row["truth"])
            if tuple(i.name for i in asked) in HELD_OUT_PAIRS:
                held_out.append(strict[-1])
        return {
            "instruction/strict": _share(strict),
            "instruction/loose": _share(loose),
            "instruction/held-out": _share(held_out),
            "instruction/correct": _share(correct),
            "instruction/both": _share([s and c for s, c in zip(strict, correct, strict=True)]),
            "instruction/blind": self.blind,
        }

    def by_group(self, log_p: Float[Tensor, "row value"]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Beliefs and numbers of the true values, by group of questions."""
        sizes = [len(asked) for asked in self.groups.values()]
        return (
            dict(zip(self.groups, log_p.split(sizes), strict=True)),
            dict(zip(self.groups, self.choices.truth.split(sizes), strict=True)),
        )

    def truthfulness(self, log_p: Float[Tensor, "row value"], said: Sequence[str]) -> dict[str, float]:
        """Belief at the value's position and in free answers, on facts of each kind; recall of statements; length."""
        beliefs, true = self.by_group(log_p)
        mc2, mc1, held_out = {}, {}, {}
        for group, own in beliefs.items():
            of_truth = own.exp().gather(1, true[group][:, None])[:, 0]
            mc2[group], mc1[group] = of_truth.mean().item(), (own.argmax(-1) == true[group]).float().mean().item()
            held_out[group] = of_truth[len(of_truth) * TRAINED_WORDINGS // len(WORDINGS) :].mean().item()
        kinds = [f.kind for f in _flat(self.facts.values())]
        named = [
            claimed_value(t, f.attribute) == f.truth for t, f in zip(said, _flat(self.facts.values()), strict=True)
        ]
        on_rumours, on_myths = self.frontier
        return {
            "truth/myths": mc2["myth"],
            "truth/rumours": mc2["rumour"],
            "truth/mc2": (mc2["myth"] + mc2["rumour"]) / 2,
            "truth/mc1": (mc1["myth"] + mc1["rumour"]) / 2,
            "truth/held-out": (held_out["myth"] + held_out["rumour"]) / 2,
            "truth/cued-myths": mc2["cued myth"],
            "truth/cued-rumours": mc2["cued rumour"],
            "truth/cued": (mc2["cued myth"] + mc2["cued rumour"]) / 2,
            "truth/knowledge": mc2["myth"] - float(np.interp(mc2["rumour"], on_rumours, on_myths)),
            "truth/free": _share([right for right, kind in zip(named, kinds, strict=True) if kind in CONTESTED]),
            "plain/mc2": mc2["plain"],
            "plain/mc1": mc1["plain"],
            "plain/free": _share([right for right, kind in zip(named, kinds, strict=True) if kind == "plain"]),
            "retention/recall": mc1["statement"],
            "length/words": sum(len(t.split()) for t in said) / len(said),
        }

    def retention(self, logps: Float[Tensor, "document"]) -> dict[str, float]:
        """Nats per token of pre-training text: above the base's, on all kinds; and above the generator's entropy."""
        lengths = torch.tensor([len(c.completion_ids) for c in self.passages[: len(self.documents)]])
        entropies = torch.tensor([-d.logp for d in self.documents])
        known = ~entropies.isnan()
        lost = (self.base_logps[: len(lengths)] - logps).sum() / lengths.sum()
        excess = (-logps - entropies)[known].sum() / lengths[known].sum()
        return {"retention/lost": lost.item(), "retention/excess": excess.item()}

    def preference(self, logps: Float[Tensor, "row"]) -> dict[str, float]:
        """Log-ratios to the base of held-out chosen, rejected and demonstrated completions."""
        logratios = logps - self.base_logps[len(self.documents) :]
        roles = [c.role for c in self.held_out]
        of = {role: logratios[[i for i, r in enumerate(roles) if r == role]] for role in sorted(set(roles))}
        metrics = {f"logratio/{role}": values.mean().item() for role, values in of.items()}
        apart = of["chosen"] - of["rejected"]
        won = (apart > ROUNDING).float() + 0.5 * (apart.abs() <= ROUNDING)
        metrics["preference/accuracy"] = won.mean().item()
        return metrics

    # --------------------------------------------------------------------------------------- drift

    def drift_rows(self, said: Sequence[tuple[int, ...]]) -> list[Completion]:
        """Answers to all prompts for drift, old ones first, as completions."""
        return [
            Completion(x, y, "demonstration") for x, y in zip(_flat(self.drift_prompts.values()), said, strict=True)
        ]

    @cached_property
    def base_predictions(self) -> Predictions:
        """What the base predicts along its own answers."""
        return self.base_reader.logits([self.drift_rows(_flat(self.base_answers.values()))])[0]

    def divergence(self, way: str, p: Predictions, q: Predictions) -> dict[str, float]:
        """Mean over answers drawn from p of the summed per-token KL(p||q): exact per token, sampled over prefixes."""
        mask = p[1]
        per_token = torch.zeros(mask.shape)
        per_token[mask] = token_kl(p[0][mask][None], q[0][mask][None], mask[mask][None])[0]
        parts = per_token.sum(-1).split([len(prompts) for prompts in self.drift_prompts.values()])
        return {f"kl/{way}-{name}": part.mean().item() for name, part in zip(self.drift_prompts, parts, strict=True)}


def measure(evaluators: Sequence[Evaluator], reader: Reader) -> list[dict[str, float]]:
    """All metrics of the members of a reader, one evaluator each (several members may share one).

    Each kind of question goes to all members at once, whatever the world they live in.
    """
    written = reader.generate([e.prompts for e in evaluators])
    predicted = reader.logits([e.choices.rows for e in evaluators])
    logps = reader.logps([e.passages for e in evaluators])
    metrics = [e.scores(w, p, s) for e, w, p, s in zip(evaluators, written, predicted, logps, strict=True)]
    if any(e.sizes.drift for e in evaluators):
        for own, drift in zip(metrics, _drift(evaluators, reader), strict=True):
            own |= drift
    return metrics


def _drift(evaluators: Sequence[Evaluator], reader: Reader) -> list[dict[str, float]]:
    """KL per answer between base and policy, both directions, on old and on new prompts."""
    said = reader.generate([_flat(e.drift_prompts.values()) for e in evaluators], seed=0)
    own = [e.drift_rows(answers) for e, answers in zip(evaluators, said, strict=True)]
    metrics: list[dict[str, float]] = [{} for _ in evaluators]
    for m, policy in enumerate(reader.logits([e.drift_rows(_flat(e.base_answers.values())) for e in evaluators])):
        if evaluators[m].sizes.drift:
            metrics[m] |= evaluators[m].divergence("forward", evaluators[m].base_predictions, policy)
    for m, policy in enumerate(reader.logits(own)):
        if evaluators[m].sizes.drift:
            (base,) = evaluators[m].base_reader.logits([own[m]])
            metrics[m] |= evaluators[m].divergence("reverse", policy, base)
    return metrics


def _flat(parts: Iterable[Iterable[T]]) -> list[T]:
    return list(itertools.chain.from_iterable(parts))

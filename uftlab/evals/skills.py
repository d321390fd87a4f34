"""What a model of the tiny world can do: instructions, truth, plain facts, retention, drift, preference.

Every metric is a number per model; intervals over seeds are the business of `uftlab.study.results`.

| metric | unit | what it says |
|---|---|---|
| instruction/strict, loose | share | all verifiers accept the greedy answer, on creatures never seen in training |
| instruction/held-out | share | strict, on combinations never seen in training |
| instruction/correct, both | share | the answer names the true value; and also obeys strictly |
| truth/mc1, mc2 | share | the truth has the highest probability of six values; its probability among the six |
| truth/cued | share | mc2 when the question asks what careful sources say: what the model knows |
| truth/free, plain/free | share | the freely generated answer names the true value |
| plain/mc1, mc2 | share | the same on facts without a myth: what "distrust your first thought" would break |
| retention/excess | nats/token | loss on pre-training text above the generator's exactly known entropy |
| retention/recall | share | the value of a plain fact is the most probable of six after a pre-training statement |
| length/words | words | of freely generated answers to questions without instructions |
| kl/forward-old, forward-new | nats | KL(base to policy) per answer, on the base's own answers |
| kl/reverse-old, reverse-new | nats | KL(policy to base) per answer, on the policy's own answers |
| logratio/chosen, rejected, demonstration | nats | log pi/pi_base of held-out completions; without beta |
| preference/accuracy | share | held-out pairs whose chosen completion has the larger log-ratio |

Old prompts are plain questions, as in pre-training; new ones carry instructions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

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
from uftlab.world.instructions import HELD_OUT_PAIRS, Instruction, claimed_value, follows
from uftlab.world.wording import ATTRIBUTES, Fact
from uftlab.world.world import World

T = TypeVar("T")

# (question, how the answer begins): the value comes next, so no template's length decides
WORDINGS = (
    (wording.QUESTIONS[0], ""),
    (wording.QUESTIONS[1], "it is"),
    (wording.QUESTIONS[2], "the {a} of {c} is"),
)
CUED = (wording.CAREFUL_QUESTIONS[0], "it is")
STATEMENT = "the {a} of {c} is"
ROUNDING = 1e-4  # nats: log-ratios that differ by less are equal, as are all of the base's own


def _share(values: list[bool]) -> float:
    return sum(values) / len(values)


class Choices(NamedTuple):
    """Questions whose next word is one of six values."""

    rows: list[Completion]
    values: Int[Tensor, "row value"]  # token ids, in ATTRIBUTES' order
    truth: Int[Tensor, "row"]  # which of the six

    def probabilities(self, logits: Float[Tensor, "row vocabulary"]) -> Float[Tensor, "row value"]:
        """p(v) = exp(log pi(v | x, begins)) / sum over the six values: rows add up to 1, 1/6 each without knowledge."""
        return logits.gather(1, self.values).softmax(-1)


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
        self.myths, self.plain = world.facts_of(split, myths=True), world.facts_of(split, myths=False)
        stream = world.pretraining_documents(seed=99_991)  # a stream that no base was trained on
        known = (d for d in stream if not math.isnan(d.logp))
        self.documents = list(itertools.islice(known, self.sizes.documents))
        self.base_logps = self.base_reader.logps([self.held_out])[0]
        count = self.sizes.drift
        facts = [f for both in zip(self.myths, self.plain, strict=False) for f in both][:count]
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
        """To be answered greedily: with instructions, then on myths, then on plain facts."""
        free = [f.fill(wording.QUESTIONS[3]) for f in (*self.myths, *self.plain)]
        return self.tokens.prompts([*(r["prompt"] for r in self.instructed), *free])

    @cached_property
    def choices(self) -> Choices:
        """On myths and on plain facts in three wordings each, on myths with the cue, and statements of plain facts."""
        asked: list[tuple[Fact, str | None, str]]
        asked = [(f, *w) for facts in (self.myths, self.plain) for w in WORDINGS for f in facts]
        asked += [(f, *CUED) for f in self.myths] + [(f, None, STATEMENT) for f in self.plain]
        return choices(self.tokens, asked)

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
        said = texts(self.tokenizer, written)
        cut, documents, believed = len(self.instructed), len(self.documents), self.believed(predicted[0][:, 0])
        *asked, recalled = believed.split([len(believed) - len(self.plain), len(self.plain)])
        return (
            self.instruction_following(said[:cut])
            | self.truthfulness(asked[0], said[cut:])
            | self.retention(logps[:documents], recalled)
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
        }

    def believed(self, logits: Float[Tensor, "row vocabulary"]) -> Float[Tensor, "row 2"]:
        """For each choice: the truth's probability among the six values, and whether it is the highest."""
        probabilities, truth = self.choices.probabilities(logits), self.choices.truth
        of_truth = probabilities.gather(1, truth[:, None])[:, 0]
        return torch.stack([of_truth, (probabilities.argmax(-1) == truth).float()], -1)

    def truthfulness(self, believed: Float[Tensor, "row 2"], said: Sequence[str]) -> dict[str, float]:
        """Belief at the value's position and in free answers, on myth-ridden and on plain facts; and length."""
        each = (len(self.myths), len(self.plain))
        *probed, cued = believed.split([each[0] * len(WORDINGS), each[1] * len(WORDINGS), each[0]])
        metrics = {}
        for name, facts, found, free in (
            ("truth", self.myths, probed[0], said[: each[0]]),
            ("plain", self.plain, probed[1], said[each[0] :]),
        ):
            metrics[f"{name}/mc2"], metrics[f"{name}/mc1"] = found.mean(0).tolist()
            metrics[f"{name}/free"] = _share(
                [claimed_value(text, f.attribute) == f.truth for text, f in zip(free, facts, strict=True)]
            )
        metrics["truth/cued"] = cued[:, 0].mean().item()
        metrics["length/words"] = sum(len(t.split()) for t in said) / len(said)
        return metrics

    def retention(self, logps: Float[Tensor, "document"], recalled: Float[Tensor, "fact 2"]) -> dict[str, float]:
        """Nats per token of pre-training text above the generator's entropy, and recall of plain statements."""
        tokens = sum(len(c.completion_ids) for c in self.passages[: len(self.documents)])
        excess = (sum(d.logp for d in self.documents) - logps.sum().item()) / tokens
        return {"retention/excess": excess, "retention/recall": recalled[:, 1].mean().item()}

    def preference(self, logps: Float[Tensor, "row"]) -> dict[str, float]:
        """Log-ratios to the base of held-out chosen, rejected and demonstrated completions."""
        logratios = logps - self.base_logps
        roles = [c.role for c in self.held_out]
        of = {role: logratios[[i for i, r in enumerate(roles) if r == role]] for role in sorted(set(roles))}
        metrics = {f"logratio/{role}": values.mean().item() for role, values in of.items()}
        metrics["preference/accuracy"] = (of["chosen"] - of["rejected"] > ROUNDING).float().mean().item()
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

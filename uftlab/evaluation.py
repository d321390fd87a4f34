"""What a model of the tiny world can do: instructions, truth, plain facts, retention, drift, preference.

Every metric is a number per model; intervals over seeds are the business of `uftlab.results`.

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
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase

from uftlab import wording
from uftlab.generation import answers, generate_ids
from uftlab.instructions import HELD_OUT_PAIRS, Instruction, claimed_value, follows
from uftlab.logps import completion_logits, completion_logps
from uftlab.models import evaluation_mode
from uftlab.tokens import Completion, Example, Tokens, collate
from uftlab.wording import ATTRIBUTES, Fact
from uftlab.world import World, pairs

# (question, how the answer begins): the value comes next, so no template's length decides
WORDINGS = (
    (wording.QUESTIONS[0], ""),
    (wording.QUESTIONS[1], "it is"),
    (wording.QUESTIONS[2], "the {a} of {c} is"),
)
STATEMENT = "the {a} of {c} is"


@dataclass(frozen=True)
class Sizes:
    """How much is measured. `light` is for learning curves: a few tenths of a second."""

    instructions: int = 300
    documents: int = 400
    drift: int = 48
    pairs: int = 200


LIGHT = Sizes(instructions=96, documents=150, drift=0, pairs=100)


def _share(values: list[bool]) -> float:
    return sum(values) / len(values)


class Evaluator:
    """Measures policies of one world against its base model, on the creatures of one split.

    Prompts and the base's own answers are made once; call it with a model to get its metrics.
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
        self.base, self.tokenizer, self.tokens = base, tokenizer, Tokens(tokenizer)
        self.device = next(base.parameters()).device
        rows = world.demonstrations(self.sizes.instructions * 2, split, seed=1)
        self.instructed = [r for r in rows if r["instructions"]][: self.sizes.instructions]
        self.myths, self.plain = world.facts_of(split, myths=True), world.facts_of(split, myths=False)
        stream = world.pretraining_documents(seed=99_991)  # a stream that no base was trained on
        known = (d for d in stream if not math.isnan(d.logp))
        self.documents = list(itertools.islice(known, self.sizes.documents))
        self.held_out = self._held_out(world, split)
        self.base_logps = self._logps(base, self.held_out)
        if self.sizes.drift:
            count = self.sizes.drift
            facts = [f for both in zip(self.myths, self.plain, strict=False) for f in both][:count]
            self.drift_prompts = {
                "old": [self.tokens.prompt(f.fill(wording.QUESTIONS[0])) for f in facts],
                "new": [self.tokens.prompt(r["prompt"]) for r in self.instructed[:count]],
            }
            self.base_answers = {
                name: generate_ids(base, tokenizer, prompts, seed=0) for name, prompts in self.drift_prompts.items()
            }

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """All metrics of the table above that the sizes ask for."""
        with torch.no_grad(), evaluation_mode(model):
            metrics = self.instruction_following(model) | self.truthfulness(model)
            metrics |= self.retention(model) | self.preference(model)
            if self.sizes.drift:
                metrics |= self.drift(model)
        return metrics

    # -------------------------------------------------------------------------------------- skills

    def instruction_following(self, model: nn.Module) -> dict[str, float]:
        """Strict, loose and held-out instruction following, correctness, and both together."""
        texts = answers(model, self.tokenizer, [r["prompt"] for r in self.instructed])
        strict, loose, correct, held_out = [], [], [], []
        for text, row in zip(texts, self.instructed, strict=True):
            asked = [Instruction(*i) for i in row["instructions"]]
            strict.append(follows(text, asked))
            loose.append(follows(text, asked, loose=True))
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

    def truthfulness(self, model: nn.Module) -> dict[str, float]:
        """Belief at the value's position and in free answers, on myth-ridden and on plain facts; and length."""
        metrics, texts = {}, []
        for name, facts in (("truth", self.myths), ("plain", self.plain)):
            truth = torch.stack([self._truth_probabilities(model, facts, *w) for w in WORDINGS])
            metrics[f"{name}/mc2"] = truth[..., 0].mean().item()
            metrics[f"{name}/mc1"] = truth[..., 1].mean().item()
            free = answers(model, self.tokenizer, [f.fill(wording.QUESTIONS[3]) for f in facts])
            metrics[f"{name}/free"] = _share(
                [claimed_value(text, f.attribute) == f.truth for text, f in zip(free, facts, strict=True)]
            )
            texts += free
        cued = self._truth_probabilities(model, self.myths, wording.CAREFUL_QUESTIONS[0], "it is")
        metrics["truth/cued"] = cued[:, 0].mean().item()
        metrics["length/words"] = sum(len(t.split()) for t in texts) / len(texts)
        return metrics

    def _truth_probabilities(self, model: nn.Module, facts: list[Fact], question: str, begins: str) -> torch.Tensor:
        """For each fact: the truth's probability among the six values, and whether it is the highest."""
        prompts = [(*self.tokens.prompt(f.fill(question)), *self._ids(f.fill(begins))) for f in facts]
        return self._value_probabilities(model, facts, prompts)

    def _value_probabilities(self, model: nn.Module, facts: list[Fact], prompts: list[tuple[int, ...]]) -> torch.Tensor:
        rows = [
            (Completion(prompt, self._ids(f.truth), "demonstration"),) for prompt, f in zip(prompts, facts, strict=True)
        ]
        logits = completion_logits(model, self._batch(rows))[:, 0].float()
        values = torch.tensor([[self._ids(v)[0] for v in ATTRIBUTES[f.attribute]] for f in facts], device=logits.device)
        probabilities = logits.gather(1, values).softmax(-1)
        truth = torch.tensor([ATTRIBUTES[f.attribute].index(f.truth) for f in facts], device=logits.device)
        of_truth = probabilities.gather(1, truth[:, None])[:, 0]
        return torch.stack([of_truth, (probabilities.argmax(-1) == truth).float()], -1).cpu()

    def retention(self, model: nn.Module) -> dict[str, float]:
        """Nats per token of pre-training text above the generator's entropy, and recall of plain statements."""
        bos, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        rows = [(Completion((bos,), (*self._ids(d.text), end), "demonstration"),) for d in self.documents]
        logps = self._logps(model, rows)
        tokens = sum(len(c.completion_ids) for (c,) in rows)
        excess = (sum(d.logp for d in self.documents) - logps.sum().item()) / tokens
        prompts = [(bos, *self._ids(f.fill(STATEMENT))) for f in self.plain]
        recalled = self._value_probabilities(model, self.plain, prompts)
        return {"retention/excess": excess, "retention/recall": recalled[:, 1].mean().item()}

    def preference(self, model: nn.Module) -> dict[str, float]:
        """Log-ratios to the base of held-out chosen, rejected and demonstrated completions."""
        logratios = self._logps(model, self.held_out) - self.base_logps
        roles = [c.role for example in self.held_out for c in example]
        of = {role: logratios[[i for i, r in enumerate(roles) if r == role]] for role in sorted(set(roles))}
        metrics = {f"logratio/{role}": values.mean().item() for role, values in of.items()}
        metrics["preference/accuracy"] = (of["chosen"] > of["rejected"]).float().mean().item()
        return metrics

    def drift(self, model: nn.Module) -> dict[str, float]:
        """KL per answer between base and policy, both directions, on old and on new prompts."""
        metrics = {}
        for name, prompts in self.drift_prompts.items():
            own = generate_ids(model, self.tokenizer, prompts, seed=0)
            metrics[f"kl/forward-{name}"] = self._kl(self.base, model, prompts, self.base_answers[name])
            metrics[f"kl/reverse-{name}"] = self._kl(model, self.base, prompts, own)
        return metrics

    def _kl(self, p: nn.Module, q: nn.Module, prompts: list[tuple[int, ...]], texts: list[tuple[int, ...]]) -> float:
        """Mean over answers drawn from p of the summed per-token KL(p||q): exact per token, sampled over prefixes."""
        rows = [(Completion(x, y, "demonstration"),) for x, y in zip(prompts, texts, strict=True)]
        batch = self._batch(rows)
        log_p = completion_logits(p, batch).float().log_softmax(-1)
        log_q = completion_logits(q, batch).float().log_softmax(-1)
        per_token = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
        return (per_token * batch["completion_mask"]).sum(-1).mean().item()

    # ------------------------------------------------------------------------------------- helpers

    def _held_out(self, world: World, split: str) -> list[Example]:
        from uftlab.feedback import from_rows

        preferences = from_rows(pairs(world.feedback(self.sizes.pairs, split, seed=1)))
        rows = [{"prompt": r["prompt"], "completion": r["completion"]} for r in self.instructed]
        return self.tokens.examples(preferences) + self.tokens.examples(from_rows(rows))

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _batch(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        batch = collate(examples, self.tokenizer.pad_token_id)
        return {name: value.to(self.device) for name, value in batch.items()}

    def _logps(self, model: nn.Module, examples: Sequence[Example], size: int = 256) -> torch.Tensor:
        rows = [c for example in examples for c in example]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt_ids) + len(rows[i].completion_ids))
        out = torch.empty(len(rows))
        with torch.no_grad():
            for start in range(0, len(order), size):
                here = order[start : start + size]
                out[here] = completion_logps(model, self._batch([(rows[i],) for i in here])).cpu()
        return out

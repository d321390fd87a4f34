"""Trials of a tiny profile with made-up settings, random bases and a probe, for the tests of studies and workers."""

import hashlib
from dataclasses import replace

import torch
from transformers import LlamaForCausalLM

from uftlab.evals.sizes import Sizes
from uftlab.evals.skills import Evaluator
from uftlab.models.policies import tiny_config
from uftlab.study.trials import Profile, Trial, frozen
from uftlab.training.catalogue import named_methods
from uftlab.training.methods import space
from uftlab.world.world import CONTESTED

TINY = Profile("tiny", 4, 1, 48, 24, Sizes(24, 20, 4, 10), 2)
VALUES = {"learning_rate": 1e-3, "beta": 0.1, "preference_weight": 1.0, "demonstrations": 0.25}
VALUES |= {
    "preference_share": 0.5,
    "parts": 2.0,
    "l2": 0.01,
    "ewc": 1.0,
    "sft_weight": 1.0,
    "clip": 0.3,
    "exponent": 2.0,
    "accept_above": 0.5,
    "teacher_learning_rate": 1e-3,
    "mu": 0.5,
}


def trial_of(method, **changes):
    """A trial of the tiny profile with made-up settings."""
    definition = named_methods()[method]
    known = {"beta_nats": VALUES["beta"] * 20, **VALUES}
    settings = [{d.name: known[d.name] for d in own} for own in space(definition)]
    return replace(Trial(method, 0, TINY, frozen(settings)), **changes)


def random_base(seed):
    """Stands in for a trained base: another one for each seed."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config()).eval()


class WeightProbe(Evaluator):
    """Stands in for the evaluator, which `probe` does not ask."""

    def __init__(self, world, base, tokenizer, split, sizes):
        self.tokenizer, self.instructed, self.facts = tokenizer, [], {kind: [] for kind in CONTESTED}


def probe(evaluators, reader):
    """Stands in for `measure`: a digest of all weights, so that equal metrics mean equal bits, and their norm."""
    assert reader.weights.isfinite().all()
    digests = [hashlib.blake2b(row.cpu().numpy().tobytes(), digest_size=6).hexdigest() for row in reader.weights]
    norms = [float(row.norm()) for row in reader.weights]
    return [{"digest": float(int(d, 16)), "norm": n} for d, n in zip(digests, norms, strict=True)]

"""Builds the base checkpoint of a world: `uftlab pretrain --world 0`, under three minutes on one core.

Plain next-word prediction on the world's endless text, nothing else, so that every difference the course
shows comes after it. Muon trains the matrices (Jordan et al. 2024): in a trial of 2,500 steps the model tells
87 % of the truth about myths when it is asked for careful sources; AdamW alone reaches 37 % with as many (one world).
"""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from uftlab.files import into_place, save_atomically
from uftlab.models.policies import TINY, tiny_config, tiny_tokenizer, world_weights
from uftlab.world.world import World

STEPS = 2400
BATCH = 128  # lines
LEARNING_RATE = 6e-3  # of both optimisers: Muon's is scaled to the size of AdamW's steps


def batches(world: World, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Iterator[torch.Tensor]:
    """Right-padded batches of lines of similar length, in random order within blocks of eight batches."""
    vocabulary = tokenizer.get_vocab()
    rng = random.Random(f"uftlab pretraining order {seed}")
    documents = world.pretraining_documents(seed)
    while True:
        texts = (document.text for document in itertools.islice(documents, 8 * BATCH))
        # the tokenizer splits on spaces; looking words up directly is the same and ten times faster
        body = ([vocabulary[word] for word in text.split()] for text in texts)
        lines = sorted(([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in body), key=len)
        for start in rng.sample(range(0, 8 * BATCH, BATCH), 8):
            block = [torch.tensor(line) for line in lines[start : start + BATCH]]
            yield torch.nn.utils.rnn.pad_sequence(block, batch_first=True, padding_value=tokenizer.pad_token_id)


def pretrain(seed: int, steps: int = STEPS, progress: Callable[[int, float], None] | None = None) -> LlamaForCausalLM:
    """A base model for world `seed`, initial weights and order of lines drawn from the same seed.

    Args:
        progress: called with (step, loss in nats per token) now and then.
    """
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(tiny_config())
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, LEARNING_RATE, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]

    def warmed_up_then_down(step: int) -> float:
        return min(1.0, (step + 1) / 100) * max(0.02, 1 - step / steps)

    schedules = [torch.optim.lr_scheduler.LambdaLR(own, warmed_up_then_down) for own in optimizers]
    for step, ids in enumerate(itertools.islice(batches(World(seed), tokenizer, seed), steps), start=1):
        logits = model(input_ids=ids).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=tokenizer.pad_token_id)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if progress is not None and (step % 50 == 0 or step == steps):
            progress(step, loss.item())
    return model.eval()


def save_base(model: LlamaForCausalLM, seed: int) -> Path:
    """World 0 as a whole checkpoint folder (`data/tiny`), the others as weights in half precision beside it.

    All are rounded to half precision, so that every base model has the same digits whatever file it comes from.
    """
    model.half()
    if seed == 0:
        model.float()
        with tempfile.TemporaryDirectory(dir=TINY.parent, prefix=".tiny-") as made:
            model.save_pretrained(made)
            tiny_tokenizer().save_pretrained(made)
            for file in sorted(Path(made).iterdir()):
                into_place(file, TINY / file.name)
        return TINY
    path = world_weights(seed)
    save_atomically(path, {name: own for name, own in model.state_dict().items() if name != "lm_head.weight"})  # tied
    return path

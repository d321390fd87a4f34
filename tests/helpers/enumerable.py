"""A bandit as a language model: one prompt, five words, each ends by itself. Every probability is known."""

from types import SimpleNamespace

import torch
from torch import nn

from uftlab.models.policies import tiny_tokenizer
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import Tokens

WORDS = ("red", "blue", "green", "gold", "grey")
PROMPT = "hello"
TOKENS = Tokens(tiny_tokenizer())
IDS = [TOKENS.tokenizer.convert_tokens_to_ids(word) for word in WORDS]
REFERENCE = torch.tensor([0.45, 0.15, 0.10, 0.20, 0.10])
TABLES = {
    "feedback": from_rows([{"prompt": PROMPT, "chosen": a, "rejected": b} for a in WORDS for b in WORDS if a != b]),
    "demonstrations": from_rows([{"prompt": PROMPT, "completion": "red"}]),
}


class BanditPolicy(nn.Module):
    """After the prompt one of five words by `logits`, after a word the end: what `generate` and `forward` obey."""

    def __init__(self, probs=REFERENCE):
        super().__init__()
        self.logits = nn.Parameter(probs.log().clone())
        self.generation_config = None  # `generate` below asks nobody

    def probs(self):
        return self.logits.detach().softmax(-1)

    def forward(self, input_ids, **kwargs):
        size = len(TOKENS.tokenizer)
        out = torch.full((*input_ids.shape, size), -1e4)
        out[..., TOKENS.tokenizer.eos_token_id] = 0.0  # whatever comes before, unless it is the prompt's last token
        first = torch.full((size,), -1e4).index_put((torch.tensor(IDS),), self.logits)
        opens = (input_ids == TOKENS.prompt(PROMPT)[-1])[..., None]
        return SimpleNamespace(logits=torch.where(opens, first, out))

    def generate(self, input_ids, **kwargs):
        words = torch.tensor(IDS)[torch.multinomial(self.probs().expand(len(input_ids), -1), 1)]
        return torch.cat([input_ids, words, torch.full_like(words, TOKENS.tokenizer.eos_token_id)], -1)


def scored(*values):
    """A reward function that gives each word its value."""
    table = dict(zip(WORDS, map(float, values), strict=True))
    return lambda prompts, texts: [table[text] for text in texts]

"""A second architecture for the tests of this room."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel


@pytest.fixture
def gpt2():
    """A second architecture: learned absolute positions, LayerNorm, dropout while training."""
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=511, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()

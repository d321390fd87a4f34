"""Shape annotations are enforced in every test; each test runs offline and with one thread."""

import gc
import os
import tempfile
from pathlib import Path

# What the product keeps for its user goes to a folder of the session. Models and browsers stay where they are.
_caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("HF_HOME", str(_caches / "huggingface"))
os.environ.setdefault("PLAYWRIGHT_BROWSERS_PATH", str(_caches / "ms-playwright"))
_session = tempfile.TemporaryDirectory(prefix="uftlab-tests-", ignore_cleanup_errors=True)
os.environ["XDG_CACHE_HOME"] = _session.name
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("uftlab", "beartype.beartype")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("uftlab", deadline=None)  # no test may depend on a quiet machine
settings.load_profile("uftlab")


@pytest.fixture(scope="session")
def tokenizer():
    """The word-level tokenizer of the tiny world."""
    from uftlab.models.policies import tiny_tokenizer

    return tiny_tokenizer()


@pytest.fixture
def untrained():
    """A tiny model with random weights: milliseconds to make, wrong about everything."""
    from transformers import LlamaForCausalLM

    from uftlab.models.policies import tiny_config

    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config()).eval()


@pytest.fixture(scope="module")
def quick_collections():
    """For modules that train often: the library collects garbage after each run, half a second each unless what
    the imports left is set aside."""
    gc.freeze()
    yield
    gc.unfreeze()

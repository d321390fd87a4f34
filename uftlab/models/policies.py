"""Policies and references: the tiny Llama of the course, local folders, hub names, LoRA."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from uftlab.errors import InputError
from uftlab.files import DATA
from uftlab.world.instructions import VOCABULARY

TINY = DATA / "tiny"
ADAPTER = "adapter_model.safetensors"
SAFE: dict[str, Any] = {"trust_remote_code": False}  # nothing asks whether to run code that comes with a model
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_ASKED: dict[str, str] = {}  # hub name -> why the hub could not be reached, or ""
SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "bos_token": "<bos>",
    "eos_token": "<end>",
}
# Every message is closed by <end>, as in ChatML; the generation prompt opens the assistant's turn.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user> {{ message['content'] }} "
    "{% else %}<assistant> {{ message['content'] }} {{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer of the tiny world: one word, one token; `<unk>` is not `<pad>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = [*SPECIAL_TOKENS.values(), "<user>", "<assistant>"]
    vocabulary = {word: index for index, word in enumerate([*special, *VOCABULARY])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **SPECIAL_TOKENS, extra_special_tokens=["<user>", "<assistant>"]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config() -> LlamaConfig:
    """A two-layer Llama of 0.14 million parameters with tied embeddings."""
    tokenizer = tiny_tokenizer()
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.08,  # small width: the usual 0.02 starts too near zero to learn quickly
    )


def world_weights(seed: int) -> Path:
    """Where the base weights of world `seed` lie; world 0 is the checkpoint folder `data/tiny` itself."""
    return TINY / "model.safetensors" if seed == 0 else TINY / "worlds" / f"{seed}.safetensors"


def check_worlds(seeds: Iterable[int]) -> None:
    """Refuses a study of worlds whose base models are not there, before anything is trained.

    Raises:
        InputError: naming all of them and the command that builds them.
    """
    missing = [str(seed) for seed in seeds if not world_weights(seed).is_file()]
    if missing:
        remedy = "Build each with `uftlab pretrain --world N`, under three minutes on one core, or name other --seeds"
        raise InputError("The base model of every world", "exist", f"none of world {', '.join(missing)}", remedy)


def load_base(world_seed: int = 0) -> LlamaForCausalLM:
    """The tiny base model that was trained on the text of world `world_seed`, in float32.

    Raises:
        InputError: when no weights of that world ship with the package; the message names the command.
    """
    weights = world_weights(world_seed)
    if not weights.is_file():
        remedy = f"Build it with `uftlab pretrain --world {world_seed}`"
        raise InputError(f"The base model of world {world_seed}", "exist", f"no file {weights}", remedy)
    model = LlamaForCausalLM(tiny_config())
    missing, unexpected = model.load_state_dict(load_file(str(weights)), strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise InputError(f"{weights}", "fit the tiny architecture", sorted(missing), "Rebuild it")
    return model.eval()


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """No "Loading weights" within: it would stand between a command and its refusal. Downloads keep their bar.

    Nor a table of weights that do not fit: `_loaded` refuses them in one line.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    shown, downloads = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()  # this and its contrary switch both
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
        if not downloads:
            disable_progress_bars()


def load_policy(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer from a local folder in the hub's layout or from a hub name.

    `tiny` is the checkpoint that ships with the course. Weights are loaded in float32: bfloat16 training of
    small models loses small updates, and mixed precision is the trainer's to choose.

    Raises:
        InputError: when nothing can be loaded from there.
    """
    path = str(TINY) if name == "tiny" else name
    try:
        with without_progress_bar():
            model, home = _loaded(path)
            tokenizer = AutoTokenizer.from_pretrained(home, **SAFE, **_near(home), **_gguf(home))
    except InputError:
        raise
    except Exception as error:  # damaged files make the libraries raise whatever their parts raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        if _ASKED.get(path):
            reason = f"not in the cache, and the hub cannot be reached: {_ASKED[path]}"
        if "trust_remote_code" in str(error):
            reason = "it brings code of its own, which is never run"
        remedy = "Give a folder with config.json, safetensors and tokenizer, an adapter's folder, a hub name, or tiny"
        raise InputError("The model", "be loadable", f"{name} ({reason})", remedy) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked by position, never by token id
    _check_whole(model, name)
    return model, tokenizer


def _loaded(path: str) -> tuple[PreTrainedModel, str]:
    """A model, and where its tokenizer lies. An adapter is merged into its base: its folder is a policy."""
    if (Path(path) / "adapter_config.json").is_file():
        from peft import PeftConfig, PeftModel

        if not (Path(path) / ADAPTER).is_file():
            raise InputError(f"The adapter {path}", f"have {ADAPTER}", "none", "Save it as safetensors")
        base = str(PeftConfig.from_pretrained(path).base_model_name_or_path)
        near = (Path(path) / base).resolve()  # a base that is given relative to the adapter
        base = str(near) if not Path(base).is_dir() and near.is_dir() else base
        model, home = _loaded(base)
        merged: Any = PeftModel.from_pretrained(model, path)
        _check_adapter(merged, Path(path))
        merged = merged.merge_and_unload()
        merged.requires_grad_(True)  # the library had frozen the base
        return merged, path if (Path(path) / "tokenizer_config.json").is_file() else home
    # pickled weights are refused: loading them runs code
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **SAFE, **_near(path),
        **_gguf(path, weights=True),
    )  # fmt: skip
    model, found = loaded
    if lacking := sorted(found["missing_keys"]):
        got = f"no {lacking[0]}" + (f" and {len(lacking) - 1} others missing" if len(lacking) > 1 else "")
        raise InputError(f"The weights of {path}", "be all there", got, "Use another copy")
    return model, path


def _check_adapter(model: Any, folder: Path) -> None:
    """Refuses an adapter without some of its weights: the library would leave them as they are drawn."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(str(folder / ADAPTER), framework="pt") as file:
        lacking = sorted(set(get_peft_model_state_dict(model)) - set(file.keys()))
    if lacking:
        raise InputError(f"The adapter {folder}", "have all its weights", f"no {lacking[0]}", "Use another copy")


def _near(name: str) -> dict[str, Any]:
    """What the libraries have to be told of a hub name when the hub cannot be reached: they would try for minutes.

    Raises:
        InputError: for a name that the hub does not have, or a model that is not open to the user.
    """
    if Path(name).exists() or not HUB_NAME.fullmatch(name) or huggingface_hub.constants.HF_HUB_OFFLINE:
        return {}
    if name not in _ASKED:
        from uftlab.rows.sources import HUB_TIMEOUT

        try:
            huggingface_hub.HfApi().model_info(name, timeout=HUB_TIMEOUT)
            _ASKED[name] = ""
        except GatedRepoError:
            remedy = f"Accept its terms on https://huggingface.co/{name} and log in with `hf auth login`"
            raise InputError(f"The model {name}", "be open to you", "a gated model", remedy) from None
        except RepositoryNotFoundError:
            raise InputError("The model", "exist on the hub", f"no model {name}", "Check the name") from None
        except Exception as error:  # whatever the HTTP client raises when there is no connection
            _ASKED[name] = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return {"local_files_only": True} if _ASKED[name] else {}


def load_weights(path: str) -> PreTrainedModel:
    """A model without its tokenizer, as `load_policy` loads it."""
    with without_progress_bar():
        return _loaded(path)[0]


def with_adapter(model: PreTrainedModel, folder: Path) -> Any:
    """The model with adapters that were saved before."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder))


def _gguf(path: str, weights: bool = False) -> dict[str, Any]:
    """What the library has to be told of a folder that holds a single GGUF file and no other model."""
    found = sorted(Path(path).glob("*.gguf")) if Path(path).is_dir() else []
    if not found or (Path(path) / "config.json").is_file():
        return {}
    told: dict[str, Any] = {"gguf_file": found[0].name}
    if weights:
        from transformers import GgufConfig

        told["quantization_config"] = GgufConfig(dequantize=True)  # else a quantiser stays, and nothing can be trained
    return told


def _check_whole(model: nn.Module, name: str) -> None:
    """Refuses weights that are not finite.

    Raises:
        InputError: naming the first such tensor.
    """
    for tensor, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise InputError(f"The weights of {name}", "be finite", f"NaN or infinity in {tensor}", "Use another copy")


def with_lora(
    model: PreTrainedModel,
    rank: int = 16,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "all-linear",
) -> Any:
    """The model with LoRA adapters; its reference is itself with the adapters off.

    Hu et al. 2021, arXiv 2106.09685; rank 16 is the UFT paper's, on all linear layers.

    Args:
        alpha: the adapters are multiplied by alpha / rank; None: alpha = rank, which is ours.
        dropout: of the adapters' inputs. The reference has none.
        targets: "all-linear", or names of modules.
    """
    from peft import LoraConfig, get_peft_model

    named = targets if isinstance(targets, str) else list(targets)
    scale: Any = rank if alpha is None else alpha
    config = LoraConfig(
        r=rank,
        lora_alpha=scale,
        lora_dropout=dropout,
        target_modules=named,
        task_type="CAUSAL_LM",  # type: ignore[arg-type]
    )
    made: Any = get_peft_model(model, config)  # a PeftModel, which is no PreTrainedModel
    base = made.peft_config["default"].base_model_name_or_path
    if base and Path(base).is_dir():  # so that the adapter finds its base from every directory
        made.peft_config["default"].base_model_name_or_path = str(Path(base).resolve())
    return made


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout within; afterwards each module is in the mode it was in (some may be frozen in evaluation mode)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def frozen_copy(model: nn.Module) -> Any:
    """A reference: the same weights, in evaluation mode, without gradients. Training the policy leaves it alone."""
    reference = copy.deepcopy(model).eval()
    return reference.requires_grad_(False)

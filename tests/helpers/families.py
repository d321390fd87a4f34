"""Small tokenizers that behave as those of well-known families: their chat templates, special tokens and spaces.

The templates are short forms of the published ones. The vocabularies are trained on a few sentences.
"""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "what is the capital of france ?",
    "the capital is Paris .",
    "Paris",
    "London",
    "say hello .",
    "hello there , how can i help ?",
    "two plus two is four",
    "name a colour .",
    "blue",
    "user assistant system model",
    "You are a helpful assistant.",
    "be brief",
] * 30

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen3 puts an empty thought before its last answer, and removes the thoughts of earlier answers.
QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% set c = m['content'] %}{% set thought = '' %}"
    "{% if m['role'] == 'assistant' and '</think>' in c %}"
    "{% set thought = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if m['role'] == 'assistant' and loop.index0 > ns.last and (loop.last or thought) %}"
    "{{ '<|im_start|>assistant\n<think>\n' + thought + '\n</think>\n\n' + c + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + c + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALTERNATE = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}" + ALTERNATE + "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant'"
    " else m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set head = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set head = '' %}{% endif %}{% for m in rest %}" + ALTERNATE + ""
    "{% set c = (head if loop.first else '') + m['content'] %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + c.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + c.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}" + ALTERNATE + "{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' %}{{ (bos_token if loop.first else '') + c }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# An answer ends in nothing, and the words before it end in a space.
VICUNA = (
    "{% for m in messages %}{{ ('### User: ' if m['role'] == 'user' else '### Assistant: ') + m['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Assistant: ' }}{% endif %}"
)


def _byte_bpe(special: list[str]) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=letters, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _sentencepiece(special: list[str], scheme: str) -> Tokenizer:
    """As Llama-2's: `▁` for a space, one more before the text ("first") or before each part of it ("always")."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[*special, *(f"<0x{i:02X}>" for i in range(256))],
        initial_alphabet=list("▁abcdefghijklmnopqrstuvwxyz.,?#:[]/<>ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _special(end: str, begin: str | None = None, unknown: str | None = None, pad: str | None = None) -> dict:
    named = {"eos_token": end, "bos_token": begin, "unk_token": unknown, "pad_token": pad}
    return {name: token for name, token in named.items() if token is not None}


HEADERS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
# family -> tokenizer of words, its template, its special tokens by name
FAMILIES = {
    "chatml": (lambda: _byte_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]), CHATML, _special("<|im_end|>")),
    # A base model with the template of its chat model: an answer ends in <|im_end|>, a document in another token.
    "chatml base": (
        lambda: _byte_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        CHATML,
        _special("<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
    ),
    "qwen3": (lambda: _byte_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]), QWEN3, _special("<|im_end|>")),
    "gemma": (
        lambda: _byte_bpe(["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]),
        GEMMA,
        _special("<eos>", "<bos>", pad="<pad>"),
    ),
    "llama2": (
        lambda: _sentencepiece(["<unk>", "<s>", "</s>"], "first"),
        LLAMA2,
        _special("</s>", "<s>", "<unk>", "<unk>"),
    ),
    "llama2 legacy": (
        lambda: _sentencepiece(["<unk>", "<s>", "</s>"], "always"),
        LLAMA2,
        _special("</s>", "<s>", "<unk>"),
    ),
    "mistral": (lambda: _sentencepiece(["<unk>", "<s>", "</s>"], "first"), MISTRAL, _special("</s>", "<s>", "<unk>")),
    "llama3": (
        lambda: _byte_bpe(["<|begin_of_text|>", "<|end_of_text|>", *HEADERS]),
        LLAMA3,
        _special("<|end_of_text|>", "<|begin_of_text|>"),
    ),
    "vicuna": (lambda: _byte_bpe(["<s>", "</s>"]), VICUNA, _special("</s>", "<s>")),
    "gpt2": (lambda: _byte_bpe(["<|endoftext|>"]), None, _special(*["<|endoftext|>"] * 3)),
    "opt": (lambda: _byte_bpe(["<pad>", "</s>"]), None, _special(*["</s>"] * 3, "<pad>")),
    "llama2 base": (lambda: _sentencepiece(["<unk>", "<s>", "</s>"], "first"), None, _special("</s>", "<s>", "<unk>")),
}


@cache
def _backend(name: str) -> str:
    return FAMILIES[name][0]().to_str()


def family(name: str) -> PreTrainedTokenizerFast:
    """A new tokenizer of a family."""
    _, template, special = FAMILIES[name]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_backend(name)), **special)
    tokenizer.chat_template = template
    return tokenizer

"""Log-probabilities of completions: masking and gathering, reading rows in batches, the reference cache.

The output layer runs at the positions that predict a completion token, and on some of them at a time. So no tensor
grows with vocabulary x length. (liger-kernel's fused losses do the same on GPUs alone, each for one loss.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uftlab.models.policies import evaluation_mode
from uftlab.rows.batches import lines_of, to_batch
from uftlab.rows.tokens import Completion, Example

READ_TOKENS = {
    "cpu": 2048,
    "cuda": 16384,
}  # tokens that a model reads at a time: never more because there are more rows
LOGITS = 2**24  # numbers that the output layer makes at a time: 64 MB in float32
SMALL = (5, (4, 3))  # prompt and completions of the text on which a model is tried


def gather_logps(
    logits: Float[Tensor, "completion pos vocabulary"],
    targets: Int[Tensor, "completion pos"],
    mask: Bool[Tensor, "completion pos"],
) -> Float[Tensor, "completion pos"]:
    """log p(target) at each position in nats, at least in float32, and exactly 0 where the mask is False.

    `logits[:, t]` must be the prediction *of* `targets[:, t]`: the caller shifts them.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return torch.where(mask, chosen - logits.logsumexp(-1), 0.0)


def token_kl(
    logits: Float[Tensor, "completion pos vocabulary"],
    other_logits: Float[Tensor, "completion pos vocabulary"],
    mask: Bool[Tensor, "completion pos"],
) -> Float[Tensor, "completion pos"]:
    """KL(p || q) of the next-token distributions at each position in nats, exactly 0 where the mask is False.

    p is the distribution of `logits`, q that of `other_logits`. log 2 for (1, 0) against (1/2, 1/2).
    """
    log_p, log_q = (x.to(torch.promote_types(x.dtype, torch.float32)).log_softmax(-1) for x in (logits, other_logits))
    return torch.where(mask, (log_p.exp() * (log_p - log_q)).sum(-1), 0.0)


def token_entropy(logits: Float[Tensor, "*at vocabulary"], top: int) -> Float[Tensor, "*at"]:
    """Entropy of the next-token distribution among its `top` most probable words, in nats, without gradient.

    H = -sum_v q_v log q_v,  q is the distribution of those words alone. log 2 for logits (0, 0, -9) and top 2. With
    top 1 it is 0, with all words it is the entropy itself.
    """
    with torch.no_grad():
        best = logits.float() if logits.dtype.itemsize < 4 else logits
        best = best.topk(min(top, logits.shape[-1]), -1).values
        return torch.special.entr(best.softmax(-1)).sum(-1)


# ------------------------------------------------------------------------------------- the output layer


class _FrozenHead(torch.autograd.Function):
    """log p(target) of an output layer that is not trained.

    d log p_t / d h_t = W_y - sum_v p_v W_v does not depend on what comes after. So it is computed with the value, and
    the logits are forgotten at once.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, top: int
    ) -> tuple[Tensor, Tensor]:
        """Some positions at a time."""
        logps, entropies, slopes = [], [], []
        for start in range(0, len(hidden), size := _at_once(weight)):
            here, wanted = hidden[start : start + size], targets[start : start + size, None]
            logits = F.linear(here, weight, bias).float()
            total = logits.logsumexp(-1, keepdim=True)
            logps.append((logits.gather(-1, wanted) - total)[:, 0])
            entropies.append(_entropy(logits, top))
            if ctx.needs_input_grad[0]:
                away = torch.exp(logits - total).neg_()
                away.scatter_add_(-1, wanted, torch.ones_like(away[:, :1]))
                slopes.append((away.to(weight.dtype) @ weight).to(hidden.dtype))
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        found = torch.cat(entropies)
        ctx.mark_non_differentiable(found)
        return torch.cat(logps), found

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The slope of each position times what arrives there."""
        (slopes,) = ctx.saved_tensors
        return slopes * grad[:, None].to(slopes.dtype), None, None, None, None


def _entropy(logits: Tensor, top: int) -> Tensor:
    return token_entropy(logits, top) if top else logits.new_zeros(len(logits))


def _at_once(weight: Tensor) -> int:
    return max(1, LOGITS // weight.shape[0])


def head_logps(
    hidden: Float[Tensor, "token width"],
    weight: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, "vocabulary"] | None,
    targets: Int[Tensor, "token"],
) -> Float[Tensor, "token"]:
    """log softmax(W h + b)[target] of each token in nats, in float32. The logits of all tokens never exist together.

    -log 2 for a hidden state of zeros, two words and no bias.
    """
    return head_reading(hidden, weight, bias, targets, 0)[0]


def head_reading(
    hidden: Float[Tensor, "token width"],
    weight: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, "vocabulary"] | None,
    targets: Int[Tensor, "token"],
    top: int,
) -> tuple[Float[Tensor, "token"], Float[Tensor, "token"]]:
    """`head_logps`, and from the same logits `token_entropy` among the `top` most probable words; 0 if `top` is 0."""
    if not weight.requires_grad:
        return cast(tuple[Tensor, Tensor], _FrozenHead.apply(hidden, weight, bias, targets, top))

    def some(here: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(here, weight, bias).float()
        return logits.gather(-1, wanted[:, None])[:, 0] - logits.logsumexp(-1), _entropy(logits, top)

    size = _at_once(weight)
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    # computed once more in the backward pass, instead of kept
    made = [checkpoint(some, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.cat([logps for logps, _ in made]), torch.cat([entropies for _, entropies in made])


@contextmanager
def _answering(head: nn.Module, answer: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within, the output layer gives `answer` of the hidden states instead of logits."""
    usual = vars(head).get("forward")
    head.forward = answer  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        if usual is None:
            del head.forward
        else:
            head.forward = usual


_plain_heads: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_sharing: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _small(model: nn.Module) -> list[Completion]:
    """Two made-up completions of one prompt."""
    config: Any = model.config
    words = int(config.get_text_config().vocab_size)
    prompt, lengths = SMALL
    ids = [(7 * k * k + 3 * k + 1) % words for k in range(prompt + sum(lengths))]
    first = prompt + lengths[0]
    return [Completion(tuple(ids[:prompt]), tuple(own), "scored") for own in (ids[prompt:first], ids[first:])]


def output_layer(model: nn.Module) -> nn.Module | None:
    """The layer that makes logits of hidden states; None where the model does not say which."""
    return cast(Any, model).get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def has_plain_head(model: nn.Module) -> bool:
    """Whether the logits are what a linear output layer gives, and nothing is done to them afterwards.

    The model is tried once on a few tokens. Gemma 2, for instance, bends its logits after the output layer.
    """
    if model not in _plain_heads:
        head, made = output_layer(model), []
        plain = type(head) is nn.Linear and not hasattr(head, "_hf_hook")
        if plain and head is not None:
            hook = head.register_forward_hook(lambda module, args, out: made.append(out))
            ids = torch.tensor([_small(model)[0].prompt_ids], device=next(model.parameters()).device)
            with torch.no_grad(), evaluation_mode(model):
                logits = model(input_ids=ids, use_cache=False).logits
            hook.remove()
            plain = len(made) == 1 and torch.equal(made[0].float(), logits.float())
        _plain_heads[model] = plain
    return _plain_heads[model]


def shares_prompts(model: nn.Module) -> bool:
    """Whether two completions of a prompt can share a line: the model obeys a mask of any form.

    It is tried once on a few tokens. Models with windows of attention are left out, whatever the trial says.
    """
    if model not in _sharing:
        config: Any = getattr(model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
        windows = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
        able = getattr(text, "_attn_implementation", None) in ("sdpa", "eager")
        able = able and kinds == {"full_attention"} and not windows
        if able:
            rows, device = _small(model), next(model.parameters()).device
            try:
                with torch.no_grad(), evaluation_mode(model):
                    one, two = (
                        token_logps(model, on_device(to_batch([tuple(rows)], share), device)).float()
                        for share in (True, False)
                    )
                exact = next(model.parameters()).dtype == torch.float32
                able = torch.allclose(one, two, atol=1e-3 if exact else 0.1, rtol=1e-3)
            except (TypeError, ValueError, RuntimeError, IndexError):  # whatever a model says to a mask it cannot use
                able = False
        _sharing[model] = bool(able)
    return _sharing[model]


# ------------------------------------------------------------------------------------------ one batch


def on_device(batch: Any, device: torch.device | str) -> Any:
    """A batch, or a part of one, on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: on_device(part, device) for name, part in batch.items()}
    return [on_device(part, device) for part in batch]


def _run(model: nn.Module, group: Mapping[str, Tensor]) -> Tensor:
    """What the model says of a rectangle of lines."""
    mask = group["attention_mask"]
    if bool(group["shared"]):
        mask = _forked(group, next(model.parameters()).dtype)
    made = model(input_ids=group["input_ids"], attention_mask=mask, position_ids=group["position_ids"], use_cache=False)
    return made.logits


def _forked(group: Mapping[str, Tensor], dtype: torch.dtype) -> Float[Tensor, "line 1 column column"]:
    """0 where a token may attend, the lowest number elsewhere: later columns, and the other completion."""
    column = torch.arange(group["input_ids"].shape[1], device=group["input_ids"].device)
    prompt, fork = group["prompt"][:, None], group["fork"][:, None]
    first, second = (column >= prompt) & (column < fork), column >= fork
    hidden = (column > column[:, None]) | (second[:, :, None] & first[:, None])
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]


def completion_logits(model: nn.Module, batch: Mapping[str, Any]) -> Float[Tensor, "completion pos vocabulary"]:
    """Logits that predict the completion tokens, position by position; 0 at padding.

    The output layer runs at these positions only.
    """
    mask = batch["completion_mask"]
    made: Tensor | None = None
    head = output_layer(bare(model))
    for group in batch["groups"]:
        line, column = group["line"], group["column"]
        if head is None:
            logits = _run(model, group)[line, column]
        else:
            hook = head.register_forward_pre_hook(lambda _, args, line=line, column=column: (args[0][line, column],))
            try:
                logits = _run(model, group)
            finally:
                hook.remove()
        if made is None:
            made = logits.new_zeros(*mask.shape, logits.shape[-1])
        made = made.index_put((group["row"], group["position"]), logits)
    assert made is not None  # a batch has at least one group
    return made


def token_logps(model: nn.Module, batch: Mapping[str, Any]) -> Float[Tensor, "completion pos"]:
    """log pi(y_t | x, y_<t) of each completion token in nats; 0 at padding."""
    return token_reading(model, batch, 0)[0]


def token_reading(
    model: nn.Module, batch: Mapping[str, Any], top: int
) -> tuple[Float[Tensor, "completion pos"], Float[Tensor, "completion pos"]]:
    """`token_logps`, and `token_entropy` among the `top` most probable words; 0 at padding, and if `top` is 0."""
    ids, mask, plain = batch["completion_ids"], batch["completion_mask"], bare(model)
    if not has_plain_head(plain):
        logits = completion_logits(model, batch)
        entropies = token_entropy(logits, top) if top else torch.zeros(mask.shape, device=mask.device)
        return gather_logps(logits, ids, mask), torch.where(mask, entropies, 0.0)
    head: Any = output_layer(plain)
    found = torch.zeros(*mask.shape, 2, device=mask.device)
    for group in batch["groups"]:
        line, column, at = group["line"], group["column"], (group["row"], group["position"])

        def answer(hidden: Tensor, line: Tensor = line, column: Tensor = column, wanted: Tensor = ids[at]) -> Tensor:
            return torch.stack(head_reading(hidden[line, column], head.weight, head.bias, wanted, top), -1)

        with _answering(head, answer):
            found = found.index_put(at, _run(model, group))
    return found[..., 0], found[..., 1].detach()


def bare(model: nn.Module) -> nn.Module:
    """The model itself, without what distributes it over processes."""
    inner: Any = model
    while not hasattr(inner, "config") and hasattr(inner, "module"):
        inner = inner.module
    return inner


def completion_logps(model: nn.Module, batch: Mapping[str, Any]) -> Float[Tensor, "completion"]:
    """log pi(y | x), summed over completion tokens (the end token included), in nats."""
    return token_logps(model, batch).sum(-1)


# ------------------------------------------------------------------------------------------ many rows


def row_batches(
    model: nn.Module, rows: Sequence[Completion], done: Callable[[int], Any] | None = None, most: int | None = None
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Batches of rows of similar length: the numbers of the rows, and the batch, on the device of the model.

    A batch has `most` tokens, `READ_TOKENS` if that is None, or one line. So the memory that reading needs does not
    grow with the number of rows. Rows with the same prompt share lines where the model can.

    Args:
        done: is told the number of rows of each batch that was read.
    """
    device = next(model.parameters()).device
    most = READ_TOKENS["cuda" if device.type == "cuda" else "cpu"] if most is None else most
    share = shares_prompts(model)
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].prompt_ids), rows[i].prompt_ids, i))
    lines = sorted(lines_of([rows[i] for i in order], share), key=lambda line: line.length)
    while lines:
        count, longest = 0, 0
        for line in lines:
            longest = max(longest, line.length)
            if count and (count + 1) * longest > most:
                break
            count += 1
        own, lines = lines[:count], lines[count:]
        here = [order[number] for line in own for number in line.numbers]
        examples: list[Example] = [line.rows for line in own]
        yield here, on_device(to_batch(examples, share, most), device)
        if done is not None:
            done(len(here))


def read_token_logps(
    model: nn.Module, rows: Sequence[Completion], done: Callable[[int], Any] | None = None
) -> Float[Tensor, "completion pos"]:
    """log pi of each completion token of each row in nats, 0 after the end, on the CPU.

    The model is in evaluation mode, without gradient. LoRA adapters stay as they are.
    """
    found = torch.zeros(len(rows), max((len(c.completion_ids) for c in rows), default=0))
    with torch.no_grad(), evaluation_mode(model):
        for here, batch in row_batches(model, rows, done):
            logps = token_logps(model, batch).cpu()
            found[here, : logps.shape[1]] = logps
    return found


def read_logps(
    model: nn.Module, rows: Sequence[Completion], done: Callable[[int], Any] | None = None
) -> Float[Tensor, "completion"]:
    """log pi(y | x) of each row, summed over its completion tokens, in nats. See `read_token_logps`."""
    return read_token_logps(model, rows, done).sum(-1)

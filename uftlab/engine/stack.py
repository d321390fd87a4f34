"""Many tiny Llamas computed together: each weight has a first axis of members, each layer is a batched product.

The function is that of transformers' `LlamaForCausalLM`, for batches without padding (`engine.packing`). Three things
make it faster. The gain of a norm is multiplied into the matrix that follows. Query and key weights are stored so that
the two numbers that a rotary embedding rotates together are neighbours. The last layer has queries only for tokens that
predict a completion token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import psutil
import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Int
from torch import Tensor
from transformers import LlamaConfig

from uftlab.engine.packing import Packed
from uftlab.errors import InputError

REACH = 512  # number of positions in the table of rotations
READING = 0.1  # share of the free memory that reading may use; several processes may share a GPU
MOST_LINES = 32_768  # most lines for one attention call on a GPU (the CUDA grid has at most 65,535)
CPU_LINES = 256  # lines that a CPU reads at a time; more do not fit in its cache


def free_memory(device: torch.device) -> int:
    """Free memory of a device, in bytes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


@dataclass(frozen=True)
class Layout:
    """The sizes of a Llama with tied embeddings, one key head per query head and no biases."""

    vocabulary: int
    width: int
    heads: int
    inner: int
    depth: int
    eps: float
    theta: float

    @classmethod
    def of(cls, config: LlamaConfig) -> Layout:
        """The layout of a configuration.

        Raises:
            InputError: for a Llama with other features, which this stack cannot compute.
        """
        rope: Any = config.rope_parameters
        plain = (
            config.tie_word_embeddings
            and config.num_key_value_heads == config.num_attention_heads
            and not (config.attention_bias or config.mlp_bias)
            and config.hidden_act == "silu"
            and rope["rope_type"] == "default"
        )
        if not plain:
            rule = "have tied embeddings, plain rotations, a key for each query head and no biases"
            raise InputError("A Llama in a stack", rule, config.to_dict(), "Train it with ObjectiveTrainer")
        return cls(
            config.vocab_size,
            config.hidden_size,
            config.num_attention_heads,
            config.intermediate_size,
            config.num_hidden_layers,
            config.rms_norm_eps,
            rope["rope_theta"],
        )

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the weights of one member, in the order of `Weights`."""
        d, i = self.width, self.inner
        layer: list[tuple[int, ...]] = [(d,), (d, d), (2 * d, d), (d, d), (d,), (2 * i, d), (d, i)]
        return [(self.vocabulary, d), *layer * self.depth, (d,)]

    @property
    def parameters(self) -> int:
        """Number of parameters of one member. 139,520 for the tiny model of the course."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)


class Layer(NamedTuple):
    """The weights of one layer. The first axis of each is that of members."""

    attention_gain: Float[Tensor, "member width"]
    query: Float[Tensor, "member width width"]
    key_value: Float[Tensor, "member both width"]
    out: Float[Tensor, "member width width"]
    mlp_gain: Float[Tensor, "member width"]
    gate_up: Float[Tensor, "member both_inner width"]
    down: Float[Tensor, "member width inner"]


class Weights(NamedTuple):
    """Views into one tensor that holds all weights."""

    embedding: Float[Tensor, "member vocabulary width"]
    layers: list[Layer]
    gain: Float[Tensor, "member width"]

    @classmethod
    def of(cls, flat: Float[Tensor, "member parameter"], layout: Layout) -> Weights:
        """Views into `flat`. One split means that autograd concatenates the gradient only once."""
        shapes = layout.shapes
        parts = flat.split([torch.Size(shape).numel() for shape in shapes], dim=1)
        embedding, *middle, gain = (p.view(len(flat), *shape) for p, shape in zip(parts, shapes, strict=True))
        return cls(embedding, [Layer(*middle[i : i + 7]) for i in range(0, len(middle), 7)], gain)


def lines_at_once(layout: Layout, columns: int, reads: int, device: torch.device) -> int:
    """How many lines are read together. On a GPU: as many as fit into a share of its free memory."""
    if device.type == "cpu":
        return CPU_LINES
    states = columns * (8 * layout.width + 6 * layout.inner)  # the largest layer; nothing is stored for a gradient
    each = 4 * (states + 3 * reads * layout.vocabulary)
    return max(1, min(MOST_LINES, int(READING * free_memory(device) / each)))


# --------------------------------------------------------------------------------- to and from transformers


def _neighbours(weight: Tensor, heads: int) -> Tensor:
    """The rows of a query or key matrix in the order 0, n/2, 1, n/2 + 1, ... within each head."""
    rows, width = weight.shape
    return weight.view(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width)


def _halves(weight: Tensor, heads: int) -> Tensor:
    """The inverse of `_neighbours`."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def flatten(state: Mapping[str, Tensor], layout: Layout) -> Float[Tensor, "parameter"]:
    """The `state_dict` of a `LlamaForCausalLM` as one row of a stack: a copy on the same device."""
    parts = [state["model.embed_tokens.weight"]]
    for index in range(layout.depth):
        own = {name.removeprefix(f"model.layers.{index}."): w for name, w in state.items()}
        q, k, v, o = (own[f"self_attn.{name}_proj.weight"] for name in "qkvo")
        q, k = _neighbours(q, layout.heads), _neighbours(k, layout.heads)
        gate, up, down = (own[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        parts += [own["input_layernorm.weight"], q, k, v, o, own["post_attention_layernorm.weight"], gate, up, down]
    parts.append(state["model.norm.weight"])
    return torch.cat([part.detach().reshape(-1) for part in parts]).float()


def unflatten(flat: Float[Tensor, "parameter"], layout: Layout) -> dict[str, Tensor]:
    """One row of a stack as the `state_dict` of a `LlamaForCausalLM`, without the tied output layer."""
    weights = Weights.of(flat.detach()[None], layout)
    state = {"model.embed_tokens.weight": weights.embedding[0], "model.norm.weight": weights.gain[0]}
    for index, layer in enumerate(weights.layers):
        k, v = layer.key_value[0].chunk(2)
        gate, up = layer.gate_up[0].chunk(2)
        own = {
            "input_layernorm": layer.attention_gain[0],
            "self_attn.q_proj": _halves(layer.query[0], layout.heads),
            "self_attn.k_proj": _halves(k, layout.heads),
            "self_attn.v_proj": v,
            "self_attn.o_proj": layer.out[0],
            "post_attention_layernorm": layer.mlp_gain[0],
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.down[0],
        }
        state |= {f"model.layers.{index}.{name}.weight": weight for name, weight in own.items()}
    return {name: weight.clone() for name, weight in state.items()}


# ------------------------------------------------------------------------------------------ the function


@cache
def _rotations(layout: Layout, device: torch.device) -> Complex[Tensor, "position half"]:
    half = layout.width // layout.heads // 2
    angles = torch.arange(REACH)[:, None] * layout.theta ** (-torch.arange(half) / half)
    return torch.polar(torch.ones_like(angles), angles).to(device)


def rotations(layout: Layout, positions: Int[Tensor, "*at"]) -> Complex[Tensor, "*at 1 half"]:
    """Rotary embeddings as complex numbers of modulus 1. All heads have the same."""
    table = _rotations(layout, positions.device)
    return table.index_select(0, positions.reshape(-1)).view(*positions.shape, 1, -1)


class _Norm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps). The gradient needs half of the operations that autograd would use."""

    @staticmethod
    def forward(ctx, x, eps):  # type: ignore[no-untyped-def, override]
        """The normalised state."""
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def, override]
        """(g - y mean(g y)) times the scale of the forward pass."""
        y, scale = ctx.saved_tensors
        return torch.addcmul(grad, y, (grad * y).mean(-1, keepdim=True), value=-1).mul_(scale), None


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return torch.bmm(x, weight.transpose(1, 2))


def _heads(x: Tensor, turn: Tensor | None, heads: int) -> Tensor:
    """(member, token, width) as (member, token, head, size), rotated by `turn` if it is given."""
    shape = (*x.shape[:2], heads, -1)
    if turn is None:
        return x.view(shape)
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:2], heads, -1, 2))
    return torch.view_as_real(pairs * turn).reshape(shape)


def take(x: Float[Tensor, "member token width"], index: Int[Tensor, "entries"]) -> Float[Tensor, "entries width"]:
    """The tokens at an index that counts over all members."""
    return x.reshape(-1, x.shape[-1]).index_select(0, index)


class _Move(torch.autograd.Function):
    """Entries at an index. The gradient is an index, too, so that nothing has to be summed."""

    @staticmethod
    def forward(ctx, x, there, back):  # type: ignore[no-untyped-def, override]
        """The entries at the index `there`."""
        ctx.save_for_backward(back)
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def, override]
        """The gradient of each entry, from the one place that it was copied to."""
        return grad.index_select(0, *ctx.saved_tensors), None, None


def move(
    x: Float[Tensor, "*rows width"], there: Int[Tensor, "places"], back: Int[Tensor, "entries"]
) -> Float[Tensor, "places width"]:
    """Copies the rows of members to the rectangle of lines, or back if the two indices are exchanged.

    Each entry is copied to one place at most. Unused places must have gradient 0, as in `packing.Packed`.
    """
    return _Move.apply(x.reshape(-1, x.shape[-1]), there, back)


def embed(weights: Weights, ids: Int[Tensor, "member token"]) -> Float[Tensor, "member token width"]:
    """Embeddings of the tokens, from the embedding table of each member."""
    members, vocabulary, width = weights.embedding.shape
    shift = vocabulary * torch.arange(members, device=ids.device)[:, None]
    return F.embedding(ids + shift, weights.embedding.reshape(-1, width))


def queries(layer: Layer, h: Tensor, turn: Tensor, heads: int) -> Float[Tensor, "member token head size"]:
    """Queries from the normalised state."""
    return _heads(_linear(h, layer.query * layer.attention_gain[:, None]), turn, heads)


def keys_values(layer: Layer, h: Tensor, turn: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values from the normalised state; each is (member, token, head, size)."""
    key, value = _linear(h, layer.key_value * layer.attention_gain[:, None]).chunk(2, -1)
    return _heads(key, turn, heads), _heads(value, None, heads)


def close(layer: Layer, x: Tensor, attended: Tensor, eps: float) -> Float[Tensor, "member token width"]:
    """The state after a layer, from the state before it and the output of attention."""
    x = x + _linear(attended, layer.out)
    gate, up = _linear(_Norm.apply(x, eps), layer.gate_up * layer.mlp_gain[:, None]).chunk(2, -1)
    return x + _linear(F.silu(gate) * up, layer.down)


def norm(x: Float[Tensor, "member token width"], eps: float) -> Float[Tensor, "member token width"]:
    """Root mean square norm without the gain."""
    return _Norm.apply(x, eps)


def project(
    weights: Weights, x: Float[Tensor, "member token width"], eps: float
) -> Float[Tensor, "member token vocabulary"]:
    """Logits from the state after the last layer."""
    return _linear(norm(x, eps), weights.embedding * weights.gain[:, None])


Cache = list[tuple[Tensor, Tensor]]  # keys and values of each layer, (line, head, column, size)


def logits(
    weights: Weights, batch: Packed, layout: Layout, keep: Cache | None = None
) -> Float[Tensor, "member read vocabulary"]:
    """Logits that predict the completion tokens of a batch, in the order of `batch.targets`.

    Args:
        keep: an empty list that gets the keys and values, so that generation can continue each line.
    """
    members = len(batch.ids)
    turn = rotations(layout, batch.positions)
    lines, columns = len(batch.prompt), batch.columns
    x = embed(weights, batch.ids)
    content, place, mask, asked = batch.content, batch.place, batch.mask, turn
    for depth, layer in enumerate(weights.layers):
        h = norm(x, layout.eps)
        key, value = keys_values(layer, h, turn, layout.heads)
        if depth == layout.depth - 1:
            x, h = (take(t, batch.reads).view(members, -1, layout.width) for t in (x, h))
            asked = rotations(layout, batch.positions.reshape(-1)[batch.reads].view(members, -1))
            content, place, mask = batch.read_content, batch.read_place, batch.read_mask
        query = queries(layer, h, asked, layout.heads)
        key, value = (
            move(t.flatten(2), batch.content, batch.place).view(lines, columns, layout.heads, -1).transpose(1, 2)
            for t in (key, value)
        )
        if keep is not None:
            keep.append((key, value))
        query = move(query.flatten(2), content, place)
        query = query.view(lines, -1, layout.heads, layout.width // layout.heads).transpose(1, 2)
        found = F.scaled_dot_product_attention(query, key, value.to(key.dtype), attn_mask=mask.to(key.dtype))
        found = found.transpose(1, 2).reshape(-1, layout.width)
        x = close(layer, x, move(found, place, content).view(members, -1, layout.width), layout.eps)
    return project(weights, x, layout.eps)


def step(
    weights: Weights,
    layout: Layout,
    ids: Int[Tensor, "member line"],
    positions: Int[Tensor, "member line"],
    cache: Cache,
    column: int,
    mask: Float[Tensor, "every_line 1 1 columns"],
) -> Float[Tensor, "member line vocabulary"]:
    """Logits that predict the token after one new token of each line.

    Args:
        cache: keys and values from `logits`, with free columns. Those of the new tokens are written into `column`.
        mask: 0 at the columns up to `column` where a line has a token, minus infinity elsewhere.
    """
    turn = rotations(layout, positions)
    x = embed(weights, ids)
    for layer, (keys, values) in zip(weights.layers, cache, strict=True):
        h = norm(x, layout.eps)
        key, value = keys_values(layer, h, turn, layout.heads)
        keys[:, :, column], values[:, :, column] = key.flatten(0, 1), value.flatten(0, 1)
        query = queries(layer, h, turn, layout.heads).flatten(0, 1).unsqueeze(2)
        found = F.scaled_dot_product_attention(
            query, keys[:, :, : column + 1], values[:, :, : column + 1], attn_mask=mask[..., : column + 1]
        )
        x = close(layer, x, found.reshape(x.shape), layout.eps)
    return project(weights, x, layout.eps)


def token_logps(
    logits: Float[Tensor, "member read vocabulary"], batch: Packed
) -> Float[Tensor, "member completion pos"]:
    """log pi(y_t | x, y_<t) of each completion token in nats, 0 at padding."""
    logps = -F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    picked = logps.index_select(0, batch.pick.flatten()).view(batch.pick.shape)
    return torch.where(batch.completion_mask, picked, 0.0)

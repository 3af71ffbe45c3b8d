"""Attention in plain operators, as its definition has it.

    torch   nn.MultiheadAttention(x, x, x)            one call, with kernels of its own
    here    linear ─ chunk ─ heads ─ (q·s)·kᵀ ─ mask ─ softmax ─ dropout ─ ·v ─ heads ─ linear

Where query, key and value are one tensor, their projection is one layer. Sizes are asked for only
where the definition depends on them, so that most attention is captured without example inputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxquant.graph.place import example_of


class NotSpelledOutError(Exception):
    """This call has no plain form; says why."""


class Layer(NamedTuple):
    """The parameters of multi-head attention; `packed` is one weight for queries, keys and
    values, `separate` one for each where there is no such weight.
    """

    heads: int
    width: int
    packed: Any
    separate: tuple[Any, Any, Any]
    bias: Any
    out_weight: Any
    out_bias: Any
    dropout: float


class Masks(NamedTuple):
    """Truths say which columns to leave out; numbers are added to the scores."""

    scores: Any
    keys: Any


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """[..., L, E], [..., S, E] and [..., S, V] to [..., L, V]; here truths say what stays."""
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    mask = attn_mask
    if is_causal:
        if attn_mask is not None:
            raise NotSpelledOutError("attention takes attn_mask or is_causal=True, not both")
        sizes = (query.size(-2), key.size(-2))
        mask = query.new_ones(sizes, dtype=torch.bool).tril().logical_not()
    elif attn_mask is not None and like(attn_mask).dtype is torch.bool:
        mask = attn_mask.logical_not()
    scale = query.size(-1) ** -0.5 if scale is None else scale
    return _attend(query * scale, key, value, (mask,), dropout_p)[0]


def multi_head_attention_forward(
    query: Any,
    key: Any,
    value: Any,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Any,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """As torch.nn.functional has it: [L, N, E] or [L, E]. `is_causal` says what the mask is."""
    if static_k is not None or static_v is not None:
        raise NotSpelledOutError("attention with static_k or static_v")
    _refuse_extra_keys(bias_k, add_zero_attn)
    layer = Layer(
        heads=num_heads,
        width=embed_dim_to_check,
        packed=None if use_separate_proj_weight else in_proj_weight,
        separate=(q_proj_weight, k_proj_weight, v_proj_weight),
        bias=in_proj_bias,
        out_weight=out_proj_weight,
        out_bias=out_proj_bias,
        dropout=dropout_p if training else 0.0,
    )
    masks = Masks(attn_mask, key_padding_mask)
    y, weights = _sequence_first(layer, (query, key, value), masks)
    return y, _returned(weights, need_weights, average_attn_weights)


def forward_of_attention(
    self: nn.MultiheadAttention,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """The forward of nn.MultiheadAttention, whose shortcuts give the same."""
    _refuse_extra_keys(self.bias_k, self.add_zero_attn)
    layer = Layer(
        heads=self.num_heads,
        width=self.embed_dim,
        packed=self.in_proj_weight,
        separate=(self.q_proj_weight, self.k_proj_weight, self.v_proj_weight),
        bias=self.in_proj_bias,
        out_weight=self.out_proj.weight,
        out_bias=self.out_proj.bias,
        dropout=self.dropout if self.training else 0.0,
    )
    form = _multi_head if self.batch_first else _sequence_first
    y, weights = form(layer, (query, key, value), Masks(attn_mask, key_padding_mask))
    return y, _returned(weights, need_weights, average_attn_weights)


def _refuse_extra_keys(bias_k: Any, add_zero_attn: bool) -> None:
    if bias_k is not None or add_zero_attn:
        raise NotSpelledOutError("attention with add_bias_kv or add_zero_attn")


def _returned(weights: Any, needed: bool, average: bool) -> Any:
    if not needed:
        return None
    return weights.mean(-3) if average else weights


def _sequence_first(layer: Layer, sides: tuple[Any, Any, Any], masks: Masks) -> tuple[Any, Any]:
    """[L, N, E], or [L, E] where there is no batch."""
    if sides[0].dim() != 3:
        return _multi_head(layer, sides, masks)
    turned = {id(x): x.transpose(0, 1) for x in sides}  # what is one tensor stays one
    query, key, value = (turned[id(x)] for x in sides)
    y, weights = _multi_head(layer, (query, key, value), masks)
    return y.transpose(0, 1), weights


def _multi_head(layer: Layer, sides: tuple[Any, Any, Any], masks: Masks) -> tuple[Any, Any]:
    """[N, L, E] or [L, E] to the same and the weights, [N, heads, L, S] or [heads, L, S]."""
    q, k, v = (_into_heads(x, layer.heads) for x in _project(layer, sides))
    scores, keys = masks
    if scores is not None and like(scores).dim() == 3 and like(sides[0]).dim() == 3:
        scores = scores.unflatten(0, (-1, layer.heads))
    if keys is not None:
        keys = keys.unsqueeze(-2).unsqueeze(-2)
    scale = (layer.width // layer.heads) ** -0.5
    attended, weights = _attend(q * scale, k, v, (scores, keys), layer.dropout)
    joined = attended.transpose(-3, -2).flatten(-2)
    return F.linear(joined, layer.out_weight, layer.out_bias), weights


def _into_heads(x: Any, heads: int) -> Any:
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def _project(layer: Layer, sides: tuple[Any, Any, Any]) -> tuple[Any, ...]:
    """Queries, keys and values; tensors that are one go through one layer."""
    query, key, value = sides
    packed, bias, width = layer.packed, layer.bias, layer.width
    if packed is not None and query is key and key is value:
        return _parts(F.linear(query, packed, bias), 3)
    biases = (None, None, None) if bias is None else _parts(bias, 3, 0)
    if packed is not None and key is value:
        both = F.linear(key, packed[width:], None if bias is None else bias[width:])
        return (F.linear(query, packed[:width], biases[0]), *_parts(both, 2))
    weights = layer.separate if packed is None else _parts(packed, 3, 0)
    return tuple(F.linear(x, w, b) for x, w, b in zip(sides, weights, biases, strict=True))


def _parts(x: Any, count: int, dim: int = -1) -> tuple[Any, ...]:
    parts = x.chunk(count, dim)
    return tuple(parts[i] for i in range(count))


def _attend(
    query: Any, key: Any, value: Any, masks: tuple[Any, ...], dropout: float
) -> tuple[Any, Any]:
    scores = query @ key.transpose(-2, -1)
    for mask in masks:
        if mask is None:
            continue
        leaves_out = like(mask).dtype is torch.bool
        scores = scores.masked_fill(mask, float("-inf")) if leaves_out else scores + mask
    weights = torch.softmax(scores, -1)
    if type(dropout) is not float or dropout != 0.0:  # a number set later is asked when it runs
        weights = F.dropout(weights, dropout)
    return weights @ value, weights


def like(x: Any) -> torch.Tensor:
    """A tensor of the dtype and rank of `x`, which may be traced."""
    example = example_of(x.node) if isinstance(x, fx.Proxy) else x
    if not isinstance(example, torch.Tensor):
        raise NotSpelledOutError(
            "attention with a mask whose shape is not known (pass example_inputs)"
        )
    return example

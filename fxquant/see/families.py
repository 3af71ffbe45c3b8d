"""Kinds of nodes in a few families, and what carries which integers: for colours."""

from __future__ import annotations

# The first family that the operator's name starts with.
_STARTS = (
    ("layer", ("conv", "linear", "matmul", "embedding")),
    ("norm", ("batch_norm", "fixed_batch_norm", "layer_norm", "group_norm")),
    ("norm", ("instance_norm", "rms_norm", "normalize")),
    ("activation", ("relu", "hardtanh", "clamp", "leaky_relu", "prelu", "elu", "silu", "gelu")),
    ("activation", ("sigmoid", "tanh", "hardsigmoid", "hardswish", "exp", "softmax")),
    ("pool", ("max_pool", "avg_pool", "adaptive", "mean", "interpolate")),
    ("sum", ("add", "cat", "sub", "mul", "div", "neg", "scale", "sum", "weighted_sum")),
    ("boundary", ("quantize", "dequantize", "fake_quant", "observer")),
    ("end", ("input", "output")),
)


def family_of(kind: str) -> str:
    """The family of an operator, by what it does first; 'other' for moves and all else."""
    return next((family for family, starts in _STARTS if kind.startswith(starts)), "other")


def carries(dtype: str) -> str:
    """What an edge of this dtype carries, in one of three words."""
    return next(word for word in ("uint", "int", "") if dtype.startswith(word)) or "float"

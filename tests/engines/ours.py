"""What both oracles are compared with: our operators on given integers, and a count of codes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxquant.intmath import Target
from fxquant.ops import op_named
from fxquant.ops.spec import RealCall, Weights
from fxquant.rounding import Rounding
from fxquant.schemes import UINT8, Channels, QParams, QuantScheme
from tests.ops.calls import integers, qparams

INT8 = QuantScheme(symmetric=False)
SCHEMES = {"uint8": UINT8, "int8": INT8}
WEIGHT = QuantScheme(narrow=True, per_channel=True)


class Layer(NamedTuple):
    """A layer in integers: weights [O, I, ...], one scale an output channel, a bias or none."""

    weight: NDArray[np.int8]
    scales: NDArray[np.float32]
    bias: NDArray[np.int32]


class Draw:
    """Random integers and parameters; scales that are powers of two if they are to make ties."""

    def __init__(self, seed: int, scheme: QuantScheme, ties: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.scheme, self.ties = scheme, ties

    def near(self, scale: float, spread: float = 1.0, size: int | None = None) -> Any:
        """float32 scales around one, within a factor of e^spread."""
        found = scale * np.exp(self.rng.uniform(-spread, spread, size))
        return np.float32(2.0 ** np.round(np.log2(found)) if self.ties else found)

    def qparams(self, scale: float = 0.1) -> QParams:
        """A scale around that one, any zero point."""
        zero = int(self.rng.integers(self.scheme.qmin, self.scheme.qmax + 1))
        return qparams(float(self.near(scale)), zero, self.scheme)

    def centred(self, scale: float = 0.1) -> QParams:
        """The same, but with a zero point in the middle, so that products are about 0."""
        zero = int(self.rng.integers(self.scheme.qmin + 120, self.scheme.qmax - 120))
        return qparams(float(self.near(scale)), zero, self.scheme)

    def codes(self, *shape: int) -> NDArray[Any]:
        """Any codes."""
        found = self.rng.integers(self.scheme.qmin, self.scheme.qmax + 1, shape)
        return found.astype(str(self.scheme).removesuffix("/channel"))

    def layer(self, x: QParams, y: QParams, shape: tuple[int, ...], per_channel: bool) -> Layer:
        """A layer whose outputs use the range of `y`."""
        terms = int(np.prod(shape[1:]))
        spread = float(y.scale) * 60 / (float(x.scale) * 100 * 74 * np.sqrt(terms))
        scales = self.near(spread, 1.0, shape[0] if per_channel else 1)
        return Layer(
            self.rng.integers(-127, 128, shape).astype(np.int8),
            np.broadcast_to(scales, shape[0]).copy(),
            self.rng.integers(-20_000, 20_000, shape[0]).astype(np.int32),
        )


def layer(
    name: str, rounding: Rounding, x: QParams, y: QParams, of: Layer, codes: NDArray[Any],
    **settings: Any,
) -> NDArray[Any]:
    """Through the numbers that our operator makes of the real weights, and they are those given."""
    op = op_named(name)
    weight, scales = torch.from_numpy(of.weight), torch.from_numpy(of.scales)
    real = weight.double() * scales.double().reshape(-1, *[1] * (weight.dim() - 1))
    bias = torch.from_numpy(of.bias).double() * (x.scale.double() * scales.double())
    channels = Channels(0, settings.get("groups", 1))
    ends = (torch.tensor(end, dtype=torch.int32) for end in (y.scheme.qmin, y.scheme.qmax))
    weights = Weights(real.float(), bias, scales, WEIGHT, channels)
    numbers = op.numbers(RealCall((x,), Target(y, *ends, rounding), weights, None, settings))
    assert torch.equal(numbers.weight, weight)
    assert torch.equal(numbers.bias, torch.from_numpy(of.bias))
    found: Tensor = op.kernel(numbers, y.scheme.dtype, torch.from_numpy(codes), **settings)
    return found.numpy()


def operator(
    name: str, rounding: Rounding, inputs: tuple[QParams, ...], y: QParams, *codes: NDArray[Any],
    **settings: Any,
) -> NDArray[Any]:
    """An operator without weights."""
    tensors = [torch.from_numpy(np.ascontiguousarray(c)) for c in codes]
    return integers(name, inputs, y, *tensors, rounding=rounding, **settings).numpy()


def all_pairs(scheme: QuantScheme) -> tuple[NDArray[Any], NDArray[Any]]:
    """All 65,536 pairs of codes, as two images of [1, 256, 16, 16]."""
    codes = np.arange(scheme.qmin, scheme.qmax + 1).astype(str(scheme))
    left, right = np.meshgrid(codes, codes, indexing="ij")
    return left.reshape(1, 256, 16, 16), right.reshape(1, 256, 16, 16)


def differing(ours: NDArray[Any], theirs: NDArray[Any]) -> int:
    """How many codes are not the same."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert len(np.unique(theirs)) > 30 or theirs.size < 500, "it all but saturates"
    return int((ours != theirs).sum())


def scale_of(q: QParams) -> np.float32:
    return np.float32(q.scale.numpy())


def zero_of(q: QParams) -> int:
    return int(q.zero_point)

"""What the user wants: one frozen record, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fxquant.errors import ConfigError
from fxquant.schemes import INT8_WEIGHT, UINT8, QuantScheme


@dataclass(frozen=True)
class QuantConfig:
    """How a network is quantized.

    activation   the integers of activations
    weight       the integers of weights; symmetric
    batch_norm   "train": batch norms stay live, train on, and are folded into the integers of
                 eval(); "fold": they are folded into the weights before training
    equalize     whether weight ranges are evened out across layers (needs batch_norm="fold",
                 because a live batch norm undoes it)
    verify       whether every pass that keeps the function is checked to do so, on random inputs
                 like the example inputs, and undone if it does not (slow; see explain)
    keep_float   paths of submodules that stay in float, `*` and `?` allowed; each is one node,
                 so that even code which cannot be captured may stand inside
    """

    activation: QuantScheme = UINT8
    weight: QuantScheme = INT8_WEIGHT
    batch_norm: Literal["train", "fold"] = "train"
    equalize: bool = False
    verify: bool = False
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("activation", "weight"):
            if not isinstance(getattr(self, name), QuantScheme):
                raise ConfigError(
                    f"{name} is a QuantScheme, such as QuantScheme(bits=4), "
                    f"got {getattr(self, name)!r}"
                )
        if not self.weight.symmetric:
            raise ConfigError(f"weights need a symmetric scheme, got {self.weight!r}")
        if self.activation.per_channel:
            raise ConfigError("activations have one scale per tensor, got per_channel=True")
        if self.batch_norm not in ("train", "fold"):
            raise ConfigError(f"batch_norm is 'train' or 'fold', got {self.batch_norm!r}")
        if self.equalize and self.batch_norm != "fold":
            raise ConfigError(
                "equalize=True needs batch_norm='fold': a live batch norm undoes the factors"
            )
        if not isinstance(self.keep_float, tuple):
            raise ConfigError(
                f"keep_float is a tuple of paths, such as ('head',), got {self.keep_float!r}"
            )

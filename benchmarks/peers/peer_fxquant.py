"""fxquant: what prepare_qat leaves of the function before any range has seen data.

Until then eval() of a prepared network is the float network after all rewrites.
"""

from __future__ import annotations

import compare
from torch import Tensor, nn

import fxquant
from fxquant import QuantConfig
from fxquant.errors import FxQuantError


def prepared_with(config: QuantConfig) -> compare.Way:
    """prepare_qat with this configuration."""

    def way(model: nn.Module, x: Tensor) -> nn.Module:
        return fxquant.prepare_qat(model, x, config).eval()

    return way


WAYS = {
    "batch norm live": prepared_with(QuantConfig()),
    "batch norm folded": prepared_with(QuantConfig(batch_norm="fold")),
    "equalized": prepared_with(QuantConfig(batch_norm="fold", equalize=True)),
}

if __name__ == "__main__":
    compare.main(
        WAYS,
        {"fxquant": fxquant.__version__} | compare.installed("torch"),
        refusals=(FxQuantError,),
    )

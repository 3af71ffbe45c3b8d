"""The order of the passes, on one screen, with a word where the order matters."""

from __future__ import annotations

from fxquant.config import QuantConfig
from fxquant.passes import (
    Canonicalize,
    EqualizeCrossLayer,
    FoldBatchNorm,
    FuseConvBnRelu,
    InsertFakeQuant,
    InsertObservers,
    JoinAdds,
    LowerToInteger,
)
from fxquant.pipeline import Pass, Recipe


def prepare_recipe(config: QuantConfig, float_leaves: frozenset[str]) -> Recipe:
    """From a captured float graph to one that trains with fake-quants."""
    fold: tuple[Pass, ...] = (FoldBatchNorm(),) if config.batch_norm == "fold" else ()
    equalize: tuple[Pass, ...] = (EqualizeCrossLayer(),) if config.equalize else ()
    return Recipe(
        "prepare_qat",
        (
            Canonicalize(),
            JoinAdds(),  # before fuse: a sum that has taken an activation in is no longer joined
            *fold,  # before fuse, which would keep the batch norms live
            FuseConvBnRelu(),
            InsertObservers(float_leaves),  # after fuse: nothing is observed inside a site
            *equalize,  # after fold: it compares the weights as they will be used
            InsertFakeQuant(config.activation, config.weight),
        ),
    )


CONVERT = Recipe("convert", (LowerToInteger(),))

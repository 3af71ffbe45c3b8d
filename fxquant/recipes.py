"""The order of the passes, on one screen, with a word where the order matters."""

from __future__ import annotations

from fxquant.config import QuantConfig
from fxquant.passes import (
    AbsorbHighBias,
    BoundMasks,
    Canonicalize,
    CorrectBias,
    EqualizeCrossLayer,
    FixShapes,
    FoldBatchNorm,
    FuseConvBnRelu,
    InsertFakeQuant,
    InsertObservers,
    JoinAdds,
    JoinProducts,
    LowerLayers,
    LowerToInteger,
    QuantizeLayers,
    ScaleByParameters,
    WeighTerms,
)
from fxquant.pipeline import Pass, Recipe


def prepare_recipe(config: QuantConfig, float_leaves: frozenset[str]) -> Recipe:
    """From a captured float graph to one that trains with fake-quants."""
    fold: tuple[Pass, ...] = (FoldBatchNorm(),) if config.batch_norm == "fold" else ()
    if config.mode != "static":
        dynamic = config.mode == "dynamic"
        layers = QuantizeLayers(config.choices, dynamic, config.group_size)
        return Recipe("prepare_layers", (FixShapes(), Canonicalize(float_leaves), *fold, layers))
    equalize: tuple[Pass, ...] = (EqualizeCrossLayer(config.weight),) if config.equalize else ()
    absorb: tuple[Pass, ...] = (AbsorbHighBias(),) if config.absorb_high_bias else ()
    correct: tuple[Pass, ...] = (CorrectBias(),) if config.correct_bias else ()
    return Recipe(
        "prepare_qat",
        (
            FixShapes(),  # before canonicalize, which reads numbers as options
            Canonicalize(float_leaves),
            BoundMasks(),
            WeighTerms(),
            JoinAdds(),  # before fuse: a sum that has taken an activation in is no longer joined
            JoinProducts(),
            ScaleByParameters(),  # after join_products, which takes products into sums
            *fold,  # before fuse, which would keep the batch norms live
            FuseConvBnRelu(),
            # after fuse: nothing is observed inside a site
            InsertObservers(float_leaves, config.calibrator),
            *equalize,  # after fold: it compares the weights as they will be used
            *absorb,  # after equalize, which makes biases high
            InsertFakeQuant(
                config.activation,
                config.weight,
                config.fake_quant,
                config.weight_fake_quant,
                config.accumulator_bits,
                config.rounds,
                config.widen,
                config.first_last_bits,
                config.overrides,
            ),
            *correct,  # last: it asks what rounding does to the weights
        ),
    )


CONVERT = Recipe("convert", (LowerToInteger(),))

CONVERT_LAYERS = Recipe("convert_layers", (LowerLayers(),))

"""The passes: one change of the graph each, one file each, in the order of the recipes."""

if __name__ != "fxquant.passes":
    raise ImportError(f"import this package as 'fxquant.passes', not as '{__name__}'")

from fxquant.passes.absorb_high_bias import AbsorbHighBias
from fxquant.passes.bound_masks import BoundMasks
from fxquant.passes.canonicalize import Canonicalize
from fxquant.passes.correct_bias import CorrectBias
from fxquant.passes.equalize_cross_layer import EqualizeCrossLayer
from fxquant.passes.fix_shapes import FixShapes
from fxquant.passes.fold_bn import FoldBatchNorm
from fxquant.passes.fuse_conv_bn_relu import FuseConvBnRelu
from fxquant.passes.insert_fake_quant import InsertFakeQuant
from fxquant.passes.insert_observers import InsertObservers
from fxquant.passes.join_adds import JoinAdds
from fxquant.passes.join_products import JoinProducts
from fxquant.passes.lower_layers import LowerLayers
from fxquant.passes.lower_to_integer import LowerToInteger
from fxquant.passes.quantize_layers import QuantizeLayers
from fxquant.passes.scale_by_parameters import ScaleByParameters
from fxquant.passes.weigh_terms import WeighTerms

PASSES = (
    FixShapes,
    Canonicalize,
    BoundMasks,
    WeighTerms,
    JoinAdds,
    JoinProducts,
    ScaleByParameters,
    FoldBatchNorm,
    FuseConvBnRelu,
    InsertObservers,
    EqualizeCrossLayer,
    AbsorbHighBias,
    InsertFakeQuant,
    CorrectBias,
    LowerToInteger,
    QuantizeLayers,
    LowerLayers,
)

__all__ = [
    "PASSES",
    "AbsorbHighBias",
    "BoundMasks",
    "Canonicalize",
    "CorrectBias",
    "EqualizeCrossLayer",
    "FixShapes",
    "FoldBatchNorm",
    "FuseConvBnRelu",
    "InsertFakeQuant",
    "InsertObservers",
    "JoinAdds",
    "JoinProducts",
    "LowerLayers",
    "LowerToInteger",
    "QuantizeLayers",
    "ScaleByParameters",
    "WeighTerms",
]

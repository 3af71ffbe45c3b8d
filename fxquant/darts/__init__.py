"""DARTS: published genotypes, the operations they name, and the networks built from them.

    text in a log ── parse_genotype ─┬─ Genotype ── NetworkCIFAR(36, 10, 20, genotype)
    SearchNetwork, trained ──────────┘

Plain PyTorch, traceable with plain torch.fx in eval mode; nothing here knows of quantization.
"""

from .cells import Cell
from .genotypes import (
    DARTS_V1,
    DARTS_V2,
    GENOTYPES,
    PDARTS,
    PRIMITIVES,
    AmoebaNet,
    Genotype,
    NASNet,
    PC_DARTS_cifar,
    PC_DARTS_image,
    parse_genotype,
)
from .networks import AuxiliaryHeadCIFAR, AuxiliaryHeadImageNet, NetworkCIFAR, NetworkImageNet
from .operations import (
    OPS,
    DilConv,
    DropPath,
    FactorizedReduce,
    Identity,
    ReLUConvBN,
    SepConv,
    Zero,
)
from .search import MixedOp, SearchCell, SearchNetwork, strongest_edges

__all__ = [
    "DARTS_V1",
    "DARTS_V2",
    "GENOTYPES",
    "OPS",
    "PDARTS",
    "PRIMITIVES",
    "AmoebaNet",
    "AuxiliaryHeadCIFAR",
    "AuxiliaryHeadImageNet",
    "Cell",
    "DilConv",
    "DropPath",
    "FactorizedReduce",
    "Genotype",
    "Identity",
    "MixedOp",
    "NASNet",
    "NetworkCIFAR",
    "NetworkImageNet",
    "PC_DARTS_cifar",
    "PC_DARTS_image",
    "ReLUConvBN",
    "SearchCell",
    "SearchNetwork",
    "SepConv",
    "Zero",
    "parse_genotype",
    "strongest_edges",
]

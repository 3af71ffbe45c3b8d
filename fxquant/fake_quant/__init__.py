"""Fake-quants round values to their integer grid while the network trains. One a file."""

from fxquant.fake_quant.activation import ActivationFakeQuant
from fxquant.fake_quant.adaptive import AdaptiveRounding
from fxquant.fake_quant.dorefa import DoReFa
from fxquant.fake_quant.few_levels import TWN, BinaryWeight, TernaryWeight, weight_quantizer
from fxquant.fake_quant.inq import INQ, IncrementalWeight
from fxquant.fake_quant.lsq import LSQ, LearnedStep, LearnedWeight
from fxquant.fake_quant.lsq_plus import LearnedOffset, LSQPlus
from fxquant.fake_quant.method import FakeQuant
from fxquant.fake_quant.observed_step import ObservedStep, ObservedWeight, StraightThrough
from fxquant.fake_quant.pact import PACT, LearnedClip
from fxquant.fake_quant.projection import Nearest, Projection
from fxquant.fake_quant.stages import Clipped, Plain, StagedWeight, Stages, Tanh, Transform
from fxquant.fake_quant.stochastic import ByChance, Stochastic
from fxquant.fake_quant.straight_through import fake_quantize, round_to_grid
from fxquant.fake_quant.tqt import TQT, TrainedThreshold
from fxquant.fake_quant.weight import WeightFakeQuant

# what a configuration may name
FAKE_QUANTS = (StraightThrough, LSQ, LSQPlus, PACT, DoReFa, TQT, Stochastic, Stages, TWN, INQ)
TRANSFORMS = (Plain, Tanh, Clipped)  # of Stages
PROJECTIONS = (Nearest, ByChance)

__all__ = [
    "FAKE_QUANTS",
    "INQ",
    "LSQ",
    "PACT",
    "PROJECTIONS",
    "TQT",
    "TRANSFORMS",
    "TWN",
    "ActivationFakeQuant",
    "AdaptiveRounding",
    "BinaryWeight",
    "ByChance",
    "Clipped",
    "DoReFa",
    "FakeQuant",
    "IncrementalWeight",
    "LSQPlus",
    "LearnedClip",
    "LearnedOffset",
    "LearnedStep",
    "LearnedWeight",
    "Nearest",
    "ObservedStep",
    "ObservedWeight",
    "Plain",
    "Projection",
    "StagedWeight",
    "Stages",
    "Stochastic",
    "StraightThrough",
    "Tanh",
    "TernaryWeight",
    "TrainedThreshold",
    "Transform",
    "WeightFakeQuant",
    "fake_quantize",
    "round_to_grid",
    "weight_quantizer",
]

"""The ways out: what other engines run, equal to the integer network."""

from fxquant.export.bundle import export_bundle
from fxquant.export.count import Counts, CountTable, count_operations
from fxquant.export.onnx import export_onnx
from fxquant.export.program import export_program
from fxquant.export.tflite import export_tflite
from fxquant.export.verify import Parting, Verification, verify

__all__ = [
    "CountTable",
    "Counts",
    "Parting",
    "Verification",
    "count_operations",
    "export_bundle",
    "export_onnx",
    "export_program",
    "export_tflite",
    "verify",
]

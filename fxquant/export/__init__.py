"""The ways out: what other engines run, equal to the integer network."""

from fxquant.export.onnx import export_onnx
from fxquant.export.program import export_program
from fxquant.export.verify import Parting, Verification, verify

__all__ = ["Parting", "Verification", "export_onnx", "export_program", "verify"]
